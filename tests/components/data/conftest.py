"""Every option of conf/data, ready to build: what it needs from the user (files, column names) is written here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from PIL import Image

from components.data import DataModule

CONF = Path(__file__).parents[3] / "conf" / "data"
HUB = find_spec("datasets") is not None  # the extra hub
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml") if HUB or p.stem != "huggingface")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "option" in metafunc.fixturenames:
        metafunc.parametrize("option", OPTIONS)


def people(rows: int = 120) -> pd.DataFrame:
    """A table with numbers, texts, missing values, two kinds of target and a column of no use."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(rows)],
            "age": rng.integers(18, 90, rows).astype(float),
            "city": rng.choice(["Paris", "Rome", "Oslo"], rows),
            "member": rng.random(rows) < 0.5,
            "income": rng.normal(3000, 500, rows),
            "churned": rng.choice(["no", "yes"], rows, p=[0.7, 0.3]),
            "likes_tea": rng.integers(0, 2, rows),
            "likes_coffee": rng.integers(0, 2, rows),
        }
    )
    frame.loc[::10, "age"] = np.nan
    frame.loc[3, "city"] = None
    return frame


def write_pictures(root: Path, classes: tuple[str, ...], each: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(root / name / f"{i}.png")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    people().to_csv(root / "people.csv", index=False)
    people().to_parquet(root / "people.parquet")
    rng = np.random.default_rng(0)
    np.savez(root / "arrays.npz", inputs=rng.normal(3, 2, (90, 5)), target=np.arange(90) % 3)
    write_pictures(root / "pictures", ("cat", "dog", "owl"), 20)
    (root / "book.txt").write_text("".join(f"Line {i} of a book of some length.\n" for i in range(2000)))
    return root


@pytest.fixture(scope="session")
def needs(files: Path) -> dict[str, dict[str, Any]]:
    """What an option asks of the user; python_source is cut short to keep the tests quick."""
    table = {"target": "churned", "drop": ["id"]}
    return {
        "csv": {"path": str(files / "people.csv")} | table,
        "parquet": {"path": str(files / "people.parquet")} | table,
        "npz": {"path": str(files / "arrays.npz")},
        "image_folder": {"path": str(files / "pictures"), "image_size": 8},
        "text": {"path": str(files / "book.txt")},
        "python_source": {"max_bytes": 300_000},
        "huggingface": {
            "path": str(files / "people.csv"), "target": "churned", "inputs": ["age", "city", "income"], "cache_dir": str(files / "cache"),
        },
    }  # fmt: skip


@pytest.fixture(scope="session")
def make(needs: dict[str, dict[str, Any]]) -> Callable[..., DataModule]:
    """An option's data module, not set up: built by Hydra from its file, as ``losskit train`` builds it."""

    def build(option: str, **overrides: Any) -> DataModule:
        config = yaml.safe_load((CONF / f"{option}.yaml").read_text())
        del config["defaults"]
        module: DataModule = instantiate(config | {"seed": 0} | needs.get(option, {}) | overrides)
        return module

    return build


@pytest.fixture(scope="session")
def loaded(make: Callable[..., DataModule]) -> Callable[[str], DataModule]:
    """An option's data module after setup, made once; do not change it."""
    cache: dict[str, DataModule] = {}

    def get(option: str) -> DataModule:
        if option not in cache:
            cache[option] = make(option)
            cache[option].setup()
        return cache[option]

    return get

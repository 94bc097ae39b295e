from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.data import HuggingFace

from .conftest import HUB, people


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'losskit\[hub\]'"):
        HuggingFace("some/set", "label").setup()


if HUB:
    import datasets

    def ready(path: Path, target: str | list[str] = "churned", **options: Any) -> HuggingFace:
        data = HuggingFace(str(path), target, **{"batch_size": 1, "cache_dir": str(path.parent / "cache")} | options)
        data.setup()
        return data

    @pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
    def test_local_files(tmp_path: Path, ending: str) -> None:
        frame, path = people(), tmp_path / f"people.{ending}"
        {
            "csv": lambda: frame.to_csv(path, index=False),
            "json": lambda: frame.to_json(path, orient="records"),
            "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
            "parquet": lambda: frame.to_parquet(path),
        }[ending]()
        data = ready(path, inputs=["age", "city"])
        assert data.class_names == ["no", "yes"] and data.facts()["input_shape"] == (4,)
        frame.to_csv(tmp_path / "new.csv", index=False)
        new = data.read_inputs(tmp_path / "new.csv")["inputs"]
        assert torch.allclose(new[data.rows["test"]], data.splits["test"]["inputs"])

    def pictures(count: int, seed: int) -> datasets.Dataset:
        rng = np.random.default_rng(seed)
        images = [Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)) for _ in range(count)]
        features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
        return datasets.Dataset.from_dict({"picture": images, "label": [i % 2 for i in range(count)]}, features=features)

    def test_saved_pictures_with_their_own_splits_and_class_names(tmp_path: Path) -> None:
        datasets.DatasetDict({"train": pictures(20, 0), "validation": pictures(4, 1), "test": pictures(6, 2)}).save_to_disk(tmp_path / "set")
        data = ready(tmp_path / "set", "label", image_size=[6, 5])
        assert data.facts()["input_shape"] == (3, 6, 5) and data.class_names == ["zebra", "ant"]
        assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 20, "val": 4, "test": 6}
        assert 0 <= float(data.splits["train"]["inputs"].min()) < float(data.splits["train"]["inputs"].max()) <= 1
        finished = HuggingFace("gone", "label", image_size=[6, 5])
        finished.load_state_dict(data.state_dict())
        pictures(1, 2)[0]["picture"].save(tmp_path / "new.png")
        assert torch.allclose(finished.read_inputs(tmp_path / "new.png")["inputs"][0], data.splits["test"]["inputs"][0])

    def test_unlabelled_pictures(tmp_path: Path) -> None:
        rows = pictures(10, 0)
        unlabelled = rows.map(lambda row, i: {"label": -1 if i == 3 else row["label"]}, with_indices=True)
        unlabelled.save_to_disk(tmp_path / "set")
        with pytest.raises(ValueError, match="label out of range: 1 labels are not in 0 … 1, first -1 in sample 3"):
            ready(tmp_path / "set", "label")

    def test_a_folder_of_files(tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        people().to_csv(tmp_path / "set" / "train.csv", index=False)
        people(30).to_csv(tmp_path / "set" / "test.csv", index=False)
        data = ready(tmp_path / "set", inputs=["income"])
        assert (len(data.rows["test"]), len(data.rows["train"]) + len(data.rows["val"])) == (30, 120)

    def test_errors(tmp_path: Path) -> None:
        people().to_csv(tmp_path / "people.csv", index=False)
        with pytest.raises(ValueError, match=r"data.target: no column 'churn'; did you mean 'churned'"):
            ready(tmp_path / "people.csv", "churn")
        with pytest.raises(ValueError, match=r"data.inputs: no column 'ages'; did you mean 'age'"):
            ready(tmp_path / "people.csv", inputs=["ages"])
        with pytest.raises(ValueError, match=r"data.path: there is no 'peple.csv' in .*; did you mean 'people.csv'"):
            ready(tmp_path / "peple.csv")
        with pytest.raises(ValueError, match="different texts"):
            ready(tmp_path / "people.csv", inputs=["id"], max_categories=50)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="datasets cannot load"):
            ready(tmp_path / "empty")

"""A wheel that is built here works elsewhere: the config tree, the shell scripts and the templates are inside, and the package needs no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # without isolation: the build backend is among the dev requirements, so nothing is downloaded
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)], check=True, capture_output=True)
    (path,) = out.glob("losskit-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; its requirements are those of this environment."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def losskit(installed: Path, cwd: Path, *arguments: str) -> str:
    """The installed console script's entry point, with the folder before anything else on the path and the checkout nowhere."""
    check = f"assert m.__file__.startswith({str(installed)!r}), m.__file__"
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import losskit_cli.__main__ as m; {check}; m.main()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_that_is_shipped_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in REPOSITORY.glob("conf/**/*.yaml"):
        if "local" not in path.parts:
            assert f"losskit_cli/{path.relative_to(REPOSITORY).as_posix()}" in names
    assert {"losskit_cli/py.typed", "components/py.typed", "sweeps/py.typed"} <= names
    assert not [n for n in names if n.startswith(("tests/", "docs/", "conf/"))]
    entry_points = next(n for n in names if n.endswith("entry_points.txt"))
    assert "losskit = losskit_cli.__main__:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_it_lists_shows_and_completes(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(losskit(installed, tmp_path, "list", "loss", "--json"))
    assert "focal" in json.dumps(listed)
    assert "Focal" in losskit(installed, tmp_path, "show", "loss=focal") or "focal" in losskit(installed, tmp_path, "show", "loss=focal")
    assert "_losskit" in losskit(installed, tmp_path, "completion", "bash")
    losskit(installed, tmp_path, "init", "my_project")
    assert (tmp_path / "my_project").is_dir()


def test_it_trains(installed: Path, tmp_path: Path) -> None:
    summary = json.loads(losskit(installed, tmp_path, "train", "trainer.max_epochs=1", "tracking=none", "--json"))
    assert summary["status"] == "FINISHED"
    assert Path(summary["best_checkpoint"]).is_file()

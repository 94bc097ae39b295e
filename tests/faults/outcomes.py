"""What a run comes to, weights and history, so that one that was broken off can be compared with one that never was."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from losskit_cli.rundir import CHECKPOINTS
from tests.conftest import command


def make_project(directory: Path, store_template: Path, hurt: str) -> Path:
    """A directory to train in: an empty store, and a module ``hurt`` with what sends the signals."""
    (directory / "hurt.py").write_text(hurt)
    shutil.copy(store_template, directory / "mlflow.db")
    return directory


def run_unbroken(directory: Path, experiment: Sequence[str], patience: float) -> dict[str, Any]:
    """The outcome of ``experiment`` when nothing goes wrong."""
    done = subprocess.run(command("train", *experiment, "-q"), cwd=directory, capture_output=True, text=True, check=False, timeout=patience)
    assert done.returncode == 0, done.stderr
    return outcome(directory)


def outcome(directory: Path) -> dict[str, Any]:
    """Of the one run in ``directory``, and what its store says of it."""
    (run_dir,) = directory.glob("outputs/*/*")
    checkpoint = torch.load(run_dir / CHECKPOINTS / "last.ckpt", weights_only=True)
    with sqlite3.connect(directory / "mlflow.db") as store:
        runs = store.execute("select run_uuid, status from runs").fetchall()
        history = store.execute("select key, step, value from metrics order by key, step, timestamp").fetchall()
    optimizer = checkpoint["optimizer_states"][0]["state"]
    return {"weights": checkpoint["state_dict"], "optimizer": optimizer, "history": history, "runs": runs, "step": checkpoint["global_step"]}


def assert_the_same(found: dict[str, Any], expected: dict[str, Any], steps: int) -> None:
    """The same bits and the same history, in one finished run of ``steps`` steps."""
    assert found["step"] == expected["step"] == steps
    assert [status for _, status in found["runs"]] == ["FINISHED"], "resuming must go on in the same MLflow run"
    for name, weight in expected["weights"].items():
        assert torch.equal(found["weights"][name], weight), name
    for index, state in expected["optimizer"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(found["optimizer"][index][name]), torch.as_tensor(value)), (index, name)
    assert found["history"] == expected["history"]

"""Runs on two processes in which one of them is killed, fails or is interrupted: nobody waits for ever, nothing is left running, the run can go on.

Rank 0 is the test process itself wherever it survives what is done to it; importing torch once more for each test costs seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from losskit_cli.rundir import CHECKPOINTS
from tests.conftest import Result, command, further_ranks
from tests.faults.outcomes import assert_the_same, outcome, run_unbroken

Losskit = Callable[..., Result]

HARM = '''
import ctypes, os, signal, time
from pathlib import Path
import lightning
import torch

RANK = int(os.environ.get("LOSSKIT_RANK", "0"))


class HurtAt(lightning.Callback):
    """Sends one rank a signal at one step, once in the life of the run."""

    def __init__(self, rank: int, step: int, signum: int) -> None:
        self.rank, self.step, self.signum = rank, step, signum

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        marker = Path(trainer.default_root_dir) / "hurt"
        if trainer.global_step == self.step and RANK == self.rank and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), self.signum)


class HurtWhileBuilding(lightning.Callback):
    """Kills rank 1 before the ranks have met."""

    def __init__(self) -> None:
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(lightning.Callback):
    """An error on rank 1."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if RANK == 1 and trainer.global_step == 12:
            raise ValueError("the dog ate it")


class NotANumber(lightning.Callback):
    """Inputs of rank 1 become infinite."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if RANK == 1 and trainer.global_step == 12:
            batch["inputs"].fill_(torch.inf)


class HearsNothing(lightning.Callback):
    """Rank 1 dies while rank 0 waits, outside Python, for what never comes; as a collective of a backend that does not notice would."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 12:
            if RANK == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            import losskit_cli.ranks

            losskit_cli.ranks.NOTICE_SECONDS = 1.0
            ctypes.PyDLL(None)
            ctypes.CDLL(None).sleep(600)
'''
# dropout and mixup draw from each rank's random state; ema and the schedule have their own; metrics and windows are half full
EXPERIMENT = [
    "data=digits", "data.batch_size=64", "model=mlp", "model.dropout=0.2", "transform=[mixup]", "averaging=ema", "optimizer=adamw", "schedule=wsd",
    "trainer.max_epochs=5", "trainer.log_every_n_steps=4", "callbacks.checkpoints.every_n_steps=7", "trainer.accelerator=cpu", "trainer.devices=2",
    "seed=5", "allow_targets=[harm]",
]  # fmt: skip
STEPS = 50
PATIENCE = 300


def harm(name: str, **options: int) -> str:
    return f"+callbacks.harm={{{', '.join([f'_target_: harm.{name}', *(f'{k}: {int(v)}' for k, v in options.items())])}}}"


def prepare(directory: Path, store_template: Path) -> Path:
    (directory / "harm.py").write_text(HARM)
    shutil.copy(store_template, directory / "mlflow.db")
    return directory


@pytest.fixture
def project(workdir: Path, store_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(workdir))
    monkeypatch.setitem(sys.modules, "harm", None)
    monkeypatch.delitem(sys.modules, "harm")
    return prepare(workdir, store_template)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> dict[str, Any]:
    """The weights and the history of the experiment when nothing goes wrong."""
    return run_unbroken(prepare(tmp_path_factory.mktemp("unbroken"), store_template), EXPERIMENT, PATIENCE)


def status(directory: Path) -> list[str]:
    with sqlite3.connect(directory / "mlflow.db") as store:
        return [row[0] for row in store.execute("select status from runs")]


def assert_nothing_runs(directory: Path) -> None:
    deadline = time.monotonic() + 60
    while further_ranks(directory) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert further_ranks(directory) == []


def test_a_killed_rank_fails_the_run_which_can_go_on(project: Path, losskit: Losskit, unbroken: dict[str, Any]) -> None:
    failed = losskit("train", *EXPERIMENT, harm("HurtAt", rank=1, step=23, signum=signal.SIGKILL))
    assert failed.code == 1, failed.err
    assert "rank 1 was killed by SIGKILL" in failed.err
    assert "losskit resume" in failed.err
    assert "Traceback" not in failed.err
    assert_nothing_runs(project)
    assert status(project) == ["FAILED"]
    resumed = losskit("resume", "--last", "-q")
    assert resumed.code == 0, resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


def test_when_rank_0_is_killed_the_others_end_and_the_run_resumes_as_if_unbroken(
    project: Path, shell: Callable[..., Any], losskit: Losskit, unbroken: dict[str, Any]
) -> None:
    killed = shell("train", *EXPERIMENT, harm("HurtAt", rank=0, step=31, signum=signal.SIGKILL), "-q", timeout=PATIENCE)
    assert killed.code == -signal.SIGKILL
    assert_nothing_runs(project)
    resumed = losskit("resume", "--last", "-q")
    assert resumed.code == 0, resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


@pytest.mark.parametrize(("rank", "signum", "code"), [(0, signal.SIGINT, 130), (1, signal.SIGTERM, 143)])
def test_a_signal_to_any_rank_stops_all_at_one_step_with_one_checkpoint(
    project: Path, losskit: Losskit, unbroken: dict[str, Any], rank: int, signum: int, code: int
) -> None:
    stopped = losskit("train", *EXPERIMENT, harm("HurtAt", rank=rank, step=17, signum=signum))
    assert stopped.code == code, stopped.err
    assert "a checkpoint is saved" in stopped.err
    assert "Traceback" not in stopped.err
    assert_nothing_runs(project)
    assert status(project) == ["KILLED"]
    (run_dir,) = project.glob("outputs/*/*")
    step = torch.load(run_dir / CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"]
    assert 17 <= step <= 20, "the end of an epoch at the latest"
    assert f"at step {step}" in stopped.err
    assert torch.load(run_dir / CHECKPOINTS / "previous.ckpt", weights_only=True)["global_step"] == 14, "saved once"
    resumed = losskit("resume", "--last", "-q")
    assert resumed.code == 0, resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


def test_ctrl_c_while_the_ranks_have_not_met_is_heard(project: Path) -> None:
    """Rank 1 is held while it starts; rank 0 waits for it, and still listens."""
    process = subprocess.Popen(command("train", *EXPERIMENT, "tracking=none"), cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        held = first_further_rank(project)
        os.kill(held, signal.SIGSTOP)
        time.sleep(15)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert_nothing_runs(project)


def first_further_rank(directory: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = further_ranks(directory)
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no further rank was started")


def test_a_rank_that_dies_before_training_does_not_keep_the_other_waiting(project: Path, losskit: Losskit) -> None:
    failed = losskit("train", *EXPERIMENT, harm("HurtWhileBuilding"), "tracking=none")
    assert failed.code == 1, failed.err
    assert "rank 1 was killed by SIGKILL" in failed.err
    assert_nothing_runs(project)


@pytest.mark.parametrize(
    ("name", "said"),
    [("Fails", "rank 1 ended with exit code 1: the dog ate it"), ("NotANumber", "rank 1 ended with exit code 1: the training loss is not finite at step 13:")],
    ids=["error", "nan"],
)
def test_an_error_of_another_rank_is_told(project: Path, losskit: Losskit, name: str, said: str) -> None:
    failed = losskit("train", *EXPERIMENT, harm(name), "tracking=none")
    assert failed.code == 1, failed.err
    assert said in failed.err
    assert "Traceback" not in failed.err
    (run_dir,) = project.glob("outputs/*/*")
    assert "Traceback" in (run_dir / "error-rank1.txt").read_text()
    assert_nothing_runs(project)


def test_a_rank_0_that_does_not_notice_is_stopped_and_the_run_is_failed(project: Path, shell: Callable[..., Any]) -> None:
    failed = shell("train", *EXPERIMENT, harm("HearsNothing"), timeout=PATIENCE)
    assert failed.code == 1, failed.err
    assert "Error: rank 1 was killed by SIGKILL" in failed.err
    assert "losskit resume" in failed.err
    assert status(project) == ["FAILED"]
    assert_nothing_runs(project)


def test_a_port_that_is_taken_and_a_name_that_does_not_resolve_do_no_harm(project: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
        trained = losskit("train", *EXPERIMENT, "trainer.max_epochs=1", "tracking=none", "--json")
    assert trained.code == 0, trained.err
    assert trained.json()["steps"] == STEPS // 5
    assert os.environ["MASTER_ADDR"] == "nowhere.invalid", "put back"


def test_a_run_goes_on_with_another_number_of_devices_and_says_what_changes(project: Path, losskit: Losskit) -> None:
    assert losskit("train", *EXPERIMENT, harm("HurtAt", rank=1, step=17, signum=signal.SIGKILL), "tracking=none").code == 1
    resumed = losskit("resume", "--last", "trainer.devices=1")
    assert resumed.code == 0, resumed.err
    assert "trainer.devices=1 after 2: a step now sees 64 samples" in resumed.err
    (run_dir,) = project.glob("outputs/*/*")
    steps = torch.load(run_dir / CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 10 + 4 + (20 - 4) + 3 * 20, "killed after 4 of the second epoch's 10 steps; on one device an epoch has 20"

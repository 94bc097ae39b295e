"""Runs that are killed at any step and resumed end exactly like runs that never were: the same bits, the same metric history."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from losskit_cli.rundir import CHECKPOINTS
from tests.faults.outcomes import assert_the_same, make_project, outcome, run_unbroken

HURT = '''
import os, signal
from pathlib import Path
import lightning


class HurtAt(lightning.Callback):
    """Sends this process a signal at one step, once in the life of the run."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        marker = Path(trainer.default_root_dir) / "hurt"
        if trainer.global_step == self.step and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), self.signum)
'''
# dropout and mixup draw from the random state, ema and the confidence penalty's schedule have their own; metrics and windows are half full
EXPERIMENT = [
    "data=digits", "data.batch_size=128", "model=mlp", "model.dropout=0.2", "transform=[mixup]", "averaging=ema", "optimizer=adamw", "schedule=wsd",
    "regularizer=[confidence_penalty]", "trainer.max_epochs=5", "trainer.log_every_n_steps=4", "callbacks.checkpoints.every_n_steps=7",
    "trainer.accelerator=cpu", "seed=5", "allow_targets=[hurt]",
]  # fmt: skip
STEPS = 50


def hurt(step: int, signum: int) -> str:
    return f"+callbacks.hurt={{_target_: hurt.HurtAt, step: {step}, signum: {int(signum)}}}"


@pytest.fixture
def project(workdir: Path, store_template: Path) -> Path:
    return make_project(workdir, store_template, HURT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> dict[str, Any]:
    """The weights and the history of the experiment when nothing goes wrong."""
    directory = make_project(tmp_path_factory.mktemp("unbroken"), store_template, HURT)
    return run_unbroken(directory, EXPERIMENT, 200)


@pytest.mark.parametrize("drawn", [range(8, STEPS // 2), range(STEPS // 2, STEPS), range(20, 21)], ids=["early", "late", "end of epoch"])
def test_a_run_killed_at_a_random_step_and_resumed_is_as_if_unbroken(project: Path, shell: Callable[..., Any], unbroken: dict[str, Any], drawn: range) -> None:
    step = random.SystemRandom().choice(drawn)  # another one each time
    killed = shell("train", *EXPERIMENT, hurt(step, signal.SIGKILL), "-q")
    assert killed.code == -signal.SIGKILL
    resumed = shell("resume", "--last", "-q")
    assert resumed.code == 0, f"step {step}: {resumed.err}"
    assert_the_same(outcome(project), unbroken, STEPS)


def test_a_run_killed_before_its_first_checkpoint_starts_anew_in_the_same_run(project: Path, shell: Callable[..., Any], unbroken: dict[str, Any]) -> None:
    assert shell("train", *EXPERIMENT, hurt(3, signal.SIGKILL), "-q").code == -signal.SIGKILL
    resumed = shell("resume", "--last")
    assert resumed.code == 0, resumed.err
    assert "starts anew" in resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_of_the_step_and_the_run_can_go_on(
    project: Path, shell: Callable[..., Any], unbroken: dict[str, Any], signum: int, code: int
) -> None:
    stopped = shell("train", *EXPERIMENT, hurt(17, signum))
    assert stopped.code == code, stopped.err
    assert "losskit resume" in stopped.err
    assert "Traceback" not in stopped.err
    (run_dir,) = project.glob("outputs/*/*")
    assert torch.load(run_dir / CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"] == 17
    with sqlite3.connect(project / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
    resumed = shell("resume", "--last", "-q")
    assert resumed.code == 0, resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(project: Path, shell: Callable[..., Any], unbroken: dict[str, Any]) -> None:
    assert shell("train", *EXPERIMENT, hurt(33, signal.SIGKILL), "-q").code == -signal.SIGKILL
    (run_dir,) = project.glob("outputs/*/*")
    last = run_dir / CHECKPOINTS / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF  # one flipped byte, the length stays right
    last.unlink()  # best.ckpt may be another name of the same file
    last.write_bytes(content)
    resumed = shell("resume", "--last")
    assert resumed.code == 0, resumed.err
    assert "last.ckpt is damaged: resumed from previous.ckpt" in resumed.err
    assert_the_same(outcome(project), unbroken, STEPS)


def test_all_checkpoints_damaged_is_an_error_and_touches_nothing(project: Path, shell: Callable[..., Any]) -> None:
    assert shell("train", *EXPERIMENT, hurt(33, signal.SIGKILL), "-q").code == -signal.SIGKILL
    (run_dir,) = project.glob("outputs/*/*")
    for path in (run_dir / CHECKPOINTS).glob("*.ckpt"):
        path.unlink()
        path.write_bytes(b"not a checkpoint")
    resumed = shell("resume", "--last")
    assert resumed.code == 1
    assert "no checkpoint to resume from" in resumed.err
    assert "last.ckpt, previous.ckpt" in resumed.err
    assert {p.read_bytes() for p in (run_dir / CHECKPOINTS).glob("*.ckpt")} == {b"not a checkpoint"}

"""A search of the learning rate that is killed in the middle of a probe goes on there, and ends exactly like one that never was."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Result
from tests.faults.outcomes import make_project, outcome, run_unbroken

HURT = '''
import os
from pathlib import Path
from torch import nn


class HurtAt(nn.Module):
    """Sends this process a signal at the n-th training batch, those of probes counted, once in the life of the directory."""

    def __init__(self, batch: int, signum: int) -> None:
        super().__init__()
        self.batch, self.signum, self.count = batch, signum, 0

    def forward(self, batch):
        self.count += 1
        if self.count == self.batch and not Path("hurt").exists():
            Path("hurt").touch()
            os.kill(os.getpid(), self.signum)
        return batch
'''
EXPERIMENT = [
    "data=digits", "data.batch_size=128", "data.fraction=0.5", "model=mlp", "model.dropout=0.2", "averaging=ema", "optimizer=adamw", "trainer.max_epochs=-1",
    "trainer.max_steps=40", "trainer.log_every_n_steps=4", "callbacks.checkpoints.every_n_steps=7", "trainer.accelerator=cpu", "seed=5", "allow_targets=[hurt]",
    "schedule=autolrs", "schedule.method=paper", "schedule.stage=10", "schedule.longest=20", "schedule.candidates=3", "schedule.probe=0.4",
    "schedule.lr_min=1e-4", "schedule.lr_max=0.1",
]  # fmt: skip
# stage 1: probes are batches 1 to 12, training 13 to 22; stage 2: probes of 8 steps are 23 to 46, training 47 to 66; stage 3: probes of 4 steps 67 to 78
STEPS = 40
PLACES = {"first probe": 3, "a probe of the first search": 10, "a probe of the second search": 33, "between searches": 52}


def hurt(batch: int, signum: int) -> str:
    return f"+transform.hurt={{_target_: hurt.HurtAt, batch: {batch}, signum: {int(signum)}}}"


@pytest.fixture
def project(workdir: Path, store_template: Path) -> Path:
    return make_project(workdir, store_template, HURT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> dict[str, Any]:
    directory = make_project(tmp_path_factory.mktemp("unbroken"), store_template, HURT)
    ended = run_unbroken(directory, EXPERIMENT, 200)
    return {**ended, "found": found(directory)}


def found(directory: Path) -> dict[str, Any]:
    (path,) = directory.glob("outputs/*/*/schedule/found.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def assert_as_if_unbroken(project: Path, unbroken: dict[str, Any]) -> None:
    assert found(project) == unbroken["found"]
    ended = outcome(project)
    for name, value in unbroken["weights"].items():
        assert torch.equal(value, ended["weights"][name]), name


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_search_goes_on(project: Path, shell: Callable[..., Result], unbroken: dict[str, Any], place: str) -> None:
    killed = shell("train", *EXPERIMENT, hurt(PLACES[place], signal.SIGKILL), "-q")
    assert killed.code == -signal.SIGKILL
    resumed = shell("resume", "--last")
    assert resumed.code == 0, resumed.err
    assert_as_if_unbroken(project, unbroken)


@pytest.mark.parametrize("place", ["a probe of the first search", "a probe of the second search"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_probe_stops_the_run_at_once(
    project: Path, shell: Callable[..., Result], unbroken: dict[str, Any], place: str, signum: int, code: int
) -> None:
    stopped = shell("train", *EXPERIMENT, hurt(PLACES[place], signum))
    assert stopped.code == code, stopped.err
    assert "losskit resume" in stopped.err and "Traceback" not in stopped.err
    told = stopped.err.count("probe ")
    resumed = shell("resume", "--last")
    assert resumed.code == 0, resumed.err
    assert told + resumed.err.count("probe ") == sum(len(stage["probes"]) for stage in unbroken["found"]["stages"])  # none was run twice to its end
    assert_as_if_unbroken(project, unbroken)

"""trainer.threads: follows from the config, is put back, and a small model gets one thread whatever the machine has."""

from collections.abc import Iterator

import pytest
import torch

from losskit_cli.build import Builder, Experiment
from losskit_cli.commands import spec_of
from losskit_cli.compose import Composer
from losskit_cli.errors import UsageError
from losskit_cli.first_batch import first_batch, leaving_no_trace
from losskit_cli.threads import SMALL, cpu_threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def built(*overrides: str) -> Experiment:
    spec = spec_of(Composer().compose(["tracking=none", "callbacks=[]", *overrides]))
    return Builder(spec.config, spec.choices).experiment()


@pytest.mark.parametrize(
    ("setting", "operations", "threads"),
    [("auto", 0, 1), ("auto", SMALL - 1, 1), ("auto", SMALL, 2), ("auto", None, 2), (3, 0, 3), (1, SMALL, 1)],
)
def test_how_many(setting: int | str, operations: int | None, threads: int) -> None:
    with cpu_threads(setting, operations):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_put_back_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="boom"), cpu_threads(1, None):
        raise RuntimeError("boom")
    assert torch.get_num_threads() == 2


def test_operations_are_those_of_the_forward_pass() -> None:
    experiment = built("data=digits", "model=mlp", "model.hidden=[128,128]", "data.batch_size=64")
    with leaving_no_trace(experiment.task):
        counted = first_batch(experiment, {}).operations
    assert counted == 2 * 64 * (64 * 128 + 128 * 128 + 128 * 10)


@pytest.mark.parametrize("setting", ["0", "-1", "1.5", "true", "all", "null"])
def test_refuses(setting: str) -> None:
    with pytest.raises(UsageError, match=r"trainer\.threads must be auto or a number >= 1"):
        built("data=digits", f"trainer.threads={setting}")

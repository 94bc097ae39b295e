"""The public trials catch what they are for: for each, a transform that is wrong in just that way."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from components.testing.transforms import TransformContract
from components.transforms import Transform
from components.transforms.base import real_inputs

Batch = dict[str, Any]


class Good(Transform):
    r"""Scales the inputs at random.

    .. math:: u x

    Shapes:
        inputs (N, …).

    Source:
        These tests.
    """

    def forward(self, batch: Batch) -> Batch:
        inputs = real_inputs(batch, "good")
        return {**batch, "inputs": inputs * torch.rand((), device=inputs.device).to(inputs.dtype)}


class InPlace(Good):
    def forward(self, batch: Batch) -> Batch:
        batch["inputs"].mul_(2)
        return {**batch}


class DropsEntries(Good):
    def forward(self, batch: Batch) -> Batch:
        return {"inputs": batch["inputs"], "target": batch["target"]}


class Idle(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch}


class OtherRandomness(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"] * random.random()}


class HalfAMixture(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "mix_weight": torch.tensor(0.5)}


class OneShareASample(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "mix_target": {"target": batch["target"]}, "mix_weight": torch.full((len(batch["target"]),), 0.5)}


class WidensPrecision(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"].float() * 2}


class NeedsTwo(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"] + batch["inputs"][1]}


class TakesTokens(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"] + 1}


class WaitsForTheDevice(Good):
    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"] / batch["inputs"].max().item()}


class Undocumented(Good):
    """Scales."""


CASES = [
    ("test_returns_a_new_batch_and_leaves_the_old", InPlace),
    ("test_keeps_what_the_batch_has", DropsEntries),
    ("test_inputs_are_finite_and_change", Idle),
    ("test_same_seed_same_bits_whatever_came_before", OtherRandomness),
    ("test_mixtures_are_complete", HalfAMixture),
    ("test_mixtures_are_complete", OneShareASample),
    ("test_takes_a_batch_of_one", NeedsTwo),
    ("test_refuses_tokens", TakesTokens),
    ("test_never_waits_for_the_device", WaitsForTheDevice),
    ("test_is_documented", Undocumented),
]


@pytest.mark.parametrize(("trial", "wrong"), CASES)
def test_the_trial_refuses_the_wrong_and_takes_the_right(trial: str, wrong: type[Transform]) -> None:
    contract = TransformContract()
    getattr(contract, trial)(Good())
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, IndexError, pytest.fail.Exception)):
        getattr(contract, trial)(wrong())


def test_precision_that_widens_is_refused() -> None:
    TransformContract().test_keeps_the_precision(Good(), torch.bfloat16)
    with pytest.raises(AssertionError):
        TransformContract().test_keeps_the_precision(WidensPrecision(), torch.bfloat16)


def test_every_trial_is_tried() -> None:
    trials = {name for name in dir(TransformContract) if name.startswith("test_")}
    assert trials == {trial for trial, _ in CASES} | {"test_keeps_the_precision"}

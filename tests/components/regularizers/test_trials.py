"""The public trials catch what they are for: for each, a regularizer that is wrong in just that way."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from components.testing.regularizers import RegularizerContract


class Good(nn.Module):
    r"""A penalty on features.

    .. math:: R = \operatorname{mean}(h^2)

    Shapes:
        features (N, D).

    Source:
        These tests.
    """

    def forward(self, features: Tensor) -> Tensor:
        return features.float().square().mean() if features.dtype == torch.bfloat16 else features.square().mean()


class Undocumented(Good):
    """A penalty."""


class AsksForTheUnknown(Good):
    def forward(self, hidden_activations: Tensor) -> Tensor:
        return hidden_activations.sum()


class PerSample(Good):
    def forward(self, features: Tensor) -> Tensor:
        return features.square().mean(1)


class Detached(Good):
    def forward(self, features: Tensor) -> Tensor:
        return features.detach().square().mean()


class BelowItsBound(Good):
    lower_bound: ClassVar[float] = 0.0

    def forward(self, features: Tensor) -> Tensor:
        return -features.square().mean()


class HalfItsGradient(Good):
    def forward(self, features: Tensor) -> Tensor:
        return (features * features.detach()).mean()


class SumOverTheBatch(Good):
    def forward(self, features: Tensor) -> Tensor:
        return features.square().sum()


class ChangesItsInput(Good):
    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        inputs.add_(1)
        return features.square().mean()


class OwnRandomness(Good):
    generator = torch.Generator()

    def forward(self, features: Tensor) -> Tensor:
        return features.square().mean() * torch.rand((), generator=self.generator)


class NanAtZero(Good):
    def forward(self, features: Tensor) -> Tensor:
        return features.square().sum(1).sqrt().mean()


class Overflows(Good):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.exp().mean()


class ForgetsItsState(Good):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean()
        return (features - self.mean).square().mean()


class WaitsForTheDevice(Good):
    def forward(self, features: Tensor) -> Tensor:
        return features.square().mean() * features.detach().max().item()


TRIALS = {
    "test_asks_for_quantities_of_the_vocabulary": AsksForTheUnknown,
    "test_is_a_finite_scalar_on_the_graph": PerSample,
    "test_lies_above_its_lower_bound": BelowItsBound,
    "test_gradient_is_the_values_derivative": HalfItsGradient,
    "test_is_a_mean_over_the_batch": SumOverTheBatch,
    "test_changes_nothing_it_is_given": ChangesItsInput,
    "test_same_seed_same_bits": OwnRandomness,
    "test_a_model_of_zeros_gives_no_nan": NanAtZero,
    "test_a_checkpoint_holds_its_state": ForgetsItsState,
    "test_never_waits_for_the_device": WaitsForTheDevice,
    "test_is_documented": Undocumented,
}


@pytest.mark.parametrize("trial", TRIALS)
def test_the_trial_refuses_the_wrong_and_takes_the_right(trial: str) -> None:
    contract = RegularizerContract()
    getattr(contract, trial)(Good())
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, ValueError)):
        getattr(contract, trial)(TRIALS[trial]())


def test_a_gradient_that_does_not_reach_the_model_is_refused() -> None:
    with pytest.raises(AssertionError, match="no gradient reaches the model"):
        RegularizerContract().test_is_a_finite_scalar_on_the_graph(Detached())


def test_overflow_is_refused() -> None:
    RegularizerContract().test_large_values_stay_finite(Good(), torch.float32)
    with pytest.raises(AssertionError):
        RegularizerContract().test_large_values_stay_finite(Overflows(), torch.float32)


def test_every_trial_is_tried() -> None:
    trials = {name for name in dir(RegularizerContract) if name.startswith("test_")}
    assert trials == {*TRIALS, "test_large_values_stay_finite"}

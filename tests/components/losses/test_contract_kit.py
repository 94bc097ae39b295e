"""The contract kit finds what it promises to find: each broken loss fails its trial, and a sound one of somebody else passes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import CrossEntropyLoss, Loss
from components.testing import LossContract


class TestThirdPartyLoss(LossContract):
    """torch's own loss, fed by other names; what torch does differently is declared."""

    quantities = {"input": "logits"}  # noqa: RUF012
    exempt = {  # noqa: RUF012
        "ignored": "the mean over nothing is NaN",
        "sizes": "the mean of an empty batch is NaN",
        "errors": "torch raises other types of error",
        "class_weight": "a weight of a wrong length raises another type of error",
        "vmap": "label_smoothing must be a number",
        "docstring": "another style",
    }

    @pytest.fixture
    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()


class HostSync(CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits, target) * (1.0 if logits.sum().item() else 2.0)


class InPlace(CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits.data.add_(1)
        return super().forward(logits, target)


class Unstable(Loss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        exponentials = logits.exp()
        return self.reduce(-(exponentials / exponentials.sum(1, keepdim=True)).log().gather(1, target.unsqueeze(1)).squeeze(1), target)


class CountsIgnored(Loss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.reduce(F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none"))


class ForgetsWeight(CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction=self.reduction)


class PositionMatters(Loss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce = F.cross_entropy(logits, target, reduction="none")
        return self.reduce(ce * torch.arange(len(target)).reshape(-1, *[1] * (ce.ndim - 1)), target)


class WrongGradient(CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits.detach() + 0.5 * (logits - logits.detach()), target)


class BranchesOnValue(Loss):
    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce = F.cross_entropy(logits, target, reduction="none")
        return self.reduce(ce * self.gamma if self.gamma > 0 else ce, target)


class Forgetful(CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(logits, target) * self.seen


class MeanIsSum(Loss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce = F.cross_entropy(logits, target, reduction="none")
        return ce if self.reduction == "none" else ce.sum()


class SilentlyBroadcasts(Loss):
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.reduce((prediction - target).square())


@pytest.mark.parametrize(
    ("loss", "trial"),
    [
        (HostSync(), LossContract.test_never_waits_for_the_device),
        (InPlace(), LossContract.test_inputs_are_not_changed),
        (Unstable(), lambda kit, loss: kit.test_extreme_inputs_stay_finite(loss, torch.float32)),
        (CountsIgnored(), LossContract.test_ignored_elements_contribute_nothing),
        (ForgetsWeight(), LossContract.test_class_weight),
        (PositionMatters(), LossContract.test_order_of_samples_does_not_matter),
        (WrongGradient(), LossContract.test_gradient),
        (BranchesOnValue(), LossContract.test_many_values_of_a_hyperparameter_at_once),
        (Forgetful(), LossContract.test_state_survives),
        (MeanIsSum(), LossContract.test_reductions_agree),
        (SilentlyBroadcasts(), LossContract.test_wrong_input_raises_an_error_that_names_it),
        (SilentlyBroadcasts(), LossContract.test_ignored_elements_contribute_nothing),
        (MeanIsSum(), LossContract.test_docstring_has_formula_shapes_and_source),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else getattr(value, "__name__", ""),
)
def test_broken_losses_fail(loss: nn.Module, trial: Callable[[LossContract, nn.Module], None]) -> None:
    failed = False
    try:
        trial(LossContract(), loss)
    except (AssertionError, RuntimeError, ValueError, pytest.fail.Exception):
        failed = True
    assert failed


def test_an_exception_that_nobody_needs_fails() -> None:
    loss = CrossEntropyLoss()
    loss.exempt = {"reductions": "no reason"}
    with pytest.raises(pytest.fail.Exception, match="remove the exception"):
        LossContract().test_reductions_agree(loss)
    loss.exempt = {"reduction": "no such trial"}
    with pytest.raises(AssertionError, match="there are no trials named"):
        LossContract().test_reductions_agree(loss)

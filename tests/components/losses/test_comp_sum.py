import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CompSumLoss, CrossEntropyLoss, comp_sum

F64 = torch.float64


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestCompSum:
    @pytest.mark.parametrize(("tau", "value"), [(0.0, 3.0), (0.5, 2.0), (1.0, 1.38629), (1.5, 1.0), (1.8, 0.83765), (2.0, 0.75)])
    def test_worked_values(self, tau: float, value: float) -> None:  # p = 1/4, u = 3
        logits = torch.tensor([[math.log(1 / 3), 0.0]], dtype=F64)
        assert CompSumLoss(tau)(logits, torch.tensor([0])).item() == pytest.approx(value, abs=1e-5)

    def test_continuous_at_cross_entropy(self, logits: Tensor, target: Tensor) -> None:  # the gap is (1 - tau) CE² / 2
        ce = CrossEntropyLoss(reduction="none")(logits, target)
        for shift in (1e-6, -1e-6, 1e-12):
            values = CompSumLoss(1 + shift, reduction="none")(logits, target)
            assert ((values - ce).abs() <= 0.51 * abs(shift) * ce**2 + 1e-15).all()
        torch.testing.assert_close(CompSumLoss(1.0, reduction="none")(logits, target), ce, rtol=1e-12, atol=0)

    def test_series_meets_the_formula(self) -> None:  # both ways to (e^x - 1) / x around the point where one takes over
        ce = torch.linspace(0.5e-3, 2e-3, 31, dtype=F64).requires_grad_()
        for rate in (1.0, -1.0):
            values = comp_sum(ce, 1 - rate)
            torch.testing.assert_close(values, torch.expm1(rate * ce) / rate, rtol=1e-13, atol=0)
            torch.testing.assert_close(gradient(values.sum(), ce), (rate * ce).exp().detach(), rtol=1e-9, atol=0)

    @pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
    def test_above_one_is_generalized_cross_entropy(self, logits: Tensor, target: Tensor, q: float) -> None:
        p = logits.softmax(1)[range(16), target]
        torch.testing.assert_close(CompSumLoss(1 + q, reduction="none")(logits, target), (1 - p**q) / q)

    def test_two_is_the_mean_absolute_error_of_probabilities(self, logits: Tensor, target: Tensor) -> None:
        error = (logits.softmax(1) - F.one_hot(target, 5)).abs().sum(1) / 2
        torch.testing.assert_close(CompSumLoss(2.0, reduction="none")(logits, target), error)

    def test_zero_is_the_sum_of_exponentials(self, logits: Tensor, target: Tensor) -> None:
        sums = (logits - logits.gather(1, target.unsqueeze(1))).exp().sum(1) - 1
        torch.testing.assert_close(CompSumLoss(0.0, reduction="none")(logits, target), sums)

    def test_a_shift_changes_nothing_and_tau_lowers_the_loss(self, logits: Tensor, target: Tensor) -> None:
        values = [CompSumLoss(tau, reduction="none")(logits, target) for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
        assert all((low < high).all() for high, low in pairwise(values))
        torch.testing.assert_close(CompSumLoss(0.5, reduction="none")(logits + 7, target), values[1])

    @pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
    def test_gradient_identity(self, logits: Tensor, target: Tensor, tau: float) -> None:
        p = logits.detach().softmax(1)
        expected = p.gather(1, target.unsqueeze(1)) ** (tau - 1) * (p - F.one_hot(target, 5))
        torch.testing.assert_close(gradient(CompSumLoss(tau, reduction="sum")(logits, target), logits), expected)

    def test_goes_on_along_its_tangent_where_it_would_overflow(self) -> None:
        ce = torch.tensor([59.0, 60.0, 61.0, 1000.0], dtype=F64, requires_grad=True)
        values = comp_sum(ce, 0.0)
        torch.testing.assert_close(values[:2], torch.expm1(ce[:2]))
        torch.testing.assert_close(values[2:], math.expm1(60) + math.exp(60) * (ce[2:] - 60))
        torch.testing.assert_close(gradient(values.sum(), ce), ce.detach().clamp(max=60).exp())

    def test_refuses_tau(self) -> None:
        with pytest.raises(ValueError, match=r"tau must be >= 0, but got -0\.1"):
            CompSumLoss(-0.1)

"""The objective of sparse recovery and the thresholds of its solvers."""

import math

import pytest
import torch

from components.losses import SparseObjectiveLoss
from components.losses.unfolding import hard_threshold, soft_threshold


def test_thresholds():
    values = torch.tensor([3.0, -0.5, -2.0])
    assert soft_threshold(values, 1.0).tolist() == [2, 0, -1]
    assert hard_threshold(values, math.sqrt(2 * 1.0)).tolist() == [3, 0, -2]


def test_worked_value():
    """A = I, y = (3, 0.5), lambda = 1: at the lasso's solution (2, 0) the objective is 2.625."""
    signal, measured = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.5]])
    assert SparseObjectiveLoss(lam=1.0)(signal, signal - measured).item() == pytest.approx(2.625 / 2, abs=1e-6)
    assert SparseObjectiveLoss(lam=1.0, penalty="l0")(signal, signal - measured).item() == pytest.approx((0.5 * 1.25 + 1) / 2, abs=1e-6)


def test_the_solution_is_the_least():
    signal = torch.tensor([[2.0, 0.0]], requires_grad=True)
    around = signal.detach() + 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    loss, measured = SparseObjectiveLoss(lam=1.0, reduction="none"), torch.tensor([[3.0, 0.5]])
    assert (loss(around, around - measured) >= loss(signal, signal - measured)).all()


def test_counting_has_no_gradient():
    signal = torch.tensor([[2.0, -1.0]], requires_grad=True)
    SparseObjectiveLoss(lam=5.0, penalty="l0")(signal, torch.zeros(1, 2)).backward()
    assert (signal.grad == 0).all()


@pytest.mark.parametrize(("options", "message"), [({"lam": -1}, "lam must be >= 0"), ({"penalty": "l2"}, "penalty must be one of l1, l0")])
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SparseObjectiveLoss(**options)

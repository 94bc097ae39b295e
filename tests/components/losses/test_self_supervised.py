import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor

from components.losses import InfoNCELoss


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(10, 6, dtype=torch.float64, generator=generator)
    return first.requires_grad_(), (first.detach() + torch.randn(10, 6, dtype=torch.float64, generator=generator)).requires_grad_()


def test_worked_value() -> None:
    """Two samples at a right angle, both views equal, τ = 1: the partner has logit 1, the two others 0: ln(e + 2) - 1 for each view."""
    z = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(InfoNCELoss(1.0, reduction="none")(z, 2 * z), torch.full((2,), math.log(math.e + 2) - 1))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_agrees_with_pytorch_metric_learning(views: tuple[Tensor, Tensor], temperature: float) -> None:
    ours = InfoNCELoss(temperature)(*views)
    theirs = NTXentLoss(temperature)(torch.cat(views), torch.arange(10).repeat(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), rtol=1e-6, atol=1e-6)


def test_views_may_be_swapped(views: tuple[Tensor, Tensor]) -> None:
    loss = InfoNCELoss(reduction="none")
    torch.testing.assert_close(loss(*views), loss(*reversed(views)))


def test_a_single_sample_has_nothing_to_be_told_from() -> None:
    assert InfoNCELoss()(torch.ones(1, 3), torch.randn(1, 3)).item() == pytest.approx(0, abs=1e-6)


def test_agreeing_views_cost_less(views: tuple[Tensor, Tensor]) -> None:
    assert InfoNCELoss()(views[0], views[0]) < InfoNCELoss()(*views) < InfoNCELoss()(views[0], views[1].roll(1, 0))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        InfoNCELoss(-0.5)
    with pytest.raises(ValueError, match="projections_2 must have the shape of projections_1"):
        InfoNCELoss()(torch.zeros(4, 3), torch.zeros(4, 2))

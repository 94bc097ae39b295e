import math

import pytest
import torch
from sklearn.metrics import mean_tweedie_deviance
from torch import Tensor
from torch.nn import functional as F

from components.losses import MSELoss, TweedieLoss


@pytest.fixture
def log_mean() -> Tensor:
    return torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.poisson(torch.full((40,), 2.0, dtype=torch.float64), generator=torch.Generator().manual_seed(1)) + 1


def test_poisson_is_torchs(log_mean: Tensor, target: Tensor) -> None:
    ours = TweedieLoss(1.0)(log_mean, target)
    theirs = F.poisson_nll_loss(log_mean, target, log_input=True)
    torch.testing.assert_close(ours, theirs - 1)  # μ - 1 in the place of μ: a constant
    torch.testing.assert_close(*(torch.autograd.grad(value, log_mean)[0] for value in (ours, theirs)))
    mean = log_mean.detach().exp()
    ours, theirs = TweedieLoss(1.0, link="identity")(mean, target), F.poisson_nll_loss(mean, target, log_input=False, eps=0.0)
    torch.testing.assert_close(ours, theirs - 1)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.3, 1.5, 1.9, 2.0])
def test_twice_the_difference_to_the_best_is_scikit_learns_deviance(log_mean: Tensor, target: Tensor, power: float) -> None:
    loss = TweedieLoss(power)
    ours = 2 * (loss(log_mean, target) - loss(target.log(), target))
    assert ours.item() == pytest.approx(mean_tweedie_deviance(target, log_mean.detach().exp(), power=power), rel=1e-9)


def test_power_0_is_half_the_squared_error(target: Tensor) -> None:
    mean = target + 1
    loss = TweedieLoss(0.0, link="identity")
    torch.testing.assert_close(loss(mean, target) - loss(target, target), MSELoss()(mean, target) / 2)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_gradient_is_the_error_in_units_of_the_variance(log_mean: Tensor, target: Tensor, power: float) -> None:
    """dℓ/dμ = (μ - y) / μ^p."""
    mean = log_mean.detach().exp().requires_grad_()
    (gradient,) = torch.autograd.grad(TweedieLoss(power, link="identity", reduction="sum")(mean, target), mean)
    torch.testing.assert_close(gradient, (mean - target) / mean**power)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_best_constant_is_the_mean(target: Tensor, power: float) -> None:
    constants = torch.linspace(0, 2, 2001, dtype=torch.float64)
    losses = torch.stack([TweedieLoss(power)(c.expand(40), target) for c in constants])
    assert constants[losses.argmin()].exp().item() == pytest.approx(target.mean().item(), abs=2e-3)


def test_limits_are_reached_smoothly(log_mean: Tensor, target: Tensor) -> None:
    for limit, near in ((1.0, 1.0 + 1e-7), (2.0, 2.0 - 1e-7)):
        torch.testing.assert_close(TweedieLoss(near)(log_mean, target), TweedieLoss(limit)(log_mean, target), rtol=1e-5, atol=1e-5)


def test_large_logarithms_keep_a_gradient() -> None:
    log_mean = torch.tensor([1e4], requires_grad=True)
    value = TweedieLoss(1.0)(log_mean, torch.tensor([3.0]))
    (gradient,) = torch.autograd.grad(value, log_mean)
    assert math.isfinite(value.item()) and math.isfinite(gradient.item()) and gradient.item() > 0


def test_float32_keeps_its_digits_at_the_limits(log_mean: Tensor, target: Tensor) -> None:
    for power in (1.0, 2.0):
        exact, single = TweedieLoss(power)(log_mean, target), TweedieLoss(power)(log_mean.float(), target.float())
        assert single.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize(("options", "says"), [({"power": 2.5}, "power must be"), ({"link": "sqrt"}, "link must be one of"), ({"eps": 0.0}, "eps must be > 0")])
def test_wrong_options_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TweedieLoss(**options)

import math

import pytest
import torch
from torch import Tensor

from components.losses import HorizonWeightedLoss, L1Loss, MSELoss

ARCTAN, CARD = HorizonWeightedLoss("arctan"), HorizonWeightedLoss("power")


@pytest.fixture
def prediction() -> Tensor:
    return torch.randn(5, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randn(5, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ones(horizon: int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, horizon, 1, dtype=torch.float64), torch.zeros(1, horizon, 1, dtype=torch.float64)


class TestArctan:
    def test_worked_values(self) -> None:
        torch.testing.assert_close(ARCTAN.weights(2, torch.zeros(())), torch.tensor([1.0, 0.678249]), atol=1e-6, rtol=0)
        assert ARCTAN(*ones(2)).item() == pytest.approx(0.839125, abs=1e-6)

    def test_one_step_ahead_is_the_absolute_error(self, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(ARCTAN(prediction[:, :1], target[:, :1]), L1Loss()(prediction[:, :1], target[:, :1]))

    def test_weights_fall_but_not_to_0(self) -> None:
        weights = ARCTAN.weights(2000, torch.zeros((), dtype=torch.float64))
        assert (weights.diff() < 0).all()
        assert (weights > 1 - math.pi / 4).all()
        assert weights[-1].item() == pytest.approx(0.2146, abs=1e-3)


class TestPower:
    def test_worked_value(self) -> None:  # mean(1, 1/√2, 1/√3, 1/2)
        assert CARD(*ones(4)).item() == pytest.approx(0.696114, abs=1e-6)

    def test_without_decay_and_for_one_step_it_is_the_absolute_error(self, prediction: Tensor, target: Tensor) -> None:
        plain = L1Loss()(prediction, target)
        torch.testing.assert_close(HorizonWeightedLoss("power", power=0.0)(prediction, target), plain)
        torch.testing.assert_close(HorizonWeightedLoss("none")(prediction, target), plain)
        torch.testing.assert_close(CARD(prediction[:, :1], target[:, :1]), L1Loss()(prediction[:, :1], target[:, :1]))

    def test_gradient_falls_as_the_root_of_the_distance(self, prediction: Tensor, target: Tensor) -> None:
        (gradient,) = torch.autograd.grad(CARD(prediction, target), prediction)
        torch.testing.assert_close(gradient.abs() * 60, torch.arange(1, 7, dtype=torch.float64)[None, :, None].expand(5, 6, 2) ** -0.5)

    def test_scaling_both_is_weighting_the_loss(self, prediction: Tensor, target: Tensor) -> None:
        """As the authors' code has it: prediction and target times i^-1/2; with squared errors the weight is then 1/i."""
        steps = torch.arange(1, 7, dtype=torch.float64)[None, :, None]
        torch.testing.assert_close(CARD(prediction, target), L1Loss()(prediction * steps**-0.5, target * steps**-0.5))
        squared = HorizonWeightedLoss("power", error="mse")
        torch.testing.assert_close(squared(prediction, target), (MSELoss(reduction="none")(prediction, target) / steps).mean())

    def test_an_error_of_the_last_step_is_cheaper(self) -> None:
        first, last = torch.zeros(2, 1, 9, 1, dtype=torch.float64)
        first[0, 0] = last[0, -1] = 1.0
        zero = torch.zeros_like(first)
        assert (CARD(first, zero) / CARD(last, zero)).item() == pytest.approx(math.sqrt(9))


def test_a_missing_step(prediction: Tensor, target: Tensor) -> None:
    holes = target.clone()
    holes[:, 4:] = math.nan
    torch.testing.assert_close(CARD(prediction, holes), CARD(prediction[:, :4], target[:, :4]))


def test_needs_a_horizon() -> None:
    with pytest.raises(ValueError, match=r"prediction must be \(N, H\) or \(N, H, C\)"):
        ARCTAN(torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize(("options", "says"), [({"decay": "atan"}, "decay"), ({"error": "rmse"}, "error"), ({"power": -1.0}, "power must be >= 0")])
def test_wrong_options_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HorizonWeightedLoss(**options)

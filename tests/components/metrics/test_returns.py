import math

import pytest
import torch
from torch import Tensor

from components.losses import DirectionalLoss
from components.metrics import MADL, AdjustedInformationRatio, AnnualReturn, HitRate, InformationRatio, MaxDrawdown, Volatility

DAYS = torch.arange(4)
EARNED = torch.tensor([0.10, -0.20, 0.05, 0.10])  # what a strategy that is always long earns


def value(metric, target: Tensor = EARNED, preds: Tensor | None = None, index: Tensor = DAYS) -> float:
    metric.update(torch.ones_like(target) if preds is None else preds, target, index)
    return metric.compute().item()


def test_worked_values() -> None:
    growth = 1.10 * 0.80 * 1.05 * 1.10
    annual = growth ** (252 / 4) - 1
    volatility = EARNED.double().std(correction=0).item() * math.sqrt(252)
    assert value(AnnualReturn(unit=1.0)) == pytest.approx(annual, rel=1e-5)
    assert value(Volatility(unit=1.0)) == pytest.approx(volatility, rel=1e-5)
    assert value(MaxDrawdown(unit=1.0)) == pytest.approx(0.20, rel=1e-5)
    assert value(InformationRatio(unit=1.0)) == pytest.approx(annual / volatility, rel=1e-5)
    assert value(AdjustedInformationRatio(unit=1.0)) == pytest.approx(annual * abs(annual) / (volatility * 0.20), rel=1e-5)


def test_a_loss_at_the_start_is_a_drawdown() -> None:
    assert value(MaxDrawdown(unit=1.0), torch.tensor([-0.1, -0.1, 0.0, 0.0])) == pytest.approx(1 - 0.81, rel=1e-5)


def test_time_decides_not_the_order_of_arrival() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert value(MaxDrawdown(unit=1.0), EARNED[order], index=order) == pytest.approx(value(MaxDrawdown(unit=1.0)))


def test_short_positions_and_no_position() -> None:
    preds = torch.tensor([1.0, -3.0, 0.0, 0.1])
    assert value(AnnualReturn(periods=4, unit=1.0), preds=preds) == pytest.approx(1.10 * 1.20 * 1.10 - 1, rel=1e-5)


def test_units() -> None:
    assert value(AnnualReturn(unit=0.01), 100 * EARNED) == pytest.approx(value(AnnualReturn(unit=1.0)), rel=1e-5)


def test_several_targets_are_held_in_equal_parts() -> None:
    target = torch.stack([EARNED, -EARNED], 1)
    assert value(Volatility(), target) == 0
    assert value(InformationRatio(), target) == 0
    assert value(AdjustedInformationRatio(), target) == 0


def test_ruin_is_finite() -> None:
    assert value(AnnualReturn(unit=1.0), torch.tensor([0.1, -2.0, 0.1, 0.1])) == pytest.approx(-1)
    assert value(MaxDrawdown(unit=1.0), torch.tensor([0.1, -2.0, 0.1, 0.1])) == pytest.approx(1)


def test_madl_and_hits() -> None:
    realised, predicted = torch.tensor([0.02, -0.01, 0.03]), torch.tensor([0.5, 0.1, -0.2])
    madl, hits = MADL(), HitRate()
    for metric in (madl, hits):
        metric.update(predicted, realised)
    assert madl.compute().item() == pytest.approx(0.0066667, abs=1e-6)
    assert madl.compute().item() == pytest.approx(DirectionalLoss("exact")(predicted, realised).item())
    assert hits.compute().item() == pytest.approx(1 / 3)


def test_a_missing_return_is_no_position() -> None:
    holes = torch.tensor([0.10, math.nan, 0.05, 0.10])
    assert value(AnnualReturn(periods=4, unit=1.0), holes) == pytest.approx(1.10 * 1.05 * 1.10 - 1, rel=1e-5)


@pytest.mark.parametrize(("options", "says"), [({"periods": 0.0}, "periods must be > 0"), ({"unit": 0.0}, "unit must be > 0")])
def test_wrong_options_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        InformationRatio(**options)

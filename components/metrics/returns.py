"""What a strategy would have earned that goes long or short by the sign of the predicted return, period by period.

Every sample is a period: its target is the return realised in it; several targets are held in equal parts. There are no costs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.metrics.regression import MeanOfErrors, same_shape
from components.validation import require


class MADL(MeanOfErrors):
    r"""Mean absolute directional loss :math:`-\frac1n \sum_i \operatorname{sign}(r_i \hat r_i)\,|r_i|`: minus the mean return of the strategy.

    Shapes:
        preds and target: any, the same: returns. Missing targets are NaN.

    Source:
        Michańków, Sakowski and Ślepaczuk, 2023, arXiv:2309.10546.
    """

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        return -preds.sign() * target


class HitRate(MeanOfErrors):
    r"""Share of the moves whose direction was predicted; a target of 0 is no move.

    Shapes:
        preds and target: any, the same: returns. Missing targets are NaN.
    """

    higher_is_better = True

    def update(self, preds: Tensor, target: Tensor) -> None:
        same_shape(preds, target)
        self.add_kept((preds.sign() == target.sign()).float(), ~target.isnan() & (target != 0))


class StrategyMetric(Metric):
    """Base of metrics of the strategy's returns in order of time: a subclass gives :meth:`measure`.

    Args:
        periods: periods of a year: 252 trading days, 365 days, 8,760 hours.
        unit: what a target of 1 is as a share of the capital: 0.01 for returns in per cent.

    Shapes:
        preds and target (N, …), the same: returns; index (N,) their order in time. A missing return (NaN) is 0: no position.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    earned: list[Tensor]
    order: list[Tensor]

    def __init__(self, periods: float = 252.0, unit: float = 0.01) -> None:
        super().__init__()
        require(periods > 0, "periods must be > 0", periods)
        require(unit > 0, "unit must be > 0", unit)
        self.periods, self.unit = periods, unit
        self.add_state("earned", [], dist_reduce_fx="cat")
        self.add_state("order", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, index: Tensor) -> None:
        same_shape(preds, target)
        earned = (preds.float().sign() * target.float() * self.unit).nan_to_num(0.0)
        self.earned.append(earned.reshape(len(earned), -1).mean(1))
        self.order.append(index)

    def compute(self) -> Tensor:
        earned = dim_zero_cat(self.earned)[dim_zero_cat(self.order).argsort(stable=True)]
        return self.measure(earned.double().cpu())

    def measure(self, earned: Tensor) -> Tensor:
        """The value of the returns (n,), in order of time, as shares of the capital."""
        raise NotImplementedError

    def annual_return(self, earned: Tensor) -> Tensor:
        growth = torch.log1p(earned.clamp(min=-1 + 1e-12)).sum()
        return torch.expm1(growth * self.periods / len(earned))

    def volatility(self, earned: Tensor) -> Tensor:
        return earned.std(correction=0) * math.sqrt(self.periods)

    def drawdown(self, earned: Tensor) -> Tensor:
        capital = torch.cat([earned.new_ones(1), (1 + earned).clamp(min=0).cumprod(0)])
        return (1 - capital / capital.cummax(0).values).max()


class AnnualReturn(StrategyMetric):
    r"""Annualised compound return :math:`\big( \prod_t (1 + r_t) \big)^{\text{periods} / n} - 1`. Arguments: :class:`StrategyMetric`."""

    def measure(self, earned: Tensor) -> Tensor:
        return self.annual_return(earned)


class Volatility(StrategyMetric):
    r"""Annualised standard deviation of the strategy's returns, :math:`\operatorname{std} r \sqrt{\text{periods}}`. Arguments: :class:`StrategyMetric`."""

    higher_is_better = False

    def measure(self, earned: Tensor) -> Tensor:
        return self.volatility(earned)


class MaxDrawdown(StrategyMetric):
    r"""The largest loss from a peak of the capital, as a share of that peak. Arguments: :class:`StrategyMetric`."""

    higher_is_better = False

    def measure(self, earned: Tensor) -> Tensor:
        return self.drawdown(earned)


class InformationRatio(StrategyMetric):
    r"""Annualised return over annualised volatility; 0 for a strategy that never moves. Arguments: :class:`StrategyMetric`.

    Source:
        As in Michańków, Sakowski and Ślepaczuk, 2023, arXiv:2309.10546, without a benchmark's return taken off.
    """

    def measure(self, earned: Tensor) -> Tensor:
        return ratio(self.annual_return(earned), self.volatility(earned))


class AdjustedInformationRatio(StrategyMetric):
    r"""The information ratio that also pays for drawdowns: :math:`R\,|R| / (\text{volatility} \cdot \text{max drawdown})`, *R* the annualised return.

    0 where nothing was lost or moved. Arguments: :class:`StrategyMetric`.

    Source:
        Michańków, Sakowski and Ślepaczuk, 2023, arXiv:2309.10546.
    """

    def measure(self, earned: Tensor) -> Tensor:
        annual = self.annual_return(earned)
        return ratio(annual * annual.abs(), self.volatility(earned) * self.drawdown(earned))


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient, 0 where there is nothing to divide by."""
    return torch.where(below > 0, above / below.clamp(min=1e-300), torch.zeros_like(above))

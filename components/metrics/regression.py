"""Metrics of regression and forecasting. A target that is NaN is missing and counts for nothing, as in the losses.

torchmetrics' own turn NaN at the first missing value, and want contiguous predictions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.metrics.base import Quotient
from components.validation import require


class MeanOfErrors(Quotient):
    """Base of metrics that are a mean over all values. A subclass implements :meth:`error`."""

    higher_is_better = False
    is_differentiable = True

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        """What is averaged, one value for each value of ``target``."""
        raise NotImplementedError

    def update(self, preds: Tensor, target: Tensor) -> None:
        same_shape(preds, target)
        self.add_kept(self.error(preds.float(), target.float()), ~target.isnan())

    def add_kept(self, values: Tensor, kept: Tensor) -> None:
        self.add(values.masked_fill(~kept, 0.0).sum(), kept.sum())


class MeanAbsoluteError(MeanOfErrors):
    r"""Mean absolute error :math:`\frac{1}{n} \sum_i |\hat y_i - y_i|`, over all samples, targets and steps.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        return (preds - target).abs()


class RootMeanSquaredError(MeanOfErrors):
    r"""Root mean squared error :math:`\sqrt{\frac{1}{n} \sum_i (\hat y_i - y_i)^2}`, over all samples, targets and steps.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        return (preds - target).square()

    def compute(self) -> Tensor:
        return super().compute().sqrt()


class MASE(MeanOfErrors):
    r"""Mean absolute scaled error: 1 is as good as repeating the value of ``seasonality`` steps ago is within the history.

    .. math:: q_t = \frac{|\hat y_t - y_t|}{\frac{1}{L - m} \sum_{s=m+1}^{L} |x_s - x_{s-m}|}, \qquad \mathrm{MASE} = \mathrm{mean}\; q_t

    with *x* the observed history of the same sample and series, *m* the seasonality. Series whose history repeats itself
    exactly have no scale and are left out, as are missing values.

    Args:
        seasonality: steps of a season: 1, or e.g. 12 for monthly data.

    Shapes:
        preds and target (N, H, C); history (N, L, C), L > seasonality.

    Raises:
        ValueError: if ``seasonality < 1`` or the history is no longer than that.

    Source:
        Hyndman and Koehler, "Another look at measures of forecast accuracy", International Journal of Forecasting 22(4), 2006.
    """

    def __init__(self, seasonality: int = 1) -> None:
        super().__init__()
        require(seasonality >= 1, "seasonality must be >= 1", seasonality)
        self.seasonality = seasonality

    def update(self, preds: Tensor, target: Tensor, history: Tensor) -> None:  # type: ignore[override]
        same_shape(preds, target)
        length = history.shape[1]
        require(length > self.seasonality, f"metric mase: seasonality must be below the {length} steps of the history", self.seasonality)
        history = history.float()
        scale = (history[:, self.seasonality :] - history[:, : -self.seasonality]).abs().nanmean(1, keepdim=True)
        values = (preds.float() - target.float()).abs() / scale
        self.add_kept(values, ~target.isnan() & (scale > 0))


class R2Score(Metric):
    r"""Coefficient of determination, the mean over targets: 1 is exact, 0 as good as the mean of the targets.

    .. math:: R^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    A target that does not vary gets 1 if it is predicted exactly, else 0, as in scikit-learn. Each batch's count, mean and sums of
    squares about its own mean are kept and merged at the end, so targets far from zero lose no digits.

    Shapes:
        preds and target (N, T), or (N, …, T). Missing targets are NaN.

    Source:
        Merging of moments: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    higher_is_better = True
    is_differentiable = True
    full_state_update = False
    moments: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("moments", [], dist_reduce_fx="cat")  # (1, 4, T) a batch: count, mean, squares about it, squared error

    def update(self, preds: Tensor, target: Tensor) -> None:
        same_shape(preds, target)
        preds, target = preds.float().flatten(0, -2), target.float().flatten(0, -2)
        kept = ~target.isnan()
        count = kept.sum(0)
        mean = target.masked_fill(~kept, 0.0).sum(0) / count.clamp(min=1)
        about_mean = (target - mean).square().masked_fill(~kept, 0.0).sum(0)
        error = (preds - target).square().masked_fill(~kept, 0.0).sum(0)
        self.moments.append(torch.stack([count.to(mean.dtype), mean, about_mean, error])[None])

    def compute(self) -> Tensor:
        count, mean, about_mean, error = dim_zero_cat(self.moments).cpu().double().unbind(1)
        overall = (count * mean).sum(0) / count.sum(0)
        total = (about_mean + count * (mean - overall).square()).sum(0)
        error = error.sum(0)
        constant = total == 0
        scores = 1 - error / total.masked_fill(constant, 1.0)
        return torch.where(constant, (error == 0).double(), scores).mean()


def same_shape(preds: Tensor, target: Tensor) -> None:
    """Refuse a pair that would broadcast: (N,) against (N, 1) makes N² errors."""
    if preds.shape != target.shape:
        raise ValueError(f"preds and target must have the same shape, but got {tuple(preds.shape)} and {tuple(target.shape)}")

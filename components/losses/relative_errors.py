"""Errors against a yardstick: the survey's table of regression losses, beside those of :mod:`components.losses.regression`.

One class holds most of the table: a mean of :math:`|e|` or :math:`e^2`, divided by a yardstick of the same set of values, with or without a root.

======  ============================  =====  ====  ==========================================
option  class                         power  root  yardstick
======  ============================  =====  ====  ==========================================
rae     :class:`RelativeErrorLoss`    1            mean distance of the targets from their mean
rse     :class:`RelativeErrorLoss`    2            variance of the targets (:math:`1 - R^2`)
rmse    :class:`RelativeErrorLoss`    2      yes   none
nrmse   :class:`RelativeErrorLoss`    2      yes   standard deviation (or range, quartiles, mean)
rrmse   :class:`RelativeErrorLoss`    2      yes   sum of the squared predictions
wape    :class:`RelativeErrorLoss`    1            mean size of the targets
mape    :class:`PercentageErrorLoss`  1            each target's own size
smape   :class:`PercentageErrorLoss`  1            each target's and prediction's own size
msle    :class:`LogErrorLoss`         2            none, on logarithms
rmsle   :class:`LogErrorLoss`         2      yes   none, on logarithms
mbe     :class:`MeanBiasLoss`         signed       none
======  ============================  =====  ====  ==========================================

A root is not a mean of anything, yet ``reduction="none"`` gives one value an element: its *share* :math:`x_i / \\sqrt{\\bar x}`, whose mean is the root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32, nonzero, nothing_is, reduce_values
from components.losses.regression import check_real_target, without_missing
from components.validation import require, require_choice

Over = Literal["batch", "column", "sample"]
Scale = Literal["none", "deviation", "mean", "range", "iqr", "prediction", "target"]
OVERS: tuple[Over, ...] = ("batch", "column", "sample")


class SetLoss(Loss):
    """Base of losses whose value is about a set of elements: a subclass gives :meth:`shares`.

    Args:
        over: which elements form a set: ``batch``, all of them; ``column``, those of one target or series (the last dimension), over samples and steps;
            ``sample``, those of one sample.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).
    """

    pairwise: ClassVar[bool] = True  # statistics are those of the whole batch, over all ranks

    def __init__(self, *, over: Over = "batch", reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("over", over, OVERS)
        self.over = over

    def shares(self, prediction: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor], kept: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The loss of each element, so that their mean is the loss.

        Args:
            prediction, target: of one shape, in float32 or better, without NaN.
            mean: the mean of a tensor of that shape over each set, ignored elements left out, in a shape that broadcasts.
            kept: what is not ignored.
            dims: dimensions that each set spans.
        """
        raise NotImplementedError

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        dtype, precise = prediction.dtype, at_least_float32(prediction.dtype)
        prediction, target = prediction.to(precise), target.to(precise)
        if prediction.numel() == 0:
            return self.reduce(prediction - target).to(dtype)
        dims = set_dims(prediction.ndim, self.over)
        if nothing_is(self.ignore_index, target):
            everything = torch.ones((), dtype=torch.bool, device=target.device).expand_as(target)
            values = self.shares(prediction, target, lambda x: x.mean(dims, keepdim=True), everything, dims)
            return reduce_values(values, None, self.reduction).to(dtype)
        kept = ~target.isnan()
        count = nonzero(kept.sum(dims, keepdim=True).to(precise))

        def mean(values: Tensor) -> Tensor:
            return torch.where(kept, values, torch.zeros_like(values)).sum(dims, keepdim=True) / count

        values = self.shares(prediction, without_missing(target, prediction), mean, kept, dims)
        return reduce_values(values, kept.to(precise), self.reduction).to(dtype)


class RelativeErrorLoss(SetLoss):
    r"""The error in units of how much the targets vary: comparable between series of any unit. RAE, RSE, RMSE, NRMSE, RRMSE, WAPE.

    .. math:: \ell = \left( \frac{\tfrac1n \sum_i |y_i - \hat y_i|^p}{S} \right)^{1/r}

    over each set of *n* elements, with *p* = ``power``, *r* = 2 with ``root`` and else 1, and the yardstick *S* of the same set:

    =============== ==============================================================
    ``scale``       :math:`S`
    =============== ==============================================================
    ``none``        1
    ``deviation``   :math:`\tfrac1n \sum |y_i - \bar y|^p`: for *p* = 2 the variance
    ``mean``        :math:`|\bar y|^p`
    ``range``       :math:`(\max y - \min y)^p`
    ``iqr``         (upper - lower quartile)\ :math:`^p`, quartiles interpolated linearly
    ``prediction``  :math:`\tfrac1n \sum |\hat y_i|^p` (its gradient counts)
    ``target``      :math:`\tfrac1n \sum |y_i|^p`
    =============== ==============================================================

    With ``total`` the yardstick is multiplied by *n* (a sum in the place of the mean), as the survey writes RRMSE: the value then shrinks with the batch.

    Try it where series of different sizes are trained together (``over=column``), or a loss should read as "1 is as good as the mean".

    Args:
        power: *p*, 1 or 2.
        root: take the square root; needs ``power`` 2.
        scale: the yardstick *S*, see above. The statistics are those of the batch.
        total: the yardstick as a sum.
        over: ``batch`` | ``column`` (each target or series, over samples and steps) | ``sample``: what a set is.
        eps: least yardstick, in the target's unit (:math:`S \ge \epsilon^p`); > 0. Constant targets give a large finite value.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``: its share, the mean of which is the loss).

    Shapes:
        prediction and target of one shape, any (2 dimensions or more for ``over=sample``); NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, shapes differ or the target is not real-valued.

    Source:
        Jadon, Patil and Jadon, "A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting", 2022, arXiv:2211.02989. The survey
        leaves NRMSE's yardstick open: the standard deviation as the default, and linear quartiles, are our reading.
    """

    def __init__(
        self,
        *,
        power: int = 2,
        root: bool = False,
        scale: Scale = "deviation",
        total: bool = False,
        over: Over = "batch",
        eps: float = 1e-6,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(over=over, reduction=reduction)
        require(power in (1, 2), "power must be 1 or 2", power)
        require(not root or power == 2, "root needs power=2", power)
        require_choice("scale", scale, ("none", "deviation", "mean", "range", "iqr", "prediction", "target"))
        require(eps > 0, "eps must be > 0", eps)
        self.power, self.root, self.scale, self.total = power, root, scale, total
        self.eps: float | Tensor = eps

    def shares(self, prediction: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor], kept: Tensor, dims: tuple[int, ...]) -> Tensor:
        values = self.size(target - prediction)
        if self.scale != "none":
            scale = self.yardstick(prediction, target, mean, kept, dims)
            if self.total:
                scale = scale * kept.sum(dims, keepdim=True)
            values = values / scale.clamp(min=self.eps**self.power)
        return rooted(values, mean) if self.root else values

    def yardstick(self, prediction: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor], kept: Tensor, dims: tuple[int, ...]) -> Tensor:
        """*S* of each set, broadcasting against the elements."""
        if self.scale == "deviation":
            return mean(self.size(target - mean(target)))
        if self.scale == "mean":
            return self.size(mean(target))
        if self.scale == "prediction":
            return mean(self.size(prediction))
        if self.scale == "target":
            return mean(self.size(target))
        if self.scale == "range":
            highest, lowest = (target.masked_fill(~kept, edge) for edge in (-torch.inf, torch.inf))
            return self.size((highest.amax(dims, keepdim=True) - lowest.amin(dims, keepdim=True)).clamp(min=0))
        return self.size(quartile_distance(target.masked_fill(~kept, torch.nan), dims))

    def size(self, error: Tensor) -> Tensor:
        """:math:`|e|^p`."""
        return error.abs() if self.power == 1 else error.square()


class LogErrorLoss(SetLoss):
    r"""Squared error of logarithms: what counts is the ratio; a target of 10 missed by 1 weighs as much as one of 1,000 missed by 100.

    .. math:: \ell = (\operatorname{slog} y - \operatorname{slog} \hat y)^2, \qquad \operatorname{slog} u = \operatorname{sign}(u) \log(1 + |u|)

    and with ``root`` the square root of the set's mean (RMSLE). For values >= 0 that is the survey's :math:`\log(1 + u)`. Below 0, where that has no
    value from -1 on, the logarithm is mirrored: our reading, since the alternative (``negative=clamp``: values below 0 count as 0) gives a prediction below
    0 no gradient to come back by.

    Try it for targets that span orders of magnitude (counts, prices, energies); under-prediction costs more than over-prediction by the same amount.

    Args:
        root: the square root of the mean over each set.
        negative: ``mirror`` | ``clamp``, see above.
        over: ``batch`` | ``column`` | ``sample``: what a set is, for the root.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``; with ``root`` its share, the mean of which is the loss).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, shapes differ or the target is not real-valued.

    Source:
        Jadon, Patil and Jadon, "A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting", 2022, arXiv:2211.02989.
    """

    def __init__(
        self, *, root: bool = False, negative: Literal["mirror", "clamp"] = "mirror", over: Over = "batch", reduction: Reduction = "mean"
    ) -> None:
        super().__init__(over=over, reduction=reduction)
        require_choice("negative", negative, ("mirror", "clamp"))
        self.root, self.negative = root, negative
        self.pairwise = root  # type: ignore[misc]  # without the root every element is by itself

    def shares(self, prediction: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor], kept: Tensor, dims: tuple[int, ...]) -> Tensor:
        values = (self.logarithm(target) - self.logarithm(prediction)).square()
        return rooted(values, mean) if self.root else values

    def logarithm(self, values: Tensor) -> Tensor:
        if self.negative == "clamp":
            return torch.log1p(values.clamp(min=0))
        return mirrored_log1p(values)


class PercentageErrorLoss(Loss):
    r"""The error in per cent of the target (MAPE), or of the mean of target and prediction (symmetric, sMAPE).

    .. math:: \ell = 100\,\frac{|y - \hat y|}{\max(|y|, \epsilon)} \qquad\text{or}\qquad
              \ell = 100\,\frac{2\,|y - \hat y|}{\max(|y| + |\hat y|, \epsilon)}

    Try it for strictly positive targets whose relative error matters. MAPE favours predictions that are too low (they cost at most 100 %, too high ones
    without bound); the symmetric form lies in [0, 200] and has almost no gradient where it is furthest off. Both explode where targets cross 0.

    Args:
        symmetric: divide by the mean size of target and prediction.
        factor: 100 for per cent, 1 for shares (as torchmetrics has both).
        eps: least divisor, in the target's unit; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if ``eps`` or ``factor`` is not > 0, shapes differ or the target is not real-valued.

    Source:
        Jadon, Patil and Jadon, 2022, arXiv:2211.02989 (MAPE); Terven et al., "Loss Functions and Metrics in Deep Learning", 2023, arXiv:2307.02694 (sMAPE).
    """

    def __init__(self, *, symmetric: bool = False, factor: float = 100.0, eps: float = 1e-6, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(factor > 0, "factor must be > 0", factor)
        require(eps > 0, "eps must be > 0", eps)
        self.symmetric = symmetric
        self.factor: float | Tensor = factor
        self.eps: float | Tensor = eps

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        target = target.to(prediction.dtype)
        filled = without_missing(target, prediction)
        scale = 0.5 * (filled.abs() + prediction.abs()) if self.symmetric else filled.abs()
        floor = 0.5 * self.eps if self.symmetric else self.eps
        return self.reduce(self.factor * (filled - prediction).abs() / scale.clamp(min=floor), target)


class MeanBiasLoss(SetLoss):
    r"""Mean bias: how far predictions are too low (> 0) or too high (< 0) on average. By itself nothing to train with.

    .. math:: \ell = \bar e, \quad |\bar e| \quad\text{or}\quad \bar e^2, \qquad \bar e = \tfrac1n \sum_i (y_i - \hat y_i)

    The signed form is unbounded below: **alone it drives predictions to infinity**. Use it as a metric, or take ``absolute`` or ``squared`` as an added
    term that keeps a biased loss (quantile, L1 on skewed targets) honest on average: ``+loss@auxiliary.bias=mbe auxiliary.bias.kind=squared``.

    Args:
        kind: ``signed`` (the survey's) | ``absolute`` | ``squared``; the last two are bounded below (ours).
        over: ``batch`` | ``column`` (each target or series, over samples and steps) | ``sample``: what a set is.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``: its share, the mean of which is the loss).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, shapes differ or the target is not real-valued.

    Source:
        Jadon, Patil and Jadon, "A Comprehensive Survey of Regression Based Loss Functions for Time Series Forecasting", 2022, arXiv:2211.02989.
    """

    def __init__(self, *, kind: Literal["signed", "absolute", "squared"] = "signed", over: Over = "batch", reduction: Reduction = "mean") -> None:
        super().__init__(over=over, reduction=reduction)
        require_choice("kind", kind, ("signed", "absolute", "squared"))
        self.kind = kind

    def shares(self, prediction: Tensor, target: Tensor, mean: Callable[[Tensor], Tensor], kept: Tensor, dims: tuple[int, ...]) -> Tensor:
        error = target - prediction
        if self.kind == "signed":
            return error
        bias = mean(error)
        return error * (bias.sign() if self.kind == "absolute" else bias)


def rooted(values: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Shares of the root of the mean of ``values`` >= 0: :math:`x_i / \\sqrt{\\bar x}`, 0 where all are 0 (there the gradient is 0, not NaN)."""
    average = mean(values)
    return values / nonzero(average).sqrt()


def mirrored_log1p(values: Tensor) -> Tensor:
    """:math:`\\operatorname{sign}(u) \\log(1 + |u|)`, with the derivative 1 at 0 (autograd's of sign and size would be 0)."""
    sign = torch.where(values >= 0, 1.0, -1.0).to(values.dtype)
    return sign * torch.log1p(sign * values)


def set_dims(ndim: int, over: str) -> tuple[int, ...]:
    """Dimensions that one set spans."""
    require(over != "sample" or ndim >= 2, "prediction must have 2 dimensions or more for over=sample (a single value has no spread)", ndim)
    if over == "column" and ndim >= 2:
        return tuple(range(ndim - 1))
    return tuple(range(1, ndim)) if over == "sample" else tuple(range(ndim))


def quartile_distance(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Upper minus lower quartile over ``dims``, kept as size 1; NaN is left out, and over nothing it is 0."""
    others = [d for d in range(values.ndim) if d not in dims]
    flat = values.permute(*others, *dims).flatten(len(others))
    low, high = torch.nanquantile(flat, torch.linspace(0.25, 0.75, 2, dtype=flat.dtype, device=flat.device), dim=-1)  # one sort for both
    return (high - low).nan_to_num(0.0).reshape([1 if d in dims else size for d, size in enumerate(values.shape)])

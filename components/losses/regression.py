"""Regression losses: a real-valued target, element by element.

No number can stand for "ignored" in a real-valued target, so NaN does: an element whose target is NaN (a missing value) contributes neither value
nor gradient. ``none`` gives one value per element of the target; the mean is over the elements that are not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Head, Loss, Reduction, check_same_shape, float_tensor, nothing_is, reduce_values
from components.validation import require

DEFAULT_LEVELS = (0.1, 0.5, 0.9)


def check_real_target(prediction: Tensor, target: Tensor) -> None:
    """Refuse a target that is not real-valued or not of the prediction's shape.

    Raises:
        ValueError: naming ``target``.
    """
    check_same_shape("target", target, "prediction", prediction)
    if not target.is_floating_point():
        raise ValueError(f"target must be real-valued (floating point) for a regression loss, but got {target.dtype}; class indices need a classification loss")


class RegressionLoss(Loss):
    """Base of the losses of one prediction per target: a subclass gives :meth:`per_element`.

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each element; both of one shape and without NaN."""
        raise NotImplementedError

    def reduced(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The reduced loss over at least one element, none of them ignored; where torch does both in one kernel, a subclass calls that."""
        return reduce_values(self.per_element(prediction, target), None, self.reduction)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        target = target.to(prediction.dtype)
        if nothing_is(self.ignore_index, target):
            return self.reduced(prediction, target)
        values = self.per_element(prediction, without_missing(target, prediction))
        return reduce_values(values, self.element_weights(target, values.dtype), self.reduction)


def without_missing(target: Tensor, prediction: Tensor) -> Tensor:
    """The target with the prediction (no gradient) in the place of NaN: an error of 0, whose gradient is finite and then weighted 0."""
    return torch.where(target.isnan(), prediction.detach(), target)


class MSELoss(RegressionLoss):
    r"""Mean squared error: estimates the mean; large errors dominate.

    .. math:: \ell = (\hat y - y)^2

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if shapes differ or the target is not real-valued.

    Source:
        :func:`torch.nn.functional.mse_loss`; Gauss, "Theoria combinationis observationum", 1823.
    """

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction, target, reduction="none")

    def reduced(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction, target, reduction=self.reduction)


class L1Loss(RegressionLoss):
    r"""Mean absolute error: estimates the median; robust against outliers of the target.

    .. math:: \ell = |\hat y - y|

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if shapes differ or the target is not real-valued.

    Source:
        :func:`torch.nn.functional.l1_loss`; Laplace, "Mémoire sur la probabilité des causes par les événements", 1774.
    """

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(prediction, target, reduction="none")

    def reduced(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(prediction, target, reduction=self.reduction)


class HuberLoss(RegressionLoss):
    r"""Squared for small errors, linear for large ones: a mean that outliers cannot carry away.

    .. math:: \ell = \begin{cases} \tfrac12 e^2 & |e| \le \delta \\ \delta\,(|e| - \tfrac12 \delta) & \text{else} \end{cases}, \qquad e = \hat y - y

    Args:
        delta: the error, in the target's unit, at which it turns linear; > 0. Large: half the squared error; small: ``delta`` times the absolute one.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if ``delta <= 0``, shapes differ or the target is not real-valued.

    Source:
        Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35(1), 1964; equal to
        :func:`torch.nn.functional.huber_loss`.
    """

    def __init__(self, delta: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(delta > 0, "delta must be > 0", delta)
        self.delta: float | Tensor = delta

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        # torch's huber_loss takes delta as a number only; this form also takes a tensor of many trials' values
        size = (prediction - target).abs()
        quadratic = size.clamp(max=self.delta)
        return quadratic * (size - 0.5 * quadratic)


class LogCoshLoss(RegressionLoss):
    r"""Logarithm of the hyperbolic cosine of the error: like half the squared error near 0, like the absolute one far off, smooth throughout.

    .. math:: \ell = \log \cosh(\hat y - y) = |e| + \log \frac{1 + e^{-2|e|}}{2}

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if shapes differ or the target is not real-valued.

    Source:
        Saleh and Saleh, "Statistical Properties of the log-cosh Loss Function Used in Machine Learning", 2022, arXiv:2208.04564.
    """

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        size = (prediction - target).abs()
        # log((1 + exp(-2 e)) / 2) without overflow for large e and without the rounding of log 2 for small e
        return size + torch.log1p(0.5 * torch.expm1(-2 * size))


class QuantileLoss(Loss):
    r"""Pinball loss: the model puts out several quantiles of the target's distribution, an interval forecast.

    .. math:: \ell = \frac1Q \sum_{q} \max\big(\tau_q\, e_q,\; (\tau_q - 1)\, e_q\big), \qquad e_q = y - \hat y_q

    Args:
        levels: the quantiles' levels :math:`\tau_q` in (0, 1), ascending; one model output each. ``[0.5]`` is half the absolute error.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``: the mean over the levels).

    Attributes:
        point_index: position of the level nearest to the median: the task's point prediction.

    Shapes:
        target of any shape, NaN marks an ignored element; quantiles target's shape + (Q,).

    Raises:
        ValueError: if ``levels`` is empty, not ascending or not in (0, 1), shapes disagree or the target is not real-valued.

    Source:
        Koenker and Bassett, "Regression Quantiles", Econometrica 46(1), 1978.
    """

    head: ClassVar[Head] = "quantile"

    level_values: Tensor

    def __init__(self, levels: Sequence[float] = DEFAULT_LEVELS, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.levels = tuple(float(level) for level in levels)
        require(len(self.levels) > 0 and all(0 < level < 1 for level in self.levels), "levels must be numbers in (0, 1)", list(self.levels))
        require(all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False)), "levels must be ascending", list(self.levels))
        self.point_index = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - 0.5))
        self.register_buffer("level_values", float_tensor("levels", self.levels), persistent=False)

    @classmethod
    def outputs_per_target(cls, **config: Any) -> int:
        return len(config.get("levels", DEFAULT_LEVELS))

    def forward(self, quantiles: Tensor, target: Tensor) -> Tensor:
        if quantiles.ndim < 1 or quantiles.shape[-1] != len(self.levels):
            raise ValueError(f"quantiles must end in one value for each of the {len(self.levels)} levels, but got shape {tuple(quantiles.shape)}")
        middle = quantiles[..., self.point_index]
        check_real_target(middle, target)
        target = target.to(quantiles.dtype)
        error = without_missing(target, middle).unsqueeze(-1) - quantiles
        levels = self.level_values.to(quantiles.dtype)
        return self.reduce(torch.maximum(levels * error, (levels - 1) * error).mean(-1), target)


class GaussianNLLLoss(Loss):
    r"""Negative log-likelihood of a normal distribution whose variance the model predicts too: how sure it is, input by input.

    .. math:: \ell = \tfrac12 \left( v + (y - \hat y)^2 e^{-v} \right) \quad (+ \tfrac12 \log 2\pi), \qquad v = \max(\log \sigma^2, v_{\min})

    The bound on *v* passes the gradient, as torch's ``eps`` does, so a variance below it can grow again.

    Args:
        min_log_variance: :math:`v_{\min}`; the default is a variance of 1e-6 (in the target's unit squared).
        full: add the constant :math:`\tfrac12 \log 2\pi`: values become true log-likelihoods, gradients stay.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction, log_variance and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if shapes differ or the target is not real-valued.

    Source:
        Nix and Weigend, "Estimating the mean and variance of the target probability distribution", ICNN 1994; equal to
        :func:`torch.nn.functional.gaussian_nll_loss` with ``var = exp(log_variance)``.
    """

    head: ClassVar[Head] = "gaussian"

    def __init__(self, *, min_log_variance: float = -13.8155, full: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(-80 <= min_log_variance <= 80, "min_log_variance must be in [-80, 80] (its exponential must be a float32)", min_log_variance)
        self.min_log_variance: float | Tensor = min_log_variance
        self.full = full

    def forward(self, prediction: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        check_same_shape("log_variance", log_variance, "prediction", prediction)
        target = target.to(prediction.dtype)
        bounded = log_variance + (log_variance.detach().clamp(min=self.min_log_variance) - log_variance.detach())
        error = prediction - without_missing(target, prediction)
        values = 0.5 * (bounded + error.square() * torch.exp(-bounded))
        if self.full:
            values = values + 0.5 * math.log(2 * math.pi)
        return self.reduce(values, target)

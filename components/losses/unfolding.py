r"""Sparse recovery without the truth: the objective that an iterative solver descends, as the loss of the network that is unfolded from it."""

from __future__ import annotations

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32
from components.validation import require, require_choice


class SparseObjectiveLoss(Loss):
    r"""The lasso's objective (or its :math:`\ell_0` counterpart) at the network's output: no true signal is needed.

    .. math:: \ell = \frac1N \Big( \tfrac12 \lVert y - A \hat s \rVert^2 + \lambda R(\hat s) \Big), \qquad
              R = \lVert \hat s \rVert_1 \text{ or } \lVert \hat s \rVert_0

    Its supervised counterpart is the mean squared error to the true signal (``loss=mse``). :math:`\lVert \cdot \rVert_0` has no gradient: it is in
    the value, and only the squared residual is descended (on the support that the layers' threshold leaves).

    Try it where true signals are not to be had, or where an unfolded network should be a faster solver of the same problem rather than a better
    estimator.

    Args:
        lam: :math:`\lambda \ge 0`; the same as the unfolded model's.
        penalty: ``"l1"`` | ``"l0"``.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        prediction (B, N), the recovered signal; measurement_residual (B, M), :math:`A \hat s - y`.

    Raises:
        ValueError: if ``lam`` is negative, ``penalty`` is not known, or shapes disagree.

    Source:
        Nagahisa, Hayakawa and Iiguni, "Comparison between Supervised and Unsupervised Learning in Deep Unfolded Sparse Signal Recovery",
        2025, arXiv:2509.01331; the objective: Tibshirani, "Regression Shrinkage and Selection via the Lasso", JRSS B 58(1), 1996.
    """

    def __init__(self, lam: float = 0.1, penalty: str = "l1", *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(lam >= 0, "lam must be >= 0", lam)
        require_choice("penalty", penalty, ("l1", "l0"))
        self.lam: float | Tensor = lam
        self.penalty = penalty

    def forward(self, prediction: Tensor, measurement_residual: Tensor) -> Tensor:
        require(prediction.ndim == 2, "prediction must have shape (B, N)", tuple(prediction.shape))
        if measurement_residual.ndim != 2 or len(measurement_residual) != len(prediction):
            raise ValueError(f"measurement_residual must have shape ({len(prediction)}, M), but got {tuple(measurement_residual.shape)}")
        dtype = at_least_float32(prediction.dtype)
        signal, residual = prediction.to(dtype), measurement_residual.to(dtype)
        size = signal.abs() if self.penalty == "l1" else signal.sign().abs()  # the number of nonzeros, with a gradient of 0
        values = (0.5 * residual.square().sum(1) + self.lam * size.sum(1)) / max(signal.shape[1], 1)
        return self.reduce(values.to(prediction.dtype))


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    r""":math:`\operatorname{sign}(v) \max(|v| - \theta, 0)`: the proximal map of :math:`\theta \lVert \cdot \rVert_1`."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def hard_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    r""":math:`v\,[\,|v| > \theta\,]`; with :math:`\theta = \sqrt{2 \lambda \gamma}` the proximal map of :math:`\lambda \gamma \lVert \cdot \rVert_0`.

    The threshold itself gets no gradient.
    """
    return torch.where(values.abs() > threshold, values, torch.zeros_like(values))

r"""Losses of calibration: how sure a classifier says it is, against how often it is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_target, nonzero
from components.validation import require


class CorrectnessAwareLoss(Loss):
    r"""Confidence towards 1 where the prediction is right, towards 0 where it is wrong.

    .. math:: \ell_i = \bigl( \max_k p_{ik} - c_i \bigr)^2, \qquad c_i = \bigl[ \arg\max_k z_{ik} = y_i \bigr], \quad p = \mathrm{softmax}(z)

    Cross-entropy raises the target's probability even where another class wins by a little, and with it, through a temperature, the confidence in the
    wrong class; this loss lowers it. With ``balanced`` right and wrong predictions have equal weight together, as in the authors' code:
    :math:`w_i = 1 - a` where right and *a* where wrong, divided by their mean over the batch, with *a* the share that is right. A batch that is all right
    or all wrong is not weighted (our reading; the formula would be 0/0).

    Try it to train a calibrator on a frozen classifier (``task=calibration``): the more so where confidence is to tell right from wrong. Minimised over a
    whole network it would only make it sure.

    Args:
        balanced: right and wrong predictions have equal weight.
        weight: per-class weights (of the target's class), shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, C).

    Source:
        Liu et al., "Optimizing Calibration by Gaining Aware of Prediction Correctness", 2024, arXiv:2404.13016; weights from the authors' code.
    """

    pairwise = True  # balanced weights are those of the whole batch

    def __init__(
        self,
        *,
        balanced: bool = True,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(isinstance(balanced, bool), "balanced must be true or false", balanced)
        self.balanced = balanced

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_target(logits, target, self.ignore_index)
        self.check_weight(logits.shape[1])
        confidence, predicted = logits.to(at_least_float32(logits.dtype)).softmax(1).max(1)
        right = (predicted == target).to(confidence.dtype)
        values = (confidence - right).square()
        if self.balanced:
            values = values * balancing_weights(right, (target != self.ignore_index).to(right.dtype))
        return self.reduce(values, target).to(logits.dtype)


def balancing_weights(right: Tensor, kept: Tensor) -> Tensor:
    """Weights of mean 1 that give the right and the wrong elements the same total; 1 for all where there are only such or only such."""
    total = nonzero(kept.sum())
    share = (right * kept).sum() / total
    mean = 2 * share * (1 - share)
    weights = torch.where(right > 0, 1 - share, share) / nonzero(mean)
    return torch.where(mean > 0, weights, torch.ones_like(weights))

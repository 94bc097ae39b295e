"""Squares of the raw scores as a loss, alone and beside cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction
from components.losses.scores import checked_scores, require_two_classes, score_of_target, without_target
from components.validation import require


class SquentropyLoss(Loss):
    r"""Squentropy: cross-entropy plus the mean square of the wrong classes' scores; better calibrated, steadier over seeds, nothing to tune.

    .. math:: \ell = -\log p_y + \frac{\lambda}{C - 1} \sum_{k \ne y} z_k^2

    The square holds the wrong scores near 0, so a shift of all scores changes the loss.

    Try it in the place of cross-entropy with the same learning rate, where confidence should mean something.

    Args:
        square_weight: :math:`\lambda` >= 0; 1 is the paper's, 0 cross-entropy.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C >= 2; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``square_weight < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Hui, Belkin and Wright, "Cut your Losses with Squentropy", ICML 2023, arXiv:2302.03952, eq. 1.
    """

    def __init__(
        self,
        square_weight: float = 1.0,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(square_weight >= 0, "square_weight must be >= 0", square_weight)
        self.square_weight: float | Tensor = square_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        require_two_classes(logits)
        cross_entropy = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction="none")
        squares = squares_of_others(scores, target, self.ignore_index) / (logits.shape[1] - 1)
        return self.reduce(cross_entropy + self.square_weight * squares, target).to(logits.dtype)


class RescaledSquareLoss(Loss):
    r"""Rescaled square loss: least squares on the scores, the target's counting ``k`` times and asked to be ``m``; for classification by regression.

    .. math:: \ell = \frac{1}{C} \Big( k\, (z_y - m)^2 + \sum_{j \ne y} z_j^2 \Big)

    Try it as the baseline of ``squentropy``; with many classes ``k`` and ``m`` must grow (the source has k = 15, m = 30 for 1,000).

    Args:
        k: weight of the target's square, > 0.
        m: what the target's score should be, > 0.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``k`` or ``m`` is not > 0, shapes disagree or a target lies outside [0, C).

    Source:
        Hui and Belkin, "Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy in Classification Tasks", ICLR 2021,
        arXiv:2006.07322.
    """

    def __init__(
        self,
        k: float = 1.0,
        m: float = 1.0,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(k > 0, "k must be > 0", k)
        require(m > 0, "m must be > 0", m)
        self.k: float | Tensor = k
        self.m: float | Tensor = m

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        of_target = score_of_target(scores, target, self.ignore_index)
        values = self.k * (of_target - self.m).square() + squares_of_others(scores, target, self.ignore_index)
        return self.reduce(values / logits.shape[1], target).to(logits.dtype)


def squares_of_others(scores: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """(N, d1, …) sum of the squared scores of every class but the target: masked, for a difference of sums would cancel."""
    return without_target(scores, target, ignore_index).square().sum(1)

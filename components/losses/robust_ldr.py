r"""Label-distributionally robust losses: the worst case over what the label might be, with a temperature between trust and doubt.

With the margins :math:`\delta_k = f_k - f_y + c_0 [k \ne y]` and a regulariser *R* of distributions over classes

.. math:: \ell = \max_{p \in \text{simplex}} \sum_k p_k \delta_k - \lambda R(p)

Kullback-Leibler from the uniform distribution as *R* gives :func:`ldr_kl` in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, nonzero
from components.losses.scores import checked_scores, require_two_classes, score_of_target, without_target
from components.validation import require, require_choice

FLOOR = 1e-5
"""Added to probabilities before their divergence is taken, as in the authors' code."""


def ldr_kl(margins: Tensor, temperature: float | Tensor) -> Tensor:
    r""":math:`\lambda \log \frac{1}{K} \sum_k e^{\delta_k / \lambda}` over dimension 1: between the largest margin (0) and their mean (infinity)."""
    return (temperature * ((margins / temperature).logsumexp(1, keepdim=True) - math.log(margins.shape[1]))).squeeze(1)


class LDRLoss(Loss):
    """Base: normalised scores and their margins over the target's.

    Args:
        margin: :math:`c_0` >= 0.
        normalize: ``none`` | ``l1`` (scores over the mean of their absolute values) | ``softplus`` (softplus of scores over its mean).
    """

    def __init__(self, margin: float, normalize: str, weight: Tensor | Sequence[float] | None, ignore_index: int, reduction: Reduction) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(margin >= 0, "margin must be >= 0", margin)
        require_choice("normalize", normalize, ("none", "l1", "softplus"))
        self.margin: float | Tensor = margin
        self.normalize = normalize

    def scores(self, logits: Tensor, target: Tensor) -> Tensor:
        checked = checked_scores(self, logits, target)
        require_two_classes(logits)
        return self._normalised(checked)

    def margins(self, scores: Tensor, target: Tensor) -> Tensor:
        of_target = score_of_target(scores, target, self.ignore_index).unsqueeze(1)
        return without_target(scores - (of_target - self.margin), target, self.ignore_index)

    def _normalised(self, scores: Tensor) -> Tensor:
        if self.normalize == "none":
            return scores
        if self.normalize == "softplus":
            scores = torch.nn.functional.softplus(scores)
        return scores / scores.abs().mean(1, keepdim=True).clamp(min=1e-8)

    def class_logits(self, logits: Tensor) -> Tensor:
        """The normalised scores."""
        return self._normalised(logits)


class LDRKLLoss(LDRLoss):
    r"""LDR-KL: from the SVM's largest margin over cross-entropy to a linear loss that label noise does not move, by one temperature.

    .. math:: \ell = \lambda \log \frac{1}{K} \sum_k e^{\delta_k / \lambda}, \qquad \delta_k = f_k - f_y + c_0\,[k \ne y]

    At :math:`\lambda \to 0` the loss is :math:`\max_k \delta_k` (Crammer and Singer), at 1 without a margin cross-entropy less :math:`\log K`, for
    :math:`\lambda \to \infty` the mean of the margins, which is symmetric and so robust. It may be negative.

    Try it where labels are noisy (``temperature`` 10 or more, with ``normalize``, for a linear loss has no bound below) or where the top k matter.

    Args:
        temperature: :math:`\lambda` > 0.
        margin: :math:`c_0` >= 0.
        normalize: ``none`` | ``l1`` (scores over the mean of their absolute values) | ``softplus`` (softplus of scores over its mean).
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C >= 2; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``temperature <= 0``, ``margin < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Zhu, Ying and Yang, "Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and Adaptivity", ICML 2023,
        arXiv:2112.14869. The authors' module always normalises by softplus and has a margin of 2, their experiments 0.1.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        margin: float = 0.1,
        normalize: str = "none",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(margin, normalize, weight, ignore_index, reduction)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.temperature: float | Tensor = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        margins = self.margins(self.scores(logits, target), target)
        return self.reduce(ldr_kl(margins, self.temperature), target).to(logits.dtype)


class ALDRKLLoss(LDRLoss):
    r"""ALDR-KL: LDR-KL with a temperature of each sample, kept by its index, that falls as the model grows sure of it. For noisy labels.

    .. math:: \ell_i = \lambda_i \log \frac{1}{K} \sum_k e^{\delta_k / \lambda_i} - \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2, \qquad
              \lambda_i \leftarrow \lambda_0 - \frac{\lambda_0}{\alpha \log K}\, \mathrm{KL}\left(\mathrm{softmax}(f / \lambda_i) \,\Vert\, \tfrac1K\right)

    The update is one step of a fixed-point iteration at each visit in training, before the loss and without gradient; it stays in
    :math:`[\lambda_0 (1 - 1/\alpha), \lambda_0]`. In evaluation every sample starts from :math:`\lambda_0` and nothing is kept.
    One number a training sample is stored; where a sample has several elements (pixels) they share it, and its divergence is their mean.
    Under DDP each rank keeps what it has seen.

    Try it where labels are noisy and nobody knows how much: it spares the choice of LDR-KL's temperature.

    Args:
        num_samples: samples of the training set.
        temperature: :math:`\lambda_0` > 0; the authors try 0.1, 1 and 10.
        alpha: :math:`\alpha` >= 1, how little temperatures move.
        margin: :math:`c_0` >= 0.
        normalize: ``none`` | ``l1`` (scores over the mean of their absolute values) | ``softplus`` (softplus of scores over its mean).
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C >= 2; target (N,) or (N, d1, …), class indices; index (N,), positions in the training set, long.

    Raises:
        ValueError: if an argument is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Zhu, Ying and Yang, "Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and Adaptivity", ICML 2023,
        arXiv:2112.14869. As in the authors' code the update leaves the margin out and adds 1e-5 to probabilities. Evaluation, and elements that share
        a temperature, are our reading.
    """

    exempt: ClassVar = {
        "gradient": "the sample's temperature follows its scores but is held fixed in the gradient, as in the authors' algorithm",
        "second_order": "the sample's temperature follows its scores but is held fixed in the gradient, as in the authors' algorithm",
    }

    ratios: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        temperature: float = 1.0,
        alpha: float = 2.0,
        margin: float = 0.1,
        normalize: str = "none",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(margin, normalize, weight, ignore_index, reduction)
        require(num_samples >= 1, "num_samples must be >= 1", num_samples)
        require(temperature > 0, "temperature must be > 0", temperature)
        require(alpha >= 1, "alpha must be >= 1", alpha)
        self.temperature: float | Tensor = temperature
        self.alpha: float | Tensor = alpha
        self.register_buffer("ratios", torch.ones(num_samples))  # temperatures over the first one

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        scores = self.scores(logits, target)
        if index.shape != target.shape[:1]:
            raise ValueError(f"index must hold one position a sample, shape {tuple(target.shape[:1])}, but got {tuple(index.shape)}")
        last = self.ratios[index] if self.training else torch.ones_like(index, dtype=self.ratios.dtype)
        ratio = self._next(scores.detach(), target, last.to(scores.dtype))
        if self.training:
            self.ratios = self.ratios.index_put((index,), ratio.to(self.ratios.dtype))
        ratio = ratio.reshape(-1, *[1] * (scores.ndim - 1))
        penalty = self.alpha * self.temperature * math.log(scores.shape[1]) / 2 * (ratio - 1).square()
        values = ldr_kl(self.margins(scores, target), self.temperature * ratio) - penalty.squeeze(1)
        return self.reduce(values, target).to(logits.dtype)

    def _next(self, scores: Tensor, target: Tensor, ratio: Tensor) -> Tensor:
        """The fixed-point iteration's next temperature over the first one, (N,)."""
        classes = scores.shape[1]
        p = (scores / (self.temperature * ratio).reshape(-1, *[1] * (scores.ndim - 1))).softmax(1) + FLOOR
        p = p / p.sum(1, keepdim=True)
        divergence = (p * (classes * p).log()).sum(1)
        kept = (target != self.ignore_index).to(scores.dtype)
        mean = (divergence * kept).flatten(1).sum(1) / nonzero(kept.flatten(1).sum(1)) if scores.ndim > 2 else divergence * kept
        return 1 - mean / (self.alpha * math.log(classes))

r"""Margin losses: a score must be right by some distance, and beyond it nothing more is asked.

Two helpers carry the chapter and its neighbours (:mod:`~components.losses.ensembles`, :mod:`~components.losses.confusion`,
:mod:`~components.losses.costs`): :func:`known_labels`, which checks a multi-hot target and says which of its entries are known, and
:func:`label_weights`, which turns that and a weight a label into one weight an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_same_shape, check_target, is_readable, nonzero, reduce_values
from components.validation import require, require_choice


class Labels(NamedTuple):
    """A multi-hot target: ``positive`` is its value in [0, 1], 0 where unknown; ``kept`` says what is known, None: all of it."""

    positive: Tensor
    kept: Tensor | None


def known_labels(logits: Tensor, target_multi_hot: Tensor, ignore_index: int = IGNORE_INDEX) -> Labels:
    """A multi-hot target of ``logits``' shape, in float32 at least; NaN and ``ignore_index`` are entries that are not known.

    Raises:
        ValueError: naming ``logits`` or ``target_multi_hot``: not (N, C, …), another shape, or a value outside [0, 1], where values can be read.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …), but got {tuple(logits.shape)}")
    check_same_shape("target_multi_hot", target_multi_hot, "logits", logits)
    precise = at_least_float32(logits.dtype)
    if is_readable(target_multi_hot) and target_multi_hot.numel():
        low, high = (float(bound) for bound in torch.aminmax(target_multi_hot))  # NaN if there is one
        if low >= 0 and high <= 1 and not low <= ignore_index <= high:
            return Labels(target_multi_hot.to(precise), None)
        outside = target_multi_hot[((target_multi_hot < 0) | (target_multi_hot > 1)) & (target_multi_hot != ignore_index)]
        if outside.numel():
            raise ValueError(f"target_multi_hot must hold values in [0, 1], NaN or ignore_index={ignore_index}, but got {float(outside[0])}")
    kept = ~(target_multi_hot.isnan() | (target_multi_hot == ignore_index))
    return Labels(target_multi_hot.to(precise).masked_fill(~kept, 0), kept)


def label_weights(values: Tensor, kept: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """Weight of each element of ``values`` (N, C, d1, …): its label's, 0 where it is not known; None: 1 for all."""
    weights = None if kept is None else kept.to(values.dtype)
    if weight is None:
        return weights
    of_label = weight.to(values.dtype).reshape(-1, *[1] * (values.ndim - 2)).expand_as(values)
    return of_label if weights is None else of_label * weights


class HingeLoss(Loss):
    r"""The support vector machine's loss, one score a label: linear in the wrong, nothing beyond the margin.

    .. math:: \ell = \max(0,\; m - s z)^q, \qquad s = 2 y - 1 \in \{-1, 1\}

    *q* = 1, or 2 with ``squared``. A soft target :math:`y \in (0, 1)` gets the mean of both sides, with weights *y* and *1 - y*.

    Try it where samples that are right by far should have no say any more (few support vectors); outliers among wrong labels pull harder than
    under cross-entropy with ``squared``.

    Args:
        margin: *m* > 0.
        squared: square the distance: smooth at the margin, harder on what is far off.
        weight: per-label weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample and label, shaped like ``logits``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C = 1 for two classes; target_multi_hot of the same shape, values in [0, 1].

    Raises:
        ValueError: if ``margin <= 0``, shapes disagree or a target lies outside [0, 1].

    Source:
        Cortes and Vapnik, "Support-Vector Networks", Machine Learning 20, 1995; in the survey of Terven et al., "Loss Functions and Metrics in
        Deep Learning", 2023, arXiv:2307.02694.
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        squared: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(margin > 0, "margin must be > 0", margin)
        self.margin: float | Tensor = margin
        self.squared = squared

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        self.check_weight(logits.shape[1])
        scores = logits.to(positive.dtype)
        over, under = F.relu(self.margin - scores), F.relu(self.margin + scores)  # what it costs as a positive, as a negative
        if self.squared:
            over, under = over.square(), under.square()
        values = torch.lerp(under, over, positive)
        return reduce_values(values, label_weights(values, kept, self.weight), self.reduction).to(logits.dtype)


class MultiClassHingeLoss(Loss):
    r"""Hinge for one class of several: the target's score must lead every other by the margin.

    .. math:: \ell = \sum_{j \ne y} \max(0,\; m + z_j - z_y)^q \;\; (\texttt{over = sum}), \qquad
              \ell = \max_{j \ne y} \max(0,\; m + z_j - z_y)^q \;\; (\texttt{max})

    ``sum`` is Weston and Watkins's form, ``max`` Crammer and Singer's; ``mean`` divides the sum by the number of classes *C*, as
    :func:`torch.nn.functional.multi_margin_loss` does (its ``p`` is ``squared`` here).

    Args:
        margin: *m* > 0.
        squared: square each distance.
        over: ``"sum"`` | ``"mean"`` | ``"max"`` over the other classes.
        weight: per-class weights, shape (C,); torch's multiplies inside the sum too, which for ``squared=False`` is the same.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``margin <= 0``, ``over`` is unknown, shapes disagree or a target lies outside [0, C).

    Source:
        Weston and Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", ESANN 1999; Crammer and Singer, "On the Algorithmic
        Implementation of Multiclass Kernel-based Vector Machines", JMLR 2, 2001; in the survey of Terven et al., 2023, arXiv:2307.02694.
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        squared: bool = False,
        over: str = "sum",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(margin > 0, "margin must be > 0", margin)
        require_choice("over", over, ("sum", "mean", "max"))
        self.margin: float | Tensor = margin
        self.squared = squared
        self.over = over

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_target(logits, target, self.ignore_index)
        self.check_weight(logits.shape[1])
        scores = logits.to(at_least_float32(logits.dtype))
        own = (target * (target != self.ignore_index)).unsqueeze(1)
        short = F.relu(self.margin + scores - scores.gather(1, own))
        short = short.scatter(1, own, 0.0)  # the target does not compete with itself
        if self.squared:
            short = short.square()
        values = short.amax(1) if self.over == "max" else short.sum(1)
        if self.over == "mean":
            values = values / logits.shape[1]
        return self.reduce(values, target).to(logits.dtype)


class KLDivergenceLoss(Loss):
    r"""Kullback-Leibler divergence of the softmax from a target distribution: labels that share a sample, or soft labels.

    .. math:: \ell = \sum_c q_c \log \frac{q_c}{p_c}, \qquad q = \frac{t}{\sum_c t_c}, \quad p = \mathrm{softmax}(z)

    For one class a sample this is cross-entropy; for *k* labels each is to have probability *1/k*; for votes of several annotators *q* is their
    share. Unlike cross-entropy its smallest value is 0. A class whose label is unknown (NaN) takes no part in the softmax; a sample none of whose labels
    holds costs nothing, though it counts in the mean.

    Args:
        ignore_index: target value of an unknown label (as NaN is).
        reduction: ``"mean"`` (over the samples of which a label is known) | ``"sum"`` | ``"none"`` (one value per sample, shape (N,) or (N, d1, …)).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target_multi_hot of the same shape, values in [0, 1], need not sum to 1.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, 1].

    Source:
        Kullback and Leibler, "On Information and Sufficiency", 1951; :func:`torch.nn.functional.kl_div`; one over the number of labels: Mahajan et
        al., "Exploring the Limits of Weakly Supervised Pretraining", ECCV 2018, arXiv:1805.00932, section 2.
    """

    def __init__(self, *, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        scores = logits.to(positive.dtype)
        if kept is not None:
            scores = scores.masked_fill(~kept, torch.finfo(scores.dtype).min / 4)  # whose log-probability is finite, and 0 times it 0
        total = positive.sum(1)
        share = positive / nonzero(total).unsqueeze(1)
        values = (torch.special.xlogy(share, share) - share * scores.log_softmax(1)).sum(1)
        weights = None if kept is None else kept.any(1).to(values.dtype)
        return reduce_values(values, weights, self.reduction).to(logits.dtype)

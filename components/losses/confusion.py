r"""Losses of soft confusion matrices: what is wanted is F1, so F1 is what descends.

A sample that the model calls positive with probability *q* counts as *q* of a positive call. Then hits, misses, false alarms and correct rejections are
sums of products, and every rate made of them is differentiable. :data:`RATES` is the table of those rates; the metric
:class:`components.metrics.ConfusionRate` computes the same of hard decisions.

A loss of the whole batch has one value a label. So that ``mean``, ``sum`` and ``none`` agree as everywhere, each of the label's elements is given that value:
the mean is the mean over labels, each with as much say as it has known elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, reduce_values
from components.losses.margins import known_labels, label_weights
from components.validation import require, require_choice


class Confusion(NamedTuple):
    """Counts of one label, or of several (C,): true positives, false negatives, false positives, true negatives."""

    tp: Tensor
    fn: Tensor
    fp: Tensor
    tn: Tensor


Number = float | Tensor
Rate = Callable[[Confusion, Number, Number], Tensor]


def confusion(called: Tensor, positive: Tensor, kept: Tensor | None = None) -> Confusion:
    """Soft counts of each label from how much each element is called positive, (N, C, d1, …) in [0, 1], and how much it is, the same."""
    weight = torch.ones_like(called) if kept is None else kept.to(called.dtype)
    over = [d for d in range(called.ndim) if d != 1]
    called, positive = called * weight, positive * weight
    tp = (called * positive).sum(over)
    fp, fn = called.sum(over) - tp, positive.sum(over) - tp
    return Confusion(tp, fn, fp, weight.sum(over) - tp - fp - fn)


def _f_beta(c: Confusion, beta: Number, eps: Number) -> Tensor:
    return (1 + beta**2) * c.tp / ((1 + beta**2) * c.tp + beta**2 * c.fn + c.fp + eps)


def _gmean(c: Confusion, beta: Number, eps: Number) -> Tensor:
    return (c.tp / (c.tp + c.fn + eps) * (c.tn / (c.tn + c.fp + eps)) + eps).sqrt()


def _mcc(c: Confusion, beta: Number, eps: Number) -> Tensor:
    # each factor's root by itself: the product of four counts of a large batch leaves float32
    scale = (c.tp + c.fp + eps).sqrt() * (c.tp + c.fn + eps).sqrt() * (c.tn + c.fp + eps).sqrt() * (c.tn + c.fn + eps).sqrt()
    return (c.tp * c.tn - c.fp * c.fn) / scale


RATES: Mapping[str, Rate] = {
    "accuracy": lambda c, beta, eps: (c.tp + c.tn) / (c.tp + c.fn + c.fp + c.tn + eps),
    "balanced_accuracy": lambda c, beta, eps: 0.5 * (c.tp / (c.tp + c.fn + eps) + c.tn / (c.tn + c.fp + eps)),
    "f_beta": _f_beta,
    "gmean": _gmean,
    "jaccard": lambda c, beta, eps: c.tp / (c.tp + c.fn + c.fp + eps),
    "mcc": _mcc,
    "negative_predictive_value": lambda c, beta, eps: c.tn / (c.tn + c.fn + eps),
    "precision": lambda c, beta, eps: c.tp / (c.tp + c.fp + eps),
    "recall": lambda c, beta, eps: c.tp / (c.tp + c.fn + eps),
    "specificity": lambda c, beta, eps: c.tn / (c.tn + c.fp + eps),
}
"""Rates of which more is better: (counts, beta of F, what is added to denominators) -> rate."""


class AnyLoss(Loss):
    r"""One minus a rate of the confusion matrix (F1, G-mean, balanced accuracy, MCC …), made differentiable by an amplifier.

    Each probability is pushed towards 0 or 1,

    .. math:: \hat y_i = A(p_i) = \frac{1}{1 + e^{-L (p_i - 1/2)}}, \qquad p = \sigma(z)

    the four counts of a label are :math:`TP = \sum_i y_i \hat y_i`, :math:`FN = \sum_i y_i (1 - \hat y_i)`, :math:`FP = \sum_i (1 - y_i) \hat y_i`,
    :math:`TN = \sum_i (1 - y_i)(1 - \hat y_i)` over the batch, and

    .. math:: \ell = 1 - \mathrm{metric}(TP, FN, FP, TN), \qquad \text{e.g. } F_\beta = \frac{(1 + \beta^2)\, TP}{(1 + \beta^2)\, TP + \beta^2 FN + FP}

    A probability far from one half has next to no gradient (with *L* = 73, at *p* = 0.4 it is 0.05): a model that is already sure does not learn.
    Labels that a batch has no positive of get no sensible rate: take large batches.

    Try it where classes are imbalanced and the rate is what you are judged by.

    Args:
        metric: ``"accuracy"`` | ``"balanced_accuracy"`` | ``"f_beta"`` | ``"gmean"`` | ``"jaccard"`` | ``"mcc"`` | ``"negative_predictive_value"`` |
            ``"precision"`` | ``"recall"`` | ``"specificity"``, or a function of (TP, FN, FP, TN), tensors (C,), that gives a rate of which more is better.
        beta: of ``f_beta``, >= 0: recall counts *beta* times as much as precision.
        amplifier: *L* > 0.
        eps: added to denominators, and to what ``gmean`` takes the root of; > 0.
        weight: per-label weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (shaped like ``logits``: each element has its label's value; see the chapter's head).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C = 1 for two classes; target_multi_hot of the same shape, values in [0, 1].

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, 1].

    Source:
        Han, Moniz, Chawla, "AnyLoss: Transforming Classification Metrics into Loss Functions", KDD 2024, arXiv:2405.14745.
    """

    pairwise = True  # a loss of the whole batch: under DDP of all ranks' samples

    def __init__(
        self,
        metric: str | Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = "f_beta",
        *,
        beta: float = 1.0,
        amplifier: float = 73.0,
        eps: float = 1e-8,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if not callable(metric):
            require_choice("metric", metric, RATES)
        require(beta >= 0, "beta must be >= 0", beta)
        require(amplifier > 0, "amplifier must be > 0", amplifier)
        require(eps > 0, "eps must be > 0", eps)
        self.metric = metric
        self.beta: float | Tensor = beta
        self.amplifier: float | Tensor = amplifier
        self.eps: float | Tensor = eps

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        self.check_weight(logits.shape[1])
        called = (self.amplifier * (logits.to(positive.dtype).sigmoid() - 0.5)).sigmoid()
        counts = confusion(called, positive, kept)
        rate = self.metric(*counts) if callable(self.metric) else RATES[self.metric](counts, self.beta, self.eps)
        values = spread(1 - rate, called)
        return reduce_values(values, label_weights(values, kept, self.weight), self.reduction).to(logits.dtype)


class SelfAdjustingDiceLoss(Loss):
    r"""Dice for classification: positives and the samples called so are compared, true negatives count for nothing, easy samples are damped.

    With :math:`q = (1 - p)^\alpha\, p` the damped probability of a class and *y* in {0, 1},

    .. math:: \ell = 1 - \frac{2 q y + s}{2 q y + 2 a\, q (1 - y) + 2 b\, (1 - q)\, y + s}

    for each example and class (``level="example"``), or with sums over the batch in numerator and denominator for each class (``level="set"``).
    With *a* = *b* = 1/2 the denominator is :math:`q + y + s`, with ``square`` :math:`q^2 + y^2 + s`.

    The paper's names: DSC is the default (``loss=dsc``); DL, its dice loss, is ``alpha=0 square=true``; TL, its Tversky loss, is ``alpha=0`` and *a*, *b*
    of choice, with half of ``smooth`` in the place of its :math:`\gamma`. The gradient flows through the damping too. For ``alpha=1`` the loss of a
    positive *rises* again beyond *p* = 1/2, where :math:`(1 - p)\,p` is largest: scores of positives then end at 1/2. The authors' scripts take 0.01.
    Set-level with softmax, ``alpha=0``: :class:`~components.losses.DiceLoss` over the batch.

    Try it where negatives are many and easy and F1 is what counts: tagging, matching, reading comprehension.

    Args:
        alpha: how much examples already predicted well are damped, >= 0; the paper's text 1, its scripts 0.01.
        smooth: *s* > 0.
        square: squares in the denominator; for *a* = *b* = 1/2.
        fp_weight: *a* >= 0, the price of false alarms.
        fn_weight: *b* >= 0, the price of misses; not both 0.
        level: ``"example"`` | ``"set"``. The authors' module sums the classes' set-level values, which is C times the mean.
        activation: ``"softmax"`` | ``"sigmoid"`` | ``"auto"``: sigmoid for one column, else softmax (several labels a sample take ``"sigmoid"``).
        ohem_ratio: of each label keep the positives and the so many times as many hardest negatives of the batch (rounded down); None: all of them.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient (as NaN does); under softmax the class is left out of the sum.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample and class; set-level: each has its class's value).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target_multi_hot of the same shape, values in [0, 1].

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, 1].

    Source:
        Li et al., "Dice Loss for Data-imbalanced NLP Tasks", ACL 2020, arXiv:1911.02855, sections 3.2 to 3.4; the set-level form from the authors'
        module, the selection of hard negatives from the text (their module's differs in its count).
    """

    pairwise = True

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        smooth: float = 1.0,
        square: bool = False,
        fp_weight: float = 0.5,
        fn_weight: float = 0.5,
        level: str = "example",
        activation: str = "auto",
        ohem_ratio: float | None = None,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(alpha >= 0, "alpha must be >= 0", alpha)
        require(smooth > 0, "smooth must be > 0", smooth)
        require(fp_weight >= 0 and fn_weight >= 0 and fp_weight + fn_weight > 0, "fp_weight and fn_weight must be >= 0 and not both 0", (fp_weight, fn_weight))
        require(not square or fp_weight == fn_weight == 0.5, "square must be false unless fp_weight = fn_weight = 0.5", square)
        require_choice("level", level, ("example", "set"))
        require_choice("activation", activation, ("auto", "softmax", "sigmoid"))
        require(ohem_ratio is None or ohem_ratio > 0, "ohem_ratio must be > 0, or null to keep all negatives", ohem_ratio)
        self.alpha: float | Tensor = alpha
        self.smooth: float | Tensor = smooth
        self.square = square
        self.fp_weight: float | Tensor = fp_weight
        self.fn_weight: float | Tensor = fn_weight
        self.level = level
        self.activation = activation
        self.ohem_ratio = ohem_ratio

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        self.check_weight(logits.shape[1])
        log_p, log_not_p = self._log_probabilities(logits.to(positive.dtype), kept)
        if self.ohem_ratio is not None:
            kept = hard_elements(log_p.detach(), positive, kept, self.ohem_ratio)
        called = (self.alpha * log_not_p + log_p).exp()
        if self.level == "example":
            values = self._cost(called * positive, called, positive, called.square() + positive.square())
        else:
            over = [d for d in range(called.ndim) if d != 1]
            in_set = torch.ones_like(called) if kept is None else kept.to(called.dtype)
            q, y = called * in_set, positive * in_set
            cost = self._cost((q * y).sum(over), q.sum(over), y.sum(over), (q.square() + y.square()).sum(over))
            values = spread(cost, called)
        return reduce_values(values, label_weights(values, kept, self.weight), self.reduction).to(logits.dtype)

    def _cost(self, both: Tensor, called: Tensor, positive: Tensor, squares: Tensor) -> Tensor:
        weighted = 2 * (both + self.fp_weight * (called - both) + self.fn_weight * (positive - both))
        total = squares if self.square else weighted
        return 1 - (2 * both + self.smooth) / (total + self.smooth)

    def _log_probabilities(self, scores: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log of each class's probability and of its complement's, both exact where the probability is near 1."""
        if self.activation == "sigmoid" or (self.activation == "auto" and scores.shape[1] == 1):
            return F.logsigmoid(scores), F.logsigmoid(-scores)
        require(scores.shape[1] > 1, "logits must have two columns or more under activation=softmax", tuple(scores.shape))
        if kept is not None:
            scores = scores.masked_fill(~kept, torch.finfo(scores.dtype).min / 4)
        log_p = scores.log_softmax(1)
        # of a class with more than half the probability the others' sum is taken, where 1 - p would cancel
        likely = log_p > -math.log(2)
        others = log_p.masked_fill(likely, -torch.inf).logsumexp(1, keepdim=True)
        small = log_p.masked_fill(likely, -1.0)
        return log_p, torch.where(likely, others, torch.log1p(-small.exp()))


def spread(per_label: Tensor, like: Tensor) -> Tensor:
    """(C,) -> the shape of ``like`` (N, C, d1, …): each element has its label's value."""
    return per_label.reshape(-1, *[1] * (like.ndim - 2)).expand_as(like)


@torch.no_grad()
def hard_elements(scores: Tensor, positive: Tensor, kept: Tensor | None, ratio: float) -> Tensor:
    """Which elements (N, C, d1, …) are positive, or among the ``int(ratio * positives)`` negatives of their label that are scored highest."""
    columns, labels = (x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (scores, positive))
    is_positive = labels > 0
    if kept is not None:
        known = kept.movedim(1, -1).reshape(columns.shape)
        is_positive = is_positive & known
        columns = columns.masked_fill(~known, -torch.inf)
    columns = columns.masked_fill(is_positive, -torch.inf)
    rank = columns.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    wanted = (ratio * is_positive.sum(0) + 1e-6).floor()
    chosen = is_positive | ((rank < wanted) & ~columns.isneginf())
    return chosen.reshape(scores.movedim(1, -1).shape).movedim(-1, 1)

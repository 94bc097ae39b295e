r"""Ranking losses: what is wanted scores above what is not.

Two forms. *Sampled*: one wanted candidate and *M* others for each query, ``positive_scores`` (N,) and ``negative_scores`` (N, M); all that counts
is the difference :math:`d_{ij} = s^-_{ij} - s^+_i`, which should be negative. *Listwise*: the scores of all candidates, ``logits`` (N, L), beside
``target_multi_hot`` (N, L), with NaN for a candidate that is left out. Which scores they are (dot products, cosines over a temperature) is the
model's business. The losses of the second form that are made for very many candidates are in :mod:`components.losses.extreme`.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, at_least_float32, check_same_shape, is_readable, nonzero, reduce_values
from components.losses.metric_learning import log_softmax_where
from components.validation import require, require_choice

Activation = Literal["exp", "tanh", "atan", "relu"]
LOG_OF_NOTHING = math.log(1e-12)


def check_sampled_scores(positive_scores: Tensor, negative_scores: Tensor) -> None:
    """Refuse scores that are not (N,) and (N, M), M >= 1.

    Raises:
        ValueError: naming ``positive_scores`` or ``negative_scores``.
    """
    if positive_scores.ndim != 1:
        raise ValueError(f"positive_scores must hold one score a query, shape (N,), but got {tuple(positive_scores.shape)}")
    if negative_scores.ndim != 2 or len(negative_scores) != len(positive_scores) or not negative_scores.shape[1]:
        raise ValueError(f"negative_scores must have shape ({len(positive_scores)}, M), M >= 1, but got {tuple(negative_scores.shape)}")


def differences(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """(N, M): how far each negative is above the positive, in float32 at least (a difference of half-precision scores has few digits left)."""
    precise = at_least_float32(positive_scores.dtype)
    return negative_scores.to(precise) - positive_scores.to(precise).unsqueeze(1)


def check_relevance(logits: Tensor, target_multi_hot: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse scores that are not (N, L), or relevances of another shape or outside [0, 1].

    Returns:
        The relevances, 0 in the place of NaN, in float32 at least, and which candidates are not left out.

    Raises:
        ValueError: naming ``logits`` or ``target_multi_hot``.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (N, L), a score for each of the L candidates of a query, but got {tuple(logits.shape)}")
    check_same_shape("target_multi_hot", target_multi_hot, "logits", logits)
    if is_readable(target_multi_hot) and target_multi_hot.numel():
        outside = target_multi_hot[(target_multi_hot < 0) | (target_multi_hot > 1)]
        if outside.numel():
            raise ValueError(f"target_multi_hot must hold values in [0, 1], or NaN for a candidate that is left out, but got {float(outside[0])}")
    kept = ~target_multi_hot.isnan()
    return torch.where(kept, target_multi_hot, torch.zeros_like(target_multi_hot)).to(at_least_float32(logits.dtype)), kept


def reduce_queries(values: Tensor, kept: Tensor, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """Reduce one value a query; a query all of whose candidates are left out is ignored."""
    return reduce_values(values, kept.any(1).to(values.dtype), reduction).to(dtype)


class PairwiseRankingLoss(Loss):
    r"""The positive above each negative, pair by pair: BPR (RankNet's loss) with ``link="logistic"``, margin ranking with ``"hinge"``.

    .. math:: \ell_i = \frac{1}{M} \sum_j \phi\!\left(\frac{d_{ij}}{\tau} + m\right), \qquad \phi(u) = \log(1 + e^u) \text{ or } \max(0, u)

    With the logistic link and *m* = 0 this is :math:`-\log \sigma(s^+ - s^-)`, the likelihood of the order.

    Try it where negatives are few; with many, most of the gradient goes to pairs that are in order already, and a softmax loss does better.

    Args:
        link: ``"logistic"`` | ``"hinge"``.
        margin: *m* >= 0: how far the positive ought to be above.
        temperature: :math:`\tau` > 0.
        negatives: ``"mean"`` | ``"sum"`` over the negatives.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per query).

    Shapes:
        positive_scores (N,); negative_scores (N, M), M >= 1.

    Raises:
        ValueError: an argument out of its range, or shapes disagree.

    Source:
        Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, arXiv:1205.2618, sec. 4.1; Burges et al., "Learning to
        Rank using Gradient Descent", ICML 2005 (RankNet); hinge: :class:`torch.nn.MarginRankingLoss`.
    """

    def __init__(
        self,
        *,
        link: Literal["logistic", "hinge"] = "logistic",
        margin: float = 0.0,
        temperature: float = 1.0,
        negatives: Literal["mean", "sum"] = "mean",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("link", link, ("logistic", "hinge"))
        require(margin >= 0, "margin must be >= 0", margin)
        require(temperature > 0, "temperature must be > 0", temperature)
        require_choice("negatives", negatives, ("mean", "sum"))
        self.link = link
        self.margin: float | Tensor = margin
        self.temperature: float | Tensor = temperature
        self.negatives = negatives

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        check_sampled_scores(positive_scores, negative_scores)
        costs = self.costs(differences(positive_scores, negative_scores))
        values = costs.mean(1) if self.negatives == "mean" else costs.sum(1)
        return self.reduce(values).to(positive_scores.dtype)

    def costs(self, above: Tensor) -> Tensor:
        u = above / self.temperature + self.margin
        return F.softplus(u) if self.link == "logistic" else u.relu()


class MannWhitneyLoss(Loss):
    r"""Each positive above the negatives of *every* query: the area under the ROC curve of one threshold for all.

    .. math:: \ell_i = \frac{1}{NM} \sum_{k=1}^{N} \sum_{j=1}^{M} \log\!\left(1 + e^{-(s^+_i - s^-_{kj}) / \tau}\right)

    A softmax over a query's own candidates does not change when all of a query's scores are shifted, so its scores of different queries need not
    be comparable; here they must be. With ``negatives="mean"`` the mean over the batch bounds the area over the curve,
    :math:`P(s^+ < s^-) \le L / \log 2` at any :math:`\tau`; the paper's equation has the sum (which at a fixed learning rate of Adam differs by
    nothing but the weight beside other terms).

    Try it where scores are compared with a threshold or over queries (does the answer exist? which of two questions has one?).

    Memory: :math:`O(N^2 M)` for *N* queries with *M* negatives each. Under DDP the batch is gathered over the ranks first.

    Args:
        temperature: :math:`\tau` > 0; 0.01 in the paper, on cosines.
        negatives: ``"mean"`` | ``"sum"`` over all negatives of the batch.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per query).

    Shapes:
        positive_scores (N,); negative_scores (N, M), M >= 1.

    Raises:
        ValueError: if ``temperature <= 0``, ``negatives`` is unknown or shapes disagree.

    Source:
        "Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval", 2025, arXiv:2510.00137.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.01, *, negatives: Literal["mean", "sum"] = "mean", reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(temperature > 0, "temperature must be > 0", temperature)
        require_choice("negatives", negatives, ("mean", "sum"))
        self.temperature: float | Tensor = temperature
        self.negatives = negatives

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        check_sampled_scores(positive_scores, negative_scores)
        everybody = negative_scores.flatten().expand(len(positive_scores), -1)
        costs = F.softplus(differences(positive_scores, everybody) / self.temperature)
        values = costs.sum(1) if self.negatives == "sum" or not len(costs) else costs.mean(1)
        return self.reduce(values).to(positive_scores.dtype)


class PairwiseSoftmaxLoss(Loss):
    r"""PSL: a softmax loss in pairs whose exponential may be a surrogate of the step that bears false negatives.

    .. math:: \ell_i = \log \sum_j s(d_{ij} / \tau_s)^{1 / \tau}, \qquad
              s(d) = e^d, \quad \tanh d + 1, \quad \arctan d + 1, \quad \max(0, d + 1)

    All four are 1 at 0 and at least the step :math:`[d \ge 0]`; the last three lie below :math:`e^d` (on [-1, 1]) and so bound DCG more tightly, and a
    negative far above the positive, perhaps no negative at all, gets a weight :math:`s'/s` that falls with *d* where the exponential's stays 1.
    ``activation="exp"`` is the softmax loss (SL); with ``include_positive`` it is the sampled softmax, InfoNCE:
    :math:`\log(1 + \sum_j e^{d_{ij}/\tau})`.

    Try it on implicit feedback with many sampled negatives, cosines for scores, where some of the negatives are wanted after all.

    :math:`\tau` holds the robustness (a KL-ball of negatives around the sampled ones), :math:`\tau_s` only scales scores. An *s* of 0 counts as 1e-12.

    The paper's second variant, ``over="pairs"``, is robust on both sides: one logarithm of the *mean* over all pairs of the batch, which every query
    gets for its value (another scale than the first variant's: it lacks the log *M*). Under DDP the batch is then gathered over the ranks first.

    Args:
        activation: *s*: ``"tanh"`` | ``"atan"`` | ``"relu"`` | ``"exp"``.
        temperature: :math:`\tau` > 0; the paper searches 0.005 … 0.25.
        score_temperature: :math:`\tau_s` > 0; 2 or more keeps differences of cosines in [-1, 1].
        include_positive: the positive's own term, :math:`s(0) = 1`, in the sum.
        over: ``"negatives"`` of each query | ``"pairs"`` of the batch, where ``include_positive`` has no meaning.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per query).

    Shapes:
        positive_scores (N,); negative_scores (N, M), M >= 1.

    Raises:
        ValueError: a temperature <= 0, an unknown activation, ``include_positive`` over pairs, or shapes disagree.

    Source:
        Yang et al., "PSL: Rethinking and Improving Softmax Loss from Pairwise Perspective for Recommendation", NeurIPS 2024, arXiv:2411.00163; the
        authors' code: github.com/Tiny-Snow/IR-Benchmark.
    """

    def __init__(
        self,
        activation: Activation = "tanh",
        temperature: float = 0.1,
        *,
        score_temperature: float = 2.0,
        include_positive: bool = False,
        over: Literal["negatives", "pairs"] = "negatives",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("activation", activation, ("exp", "tanh", "atan", "relu"))
        require(temperature > 0, "temperature must be > 0", temperature)
        require(score_temperature > 0, "score_temperature must be > 0", score_temperature)
        self.activation: Activation = activation
        self.temperature: float | Tensor = temperature
        self.score_temperature: float | Tensor = score_temperature
        require_choice("over", over, ("negatives", "pairs"))
        require(not (include_positive and over == "pairs"), "include_positive must be false where over=pairs", include_positive)
        self.include_positive, self.over = include_positive, over
        self.pairwise = over == "pairs"  # type: ignore[misc]

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        check_sampled_scores(positive_scores, negative_scores)
        terms = log_surrogate(differences(positive_scores, negative_scores) / self.score_temperature, self.activation) / self.temperature
        values = terms.logsumexp(1)
        if self.over == "pairs" and len(values):
            values = (values.logsumexp(0) - math.log(terms.numel())).expand(len(values))
        if self.include_positive:
            values = F.softplus(values)
        return self.reduce(values).to(positive_scores.dtype)


def log_surrogate(d: Tensor, activation: Activation) -> Tensor:
    r"""log *s(d)* for the surrogates of :class:`PairwiseSoftmaxLoss`, at least log 1e-12 where *s* reaches 0."""
    if activation == "exp":
        return d
    if activation == "tanh":  # tanh d + 1 = 2 / (1 + exp(-2d))
        return math.log(2) - F.softplus(-2 * d)
    above = d.atan() if activation == "atan" else d
    positive = above > -1 + 1e-12
    return torch.where(positive, torch.where(positive, above, torch.zeros_like(above)).log1p(), torch.full_like(above, LOG_OF_NOTHING))


class BilateralSoftmaxLoss(Loss):
    r"""BSL: a softmax loss with a temperature of its own for each side.

    .. math:: \ell_i = -\frac{s^+_i}{\tau_1} + \log \frac{1}{M} \sum_j e^{s^-_{ij} / \tau_2}

    The ratio :math:`\tau_1 / \tau_2` says how much noise among the positives weighs against noise among the negatives; 1 is the softmax loss but for
    the constant log *M*. Our reading of the paper for one sampled positive a query (its mean of :math:`e^{s^+/\tau_1}` over a user's positives has
    one term then).

    Args:
        temperature: :math:`\tau_2` > 0, of the negatives.
        positive_temperature: :math:`\tau_1` > 0, of the positives.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per query).

    Shapes:
        positive_scores (N,); negative_scores (N, M), M >= 1.

    Raises:
        ValueError: a temperature <= 0, or shapes disagree.

    Source:
        Wu et al., "BSL: Understanding and Improving Softmax Loss for Recommendation", ICDE 2024, arXiv:2312.12882.
    """

    def __init__(self, temperature: float = 0.1, positive_temperature: float = 0.12, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(temperature > 0, "temperature must be > 0", temperature)
        require(positive_temperature > 0, "positive_temperature must be > 0", positive_temperature)
        self.temperature: float | Tensor = temperature
        self.positive_temperature: float | Tensor = positive_temperature

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        check_sampled_scores(positive_scores, negative_scores)
        precise = at_least_float32(positive_scores.dtype)
        negatives = (negative_scores.to(precise) / self.temperature).logsumexp(1) - math.log(negative_scores.shape[1])
        return self.reduce(negatives - positive_scores.to(precise) / self.positive_temperature).to(positive_scores.dtype)


class ListwiseSoftmaxLoss(Loss):
    r"""Cross-entropy between what is wanted of a list and the softmax of its scores: ListNet, or the softmax of several positives.

    .. math:: \ell_i = -\sum_j q_{ij} \log \frac{e^{s_{ij} / \tau}}{\sum_k e^{s_{ik} / \tau}}

    *q* is made of the relevances *y*: ``"softmax"`` (ListNet's top-one probabilities), ``"normalized"``, :math:`y_j / \sum_k y_k` (the mean over the
    positives), or ``"sum"``, *y* itself (the plain softmax loss of extreme classification, which grows with the positives).

    The positives of a query compete with each other here: one that scores high makes the others' share small. Where a query has several,
    see :class:`DecoupledSoftmaxLoss`. A query without a positive counts with 0 (with ``"softmax"``: as one that wants all alike).

    Args:
        wanted: *q*: ``"softmax"`` | ``"normalized"`` | ``"sum"``.
        temperature: :math:`\tau` > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per query).

    Shapes:
        logits (N, L); target_multi_hot (N, L), relevances in [0, 1], NaN for a candidate that is left out.

    Raises:
        ValueError: if ``temperature <= 0``, ``wanted`` is unknown, shapes disagree or a relevance lies outside [0, 1].

    Source:
        Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007 (ListNet).
    """

    dense: ClassVar[bool] = False

    def __init__(
        self, wanted: Literal["softmax", "normalized", "sum"] = "softmax", *, temperature: float = 1.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("wanted", wanted, ("softmax", "normalized", "sum"))
        require(temperature > 0, "temperature must be > 0", temperature)
        self.wanted = wanted
        self.temperature: float | Tensor = temperature

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        relevance, kept = check_relevance(logits, target_multi_hot)
        log_p = log_softmax_where(logits.to(relevance.dtype) / self.temperature, kept)
        costs = torch.where(kept, -self.share(relevance, kept) * log_p, torch.zeros_like(log_p))
        return reduce_queries(costs.sum(1), kept, self.reduction, logits.dtype)

    def share(self, relevance: Tensor, kept: Tensor) -> Tensor:
        if self.wanted == "sum":
            return relevance
        if self.wanted == "normalized":
            return relevance / nonzero(relevance.sum(1, keepdim=True))
        return relevance.masked_fill(~kept, torch.finfo(relevance.dtype).min / 4).softmax(1) * kept

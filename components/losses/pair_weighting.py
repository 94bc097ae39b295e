r"""Losses of pairs, seen as weights on similarities: contrastive, lifted structure, binomial deviance, multi-similarity, proxy anchor.

Each is a function of the matrix :math:`S` of cosine similarities between anchors and samples and of who belongs to whom. What a loss does to an
embedding is decided by :math:`\partial L / \partial S_{ij}`, the pair's weight (general pair weighting, Wang et al. 2019); :meth:`PairLoss.pair_weights`
shows it. A subclass gives :meth:`PairLoss.values` for pairs that belong to the anchor to *some degree*, so that the same code scores clean pairs
(degree 0 or 1) and mixed ones (:mod:`components.losses.mixed_pairs`).

The element is the sample (as an anchor): ``none`` gives one value per sample, and ``mean`` is over all samples that are not ignored.
Memory and time are :math:`O(N^2)` for a batch of *N* (proxy anchor: :math:`O(NC)`).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from components.losses.base import IGNORE_INDEX, Loss, Reduction, check_class_indices, nonzero, reduce_values
from components.losses.metric_learning import Distance, check_labelled_embeddings, dot_products, pair_masks, unit_length
from components.validation import require, require_choice

DISTANCES = ("euclidean", "squared_euclidean", "cosine")


class PairLoss(Loss):
    """Base of losses of pairs: a subclass gives :meth:`values`, and :meth:`mine`, :meth:`anchors` or :meth:`masks` where it differs.

    Args:
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).
    """

    pairwise: ClassVar[bool] = True

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        samples = self.checked(embeddings, target)
        kept = (target != self.ignore_index).to(samples.dtype)
        return self.reduced(self.clean_values(samples, target, kept), kept).to(embeddings.dtype)

    def checked(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The embeddings at length 1, after refusing wrong shapes."""
        check_labelled_embeddings(embeddings, target)
        return unit_length(embeddings)

    def reduced(self, values: Tensor, kept: Tensor) -> Tensor:
        return reduce_values(values, kept, self.reduction)

    def clean_values(self, samples: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        """(N,) the loss of the batch's own pairs, after mining."""
        similarity = dot_products(self.anchors(samples), samples)
        positive, negative = self.mine(similarity, *self.masks(target))
        return self.values(similarity, positive.to(similarity.dtype), negative.to(similarity.dtype), kept)

    # -- what a subclass gives ------------------------------------------------------------------------------------------------
    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        """(N,) value of each sample.

        Args:
            similarity: (A, N) cosines of anchors and samples.
            positive, negative: (A, N) degree in [0, 1] to which the sample belongs, and does not belong, to the anchor's class; 0 and 0: no pair.
            kept: (N,) 1, or 0 where ignored.
        """
        raise NotImplementedError

    def anchors(self, samples: Tensor) -> Tensor:
        """(A, D) of length 1; the samples themselves unless there are proxies."""
        return samples

    def masks(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """(A, N) boolean: samples of the anchor's class, samples of another."""
        return pair_masks(target, self.ignore_index)

    def mine(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs worth looking at; all of them unless a subclass says otherwise."""
        return positive, negative

    # -- the view of general pair weighting --------------------------------------------------------------------------------------
    def pair_weights(self, embeddings: Tensor, target: Tensor) -> Tensor:
        r"""(A, N): :math:`\partial (\sum_i \ell_i) / \partial S_{ij}`, how strongly each pair is pulled together (< 0) or pushed apart (> 0)."""
        samples = self.checked(embeddings.detach(), target)
        kept = (target != self.ignore_index).to(samples.dtype)
        with torch.enable_grad():
            similarity = dot_products(self.anchors(samples), samples).detach().requires_grad_()
            positive, negative = self.mine(similarity, *self.masks(target))
            total = self.values(similarity, positive.to(similarity.dtype), negative.to(similarity.dtype), kept).sum()
            return torch.autograd.grad(total, similarity)[0]


def log_sum_exp(scores: Tensor, weights: Tensor, *, plus_one: bool = False) -> Tensor:
    """Row-wise ``log(Σ weights · exp(scores))``, with 1 added inside if ``plus_one``; very small where no weight is above 0."""
    lowest = torch.finfo(scores.dtype).min / 4  # instead of -inf: a row of -inf alone has NaN gradients
    there = weights > 0
    terms = torch.where(there, scores + torch.where(there, weights, torch.ones_like(weights)).log(), torch.full_like(scores, lowest))
    # a last column for the 1; without it the same value that stands for nothing, so that there is always a column to sum over
    last = terms.new_full((len(terms), 1), 0.0 if plus_one else lowest)
    return torch.cat([terms, last], 1).logsumexp(1)


def distance_of(similarity: Tensor, distance: Distance) -> Tensor:
    """The distance of points of length 1 from their cosine; twins have distance 0 and, where it is a root, no gradient."""
    if distance == "cosine":
        return 1 - similarity
    squared = (2 - 2 * similarity).clamp(min=0)
    if distance == "squared_euclidean":
        return squared
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))


def share_of_mean(costs: Tensor, weights: Tensor, kept: Tensor, *, nonzero_only: bool) -> Tensor:
    """(N,) what each anchor has in the mean of ``weights · costs`` over all pairs (or those that are not 0), such that the mean over anchors is that mean."""
    weighted = torch.where(weights > 0, weights * costs, torch.zeros_like(costs))
    count = ((weighted > 0) if nonzero_only else (weights > 0)).sum()
    return weighted.sum(1) * (kept.sum() / nonzero(count))


class ContrastiveLoss(PairLoss):
    r"""Contrastive loss: pairs of one class nearer than a margin (0: as near as can be), pairs of different classes farther than another.

    .. math:: L = \operatorname*{mean}_{(i,j):\, y_i = y_j} h\big(d_{ij} - m_+\big) + \operatorname*{mean}_{(i,j):\, y_i \ne y_j} h\big(m - d_{ij}\big),
              \qquad h(x) = \tfrac12 \max(0, x)^2 \;\text{ or, not squared, }\; \max(0, x)

    over the ordered pairs of the batch, on embeddings of length 1. ``none`` gives each anchor's share, so that their mean is *L*.

    Try it where pairs are what is labelled, or as the plain baseline of metric learning; it needs no mining but wastes easy pairs.

    Args:
        margin: *m* > 0, in the unit of the distance; distances of points of length 1 are at most 2.
        positive_margin: :math:`m_+` >= 0: pairs of one class nearer than that cost nothing.
        distance: ``"euclidean"`` | ``"squared_euclidean"`` | ``"cosine"`` (1 - cosine).
        squared: square the hinge (the original) or not (pytorch-metric-learning, Metrix).
        average: each mean over the ``"nonzero"`` terms (pairs that violate their margin) or over ``"all"`` pairs.
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. Memory O(N²).

    Raises:
        ValueError: if ``margin <= 0``, ``positive_margin < 0``, a choice is unknown or shapes disagree.

    Source:
        Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006; length 1 and the averages as in
        Musgrave et al., "PyTorch Metric Learning", 2020, arXiv:2008.09164.
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        positive_margin: float = 0.0,
        distance: Distance = "euclidean",
        squared: bool = True,
        average: Literal["nonzero", "all"] = "nonzero",
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin > 0, "margin must be > 0", margin)
        require(positive_margin >= 0, "positive_margin must be >= 0", positive_margin)
        require_choice("distance", distance, DISTANCES)
        require_choice("average", average, ("nonzero", "all"))
        self.margin: float | Tensor = margin
        self.positive_margin: float | Tensor = positive_margin
        self.distance: Distance = distance
        self.squared, self.average = squared, average

    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        distances = distance_of(similarity, self.distance)
        near, far = (distances - self.positive_margin).relu(), (self.margin - distances).relu()
        if self.squared:
            near, far = near.square() / 2, far.square() / 2
        nonzero_only = self.average == "nonzero"
        return share_of_mean(near, positive, kept, nonzero_only=nonzero_only) + share_of_mean(far, negative, kept, nonzero_only=nonzero_only)


class LiftedStructureLoss(PairLoss):
    r"""Lifted structure loss: each pair of one class against all negatives at once, through a smooth maximum.

    .. math:: \text{pair:}\quad \ell_{ij} = \tfrac12 \Big[ d_{ij} - m_+
              + \log\Big( \sum_{k \in N(i)} e^{m - d_{ik}} + \sum_{k \in N(j)} e^{m - d_{jk}} \Big) \Big]_+^2

              \text{anchor:}\quad \ell_i = \Big[ \log \sum_{j \in P(i)} e^{d_{ij} - m_+} + \log \sum_{k \in N(i)} e^{m - d_{ik}} \Big]_+

    ``pair`` is the original (a mean over the pairs of one class), ``anchor`` its generalisation (a mean over anchors), the one that mixes in
    :class:`~components.losses.MetrixLoss`.

    Try it where batches hold many negatives per anchor and the hardest one alone would be noise.

    Args:
        margin: *m* > 0, in the unit of the distance.
        positive_margin: :math:`m_+` >= 0.
        distance: ``"euclidean"`` | ``"squared_euclidean"`` | ``"cosine"`` (1 - cosine), of embeddings of length 1.
        per: ``"pair"`` | ``"anchor"``.
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor; for ``per="pair"`` its share of the mean).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. Memory O(N²).

    Raises:
        ValueError: if ``margin <= 0``, ``positive_margin < 0``, a choice is unknown or shapes disagree.

    Source:
        Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, arXiv:1511.06452, eq. 4; per anchor: Hermans, Beyer,
        Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv:1703.07737.
    """

    def __init__(
        self,
        margin: float = 1.0,
        *,
        positive_margin: float = 0.0,
        distance: Distance = "euclidean",
        per: Literal["pair", "anchor"] = "pair",
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin > 0, "margin must be > 0", margin)
        require(positive_margin >= 0, "positive_margin must be >= 0", positive_margin)
        require_choice("distance", distance, DISTANCES)
        require_choice("per", per, ("pair", "anchor"))
        self.margin: float | Tensor = margin
        self.positive_margin: float | Tensor = positive_margin
        self.distance: Distance = distance
        self.per = per

    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        distances = distance_of(similarity, self.distance)
        nearest = log_sum_exp(self.margin - distances, negative)
        if self.per == "anchor":
            return (log_sum_exp(distances - self.positive_margin, positive) + nearest).relu()
        of_both = torch.logaddexp(nearest.unsqueeze(1), nearest.unsqueeze(0))
        return share_of_mean((distances - self.positive_margin + of_both).relu().square() / 2, positive, kept, nonzero_only=False)


class BinomialDevianceLoss(PairLoss):
    r"""Binomial deviance: a logistic cost on every pair's cosine, each kind of pair averaged by itself.

    .. math:: \ell_i = \frac{1}{|P(i)|} \sum_{j \in P(i)} \log\big(1 + e^{-\alpha (S_{ij} - \lambda)}\big)
                     + \frac{1}{|N(i)|} \sum_{j \in N(i)} \log\big(1 + e^{\beta (S_{ij} - \lambda)}\big)

    Try it as the smooth form of the contrastive loss: every pair keeps a gradient, the wrong ones the most.

    Args:
        alpha: steepness on pairs of one class, > 0.
        beta: steepness on pairs of different classes, > 0 (the original writes it as alpha times the negatives' cost, 2 · 25).
        base: :math:`\lambda`, the cosine in the middle.
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. Memory O(N²).

    Raises:
        ValueError: if ``alpha`` or ``beta`` <= 0 or shapes disagree.

    Source:
        Yi, Lei, Li, "Deep Metric Learning for Practical Person Re-Identification", 2014, arXiv:1407.4979; the averages as in Wang et al., 2019,
        arXiv:1904.06627, table of general pair weighting.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, *, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(alpha > 0, "alpha must be > 0", alpha)
        require(beta > 0, "beta must be > 0", beta)
        self.alpha: float | Tensor = alpha
        self.beta: float | Tensor = beta
        self.base: float | Tensor = base

    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        near, far = nn.functional.softplus(self.alpha * (self.base - similarity)), nn.functional.softplus(self.beta * (similarity - self.base))
        return (positive * near).sum(1) / nonzero((positive > 0).sum(1)) + (negative * far).sum(1) / nonzero((negative > 0).sum(1))


class MultiSimilarityLoss(PairLoss):
    r"""Multi-similarity loss: hard pairs are mined against each other, then weighted by their own and by their rivals' similarity.

    .. math:: \ell_i = \frac1\alpha \log\Big[1 + \sum_{k \in P_i} e^{-\alpha (S_{ik} - \lambda)}\Big]
                     + \frac1\beta \log\Big[1 + \sum_{k \in N_i} e^{\beta (S_{ik} - \lambda)}\Big]

    over the mined pairs: a negative is kept if it is more similar than the least similar positive minus :math:`\epsilon`, a positive if it is less
    similar than the most similar negative plus :math:`\epsilon`; an anchor that keeps none of either kind costs nothing (but counts in the mean).
    The weights that follow (:meth:`~PairLoss.pair_weights`) are
    :math:`w^+_{ij} = 1 / (e^{-\alpha(\lambda - S_{ij})} + \sum_k e^{-\alpha(S_{ik} - S_{ij})})` and
    :math:`w^-_{ij} = 1 / (e^{\beta(\lambda - S_{ij})} + \sum_k e^{\beta(S_{ik} - S_{ij})})`.

    Try it as the first choice among losses of pairs. The defaults are the released code's, which the public results use; the paper's text says
    ``beta=50, base=1``. The code also drops positives at a cosine above 1 - 1e-5, its way to leave out the anchor itself; here exact twins stay.

    Args:
        alpha: steepness on positives, > 0.
        beta: steepness on negatives, > 0.
        base: :math:`\lambda`, the cosine that pairs are measured against.
        epsilon: of the mining, >= 0; infinity mines nothing away.
        ignore_index: target value of samples that are in no pair.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices; two samples or more of a class, or there are no positives. Memory O(N²).

    Raises:
        ValueError: if ``alpha`` or ``beta`` <= 0, ``epsilon < 0`` or shapes disagree.

    Source:
        Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, arXiv:1904.06627.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 40.0,
        base: float = 0.5,
        epsilon: float = 0.1,
        *,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(alpha > 0, "alpha must be > 0", alpha)
        require(beta > 0, "beta must be > 0", beta)
        require(epsilon >= 0, "epsilon must be >= 0", epsilon)
        self.alpha: float | Tensor = alpha
        self.beta: float | Tensor = beta
        self.base: float | Tensor = base
        self.epsilon: float | Tensor = epsilon

    def mine(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        if not similarity.shape[1]:
            return positive, negative
        beyond = torch.finfo(similarity.dtype).max
        least_positive = similarity.masked_fill(~positive, beyond).amin(1, keepdim=True)
        most_negative = similarity.masked_fill(~negative, -beyond).amax(1, keepdim=True)
        hard_negative = negative & (similarity > least_positive - self.epsilon)
        hard_positive = positive & (similarity < most_negative + self.epsilon)
        both = hard_positive.any(1, keepdim=True) & hard_negative.any(1, keepdim=True)
        return hard_positive & both, hard_negative & both

    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        near = log_sum_exp(-self.alpha * (similarity - self.base), positive, plus_one=True) / self.alpha
        return near + log_sum_exp(self.beta * (similarity - self.base), negative, plus_one=True) / self.beta


class ProxyAnchorLoss(PairLoss):
    r"""Proxy anchor: one learnt proxy a class is the anchor, and all samples of the batch are its positives or negatives.

    .. math:: L = \frac{1}{|P^+|} \sum_{p \in P^+} \log\Big(1 + \sum_{x \in X_p^+} e^{-\alpha (s(x, p) - \delta)}\Big)
                + \frac{1}{|P|} \sum_{p \in P} \log\Big(1 + \sum_{x \in X_p^-} e^{\alpha (s(x, p) + \delta)}\Big)

    with *P* all proxies and :math:`P^+` those with a sample in the batch. ``none`` gives each sample's share, so that their mean is *L*.

    Try it where batches are too small for pairs: proxies stand for the classes that a batch lacks, and there is nothing to mine. The paper learns the
    proxies with 100 times the model's learning rate.

    Args:
        num_classes: number of proxies (from the data).
        embedding_dim: size of the embeddings (from the task).
        alpha: steepness, > 0.
        delta: margin on the cosine, >= 0.
        ignore_index: target value of samples that are nobody's positive or negative.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, embedding_dim), raw; target (N,), class indices in [0, num_classes). Memory O(N · num_classes).

    Raises:
        ValueError: if ``alpha <= 0``, ``delta < 0``, shapes disagree or a target lies outside [0, num_classes).

    Source:
        Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, arXiv:2003.13911, eq. 4.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        alpha: float = 32.0,
        delta: float = 0.1,
        *,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(num_classes >= 2, "num_classes must be >= 2", num_classes)
        require(alpha > 0, "alpha must be > 0", alpha)
        require(delta >= 0, "delta must be >= 0", delta)
        self.num_classes = num_classes
        self.alpha: float | Tensor = alpha
        self.delta: float | Tensor = delta
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) * math.sqrt(2 / num_classes))

    def checked(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        check_width(embeddings, self.proxies)
        check_class_indices(target, embeddings.shape[:1], self.num_classes, self.ignore_index)
        return unit_length(embeddings)

    def anchors(self, samples: Tensor) -> Tensor:
        return unit_length(self.proxies.to(samples.dtype))

    def masks(self, target: Tensor) -> tuple[Tensor, Tensor]:
        mine = target.unsqueeze(0) == torch.arange(self.num_classes, device=target.device).unsqueeze(1)
        return mine, ~mine & (target != self.ignore_index)

    def values(self, similarity: Tensor, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        near = log_sum_exp(-self.alpha * (similarity - self.delta), positive, plus_one=True)
        far = log_sum_exp(self.alpha * (similarity + self.delta), negative, plus_one=True)
        degree = positive.sum(1, keepdim=True)
        share = positive / nonzero(degree) * (kept.sum() / nonzero((degree > 0).sum()))
        return (share * near.unsqueeze(1)).sum(0) + far.mean() * kept


def check_width(embeddings: Tensor, vectors: Tensor) -> None:
    """Refuse embeddings of another size than the class vectors that a loss has learnt for them."""
    if embeddings.shape[1] != vectors.shape[1]:
        raise ValueError(f"embeddings must have size {vectors.shape[1]} (embedding_dim), but got {embeddings.shape[1]}")

r"""Extreme multi-label classification: a few right labels among very many, scored all at once by a dual encoder or a linear layer.

``logits`` (N, L) hold the score of every label, ``target_multi_hot`` (N, L) which of them are right; NaN leaves a label out of a sample. One
thing carries the chapter: several positives must not compete with each other as they do in a softmax (:class:`ListwiseSoftmaxLoss`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, nonzero
from components.losses.ranking import check_relevance, reduce_queries
from components.validation import require


class DecoupledSoftmaxLoss(Loss):
    r"""Softmax loss in which each positive competes with the negatives alone.

    .. math:: \ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} y_{ip}\,\log\!\left(1 + \sum_{n \notin P_i} e^{s_{in} - s_{ip}}\right)

    The plain softmax takes a positive's high score for a fault of the other positives; here another positive changes nothing. With one positive
    it is cross-entropy.

    Try it where samples have several labels and the scores come from a dual encoder, whose labels cannot be weighed one by one.

    A sample without a positive counts with 0. To train on one sampled positive a step, as the paper does for the largest sets, take
    ``loss=sampled_softmax`` in ``task=ranking``.

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, L), for a dual encoder cosines over a temperature (0.05 in the paper); target_multi_hot (N, L), 0 for a negative, else the
        positive's weight *y* in (0, 1]; NaN for a label that is left out.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, 1].

    Source:
        Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification", ICLR 2024, arXiv:2310.10636, sec. 4.2; the authors' code:
        github.com/nilesh2797/DEXML.
    """

    dense: ClassVar[bool] = False

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        relevance, kept = check_relevance(logits, target_multi_hot)
        scores = logits.to(relevance.dtype)
        positive = relevance > 0
        # a large negative number instead of -inf: a row without negatives has NaN gradients otherwise
        of_negatives = scores.masked_fill(positive | ~kept, torch.finfo(scores.dtype).min / 4).logsumexp(1, keepdim=True)
        costs = relevance * F.softplus(of_negatives - scores)
        return reduce_queries(costs.sum(1) / nonzero(positive.sum(1)), kept, self.reduction, logits.dtype)


class SoftTopKLoss(Loss):
    r"""Log-likelihood of the positives under a soft top-*k*: made for precision and recall at one *k*.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} y_{ip} \log \sigma\big(\alpha (s_{ip} + t_i)\big), \qquad
              t_i \text{ such that } \sum_j \sigma\big(\alpha (s_{ij} + t_i)\big) = k

    *k* of the labels' mass of 1 each is to be had: a positive below the threshold pulls itself up and pushes down what lies about the threshold,
    :math:`\partial \log \sigma_i / \partial s_j = \alpha (1 - \sigma_i) (\delta_{ij} - v_j / \sum_l v_l)` with :math:`v = \sigma (1 - \sigma)`. What is
    safely inside gets no gradient.

    Try it where *k* results are shown and nobody cares for the rest.

    A sample without a positive, or with one label alone, counts with 0.

    Args:
        k: how many labels make the cut, >= 1; None: as many as the sample has positives. At most one less than there are labels.
        alpha: :math:`\alpha` > 0, sharpness: large is the hard top-*k*.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, L); target_multi_hot (N, L), 0 for a negative, else the positive's weight *y* in (0, 1]; NaN for a label that is left out.

    Raises:
        ValueError: if ``k < 1``, ``alpha <= 0``, shapes disagree or a target lies outside [0, 1].

    Source:
        Gupta et al., "Dual-Encoders for Extreme Multi-Label Classification", ICLR 2024, arXiv:2310.10636, sec. 4.3; the authors' code:
        github.com/nilesh2797/DEXML.
    """

    dense: ClassVar[bool] = False

    def __init__(self, k: int | None = 5, alpha: float = 2.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(k is None or k >= 1, "k must be >= 1, or None for as many as there are positives", k)
        require(alpha > 0, "alpha must be > 0", alpha)
        self.k = k
        self.alpha: float | Tensor = alpha

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        relevance, kept = check_relevance(logits, target_multi_hot)
        positive, count = relevance > 0, kept.sum(1)
        k = positive.sum(1).clamp(min=1) if self.k is None else torch.full_like(count, self.k)
        possible = (count >= 2).unsqueeze(1)
        k = torch.minimum(k, count - 1)
        log_y = log_soft_top_k(logits.to(relevance.dtype), torch.where(count >= 2, k, 1), self.alpha, kept | ~possible)
        costs = torch.where(positive & possible, -relevance * log_y, torch.zeros_like(log_y))
        return reduce_queries(costs.sum(1) / nonzero(positive.sum(1)), kept, self.reduction, logits.dtype)


def soft_top_k(scores: Tensor, k: int | Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    r"""Soft indicators :math:`y_j = \sigma(\alpha (s_j + t))` that add up to ``k`` in each row; shifting the scores changes nothing.

    Args:
        scores: (N, L), L >= 2.
        k: in (0, L), one number or (N,).
        alpha: sharpness > 0.

    Raises:
        ValueError: if ``k`` is not in (0, L).
    """
    return log_soft_top_k(scores, k, alpha).exp()


def log_soft_top_k(scores: Tensor, k: int | Tensor, alpha: float | Tensor = 1.0, kept: Tensor | None = None) -> Tensor:
    """Logarithms of :func:`soft_top_k`; entries outside ``kept`` (N, L) take no part, and mean nothing."""
    if isinstance(k, int):
        require(0 < k < scores.shape[1], f"k must be in 1 … {scores.shape[1] - 1} (less than the number of scores)", k)
        k = torch.full(scores.shape[:1], k, device=scores.device)
    if kept is None:
        kept = torch.ones_like(scores, dtype=torch.bool)
    if not scores.numel():
        return scores
    # where the row lies does not matter: near 0 its differences keep their digits
    lowest = torch.finfo(scores.dtype).min
    top = scores.detach().masked_fill(~kept, lowest).amax(1, keepdim=True)
    scores = torch.where(kept, scores - top, torch.zeros_like(scores))
    return F.logsigmoid(alpha * (scores + threshold(scores, k, alpha, kept)))


def threshold(scores: Tensor, k: Tensor, alpha: float | Tensor, kept: Tensor) -> Tensor:
    r"""(N, 1): the *t* with :math:`\sum_j \sigma(\alpha(s_j + t)) = k`, with its first and second derivatives with respect to the scores.

    The value comes from bisection. :math:`\partial t / \partial s = -w`, :math:`w = v / \sum v`, computed as a softmax of :math:`\log v`, because far
    from the threshold all of *v* may underflow. Around the scores :math:`s_0` at hand, :math:`t = t_0 - w_0 \cdot \delta - \frac12 \delta^\top w' \delta`
    with :math:`\delta = s - s_0 = 0`, and that is what is written down for autograd.
    """
    fixed = scores.detach()
    found = bisection(fixed, k, alpha, kept)
    moved = scores - fixed
    first = found - (weights_at(fixed, found, alpha, kept) * moved).sum(1, keepdim=True)
    weights = weights_at(scores, first, alpha, kept)
    return found - (0.5 * (weights + weights.detach()) * moved).sum(1, keepdim=True)


def weights_at(scores: Tensor, t: Tensor, alpha: float | Tensor, kept: Tensor) -> Tensor:
    """*w*: how much each score moves the threshold; 0 outside ``kept``."""
    u = alpha * (scores + t)
    log_v = F.logsigmoid(u) + F.logsigmoid(-u)
    return log_v.masked_fill(~kept, torch.finfo(log_v.dtype).min / 4).softmax(1) * kept


@torch.no_grad()
def bisection(scores: Tensor, k: Tensor, alpha: float | Tensor, kept: Tensor) -> Tensor:
    """(N, 1): the threshold, between what it would be were all scores the largest, and were all the smallest.

    Where top and rest lie far apart the sum is *k* to the last digit over a wide interval; the first hit in it stays.
    """
    extreme = torch.finfo(scores.dtype).max
    share = k.to(scores.dtype).unsqueeze(1) / kept.sum(1, keepdim=True)
    middle = torch.logit(torch.where(share < 1, share, 0.5)) / alpha  # one score alone has no threshold, but has to have a number
    low = middle - scores.masked_fill(~kept, -extreme).amax(1, keepdim=True)
    high = middle - scores.masked_fill(~kept, extreme).amin(1, keepdim=True)
    wanted = k.to(scores.dtype).unsqueeze(1)
    for _ in range(60 if scores.dtype == torch.float64 else 40):  # to the last digit of scores that lie 1e4 apart
        t = 0.5 * (low + high)
        total = ((alpha * (scores + t)).sigmoid() * kept).sum(1, keepdim=True)
        low, high = torch.where(total > wanted, low, t), torch.where(total < wanted, high, t)
    return 0.5 * (low + high)

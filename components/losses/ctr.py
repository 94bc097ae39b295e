r"""Click-through rates: losses of predicted click probabilities, for models of several branches and for auctions.

``logits`` and ``target_multi_hot`` are those of binary classification: (N, 1) for impressions, (N, n) for auctions of *n* ads, one auction a row.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, check_same_shape, is_readable, nonzero, reduce_values
from components.losses.ranking import check_relevance, reduce_queries
from components.validation import require, require_choice


class TriBCELoss(Loss):
    r"""Binary cross-entropy of a model with branches that also trains each branch that is worse than the whole, by how much it is worse.

    .. math:: L = \mathrm{BCE}(z, y) + \sum_k w_k\,\mathrm{BCE}(z_k, y), \qquad w_k = \max\big(0,\; \mathrm{BCE}(z_k, y) - \mathrm{BCE}(z, y)\big)

    with BCE the mean over the batch, *z* the fused logit and :math:`z_k` those of the branches. Where *z* is their mean, BCE's convexity gives the
    worse branch a positive weight unless the branches agree. The paper has two branches, hence "Tri"; its code lets gradients flow through the weights,
    its text calls them weights: ``detach_weights``.

    Try it on models of parallel branches (explicit crosses beside another network), where a fused loss alone lets one branch idle.

    Under DDP the batch is gathered over the ranks first, as the weights are the whole batch's.

    Args:
        detach_weights: no gradient through :math:`w_k`.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per logit, shaped like ``logits``; the weights are the batch's).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C = 1 for clicks; branch_logits (N, C, …, K); target_multi_hot like ``logits``, values in [0, 1], NaN
        where unknown.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, 1].

    Source:
        Li et al., "FCN: Fusing Exponential and Linear Cross Network for Click-Through Rate Prediction", 2024, arXiv:2407.13349; the authors' code:
        github.com/salmon1802/FCN.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, *, detach_weights: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.detach_weights = detach_weights

    def forward(self, logits: Tensor, branch_logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        if logits.ndim < 2:
            raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …), but got {tuple(logits.shape)}")
        if branch_logits.ndim != logits.ndim + 1 or branch_logits.shape[:-1] != logits.shape:
            raise ValueError(f"branch_logits must have shape {tuple(logits.shape)} + (K,), but got {tuple(branch_logits.shape)}")
        check_same_shape("target_multi_hot", target_multi_hot, "logits", logits)
        target, kept = check_relevance(logits.flatten(1), target_multi_hot.flatten(1))
        target, known = target.view_as(logits), kept.view_as(logits).to(target.dtype)
        fused = F.binary_cross_entropy_with_logits(logits.to(target.dtype), target, reduction="none")
        branches = F.binary_cross_entropy_with_logits(
            branch_logits.to(target.dtype), target.unsqueeze(-1).expand_as(branch_logits), reduction="none"
        )
        count = nonzero(known.sum())
        worse = ((branches * known.unsqueeze(-1)).flatten(0, -2).sum(0) - (fused * known).sum()) / count
        weights = worse.relu().detach() if self.detach_weights else worse.relu()
        return reduce_values(fused + (branches * weights).sum(-1), known, self.reduction).to(logits.dtype)


def fuse_branches(branch_logits: Tensor, fuse: str) -> Tensor:
    """(…, K) -> (…): the mean of the logits (``logit``), or the logit of the mean probability (``probability``), in the log domain."""
    if fuse == "logit":
        return branch_logits.mean(-1)
    return F.logsigmoid(branch_logits).logsumexp(-1) - F.logsigmoid(-branch_logits).logsumexp(-1)


class WelfareRankLoss(Loss):
    r"""Pairs of ads in one auction in the order of their worth (bid x click rate), weighted by how much welfare the wrong order costs.

    .. math:: \ell = \sum_{i \ne j} \big(b_i y_i - b_j y_j\big)_+\; \phi\big(\sigma\,(b_i f_i - b_j f_j)\big), \qquad
              \phi(u) = \log(1 + e^{-u}) \text{ or } \max(0, 1 - u)

    for one auction with bids *b*, labels *y* and predicted click rates :math:`f = \mathrm{sigmoid}(z)`; the auction is won by the largest
    :math:`b_i f_i`, and with :math:`\phi` a step the loss bounds the welfare that is lost. Clicks make noisy weights (the positive part of a mean
    is not the mean of positive parts): with ``labels="teacher"`` a teacher's click rates stand for *y*.

    Try it where the model is too small to fit click rates everywhere, and errors between ads of different worth are the ones that cost. The
    loss knows worth, not probability: to keep *f* calibrated add ``+loss@auxiliary.bce=bce``.

    The positive part, the margin 1 of the hinge, :math:`\sigma` and the plain sum over pairs are our reading: of the paper its abstract was at hand,
    which has the weighted rank loss, its welfare guarantee and the teacher's labels. Memory: :math:`O(N n^2)`.

    Args:
        link: :math:`\phi`: ``"log"`` | ``"hinge"``.
        labels: *y*: ``"clicks"`` (``target_multi_hot``) | ``"teacher"`` (the sigmoid of ``teacher_logits``).
        sharpness: :math:`\sigma` > 0.
        per_pair: divide by the number of pairs of the auction.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per auction).

    Shapes:
        logits, target_multi_hot, bids and teacher_logits (N, n), an auction a row; bids >= 0; clicks in [0, 1], NaN for an ad that takes no part.

    Raises:
        ValueError: if ``sharpness <= 0``, shapes disagree, a value is out of its range, or ``labels="teacher"`` and there are no ``teacher_logits``.

    Source:
        Lyu et al., "Pairwise Ranking Losses of Click-Through Rates Prediction for Welfare Maximization in Ad Auctions", ICML 2023, arXiv:2306.01799.
    """

    dense: ClassVar[bool] = False

    def __init__(
        self,
        *,
        link: Literal["log", "hinge"] = "log",
        labels: Literal["clicks", "teacher"] = "clicks",
        sharpness: float = 1.0,
        per_pair: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("link", link, ("log", "hinge"))
        require_choice("labels", labels, ("clicks", "teacher"))
        require(sharpness > 0, "sharpness must be > 0", sharpness)
        self.link, self.labels, self.per_pair = link, labels, per_pair
        self.sharpness: float | Tensor = sharpness

    def forward(self, logits: Tensor, target_multi_hot: Tensor, bids: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        clicks, kept = check_relevance(logits, target_multi_hot)
        check_same_shape("bids", bids, "logits", logits)
        if is_readable(bids) and bool((bids < 0).any()):
            raise ValueError(f"bids must be >= 0, but got {float(bids.min())}")
        if self.labels == "teacher":
            if teacher_logits is None:
                raise ValueError('labels="teacher" needs teacher_logits, but got None (task=auctions offers them)')
            check_same_shape("teacher_logits", teacher_logits, "logits", logits)
            clicks = teacher_logits.to(clicks.dtype).sigmoid()
        bids = torch.where(kept, bids, torch.zeros_like(bids)).to(clicks.dtype)
        both = kept.unsqueeze(2) & kept.unsqueeze(1)
        weights = pairs(bids * clicks).relu() * both
        margins = self.sharpness * pairs(bids * logits.to(clicks.dtype).sigmoid())
        costs = F.softplus(-margins) if self.link == "log" else (1 - margins).relu()
        values = (weights * costs).sum((1, 2))
        if self.per_pair:
            values = values / nonzero(both.sum((1, 2)) - kept.sum(1))
        return reduce_queries(values, kept, self.reduction, logits.dtype)


def pairs(values: Tensor) -> Tensor:
    """(N, n) -> (N, n, n): the difference of the first and the second of each pair."""
    return values.unsqueeze(2) - values.unsqueeze(1)

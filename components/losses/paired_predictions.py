r"""Pairs of predictions: what the classifier says of two samples of one class should agree, of two classes differ."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_target, nonzero, reduce_values
from components.losses.metric_learning import dot_products, pair_masks
from components.validation import require


class PFIDLoss(Loss):
    r"""PFID: cross-entropy plus a loss on pairs of predicted distributions, near within a class and a margin apart between classes.

    .. math:: L = \operatorname*{mean}_i \mathrm{CE}_i + \lambda \Big[ \operatorname*{mean}_{y_i = y_j} \big(K_{ij} + K_{ji}\big)
                 + \operatorname*{mean}_{y_i \ne y_j} \big([m - K_{ij}]_+ + [m - K_{ji}]_+\big) \Big], \qquad K_{ij} = \mathrm{KL}(p_i \Vert p_j)

    over all pairs of the batch, with :math:`p = \mathrm{softmax}(z)`. ``none`` gives each sample's cross-entropy and its share of the pairs' means.

    That the loss is cross-entropy plus one on positive and negative pairs is the paper's; the divergence with a hinge, both ways round, is our reading: it
    is the form of Hsu and Kira (2015, margin 2), which the authors' related work builds on.

    Try it where few samples of each class are at hand and the features are used for verification afterwards.

    Args:
        margin: *m* >= 0, in nats.
        pairs: :math:`\lambda` >= 0, weight of the pairs; 0 is cross-entropy.
        hold_first: let no gradient through the first distribution of each divergence (Hsu and Kira).
        ignore_index: target value of samples that are neither classified nor paired.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, C), raw; target (N,), class indices. Memory O(N²).

    Raises:
        ValueError: if ``margin`` or ``pairs`` < 0, shapes disagree or a target lies outside [0, C).

    Source:
        Shukla et al., "Primate Face Identification in the Wild", PRICAI 2019, arXiv:1907.02642; Hsu and Kira, "Neural network-based clustering using
        pairwise constraints", 2015, arXiv:1511.06321.
    """

    dense: ClassVar[bool] = False
    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        margin: float = 2.0,
        *,
        pairs: float = 1.0,
        hold_first: bool = False,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin >= 0, "margin must be >= 0", margin)
        require(pairs >= 0, "pairs must be >= 0", pairs)
        self.margin: float | Tensor = margin
        self.pairs: float | Tensor = pairs
        self.hold_first = hold_first

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_target(logits, target, self.ignore_index)
        if logits.ndim != 2:
            raise ValueError(f"logits must have shape (N, C), but got {tuple(logits.shape)}")
        log_p = F.log_softmax(logits.to(at_least_float32(logits.dtype)), dim=1)
        kept = target != self.ignore_index
        entropy = -log_p.gather(1, target.masked_fill(~kept, 0).unsqueeze(1)).squeeze(1)
        divergence = divergences(log_p, hold_first=self.hold_first)
        same, different = pair_masks(target, self.ignore_index)
        apart = (self.margin - divergence).relu()
        of_pairs = self.share(divergence + divergence.T, same, kept) + self.share(apart + apart.T, different, kept)
        return reduce_values(entropy + self.pairs * of_pairs, kept.to(entropy.dtype), self.reduction).to(logits.dtype)

    @staticmethod
    def share(values: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        """(N,) shares whose mean over the kept samples is the mean over the masked pairs."""
        return torch.where(mask, values, torch.zeros_like(values)).sum(1) * (kept.sum() / nonzero(mask.sum()))


def divergences(log_p: Tensor, *, hold_first: bool = False) -> Tensor:
    """(N, N) KL(p_i ‖ p_j) of distributions given by their logarithms (N, C)."""
    first = log_p.detach() if hold_first else log_p
    p = first.exp()
    return (p * first).sum(1, keepdim=True) - dot_products(p, log_p)

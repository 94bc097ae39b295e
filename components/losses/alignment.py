"""Alignment of two views: an embedding of the one finds that of the other, among all of the batch, in both directions.

The views may be of different kinds (a text and a picture): each has its encoder, and only embeddings of different views are compared, by cosine.
The element is the pair. Under DDP the batch is gathered over the ranks first (``pairwise``).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, check_same_shape, reduce_values
from components.losses.metric_learning import dot_products, unit_length
from components.validation import require, require_choice

Negatives = Literal["soft", "hardest", "sum"]


class TripletAlignmentLoss(Loss):
    r"""Triplet alignment loss: a bound on the hardest-negative triplet loss that looks at all negatives, for pairs that may be wrong.

    With :math:`S_{ij}` the cosine of view 1 of *i* and view 2 of *j*, and *P(i)* the pairs of the identity of *i*,

    .. math:: S_i^+ = \sum_{j \in P(i)} \alpha_{ij} S_{ij}, \quad \alpha_{ij} = \operatorname*{softmax}_{j \in P(i)} S_{ij} / \tau, \qquad
              \ell_i = \Big[m - S_i^+ + \tau \log \sum_{j \notin P(i)} e^{S_{ij} / \tau}\Big]_+

    and a pair's value is the sum of both directions, of :math:`S` and of :math:`S^\top`. No gradient passes through :math:`\alpha`. With the batch's
    single hardest negative in the place of the logarithm it is the triplet ranking loss (TRL), which the loss lies above, by
    :math:`2 \tau \log(N - 1)` at most, and becomes as :math:`\tau \to 0`. A pair without negatives has value 0.

    Try it where some pairs are mismatched: a mismatched pair's hardest negative is a right one, and TRL, which sees nothing else, collapses first.
    The paper sums over the batch where ``"mean"`` here leaves the size to the learning rate. Takes :math:`O(N^2)` memory.

    Args:
        margin: *m* > 0, of cosines.
        temperature: :math:`\tau` > 0; lower looks harder at the hardest negatives. The paper's runs: 0.015.
        negatives: ``"soft"`` (the formula: TAL) | ``"hardest"`` (the largest negative alone: TRL, hard) | ``"sum"`` (the hinges of all negatives
            added up, TRL-S; not defined exactly by the paper: our reading).
        ignore_index: target value of pairs that are neither anchors nor compared with.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per pair).

    Shapes:
        projections_1, projections_2 (N, D), raw; target (N,), the pairs' identities.

    Raises:
        ValueError: if ``margin`` or ``temperature`` is <= 0, ``negatives`` is unknown, or shapes disagree.

    Source:
        Qin et al., "Noisy-Correspondence Learning for Text-to-Image Person Re-identification", CVPR 2024, arXiv:2308.09911; TRL: Faghri et al.,
        "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018, arXiv:1707.05612. (The authors' code for TRL takes positives
        for negatives of cosine 0; here positives are left out.)
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        margin: float = 0.1,
        temperature: float = 0.015,
        *,
        negatives: Negatives = "soft",
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin > 0, "margin must be > 0", margin)
        require(temperature > 0, "temperature must be > 0", temperature)
        require_choice("negatives", negatives, ("soft", "hardest", "sum"))
        self.margin: float | Tensor = margin
        self.temperature: float | Tensor = temperature
        self.negatives: Negatives = negatives

    def forward(self, projections_1: Tensor, projections_2: Tensor, target: Tensor) -> Tensor:
        check_pairs(projections_1, projections_2)
        if target.shape != projections_1.shape[:1] or target.dtype != torch.long:
            shape = tuple(projections_1.shape[:1])
            raise ValueError(f"target must hold one identity (torch.long) a pair, shape {shape}, but got {target.dtype} {tuple(target.shape)}")
        similarity = dot_products(unit_length(projections_1), unit_length(projections_2))
        kept = target != self.ignore_index
        both = kept.unsqueeze(0) & kept.unsqueeze(1)
        same = target.unsqueeze(0) == target.unsqueeze(1)
        positive, negative = same & both, ~same & both
        values = self.one_way(similarity, positive, negative) + self.one_way(similarity.T, positive, negative)
        return reduce_values(values, kept.to(values.dtype), self.reduction).to(projections_1.dtype)

    def one_way(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(N,): for each row, the loss of finding its positives among the columns."""
        scaled = similarity / self.temperature
        alpha = masked(scaled, positive).softmax(1).detach()
        nearest = torch.where(positive, alpha * similarity, 0.0).sum(1)
        if self.negatives == "sum":
            hinges = (self.margin - nearest.unsqueeze(1) + similarity).relu()
            return torch.where(negative, hinges, 0.0).sum(1)
        if not similarity.shape[1]:
            return nearest
        hardest = self.negatives == "hardest"
        wrong = masked(similarity, negative).amax(1) if hardest else self.temperature * masked(scaled, negative).logsumexp(1)
        return (self.margin - nearest + wrong).relu()


class SymmetricInfoNCELoss(Loss):
    r"""Symmetric InfoNCE, as in CLIP: of all second views of the batch pick a pair's own, and the other way round.

    .. math:: \ell_i = -\tfrac12 \log \frac{e^{S_{ii} / \tau}}{\sum_j e^{S_{ij} / \tau}} - \tfrac12 \log \frac{e^{S_{ii} / \tau}}{\sum_j e^{S_{ji} / \tau}}

    with :math:`S_{ij}` the cosine of view 1 of *i* and view 2 of *j*. Unlike ``info_nce`` it never compares two embeddings of the same view.

    Try it first on pairs of two kinds (text and picture). Two pairs of one identity are each other's negatives. Takes :math:`O(N^2)` memory.

    Args:
        temperature: :math:`\tau` > 0. CLIP starts from 0.07 and learns it; here it stays.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per pair).

    Shapes:
        projections_1, projections_2 (N, D), raw.

    Raises:
        ValueError: if ``temperature <= 0`` or shapes disagree.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020, figure 3.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.07, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.temperature: float | Tensor = temperature

    def forward(self, projections_1: Tensor, projections_2: Tensor) -> Tensor:
        check_pairs(projections_1, projections_2)
        scaled = dot_products(unit_length(projections_1), unit_length(projections_2)) / self.temperature
        values = 0.5 * (scaled.logsumexp(0) + scaled.logsumexp(1)) - scaled.diagonal()
        return self.reduce(values.to(projections_1.dtype))


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """``scores`` with a very low number outside ``mask``: under logsumexp it vanishes, and a row of nothing else stays finite (-inf would not)."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 4)


def check_pairs(projections_1: Tensor, projections_2: Tensor) -> None:
    if projections_1.ndim != 2:
        raise ValueError(f"projections_1 must have shape (N, D), but got {tuple(projections_1.shape)}")
    check_same_shape("projections_2", projections_2, "projections_1", projections_1)

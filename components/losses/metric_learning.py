"""Metric learning: embeddings of one class close together, of different classes apart.

These losses compare the samples of a batch with each other; under DDP the batch is gathered over the ranks first (``pairwise``).
The element is the anchor: ``none`` gives one value per sample. An anchor without the company that the loss needs (no other sample of its class, or
none of another class) is ignored, and a sample with ``target == ignore_index`` is neither an anchor nor anybody's company.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, nonzero, reduce_values
from components.validation import require, require_choice

Distance = Literal["euclidean", "squared_euclidean", "cosine"]


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M), in float32 at least: autocast would round cosines to two digits."""
    precise = at_least_float32(a.dtype)
    a, b = a.to(precise), b.to(precise)
    if a.device.type == "meta" or not torch.is_autocast_enabled(a.device.type):
        return a @ b.T
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def unit_length(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least (the square of a half-precision 1e4 overflows float16)."""
    return F.normalize(embeddings.to(at_least_float32(embeddings.dtype)), dim=1)


def check_labelled_embeddings(embeddings: Tensor, target: Tensor) -> None:
    """Refuse embeddings that are not (N, D) or labels that are not (N,) integers.

    Raises:
        ValueError: naming ``embeddings`` or ``target``.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape (N, D), but got {tuple(embeddings.shape)}")
    if target.shape != embeddings.shape[:1]:
        raise ValueError(f"target must hold one class a sample, shape {tuple(embeddings.shape[:1])}, but got {tuple(target.shape)}")
    if target.dtype != torch.long:
        raise ValueError(f"target must hold class indices (torch.long), but got {target.dtype}")


def pair_masks(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(N, N) boolean masks: pairs of the same class (without self), pairs of different classes; none with an ignored sample."""
    kept = target != ignore_index
    both = kept.unsqueeze(0) & kept.unsqueeze(1)
    same = target.unsqueeze(0) == target.unsqueeze(1)
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    return same & both & ~itself, ~same & both


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Row means of the masked entries; 0 for a row without any."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(1) / nonzero(mask.sum(1))


class TripletLoss(Loss):
    r"""Triplet loss with semi-hard negatives: an anchor is nearer to its own class than to any other, by a margin.

    .. math:: \ell_a = \frac{1}{|P(a)|} \sum_{p \in P(a)} \max\big(0,\; d(a, p) - d(a, n_{ap}) + m\big)

    *P(a)* are the other samples of the anchor's class. :math:`n_{ap}` is the nearest sample of another class that is farther away than *p* (semi-hard);
    where no negative is, the farthest one. Mining costs :math:`O(N^2 \log N)` time and :math:`O(N^2)` memory for a batch of *N*.

    Args:
        margin: *m* > 0, in the unit of the distance.
        distance: ``"squared_euclidean"`` (the paper's) | ``"euclidean"`` | ``"cosine"`` (1 - cosine).
        normalize: scale embeddings to length 1 first, as the paper does.
        ignore_index: target value of samples that take part in no triplet.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices.

    Raises:
        ValueError: if ``margin <= 0``, the distance is unknown, or shapes disagree.

    Source:
        Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015, arXiv:1503.03832, sec. 3.2.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        margin: float = 0.2,
        *,
        distance: Distance = "squared_euclidean",
        normalize: bool = True,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin > 0, "margin must be > 0", margin)
        require_choice("distance", distance, ("euclidean", "squared_euclidean", "cosine"))
        self.margin: float | Tensor = margin
        self.distance: Distance = distance
        self.normalize = normalize

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        positive, negative = pair_masks(target, self.ignore_index)
        distances = self.distances(embeddings)
        costs = (distances - self.semi_hard_negatives(distances, negative) + self.margin).relu()
        has_triplet = (positive.any(1) & negative.any(1)).to(costs.dtype)
        return reduce_values(mean_where(costs, positive), has_triplet, self.reduction).to(embeddings.dtype)

    def distances(self, embeddings: Tensor) -> Tensor:
        """(N, N) distances between all pairs."""
        if self.normalize or self.distance == "cosine":
            embeddings = unit_length(embeddings)
        products = dot_products(embeddings, embeddings)
        if self.distance == "cosine":
            return 1 - products
        squares = products.diagonal()
        squared = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * products).clamp(min=0)
        if self.distance == "squared_euclidean":
            return squared
        apart = squared > 0  # the root's slope at 0 is infinite; twins get distance 0 and no gradient
        return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))

    @staticmethod
    def semi_hard_negatives(distances: Tensor, negative: Tensor) -> Tensor:
        """(N, N): for each pair (a, p), the distance from a to the nearest negative beyond p, else to the farthest negative."""
        farther_than_all = torch.finfo(distances.dtype).max
        sorted_negatives = distances.masked_fill(~negative, farther_than_all).sort(1).values
        count = negative.sum(1, keepdim=True)
        beyond = torch.searchsorted(sorted_negatives.detach(), distances.detach(), right=True)
        return sorted_negatives.gather(1, torch.minimum(beyond, count - 1).clamp(min=0))


class SupervisedContrastiveLoss(Loss):
    r"""Supervised contrastive loss: of all samples of the batch, those of the anchor's class should be the most similar to it.

    .. math:: \ell_i = \frac{-1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    with *z* the embeddings scaled to length 1 and *P(i)* the other samples of the class of *i*. (The paper's :math:`L_{out}`, the better of its two;
    its code multiplies by a constant ``temperature / base_temperature``, left to the learning rate here.)

    Args:
        temperature: :math:`\tau` > 0; lower looks harder at the nearest samples. Best in the paper: 0.1.
        ignore_index: target value of samples that are neither anchors nor compared with.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per anchor).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices.

    Raises:
        ValueError: if ``temperature <= 0`` or shapes disagree.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv:2004.11362, eq. 2.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.1, *, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.temperature: float | Tensor = temperature

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        positive, negative = pair_masks(target, self.ignore_index)
        z = unit_length(embeddings)
        similarity = dot_products(z, z) / self.temperature
        log_p = log_softmax_where(similarity, positive | negative)
        return reduce_values(-mean_where(log_p, positive), positive.any(1).to(log_p.dtype), self.reduction).to(embeddings.dtype)


def log_softmax_where(scores: Tensor, mask: Tensor) -> Tensor:
    """Row-wise log-softmax over the masked entries (entries outside, and rows without any, are finite and mean nothing)."""
    # a large negative number instead of -inf: a row of -inf alone has NaN gradients
    lowest = torch.finfo(scores.dtype).min / 4
    return scores - scores.masked_fill(~mask, lowest).logsumexp(1, keepdim=True)

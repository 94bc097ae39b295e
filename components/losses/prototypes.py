r"""Few-shot losses: class prototypes and neighbourhoods inside one batch.

An episode here is a batch with several samples of each of its classes (``data.samples_per_class``). Where the papers split an episode into support and
query, here every sample is a query in its turn and its class' prototype is the mean of the *others*: the same question, with nothing drawn at random
(our reading; for two samples of a class it is one-shot learning both ways).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, nonzero, reduce_values
from components.losses.metric_learning import check_labelled_embeddings, dot_products, unit_length
from components.validation import require


def precise(embeddings: Tensor, normalize: bool) -> Tensor:
    """In float32 at least, at length 1 if ``normalize``."""
    return unit_length(embeddings) if normalize else embeddings.to(at_least_float32(embeddings.dtype))


def squared_distances(points: Tensor, others: Tensor) -> Tensor:
    """(N, M), 0 at the least."""
    squares = points.square().sum(1, keepdim=True) + others.square().sum(1)
    return (squares - 2 * dot_products(points, others)).clamp(min=0)


def rooted(squared: Tensor, eps: float) -> Tensor:
    return (squared + eps).sqrt()


def to_prototypes(points: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances from every sample to its own prototype (without itself) and to the others' prototypes.

    Returns:
        (N,) to its own; (N, N) to the prototype of the class of sample *j*; (N, N) boolean, which *j* stand for another class, one each; rows of samples that
        cannot be asked (ignored, alone in their class) are all False.
    """
    kept = target != ignore_index
    same = (target.unsqueeze(0) == target.unsqueeze(1)) & kept.unsqueeze(0) & kept.unsqueeze(1)
    members = same.to(points.dtype)
    count = members.sum(1, keepdim=True)
    sums = members @ points
    first = ~same.tril(-1).any(1) & kept
    own = (points - (sums - points) / nonzero(count - 1)).square().sum(1)
    asked = kept & (count.squeeze(1) > 1)
    return own, squared_distances(points, sums / nonzero(count)), first.unsqueeze(0) & ~same & asked.unsqueeze(1)


class PrototypicalLoss(Loss):
    r"""Prototypical loss: softmax over the negative squared distances to the classes' prototypes.

    .. math:: \ell_i = -\log \frac{e^{-d^2(z_i,\, c_{y_i}^{(-i)})}}{e^{-d^2(z_i,\, c_{y_i}^{(-i)})} + \sum_{k \ne y_i} e^{-d^2(z_i, c_k)}}

    Try it for few-shot classification: training asks the question that is asked later, about other classes.

    Args:
        temperature: the squared distances are divided by it, > 0.
        normalize: scale embeddings to length 1 first (the paper does not).
        ignore_index: target value of samples that take no part.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. A sample alone in its class is no query (it still makes a prototype). Memory O(N²).

    Raises:
        ValueError: if ``temperature <= 0`` or shapes disagree.

    Source:
        Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv:1703.05175; every sample a query: our reading.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, *, normalize: bool = False, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.temperature: float | Tensor = temperature
        self.normalize = normalize

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        points = precise(embeddings, self.normalize)
        own, others, other = to_prototypes(points, target, self.ignore_index)
        scores = (-others / self.temperature).masked_fill(~other, torch.finfo(points.dtype).min / 4)
        own = (-own / self.temperature).unsqueeze(1)
        values = torch.cat([own, scores], 1).logsumexp(1) - own.squeeze(1)
        return reduce_values(values, other.any(1).to(values.dtype), self.reduction).to(embeddings.dtype)


class PrototypeTripletLoss(Loss):
    r"""Proto-triplet loss: a sample is nearer to its own class' prototype than to any other, by a margin.

    .. math:: \ell_i = \max\big(0,\; d(z_i, c_{y_i}^{(-i)}) - \min_{k \ne y_i} d(z_i, c_k) + m\big), \qquad d(a, b) = \sqrt{\lVert a - b \rVert^2 + 10^{-6}}

    Try it as a term beside :class:`PrototypicalLoss` or :class:`ICNNLoss`; prototypes make it calmer than triplets of samples.

    Args:
        margin: *m* > 0, in the unit of the distance.
        normalize: scale embeddings to length 1 first (the paper does not).
        ignore_index: target value of samples that take no part.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. A sample alone in its class is no query (it still makes a prototype). Memory O(N²).

    Raises:
        ValueError: if ``margin <= 0`` or shapes disagree.

    Source:
        Méndez-Ruiz et al., "SuSana Distancia is all you need", 2023, arXiv:2305.09062; every sample a query: our reading.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, margin: float = 0.5, *, normalize: bool = False, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(margin > 0, "margin must be > 0", margin)
        self.margin: float | Tensor = margin
        self.normalize = normalize

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        points = precise(embeddings, self.normalize)
        own, others, other = to_prototypes(points, target, self.ignore_index)
        far = torch.finfo(points.dtype).max / 4
        beyond = torch.full_like(own, far).unsqueeze(1)
        nearest = torch.cat([rooted(others, 1e-6).masked_fill(~other, far), beyond], 1).amin(1)
        asked = other.any(1)
        values = (rooted(own, 1e-6) - torch.where(asked, nearest, torch.zeros_like(nearest)) + self.margin).relu()
        return reduce_values(values, asked.to(values.dtype), self.reduction).to(embeddings.dtype)


class ICNNLoss(Loss):
    r"""ICNN loss: the inter- and intra-class nearest neighbours score of the batch, as a negative logarithm.

    .. math:: L = -\log \tfrac12 (\lambda + \gamma), \qquad \lambda = \tfrac12 (\lambda_s + \lambda_d)

    over each sample's *k* nearest others: :math:`\gamma` is the share of them that are of its class (no gradient);
    :math:`\lambda_s = 1 - \operatorname{mean}_i \operatorname{mean}_j d_{ij} / d_i^-` over neighbours of its class, with :math:`d_i^-` the nearest neighbour of
    another class among *k + 1* (each row divided by its maximum where that is above 1): 1 if classes are compact;
    :math:`\lambda_d` is the mean distance to neighbours of other classes over the greatest such distance: 1 if impostors are far, or if there are none.
    Distances are :math:`\sqrt{\lVert\cdot\rVert^2 + 10^{-6}}`. All of it is as in the released code, its fall-backs included: with *k + 2* samples or fewer,
    *k* becomes N - 2 and :math:`\gamma` 1.

    The paper applies it to an episode's support, to its queries or to both; here it sees the batch, which is "both". The score belongs to the batch, so
    ``none`` gives every sample the same value.

    Try it beside a classification loss when a few samples of each new class must do: it asks for compact, separated neighbourhoods at any scale.

    Args:
        neighbours: *k* >= 1.
        normalize: scale embeddings to length 1 first (the paper does not).
        ignore_index: target value of samples that take no part.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample, all the same).

    Shapes:
        embeddings (N, D), raw; target (N,), class indices. Fewer than three samples cost nothing. Memory O(N²), time O(N² log N).

    Raises:
        ValueError: if ``neighbours < 1`` or shapes disagree.

    Source:
        Méndez-Ruiz et al., "SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel distance-based loss functions
        for few-shot image classification", 2023, arXiv:2305.09062, with its released code; the score: García Ramírez et al., 2021.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, neighbours: int = 4, *, normalize: bool = False, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(neighbours >= 1, "neighbours must be >= 1", neighbours)
        self.neighbours = neighbours
        self.normalize = normalize

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        points = precise(embeddings, self.normalize)
        kept = target != self.ignore_index
        value = -self.score(points, target, kept).log()
        there = (kept & (kept.sum() > 2)).to(points.dtype)
        return reduce_values(value.expand(len(target)), there, self.reduction).to(embeddings.dtype)

    def score(self, points: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        """The score, a scalar: 1 is best."""
        size = kept.sum()
        if len(target) < 3:
            return points.sum() * 0 + 1
        k = (size - 2).clamp(min=1, max=self.neighbours)
        pairs = kept.unsqueeze(0) & kept.unsqueeze(1) & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
        far = torch.finfo(points.dtype).max / 4
        distances, order = rooted(squared_distances(points, points), 1e-6).masked_fill(~pairs, far).sort(1)
        place = torch.arange(len(target), device=target.device).unsqueeze(0)
        listed = (place <= k) & kept.unsqueeze(1) & (place < size - 1)  # k + 1 of them
        near = listed & (place < k)
        same = target[order] == target.unsqueeze(1)
        distances = torch.where(listed, distances, torch.zeros_like(distances))
        gamma = torch.where(self.neighbours + 2 < size, (near & same).sum() / (k * size), torch.ones_like(points[0, 0]))
        return ((self.compactness(distances, listed, near, same) + self.separation(distances, near, same)) / 2 + gamma) / 2

    @staticmethod
    def compactness(distances: Tensor, listed: Tensor, near: Tensor, same: Tensor) -> Tensor:
        impostor = listed & ~same
        far = torch.finfo(distances.dtype).max / 4
        nearest = distances.masked_fill(~impostor, far).amin(1, keepdim=True)
        relative = torch.where(near & impostor.any(1, keepdim=True), distances / (nearest + 1e-7), torch.zeros_like(distances))
        relative = relative / relative.amax(1, keepdim=True).clamp(min=1)
        companions = near & same
        of_sample = torch.where(companions, relative, torch.zeros_like(relative)).sum(1) / (companions.sum(1) + 1e-7)
        return 1 - of_sample.sum() / (companions.any(1).sum() + 1e-7)

    @staticmethod
    def separation(distances: Tensor, near: Tensor, same: Tensor) -> Tensor:
        impostors = near & ~same
        to_impostors = torch.where(impostors, distances, torch.zeros_like(distances))
        relative = to_impostors / (to_impostors.amax() + 1e-7)
        of_sample = relative.sum(1) / (impostors.sum(1) + 1e-7)
        mean = of_sample.sum() / (impostors.any(1).sum() + 1e-7)
        return torch.where(impostors.any(), mean, torch.ones_like(mean))

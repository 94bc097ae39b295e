"""Retrieval among embeddings: every sample is a query, all others are what is searched, those of its class are wanted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.validation import require, require_choice

QUERIES_AT_ONCE = 1024


class OfEmbeddings(Metric):
    """Base of metrics of all embeddings of a split at once: gathers them and their classes."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    embeddings: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, target: Tensor) -> None:
        self.embeddings.append(embeddings.float())
        self.target.append(target)


class Retrieval(OfEmbeddings):
    """Base of retrieval metrics; a subclass gives :meth:`depth` and :meth:`score`.

    Memory at the end is ``QUERIES_AT_ONCE`` x samples, not samples². The result is the mean over the queries that have another
    sample of their class, NaN if none has.

    Args:
        distance: ``cosine`` or ``euclidean``.
    """

    def __init__(self, distance: str = "cosine") -> None:
        super().__init__()
        require_choice("distance", distance, ("cosine", "euclidean"))
        self.distance = distance

    def depth(self, wanted: Tensor) -> int:
        """How many neighbours are looked at, given the number of wanted samples of each query."""
        raise NotImplementedError

    def score(self, hits: Tensor, wanted: Tensor) -> Tensor:
        """(Q,) scores from ``hits`` (Q, depth), whether the n-th neighbour is wanted, and ``wanted`` (Q,), how many there are."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        embeddings, target = dim_zero_cat(self.embeddings), dim_zero_cat(self.target).long()
        if self.distance == "cosine":
            embeddings = normalize(embeddings, dim=1)
        wanted = torch.bincount(target)[target] - 1
        depth = min(self.depth(wanted), len(target) - 1)
        if depth < 1:
            return torch.full((), torch.nan, device=target.device)
        scores = torch.cat([self.score(target[near] == target[queries, None], wanted[queries]) for queries, near in self.neighbours(embeddings, depth)])
        return scores[wanted > 0].mean()

    def neighbours(self, embeddings: Tensor, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries (Q,), a part at a time, and their ``depth`` nearest other samples (Q, depth), the nearest first."""
        for queries in torch.arange(len(embeddings), device=embeddings.device).split(QUERIES_AT_ONCE):
            if self.distance == "cosine":
                nearness = embeddings[queries] @ embeddings.T
            else:
                nearness = -torch.cdist(embeddings[queries], embeddings, compute_mode="donot_use_mm_for_euclid_dist")
            nearness[torch.arange(len(queries), device=queries.device), queries] = -torch.inf
            yield queries, nearness.topk(depth, dim=1).indices


class RecallAtK(Retrieval):
    """Recall@k of metric learning: share of queries with a sample of their class among the ``k`` nearest.

    Args:
        k: neighbours looked at.
        distance: ``cosine`` or ``euclidean``.

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Raises:
        ValueError: if ``k < 1`` or the distance is another.

    Source:
        Jégou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 33(1), 2011; for metric learning: Oh Song et al.,
        "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, arXiv:1511.06452.
    """

    def __init__(self, k: int = 1, distance: str = "cosine") -> None:
        super().__init__(distance)
        require(k >= 1, "k must be >= 1", k)
        self.k = k

    def depth(self, wanted: Tensor) -> int:
        return self.k

    def score(self, hits: Tensor, wanted: Tensor) -> Tensor:
        return hits.any(1).float()


class MAPAtR(Retrieval):
    r"""Mean average precision at R, with R the number of other samples of the query's class: ranks count, not only the first hit.

    .. math:: \mathrm{MAP@R} = \frac{1}{R} \sum_{i=1}^{R} P(i), \qquad P(i) = \text{precision at } i \text{ if the } i\text{-th neighbour is right, else } 0

    and the mean over queries.

    Args:
        distance: ``cosine`` or ``euclidean``.

    Shapes:
        embeddings (N, D); target (N,), class indices.

    Raises:
        ValueError: if the distance is another.

    Source:
        Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020, arXiv:2003.08505, section 3.2.
    """

    def depth(self, wanted: Tensor) -> int:
        return int(wanted.max())

    def score(self, hits: Tensor, wanted: Tensor) -> Tensor:
        rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        hits = hits & (rank <= wanted[:, None])
        precision = hits.cumsum(1) / rank
        return (precision * hits).sum(1) / wanted.clamp(min=1)

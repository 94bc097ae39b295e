"""Retrieval from one view of a pair to the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.metrics.retrieval import QUERIES_AT_ONCE
from components.validation import require, require_choice


class CrossModalRecall(Metric):
    r"""R@K of retrieval between two views: share of queries whose identity is among the ``k`` nearest of the other view, by cosine.

    .. math:: \mathrm{R@}k = \frac{1}{N} \sum_{i=1}^{N} \mathbb{1}\big[\, y_i \in \{y_j : j \in \text{the } k \text{ nearest to } i\} \,\big]

    All that the split holds of the other view is searched. Memory at the end is ``QUERIES_AT_ONCE`` x samples.

    Args:
        k: results looked at.
        direction: ``forward`` (the first view asks for the second) | ``backward`` | ``both`` (the mean of the two).

    Shapes:
        embeddings_1, embeddings_2 (N, D); target (N,), identities: with several pairs of one, any of them is right.

    Raises:
        ValueError: if ``k < 1`` or the direction is another.

    Source:
        Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015, arXiv:1412.2306, section 4.1.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    embeddings_1: list[Tensor]
    embeddings_2: list[Tensor]
    target: list[Tensor]

    def __init__(self, k: int = 1, direction: str = "both") -> None:
        super().__init__()
        require(k >= 1, "k must be >= 1", k)
        require_choice("direction", direction, ("forward", "backward", "both"))
        self.k, self.direction = k, direction
        for name in ("embeddings_1", "embeddings_2", "target"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, embeddings_1: Tensor, embeddings_2: Tensor, target: Tensor) -> None:
        self.embeddings_1.append(embeddings_1.float())
        self.embeddings_2.append(embeddings_2.float())
        self.target.append(target)

    def compute(self) -> Tensor:
        first, second = (normalize(dim_zero_cat(views), dim=1) for views in (self.embeddings_1, self.embeddings_2))
        target = dim_zero_cat(self.target)
        ways = {"forward": [(first, second)], "backward": [(second, first)], "both": [(first, second), (second, first)]}[self.direction]
        return torch.stack([self.recall(queries, searched, target) for queries, searched in ways]).mean()

    def recall(self, queries: Tensor, searched: Tensor, target: Tensor) -> Tensor:
        depth, hits = min(self.k, len(target)), []
        for part, wanted in zip(queries.split(QUERIES_AT_ONCE), target.split(QUERIES_AT_ONCE), strict=True):
            nearest = (part @ searched.T).topk(depth, dim=1).indices
            hits.append((target[nearest] == wanted.unsqueeze(1)).any(1))
        return torch.cat(hits).float().mean()

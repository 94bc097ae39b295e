"""Class centres that are learnt beside the embeddings and hold each class together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_class_indices
from components.losses.metric_learning import check_labelled_embeddings
from components.losses.pair_weighting import check_width
from components.validation import require


class CenterLoss(Loss):
    r"""Center loss: every embedding near its class' learnt centre. Alone it collapses: a term beside a loss that keeps classes apart.

    .. math:: \ell_i = \tfrac12 \lVert z_i - c_{y_i} \rVert^2

    The centres are parameters, moved by the optimizer with everything else (our reading; the paper moves each by a half of the batch's mean difference).

    Try it as ``+loss@auxiliary.center=center +auxiliary.center.weight=0.003`` beside a softmax loss; in ``task=classification`` on the model's features, with
    ``+auxiliary.center.inputs={embeddings: features} +auxiliary.center.embedding_dim=…``.

    Args:
        num_classes: number of centres (from the data).
        embedding_dim: size of the embeddings (from the task).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        embeddings (N, embedding_dim), raw; target (N,), class indices in [0, num_classes).

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, num_classes).

    Source:
        Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, eq. 2.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(num_classes >= 1, "num_classes must be >= 1", num_classes)
        self.num_classes = num_classes
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_dim))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        check_labelled_embeddings(embeddings, target)
        check_width(embeddings, self.centers)
        check_class_indices(target, embeddings.shape[:1], self.num_classes, self.ignore_index)
        own = self.centers.to(at_least_float32(embeddings.dtype))[target.masked_fill(target == self.ignore_index, 0)]
        return self.reduce((embeddings - own).square().sum(1) / 2, target).to(embeddings.dtype)

"""Self-supervised losses: two views of a sample agree, and differ from everything else. No labels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, check_same_shape
from components.losses.metric_learning import dot_products, unit_length
from components.validation import require


class InfoNCELoss(Loss):
    r"""NT-Xent, SimCLR's InfoNCE: pick out a sample's other view among all views of the batch.

    With :math:`z_1 … z_{2N}` the projections of both views scaled to length 1 and *j(i)* the other view of *i*,

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_{j(i)} / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    and a sample's loss is the mean over its two views.

    Args:
        temperature: :math:`\tau` > 0. SimCLR: 0.5 for CIFAR-10, 0.1 for ImageNet.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        projections_1, projections_2 (N, D), raw.

    Raises:
        ValueError: if ``temperature <= 0`` or shapes disagree.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709, eq. 1.
    """

    pairwise: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.5, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.temperature: float | Tensor = temperature

    def forward(self, projections_1: Tensor, projections_2: Tensor) -> Tensor:
        if projections_1.ndim != 2:
            raise ValueError(f"projections_1 must have shape (N, D), but got {tuple(projections_1.shape)}")
        check_same_shape("projections_2", projections_2, "projections_1", projections_1)
        z = unit_length(torch.cat([projections_1, projections_2]))
        similarity = dot_products(z, z) / self.temperature
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_total = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
        agreement = similarity.diagonal(len(projections_1))  # (N,): view 1 of each sample with its view 2
        values = 0.5 * log_total.reshape(2, len(projections_1)).sum(0) - agreement
        return self.reduce(values.to(projections_1.dtype))

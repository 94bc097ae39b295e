"""Adversarial calibration: a small head on a frozen encoder puts embeddings of attacked inputs back to where those of clean ones lie.

``task=adversarial_calibration`` attacks the inputs and trains the head; the losses here compare the embeddings. The element is the sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, check_class_indices, check_same_shape, reduce_values
from components.losses.metric_learning import dot_products, unit_length
from components.validation import require, require_choice

Mode = Literal["center_ce", "l2", "info_nce"]


class AdversarialCalibrationLoss(Loss):
    r"""Calibrates a head *h* on a frozen encoder *f* with attacked inputs :math:`x'`, in one of three ways, and keeps it harmless on clean ones.

    With :math:`z' = h(f(x'))` and :math:`z = f(x)` scaled to length 1, :math:`c_k` the fixed centres of the classes,

    .. math:: \ell_{\text{center\_ce}} = -\log \operatorname*{softmax}_k (z' \cdot c_k / \tau)_y, \qquad
              \ell_{\text{l2}} = \lVert z' - z \rVert^2, \qquad
              \ell_{\text{info\_nce}} = -\log \frac{e^{z'_i \cdot z_i / \tau}}{\sum_j e^{z'_i \cdot z_j / \tau}}

    each plus :math:`\lambda \lVert h(f(x)) - f(x) \rVert^2` of the clean input, with :math:`\lambda` = ``consistency``. No gradient reaches *z*.

    Try ``center_ce`` where labels are at hand, ``l2`` and ``info_nce`` where only inputs are. No code of the authors is public: that
    the regulariser is this squared distance, its weight 0.01 and :math:`\tau` = 0.07 are our reading. ``info_nce`` takes its negatives from the
    device's own batch, :math:`O(N^2)` memory.

    Args:
        mode: ``"center_ce"`` | ``"l2"`` | ``"info_nce"``.
        temperature: :math:`\tau` > 0; unused in mode ``l2``.
        consistency: :math:`\lambda \ge 0`; the larger the encoder's features, the smaller it has to be for the head to move at all.
        ignore_index: target value of samples that contribute nothing (and are nobody's negatives).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        adversarial_embeddings (N, D), h(f(x')); clean_embeddings (N, D), h(f(x)); teacher_features (N, D), f(x); all raw. class_centers (C, D);
        target (N,), class indices.

    Raises:
        ValueError: if ``mode`` is unknown, ``temperature <= 0``, ``consistency < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Liao et al., "Adversarial Robustness for Unified Multi-Modal Encoders via Efficient Calibration", 2025, arXiv:2505.11895.
    """

    def __init__(
        self,
        mode: Mode = "center_ce",
        *,
        temperature: float = 0.07,
        consistency: float = 0.01,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require_choice("mode", mode, ("center_ce", "l2", "info_nce"))
        require(temperature > 0, "temperature must be > 0", temperature)
        require(consistency >= 0, "consistency must be >= 0", consistency)
        self.mode: Mode = mode
        self.temperature: float | Tensor = temperature
        self.consistency: float | Tensor = consistency

    def forward(self, adversarial_embeddings: Tensor, clean_embeddings: Tensor, teacher_features: Tensor, class_centers: Tensor, target: Tensor) -> Tensor:
        if clean_embeddings.ndim != 2:
            raise ValueError(f"clean_embeddings must have shape (N, D), but got {tuple(clean_embeddings.shape)}")
        check_same_shape("adversarial_embeddings", adversarial_embeddings, "clean_embeddings", clean_embeddings)
        check_same_shape("teacher_features", teacher_features, "clean_embeddings", clean_embeddings)
        if class_centers.ndim != 2 or class_centers.shape[1] != clean_embeddings.shape[1]:
            raise ValueError(f"class_centers must have shape (C, {clean_embeddings.shape[1]}), but got {tuple(class_centers.shape)}")
        check_class_indices(target, clean_embeddings.shape[:1], len(class_centers), self.ignore_index)
        attacked, clean = unit_length(adversarial_embeddings), unit_length(teacher_features.detach())
        kept = target != self.ignore_index
        moved = (clean_embeddings.to(clean.dtype) - teacher_features.detach().to(clean.dtype)).square().sum(1)
        values = self.calibration(attacked, clean, unit_length(class_centers), target, kept) + self.consistency * moved
        return reduce_values(values, kept.to(values.dtype), self.reduction).to(clean_embeddings.dtype)

    def calibration(self, attacked: Tensor, clean: Tensor, centers: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        if self.mode == "l2":
            return (attacked - clean).square().sum(1)
        if self.mode == "center_ce":
            scores = dot_products(attacked, centers) / self.temperature
            right = target.masked_fill(~kept, 0)
        else:
            lowest = torch.finfo(attacked.dtype).min / 4
            scores = (dot_products(attacked, clean) / self.temperature).masked_fill(~kept.unsqueeze(0), lowest)
            right = torch.arange(len(target), device=target.device)
        return scores.logsumexp(1) - scores.gather(1, right.unsqueeze(1)).squeeze(1)

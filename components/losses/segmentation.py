"""Segmentation losses: overlap of predicted and true regions, beside the pixel-wise losses of :mod:`components.losses.classification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_target, reduce_values
from components.validation import require


class DiceLoss(Loss):
    r"""One minus the soft Dice overlap of each class: small regions count as much as large ones.

    .. math:: \ell = \sum_c \bar w_c \left( 1 - \frac{2 \sum_i p_{ic}\, y_{ic} + s}{\sum_i p_{ic} + \sum_i y_{ic} + s} \right),
              \qquad \bar w_c = \frac{w_c}{\sum_k w_k}, \quad p = \mathrm{softmax}(z)

    with *i* over the pixels of one image (``per_image=True``) or of the whole batch, those with ``target == ignore_index`` left out. Sums are taken
    in float32 at least. An image without a pixel left is itself ignored.

    Args:
        smooth: *s* > 0; a class that an image has not, and whose predicted mass is *m*, costs ``m / (m + s)``.
        per_image: the overlap of each image, then their mean; False: one overlap over the batch (less noisy for rare classes).
        square: squares in the denominator (:math:`p^2 + y^2`), as the V-Net paper has it; False is the form in wide use.
        weight: per-class weights of the classes' overlaps, shape (C,); 0 leaves a class (the background) out. An element is an image here and has no
            class, so this is a weighting *within* an element.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,); shape (1,) with ``per_image=False``).

    Shapes:
        logits (N, C, d1, …), raw; target (N, d1, …), class indices.

    Raises:
        ValueError: if ``smooth <= 0``, all weights are 0, shapes disagree or a target lies outside [0, C).

    Source:
        Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation", 3DV 2016, arXiv:1606.04797;
        multi-class: Sudre et al., 2017, arXiv:1707.03237.
    """

    exempt: ClassVar[Mapping[str, str]] = {"class_weight": "an element is an image, which has no class: weight acts among the classes within it"}

    def __init__(
        self,
        *,
        smooth: float = 1.0,
        per_image: bool = True,
        square: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(smooth > 0, "smooth must be > 0", smooth)
        require(self.weight is None or bool(self.weight.sum() > 0), "weight must have a value > 0", weight)
        self.smooth: float | Tensor = smooth
        self.per_image = per_image
        self.square = square

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_target(logits, target, self.ignore_index)
        num_images, num_classes = logits.shape[:2]
        self.check_weight(num_classes)
        precise = at_least_float32(logits.dtype)
        labels = target.reshape(num_images, target[:1].numel())  # a size, not -1: the batch may be empty
        kept = labels != self.ignore_index
        p = logits.reshape(num_images, num_classes, labels.shape[1]).to(precise).softmax(1) * kept.unsqueeze(1)
        y = F.one_hot(labels.masked_fill(~kept, 0), num_classes).transpose(1, 2) * kept.unsqueeze(1)
        over = (2,) if self.per_image else (0, 2)
        both = (p * y).sum(over)
        total = ((p.square() if self.square else p) + y).sum(over)
        costs = 1 - (2 * both + self.smooth) / (total + self.smooth)  # (N, C) or (C,)
        if self.weight is None:
            values = costs.mean(-1)
        else:
            weight = self.weight.to(precise)
            values = (costs * weight).sum(-1) / weight.sum()
        present = kept.any(1) if self.per_image else kept.any()
        return reduce_values(values.reshape(-1), present.to(precise).reshape(-1), self.reduction).to(logits.dtype)

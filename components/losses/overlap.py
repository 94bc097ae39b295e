"""Overlap and outline of regions: the Tversky family, generalised Dice, Lovász-softmax, and the boundary loss.

Plain soft Dice is in :mod:`components.losses.segmentation`. What all have in common is that a picture, not a pixel, has a loss: classes are
compared as regions, with what they hit (:math:`TP`), claim too much (:math:`FP`) and miss (:math:`FN`). Half-precision logits are added up in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_target, is_readable, nonzero, reduce_values
from components.validation import require, require_choice

WITHIN = {"class_weight": "an element is an image, which has no class: weight acts among the classes within it"}


class RegionLoss(Loss):
    """Base of losses of regions: one cost for each class of an image, averaged with the classes' ``weight``, one value an image."""

    exempt: ClassVar[Mapping[str, str]] = WITHIN

    def __init__(self, *, weight: Tensor | Sequence[float] | None = None, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(self.weight is None or bool(self.weight.sum() > 0), "weight must have a value > 0", weight)

    def regions(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (N, C, P), one-hot targets (N, C, P), both 0 at ignored pixels, and which pixels are kept (N, P)."""
        check_target(logits, target, self.ignore_index)
        self.check_weight(logits.shape[1])
        return regions(logits, target, self.ignore_index)

    def over_classes(self, costs: Tensor, first: int = 0) -> Tensor:
        """(…, C) -> (…): the mean over the classes from ``first`` on, with their weights."""
        if self.weight is None:
            return costs[..., first:].mean(-1)
        weight = self.weight[first:].to(costs.dtype)
        return (costs[..., first:] * weight).sum(-1) / nonzero(weight.sum())

    def reduce_images(self, values: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """Reduce one value an image (N,); an image without a pixel left is ignored."""
        return reduce_values(values, kept.any(1).to(values.dtype), self.reduction).to(dtype)


class TverskyLoss(RegionLoss):
    r"""One minus the Tversky index of each class: false alarms and misses have prices of their own.

    .. math:: \ell = \sum_c \bar w_c \left( 1 - \frac{TP_c + s}{TP_c + \alpha\, FP_c + \beta\, FN_c + s} \right)^\gamma, \qquad
              TP = \sum_i p_i y_i, \quad FP = \sum_i p_i (1 - y_i), \quad FN = \sum_i (1 - p_i)\, y_i, \quad p = \mathrm{softmax}(z)

    with *i* over the pixels of an image that are not ignored and :math:`\bar w` the normalised class weights. :math:`\alpha = \beta = 1/2` is
    :class:`~components.losses.DiceLoss` (of smoothing 2 s), :math:`\alpha = \beta = 1` the soft Jaccard (IoU) loss (``loss=jaccard``);
    :math:`\gamma \ne 1` is the focal Tversky loss (``loss=focal_tversky``).

    Try it where a small region must not be missed: ``fn_weight > fp_weight`` buys recall with precision.

    The names of :math:`\alpha` and :math:`\beta` are exchanged in some papers; here the options say which error they weigh.

    Args:
        fp_weight: :math:`\alpha` >= 0, the price of false alarms.
        fn_weight: :math:`\beta` >= 0, the price of misses; not both may be 0.
        gamma: the power, > 0. Below 1 it keeps the gradient up where the overlap is nearly full. Where the cost is exactly 0 the gradient is 0.
        smooth: *s* > 0; a class that an image has not, and whose predicted mass is *m*, costs
            :math:`(\alpha m / (\alpha m + s))^\gamma`.
        weight: per-class weights of the classes' overlaps, shape (C,); 0 leaves a class (the background) out. A weighting *within* an element.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)).

    Shapes:
        logits (N, C, d1, …), raw; target (N, d1, …), class indices.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep networks", MLMI 2017, arXiv:1706.05721;
        the power: Abraham and Khan, "A Novel Focal Tversky Loss Function", ISBI 2019, arXiv:1810.07842, with 1/gamma for gamma. The survey of
        Terven et al., "Loss Functions and Metrics in Deep Learning", 2023, arXiv:2307.02694, lists all of them.
    """

    def __init__(
        self,
        *,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        gamma: float = 1.0,
        smooth: float = 1.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        check_tversky(fp_weight, fn_weight, gamma, smooth)
        self.fp_weight, self.fn_weight, self.gamma, self.smooth = fp_weight, fn_weight, gamma, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, y, kept = self.regions(logits, target)
        costs = tversky_cost(p, y, self.fp_weight, self.fn_weight, self.gamma, self.smooth)
        return self.reduce_images(self.over_classes(costs), kept, logits.dtype)


class GeneralizedDiceLoss(RegionLoss):
    r"""Dice over all classes at once, each class weighted by the inverse of its squared size: rare classes decide as much as large ones.

    .. math:: \ell = 1 - \frac{2 \sum_c w_c u_c \sum_i p_{ic}\, y_{ic} + s}{\sum_c w_c u_c \sum_i (p_{ic} + y_{ic}) + s}, \qquad
              u_c = \Bigl( \sum_i y_{ic} \Bigr)^{-2}, \quad p = \mathrm{softmax}(z)

    with sums over the pixels of one image. A class that the image has not gets the largest *u* of those that it has (as MONAI does).

    Try it where classes differ in size by orders of magnitude.

    Args:
        weighting: *u*: ``square`` (the paper's) | ``simple`` (:math:`1 / \sum y`) | ``uniform`` (1).
        smooth: *s* > 0.
        weight: *w*, per-class weights >= 0, shape (C,), divided by their mean. A weighting *within* an element.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)).

    Shapes:
        logits (N, C, d1, …), raw; target (N, d1, …), class indices.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations", DLMIA 2017, arXiv:1707.03237.
    """

    def __init__(
        self,
        *,
        weighting: str = "square",
        smooth: float = 1e-5,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require_choice("weighting", weighting, ("square", "simple", "uniform"))
        require(smooth > 0, "smooth must be > 0", smooth)
        self.weighting, self.smooth = weighting, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, y, kept = self.regions(logits, target)
        size = y.sum(2)
        power = {"square": 2, "simple": 1, "uniform": 0}[self.weighting]
        present = torch.where(size > 0, nonzero(size).pow(-power), torch.zeros_like(size))
        w = torch.where(size > 0, present, present.amax(1, keepdim=True))
        if self.weight is not None:
            w = w * self.weight.to(w.dtype) / self.weight.mean()
        both = 2 * (w * (p * y).sum(2)).sum(1) + self.smooth
        total = (w * (p + y).sum(2)).sum(1) + self.smooth
        return self.reduce_images(1 - both / total, kept, logits.dtype)


class LovaszSoftmaxLoss(RegionLoss):
    r"""The Lovász extension of the Jaccard loss: a convex surrogate of 1 − IoU in the pixels' errors, exact at hard predictions.

    With the errors :math:`m_i = |y_{ic} - p_{ic}|` of class *c* in falling order :math:`\pi`, and :math:`\Delta_c(S) = |S| / |\{y = c\} \cup S|` the
    Jaccard loss where exactly the pixels *S* are wrong,

    .. math:: \ell = \operatorname{mean}_c \sum_i m_{\pi_i} \bigl[ \Delta_c(\{\pi_1 … \pi_i\}) - \Delta_c(\{\pi_1 … \pi_{i-1}\}) \bigr]

    Try it where IoU is the metric, after (or beside) cross-entropy.

    Args:
        classes: ``present``: the mean over the classes that an image has; ``all``.
        weight: per-class weights, shape (C,). A weighting *within* an element; at least one class of an image should have one > 0.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)). The overlap is always that of an image, the authors'
            ``per_image=True``.

    Shapes:
        logits (N, C, d1, …), raw; target (N, d1, …), class indices.

    Raises:
        ValueError: if ``classes`` is unknown, shapes disagree or a target lies outside [0, C).

    Source:
        Berman, Rannen Triki, Blaschko, "The Lovász-Softmax Loss", CVPR 2018, arXiv:1705.08790.
    """

    def __init__(
        self,
        *,
        classes: str = "present",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require_choice("classes", classes, ("present", "all"))
        self.classes = classes

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, y, kept = self.regions(logits, target)
        errors = (y - p).abs()
        order = torch.where(kept.unsqueeze(1), errors, -torch.ones_like(errors)).detach().sort(dim=2, descending=True, stable=True).indices
        y_sorted = y.gather(2, order)  # ignored pixels come last, with error 0
        size = y.sum(2, keepdim=True)
        jaccard = 1 - (size - y_sorted.cumsum(2)) / (size + (1 - y_sorted).cumsum(2))
        steps = torch.diff(jaccard, dim=2, prepend=torch.zeros_like(jaccard[..., :1]))
        costs = (errors.gather(2, order) * steps).sum(2)
        counted = torch.ones_like(costs) if self.classes == "all" else (size[..., 0] > 0).to(costs.dtype)
        if self.weight is not None:
            counted = counted * self.weight.to(costs.dtype)
        return self.reduce_images((costs * counted).sum(1) / nonzero(counted.sum(1)), kept, logits.dtype)


class BoundaryLoss(RegionLoss):
    r"""Probability times the signed distance to the true outline: errors cost more the farther they lie from it.

    .. math:: \ell = \operatorname{mean}_{i, c}\; p_{ic}\, \phi_c(i), \qquad
              \phi_c(i) = \begin{cases} d(i, \{y = c\}) & y_i \ne c \\ 1 - d(i, \{y \ne c\}) & y_i = c \end{cases}

    with *d* the Euclidean distance to the nearest pixel of a set, in pixels; :math:`\phi_c = 0` where an image lacks *c* or consists of it alone. Values
    may be negative. Ignored pixels count as not *c* in the distances.

    Try it beside an overlap loss, never alone (it is least where everything is far inside): ``loss=generalized_dice
    +loss@auxiliary.boundary=boundary auxiliary.boundary.weight=0.01``, with a weight that grows.

    Distances are exact (a minimum over each line, axis after axis) and need memory for N · C · pixels · longest side numbers.

    Args:
        include_background: count class 0 too; the paper's foreground only by default.
        normalize: distances in units of the longest side, so that the weight does not depend on the size of the picture (our addition).
        weight: per-class weights, shape (C,). A weighting *within* an element.
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)).

    Shapes:
        logits (N, C, d1, …), raw, two classes or more; target (N, d1, …), class indices.

    Raises:
        ValueError: if shapes disagree or a target lies outside [0, C).

    Source:
        Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019, arXiv:1812.07032, eq. 5; distances as in the authors' code.
    """

    exempt: ClassVar[Mapping[str, str]] = {**WITHIN, "gradient": "the trial's images have one pixel, and that has no outline"}

    def __init__(
        self,
        *,
        include_background: bool = False,
        normalize: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        self.include_background, self.normalize = include_background, normalize

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, y, kept = self.regions(logits, target)
        check_foreground(logits, self.include_background)
        shape = logits.shape[2:] or (1,)
        distance = signed_distance(y.reshape(*y.shape[:2], *shape)).flatten(2)
        if self.normalize:
            distance = distance / max(shape)
        costs = (p * distance).sum(2) / nonzero(kept.sum(1, keepdim=True))
        return self.reduce_images(self.over_classes(costs, 0 if self.include_background else 1), kept, logits.dtype)


# -- what they share -------------------------------------------------------------------------------------------------------------


def regions(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax probabilities (N, C, P) in float32 at least, one-hot targets (N, C, P), both 0 at ignored pixels, and which pixels are kept (N, P)."""
    num_images, num_classes = logits.shape[:2]
    labels = target.reshape(num_images, target[:1].numel())  # a size, not -1: the batch may be empty
    kept = labels != ignore_index
    p = logits.reshape(num_images, num_classes, labels.shape[1]).to(at_least_float32(logits.dtype)).softmax(1) * kept.unsqueeze(1)
    y = F.one_hot(labels.masked_fill(~kept, 0), num_classes).transpose(1, 2) * kept.unsqueeze(1)
    return p, y.to(p.dtype), kept


def check_foreground(logits: Tensor, include_background: bool) -> None:
    if logits.shape[1] < 2 and not include_background:
        raise ValueError(f"logits must have two classes or more where class 0 is the background that is left out, but got {logits.shape[1]}")


def check_tversky(fp_weight: float, fn_weight: float, gamma: float, smooth: float) -> None:
    require(fp_weight >= 0, "fp_weight must be >= 0", fp_weight)
    require(fn_weight >= 0, "fn_weight must be >= 0", fn_weight)
    require(fp_weight + fn_weight > 0, "fp_weight and fn_weight must not both be 0", (fp_weight, fn_weight))
    require(gamma > 0, "gamma must be > 0", gamma)
    require(smooth > 0, "smooth must be > 0", smooth)


def tversky_cost(p: Tensor, y: Tensor, fp_weight: float, fn_weight: float, gamma: float, smooth: float) -> Tensor:
    """``(1 - Tversky index) ** gamma`` over the last dimension; where ``p`` and ``y`` are 0 (ignored) nothing is counted."""
    hit = (p * y).sum(-1)
    missed = fp_weight * (p.sum(-1) - hit) + fn_weight * (y.sum(-1) - hit)
    cost = missed / (hit + missed + smooth)
    positive = cost > 0  # a power below 1 has an infinite slope at 0
    return torch.where(positive, torch.where(positive, cost, torch.ones_like(cost)) ** gamma, torch.zeros_like(cost))


FAR = 1e6
"""Between the pictures of a batch, in pixels."""


def distance_to(mask: Tensor, dims: int) -> Tensor:
    """Euclidean distance of each pixel to the nearest true one, over the last ``dims`` dimensions; huge where there is none.

    On the CPU by SciPy, in time linear in the pixels (all maps in one call, worlds apart); else side by side on the device.
    """
    sides = mask.shape[mask.ndim - dims :]
    if is_readable(mask) and mask.numel():
        apart_by = [FAR] * (mask.ndim - dims) + [1.0] * dims
        return torch.from_numpy(distance_transform_edt(~mask.numpy(), sampling=apart_by)).to(torch.float32)
    squared = torch.where(mask, 0.0, 4.0 * sum(side**2 for side in sides)).to(torch.float32)
    for dim, side in enumerate(sides, start=mask.ndim - dims):
        position = torch.arange(side, device=mask.device, dtype=torch.float32)
        apart = (position[:, None] - position).square()
        squared = (squared.movedim(dim, -1).unsqueeze(-2) + apart).amin(-1).movedim(-1, dim)
    return squared.sqrt()


def signed_distance(y: Tensor) -> Tensor:
    """The boundary loss's map of each class: one-hot ``y`` (N, C, d1, …) -> distances outside, 1 - distances inside, 0 where there is no outline."""
    inside, dims = y > 0, y.ndim - 2
    outline = inside.flatten(2).any(2) & (~inside).flatten(2).any(2)
    distance = torch.where(inside, 1 - distance_to(~inside, dims), distance_to(inside, dims)).to(y.dtype)
    return torch.where(outline.reshape(*outline.shape, *[1] * dims), distance, torch.zeros_like(distance))

"""Losses of box regression: element by element on the offsets, or of each box as a whole by how far it overlaps its target."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32, nonzero
from components.losses.regression import RegressionLoss, check_real_target, without_missing
from components.validation import require, require_choice


class SmoothL1Loss(RegressionLoss):
    r"""The absolute error with its corner rounded off: :class:`HuberLoss` divided by its threshold, so that large errors keep the gradient 1.

    .. math:: \ell = \begin{cases} e^2 / 2\beta & |e| \le \beta \\ |e| - \tfrac12 \beta & \text{else} \end{cases}, \qquad e = \hat y - y

    Args:
        beta: the error, in the target's unit, at which it turns linear; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if ``beta <= 0``, shapes differ or the target is not real-valued.

    Source:
        Girshick, "Fast R-CNN", ICCV 2015, arXiv:1504.08083; :func:`torch.nn.functional.smooth_l1_loss`.
    """

    def __init__(self, beta: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(beta > 0, "beta must be > 0", beta)
        self.beta: float | Tensor = beta

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        size = (prediction - target).abs()
        quadratic = size.clamp(max=self.beta)
        return quadratic * (size - 0.5 * quadratic) / self.beta


class BalancedL1Loss(RegressionLoss):
    r"""Smooth L1 that gives small errors more gradient and still bounds that of large ones.

    .. math:: \ell = \begin{cases} \frac{\alpha}{b} (b |e| + 1) \log(b |e| + 1) - \alpha |e| & |e| < 1 \\ \gamma |e| + C & \text{else} \end{cases},
              \qquad \alpha \log(b + 1) = \gamma

    with *C* so that both meet at 1. Its gradient is :math:`\alpha \log(b |e| + 1)`, at most :math:`\gamma`.

    Args:
        alpha: :math:`\alpha` > 0: smaller, more gradient for small errors.
        gamma: :math:`\gamma` > 0: the largest gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; NaN in target marks an ignored element.

    Raises:
        ValueError: if ``alpha`` or ``gamma`` is not > 0, shapes differ or the target is not real-valued.

    Source:
        Pang et al., "Libra R-CNN: Towards Balanced Learning for Object Detection", CVPR 2019, arXiv:1904.02701, eq. 8 to 10.
    """

    def __init__(self, alpha: float = 0.5, gamma: float = 1.5, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(alpha > 0, "alpha must be > 0", alpha)
        require(gamma > 0, "gamma must be > 0", gamma)
        require(gamma / alpha <= 80, "gamma / alpha must be <= 80 (its exponential must be a float32)", gamma / alpha)
        self.alpha: float | Tensor = alpha
        self.gamma: float | Tensor = gamma

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        size = (prediction - target).abs()
        ratio = self.gamma / self.alpha
        b = ratio.expm1() if isinstance(ratio, Tensor) else math.expm1(ratio)
        inside = size.clamp(max=1.0)
        curved = self.alpha / b * (b * inside + 1) * torch.log1p(b * inside) - self.alpha * inside
        return curved + self.gamma * (size - inside)


class BoxIoULoss(Loss):
    r"""One minus how far a predicted box overlaps its target, as a whole: IoU, GIoU, DIoU and CIoU.

    .. math:: \ell_{\mathrm{IoU}} = 1 - \frac{|P \cap T|}{|P \cup T|}, \qquad \ell_{\mathrm{GIoU}} = \ell_{\mathrm{IoU}} + \frac{|H| - |P \cup T|}{|H|},
              \qquad \ell_{\mathrm{DIoU}} = \ell_{\mathrm{IoU}} + \frac{\rho^2}{c^2}, \qquad \ell_{\mathrm{CIoU}} = \ell_{\mathrm{DIoU}} + a v

    with *H* the smallest box around both, *c* its diagonal, :math:`\rho` the distance of the centres, and for plane boxes the difference of aspect ratios
    :math:`v = \tfrac{4}{\pi^2} (\arctan \tfrac{w_T}{h_T} - \arctan \tfrac{w_P}{h_P})^2`, :math:`a = v / (\ell_{\mathrm{IoU}} + v)` (constant for the gradient,
    as in the paper's code). Boxes that don't meet have no gradient under IoU, under the others they do.

    Boxes of any dimension: intervals (2 numbers), plane boxes (4), cuboids (6). A side with its corners swapped counts as empty.

    Args:
        kind: ``iou`` | ``giou`` | ``diou`` | ``ciou``; the last one differs from ``diou`` for plane boxes only.
        eps: least volume and diagonal that is divided by; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per box).

    Shapes:
        prediction and target (N, 2d) or (N, …, 2d): the lower corner, then the upper one; NaN in target ignores the whole box.

    Raises:
        ValueError: if an option is out of its range, shapes differ, the last size is odd or the target is not real-valued.

    Source:
        Terven et al., "Loss Functions and Metrics in Deep Learning", 2023, arXiv:2307.02694; Rezatofighi et al., "Generalized Intersection over Union",
        CVPR 2019, arXiv:1902.09630; Zheng et al., "Distance-IoU Loss", AAAI 2020, arXiv:1911.08287.
    """

    def __init__(self, kind: Literal["iou", "giou", "diou", "ciou"] = "ciou", *, eps: float = 1e-7, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("kind", kind, ("iou", "giou", "diou", "ciou"))
        require(eps > 0, "eps must be > 0", eps)
        self.kind = kind
        self.eps: float | Tensor = eps

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        if prediction.ndim < 2 or prediction.shape[-1] % 2 or prediction.shape[-1] == 0:
            raise ValueError(f"prediction must be boxes (N, …, 2d), lower corner then upper, but got {tuple(prediction.shape)}")
        dtype, precise = prediction.dtype, at_least_float32(prediction.dtype)
        boxes, target = prediction.to(precise), target.to(precise)
        marker = target.sum(-1)
        values = self.compare(boxes, without_missing(target, boxes))
        return self.reduce(values, marker).to(dtype)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of each pair of boxes."""
        (low, high), (other_low, other_high) = first.chunk(2, -1), second.chunk(2, -1)
        sides, other_sides = (high - low).clamp(min=0), (other_high - other_low).clamp(min=0)
        common = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
        intersection = common.prod(-1)
        union = sides.prod(-1) + other_sides.prod(-1) - intersection
        loss = 1 - intersection / union.clamp(min=self.eps)
        if self.kind == "iou":
            return loss
        hull = torch.maximum(high, other_high) - torch.minimum(low, other_low)
        if self.kind == "giou":
            volume = hull.clamp(min=0).prod(-1).clamp(min=self.eps)
            return loss + (volume - union) / volume
        distance = (0.5 * (low + high - other_low - other_high)).square().sum(-1)
        penalty = distance / hull.square().sum(-1).clamp(min=self.eps)
        if self.kind == "diou" or sides.shape[-1] != 2:
            return loss + penalty
        difference = self.angle(other_sides) - self.angle(sides)
        v = 4 / math.pi**2 * difference.square()
        return loss + penalty + (v / nonzero(loss + v)).detach() * v

    def angle(self, sides: Tensor) -> Tensor:
        """:math:`\\arctan(w / h)` of plane boxes; of empty ones π/4, without a gradient."""
        width, height = sides.clamp(min=self.eps).unbind(-1)
        return torch.atan2(width, height)

r"""Classification losses: one class of several (softmax), or any number of labels (sigmoid).

All take raw scores and work in the log domain, so they stay finite at scores of ±1e4 in float32 and bfloat16.
Two helpers carry the chapter: :func:`cross_entropy_per_element`, :math:`-\log p_t`, and :func:`probability_of_target`, :math:`p_t`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import (
    IGNORE_INDEX,
    Loss,
    Reduction,
    at_least_float32,
    check_same_shape,
    check_target,
    float_tensor,
    is_readable,
    nonzero,
    reduce_values,
)
from components.validation import require


def cross_entropy_per_element(logits: Tensor, target: Tensor, label_smoothing: float | Tensor = 0.0, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Cross-entropy of each element with the smoothed target, without class weights; 0 where ignored.

    .. math:: \ell = -\sum_c q_c \log p_c, \qquad q_c = (1 - s)\,[c = y] + s / C

    Args:
        logits: (N, C) or (N, C, d1, …), raw.
        target: (N,) or (N, d1, …), class indices.
        label_smoothing: *s* in [0, 1); a 0-dim tensor where many values run at once (``torch.func.vmap``).
        ignore_index: target value that is ignored.

    Raises:
        ValueError: naming ``logits`` or ``target`` where they do not fit each other.
    """
    check_target(logits, target, ignore_index)
    return _torch_cross_entropy(logits, target, label_smoothing, None, ignore_index, "none")


def probability_of_target(logits: Tensor, target: Tensor, label_smoothing: float | Tensor = 0.0, ignore_index: int = IGNORE_INDEX) -> Tensor:
    r"""Probability that the model gives to the target; under label smoothing the smoothed target's expected probability; 1 - s + s/C where ignored.

    .. math:: p_t = \sum_c q_c\, p_c = (1 - s)\, p_y + s / C

    Arguments and errors as in :func:`cross_entropy_per_element`.
    """
    check_target(logits, target, ignore_index)
    probability = (-F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")).exp()
    return probability * (1 - label_smoothing) + label_smoothing / logits.shape[1]


def _torch_cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float | Tensor, weight: Tensor | None, ignore_index: int, reduction: Reduction
) -> Tensor:
    """torch's cross-entropy for a ``label_smoothing`` that may be a tensor: the loss is linear in it."""
    weight = None if weight is None else weight.to(logits.dtype)
    if not isinstance(label_smoothing, Tensor):
        return F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    hard, uniform = (
        F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing) for smoothing in (0.0, 1.0)
    )
    return hard + label_smoothing * (uniform - hard)


def require_label_smoothing(label_smoothing: float) -> None:
    require(0 <= label_smoothing < 1, "label_smoothing must be in [0, 1)", label_smoothing)


class CrossEntropyLoss(Loss):
    r"""Cross-entropy with softmax: the standard loss for one class of several.

    .. math:: \ell = -w_y \log p_y, \qquad p = \mathrm{softmax}(z)

    Equal to :class:`torch.nn.CrossEntropyLoss` on class indices, its meaning of ``weight`` together with ``label_smoothing`` included (there the
    weights also act inside the smoothed sum: :math:`-\sum_c w_c q_c \log p_c`), except that the mean over no element is 0, not NaN.

    Args:
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` (weighted) | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1), shapes disagree or a target lies outside [0, C).

    Source:
        :func:`torch.nn.functional.cross_entropy`; label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
        2016, arXiv:1512.00567.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require_label_smoothing(label_smoothing)
        self.label_smoothing: float | Tensor = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        nothing_ignored = check_target(logits, target, self.ignore_index)
        self.check_weight(logits.shape[1])
        if self.reduction != "mean" or (nothing_ignored and self.weight is None):
            return _torch_cross_entropy(logits, target, self.label_smoothing, self.weight, self.ignore_index, self.reduction)
        # torch's own mean is 0/0 when everything is ignored
        summed = _torch_cross_entropy(logits, target, self.label_smoothing, self.weight, self.ignore_index, "sum")
        total = self.element_weights(target, at_least_float32(logits.dtype)).sum()
        return (summed / nonzero(total)).to(summed.dtype)


class BCEWithLogitsLoss(Loss):
    r"""Binary cross-entropy with sigmoid: two classes with one score, or any number of independent labels.

    .. math:: \ell = -w_c \left[ \pi_c\, t \log \sigma(z) + (1 - t) \log (1 - \sigma(z)) \right], \qquad t = (1 - s)\, y + s / 2

    An element is one label of one sample; a NaN or ``ignore_index`` entry of the target marks an ignored one (an unknown label).
    The mean is the weighted one that all losses share; :class:`torch.nn.BCEWithLogitsLoss` with ``weight`` divides by the number of elements instead.

    Args:
        label_smoothing: *s* in [0, 1): targets become ``s/2`` and ``1 - s/2``.
        pos_weight: :math:`\pi_c`, factor on the positive part of each label, shape (C,), > 0; ``negatives / positives`` balances a rare label.
        weight: per-label weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample and label, shaped like ``logits``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw, C = 1 for two classes; target_multi_hot of the same shape, values in [0, 1].

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1), ``pos_weight`` is not positive, shapes disagree or a target lies outside [0, 1].

    Source:
        :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        pos_weight: Tensor | Sequence[float] | None = None,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require_label_smoothing(label_smoothing)
        self.label_smoothing: float | Tensor = label_smoothing
        if pos_weight is not None:
            pos_weight = float_tensor("pos_weight", pos_weight)
            require(bool((pos_weight > 0).all()), "pos_weight must hold values > 0", pos_weight.tolist())
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        check_same_shape("target_multi_hot", target_multi_hot, "logits", logits)
        if logits.ndim < 2:
            raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …), but got {tuple(logits.shape)}")
        self.check_weight(logits.shape[1])
        kept = None if self._check_values(target_multi_hot) else ~(target_multi_hot.isnan() | (target_multi_hot == self.ignore_index))
        target = target_multi_hot.to(logits.dtype)
        if kept is not None:
            target = target.masked_fill(~kept, 0)
        target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        pos_weight = None if self.pos_weight is None else self._per_label(self.pos_weight, logits)
        if kept is None and self.weight is None:
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction=self.reduction)
        values = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
        weights = None if kept is None else kept.to(values.dtype)
        if self.weight is not None:
            per_label = self._per_label(self.weight, logits).expand_as(values)
            weights = per_label if weights is None else per_label * weights
        return reduce_values(values, weights, self.reduction)

    def _check_values(self, target: Tensor) -> bool:
        """Refuse values outside [0, 1], where they can be read; True if it is known that nothing is ignored."""
        if not is_readable(target) or target.numel() == 0:
            return False
        low, high = (float(bound) for bound in torch.aminmax(target))  # NaN if there is one
        if low >= 0 and high <= 1:
            return not low <= self.ignore_index <= high
        outside = target[((target < 0) | (target > 1)) & (target != self.ignore_index)]
        if outside.numel():
            raise ValueError(f"target_multi_hot must hold values in [0, 1], NaN or ignore_index={self.ignore_index}, but got {float(outside[0])}")
        return False

    @staticmethod
    def _per_label(values: Tensor, logits: Tensor) -> Tensor:
        """(C,) as (C, 1, …), to go with (N, C, d1, …)."""
        return values.to(logits.dtype).reshape(-1, *[1] * (logits.ndim - 2))


class FocalLoss(Loss):
    r"""Cross-entropy that fades for samples already predicted well: many easy negatives, dense detection, imbalance.

    .. math:: \ell = -\alpha_y\, (1 - p_y)^\gamma \log p_y

    ``gamma = 0`` is cross-entropy. The paper's :math:`\alpha` is the class ``weight`` here, and the mean is the weighted mean that all losses share
    (the paper divides by the number of foreground anchors).

    Args:
        gamma: focusing strength, >= 0; at 2 a sample with p = 0.9 counts 100 times less than under cross-entropy.
        weight: per-class weights (alpha), shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``gamma < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002, eq. 5 (its softmax form).
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(gamma >= 0, "gamma must be >= 0", gamma)
        self.gamma: float | Tensor = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        ce = cross_entropy_per_element(logits, target, ignore_index=self.ignore_index)
        self.check_weight(logits.shape[1])
        # 1 - p from log p without cancellation; held off 0, where the slope of x ** gamma is infinite for gamma < 1
        not_p = (-torch.expm1(-ce)).clamp(min=torch.finfo(ce.dtype).tiny)
        return self.reduce(not_p**self.gamma * ce, target)


class Poly1Loss(Loss):
    r"""Cross-entropy whose first polynomial coefficient is shifted by ``epsilon``.

    Expanding cross-entropy in powers of :math:`1 - p_y` gives coefficients :math:`1/j`; PolyLoss lets them be chosen, Poly-1 the first one:

    .. math:: \ell = -\log p_t + \epsilon\,(1 - p_t)

    with :math:`p_t` the target's probability (under label smoothing, the smoothed target's expected probability).

    Try it where cross-entropy under- or over-weights confident samples: ``epsilon > 0`` pushes confidence up (images), ``epsilon < 0`` holds it
    down (long tails).

    Args:
        epsilon: shift of the first coefficient; ``0`` is cross-entropy. Must be >= -1 (-1 drops the first power).
        label_smoothing: in [0, 1), as in :func:`torch.nn.functional.cross_entropy`.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``epsilon < -1``, shapes disagree or a target lies outside [0, C).

    Source:
        Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022, arXiv:2204.12511, eq. 5.
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(epsilon >= -1, "epsilon must be >= -1 (the first coefficient must not turn negative)", epsilon)
        require_label_smoothing(label_smoothing)
        self.epsilon: float | Tensor = epsilon
        self.label_smoothing: float | Tensor = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        hard = cross_entropy_per_element(logits, target, ignore_index=self.ignore_index)
        self.check_weight(logits.shape[1])
        if not isinstance(self.label_smoothing, Tensor) and self.label_smoothing == 0:  # what most use, at half the price
            return self.reduce(hard + self.epsilon * (1 - (-hard).exp()), target)
        ce = cross_entropy_per_element(logits, target, self.label_smoothing, self.ignore_index)
        p_t = probability_of_target(logits, target, self.label_smoothing, self.ignore_index)
        return self.reduce(ce + self.epsilon * (1 - p_t), target)

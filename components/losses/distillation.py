"""Distillation losses: a student learns from a teacher's outputs beside the labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

from torch import Tensor

from components.losses.base import IGNORE_INDEX, Loss, Reduction, check_same_shape
from components.losses.classification import cross_entropy_per_element
from components.losses.scores import divergence
from components.validation import require


class KDLoss(Loss):
    r"""Knowledge distillation: match the teacher's softened distribution, and the labels.

    .. math:: \ell = w_y \left[ \alpha\, T^2\, \mathrm{KL}\big(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(z / T)\big)
              + (1 - \alpha)\,(-\log p_y) \right]

    with *z* the student's and *t* the teacher's scores; :math:`T^2` keeps the two gradients' sizes in proportion as *T* changes.

    Args:
        alpha: share of the teacher's term, in [0, 1]; 0 is cross-entropy.
        temperature: *T* > 0; higher shows more of how the teacher ranks the wrong classes.
        weight: per-class weights, shape (C,); act on both terms.
        ignore_index: target value that contributes neither value nor gradient (neither term).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits and teacher_logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices. No gradient reaches the teacher.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], ``temperature <= 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 4.0,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(0 <= alpha <= 1, "alpha must be in [0, 1]", alpha)
        require(temperature > 0, "temperature must be > 0", temperature)
        self.alpha: float | Tensor = alpha
        self.temperature: float | Tensor = temperature
        self.shares = (1.0, 1.0)  # of the teacher's term and of the labels'; apart() gives the halves

    def apart(self) -> tuple[Self, Self]:
        """The labels' term and the teacher's as two losses that add up to this one, for what treats them differently (DOT)."""
        labels, teacher = copy.copy(self), copy.copy(self)
        labels.shares, teacher.shares = (0.0, 1.0), (1.0, 0.0)
        return labels, teacher

    def forward(self, logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        check_same_shape("teacher_logits", teacher_logits, "logits", logits)
        ce = cross_entropy_per_element(logits, target, ignore_index=self.ignore_index)
        self.check_weight(logits.shape[1])
        kl = divergence(teacher_logits.detach().to(logits.dtype) / self.temperature, logits / self.temperature)
        of_teacher, of_labels = self.shares
        return self.reduce(of_teacher * self.alpha * self.temperature**2 * kl + of_labels * (1 - self.alpha) * ce, target)

r"""PolyLoss in general: cross-entropy and focal loss as power series of :math:`1 - p_t` whose coefficients can be chosen.

Poly-1 on cross-entropy has its own class, :class:`~components.losses.Poly1Loss`; this chapter has any number of coefficients, focal loss, truncated
series, and distributions as targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_same_shape, is_readable, reduce_values
from components.losses.classification import require_label_smoothing
from components.losses.scores import checked_scores
from components.validation import require


def power_series(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    r""":math:`\sum_j c_j x^j` for *j* = 1, 2, …"""
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * x
    return value


class PolyNLoss(Loss):
    r"""Poly-N: cross-entropy or focal loss whose first *N* polynomial coefficients are shifted.

    .. math:: \ell = (1 - p_t)^\gamma \Big( -\log p_t + \sum_{j=1}^{N} \epsilon_j (1 - p_t)^j \Big), \qquad
              -\log p_t = \sum_{j=1}^{\infty} \tfrac{1}{j} (1 - p_t)^j

    with :math:`p_t = \sum_c q_c p_c` the target's (expected) probability; for a target that is a distribution *q*, or smoothed, the cross-entropy
    is :math:`-\sum_c q_c \log p_c`. ``gamma = 0`` is Poly-N on cross-entropy, one epsilon and ``gamma = 2`` the option ``poly1_focal``.

    Try it where Poly-1 helps and a second coefficient may help more; the first one matters most.

    Args:
        epsilons: :math:`\epsilon_1, \epsilon_2, …`, each >= -1/j, so that no coefficient turns negative; none at all: the loss without a shift.
        gamma: focal exponent, >= 0.
        terms: keep only the first so many powers of the series (POLY-drop, worse than all of them); null: all.
        label_smoothing: in [0, 1), as in :func:`torch.nn.functional.cross_entropy`.
        weight: per-class weights (focal loss's alpha), shape (C,); of a distribution, its expected weight.
        ignore_index: target value that contributes neither value nor gradient (in distributions: NaN).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices, or a distribution over classes for each element, shaped like
        ``logits``.

    Raises:
        ValueError: if an epsilon is below -1/j, ``gamma < 0``, ``terms < 1``, shapes disagree or a target lies outside [0, C).

    Source:
        Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022, arXiv:2204.12511, eq. 3–6 and table 1.
        The factor of smoothed or soft targets under ``gamma > 0`` is our reading.
    """

    def __init__(
        self,
        epsilons: Sequence[float] = (1.0, 0.0),
        *,
        gamma: float = 0.0,
        terms: int | None = None,
        label_smoothing: float = 0.0,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        shifts = tuple(float(epsilon) for epsilon in epsilons)
        for j, epsilon in enumerate(shifts, start=1):
            require(epsilon * j >= -1, f"epsilons must be >= -1/j (no coefficient may turn negative), the {j}. >= {-1 / j:.4g}", epsilon)
        require(gamma >= 0, "gamma must be >= 0", gamma)
        require(terms is None or terms >= 1, "terms must be >= 1, or null for all", terms)
        require_label_smoothing(label_smoothing)
        self.epsilons = shifts
        self.gamma: float | Tensor = gamma
        self.terms = terms
        self.label_smoothing: float | Tensor = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            return self._of_distributions(logits, target)
        scores = checked_scores(self, logits, target)
        log_p = scores.log_softmax(1)
        hard = F.nll_loss(log_p, target, ignore_index=self.ignore_index, reduction="none")
        uniform = -log_p.mean(1)
        s, classes = self.label_smoothing, logits.shape[1]
        not_p = -torch.expm1(-hard) * (1 - s) + s * (1 - 1 / classes)
        return self.reduce(self._series(hard + s * (uniform - hard), not_p), target).to(logits.dtype)

    def _of_distributions(self, logits: Tensor, target: Tensor) -> Tensor:
        check_same_shape("target", target, "logits", logits)
        self.check_weight(logits.shape[1])
        if is_readable(target):
            require(not bool((target < 0).any()), "target must hold probabilities >= 0, or class indices (torch.long)")
        scores = logits.to(at_least_float32(logits.dtype))
        kept = ~target.isnan().any(1)
        q = torch.where(kept.unsqueeze(1), target, 0.0).to(scores.dtype)
        weights = kept.to(scores.dtype)
        if self.weight is not None:
            weights = weights * (q * self.weight.to(q.dtype).reshape(-1, *[1] * (q.ndim - 2))).sum(1)
        q = q * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        log_p = scores.log_softmax(1)
        values = self._series(-(q * log_p).sum(1), -(q * torch.expm1(log_p)).sum(1))
        return reduce_values(values, weights, self.reduction).to(logits.dtype)

    def _series(self, cross_entropy: Tensor, not_p: Tensor) -> Tensor:
        """The loss from the cross-entropy and from :math:`1 - p_t`."""
        if self.terms is not None:
            cross_entropy = power_series(not_p, [1 / j for j in range(1, self.terms + 1)])
        # held off 0, where the slope of x ** gamma is infinite for gamma < 1
        factor = not_p.clamp(min=torch.finfo(not_p.dtype).tiny) ** self.gamma
        return factor * (cross_entropy + power_series(not_p, self.epsilons))

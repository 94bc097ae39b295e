r"""Comp-sum losses: one family from the exponential loss over cross-entropy to the mean absolute error.

With :math:`L = -\log p_y` all of them are one function of *L* and :math:`\tau`, :func:`comp_sum`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction
from components.losses.scores import checked_scores
from components.validation import require

SERIES_BELOW = 1e-3
LARGEST_EXPONENT = 60.0


def comp_sum(cross_entropy: Tensor, tau: float | Tensor) -> Tensor:
    r""":math:`\Phi_\tau` of :math:`u = \sum_{k \ne y} e^{h_k - h_y} = e^L - 1` from the cross-entropy *L* >= 0.

    .. math:: \Phi_\tau = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau} = \frac{e^{(1 - \tau) L} - 1}{1 - \tau}, \qquad \Phi_1 = L

    Beyond an exponent of 60, where float32 would soon overflow, it goes on along its tangent.
    """
    rate = 1 - tau
    limit = LARGEST_EXPONENT / torch.as_tensor(rate, dtype=cross_entropy.dtype).clamp(min=1e-6)
    near = torch.minimum(cross_entropy, limit)
    exponent = rate * near
    small = exponent.abs() < SERIES_BELOW
    x = exponent.masked_fill(small, 1.0)
    series = 1 + exponent / 2 * (1 + exponent / 3 * (1 + exponent / 4))
    ratio = torch.where(small, series, torch.expm1(x) / x)  # (e^x - 1) / x, also where x is 0
    return near * ratio + exponent.exp() * (cross_entropy - near)


class CompSumLoss(Loss):
    r"""The comp-sum family: cross-entropy with a dial for how much badly predicted samples count.

    .. math:: \ell = \frac{p_y^{\tau - 1} - 1}{1 - \tau} \ (\tau \ne 1), \qquad \ell = -\log p_y \ (\tau = 1), \qquad
              \frac{\partial \ell}{\partial z} = p_y^{\tau - 1} (p - \mathbf{1}_y)

    ``tau`` = 0 is the sum-exponential loss, 1 cross-entropy, 1 + *q* generalized cross-entropy :math:`(1 - p_y^q) / q`, 2 the mean absolute error of
    the probabilities :math:`1 - p_y`.

    Try it where labels are wrong: ``tau`` above 1 damps the samples that the model contradicts, at the price of slower learning; below 1 it
    presses on them.

    Args:
        tau: :math:`\tau` >= 0.
        weight: per-class weights, shape (C,).
        ignore_index: target value that contributes neither value nor gradient.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target (N,) or (N, d1, …), class indices.

    Raises:
        ValueError: if ``tau < 0``, shapes disagree or a target lies outside [0, C).

    Source:
        Mao, Mohri and Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications", ICML 2023, arXiv:2304.07288, sec. 2; ``gce``: Zhang
        and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018, arXiv:1805.07836;
        ``softmax_mae``: Ghosh, Kumar and Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", AAAI 2017, arXiv:1712.09482;
        ``sum_exponential``: Weston and Watkins, "Multi-class Support Vector Machines", 1998. Below ``tau = 1`` values beyond about e^60 are
        continued linearly (our reading), so that they stay finite.
    """

    def __init__(
        self,
        tau: float = 1.5,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(tau >= 0, "tau must be >= 0", tau)
        self.tau: float | Tensor = tau

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        scores = checked_scores(self, logits, target)
        cross_entropy = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction="none")
        return self.reduce(comp_sum(cross_entropy, self.tau), target).to(logits.dtype)

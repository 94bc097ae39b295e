"""Reweighting by class, against imbalance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX
from components.reweighting.base import Reweighter
from components.validation import require


class ClassBalanced(Reweighter):
    r"""Weights a sample by the inverse effective number of samples of its class: rare classes count more, with diminishing returns.

    .. math:: E_c = \frac{1 - \beta^{n_c}}{1 - \beta}, \qquad
              w_c = \frac{1 / E_c}{\sum_k 1 / E_k} \cdot C

    so that the weights of the *C* classes add up to *C*. ``beta = 0`` weights all alike, ``beta -> 1`` by the inverse
    frequency. A class without training samples gets weight 0 and does not count in *C*.

    Args:
        class_counts: :math:`n_c`, training samples of each class; filled in from the data unless given.
        beta: in [0, 1); the authors try 0.9, 0.99, 0.999 and 0.9999. Default 0.999.
        ignore_index: target value of weight 0.

    Shapes:
        target (N,), class indices; the result is (N,), float32.

    Raises:
        ValueError: if ``beta`` is outside [0, 1), ``class_counts`` has a negative entry or none above 0, or target is not (N,).

    Source:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, arXiv:1901.05555.
    """

    class_weights: Tensor

    def __init__(self, class_counts: Sequence[int], beta: float = 0.999, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        require(0 <= beta < 1, "beta must be in [0, 1)", beta)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        fits = counts.ndim == 1 and bool((counts >= 0).all()) and bool((counts > 0).any())
        require(fits, "class_counts must be a list of counts >= 0, one a class, not all 0", class_counts)
        self.beta, self.ignore_index = beta, ignore_index
        present = counts > 0
        inverse = torch.where(present, (1 - beta) / (1 - beta**counts.clamp_min(1)), 0.0)
        self.register_buffer("class_weights", (inverse / inverse.sum() * present.sum()).float())

    def forward(self, target: Tensor) -> Tensor:
        require(target.ndim == 1 and not target.is_floating_point(), "target must be class indices (N,), one class a sample", tuple(target.shape))
        kept = target != self.ignore_index
        return self.class_weights[target.masked_fill(~kept, 0)] * kept

"""Metrics of what happens in the arithmetic, not in the model."""

from __future__ import annotations

import torch
from torch import Tensor

from components.metrics.base import Quotient
from components.validation import require, require_choice

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class SoftmaxCollapse(Quotient):
    r"""Share of samples whose softmax has collapsed in floating point: the leading score's probability is rounded to exactly 1.

    .. math:: \frac{1}{N} \sum_i \Bigl[\textstyle\sum_k e^{z_{ik} - \max_j z_{ij}} = 1 \text{ exactly}\Bigr]

    Where the leading class is the label, its cross-entropy and the label's gradient are then exactly 0: nothing more is learned from the sample. In
    float32 that begins at a lead of 16.6 over the next score.

    Args:
        precision: in which the sum is taken: ``float16`` | ``bfloat16`` | ``float32`` | ``float64``; null: the scores' own.

    Shapes:
        preds (N, C) or (N, C, d1, …), scores.

    Raises:
        ValueError: if ``precision`` is none of these.

    Source:
        Prieto, Barsbey, Mediano and Birdal, "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697, §3.
    """

    higher_is_better = False

    def __init__(self, precision: str | None = None) -> None:
        super().__init__(whole=True)
        if precision is not None:
            require_choice("precision", precision, PRECISIONS)
        self.precision = precision

    def update(self, preds: Tensor) -> None:
        require(preds.ndim >= 2, "preds must have shape (N, C) or (N, C, d1, …)", tuple(preds.shape))
        scores = preds if self.precision is None else preds.to(PRECISIONS[self.precision])
        total = (scores - scores.amax(1, keepdim=True)).exp().sum(1)
        self.add((total == 1).sum(), total.numel())

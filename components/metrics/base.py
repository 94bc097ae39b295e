"""What many metrics are: one sum over another, each of them summed up over the batches and over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Quotient(Metric):
    """Base of means, shares and ratios. A subclass's ``update`` calls :meth:`add`; the value is ``total / count``, NaN over nothing.

    Args:
        whole: both are numbers of things, and stay exact whatever their size; else float32, which every device has.
        counted: ``count`` is such a number, whatever ``total`` is.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, whole: bool = False, counted: bool = True) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0 if whole else 0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0 if whole or counted else 0.0), dist_reduce_fx="sum")

    def add(self, total: Tensor | float, count: Tensor | float) -> None:
        """What a batch adds to both."""
        self.total = self.total + (total.to(self.total.dtype) if isinstance(total, Tensor) else total)
        self.count = self.count + (count.to(self.count.dtype) if isinstance(count, Tensor) else count)

    def compute(self) -> Tensor:
        return self.total / self.count

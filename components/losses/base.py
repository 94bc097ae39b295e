"""What all losses share: reduction, ``ignore_index`` and class ``weight`` mean one thing everywhere.

A loss is an ``nn.Module`` whose ``forward`` parameters are names of :mod:`components.quantities`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from components.validation import require, require_choice

Reduction = Literal["mean", "sum", "none"]
Head = Literal["point", "gaussian", "quantile"]
IGNORE_INDEX = -100


class Loss(nn.Module):
    r"""Base of losses: holds ``reduction``, ``ignore_index`` and the class ``weight``, and reduces per-element values.

    With :math:`w_i` the class weight of element *i* (1 without ``weight``) and *I* the elements that are not ignored,

    .. math:: \text{sum} = \sum_{i \in I} w_i \ell_i, \qquad \text{mean} = \frac{\sum_{i \in I} w_i \ell_i}{\sum_{i \in I} w_i},
              \qquad \text{none}_i = w_i \ell_i \text{ (0 where ignored)}

    as in :func:`torch.nn.functional.cross_entropy`. The mean over no element at all is 0 (not NaN).

    Class facts that the builder reads without an instance:
        head: what a regression model must put out for this loss: ``point`` (one value a target), ``gaussian`` (mean and log
            variance), ``quantile`` (one value a quantile).
        pairwise: the loss compares samples of the batch with each other; under DDP the batch is gathered over the ranks first.
    """

    head: ClassVar[Head] = "point"
    pairwise: ClassVar[bool] = False

    weight: Tensor | None

    def __init__(
        self,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        require_choice("reduction", reduction, ("mean", "sum", "none"))
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.get_default_dtype())
            require(weight.ndim == 1 and bool((weight >= 0).all()), "weight must be a 1-D tensor of values >= 0", weight)
        self.register_buffer("weight", weight)

    @classmethod
    def outputs_per_target(cls, **config: Any) -> int:
        """Model outputs that this loss needs for each target, from its configuration: 1, or more for distributional heads."""
        return 2 if cls.head == "gaussian" else 1

    def reduce(self, values: Tensor, target: Tensor | None = None) -> Tensor:
        """Reduce per-element ``values``; ``target`` (class indices, same shape) says what is ignored and how it is weighted."""
        weights = None if target is None else self.element_weights(target, values.dtype)
        return reduce_values(values, weights, self.reduction)

    def element_weights(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """``weight[target]``, 0 where ``target == ignore_index``; target's shape."""
        kept = target != self.ignore_index
        if self.weight is None:
            return kept.to(dtype)
        return self.weight.to(dtype)[target.masked_fill(~kept, 0)] * kept

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training" and isinstance(v, int | float | str | bool)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


def reduce_values(values: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Weighted ``mean`` (0 over nothing), ``sum`` or ``none``; elements of weight 0 contribute neither value nor gradient, NaN included."""
    if weights is None:
        if reduction == "mean":
            return values.mean() if values.numel() else values.sum()
        return values.sum() if reduction == "sum" else values
    values = torch.where(weights != 0, values * weights, torch.zeros_like(values))
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    total = weights.sum()
    return values.sum() / torch.where(total == 0, torch.ones_like(total), total)

"""What all losses share: reduction, ``ignore_index`` and class ``weight`` mean one thing everywhere.

A loss is an ``nn.Module`` whose ``forward`` parameters are names of :mod:`components.quantities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    For a real-valued ``target`` (regression) no number can stand for "ignored", so there NaN does.

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element that the loss is about).
        ignore_index: target value whose elements contribute neither value nor gradient.
        weight: per-class weights >= 0, shape (C,); a tensor or a list.

    Class facts that the builder reads without an instance:
        head: what a regression model must put out for this loss: ``point`` (one value a target), ``gaussian`` (mean and log
            variance), ``quantile`` (one value a quantile).
        dense: a loss of logits takes them with further dimensions, (N, C, d1, …), too.
        pairwise: the loss compares samples of the batch with each other; under DDP the batch is gathered over the ranks first.
        exempt: trials of :class:`components.testing.LossContract` that cannot hold for this loss, each with the reason.
    """

    head: ClassVar[Head] = "point"
    dense: ClassVar[bool] = True
    pairwise: ClassVar[bool] = False
    exempt: ClassVar[Mapping[str, str]] = {}

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
            weight = float_tensor("weight", weight)
            require(bool((weight >= 0).all()), "weight must hold values >= 0", weight.tolist())
        self.register_buffer("weight", weight)

    @classmethod
    def outputs_per_target(cls, **config: Any) -> int:
        """Model outputs that this loss needs for each target, from its configuration: 1, or more for distributional heads."""
        return 2 if cls.head == "gaussian" else 1

    def reduce(self, values: Tensor, target: Tensor | None = None) -> Tensor:
        """Reduce per-element ``values``; ``target`` (same shape) says what is ignored and how it is weighted."""
        if target is None or (self.weight is None and nothing_is(self.ignore_index, target)):
            return reduce_values(values, None, self.reduction)
        return reduce_values(values, self.element_weights(target, values.dtype), self.reduction)

    def element_weights(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """``weight[target]``, 0 where ``target`` is ``ignore_index`` (for a real-valued target: NaN); target's shape."""
        if target.is_floating_point():
            return (~target.isnan()).to(dtype)
        kept = target != self.ignore_index
        if self.weight is None:
            return kept.to(dtype)
        return self.weight.to(dtype)[target.masked_fill(~kept, 0)] * kept

    def check_weight(self, num_classes: int) -> None:
        """Refuse a class ``weight`` of another length: a longer one would pass silently."""
        if self.weight is not None and len(self.weight) != num_classes:
            raise ValueError(f"weight must have one value for each of the {num_classes} classes, but got {len(self.weight)}")

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training" and isinstance(v, int | float | str | bool | tuple)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


def reduce_values(values: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Weighted ``mean`` (0 over nothing), ``sum`` or ``none``; elements of weight 0 contribute neither value nor gradient, NaN included.

    Half-precision values are added up in float32: a count above 256 has no exact bfloat16.
    """
    if weights is None:
        if reduction == "mean":
            return values.mean() if values.numel() else values.sum()
        return values.sum() if reduction == "sum" else values
    values = torch.where(weights != 0, values * weights, torch.zeros_like(values))
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    precise = at_least_float32(values.dtype)
    return (values.sum(dtype=precise) / nonzero(weights.sum(dtype=precise))).to(values.dtype)


def nonzero(total: Tensor) -> Tensor:
    """``total``, with 1 in the place of 0: a divisor for sums over possibly nothing."""
    return torch.where(total == 0, torch.ones_like(total), total)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half-precision types, else the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def float_tensor(name: str, values: Tensor | Sequence[float]) -> Tensor:
    """A 1-D tensor of the default float type from a tensor or any sequence of numbers (a config's list included)."""
    try:
        tensor = values.detach().to(torch.get_default_dtype()) if isinstance(values, Tensor) else torch.tensor([float(v) for v in values])
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a 1-D tensor or a list of numbers, but got {values!r}") from None
    require(tensor.ndim == 1 and bool(torch.isfinite(tensor).all()), f"{name} must be a 1-D tensor of finite values", tensor.tolist())
    return tensor


# -- checks of what reaches forward: shapes always (they are known on the host), values only where reading them is free --------


def is_readable(tensor: Tensor) -> bool:
    """Whether values may be looked at on the host: a plain CPU tensor, not an accelerator's (a read would wait for the device),
    not one being traced by ``torch.compile`` or batched by ``torch.func.vmap`` (a read would break the program)."""
    if tensor.device.type != "cpu" or type(tensor) not in (Tensor, nn.Parameter) or torch.compiler.is_compiling():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # torch has no public question for this


def nothing_is(ignore_index: int, target: Tensor) -> bool:
    """True if it is known that no element of ``target`` is ``ignore_index`` (for a real-valued target: NaN)."""
    if not is_readable(target) or target.numel() == 0:
        return False
    if target.is_floating_point():
        return not bool(target.sum().isnan())
    low, high = (int(bound) for bound in torch.aminmax(target))
    return not low <= ignore_index <= high


def check_target(logits: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Refuse class indices that do not fit ``logits``; True if it is known that nothing is ignored.

    Args:
        logits: (N, C) or (N, C, d1, …).
        target: (N,) or (N, d1, …), integers in [0, C) or ``ignore_index``.

    Raises:
        ValueError: naming ``logits`` or ``target``. Values are looked at on the CPU only: on an accelerator that would wait for
            the device, and torch's own kernels assert there.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …), but got {tuple(logits.shape)}")
    return check_class_indices(target, logits.shape[:1] + logits.shape[2:], logits.shape[1], ignore_index)


def check_class_indices(target: Tensor, shape: torch.Size, num_classes: int, ignore_index: int) -> bool:
    """Refuse a ``target`` that is not of ``shape`` and of integers in [0, num_classes) or ``ignore_index``; see :func:`check_target`."""
    if target.shape != shape:
        raise ValueError(f"target must hold one class index an element, shape {tuple(shape)}, but got {tuple(target.shape)}")
    if target.dtype != torch.long:
        raise ValueError(f"target must hold class indices (torch.long), but got {target.dtype}")
    if not is_readable(target) or target.numel() == 0:
        return False
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= num_classes:
        outside = target[((target < 0) | (target >= num_classes)) & (target != ignore_index)]
        if outside.numel():
            raise ValueError(f"target must hold classes in [0, {num_classes}) or ignore_index={ignore_index}, but got {int(outside[0])}")
    return not low <= ignore_index <= high


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse ``tensor`` unless it has ``other``'s shape: broadcasting (N, 1) against (N,) would silently compare all with all."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}, but got {tuple(tensor.shape)}")

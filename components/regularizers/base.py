"""What regularizers share: what a term on the weights or outputs is summed in, and how a model's weights are read as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

Axis = Literal["outputs", "inputs"]


class Regularizer(nn.Module):
    """Base of regularizers: a scalar to be minimised beside the loss, its mean over the batch where it depends on one.

    ``forward``'s parameters are names of :mod:`components.quantities`. A regularizer is the bare term: its strength is the
    option's ``weight`` (a number or a schedule), which the objective multiplies with.

    Class facts, held by :class:`components.testing.RegularizerContract`:
        lower_bound: no value lies below it.
    """

    lower_bound: ClassVar[float] = 0.0

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training" and isinstance(v, int | float | str | bool)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


def widened(values: Tensor) -> Tensor:
    """At least float32: sums over many weights, and squares of large ones, do not fit half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, in one kernel."""
    return torch.stack(list(values)).sum()


def uncompiled(model: nn.Module) -> nn.Module:
    """The module below ``torch.compile``: its parameters' names do not depend on compilation, and it can be differentiated twice."""
    original = getattr(model, "_orig_mod", model)
    assert isinstance(original, nn.Module)
    return original


def weight_matrices(model: nn.Module, axis: Axis = "outputs") -> Iterator[tuple[str, Tensor]]:
    """Name and (units, weights of the unit) matrix of every trainable parameter with two dimensions or more.

    A row is what belongs to one output unit or filter, or with ``axis="inputs"`` to one input unit or channel. Biases and the
    scales of normalisations have one dimension and are left out; a tied weight appears once.
    """
    seen: set[int] = set()
    for prefix, module in uncompiled(model).named_modules():
        rows = 0 if axis == "outputs" else 1
        if isinstance(module, _ConvTransposeNd):  # stored (in, out, …), unlike all others
            rows = 1 - rows
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), widened(parameter.movedim(rows, 0)).flatten(1)

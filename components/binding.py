"""Binding: which named quantity feeds which parameter, settled once when the experiment is built.

A component's requirements are the parameters of its ``forward`` (a metric's: of its ``update``). :func:`bind` checks that a
task offers every required one and returns a :class:`Bound`, which picks them out of a mapping of quantities at each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from components.validation import did_you_mean


class BindingError(ValueError):
    """A component asks for a quantity that the task does not offer."""


class Bound(nn.Module):
    """A component together with the quantities that feed it. Call it with a mapping of quantities.

    Args:
        module: the component; a plain callable is accepted as well.
        arguments: parameter name -> quantity name.
        name: how errors and logs call it, e.g. ``regularizer.l1``.
    """

    def __init__(self, module: Callable[..., Any], arguments: Mapping[str, str], name: str) -> None:
        super().__init__()
        self.module = module
        self.arguments = dict(arguments)
        self.name = name

    def forward(self, quantities: Mapping[str, Any]) -> Any:
        values = {parameter: quantities[quantity] for parameter, quantity in self.arguments.items()}
        if getattr(self.module, "pairwise", False):
            values = gather_over_ranks(values)
        return self.module(**values)

    def extra_repr(self) -> str:
        return ", ".join(f"{p}={q}" for p, q in self.arguments.items())


def requirements(function: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Names of the required and the optional parameters of ``function``; ``*args`` and ``**kwargs`` ask for nothing."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in parameters if p.default is p.empty]
    return required, [p.name for p in parameters if p.default is not p.empty]


def bind(
    component: Any,
    offered: Iterable[str],
    *,
    name: str,
    task: str,
    inputs: Mapping[str, str] | None = None,
    method: str = "forward",
    offered_elsewhere: Mapping[str, Iterable[str]] | None = None,
) -> Bound:
    """Bind ``component`` to the quantities that a task offers.

    Args:
        component: the object; its ``method`` (or itself, where it has none) says what it asks for.
        offered: names of the quantities that the task offers.
        name: the option in the user's words, e.g. ``loss=dpo``.
        task: the task's name, for the error.
        inputs: parameter -> quantity, where they differ (third-party modules).
        method: ``forward`` for modules, ``update`` for metrics.
        offered_elsewhere: task name -> offered names, for the error's last line.

    Raises:
        BindingError: a required parameter is not offered, or ``inputs`` names a parameter or quantity that is not there.
    """
    offered = set(offered)
    inputs = dict(inputs or {})
    required, optional = requirements(getattr(component, method, component))
    for parameter, quantity in inputs.items():
        if parameter not in required + optional:
            takes = required + optional
            raise BindingError(f"{name}: inputs maps {parameter!r}, but it takes {', '.join(takes)}{did_you_mean(parameter, takes)}")
        if quantity not in offered:
            near = did_you_mean(quantity, offered)
            raise BindingError(f"{name}: inputs feeds {parameter!r} from {quantity!r}, but task={task} offers {_listed(offered)}{near}")
    arguments = {p: inputs.get(p, p) for p in required} | {p: inputs.get(p, p) for p in optional if inputs.get(p, p) in offered}
    missing = [q for q in arguments.values() if q not in offered]
    if missing:
        elsewhere = sorted(t for t, names in (offered_elsewhere or {}).items() if t != task and set(missing) <= set(names))
        raise BindingError(
            f"{name} needs {_listed(missing)}; task={task} offers {_listed(offered)}"
            + (f"; tasks that offer it: {', '.join(elsewhere)}" if elsewhere else "; no task offers it")
        )
    return Bound(component, arguments, name)


def gather_over_ranks(values: dict[str, Any]) -> dict[str, Any]:
    """The batch of all ranks, with gradients, so that a loss over pairs sees the same batch as one process would.

    Each rank then computes the same loss. The backward pass sums the ranks' gradients of the gathered tensors and DDP averages
    those of the parameters, which together is the gradient of the loss on the whole batch. With gradients, ranks must hold equal
    batches; without (validation), they may hold any, none included.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        return values
    return {k: _gather(v) if isinstance(v, Tensor) and v.ndim > 0 else v for k, v in values.items()}


def _gather(tensor: Tensor) -> Tensor:
    return _GatherWithGradient.apply(tensor) if torch.is_grad_enabled() else gather_rows(tensor)


class _GatherWithGradient(torch.autograd.Function):
    """Equally many rows of each rank, rank after rank. Backward: of the sum of the ranks' gradients, each its own rows."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all ranks, rank after rank, without gradients; ranks may hold any number of them, none included."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        return tensor
    lengths = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    sizes = [int(length) for length in lengths]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

"""What the optimizers of this package share: one loop over groups and equal steps, and state that a checkpoint brings back unrounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from components.optimizers.groups import Group
from components.validation import require

State = dict[str, Any]

CACHED_ELEMENTS = 1 << 15
"""Elements that a CPU works on at once: a quarter of a megabyte of parameter and gradient in float32."""


class GradientOptimizer(Optimizer):
    """An optimizer whose step needs the gradients, and perhaps the loss, and reads no value back from the device.

    A subclass gives :meth:`start` (a parameter's state before its first step) and :meth:`update` (one step of parameters that have made
    equally many). ``state["step"]`` is a plain integer: bias corrections are then computed without a look at the device.

    Class facts:
        exact_state: names of state tensors that keep their type. :class:`torch.optim.Optimizer` gives all others the parameter's when it
            loads them, which would round a sum kept in float32 beside bfloat16 weights, and turn indices into floats.
        steps_by_the_loss: the step uses the loss that its closure returns. See :mod:`components.tasks.stepping`.
    """

    exact_state: ClassVar[frozenset[str]] = frozenset()
    steps_by_the_loss: ClassVar[bool] = False

    def start(self, group: Group, parameter: Tensor) -> State:
        """The state of a parameter that makes its first step; ``step`` is added to it."""
        raise NotImplementedError

    def update(self, group: Group, step: int, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        """Move parameters that all make their ``step``-th step, counted from 1."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` (if any) computes the loss anew, once, and its value is returned."""
        loss = evaluate(closure)
        self.move()
        return loss

    def move(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for step, parameters, states in self.ready(group):
                self.update(group, step, parameters, [dense_gradient(self, p) for p in parameters], states)

    def ready(self, group: Group) -> list[tuple[int, list[Tensor], list[State]]]:
        """The group's parameters that have a gradient and their states, by the number of the step that they now make (counted up here).

        On a CPU in portions whose temporary tensors fit into its cache, elsewhere all together.
        """
        together: dict[int, tuple[list[Tensor], list[State]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            dense_gradient(self, parameter)
            state = self.state[parameter]
            if "step" not in state:
                state.update(self.start(group, parameter), step=0)
            state["step"] += 1
            parameters, states = together.setdefault(state["step"], ([], []))
            parameters.append(parameter)
            states.append(state)
        return [(step, *portion) for step, both in together.items() for portion in portions(*both)]

    def room(self, like: list[Tensor]) -> list[Tensor]:
        """Uninitialised tensors for what is computed in between, the same memory at every call: a CPU takes long to find some anew."""
        count, first = sum(tensor.numel() for tensor in like), like[0]
        flat = self.__dict__.get("_room")
        if flat is None or flat.numel() < count or flat.dtype != first.dtype or flat.device != first.device:
            self._room = flat = torch.empty(count, dtype=first.dtype, device=first.device)
        return [part.view(tensor.shape) for part, tensor in zip(flat[:count].split([tensor.numel() for tensor in like]), like, strict=True)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """As torch's, and :attr:`exact_state` as it was stored."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, parameter in zip(keys, parameters, strict=True):
            stored = state_dict["state"].get(key, {})
            for name in self.exact_state & stored.keys():
                self.state[parameter][name] = stored[name].detach().to(parameter.device, copy=True)


def portions(parameters: list[Tensor], states: list[State]) -> list[tuple[list[Tensor], list[State]]]:
    """Lists for ``torch._foreach_…``: whole ones for an accelerator, which launches one kernel for all; short ones for a CPU, which gains nothing so."""
    if parameters[0].device.type != "cpu":
        return [(parameters, states)]
    found: list[tuple[list[Tensor], list[State]]] = []
    room = 0
    for parameter, state in zip(parameters, states, strict=True):
        if not found or room < parameter.numel():
            found.append(([], []))
            room = CACHED_ELEMENTS
        room -= parameter.numel()
        found[-1][0].append(parameter)
        found[-1][1].append(state)
    return found


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """The loss of a closure, which is run with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def dense_gradient(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one.

    Raises:
        ValueError: it is sparse, or complex.
    """
    return dense(optimizer, cast(Tensor, parameter.grad))


def dense(optimizer: Optimizer, gradient: Tensor) -> Tensor:
    """The gradient itself; ValueError if it is sparse, or complex."""
    name = type(optimizer).__name__
    require(not gradient.is_sparse, f"{name} takes dense gradients, but got a sparse one: make the embedding with sparse=False, or use torch.optim.SparseAdam")
    require(not gradient.is_complex(), f"{name} takes real parameters, but got a complex one; optimise torch.view_as_real of it")
    return gradient


def scalar_loss(optimizer: Optimizer, loss: Any) -> Tensor:
    """The loss value that an update needs, in float32 or better on the parameters' device; under DDP the mean of all ranks'.

    Gradients are averaged over ranks already: with losses of their own, ranks would drift apart.
    """
    name = type(optimizer).__name__
    require(
        loss is not None,
        f"{name} needs the loss of the step: call step(closure) or step(loss=loss). A gradient scaler (precision 16-mixed) hides it: use bf16-mixed or 32",
    )
    first = optimizer.param_groups[0]["params"][0]
    dtype = at_least_float32(first)
    value = loss.detach().to(dtype=torch.promote_types(loss.dtype, dtype)) if isinstance(loss, Tensor) else torch.tensor(loss, dtype=dtype)
    require(value.numel() == 1, f"{name} needs one loss value", tuple(value.shape))
    return over_ranks(value.reshape(()).to(first.device))


def several_ranks() -> bool:
    """Whether this is one of several processes of a distributed training."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def over_ranks(value: Tensor) -> Tensor:
    """The mean over all processes of a distributed training; the value itself elsewhere."""
    if several_ranks():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


def at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def inner(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of two tensors of equal shape, in float32 or better."""
    dtype = at_least_float32(left)
    if left.dtype != dtype or right.dtype != dtype:
        left, right = left.to(dtype), right.to(dtype)
    return torch.dot(left.reshape(-1), right.reshape(-1))


def total(values: Sequence[Tensor], like: Tensor) -> Tensor:
    """The sum of scalars from perhaps several devices, on the device of ``like`` and in its type."""
    if not values:
        return torch.zeros_like(like)
    if any(value.dtype != like.dtype or value.device != like.device for value in values):
        values = [value.to(like) for value in values]
    return torch.stack(list(values)).sum()


def column(states: Sequence[State], name: str) -> list[Tensor]:
    """One entry of each state."""
    return [state[name] for state in states]


def zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format)


def require_options(lr: float, betas: Sequence[float] = (), eps: float = 0.0, weight_decay: float = 0.0) -> None:
    """The ranges that all optimizers share."""
    require(lr >= 0, "lr (the learning rate) must be >= 0", lr)
    require(all(0 <= beta < 1 for beta in betas), "betas must be numbers in [0, 1)", list(betas))
    require(eps >= 0, "eps must be >= 0", eps)
    require(weight_decay >= 0, "weight_decay must be >= 0", weight_decay)


def require_bounds(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    """(lowest, highest) of a box, or None."""
    if bounds is None:
        return None
    require(len(bounds) == 2 and bounds[0] < bounds[1], "bounds must be [lowest, highest]", list(bounds))
    return float(bounds[0]), float(bounds[1])


def project(parameters: list[Tensor], bounds: tuple[float, float] | None) -> None:
    """Clip to the box, in place."""
    if bounds is not None:
        torch._foreach_clamp_min_(parameters, bounds[0])
        torch._foreach_clamp_max_(parameters, bounds[1])

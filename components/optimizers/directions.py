"""Optimizers that take a gradient apart before they step: two losses with a momentum each (DOT), only what turns the weights (OrthoGrad)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from components.optimizers.base import GradientOptimizer, dense, dense_gradient, evaluate, inner, over_ranks, require_options, several_ranks
from components.optimizers.groups import Group
from components.validation import require, require_choice

BASES = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")


class DOT(GradientOptimizer):
    r"""SGD with a momentum for the task's gradient and a longer one for the distillation's: the teacher leads, the task follows.

    .. math:: v_\text{task} \leftarrow (\mu - \delta)\, v_\text{task} + g_\text{task} + w\theta, \qquad
              v_\text{kd} \leftarrow (\mu + \delta)\, v_\text{kd} + g_\text{kd}, \qquad
              \theta \leftarrow \theta - \eta\,(v_\text{task} + v_\text{kd})

    The buffers start as the first gradients. A parameter that one of the losses alone reaches has the plain momentum :math:`\mu`; every
    parameter decays once.

    Two ways to hand it two gradients: a closure that returns ``(task_loss, distillation_loss)`` without calling ``backward``, or

    .. code-block:: python

        optimizer.distill(distillation_loss)      # takes its gradient, and leaves the graph and ``.grad`` as they are
        task_loss.backward()
        optimizer.step()

    In losskit ``task=distillation`` does this: what looks at the teacher is the distillation's, all else the task's.
    Without either it is :class:`torch.optim.SGD` with momentum :math:`\mu`.

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 0.05, the authors' on CIFAR-100.
        momentum: :math:`\mu`; default 0.9.
        delta: :math:`\delta` >= 0 with :math:`\delta \le \mu` and :math:`\mu + \delta < 1`; default 0.075 (the authors' on ImageNet: 0.09).
        weight_decay: *w* >= 0, added to the task's gradient; default 0.

    Raises:
        ValueError: an option out of its range, a sparse or complex gradient.

    Source:
        Zhao, Cui, Song and Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv:2307.08436, algorithm 1; the released code
        leaves out the decay of parameters that the distillation alone reaches in the first step, which this does not.
    """

    takes_two_gradients: ClassVar[bool] = True

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Group], lr: float = 0.05, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 0.0
    ) -> None:
        require_options(lr, (), 0.0, weight_decay)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require(0 <= delta <= momentum and momentum + delta < 1, "delta must be >= 0 with delta <= momentum and momentum + delta < 1", delta)
        super().__init__(params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self._distilled: dict[Tensor, Tensor] = {}

    def distill(self, loss: Tensor | None = None) -> None:
        """Take the distillation's gradients for the next :meth:`step`; several calls before it add up, as backward passes do.

        Args:
            loss: the distillation loss; its graph is kept. Under DDP the gradients are averaged over the ranks, as a backward pass would.
                ``None``: the gradients that the parameters have are the distillation's; they are cleared.
        """
        if loss is None:
            parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            gradients = [dense_gradient(self, p) for p in parameters]
            for p in parameters:
                p.grad = None
        else:
            every = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            found = torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True)
            parameters = [p for p, g in zip(every, found, strict=True) if g is not None]
            gradients = mean_over_ranks([dense(self, g) for g in found if g is not None])
        for p, gradient in zip(parameters, gradients, strict=True):
            self._distilled[p] = self._distilled[p] + gradient if p in self._distilled else gradient

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear both gradients."""
        super().zero_grad(set_to_none)
        self._distilled.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; a closure's loss is returned, of a pair of losses the sum."""
        loss = evaluate(closure)
        if isinstance(loss, tuple):
            task, distillation = loss
            self.zero_grad()
            with torch.enable_grad():
                self.distill(distillation)
                task.backward()
            loss = (task + distillation).detach()
        for group in self.param_groups:
            for kind, parameters in self.reached(group).items():
                self.descend(group, kind, parameters)
        self._distilled.clear()
        return loss

    def reached(self, group: Group) -> dict[tuple[bool, bool], list[Tensor]]:
        """The group's parameters by which of the losses reach them: (task, distillation)."""
        found: dict[tuple[bool, bool], list[Tensor]] = {}
        for p in group["params"]:
            kind = (p.grad is not None, p in self._distilled)
            if any(kind):
                found.setdefault(kind, []).append(p)
        return found

    def descend(self, group: Group, kind: tuple[bool, bool], parameters: list[Tensor]) -> None:
        by_task, by_distillation = kind
        delta = group["delta"] if all(kind) else 0.0
        decay = group["weight_decay"]
        parts: list[tuple[str, float, list[Tensor]]] = []
        if by_task:
            parts.append(("task_buffer", group["momentum"] - delta, [dense_gradient(self, p) for p in parameters]))
        if by_distillation:
            parts.append(("distillation_buffer", group["momentum"] + delta, [self._distilled[p] for p in parameters]))
        if decay:
            name, momentum, gradients = parts[0]
            parts[0] = (name, momentum, list(torch._foreach_add(gradients, parameters, alpha=decay)))
        moves = []
        for name, momentum, gradients in parts:
            old = [(self.state[p][name], g) for p, g in zip(parameters, gradients, strict=True) if name in self.state[p]]
            if old:
                torch._foreach_mul_([buffer for buffer, _ in old], momentum)
                torch._foreach_add_([buffer for buffer, _ in old], [g for _, g in old])
            for p, g in zip(parameters, gradients, strict=True):
                if name not in self.state[p]:
                    self.state[p][name] = g.clone()
            moves.append([self.state[p][name] for p in parameters])
        for buffers in moves:
            torch._foreach_add_(parameters, buffers, alpha=-group["lr"])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_distilled": {}}


def mean_over_ranks(gradients: list[Tensor]) -> list[Tensor]:
    """Gradients that no backward pass of DDP has averaged: in one message for all of a type."""
    if not several_ranks():
        return gradients
    found = list(gradients)
    for dtype in {g.dtype for g in gradients}:
        places = [i for i, g in enumerate(gradients) if g.dtype == dtype]
        mean = over_ranks(torch.cat([gradients[i].reshape(-1) for i in places]))
        for i, part in zip(places, mean.split([gradients[i].numel() for i in places]), strict=True):
            found[i] = part.view_as(gradients[i])
    return found


class OrthoGrad(Optimizer):
    r"""Any optimizer without the part of the gradient along the weights, which in late training only scales the logits (:math:`\perp`\ Grad).

    For each parameter tensor *w* with gradient *g*, before the base optimizer's step:

    .. math:: g_\perp = g - \frac{\langle w, g\rangle}{\langle w, w\rangle}\, w, \qquad g \leftarrow g_\perp \frac{\lVert g\rVert}{\lVert g_\perp\rVert}

    A gradient that lies along the weights (of a parameter with one element, always) leaves nothing: its rounding error is not
    blown up. Weights of zero leave the gradient as it is. ``p.grad`` itself stays untouched.

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: learning rate of the base optimizer, >= 0; default 1e-3.
        weight_decay: of the base optimizer, >= 0; default 0 (the point is to do without).
        base: name of the base optimizer in :mod:`torch.optim`; default ``AdamW``.
        base_options: more of its options, by name; default: its own.
        rescale: give :math:`g_\perp` the gradient's norm, as the authors' code does (their formula is the projection alone); default true.

    Raises:
        ValueError: an option out of its range or one that the base does not take, a sparse or complex gradient.

    Source:
        Prieto, Barsbey, Mediano and Birdal, "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697, §5.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        base: str = "AdamW",
        base_options: Mapping[str, Any] | None = None,
        rescale: bool = True,
    ) -> None:
        require_options(lr, (), 0.0, weight_decay)
        require_choice("base", base, BASES)
        self._base_class = getattr(torch.optim, base)
        self._base_options = dict(base_options or {})
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "rescale": rescale})
        self._link()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, to the base optimizer too."""
        super().add_param_group(param_group)
        if "_base" in self.__dict__:
            self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; ``closure`` (if any) computes the loss anew, once, and its value is returned."""
        loss = evaluate(closure)
        given = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    given.append((p, dense_gradient(self, p)))
                    p.grad = across(p, p.grad, group["rescale"])
        self._base.step()
        for p, gradient in given:
            p.grad = gradient
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_base_class": self._base_class, "_base_options": self._base_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def _link(self) -> None:
        """Let the base optimizer act on this one's own groups and state: the dictionaries themselves, not copies."""
        defaults = {name: self.defaults[name] for name in ("lr", "weight_decay")}
        try:
            self._base: Optimizer = self._base_class(self.param_groups, **{**defaults, **self._base_options})
        except TypeError as error:
            raise ValueError(f"base_options must be options of torch.optim.{self._base_class.__name__}, but got {self._base_options!r}: {error}") from None
        self._base.state = self.state


def across(parameter: Tensor, gradient: Tensor, rescale: bool) -> Tensor:
    """The part of a gradient that is orthogonal to the parameter, with the gradient's norm if ``rescale``."""
    square = inner(parameter, parameter)
    share = torch.where(square > 0, inner(parameter, gradient) / square, torch.zeros_like(square))
    rest = torch.addcmul(gradient, parameter, share.to(gradient.dtype), value=-1)
    norm, left = torch.linalg.vector_norm(gradient), torch.linalg.vector_norm(rest)
    scale = norm / left if rescale else torch.ones_like(left)
    something = left > 8 * torch.finfo(gradient.dtype).eps * norm  # otherwise rounding is all that is left
    return rest.mul_(torch.where(something, scale, torch.zeros_like(left)))

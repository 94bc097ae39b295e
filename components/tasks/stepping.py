"""What some optimizers ask of the training loop beside gradients: the loss of all accumulated batches, two gradients, a loop without a scaler.

An optimizer says so with attributes, so that anybody's own can:

* ``steps_by_the_loss``: its step uses the loss that its closure returns (MoMo, normalised gradient descent …).
* ``takes_two_gradients``: it wants the gradient of a distillation term by itself, through ``distill(loss)`` (DOT).
* ``evaluates_twice``: its step runs the closure more than once (mirror-prox; torch's L-BFGS).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from components.validation import require


def steps_by_the_loss(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "steps_by_the_loss", False))


def takes_two_gradients(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "takes_two_gradients", False))


def evaluates_twice(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, LBFGS) or bool(getattr(optimizer, "evaluates_twice", False))


def check_loop(optimizer: Optimizer, trainer: lightning.Trainer) -> None:
    """Refuse, before training starts, what the trainer's settings and this optimizer cannot do together.

    Raises:
        ValueError: a gradient scaler (``precision=16-mixed``) with an optimizer that uses the loss's value or takes two gradients; gradient
            accumulation with one that evaluates its closure again; clipping with one that takes two gradients.
    """
    name = type(optimizer).__name__
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    instead = f"take trainer.precision=bf16-mixed or 32-true, or another optimizer; trainer.precision is {trainer.precision}"
    require(not (scaled and steps_by_the_loss(optimizer)), f"{name} steps by the value of the loss, which a gradient scaler hides: {instead}")
    require(not (scaled and takes_two_gradients(optimizer)), f"{name} takes two gradients, of which a gradient scaler unscales one only: {instead}")
    accumulated = trainer.accumulate_grad_batches
    require(
        accumulated == 1 or not evaluates_twice(optimizer),
        f"{name} evaluates its batch several times a step, and accumulated batches are gone by then: "
        "take trainer.accumulate_grad_batches=1 and a larger data.batch_size, or another optimizer; trainer.accumulate_grad_batches is",
        accumulated,
    )
    clipped = trainer.gradient_clip_val
    require(
        not (clipped and takes_two_gradients(optimizer)),
        f"{name} takes two gradients, and trainer.gradient_clip_val would clip one only: set it to null, or take another optimizer; it is",
        clipped,
    )


class AccumulatedLoss:
    """The loss whose gradient the parameters hold, while Lightning accumulates gradients.

    Lightning hands an optimizer the last batch's loss divided by ``accumulate_grad_batches`` beside the gradient of all of them. This
    follows the gradient: emptied where it is zeroed, added to where a backward pass adds to it. At the end of an epoch fewer batches may
    be left than are accumulated; loss and gradient are then those of the batches that there were, where Lightning's would be a share of them.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._batches = 0

    def empty(self) -> None:
        self._sum, self._batches = None, 0

    def add(self, loss: Tensor) -> None:
        """Add a batch's loss, divided as Lightning does."""
        value = loss.detach()
        self._sum = value if self._sum is None else self._sum + value
        self._batches += 1

    def closure(self, optimizer: Optimizer, last: Callable[[], Any], accumulated: int) -> Callable[[], Any]:
        """Lightning's closure for the last batch, made to return the mean loss of all that were accumulated."""

        def mean() -> Any:
            last()  # adds its own
            missing = accumulated / self._batches
            if self._batches != accumulated:
                gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(gradients, missing)
            assert self._sum is not None
            return self._sum * missing

        return mean

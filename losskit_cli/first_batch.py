"""The first batch, put through everything before a run begins: what does not fit together is an error that names it, and nothing is recorded."""

from __future__ import annotations

import copy
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from components.binding import Bound
from components.data.base import Batch, BatchLoader
from components.tasks.base import clone, detached
from losskit_cli.build import Experiment, user_errors
from losskit_cli.errors import UsageError

MODULE_INTERNALS = frozenset(vars(nn.Module()))


@dataclass
class FirstBatch:
    """What the first training batch gives: the total of the objective, with its graph, its parts, and how much work the forward pass is."""

    batch: Batch
    total: Tensor
    parts: dict[str, Tensor]
    operations: int


def first_batch(experiment: Experiment, choices: Mapping[str, Any]) -> FirstBatch:
    """One training batch forward, as the first step of training does it.

    Raises:
        UsageError: naming the transform, model, loss, regularizer or metric that cannot take what it is given.
    """
    task = experiment.task
    data, model, kind = (f"{group}={choices[group]}" if isinstance(choices.get(group), str) else group for group in ("data", "model", "task"))
    with user_errors(data):
        batch = _draw(experiment.data.train_dataloader())
    for name, transform in zip(experiment.config.get("transform") or {}, task.transforms, strict=False):
        with user_errors(f"transform.{name} does not go with {data}"):
            batch = transform(batch)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if isinstance(value, Tensor))
    with user_errors(f"{model}, {data} and {kind} do not go together (a batch has {shapes})"), FlopCounterMode(display=False) as counter:
        quantities = task.quantities(batch)
    try:
        total, parts = task.objective(quantities, 0)
    except Exception as error:
        with user_errors(f"{component_at_fault(error) or 'the objective'} fails on the first batch of {data}"):
            raise
        raise
    if total.ndim:
        raise UsageError(f"{task.objective.loss.name} gives values of shape {tuple(total.shape)}, but training needs one number: loss.reduction=mean or sum")
    if not total.requires_grad:
        raise UsageError(f"{task.objective.loss.name} with {model}: the loss does not depend on anything that can be trained")
    for name, metric in task.metrics_of("val").items():
        if isinstance(metric, Bound) and set(metric.arguments.values()) <= set(quantities):
            with user_errors(f"metrics.{name} does not go with {kind} and {data}"), torch.no_grad():
                cast(Any, clone(metric).module).update(**{p: detached(quantities[q]) for p, q in metric.arguments.items()})
    return FirstBatch(batch, total, parts, counter.get_total_flops())


@contextmanager
def leaving_no_trace(module: nn.Module) -> Iterator[None]:
    """What runs in here leaves buffers, counters and the random state as they were, so that training afterwards is the same to the bit; nothing is compiled."""
    saved = [(inner, _buffers_of(inner), _attributes_of(inner)) for inner in module.modules() if inner is not module]
    try:
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for owner, buffers, attributes in saved:
            for buffer, value in buffers.values():
                if buffer is not None and value is not None:
                    buffer.copy_(value)
            for name, (buffer, _) in buffers.items():
                owner._buffers[name] = buffer
            for name, value in attributes.items():
                object.__setattr__(owner, name, value)  # past nn.Module's own, which would register a module that was hidden from it


def _buffers_of(module: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """A module's own buffers, each with a copy."""
    return {name: (buffer, None if buffer is None else buffer.clone()) for name, buffer in module._buffers.items()}


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """A module's own plain attributes: counters, lists."""
    own = {name: value for name, value in vars(module).items() if name not in MODULE_INTERNALS}
    return {name: copy.copy(value) if isinstance(value, list | dict | set | deque) else value for name, value in own.items()}


def component_at_fault(error: BaseException) -> str | None:
    """Name of the innermost loss, regularizer or other bound component in which ``error`` arose: ``loss=focal``."""
    owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [owner.name for owner in owners if isinstance(owner, Bound)]
    return names[-1] if names else None


def _draw(loader: Any) -> Batch:
    """The first batch. Of our own loaders without starting worker processes, which would take longer than the batch."""
    if isinstance(loader, BatchLoader):
        return loader.fetch(next(loader.order.batches(0)))
    return dict(next(iter(loader)))


__all__ = ["FirstBatch", "component_at_fault", "first_batch", "leaving_no_trace"]

"""What a model returns, and what a task may ask of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """``output`` (N, num_outputs, …) and, where the model has them, the penultimate ``features`` (N, D)."""

    output: Tensor
    features: Tensor | None = None


def split_output(result: Any) -> ModelOutput:
    """Any model's result as a :class:`ModelOutput`: ours, a bare tensor, or an object with ``logits`` (transformers)."""
    if isinstance(result, ModelOutput):
        return result
    if isinstance(result, Tensor):
        return ModelOutput(result)
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        hidden = getattr(result, "hidden_states", None)
        return ModelOutput(logits, hidden[-1] if hidden else None)
    raise TypeError(f"a model must return a tensor, a ModelOutput or an object with .logits, but got {type(result).__name__}")

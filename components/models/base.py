"""What a model returns, and what a task may ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


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


def features_of(encoder: nn.Module, inputs: Tensor, asking: str = "this task") -> Tensor:
    """The features of a model, of any number of inputs; a model need not take empty batches (a rank's share of a last one).

    Raises:
        ValueError: the model reports none; ``asking`` says who wants them.
    """
    if not len(inputs):
        return features_of(encoder, inputs.new_zeros(1, *inputs.shape[1:]), asking)[:0]
    features = split_output(encoder(inputs)).features
    if features is None:
        raise ValueError(f"{asking} needs a model that reports features; {type(encoder).__name__} gives only an output")
    return features


def leave_out_head(encoder: nn.Module) -> None:
    """The model's own output layer has no part in a task that takes its features: left untrained, and DDP must know that."""
    for name in ("head", "head_layer"):
        layer = getattr(encoder, name, None)
        if isinstance(layer, nn.Module):
            layer.requires_grad_(False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each of its modules back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

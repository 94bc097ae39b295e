"""Models that take any input and flatten it: linear and the multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from components.models.base import ModelOutput
from components.models.layers import activation, check_inputs, init_he
from components.validation import require, require_choice


class LinearModel(nn.Module):
    r"""One linear layer on the flattened input: logistic or linear regression, and the first model to beat.

    .. math:: y = W\,\mathrm{vec}(x) + b

    Its features are the flattened input itself.

    Args:
        input_shape: shape of one input, without the batch.
        num_outputs: outputs; of each step where there is a horizon.
        horizon: steps to forecast; the output is then (N, horizon, num_outputs).
        bias: add :math:`b`.

    Shapes:
        inputs (N, \*input_shape), floating point; output (N, num_outputs) or (N, horizon, num_outputs); features (N, D) with
        D the product of ``input_shape``.

    Raises:
        ValueError: if a size is below 1, or the inputs don't have ``input_shape``.

    Source:
        Cox, "The Regression Analysis of Binary Sequences", JRSS B 20(2), 1958; layer: :class:`torch.nn.Linear`.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int, horizon: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        self.input_shape, self.output_shape = flat_shapes(input_shape, num_outputs, horizon)
        self.feature_dim = math.prod(self.input_shape)
        self.head = nn.Linear(self.feature_dim, math.prod(self.output_shape), bias=bias)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "linear", "inputs", self.input_shape)
        features = inputs.flatten(1)
        return ModelOutput(self.head(features).unflatten(1, self.output_shape), features)


class MLP(nn.Module):
    r"""Multilayer perceptron on the flattened input: linear layer, normalisation, activation, dropout; once a hidden layer.

    .. math:: h_0 = \mathrm{vec}(x), \quad h_{i} = \mathrm{dropout}(\phi(\mathrm{norm}(W_i h_{i-1} + b_i))), \quad y = W h_n + b

    Args:
        input_shape: shape of one input, without the batch.
        num_outputs: outputs; of each step where there is a horizon.
        horizon: steps to forecast; the output is then (N, horizon, num_outputs).
        hidden: width of each hidden layer.
        activation: relu | gelu | silu | tanh.
        norm: none | batch | layer, before the activation.
        dropout: probability, in [0, 1), after the activation.

    Shapes:
        inputs (N, \*input_shape), floating point; output (N, num_outputs) or (N, horizon, num_outputs); features (N, hidden[-1]).

    Raises:
        ValueError: if an option is out of its range, or the inputs don't have ``input_shape``.

    Source:
        Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        horizon: int | None = None,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(len(hidden) >= 1 and min(hidden) >= 1, "hidden must be a list of at least one width >= 1 (model=linear has none)", list(hidden))
        require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        self.input_shape, self.output_shape = flat_shapes(input_shape, num_outputs, horizon)
        widths = [math.prod(self.input_shape), *hidden]
        self.body = nn.Sequential(
            *(layer for before, width in itertools.pairwise(widths) for layer in hidden_layer(before, width, activation, norm, dropout))
        )
        init_he(self.body)
        self.feature_dim = widths[-1]
        self.head = nn.Linear(self.feature_dim, math.prod(self.output_shape))

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "mlp", "inputs", self.input_shape)
        features = self.body(inputs.flatten(1))
        return ModelOutput(self.head(features).unflatten(1, self.output_shape), features)


def hidden_layer(before: int, width: int, activation_name: str, norm: str, dropout: float) -> list[nn.Module]:
    """The modules of one hidden layer; what does nothing is left out."""
    require_choice("norm", norm, ("none", "batch", "layer"))
    layers: list[nn.Module] = [nn.Linear(before, width)]
    if norm != "none":
        layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
    layers.append(activation(activation_name))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers


def flat_shapes(input_shape: Sequence[int], num_outputs: int, horizon: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The checked shapes of one input and of one output."""
    inputs = tuple(int(size) for size in input_shape)
    require(len(inputs) >= 1 and min(inputs) >= 1, "input_shape must be a list of at least one size >= 1", list(inputs))
    require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
    require(horizon is None or horizon >= 1, "horizon must be >= 1", horizon)
    return inputs, (num_outputs,) if horizon is None else (horizon, num_outputs)

"""Networks of place and time, for differential equations; and densities given by an energy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.models.base import ModelOutput
from components.models.dense import hidden_layer
from components.models.layers import check_inputs
from components.validation import require


class CoordinateMLP(nn.Module):
    r"""A smooth network of place and time, periodic in place, with a branch of its own for each output.

    .. math:: f_k(x, t) = \mathrm{MLP}_k\big(\cos \tfrac{2 \pi x}{P},\; \sin \tfrac{2 \pi x}{P},\; t\big)

    Args:
        input_shape: (2,): place and time.
        num_outputs: branches.
        hidden: width of each hidden layer of a branch.
        activation: tanh | silu | gelu; with relu second derivatives are 0.
        period: *P* > 0, in the unit of place.

    Shapes:
        inputs (N, 2), floating point; output (N, num_outputs); features (N, num_outputs · hidden[-1]).

    Raises:
        ValueError: if an option is out of its range, or the inputs are no pairs of place and time.

    Source:
        The networks of Mojgani, Balajewicz and Hassanzadeh, "Lagrangian PINNs", 2022, arXiv:2205.02902: four tanh layers of 50, in parallel.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        hidden: Sequence[int] = (50, 50, 50, 50),
        activation: str = "tanh",
        period: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        require(list(input_shape) == [2], "input_shape must be [2], place and time (data=convection)", list(input_shape))
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(len(hidden) >= 1 and min(hidden) >= 1, "hidden must be a list of at least one width >= 1", list(hidden))
        require(period > 0, "period must be > 0", period)
        self.period, self.feature_dim = period, num_outputs * hidden[-1]
        self.branches = nn.ModuleList()
        self.heads = nn.ModuleList()
        for _ in range(num_outputs):
            widths = [3, *hidden]
            pairs = itertools.pairwise(widths)
            self.branches.append(nn.Sequential(*(layer for before, width in pairs for layer in hidden_layer(before, width, activation, "none", 0.0))))
            self.heads.append(nn.Linear(hidden[-1], 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "coordinate_mlp", "inputs", (2,))
        angle = inputs[:, 0] * (2 * math.pi / self.period)
        embedded = torch.stack([angle.cos(), angle.sin(), inputs[:, 1]], 1)
        features = [branch(embedded) for branch in self.branches]
        output = torch.cat([head(feature) for head, feature in zip(self.heads, features, strict=True)], 1)
        return ModelOutput(output, torch.cat(features, 1))


class GaussianEnergy(nn.Module):
    r"""The logarithm of a normal density with a learned mean and unit variance, without its constant.

    .. math:: s(x) = -\tfrac12 \lVert x - w \rVert^2

    Its one parameter makes the landscape of a loss visible; its integral is :math:`(2\pi)^{D/2}` whatever *w*.

    Args:
        input_shape: shape of one input, without the batch.
        num_outputs: 1.

    Shapes:
        inputs (N, \*input_shape), floating point; output (N, 1); features (N, D), :math:`x - w`.

    Raises:
        ValueError: if ``num_outputs`` is not 1, or the inputs don't have ``input_shape``.

    Source:
        The first experiment of Jiang et al., "Learning Unnormalized Statistical Models via Compositional Optimization", ICML 2023,
        arXiv:2306.07485.
    """

    def __init__(self, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        require(num_outputs == 1, "num_outputs must be 1 (model=gaussian_energy gives one log density)", num_outputs)
        self.input_shape = tuple(int(size) for size in input_shape)
        self.feature_dim = math.prod(self.input_shape)
        self.mean = nn.Parameter(0.01 * torch.randn(self.feature_dim))

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "gaussian_energy", "inputs", self.input_shape)
        distance = inputs.flatten(1) - self.mean
        return ModelOutput(-0.5 * distance.square().sum(1, keepdim=True), distance)

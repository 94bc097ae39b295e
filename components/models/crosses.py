"""Explicit crosses of features, for click-through rates: products of features up to an order that grows by one, or doubles, with each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.validation import require, require_choice


class CrossNetwork(nn.Module):
    r"""Layers that multiply the features by linear maps of themselves, a gate halving what goes through.

    .. math:: c = W_l x_l, \qquad x_{l+1} = x_a \odot ([c \,\|\, g(c)] + b_l) + x_l, \qquad
              x_a = x_1 \text{ (linear) or } x_l \text{ (exponential)}

    The order of the products is *l* + 1 after *l* linear layers and :math:`2^l` after *l* exponential ones. The gate: ``self_mask``,
    :math:`g(c) = c \odot \max(0, \mathrm{LN}(c))`, zero for about half; ``layer_norm``, :math:`\mathrm{LN}(c)`; ``affine``,
    :math:`\gamma c + \beta` (the released code's choices).

    Args:
        size: D, even.
        layers: number of layers, >= 1.
        growth: ``exponential`` | ``linear``.
        gate: ``self_mask`` | ``layer_norm`` | ``affine``.

    Shapes:
        x (N, D) -> (N, D).

    Raises:
        ValueError: an odd size, fewer than one layer, or an unknown growth or gate.

    Source:
        Li et al., "FCN: Fusing Exponential and Linear Cross Network for Click-Through Rate Prediction", 2024, arXiv:2407.13349.
    """

    def __init__(self, size: int, layers: int = 3, growth: str = "exponential", gate: str = "self_mask") -> None:
        super().__init__()
        require(size >= 2 and size % 2 == 0, "size must be even, >= 2", size)
        require(layers >= 1, "layers must be >= 1", layers)
        require_choice("growth", growth, ("exponential", "linear"))
        require_choice("gate", gate, ("self_mask", "layer_norm", "affine"))
        self.growth, self.gate = growth, gate
        half = size // 2
        self.maps = nn.ModuleList(nn.Linear(size, half, bias=False) for _ in range(layers))
        self.biases = nn.ParameterList(torch.rand(size) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(half) if gate != "affine" else Affine(half) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for linear, bias, norm in zip(self.maps, self.biases, self.norms, strict=True):
            c = linear(x)
            gated = c * norm(c).relu() if self.gate == "self_mask" else norm(c)
            x = (first if self.growth == "linear" else x) * (torch.cat([c, gated], 1) + bias) + x
        return x


class Affine(nn.Module):
    """A factor and a shift for each column."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class FusedCrossNetwork(nn.Module):
    r"""FCN: an exponential and a linear cross network side by side on embedded features, one logit each; no other network.

    Feature *f* of value :math:`x_f` is embedded as :math:`x_f v_f + u_f` in :math:`\mathbb{R}^d`; :math:`x_1` holds the first halves of all embeddings,
    then the second halves (the two views that the gate treats differently). The branches' logits are fused by the task (``task=ctr``).

    Args:
        num_features: F.
        width: d, size of a feature's embedding, even.
        layers: of each branch.
        branches: ``exponential`` and ``linear``, each any number of times; one alone is ECN or LCN.
        gate: ``self_mask`` | ``layer_norm`` | ``affine``, see :class:`CrossNetwork`.

    Shapes:
        inputs (N, F), floating point; output (N, K), a logit for each branch; features (N, K F d), the branches' last layers.

    Raises:
        ValueError: an option out of its range, or inputs of another shape.

    Source:
        Li et al., "FCN: Fusing Exponential and Linear Cross Network for Click-Through Rate Prediction", 2024, arXiv:2407.13349; the authors' code:
        github.com/salmon1802/FCN. Embeddings of numbers: Song et al., "AutoInt", CIKM 2019, arXiv:1810.11921.
    """

    def __init__(
        self, num_features: int, *, width: int = 8, layers: int = 3, branches: Sequence[str] = ("exponential", "linear"), gate: str = "self_mask"
    ) -> None:
        super().__init__()
        require(num_features >= 1, "num_features must be >= 1", num_features)
        require(width >= 2 and width % 2 == 0, "width must be even, >= 2", width)
        require(len(branches) >= 1, "branches must name at least one of exponential and linear", list(branches))
        self.num_features = num_features
        self.scale = nn.Parameter(torch.randn(num_features, width) / width**0.5)
        self.shift = nn.Parameter(torch.randn(num_features, width) / width**0.5)
        size = num_features * width
        self.branches = nn.ModuleList(CrossNetwork(size, layers, growth, gate) for growth in branches)
        self.heads = nn.ModuleList(nn.Linear(size, 1) for _ in branches)
        self.feature_dim = size * len(branches)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "fcn", "tables", (self.num_features,))
        embedded = inputs.unsqueeze(2) * self.scale + self.shift
        x = torch.cat([half.flatten(1) for half in embedded.chunk(2, dim=2)], 1)
        last = [branch(x) for branch in self.branches]
        logits = torch.cat([head(features) for head, features in zip(self.heads, last, strict=True)], 1)
        return ModelOutput(logits, torch.cat(last, 1))

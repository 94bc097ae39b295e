"""Building blocks that several models share: the check of the input's shape, normalisation by name, activations by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components.validation import require_choice

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = ("batch", "group", "none")


def check_inputs(inputs: Tensor, model: str, what: str, shape: Sequence[int | str], *, tokens: bool = False) -> None:
    """Refuse a batch that the model can't take.

    Args:
        inputs: the batch.
        model: the option's name, for the error.
        what: what the model takes, in words: ``"images"``.
        shape: one entry a dimension after the batch: a size, or a letter where any size will do.
        tokens: the model takes integers instead of floating-point numbers.

    Raises:
        ValueError: naming the model, the shape and kind of number it takes, and what it got.
    """
    fits = inputs.ndim == len(shape) + 1 and all(isinstance(size, str) or inputs.shape[i + 1] == size for i, size in enumerate(shape))
    if not fits or inputs.is_floating_point() == tokens:
        expected = ", ".join(["N", *map(str, shape)])
        kind = "integers" if tokens else "floating-point numbers"
        raise ValueError(f"model={model} takes {what} ({expected}) of {kind}, but got inputs of shape {tuple(inputs.shape)} and {inputs.dtype}")


def activation(name: str) -> nn.Module:
    """The activation called ``name``: relu, gelu, silu or tanh."""
    require_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm2d(name: str, channels: int, dimensions: int = 2) -> nn.Module:
    """Normalisation of (N, channels, H, W), or of volumes (``dimensions=3``): ``batch``, ``group`` (at most 8 groups of at least 4
    channels where they divide so) or ``none``.

    Group normalisation (Wu and He, 2018, arXiv:1803.08494) sees one sample at a time: it has no running statistics, computes
    the same on one process and on several, and bears small batches.
    """
    require_choice("norm", name, NORMS)
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)
    groups = math.gcd(channels, 8)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """He initialisation of every convolution and linear layer below ``module``: variance 2 / fan-in, biases 0.

    Source: He et al., "Delving Deep into Rectifiers", 2015, arXiv:1502.01852.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d):
            # a transposed convolution whose kernel is its stride feeds each output from one input pixel: its fan-in is its input channels
            fan_in = layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d) else layer.weight[0].numel()
            layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in))
            if layer.bias is not None:
                layer.bias.zero_()

"""Calibrators: the temperature by which a frozen classifier's logits are divided, one for all samples or each sample its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.validation import require


class TemperatureScaling(nn.Module):
    r"""One temperature for all samples: the ranking of confidences all but stays, their level moves.

    .. math:: T \in [T_{\min}, T_{\max}], \qquad p = \mathrm{softmax}(z / T)

    Args:
        minimum, maximum: bounds of the temperature, 0 < minimum < 1 < maximum.

    Shapes:
        features (N, …), of which only N counts -> temperatures (N, 1).

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 4.2.
    """

    def __init__(self, *, minimum: float = 0.1, maximum: float = 10.0) -> None:
        super().__init__()
        check_bounds(minimum, maximum)
        self.minimum, self.maximum = minimum, maximum
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        return self.temperature.clamp(self.minimum, self.maximum).expand(len(features), 1)


class AdaptiveTemperature(nn.Module):
    r"""A temperature for each sample, from how the classifier answers transformed views of it.

    .. math:: T_i = \operatorname{clamp}\bigl( w_2^\top \mathrm{relu}(W_1 u_i + b_1) + b_2,\; T_{\min},\, T_{\max} \bigr)

    with :math:`u_i` the probabilities that each view gives to the classes which the sample itself finds likeliest (:func:`view_probabilities`). Starts
    near *T* = 1 (ours). Where the clamp holds a sample, it has no gradient.

    Args:
        in_features: views x classes looked at.
        hidden: units.
        minimum, maximum: bounds of the temperature, 0 < minimum < 1 < maximum.

    Shapes:
        features (N, in_features) -> temperatures (N, 1).

    Source:
        Liu et al., "Optimizing Calibration by Gaining Aware of Prediction Correctness", 2024, arXiv:2404.13016.
    """

    def __init__(self, in_features: int, hidden: int = 5, *, minimum: float = 0.1, maximum: float = 10.0) -> None:
        super().__init__()
        require(in_features >= 1, "in_features must be >= 1", in_features)
        require(hidden >= 1, "hidden must be >= 1", hidden)
        check_bounds(minimum, maximum)
        self.minimum, self.maximum = minimum, maximum
        self.first = nn.Linear(in_features, hidden)
        self.second = nn.Linear(hidden, 1)
        nn.init.ones_(self.second.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features).relu()).clamp(self.minimum, self.maximum)


def check_bounds(minimum: float, maximum: float) -> None:
    require(0 < minimum < 1, "minimum must be in (0, 1)", minimum)
    require(maximum > 1, "maximum must be > 1", maximum)


def transformed_views(inputs: Tensor, rotation: float = 15.0, jitter: float = 0.3) -> Tensor:
    """Three views of each input, always the same ones: (3, N, …).

    Pictures (N, C, H, W) are turned, made grey (one channel: of half the contrast), and made brighter with more contrast. Other inputs are shrunk,
    stretched, and shifted by turns up and down along their last dimension (ours: the paper has pictures alone).

    Args:
        inputs: pictures or anything else, float.
        rotation: degrees.
        jitter: how much brightness and contrast, or scale and place, change.
    """
    if inputs.ndim == 4:
        angle = torch.deg2rad(torch.tensor(rotation))
        matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        matrix = torch.cat([matrix, torch.zeros(2, 1)], 1).to(inputs)
        grid = nn.functional.affine_grid(matrix.expand(len(inputs), 2, 3), list(inputs.shape), align_corners=False)
        turned = nn.functional.grid_sample(inputs, grid, padding_mode="border", align_corners=False)
        mean = inputs.mean((1, 2, 3), keepdim=True)
        grey = inputs.mean(1, keepdim=True).expand_as(inputs) if inputs.shape[1] > 1 else mean + 0.5 * (inputs - mean)
        return torch.stack([turned, grey, mean + (1 + jitter) * (inputs - mean) + jitter * mean])
    signs = 1 - 2 * (torch.arange(inputs.shape[-1], device=inputs.device) % 2).to(inputs.dtype)
    return torch.stack([(1 - jitter) * inputs, (1 + jitter) * inputs, inputs + jitter * signs])


def view_probabilities(logits: Tensor, view_logits: Tensor, top: int = 4) -> Tensor:
    """What the views make of the classes that the input itself finds likeliest: (N, A · top).

    Args:
        logits: (N, C) of the inputs.
        view_logits: (A, N, C) of their views.
        top: classes looked at, the likeliest first; at most C.
    """
    likeliest = logits.topk(min(top, logits.shape[1]), dim=1).indices
    probabilities = view_logits.softmax(2).gather(2, likeliest.expand(len(view_logits), -1, -1))
    return probabilities.movedim(0, 1).flatten(1)

"""A function as a sum of few bumps: Gaussians, or the generalised exponentials that can also be boxes and peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.validation import require, require_choice

SHAPES = ("exact", "modulated", "gaussian")
RHO = 0.1
PRUNED = 0.005


class GEFMixture(nn.Module):
    r"""Sum of generalised exponential functions of the coordinates, each with a place, a scale, a shape and an amplitude of its own.

    .. math:: f(x) = \sum_n A_n \exp\big(-d_n(x)^{\beta_n}\big), \qquad d_n(x)^2 = \sum_i \Big( \frac{x_i - \mu_{ni}}{\alpha_{ni}} \Big)^2

    :math:`\beta = 2` is a Gaussian (:math:`\alpha = \sqrt 2 \sigma`), 1 a Laplacian, large ones a box: few of them make what takes many Gaussians.
    ``shape="modulated"`` is the approximation that is used for splatting: a Gaussian whose scale is multiplied by
    :math:`\varphi(b) = 2 \sigma(0.1\, b)` with a learned *b* that starts at 0, and which is left out once :math:`\varphi < 0.005`.

    Args:
        input_shape: (D,), the coordinates.
        num_outputs: amplitudes of each function.
        particles: functions, >= 1.
        shape: exact | modulated | gaussian.
        scale: start of :math:`\alpha` > 0, in the unit of the coordinates.
        extent: places start at random in [-extent, extent].

    Shapes:
        inputs (N, D), floating point; output (N, num_outputs); features (N, particles), the functions with amplitude 1.

    Raises:
        ValueError: if an option is out of its range, or the inputs don't have ``input_shape``.

    Source:
        Hamdi et al., "GES: Generalized Exponential Splatting for Efficient Radiance Field Rendering", CVPR 2024, arXiv:2402.10128, sections 3.2
        and 4 (the authors also set shapes back every 1,000 steps; this does not). In more than one dimension :math:`d_n` is our reading.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        particles: int = 10,
        shape: str = "exact",
        scale: float = 0.2,
        extent: float = 1.0,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(int(size) for size in input_shape)
        require(len(self.input_shape) == 1 and self.input_shape[0] >= 1, "input_shape must be [D], one coordinate or more", list(self.input_shape))
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(particles >= 1, "particles must be >= 1", particles)
        require_choice("shape", shape, SHAPES)
        require(scale > 0, "scale must be > 0", scale)
        require(extent > 0, "extent must be > 0", extent)
        self.kind, self.feature_dim = shape, particles
        dimensions = self.input_shape[0]
        self.place = nn.Parameter(extent * (2 * torch.rand(particles, dimensions) - 1))
        self.log_scale = nn.Parameter(torch.full((particles, dimensions), math.log(scale)))
        self.amplitude = nn.Parameter(0.1 * torch.randn(particles, num_outputs))
        self.shape = nn.Parameter(torch.full((particles,), math.log(2.0) if shape == "exact" else 0.0)) if shape != "gaussian" else None

    def exponents(self) -> Tensor:
        r"""(particles,) :math:`\beta`, > 0; 2 for Gaussians."""
        return self.shape.exp() if self.kind == "exact" and self.shape is not None else self.place.new_full((self.feature_dim,), 2.0)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "gef_mixture", "coordinates", self.input_shape)
        scaled = (inputs.unsqueeze(1) - self.place) * torch.exp(-self.log_scale)
        squared = scaled.square().sum(2)
        if self.kind == "modulated" and self.shape is not None:
            factor = shape_factor(self.shape)
            bumps = torch.exp(-squared / factor.clamp(min=PRUNED).square()) * (factor >= PRUNED)
        else:
            bumps = generalised_exponential(squared, self.exponents())
        return ModelOutput(bumps @ self.amplitude, bumps)


def generalised_exponential(squared: Tensor, exponent: Tensor) -> Tensor:
    r""":math:`\exp(-d^\beta)` of the squared distance; the logarithm of 0 is bounded, so that gradients at a function's own place are finite."""
    return torch.exp(-torch.exp((0.5 * exponent * squared.clamp(min=1e-12).log()).clamp(max=10)))


def shape_factor(shape: Tensor, rho: float = RHO) -> Tensor:
    r""":math:`\varphi(b) = 2 \sigma(\rho b)`, 1 at 0: what a learned shape multiplies a Gaussian's scale with."""
    return 2 * torch.sigmoid(rho * shape)

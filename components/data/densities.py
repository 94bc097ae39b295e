"""Points drawn from a density that is known, for models of densities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.synthetic import Synthetic
from components.validation import require


class GaussianRing(Synthetic):
    r"""Equal Gaussians, evenly spaced on a circle; one alone sits at distance ``radius`` from the origin on the first axis.

    The target is the logarithm of the true density at each point: its mean over the test split, with the sign changed, is the least negative
    log-likelihood that a model can have.

    Args:
        size: points, over all splits.
        modes: Gaussians.
        radius: of the circle, >= 0.
        spread: standard deviation of each in every direction, > 0.
        dimensions: 1 or 2 (1 for a single Gaussian only).
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        The one- and two-dimensional experiments of Jiang et al., ICML 2023, arXiv:2306.07485.
    """

    def __init__(self, *, size: int = 5000, modes: int = 8, radius: float = 2.0, spread: float = 0.2, dimensions: int = 2, **common: Any) -> None:
        super().__init__(size=size, standardise=False, standardise_target=False, **common)
        require(modes >= 1, "modes must be >= 1", modes)
        require(radius >= 0, "radius must be >= 0", radius)
        require(spread > 0, "spread must be > 0", spread)
        require(dimensions in (1, 2) and (dimensions == 2 or modes == 1), "dimensions must be 2, or 1 with modes=1", dimensions)
        self.modes, self.radius, self.spread, self.dimensions = modes, radius, spread, dimensions

    def centres(self) -> Tensor:
        """(modes, dimensions)."""
        angle = 2 * math.pi * torch.arange(self.modes, dtype=torch.float64) / self.modes
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)[:, : self.dimensions]

    def log_density(self, points: Tensor) -> Tensor:
        """(N,) the true one."""
        scaled = (points.double().unsqueeze(1) - self.centres()) / self.spread
        constant = self.dimensions * (0.5 * math.log(2 * math.pi) + math.log(self.spread)) + math.log(self.modes)
        return (-0.5 * scaled.square().sum(2)).logsumexp(1) - constant

    def read(self) -> Samples:
        generator = self.generator()
        mode = torch.randint(self.modes, (self.total,), generator=generator)
        points = self.centres()[mode] + self.spread * torch.randn(self.total, self.dimensions, generator=generator, dtype=torch.float64)
        return Samples(points.float(), self.log_density(points).unsqueeze(1), "real", [])

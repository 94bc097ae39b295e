"""Densities up to a constant: a network of the points, and noise to compare it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.base import Batch
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require, require_choice

LOG_TWO_PI = math.log(2 * math.pi)


class DensityEstimationTask(Task):
    r"""Learn :math:`s_\theta(x)`, the logarithm of the data's density up to a constant, with the help of noise whose density is known.

    A training step draws new noise; a validation draws the same every time. What is logged as ``nll`` is the negative log-likelihood of the density
    normalised over a grid: the truth about the model, whatever the loss thinks its constant is.

    Args:
        input_shape: (D,) of the points.
        noise: ``uniform`` over the box [-extent, extent]^D (the model is then a density on that box; data outside it count as inside), or
            ``gaussian`` with standard deviation ``extent``.
        extent: see ``noise``; in the unit of the data.
        noise_samples: R, noise points to a point of data.
        grid: places along each side of the grid that normalises.
        grid_extent: half the side of the grid; default: ``extent`` for uniform noise, 8 times that for Gaussian noise.

    Shapes:
        inputs (N, D); log_density, log_noise, normalised_log_density (N,); noise_log_density, noise_log_noise (N, R). The model's output is (N, 1).

    Raises:
        ValueError: if an option is out of its range, or ``normalised_log_density`` is asked for in more than two dimensions.

    Source:
        Jiang et al., ICML 2023, arXiv:2306.07485; Gutmann and Hyvärinen, JMLR 13, 2012.
    """

    offers: ClassVar[frozenset[str]] = frozenset(
        {"log_density", "log_noise", "noise_log_density", "noise_log_noise", "normalised_log_density", "features"}
    )
    metric_stages = ("val", "test")

    def __init__(
        self,
        *args: Any,
        input_shape: Sequence[int],
        noise: str = "uniform",
        extent: float = 4.0,
        noise_samples: int = 4,
        grid: int = 100,
        grid_extent: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require_choice("noise", noise, ("uniform", "gaussian"))
        require(extent > 0, "extent must be > 0", extent)
        require(noise_samples >= 1, "noise_samples must be >= 1", noise_samples)
        require(grid >= 2, "grid must be >= 2", grid)
        require(grid_extent is None or grid_extent > 0, "grid_extent must be > 0", grid_extent)
        self.input_shape = tuple(int(size) for size in input_shape)
        self.noise, self.extent, self.noise_samples, self.grid = noise, float(extent), noise_samples, grid
        self.grid_extent = float(grid_extent or (extent if noise == "uniform" else 8 * extent))

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        return {"num_outputs": 1}

    def quantities(self, batch: Batch) -> Quantities:
        inputs = batch["inputs"]
        noise = self.draw(len(inputs) * self.noise_samples, inputs)
        output, features = self.run_model(torch.cat([inputs, noise]))
        require(output.shape[1:] == (1,), "the model must put out one log density a point, (N, 1)", tuple(output.shape))
        of_data, of_noise = output.squeeze(1).split([len(inputs), len(noise)])
        shape = (len(inputs), self.noise_samples)
        return self.common(
            batch,
            log_density=of_data,
            log_noise=self.log_noise(inputs),
            noise_log_density=of_noise.reshape(shape),
            noise_log_noise=self.log_noise(noise).reshape(shape),
            normalised_log_density=lazy(lambda q: q["log_density"].detach() - self.log_partition(inputs)),
            features=None if features is None else features[: len(inputs)],
        )

    def draw(self, count: int, like: Tensor) -> Tensor:
        """(count, \\*input_shape) noise points, in type and on the device of ``like``."""
        shape = (count, *self.input_shape)
        if self.noise == "gaussian":
            return self.extent * torch.randn(shape, dtype=like.dtype, device=like.device)
        return self.extent * (2 * torch.rand(shape, dtype=like.dtype, device=like.device) - 1)

    def log_noise(self, points: Tensor) -> Tensor:
        """(N,) logarithm of the noise's density; of the box, also outside it."""
        size = math.prod(self.input_shape)
        if self.noise == "uniform":
            return points.new_full((len(points),), -size * math.log(2 * self.extent))
        return -0.5 * (points / self.extent).square().flatten(1).sum(1) - size * (0.5 * LOG_TWO_PI + math.log(self.extent))

    @torch.no_grad()
    def log_partition(self, like: Tensor) -> Tensor:
        """Logarithm of the integral of exp(s) over the grid, by the midpoint rule."""
        size = math.prod(self.input_shape)
        require(size <= 2, "normalised_log_density takes points of one or two dimensions (a grid of more is too large)", size)
        side = 2 * self.grid_extent / self.grid
        places = (torch.arange(self.grid, dtype=like.dtype, device=like.device) + 0.5) * side - self.grid_extent
        points = torch.cartesian_prod(*[places] * size).reshape(-1, *self.input_shape)
        values = torch.cat([self.run_model(part).output for part in points.split(65_536)])
        return values.double().logsumexp((0, 1)).to(like.dtype) + size * math.log(side)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # the same noise at every validation, and training's random state stays as it is
            torch.manual_seed(0)
            super()._evaluate(stage, batch)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"log_density": self.run_model(batch["inputs"]).output.squeeze(1)}

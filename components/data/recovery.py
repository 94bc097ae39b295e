"""Sets of things to get back or to fit: sparse signals behind a measurement matrix, simple signals on a line, pictures under noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.base import Split
from components.data.files import bundled
from components.data.images import Images
from components.data.synthetic import Synthetic
from components.validation import require, require_choice

LINES = ("square", "triangle", "parabola", "half_sinusoid", "exponential")


class SparseRecovery(Synthetic):
    r"""Sparse signals seen through fewer random measurements than they have entries.

    .. math:: y = A s + e, \qquad s_i \sim \text{Bernoulli}(p)\, N(0, 1), \quad A_{ij} \sim N(0, 1/M), \quad e \sim N(0, \sigma^2 I)

    with :math:`\sigma^2` such that the signal-to-noise ratio of the measurements is ``snr`` dB. Inputs are *y*, the target is *s*; the matrix is the
    fact ``measurement_matrix``, which the unfolded models and ``task=sparse_recovery`` take.

    Args:
        size: signals, over all splits.
        dimensions: N.
        measurements: M.
        active: p, in (0, 1).
        snr: in dB; large: no noise to speak of.
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        The setting of Nagahisa, Hayakawa and Iiguni, 2025, arXiv:2509.01331.
    """

    def __init__(self, *, size: int = 2000, dimensions: int = 100, measurements: int = 50, active: float = 0.1, snr: float = 20.0, **common: Any) -> None:
        super().__init__(size=size, standardise=False, standardise_target=False, **common)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(measurements >= 1, "measurements must be >= 1", measurements)
        require(0 < active < 1, "active must be in (0, 1)", active)
        self.dimensions, self.measurements, self.active, self.snr = dimensions, measurements, active, snr

    def matrix(self) -> Tensor:
        """A, (M, N), in double precision; a draw of ``split_seed``."""
        generator = torch.Generator().manual_seed((self.split_seed * 1_000_003 + 19) % (1 << 63))
        return torch.randn(self.measurements, self.dimensions, generator=generator, dtype=torch.float64) / math.sqrt(self.measurements)

    def read(self) -> Samples:
        generator = self.generator()
        shape = (self.total, self.dimensions)
        active = torch.rand(shape, generator=generator, dtype=torch.float64) < self.active
        signals = torch.randn(shape, generator=generator, dtype=torch.float64) * active
        clean = signals @ self.matrix().T
        # each measurement's variance is p N / M
        noise = math.sqrt(self.active * self.dimensions / self.measurements) * 10 ** (-self.snr / 20)
        measured = clean + noise * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        return Samples(measured.float(), signals, "real", [])

    def target_facts(self, train: Split) -> dict[str, Any]:
        return super().target_facts(train) | {"measurement_matrix": self.matrix().float().tolist()}


class LineSignal(Synthetic):
    """A simple signal on [-1, 1], to be fitted by few functions: its value at evenly spaced places.

    ``square``: 1 for abs(x) < 1/2, else 0; ``triangle``: 1 - 2 abs(x) there; ``parabola``: 1 - 4 x² there; ``half_sinusoid``: cos(pi x) there;
    ``exponential``: exp(-4 abs(x)) everywhere.

    Args:
        size: places, over all splits.
        kind: see above.
        noise: standard deviation on the values.
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        The one-dimensional experiment of Hamdi et al., "GES", CVPR 2024, arXiv:2402.10128.
    """

    def __init__(self, *, size: int = 500, kind: str = "square", noise: float = 0.0, **common: Any) -> None:
        super().__init__(size=size, standardise=False, standardise_target=False, **common)
        require_choice("kind", kind, LINES)
        require(noise >= 0, "noise must be >= 0", noise)
        self.kind, self.noise = kind, noise

    def read(self) -> Samples:
        x = torch.linspace(-1, 1, self.total, dtype=torch.float64)
        inside = (x.abs() < 0.5).double()
        values = {
            "square": inside,
            "triangle": inside * (1 - 2 * x.abs()),
            "parabola": inside * (1 - 4 * x.square()),
            "half_sinusoid": inside * torch.cos(math.pi * x),
            "exponential": torch.exp(-4 * x.abs()),
        }[self.kind]
        values = values + self.noise * torch.randn(self.total, generator=self.generator(), dtype=torch.float64)
        return Samples(x.unsqueeze(1).float(), values.unsqueeze(1), "real", [])


class NoisyPictures(Images):
    """200 grey pictures, 25×25, under Gaussian noise; the target is the clean picture, in [0, 1], its pixels in a row.

    Args:
        noise: standard deviation of the noise, white being 1. The same draw for every run of one ``split_seed``.
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        Huang et al., "Labeled Faces in the Wild", 2007; the subset in scikit-image (``skimage.data.lfw_subset``).
    """

    def __init__(self, *, noise: float = 0.2, **common: Any) -> None:
        super().__init__(standardise_target=False, **common)
        require(noise >= 0, "noise must be >= 0", noise)
        self.noise = noise

    def read(self) -> Samples:
        clean = torch.as_tensor(np.load(bundled("skimage", "data/lfw_subset.npy"))).float().unsqueeze(1)
        generator = torch.Generator().manual_seed((self.split_seed * 1_000_003 + 23) % (1 << 63))
        noisy = clean + self.noise * torch.randn(clean.shape, generator=generator)
        return Samples(noisy, clean.flatten(1).double(), "real", [])

"""Vessels: thin curved tubes in noise, in volumes or pictures, whose signal is lost here and there while the tube goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.synthetic import Synthetic
from components.validation import require


class Vessels(Synthetic):
    r"""Tubes along quadratic curves from one side of a volume to the opposite one; the mask is whole where the signal has gaps.

    A voxel within ``radius`` of a curve is vessel. It shines with 1, but with ``fade`` in ``gaps`` pieces of each curve (as slow flow does in angiography); all
    voxels have Gaussian noise. What a model sees locally as background is vessel where it continues what stands on both sides.

    Args:
        size: volumes, over all splits.
        dimensions: 3 volumes, 2 pictures.
        side: of a volume, in voxels.
        vessels: curves in each.
        radius: of the tubes, in voxels, > 0; each has between 0.7 and 1.3 times that.
        gaps: pieces without signal in each curve.
        gap_length: share of a curve that each gap takes, in [0, 1).
        fade: signal left in a gap, in [0, 1].
        noise: standard deviation.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The property is that of Radhakrishna et al., "SPOCKMIP", 2024, arXiv:2407.08655 (vessels of one to two voxels in MR angiography); the generator is ours.
    """

    def __init__(
        self,
        *,
        size: int = 60,
        dimensions: int = 3,
        side: int = 20,
        vessels: int = 2,
        radius: float = 1.0,
        gaps: int = 2,
        gap_length: float = 0.1,
        fade: float = 0.2,
        noise: float = 0.4,
        **common: Any,
    ) -> None:
        super().__init__(size=size, **common)
        require(dimensions in (2, 3), "dimensions must be 2 or 3", dimensions)
        require(side >= 8, "side must be >= 8", side)
        require(vessels >= 1, "vessels must be >= 1", vessels)
        require(radius > 0, "radius must be > 0", radius)
        require(gaps >= 0, "gaps must be >= 0", gaps)
        require(0 <= gap_length < 1, "gap_length must be in [0, 1)", gap_length)
        require(0 <= fade <= 1, "fade must be in [0, 1]", fade)
        require(noise >= 0, "noise must be >= 0", noise)
        self.dimensions, self.side, self.vessels, self.radius = dimensions, side, vessels, radius
        self.gaps, self.gap_length, self.fade, self.noise = gaps, gap_length, fade, noise

    def read(self) -> Samples:
        generator = self.generator()
        shape = (self.side,) * self.dimensions
        voxels = torch.cartesian_prod(*[torch.arange(self.side, dtype=torch.float32)] * self.dimensions)
        signal, mask = torch.zeros(self.total, len(voxels)), torch.zeros(self.total, len(voxels), dtype=torch.bool)
        for sample in range(self.total):
            for _ in range(self.vessels):
                inside, shine = self.tube(voxels, generator)
                mask[sample] |= inside
                signal[sample] = torch.maximum(signal[sample], shine)
        inputs = signal + self.noise * torch.randn(signal.shape, generator=generator)
        return Samples(inputs.reshape(-1, 1, *shape), mask.long().reshape(-1, *shape), "multiclass", ["background", "vessel"])

    def tube(self, voxels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which voxels lie in a random tube, and its signal at each."""
        last = self.side - 1
        start, control, end = last * torch.rand(3, self.dimensions, generator=generator)
        along = int(torch.randint(self.dimensions, (), generator=generator))
        start[along], end[along] = 0.0, float(last)
        t = torch.linspace(0, 1, 4 * self.side)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        first = (1 - self.gap_length) * torch.rand(self.gaps, generator=generator)
        lost = ((t >= first) & (t < first + self.gap_length)).any(1)
        distance, nearest = torch.cdist(voxels, curve).min(1)
        inside = distance <= self.radius * (0.7 + 0.6 * float(torch.rand((), generator=generator)))
        return inside, inside * torch.where(lost, self.fade, 1.0)[nearest]

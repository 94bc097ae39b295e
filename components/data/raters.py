"""Pictures that several raters have segmented, and not all alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.validation import require


class RaterShapes(Synthetic):
    r"""A bright disk that all raters see and a dim one that each of them includes with a given probability; their outlines differ a little, too.

    Beside ``target`` (the first rater's mask) each sample has ``rater_targets`` (R, H, W), which label noise leaves alone. What is to be learned is a
    distribution of masks: with the dim disk in a share ``inclusion`` of them, never half of it or a grey one.

    Args:
        size: pictures, over all splits.
        side: of a picture, in pixels.
        raters: R, 2 or more.
        inclusion: probability that a rater includes the dim disk, in [0, 1].
        spread: standard deviation of a rater's radius of each disk, in pixels.
        radius: mean radius, in pixels; each disk has between 0.75 and 1.25 times that.
        noise: standard deviation of the picture's noise; the disks' signals are 1 and 0.5.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting of Kohl et al., "A Probabilistic U-Net", NeurIPS 2018, arXiv:1806.05034, and of PULASki, 2023, arXiv:2312.15686; the generator is ours.
    """

    def __init__(
        self,
        *,
        size: int = 200,
        side: int = 24,
        raters: int = 4,
        inclusion: float = 0.5,
        spread: float = 0.3,
        radius: float = 3.0,
        noise: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(size=size, **common)
        require(side >= 12, "side must be >= 12", side)
        require(raters >= 2, "raters must be >= 2", raters)
        require(0 <= inclusion <= 1, "inclusion must be in [0, 1]", inclusion)
        require(spread >= 0, "spread must be >= 0", spread)
        largest = 0.2 * side - 0.8  # both disks fit into their halves
        require(0 < radius <= largest, f"radius must be in (0, {largest:g}] for side={side}", radius)
        require(noise >= 0, "noise must be >= 0", noise)
        self.side, self.raters, self.inclusion, self.spread, self.radius, self.noise = side, raters, inclusion, spread, radius, noise
        self.masks = torch.empty(0)

    def read(self) -> Samples:
        generator = self.generator()
        n, half = self.total, self.side / 2
        margin = 1.25 * self.radius + 1
        # the sure disk in one half of the picture, the doubtful one in the other, mirrored at random
        across = margin + (half - 2 * margin) * torch.rand(n, 2, generator=generator) + torch.tensor([0.0, half])
        across = torch.where(torch.rand(n, 1, generator=generator) < 0.5, across, across.flip(1))
        down = margin + (self.side - 2 * margin) * torch.rand(n, 2, generator=generator)
        radius = self.radius * (0.75 + 0.5 * torch.rand(n, 2, generator=generator))
        position = torch.arange(self.side) + 0.5
        distance = ((position[:, None] - down[..., None, None]) ** 2 + (position - across[..., None, None]) ** 2).sqrt()  # (n, 2, side, side)
        disks = distance <= radius[..., None, None]
        signal = disks[:, 0] * 1.0 + disks[:, 1] * 0.5
        inputs = signal + self.noise * torch.randn(signal.shape, generator=generator)
        drawn = radius[:, None] + self.spread * torch.randn(n, self.raters, 2, generator=generator)
        seen = distance[:, None] <= drawn[..., None, None]  # (n, raters, 2, side, side)
        included = torch.rand(n, self.raters, generator=generator) < self.inclusion
        self.masks = (seen[:, :, 0] | (seen[:, :, 1] & included[..., None, None])).long()
        return Samples(inputs.unsqueeze(1), self.masks[:, 0], "multiclass", ["background", "disk"])

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        return with_more(super().encode(samples), self.rows, {"rater_targets": self.masks})


def with_more(splits: tuple[Split, Split, Split], rows: dict[str, Tensor], more: dict[str, Tensor]) -> tuple[Split, Split, Split]:
    """The splits with further tensors of the whole set, each split its rows."""
    first, second, third = (split | {name: tensor[of] for name, tensor in more.items()} for split, of in zip(splits, rows.values(), strict=True))
    return first, second, third

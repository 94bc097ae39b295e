"""Things that several people rated, in data sets with scales of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.base import Split
from components.data.synthetic import Synthetic
from components.losses.ordinal import on_levels
from components.validation import require

LEVELS = ("bad", "poor", "fair", "good", "excellent")


class RatedQuality(Synthetic):
    r"""A quality that a fixed random network sees in the inputs, rated by some people with their own errors, in two data sets on different scales.

    The first data set has the whole range of qualities and a scale of 0 … 100; the second has the better part only (above quantile ``cut``), and a
    scale of 1 … 10 on which differences at the top are stretched. Each scale's least and greatest mean rating are brought to the levels 1 and 5
    (:func:`components.losses.ordinal.on_levels`), so that the same quality is at another level in each.

    A batch has, beside ``inputs`` and ``target`` (the nearest level, 0 … 4): ``target_mean`` and ``target_std`` (mean and standard deviation of the
    ratings, in levels) and ``group`` (the data set). ``label_noise`` changes ``target`` alone.

    Args:
        size: samples, over all splits; half of them in each data set.
        dimensions: of the inputs.
        raters: people who rate each sample, >= 2.
        noise: standard deviation of a rater's error, the whole range of qualities being 1.
        cut: quantile of quality below which the second data set has none, in [0, 1).
        **common: see :class:`~components.data.base.DataModule`.

    Source:
        A stand-in for the several image quality data sets of You et al., "Teaching Large Language Models to Regress Accurate Image Quality Scores
        using Score Distribution", CVPR 2025, arXiv:2501.11561.
    """

    def __init__(self, *, size: int = 2000, dimensions: int = 10, raters: int = 8, noise: float = 0.12, cut: float = 0.4, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(dimensions >= 1, "dimensions must be >= 1", dimensions)
        require(raters >= 2, "raters must be >= 2", raters)
        require(noise > 0, "noise must be > 0", noise)
        require(0 <= cut < 1, "cut must be in [0, 1)", cut)
        self.dimensions, self.raters, self.noise, self.cut = dimensions, raters, noise, cut
        self.ratings: dict[str, Tensor] = {}

    def read(self) -> Samples:
        generator = self.generator()

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        first, second = normal(self.dimensions, 16) / self.dimensions**0.5, normal(16) / 4
        # more than are kept: the second data set throws away those below the cut
        inputs = normal(round(self.total * 2 / (1 - self.cut)) + 100, self.dimensions)
        said = torch.tanh(2 * inputs @ first) @ second
        quality = torch.sigmoid(2 * (said - said.mean()) / said.std())
        half = self.total // 2
        rest = torch.arange(len(inputs))[half:]
        good = rest[quality[rest] > quality.quantile(self.cut)][: self.total - half]
        chosen = torch.cat([torch.arange(half), good])
        inputs, quality = inputs[chosen], quality[chosen]
        group = (torch.arange(len(chosen)) >= half).long()
        rated = (quality.unsqueeze(1) + self.noise * normal(len(chosen), self.raters)).clamp(0, 1)
        rated = torch.where(group.unsqueeze(1) == 0, 100 * rated, 1 + 9 * rated.square())
        mean, std = rated.mean(1), rated.std(1)
        for data_set in (0, 1):
            members = group == data_set
            mean[members], std[members] = on_levels(mean[members], std[members], mean[members].min(), mean[members].max(), len(LEVELS))
        self.ratings = {"target_mean": mean.float(), "target_std": std.float(), "group": group}
        return Samples(inputs.float(), (mean.round() - 1).long(), "multiclass", list(LEVELS))

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        parts = zip(super().encode(samples), self.rows.values(), strict=True)
        first, second, third = (split | {name: values[rows] for name, values in self.ratings.items()} for split, rows in parts)
        return first, second, third

"""Corruption on purpose: wrong labels, long tails, less data, missing values. Reproducible, and for the training split only.

Each kind draws from its own generator, made from ``(seed, kind)``: switching one on does not change what another one draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.validation import require, require_choice

IGNORED = -100


@dataclass(frozen=True)
class Corruption:
    r"""What is done to the training split, in this order: ``fraction``, ``imbalance``, ``label_noise``, ``missing``.

    Args:
        label_noise: share of the training targets that become wrong, in [0, 1]; exactly ``round(label_noise · n)`` of them.
        noise_kind: ``symmetric``: a wrong class is one of the other classes, all equally likely; a wrong bit of a multi-label
            target is flipped; a wrong real target is that of another training sample. ``pair``: class c becomes c + 1 (the last
            one becomes the first), for targets with one class each.
        imbalance: long tail: size of the largest class over that of the smallest, >= 1. Class c of C keeps at most
            :math:`n_{max} \cdot \text{imbalance}^{-c / (C - 1)}` samples, at least one.
        fraction: share of the training samples that is kept, in (0, 1]; of every class the same share, at least one sample.
        missing: share of the input values that are lost, in [0, 1). Lost values are imputed with the mean of the values of the
            same column (table), channel (image, a pixel is lost in all channels) or series that are left in the training split.
        seed: of the draws.

    Raises:
        ValueError: if a value lies outside its range, or the target has no classes where classes are needed.

    Source:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise", 2017, arXiv:1609.03683 (symmetric);
        Han et al., "Co-teaching", 2018, arXiv:1804.06872 (pair); Cui et al., "Class-Balanced Loss Based on Effective Number of
        Samples", 2019, arXiv:1901.05555 (long tail).
    """

    label_noise: float = 0.0
    noise_kind: str = "symmetric"
    imbalance: float = 1.0
    fraction: float = 1.0
    missing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.label_noise <= 1, "label_noise must be in [0, 1]", self.label_noise)
        require_choice("noise_kind", self.noise_kind, ("symmetric", "pair"))
        require(self.imbalance >= 1, "imbalance must be >= 1 (the largest class over the smallest)", self.imbalance)
        require(0 < self.fraction <= 1, "fraction must be in (0, 1]", self.fraction)
        require(0 <= self.missing < 1, "missing must be in [0, 1)", self.missing)

    def kept(self, target: Tensor, target_kind: str, num_classes: int) -> Tensor:
        """Indices, ascending, of the samples that ``fraction`` and ``imbalance`` leave."""
        stratified = target_kind == "multiclass" and target.ndim == 1
        require(self.imbalance == 1 or (stratified and num_classes > 1), "imbalance needs a target with one class per sample; leave it at 1", self.imbalance)
        order = torch.randperm(len(target), generator=self._generator(0))
        if not stratified:
            return order[: max(1, round(self.fraction * len(order)))].sort().values
        members = [order[target[order] == c] for c in range(num_classes)]
        members = [m[: max(1, round(self.fraction * len(m)))] for m in members]
        largest = max(len(m) for m in members)
        if self.imbalance > 1:
            members = [m[: max(1, round(largest * self.imbalance ** (-c / (num_classes - 1))))] for c, m in enumerate(members)]
        return torch.cat(members).sort().values

    def noisy(self, target: Tensor, target_kind: str, num_classes: int) -> Tensor:
        """``target`` with wrong entries: samples, pixels or bits, whatever it consists of; ignored entries (-100) stay."""
        if self.label_noise == 0:
            return target
        require(self.noise_kind == "symmetric" or target_kind == "multiclass", "noise_kind=pair needs a target of classes; take symmetric", self.noise_kind)
        generator = self._generator(1)
        if target_kind == "real":
            return self._exchanged(target, generator)
        flat = target.flatten()
        # a byte (uint8) cannot be ignored: -100 would wrap round to 156
        candidates = (flat != IGNORED).nonzero()[:, 0] if flat.dtype.is_signed else torch.arange(len(flat))
        wrong = candidates[torch.randperm(len(candidates), generator=generator)[: round(self.label_noise * len(candidates))]]
        noisy = flat.clone()
        if target_kind == "multilabel":
            noisy[wrong] = 1 - noisy[wrong]
        else:
            shift = torch.randint(1, num_classes, wrong.shape, generator=generator) if self.noise_kind == "symmetric" else torch.ones_like(wrong)
            noisy[wrong] = ((flat[wrong].long() + shift) % num_classes).to(flat.dtype)
        return noisy.view_as(target)

    def lost(self, shape: Sequence[int]) -> Tensor:
        """Which values are lost: true with probability ``missing``."""
        return torch.rand(tuple(shape), generator=self._generator(2)) < self.missing

    def with_missing(self, inputs: Tensor, channel_dim: int) -> Tensor:
        """``inputs`` whose lost values are replaced by the mean of what is left in their column or channel (``channel_dim``)."""
        if self.missing == 0:
            return inputs
        shape = (len(inputs), 1, *inputs.shape[2:]) if inputs.ndim == 4 else inputs.shape
        lost = self.lost(shape).expand_as(inputs)
        others = [d for d in range(inputs.ndim) if d != channel_dim % inputs.ndim]
        left = (~lost).sum(others, keepdim=True).clamp(min=1)
        mean = inputs.masked_fill(lost, 0).sum(others, keepdim=True) / left
        return torch.where(lost, mean, inputs)

    def _exchanged(self, target: Tensor, generator: torch.Generator) -> Tensor:
        n = len(target)
        wrong = torch.randperm(n, generator=generator)[: round(self.label_noise * n)]
        other = (wrong + torch.randint(1, max(n, 2), wrong.shape, generator=generator)) % n
        noisy = target.clone()
        noisy[wrong] = target[other]
        return noisy

    def _generator(self, kind: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + 7919 * (kind + 1)) % (1 << 63))

"""Mixtures of two sounds, to be taken apart: a gliding harmonic voice and bursts of noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.base import Split
from components.data.raters import with_more
from components.data.synthetic import Synthetic
from components.spectrogram import stft
from components.validation import require


class VoiceMixtures(Synthetic):
    r"""A voice (harmonics of a gliding pitch with vibrato, in phrases) and an accompaniment (bursts of noise in random bands), at a random level.

    ``inputs`` is the logarithm of the mixture's magnitude spectrogram, log(1 + 10 |X|), (1, F, T); ``target`` says which source is the loudest in
    each bin (0 voice, 1 accompaniment). Beside these each sample has ``mixture`` (L,), ``mixture_magnitudes`` (F, T), ``target_signals`` (2, L) and
    ``target_magnitudes`` (2, F, T), as :mod:`components.quantities` names them. F = n_fft / 2 + 1, T = 1 + L / hop_length.

    Args:
        size: mixtures, over all splits.
        frames: T - 1; a mixture has ``frames * hop_length`` samples, at a rate of 4,000 a second.
        n_fft: samples of a window, even.
        hop_length: samples between two windows, at most half of ``n_fft``.
        level: the voice is louder than the accompaniment by a number of decibels drawn from [-level, level].
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The task of Lin et al., "Singing Voice Separation Using a Deep Convolutional Neural Network Trained by Ideal Binary Mask and Cross Entropy", 2018,
        arXiv:1812.01278; the generator is ours.
    """

    rate = 4000

    def __init__(self, *, size: int = 120, frames: int = 47, n_fft: int = 128, hop_length: int = 64, level: float = 5.0, **common: Any) -> None:
        super().__init__(size=size, **common)
        require(frames >= 4, "frames must be >= 4", frames)
        require(n_fft >= 16 and n_fft % 2 == 0, "n_fft must be even and >= 16", n_fft)
        require(1 <= hop_length <= n_fft // 2, f"hop_length must be in 1 … {n_fft // 2} (half of n_fft)", hop_length)
        require(level >= 0, "level must be >= 0", level)
        self.frames, self.n_fft, self.hop_length, self.level = frames, n_fft, hop_length, level
        self.more: dict[str, Tensor] = {}

    def read(self) -> Samples:
        generator = self.generator()
        voice, noise = self.voices(generator), self.bursts(generator)
        loudness = 10 ** (self.level * (2 * torch.rand(self.total, 1, generator=generator) - 1) / 20)
        sources = torch.stack([loudness * voice / rms(voice), noise / rms(noise)], 1).float()
        mixture = sources.sum(1)
        magnitudes = stft(sources, self.n_fft, self.hop_length).abs() / self.n_fft
        whole = stft(mixture, self.n_fft, self.hop_length).abs() / self.n_fft
        self.more = {"mixture": mixture, "mixture_magnitudes": whole, "target_signals": sources, "target_magnitudes": magnitudes}
        return Samples((1 + 10 * whole).log().unsqueeze(1), magnitudes.argmax(1), "multiclass", ["voice", "accompaniment"])

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        return with_more(super().encode(samples), self.rows, self.more)

    def voices(self, generator: torch.Generator) -> Tensor:
        """(N, L): six harmonics, falling as 1/h, of a pitch that glides within 120 … 320 Hz; silent between phrases."""
        n, length = self.total, self.frames * self.hop_length
        time = torch.arange(length, dtype=torch.float64) / self.rate

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, 1, generator=generator, dtype=torch.float64)

        share = time / time[-1]
        vibrato = 1 + 0.02 * torch.sin(2 * math.pi * uniform(4.0, 7.0) * time + uniform(0.0, 6.28))
        pitch = (uniform(120.0, 320.0) * (1 - share) + uniform(120.0, 320.0) * share) * vibrato
        phase = 2 * math.pi * pitch.cumsum(1) / self.rate
        tones = torch.stack([(h * phase + uniform(0.0, 6.28)).sin() / h for h in range(1, 7)]).sum(0)
        phrases = torch.sigmoid(20 * torch.sin(2 * math.pi * uniform(1.5, 3.0) * time + uniform(0.0, 6.28)) + 8)
        return tones * phrases

    def bursts(self, generator: torch.Generator) -> Tensor:
        """(N, L): six bursts a mixture, each noise of a band about a random frequency, that dies away exponentially."""
        n, length = self.total, self.frames * self.hop_length
        time = torch.arange(length, dtype=torch.float64) / self.rate
        total = torch.zeros(n, length, dtype=torch.float64)
        frequency = torch.fft.rfftfreq(length, 1 / self.rate, dtype=torch.float64)
        for _ in range(6):
            start, centre, width, decay = torch.rand(4, n, 1, generator=generator, dtype=torch.float64)
            white = torch.randn(n, length, generator=generator, dtype=torch.float64)
            band = torch.exp(-0.5 * ((frequency - 200 - 1600 * centre) / (100 + 400 * width)) ** 2)
            after = time - start * time[-1]
            total += torch.fft.irfft(torch.fft.rfft(white) * band, length) * (after >= 0) * torch.exp(-after.clamp(min=0) / (0.05 + 0.15 * decay))
        return total


def rms(signals: Tensor) -> Tensor:
    """(N, L) -> (N, 1)."""
    return signals.square().mean(1, keepdim=True).sqrt()

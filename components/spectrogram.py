"""Short-time Fourier transform and back, with a Hann window: what data and metrics of sounds share."""

from __future__ import annotations

import torch
from torch import Tensor


def stft(signals: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """(…, L) -> complex (…, F, T) with F = n_fft // 2 + 1 and T = 1 + L // hop_length."""
    flat = torch.stft(signals.reshape(-1, signals.shape[-1]), n_fft, hop_length, window=window(n_fft, signals), return_complex=True, pad_mode="constant")
    return flat.reshape(*signals.shape[:-1], *flat.shape[-2:])


def istft(spectra: Tensor, n_fft: int, hop_length: int, length: int) -> Tensor:
    """The inverse of :func:`stft`: complex (…, F, T) -> (…, length)."""
    flat = torch.istft(spectra.reshape(-1, *spectra.shape[-2:]), n_fft, hop_length, window=window(n_fft, spectra.real), length=length)
    return flat.reshape(*spectra.shape[:-2], length)


def window(n_fft: int, like: Tensor) -> Tensor:
    return torch.hann_window(n_fft, dtype=like.dtype, device=like.device)

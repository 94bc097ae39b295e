"""Metrics of separated sounds: the signal-to-distortion ratio of each estimate, and its gain over the mixture itself."""

from __future__ import annotations

import torch
from torch import Tensor

from components.metrics.base import Quotient
from components.spectrogram import istft, stft
from components.validation import require, require_choice


def signal_to_distortion(estimate: Tensor, source: Tensor) -> Tensor:
    r"""SDR in decibels, (…, L) and (…, L) -> (…): how much of the estimate is the source, whatever its level.

    .. math:: 10 \log_{10} \frac{\|s_t\|^2}{\|\hat s - s_t\|^2}, \qquad s_t = \frac{\langle \hat s, s \rangle}{\|s\|^2}\, s

    The simple projection of BSS Eval (no filter is allowed for); kept finite by the smallest number of the type beside both sums.

    Source:
        Vincent, Gribonval, Févotte, "Performance Measurement in Blind Audio Source Separation", IEEE TASLP 14(4), 2006, section II.A with one gain; also
        Le Roux et al., "SDR – Half-baked or Well Done?", 2019, arXiv:1811.02508 (SI-SDR).
    """
    tiny = torch.finfo(estimate.dtype).eps
    wanted = (estimate * source).sum(-1, keepdim=True) / (source.square().sum(-1, keepdim=True) + tiny) * source
    return 10 * ((wanted.square().sum(-1) + tiny) / ((estimate - wanted).square().sum(-1) + tiny)).log10()


def separate(logits: Tensor, mixture: Tensor, estimate: str = "soft", mask: str = "sigmoid") -> Tensor:
    """Each source's signal, (N, K, F, T) scores and (N, L) mixtures -> (N, K, L): the mask times the mixture's spectrum, with its phase, and back.

    The transform follows from the shapes: a window of 2 (F - 1) samples and a hop of L / (T - 1).
    """
    n_fft, hop_length = 2 * (logits.shape[-2] - 1), mixture.shape[-1] // (logits.shape[-1] - 1)
    share = logits.sigmoid() if mask == "sigmoid" else logits.softmax(1)
    if estimate == "binary":
        share = (share > 0.5).to(share.dtype)
    return istft(share * stft(mixture, n_fft, hop_length).unsqueeze(1), n_fft, hop_length, mixture.shape[-1])


class SourceToDistortion(Quotient):
    r"""SDR of a separated source in decibels, or its gain over taking the mixture itself for the source (GNSDR), averaged over clips by their length.

    .. math:: \mathrm{GNSDR} = \frac{\sum_i w_i \bigl[ \mathrm{SDR}(\hat s_i, s_i) - \mathrm{SDR}(x_i, s_i) \bigr]}{\sum_i w_i}

    with :math:`w_i` the length of clip *i*; see :func:`signal_to_distortion`.

    Args:
        normalize: subtract the mixture's own SDR (NSDR and GNSDR); False: the plain SDR.
        source: which source; -1: the mean over all.
        mask: ``sigmoid`` | ``softmax``: what the logits mean.
        estimate: ``soft``: the mask's shares | ``binary``: 1 where they are above 0.5.

    Shapes:
        logits (N, K, F, T); mixture (N, L), with L = hop (T - 1) and a window of 2 (F - 1) samples; target_signals (N, K, L).

    Raises:
        ValueError: if an option is out of its range.

    Source:
        Lin et al., 2018, arXiv:1812.01278; GNSDR: Hsu and Jang, "On the Improvement of Singing Voice Separation for Monaural Recordings Using the MIR-1K
        Dataset", IEEE TASLP 18(2), 2010.
    """

    higher_is_better = True

    def __init__(self, *, normalize: bool = True, source: int = 0, mask: str = "sigmoid", estimate: str = "soft") -> None:
        super().__init__()
        require(source >= -1, "source must be >= 0, or -1 for all", source)
        require_choice("mask", mask, ("sigmoid", "softmax"))
        require_choice("estimate", estimate, ("soft", "binary"))
        self.normalize, self.source, self.mask, self.estimate = normalize, source, mask, estimate

    def update(self, logits: Tensor, mixture: Tensor, target_signals: Tensor) -> None:
        mixture, signals = mixture.float(), target_signals.float()
        require(self.source < signals.shape[1], f"source must be below the {signals.shape[1]} sources", self.source)
        ratio = signal_to_distortion(separate(logits.float(), mixture, self.estimate, self.mask), signals)
        if self.normalize:
            ratio = ratio - signal_to_distortion(mixture.unsqueeze(1).expand_as(signals), signals)
        ratio = ratio.mean(1) if self.source < 0 else ratio[:, self.source]
        length = mixture.shape[-1]
        self.add(length * ratio.sum(), length * len(ratio))

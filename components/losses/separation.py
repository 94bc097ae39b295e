"""Separating sources: which source owns each time-frequency bin of a mixture's spectrogram, asked as classification or as regression.

A model of the spectrogram puts out a score for each source and bin; a source is estimated as its mask times the mixture, with the mixture's phase
(:mod:`components.metrics.separation`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, at_least_float32, check_same_shape
from components.validation import require_choice

MASKS = ("sigmoid", "softmax")


class IdealBinaryMaskLoss(Loss):
    r"""Cross-entropy with the ideal binary mask: for each bin, which source is the loudest.

    .. math:: m_k = [\,|S_k| > |S_j| \;\forall j \ne k\,], \qquad
              \ell = \frac1K \sum_k \bigl[ \mathrm{softplus}(z_k) - m_k z_k \bigr] \quad (\text{or } -\log \mathrm{softmax}(z)_{k^*})

    for each time-frequency bin, with :math:`k^*` the loudest source (of equals the first). The mask does not change when all sources are scaled by one factor.

    Try it for separation of sources that seldom sound in the same bin, where what counts is which one it is and not how loud.

    Args:
        mask: ``sigmoid``: each source has a yes or no (the paper's "multi-label" pixels) | ``softmax``: the sources share the bin.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per bin, shape (N, F, T)).

    Shapes:
        logits (N, K, F, T), raw, or any (N, K, d1, …); target_magnitudes, the same shape, magnitudes of the K >= 2 sources.

    Raises:
        ValueError: if ``mask`` is unknown, or shapes disagree.

    Source:
        Lin et al., "Singing Voice Separation Using a Deep Convolutional Neural Network Trained by Ideal Binary Mask and Cross Entropy", 2018,
        arXiv:1812.01278. That its last layer is a sigmoid for each source is our reading of "multi-label"; hence the choice.
    """

    def __init__(self, *, mask: str = "sigmoid", reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("mask", mask, MASKS)
        self.mask = mask

    def forward(self, logits: Tensor, target_magnitudes: Tensor) -> Tensor:
        check_sources(logits, target_magnitudes)
        z = logits.to(at_least_float32(logits.dtype))
        if self.mask == "softmax":
            values = F.cross_entropy(z, target_magnitudes.argmax(1), reduction="none")
        else:
            values = F.binary_cross_entropy_with_logits(z, ideal_binary_mask(target_magnitudes).to(z.dtype), reduction="none").mean(1)
        return self.reduce(values).to(logits.dtype)


class SpectrogramMSELoss(Loss):
    r"""Squared error of the masked mixture against each source's spectrogram: regression of loudness.

    .. math:: \ell = \frac1K \sum_k \bigl( m_k |X| - |S_k| \bigr)^2, \qquad m = \sigma(z) \text{ or } \mathrm{softmax}(z)

    for each time-frequency bin. Loud bins decide.

    Try it as the baseline of :class:`IdealBinaryMaskLoss`, from the same output.

    Args:
        mask: ``sigmoid`` | ``softmax`` (the estimates add up to the mixture).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per bin, shape (N, F, T)).

    Shapes:
        logits (N, K, F, T), raw, or any (N, K, d1, …); mixture_magnitudes (N, F, T); target_magnitudes, the logits' shape.

    Raises:
        ValueError: if ``mask`` is unknown, or shapes disagree.

    Source:
        Huang et al., "Joint Optimization of Masks and Deep Recurrent Neural Networks for Monaural Source Separation", 2015, arXiv:1502.04149 (the masks inside
        the loss; without its discriminative term).
    """

    def __init__(self, *, mask: str = "sigmoid", reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("mask", mask, MASKS)
        self.mask = mask

    def forward(self, logits: Tensor, mixture_magnitudes: Tensor, target_magnitudes: Tensor) -> Tensor:
        check_sources(logits, target_magnitudes)
        if mixture_magnitudes.shape != logits.shape[:1] + logits.shape[2:]:
            raise ValueError(f"mixture_magnitudes must have shape {tuple(logits.shape[:1] + logits.shape[2:])}, but got {tuple(mixture_magnitudes.shape)}")
        z = logits.to(at_least_float32(logits.dtype))
        estimate = soft_mask(z, self.mask) * mixture_magnitudes.to(z.dtype).unsqueeze(1)
        return self.reduce((estimate - target_magnitudes.to(z.dtype)).square().mean(1)).to(logits.dtype)


def check_sources(logits: Tensor, target_magnitudes: Tensor) -> None:
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (N, K, …) with K >= 2 sources, but got {tuple(logits.shape)}")
    check_same_shape("target_magnitudes", target_magnitudes, "logits", logits)


def soft_mask(logits: Tensor, mask: str) -> Tensor:
    """(N, K, …) scores -> shares in [0, 1]."""
    return logits.sigmoid() if mask == "sigmoid" else logits.softmax(1)


def ideal_binary_mask(magnitudes: Tensor) -> Tensor:
    """(N, K, …) -> bool: where a source is louder than every other; where the loudest are equal, none is."""
    top = magnitudes.topk(2, 1).values
    return (magnitudes == top[:, :1]) & (top[:, :1] > top[:, 1:])

r"""Ratings on ordered levels: the distribution of the raters' scores as a soft label, and the order of pairs within a data set.

Levels are 1 … C, in the order of the logits. :func:`on_levels` brings a data set's own scale there, by its least and greatest mean rating; two data
sets on different scales are then alike in form but not in meaning, which is why pairs are compared within a data set only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32, nonzero
from components.validation import require, require_choice

LABELS = ("pdf", "cdf", "linear", "one_hot")


class ScoreDistributionLoss(Loss):
    r"""KL divergence from a soft label over levels, made of the mean and the standard deviation of the ratings.

    .. math:: \ell = \sum_c q_c \big( \log q_c - \log \operatorname{softmax}(z)_c \big), \qquad
              q = \max(0, a\,p + b), \quad
              p_c = \mathcal N(c; \mu, \sigma) \text{ or } \Phi\big(\tfrac{c + 1/2 - \mu}{\sigma}\big) - \Phi\big(\tfrac{c - 1/2 - \mu}{\sigma}\big)

    *a* and *b* make the mass 1 and the mean :math:`\mu`: with :math:`A = \sum p_c`, :math:`S = \sum c\,p_c` and the middle level
    :math:`m = (C + 1) / 2`, :math:`a = (\mu - m) / (S - m A)` and :math:`b = (1 - a A) / C`. Clipping at 0 comes after (*q* is not renormalised, as
    in the authors' code, so a value can be slightly negative). Where :math:`\sigma` is below ``min_std``, or the mean of the clipped *q* is off by more
    than ``max_shift``, the mass is divided linearly between the two levels around :math:`\mu`.

    Try it where targets are averages of several people's ratings: it keeps what rounding to the nearest level loses.

    Args:
        label: ``"pdf"`` (large standard deviations), ``"cdf"`` (small ones), ``"linear"`` (always the two levels around the mean) or ``"one_hot"``
            (the nearest level: cross-entropy on levels).
        min_std: below this standard deviation, in levels, the label is linear.
        max_shift: a label whose mean is off by more than this, in levels, is linear.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, C) or (N, C, d1, …), raw; target_mean and target_std (N,) or (N, d1, …), in levels; a mean of NaN is an ignored element.

    Raises:
        ValueError: if ``label`` is not known, ``min_std`` or ``max_shift`` is negative, or shapes disagree.

    Source:
        You et al., "Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution", CVPR 2025,
        arXiv:2501.11561, section 3; fallbacks as in the authors' code (zhiyuanyou/DeQA-Score).
    """

    def __init__(self, label: str = "pdf", min_std: float = 0.2, max_shift: float = 0.1, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("label", label, LABELS)
        require(min_std >= 0, "min_std must be >= 0", min_std)
        require(max_shift >= 0, "max_shift must be >= 0", max_shift)
        self.label = label
        self.min_std: float | Tensor = min_std
        self.max_shift: float | Tensor = max_shift

    def forward(self, logits: Tensor, target_mean: Tensor, target_std: Tensor) -> Tensor:
        check_ratings(logits, target_mean, target_std)
        log_p = logits.to(at_least_float32(logits.dtype)).log_softmax(1).movedim(1, -1)
        mean = target_mean.to(log_p.dtype)
        mean = torch.where(mean.isnan(), torch.ones_like(mean), mean)
        label = soft_label(mean, target_std.to(log_p.dtype), log_p.shape[-1], self.label, self.min_std, self.max_shift)
        values = (torch.xlogy(label, label) - label * log_p).sum(-1)
        return self.reduce(values.to(logits.dtype), target_mean)


class ThurstoneFidelityLoss(Loss):
    r"""Whether a sample is better than another of its data set: the fidelity between the predicted and the raters' probability.

    .. math:: \ell_{ij} = 1 - \sqrt{P P^* + \varepsilon} - \sqrt{(1 - P)(1 - P^*) + \varepsilon}, \qquad
              P = \Phi\Big( \frac{s_i - s_j}{\sqrt 2} \Big), \quad P^* = \Phi\Big( \frac{\mu_i - \mu_j}{\sqrt{\sigma_i^2 + \sigma_j^2}} \Big)

    with :math:`s = \sum_c c \operatorname{softmax}(z)_c` and :math:`\varepsilon = 10^{-8}` (without it the gradient is infinite where P or P* is 0). The
    mean is over all pairs of one data set in the batch; sample *i* of ``"none"`` holds the sum of its pairs times N over their number, so that its
    mean is that (our reading; the authors draw their batches from one data set each).

    Try it beside :class:`ScoreDistributionLoss` where data sets rate the same thing on different scales: only the order within each is asked for.

    Memory: a few N×N tensors.

    Args:
        stds: standard deviations of the predicted scores: ``"unit"`` (the paper's default) or ``"predicted"`` (of the predicted distribution, then
            :math:`P = \Phi((s_i - s_j) / \sqrt{v_i + v_j})`).
        detach_stds: let no gradient through predicted standard deviations.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, C), raw; target_mean and target_std (N,), in levels; group (N,), which data set a sample is of, long.

    Raises:
        ValueError: if ``stds`` is not known or shapes disagree.

    Source:
        You et al., arXiv:2501.11561, section 3.3; Tsai et al., "FRank: A Ranking Method with Fidelity Loss", SIGIR 2007; Thurstone, "A law of
        comparative judgment", 1927.
    """

    dense = False
    pairwise = True

    def __init__(self, stds: str = "unit", detach_stds: bool = False, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("stds", stds, ("unit", "predicted"))
        self.stds, self.detach_stds = stds, detach_stds

    def forward(self, logits: Tensor, target_mean: Tensor, target_std: Tensor, group: Tensor) -> Tensor:
        require(logits.ndim == 2, "logits must have shape (N, C)", tuple(logits.shape))
        check_ratings(logits, target_mean, target_std)
        require(group.shape == logits.shape[:1], f"group must have shape ({len(logits)},)", tuple(group.shape))
        dtype = at_least_float32(logits.dtype)
        score, variance = moments(logits.to(dtype))
        if self.stds == "unit":
            variance = torch.ones_like(variance)
        elif self.detach_stds:
            variance = variance.detach()
        mean, true_variance = target_mean.to(dtype), target_std.to(dtype).square()
        fidelity = 1 - overlap(order_probability(score, variance), order_probability(mean, true_variance))
        pairs = (group.unsqueeze(0) == group.unsqueeze(1)).to(dtype) * (1 - torch.eye(len(group), dtype=dtype, device=group.device))
        values = (fidelity * pairs).sum(1) * (len(group) / nonzero(pairs.sum()))
        return self.reduce(values.to(logits.dtype))


def check_ratings(logits: Tensor, mean: Tensor, std: Tensor) -> None:
    """Refuse ratings that do not fit the logits.

    Raises:
        ValueError: naming ``logits``, ``target_mean`` or ``target_std``.
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (N, C) or (N, C, d1, …) of two levels or more, but got {tuple(logits.shape)}")
    shape = logits.shape[:1] + logits.shape[2:]
    for name, ratings in (("target_mean", mean), ("target_std", std)):
        if ratings.shape != shape or not ratings.is_floating_point():
            raise ValueError(f"{name} must hold one real value an element, shape {tuple(shape)}, but got {ratings.dtype} of {tuple(ratings.shape)}")


def on_levels(mean: Tensor, std: Tensor, least: float | Tensor, greatest: float | Tensor, num_levels: int = 5) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ratings on the levels 1 … ``num_levels``: the data set's least mean becomes 1, its greatest ``num_levels``."""
    scale = (num_levels - 1) / (greatest - least)
    return (mean - least) * scale + 1, std * scale


def raw_label(mean: Tensor, std: Tensor, num_levels: int, label: str = "pdf") -> Tensor:
    """Density (``pdf``) or mass (``cdf``) of a normal distribution at the levels 1 … C; means of shape (…), the result (…, C)."""
    levels = torch.arange(1, num_levels + 1, dtype=mean.dtype, device=mean.device)
    distance, std = levels - mean.unsqueeze(-1), std.unsqueeze(-1)
    if label == "pdf":
        return torch.exp(-0.5 * (distance / std).square()) / (std * math.sqrt(2 * math.pi))
    return torch.special.ndtr((distance + 0.5) / std) - torch.special.ndtr((distance - 0.5) / std)


def adjusted_label(raw: Tensor, mean: Tensor) -> Tensor:
    """``a · raw + b`` with mass 1 and the given mean; not clipped, so values can be negative."""
    num_levels = raw.shape[-1]
    levels = torch.arange(1, num_levels + 1, dtype=raw.dtype, device=raw.device)
    middle, mass = (num_levels + 1) / 2, raw.sum(-1)
    a = (mean - middle) / ((raw * levels).sum(-1) - middle * mass + 1e-9)
    return a.unsqueeze(-1) * raw + ((1 - a * mass) / num_levels).unsqueeze(-1)


def linear_label(mean: Tensor, num_levels: int) -> Tensor:
    """The mass divided between the two levels around the mean, so that the mean is exact."""
    levels = torch.arange(1, num_levels + 1, dtype=mean.dtype, device=mean.device)
    return (1 - (levels - mean.clamp(1, num_levels).unsqueeze(-1)).abs()).clamp(min=0)


def soft_label(mean: Tensor, std: Tensor, num_levels: int, label: str = "pdf", min_std: float | Tensor = 0.2, max_shift: float | Tensor = 0.1) -> Tensor:
    """The label of :class:`ScoreDistributionLoss`; means of shape (…), the result (…, C)."""
    levels = torch.arange(1, num_levels + 1, dtype=mean.dtype, device=mean.device)
    if label == "one_hot":
        return (levels == mean.round().clamp(1, num_levels).unsqueeze(-1)).to(mean.dtype)
    linear = linear_label(mean, num_levels)
    if label == "linear":
        return linear
    raw = raw_label(mean, std.clamp(min=1e-3), num_levels, label)  # the bound only keeps what `linear` replaces finite
    adjusted = adjusted_label(raw, mean).clamp(min=0)
    fits = (std >= min_std) & (((adjusted * levels).sum(-1) - mean).abs() <= max_shift)
    return torch.where(fits.unsqueeze(-1), adjusted, linear)


def moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean level and variance of softmax(logits) over the levels 1 … C; (N, C, …) -> (N, …) each."""
    probability = logits.softmax(1)
    levels = torch.arange(1, logits.shape[1] + 1, dtype=logits.dtype, device=logits.device).reshape(1, -1, *[1] * (logits.ndim - 2))
    mean = (probability * levels).sum(1)
    return mean, (probability * (levels - mean.unsqueeze(1)).square()).sum(1)


def order_probability(mean: Tensor, variance: Tensor) -> Tensor:
    """(N, N) probability that sample *i* is above sample *j*, of independent normal scores."""
    difference = mean.unsqueeze(1) - mean.unsqueeze(0)
    return torch.special.ndtr(difference / (variance.unsqueeze(1) + variance.unsqueeze(0) + 1e-8).sqrt())


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """Fidelity of two Bernoulli distributions, 1 where they agree (up to 1e-8 inside the roots)."""
    return (p * q + 1e-8).sqrt() + ((1 - p) * (1 - q) + 1e-8).sqrt()

"""Losses of models that draw several segmentations of a picture, where several raters drew theirs: the set of samples against the set of masks.

A conditional variational autoencoder (:class:`components.models.ProbabilisticUNet`) decodes S samples. :class:`ElboSegmentationLoss` compares each with
the one mask that the posterior saw, pixel by pixel; :class:`StatisticalDistanceLoss` compares the distribution of the samples with that of all raters'.
Masks are vectors: the foreground's probabilities of all pixels, one after the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, at_least_float32, check_class_indices, nonzero, reduce_values
from components.validation import require, require_choice

DISTANCES = ("sinkhorn", "energy", "frechet")


class StatisticalDistanceLoss(Loss):
    r"""A distance between the distribution of a model's samples and that of the raters' masks, plus the latent's divergence (PULASki).

    .. math:: \ell = d\bigl( \{\hat s_1 … \hat s_S\}, \{y_1 … y_R\} \bigr) + w_{KL}\, \mathrm{KL}(q \| p)

    with *d* one of, for masks as vectors,

    - ``sinkhorn``: :math:`OT_\varepsilon(\hat s, y) - \tfrac12 OT_\varepsilon(\hat s, \hat s) - \tfrac12 OT_\varepsilon(y, y)`, entropic transport of cost
      :math:`\|a - b\|^2 / 2` and :math:`\varepsilon = \text{blur}^2`;
    - ``energy``: :math:`E\|\hat s - y\| - \tfrac12 E\|\hat s - \hat s'\| - \tfrac12 E\|y - y'\|` over all pairs (the paper's "Hausdorff" option);
    - ``frechet``: :math:`\|\mu_1 - \mu_2\|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})` of ``features`` of the masks (unbiased
      covariances), samples and masks pooled over the batch as in the authors' code; no gradient through the raters' side.

    Each is 0, with gradient 0, where samples and masks are the same set.

    Try it where raters disagree and samples should, too, in the raters' proportions, with small structures that a pixel-wise loss would grey out.

    Memory: N · S · R · pixels numbers for ``sinkhorn`` and ``energy``.

    Args:
        distance: ``sinkhorn`` | ``energy`` | ``frechet``.
        kl_weight: :math:`w_{KL}` >= 0. The authors sum KL over the batch; here each image has its own (our reading), so that 1 does not depend on the batch.
        blur: of ``sinkhorn``, > 0.
        steps: iterations of ``sinkhorn``, >= 1: :math:`\varepsilon` falls geometrically from the number of pixels to ``blur`` squared. 20 are within 0.5 % of
            the limit on masks of 32×32.
        features: a module, (B, foreground classes, d1, …) -> (B, …), for ``frechet``; None: the pixels themselves. It is frozen.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,); with ``frechet`` each holds the batch's distance).

    Shapes:
        sample_logits (N, S, C, d1, …), raw, two classes or more; rater_targets (N, R, d1, …), class indices; latent_kl (N,).
        ``frechet`` needs two samples and two raters or more.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a mask's class lies outside [0, C).

    Source:
        Chatterjee et al., "PULASki: Learning inter-rater variability using statistical distances to improve probabilistic segmentation", 2023,
        arXiv:2312.15686, and the authors' code (geomloss' ``SamplesLoss``, whose defaults ``sinkhorn`` follows). More than one foreground class is our reading.
    """

    def __init__(
        self,
        *,
        distance: str = "sinkhorn",
        kl_weight: float = 1.0,
        blur: float = 0.05,
        steps: int = 20,
        features: nn.Module | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("distance", distance, DISTANCES)
        require(kl_weight >= 0, "kl_weight must be >= 0", kl_weight)
        require(blur > 0, "blur must be > 0", blur)
        require(steps >= 1, "steps must be >= 1", steps)
        require(features is None or distance == "frechet", "features is for distance=frechet", distance)
        self.distance, self.kl_weight, self.blur, self.steps = distance, kl_weight, blur, steps
        self.features = None if features is None else features.requires_grad_(False)
        if distance == "frechet":
            self.pairwise = True  # type: ignore[misc]
            self.exempt = {"second_order": "singular values that coincide at 0 have no second derivative"}  # type: ignore[misc]

    def forward(self, sample_logits: Tensor, rater_targets: Tensor, latent_kl: Tensor) -> Tensor:
        check_samples(sample_logits, latent_kl)
        num_images, _, num_classes, *sides = sample_logits.shape
        if rater_targets.ndim < 2 or rater_targets.shape[1] < 1:
            raise ValueError(f"rater_targets must have shape (N, R, d1, …), but got {tuple(rater_targets.shape)}")
        shape = torch.Size([num_images, rater_targets.shape[1], *sides])
        check_indices("rater_targets", rater_targets, shape, num_classes)
        samples = sample_logits.to(at_least_float32(sample_logits.dtype)).softmax(2)[:, :, 1:]
        masks = F.one_hot(rater_targets, num_classes).movedim(-1, 2)[:, :, 1:].to(samples.dtype)
        if self.distance == "frechet":
            distance = self.frechet(samples, masks).expand(num_images) if num_images else samples.flatten(1).sum(1)
        else:
            x, y = samples.flatten(2), masks.flatten(2)
            distance = energy_distance(x, y) if self.distance == "energy" else sinkhorn_divergence(x, y, self.blur, self.steps)
        return reduce_values(distance + self.kl_weight * latent_kl.to(distance.dtype), None, self.reduction).to(sample_logits.dtype)

    def frechet(self, samples: Tensor, masks: Tensor) -> Tensor:
        for name, drawn in (("sample_logits", samples), ("rater_targets", masks)):
            if drawn.shape[0] * drawn.shape[1] < 2:
                raise ValueError(f"{name} must hold two or more for distance=frechet, but got {drawn.shape[1]}")
        x, y = samples.flatten(0, 1), masks.flatten(0, 1)
        if self.features is not None:
            x, y = self.features(x), self.features(y).detach()
        return frechet_distance(x.flatten(1), y.flatten(1))

    def train(self, mode: bool = True) -> StatisticalDistanceLoss:
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self


class ElboSegmentationLoss(Loss):
    r"""The negative evidence lower bound of a probabilistic U-Net: cross-entropy of each sample with the mask that the posterior saw, plus the divergence.

    .. math:: \ell = \frac1S \sum_s \sum_i -\log \mathrm{softmax}(z_{si})_{y_i} + w_{KL}\, \mathrm{KL}(q \| p)

    over the pixels *i* of an image that are not ignored.

    Try it as the baseline where raters disagree: one rater's mask an image and step, drawn at random.

    Args:
        kl_weight: :math:`w_{KL}` >= 0, the paper's beta.
        over_pixels: ``sum`` (the bound) | ``mean`` (then the divergence weighs far more).
        ignore_index: target value that contributes neither value nor gradient; an image without a pixel left is itself ignored, its divergence too.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)).

    Shapes:
        sample_logits (N, S, C, d1, …), raw; target (N, d1, …), class indices; latent_kl (N,).

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, C).

    Source:
        Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images", NeurIPS 2018, arXiv:1806.05034, eq. 4.
    """

    def __init__(self, *, kl_weight: float = 1.0, over_pixels: str = "sum", ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(kl_weight >= 0, "kl_weight must be >= 0", kl_weight)
        require_choice("over_pixels", over_pixels, ("sum", "mean"))
        self.kl_weight, self.over_pixels = kl_weight, over_pixels

    def forward(self, sample_logits: Tensor, target: Tensor, latent_kl: Tensor) -> Tensor:
        check_samples(sample_logits, latent_kl)
        num_images, num_samples, num_classes, *sides = sample_logits.shape
        check_class_indices(target, torch.Size([num_images, *sides]), num_classes, self.ignore_index)
        logits = sample_logits.to(at_least_float32(sample_logits.dtype))
        each = target.unsqueeze(1).expand(num_images, num_samples, *sides)
        pixels = F.cross_entropy(logits.flatten(0, 1), each.flatten(0, 1), ignore_index=self.ignore_index, reduction="none")
        costs = pixels.reshape(num_images, num_samples, *sides).unsqueeze(-1).flatten(2).sum(2).mean(1)
        count = (target != self.ignore_index).unsqueeze(-1).flatten(1).sum(1).to(costs.dtype)
        if self.over_pixels == "mean":
            costs = costs / nonzero(count)
        values = costs + self.kl_weight * latent_kl.to(costs.dtype)
        return reduce_values(values, (count > 0).to(values.dtype), self.reduction).to(sample_logits.dtype)


def check_samples(sample_logits: Tensor, latent_kl: Tensor) -> None:
    if sample_logits.ndim < 3 or sample_logits.shape[1] < 1 or sample_logits.shape[2] < 2:
        raise ValueError(f"sample_logits must have shape (N, S, C, d1, …) with C >= 2, but got {tuple(sample_logits.shape)}")
    if latent_kl.shape != sample_logits.shape[:1]:
        raise ValueError(f"latent_kl must have shape {tuple(sample_logits.shape[:1])}, one value an image, but got {tuple(latent_kl.shape)}")


def check_indices(name: str, target: Tensor, shape: torch.Size, num_classes: int) -> None:
    """:func:`components.losses.base.check_class_indices` under another name, with nothing to ignore."""
    try:
        check_class_indices(target, shape, num_classes, 0)
    except ValueError as error:
        raise ValueError(str(error).replace("target", name, 1)) from None


# -- distances between sets of vectors, (N, S, M) and (N, R, M) -> (N,) ------------------------------------------------------------


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, S, M), (N, R, M) -> (N, S, R)."""
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(3)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """E‖x − y‖ − ½ E‖x − x'‖ − ½ E‖y − y'‖ over all pairs, also of one with itself."""

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        squared = squared_distances(a, b)
        apart = squared > 0  # the root has no slope at 0
        return torch.where(apart, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared)).mean((1, 2))

    return mean_distance(x, y) - 0.5 * mean_distance(x, x) - 0.5 * mean_distance(y, y)


def sinkhorn_divergence(x: Tensor, y: Tensor, blur: float | Tensor = 0.05, steps: int = 20) -> Tensor:
    """Debiased entropic transport of cost ½‖·‖² between uniform clouds in the unit cube, in the log domain, all steps differentiated.

    Potentials of both sides move at once, half way each time, so that equal clouds have divergence 0 after any number of steps.
    """
    between, within_x, within_y = squared_distances(x, y) / 2, squared_distances(x, x) / 2, squared_distances(y, y) / 2
    if x.shape[0] == 0:
        return between.sum((1, 2))
    start = float(max(x.shape[2], 1))  # the largest squared distance in the unit cube

    def softmin(cost: Tensor, potential: Tensor, epsilon: float | Tensor) -> Tensor:
        return -epsilon * (torch.logsumexp((potential.unsqueeze(1) - cost) / epsilon, 2) - math.log(cost.shape[2]))

    f_xy, f_x = (torch.zeros_like(x[:, :, 0]) for _ in range(2))
    g_xy, g_y = (torch.zeros_like(y[:, :, 0]) for _ in range(2))
    for step in range(steps + 1):
        epsilon = start ** (1 - step / steps) * blur ** (2 * step / steps)
        half = 0.0 if step in (0, steps) else 0.5  # the first step starts from nothing, the last one is taken whole
        f_new, g_new = softmin(between, g_xy, epsilon), softmin(between.mT, f_xy, epsilon)
        f_x = half * f_x + (1 - half) * softmin(within_x, f_x, epsilon)
        g_y = half * g_y + (1 - half) * softmin(within_y, g_y, epsilon)
        f_xy, g_xy = half * f_xy + (1 - half) * f_new, half * g_xy + (1 - half) * g_new
    return (f_xy - f_x).mean(1) + (g_xy - g_y).mean(1)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Of the Gaussians with the means and unbiased covariances of two sets of vectors, (S, M) and (R, M) -> a scalar.

    The trace of the root is the sum of the singular values of the product of the centred sets: no M × M matrix is made.
    """
    a, b = ((v - v.mean(0)) / math.sqrt(len(v) - 1) for v in (x, y))
    root = torch.linalg.svdvals(b @ a.mT).sum()
    return (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root



"""Transforms that mix the samples of a batch with each other: mixup and cutmix.

Both keep ``target`` and add ``mix_target`` (the partner's target) and ``mix_weight`` (λ, the share that a sample keeps, a
scalar). The objective mixes the losses, ``λ · loss(target) + (1 − λ) · loss(mix_target)``. For cross-entropy that is the loss
on the mixed target, for squared error the same up to a constant, and it works for every other loss too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.transforms.base import Transform, image_inputs, is_per_pixel, real_inputs
from components.validation import require

if TYPE_CHECKING:
    from components.data.base import Batch


class _Mixing(Transform):
    """The share that is kept: λ ~ Beta(alpha, alpha) with ``probability``, else 1."""

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        super().__init__()
        require(alpha > 0, "alpha must be > 0 (the parameter of a Beta distribution)", alpha)
        require(0 <= probability <= 1, "probability must be in [0, 1]", probability)
        self.alpha, self.probability = alpha, probability

    def kept_share(self, device: torch.device) -> Tensor:
        """A fresh λ, a scalar on ``device``."""
        applied = torch.rand((), device=device) < self.probability
        return torch.where(applied, symmetric_beta(self.alpha, device), 1.0)


class Mixup(_Mixing):
    r"""Trains on convex combinations of two samples and of their losses: linear behaviour between samples.

    .. math:: \tilde{x}_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \qquad
              \ell_i = \lambda\, \ell(\tilde{x}_i, y_i) + (1 - \lambda)\, \ell(\tilde{x}_i, y_{\pi(i)}), \qquad
              \lambda \sim \operatorname{Beta}(\alpha, \alpha)

    with one :math:`\lambda` and one random permutation :math:`\pi` a batch, as in the authors' code. (One :math:`\lambda` a
    sample is possible in principle; the objective mixes with one.)

    Args:
        alpha: strength, > 0: near 0 leaves most batches nearly alone, 1 draws :math:`\lambda` uniformly. Default 0.2.
        probability: share of the batches that are mixed. Default 1.

    Shapes:
        inputs (N, …), floating point; target (N, …), any. Adds ``mix_target`` = {target: (N, …)} and ``mix_weight`` ().

    Raises:
        ValueError: if ``alpha`` <= 0, ``probability`` is outside [0, 1], inputs are not floating point or there is no target.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def forward(self, batch: Batch) -> Batch:
        inputs = real_inputs(batch, "mixup")
        require("target" in batch, "mixup mixes targets: the batch must have target", sorted(batch))
        share = self.kept_share(inputs.device)
        partner = torch.randperm(len(inputs), device=inputs.device)
        mixed = torch.lerp(inputs[partner], inputs, share.to(inputs.dtype))
        return {**batch, "inputs": mixed, "mix_target": {"target": batch["target"][partner]}, "mix_weight": share}


class CutMix(_Mixing):
    r"""Pastes a rectangle of another picture into each picture, and mixes the losses by the area that is left.

    .. math:: \tilde{x}_i = M \odot x_i + (1 - M) \odot x_{\pi(i)}, \qquad \lambda = \operatorname{mean}(M)

    with *M* 0 inside one random rectangle for the whole batch: its area is aimed at :math:`1 - \lambda_0`,
    :math:`\lambda_0 \sim \operatorname{Beta}(\alpha, \alpha)`, its centre is uniform, and what sticks out of the picture is cut
    off. :math:`\lambda` is the area that is really kept. Where the target is a mask with one entry a pixel (segmentation), the
    same rectangle is pasted into the mask, and no losses are mixed.

    Args:
        alpha: strength, > 0; 1 draws the aimed area uniformly. Default 1.
        probability: share of the batches that are mixed. Default 1 (the authors use 0.5 on CIFAR).

    Shapes:
        inputs (N, C, H, W), floating point; target (N, …). Adds ``mix_target`` = {target: (N, …)} and ``mix_weight`` (), or
        for a target (N, H, W) or (N, K, H, W) returns it pasted and adds neither.

    Raises:
        ValueError: if ``alpha`` <= 0, ``probability`` is outside [0, 1], inputs are not pictures or there is no target.

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
        arXiv:1905.04899.
    """

    def forward(self, batch: Batch) -> Batch:
        inputs = image_inputs(batch, "cutmix")
        require("target" in batch, "cutmix mixes targets: the batch must have target", sorted(batch))
        target = batch["target"]
        kept = keep_mask(self.kept_share(inputs.device), inputs.shape[-2], inputs.shape[-1])
        partner = torch.randperm(len(inputs), device=inputs.device)
        mixed = {**batch, "inputs": torch.where(kept, inputs, inputs[partner])}
        if is_per_pixel(target, inputs):
            return {**mixed, "target": torch.where(kept, target, target[partner])}
        return {**mixed, "mix_target": {"target": target[partner]}, "mix_weight": kept.float().mean()}


def keep_mask(share: Tensor, height: int, width: int) -> Tensor:
    """(H, W) bool: False inside a rectangle of area about ``1 - share``, around a uniformly random pixel, cut off at the border."""
    centre = torch.rand(2, device=share.device)
    side = (1 - share).sqrt()

    def outside(length: int, centre: Tensor) -> Tensor:
        position = torch.arange(length, device=share.device)
        middle, half = (centre * length).floor(), (side * length).floor() / 2
        start, end = (middle - half).floor(), (middle + half).floor()
        return (position < start) | (position >= end)

    return outside(height, centre[0]).unsqueeze(1) | outside(width, centre[1]).unsqueeze(0)


def symmetric_beta(alpha: float, device: torch.device) -> Tensor:
    """One draw of Beta(alpha, alpha) by two uniform numbers: exact, on any device, without rejection and without waiting for it.

    Bailey's polar method gives Student's t with 2·alpha degrees of freedom, and ``(1 + t / sqrt(2·alpha + t²)) / 2`` is the Beta
    variable (Bailey, "Polar Generation of Random Variates with the t-Distribution", Mathematics of Computation 62, 1994).
    """
    radius, angle = torch.rand(2, device=device)
    cosine = torch.cos(2 * math.pi * angle)
    t_squared = torch.expm1(-radius.log() / alpha) * cosine.square()  # over 2·alpha; infinite is right for small alpha
    return 0.5 + 0.5 * cosine.sign() / torch.sqrt(1 + 1 / t_squared)

r"""Unnormalised models: a network that gives :math:`s_\theta(x)`, the logarithm of a density up to a constant, trained against noise.

The likelihood needs :math:`Z(\theta) = \int e^{s_\theta}`, an expectation under a noise distribution *q* that can be sampled. Two ways around it:
estimate the expectation with a moving average (compositional optimisation), or tell data from noise (noise contrastive estimation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, at_least_float32
from components.validation import require


class MECOLoss(Loss):
    r"""Negative log-likelihood of an unnormalised model whose normaliser is a moving average over batches.

    .. math:: F(\theta) = -\frac1n \sum_i s_\theta(x_i) + \log Z(\theta), \qquad
              Z(\theta) = \mathbb E_{\tilde x \sim q} \Big[ \frac{e^{s_\theta(\tilde x)}}{q(\tilde x)} \Big]

    Each training step moves :math:`u \leftarrow (1 - \gamma)\,u + \gamma\,g` towards the batch's estimate *g* of Z (in log space; first
    :math:`u = g`); the value is :math:`-s_\theta(x_i) + \log u` and the gradient that of

    .. math:: -s_\theta(x_i) + \frac1u\, g(\theta), \qquad u \text{ held fixed}

    which for :math:`\gamma = 1` is the plug-in :math:`\log g`, biased where a batch has little noise. Out of training, the batch's own
    :math:`\log g` is used and *u* stays (our reading).

    Try it instead of noise contrastive estimation where the noise is far from the data: the objective keeps its curvature there.

    Args:
        gamma: :math:`\gamma` in (0, 1], how fast the average forgets; smaller with less noise a batch. The default is ours.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample of data).

    Shapes:
        log_density (N,): :math:`s_\theta(x)`; noise_log_density and noise_log_noise (N, R): :math:`s_\theta(\tilde x)` and
        :math:`\log q(\tilde x)` of R noise samples to a sample of data.

    Raises:
        ValueError: if ``gamma`` is not in (0, 1] or shapes disagree.

    Source:
        Jiang et al., "Learning Unnormalized Statistical Models via Compositional Optimization", ICML 2023, arXiv:2306.07485. The momentum of
        their update is the optimizer's.
    """

    pairwise = True  # all data share the noise of the batch

    log_u: Tensor
    started: Tensor

    def __init__(self, gamma: float = 0.5, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(0 < gamma <= 1, "gamma must be in (0, 1]", gamma)
        self.gamma: float | Tensor = gamma
        self.register_buffer("log_u", torch.zeros(()))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, log_density: Tensor, noise_log_density: Tensor, noise_log_noise: Tensor) -> Tensor:
        check_densities(log_density, noise_log_density, noise_log_noise)
        dtype = at_least_float32(log_density.dtype)
        if not noise_log_density.numel():
            return self.reduce(-log_density + 0 * noise_log_density.sum())
        log_g = log_mean_exp(noise_log_density.to(dtype) - noise_log_noise.to(dtype))
        log_z = self.moved(log_g) if self.training else log_g
        return self.reduce((-log_density.to(dtype) + log_z).to(log_density.dtype))

    def moved(self, log_g: Tensor) -> Tensor:
        r""":math:`\log u` after this batch: in value; in gradient :math:`\nabla g / u`. Remembers it."""
        new = log_g.detach()
        gamma = torch.as_tensor(self.gamma, dtype=new.dtype, device=new.device)
        averaged = torch.logaddexp(torch.log1p(-gamma) + self.log_u.to(new.dtype), gamma.log() + new)
        started = self.started > 0
        log_u = torch.where(started, averaged, new)
        remember(self, "log_u", log_u)
        remember(self, "started", torch.ones_like(self.started))
        ratio = torch.exp(log_g - log_u)  # at most 1 / gamma, as u >= gamma g
        return torch.where(started, log_u + (ratio - ratio.detach()), log_g)


class NCELoss(Loss):
    r"""Noise contrastive estimation: tell data from noise by the ratio of the model's density to the noise's; the normaliser is a learned number.

    .. math:: \ell = -\log \sigma(h(x)) - \sum_{r=1}^{R} \log \big( 1 - \sigma(h(\tilde x_r)) \big), \qquad h(x) = s_\theta(x) - \log Z - \log\big(R\,q(x)\big)

    Try it where the noise is near the data: then a normaliser need not be estimated from samples. Far from the data the objective is flat.

    Args:
        log_z: start of the learned :math:`\log Z`.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample of data, with its R noise samples).

    Shapes:
        log_density and log_noise (N,): :math:`s_\theta(x)` and :math:`\log q(x)`; noise_log_density and noise_log_noise (N, R): the same of R noise
        samples to a sample of data (the paper's noise ratio :math:`\nu`).

    Raises:
        ValueError: if ``log_z`` is not finite or shapes disagree.

    Source:
        Gutmann and Hyvärinen, "Noise-Contrastive Estimation of Unnormalized Statistical Models", JMLR 13, 2012.
    """

    def __init__(self, log_z: float = 0.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(math.isfinite(log_z), "log_z must be a finite number", log_z)
        self.log_z = nn.Parameter(torch.tensor(float(log_z)))

    def forward(self, log_density: Tensor, log_noise: Tensor, noise_log_density: Tensor, noise_log_noise: Tensor) -> Tensor:
        check_densities(log_density, noise_log_density, noise_log_noise)
        require(log_noise.shape == log_density.shape, f"log_noise must have shape {tuple(log_density.shape)}", tuple(log_noise.shape))
        dtype = at_least_float32(log_density.dtype)
        offset = self.log_z.to(dtype) + math.log(max(noise_log_density.shape[1], 1))
        of_data = log_density.to(dtype) - log_noise.to(dtype) - offset
        of_noise = noise_log_density.to(dtype) - noise_log_noise.to(dtype) - offset
        return self.reduce((F.softplus(-of_data) + F.softplus(of_noise).sum(1)).to(log_density.dtype))


def log_mean_exp(values: Tensor) -> Tensor:
    """Logarithm of the mean of exp(values) over all of them."""
    return values.flatten().logsumexp(0) - math.log(values.numel())


def check_densities(log_density: Tensor, noise_log_density: Tensor, noise_log_noise: Tensor) -> None:
    """Refuse log densities whose shapes disagree.

    Raises:
        ValueError: naming the one.
    """
    require(log_density.ndim == 1, "log_density must have shape (N,)", tuple(log_density.shape))
    for name, values in (("noise_log_density", noise_log_density), ("noise_log_noise", noise_log_noise)):
        if values.ndim != 2 or len(values) != len(log_density) or values.shape != noise_log_density.shape:
            raise ValueError(f"{name} must have shape ({len(log_density)}, R), the same R for all noise, but got {tuple(values.shape)}")


def remember(module: nn.Module, name: str, value: Tensor) -> None:
    """Write a buffer: in place, as DDP and ``torch.compile`` want it; under ``torch.func.vmap``, where each trial has its own, by replacing it."""
    buffer = getattr(module, name)
    value = value.detach().to(buffer.dtype)
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(value):  # torch has no public question for this
        setattr(module, name, value)
    else:
        with torch.no_grad():
            buffer.copy_(value)

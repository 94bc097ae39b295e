"""Losses of counts and amounts: negative log-likelihoods whose noise grows with the mean.

Counts (Poisson), amounts (gamma) and amounts that are often nothing at all (compound Poisson–gamma: insurance claims, rain) are one family, Tweedie's: the
variance is a power of the mean. Squared error is its power 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from components.losses.base import Reduction, at_least_float32
from components.losses.regression import RegressionLoss
from components.validation import require, require_choice

MAX_EXPONENT = 60.0
"""Beyond it exponentials go on as straight lines: exp(60) times anything sensible is still a float32."""


class TweedieLoss(RegressionLoss):
    r"""Negative log-likelihood of a Tweedie distribution with mean :math:`\mu` and variance :math:`\propto \mu^p`: counts and amounts >= 0.

    .. math:: \ell = -y\,\frac{\mu^{1-p} - 1}{1-p} + \frac{\mu^{2-p} - 1}{2-p}, \qquad \mu = e^{\hat y} \text{ (link=log)}\ \text{or}\ \hat y

    where at *p* = 1 and 2 the fractions are their limit :math:`\log \mu`. Up to terms without :math:`\mu` this is

    =====  ==========================================  =============================================
    *p*    distribution                                :math:`\ell`
    =====  ==========================================  =============================================
    0      normal                                      :math:`\tfrac12 (y - \mu)^2`
    1      Poisson: counts (``poisson_nll``)           :math:`\mu - y \log \mu`
    1–2    compound Poisson–gamma: amounts, many 0     (``tweedie``)
    2      gamma: amounts > 0 (``gamma_nll``)          :math:`y / \mu + \log \mu`
    =====  ==========================================  =============================================

    and twice the difference to the best :math:`\mu = y` is the unit deviance. With ``link=log`` the prediction is the *logarithm* of the mean, and so are
    metrics of ``prediction``. Exponentials go on as straight lines beyond 60, so nothing overflows.

    Try it for targets whose errors grow with their size: counts of events, sales, claims, rain (``data.standardise_target=false``).

    Args:
        power: *p*, in [0, 2].
        link: ``log`` (any prediction is valid) | ``identity`` (the prediction is the mean; below ``eps`` it counts as ``eps`` and has no gradient).
        eps: least mean for ``link=identity``; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target of one shape, any; target >= 0 (not checked); NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, shapes differ or the target is not real-valued.

    Source:
        Jørgensen, "Exponential Dispersion Models", JRSS B 49(2), 1987; the Poisson case: :func:`torch.nn.functional.poisson_nll_loss`, Terven et al., "Loss
        Functions and Metrics in Deep Learning", 2023, arXiv:2307.02694.
    """

    def __init__(self, power: float = 1.5, *, link: Literal["log", "identity"] = "log", eps: float = 1e-8, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(0 <= power <= 2, "power must be in [0, 2]", power)
        require_choice("link", link, ("log", "identity"))
        require(eps > 0, "eps must be > 0", eps)
        self.link = link
        self.power: float | Tensor = power
        self.eps: float | Tensor = eps

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        precise = prediction.to(at_least_float32(prediction.dtype))
        log_mean = precise if self.link == "log" else precise.clamp(min=self.eps).log()
        values = power_of_exp(log_mean, 2 - self.power) - target.to(precise.dtype) * power_of_exp(log_mean, 1 - self.power)
        return values.to(prediction.dtype)


def power_of_exp(log_mean: Tensor, exponent: float | Tensor) -> Tensor:
    r""":math:`(\mu^\lambda - 1) / \lambda` from :math:`\log \mu`; its limit :math:`\log \mu` at 0 (next to 0 the formula is exact)."""
    exponent = exponent + 1e-15
    product = exponent * log_mean
    inside = product.clamp(max=MAX_EXPONENT)
    return (torch.expm1(inside) + inside.detach().exp() * (product - inside)) / exponent

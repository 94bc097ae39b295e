"""Losses of forecasts that know how far ahead each step lies.

The further ahead, the less there is to know: an error of a late step is mostly noise, and trains the model to fit noise. These losses let a step's
weight decay with its distance. All forms are one class; the decays and their papers are options of it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from components.losses.base import Reduction
from components.losses.regression import RegressionLoss
from components.validation import require, require_choice

Decay = Literal["arctan", "power", "none"]


class HorizonWeightedLoss(RegressionLoss):
    r"""Absolute (or squared) error whose weight decays along the horizon: near steps count most.

    .. math:: \ell_i = \phi\big(\rho(i)\,(y_i - \hat y_i)\big), \qquad i = 1, \dots, H \text{ steps ahead}, \quad \phi(e) = |e| \text{ or } e^2

    ==========  ============================================================  ===========================================
    ``decay``   :math:`\rho(i)`                                               paper (option)
    ==========  ============================================================  ===========================================
    ``arctan``  :math:`1 + \pi/4 - \arctan i`: from 1 down to 0.2146          xPatch (``arctan_decay``)
    ``power``   :math:`i^{-p}`: from 1 down to 0                              CARD, *p* = 1/2 (``signal_decay``)
    ``none``    1                                                             plain MAE or MSE
    ==========  ============================================================  ===========================================

    CARD's *p* = 1/2 is the inverse of an autoregressive error's standard deviation, which grows as the square root of the distance. Weights multiply the
    *error*, as in both papers' code: with ``error=mse`` a step's loss has the weight :math:`\rho^2`. They are not renormalised.

    Try it for long horizons where late steps are hardly predictable; test metrics stay unweighted.

    Args:
        decay: ``arctan`` | ``power`` | ``none``, see above.
        power: *p* >= 0 of ``decay=power``; 0 is no decay.
        error: ``mae`` | ``mse``.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per element of ``target``).

    Shapes:
        prediction and target (N, H, C) or (N, H): dimension 1 is the horizon; NaN in target marks an ignored element.

    Raises:
        ValueError: if an option is out of its range, there is no dimension 1, shapes differ or the target is not real-valued.

    Source:
        Stitsyuk and Choi, "xPatch: Dual-Stream Time Series Forecasting with Exponential Seasonal-Trend Decomposition", AAAI 2025, arXiv:2412.17323; Wang
        et al., "CARD: Channel Aligned Robust Blend Transformer for Time Series Forecasting", ICLR 2024, arXiv:2305.12095.
    """

    def __init__(self, decay: Decay = "arctan", *, power: float = 0.5, error: Literal["mae", "mse"] = "mae", reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require_choice("decay", decay, ("arctan", "power", "none"))
        require_choice("error", error, ("mae", "mse"))
        require(power >= 0, "power must be >= 0", power)
        self.decay, self.error = decay, error
        self.power: float | Tensor = power

    def weights(self, horizon: int, like: Tensor) -> Tensor:
        """:math:`\\rho(1), …, \\rho(H)` (H,), in the type and on the device of ``like``."""
        steps = torch.arange(1, horizon + 1, device=like.device, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)
        if self.decay == "arctan":
            return (1 + torch.pi / 4 - steps.arctan()).to(like.dtype)
        if self.decay == "power":
            return (steps**-self.power).to(like.dtype)
        return torch.ones_like(steps, dtype=like.dtype)

    def per_element(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.ndim < 2:
            raise ValueError(f"prediction must be (N, H) or (N, H, C), the horizon in dimension 1, but got {tuple(prediction.shape)}")
        weights = self.weights(prediction.shape[1], prediction).reshape(-1, *[1] * (prediction.ndim - 2))
        error = weights * (target - prediction)
        return error.abs() if self.error == "mae" else error.square()

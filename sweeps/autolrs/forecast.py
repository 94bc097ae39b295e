r"""What a loss will be later, from a short series of it: AutoLRS's exponential forecast.

.. math:: L(t) = a\,e^{b t} + c, \qquad b < 0

*b* is searched (one dimension), *a* and *c* follow from it by least squares.

Source:
    Jin, Zhou, Zhao, Zhu, Guo, Canini and Krishnamurthy, "AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the Fly",
    ICLR 2021, arXiv:2105.10762; the filter of ``reference`` is that of the released code, https://github.com/YuchenJin/autolrs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import UnivariateSpline
from scipy.optimize import minimize_scalar

from components.validation import require, require_choice

Floats = NDArray[np.float64]
Denoise = Literal["none", "reference", "scaled"]
DENOISE: tuple[Denoise, ...] = ("none", "reference", "scaled")
SLOWEST, FASTEST = -1e-6, -10.0
DROPPED = 0.03
ROUNDS = 10


@dataclass(frozen=True)
class Exponential:
    """A fitted :math:`a e^{b t} + c`; ``residual`` is the sum of squares that is left."""

    a: float
    b: float
    c: float
    residual: float

    def __call__(self, step: float) -> float:
        return float(self.a * math.exp(self.b * step) + self.c)


def forecast(losses: Sequence[float], at: float, *, denoise: Denoise = "scaled", rounds: int = ROUNDS) -> float:
    """The loss at ``at``, where ``losses`` are those at 0, 1, 2, …

    Args:
        losses: the series, finite, two or more.
        at: the index to look ahead to.
        denoise: ``none``; ``reference``: the released code's, whose degree-2 spline has the smoothing ``s = n``, which for losses of about 1 makes
            it a single parabola and biases even a noise-free series; ``scaled``: the same with *s* of the size of the noise.
        rounds: how often outliers (the 3 % farthest from the spline, of the series' first half) are dropped: 10 for training losses; for validation
            losses 1, when the single farthest is dropped.
    """
    return fit_exponential(smoothed(losses, denoise, rounds)).__call__(at)


def fit_exponential(losses: Sequence[float] | Floats) -> Exponential:
    """The least-squares exponential through the losses at 0, 1, 2, …, its time constant between a tenth of a step and a million."""
    values = np.asarray(losses, dtype=np.float64)
    require(values.ndim == 1 and values.size >= 2 and bool(np.isfinite(values).all()), "losses must be two finite numbers or more", values.shape)
    steps = np.arange(values.size, dtype=np.float64)
    mean = values.mean()
    spread = float(((values - mean) ** 2).sum())

    def solve(b: float) -> Exponential:
        basis = np.exp(b * steps)
        centred = basis - basis.mean()
        power = float(centred @ centred)
        if power < 1e-12 * values.size:  # as good as constant over the series: no slope can be read off it
            return Exponential(0.0, b, float(mean), spread)
        a = float(centred @ (values - mean)) / power
        c = float(mean - a * basis.mean())
        return Exponential(a, b, c, float(((a * basis + c - values) ** 2).sum()))

    # several valleys are possible where the series is noisy: look along the whole range first
    grid = -np.geomspace(-SLOWEST, -FASTEST, 57)
    best = int(np.argmin([solve(b).residual for b in grid]))
    low, high = math.log(-grid[max(best - 1, 0)]), math.log(-grid[min(best + 1, grid.size - 1)])
    found = minimize_scalar(lambda beta: solve(-math.exp(beta)).residual, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return min(solve(float(grid[best])), solve(-math.exp(float(found.x))), key=lambda fit: fit.residual)


def smoothed(losses: Sequence[float], denoise: Denoise, rounds: int = ROUNDS) -> Floats:
    """The series with the spikes of its beginning taken out and smoothed; see :func:`forecast`."""
    require_choice("denoise", denoise, DENOISE)
    values = np.asarray(losses, dtype=np.float64)
    if denoise == "none" or values.size < 8:  # a spline of degree 2 needs some points
        return values
    steps = np.arange(values.size, dtype=np.float64)
    kept = np.ones(values.size, dtype=bool)
    for _ in range(rounds):
        distance = np.abs(values - _spline(steps[kept], values[kept], denoise)(steps))
        count = max(1, round(DROPPED * int(kept.sum()))) if rounds > 1 else 1
        farthest = np.argsort(np.where(kept, distance, -1.0))[-count:]
        drop = farthest[farthest < values.size // 2]
        if int(kept.sum()) - drop.size < 5:
            break
        kept[drop] = False
    return np.asarray(_spline(steps[kept], values[kept], denoise)(steps), dtype=np.float64)


def _spline(steps: Floats, values: Floats, denoise: Denoise) -> UnivariateSpline:
    smoothing: float | None = None
    if denoise == "scaled":  # neighbours differ by the noise: its variance from second differences, which a smooth curve has next to none of
        second = np.diff(values, 2)
        noise = float(np.median(np.abs(second))) / 0.6745 / math.sqrt(6.0)
        smoothing = max(values.size * noise**2, 1e-12 * max(float(values.var()), 1e-12) * values.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the smoothing could not be reached exactly
        return UnivariateSpline(steps, values, k=2, s=smoothing)


__all__ = ["DENOISE", "Denoise", "Exponential", "fit_exponential", "forecast", "smoothed"]

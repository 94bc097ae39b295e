"""Made-up series, returns and fields to forecast, each with the one property that a loss of forecasts is about.

Like all synthetic sets they depend on ``split_seed`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import Samples
from components.data.series import Series
from components.data.synthetic import Synthetic
from components.validation import require


class SeasonalSeries(Series):
    r"""Seasons and a trend that can be forecast, and noise that can be forecast the less the further ahead it lies.

    .. math:: x_t = \text{trend} \cdot \frac{t}{T} + \sum_p \sin\!\Big(\frac{2\pi t}{p} + \varphi_p\Big) + \text{noise} \cdot u_t, \qquad
              u_t = \phi\,u_{t-1} + \sqrt{1 - \phi^2}\,\varepsilon_t

    The error of the best forecast *h* steps ahead is :math:`\text{noise} \cdot \sqrt{1 - \phi^{2h}}`: it grows as :math:`\sqrt h` at first. Outliers hit
    single values, so they tell nothing of the next one.

    Args:
        size: T, time steps.
        channels: C, series; phases and noise are their own.
        periods: of the seasons, in steps.
        trend: what a series rises by from the first step to the last.
        noise: standard deviation of *u*.
        persistence: :math:`\phi` in [0, 1).
        outliers: share of the values that an outlier is added to.
        outlier_size: standard deviation of outliers.
        history: L, observed steps before the forecast.
        horizon: H, steps to forecast.
        **common: see :class:`~components.data.series.Series`; ``split_seed`` is that of the draw.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        size: int = 1200,
        channels: int = 1,
        periods: Sequence[float] = (24, 60),
        trend: float = 1.0,
        noise: float = 0.5,
        persistence: float = 0.95,
        outliers: float = 0.0,
        outlier_size: float = 5.0,
        history: int = 48,
        horizon: int = 24,
        **common: Any,
    ) -> None:
        super().__init__(history=history, horizon=horizon, **common)
        require(size >= 10, "size must be >= 10 steps", size)
        require(channels >= 1, "channels must be >= 1", channels)
        require(all(p > 0 for p in periods), "periods must be > 0", list(periods))
        require(noise >= 0, "noise must be >= 0", noise)
        require(0 <= persistence < 1, "persistence must be in [0, 1)", persistence)
        require(0 <= outliers <= 1, "outliers must be in [0, 1]", outliers)
        self.total, self.channels, self.periods, self.trend = size, channels, tuple(periods), trend
        self.noise, self.persistence, self.outliers, self.outlier_size = noise, persistence, outliers, outlier_size

    def read_series(self) -> tuple[np.ndarray, list[str]]:
        rng = np.random.default_rng([17, self.split_seed])
        steps = np.arange(self.total)[:, None]
        values = self.trend * steps / self.total + np.zeros((1, self.channels))
        for period in self.periods:
            values = values + np.sin(2 * np.pi * (steps / period + rng.random((1, self.channels))))
        values = values + self.noise * autoregression(rng.normal(size=(self.total, self.channels)), self.persistence)
        hit = rng.random(values.shape) < self.outliers
        return values + hit * self.outlier_size * rng.normal(size=values.shape), [f"series_{c}" for c in range(self.channels)]


class Returns(Synthetic):
    r"""Daily returns whose sign can hardly be predicted: fat tails, volatility that comes in clusters, and indicators that know a little.

    .. math:: r_t = \sigma_t \big( \text{edge} \cdot \tanh(w^\top z_t) + \varepsilon_t \big), \qquad
              \sigma_t^2 = 0.05 + 0.10\,\min(r_{t-1}^2, 25) + 0.85\,\sigma_{t-1}^2 \quad\text{(GARCH, in per cent)}

    with :math:`\varepsilon` Student's *t* of ``tails`` degrees of freedom, scaled to variance 1. The inputs are the indicators *z*, each an autoregression
    that forgets a tenth a day, half of them of no use (*w* = 0), and the last ``lags`` returns. Days are split by time: the first are for training, the
    last for the test. Returns are in per cent and are not standardised, so that their sign stays what it is.

    Args:
        size: days, over all splits.
        indicators: columns of *z*.
        lags: past returns among the inputs.
        edge: how much the indicators tell: 0.2 is right on some 55 % of the days.
        tails: degrees of freedom, 3 or more; small ones have fat tails.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self, *, size: int = 2500, indicators: int = 8, lags: int = 5, edge: float = 0.2, tails: int = 3, standardise_target: bool = False, **common: Any
    ) -> None:
        super().__init__(size=size, standardise_target=standardise_target, **common)
        require(indicators >= 2, "indicators must be >= 2", indicators)
        require(lags >= 0, "lags must be >= 0", lags)
        require(edge >= 0, "edge must be >= 0", edge)
        require(tails >= 3, "tails must be >= 3 (else the returns have no variance)", tails)
        self.indicators, self.lags, self.edge, self.tails = indicators, lags, edge, tails

    def read(self) -> Samples:
        rng = np.random.default_rng([23, self.split_seed])
        days = self.total + self.lags
        z = autoregression(rng.normal(size=(days, self.indicators)), 0.9)
        weights = rng.normal(size=self.indicators) * (np.arange(self.indicators) < self.indicators // 2)
        score = np.tanh(z @ (weights / np.linalg.norm(weights)))
        shocks = rng.standard_t(self.tails, days) * math.sqrt((self.tails - 2) / self.tails)
        returns, variance = np.empty(days), 1.0
        for day in range(days):
            returns[day] = math.sqrt(variance) * (self.edge * score[day] + shocks[day])
            variance = 0.05 + 0.10 * min(returns[day] ** 2, 25.0) + 0.85 * variance
        past = [returns[lag : lag + self.total] for lag in range(self.lags)]
        inputs = torch.from_numpy(np.column_stack([z[self.lags :], *past])).clamp(-20, 20)
        target = torch.from_numpy(returns[self.lags :, None].copy())
        test, val = round(self.test_fraction * self.total), round(self.val_fraction * self.total)
        part = ["train"] * (self.total - val - test) + ["val"] * val + ["test"] * test
        return Samples(inputs, target, "real", [], part=part)


class AdvectedField(Synthetic):
    r"""A random field and where the wind has carried it: large waves can be forecast, small ones only in strength.

    .. math:: \hat y_k = e^{-i k \cdot \delta} \Big( c_k\,\hat x_k + \sqrt{1 - c_k^2}\,\hat\xi_k \Big), \qquad c_k = e^{-(|k| / k_0)^2}

    *x* and :math:`\xi` are periodic Gaussian fields with the power spectrum :math:`|k|^{-\text{slope}}` and variance 1, :math:`\delta` a fixed shift. The best
    forecast in squared error is :math:`c_k \hat x_k` carried along: a field without small waves.

    Args:
        size: samples, over all splits.
        points: grid points along each side.
        dimensions: 1 or 2; a plane comes flat, points · points values.
        slope: of the power spectrum.
        scale: :math:`k_0`, the wavenumber from which on there is little to forecast.
        shift: :math:`\delta` along each side, in grid points.
        **common: see :class:`~components.data.synthetic.Synthetic`.

    Raises:
        ValueError: an argument out of its range.

    Source:
        The setting of Subich et al., "Fixing the Double Penalty in Data-Driven Weather Forecasting …", ICML 2025, arXiv:2501.19374, in small.
    """

    def __init__(
        self,
        *,
        size: int = 1500,
        points: int = 32,
        dimensions: int = 1,
        slope: float = 1.5,
        scale: float = 5.0,
        shift: float = 2.5,
        standardise: bool = False,
        standardise_target: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(size=size, standardise=standardise, standardise_target=standardise_target, **common)
        require(points >= 4, "points must be >= 4", points)
        require(dimensions in (1, 2), "dimensions must be 1 or 2", dimensions)
        require(scale > 0, "scale must be > 0", scale)
        self.points, self.dimensions, self.slope, self.scale, self.shift = points, dimensions, slope, scale, shift

    def wavenumbers(self) -> Tensor:
        """The components of *k* (dimensions, …) of every coefficient of a real Fourier transform."""
        sides = [torch.fft.fftfreq(self.points, 1 / self.points, dtype=torch.float64)] * (self.dimensions - 1)
        return torch.stack(torch.meshgrid(*sides, torch.arange(self.points // 2 + 1, dtype=torch.float64), indexing="ij"))

    def coherence(self) -> Tensor:
        """:math:`c_k` of every coefficient."""
        return torch.exp(-self.wavenumbers().square().sum(0) / self.scale**2)

    def read(self) -> Samples:
        generator = self.generator()
        shape, dims = (self.points,) * self.dimensions, tuple(range(1, self.dimensions + 1))
        k = self.wavenumbers()
        size = k.square().sum(0).sqrt()
        # no mean, and no wave of two points: a shift by half a point would make it imaginary
        inside = (size > 0) & (k.abs().amax(0) < self.points / 2)
        amplitude = torch.where(inside, size.clamp(min=1) ** (-self.slope / 2), torch.zeros_like(size))
        impulse = torch.fft.irfftn(amplitude.square(), s=shape)
        amplitude = amplitude / impulse.flatten()[0].sqrt()  # variance 1

        def coefficients() -> Tensor:
            return amplitude * torch.fft.rfftn(torch.randn(self.total, *shape, generator=generator, dtype=torch.float64), dim=dims)

        first, c = coefficients(), self.coherence()
        turn = torch.polar(torch.ones_like(size), -2 * math.pi * self.shift * k.sum(0) / self.points)
        second = turn * (c * first + (1 - c.square()).sqrt() * coefficients())
        inputs, target = (torch.fft.irfftn(field, s=shape, dim=dims).flatten(1) for field in (first, second))
        return Samples(inputs, target, "real", [])


def autoregression(shocks: np.ndarray, persistence: float) -> np.ndarray:
    """:math:`u_t = \\phi u_{t-1} + \\sqrt{1 - \\phi^2} \\varepsilon_t` along the first dimension, with the variance of the shocks throughout."""
    from scipy.signal import lfilter

    scaled = shocks * math.sqrt(1 - persistence**2)
    scaled[0] = shocks[0]
    return np.asarray(lfilter([1.0], [1.0, -persistence], scaled, axis=0))

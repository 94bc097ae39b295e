"""A loss of fields by scale: how strong each wavelength is, and how well it is placed, counted apart.

Mean squared error punishes a well-formed wave in the wrong place twice: once for missing where it should be and once for being where it should not.
The cheapest answer is to predict no wave at all, so models trained by it blur whatever they can't place. The loss here counts both errors without that
way out. It needs a basis sorted by wavelength; the three :class:`Basis` classes give it for series, periodic planes and the sphere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from components.losses.base import Loss, Reduction, at_least_float32, float_tensor
from components.losses.regression import check_real_target, without_missing
from components.validation import require, require_choice

Geometry = Literal["series", "plane", "sphere"]
Latitudes = Literal["gauss", "equiangular"]


class Basis(nn.Module):
    """An orthonormal basis whose functions are grouped by wavenumber: the power of a field, wavenumber by wavenumber.

    Power is that of the mean over the grid (the sphere's area): summed over all wavenumbers it is the field's mean square.
    """

    def coefficients(self, fields: Tensor) -> Tensor:
        """Complex coefficients of real ``fields``, in the last dimensions."""
        raise NotImplementedError

    def by_wavenumber(self, products: Tensor) -> Tensor:
        """Sums over the coefficients of each wavenumber: (…, K)."""
        raise NotImplementedError

    def cross_power(self, first: Tensor, second: Tensor) -> Tensor:
        """:math:`\\operatorname{Re} \\sum_m X_{km} \\bar Y_{km}` of two fields' coefficients, (…, K); of one with itself, its power spectrum."""
        return self.by_wavenumber(first.real * second.real + first.imag * second.imag)


class FourierSeries(Basis):
    """Sines and cosines along the last dimension (…, T), taken as periodic; the wavenumber counts waves in T, 0 … T // 2."""

    def coefficients(self, fields: Tensor) -> Tensor:
        waves = torch.fft.rfft(fields, norm="forward")
        scale = waves.real.new_full((waves.shape[-1],), math.sqrt(2))  # each wave stands for its mirror image too,
        scale[0] = 1.0  # but for the mean
        if fields.shape[-1] % 2 == 0:
            scale[-1] = 1.0  # and the shortest wave of an even grid
        return waves * scale

    def by_wavenumber(self, products: Tensor) -> Tensor:
        return products


class FourierPlane(Basis):
    r"""Plane waves on a periodic (…, H, W) grid, by their isotropic wavenumber :math:`\operatorname{round} \sqrt{n_y^2 + n_x^2}`.

    :math:`n` counts waves across the whole side. Rounding to the nearest, corners kept, is our reading.
    """

    bins: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
        bins = torch.hypot(rows[:, None], columns[None, :]).round().long()
        self.count = int(bins.max()) + 1
        self.register_buffer("bins", bins.flatten(), persistent=False)

    def coefficients(self, fields: Tensor) -> Tensor:
        return torch.fft.fft2(fields, norm="forward")

    def by_wavenumber(self, products: Tensor) -> Tensor:
        flat = products.flatten(-2)
        return flat.new_zeros(*flat.shape[:-1], self.count).index_add(-1, self.bins, flat)


class SphericalHarmonics(Basis):
    r"""Spherical harmonics on a (…, latitudes, longitudes) grid, by their degree.

    .. math:: a_{\ell m} = \sum_j w_j\, \bar P_\ell^m(\cos\theta_j)\, \tfrac1M \sum_i f(\theta_j, \lambda_i)\, e^{-im\lambda_i}

    with :math:`\bar P` normalised so that the harmonics are orthonormal in the mean over the sphere. Latitudes run from the north pole to the south,
    either at the Gauss–Legendre nodes, or evenly from pole to pole with Clenshaw–Curtis weights. What a field holds beyond degree ``degrees`` is
    not seen.

    Args:
        latitudes: rows of the grid.
        longitudes: columns of the grid, evenly spaced.
        grid: ``gauss`` | ``equiangular``.
        degrees: highest degree; default: the highest whose products the quadrature integrates exactly.
    """

    table: Tensor
    twice: Tensor

    def __init__(self, latitudes: int, longitudes: int, grid: Latitudes = "gauss", degrees: int | None = None) -> None:
        super().__init__()
        highest = min(latitudes - 1 if grid == "gauss" else (latitudes - 1) // 2, (longitudes - 1) // 2)
        self.degrees = highest if degrees is None else degrees
        require(0 <= self.degrees <= highest, f"degrees must be in [0, {highest}] on this grid", degrees)
        cosines, weights = gauss_legendre(latitudes) if grid == "gauss" else clenshaw_curtis(latitudes)
        functions = legendre_functions(self.degrees, cosines)
        self.register_buffer("table", torch.from_numpy(functions * weights), persistent=False)  # (m, ℓ, latitude)
        twice = torch.full((self.degrees + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1.0  # order m stands for -m too
        self.register_buffer("twice", twice, persistent=False)

    def coefficients(self, fields: Tensor) -> Tensor:
        waves = torch.fft.rfft(fields, norm="forward")[..., : self.degrees + 1]
        table = self.table.to(fields.dtype)
        with in_full(fields.device):
            return torch.complex(*(torch.einsum("...jm,mlj->...lm", part, table) for part in (waves.real, waves.imag)))

    def by_wavenumber(self, products: Tensor) -> Tensor:
        return (products * self.twice.to(products.dtype)).sum(-1)


class AMSELoss(Loss):
    r"""Amplitude-adjusted mean squared error: errors of strength and of place, wavelength by wavelength, without the reward for blurring.

    With the power spectra :math:`P_k(x) = \sum_m |X_{km}|^2` and the coherence :math:`C_k = \operatorname{Re} \sum_m X_{km} \bar Y_{km} / \sqrt{P_k(x)
    P_k(y)}` of the prediction *x* and the target *y*,

    .. math:: \mathrm{MSE} = \sum_k \Big[ \big(\sqrt{P_k(x)} - \sqrt{P_k(y)}\big)^2 + 2 \sqrt{P_k(x) P_k(y)}\,(1 - C_k) \Big]

    .. math:: \mathrm{AMSE} = \sum_k \Big[ \big(\sqrt{P_k(x)} - \sqrt{P_k(y)}\big)^2 + 2 \max\big(P_k(x), P_k(y)\big)\,(1 - C_k) \Big]

    Where a scale can't be predicted (:math:`C_k = 0`) MSE is least for no power at all, AMSE for the target's power. The square roots are
    :math:`\sqrt{P + \epsilon}`, so a scale without power has coherence 0.

    Try it after MSE, to sharpen fields (weather, images, series) that it has blurred; from a random start it is harsher, since its gradient does not
    vanish with the amplitude: the coherence of a scale of almost no power turns quickly.

    Args:
        geometry: ``series``, along dimension 1; ``plane``, periodic, or ``sphere``, over the last two dimensions.
        shape: [height, width] (plane) or [latitudes, longitudes] (sphere); a last dimension of height · width is unfolded to it. Series: null.
        grid: of the sphere's latitudes, north to south: ``gauss`` | ``equiangular`` (poles included).
        degrees: highest degree on the sphere; null: the highest that its grid resolves exactly. What lies beyond it is not seen.
        channel_weights: a weight >= 0 for each channel (variable, level): (N, T, C) or (N, C, H, W); null: 1 each.
        eps: :math:`\epsilon`, in the target's unit squared; > 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per field, (N,) or (N, C)).

    Shapes:
        prediction and target of one shape: (N, T) or (N, T, …) series; (N, H, W), (N, C, H, W), (N, H·W) or (N, C, H·W) fields. NaN in target ignores the
        whole field that it lies in.

    Raises:
        ValueError: if an option is out of its range, shapes differ or don't fit, or the target is not real-valued.

    Source:
        Subich et al., "Fixing the Double Penalty in Data-Driven Weather Forecasting Through a Modified Spherical Harmonic Loss Function", ICML 2025,
        arXiv:2501.19374. The binning in the plane is our reading (:class:`FourierPlane`).
    """

    channel_weights: Tensor | None

    def __init__(
        self,
        geometry: Geometry = "series",
        *,
        shape: Sequence[int] | None = None,
        grid: Latitudes = "gauss",
        degrees: int | None = None,
        channel_weights: Sequence[float] | None = None,
        eps: float = 1e-12,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require_choice("geometry", geometry, ("series", "plane", "sphere"))
        require_choice("grid", grid, ("gauss", "equiangular"))
        require(eps > 0, "eps must be > 0", eps)
        require((shape is None) == (geometry == "series"), "shape must be [height, width] for geometry=plane and sphere, and null for series", shape)
        self.geometry, self.grid, self.degrees = geometry, grid, degrees
        require(shape is None or (len(shape) == 2 and min(shape) >= 1), "shape must hold two sizes >= 1", shape)
        self.shape = None if shape is None else (int(shape[0]), int(shape[1]))
        self.eps: float | Tensor = eps
        weights = None if channel_weights is None else float_tensor("channel_weights", channel_weights)
        require(weights is None or bool((weights >= 0).all()), "channel_weights must be >= 0", channel_weights)
        self.register_buffer("channel_weights", weights)
        self.basis: Basis = FourierSeries()
        if self.shape is not None:
            self.basis = FourierPlane(*self.shape) if geometry == "plane" else SphericalHarmonics(*self.shape, grid, degrees)

    def fields(self, values: Tensor) -> Tensor:
        """The prediction or the target as (N, T), (N, …, T), (N, H, W) or (N, C, H, W): what is transformed comes last."""
        if self.shape is None:
            if values.ndim < 2:
                raise ValueError(f"prediction must be (N, T) or (N, T, C) for geometry=series, but got {tuple(values.shape)}")
            return values.movedim(1, -1)
        if values.ndim in (3, 4) and values.shape[-2:] == self.shape:
            return values
        if values.ndim in (2, 3) and values.shape[-1] == math.prod(self.shape):
            return values.unflatten(-1, self.shape)
        raise ValueError(f"prediction must end in the dimensions {list(self.shape)}, or in one of their product, but got {tuple(values.shape)}")

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        dtype, precise = prediction.dtype, at_least_float32(prediction.dtype)
        prediction, target = self.fields(prediction.to(precise)), self.fields(target.to(precise))
        grid = (-1,) if self.shape is None else (-2, -1)
        unknown = target.isnan().any(-1) if self.shape is None else target.isnan().flatten(-2).any(-1)
        marker = torch.where(unknown, torch.nan, torch.zeros(unknown.shape, dtype=precise, device=target.device))
        if prediction.numel() == 0:
            return self.reduce(prediction.sum(grid), marker).to(dtype)
        predicted = self.basis.coefficients(prediction)
        true = self.basis.coefficients(without_missing(target, prediction))
        values = self.compare(*(self.basis.cross_power(a, b) for a, b in ((predicted, predicted), (true, true), (predicted, true))))
        if self.channel_weights is not None:
            if values.ndim != 2 or values.shape[1] != len(self.channel_weights):
                raise ValueError(f"channel_weights has {len(self.channel_weights)} values, but prediction has the channels {tuple(values.shape[1:])}")
            values = values * self.channel_weights.to(precise)
        return self.reduce(values, marker).to(dtype)

    def compare(self, power: Tensor, true_power: Tensor, common: Tensor) -> Tensor:
        """AMSE of each field from the spectra (…, K) of the prediction, the target and both."""
        amplitude, true_amplitude = (power + self.eps).sqrt(), (true_power + self.eps).sqrt()
        coherence = common / (amplitude * true_amplitude)
        return ((amplitude - true_amplitude).square() + 2 * torch.maximum(power, true_power) * (1 - coherence)).sum(-1)


def in_full(device: torch.device) -> AbstractContextManager[Any]:
    """Where autocast leaves matrix products alone: it would round coefficients to two digits."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the colatitudes, north to south, and weights that sum to 1: exact for polynomials up to degree ``2 · count - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes[::-1].copy(), weights[::-1].copy() / 2


def clenshaw_curtis(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of evenly spaced colatitudes, poles included, and weights that sum to 1: exact for polynomials up to degree ``count - 1``.

    The weights solve the moment equations in Chebyshev polynomials, :math:`\\sum_j w_j \\cos k\\theta_j = \\tfrac12 \\int_{-1}^1 T_k`.
    """
    require(count >= 2, "shape must have 2 latitudes or more for grid=equiangular (both poles)", count)
    angles = np.linspace(0, np.pi, count)
    degrees = np.arange(count)
    even = degrees % 2 == 0
    moments = np.where(even, 1.0 / (1.0 - np.where(even, degrees, 0).astype(float) ** 2), 0.0)
    return np.cos(angles), np.linalg.solve(np.cos(np.outer(degrees, angles)), moments)


def legendre_functions(degrees: int, cosines: np.ndarray) -> np.ndarray:
    r"""Associated Legendre functions :math:`\bar P_\ell^m`, (m, ℓ, points), with :math:`\tfrac12 \int_{-1}^1 (\bar P_\ell^m)^2 = 1`; 0 where m > ℓ.

    The three-term recurrence in ℓ at fixed m, which is stable, from :math:`\bar P_m^m \propto \sin^m \theta`.
    """
    sines = np.sqrt(np.clip(1 - cosines**2, 0, None))
    table = np.zeros((degrees + 1, degrees + 1, len(cosines)))
    diagonal = np.ones_like(cosines)
    for m in range(degrees + 1):
        if m:
            diagonal = diagonal * sines * math.sqrt((2 * m + 1) / (2 * m))
        table[m, m] = diagonal
        if m < degrees:
            table[m, m + 1] = math.sqrt(2 * m + 3) * cosines * diagonal
        for n in range(m + 2, degrees + 1):
            a = math.sqrt((4 * n * n - 1) / (n * n - m * m))
            b = math.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1))
            table[m, n] = a * (cosines * table[m, n - 1] - b * table[m, n - 2])
    return table

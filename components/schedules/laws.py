r"""Laws of the loss under a learning-rate schedule: fitted on one to three runs, they give the loss curve of a schedule that was never run.

    curves = [Curve(rates, steps, losses) for a constant and a decaying run]
    law = MultiPowerLaw().fit(curves)
    law.predict(Cosine(total_steps=20_000), lr=3e-4)        # .loss with .low and .high, at every step
    law.optimise(20_000, lr=3e-4, warmup=0.05)              # the schedule of least predicted final loss

All have the form

.. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - D(t), \qquad S_1(t) = \sum_{i \le t} \eta_i

with :math:`\eta_i` the learning rate of the i-th step and *D* what the falling of the rate has gained so far: nothing
(:class:`PowerLaw`), an area (:class:`AnnealingLaw`), a sum of power laws (:class:`MultiPowerLaw`).

How they are fitted and how the intervals are made: :mod:`components.schedules.rate_law`.

They live with the schedules, since they need nothing but rates and losses; searches import them from here (``components.schedules``
itself does not, so that schedules stay free of scipy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from components.schedules.base import require_number
from components.schedules.rate_law import HUBER, Curve, FitError, Floats, Ints, Prediction, RateLaw, Rises, Score, checked_rates, counted_falls, falls
from components.schedules.rate_law import law_from_state as law_from_state
from components.validation import require, require_choice

__all__ = ["AnnealingLaw", "Curve", "FitError", "MultiPowerLaw", "PowerLaw", "Prediction", "RateLaw", "Score", "SizedAnnealingLaw", "law_from_state"]


class PowerLaw(RateLaw):
    r"""The loss by the sum of the rates alone: :math:`L(t) = L_0 + A\,S_1(t)^{-\alpha}`.

    What the other laws are under a constant rate (then a power law in steps), and what they have to beat.

    Args:
        params: ``L0``, ``A``, ``alpha``, where known.
    """

    names = ("L0", "A", "alpha")

    def gain(self, theta: Floats, rates: Floats, steps: Ints) -> tuple[Floats, Floats]:
        return np.zeros(steps.size), np.zeros((steps.size, 0))

    def final_gain(self, theta: Floats, rates: Floats) -> tuple[float, Floats]:
        return 0.0, np.zeros_like(rates)


class AnnealingLaw(RateLaw):
    r"""The scaling law with learning-rate annealing: a forward area and an annealing area.

    .. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - C\,S_2(t)^\zeta, \qquad S_2(t) = \sum_{i \le t} m_i,\quad
              m_i = \lambda\,m_{i-1} + (\eta_{i-1} - \eta_i),\quad m_1 = 0

    Four parameters, so one or two curves are enough. A fall by :math:`\Delta` gains :math:`C \Delta (1 - \lambda^n)/(1 - \lambda)` in its n steps.

    Args:
        params: ``L0``, ``A``, ``alpha``, ``C``, where known.
        decay: :math:`\lambda` in [0, 1]; default 0.999. A fall goes on gaining for about :math:`1/(1-\lambda)` steps: give less for short runs, or
            ``None`` to let :meth:`fit` take the best of seven from 0.9 to 0.9995 (the intervals then take it as known).
        zeta: :math:`\zeta` > 0; default 1, as in the paper, which finds it near 1. Where rises have made :math:`S_2` negative, the power is of its size.
        rises: as in :class:`RateLaw`.

    Source:
        Tissue, Wang and Wang, "Scaling Law with Learning Rate Annealing", 2024, arXiv:2408.11029, eq. 1. The default :math:`\lambda` and that
        the warm-up's rise counts as nothing are our reading; we found no code of the authors.
    """

    names: ClassVar[tuple[str, ...]] = ("L0", "A", "alpha", "C")
    decays: ClassVar[tuple[float, ...]] = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995)

    def __init__(self, params: Mapping[str, float] | None = None, *, decay: float | None = 0.999, zeta: float = 1.0, rises: Rises = "warmup") -> None:
        require(decay is not None or params is None, "decay must be given with params")
        require_number("decay", 0.999 if decay is None else decay, 0, 1)
        require_number("zeta", zeta, 0)
        require(zeta > 0, "zeta must be > 0", zeta)
        self.choose, self.decay, self.zeta = decay is None, 0.999 if decay is None else decay, zeta
        super().__init__(params, rises=rises)

    def fit(self, curves: Sequence[Curve], *, delta: float = HUBER, polish: int = 4) -> Self:
        """As :meth:`RateLaw.fit`; with ``decay=None`` once for each decay, of which the one with the least objective stays."""
        if not self.choose:
            return super().fit(curves, delta=delta, polish=polish)
        fitted: list[AnnealingLaw] = []
        for decay in self.decays:
            try:
                fitted.append(type(self)(decay=decay, zeta=self.zeta, rises=self.rises).fit(curves, delta=delta, polish=polish))
            except FitError as error:
                failure = error
        if not fitted:
            raise failure
        self.__dict__.update(min(fitted, key=lambda law: law.objective).__dict__ | {"choose": True})
        return self

    def gain(self, theta: Floats, rates: Floats, steps: Ints) -> tuple[Floats, Floats]:
        area = self.areas(rates)[1][steps - 1]
        gained = math.exp(theta[3]) * np.sign(area) * np.abs(area) ** self.zeta
        return gained, gained[:, None]

    def areas(self, rates: ArrayLike) -> tuple[Floats, Floats]:
        """:math:`S_1` and :math:`S_2` after every step, shape (T,) each."""
        values = checked_rates(rates)
        momentum = lfilter([1.0], [1.0, -self.decay], falls(values, self.rises))
        return np.cumsum(values), np.cumsum(momentum)

    def final_gain(self, theta: Floats, rates: Floats) -> tuple[float, Floats]:
        left = np.arange(rates.size, 0, -1)  # steps from each fall on, its own included
        worth = np.asarray(left if self.decay == 1 else (1 - self.decay**left) / (1 - self.decay), dtype=np.float64)
        counted = counted_falls(rates, self.rises)
        gaps = falls(rates, self.rises)
        scale = math.exp(theta[3])
        slope = -worth * counted
        slope[:-1] += (worth * counted)[1:]
        area = float(gaps @ worth)
        steep = self.zeta * max(abs(area), 1e-12) ** (self.zeta - 1)
        return scale * math.copysign(abs(area) ** self.zeta, area), scale * steep * slope

    def in_units(self, params: dict[str, float], rate: float, area: float) -> dict[str, float]:
        return super().in_units(params, rate, area) | {"C": params["C"] / rate**self.zeta}

    def options(self) -> dict[str, Any]:
        return super().options() | {"decay": self.decay, "zeta": self.zeta}


class SizedAnnealingLaw(AnnealingLaw):
    r"""The annealing law for models of several sizes together.

    .. math:: L(t, N) = L_0 + A\,S_1(t)^{-\alpha} + B\,N^{-\beta} - C\,S_2(t)^\zeta

    Every curve says with ``Curve.size`` how large its model is, in any one unit; there must be two sizes or more. The schedule of least loss is the same
    for all of them.

        law = SizedAnnealingLaw().fit([Curve.of(schedule, lr, steps, losses, size=n) for n, steps, losses in runs])
        law.predict(Cosine(total_steps=20_000), lr=3e-4, size=400)

    Args:
        params: ``L0``, ``A``, ``alpha``, ``C``, ``beta``, ``B``, where known.
        decay, zeta, rises: as in :class:`AnnealingLaw`.

    Source:
        Tissue, Wang and Wang, "Scaling Law with Learning Rate Annealing", 2024, arXiv:2408.11029, the form with model size.
    """

    names = ("L0", "A", "alpha", "C", "beta", "B")
    grid: ClassVar[dict[str, tuple[float, ...]]] = {"beta": (0.1, 0.3, 0.6)}
    sized = True

    def gain(self, theta: Floats, rates: Floats, steps: Ints) -> tuple[Floats, Floats]:
        gained, slope = super().gain(theta, rates, steps)
        return gained, np.column_stack([slope, np.zeros((steps.size, 2))])

    def of_size(self, theta: Floats, size: float) -> tuple[float, Floats]:
        beta, amplitude = np.exp(theta[4:])
        added = float(amplitude * size**-beta)
        return added, np.array([0.0, -beta * math.log(size) * added, added])


class MultiPowerLaw(RateLaw):
    r"""The multi-power law: every fall of the rate gains by a power law of its own.

    .. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - B \sum_{k \le t} (\eta_{k-1} - \eta_k)\; G\!\big(\eta_k^{-\gamma} S_k(t)\big), \qquad
              G(x) = 1 - (1 + C x)^{-\beta},\quad S_k(t) = \sum_{i=k}^{t} \eta_i

    Seven parameters: the paper fits them on a cosine, a constant and a two-stage run. A rate of 0 counts as 1e-10 of the highest in :math:`\eta_k^{-\gamma}`.

    Long runs are fitted with neighbouring falls taken together (no more than ``blocks`` in a curve, apart from the measured steps), and the fit
    finished without that where there are up to a million pairs of a step and a point; predictions are exact.

    Args:
        params: ``L0``, ``A``, ``alpha``, ``B``, ``C``, ``beta``, ``gamma``, where known.
        rises: as in :class:`RateLaw`; the published constants go with ``count``.
        blocks: of a fit, >= 2; default 384.

    Source:
        Luo et al., "A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules", ICLR 2025, arXiv:2503.12811; ``rises="count"`` and
        :meth:`published`: the released code.
    """

    names = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
    grid: ClassVar[dict[str, tuple[float, ...]]] = {"C": (1.0, 10.0, 100.0), "beta": (0.3, 0.7), "gamma": (0.2, 0.7)}
    constants: ClassVar[dict[str, tuple[float, ...]]] = {
        "25M": (3.04045406, 0.52468604, 0.50786857, 363.78751622, 2.06560812, 0.58279013, 0.64142257),
        "100M": (2.6514477, 0.60115152, 0.45295811, 437.9464276, 2.13245612, 0.59785199, 0.65523644),
        "400M": (2.37474466, 0.65421216, 0.42878731, 523.42464371, 2.02462735, 0.59350493, 0.63472457),
    }

    def __init__(self, params: Mapping[str, float] | None = None, *, rises: Rises = "warmup", blocks: int = 384) -> None:
        require(isinstance(blocks, int) and blocks >= 2, "blocks must be an int >= 2", blocks)
        self.blocks = blocks
        super().__init__(params, rises=rises)

    @classmethod
    def published(cls, model: str) -> Self:
        """The authors' fits of their language models with 25M, 100M and 400M parameters, peak rate 3e-4 (the released constants)."""
        require_choice("model", model, cls.constants)
        return cls(dict(zip(cls.names, cls.constants[model], strict=True)), rises="count")

    def gain(self, theta: Floats, rates: Floats, steps: Ints) -> tuple[Floats, Floats]:
        return self._sums(theta, rates, steps, np.arange(rates.size + 1))

    def _gain(self, theta: Floats, rates: Floats, steps: Ints, coarse: bool) -> tuple[Floats, Floats]:
        if not coarse or rates.size <= self.blocks:
            return self.gain(theta, rates, steps)
        even = np.linspace(0, rates.size, self.blocks + 1).astype(np.int64)
        return self._sums(theta, rates, steps, np.union1d(even, steps))  # a measured step ends a block: no block is half counted

    def options(self) -> dict[str, Any]:
        return super().options() | {"blocks": self.blocks}

    def _affordable(self, curves: list[Curve]) -> bool:
        return any(c.rates.size > self.blocks for c in curves) and sum(c.rates.size * c.steps.size for c in curves) <= 1_000_000

    def _sums(self, theta: Floats, rates: Floats, steps: Ints, edges: Ints) -> tuple[Floats, Floats]:
        """The sum over falls, those between two of ``edges`` taken as one in their middle; chunked, since it is a matrix of points by falls."""
        scale, c, beta, gamma = np.exp(theta[3:])
        total = np.concatenate([[0.0], np.cumsum(falls(rates, self.rises))])
        fall = total[edges[1:]] - total[edges[:-1]]
        some = fall != 0
        fall, middle, end = fall[some], (edges[:-1] + (edges[1:] - edges[:-1]) // 2)[some], edges[1:][some]
        area = np.concatenate([[0.0], np.cumsum(rates)])
        log_rate = np.log(np.maximum(rates[middle], 1e-10 * rates.max()))
        unit = np.exp(-gamma * log_rate) * (self._units[0] / self._units[1])
        out = np.zeros((steps.size, 4))
        for rows in np.array_split(np.arange(steps.size), max(1, steps.size * fall.size // 2_000_000)):
            at = steps[rows, None]
            x = np.where(end <= at, c * unit * np.maximum(area[at] - area[middle], 0.0), 0.0)
            log_y = np.log1p(x)
            power = np.exp(-beta * log_y)
            by_c = fall * (beta * power * x / (1 + x))
            out[rows, 0] = ((1 - power) * fall).sum(1)
            out[rows, 1] = by_c.sum(1)
            out[rows, 2] = (fall * beta * log_y * power).sum(1)
            out[rows, 3] = -gamma * (by_c @ log_rate)
        out *= scale
        return out[:, 0], out

    def final_gain(self, theta: Floats, rates: Floats) -> tuple[float, Floats]:
        scale, c, beta, gamma = np.exp(theta[3:])
        gaps, counted = falls(rates, self.rises), counted_falls(rates, self.rises)
        safe = np.maximum(rates, 1e-10 * rates.max())
        unit = c * safe**-gamma * (self._units[0] / self._units[1])
        x = unit * np.cumsum(rates[::-1])[::-1]
        worth = 1 - (1 + x) ** -beta
        steep = gaps * beta * (1 + x) ** (-beta - 1)
        slope = np.cumsum(steep * unit) - steep * gamma * x / safe * (rates >= safe) - worth * counted
        slope[:-1] += (worth * counted)[1:]
        return scale * float(gaps @ worth), scale * slope

    def in_units(self, params: dict[str, float], rate: float, area: float) -> dict[str, float]:
        return super().in_units(params, rate, area) | {"B": params["B"] / rate, "C": params["C"] * rate ** params["gamma"] / area}

r"""What the laws of the loss under a learning rate share: :class:`RateLaw`, fitted to :class:`Curve` objects. The laws: :mod:`components.schedules.laws`.

**How they are fitted.** The least sum of Huber losses (:math:`\delta` = 1e-3, the papers') of :math:`\log L - \log \hat L` over all points of all curves,
over the logarithms of the parameters (all are positive), with exact derivatives. Starts: for each of a grid of exponents the best other
parameters follow from non-negative least squares; the best few are polished. (The papers use L-BFGS, or AdamW, from similar grids.)

**How the intervals are made.** By the delta method: the parameters' covariance from the Jacobian at the fit, times the residuals'
variance, where points of a curve are not taken as independent (their number is divided by :math:`(1 + r)/(1 - r)` with *r* the residuals'
correlation from one point to the next); plus a variance about the curve: the residuals', or, where it is larger, the mean square by which
the law misses each curve when it is fitted to the others. With one curve nothing can be left out: the interval then holds only if the law
does. In no case does it know how far a schedule is from those of the fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares, minimize, nnls
from scipy.special import softmax
from scipy.stats import t as student

from components.schedules.base import Schedule, Span, require_number, span_steps
from components.schedules.compose import Piecewise
from components.schedules.decay import Constant, Cosine, Linear
from components.schedules.phases import WSD
from components.validation import require, require_choice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rises = Literal["warmup", "never", "count"]

HUBER = 1e-3
"""Where the Huber loss of the residuals of log L turns from a square to a line: both papers'."""

STANDS = 1e-3
"""Share by which a fit that has run out of evaluations may still fall in as many more, and count as found."""

TINY = 1e-12
SHAPES: tuple[Literal["linear", "1-sqrt"], ...] = ("linear", "1-sqrt")
EXPONENTS = ("alpha", "beta", "gamma")


class FitError(ValueError):
    """A law could not be fitted. ``residuals`` are those of log L at the best that was found (empty where no fit was tried)."""

    def __init__(self, message: str, residuals: Floats | None = None) -> None:
        super().__init__(message)
        self.residuals: Floats = np.zeros(0) if residuals is None else residuals


@dataclass(frozen=True)
class Curve:
    """One run: the learning rate of each step, and losses measured after some of them.

    Args:
        rates: learning rate of every step from the first one on, warm-up included, shape (T,); >= 0.
        steps: how many steps had been taken at each measurement, in rising order, ints in [1, T], shape (n,). A loss that was logged at the
            0-based step t with the weights after its update belongs to ``t + 1``.
        losses: what was measured, > 0, shape (n,).
        size: of the model, > 0 (parameters, in any unit); for laws that know of it.

    Raises:
        ValueError: shapes or ranges do not fit.
    """

    rates: Floats
    steps: Ints
    losses: Floats
    size: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", checked_rates(self.rates))
        object.__setattr__(self, "losses", np.asarray(self.losses, dtype=np.float64))
        object.__setattr__(self, "steps", checked_steps(self.steps, self.rates))
        require(self.losses.shape == self.steps.shape, "losses must have the shape of steps", (self.losses.shape, self.steps.shape))
        require(bool(np.isfinite(self.losses).all() and (self.losses > 0).all()), "losses must be finite and > 0 (cut a run off before it diverges)")
        if self.size is not None:
            require_number("size", self.size, TINY)

    @classmethod
    def of(cls, schedule: Schedule, lr: float, steps: ArrayLike, losses: ArrayLike, size: float | None = None) -> Self:
        """The curve of a run under ``schedule`` with the base rate ``lr``."""
        return cls(rates_of(schedule, lr), np.asarray(steps), np.asarray(losses), size)


@dataclass(frozen=True)
class Prediction:
    """A predicted curve: ``loss`` at ``steps``, and the interval from ``low`` to ``high`` (``None`` for a law that was not fitted)."""

    steps: Ints
    loss: Floats
    low: Floats | None
    high: Floats | None


@dataclass(frozen=True)
class Score:
    """How well a law meets a curve: R², mean and root mean square error of the loss, mean and worst relative error."""

    r2: float
    mae: float
    rmse: float
    relative: float
    worst: float


def checked_rates(rates: ArrayLike) -> Floats:
    values = np.asarray(rates, dtype=np.float64)
    fine = values.ndim == 1 and values.size > 0 and bool(np.isfinite(values).all() and (values >= 0).all() and values.max() > 0)
    require(fine, "rates must be one learning rate >= 0 for each step, shape (T,), and not all 0", values if values.size < 6 else f"shape {values.shape}")
    return values


def checked_steps(steps: ArrayLike, rates: Floats) -> Ints:
    given = np.asarray(steps)
    require(given.ndim == 1 and given.size > 0 and np.issubdtype(given.dtype, np.integer), "steps must be ints, shape (n,)", f"{given.dtype} {given.shape}")
    inside = bool((given >= 1).all() and (given <= rates.size).all() and (np.diff(given) > 0).all())
    require(inside, f"steps must rise and be in [1, {rates.size}], the number of rates", f"{given[0]} to {given[-1]}")
    require(bool(rates[: given[0]].sum() > 0), "steps must start after the first step with a learning rate above 0", int(given[0]))
    return given.astype(np.int64)


def rates_of(schedule: Schedule | ArrayLike, lr: float | None) -> Floats:
    """The learning rate of every step: ``lr`` times the schedule's factor; or rates as they are given."""
    if not isinstance(schedule, Schedule):
        require(lr is None, "lr belongs to a schedule; rates are taken as they are", lr)
        return checked_rates(schedule)
    require(schedule.total_steps is not None, "schedule must have its total_steps: pass them, or call with_total_steps(n)")
    require(lr is not None, "lr, the learning rate that the schedule multiplies, is missing")
    require_number("lr", lr or 0.0, TINY)
    return checked_rates(np.array(schedule.values()) * (lr or 0.0))


def falls(rates: Floats, rises: Rises) -> Floats:
    r"""What each step's rate lost against the step before, :math:`\eta_{i-1} - \eta_i`, 0 for the first; rises counted as ``rises`` says."""
    gaps = np.zeros_like(rates)
    gaps[1:] = rates[:-1] - rates[1:]
    if rises == "never":
        return np.maximum(gaps, 0.0)
    if rises == "warmup":
        falling = np.flatnonzero(gaps > 0)
        gaps[: falling[0] if falling.size else gaps.size] = 0.0
    return gaps


def counted_falls(rates: Floats, rises: Rises) -> NDArray[np.bool_]:
    """Which steps' falls count (one of 0 might); the others are constants to :meth:`RateLaw.final_gain`."""
    gaps = falls(rates, "count")
    counted = np.ones(rates.size, dtype=np.bool_)
    counted[0] = False
    if rises == "never":
        counted &= gaps >= 0
    if rises == "warmup":
        falling = np.flatnonzero(gaps > 0)
        rising = np.flatnonzero(gaps[: falling[0] if falling.size else gaps.size] < 0)
        counted[: rising[-1] + 1 if rising.size else 0] = False
    return counted


class RateLaw(ABC):
    r"""What the laws share: fitting, predicting with intervals, finding the best schedule.

    Args:
        params: parameters by name, where they are known; otherwise :meth:`fit` finds them.
        rises: what a rise of the rate does to :math:`D`. ``warmup``: the rise before the first fall counts as nothing, a later one takes back what falls gained
            (default). ``never``: no rise counts. ``count``: all count, the warm-up too (the multi-power law's released code).

    A law of your own gives the parameters' names (``L0``, ``A``, ``alpha``, an amplitude to which its gain is proportional, others), :meth:`gain`,
    :meth:`final_gain` and :meth:`in_units`; :attr:`grid` where there are others.
    """

    names: ClassVar[tuple[str, ...]]
    grid: ClassVar[dict[str, tuple[float, ...]]] = {}
    """Starts of the parameters that :meth:`gain` is not proportional to, in units where the highest rate and the largest S1 are 1."""
    sized: ClassVar[bool] = False
    """Whether the law knows of the model's size: then every curve and every prediction must say it."""

    def __init__(self, params: Mapping[str, float] | None = None, *, rises: Rises = "warmup") -> None:
        require_choice("rises", rises, ("warmup", "never", "count"))
        self.rises: Rises = rises
        self._theta: Floats | None = None  # logarithms of the parameters, in the units below
        self._units = (1.0, 1.0)  # the rate and the area S1 that count as 1: the fit needs parameters of about one size
        self._covariance: Floats | None = None
        self._noise = 0.0
        self._freedom = math.inf
        self.fitted_rates = (0.0, 0.0)
        self.objective = math.nan  # the sum of Huber losses that the fit ended with
        if params is not None:
            require(set(params) == set(self.names), f"params must be {', '.join(self.names)}", sorted(params))
            for name, value in params.items():
                require_number(f"params[{name!r}]", value, 0)
                require(value > 0, f"params[{name!r}] must be > 0", value)
            self._theta = np.log([params[name] for name in self.names])

    # -- what a law is

    @abstractmethod
    def gain(self, theta: Floats, rates: Floats, steps: Ints) -> tuple[Floats, Floats]:
        """*D* after each of ``steps``, shape (n,), and its derivatives by the logarithms of ``names[3:]``, shape (n, p - 3). ``theta``: all logarithms."""

    @abstractmethod
    def final_gain(self, theta: Floats, rates: Floats) -> tuple[float, Floats]:
        """*D* after the last step and its derivative by each rate, shape (T,)."""

    def in_units(self, params: dict[str, float], rate: float, area: float) -> dict[str, float]:
        """``params`` that were found with ``rate`` and ``area`` as units, in plain ones."""
        return params | {"A": params["A"] * area ** params["alpha"]}

    def of_size(self, theta: Floats, size: float) -> tuple[float, Floats]:
        """What the model's size adds to the loss, and its derivatives by the logarithms of ``names[3:]``, shape (p - 3,); for a law that is :attr:`sized`."""
        return 0.0, np.zeros(len(self.names) - 3)

    def options(self) -> dict[str, Any]:
        """What the law was made with beside its parameters, as plain values; a law of your own with further arguments adds them."""
        return {"rises": self.rises}

    # -- keeping it

    def state(self) -> dict[str, Any]:
        """The law as it was fitted, as plain values (JSON), with all that its intervals need; see :func:`law_from_state`."""
        return {
            "law": type(self).__name__,
            "options": self.options(),
            "params": self.params,
            "theta": self.theta.tolist(),
            "units": list(self._units),
            "covariance": None if self._covariance is None else self._covariance.tolist(),
            "noise": self._noise,
            "freedom": self._freedom if math.isfinite(self._freedom) else None,
            "fitted_rates": list(self.fitted_rates),
            "objective": self.objective if math.isfinite(self.objective) else None,
        }

    # -- using it

    @property
    def params(self) -> dict[str, float]:
        """The parameters by name."""
        require(self._theta is not None, "the law has no parameters yet: call fit(curves), or pass params")
        found = dict(zip(self.names, np.exp(self.theta).tolist(), strict=True))
        return self.in_units(found, *self._units)

    @property
    def theta(self) -> Floats:
        require(self._theta is not None, "the law has no parameters yet: call fit(curves), or pass params")
        assert self._theta is not None
        return self._theta

    def predict(
        self, schedule: Schedule | ArrayLike, steps: ArrayLike | None = None, *, lr: float | None = None, level: float = 0.9, size: float | None = None
    ) -> Prediction:
        """The loss curve under a schedule.

        Args:
            schedule: a schedule with its ``total_steps``, or the learning rate of every step, shape (T,).
            steps: numbers of steps taken at which to predict, rising, in [1, T]; default every one from the first with a rate above 0.
            lr: the rate that a schedule multiplies; not with rates.
            level: of the intervals, in (0, 1): ``level`` of the losses measured about the curve should lie inside; default 0.9.
            size: the model's, for a law that knows of it.
        """
        require(0 < level < 1, "level must be in (0, 1)", level)
        rates = rates_of(schedule, lr)
        at = checked_steps(np.arange(int(np.argmax(rates > 0)) + 1, rates.size + 1) if steps is None else steps, rates)
        loss, slope = self._curve(self.theta, rates / self._units[0], at, False, self._checked_size(size))
        if self._covariance is None:
            return Prediction(at, loss, None, None)
        relative = slope / np.maximum(loss, TINY)[:, None]
        width = np.sqrt(np.einsum("ij,jk,ik->i", relative, self._covariance, relative) + self._noise)
        width *= student.ppf(0.5 + level / 2, self._freedom)
        with np.errstate(over="ignore"):  # an interval may well be without an upper end
            return Prediction(at, loss, loss * np.exp(-width), loss * np.exp(width))

    def final(self, schedule: Schedule | ArrayLike, *, lr: float | None = None, size: float | None = None) -> float:
        """The predicted loss after the last step."""
        rates = rates_of(schedule, lr)
        return float(self.predict(rates, [rates.size], size=size).loss[0])

    def score(self, curve: Curve) -> Score:
        """How well the law meets a curve that it was, or was not, fitted on."""
        error = self.predict(curve.rates, curve.steps, size=curve.size if self.sized else None).loss - curve.losses
        spread = float(((curve.losses - curve.losses.mean()) ** 2).sum())
        share = np.abs(error) / curve.losses
        r2 = 1 - float((error**2).sum()) / spread if spread > 0 else -math.inf
        return Score(r2, float(np.abs(error).mean()), float(np.sqrt((error**2).mean())), float(share.mean()), float(share.max()))

    def fit(self, curves: Sequence[Curve], *, delta: float = HUBER, polish: int = 4) -> Self:
        """Find the parameters from runs; see the module for how.

        Args:
            curves: one or more runs at one batch size and base model. The more unlike their schedules are, the better.
            delta: where the Huber loss turns from a square to a line, > 0.
            polish: how many of the starts are followed to the end, >= 1.

        Raises:
            ValueError: no curves, or an argument is out of its range.
            FitError: too few points; no rate that falls, where the law is about falling ones; no start led to a fit; or the fit is no better than a constant.
        """
        curves = list(curves)
        require(len(curves) > 0 and all(isinstance(c, Curve) for c in curves), "curves must be one Curve or more", curves)
        require_number("delta", delta, TINY)
        require(polish >= 1, "polish must be >= 1", polish)
        points, wanted = sum(c.steps.size for c in curves), len(self.names) + 2
        if points < wanted:
            raise FitError(f"{type(self).__name__} has {len(self.names)} parameters: curves must have {wanted} points or more in all, but got {points}")
        if self.sized and (any(c.size is None for c in curves) or len({c.size for c in curves}) < 2):
            raise FitError(f"{type(self).__name__} needs runs of two model sizes or more, each curve with its size")
        if not self._informative(curves):
            raise FitError(f"{type(self).__name__} needs a run whose learning rate falls before its last point (or take PowerLaw)")

        rate, area = max(c.rates.max() for c in curves), max(c.rates.sum() for c in curves)
        scaled = [Curve(c.rates / rate, c.steps, c.losses, c.size) for c in curves]
        previous, self._units = self._units, (float(rate), float(area))
        try:
            best = self._solve(scaled, delta, polish)
            if self._affordable(scaled):
                best = self._solve(scaled, delta, 1, best.x, coarse=False)
            misses = self._misses(scaled, delta, best.x)
        except FitError:
            self._units = previous  # the law stays what it was
            raise
        self._theta, self.objective = np.asarray(best.x), float(huber(best.fun, delta).sum())
        self.fitted_rates = (float(min(c.rates.min() for c in curves)), float(rate))
        self._uncertainty(self._jacobian(best.x, scaled), best.fun, [c.steps.size for c in curves], misses)
        return self

    def optimise(
        self, steps: int, lr: float | None = None, *, warmup: Span = 0, past: ArrayLike | None = None, end_factor: float = 0.0, knots: int = 128
    ) -> Schedule:
        """The schedule of least predicted final loss for a budget, among those that never rise after the warm-up and start at ``lr``.

        The rate at ``knots`` steps, closer towards the end, straight between them, is found by L-BFGS with exact derivatives from several
        starts (constant, linear, cosine, WSD of three lengths); the starts themselves are among the candidates, so that it is never worse than
        these under the law. The peak is not searched: every law here likes a higher one without end. A law knows only what it was fitted
        on; a schedule far from those is a guess.

        Args:
            steps: the budget, warm-up and past included, >= 2.
            lr: the peak rate; default the highest one that the law was fitted on.
            warmup: of the schedule, int steps or a fraction; not with ``past``.
            past: learning rates of the steps that a run has already taken, shape (k,): only what follows is searched, at most ``lr`` and
                from any rate up to it. What the returned schedule gives before step k is then without meaning.
            end_factor: the least factor, in [0, 1).
            knots: number of steps whose rate is free, >= 2.

        Returns:
            a :class:`~components.schedules.Piecewise` factor on ``lr``, with its ``total_steps``.
        """
        require(isinstance(steps, int) and not isinstance(steps, bool) and steps >= 2, "steps must be an int >= 2 (a finite budget)", steps)
        require(lr is not None or self.fitted_rates[1] > 0, "lr is missing (a law that was not fitted knows no highest rate)")
        peak = self.fitted_rates[1] if lr is None else lr
        require_number("lr", peak, TINY)
        require_number("end_factor", end_factor, 0, 1)
        require(end_factor < 1, "end_factor must be < 1", end_factor)
        require(knots >= 2, "knots must be >= 2", knots)
        ramp = span_steps(warmup, steps)
        require(past is None or ramp == 0, "warmup is over where there is a past", warmup)
        head = np.array(Constant(total_steps=steps, warmup=ramp).values(ramp)) * peak if past is None else checked_rates(past)
        free = steps - head.size
        require(free >= 2, "warmup must leave two steps or more" if past is None else "past must leave two steps or more", head.size)

        # from the first free step to the last that is taken; a power closes up towards the end, where schedules bend
        share = 1 - (1 - np.linspace(0, 1, min(knots, free))) ** 1.5
        at = np.unique(np.round(share * (free - 1)).astype(np.int64))
        inner = np.arange(free)
        right = np.clip(np.searchsorted(at, inner, side="right"), 1, at.size - 1)
        weight = (inner - at[right - 1]) / (at[right] - at[right - 1])
        floor = max(end_factor, 1e-6)  # a rate of exactly 0 has no derivative under the multi-power law
        fixed = np.full(1 if past is None else 0, -np.inf)  # without a past there is no drop before the first step

        def final(factors: Floats) -> tuple[float, Floats]:
            loss, slope = self._final(np.concatenate([head, peak * np.interp(inner, at, factors)]))
            slope = peak * slope[head.size :]
            left_end, right_end = np.bincount(right - 1, slope * (1 - weight), at.size), np.bincount(right, slope * weight, at.size)
            return loss, np.asarray(left_end + right_end, dtype=np.float64)

        def factors_of(z: Floats) -> Floats:  # drops that are a softmax lead from 1 down and never below the floor
            return np.asarray(1 - (1 - floor) * np.cumsum(softmax(np.concatenate([fixed, z])))[:-1])

        def objective(z: Floats) -> tuple[float, Floats]:
            drops = softmax(np.concatenate([fixed, z]))
            loss, grad = final(factors_of(z))
            by_drop = np.append(-(1 - floor) * np.cumsum(grad[::-1])[::-1], 0.0)
            return loss, (drops * (by_drop - drops @ by_drop))[fixed.size :]

        shapes = [Constant(), Linear(), Cosine(), *(WSD(decay=decay, shape=shape) for decay in (0.1, 0.2, 0.4) for shape in SHAPES)]
        candidates = []
        for shape, scale in product(shapes, (1.0,) if past is None else (1.0, 0.4)):
            ready = shape.with_total_steps(free)
            start = np.maximum([scale * ready(int(step)) for step in at], floor)
            drops = -np.diff(np.concatenate([[1.0], start, [floor]])) / (1 - floor)
            found = minimize(objective, np.log(drops[fixed.size :] + 1e-4 / at.size), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13})
            candidates += [start, factors_of(found.x)]
        best = np.minimum.accumulate(min(candidates, key=lambda factors: final(factors)[0]))
        return Piecewise(at=tuple((at + head.size).tolist()), factors=tuple(best.tolist()), warmup=ramp, total_steps=steps)

    # -- how

    def _checked_size(self, size: float | None) -> float | None:
        require((size is not None) == self.sized, f"size must {'' if self.sized else 'not '}be given for {type(self).__name__}", size)
        if size is not None:
            require_number("size", size, TINY)
        return size

    def _curve(self, theta: Floats, rates: Floats, steps: Ints, coarse: bool, size: float | None = None) -> tuple[Floats, Floats]:
        """Loss and its derivatives by theta, (n,) and (n, p), for rates in the fit's units. ``coarse``: long sums may be taken in blocks."""
        area = np.cumsum(rates)[steps - 1] * (self._units[0] / self._units[1])
        floor, amplitude, alpha = np.exp(theta[:3])
        forward = amplitude * area**-alpha
        gained, slope = self._gain(theta, rates, steps, coarse)
        by_alpha = -alpha * np.log(area) * forward
        more, by_size = (0.0, 0.0) if size is None or not self.sized else self.of_size(theta, size)
        return floor + forward - gained + more, np.column_stack([np.full(area.size, floor), forward, by_alpha, by_size - slope])

    def _gain(self, theta: Floats, rates: Floats, steps: Ints, coarse: bool) -> tuple[Floats, Floats]:
        return self.gain(theta, rates, steps)

    def _final(self, rates: Floats) -> tuple[float, Floats]:
        rate, unit = self._units
        area = rates.sum() / unit
        floor, amplitude, alpha = np.exp(self.theta[:3])
        gained, slope = self.final_gain(self.theta, rates / rate)
        return float(floor + amplitude * area**-alpha - gained), -alpha * amplitude * area ** (-alpha - 1) / unit - slope / rate

    def _starts(self, curves: list[Curve], logs: Floats) -> list[Floats]:
        losses, starts = np.exp(logs), []
        areas = np.concatenate([np.cumsum(c.rates)[c.steps - 1] for c in curves]) * (self._units[0] / self._units[1])
        amplitude = 1 if len(self.names) > 3 else 0
        for others in product(*self.grid.values()):
            theta = np.zeros(len(self.names))
            theta[3 + amplitude : 3 + amplitude + len(others)] = np.log(others)
            slots = [0, 1, 3, len(self.names) - 1][: 2 + amplitude + self.sized]
            gains = np.concatenate([self._gain(theta, c.rates, c.steps, True)[0] for c in curves]) if amplitude else np.zeros((losses.size, 0))
            for alpha in (0.15, 0.3, 0.5, 0.7, 1.0):
                columns = np.column_stack([np.ones_like(losses), areas**-alpha, -gains, *self._by_size(theta, curves)])
                found, _ = nnls(columns / losses[:, None], np.ones_like(losses))
                theta = theta.copy()
                theta[2] = math.log(alpha)
                theta[slots] = np.log(np.maximum(found, 1e-3 * losses.min()))
                starts.append(theta)
        return starts

    def _by_size(self, theta: Floats, curves: list[Curve]) -> list[Floats]:
        """For a sized law what one unit of its last parameter adds at every point, in a list; else an empty one."""
        if not self.sized:
            return []
        unit = np.append(theta[:-1], 0.0)
        return [np.concatenate([np.full(c.steps.size, self.of_size(unit, c.size or 1.0)[0]) for c in curves])]

    def _affordable(self, curves: list[Curve]) -> bool:
        """Whether a fit that took sums in blocks is to be finished without them."""
        return False

    def _residuals(self, theta: Floats, curves: list[Curve], coarse: bool = True) -> Floats:
        parts = [np.log(np.maximum(self._curve(theta, c.rates, c.steps, coarse, c.size)[0], TINY)) - np.log(c.losses) for c in curves]
        return np.concatenate(parts)

    def _jacobian(self, theta: Floats, curves: list[Curve], coarse: bool = True) -> Floats:
        parts = [self._curve(theta, c.rates, c.steps, coarse, c.size) for c in curves]
        return np.concatenate([slope / np.maximum(loss, TINY)[:, None] for loss, slope in parts])

    def _solve(self, curves: list[Curve], delta: float, polish: int, start: Floats | None = None, coarse: bool = True) -> Any:
        """The best fit to curves in the fit's units (scipy's result: x, fun), from ``start`` or from the grid."""
        logs = np.log(np.concatenate([c.losses for c in curves]))
        exponents = [name in EXPONENTS for name in self.names]
        bounds = np.where(exponents, -9.0, -40.0), np.where(exponents, 1.6, 40.0)
        options = {"bounds": bounds, "xtol": 1e-9, "ftol": 1e-9, "max_nfev": 400}
        starts = [start] if start is not None else sorted(self._starts(curves, logs), key=lambda theta: huber(self._residuals(theta, curves), delta).sum())
        fits = []
        for theta in starts[:polish]:
            # first with a wide Huber loss, whose valleys are smooth, then with the one asked for
            for scale in (max(10 * delta, 0.05), delta):
                found = least_squares(self._residuals, theta, self._jacobian, loss="huber", f_scale=scale, args=(curves, coarse), **options)
                theta = found.x
            fits.append(found)
        best = min((f for f in fits if np.isfinite(f.cost)), key=lambda f: float(f.cost), default=None)
        name = type(self).__name__
        if best is None:
            raise FitError(f"the fit of {name} did not converge: no start led anywhere", logs * 0 + np.inf)
        flat = logs - np.median(logs)
        why = f"rms residual of log loss {rms(best.fun):.3g} against {rms(flat):.3g} of a constant, over {logs.size} points"
        if rms(flat) > 0 and huber(best.fun, delta).sum() > 0.8 * huber(flat, delta).sum():
            raise FitError(f"the fit of {name} explains too little: {why}", best.fun)
        if not best.success:  # in a direction that the runs leave open, parameters wander on when the fit stands still
            further = least_squares(self._residuals, best.x, self._jacobian, loss="huber", f_scale=delta, args=(curves, coarse), **options)
            stands = further.success or further.cost > (1 - STANDS) * best.cost
            best = further
            if not stands:
                raise FitError(f"the fit of {name} did not converge ({str(best.message).rstrip('.')}): {why}", best.fun)
        return best

    def _misses(self, curves: list[Curve], delta: float, theta: Floats) -> Floats:
        """Residuals of each curve under the law fitted to the others, where these are enough to fit it."""
        misses = []
        for k, left_out in enumerate(curves):
            others = curves[:k] + curves[k + 1 :]
            if sum(c.steps.size for c in others) < len(self.names) + 2 or not self._informative(others):
                continue
            try:
                misses.append(self._residuals(self._solve(others, delta, 1, theta).x, [left_out]))
            except FitError:
                continue  # what is left says too little about the law; the other curves still count
        return np.concatenate(misses) if misses else np.zeros(0)

    def _informative(self, curves: list[Curve]) -> bool:
        return (len(self.names) == 3 or any(falls(c.rates[: c.steps[-1]], self.rises).any() for c in curves)) and (
            not self.sized or len({c.size for c in curves}) > 1
        )

    def _uncertainty(self, jacobian: Floats, left: Floats, lengths: list[int], misses: Floats) -> None:
        pairs = [(part[:-1], part[1:]) for part in np.split(left, np.cumsum(lengths)[:-1]) if part.size > 2]
        square = float((left**2).sum())
        lag = sum(float(a @ b) for a, b in pairs) / square if square > 0 else 0.0
        lag = min(max(lag, 0.0), 0.99)
        points, unknown = left.size, jacobian.shape[1]
        worth = points * (1 - lag) / (1 + lag)
        self._freedom = max(worth - unknown, 1.0)
        noise = square / max(points - unknown, 1)
        self._noise = max(noise, float((misses**2).mean()) if misses.size else 0.0)
        self._covariance = np.asarray(np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-12, hermitian=True) * noise * (points / worth), dtype=np.float64)


def law_from_state(state: Mapping[str, Any]) -> RateLaw:
    """The law whose :meth:`RateLaw.state` this is: the same predictions and intervals, to the bit.

    Only classes that are already imported are made.

    Raises:
        ValueError: the state is of no known law, or is not whole.
    """
    known = {cls.__name__: cls for cls in _laws(RateLaw)}
    name = state.get("law")
    require(name in known, f"law must be one of {', '.join(sorted(known))}", name)
    cls = known[str(name)]
    wanted = {"options", "theta", "units", "covariance", "noise", "freedom", "fitted_rates", "objective"}
    require(wanted <= set(state), f"the state of a law must have {', '.join(sorted(wanted))}: missing are {', '.join(sorted(wanted - set(state)))}")
    require(isinstance(state["options"], Mapping), "options must be keys and values", state["options"])
    theta = _floats("theta", state["theta"], (len(cls.names),))
    law: RateLaw = cls(**state["options"])
    law._theta = theta
    law._units = _pair("units", state["units"])
    law.fitted_rates = _pair("fitted_rates", state["fitted_rates"])
    law._covariance = None if state["covariance"] is None else _floats("covariance", state["covariance"], (theta.size, theta.size))
    law._noise = float(_floats("noise", state["noise"], ()))
    law._freedom = math.inf if state["freedom"] is None else float(_floats("freedom", state["freedom"], ()))
    law.objective = math.nan if state["objective"] is None else float(_floats("objective", state["objective"], ()))
    return law


def _laws(cls: type[Any]) -> list[type[RateLaw]]:
    return [law for sub in type.__subclasses__(cls) for law in (sub, *_laws(sub))]


def _floats(name: str, value: Any, shape: tuple[int, ...]) -> Floats:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error
    require(array.shape == shape and bool(np.isfinite(array).all()), f"{name} must be finite numbers of shape {shape}", f"shape {array.shape}")
    return array


def _pair(name: str, value: Any) -> tuple[float, float]:
    first, second = _floats(name, value, (2,)).tolist()
    return first, second


def huber(residual: Floats, delta: float) -> Floats:
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))

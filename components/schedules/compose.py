"""Schedules made of schedules, or of points: one after the other, multiplied, raised to a power, scaled to a base value, drawn through points."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from components.schedules.base import Schedule, Span, require_number, require_span, span_steps
from components.validation import require, require_choice


def straight(at: Sequence[float], values: Sequence[float], where: float, *, before: bool = False) -> float:
    """The value at ``where`` on the line through points in rising order; constant outside.

    Two points at one place are a jump: the value there is the second's, with ``before`` what the line before it comes to.
    """
    k = bisect_left(at, where) if before else bisect_right(at, where)
    if k in (0, len(at)):
        return float(values[max(k - 1, 0)])
    share = (where - at[k - 1]) / (at[k] - at[k - 1])
    return values[k - 1] + (values[k] - values[k - 1]) * share


def require_schedules(name: str, schedules: Sequence[Schedule]) -> None:
    require(len(schedules) > 0 and all(isinstance(s, Schedule) for s in schedules), f"{name} must be one schedule or more", schedules)


@dataclass(frozen=True, kw_only=True)
class Join(Schedule):
    r"""Schedules one after the other. Each runs over its own segment: its steps count from 0, its ``total_steps`` is the segment's length.

    .. math:: f(t) = f_k(t - b_k) \quad\text{for } b_k \le t < b_{k+1}

    A boundary step belongs to the segment that it opens. Segments that are empty in a short run are passed over.

    Args:
        schedules: the schedules, in order; one that has ``total_steps`` of its own keeps them.
        boundaries: :math:`b_1, b_2, …`, one fewer than schedules, rising: int steps of the whole run (warm-up included) or
            float fractions of it.
        warmup: a ramp up to the first value, as for every schedule; the first segment is that much shorter.

    Raises:
        ValueError: the number of boundaries does not fit, or they do not rise.

    Source:
        as :class:`torch.optim.lr_scheduler.SequentialLR`, and ``optax.join_schedules``.
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[Span] = ()

    _starts: ClassVar[list[int]] = []
    _segments: ClassVar[list[Schedule]] = []

    def __post_init__(self) -> None:
        self._set(schedules=tuple(self.schedules), boundaries=tuple(self.boundaries))
        require_schedules("schedules", self.schedules)
        fits = len(self.boundaries) == len(self.schedules) - 1
        require(fits, f"boundaries must be one fewer than the {len(self.schedules)} schedules", list(self.boundaries))
        for boundary in self.boundaries:
            require_span("boundaries", boundary)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        bounds = [span_steps(b, self._last) for b in self.boundaries]
        require(bounds == sorted(bounds), "boundaries must be in rising order", list(self.boundaries))
        # of the part after the warm-up; what lies outside of it has no length
        bounds = [0, *(min(max(b - self._warmup, 0), total) for b in bounds), total]
        spans = [(start, end, s) for (start, end), s in zip(pairwise(bounds), self.schedules, strict=True) if end > start]
        self._set(_starts=[start for start, _, _ in spans], _segments=[s.with_total_steps(end - start) for start, end, s in spans])

    def factor(self, step: int, total: int) -> float:
        k = bisect_right(self._starts, step) - 1
        return self._segments[k](step - self._starts[k])


@dataclass(frozen=True, kw_only=True)
class Product(Schedule):
    r"""Schedules multiplied: :math:`f(s) = \prod_k f_k(s)`. Each runs over the whole length (after this one's warm-up).

    Args:
        schedules: the factors.
    """

    schedules: Sequence[Schedule]

    _factors: ClassVar[list[Schedule]] = []

    def __post_init__(self) -> None:
        self._set(schedules=tuple(self.schedules))
        require_schedules("schedules", self.schedules)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_factors=[s.with_total_steps(total) for s in self.schedules])

    def factor(self, step: int, total: int) -> float:
        return math.prod(s(step) for s in self._factors)


@dataclass(frozen=True, kw_only=True)
class Scaled(Schedule):
    r"""A value instead of a factor: :math:`f(s) = \text{base} \cdot f_1(s)`. What drives a regularizer's weight, a temperature, a decay.

    In a config: ``regularizer.l1.weight={_target_: components.schedules.Scaled, base: 0.1, schedule: {_target_: components.schedules.Linear}}``.

    Args:
        base: the value that the schedule multiplies, >= 0.
        schedule: the factor.
    """

    base: float
    schedule: Schedule

    _inner: ClassVar[Schedule]

    def __post_init__(self) -> None:
        require_number("base", self.base, 0)
        require_schedules("schedule", [self.schedule])
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_inner=self.schedule.with_total_steps(total))

    def factor(self, step: int, total: int) -> float:
        return self.base * self._inner(step)


@dataclass(frozen=True, kw_only=True)
class Power(Schedule):
    r"""A schedule to a power: :math:`f(s) = f_1(s)^p`. What an average's decay becomes when the batch grows ``exponent`` times.

    The EMA scaling rule: at a batch :math:`\kappa` times as large, each step stands for :math:`\kappa` steps, so that a decay
    :math:`\rho(t)`, scheduled or constant, becomes :math:`\rho(t)^\kappa`. With ``after`` the batch grows in the middle of the run
    (the paper's progressive scaling). The rules for the optimizer: :mod:`components.schedules.scaling`.

    Args:
        schedule: :math:`f_1`; its steps are those of this run (at the larger batch), so its shape is kept in epochs.
        exponent: *p* > 0; the factor :math:`\kappa` by which the batch grew.
        after: steps of the whole run, int or a fraction, before which the power is 1; default 0.

    Source:
        Busbridge et al., "How to Scale Your EMA", NeurIPS 2023, arXiv:2307.13813, definition 1.2; that a schedule is scaled value by value
        and where to switch are our reading.
    """

    schedule: Schedule
    exponent: float
    after: Span = 0

    _inner: ClassVar[Schedule]
    _after: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require_schedules("schedule", [self.schedule])
        require_number("exponent", self.exponent, 0)
        require(self.exponent > 0, "exponent must be > 0", self.exponent)
        require_span("after", self.after)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_inner=self.schedule.with_total_steps(total), _after=span_steps(self.after, self._last) - self._warmup)

    def factor(self, step: int, total: int) -> float:
        return self._inner(step) ** (self.exponent if step >= self._after else 1)


@dataclass(frozen=True, kw_only=True)
class Piecewise(Schedule):
    r"""Through given points, straight between them or held until the next: any schedule that somebody, or a search, found.

    .. math:: f(t) = y_j + (y_{j+1} - y_j)\,\frac{t - x_j}{x_{j+1} - x_j} \ \text{(linear)}, \quad y_j \ \text{(hold)} \quad\text{for } x_j \le t < x_{j+1}

    Before the first point the value is :math:`y_1`, after the last it is the last.

    Args:
        at: :math:`x_j`, steps of the whole run (warm-up included) in rising order, int or fractions.
        factors: :math:`y_j` >= 0, as many.
        between: ``linear`` or ``hold``.

    Source:
        as ``optax.piecewise_interpolate_schedule`` and ``piecewise_constant_schedule``.
    """

    at: Sequence[Span]
    factors: Sequence[float]
    between: Literal["linear", "hold"] = "linear"

    _at: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        self._set(at=tuple(self.at), factors=tuple(self.factors))
        require(len(self.at) == len(self.factors) > 0, "at and factors must be one point or more each, and as many", (len(self.at), len(self.factors)))
        for position in self.at:
            require_span("at", position)
        for value in self.factors:
            require_number("factors", value, 0)
        require_choice("between", self.between, ("linear", "hold"))
        super().__post_init__()

    def prepare(self, total: int) -> None:
        at = [span_steps(position, self._last) for position in self.at]
        require(at == sorted(at), "at must be in rising order", list(self.at))
        self._set(_at=[position - self._warmup for position in at])

    def factor(self, step: int, total: int) -> float:
        if self.between == "hold":
            return float(self.factors[max(bisect_right(self._at, step) - 1, 0)])
        return straight(self._at, self.factors, step)


@dataclass(frozen=True, kw_only=True)
class Replay(Schedule):
    r"""Another run's learning rate, stretched over this run: what that run found while it trained, or the schedule that it was given.

    .. math:: f(t) = c\, f_1\!\left(t\,\frac{S}{T}\right), \qquad c = \begin{cases} \eta_1 / \eta & \text{absolute} \\ 1 & \text{otherwise} \end{cases}

    with :math:`f_1` the other schedule, *S* the steps that it was made for, :math:`\eta_1` the rate that it multiplied there and :math:`\eta` the one
    that it multiplies here. Between two steps of the other run the value is straight between theirs.

    In a config only ``run`` is written: losskit looks the run up when the experiment is composed and fills in the ``of`` fields, so that what is
    saved can be run again when the other run is gone.

    Args:
        run: how the other run was named; a note.
        of: :math:`f_1`.
        of_steps: *S*; default: as many as this run has.
        of_lr: :math:`\eta_1`, > 0.
        of_run: the ``run`` that the ``of`` fields are from.
        base_lr: :math:`\eta`, > 0; in the option file ``${optimizer.lr}``.
        absolute: keep the other run's learning rates whatever ``base_lr`` is; ``False``: its factors.
    """

    run: str = ""
    of: Schedule | None = None
    of_steps: int | None = None
    of_lr: float | None = None
    of_run: str | None = None
    base_lr: float | None = None
    absolute: bool = True

    _inner: ClassVar[Schedule]
    _scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require(isinstance(self.of, Schedule), "of must be the other run's schedule (losskit fills it in from schedule.run)", self.of)
        require(self.of_steps is None or (isinstance(self.of_steps, int) and self.of_steps >= 1), "of_steps must be an int >= 1", self.of_steps)
        if self.absolute:
            for name, rate in (("of_lr", self.of_lr), ("base_lr", self.base_lr)):
                require(rate is not None and 0 < rate < math.inf, f"{name} must be a number > 0 for absolute learning rates (absolute=false: factors)", rate)
            self._set(_scale=(self.of_lr or 1.0) / (self.base_lr or 1.0))
        super().__post_init__()

    def prepare(self, total: int) -> None:
        assert self.of is not None
        self._set(_inner=self.of.with_total_steps(self.of_steps or total))

    def factor(self, step: int, total: int) -> float:
        steps = self._inner.total_steps or total
        if steps == total:
            return self._scale * self._inner(step)
        before, rest = divmod(step * steps, total)
        first = self._inner(before)
        return self._scale * (first + (self._inner(before + 1) - first) * rest / total if rest else first)

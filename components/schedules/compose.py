"""Schedules made of schedules: one after the other, multiplied, scaled to a base value."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from components.schedules.base import Schedule, Span, require_number, require_span, span_steps
from components.validation import require


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

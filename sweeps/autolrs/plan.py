"""What a search of the schedule asks of training, and what it is told: the words that methods and the callback share.

A method is a generator. It yields a :class:`Probe` and is sent its :class:`Outcome`; it yields a :class:`Decision`, or a :class:`Train`,
and is sent nothing. It looks at nothing else, so the outcomes so far are all of its state: a resumed run sends them again.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.schedules.compose import straight
from components.tasks.base import NonFiniteLossError
from components.validation import require


@dataclass(frozen=True)
class Rates:
    """Learning rates of steps 0, 1, …: straight between points; two points at one step are a jump.

    Args:
        at: steps in rising order, the first of them 0.
        values: rates there, >= 0, as many.
    """

    at: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.at) == len(self.values) > 0 and self.at[0] == 0 and list(self.at) == sorted(self.at)
        require(fits, "at and values must be as many, at rising from 0", (self.at, self.values))
        require(all(math.isfinite(v) and v >= 0 for v in self.values), "values must be finite and >= 0", self.values)

    @classmethod
    def constant(cls, rate: float) -> Rates:
        return cls((0,), (rate,))

    @classmethod
    def trapeze(cls, rate: float, steps: int, *, warmup: int = 0, cooldown: int = 0) -> Rates:
        """Up to ``rate`` over ``warmup`` steps, hold, and down to 0 over the last ``cooldown`` of ``steps``."""
        points = [(0, rate / (warmup + 1)), (warmup, rate)] if warmup else [(0, rate)]
        if cooldown:
            points += [(steps - cooldown, rate), (steps, 0.0)]
        return cls(tuple(at for at, _ in points), tuple(value for _, value in points))

    def __call__(self, step: int) -> float:
        return straight(self.at, self.values, step)

    def each(self, steps: int) -> list[float]:
        """The rates of steps 0, …, ``steps - 1``."""
        return [self(step) for step in range(steps)]

    def points(self, steps: int, start: int = 0) -> tuple[list[int], list[float]]:
        """The points within the first ``steps`` steps and both ends, shifted by ``start``."""
        inner = [(at, value) for at, value in zip(self.at, self.values, strict=True) if at < steps]
        both = [*inner, (steps, straight(self.at, self.values, steps, before=True))]
        return [start + at for at, _ in both], [value for _, value in both]


@dataclass(frozen=True)
class Budget:
    """What a method is told of the run.

    Args:
        total: training steps of the run.
        seed: of everything that a method draws.
        lr: the base learning rate, for methods that are given no range.
    """

    total: int
    seed: int = 0
    lr: float = 1.0


@dataclass(frozen=True)
class Probe:
    """Try these rates for so many steps from where training stands.

    Args:
        stage: the number of the decision that it is for.
        question: what is searched: ``range``, ``lr``, ``warmup``, ``weight_decay``, ``momentum``.
        value: the value that is tried.
        rates: of its steps.
        steps: how many.
        measure_after: numbers of steps after which the held-out loss is wanted.
        options: of the optimizer's groups, beside the rate.
    """

    stage: int
    question: str
    value: float
    rates: Rates
    steps: int
    measure_after: tuple[int, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a probe gave: training losses of its steps, held-out losses where asked for, and whether it was broken off."""

    losses: Sequence[float]
    measured: Sequence[float] = ()
    diverged: bool = False


@dataclass(frozen=True)
class Decision:
    """A stage's answer.

    Args:
        outcomes: what the search made of each of the stage's probes, in their order; infinite for what diverged.
        chosen: the value.
        why: in words.
        forecasts: per probe, (steps, losses) of what was forecast.
    """

    stage: int
    question: str
    chosen: float
    why: str
    outcomes: Sequence[float] = ()
    forecasts: Sequence[tuple[list[int], list[float]] | None] = ()
    study: Any = None


@dataclass(frozen=True)
class Train:
    """Go on training with these rates (counted from where training stands) until training step ``until``."""

    until: int
    rates: Rates
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingLosses:
    """Sent back after :class:`Train`: the stretch's training losses, means over so many ``steps`` each (the last perhaps over fewer)."""

    losses: Sequence[float] = ()
    steps: int = 1


Request = Probe | Decision | Train
Plan = Generator[Request, Any, None]
"""Yields requests; is sent an :class:`Outcome` for a probe, :class:`TrainingLosses` for a stretch, nothing for a decision."""
Part = Generator[Probe | Decision, Any, float]
"""A part of a plan that ends with a number."""


class SearchFailed(NonFiniteLossError):
    """Nothing that was tried can be trained with."""

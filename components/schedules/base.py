"""A schedule is a pure function ``schedule(step) -> factor`` on a base value: a frozen dataclass, plottable and serialisable.

The same objects drive a learning rate, a weight decay, a regularizer's weight, a temperature, an average's decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from components.validation import did_you_mean, require

Span = int | float
"""A length of time: an int counts steps, a float in [0, 1] is a fraction of ``total_steps``."""


def span_steps(span: Span, total_steps: int) -> int:
    """Steps that a span takes: ``span_steps(0.1, 2000) == 200``, ``span_steps(50, 2000) == 50``."""
    return round(span * total_steps) if isinstance(span, float) else span


def require_span(name: str, span: Span) -> None:
    """Refuse what is no :data:`Span`."""
    require(isinstance(span, int | float) and not isinstance(span, bool), f"{name} must be a number: int steps, or a float fraction of total_steps", span)
    require(span >= 0, f"{name} must be >= 0 (steps, or a fraction of total_steps)", span)
    require(isinstance(span, int) or span <= 1, f"{name} as a fraction (a float) must be in [0, 1]; write an int for a number of steps", span)


def require_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse what is no finite number in [low, high]."""
    wanted = f">= {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(number and low <= value <= high and value != float("inf"), f"{name} must be a number {wanted}", value)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""Base of schedules: a linear warm-up over the first *W* steps, then :meth:`factor` over the other *R = T - W*.

    .. math:: \text{schedule}(t) = \begin{cases}
                  f(0) \left(\omega + (1 - \omega) \frac{t + 1}{W}\right) & t < W \\
                  f(t - W) & W \le t \le T \\
                  f(R) & t > T \end{cases}

    with *T* = ``total_steps``, *W* = ``warmup`` in steps, :math:`\omega` = ``warmup_factor`` and *f* the shape, which most
    schedules start at 1.

    **Where it ends.** Training takes the steps 0, …, T-1. A shape reaches its end value at step T, as torch's schedulers do:
    ``schedule(total_steps)`` is exactly the end, ``schedule(total_steps - 1)``, the last step that is taken, is one step short
    of it. So no training step is spent on a factor of 0 (a cosine to 0 over 100 steps takes its last step at 0.00025). After
    step T the value stays. :class:`OneCycle` alone follows its torch namesake and is at its end at step T-1.

    A warm-up longer than the run never ends: the run stays on the ramp.

    Args:
        total_steps: steps of the whole run, warm-up included; filled in by the builder when left out.
        warmup: length of the linear warm-up, int steps or a float fraction of ``total_steps``; default none.
        warmup_factor: the share of the first value that the ramp starts from, in [0, 1]; default 0. Step 0 is already one
            step up the ramp, so that it is not wasted.

    Raises:
        ValueError: a field is out of its range; or, when called, ``total_steps`` is not set or ``step < 0``.

    A schedule of your own gives :meth:`factor`; it checks its own fields in ``__post_init__`` and then calls ``super().__post_init__()``:

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Triangle(Schedule):
    ...     def factor(self, step: int, total: int) -> float:
    ...         return 1 - abs(2 * step / total - 1)
    >>> Triangle(total_steps=4).values()
    [0.0, 0.5, 1.0, 0.5]
    """

    total_steps: int | None = None
    warmup: Span = 0
    warmup_factor: float = 0.0

    # Worked out once by __post_init__, since a schedule is called at every step; no fields, so no part of equality, state or repr.
    _last: ClassVar[int] = -1
    _warmup: ClassVar[int] = 0
    _rest: ClassVar[int] = 1
    _first: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        require(self.total_steps is None or (isinstance(self.total_steps, int) and self.total_steps >= 1), "total_steps must be an int >= 1", self.total_steps)
        require_span("warmup", self.warmup)
        require_number("warmup_factor", self.warmup_factor, 0, 1)
        if self.total_steps is not None:
            warmup = span_steps(self.warmup, self.total_steps)
            rest = max(self.total_steps - warmup, 1)
            self._set(_last=self.total_steps, _warmup=warmup, _rest=rest)
            self.prepare(rest)
            self._set(_first=self.factor(0, rest))

    def __call__(self, step: int) -> float:
        """The factor on the base value at ``step`` (0-based; after ``total_steps`` it stays)."""
        if not 0 <= step <= self._last:
            step = self._outside(step)
        if step < self._warmup:
            return self._first * (self.warmup_factor + (1 - self.warmup_factor) * (step + 1) / self._warmup)
        return self.factor(step - self._warmup, self._rest)

    def factor(self, step: int, total: int) -> float:
        """The factor ``step`` steps after the warm-up, of ``total`` such steps; ``0 <= step <= total``."""
        raise NotImplementedError

    def prepare(self, total: int) -> None:
        """Work out once, with :meth:`_set`, what :meth:`factor` needs at every step; ``total`` steps follow the warm-up."""

    def values(self, steps: int | None = None) -> list[float]:
        """The factors of steps 0, …, ``steps - 1`` (default: the whole run), for plots and tables."""
        return [self(step) for step in range(self._last if steps is None else steps)]

    def with_total_steps(self, total_steps: int) -> Self:
        """A copy with ``total_steps`` filled in where it was left out."""
        return self if self.total_steps is not None else replace(self, total_steps=total_steps)

    def state(self) -> dict[str, Any]:
        """Its class and fields as plain values (JSON): what a checkpoint or a tracking store keeps; see :func:`schedule_from_state`."""
        return {"class": class_path(type(self))} | {f.name: plain(getattr(self, f.name)) for f in fields(self)}

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _outside(self, step: int) -> int:
        require(self.total_steps is not None, "total_steps is not set: pass it, or call with_total_steps(n)")
        require(step >= 0, "step must be >= 0", step)
        return self._last


def schedule_from_state(state: Mapping[str, Any]) -> Schedule:
    """The schedule whose :meth:`Schedule.state` this is; equal to the original.

    Only classes that are already imported are made: a state from a file cannot import code.

    Raises:
        ValueError: the state names no known schedule.
    """
    known = {class_path(cls): cls for cls in subclasses(Schedule)}
    name = state.get("class")
    require(name in known, f"state['class'] must name an imported schedule{did_you_mean(str(name), known)}", name)
    return known[str(name)](**{key: from_plain(value) for key, value in state.items() if key != "class"})


def plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.state()
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def from_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return schedule_from_state(value)
    return tuple(from_plain(v) for v in value) if isinstance(value, list | tuple) else value


def class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def subclasses(cls: type[Schedule]) -> Iterator[type[Schedule]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)

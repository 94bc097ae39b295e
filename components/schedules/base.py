"""A schedule is a pure function ``schedule(step) -> factor`` on a base value: a frozen dataclass, plottable and serialisable.

The same objects drive a learning rate, a weight decay, a regularizer's weight, a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from components.validation import require

Span = int | float
"""A length of time: an int counts steps, a float in (0, 1) is a fraction of ``total_steps``."""


def span_steps(span: Span, total_steps: int) -> int:
    """Steps that a span takes: ``span_steps(0.1, 2000) == 200``, ``span_steps(50, 2000) == 50``."""
    return round(span * total_steps) if isinstance(span, float) else span


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base of schedules: a linear warm-up from ``warmup_factor`` to 1 over ``warmup``, then :meth:`factor` over what is left.

    Args:
        total_steps: steps of the whole run, warm-up included; filled in by the builder when left out.
        warmup: length of the linear warm-up, int steps or a float fraction of ``total_steps``.
        warmup_factor: the factor at step 0 of the warm-up is ``warmup_factor + (1 - warmup_factor) / (warm-up steps)``.
    """

    total_steps: int | None = None
    warmup: Span = 0
    warmup_factor: float = 0.0

    def __post_init__(self) -> None:
        require(self.total_steps is None or self.total_steps >= 1, "total_steps must be >= 1", self.total_steps)
        require(self.warmup >= 0, "warmup must be >= 0 (steps, or a fraction of total_steps)", self.warmup)
        require(not isinstance(self.warmup, float) or self.warmup <= 1, "warmup as a fraction must be in [0, 1]", self.warmup)
        require(0 <= self.warmup_factor <= 1, "warmup_factor must be in [0, 1]", self.warmup_factor)

    def __call__(self, step: int) -> float:
        """The factor on the base value at ``step`` (0-based; at and after ``total_steps`` it stays at the last value)."""
        total = self._total()
        warmup = span_steps(self.warmup, total)
        if step < warmup:
            return self.warmup_factor + (1 - self.warmup_factor) * (step + 1) / warmup
        return self.factor(min(step, total) - warmup, max(total - warmup, 1))

    def factor(self, step: int, total: int) -> float:
        """The factor ``step`` steps after the warm-up, of ``total`` such steps."""
        raise NotImplementedError

    def with_total_steps(self, total_steps: int) -> Self:
        """A copy with ``total_steps`` filled in where it was left out."""
        return self if self.total_steps is not None else replace(self, total_steps=total_steps)

    def state(self) -> dict[str, Any]:
        """Its fields as plain values: what a checkpoint or a tracking store keeps."""
        return {k: v.state() if isinstance(v, Schedule) else v for k, v in vars(self).items()}

    def _total(self) -> int:
        require(self.total_steps is not None, "total_steps is not set: pass it, or call with_total_steps(n)")
        assert self.total_steps is not None
        return self.total_steps

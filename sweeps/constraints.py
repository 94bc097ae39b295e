"""Constraints on the metrics that trials end with: ``test/latency <= 5``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from components.validation import did_you_mean

METRICS = "losskit:metrics"
"""The trial's user attribute that holds the metrics which it ended with."""


class AlgorithmError(ValueError):
    """A sampler or pruner that cannot do what is asked of it; the message is for the user."""


@dataclass(frozen=True)
class Constraint:
    """A condition on a metric that a trial ends with.

    Args:
        text: as the user wrote it; what Optuna stores the violation under.
        metric: such as ``test/latency``.
        bound: the number.
        at_most: whether the metric may be at most ``bound`` (else at least).
    """

    text: str
    metric: str
    bound: float
    at_most: bool

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """``test/latency <= 5`` or ``val/acc >= 0.9``.

        Raises:
            AlgorithmError: something else.
        """
        found = re.fullmatch(r"\s*([^\s<>=]+)\s*(<=|>=)\s*([^\s<>=]+)\s*", text) if isinstance(text, str) else None
        try:
            bound = float(found.group(3)) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise AlgorithmError(f"sweep.constraints: {text!r} is no constraint; write 'metric <= number' or 'metric >= number', such as 'test/latency <= 5'")
        return cls(f"{found.group(1)} {found.group(2)} {found.group(3)}", found.group(1), bound, found.group(2) == "<=")

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the metrics break it: 0 or less means that they keep it; infinite for a metric that is not a number.

        Raises:
            AlgorithmError: the metric was not logged; which were.
        """
        if self.metric not in metrics:
            raise AlgorithmError(
                f"sweep.constraints: {self.text!r} is on a metric that the run never logged{did_you_mean(self.metric, metrics)} "
                f"(it logged: {', '.join(sorted(metrics)) or 'none'})"
            )
        value = float(metrics[self.metric])
        broken_by = value - self.bound if self.at_most else self.bound - value
        return math.inf if math.isnan(broken_by) else broken_by


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """``sweep.constraints``; AlgorithmError where one cannot be read, or is given twice."""
    constraints = tuple(map(Constraint.parse, texts))
    twice = next((c for i, c in enumerate(constraints) if c.text in [other.text for other in constraints[:i]]), None)
    if twice is not None:
        raise AlgorithmError(f"sweep.constraints: {twice.text!r} is there twice")
    return constraints


def record_constraints(trial: Any, constraints: Iterable[Constraint], metrics: Mapping[str, float] | None = None) -> None:
    """Keep with a trial by how much it breaks each constraint: for the samplers, and so that the best trial is one that keeps them.

    To be called before a trial that completes is told, whatever the sampler; Optuna 5 deprecates handing samplers a function for this.

    Args:
        trial: an ``optuna.Trial``.
        metrics: what it ended with; by default its user attribute ``losskit:metrics``.

    Raises:
        AlgorithmError: a constraint on a metric that was not logged.
    """
    ended_with = trial.user_attrs.get(METRICS, {}) if metrics is None else metrics
    there = trial.constraints
    for constraint in constraints:
        violation = constraint.violation(ended_with)
        if constraint.text not in there:  # a trial that was taken up again may have got so far before
            trial.set_constraint(constraint.text, violation)


__all__ = ["METRICS", "AlgorithmError", "Constraint", "parse_constraints", "record_constraints"]

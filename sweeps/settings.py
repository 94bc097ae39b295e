"""What a sweep is told (``sweep.…``): how many trials, which algorithm, how many workers, what happens when something fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sweeps.constraints import parse_constraints
from sweeps.space import SearchSpace

TIMES = ("time/run", "time/step")
"""Seconds of a whole run and of one training step: metrics that every run has."""

Direction = Literal["minimize", "maximize"]
RESUMABLE = ("n_trials", "workers", "retries", "on_failure", "max_failures_in_a_row", "launcher", "grace_seconds")
"""Settings that may change from one session of a sweep to the next: they decide how long and how it is run, not what it is."""


class SweepError(Exception):
    """A sweep that cannot be as it was asked for; the message is for the user."""


class SweepSettings(BaseModel):
    """The config's ``sweep`` group.

    Attributes:
        name: of the sweep; ``None``: a readable unique one is made.
        sampler: component of ``conf/sweep/sampler``; it proposes the parameters of the next trial.
        pruner: component of ``conf/sweep/pruner``; it ends trials that promise nothing. ``None``: none.
        n_trials: trials in all; ``None``: every point of a finite space, else 20.
        seeds: every trial is run over so many seeds (``seed``, ``seed + 1`` …) or over these, and counts with their mean.
        workers: local processes; ``auto``: see :func:`auto_workers`.
        storage: address of the study's storage; ``None``: ``sweeps.db`` in the working directory.
        objectives: metrics that are optimised; empty: the experiment's ``optimized_metric``.
        directions: of the objectives, in their order; empty: from the metrics themselves.
        constraints: ``metric <= number`` or ``metric >= number``; trials that break one are not preferred.
        retries: how often a trial whose worker died is taken up again, from its last checkpoint.
        on_failure: what a trial that raises means for the sweep.
        max_failures_in_a_row: so many failed trials one after the other stop the sweep; 0: never.
        nan: what a trial with a loss that is not finite counts as.
        seed: of the sampler.
        launcher: ``null``: local processes; else a Hydra launcher, e.g. ``submitit_slurm``.
        grace_seconds: a worker that has given no sign of life for so long counts as dead.
        space: key -> choices in Hydra's override grammar; the command line's go before these.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # sweep.name=3

    name: str | None = None
    sampler: dict[str, Any] = Field(default_factory=dict)
    pruner: dict[str, Any] | None = None
    n_trials: int | None = Field(default=None, ge=1)
    seeds: int | list[int] = 1
    workers: int | Literal["auto"] = "auto"
    storage: str | None = None
    objectives: list[str] = Field(default_factory=list)
    directions: list[Direction] = Field(default_factory=list)
    constraints: list[str] = Field(default_factory=list)
    retries: int = Field(default=2, ge=0)
    on_failure: Literal["continue", "stop"] = "continue"
    max_failures_in_a_row: int = Field(default=5, ge=0)
    nan: Literal["prune", "fail"] = "fail"
    seed: int = Field(default=0, ge=0)
    launcher: str | None = None
    grace_seconds: float = Field(default=30.0, gt=0)
    space: dict[str, Any] = Field(default_factory=dict)

    @field_validator("workers")
    @classmethod
    def _some_worker(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("it takes auto or a whole number >= 1")
        return value

    @field_validator("seeds")
    @classmethod
    def _some_seed(cls, value: int | list[int]) -> int | list[int]:
        if value in ([], 0) or (isinstance(value, int) and value < 1) or (isinstance(value, list) and (min(value) < 0 or len(set(value)) < len(value))):
            raise ValueError("it takes a whole number >= 1, or a list of different seeds")
        return value

    @model_validator(mode="after")
    def _as_many_directions(self) -> Self:
        if self.directions and len(self.directions) != len(self.objectives):
            raise ValueError(f"directions are of objectives, one each: {len(self.objectives)} objectives, {len(self.directions)} directions")
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The settings in a composed config's ``sweep``; SweepError in words where one is wrong."""
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["sweep", *(str(part) for part in first["loc"] if isinstance(part, str) and part in cls.model_fields)])
            given = "" if first["type"] in ("extra_forbidden", "missing") or not first["loc"] else f"={first['input']!r}"
            if first["type"] == "extra_forbidden":
                from components.validation import did_you_mean

                name = str(first["loc"][0])
                raise SweepError(f"there is no sweep.{name}{did_you_mean(name, cls.model_fields)} (there is: {', '.join(cls.model_fields)})") from error
            raise SweepError(f"{where}{given}: {first['msg'].removeprefix('Value error, ')}") from error

    def seed_list(self, first: int) -> list[int]:
        """The seeds that every trial is run over, beginning with the experiment's own."""
        return list(self.seeds) if isinstance(self.seeds, list) else list(range(first, first + self.seeds))


@dataclass(frozen=True)
class Plan:
    """A sweep as it is kept in its study: everything that a worker on another machine must know.

    Attributes:
        name: of the sweep and of its study.
        given: overrides as the user gave them.
        fixed: those that all trials share.
        space_given: those that make the space, as they were written.
        space: parameters as :meth:`sweeps.space.SearchSpace.to_dict` gives them.
        settings: of the sweep.
        objectives: metric names.
        directions: one each.
        seeds: every trial is run over these; empty: over the one of its config.
        total: number of trials.
        points: parameters of every trial, where they are known beforehand (grids); empty: the sampler proposes them.
        config: the composed config that all trials start from, as plain containers.
        config_dirs: the user's config directories.
        config_name: the primary config.
        kind: ``sweep`` or ``multirun``.
        cwd: the working directory, for workers on the same machine.
    """

    name: str
    given: list[str]
    fixed: list[str]
    space_given: list[str]
    space: dict[str, Any]
    settings: dict[str, Any]
    objectives: list[str]
    directions: list[Direction]
    seeds: list[int]
    total: int
    config: dict[str, Any]
    points: list[dict[str, Any]] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    config_name: str = "train"
    kind: str = "sweep"
    cwd: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls(**json.loads(text))

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two sessions of one sweep share."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()[:12]

    def _identity(self) -> dict[str, Any]:
        settings = {k: v for k, v in self.settings.items() if k not in RESUMABLE and k not in ("name", "storage", "space")}
        objectives = dict(zip(self.objectives, self.directions, strict=True))
        return {"config": self.config, "space": self.space, "settings": settings, "objectives": objectives, "seeds": self.seeds}

    @property
    def judged_by(self) -> list[str]:
        """Metrics that every run must have: the objectives, and those that constraints are on."""
        return [*self.objectives, *(constraint.metric for constraint in parse_constraints(self.settings["constraints"]))]

    def differences(self, other: Plan, flat: Any) -> list[str]:
        """What another plan would do otherwise, one line each: ``loss.gamma: 2 → 3``.

        Args:
            other: the newer plan.
            flat: makes a nested mapping one of dotted keys.
        """
        space = SearchSpace.from_dict(self.space).differences(SearchSpace.from_dict(other.space))
        before, after = (flat({k: v for k, v in plan._identity().items() if k != "space"}) for plan in (self, other))
        changed = [key for key in [*before, *(k for k in after if k not in before)] if before.get(key) != after.get(key)]
        rest = [f"{key.removeprefix('config.')}: {before.get(key, '(not there)')} → {after.get(key, '(not there)')}" for key in changed]
        return [*space, *rest]


def auto_workers(cores: int, devices: int, trials: int) -> int:
    """Local workers where the user leaves it to us: one a device; on the CPU one a core up to four, then one for two cores; never more than trials."""
    wanted = devices if devices > 0 else cores if cores <= 4 else max(4, cores // 2)
    return max(1, min(wanted, trials))


__all__ = ["TIMES", "Direction", "Plan", "SweepError", "SweepSettings", "auto_workers"]

"""The learning rate that a run had: found while it trained (``schedule/found.json``) or set by its schedule; and ``schedule=replay``, which takes it over."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.schedules.compose import straight
from components.validation import did_you_mean
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.rundir import RunSpec
from losskit_cli.runs import FoundRun, find_run

FOUND = Path("schedule") / "found.json"
VERSION = 1
REPLAY = "components.schedules.Replay"
SEARCHES = "sweeps.autolrs"  # a schedule of this package has no factors of its own: it finds them


# -- the file --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Probe:
    """One candidate that a search tried: its steps from the stage's start, what came of it, and the loss on the way.

    Attributes:
        value: what was tried: a learning rate, a length, a weight decay, as the stage's question says.
        outcome: the loss that it was judged by; ``None`` where it diverged without one.
        at, factors: the course that it ran, steps from its start and factors on the base rate.
        steps_seen, losses: training losses on the way. forecast: (steps, losses) that were expected to follow, if any.
    """

    number: int
    value: float
    steps: int
    outcome: float | None
    diverged: bool
    at: list[int]
    factors: list[float]
    steps_seen: list[int]
    losses: list[float]
    forecast: tuple[list[float], list[float]] | None


@dataclass(frozen=True)
class Stage:
    """A part of the run that was searched: from step ``start`` to ``end``, with what was chosen and why."""

    stage: int
    start: int
    end: int
    question: str
    chosen: float | None
    why: str
    probes: list[Probe]


@dataclass(frozen=True)
class FoundSchedule:
    """What a run found: the factors on ``lr`` at the steps ``at``, straight between them (two at one step are a jump), and how."""

    method: str
    lr: float
    total_steps: int
    trained_steps: int
    explored_steps: int
    diverged: int
    at: list[int]
    factors: list[float]
    stages: list[Stage]

    @classmethod
    def read(cls, file: Path) -> FoundSchedule:
        """The schedule in ``file``.

        Raises:
            UsageError: it cannot be read, or is not what such a file holds.
        """
        try:
            return cls.parse(file.read_bytes(), str(file))
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror or error}") from error

    @classmethod
    def parse(cls, text: bytes, where: str) -> FoundSchedule:
        """The schedule in a file's content; ``where`` says in errors which file that is."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{where} is no found schedule: {error}") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise UsageError(f"{where} is no found schedule of version {VERSION}" + (f": its version is {version!r}" if version is not None else ""))
        node = _Node(data, where)
        at, factors = node.numbers("at"), node.numbers("factors")
        lr, total = node.number("lr"), node.whole("total_steps", 1)
        node.require(lr > 0, "lr", "must be > 0")
        node.require(0 < len(at) == len(factors), "at", f"and factors must be one point or more, and as many ({len(at)} and {len(factors)})")
        node.require(at == sorted(at) and at[0] >= 0 and at[-1] <= total, "at", f"must rise from 0 to at most total_steps={total}")
        node.require(min(factors) >= 0, "factors", "must be >= 0")
        node.require(max(factors) > 0, "factors", "must not all be 0")
        return cls(
            node.text("method"), lr, total, node.whole("trained_steps"), node.whole("explored_steps"), node.whole("diverged"),
            [int(step) for step in at], factors, [_stage(stage) for stage in node.nodes("stages")],
        )  # fmt: skip

    def factor(self, step: float) -> float:
        """The factor on the base rate at a step."""
        return straight(self.at, self.factors, step)

    @property
    def finished(self) -> bool:
        return self.trained_steps >= self.total_steps

    def node(self) -> dict[str, Any]:
        """The option that gives the same factors over a run of any length."""
        shares = [step / self.total_steps for step in self.at]
        return {"_target_": "components.schedules.Piecewise", "at": shares, "factors": list(self.factors), "between": "linear"}


class _Node:
    """A mapping of the file whose entries are checked as they are taken, with errors that say where."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise UsageError(f"{where} must be an object, but got {data!r:.60}")
        self.data, self.where = data, where

    def require(self, condition: bool, key: str, message: str) -> None:
        if not condition:
            raise UsageError(f"{self.where}: {key} {message}")

    def get(self, key: str) -> Any:
        self.require(key in self.data, key, "is missing")
        return self.data[key]

    def number(self, key: str) -> float:
        value = self.get(key)
        self.require(_is_number(value) and math.isfinite(value), key, f"must be a finite number, but got {value!r:.60}")
        return float(value)

    def whole(self, key: str, least: int = 0) -> int:
        value = self.get(key)
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self.require(fine, key, f"must be a whole number >= {least}, but got {value!r:.60}")
        return int(value)

    def text(self, key: str) -> str:
        value = self.get(key)
        self.require(isinstance(value, str), key, f"must be a text, but got {value!r:.60}")
        return str(value)

    def numbers(self, key: str, finite: bool = True) -> list[float]:
        values = self.get(key)
        fine = isinstance(values, list) and all(_is_number(v) and (math.isfinite(v) or not finite) for v in values)
        self.require(fine, key, f"must be a list of {'finite ' if finite else ''}numbers, but got {values!r:.60}")
        return [float(v) for v in values]

    def nodes(self, key: str) -> list[_Node]:
        values = self.get(key)
        self.require(isinstance(values, list), key, f"must be a list, but got {values!r:.60}")
        return [_Node(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(values)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stage(node: _Node) -> Stage:
    chosen = node.get("chosen")
    return Stage(
        node.whole("stage"), node.whole("start"), node.whole("end"), node.text("question"), None if chosen is None else node.number("chosen"),
        node.text("why"), [_probe(probe) for probe in node.nodes("probes")],
    )  # fmt: skip


def _probe(node: _Node) -> Probe:
    at, factors = node.numbers("at"), node.numbers("factors")
    seen, losses = node.numbers("train_steps"), node.numbers("train_losses", finite=False)
    node.require(len(at) == len(factors), "at", f"and factors must be as many ({len(at)} and {len(factors)})")
    node.require(len(seen) == len(losses), "train_steps", f"and train_losses must be as many ({len(seen)} and {len(losses)})")
    outcome, forecast = node.get("outcome"), None
    node.require(outcome is None or _is_number(outcome), "outcome", f"must be a number or null, but got {outcome!r:.60}")
    if node.get("forecast") is not None:
        below = _Node(node.get("forecast"), f"{node.where}: forecast")
        forecast = below.numbers("steps"), below.numbers("losses", finite=False)
        below.require(len(forecast[0]) == len(forecast[1]), "steps", "and losses must be as many")
    return Probe(
        node.whole("number"), node.number("value"), node.whole("steps"), None if outcome is None or not math.isfinite(outcome) else float(outcome),
        bool(node.get("diverged")), [int(step) for step in at], factors, [int(step) for step in seen], losses, forecast,
    )  # fmt: skip


# -- a run -----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunSource:
    """A run, as far as its learning rate and its losses go.

    Attributes:
        found: the schedule that it found, if it searched one.
        total_steps: how many steps it was to take in all; ``None``: nothing recorded it.
        curves: metric -> (steps taken, value), of all metrics that it logged.
    """

    run: FoundRun
    spec: RunSpec
    found: FoundSchedule | None
    total_steps: int | None
    curves: dict[str, list[tuple[int, float]]]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def lr(self) -> float:
        """The rate that its schedule multiplies."""
        if self.found is not None:
            return self.found.lr
        lr = self.spec.config["optimizer"].get("lr")
        if not _is_number(lr):
            raise UsageError(f"run {self.name} has no optimizer.lr in its config, so its learning rates are not known")
        return float(lr)

    @property
    def trained_steps(self) -> int:
        """Steps up to the last value that it logged."""
        return max((points[-1][0] for points in self.curves.values() if points), default=0)

    def node(self) -> dict[str, Any]:
        """The option of its schedule, without anything that would have to be looked up.

        Raises:
            UsageError: it has none.
        """
        if self.found is not None:
            return self.found.node()
        node = self.spec.config.get("schedule")
        if not node:
            raise UsageError(f"run {self.name} had no schedule: its learning rate was {self.lr:g} throughout (schedule=constant optimizer.lr={self.lr:g})")
        if str(node.get("_target_")).startswith(SEARCHES):
            raise UsageError(f"run {self.name} searched for its schedule, but has not kept any: there is no {self.run.run_dir / FOUND}")
        return dict(node)

    def rates(self) -> list[float]:
        """The learning rate of each of its steps, as its schedule gives it.

        Raises:
            UsageError: its length is not known, or its schedule cannot be built.
        """
        total = self.total_steps
        if total is None:
            raise UsageError(f"how many steps run {self.name} had is not recorded (it was trained without tracking)")
        if self.found is not None:
            return [self.lr * self.found.factor(step) for step in range(total)]
        if not self.spec.config.get("schedule"):
            return [self.lr] * total
        factor = built(self.node(), total, self.spec.config.get("allow_targets") or ())
        return [self.lr * float(factor(step)) for step in range(total)]


def source_of(reference: str) -> RunSource:
    """The run that ``reference`` names, with its found schedule and its curves.

    Raises:
        UsageError: there is no such run, or its found schedule cannot be read.
    """
    return source_at(find_run(reference))


def source_at(run: FoundRun) -> RunSource:
    """A run with its found schedule and its curves, from its directory alone: no store is asked.

    Raises:
        UsageError: its found schedule cannot be read.
    """
    spec = RunSpec.load(run.run_dir)
    file = run.run_dir / FOUND
    found = FoundSchedule.read(file) if file.is_file() else None
    total, curves = _journal(run.run_dir)
    limit = spec.config["trainer"].get("max_steps")
    if found is not None:
        total = found.total_steps
    elif total is None and isinstance(limit, int) and limit > 0 and not spec.config["trainer"].get("max_epochs"):
        total = limit
    return RunSource(run, spec, found, total, curves)


def _journal(run_dir: Path) -> tuple[int | None, dict[str, list[tuple[int, float]]]]:
    """Steps in all and every curve, from the journal of a run directory."""
    from losskit_cli.tracking.contents import PREFIX
    from losskit_cli.tracking.journal import JOURNAL_FILE, read_records

    total: int | None = None
    curves: dict[str, dict[int, float]] = {}
    if not (run_dir / JOURNAL_FILE).is_file():
        return None, {}
    for _, record in read_records(run_dir / JOURNAL_FILE):
        if record["t"] == "m":
            for key, value in record["d"].items():
                curves.setdefault(key, {})[int(record["s"])] = float(value)
        elif record["t"] == "g" and str(record["d"].get(f"{PREFIX}total_steps", "")).isdigit():
            total = int(record["d"][f"{PREFIX}total_steps"])
    return total, {key: sorted(points.items()) for key, points in curves.items()}


def built(node: Mapping[str, Any], total_steps: int, allowed: Sequence[str] = ()) -> Callable[[int], float]:
    """A schedule's node as the function that it is."""
    from losskit_cli.plot import maker

    made: Callable[[int], float] = maker(allowed, "schedule")("schedule", node, {"total_steps": total_steps})
    return made


# -- schedule=replay ---------------------------------------------------------------------------------------------------------------
def with_replay(config: dict[str, Any]) -> dict[str, Any]:
    """A config in which ``schedule=replay schedule.run=RUN`` holds that run's schedule as plain numbers; any other config as it is.

    What was filled in stays: a saved config needs the other run no more, unless ``schedule.run`` was changed.

    Raises:
        UsageError: there is no such run, or it has no schedule.
    """
    node = config.get("schedule")
    if not isinstance(node, dict) or node.get("_target_") != REPLAY or (node.get("of") and node.get("of_run") == node.get("run")):
        return config
    if node.get("run") in (None, "", "???"):
        raise UsageError("schedule.run is required: set schedule.run=… to the name, id or directory of the run whose learning rate is taken")
    try:
        source = source_of(str(node.get("run")))
        taken = source.node()
    except LosskitError as error:
        raise UsageError(f"schedule.run={node.get('run')}: {error}") from error
    if source.found is not None and not source.found.finished:
        reached = f"{source.found.trained_steps} of {source.found.total_steps} steps"
        sys.stderr.write(f"note: {source.name} stopped after {reached}; from there on its last learning rate is held\n")
    steps = None if source.found is not None else source.total_steps  # what was found is in fractions already
    return {**config, "schedule": {**node, "of": taken, "of_steps": steps, "of_lr": source.lr, "of_run": node["run"]}}


def filled_as(config: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with what :func:`with_replay` filled into ``saved``, where both replay the same run: so that it is not told as a change."""
    node, before = config.get("schedule"), saved.get("schedule")
    both = all(isinstance(n, dict) and n.get("_target_") == REPLAY for n in (node, before))
    if not both or node["run"] != before.get("of_run"):  # type: ignore[index, union-attr]
        return dict(config)
    filled = {key: before[key] for key in ("of", "of_steps", "of_lr", "of_run")}  # type: ignore[index]
    return {**config, "schedule": {**node, **filled}}  # type: ignore[dict-item]


def no_such_schedule(name: str, options: Sequence[str], error: LosskitError) -> UsageError:
    """``schedule=NAME`` that is neither an option nor a run: the nearest of both."""
    near = did_you_mean(name, options)
    return UsageError(f"there is no schedule={name}{near} (there is: {', '.join(options)}), and no run of that name: {error}")


__all__ = [
    "FOUND",
    "FoundSchedule",
    "Probe",
    "RunSource",
    "Stage",
    "filled_as",
    "no_such_schedule",
    "source_at",
    "source_of",
    "with_replay",
]

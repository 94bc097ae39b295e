"""What a search of the schedule leaves in a run's directory: each probe as it ends (to go on from), the schedule found (to read), the studies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study

from components.files import replace_text
from sweeps.autolrs.plan import Decision, Outcome, Probe, Train
from sweeps.logs import quiet

FOUND, PROBES, STUDIES = "found.json", "probes.jsonl", "studies.journal"
POINTS = 200
"""Points of a probe's losses that the readable record keeps."""
VERSION = 1


@dataclass
class Entry:
    """One probe: what was tried from which training step, and what it gave."""

    start: int
    probe: Probe
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        gave = {"losses": list(self.outcome.losses), "measured": list(self.outcome.measured), "diverged": self.outcome.diverged}
        return asked(self.start, self.probe) | gave


def asked(start: int, probe: Probe) -> dict[str, Any]:
    """All that a probe's outcome depends on, beside the run's settings."""
    path = {"at": list(probe.rates.at), "rates": list(probe.rates.values), "options": dict(probe.options), "measure_after": list(probe.measure_after)}
    return {"start": start, "stage": probe.stage, "question": probe.question, "value": probe.value, "length": probe.steps} | path


def outcome_of(kept: Mapping[str, Any], start: int, probe: Probe) -> Outcome | None:
    """The outcome that was kept, if it is of this very probe."""
    if any(kept.get(key) != value for key, value in asked(start, probe).items()):
        return None
    return Outcome(kept["losses"], kept["measured"], kept["diverged"])


@dataclass
class Record:
    """The files of one run's search.

    Args:
        directory: where they are; ``None``: nothing is written.
        settings: what the search depends on. Probes that were made under others are not gone on from.
    """

    directory: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> list[dict[str, Any]]:
        """The probes that are there already (of a run that was killed), after making the directory ready for more."""
        if self.directory is None:
            return []
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = read_lines(self.directory / PROBES)
        entries = lines[1:] if lines[:1] == [{"version": VERSION, **self.settings}] else []
        self.rewrite(entries)
        return entries

    def rewrite(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Start the file of probes anew with these."""
        if self.directory is not None:
            lines = [{"version": VERSION, **self.settings}, *entries]
            replace_text(self.directory / PROBES, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Keep a probe that has just ended: a kill after this loses nothing of it."""
        if self.directory is not None:
            with (self.directory / PROBES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def study(self, study: Study) -> None:
        """Keep a stage's study, under its name, where Optuna's own tools can read it."""
        if self.directory is None:
            return
        storage = JournalStorage(JournalFileBackend(str(self.directory / STUDIES)))
        if study.study_name not in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
            with quiet():
                optuna.create_study(study_name=study.study_name, storage=storage).add_trials(study.trials)

    def found(self, content: Mapping[str, Any]) -> None:
        """The schedule found so far, for people and for ``schedule=replay``."""
        if self.directory is not None:
            replace_text(self.directory / FOUND, json.dumps(content, indent=1))

    @property
    def files(self) -> list[Path]:
        """What is there to keep with the run."""
        return [] if self.directory is None else [path for name in (FOUND, STUDIES) if (path := self.directory / name).is_file()]


def found_schedule(
    *, method: str, lr: float, total: int, done: int, entries: Sequence[Entry], decisions: Sequence[tuple[int, Decision]], trained: Sequence[tuple[int, Train]]
) -> dict[str, Any]:
    """The content of ``found.json``.

    Args:
        method: as the user chose it.
        lr: base learning rate: what factors multiply.
        total: training steps of the run.
        done: training steps so far.
        entries: probes so far.
        decisions: (training step, decision), in their order.
        trained: (first training step, stretch), in their order, the running one included.
    """
    at: list[int] = []
    rates: list[float] = []
    for start, stretch in trained:
        steps, values = stretch.rates.points(stretch.until - start, start)
        at += steps
        rates += values
    decided = {decision.stage: (step, decision) for step, decision in decisions}
    stages = []
    for stage in dict.fromkeys(entry.probe.stage for entry in entries):
        own = [entry for entry in entries if entry.probe.stage == stage]
        step, decision = decided.get(stage, (own[0].start, None))
        ends = [stretch.until for start, stretch in trained if start == step]
        forecasts = list(decision.forecasts) if decision else []
        outcomes = list(decision.outcomes) if decision else [entry.outcome.measured[-1] if entry.outcome.measured else None for entry in own]
        probes = []
        for number, entry in enumerate(own):
            steps, values = entry.probe.rates.points(entry.probe.steps)
            curve_steps, curve = sampled(entry.outcome.losses)
            forecast = forecasts[number] if number < len(forecasts) else None
            probes.append({
                "number": number,
                "value": entry.probe.value,
                "steps": len(entry.outcome.losses),
                "outcome": finite(outcomes[number]) if number < len(outcomes) else None,
                "diverged": entry.outcome.diverged,
                "at": steps,
                "factors": [value / lr for value in values],
                "train_steps": curve_steps,
                "train_losses": [finite(value) for value in curve],
                "forecast": {"steps": list(forecast[0]), "losses": list(forecast[1])} if forecast else None,
            })  # fmt: skip
        stages.append({
            "stage": stage,
            "start": own[0].start,
            "end": ends[0] if ends else own[0].start,
            "question": own[0].probe.question,
            "chosen": decision.chosen if decision else None,
            "why": decision.why if decision else "",
            "probes": probes,
        })  # fmt: skip
    return {
        "version": VERSION,
        "method": method,
        "lr": lr,
        "total_steps": total,
        "trained_steps": done,
        "explored_steps": sum(len(entry.outcome.losses) for entry in entries),
        "diverged": sum(entry.outcome.diverged for entry in entries),
        "at": at,
        "factors": [rate / lr for rate in rates],
        "stages": stages,
    }


def sampled(losses: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most :data:`POINTS` of the losses, evenly, the last one among them; with the numbers of steps after which they were."""
    every = max(1, math.ceil(len(losses) / POINTS))
    steps = list(range(len(losses), 0, -every))[::-1]
    return steps, [losses[step - 1] for step in steps]


def finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; what follows the first that is torn counts as not written."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                content = json.loads(line) if line.endswith("\n") else None
            except json.JSONDecodeError:
                content = None
            if not isinstance(content, dict):
                break
            lines.append(content)
    return lines


__all__ = ["FOUND", "PROBES", "STUDIES", "Entry", "Record", "found_schedule", "outcome_of"]

"""A sweep on the terminal: the live table while it runs, and the table at its end."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from losskit_cli.compare import Column, Comparison, show_seconds

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from sweeps.study import Status, Sweep

SHOWN = 12  # of the finished trials, the last ones
LISTED = 50  # at a sweep's end, the best ones
STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "RUNNING": "cyan", "WAITING": "dim"}
REFRESH_SECONDS = 0.5


class LiveTable:
    """Redraws itself twice a second on a terminal; draws nothing in a pipe. Use it as a context.

    Args:
        sweep: the sweep.
        console: where to draw (stderr).
    """

    def __init__(self, sweep: Sweep, console: Console | None = None) -> None:
        self.sweep, self.console = sweep, console
        self._live: Live | None = None
        self._began, self._finished_before, self._drawn = time.monotonic(), sweep.status().finished, 0.0

    def __enter__(self) -> LiveTable:
        if self.console is not None and self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: Status) -> None:
        now = time.monotonic()
        if self._live is None or now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        self._live.update(self.renderable(status), refresh=True)

    def renderable(self, status: Status | None = None) -> RenderableType:
        """The sweep as it is now."""
        status = status or self.sweep.status()
        return Group(self._head(status), self._trials(status))

    def _head(self, status: Status) -> RenderableType:
        ended = [(f"{status.complete} complete", "green"), (f"{status.pruned} pruned", "yellow"), (f"{status.failed} failed", "red")]
        counts = [*ended, (f"{status.running} running", "cyan")]
        line = Text.assemble((status.name, "bold"), f"  {status.finished} of {status.total} trials: ")
        for number, (text, style) in enumerate(counts):
            line.append((", " if number else "") + text, style if not text.startswith("0 ") else "dim")
        left = self._left(status)
        if left is not None:
            line.append(f"  about {show_seconds(left)} left")
        if status.stop:
            line.append(f"\n{'stopping' if status.running else 'stopped'}: {status.stop}", "red")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=max(1, status.total), completed=status.finished, width=20), self._best(status))
        return Group(line, bar)

    def _best(self, status: Status) -> Text:
        if status.best_value is None:
            return Text("nothing complete yet", "dim")
        if isinstance(status.best_value, list):
            return Text(f"{len(status.best_value)} on the Pareto front")
        params = _params(status.best_params, self._names()) if isinstance(status.best_params, dict) else ""
        return Text(f"best {self.sweep.plan.objectives[0]} {status.best_value:.5g}  {params}", no_wrap=True, overflow="ellipsis")

    def _left(self, status: Status) -> float | None:
        """Seconds, from the pace of this session."""
        done = status.finished - self._finished_before
        return (time.monotonic() - self._began) / done * (status.total - status.finished) if done > 0 and not status.done else None

    def _trials(self, status: Status) -> RenderableType:
        from optuna.trial import TrialState

        trials = [t for t in self.sweep.trials() if t.state != TrialState.WAITING]
        running = [t for t in trials if t.state == TrialState.RUNNING]
        ended = sorted((t for t in trials if t.state.is_finished()), key=lambda t: t.datetime_complete or datetime.min)[-SHOWN:]
        workers, names = _told_apart(running), self._names()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("trial", "state", *self.sweep.plan.objectives, "parameters", "time", "worker"):
            table.add_column(name, no_wrap=name != "parameters")  # the one that gives way where the terminal is narrow
        for trial in [*ended, *running]:
            values = trial.values or [trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None]
            shown = ["" if v is None else f"{v:.5g}" for v in values] + [""] * (len(self.sweep.plan.objectives) - len(values))
            began, end = trial.datetime_start, trial.datetime_complete or datetime.now()
            params = Text(_params(trial.params, names), no_wrap=True, overflow="ellipsis")
            took = show_seconds((end - began).total_seconds()) if began else ""
            table.add_row(str(trial.number), Text(trial.state.name, STYLES[trial.state.name]), *shown, params, took, workers.get(trial.number, ""))
        return table

    def _names(self) -> dict[str, str]:
        """Parameter -> as little of its end as tells it from the others: ``optimizer.lr`` -> ``lr``."""
        keys = [parameter["key"].lstrip("+") for parameter in self.sweep.plan.space.get("parameters", [])]
        ends = {key: [".".join(key.split(".")[-n:]) for n in range(1, key.count(".") + 2)] for key in keys}
        return {key: next((end for end in ends[key] if sum(end in others for others in ends.values()) == 1), key) for key in keys}


def _params(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return " ".join(f"{names.get(key, key)}={_short(value)}" for key, value in params.items())


def _told_apart(running: Sequence[FrozenTrial]) -> dict[int, str]:
    """Trial number -> its worker's process, with the host where not all are on this one."""
    from sweeps.study import worker_of

    workers = {t.number: tuple(name.rpartition("-")[0].rpartition("-")[::2]) for t in running if (name := worker_of(t))}
    here = {host for host, _ in workers.values()} <= {socket.gethostname()}
    return {number: pid if here else f"{host}-{pid}" for number, (host, pid) in workers.items()}


def outcome_table(sweep: Sweep) -> Comparison:
    """The trials of a sweep, best first, as a table, those that failed or were pruned at its end; the runs of a multirun in their order."""
    plan = sweep.plan
    trials = [t for t in sweep.trials() if t.state.is_finished()]
    keys = list(dict.fromkeys(key for t in trials for key in t.params))
    logged = [name for t in trials for name in t.user_attrs.get("losskit:metrics") or {}]
    metrics = list(dict.fromkeys([*plan.objectives, *(name for name in logged if name.startswith("test/"))]))
    sign = -1 if plan.directions[0] == "maximize" else 1

    def order(trial: FrozenTrial) -> tuple[bool, float, int]:
        return trial.values is None or trial.state.name != "COMPLETE", sign * trial.values[0] if trial.values else 0.0, trial.number

    rows: list[Mapping[str, Any]] = []
    for trial in sorted(trials, key=order) if plan.kind == "sweep" else trials:
        found = (trial.user_attrs.get("losskit:metrics") or {}) | dict(zip(plan.objectives, trial.values or [], strict=False))
        params, shown = {k: _short(v) for k, v in trial.params.items()}, {m: found[m] for m in metrics if m in found}
        rows.append({"trial": str(trial.number), "name": _run_name(trial), "status": trial.state.name, **params, **shown})
    columns = [Column("trial" if plan.kind == "sweep" else "name", "text"), *(Column(k, "param") for k in keys), *(Column(m, "metric") for m in metrics)]
    columns += [Column("status", "text")] if any(row["status"] != "COMPLETE" for row in rows) else []
    notes = []
    if plan.kind == "sweep" and len(rows) > LISTED:
        notes = [f"the best {LISTED} of {len(rows)} trials; all: losskit compare --sweep {plan.name} --limit {len(rows)}"]
        rows = rows[:LISTED]
    return Comparison(columns, [dict(row) for row in rows], plan.objectives[0], "max" if sign < 0 else "min", notes, more="--json")


def _run_name(trial: FrozenTrial) -> str:
    from sweeps.study import runs_of

    run = next(iter(runs_of(trial).values()), {})
    return str(run["summary"]["run_name"]) if "summary" in run else Path(run.get("run_dir", "")).name


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pareto(values: Sequence[Sequence[float]]) -> str:
    return "  ".join("(" + ", ".join(f"{v:.4g}" for v in point) + ")" for point in values)


__all__ = ["LiveTable", "outcome_table", "pareto"]

"""``losskit compare``: the runs of a store as one table, or groups of runs with their mean, interval and difference to a reference."""

from __future__ import annotations

import io
import math
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from csv import writer as csv_writer
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from components.validation import did_you_mean
from losskit_cli.errors import UsageError
from losskit_cli.groups import complete_runs, group_statistics, require_keys, value_of
from losskit_cli.statistics import CONFIDENCE
from losskit_cli.tracking.contents import OPTION_GROUPS
from losskit_cli.tracking.filter import keep
from losskit_cli.tracking.store import RunInfo, Store
from losskit_cli.tracking.ui import run_ui

LOWER_IS_BETTER = (
    "loss", "nll", "error", "err", "mae", "mse", "rmse", "mape", "smape", "mase", "msle", "crps", "pinball", "perplexity", "ppl",
    "bits", "bpb", "ece", "mce", "brier", "hamming", "hausdorff", "eer", "fpr", "fnr", "wer", "cer", "kl", "duration",
)  # fmt: skip
HIDDEN_PARAMS = ("name", "output_dir", "task_name", "ckpt_path", "tags")
HIDDEN_GROUPS = ("tracking",)
TELLING = ("experiment", "loss", "data", "model", "optimizer", "schedule", "regularizer", "transform", "reweighting", "averaging", "task")
MAX_PARAM_COLUMNS = 6
MAX_NAMED = 8
MAX_CELL = 28
NUMBERS = ("metric", "seconds", "count", "difference", "p", "effect")
OF_GROUP = ("mean", "std", "n", "low", "high", "nonfinite")
PARTS = (*OF_GROUP, "difference", "difference_low", "difference_high", "p", "p_corrected", "effect", "pairs", "test")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: ``text``, ``param``, ``metric``, ``seconds``, ``count``; ``difference``, ``p`` and ``effect`` of a metric, beside it.
        of: the metric that a difference, p or effect belongs to.
    """

    name: str
    kind: str
    of: str | None = None


@dataclass(frozen=True)
class Reference:
    """What the groups of a comparison are compared with.

    Attributes:
        label: the group: ``loss=cross_entropy``.
        over: what a value is told apart and paired by: ``["seed"]``.
    """

    label: str
    over: list[str]


@dataclass(frozen=True)
class Comparison:
    """A table of runs or groups.

    Attributes:
        rows: column name -> value; a metric of a group is ``{"mean": …, "std": …, "n": …}``, with a reference what :class:`losskit_cli.groups.GroupTable` says.
        metric: what it is sorted by, in its better direction.
        direction: ``"min"`` or ``"max"``.
        notes: what the reader should know: left-out runs, for instance.
        asked: whether the metrics were named by the user.
        more: what shows the columns for which a terminal has no room.
        reference: set where groups are compared with one of them: means have intervals, differences and tests.
    """

    columns: list[Column]
    rows: list[dict[str, Any]]
    metric: str | None
    direction: str
    notes: list[str]
    asked: bool = False
    more: str = "--json or --csv"
    reference: Reference | None = None


def compare_runs(
    store: Store,
    *,
    metrics: Sequence[str] = (),
    group_by: Sequence[str] = (),
    filter: str | None = None,
    experiment: str | None = None,
    direction: str = "auto",
    best: bool = False,
    limit: int | None = None,
    sweeps: Sequence[str] = (),
    over: Sequence[str] = (),
    reference: str | None = None,
) -> Comparison:
    """Compare the runs of ``store``. The parent runs of sweeps are no runs of their own and never in it.

    Args:
        metrics: metric names; the first one sorts. Default: the runs' own optimized metric, then their ``test/…`` metrics.
        group_by: options, parameters or tags; runs that agree on all of them become one row with n, mean and standard deviation; with ``over``,
            ``reference`` or ``sweeps``: with the mean's 95 % interval and the difference to the reference, tested.
        filter: see :mod:`losskit_cli.tracking.filter`.
        experiment: only this MLflow experiment's runs.
        direction: ``"min"``, ``"max"``, or ``"auto"``: what the runs say, else from the metric's name.
        best: the best value of a run's history instead of its last.
        limit: show this many rows.
        sweeps: only the trials of these sweeps.
        over: with ``group_by``: what tells the values of a group apart, and pairs them with those of the reference. Default: ``["seed"]``.
        reference: with ``group_by``: ``loss=cross_entropy``, the group that the others are compared with. Default: the one that was started first.

    Raises:
        UsageError: no runs, an unknown metric, group, sweep or reference, a filter that cannot be read.
    """
    if direction not in ("auto", "min", "max"):
        raise UsageError(f"direction must be one of auto, min, max, but got {direction!r}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, but got {limit}")
    for option, given in (("--over", over), ("--reference", reference)):
        if given and not group_by:
            raise UsageError(f"{option} is about groups of runs: say what makes a group, for instance --group-by loss")
    everything = [run for run in store.runs(experiment) if run.tags.get("losskit.kind") != "sweep"]
    if not everything:
        where = f"the experiment {experiment!r} of {store.uri}" if experiment else store.uri
        raise UsageError(f"there are no runs in {where} yet: `losskit train` makes one")
    everything = _of_sweeps(everything, sweeps)
    runs = keep(everything, filter)
    if not runs:
        raise UsageError(f"none of the {len(everything)} runs passes --filter {filter!r}")
    notes: list[str] = []
    if group_by:
        runs, notes = complete_runs(runs)
    chosen = _metrics(runs, metrics)
    first = chosen[0] if chosen else None
    better = _direction(first, runs, direction)
    directions = {name: better if name == first else _direction(name, runs, "auto") for name in chosen}
    values = {run.run_id: {name: _value(run, name, directions[name] if best else None) for name in chosen} for run in runs}
    found: Reference | None = None
    if group_by and (over or reference or sweeps):
        over = list(over) or ["seed"]
        compared = chosen if metrics else chosen[:1]
        table = group_statistics(runs, group_by, chosen, values, over=over, reference=reference, explained=compared)
        columns, rows, found = _compared_columns(group_by, chosen, compared), table.rows, Reference(table.reference, over)
        notes += table.notes
    elif group_by:
        columns, rows = _groups(runs, group_by, chosen, values)
    else:
        columns, rows = _single(runs, chosen, values)
    if first is not None:
        rows.sort(key=lambda row: _sort_key(row.get(first), better))
    if limit is not None and len(rows) > limit:
        notes.append(f"{limit} of {len(rows)} rows shown")
        rows = rows[:limit]
    return Comparison(columns, rows, first, better, notes, asked=bool(metrics), reference=found)


def _of_sweeps(runs: list[RunInfo], names: Sequence[str]) -> list[RunInfo]:
    if not names:
        return runs
    known = sorted({sweep for run in runs if (sweep := run.tags.get("losskit.sweep"))})
    for name in names:
        if name not in known:
            raise UsageError(f"--sweep: no run is of a sweep {name!r}{did_you_mean(name, known)} (there is: {', '.join(known) or 'none'})")
    return [run for run in runs if run.tags.get("losskit.sweep") in names]


def _compared_columns(keys: Sequence[str], metrics: Sequence[str], compared: Sequence[str]) -> list[Column]:
    """The first metric with its difference, p and effect beside it; those of further metrics only where the user named them."""
    columns = [*(Column(key, "param") for key in keys), Column("n", "count")]
    for number, metric in enumerate(metrics):
        columns.append(Column(metric, "metric"))
        if metric in compared:
            columns += [Column(kind if number == 0 else f"{metric} {kind}", kind, metric) for kind in ("difference", "p", "effect")]
    return [*columns, Column("duration", "seconds")]


def better_direction(metric: str) -> str:
    """``"min"`` or ``"max"`` from a metric's name: ``val/loss`` and ``time/step`` are better when lower, ``val/acc`` when higher."""
    if metric.startswith("time/"):
        return "min"
    words = metric.lower().rpartition("/")[2].replace("-", "_").replace(".", "_").split("_")
    return "min" if any(word in LOWER_IS_BETTER for word in words) or words[-1].endswith(("loss", "error")) else "max"


def _direction(metric: str | None, runs: Sequence[RunInfo], asked: str) -> str:
    if asked != "auto" or metric is None:
        return asked if asked != "auto" else "max"
    told = {run.tags.get("losskit.optimized_direction", "auto")[:3] for run in runs if run.tags.get("losskit.optimized_metric") == metric}
    told &= {"min", "max"}
    return told.pop() if len(told) == 1 else better_direction(metric)


def _metrics(runs: Sequence[RunInfo], asked: Sequence[str]) -> list[str]:
    known = sorted({key for run in runs for key in run.metrics})
    for name in asked:
        if name not in known:
            raise UsageError(f"no run has a metric {name!r}{did_you_mean(name, known)} (there is: {', '.join(known) or 'none'})")
    if asked:
        return list(dict.fromkeys(asked))
    optimized = [run.tags["losskit.optimized_metric"] for run in runs if "losskit.optimized_metric" in run.tags]
    main = [m for m in dict.fromkeys(sorted(optimized, key=optimized.count, reverse=True)) if m in known][:1]
    test = [m for m in known if m.startswith("test/")]
    return list(dict.fromkeys(main + test)) or [m for m in known if m.startswith("val/")] or [m for m in known if m.startswith("train/")]


def _value(run: RunInfo, metric: str, best: str | None) -> float | None:
    if best is None or metric not in run.metrics:
        return run.metrics.get(metric)
    values = [p.value for p in run.history(metric) if not math.isnan(p.value)]
    return (min if best == "min" else max)(values) if values else math.nan


def _single(runs: Sequence[RunInfo], metrics: Sequence[str], values: dict[str, dict[str, float | None]]) -> tuple[list[Column], list[dict[str, Any]]]:
    differing = differing_keys(runs)
    trials = any("losskit.trial" in run.tags for run in runs)
    columns = [Column("id", "text"), Column("name", "text"), *([Column("trial", "text")] if trials else []), Column("status", "text")]
    columns += [Column(key, "param") for key in differing]
    columns += [Column(name, "metric") for name in metrics] + [Column("duration", "seconds")]
    rows = [
        {
            "id": run.run_id,
            "name": run.name,
            **({"trial": run.tags.get("losskit.trial")} if trials else {}),
            "status": _status(run),
            **{key: value_of(run, key) for key in differing},
            **values[run.run_id],
            "duration": run.duration,
        }
        for run in runs
    ]
    return columns, rows


def _status(run: RunInfo) -> str:
    """MLflow knows no pruned runs: what the sweep says of a trial is more exact."""
    state = run.tags.get("losskit.trial_state")
    return state if state in ("PRUNED", "FAIL") else run.status


def differing_keys(runs: Sequence[RunInfo]) -> list[str]:
    """Options, then parameters, that are not the same in all of ``runs``; not those that only say where a run is kept."""
    groups = [g for g in OPTION_GROUPS if len({run.option(g) for run in runs}) > 1]
    keys = dict.fromkeys(key for run in runs for key in run.params)
    params = []
    for key in keys:
        if key in HIDDEN_PARAMS or key in OPTION_GROUPS or key.split(".")[0] in HIDDEN_GROUPS or key.endswith("_target_"):
            continue
        if len({run.params.get(key) for run in runs}) > 1:
            params.append(key)
    return groups + params


def _groups(
    runs: Sequence[RunInfo], keys: Sequence[str], metrics: Sequence[str], values: dict[str, dict[str, float | None]]
) -> tuple[list[Column], list[dict[str, Any]]]:
    require_keys(runs, keys, "--group-by")
    members: dict[tuple[str | None, ...], list[RunInfo]] = {}
    for run in runs:
        members.setdefault(tuple(value_of(run, key) for key in keys), []).append(run)
    columns = [Column(key, "param") for key in keys] + [Column("n", "count")]
    columns += [Column(name, "metric") for name in metrics] + [Column("duration", "seconds")]
    rows = []
    for group, of in members.items():
        durations = [run.duration for run in of if run.duration is not None]
        row: dict[str, Any] = {**dict(zip(keys, group, strict=True)), "n": len(of)}
        for name in metrics:
            row[name] = _spread([v for run in of if (v := values[run.run_id][name]) is not None])
        row["duration"] = statistics.fmean(durations) if durations else None
        rows.append(row)
    return columns, rows


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and sample standard deviation (``None`` for a single run)."""
    if not values:
        return None
    finite = all(math.isfinite(v) for v in values)
    std = (statistics.stdev(values) if finite else math.nan) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def _sort_key(value: Any, direction: str) -> tuple[bool, float]:
    """Better first; what is missing or NaN last."""
    number = value["mean"] if isinstance(value, dict) else value
    if number is None or math.isnan(number):
        return True, 0.0
    return False, number if direction == "min" else -number


# -- showing ----------------------------------------------------------------------------------------------------------
def run_compare(
    metrics: Sequence[str] = (),
    *,
    group_by: str | Sequence[str] | None = None,
    filter: str | None = None,
    experiment: str | None = None,
    direction: str = "auto",
    best: bool = False,
    limit: int | None = None,
    json: bool = False,
    csv: bool = False,
    markdown: bool = False,
    uri: str | None = None,
    cwd: Path | None = None,
    sweeps: Sequence[str] = (),
    over: str | Sequence[str] | None = None,
    reference: str | None = None,
    plot: Path | None = None,
) -> None:
    """The command ``losskit compare``: prints the runs.

    Args:
        metrics, group_by, over: names; each may hold several with commas between.
        json, csv, markdown: print that instead of a table.
        plot: draw the groups into this file, and say so on standard error.
        uri: the store; ``None``: what training in ``cwd`` writes to.
        filter, experiment, direction, best, limit, sweeps, reference: see :func:`compare_runs`.

    Raises:
        UsageError: no store, no runs, or an unknown name; two formats at once; a plot without groups, or that cannot be written.
    """
    if json + csv + markdown > 1:
        raise UsageError("choose one of --json, --csv, --markdown")
    if plot is not None and not group_by:
        raise UsageError("--plot draws groups of runs: say what makes a group, for instance --group-by loss")
    comparison = compare_runs(
        Store.open(uri, cwd),
        metrics=_split(metrics),
        group_by=_split([group_by] if isinstance(group_by, str) else group_by or []),
        filter=filter,
        experiment=experiment,
        direction=direction,
        best=best,
        limit=limit,
        sweeps=sweeps,
        over=_split([over] if isinstance(over, str) else over or (["seed"] if plot is not None else [])),
        reference=reference,
    )
    if plot is not None:
        from losskit_cli.group_plot import draw_groups

        draw_groups(comparison, plot)
        sys.stderr.write(f"{plot}\n")
    show = to_json if json else to_csv if csv else to_markdown if markdown else to_table
    sys.stdout.write(show(comparison) if show is not to_table else to_table(comparison, terminal_width()))


def terminal_width() -> int | None:
    """Characters in a line of the terminal; ``None`` in a pipe, where nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def to_json(comparison: Comparison) -> str:
    """One object on one line; a NaN or an infinity is ``null``."""
    kept: dict[str, Any] = {"metric": comparison.metric, "direction": comparison.direction, "notes": comparison.notes, "rows": comparison.rows}
    if comparison.reference is not None:
        kept |= {"reference": comparison.reference.label, "over": comparison.reference.over, "confidence": CONFIDENCE}
    return dumps(json_ready(kept), ensure_ascii=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """All columns in full precision; a group's metric is the columns ``…_mean`` and ``…_std``, with a reference also those of :data:`PARTS`."""
    out = io.StringIO()
    writer = csv_writer(out, lineterminator="\n")
    columns = [c for c in comparison.columns if c.of is None]
    parts = _parts(comparison)
    writer.writerow([n for c in columns for n in ([f"{c.name}_{part}" for part in parts] if c.kind == "metric" and parts else [c.name])])
    for row in comparison.rows:
        cells = [cell for c in columns for cell in ([_part(row.get(c.name), p) for p in parts] if c.kind == "metric" and parts else [row.get(c.name)])]
        writer.writerow(["" if c is None else c for c in cells])
    return out.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """A table for a page. With a reference: the metrics and their comparisons in columns of their own, figures in six digits."""
    headings: list[str] = []
    right: list[bool] = []
    for column in comparison.columns:
        parts = _markdown_parts(comparison, column)
        headings += [f"{_heading(comparison, column)}{part and f' {part}'}" for part in parts]
        right += [column.kind in NUMBERS] * len(parts)
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(" ---: " if flag else " --- " for flag in right) + "|"]
    for row in comparison.rows:
        cells = [cell for column in comparison.columns for cell in _markdown_parts(comparison, column, row).values()]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines + [f"\n{note}" for note in comparison.notes]) + "\n"


def _markdown_parts(comparison: Comparison, column: Column, row: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Heading -> cell of what a column is in Markdown: a column, or, with a reference, several for a metric and its difference."""
    value = row.get(column.of or column.name) if row else None
    if comparison.reference is None or column.kind in ("text", "param", "count", "seconds"):
        return {"": _cell(column, row) if row else ""}

    def part(name: str) -> str:
        found = _part(value, name)
        return "-" if found is None else f"{found:.6g}" if isinstance(found, float) else str(found)

    def interval(prefix: str = "") -> str:
        return "-" if _part(value, f"{prefix}low") is None else f"{part(f'{prefix}low')} to {part(f'{prefix}high')}"

    if column.kind == "metric":
        return {"": part("mean"), "95 %": interval(), "std": part("std")}
    if column.kind == "difference":
        is_reference = value is not None and value["comparison"] is None
        return {"": "reference" if is_reference else part("difference"), "95 %": interval("difference_"), "pairs": part("pairs")}
    return {"": part("p"), "(Holm)": part("p_corrected")} if column.kind == "p" else {"": part("effect")}


def _parts(comparison: Comparison) -> Sequence[str]:
    """What a metric of a group is written out as."""
    if comparison.reference is not None:
        return PARTS
    return ("mean", "std") if _is_grouped(comparison) else ()


def _part(value: Mapping[str, Any] | None, part: str) -> Any:
    if value is None or part in OF_GROUP:
        return value[part] if value else None
    compared = value["comparison"]
    return compared[{"pairs": "n"}.get(part, part.removeprefix("difference_"))] if compared else None


def to_table(comparison: Comparison, width: int | None = None) -> str:
    """A table for people.

    Args:
        width: characters at most: what matters most is shown, what does not fit is named below. ``None``: as wide as it needs to be.
    """
    layout = _Layout(comparison, width)
    lines = layout.lines()
    for note in [*comparison.notes, *layout.left_out()]:
        lines += textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False) if width else [note]
    return "\n".join(line.rstrip() for line in lines) + "\n"


class _Layout:
    """Which columns of a comparison are shown in so many characters, and how."""

    def __init__(self, comparison: Comparison, width: int | None) -> None:
        self.comparison, self.width = comparison, width
        self.names: dict[str, str] = {}
        self.columns = self._chosen()

    def lines(self) -> list[str]:
        """The headings, a rule, the rows."""
        cells = [[self._text(column, row) for row in self.comparison.rows] for column in self.columns]
        headings = [self._heading_lines(column) for column in self.columns]
        height = max(len(lines) for lines in headings)
        headings = [[""] * (height - len(lines)) + lines for lines in headings]
        widths = [max(map(cell_len, [*heading, *values])) for heading, values in zip(headings, cells, strict=True)]
        rows = [*zip(*headings, strict=True), tuple("─" * w for w in widths), *zip(*cells, strict=True)]
        return ["  ".join(self._padded(*entry) for entry in zip(self.columns, row, widths, strict=True)) for row in rows]

    def left_out(self) -> list[str]:
        """What is not shown, for the reader."""
        missing = [c for c in self.comparison.columns if c not in self.columns and c.name not in ("id", "status")]
        telling = self._telling([c for c in self.comparison.columns if c.kind == "param"])
        params = sorted((c for c in telling if c in missing), key=self._rank)
        notes = []
        for what, names in (("also different", [c.name for c in params]), ("no room for", [c.name for c in missing if c.kind != "param"])):
            if names:
                more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
                notes.append(f"{what}: {', '.join(names[:MAX_NAMED])}{more}")
        return [*notes[:-1], f"{notes[-1]} (all of it: {self.comparison.more})"] if notes else []

    # -- choosing ------------------------------------------------------------------------------------------------------
    def _chosen(self) -> list[Column]:
        wanted = self._by_importance()
        if self.width is not None:
            if not self._fits(wanted):
                self.names = _short_names([str(row["name"]) for row in self.comparison.rows if "name" in row])
            shown: list[Column] = []
            for column in wanted:
                if len(shown) < 2 or self._fits([*shown, column]):
                    shown.append(column)
            wanted = shown
        return [c for c in self.comparison.columns if c in wanted]

    def _by_importance(self) -> list[Column]:
        """The columns worth showing, what matters most first."""
        columns = self.comparison.columns
        texts = [c for c in columns if c.kind == "text"]
        metrics = [c for c in columns if c.kind == "metric"]
        keys = [c for c in columns if c.kind == "param"]
        if _is_grouped(self.comparison):
            metric = self.comparison.metric
            compared = [c for c in columns if c.of is not None]
            first = [c for c in metrics if c.name == metric] + [c for c in compared if c.of == metric]
            rest = [c for c in [*metrics, *compared] if c not in first]
            return [*keys, *(c for c in columns if c.kind == "count"), *first, *rest, *(c for c in columns if c.kind == "seconds")]
        rows = self.comparison.rows
        options = sorted((c for c in keys if c.name in OPTION_GROUPS), key=lambda c: TELLING.index(c.name) if c.name in TELLING else len(TELLING))
        params = sorted(self._telling([c for c in keys if c.name not in OPTION_GROUPS]), key=self._rank)[:MAX_PARAM_COLUMNS]
        names = [c for c in texts if c.name == "name"]
        if len({row["name"] for row in rows}) < len(rows):
            names = [c for c in texts if c.name == "id"] + names
        status = [c for c in texts if c.name == "status" and (self.width is None or any(row[c.name] != "FINISHED" for row in rows))]
        first = [c for c in metrics if c.name == self.comparison.metric]
        others = [c for c in metrics if c not in first]
        seconds = [c for c in columns if c.kind == "seconds"]
        names += [c for c in texts if c.name == "trial"]
        if self.comparison.asked:
            return [*names, *first, *others, *status, *options, *params, *seconds]
        others.sort(key=lambda c: sum(row.get(c.name) is None for row in rows))
        return [*names, *first, *status, *others[:1], *options, *params[:2], *others[1:], *seconds, *params[2:]]

    def _telling(self, params: Sequence[Column]) -> list[Column]:
        """Without those that say the same as another of their last name: ``data.seed`` follows ``seed``."""
        seen: set[tuple[Any, ...]] = set()
        kept = []
        for column in params:
            says = (column.name.rpartition(".")[2], *(row.get(column.name) for row in self.comparison.rows))
            if says not in seen:
                kept.append(column)
            seen.add(says)
        return kept

    def _rank(self, column: Column) -> int:
        """Options first; then what was set on its own; then what another option brings along; then what only some runs have."""
        group = column.name.split(".")[0]
        if column.name in OPTION_GROUPS:
            return 0
        if group in ("metrics", "callbacks"):
            return 4
        if any(row.get(column.name) is None for row in self.comparison.rows):
            return 3
        return 2 if any(c.name == group for c in self.comparison.columns) else 1

    def _fits(self, columns: Sequence[Column]) -> bool:
        return self.width is None or sum(self._width(c) for c in columns) + 2 * (len(columns) - 1) <= self.width

    def _width(self, column: Column) -> int:
        return max(map(cell_len, [*self._heading_lines(column), *(self._text(column, row) for row in self.comparison.rows)]))

    # -- texts ---------------------------------------------------------------------------------------------------------
    def _heading_lines(self, column: Column) -> list[str]:
        """``optimizer.lr`` in two lines: values are short, names of parameters are not."""
        heading = _heading(self.comparison, column)
        return [part for part in re.split(r"(?<=\.)", heading) if part] if column.kind == "param" and self.width is not None else [heading]

    def _text(self, column: Column, row: Mapping[str, Any]) -> str:
        text = _cell(column, row)
        if column.name == "name":
            return self.names.get(text, text)
        return text if self.width is None or len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"

    def _padded(self, column: Column, text: str, width: int) -> str:
        gap = " " * (width - cell_len(text))
        return gap + text if column.kind in NUMBERS else text + gap


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of names that tell them apart, of two words or more: ``focal-digits-s3-brave-owl`` -> ``…brave-owl``. Commands take them."""
    short = {}
    for name in names:
        words = name.split("-")
        ends = ("-".join(words[-n:]) for n in range(2, len(words)))
        end = next((end for end in ends if not any(other != name and f"-{other}".endswith(f"-{end}") for other in names)), name)
        short[name] = f"…{end}" if len(end) + 1 < len(name) else name
    return short


def _heading(comparison: Comparison, column: Column) -> str:
    arrow = {"min": " ↓", "max": " ↑"}[comparison.direction] if column.name == comparison.metric else ""
    return column.name + arrow


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.of or column.name)
    if value is None:
        return "-"
    if column.of is not None:
        return _compared_cell(column.kind, value["comparison"])
    if isinstance(value, dict):
        if "low" in value:
            return _mean_cell(value)
        mean = _figure(value["mean"])
        return mean if value["std"] is None else f"{mean} ± {_figure(value['std'], 2)}"
    if column.kind == "metric":
        return _figure(value)
    if column.kind == "seconds":
        return show_seconds(value)
    if column.name == "id":
        return str(value)[:8]
    return str(value)


def _mean_cell(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "not finite"
    return _figure(value["mean"]) if value["low"] is None else plus_minus(value["mean"], value["high"] - value["mean"])


def _compared_cell(kind: str, compared: Mapping[str, Any] | None) -> str:
    """A difference, p or effect; the reference group has none."""
    if compared is None:
        return "reference" if kind == "difference" else "-"
    if kind == "p":
        return "-" if compared["p_corrected"] is None else "<0.001" if compared["p_corrected"] < 0.001 else f"{compared['p_corrected']:.3f}"
    if kind == "effect":
        return "-" if compared["effect"] is None else f"{compared['effect']:+.2f}"
    if compared["difference"] is None:
        return "-"
    if compared["low"] is None:
        return f"{compared['difference']:+.4g}"
    return plus_minus(compared["difference"], compared["high"] - compared["difference"], sign="+")


def plus_minus(value: float, half: float, sign: str = "") -> str:
    """``0.9134 ± 0.0025``: as many decimals as half the interval's width deserves, which is told in two digits. ``sign="+"`` shows a plus."""
    if not 1e-7 < half < 1e7:
        return f"{value:{sign}.4g} ± {_figure(half, 2)}"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:{sign}.{decimals}f} ± {half:.{decimals}f}"


def _figure(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}"


def show_seconds(value: float) -> str:
    """``75.2`` -> ``1m15s``."""
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def json_ready(value: Any) -> Any:
    """``value`` with what JSON has no number for as ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return value


def _is_grouped(comparison: Comparison) -> bool:
    return any(c.kind == "count" for c in comparison.columns)


def _split(names: Sequence[str]) -> list[str]:
    return [part.strip() for name in names for part in name.split(",") if part.strip()]


__all__ = ["Column", "Comparison", "Reference", "better_direction", "compare_runs", "differing_keys", "run_compare", "run_ui"]

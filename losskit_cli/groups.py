"""Groups of runs, each with its statistics over seeds and its difference to a reference group, and what a reader must know about them in words."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.validation import did_you_mean
from losskit_cli.errors import UsageError
from losskit_cli.statistics import PAIRED, WELCH, Difference, compare_groups, summarise
from losskit_cli.tracking.contents import OPTION_GROUPS
from losskit_cli.tracking.store import RunInfo

Values = Mapping[str, Mapping[str, float | None]]
MAX_NAMED = 5


@dataclass(frozen=True)
class Group:
    """Runs that agree on the keys that they are grouped by.

    Attributes:
        key: key -> value.
        units: what a value is taken of (the runs of one seed) -> its runs.
    """

    key: dict[str, str | None]
    units: dict[Hashable, list[RunInfo]]

    @property
    def label(self) -> str:
        """``loss=focal, schedule=wsd``."""
        return ", ".join(f"{key}={'-' if value is None else value}" for key, value in self.key.items())

    @property
    def runs(self) -> list[RunInfo]:
        return [run for of in self.units.values() for run in of]


@dataclass(frozen=True)
class GroupTable:
    """Rows of groups.

    Attributes:
        rows: each with the keys, ``n``, ``duration`` (mean, seconds) and, for each metric, a mapping: ``mean std n low high nonfinite`` of
            :class:`losskit_cli.statistics.Summary`, ``values`` (seed -> value) and ``comparison``: :class:`losskit_cli.statistics.Difference` as a mapping,
            ``None`` for the reference group itself.
        reference: the label of the reference group.
        notes: what was computed, and what was left out of it.
    """

    rows: list[dict[str, Any]]
    reference: str
    notes: list[str]


def value_of(run: RunInfo, key: str) -> str | None:
    """A chosen option, or a parameter. A group of which nothing was chosen has an empty mapping as its parameter: that is no value."""
    return run.option(key) if key in OPTION_GROUPS else run.value(key)


def require_keys(runs: Sequence[RunInfo], keys: Sequence[str], option: str) -> None:
    """Raise a ``UsageError`` for a key that no run has, with the nearest one."""
    known = sorted({key for run in runs for key in run.params} | {g for g in OPTION_GROUPS if any(run.option(g) for run in runs)})
    for key in keys:
        if key not in OPTION_GROUPS and all(run.value(key) is None for run in runs):
            raise UsageError(f"{option}: no run has {key!r}{did_you_mean(key, known)}")


def complete_runs(runs: Sequence[RunInfo]) -> tuple[list[RunInfo], list[str]]:
    """The runs that can be averaged, and what was left out: runs that have not finished, trials that were pruned or failed.

    Raises:
        UsageError: nothing is left.
    """
    lost: dict[str, set[tuple[str, str]]] = {"PRUNED": set(), "FAIL": set()}
    kept, unfinished = [], 0
    for run in runs:
        state = run.tags.get("losskit.trial_state")
        if state in lost:
            lost[state].add((run.tags.get("losskit.sweep", ""), run.tags.get("losskit.trial", run.run_id)))
        elif run.status != "FINISHED":
            unfinished += 1
        else:
            kept.append(run)
    notes = []
    if unfinished:
        notes.append(f"{unfinished} of {len(runs)} runs have not finished and are left out")
    if any(lost.values()):
        parts = [counted(len(trials), f"{word} trial") for word, trials in (("pruned", lost["PRUNED"]), ("failed", lost["FAIL"])) if trials]
        notes.append(f"{' and '.join(parts)} left out, which flatters the groups that they were in")
    if not kept:
        why = f" ({'; '.join(notes)})" if any(lost.values()) else ""
        raise UsageError(f"none of the {len(runs)} runs has finished, so there is nothing to average{why}")
    return kept, notes


def group_statistics(
    runs: Sequence[RunInfo],
    keys: Sequence[str],
    metrics: Sequence[str],
    values: Values,
    *,
    over: Sequence[str] = ("seed",),
    reference: str | None = None,
    explained: Sequence[str] = (),
) -> GroupTable:
    """Mean, interval and difference to a reference for each group of ``runs``.

    Several runs of one group with the same ``over`` (the same seed with several learning rates, a run that was repeated) are no independent evidence about
    it: they are averaged first, so that n counts seeds. A run without a value of ``over`` stands for itself and pairs with none.

    Args:
        runs: finished ones.
        keys: runs that agree on these are a group.
        metrics: what to compute it of.
        values: run id -> metric -> value.
        over: what tells a group's values apart and pairs them with those of other groups. Default: the seed.
        reference: ``loss=cross_entropy,schedule=wsd``; default: the group that was started first.
        explained: the metrics whose peculiarities the notes tell.

    Raises:
        UsageError: a key that no run has, or that is in both ``keys`` and ``over``; a reference that is no group or several.
    """
    require_keys(runs, keys, "--group-by")
    require_keys(runs, over, "--over")
    if both := [key for key in over if key in keys]:
        raise UsageError(f"--over {both[0]}: the runs are grouped by it, so no group has two of them")
    groups = _gather(runs, keys, over)
    at = 0 if reference is None else _find(groups, keys, reference)
    rows = [_plain_row(group) for group in groups]
    notes = []
    for metric in metrics:
        found = [_unit_values(group, metric, values) for group in groups]
        differences = compare_groups(found, at)
        for row, of, difference in zip(rows, found, differences, strict=True):
            row[metric] = _cell(of, difference) if of else None
        if metric in explained:
            prefix = f"{metric}: " if len(explained) > 1 else ""
            notes += [prefix + note for note in _peculiarities(groups, [row[metric] for row in rows], at, over)]
    comparisons = {m: [d for row in rows if row[m] and (d := row[m]["comparison"])] for m in explained}
    return GroupTable(rows, groups[at].label, [*_repeated(groups, over), *notes, _explanation(comparisons, groups, at, over)])


def counted(number: int, what: str) -> str:
    """``2 seeds``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


# -- gathering ------------------------------------------------------------------------------------------------------------------
def _gather(runs: Sequence[RunInfo], keys: Sequence[str], over: Sequence[str]) -> list[Group]:
    """The groups, that which was started first first."""
    groups: dict[tuple[str | None, ...], Group] = {}
    oldest_first = list(reversed(runs))  # a store has the newest first
    for run in sorted(oldest_first, key=lambda run: math.inf if run.start is None else run.start):
        key = tuple(value_of(run, k) for k in keys)
        unit = tuple(_unit_key(run, k) for k in over)
        group = groups.setdefault(key, Group(dict(zip(keys, key, strict=True)), {}))
        group.units.setdefault(run.run_id if None in unit else unit, []).append(run)
    return [*groups.values()]


def _unit_key(run: RunInfo, key: str) -> str | None:
    """What ``key`` of ``--over`` is in a run. The third trials of two sweeps have nothing in common, so a trial is told with its sweep."""
    value = value_of(run, key)
    return f"{run.option('sweep')}/{value}" if key == "trial" and value is not None else value


def _find(groups: Sequence[Group], keys: Sequence[str], reference: str) -> int:
    """The number of the group that ``loss=cross_entropy`` describes. A value may have commas in it (``regularizer=l1,l2``): it ends where a key begins."""
    wanted: dict[str, str] = {}
    for part in re.split(rf",\s*(?=(?:{'|'.join(map(re.escape, keys))})=)", reference):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in keys:
            raise UsageError(f"--reference {reference!r}: write {','.join(f'{key}=…' for key in keys)}{did_you_mean(key.strip(), keys)}")
        wanted[key.strip()] = value.strip()
    matches = [i for i, group in enumerate(groups) if all((group.key[key] or "-") == value for key, value in wanted.items())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"--reference {reference!r} is {len(matches)} groups: {_some([groups[i].label for i in matches], '; ')}. Say which")
    labels = [group.label for group in groups]
    raise UsageError(f"--reference: there is no group {reference!r}{did_you_mean(reference, labels)} (there is: {_some(labels, '; ')})")


def _unit_values(group: Group, metric: str, values: Values) -> dict[Hashable, float]:
    """Seed -> value; the mean where several runs have that seed."""
    found = {unit: [v for run in of if (v := values[run.run_id][metric]) is not None] for unit, of in group.units.items()}
    return {unit: statistics.fmean(of) for unit, of in found.items() if of}


def _plain_row(group: Group) -> dict[str, Any]:
    durations = [run.duration for run in group.runs if run.duration is not None]
    return {**group.key, "n": len(group.units), "duration": statistics.fmean(durations) if durations else None}


def _cell(values: Mapping[Hashable, float], difference: Difference | None) -> dict[str, Any]:
    named = {", ".join(unit) if isinstance(unit, tuple) else str(unit): value for unit, value in values.items()}
    return {**asdict(summarise([*values.values()])), "values": named, "comparison": asdict(difference) if difference else None}


# -- words -----------------------------------------------------------------------------------------------------------------------
def _repeated(groups: Sequence[Group], over: Sequence[str]) -> list[str]:
    runs, units = sum(len(group.runs) for group in groups), sum(len(group.units) for group in groups)
    if runs == units:
        return []
    one, many = _unit(over)
    trials = "trial" not in over and all(run.option("trial") is not None for group in groups for run in group.runs)
    otherwise = "--over trial takes every trial for itself" if trials else "--over takes several keys"
    return [f"{runs} runs have {units} {many} of their groups: averaged per {one} first, so n counts {many} ({otherwise})"]


def _peculiarities(groups: Sequence[Group], cells: Sequence[Mapping[str, Any] | None], at: int, over: Sequence[str]) -> list[str]:
    """What one metric's figures do not show by themselves."""
    many = _unit(over)[1]
    notes = []
    pairs = list(zip(groups, cells, strict=True))
    if infinite := [(group, cell["nonfinite"]) for group, cell in pairs if cell and cell["nonfinite"]]:
        told = _some([f"{group.label} ({number})" for group, number in infinite])
        notes.append(f"{counted(sum(number for _, number in infinite), 'value')} not finite and left out of means and tests: {told}")
    if single := [group.label for group, cell in pairs if cell and cell["n"] < 2]:
        notes.append(f"no interval for {_some(single)}: it takes two {many} or more")
    reasons: dict[str, list[str]] = {}
    for number, (group, cell) in enumerate(pairs):
        difference = cell["comparison"] if cell and number != at else None
        if difference and difference["why_not"]:
            reasons.setdefault(f"no test for {{}}: {difference['why_not']}", []).append(group.label)
        elif difference and difference["test"] == PAIRED and cell and difference["n"] < cell["n"]:
            reasons.setdefault(f"{{}}: compared over {difference['n']} of {cell['n']} {many}, which the reference has too", []).append(group.label)
        elif difference and difference["test"] == WELCH:
            reasons.setdefault(f"{{}}: its {many} do not pair with the reference's, so {WELCH}", []).append(group.label)
    return notes + [reason.replace("{}", _some(labels)) for reason, labels in reasons.items()]


def _explanation(comparisons: Mapping[str, Sequence[Mapping[str, Any]]], groups: Sequence[Group], at: int, over: Sequence[str]) -> str:
    """What the columns mean, in one line. ``comparisons``: metric -> its differences."""
    many = _unit(over)[1]
    mean = f"mean over {many} ± 95 % t-interval"
    if len(groups) < 2:
        return f"{mean}; one group only: nothing to compare it with"
    difference = f"{mean}; difference: to {groups[at].label}"
    made = {metric: sum(d["p"] is not None for d in found) for metric, found in comparisons.items()}
    if not any(made.values()):
        return difference
    tests = {d["test"] for found in comparisons.values() for d in found if d["p"] is not None}
    test = f"{PAIRED} ({WELCH} where {many} do not pair)" if len(tests) > 1 else tests.pop()
    most = max(made.values())
    corrected = f"Holm-corrected over {counted(most, 'comparison')}" if most > 1 else "a single comparison"
    each = " for each metric" if len(comparisons) > 1 else ""
    effect = f"effect: Hedges' g of the {'paired ' if test.startswith(PAIRED) else ''}difference"
    return f"{difference}, ± 95 %; p: {test}, {corrected}{each}; {effect}"


def _unit(over: Sequence[str]) -> tuple[str, str]:
    """What a value is of, one and many: ``seed``, ``seeds``."""
    if len(over) == 1:
        return over[0], f"{over[0]}s"
    keys = f"{', '.join(over[:-1])} and {over[-1]}"
    return f"combination of {keys}", f"combinations of {keys}"


def _some(labels: Sequence[str], joint: str = ", ") -> str:
    more = f" and {len(labels) - MAX_NAMED} more" if len(labels) > MAX_NAMED else ""
    return joint.join(labels[:MAX_NAMED]) + more


__all__ = ["Group", "GroupTable", "complete_runs", "counted", "group_statistics", "require_keys", "value_of"]

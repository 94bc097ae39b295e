"""``losskit diff``: what differs between two runs: config, code, packages, data, metrics."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from json import dumps, loads
from pathlib import Path
from typing import Any

from losskit_cli.compare import HIDDEN_GROUPS, HIDDEN_PARAMS, better_direction, json_ready
from losskit_cli.tracking.contents import OPTION_GROUPS
from losskit_cli.tracking.store import RunInfo, Store

PATCH = "code/diff.patch"
ENVIRONMENT = "environment/environment.json"


def diff_runs(first: RunInfo, second: RunInfo) -> dict[str, Any]:
    """What differs between two runs.

    Returns:
        ``runs`` (id, name and status of both), ``config`` (key -> [first, second], ``None`` where a run has no such key),
        ``code`` (``commit`` of both, ``same``, ``patch``: a unified diff between their uncommitted changes), ``environment``
        (Python and platform), ``packages`` (name -> both versions), ``data`` (both fingerprints), ``metrics``
        (key -> ``first second difference better``, all of them).
    """
    environments = [_environment(run) for run in (first, second)]
    metrics = {key: _metric(key, first.metrics.get(key), second.metrics.get(key)) for key in sorted({*first.metrics, *second.metrics})}
    return {
        "runs": [{"id": run.run_id, "name": run.name, "status": run.status} for run in (first, second)],
        "config": _config(first, second),
        "code": _code(first, second),
        "environment": _differences(*[_platform(e) for e in environments]),
        "packages": _differences(*[e.get("packages") or {} for e in environments]),
        "data": _differences(*[_tagged(run, "data_fingerprint") for run in (first, second)]),
        "metrics": metrics,
    }


def run_diff(first: str, second: str, *, json: bool = False, uri: str | None = None, cwd: Path | None = None) -> None:
    """The command ``losskit diff RUN RUN [--json]``: prints what differs.

    Args:
        first, second: ids, beginnings of ids, or names.
        uri: the store; ``None``: what training in ``cwd`` writes to.

    Raises:
        UsageError: no store, or no such run.
    """
    store = Store.open(uri, cwd)
    found = diff_runs(store.find(first), store.find(second))
    sys.stdout.write(dumps(json_ready(found), ensure_ascii=False) + "\n" if json else to_text(found))


def to_text(found: Mapping[str, Any]) -> str:
    """For the terminal: one block a subject, and one line for what is the same."""
    one, two = found["runs"]
    lines = [f"a: {one['name']}  {one['id'][:8]}  {one['status']}", f"b: {two['name']}  {two['id'][:8]}  {two['status']}"]
    same = []
    for subject in ("config", "data", "environment", "packages"):
        if found[subject]:
            lines += ["", subject, *_arrows(found[subject])]
        else:
            same.append(subject)
    code = found["code"]
    if code["same"]:
        same.append("code" if code["commit"][0] else "code (not in git)")
    else:
        lines += ["", "code"]
        if code["commit"][0] != code["commit"][1]:
            lines += _arrows({"commit": [c and c[:12] for c in code["commit"]]})
        if code["patch"]:
            changed = sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in code["patch"].splitlines())
            lines += [f"  the uncommitted changes differ in {changed} lines:", *(f"  {line}" for line in code["patch"].splitlines()[:60])]
            if code["patch"].count("\n") > 60:
                lines.append("  … (all of it: --json)")
    if found["metrics"]:
        lines += ["", "metrics", *_metric_lines(found["metrics"])]
    if same:
        lines += ["", f"the same: {', '.join(same)}"]
    return "\n".join(lines) + "\n"


def _config(first: RunInfo, second: RunInfo) -> dict[str, list[str | None]]:
    kept = []
    for run in (first, second):
        options = {group: option for group in OPTION_GROUPS if (option := run.option(group)) is not None}
        kept.append(options | {k: v for k, v in run.params.items() if k not in options and k not in HIDDEN_PARAMS and k.split(".")[0] not in HIDDEN_GROUPS})
    found = _differences(*kept)
    # options first; a class is not told where the option that brings it is, nor an empty group where the other run chose something
    chosen = {key: found[key] for key in OPTION_GROUPS if key in found}
    chosen = {key: [None if value == "{}" else value for value in values] for key, values in chosen.items()}
    return chosen | {k: v for k, v in found.items() if k not in chosen and not (k.endswith("._target_") and k.split(".")[0] in chosen)}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = [*first, *(k for k in second if k not in first)]
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def _code(first: RunInfo, second: RunInfo) -> dict[str, Any]:
    commits = [run.tags.get("mlflow.source.git.commit") for run in (first, second)]
    patches = [(run.artifact(PATCH) or b"").decode("utf-8", "replace") for run in (first, second)]
    between = difflib.unified_diff(patches[0].splitlines(), patches[1].splitlines(), "a/uncommitted", "b/uncommitted", lineterm="", n=2)
    patch = "\n".join(between) if patches[0] != patches[1] else ""
    return {"commit": commits, "same": commits[0] == commits[1] and not patch, "patch": patch}


def _platform(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: environment[key] for key in ("python", "platform") if key in environment}


def _tagged(run: RunInfo, name: str) -> dict[str, Any]:
    return {name: run.tags[f"losskit.{name}"]} if f"losskit.{name}" in run.tags else {}


def _environment(run: RunInfo) -> dict[str, Any]:
    content = run.artifact(ENVIRONMENT)
    try:
        found = loads(content) if content else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _metric(key: str, first: float | None, second: float | None) -> dict[str, Any]:
    if first is None or second is None or not (math.isfinite(first) and math.isfinite(second)):
        return {"first": first, "second": second, "difference": None, "better": None}
    better = None
    if first != second and "/" in key:
        better = "first" if (first < second) == (better_direction(key) == "min") else "second"
    return {"first": first, "second": second, "difference": second - first, "better": better}


def _metric_lines(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for key, m in metrics.items():
        cells = ["-" if m[side] is None else f"{m[side]:.6g}" for side in ("first", "second")]
        change = "" if m["difference"] is None else "=" if m["difference"] == 0 else f"{m['difference']:+.4g}"
        rows.append([key, *cells, change, {"first": "a is better", "second": "b is better", None: ""}[m["better"]]])
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [f"  {r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]:>{widths[3]}}  {r[4]}".rstrip() for r in rows]


def _arrows(differences: Mapping[str, list[Any]]) -> list[str]:
    width = max(len(key) for key in differences)
    return [f"  {key:<{width}}  {_shown(a)} → {_shown(b)}" for key, (a, b) in differences.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"


__all__ = ["diff_runs", "run_diff"]

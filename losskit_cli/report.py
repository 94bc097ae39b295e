"""``losskit report``: a sweep on one page that can be mailed, archived and printed: nothing in it is fetched from anywhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losskit_cli.compare import show_seconds
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.groups import counted
from losskit_cli.studies import existing_storage, existing_study, train_command
from losskit_cli.tracking.contents import flatten
from losskit_cli.tracking.store import RunInfo, Store

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from losskit_cli.report_figures import Drawing

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
MAX_ROWS = 1000
MAX_COMMANDS = 10
MAX_ERROR = 2000
# nothing is fetched and nothing sent, whatever a parameter's value or an error's text may hold; plotly compiles some of its drawing code, hence eval
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"


@dataclass(frozen=True)
class SweepView:
    """A sweep as it was at one moment.

    Attributes:
        study: a copy in memory.
        plan: what it was started with; empty for a study that losskit did not start.
        objectives: metric names.
        best: the best trial; with several objectives, those of the Pareto front; none before one is complete and keeps to the constraints.
        params: all parameters, the most important first where that is known.
        runs: trial number -> its runs in the tracking store, one for each seed.
    """

    study: optuna.Study
    plan: dict[str, Any]
    objectives: list[str]
    trials: list[FrozenTrial]
    best: list[FrozenTrial]
    params: list[str]
    runs: dict[int, list[RunInfo]]

    @property
    def name(self) -> str:
        return self.study.study_name

    @property
    def several(self) -> bool:
        return len(self.objectives) > 1

    @property
    def complete(self) -> list[FrozenTrial]:
        return [t for t in self.trials if t.state.name == "COMPLETE"]


def run_report(name: str, *, storage: str | None = None, output: Path | None = None, uri: str | None = None, cwd: Path | None = None) -> None:
    """The command ``losskit report NAME``: writes the page and prints where it is.

    Args:
        name: of the sweep.
        storage: where its study is; ``None``: ``sweeps.db`` in the working directory.
        output: the file; ``None``: ``NAME.html`` in the working directory.
        uri: the tracking store; ``None``: what training in ``cwd`` writes to. Without one the page has what the study knows.

    Raises:
        UsageError: no such storage or sweep, or the file cannot be written.
    """
    _, opened = existing_storage(storage)
    study = existing_study(name, opened)
    try:
        store: Store | None = Store.open(uri, cwd)
    except LosskitError as error:
        sys.stderr.write(f"without the tracking store: {error}\n")
        store = None
    file = output or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'sweep'}.html")
    page = report_html(study, store)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    sys.stdout.write(f"{file}\n")


def report_html(study: optuna.Study, store: Store | None = None) -> str:
    """The page of a sweep, complete in itself (about 5 MB, nearly all of it plotly.js); the same for the same study and store.

    Args:
        study: of any state: empty, running, finished, with one objective or several.
        store: where the trials' runs are, for their names and learning curves; ``None``: curves are what trials reported to the study.
    """
    view = view_of(study, store)
    drawings = _Drawings()
    sections = [
        _reproduction(view),
        _pictures(view, drawings),
        _trial_table(view),
        _failures(view),
        _set_up(view),
    ]
    body = "\n".join([_headline(view), *(section for section in sections if section), _footer(view)])
    library = _library() if drawings.kept else ""
    return _page(f"{view.name}: report of a sweep", body, drawings.scripts(), library)


def view_of(study: optuna.Study, store: Store | None = None) -> SweepView:
    """What the report is made of, read once."""
    from losskit_cli.report_figures import importances, snapshot

    plan = _plan(study.user_attrs.get("losskit:plan"))
    objectives = study.metric_names or plan.get("objectives") or []
    if len(objectives) != len(study.directions):
        objectives = ["value"] if len(study.directions) == 1 else [f"objective {i}" for i in range(len(study.directions))]
    copied = snapshot(study, objectives)
    trials = copied.get_trials(deepcopy=False)
    try:
        best = sorted(copied.best_trials, key=lambda t: t.values) if len(objectives) > 1 else [copied.best_trial]
    except ValueError:  # none is complete, or none keeps to the constraints
        best = []
    known = dict.fromkeys(key for t in trials for key in t.params)
    important = importances(copied, objectives[0])[1] if len(objectives) == 1 else []
    params = [*(p for p in important if p in known), *(p for p in known if p not in important)]
    return SweepView(copied, plan, [*objectives], trials, best, params, _runs(copied.study_name, trials, store))


# -- what is known ---------------------------------------------------------------------------------------------------------------
def _plan(kept: Any) -> dict[str, Any]:
    try:
        plan = json.loads(kept) if isinstance(kept, str) else kept
    except ValueError:
        return {}
    return dict(plan) if isinstance(plan, Mapping) else {}


def _runs(name: str, trials: Sequence[FrozenTrial], store: Store | None) -> dict[int, list[RunInfo]]:
    """Trial number -> its runs: those tagged with it, and what the trial itself says its run is."""
    if store is None:
        return {}
    by_id = {run.run_id: run for run in store.runs() if run.tags.get("losskit.kind") != "sweep"}
    found: dict[int, list[RunInfo]] = {}
    for run in by_id.values():
        if run.tags.get("losskit.sweep") == name and run.tags.get("losskit.trial", "").isdigit():
            found.setdefault(int(run.tags["losskit.trial"]), []).append(run)
    for trial in trials:
        own = by_id.get(str(trial.user_attrs.get("losskit:run_id")))
        if own is not None and trial.number not in found:
            found[trial.number] = [own]
    return {number: sorted(runs, key=lambda r: (r.tags.get("losskit.seed", "").zfill(12), r.run_id)) for number, runs in found.items()}


def _counts(view: SweepView) -> dict[str, int]:
    """State in words -> how many trials; waiting ones by the plan, as tickets are made only a few ahead."""
    counts = dict.fromkeys(STATES.values(), 0)
    for trial in view.trials:
        counts[STATES[trial.state.name]] += 1
    if isinstance(total := view.plan.get("total"), int):
        counts["waiting"] = max(total - sum(n for state, n in counts.items() if state != "waiting"), 0)
    return {state: number for state, number in counts.items() if number or state == "complete"}


def _took(view: SweepView) -> tuple[float, float] | None:
    """Seconds from the first trial's start to the last one's end, and of all trials together."""
    begun = [t.datetime_start for t in view.trials if t.datetime_start]
    ended = [t.datetime_complete for t in view.trials if t.datetime_complete]
    if not begun or not ended:
        return None
    return max((max(ended) - min(begun)).total_seconds(), 0.0), sum(t.duration.total_seconds() for t in view.trials if t.duration is not None)


# -- the page's parts ------------------------------------------------------------------------------------------------------------
def _headline(view: SweepView) -> str:
    counts = _counts(view)
    facts = [*_best_facts(view), ("Trials", str(sum(counts.values())), ", ".join(f"{n} {state}" for state, n in counts.items()))]
    if took := _took(view):
        wall, work = took
        beside = f", {work / wall:.1f} at a time" if wall > 0 and work > 1.05 * wall else ""
        facts.append(("Took", show_seconds(wall), f"{show_seconds(work)} of trials{beside}"))
    cards = "".join(
        f'<div{" class=first" if number == 0 else ""}><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>'
        for number, (name, value, more) in enumerate(facts)
    )
    directions = [f"{name} ({'higher' if d.name == 'MAXIMIZE' else 'lower'} is better)" for name, d in zip(view.objectives, view.study.directions, strict=True)]
    searched = f"{counted(len(view.params), 'parameter')} searched for the best " if view.params else "Searched for the best "
    links = [("command", "Reproduce"), ("pictures", "Pictures"), ("trials", "Trials"), ("failures", "What failed"), ("setup", "Set-up")]
    shown = [(i, t) for i, t in links if not (i == "failures" and not counts.get("failed")) and not (i == "command" and not view.best)]
    return f"""<header>
<h1>{escape(view.name)}</h1>
<p class="soft">{escape(searched + ' and '.join(directions))}{escape(_period(view))}</p>
<dl class="facts">{cards}</dl>
{''.join(f'<p>{escape(note)}</p>' for note in _remarks(view, counts))}
<nav aria-label="On this page">{''.join(f'<a href="#{i}">{t}</a>' for i, t in shown)}</nav>
</header>"""


def _best_facts(view: SweepView) -> list[tuple[str, str, str]]:
    if not view.best:
        return [(f"Best {view.objectives[0]}" if not view.several else "Pareto front", "none yet", "")]
    if view.several:
        values = zip(*(t.values for t in view.best), strict=True)
        ranges = [f"{name} {_figure(min(of))} to {_figure(max(of))}" for name, of in zip(view.objectives, values, strict=True)]
        return [("Pareto front", counted(len(view.best), "trial"), "; ".join(ranges))]
    trial = view.best[0]
    runs = view.runs.get(trial.number, [])
    seeds = f", mean over {len(runs)} seeds" if len(view.plan.get("seeds") or []) > 1 and len(runs) > 1 else ""
    run = f"run {runs[0].name or runs[0].run_id[:12]}" if len(runs) == 1 else f"{len(runs)} runs" if runs else _own_run(trial)
    duration = f", {show_seconds(trial.duration.total_seconds())}" if trial.duration else ""
    return [(f"Best {view.objectives[0]}", _figure(trial.values[0], 6), f"trial {trial.number}{seeds}"), ("Best trial", str(trial.number), f"{run}{duration}")]


def _own_run(trial: FrozenTrial) -> str:
    run_id = trial.user_attrs.get("losskit:run_id")
    return f"run {str(run_id)[:12]}" if run_id else "its run is not in the tracking store"


def _remarks(view: SweepView, counts: Mapping[str, int]) -> list[str]:
    """In words, what an unusual sweep lacks."""
    remarks = []
    if not view.trials:
        remarks.append("No trial has begun.")
    elif not view.complete:
        remarks.append("No trial has finished yet, so there is nothing to compare.")
    elif not view.best:
        remarks.append("No finished trial keeps to the constraints, so there is no best one.")
    elif len(view.complete) == 1:
        remarks.append("One trial has finished: there is nothing to compare it with yet.")
    if counts.get("running") or counts.get("waiting"):
        remarks.append("The sweep has not ended: this page shows how far it is.")
    return remarks


def _period(view: SweepView) -> str:
    moments = [m for t in view.trials for m in (t.datetime_start, t.datetime_complete) if m]
    if not moments:
        return ""
    first, last = min(moments), max(moments)
    end = last.strftime("%H:%M") if last.date() == first.date() else _moment(last)
    return f". {_moment(first)} to {end}." if end != first.strftime("%H:%M") else f". {_moment(first)}."


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _reproduction(view: SweepView) -> str:
    if not view.best:
        return ""
    parts = []
    for trial in view.best[:MAX_COMMANDS]:
        if view.several:
            values = ", ".join(f"{name} {_figure(v)}" for name, v in zip(view.objectives, trial.values, strict=True))
            parts.append(f"<h3>Trial {trial.number}: {escape(values)}</h3>")
        parts.append(f"<pre>{escape(train_command(view.plan, trial))}</pre>")
    if len(view.best) > MAX_COMMANDS:
        parts.append(f"<p class=soft>{MAX_COMMANDS} of the {len(view.best)} trials of the Pareto front.</p>")
    what = "trials of the Pareto front" if view.several else "best trial"
    hint = "" if view.plan else " The study was not started by losskit: these are its parameters alone."
    return _section("command", "Reproduce", f"<p class=soft>Trains the {what} again.{escape(hint)}</p>{''.join(parts)}")


def _pictures(view: SweepView, drawings: _Drawings) -> str:
    from losskit_cli import report_figures as figures

    if not view.trials:
        return ""
    parts = []
    if view.complete and view.several:
        parts.append(("Pareto front", drawings.figure(figures.pareto_front(view.study, view.objectives))))
    elif view.complete:
        parts.append(("Optimisation history", drawings.figure(figures.history(view.study, view.objectives[0]))))
        parts.append(("Parameter importances", drawings.figure(figures.importances(view.study, view.objectives[0])[0])))
    tried = [p for p in view.params if any(p in t.params for t in view.complete)]
    if tried:
        for number, objective in enumerate(view.objectives[:3]):
            target = (lambda t, i=number: t.values[i]) if view.several else None
            inner = "".join(map(drawings.figure, figures.slices(view.study, tried, objective, target)))
            parts.append((f"Slices of {objective}" if view.several else "Slices", f'<div class="slices">{inner}</div>{_slice_caption(view, tried)}'))
    if tried and len(view.complete) > 1:
        parts.append(("Parallel coordinates", drawings.figure(figures.parallel_coordinates(view.study, tried, view.objectives[0]))))
    curves = figures.learning_curves(view.study, view.trials, view.best, view.runs, view.objectives)
    parts.append(("Learning curves", drawings.figure(curves)))
    inner = "".join(f"<h3>{escape(title)}</h3>{content}" for title, content in parts)
    return _section("pictures", "Pictures", inner)


def _slice_caption(view: SweepView, params: Sequence[str]) -> str:
    from losskit_cli.report_figures import MAX_DOTS, MAX_SLICES

    words = "Each point is a finished trial; the later it was, the bluer."
    if len(params) > MAX_SLICES:
        words += f" {MAX_SLICES} of {len(params)} parameters are drawn{', the most important ones' if not view.several else ''}."
    if len(view.complete) > MAX_DOTS:
        words += f" {MAX_DOTS:,} of {len(view.complete):,} finished trials are drawn: half of these are the best ones, the others lie evenly over the sweep."
    return f"<figcaption>{escape(words)}</figcaption>"


def _trial_table(view: SweepView) -> str:
    if not view.trials:
        return ""
    best = {t.number for t in view.best}
    ordered = _in_order(view)
    with_error = any(t.user_attrs.get("losskit:error") for t in view.trials)
    headings = ["trial", "state", *view.objectives, *view.params, "duration", "run", *(["error"] if with_error else [])]
    numeric = {"trial", "duration", *view.objectives} | {p for p in view.params if all(_is_number(t.params[p]) for t in view.trials if p in t.params)}
    head = "".join(f'<th scope="col"{_class("num" if h in numeric else "")}><button type="button">{escape(h)}</button></th>' for h in headings)
    rows = []
    for trial in ordered[:MAX_ROWS]:
        values = [trial.values[i] if trial.values and trial.state.name == "COMPLETE" else None for i in range(len(view.objectives))]
        cells = [f'<th scope="row" class="num">{trial.number}</th>', f"<td>{STATES[trial.state.name]}</td>"]
        cells += [_td(value, number=True) for value in values]
        cells += [_td(trial.params.get(p), number=p in numeric) for p in view.params]
        seconds = trial.duration.total_seconds() if trial.duration else None
        cells.append(f'<td class="num" data-sort="{"" if seconds is None else seconds}">{"–" if seconds is None else show_seconds(seconds)}</td>')
        cells.append(f'<td class="id">{_run_cell(view, trial)}</td>')
        if with_error:
            cells.append(f'<td class="wide bad">{escape(_first_line(trial.user_attrs.get("losskit:error")))}</td>')
        rows.append(f"<tr{_class('best' if trial.number in best else '')}>{''.join(cells)}</tr>")
    words = "Best first; a click on a heading sorts." + (f" {MAX_ROWS:,} of {len(ordered):,} trials." if len(ordered) > MAX_ROWS else "")
    table = f'<table class="sortable"><caption>{words}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _section("trials", "Trials", f'<div class="scroll{" tall" if len(ordered) > 25 else ""}">{table}</div>')


def _in_order(view: SweepView) -> list[FrozenTrial]:
    """Best first; then what is still running, pruned, failed, waiting, each by number. With several objectives the Pareto front first."""
    front = {t.number for t in view.best}
    sign = -1 if view.study.directions[0].name == "MAXIMIZE" else 1
    rank = {"COMPLETE": 0, "RUNNING": 1, "PRUNED": 2, "FAIL": 3, "WAITING": 4}

    def key(trial: FrozenTrial) -> tuple[bool, int, float, int]:
        value = sign * trial.values[0] if trial.state.name == "COMPLETE" else 0.0
        return trial.number not in front, rank[trial.state.name], value, trial.number

    return sorted(view.trials, key=key)


def _run_cell(view: SweepView, trial: FrozenTrial) -> str:
    runs = view.runs.get(trial.number, [])
    ids = [run.run_id for run in runs] or [str(i) for i in [trial.user_attrs.get("losskit:run_id")] if i]
    return escape(" ".join(i[:8] for i in ids)) or "–"


def _failures(view: SweepView) -> str:
    failed: dict[str, list[int]] = {}
    for trial in view.trials:
        if trial.state.name == "FAIL":
            text = str(trial.user_attrs.get("losskit:error") or "no reason is known")
            failed.setdefault(text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]} …", []).append(trial.number)
    if not failed:
        return ""
    parts = []
    for text, numbers in sorted(failed.items(), key=lambda item: -len(item[1])):
        which = ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
        parts.append(f"<p>{'Trial' if len(numbers) == 1 else 'Trials'} {which}</p><pre>{escape(text)}</pre>")
    return _section("failures", "What failed", "".join(parts))


def _set_up(view: SweepView) -> str:
    plan = view.plan
    settings = plan.get("settings") or {}
    parts = []
    if space := _space(view):
        parts.append(f"<h3>Space</h3>{_pairs(space)}")
    if plan.get("fixed"):
        parts.append(f"<h3>The same in all trials</h3><pre>{escape(chr(10).join(map(str, plan['fixed'])))}</pre>")
    for name, title in (("sampler", "Sampler"), ("pruner", "Pruner")):
        if name in settings:
            parts.append(f"<h3>{title}</h3>{_component(settings[name])}")
    others = {k: v for k, v in settings.items() if k not in ("sampler", "pruner", "space", "storage", "name") and v not in (None, [], {})}
    if plan.get("seeds"):
        others["seeds"] = plan["seeds"]
    if others:
        parts.append(f"<h3>Settings</h3>{_pairs(flatten(others))}")
    return _section("setup", "Set-up", "".join(parts)) if parts else ""


def _component(node: Any) -> str:
    if not node:
        return "<p>none</p>"
    if not isinstance(node, Mapping):
        return f"<p>{escape(str(node))}</p>"
    target = str(node.get("_target_") or node.get("name") or "")
    options = flatten({k: v for k, v in node.items() if k != "_target_" and v is not None})
    return (f"<p><code>{escape(target)}</code></p>" if target else "") + (_pairs(options) if options else "")


def _space(view: SweepView) -> dict[str, str]:
    """Parameter -> what it was searched over, as it was written; for a study without a plan as its trials show it."""
    kept = view.plan.get("space") or {}
    if "parameters" in kept:
        from sweeps.space import SearchSpace

        return {p.name: p.sweep() for p in SearchSpace.from_dict(kept).parameters}
    return {str(k): str(v) for k, v in kept.items()} or {k: str(d) for trial in view.trials for k, d in trial.distributions.items()}


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f'<tr><th scope="row"><code>{escape(str(k))}</code></th><td class="wide"><code>{escape(str(v))}</code></td></tr>' for k, v in values.items())
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _footer(view: SweepView) -> str:
    made = f"losskit {version('losskit')}, Optuna {version('optuna')}"
    return f"<footer>Made by {escape(made)}. All of it is in this file. Runs: <code>losskit compare --sweep {escape(shlex.quote(view.name))}</code></footer>"


# -- HTML ------------------------------------------------------------------------------------------------------------------------
class _Drawings:
    """The figures of a page: a place for each where it belongs, their data at its end."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def figure(self, drawing: Drawing) -> str:
        if not drawing.json:
            return f"<p>{escape(drawing.caption)}</p>"
        self.kept.append(drawing.json)
        name = f"figure-{len(self.kept)}"
        caption = f"<figcaption>{escape(drawing.caption)}</figcaption>" if drawing.caption else ""
        label = escape(drawing.label)
        return f'<figure><div class="plot" role="img" aria-label="{label}" data-figure="{name}" style="height:{drawing.height}px"></div>{caption}</figure>'

    def scripts(self) -> str:
        return "\n".join(f'<script type="application/json" id="figure-{i}">{_in_script(data)}</script>' for i, data in enumerate(self.kept, 1))


def _in_script(data: str) -> str:
    """JSON that cannot end the script element that it is in."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _library() -> str:
    from plotly.offline import get_plotlyjs

    source = files("losskit_cli").joinpath("templates/report/report.js").read_text(encoding="utf-8")
    return f"<script>{get_plotlyjs()}</script>\n<script>{source}</script>"


def _page(title: str, body: str, data: str, library: str) -> str:
    style = files("losskit_cli").joinpath("templates/report/report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<noscript><main><p>The pictures need JavaScript; all else is here without.</p></main></noscript>
{data}
{library}
</body>
</html>
"""


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{content}</section>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _td(value: Any, *, number: bool) -> str:
    """A cell that sorts by its whole value and shows six digits of it."""
    if value is None:
        return f'<td{_class("num" if number else "")} data-sort="">–</td>'
    shown = _figure(value, 6) if _is_number(value) else str(value)
    return f'<td{_class("num" if number else "")} data-sort="{escape(str(value))}">{escape(shown)}</td>'


def _first_line(error: Any) -> str:
    lines = [line for line in str(error or "").splitlines() if line.strip()]
    return (lines[0] if len(lines[0]) <= 160 else f"{lines[0][:159]}…") if lines else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: float, digits: int = 4) -> str:
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


__all__ = ["SweepView", "report_html", "run_report", "view_of"]

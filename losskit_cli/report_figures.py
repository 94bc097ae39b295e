"""The pictures of a sweep's report, as plotly figures: Optuna's own where it has them, learning curves drawn here."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from losskit_cli.groups import counted
from losskit_cli.tracking.store import RunInfo
from sweeps.logs import quiet

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

MAX_LINES = 300  # of parallel coordinates: each is a path that the browser draws
MAX_DOTS = 1000  # of one slice
MAX_CURVES = 60
MAX_POINTS = 200  # of one curve
MAX_SLICES = 12
ACCENT, PLAIN, FAINT = "#1a80c4", "#8a8f98", "#b9bec7"
SCALE = [[0.0, "#e3a008"], [0.5, "#4aa3a2"], [1.0, "#2d5fb3"]]  # readable on white and on near-black alike
Curve = list[tuple[int, float]]


def import_libraries() -> None:
    """What the pictures are drawn and computed with takes seconds to import; for a process that has the time for it now."""
    for module in ("optuna.importance", "optuna.visualization", "plotly.graph_objects"):
        import_module(module)


@dataclass(frozen=True)
class Drawing:
    """A figure and what is said below it.

    Attributes:
        json: the figure as plotly's JSON; empty: there is none, and the caption says why.
        height: CSS pixels.
        label: what a screen reader says.
    """

    json: str
    caption: str
    height: int = 420
    label: str = ""


def history(study: optuna.Study, objective: str) -> Drawing:
    """The value of each trial, and the best so far."""
    from optuna.visualization import plot_optimization_history

    with _quiet():
        figure = plot_optimization_history(study, target_name=objective)
    for trace in figure.data:
        if trace.mode == "lines":
            trace.update(line={"color": "#D55E00", "width": 2, "shape": "hv"}, name="best so far")
        elif trace.name == objective:
            trace.update(marker={"color": ACCENT, "size": 7, "opacity": 0.75})
    figure.update_layout(legend=_above())
    return _drawing(figure, "The value of each finished trial, and the best of all up to then.", 380, "Optimisation history")


def pareto_front(study: optuna.Study, objectives: Sequence[str]) -> Drawing:
    """All trials by two or three objectives; those that no other one beats in all of them stand out."""
    if len(objectives) > 3:
        return Drawing("", f"There is no picture of {len(objectives)} objectives at once: see the parallel coordinates.")
    from optuna.visualization import plot_pareto_front

    with _quiet():
        figure = plot_pareto_front(study, target_names=[*objectives])
    for trace in figure.data:
        says = trace.hovertemplate or ""
        best = "Best" in says
        name = "Pareto front" if best else "infeasible" if "Infeasible" in says else "other trials"
        look = {"color": ACCENT, "opacity": 1.0, "size": 9} if best else {"color": PLAIN, "opacity": 0.5, "size": 6}
        trace.update(marker={**look, "showscale": False, "line": {"width": 0}}, name=name, showlegend=bool(trace.x))
    figure.update_layout(legend=_above(), showlegend=True)
    return _drawing(figure, "The Pareto front: trials that no other trial beats in every objective at once.", 480, "Pareto front")


def importances(study: optuna.Study, objective: str) -> tuple[Drawing, list[str]]:
    """How much of the variation each parameter explains, and the parameters by it; empty where that cannot be told.

    PED-ANOVA (Watanabe, Bansal, Hutter: *PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces*, IJCAI 2023; arXiv 2304.10255)
    asks how much the better trials' values of a parameter differ from all trials' values; it takes conditional parameters too.
    """
    import optuna
    from optuna.visualization import plot_param_importances

    if sum(_is_complete(t) for t in study.get_trials(deepcopy=False)) < 2:
        return Drawing("", "Importances need two finished trials or more."), []
    try:
        with _quiet():
            found = optuna.importance.get_param_importances(study)
            if not any(value > 0 for value in found.values()):
                return Drawing("", "The finished trials do not show that any parameter matters."), [*found]
            figure = plot_param_importances(study, target_name=objective)
    except (ValueError, RuntimeError) as error:
        return Drawing("", f"Importances cannot be told from these trials: {error}"), []
    figure.update_traces(marker={"color": ACCENT})
    figure.update_xaxes(title="share of the importance of all parameters")
    figure.update_yaxes(title=None, automargin=True)
    caption = "How much the values of the better trials differ from those of all trials (PED-ANOVA). Few trials tell little."
    return _drawing(figure, caption, 90 + 34 * min(len(found), 30), "Parameter importances"), [*found]


def slices(study: optuna.Study, params: Sequence[str], objective: str, target: Callable[[FrozenTrial], float] | None) -> list[Drawing]:
    """The value against each parameter, one drawing a parameter."""
    from optuna.visualization import plot_slice

    shown = with_only(study, MAX_DOTS)
    drawings = []
    for param in params[:MAX_SLICES]:
        with _quiet():
            figure = plot_slice(shown, params=[param], target=target, target_name=objective)
        figure.update_traces(marker={"colorscale": SCALE, "size": 7, "line": {"width": 0.4, "color": "#ffffff"}, "showscale": False}, showlegend=False)
        figure.update_layout(margin={"l": 58, "r": 10, "t": 10, "b": 46})
        drawings.append(_drawing(figure, "", 260, f"{objective} against {param}"))
    return drawings


def parallel_coordinates(study: optuna.Study, params: Sequence[str], objective: str) -> Drawing:
    """Every trial as a line through its parameters."""
    from optuna.visualization import plot_parallel_coordinate

    chosen = [*params[:MAX_SLICES]]
    complete = sum(_is_complete(t) for t in study.get_trials(deepcopy=False))
    several = len(study.directions) > 1
    with _quiet():
        figure = plot_parallel_coordinate(with_only(study, MAX_LINES), params=chosen, target_name=objective)
    _recolour(figure, several, study.directions[0].name == "MAXIMIZE")
    caption = "Each line is a trial: its value on the left, its parameters to the right; the bluer, the better."
    if several:
        caption = "Each line is a trial: its values on the left, its parameters to the right; blue: the Pareto front."
    if any(p not in t.params for t in study.get_trials(deepcopy=False) if _is_complete(t) for p in chosen):
        caption += " None: the parameter does not exist under the options that the trial chose."
    if complete > MAX_LINES:
        caption += f" {MAX_LINES} of {complete:,} finished trials are drawn: half of these are the best ones, the others lie evenly over the sweep."
    if len(params) > MAX_SLICES:
        caption += f" {MAX_SLICES} of {len(params)} parameters are drawn."
    return _drawing(figure, caption, 460, "Parallel coordinates")


def _recolour(figure: Figure, several: bool, maximize: bool) -> None:
    """Colours that can be told apart on white and on black, and the better trials on top. Optuna's own go from white to navy blue."""
    from plotly.colors import sample_colorscale

    lines = [t for t in figure.data if t.mode == "lines" and t.customdata is not None]
    others = [t for t in figure.data if t not in lines]
    if several and lines:
        front = lines[-1].line.color  # drawn by rank, the best last
        for line in lines:
            line.update({"line.color": ACCENT, "line.width": 2, "opacity": 0.9} if line.line.color == front else {"line.color": PLAIN, "opacity": 0.35})
        others = [t for t in others if not t.marker.showscale]
    else:
        for line in lines:
            goodness = line.y[0] if maximize else 1 - line.y[0]
            line.update({"line.color": sample_colorscale(SCALE, goodness)[0], "line.width": 1.4, "opacity": 0.35 + 0.6 * goodness})
        lines.sort(key=lambda line: line.opacity)
        for bar in others:
            bar.update({"marker.colorscale": SCALE} if bar.marker.showscale else {})
    figure.data = ()
    figure.add_traces([*lines, *others])
    figure.update_xaxes(showline=False, ticklen=0)


def learning_curves(
    study: optuna.Study, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], runs: Mapping[int, Sequence[RunInfo]], objectives: Sequence[str]
) -> Drawing:
    """A validation metric of the trials against the step: best ones thick, pruned ones dashed.

    Values come from the tracking store, or, where it has none of a trial, from what the trial reported to the study.
    """
    from plotly.graph_objects import Figure, Scatter

    numbers = {t.number for t in best}
    shown = _to_draw(study, trials, numbers)
    metric = _curve_metric(shown, runs, objectives)
    figure = Figure()
    named: set[str] = set()
    heights: list[float] = []
    from_study = drawn = 0
    for trial in sorted(shown, key=lambda t: t.number in numbers):  # the best on top
        curves = [curve for run in runs.get(trial.number, ()) if metric and (curve := _points(run, metric))]
        if not curves and (reported := [(s, v) for s, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]):
            curves, from_study = [reported], from_study + 1
        drawn += bool(curves)
        kind, style = _style(trial, trial.number in numbers)
        for curve in curves:
            thin = decimated(curve)
            heights += [v for _, v in thin]
            figure.add_trace(
                Scatter(
                    x=[s for s, _ in thin],
                    y=[v for _, v in thin],
                    mode="lines+markers" if len(thin) < 3 else "lines",
                    marker={"size": 4},
                    line=style,
                    opacity=1.0 if trial.number in numbers else 0.75,
                    name=kind,
                    legendgroup=kind,
                    showlegend=kind not in named,
                    hovertemplate=f"trial {trial.number}<br>step %{{x}}<br>%{{y:.5g}}<extra>{kind}</extra>",
                )
            )
            named.add(kind)
    if not drawn:
        return Drawing("", "No trial has logged a metric more than once, so there are no curves.")
    figure.update_xaxes(title="step")
    log = min(heights) > 0 and max(heights) > 50 * min(heights)
    figure.update_yaxes(title=metric or objectives[0], type="log" if log else "linear")
    figure.update_layout(legend=_above())
    caption = f"{metric or objectives[0]} of {counted(drawn, 'trial')} while they ran."
    if any(len(of) > 1 for of in runs.values()):
        caption += " A trial over several seeds has a curve for each."
    if from_study:
        caption += f" {'All' if from_study == drawn else from_study} from what trials reported to the study, not from the tracking store."
    candidates = sum(bool(t.intermediate_values) or t.number in runs for t in trials)
    if candidates > len(shown):
        caption += f" {len(shown)} of {candidates:,} trials are drawn: the best ones, and the others evenly over the sweep"
        caption += f", at most {MAX_POINTS} points each."
    return _drawing(figure, caption, 440, "Learning curves")


# -- choosing what is drawn --------------------------------------------------------------------------------------------------------
def snapshot(study: optuna.Study, objectives: Sequence[str]) -> optuna.Study:
    """A copy in memory: the storage is read once, and everything in the report is of one moment.

    Args:
        study: any.
        objectives: how its values are called, one each.
    """
    return _copy_of(study, study.get_trials(deepcopy=False), objectives)


def with_only(study: optuna.Study, number: int) -> optuna.Study:
    """``study`` with at most so many finished trials to draw: the best half of them, and others evenly over the sweep. All keep their numbers."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if _is_complete(t)]
    if len(complete) <= number:
        return study
    kept = {t.number for t in _best_and_even(study, complete, number)}
    shown = []
    for trial in trials:
        if _is_complete(trial) and trial.number not in kept:
            trial = copy.copy(trial)
            trial.state = TrialState.FAIL  # drawn by nothing, yet its number is taken
        shown.append(trial)
    return _copy_of(study, shown, study.metric_names or [])


def decimated(curve: Curve, number: int = MAX_POINTS) -> Curve:
    """At most so many points, evenly, with the first and the last."""
    return [curve[i] for i in _even(len(curve), number)]


def _best_and_even(study: optuna.Study, trials: Sequence[FrozenTrial], number: int) -> list[FrozenTrial]:
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    by_value = sorted((t for t in trials if t.values is not None), key=lambda t: sign * t.values[0])
    first = by_value[: number // 2]
    taken = {t.number for t in first}
    others = [t for t in trials if t.number not in taken]
    return [*first, *(others[i] for i in _even(len(others), number - len(first)))]


def _to_draw(study: optuna.Study, trials: Sequence[FrozenTrial], best: set[int]) -> list[FrozenTrial]:
    if len(trials) <= MAX_CURVES:
        return [*trials]
    first = [t for t in trials if t.number in best][: MAX_CURVES // 2]
    rest = [t for t in trials if t.number not in best and t.state.name in ("COMPLETE", "PRUNED", "RUNNING")]
    return [*first, *_best_and_even(study, rest, MAX_CURVES - len(first))]


def _even(number: int, most: int) -> list[int]:
    if number <= most:
        return [*range(number)]
    return sorted({round(i * (number - 1) / max(most - 1, 1)) for i in range(most)})


def _copy_of(study: optuna.Study, trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> optuna.Study:
    import optuna

    with _quiet():
        copied = optuna.create_study(study_name=study.study_name, directions=study.directions, storage=optuna.storages.InMemoryStorage())
        if objectives:
            copied.set_metric_names([*objectives])
    storage = copied._storage
    for key, value in study.user_attrs.items():
        storage.set_study_user_attr(copied._study_id, key, value)
    for trial in trials:
        storage.create_new_trial(copied._study_id, template_trial=trial)
    return copied


def _curve_metric(trials: Sequence[FrozenTrial], runs: Mapping[int, Sequence[RunInfo]], objectives: Sequence[str]) -> str | None:
    """The first objective where runs logged it again and again; else the same metric of validation, else the validation loss."""
    of = [run for trial in trials for run in runs.get(trial.number, ())]
    name = objectives[0].rpartition("/")[2]
    for metric in dict.fromkeys([objectives[0], f"val/{name}", "val/loss", "train/loss"]):
        if any(metric in run.metrics and len(run.history(metric)) > 1 for run in of[:20]):
            return metric
    return None


def _points(run: RunInfo, metric: str) -> Curve:
    return [(p.step, p.value) for p in run.history(metric) if math.isfinite(p.value)] if metric in run.metrics else []


def _style(trial: FrozenTrial, best: bool) -> tuple[str, dict[str, Any]]:
    if best:
        return "best", {"color": ACCENT, "width": 3.2}
    state = trial.state.name
    kind = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}.get(state, "waiting")
    dash = {"PRUNED": "dash", "FAIL": "dot", "RUNNING": "dashdot"}.get(state, "solid")
    return kind, {"color": PLAIN if state == "COMPLETE" else "#c2703d" if state == "PRUNED" else FAINT, "width": 1.2, "dash": dash}


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state.name == "COMPLETE"


# -- plotly ------------------------------------------------------------------------------------------------------------------------
def _above() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}


def _drawing(figure: Figure, caption: str, height: int, label: str) -> Drawing:
    """Colours of text and grid are the page's: set there, for light and dark."""
    figure.update_layout(title=None, template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", height=None, width=None, hovermode="closest")
    if figure.layout.margin.l is None:
        figure.update_layout(margin={"l": 64, "r": 16, "t": 36, "b": 52})
    return Drawing(str(figure.to_json()), caption, height, label)


@contextmanager
def _quiet() -> Iterator[None]:
    """What Optuna says about its own experimental features and about trials without values is told in the page's words, or nothing to its reader."""
    with quiet(logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


__all__ = ["Drawing", "decimated", "history", "importances", "learning_curves", "parallel_coordinates", "pareto_front", "slices", "snapshot", "with_only"]

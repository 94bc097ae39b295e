"""``losskit predict-loss``: the loss curve that a schedule would give, from runs that had others; and the schedule of least predicted final loss.

A law of the loss under a learning rate (:mod:`components.schedules.laws`) is fitted to what finished runs logged, and predicts from there.
"""

from __future__ import annotations

import json as jsonlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.schedules.compose import straight
from components.validation import did_you_mean
from losskit_cli.compare import json_ready
from losskit_cli.errors import RunError, UsageError
from losskit_cli.found_schedule import SEARCHES, RunSource, source_of
from losskit_cli.rundir import SPEC

if TYPE_CHECKING:
    from components.schedules.laws import Curve, Prediction, RateLaw, Score
    from components.schedules.rate_law import Floats

LAWS = ("multi_power", "annealing", "power")
FORMAT = "losskit.law"
POINTS = 300  # of one run that are fitted; more are averaged (training losses) or passed over
ENOUGH = 60  # points in all for the seven parameters of the multi-power law
MANY_VALIDATIONS = 20  # so many, and a validation loss is fitted rather than the training loss
BEGINNING = 0.05  # share of a run's steps that no law here describes
DRAWN = 400
BEYOND = (
    "the intervals hold only within the fitted horizon. Beyond it they are far too narrow: in our measurements 90 % intervals held 34 to 59 % of what was "
    "then trained"
)


@dataclass
class Fitted:
    """A law with what it was fitted on.

    Attributes:
        metric: what it predicts. runs: names. horizon: the longest fitted run, in steps.
        batch_size: of the runs, if they agree: a law holds for one.
        base_lr: the rate that the runs' schedules multiplied, the highest of them.
    """

    law: RateLaw
    metric: str
    runs: list[str]
    horizon: int
    base_lr: float
    batch_size: int | None = None

    def state(self) -> dict[str, Any]:
        about = {"format": FORMAT, "version": 1, "metric": self.metric, "runs": self.runs, "horizon": self.horizon}
        return about | {"base_lr": self.base_lr, "batch_size": self.batch_size, **self.law.state()}

    @classmethod
    def load(cls, file: Path) -> Fitted:
        """A law that ``--save`` wrote.

        Raises:
            UsageError: it cannot be read, or is none.
        """
        from components.schedules.laws import law_from_state

        try:
            state = jsonlib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--load {file}: {error.strerror or error}") from error
        except ValueError as error:
            raise UsageError(f"--load {file} is no saved law: {error}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("version") != 1:
            raise UsageError(f"--load {file} is no saved law: losskit predict-loss RUN --save {file} writes one")
        try:
            law = law_from_state(state)
            return cls(law, str(state["metric"]), [str(run) for run in state["runs"]], int(state["horizon"]), float(state["base_lr"]), state.get("batch_size"))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"--load {file} is no whole law: {error}") from error


@dataclass(frozen=True)
class Measured:
    """A run's losses as a law takes them, and how well it meets them."""

    source: RunSource
    curve: Curve
    score: Score | None = None


@dataclass(frozen=True)
class Foreseen:
    """A schedule, the rate that it multiplies, and the predicted curve."""

    name: str
    lr: float
    rates: Floats
    prediction: Prediction
    total_steps: int

    @property
    def final(self) -> tuple[float, float | None, float | None]:
        """The predicted loss after the last step, with its interval."""
        p = self.prediction
        return float(p.loss[-1]), None if p.low is None else float(p.low[-1]), None if p.high is None else float(p.high[-1])


@dataclass
class Forecast:
    """All that the command has to tell."""

    fitted: Fitted
    measured: list[Measured]
    foreseen: list[Foreseen]
    notes: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None  # the option of the schedule that --optimise found


def run_predict_loss(
    words: Sequence[str],
    config_dirs: Sequence[Path] = (),
    *,
    law: str | None = None,
    metric: str | None = None,
    skip: float = BEGINNING,
    level: float = 0.9,
    steps: int | None = None,
    optimise: bool = False,
    save_schedule: Path | None = None,
    save: Path | None = None,
    load: Path | None = None,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """``losskit predict-loss``.

    Args:
        words: runs, and overrides of ``schedule`` and ``optimizer.lr`` for what is predicted (choices, ``schedule=cosine,wsd``, for several).
        law: a name of :data:`LAWS`; ``None``: see :func:`fitting_law`.
        metric: ``None``: see :func:`common_metric`.
        skip: share of every run's beginning that is left out, beside its warm-up.
        level: of the intervals.
        steps: steps of the predicted schedules; ``None``: ``schedule.total_steps``, else those of the longest run.
        optimise: also find the schedule of least predicted final loss; ``save_schedule``: write it as an option file.
        save, load: write the fitted law; take one instead of fitting.
        output: the PNG; ``None``: ``predict-loss.png``.

    Raises:
        UsageError: no such run, metric or schedule; options that do not go together.
        RunError: the law cannot be fitted to these runs.
    """
    references, overrides = _apart(words)
    _check(references, law, metric, skip, level, steps, optimise, save_schedule, save, load)
    sources = [source_of(reference) for reference in references]
    notes: list[str] = []
    if load is not None:
        fitted = Fitted.load(load)
        measured = [measure(source, fitted.metric, skip, notes) for source in sources]
    else:
        name = metric or common_metric(sources)
        measured = [measure(source, name, skip, notes) for source in sources]
        fitted = fit(measured, name, law, notes)
    measured = [Measured(m.source, m.curve, fitted.law.score(m.curve)) for m in measured]
    if load is None:
        _refuse_nonsense(fitted, measured)
    forecast = Forecast(fitted, measured, foresee(fitted, overrides, config_dirs, steps, level, sources), notes)
    if optimise:
        _optimise(forecast, overrides, steps, level)
    _warn(forecast)
    if save is not None:
        _write(save, jsonlib.dumps(fitted.state(), indent=1) + "\n", "--save")
    if save_schedule is not None and forecast.best is not None:
        _write(save_schedule, option_text(forecast), "--save-schedule")
    file = output or Path("predict-loss.png")
    draw(forecast, file)
    sys.stdout.write(jsonlib.dumps(as_json(forecast, file)) + "\n" if json else shown(forecast, file, save, save_schedule, level))


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Runs and overrides; a directory may have an equals sign in its name."""
    overrides = [word for word in words if "=" in word and not (Path(word) / SPEC).is_file()]
    return [word for word in words if word not in overrides], overrides


def _check(
    runs: Sequence[str], law: str | None, metric: str | None, skip: float, level: float, steps: int | None, optimise: bool,
    save_schedule: Path | None, save: Path | None, load: Path | None,
) -> None:  # fmt: skip
    if not runs and load is None:
        raise UsageError("say which runs to learn from: losskit predict-loss RUN… schedule=cosine schedule.total_steps=20000 (or --load a saved law)")
    if law is not None and law not in LAWS:
        raise UsageError(f"--law must be one of {', '.join(LAWS)}, but got {law!r}{did_you_mean(law, LAWS)}")
    if not 0 <= skip < 1:
        raise UsageError(f"--skip must be in [0, 1), a share of every run, but got {skip:g}")
    if not 0 < level < 1:
        raise UsageError(f"--level must be in (0, 1), but got {level:g}")
    if steps is not None and steps < 2:
        raise UsageError(f"--steps must be at least 2, but got {steps}")
    for name, given in (("--law", law), ("--metric", metric), ("--save", save)):
        if load is not None and given is not None:
            raise UsageError(f"{name} is about fitting a law, and --load takes one that was fitted: give one of them")
    if save_schedule is not None and not optimise:
        raise UsageError("--save-schedule is about the schedule that --optimise finds: give both")
    if save_schedule is not None and save_schedule.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--save-schedule must end in .yaml, as option files do, but got {save_schedule}")


# -- what runs say -------------------------------------------------------------------------------------------------------------
def common_metric(sources: Sequence[RunSource]) -> str:
    """``val/loss`` where every run logged it often enough, else ``train/loss``."""
    often = all(len(source.curves.get("val/loss", [])) >= MANY_VALIDATIONS for source in sources)
    return "val/loss" if often else "train/loss"


def measure(source: RunSource, metric: str, skip: float, notes: list[str]) -> Measured:
    """A run's losses with the learning rate of every step.

    The first steps are left out: until the warm-up's end, and at least ``skip`` of the run, as no law here describes what happens there. A logged
    training loss is a mean over the steps since the one before, so it counts for their middle. Many training losses are averaged in
    groups, of many validation losses some are taken.
    """
    import numpy as np

    from components.schedules.laws import Curve

    logged = source.curves.get(metric)
    if not source.curves:
        raise UsageError(f"run {source.name} has logged nothing: it was trained without tracking")
    if not logged:
        known = sorted(name for name in source.curves if "/" in name)
        raise UsageError(f"run {source.name} has not logged {metric}{did_you_mean(metric, known)} (it has: {', '.join(known)})")
    rates = _rates(source, notes)
    training = metric.startswith("train/")
    points, previous = [], 0
    for step, value in logged:
        middle = step - (step - previous) // 2 if training else step
        previous = step
        if 1 <= middle <= len(rates):
            points.append((middle, value))
    begin = max(_warmup_end(rates), round(skip * len(rates)), 1)
    kept = [(step, value) for step, value in points if step >= begin]
    fine = [(step, value) for step, value in kept if math.isfinite(value) and value > 0]
    if len(fine) < len(kept):
        raise RunError(f"run {source.name}: {len(kept) - len(fine)} values of {metric} are not finite or not above 0; a law is about losses that are")
    if len(fine) < 4:
        raise RunError(f"run {source.name} has {len(fine)} values of {metric} after step {begin}: too few (a lower trainer.log_every_n_steps logs more)")
    groups = np.array_split(np.arange(len(fine)), min(POINTS, len(fine)))
    chosen = [[fine[i] for i in group] for group in groups]
    steps = [round(sum(step for step, _ in group) / len(group)) if training else group[-1][0] for group in chosen]
    losses = [sum(value for _, value in group) / len(group) if training else group[-1][1] for group in chosen]
    distinct = dict(zip(steps, losses, strict=True))
    last = source.trained_steps
    curve = Curve(np.asarray(rates[: max(last, max(distinct))]), np.asarray([*distinct]), np.asarray([*distinct.values()]))
    return Measured(source, curve)


def _rates(source: RunSource, notes: list[str]) -> list[float]:
    """The learning rate of every step: from the schedule; from the log where that says otherwise (a run that was made longer when it was resumed)."""
    rates = source.rates()
    logged = next((points for name, points in source.curves.items() if name.startswith("lr-")), [])
    pairs = [(rates[step - 1], value) for step, value in logged if 1 <= step <= len(rates)]
    highest = max(rates, default=0.0)
    off = sum(abs(given - seen) > 1e-3 * highest for given, seen in pairs)
    if not pairs or off <= 0.01 * len(pairs):
        return rates
    notes.append(f"run {source.name} did not keep to the schedule of its config (was it resumed for longer?): its logged learning rates are taken instead")
    at, values = [step - 1 for step, _ in logged], [value for _, value in logged]
    return [straight(at, values, step) for step in range(max(at[-1] + 1, source.trained_steps))]


def _warmup_end(rates: Sequence[float]) -> int:
    """Steps until the first that is not higher than the one before; 0 if the rate does not begin by rising."""
    return next((i for i in range(1, len(rates)) if rates[i] <= rates[i - 1]), len(rates)) if len(rates) > 1 and rates[1] > rates[0] else 0


# -- fitting and predicting ------------------------------------------------------------------------------------------------------
def fitting_law(curves: Sequence[Curve]) -> str:
    """Which law these runs can bear: the power law where no rate falls, the multi-power law for two unlike runs with points enough, else the annealing law."""
    from components.schedules.rate_law import falls

    if not any(falls(c.rates[: c.steps[-1]], "warmup").any() for c in curves):
        return "power"
    unlike = {tuple((c.rates[:: max(len(c.rates) // 20, 1)] / c.rates.max()).round(3).tolist()) for c in curves}
    return "multi_power" if len(unlike) >= 2 and sum(c.steps.size for c in curves) >= ENOUGH else "annealing"


def fit(measured: Sequence[Measured], metric: str, law: str | None, notes: list[str]) -> Fitted:
    """The law fitted to the runs.

    Raises:
        RunError: it does not fit; with what was left at the best that was found.
    """
    import numpy as np

    from components.schedules.laws import AnnealingLaw, FitError, MultiPowerLaw, PowerLaw

    curves = [m.curve for m in measured]
    name = law or fitting_law(curves)
    made: RateLaw = MultiPowerLaw() if name == "multi_power" else PowerLaw() if name == "power" else AnnealingLaw(decay=None)
    sizes = {m.source.spec.config["data"].get("batch_size") for m in measured}
    if len(sizes) > 1:
        notes.append(f"the runs have different batch sizes ({', '.join(map(str, sorted(sizes, key=str)))}): a law holds for one")
    try:
        try:
            made.fit(curves)
        except FitError as error:
            if law is not None or name != "multi_power":
                raise
            notes.append(f"the multi-power law, which these runs have points enough for, did not fit; the annealing law is taken instead ({error})")
            made = AnnealingLaw(decay=None).fit(curves)
    except FitError as error:
        left = np.abs(error.residuals)
        left = left[np.isfinite(left)]
        beside = f"; the residuals of log loss at the best that was found: median {np.median(left):.3g}, worst {left.max():.3g}" if left.size else ""
        known = "" if law else f" (chosen for these runs; another: --law {' or '.join(n for n in LAWS if n != name)})"
        raise RunError(f"no law could be fitted to {metric} of {', '.join(m.source.name for m in measured)}: {error}{beside}{known}") from error
    size = next(iter(sizes)) if len(sizes) == 1 else None
    horizon = max(c.rates.size for c in curves)
    return Fitted(made, metric, [m.source.name for m in measured], horizon, max(m.source.lr for m in measured), size if isinstance(size, int) else None)


def _refuse_nonsense(fitted: Fitted, measured: Sequence[Measured]) -> None:
    """A law that meets a run which it was fitted to worse than a constant would has nothing to say."""
    for m in measured:
        if m.score is not None and m.score.r2 < 0:
            raise RunError(
                f"the {type(fitted.law).__name__} fitted to {', '.join(fitted.runs)} meets {fitted.metric} of {m.source.name} worse than a constant would "
                f"(R² {m.score.r2:.2f}, mean error {m.score.relative:.0%}, worst {m.score.worst:.0%}): it is no curve for a law. A run's beginning is the "
                "usual reason (--skip 0.2), or few and noisy losses (--metric)"
            )


def foresee(
    fitted: Fitted, overrides: Sequence[str], config_dirs: Sequence[Path], steps: int | None, level: float, sources: Sequence[RunSource]
) -> list[Foreseen]:
    """The curve under every schedule that the overrides choose; without any none."""
    from losskit_cli.compose import Composer
    from losskit_cli.found_schedule import with_replay
    from losskit_cli.plot import maker

    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if key not in ("schedule", "optimizer"):
            raise UsageError(f"{override}: only the schedule and optimizer.lr have a part in what is predicted; all else is that of the runs")
    if not any(override.lstrip("+").startswith("schedule") for override in overrides):
        return []
    composer = Composer(config_dirs)
    found = []
    jobs = composer.expand(overrides)
    for job in jobs:
        composed = composer.compose(job)
        config = with_replay(composed.resolved())
        node = config.get("schedule")
        name = str(composed.choices.get("schedule", "schedule"))
        if not node:
            raise UsageError(f"schedule={name} is no schedule to predict")
        if str(node.get("_target_")).startswith(SEARCHES):
            raise UsageError(f"schedule={name} is found while a run trains: what it will be is not known")
        lr = float(config["optimizer"]["lr"]) if any(text.lstrip("+").startswith("optimizer.lr=") for text in job) else fitted.base_lr
        total = steps or node.get("total_steps") or fitted.horizon
        if isinstance(total, bool) or not isinstance(total, int) or total < 2:
            raise UsageError(f"schedule.total_steps must be a whole number >= 2, but got {total!r}")
        if str(node.get("_target_", "")).endswith(".Replay"):
            node = {**node, "base_lr": lr}
        make = maker(config.get("allow_targets") or (), f"schedule={name}")
        schedule = make("schedule", {k: v for k, v in node.items() if k != "total_steps"}, {"total_steps": total})
        shown_name = name if len(jobs) == 1 else " ".join(text.removeprefix("schedule.") for text in _varied(job, jobs)).replace("schedule=", "")
        found.append(_foreseen(fitted, shown_name or name, lr, schedule, total, level))
    return found


def _varied(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[str]:
    """What of a job is not the same in all of them."""
    return [text for text in job if not all(text in other for other in jobs)]


def _foreseen(fitted: Fitted, name: str, lr: float, schedule: Any, total: int, level: float) -> Foreseen:
    import numpy as np

    rates = np.array([lr * float(schedule(step)) for step in range(total)])
    if not rates.max() > 0:
        raise UsageError(f"schedule={name} is 0 at every step: there is no loss to predict")
    first = min(max(int(np.argmax(rates > 0)) + 1, _warmup_end(rates.tolist()), round(BEGINNING * total)), total)
    at = np.unique(np.linspace(first, total, min(DRAWN, total)).round().astype(np.int64))
    with np.errstate(over="ignore"):
        prediction = fitted.law.predict(rates, at, level=level)
    parts = [part for part in (prediction.loss, prediction.low, prediction.high) if part is not None]
    if not all(np.isfinite(part).all() for part in parts) or prediction.loss.min() <= 0:
        lowest = float(prediction.loss.min())
        why = f"a loss of {lowest:.3g}" if lowest <= 0 else "an interval without end"
        raise RunError(
            f"the {type(fitted.law).__name__} of {', '.join(fitted.runs)} foresees {why} under schedule={name}: it says nothing about that schedule. "
            "Fit it to more runs, or runs that are more like it, or take another law (--law)"
        )
    return Foreseen(name, lr, rates, prediction, total)


def _optimise(forecast: Forecast, overrides: Sequence[str], steps: int | None, level: float) -> None:
    """The schedule of least predicted final loss, at the rate and over the steps of what was predicted."""
    like = forecast.foreseen[0] if forecast.foreseen else None
    lr = like.lr if like else next((float(o.partition("=")[2]) for o in overrides if o.startswith("optimizer.lr=")), forecast.fitted.base_lr)
    total = like.total_steps if like else steps or forecast.fitted.horizon
    peak = lr if like is None else float(like.rates.max())
    warmup = _warmup_end(like.rates.tolist()) if like else round(0.05 * total)
    try:
        schedule = forecast.fitted.law.optimise(total, peak, warmup=min(warmup, total // 4))
    except ValueError as error:
        raise UsageError(f"--optimise: {error}") from error
    state = schedule.state()
    shares = [step / total for step in state["at"]]
    thinned = thin(shares, state["factors"])
    forecast.best = {
        "_target_": "components.schedules.Piecewise", "at": [x for x, _ in thinned], "factors": [y for _, y in thinned], "between": "linear",
        "warmup": state["warmup"] / total, "warmup_factor": 0.0,
    }  # fmt: skip
    forecast.foreseen.append(_foreseen(forecast.fitted, "optimised", peak, schedule, total, level))


def thin(at: Sequence[float], values: Sequence[float], tolerance: float = 1e-3) -> list[tuple[float, float]]:
    """The points that are needed for the same line to within ``tolerance`` (Douglas and Peucker), rounded to what is then seen."""
    keep = {0, len(at) - 1}
    todo = [(0, len(at) - 1)]
    while todo:
        first, last = todo.pop()
        inner = range(first + 1, last)
        off = {i: abs(values[i] - straight([at[first], at[last]], [values[first], values[last]], at[i])) for i in inner}
        worst = max(off, key=off.__getitem__, default=None)
        if worst is not None and off[worst] > tolerance:
            keep.add(worst)
            todo += [(first, worst), (worst, last)]
    return [(round(at[i], 6), round(values[i], 6)) for i in sorted(keep)]


def option_text(forecast: Forecast) -> str:
    """The option file of the optimised schedule."""
    import yaml

    assert forecast.best is not None
    best, fitted = forecast.foreseen[-1], forecast.fitted
    law, runs = type(fitted.law).__name__, ", ".join(fitted.runs)
    head = f"# Least predicted {fitted.metric} after {best.total_steps} steps, {best.final[0]:.4g}, at optimizer.lr={best.lr:.6g} ({law} fitted to {runs})\n"
    return head + yaml.safe_dump(forecast.best, sort_keys=False, default_flow_style=None, width=140)


def _warn(forecast: Forecast) -> None:
    """What the reader must know before believing any of it."""
    fitted = forecast.fitted
    longest = max((f.total_steps for f in forecast.foreseen), default=0)
    if longest > fitted.horizon:
        forecast.notes.append(f"{longest:,} steps are more than the {fitted.horizon:,} of the longest fitted run: {BEYOND}")
    peak = max((float(f.rates.max()) for f in forecast.foreseen), default=0.0)
    if peak > 1.01 * fitted.law.fitted_rates[1]:
        forecast.notes.append(f"a learning rate of {peak:.3g} is above the highest fitted, {fitted.law.fitted_rates[1]:.3g}: a law knows of no divergence")
    if len(fitted.runs) == 1 and forecast.foreseen:
        forecast.notes.append("fitted to one run: no other one says how well the law foresees another schedule, and the intervals hold only if it does")
    poor = [m.source.name for m in forecast.measured if m.score is not None and m.score.r2 < 0.8]
    if poor:
        forecast.notes.append(f"the law explains {', '.join(poor)} badly (R² below 0.8): look at the picture before using what it predicts")


# -- telling it --------------------------------------------------------------------------------------------------------------------
def as_json(forecast: Forecast, file: Path) -> dict[str, Any]:
    fitted = forecast.fitted
    runs = [
        {"name": m.source.name, "points": int(m.curve.steps.size), "steps": m.curve.steps.tolist(), "losses": m.curve.losses.tolist()}
        | ({} if m.score is None else {"r2": json_ready(m.score.r2), "mean_error": m.score.relative, "worst_error": m.score.worst})
        for m in forecast.measured
    ]
    predictions = []
    for f in forecast.foreseen:
        final, low, high = f.final
        p = f.prediction
        curve = {"steps": p.steps.tolist(), "loss": p.loss.tolist()}
        curve |= {} if p.low is None or p.high is None else {"low": p.low.tolist(), "high": p.high.tolist()}
        predictions.append({"schedule": f.name, "lr": f.lr, "total_steps": f.total_steps, "final": final, "low": low, "high": high, "curve": curve})
    about = {"law": type(fitted.law).__name__, "params": fitted.law.params, "metric": fitted.metric, "fitted_runs": fitted.runs, "horizon": fitted.horizon}
    return about | {"runs": runs, "predictions": predictions, "optimised": forecast.best, "notes": forecast.notes, "file": str(file)}


def shown(forecast: Forecast, file: Path, save: Path | None, save_schedule: Path | None, level: float) -> str:
    """The pictures and tables for the terminal."""
    from losskit_cli.plot import Panel, blocks

    fitted = forecast.fitted
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    parameters = "  ".join(f"{name} {value:.4g}" for name, value in fitted.law.params.items())
    lines = [f"{fitted.metric} by {type(fitted.law).__name__}, fitted to {', '.join(fitted.runs)}", parameters, ""]
    if forecast.measured:
        lines.append(f"{'run':<36}{'points':>7}{'R²':>9}{'mean error':>12}{'worst':>9}")
        for m in forecast.measured:
            assert m.score is not None
            lines.append(f"{_short(m.source.name, 35):<36}{m.curve.steps.size:>7}{m.score.r2:>9.4f}{m.score.relative:>12.2%}{m.score.worst:>9.2%}")
        lines.append("")
    if forecast.foreseen:
        x = list(range(round(BEGINNING * DRAWN), DRAWN + 1))
        curves = {}
        for f in forecast.foreseen:
            steps, loss = f.prediction.steps.tolist(), f.prediction.loss.tolist()
            cut = [min(value, 4 * loss[-1] + 1e-9) for value in loss]
            curves[f.name] = [straight(steps, cut, i * f.total_steps / DRAWN) for i in x]
        lines.append(blocks([100 * i / DRAWN for i in x], Panel(f"predicted {fitted.metric}", curves), "% of the steps", width))
        lines += ["", f"{'schedule':<28}{'steps':>9}{'rate':>10}{'final loss':>12}   {level:.0%} interval"]
        for f in forecast.foreseen:
            final, low, high = f.final
            interval = "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            lines.append(f"{_short(f.name, 27):<28}{f.total_steps:>9,}{f.lr:>10.3g}{final:>12.4f}   {interval}")
        lines.append("")
    lines += [f"note: {note}" for note in forecast.notes]
    if save is not None:
        lines.append(f"law              {save}")
    if save_schedule is not None:
        best = forecast.foreseen[-1]
        place = save_schedule.absolute().parent
        lines.append(f"schedule         {save_schedule}")
        if place.name == "schedule":
            lines.append(f"use it           losskit train --config-dir {place.parent} schedule={save_schedule.stem} optimizer.lr={best.lr:.6g}")
        else:
            lines.append(f"use it           from conf/schedule/{save_schedule.name}: losskit train --config-dir conf schedule={save_schedule.stem}")
    return "\n".join([*lines, str(file)]) + "\n"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"…{name[-width + 1 :]}"


def draw(forecast: Forecast, file: Path) -> None:
    """The PNG: measured and fitted losses and the predicted ones, over the rates that they belong to."""
    import numpy as np
    from matplotlib.figure import Figure

    from losskit_cli.plot import save_figure

    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    number = 0
    for m in forecast.measured:
        colour = colours[number % len(colours)]
        number += 1
        losses.plot(m.curve.steps, m.curve.losses, ".", markersize=3, alpha=0.5, color=colour, label=f"{_short(m.source.name, 30)}, measured")
        losses.plot(m.curve.steps, forecast.fitted.law.predict(m.curve.rates, m.curve.steps).loss, "--", linewidth=1.2, color=colour)
        rates.plot(np.arange(m.curve.rates.size), m.curve.rates, "--", linewidth=1.0, color=colour)
    for f in forecast.foreseen:
        colour = colours[number % len(colours)]
        number += 1
        p = f.prediction
        losses.plot(p.steps, p.loss, linewidth=2.0, color=colour, label=f"{f.name}, predicted")
        if p.low is not None and p.high is not None:
            losses.fill_between(p.steps, p.low, p.high, color=colour, alpha=0.15, linewidth=0)
        rates.plot(np.arange(f.rates.size), f.rates, linewidth=1.6, color=colour)
    ends = [float(f.prediction.loss[-1]) for f in forecast.foreseen] + [float(m.curve.losses.min()) for m in forecast.measured]
    tops = [float(m.curve.losses.max()) for m in forecast.measured] or [2 * max(ends, default=1.0)]
    if ends:
        losses.set_ylim(0.95 * min(ends), 1.05 * max(tops))
    losses.set_ylabel(forecast.fitted.metric)
    rates.set(ylabel="learning rate", xlabel="step")
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
    losses.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{type(forecast.fitted.law).__name__} fitted to {len(forecast.fitted.runs)} run(s); dashed: the fit", fontsize=10)
    save_figure(figure, file)


def _write(file: Path, text: str, option: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror or error}") from error


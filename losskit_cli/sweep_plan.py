"""What a sweep is asked to do, from the command line and its presets: checked as far as it can be before anything starts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep

from components.validation import did_you_mean
from losskit_cli.claims import BASELINE, METHOD
from losskit_cli.commands import spec_of
from losskit_cli.compare import better_direction
from losskit_cli.compose import Composer
from losskit_cli.errors import UsageError
from losskit_cli.names import two_words
from losskit_cli.sweep_work import devices_of, workers_for
from losskit_cli.trials import TrialComposer
from losskit_cli.workers import PRELOAD, environment_of
from sweeps.algorithms import build_pruner, parse_constraints, read_sampler
from sweeps.grammar import parse
from sweeps.launchers import check, is_launcher_override
from sweeps.pool import once
from sweeps.settings import TIMES, Direction, Plan, SweepSettings
from sweeps.space import SearchSpace

DEFAULT_TRIALS = 20
MOST_TRIED = 500  # points of a grid whose configs are composed before anything starts
TRIED = "losskit_cli.trial_runs:tried"


def make_plan(composer: Composer, overrides: Sequence[str], *, every_point: bool = False, name: str | None = None) -> tuple[Plan, bool]:
    """What ``overrides`` ask for, checked as far as it can be before anything runs; and whether the user gave it a name.

    Raises:
        UsageError: a mistake in the space, the settings or the experiment.
    """
    given = [_as_group(text) for text in overrides]
    launcher = [text for text in given if is_launcher_override(text)]  # on the command line; or a preset's sweep.launcher
    own = [text for text in given if text not in launcher]
    base = [text for text in own if not _is_sweep_setting(text) and not _is_swept(text)]
    if not any(key_of(text) == "sweep" for text in own) and composer.compose(base).choices.get("sweep") is None:  # an experiment may choose one
        own = ["sweep=default", *own]
    trials = TrialComposer(composer, base, composer.config_name)
    config = composer.compose([text for text in own if not _is_swept(text)]).resolved()
    settings = SweepSettings.from_config(config.pop("sweep"))
    if config.get("claim"):  # what is trained belongs to the sweep, what is said of it does not
        config["claim"] = {key: config["claim"].get(key) for key in (METHOD, BASELINE, "others")}
    settings = settings.model_copy(update={"launcher": _launcher(settings, launcher, composer.config_dirs)})
    # the command line goes before the preset's space, whether it gives a key choices or fixes it
    named = {key_of(text) for text in own}
    texts = [text for text in own if _is_swept(text)] + [f"{key}={text}" for key, text in settings.space.items() if key not in named]
    space, shared = SearchSpace.parse([*base, *texts], trials.config_loader)
    space.check(trials)
    sampler, constraints = read_sampler(settings.sampler), parse_constraints(settings.constraints)
    drawn = any(isinstance(parse(text, None).value(), IntervalSweep) for text in texts)  # also int(interval(1,64)): an end, but nobody's list
    enough = space.finite and not drawn and settings.n_trials is None
    exhaustive = every_point or sampler.exhaustive or enough or (space.size is not None and (settings.n_trials or 0) >= space.size)
    if not space.parameters and not every_point:
        raise UsageError("there is nothing to search: give at least one parameter choices, such as optimizer.lr=tag(log,interval(1e-4,1)) or loss=poly1,focal")
    objectives = settings.objectives or [config["optimized_metric"]]
    directions = list(settings.directions) or [direction_of(metric, config) for metric in objectives]
    if not every_point:
        sampler.check(space, directions, constraints)
    build_pruner(settings.pruner, directions=directions)
    points = space.points(trials) if exhaustive else []
    points = points if every_point else sampler.order(points, settings.seed)
    total = min(settings.n_trials or len(points), len(points)) if exhaustive else settings.n_trials or DEFAULT_TRIALS
    for example in _examples(space, trials, points):
        spec_of(trials.compose(example), composer.config_name)
    seeds = settings.seed_list(config["seed"]) if settings.seeds != 1 else []
    plan = Plan(
        name=name or settings.name or f"{'multirun' if every_point else 'sweep'}-{two_words()}",
        given=[text for text in given if key_of(text) != "sweep.name"],
        fixed=shared,
        space_given=texts,
        space=space.to_dict(),
        settings=settings.model_dump(),
        objectives=objectives,
        directions=directions,
        seeds=seeds,
        total=total,
        config=config,
        points=points[:total],
        config_dirs=[str(d) for d in composer.config_dirs],
        config_name=composer.config_name,
        kind="multirun" if every_point else "sweep",
        cwd=str(Path.cwd()),
    )
    return plan, settings.name is not None


def direction_of(metric: str, config: Mapping[str, Any]) -> Direction:
    """Which way a metric is better: the experiment's own says so itself, others by their names."""
    if metric == config["optimized_metric"] and config["optimized_direction"] in ("minimize", "maximize"):
        return "minimize" if config["optimized_direction"] == "minimize" else "maximize"
    return "minimize" if better_direction(metric) == "min" else "maximize"


def _launcher(settings: SweepSettings, given: Sequence[str], config_dirs: Sequence[str | Path]) -> str | None:
    """The overrides that choose the launcher and its settings, checked: ``sweep.launcher`` (its name alone will do), then the command line's."""
    words = shlex.split(settings.launcher or "")
    if len(words) == 1 and "=" not in words[0]:
        words = [f"hydra/launcher={words[0]}"]
    words += [text for text in given if text not in words]
    if not words:
        return None
    check(words, 1, config_dirs=[Path(d) for d in config_dirs])
    return shlex.join(words)


def _examples(space: SearchSpace, trials: TrialComposer, points: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Trials whose configs are checked beforehand: all of a grid, some draws of another space."""
    if points:
        yield from (space.overrides_of(point) for point in points[:MOST_TRIED])
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    yield from (space.suggest(study.ask(), trials) for _ in range(5))


def require_logged(plan: Plan) -> None:
    """One batch of one trial tells whether what the user chose as objectives is there at all."""
    wanted = [name for name in plan.judged_by if name not in (*TIMES, plan.config["optimized_metric"])]
    if not wanted:
        return
    trials = TrialComposer(Composer(plan.config_dirs, plan.config_name), plan.fixed, plan.config_name)
    example = next(iter(_examples(SearchSpace.from_dict(plan.space), trials, plan.points)))
    workers = workers_for(SweepSettings.model_validate(plan.settings), plan.total, devices_of(plan.config["trainer"]))
    logged = once(TRIED, (plan.to_json(), example), preload=PRELOAD, environment=environment_of(workers))
    missing = [name for name in wanted if name not in logged] if logged else []
    if missing:
        raise UsageError(f"the experiment logs no {missing[0]!r}{did_you_mean(missing[0], logged)} (it logs: {', '.join(logged)})")


def _as_group(text: str) -> str:
    """``sweep.pruner=hyperband`` chooses an option, as ``sweep/pruner=hyperband`` does."""
    key, equals, value = text.partition("=")
    if key in ("sweep.sampler", "sweep.pruner") and equals and not value.startswith("{"):
        return f"{key.replace('.', '/')}={'none' if value == 'null' else value}"
    return text


def key_of(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _is_swept(text: str) -> bool:
    return parse(text, None).is_sweep_override()


def _is_sweep_setting(text: str) -> bool:
    return key_of(text).replace("/", ".").split(".")[0] == "sweep"


def cautions(plan: Plan) -> Iterator[str]:
    """What somebody who reads the results should have known before."""
    keys = [p.key for p in SearchSpace.from_dict(plan.space).parameters]
    of_loss = [key for key in keys if key.partition(".")[0].partition("@")[0] in ("loss", "auxiliary", "reweighting")]
    if plan.kind == "sweep" and of_loss and any(name.endswith("/loss") for name in plan.objectives):
        what = f"{of_loss[0]} changes what {plan.objectives[0]} measures, so trials are judged by different scales"
        yield f"{what}: a metric is fairer, e.g. sweep.objectives=[val/acc]"


__all__ = ["cautions", "direction_of", "key_of", "make_plan", "require_logged"]

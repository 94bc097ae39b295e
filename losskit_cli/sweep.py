"""``losskit sweep``, ``losskit worker`` and ``losskit train --multirun``: plan a sweep, keep its workers going, show it, end it well."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from losskit_cli.commands import spec_of
from losskit_cli.compare import better_direction, terminal_width, to_table
from losskit_cli.compose import Composer
from losskit_cli.errors import LosskitError, RunError, UsageError
from losskit_cli.live import LiveTable, outcome_table, pareto
from losskit_cli.merging import flat
from losskit_cli.names import two_words
from losskit_cli.ranks import threads_each, usable_cores
from losskit_cli.sweep_run import SweepRun
from losskit_cli.tracking.server import WriterServer
from losskit_cli.trials import TrialComposer
from sweeps.algorithms import AlgorithmError, build_pruner, parse_constraints, read_sampler
from sweeps.launchers import LauncherError, is_launcher_override, launch
from sweeps.pool import Pool, WorkersDie
from sweeps.settings import Direction, Plan, SweepError, SweepSettings, auto_workers
from sweeps.space import SearchSpace, SpaceError
from sweeps.storage import StorageError, address_of, open_storage, shown
from sweeps.study import ERROR, Status, Sweep, runs_of

DEFAULT_TRIALS = 20
MOST_TRIED = 500  # points of a grid whose configs are composed before anything starts
TICK_SECONDS = 0.2
WATCH_SECONDS = 1.0
WORKER = "losskit_cli.trial_runs:main"
LAUNCHED = "losskit_cli.trial_runs:launched"


class SweepInterrupted(LosskitError):
    """Ctrl-C: what ran is checkpointed and waits."""

    exit_code = 130


# -- commands ----------------------------------------------------------------------------------------------------------------
def start(composer: Composer, overrides: Sequence[str], *, every_point: bool = False, dry_run: bool = False, json: bool, quiet: bool) -> None:
    """``losskit sweep``, and with ``every_point`` ``losskit train --multirun``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with in_words():
        plan, given_name = make_plan(composer, overrides, every_point=every_point)
        if dry_run:
            _show_plan(plan, json=json)
            return
        address = address_of(plan.settings["storage"])
        storage = open_storage(address)
        if given_name and plan.name in [s.study_name for s in storage.get_all_studies()]:
            sweep = Sweep.open(plan.name, storage, address)
            _same_again(sweep, plan)
        else:
            sweep = Sweep.create(plan, storage, address)
        run_sweep(sweep, json=json, quiet=quiet)


def resume(name: str, overrides: Sequence[str], *, storage: str | None, force: bool, json: bool, quiet: bool) -> None:
    """``losskit sweep --resume NAME``: towards its total, or a new one (``sweep.n_trials=…``)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with in_words():
        sweep = open_sweep(name, storage)
        before = sweep.plan
        after, _ = make_plan(
            Composer(before.config_dirs, before.config_name), [*before.given, *overrides], every_point=before.kind == "multirun", name=before.name
        )
        _go_on_with(sweep, after, force=force)
        run_sweep(sweep, json=json, quiet=quiet)


def status(name: str, *, storage: str | None, watch: bool, json: bool) -> None:
    """``losskit sweep --status NAME``."""
    with in_words():
        sweep = open_sweep(name, storage)
        if json:
            _write(jsonlib.dumps({key: value for key, value in asdict(sweep.status()).items() if key != "stop"}))
            return
        if not watch:
            Console().print(LiveTable(sweep).renderable())
            return
        with LiveTable(sweep, Console()) as table:
            while not (now := sweep.status()).done:
                table.update(now)
                time.sleep(WATCH_SECONDS)
        Console().print(LiveTable(sweep).renderable())


def stop(name: str, *, storage: str | None) -> None:
    """``losskit sweep --stop NAME``: running trials are checkpointed, and go on when it is resumed."""
    with in_words():
        sweep = open_sweep(name, storage)
        if sweep.status().done:
            raise UsageError(f"{name} is finished: there is nothing to stop")
        sweep.stop("stopped with losskit sweep --stop")
        Console(stderr=True).print(f"{name} stops; go on with: losskit sweep --resume {name}", highlight=False, soft_wrap=True)


def worker(name: str, *, storage: str | None) -> None:
    """``losskit worker NAME``: one more worker, in this process."""
    from losskit_cli.importing import import_heavy

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out = Console(stderr=True)
    with in_words():
        sweep = open_sweep(name, storage)
        if Path(sweep.plan.cwd).is_dir():
            os.chdir(sweep.plan.cwd)
        import_heavy("losskit_cli.trial_runs")
        from losskit_cli.trial_runs import worker_of_sweep

        done: list[int] = []

        def told(number: int, state: TrialState) -> None:
            done.append(number)
            out.print(f"trial {number}: {state.name}", highlight=False)

        try:
            why = worker_of_sweep(sweep, told=told).work()
        except KeyboardInterrupt:
            why = "interrupted"
        out.print(f"{len(done)} trials done" + (f"; ended because {why}" if why else "; the sweep has none left"), markup=False, highlight=False)
        if why == "interrupted":
            raise SweepInterrupted("stopped; its trial is checkpointed and goes to another worker")


def open_sweep(name: str, storage: str | None) -> Sweep:
    """A sweep by its name; in ``storage``, or in the working directory's."""
    if storage is None and not Path("sweeps.db").exists():
        raise UsageError("there is no sweeps.db in this directory: no sweep was started here (or name its storage: --storage …)")
    address = address_of(storage)
    return Sweep.open(name, open_storage(address), address)


# -- planning ----------------------------------------------------------------------------------------------------------------
def make_plan(composer: Composer, overrides: Sequence[str], *, every_point: bool = False, name: str | None = None) -> tuple[Plan, bool]:
    """What ``overrides`` ask for, checked as far as it can be before anything runs; and whether the user gave it a name.

    Raises:
        UsageError: a mistake in the space, the settings or the experiment.
    """
    given = [_as_group(text) for text in overrides]
    launcher = [text for text in given if is_launcher_override(text)]
    own = [text for text in given if text not in launcher]
    base = [text for text in own if not _is_sweep_setting(text) and not _is_swept(text)]
    if not any(_key(text) == "sweep" for text in own) and composer.compose(base).choices.get("sweep") is None:  # an experiment may choose one
        own = ["sweep=default", *own]
    trials = TrialComposer(composer, base, composer.config_name)
    config = composer.compose([text for text in own if not _is_swept(text)]).resolved()
    settings = SweepSettings.from_config(config.pop("sweep"))
    if launcher:
        settings = settings.model_copy(update={"launcher": shlex.join(launcher)})
    # the command line goes before the preset's space, whether it gives a key choices or fixes it
    named = {_key(text) for text in own}
    texts = [text for text in own if _is_swept(text)] + [f"{key}={text}" for key, text in settings.space.items() if key not in named]
    space, shared = SearchSpace.parse([*base, *texts], trials.config_loader)
    space.check(trials)
    sampler, constraints = read_sampler(settings.sampler), parse_constraints(settings.constraints)
    exhaustive = every_point or sampler.exhaustive or (settings.n_trials is None and space.finite)
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
        given=[text for text in given if _key(text) != "sweep.name"],
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
    """Which way a metric is better: the experiment's own says so itself, others by their names, times when they are short."""
    if metric == config["optimized_metric"] and config["optimized_direction"] in ("minimize", "maximize"):
        return "minimize" if config["optimized_direction"] == "minimize" else "maximize"
    return "minimize" if metric.startswith("time/") or better_direction(metric) == "min" else "maximize"


def _examples(space: SearchSpace, trials: TrialComposer, points: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Trials whose configs are checked beforehand: all of a grid, some draws of another space."""
    if points:
        yield from (space.overrides_of(point) for point in points[:MOST_TRIED])
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    yield from (space.suggest(study.ask(), trials) for _ in range(5))


def _same_again(sweep: Sweep, plan: Plan) -> None:
    """The same command once more goes on with a sweep that is not finished; anything else needs a word."""
    if sweep.status().done and plan.total <= sweep.plan.total:
        raise UsageError(
            f"there is a sweep {plan.name!r} already, and it is finished. "
            f"More trials: losskit sweep --resume {plan.name} sweep.n_trials=…; another sweep: sweep.name=…"
        )
    _go_on_with(sweep, plan, force=False)


def _go_on_with(sweep: Sweep, plan: Plan, *, force: bool) -> None:
    differences = sweep.plan.differences(plan, flat)
    if differences and not force:
        shown_first = "\n  ".join(differences[:8]) + (f"\n  … and {len(differences) - 8} more" if len(differences) > 8 else "")
        raise UsageError(
            f"{plan.name} was started with another configuration:\n  {shown_first}\n"
            "Give the sweep another name (sweep.name=…), or go on all the same, with both recorded: --force"
        )
    if plan.total < sweep.plan.total and not differences:
        raise UsageError(f"{plan.name} was started with {sweep.plan.total} trials, which cannot become {plan.total}: give more, or stop it (--stop)")
    if sweep.status().done and plan.total <= sweep.plan.total:
        raise UsageError(f"{plan.name} is finished: all of its {sweep.plan.total} trials are done. More: losskit sweep --resume {plan.name} sweep.n_trials=…")
    sweep.change(replace(plan, cwd=plan.cwd or sweep.plan.cwd))


def _as_group(text: str) -> str:
    """``sweep.pruner=hyperband`` chooses an option, as ``sweep/pruner=hyperband`` does."""
    key, equals, value = text.partition("=")
    if key in ("sweep.sampler", "sweep.pruner") and equals and not value.startswith("{"):
        return f"{key.replace('.', '/')}={'none' if value == 'null' else value}"
    return text


def _key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _is_swept(text: str) -> bool:
    return bool(SearchSpace.parse([text])[0].parameters) if "=" in text and "glob(" not in text else "glob(" in text


def _is_sweep_setting(text: str) -> bool:
    return _key(text).replace("/", ".").split(".")[0] == "sweep"


def _show_plan(plan: Plan, *, json: bool) -> None:
    """``--dry-run``: what would be searched."""
    if json:
        _write(plan.to_json())
        return
    out = Console()
    out.print(f"{plan.total} trials" + (f", each over the seeds {', '.join(map(str, plan.seeds))}" if plan.seeds else ""), highlight=False)
    out.print(f"objectives  {', '.join(f'{m} ({d})' for m, d in zip(plan.objectives, plan.directions, strict=True))}", highlight=False)
    for text in plan.space_given:
        out.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


# -- running -----------------------------------------------------------------------------------------------------------------
def run_sweep(sweep: Sweep, *, json: bool, quiet: bool) -> None:
    """Keep workers going until the sweep is done, stopped or interrupted, and say how it ended."""
    out = Console(stderr=True, quiet=quiet or json)
    sweep.stop(None)
    sweep.top_up()
    with WriterServer.start() if sweep.plan.config["tracking"].get("enabled", True) else nullcontext():
        _run_sweep(sweep, out, json=json, quiet=quiet)


def _run_sweep(sweep: Sweep, out: Console, *, json: bool, quiet: bool) -> None:
    run = SweepRun.begin(sweep)
    for note in run.notes:
        out.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{sweep.plan.name}: {sweep.plan.total} trials in {shown(sweep.address)}", markup=False, highlight=False, soft_wrap=True)
    error: LosskitError | None = None
    try:
        with _term_is_interrupt():
            _work(sweep, run, out)
    except KeyboardInterrupt:
        error = SweepInterrupted(f"stopped; what ran is checkpointed. Go on with: losskit sweep --resume {sweep.plan.name}")
    except WorkersDie as dying:
        error = RunError(str(dying))
    now = sweep.status()
    if error is None and now.stop:
        error = RunError(f"{now.stop}. Go on with: losskit sweep --resume {sweep.plan.name}")
    how = "FINISHED" if error is None else "KILLED" if isinstance(error, SweepInterrupted) else "FAILED"
    _keep_report(sweep, run, out, finished=error is None)
    outcome = run.end(now, how, str(error) if error else None)
    if outcome is not None and not outcome.ok:
        out.print(f"note: tracking: {outcome.error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _report(sweep, now, json=json, quiet=quiet, error=error)


def _work(sweep: Sweep, run: SweepRun, out: Console) -> None:
    plan, settings = sweep.plan, sweep.settings
    if settings.launcher:
        _launch(sweep, run)
        return
    left = plan.total - sweep.status().finished
    devices = _devices(plan.config["trainer"])
    count = auto_workers(usable_cores(), len(devices), left) if settings.workers == "auto" else min(int(settings.workers), max(1, left))
    pool = Pool(
        WORKER,
        (plan.name, sweep.address, plan.cwd),
        count,
        preload=["losskit_cli.trial_runs"],
        environment={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(count)))},
        devices=devices,
        lost=sweep.lost,
    )
    pool.prepare()
    run.wait_for_id(sweep)
    pool.start()
    calmly = False
    try:
        with LiveTable(sweep, out) as table:
            while True:
                now = sweep.status()
                running = pool.tend(more=not now.stop and now.finished < now.total)
                table.update(now)
                run.show(now)
                if now.done or not running:
                    break
                time.sleep(TICK_SECONDS)
        calmly = True
    except KeyboardInterrupt:
        calmly = True
        raise
    finally:
        pool.close(calmly)


def _devices(trainer: Mapping[str, Any]) -> list[str]:
    """The GPUs that workers take in turn, one each; none where trials run on the CPU or need several themselves."""
    if trainer.get("accelerator") == "cpu" or trainer.get("devices", 1) not in (1, "auto", "1"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def _launch(sweep: Sweep, run: SweepRun) -> None:
    """Workers through a Hydra launcher plugin; it returns when all of them have ended."""
    settings, plan = sweep.settings, sweep.plan
    run.wait_for_id(sweep)
    jobs = 1 if settings.workers == "auto" else int(settings.workers)
    argument = {"name": plan.name, "address": sweep.address, "cwd": plan.cwd}
    dirs = [Path(d) for d in plan.config_dirs]
    launch(shlex.split(settings.launcher or ""), jobs, LAUNCHED, argument, directory=Path(plan.cwd), name=plan.name, paths=[plan.cwd], config_dirs=dirs)


@contextmanager
def _term_is_interrupt() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def in_words() -> Iterator[None]:
    """Errors of ``sweeps`` as the command line's."""
    try:
        yield
    except (AlgorithmError, LauncherError, SpaceError, SweepError, StorageError) as error:
        raise UsageError(str(error)) from error


# -- the end -----------------------------------------------------------------------------------------------------------------
def _keep_report(sweep: Sweep, run: SweepRun, out: Console, *, finished: bool) -> None:
    """The report among the sweep's artifacts; a sweep's outcome does not hang on it."""
    if not finished or sweep.plan.kind != "sweep":
        return
    from losskit_cli.report import report_html
    from losskit_cli.tracking.store import Store

    page = run.directory / "report.html"
    try:
        page.write_text(report_html(sweep.study, Store.open() if run.run_id else None), encoding="utf-8")
    except (LosskitError, OSError) as error:
        out.print(f"note: no report: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        return
    run.keep(page)


def _report(sweep: Sweep, now: Status, *, json: bool, quiet: bool, error: LosskitError | None) -> None:
    """The end of a sweep: one JSON value, or the table, the best trial and where to look."""
    plan = sweep.plan
    failed = list(sweep.trials(TrialState.FAIL))
    if json:
        _write(jsonlib.dumps(_outcomes(sweep) if plan.kind == "multirun" else {k: v for k, v in asdict(now).items() if k != "stop"}))
    elif not quiet:
        if now.finished:
            _write(to_table(outcome_table(sweep), terminal_width()).rstrip())
        out = Console()
        if plan.kind == "sweep" and now.best_value is not None:
            best = pareto(now.best_value) if isinstance(now.best_value, list) else f"{now.best_value:.6g}"
            out.print(f"\nbest {', '.join(plan.objectives)}  {best}", markup=False, highlight=False, soft_wrap=True)
            for trial in sweep.best()[:1]:
                out.print(f"run it again     {best_command(sweep, trial)}", markup=False, highlight=False, soft_wrap=True)
            look = (f"compare --sweep {plan.name}", f"report {plan.name}", f"ui --sweep {plan.name}")
            out.print(f"look at it       {'   ·   '.join(f'losskit {words}' for words in look)}", highlight=False, soft_wrap=True)
    for trial in failed if not quiet else ():
        what = " ".join(trial.user_attrs.get("losskit:overrides", []))
        sys.stderr.write(f"Error: trial {trial.number} ({what}): {trial.user_attrs.get(ERROR, 'no reason is known')}\n")
    if error is not None:
        raise error
    if failed and plan.kind == "multirun":
        raise LosskitError(f"{len(failed)} of {plan.total} runs failed")
    if not now.complete:
        raise RunError(f"no trial of {plan.name} was completed")


def best_command(sweep: Sweep, trial: optuna.trial.FrozenTrial) -> str:
    """``losskit train`` with what the trial was run with, quoted for a shell."""
    dirs = [word for directory in sweep.plan.config_dirs for word in ("--config-dir", directory)]
    return shlex.join(["losskit", "train", *dirs, *sweep.plan.fixed, *trial.user_attrs.get("losskit:overrides", [])])


def _outcomes(sweep: Sweep) -> list[dict[str, Any]]:
    """One object a run of a multirun, in the order of the points."""
    outcomes = []
    for trial in sweep.trials():
        if not trial.state.is_finished():
            continue
        overrides = [*sweep.plan.fixed, *trial.user_attrs.get("losskit:overrides", [])]
        run = next(iter(runs_of(trial).values()), {})
        if trial.state == TrialState.COMPLETE:
            outcomes.append({"overrides": overrides, **run["summary"]})
        else:
            outcomes.append({"overrides": overrides, "run_dir": run.get("run_dir"), "status": "FAILED", "error": trial.user_attrs.get(ERROR)})
    return outcomes


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


__all__ = ["SweepInterrupted", "best_command", "make_plan", "open_sweep", "resume", "run_sweep", "start", "status", "stop", "worker"]

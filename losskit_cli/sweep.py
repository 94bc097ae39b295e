"""``losskit sweep``, ``losskit worker`` and ``losskit train --multirun``: plan a sweep, keep its workers going, show it, end it well."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from rich.console import Console

from losskit_cli.compare import terminal_width, to_table
from losskit_cli.compose import Composer
from losskit_cli.errors import LosskitError, RunError, UsageError
from losskit_cli.live import LiveTable, outcome_table, pareto
from losskit_cli.merging import flat
from losskit_cli.rundir import remove_run_dir
from losskit_cli.signals import as_interrupts
from losskit_cli.studies import existing_storage, train_command
from losskit_cli.sweep_plan import cautions, key_of, make_plan, require_logged
from losskit_cli.sweep_run import SweepRun, alone, make_directory, without_credentials
from losskit_cli.sweep_work import work
from losskit_cli.tracking.server import WriterServer
from sweeps.algorithms import AlgorithmError
from sweeps.launchers import LauncherError
from sweeps.pool import WorkersDie
from sweeps.settings import Plan, SweepError
from sweeps.space import SearchSpace, SpaceError
from sweeps.storage import StorageError, address_of, open_storage, shown
from sweeps.study import ERROR, Status, Sweep, runs_of

WATCH_SECONDS = 1.0
BY_COMMAND = "stopped with losskit sweep --stop"


class SweepInterrupted(LosskitError):
    """Ctrl-C: what ran is checkpointed and waits."""

    exit_code = 130


@dataclass(frozen=True)
class PartOf:
    """What a sweep is a part of, which goes on with it and tells of it in its own way.

    Attributes:
        command: that goes on with the whole.
        keep: called when the sweep is finished, to keep something with its run.
    """

    command: str
    keep: Callable[[Sweep, SweepRun], None] = lambda sweep, run: None


# -- commands ----------------------------------------------------------------------------------------------------------------
def start(
    composer: Composer, overrides: Sequence[str], *, every_point: bool = False, dry_run: bool = False, force: bool = False, json: bool, quiet: bool
) -> None:
    """``losskit sweep``, and with ``every_point`` ``losskit train --multirun``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with in_words():
        plan, given_name = make_plan(composer, overrides, every_point=every_point)
        if dry_run:
            _show_plan(plan, json=json)
            return
        address = address_of(plan.settings["storage"])
        require_logged(plan)  # before there is a storage: nothing is left behind
        storage = open_storage(address)
        there = given_name and plan.name in _names_in(storage)
        sweep = Sweep.open(plan.name, storage, address) if there else _create(plan, storage, address)
        with alone(sweep):
            if there:  # the same command once more goes on with it
                _go_on_with(sweep, plan, force=force)
            run_sweep(sweep, json=json, quiet=quiet)


def run_to_end(plan: Plan, part_of: PartOf, name_beside: Callable[[Container[str]], str], *, json: bool, quiet: bool) -> Sweep:
    """The sweep of ``plan``, finished: run, gone on with, or found so; ``name_beside`` names it, given the names of those in its storage."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with in_words():
        address = address_of(plan.settings["storage"])
        storage = open_storage(address)
        names = _names_in(storage)
        plan = replace(plan, name=name_beside(names))
        if plan.name in names:
            sweep = Sweep.open(plan.name, storage, address)
        else:
            require_logged(plan)
            sweep = _create(plan, storage, address)
        if not sweep.status().done:
            with alone(sweep):
                run_sweep(sweep, json=json, quiet=quiet, part_of=part_of)
        return sweep


def _names_in(storage: BaseStorage) -> set[str]:
    return {study.study_name for study in storage.get_all_studies()}


def _create(plan: Plan, storage: BaseStorage, address: str) -> Sweep:
    directory = make_directory(plan)
    try:
        return Sweep.create(plan, storage, address, directory=str(directory))
    except BaseException:
        remove_run_dir(directory)
        raise


def resume(name: str, overrides: Sequence[str], *, storage: str | None, force: bool, json: bool, quiet: bool) -> None:
    """``losskit sweep --resume NAME``: towards its total, or a new one (``sweep.n_trials=…``)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with in_words():
        sweep = open_sweep(name, storage)
        before, keys = sweep.plan, {key_of(text) for text in overrides}
        given = [*(text for text in before.given if key_of(text) not in keys), *overrides]
        after, _ = make_plan(Composer(before.config_dirs, before.config_name), given, every_point=before.kind == "multirun", name=before.name)
        with alone(sweep):
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
        sweep.stop(BY_COMMAND)
        Console(stderr=True).print(f"{name} stops; go on with: {_again(sweep)}", markup=False, highlight=False, soft_wrap=True)


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

        with WriterServer.start() if sweep.plan.config["tracking"].get("enabled", True) else nullcontext(), as_interrupts():
            try:
                why = worker_of_sweep(sweep, told=told).work()
            except KeyboardInterrupt:
                why = "interrupted"
        out.print(f"{len(done)} trial{'' if len(done) == 1 else 's'} done; {why or 'the sweep has none left'}", markup=False, highlight=False, soft_wrap=True)
        if why == "interrupted":
            raise SweepInterrupted("stopped; a trial that it was at is checkpointed and goes to another worker")


def open_sweep(name: str, storage: str | None) -> Sweep:
    """A sweep by its name; in ``storage``, or in the working directory's."""
    address, opened = existing_storage(storage)
    return Sweep.open(name, opened, address)


def _go_on_with(sweep: Sweep, plan: Plan, *, force: bool) -> None:
    differences = sweep.plan.differences(plan, flat)
    if differences and not force:
        shown_first = "\n  ".join(differences[:8]) + (f"\n  … and {len(differences) - 8} more" if len(differences) > 8 else "")
        raise UsageError(
            f"there is a sweep {plan.name!r} already, started with another configuration:\n  {shown_first}\n"
            f"Go on with it as it was: losskit sweep --resume {plan.name}; start another: sweep.name=…; change it, with both recorded: --force"
        )
    if plan.total < sweep.plan.total and not differences:
        raise UsageError(f"{plan.name} was started with {sweep.plan.total} trials, which cannot become {plan.total}: give more, or stop it (--stop)")
    if sweep.status().done and plan.total <= sweep.plan.total:
        if plan.points and len(plan.points) == plan.total:
            raise UsageError(f"{plan.name} is finished: it has tried every point of its space. Another sweep: sweep.name=…")
        raise UsageError(
            f"{plan.name} is finished: all of its {sweep.plan.total} trials are done. "
            f"More: losskit sweep --resume {plan.name} sweep.n_trials=…; another sweep: sweep.name=…"
        )
    old, new = (SearchSpace.from_dict(p.space).distributions for p in (sweep.plan, plan))
    for name in old.keys() & new.keys():
        try:
            check_distribution_compatibility(old[name], new[name])
        except ValueError as error:
            raise UsageError(f"{name} has been searched among other choices, and a sweep compares its trials by them: start another (sweep.name=…)") from error
    sweep.change(replace(plan, cwd=plan.cwd or sweep.plan.cwd))


def _show_plan(plan: Plan, *, json: bool) -> None:
    """``--dry-run``: what would be searched."""
    if json:
        _write(without_credentials(plan).to_json())
        return
    out = Console()
    out.print(f"{plan.total} trials" + (f", each over the seeds {', '.join(map(str, plan.seeds))}" if plan.seeds else ""), highlight=False)
    out.print(f"objectives  {', '.join(f'{m} ({d})' for m, d in zip(plan.objectives, plan.directions, strict=True))}", highlight=False)
    for text in plan.space_given:
        out.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


# -- running -----------------------------------------------------------------------------------------------------------------
def run_sweep(sweep: Sweep, *, json: bool, quiet: bool, part_of: PartOf | None = None) -> None:
    """Keep workers going until the sweep is done, stopped or interrupted, and say how it ended; of a part, only what went wrong is said."""
    out = Console(stderr=True, quiet=quiet or json)
    tracked = sweep.plan.config["tracking"].get("enabled", True)
    with WriterServer.start() if tracked else nullcontext():
        sweep.stop(None)
        sweep.top_up()
        _run_sweep(sweep, out, part_of, json=json, quiet=quiet)


def _run_sweep(sweep: Sweep, out: Console, part_of: PartOf | None, *, json: bool, quiet: bool) -> None:
    again = part_of.command if part_of is not None else _again(sweep)
    run = SweepRun.begin(sweep)
    for note in (*cautions(sweep.plan), *run.notes):
        out.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{sweep.plan.name}: {sweep.plan.total} trials in {shown(sweep.address)}", markup=False, highlight=False, soft_wrap=True)
    error: LosskitError | None = None
    try:
        with as_interrupts():
            work(sweep, run, out)
    except KeyboardInterrupt:
        sweep.stop("interrupted")  # workers that others have added end too
        error = SweepInterrupted(f"stopped; what ran is checkpointed. Go on with: {again}")
    except WorkersDie as dying:
        error = RunError(f"{dying}. Go on with: {again}")
    now = sweep.status()
    if error is None and now.stop:
        error = RunError(f"{now.stop}. Go on with: {again}")
    how = "FINISHED" if error is None else "KILLED" if isinstance(error, SweepInterrupted) or now.stop == BY_COMMAND else "FAILED"
    if part_of is None:
        _keep_report(sweep, run, out, finished=error is None)
    elif error is None:
        part_of.keep(sweep, run)
    outcome = run.end(now, how, str(error) if error else None)
    if outcome is not None and not outcome.ok:
        out.print(f"note: tracking: {outcome.error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _report(sweep, now, json=json and part_of is None, quiet=quiet or part_of is not None, error=error)


def _again(sweep: Sweep) -> str:
    """The command that goes on with a sweep."""
    return f"losskit sweep --resume {sweep.plan.name}{_where(sweep)}"


def _where(sweep: Sweep) -> str:
    """How a command names the sweep's storage, if it must."""
    return "" if sweep.address == address_of() else f" --storage {shlex.quote(shown(sweep.address))}"


@contextmanager
def in_words() -> Iterator[None]:
    """Errors of ``sweeps`` as the command line's."""
    try:
        yield
    except (AlgorithmError, LauncherError, SpaceError, SweepError, StorageError) as error:
        raise UsageError(str(error)) from error
    except StorageInternalError as error:
        raise RunError(f"{error.args[0] if error.args else 'the storage failed'}. When it is back: losskit sweep --resume NAME") from error


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
                out.print(f"run it again     {train_command(asdict(plan), trial)}", markup=False, highlight=False, soft_wrap=True)
            look = (f"compare --sweep {plan.name}", f"report {plan.name}{_where(sweep)}", f"ui --sweep {plan.name}{_where(sweep)}")
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


__all__ = ["PartOf", "SweepInterrupted", "open_sweep", "resume", "run_sweep", "run_to_end", "start", "status", "stop", "worker"]

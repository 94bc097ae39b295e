"""What a trial of a sweep is: one training run, or one for each seed, in directories that a later attempt goes on in."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import optuna

from components.tasks.base import NonFiniteLossError
from components.validation import did_you_mean
from losskit_cli.commands import spec_of
from losskit_cli.compose import Composer
from losskit_cli.errors import LosskitError
from losskit_cli.launch import go, start
from losskit_cli.run import EndedEarly, Interrupted, Summary
from losskit_cli.rundir import SPEC, HeldError, RunSpec
from losskit_cli.tracking.contents import PREFIX
from losskit_cli.tracking.state import RunFile
from losskit_cli.trials import TrialComposer
from sweeps.algorithms import build_pruner, build_sampler, parse_constraints, read_sampler, record_constraints
from sweeps.space import SearchSpace
from sweeps.study import PARENT, RUNS, Sweep, runs_of
from sweeps.worker import Attempt, TrialFailed, TrialInterrupted, TrialPruned, Worker

TIMES = ("time/run", "time/step")
"""Seconds of a whole run and of one training step: objectives that every run has."""


class TrialRunner:
    """Runs the trials of one sweep in this process; call it with an attempt.

    Args:
        sweep: the sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        plan = sweep.plan
        self.sweep, self.plan = sweep, plan
        self.space = SearchSpace.from_dict(plan.space)
        self.composer = TrialComposer(Composer(plan.config_dirs, plan.config_name), plan.fixed, plan.config_name)

    def __call__(self, attempt: Attempt) -> list[float]:
        overrides = self.space.suggest(attempt.trial, self.composer)
        attempt.note(overrides=overrides)
        runs = runs_of(attempt.claim.frozen)
        seeds: list[int | None] = [*self.plan.seeds] or [None]
        for index, seed in enumerate(seeds):
            run = runs.setdefault(str(seed), {})
            if "metrics" not in run:
                self._run(attempt, [*overrides, *([f"seed={seed}"] if seed is not None else [])], runs, run)
            if len(seeds) > 1:
                self._report_seed(attempt, index, [runs[str(s)]["metrics"] for s in seeds[: index + 1]])
        metrics = mean_of([run["metrics"] for run in runs.values()])
        attempt.note(metrics=metrics)
        values = self._objectives(metrics)
        record_constraints(attempt.trial, parse_constraints(self.sweep.settings.constraints), metrics)
        return values

    def _run(self, attempt: Attempt, overrides: list[str], runs: dict[str, Any], run: dict[str, Any]) -> None:
        """One training run, noted in ``run``, or what is left of it."""

        def note(run_dir: Path) -> None:
            run["run_dir"] = str(run_dir)
            attempt.note(**{RUNS.partition(":")[2]: runs, "run_dir": run["run_dir"]})

        tags = {f"{PREFIX}sweep": self.plan.name, f"{PREFIX}trial": attempt.number, f"{PREFIX}trial_state": "RUNNING"}
        parent = self.sweep.study.user_attrs.get(PARENT)
        if parent:
            tags["mlflow.parentRunId"] = parent
        reports = [Reports(attempt, self.plan.objectives[0])] if self._reports else []
        try:
            summary = self._go_on(run, tags, reports) or start(self._spec(overrides), quiet=True, json=True, tags=tags, callbacks=reports, made=note)
        except Interrupted as interruption:
            raise TrialInterrupted(str(interruption)) from interruption
        except EndedEarly as ended:
            raise TrialPruned(str(ended)) from ended
        except LosskitError as error:
            if isinstance(error.__cause__, NonFiniteLossError) and self.plan.settings["nan"] == "prune":
                raise TrialPruned(str(error)) from error
            raise TrialFailed(str(error)) from error
        finally:
            if "run_dir" in run and (run_id := RunFile.load(Path(run["run_dir"])).run_id):
                run["run_id"] = run_id
                attempt.note(run_id=run_id)
        run["metrics"], run["summary"] = figures(summary), summary.as_dict()
        attempt.note(**{RUNS.partition(":")[2]: runs})

    def _go_on(self, run: Mapping[str, Any], tags: Mapping[str, Any], callbacks: Sequence[lightning.Callback]) -> Summary | None:
        """Go on with the run of an earlier attempt; ``None``: there is none on this machine, or somebody still trains in it."""
        run_dir = Path(run.get("run_dir", ""))
        if "run_dir" not in run or not (run_dir / SPEC).is_file():
            return None
        spec = RunSpec.load(run_dir)
        try:
            return go(spec, run_dir, saved=spec, quiet=True, json=True, tags=tags, callbacks=callbacks)
        except HeldError:
            return None

    def _spec(self, overrides: Sequence[str]) -> RunSpec:
        spec = spec_of(self.composer.compose(overrides), self.plan.config_name)
        return spec.with_config({k: v for k, v in spec.config.items() if k != "sweep"})

    @property
    def _reports(self) -> bool:
        """Whether runs report while they train: one objective, one seed. Over seeds, each of them is a report."""
        return len(self.plan.objectives) == 1 and len(self.plan.seeds) <= 1

    def _report_seed(self, attempt: Attempt, index: int, metrics: Sequence[Mapping[str, float]]) -> None:
        """Over several seeds: the mean so far, or, for a test over seeds, this seed's own value."""
        if len(self.plan.objectives) > 1:
            return
        own = isinstance(self.sweep.study.pruner, optuna.pruners.WilcoxonPruner)
        value = self._objectives(metrics[-1] if own else mean_of(metrics))[0]
        attempt.report(value, index)

    def _objectives(self, metrics: Mapping[str, float]) -> list[float]:
        missing = [name for name in self.plan.objectives if name not in metrics]
        if missing:
            raise TrialFailed(
                f"the run has logged no {missing[0]!r}{did_you_mean(missing[0], metrics)} (it has: {', '.join(sorted(metrics))})", fatal=True
            )
        values = {name: metrics[name] for name in self.plan.objectives}
        for name, value in values.items():
            if math.isnan(value):
                raise (TrialPruned if self.plan.settings["nan"] == "prune" else TrialFailed)(f"{name} is not a number")
        return list(values.values())


class Reports(lightning.Callback):
    """Reports the objective after every validation and ends the run where the pruner says so. The report is made before a checkpoint is saved.

    Args:
        attempt: of the trial.
        metric: the objective.
    """

    def __init__(self, attempt: Attempt, metric: str) -> None:
        self.attempt, self.metric = attempt, metric

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        try:
            self.attempt.report(float(trainer.callback_metrics[self.metric]), trainer.global_step)
        except TrialPruned as pruned:
            raise EndedEarly(str(pruned)) from pruned


def figures(summary: Summary) -> dict[str, float]:
    """A run's metrics, and how long it took."""
    return summary.metrics | {"time/run": summary.duration_s, "time/step": summary.duration_s / max(1, summary.steps)}


def mean_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over runs of what all of them have."""
    common = [name for name in metrics[0] if all(name in other for other in metrics)]
    return {name: math.fsum(values[name] for values in metrics) / len(metrics) for name in common}


def worker_of_sweep(sweep: Sweep, **options: Any) -> Worker:
    """A worker for ``sweep``, with its plan's sampler and pruner. ``options``: see :class:`sweeps.worker.Worker`."""
    plan, settings, space = sweep.plan, sweep.settings, SearchSpace.from_dict(sweep.plan.space)
    sampler, constraints = read_sampler(settings.sampler), parse_constraints(settings.constraints)

    def sampler_of(number: int) -> optuna.samplers.BaseSampler:
        return build_sampler(sampler, seed=settings.seed, trial_number=number, space=space, directions=plan.directions, constraints=constraints)

    pruner = build_pruner(settings.pruner, directions=plan.directions)
    return Worker(sweep, TrialRunner(sweep), sampler_of=sampler_of, pruner=pruner, **options)


def main(name: str, address: str, cwd: str, device: str | None) -> None:
    """A local worker process: until the sweep has no trials left, or whoever started it is gone."""
    from sweeps.storage import open_storage

    os.setsid()  # Ctrl-C in the terminal is for the one who started the workers, who tells them
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.chdir(cwd)
    parent = os.getppid()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = Sweep.open(name, open_storage(address), address)
    try:
        worker_of_sweep(sweep, alive=lambda: os.getppid() == parent).work()
    except KeyboardInterrupt:
        return


def launched(argument: Mapping[str, Any]) -> None:
    """A worker that a Hydra launcher has started, on this machine or another one."""
    from sweeps.storage import open_storage

    if Path(argument["cwd"]).is_dir():
        os.chdir(argument["cwd"])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    worker_of_sweep(Sweep.open(argument["name"], open_storage(argument["address"]), argument["address"])).work()


__all__ = ["TIMES", "Reports", "TrialRunner", "figures", "launched", "main", "mean_of", "worker_of_sweep"]

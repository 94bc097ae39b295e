"""What a trial of a sweep is: one training run, or one for each seed, in directories that a later attempt goes on in."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import optuna
import torch

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
from sweeps.pool import starter_lives
from sweeps.settings import TIMES, Plan
from sweeps.space import SearchSpace
from sweeps.study import PARENT, RUNS, Sweep, runs_of
from sweeps.worker import Attempt, TrialFailed, TrialInterrupted, TrialPruned, Worker


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
        attempt.note(overrides=overrides, fixed=self.plan.fixed)  # of this session's plan: --force may have changed it since
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
        tags |= {f"{PREFIX}optimized_metric": self.plan.objectives[0], f"{PREFIX}optimized_direction": self.plan.directions[0]}
        parent = self.sweep.study.user_attrs.get(PARENT)
        if parent:
            tags["mlflow.parentRunId"] = parent
        clock = StepClock()
        watching = [clock, *([Reports(attempt, self.plan.objectives[0])] if self._reports else [])]
        try:
            summary = self._go_on(run, tags, watching) or start(self._spec(overrides), quiet=True, json=True, tags=tags, callbacks=watching, made=note)
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
        run["metrics"], run["summary"] = figures(summary, clock), summary.as_dict()
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
        if any(text.lstrip("+").startswith("tracking.plots=") for text in self.plan.given):
            return spec
        # the sweep's report has the learning curves; a picture of each for each trial takes as long as a short training
        return spec.with_config({**spec.config, "tracking": {**spec.config["tracking"], "plots": False}})

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
        attempt.report(value, index + 1)

    def _objectives(self, metrics: Mapping[str, float]) -> list[float]:
        missing = [name for name in self.plan.judged_by if name not in metrics]
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
    """Reports the objective after every validation, numbered from 1, and ends the run where the pruner says so.

    Trials are compared report by report, whatever their batch size. The number goes into the checkpoint that is saved after the report.

    Args:
        attempt: of the trial.
        metric: the objective.
    """

    def __init__(self, attempt: Attempt, metric: str) -> None:
        self.attempt, self.metric, self.made = attempt, metric, 0

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.made = int(state_dict["made"])

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        self.made += 1
        try:
            self.attempt.report(float(trainer.callback_metrics[self.metric]), self.made)
        except TrialPruned as pruned:
            raise EndedEarly(str(pruned)) from pruned


class StepClock(lightning.Callback):
    """How long a training step takes: forward, backward and update, without the data, the validation and the first step.

    Attributes:
        mean: seconds; those of the only step if there is no other.
    """

    def __init__(self) -> None:
        self.steps, self.total, self._began, self._first = 0, 0.0, 0.0, 0.0

    @property
    def mean(self) -> float:
        return self.total / self.steps if self.steps else self._first

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        took = time.perf_counter() - self._began
        if not self._first:  # it also allocates and compiles
            self._first = took
            return
        self.steps, self.total = self.steps + 1, self.total + took


def figures(summary: Summary, clock: StepClock) -> dict[str, float]:
    """A run's metrics, and how long it took: see :data:`sweeps.settings.TIMES`."""
    return summary.metrics | dict(zip(TIMES, (summary.duration_s, clock.mean), strict=True))


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
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # it was imported before it was known how many workers there are
    os.chdir(cwd)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = Sweep.open(name, open_storage(address), address)
    try:
        worker_of_sweep(sweep, alive=starter_lives).work()
    except KeyboardInterrupt:
        return


def tried(plan_text: str, overrides: Sequence[str]) -> list[str]:
    """The names of what a trial would log, by one batch of it; none if that fails, which the trials themselves will say more about."""
    plan = Plan.from_json(plan_text)
    os.chdir(plan.cwd)
    composer = TrialComposer(Composer(plan.config_dirs, plan.config_name), plan.fixed, plan.config_name)
    spec = spec_of(composer.compose(overrides), plan.config_name)
    trainer = {**spec.config["trainer"], "fast_dev_run": True}
    try:
        return sorted(figures(start(spec.with_config({**spec.config, "trainer": trainer}), quiet=True, json=True), StepClock()))
    except LosskitError:
        return []


def launched(argument: Mapping[str, Any]) -> None:
    """A worker that a Hydra launcher has started, on this machine or another one."""
    from sweeps.storage import open_storage

    if Path(argument["cwd"]).is_dir():
        os.chdir(argument["cwd"])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = Sweep.open(argument["name"], open_storage(argument["address"]), argument["address"])
    try:
        worker_of_sweep(sweep).work()
    except KeyboardInterrupt:  # told to stop between two trials
        return


__all__ = ["Reports", "StepClock", "TrialRunner", "figures", "launched", "main", "mean_of", "tried", "worker_of_sweep"]

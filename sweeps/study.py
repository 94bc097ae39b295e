"""A sweep's study: tickets that are each worked on once, whoever dies in between.

Every trial is a *ticket*: created waiting, claimed by one worker, ended once. The number of tickets is the sweep's total, so it is exact
with any number of workers. A worker shows that it lives by counting up its trial's beat; whoever sees a beat stand still for
``grace_seconds`` by their own clock (clocks of different machines are never compared) puts the ticket back, and the next worker goes on
with the same trial: its parameters, its intermediate values, its run. Nothing is cloned, so nothing can be counted twice.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import _filter_study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.settings import Plan, SweepError, SweepSettings
from sweeps.storage import claim_waiting, enqueue_many, finish, requeue, shown, study_attr

PLAN, STOP, PARENT, DIRECTORY = "losskit:plan", "losskit:stop", "losskit:parent_run", "losskit:dir"
TICKET, RUNS, METRICS, ERROR, OVERRIDES = "losskit:ticket", "losskit:runs", "losskit:metrics", "losskit:error", "losskit:overrides"
RUN_ID, RUN_DIR = "losskit:run_id", "losskit:run_dir"
WORKER, BEAT, LOST = "losskit:worker", "losskit:beat", "losskit:lost"


@dataclass
class Claim:
    """A trial that a worker has taken.

    Attributes:
        number: the trial's number.
        trial_id: its id in the storage.
        frozen: the trial as it was when it was claimed: its runs, if it was begun before.
        worker: who has it.
    """

    number: int
    trial_id: int
    frozen: FrozenTrial
    worker: str


@dataclass(frozen=True)
class Status:
    """How far a sweep is; what ``--status --json`` prints."""

    name: str
    storage: str
    total: int
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    best_value: float | list[list[float]] | None
    best_params: dict[str, Any] | list[dict[str, Any]] | None
    best_run_id: str | list[str] | None
    workers: list[str] = field(default_factory=list)
    stop: str | None = None

    @property
    def finished(self) -> int:
        return self.complete + self.pruned + self.failed

    @property
    def done(self) -> bool:
        return self.finished >= self.total


class Sweep:
    """A sweep in its storage, as the one who starts it, a worker, or somebody who looks on sees it. Made by :meth:`create` or :meth:`open`.

    Args:
        study: the Optuna study.
        storage: its storage.
        plan: what it does.
        address: where the storage is, for showing.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, plan: Plan, address: str = "") -> None:
        self.study, self.storage, self.plan, self.address = study, storage, plan, address
        self.settings = SweepSettings.model_validate(plan.settings)
        self.study_id = storage.get_study_id_from_name(plan.name)
        self._beats: dict[int, tuple[Any, float]] = {}

    # -- making and finding ------------------------------------------------------------------------------------------------
    @classmethod
    def create(cls, plan: Plan, storage: BaseStorage, address: str = "", *, directory: str = "") -> Sweep:
        """A new sweep with its first tickets. ``directory``: the sweep's own, where what belongs to all trials goes.

        Raises:
            SweepError: there is one of that name.
        """
        try:
            pruner = optuna.pruners.NopPruner()
            study = optuna.create_study(study_name=plan.name, storage=storage, directions=plan.directions, sampler=_no_sampler(), pruner=pruner)
        except DuplicatedStudyError as error:
            raise SweepError(f"there is a sweep {plan.name!r} already: to go on with it, losskit sweep --resume {plan.name}; or set sweep.name=…") from error
        if directory:
            study.set_user_attr(DIRECTORY, directory)
        sweep = cls(study, storage, plan, address)
        sweep.top_up()
        study.set_user_attr(PLAN, plan.to_json())  # last: whoever finds it finds the rest, all tickets too, and adds none
        return sweep

    @classmethod
    def open(cls, name: str, storage: BaseStorage, address: str = "") -> Sweep:
        """The sweep of that name.

        Raises:
            SweepError: there is none (with the nearest), or it is another kind of study.
        """
        names = [study.study_name for study in storage.get_all_studies()]
        if name not in names:
            from components.validation import did_you_mean

            there = f"there is: {', '.join(sorted(names))}" if names else "the storage has none"
            raise SweepError(f"there is no sweep {name!r}{did_you_mean(name, names)} ({there})")
        study = optuna.load_study(study_name=name, storage=storage, sampler=_no_sampler(), pruner=optuna.pruners.NopPruner())
        # whoever creates a study writes its plan a moment later
        for _ in range(50):
            if PLAN in study.user_attrs:
                return cls(study, storage, Plan.from_json(study.user_attrs[PLAN]), address)
            time.sleep(0.1)
        raise SweepError(f"{name!r} is a study without a plan of losskit's: somebody else's, or a sweep that was killed as it began; take another sweep.name=…")

    def change(self, plan: Plan) -> None:
        """Go on with another plan: more trials, other workers, or, with ``--force``, anything. The one before is kept in the study."""
        history = self.study.user_attrs.get(f"{PLAN}s", [])
        if plan.fingerprint != self.plan.fingerprint:
            self.study.set_user_attr(f"{PLAN}s", [*history, self.plan.to_json()])
        self.study.set_user_attr(PLAN, plan.to_json())
        self.plan, self.settings = plan, SweepSettings.model_validate(plan.settings)

    def top_up(self) -> None:
        """Create the tickets that are missing towards the total, in one go."""
        there = {ticket_of(t) for t in self.trials()}
        missing = [ticket for ticket in range(self.plan.total) if ticket not in there]
        params = [self.plan.points[ticket] if self.plan.points else {} for ticket in missing]
        enqueue_many(self.study, params, [{TICKET: ticket} for ticket in missing])

    # -- working -----------------------------------------------------------------------------------------------------------
    def claim(self, worker: str) -> Claim | None:
        """Take the first waiting ticket, so that nobody else has it; ``None``: none waits."""
        self.study._thread_local.cached_all_trials = None  # as study.ask does: what the sampler saw for one trial is old for the next
        frozen = claim_waiting(self.study, (WORKER, worker))
        return Claim(frozen.number, self._id(frozen), frozen, worker) if frozen is not None else None

    def beat(self, claim: Claim, count: int) -> bool:
        """Show that the worker lives; whether the trial is still its own."""
        if not self.owns(claim):
            return False
        try:
            self.storage.set_trial_system_attr(claim.trial_id, BEAT, [claim.worker, count])  # apart from whose it is: a late one takes nothing
        except UpdateFinishedTrialError:
            return False
        return True

    def owns(self, claim: Claim) -> bool:
        """Whether the trial is still this worker's: one that was stopped for long has lost it to another."""
        return _held(self.storage.get_trial(claim.trial_id), claim)

    def note(self, claim: Claim, **attributes: Any) -> None:
        """Keep something with the trial: its runs, its error."""
        for name, value in attributes.items():
            self.storage.set_trial_user_attr(claim.trial_id, f"losskit:{name}", value)

    def tell(self, claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial; ``False``: it was not this worker's any more, and what it found is dropped.

        Raises:
            ValueError: values that no trial can end with, such as NaN; it goes on being this worker's.
        """
        trial = self.storage.get_trial(claim.trial_id)
        if not _held(trial, claim):
            return False
        last = trial.intermediate_values[trial.last_step] if trial.last_step is not None else math.nan
        found = list(map(float, values or ())) if state == TrialState.COMPLETE else [] if state == TrialState.FAIL or math.isnan(last) else [last]
        if state == TrialState.COMPLETE and (len(found) != len(self.plan.directions) or any(map(math.isnan, found))):
            raise ValueError(f"the number of the values {len(found)} must be that of the objectives, {len(self.plan.directions)}, and none may be nan: {found}")
        # what study.tell does, but that nobody can take the trial between the look at whose it is and its end
        study = _filter_study(self.study, trial)
        try:
            study.sampler.after_trial(study, trial, state, found or None)
        finally:
            ended = finish(self.study, claim.trial_id, state, found or None, held=(WORKER, lambda worker: worker == claim.worker))
        return ended

    def give_back(self, claim: Claim) -> None:
        """Put a ticket back that was interrupted in good order; it counts as no loss."""
        if self.owns(claim):
            requeue(self.study, claim.trial_id, started=claim.frozen.datetime_start, system_attrs={WORKER: None})

    def let_go(self, worker: str) -> None:
        """Put back whatever that worker has; it counts as no loss."""
        for trial in self.trials(TrialState.RUNNING):
            if worker_of(trial) == worker:
                self.give_back(Claim(trial.number, self._id(trial), trial, worker))

    def lost(self, pid: int) -> list[int]:
        """A worker of this machine is known to be dead: its trial goes back at once; the numbers of such trials."""
        found = [t for t in self.trials(TrialState.RUNNING) if (worker_of(t) or "").startswith(worker_prefix(pid))]
        for trial in found:
            self._lost(trial, f"its worker (process {pid}) died")
        return [t.number for t in found]

    def reap(self) -> list[int]:
        """Put back the trials whose beat has stood still for ``grace_seconds`` since this process first saw it so."""
        now, running = time.monotonic(), self.trials(TrialState.RUNNING)
        seen = {t.number: (worker_of(t), t.system_attrs.get(BEAT)) for t in running}
        self._beats = {n: self._beats[n] if n in self._beats and self._beats[n][0] == beat else (beat, now) for n, beat in seen.items()}
        stale = [t for t in running if now - self._beats[t.number][1] > self.settings.grace_seconds]
        for trial in stale:
            self._lost(trial, f"its worker gave no sign of life for {self.settings.grace_seconds:g} s")
            self._beats.pop(trial.number, None)
        return [t.number for t in stale]

    def _lost(self, trial: FrozenTrial, how: str) -> None:
        trial_id, times = self._id(trial), trial.system_attrs.get(LOST, 0) + 1
        if times <= self.settings.retries:
            requeue(self.study, trial_id, started=trial.datetime_start, system_attrs={WORKER: None, LOST: times})
            return
        now = self.storage.get_trial(trial_id)
        if now.state != TrialState.RUNNING or now.datetime_start != trial.datetime_start:
            return  # it has ended, or another worker has it
        try:
            self.storage.set_trial_user_attr(trial_id, ERROR, f"{how}; it was tried {times} times")
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # somebody else has told

    # -- stopping ----------------------------------------------------------------------------------------------------------
    def stop(self, reason: str | None) -> None:
        """Ask all workers to checkpoint what they do, put it back and end; ``None`` takes the wish back."""
        self.study.set_user_attr(STOP, reason)

    @property
    def stopped(self) -> str | None:
        """Why the sweep is to stop, if it is."""
        return study_attr(self.study, STOP)

    def too_many_failures(self) -> str | None:
        """Why the failures so far stop the sweep, if they do."""
        ended = sorted((t for t in self.trials() if t.state.is_finished()), key=lambda t: t.datetime_complete or t.datetime_start)  # type: ignore[arg-type, return-value]
        failed = [t for t in ended if t.state == TrialState.FAIL]
        if failed and self.settings.on_failure == "stop":
            return f"trial {failed[0].number} failed: {failed[0].user_attrs.get(ERROR, 'no reason is known')}"
        limit = self.settings.max_failures_in_a_row
        if limit and len(ended) >= limit and all(t.state == TrialState.FAIL for t in ended[-limit:]):
            return f"{limit} trials in a row failed, the last: {ended[-1].user_attrs.get(ERROR, 'no reason is known')}"
        return None

    # -- looking -----------------------------------------------------------------------------------------------------------
    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study_id, deepcopy=False, states=states or None)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or, with several objectives, those of the Pareto front; none if none is complete (and keeps to the constraints)."""
        if len(self.plan.directions) > 1:
            return sorted(self.study.best_trials, key=lambda t: t.values)
        try:
            return [self.study.best_trial]
        except ValueError:
            return []

    def status(self) -> Status:
        trials = self.trials()
        states = Counter(t.state for t in trials)
        best = self.best()
        several = len(self.plan.directions) > 1
        workers = sorted({str(worker_of(t)) for t in trials if t.state == TrialState.RUNNING and worker_of(t)})
        finished = states[TrialState.COMPLETE] + states[TrialState.PRUNED] + states[TrialState.FAIL]
        return Status(
            self.plan.name, shown(self.address), self.plan.total,
            states[TrialState.COMPLETE], states[TrialState.PRUNED], states[TrialState.FAIL], states[TrialState.RUNNING],
            max(0, self.plan.total - finished - states[TrialState.RUNNING]),
            [list(t.values) for t in best] if several else best[0].values[0] if best else None,
            [dict(t.params) for t in best] if several else dict(best[0].params) if best else None,
            [str(t.user_attrs.get(RUN_ID)) for t in best] if several else best[0].user_attrs.get(RUN_ID) if best else None,
            workers, self.stopped,
        )  # fmt: skip

    def _id(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)


def ticket_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(TICKET, trial.number))


def worker_of(trial: FrozenTrial) -> str | None:
    worker: str | None = trial.system_attrs.get(WORKER)
    return worker


def _held(trial: FrozenTrial, claim: Claim) -> bool:
    return trial.state == TrialState.RUNNING and worker_of(trial) == claim.worker


def worker_prefix(pid: int) -> str:
    """How the names of workers in process ``pid`` of this machine begin."""
    return f"{socket.gethostname()}-{pid}-"


def worker_name() -> str:
    """``host-pid-…``: unique, and telling to whoever looks for the process."""
    return f"{worker_prefix(os.getpid())}{secrets.token_hex(3)}"


def runs_of(trial: FrozenTrial) -> dict[str, dict[str, Any]]:
    """Seed -> what is known of the trial's run with it: ``run_dir``, ``run_id``, and ``metrics`` when it has ended."""
    runs: Mapping[str, Any] = trial.user_attrs.get(RUNS) or {}
    return {seed: dict(run) for seed, run in runs.items()}


def _no_sampler() -> optuna.samplers.BaseSampler:
    """Looking on needs none; workers set the plan's own."""
    return optuna.samplers.RandomSampler()


__all__ = ["Claim", "Status", "Sweep", "runs_of", "ticket_of", "worker_name", "worker_of"]

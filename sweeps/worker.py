"""A worker: pulls trials from a sweep until there are none left. Stateless: what it knows is in the storage, so it may be killed at any time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from sweeps.study import Claim, Sweep, worker_name

IDLE_SECONDS = 0.2  # between two looks for a waiting trial while others still run theirs
STOPPED_BY_WISH = signal.SIGINT


class TrialPruned(Exception):
    """A trial that the pruner has ended."""


class TrialFailed(Exception):
    """A trial that failed; the message is kept with it.

    Attributes:
        fatal: every further trial would fail in the same way, so the sweep stops.
    """

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class TrialInterrupted(Exception):
    """A trial that was interrupted in good order, with a checkpoint to go on from."""


@dataclass
class Attempt:
    """One go at a trial, as :class:`Worker` hands it to the function that runs trials.

    Attributes:
        sweep: the sweep.
        claim: the claimed trial.
        trial: Optuna's trial, to suggest and to report with.
    """

    sweep: Sweep
    claim: Claim
    trial: optuna.Trial
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.claim.number

    def note(self, **attributes: Any) -> None:
        self.sweep.note(self.claim, **attributes)

    def report(self, value: float, step: int) -> None:
        """Give the pruner an intermediate value; one that an earlier attempt has given already stays as it is.

        Raises:
            TrialPruned: the trial promises nothing.
        """
        storage, trial_id = self.sweep.storage, self.claim.trial_id
        before = storage.get_trial(trial_id).intermediate_values
        if step not in before:
            storage.set_trial_intermediate_value(trial_id, step, value)
        elif step < max(before):  # the earlier attempt got further, and so was let through here
            return
        if self.sweep.study.pruner.prune(self.sweep.study, storage.get_trial(trial_id)):
            raise TrialPruned(f"pruned at report {step}: {value:.6g}")


RunTrial = Callable[[Attempt], list[float]]
"""Runs a trial and gives the objectives' values; raises one of this module's exceptions otherwise."""


class Worker:
    """Pulls trials and runs them, one after the other, in this process.

    Args:
        sweep: the sweep.
        run_trial: what a trial is.
        sampler_of: trial number -> the sampler that proposes its parameters; so that they depend on the trial, not on the worker.
        pruner: ends trials early.
        name: of this worker; unique.
        alive: whether whoever started this worker still is; when not, it ends in good order.
        told: called after every trial with its number and state.
    """

    def __init__(
        self,
        sweep: Sweep,
        run_trial: RunTrial,
        *,
        sampler_of: Callable[[int], optuna.samplers.BaseSampler],
        pruner: optuna.pruners.BasePruner,
        name: str | None = None,
        alive: Callable[[], bool] = lambda: True,
        told: Callable[[int, TrialState], None] = lambda number, state: None,
    ) -> None:
        self.sweep, self.run_trial, self.sampler_of, self.alive, self.told = sweep, run_trial, sampler_of, alive, told
        self.name = name or worker_name()
        sweep.study.pruner = pruner
        self._interrupted = False

    def work(self) -> str | None:
        """Run trials until the sweep has none left, is stopped, or this worker is interrupted; why it ended before the last trial did, if so."""
        try:
            return self._work()
        except KeyboardInterrupt:  # not while a trial ran, but as one began or ended
            self.sweep.let_go(self.name)
            raise

    def _work(self) -> str | None:
        while True:
            stopped = self.sweep.stopped
            if stopped:
                return stopped
            if not self.alive():
                return "the process that started this worker is gone"
            claim = self.sweep.claim(self.name)
            if claim is not None:
                self._run(claim)
                if self._interrupted:
                    return "interrupted"
                continue
            self.sweep.reap()
            if not self.sweep.trials(TrialState.RUNNING, TrialState.WAITING):
                return None
            time.sleep(IDLE_SECONDS)

    def _run(self, claim: Claim) -> None:
        sweep = self.sweep
        sweep.study.sampler = self.sampler_of(claim.number)
        heart = Heart(sweep, claim, self.alive)
        state, values = TrialState.FAIL, None
        try:
            with heart:
                values = self.run_trial(Attempt(sweep, claim, optuna.Trial(sweep.study, claim.trial_id)))
            state = TrialState.COMPLETE
        except TrialPruned:
            state = TrialState.PRUNED
        except TrialFailed as failure:
            self._note_failure(claim, str(failure))
            if failure.fatal:
                sweep.stop(str(failure))
        except (TrialInterrupted, KeyboardInterrupt):
            sweep.give_back(claim)
            self._interrupted = heart.reason is None
            return
        except Exception as error:  # noqa: BLE001  whatever a trial raises is that trial's failure, not the sweep's
            self._note_failure(claim, f"{type(error).__name__}: {error}")
        try:
            ours = sweep.tell(claim, state, values)
        except ValueError as error:  # values that no trial can end with
            self._note_failure(claim, str(error))
            state = TrialState.FAIL
            ours = sweep.tell(claim, state)
        if ours:
            self.told(claim.number, state)
            if state == TrialState.FAIL and (reason := sweep.too_many_failures()):
                sweep.stop(reason)

    def _note_failure(self, claim: Claim, message: str) -> None:
        if self.sweep.owns(claim):
            self.sweep.note(claim, error=message)


class Heart:
    """While a trial runs: beats, and interrupts it when the sweep is stopped, when it was given to another worker, or when nobody is there any more.

    Args:
        sweep: the sweep.
        claim: the trial.
        alive: whether whoever started this worker still is.
    """

    def __init__(self, sweep: Sweep, claim: Claim, alive: Callable[[], bool]) -> None:
        self.sweep, self.claim, self.alive = sweep, claim, alive
        self.interval = max(0.1, min(2.0, sweep.settings.grace_seconds / 6))
        self.reason: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="losskit-heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while not self._done.wait(self.interval):
            count += 1
            try:
                self.reason = self._why_stop(count)
            except Exception:  # noqa: BLE001  each storage has errors of its own: it is away for a moment, and the trial goes on
                continue
            if self.reason is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, STOPPED_BY_WISH)  # as Ctrl-C: a checkpoint, then the end
                return

    def _why_stop(self, count: int) -> str | None:
        if not self.sweep.beat(self.claim, count):
            return "another worker has this trial"
        if not self.alive():
            return "the process that started this worker is gone"
        return self.sweep.stopped


__all__ = ["Attempt", "Heart", "TrialFailed", "TrialInterrupted", "TrialPruned", "Worker"]

"""AutoLRS in a training: runs the probes that a method asks for, sets the rates that it decides on, and writes down the schedule that it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor

from components.callbacks.checkpoints import at_optimizer_step, checkpoints_of, largest_of_ranks
from components.callbacks.interrupts import Interrupts, TrainingInterrupted
from components.callbacks.probes import Prober, ProbeStopped, set_options
from components.callbacks.telling import Telling
from components.optimizers.groups import base_rate, set_rate
from components.schedules.base import Span
from components.validation import require, require_choice
from sweeps.autolrs.forecast import Denoise
from sweeps.autolrs.methods import METHODS, Method, MethodName
from sweeps.autolrs.plan import Budget, Decision, Outcome, Plan, Probe, Request, Train, TrainingLosses
from sweeps.autolrs.record import Entry, Record, found_schedule, outcome_of
from sweeps.samplers import mixed_seed

ASK_RANKS = 20
"""Probe steps from one time to the next that ranks ask each other for a signal."""
BUCKETS = 400
"""Means of the training loss that a run keeps for a method that fits a law to them."""


class AutoLRS(Telling):
    r"""The learning rate searched while training: candidates are tried for a while, everything is put back, and training goes on with the best.

    A probe changes nothing: weights, buffers, optimizer, random numbers and the position in the data are as before it, bit for bit. Its steps
    are counted apart (``explored_steps``), so ``trainer.max_steps`` means training steps. Several parameter groups are scaled together.
    What was found is in ``schedule/found.json`` of the run's directory, with every probe, and runs again as ``schedule=replay``; each
    search is an Optuna study in ``schedule/studies.journal``. A killed run goes on where it was, in the middle of a search too.

    Used without losskit: a callback for any :class:`lightning.LightningModule` with automatic optimization, which must not set the rate itself.

    Args:
        method: ``cooldown``: the peak rate from probes that cool down, then warmup–stable–decay (:class:`~sweeps.autolrs.methods.Cooldown`);
            ``law``: the same peak, then what a fitted law says (:class:`~sweeps.autolrs.methods.Law`);
            ``paper``: AutoLRS as published; ``paper_reference``: with the released code's constants (:class:`~sweeps.autolrs.methods.Paper`).
        lr_min, lr_max: range of the learning rates, > 0; default: a short range test around the optimizer's rate finds it.
        candidates: rates that are tried in a search.
        probe: length of a probe: of the run (``cooldown``, ``law``), of a stage (``paper``).
        finalists: rates that are tried again in longer probes, 0 for none (``cooldown``, ``law``).
        long_probe: length of those.
        warmup: of the run.
        kappa: how much the unknown attracts the search.
        range_steps: length of the range test.
        cooldown: share of a probe in which the rate goes to 0 (``cooldown``, ``law``).
        decay: share of the run in which it goes to 0 (``cooldown``, ``law``).
        search: what is searched after the rate, one after the other, with the same probes: ``warmup``, ``weight_decay``, ``momentum`` (``cooldown``, ``law``).
        refits: shares of the run at which the law is fitted (``law``).
        stage, longest: length of the first and of the longest stage (``paper``).
        denoise: what is smoothed before a forecast (``paper``).
        probe_data: what probes are judged by: validation data, or training batches of their own.
        total_steps: of the run; filled in by the builder, default: the trainer's own estimate.
        seed: of candidates and of the probes' batches.
        directory: where to keep what was found; ``None``: only in checkpoints.

        What is left out is as the method's class says.

    Raises:
        ValueError: an option that the method does not have, or out of its range; a run without an end; manual optimization.
        SearchFailed: training diverges with every rate.
    """

    def __init__(
        self,
        method: MethodName = "cooldown",
        lr_min: float | None = None,
        lr_max: float | None = None,
        candidates: int | None = None,
        probe: Span | None = None,
        finalists: int | None = None,
        long_probe: Span | None = None,
        warmup: Span | None = None,
        kappa: float | None = None,
        range_steps: Span | None = None,
        cooldown: float | None = None,
        decay: Span | None = None,
        search: Sequence[str] | None = None,
        refits: Sequence[float] | None = None,
        stage: Span | None = None,
        longest: Span | None = None,
        denoise: Denoise | None = None,
        probe_data: Literal["val", "train"] = "val",
        total_steps: int | None = None,
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        super().__init__()
        require_choice("method", method, METHODS)
        require_choice("probe_data", probe_data, ("val", "train"))
        require(total_steps is None or total_steps >= 1, "total_steps must be >= 1", total_steps)
        options: dict[str, Any] = {"candidates": candidates, "probe": probe, "warmup": warmup, "kappa": kappa, "range_steps": range_steps, "cooldown": cooldown}
        options |= {"finalists": finalists, "long_probe": long_probe, "decay": decay, "stage": stage, "longest": longest, "denoise": denoise}
        options |= {"search": tuple(search) if search is not None else None, "refits": tuple(refits) if refits is not None else None}
        kind, preset = METHODS[method]
        own = {field.name for field in fields(kind)}
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            takers = [other for other, (of, _) in METHODS.items() if name in {field.name for field in fields(of)}]
            require(name in own, f"{name} is an option of method={', '.join(takers)}, not of method={method}: leave it out")
        self.method_name = method
        self.method: Method = kind(low=lr_min, high=lr_max, **{**preset, **given})
        self.probe_data, self.total_steps, self.seed = probe_data, total_steps, seed
        self.directory = Path(directory) if directory is not None else None
        self._resumed: dict[str, Any] | None = None
        self.lr, self._total, self._done = math.nan, 0, 0  # known once training starts
        if total_steps is not None:
            self.method.check(total_steps)
        self._begin()

    def _begin(self) -> None:
        self.entries: list[Entry] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.stretches: list[tuple[int, Train]] = []
        self._ended: list[list[float]] = []  # training losses of the stretches that are over
        self._losses: list[float] = []  # … of the running one, in buckets
        self._bucket: list[Tensor] = []
        self._kept: list[dict[str, Any]] = []  # probes of an earlier session that have not been asked for again yet

    # -- the schedule
    def __call__(self, step: int) -> float:
        """The factor on the base learning rate at a training step of the running stretch."""
        start, stretch = self.stretches[-1]
        return stretch.rates(max(step - start, 0)) / self.lr

    @property
    def _reached(self) -> int:
        """The training step up to which it is decided."""
        return self.stretches[-1][1].until if self.stretches else 0

    @property
    def explored_steps(self) -> int:
        """Steps that were taken in probes, and are no part of training."""
        return sum(len(entry.outcome.losses) for entry in self.entries)

    def notes(self) -> list[str]:
        if not self.entries:
            return []
        diverged = sum(entry.outcome.diverged for entry in self.entries)
        among = f", {diverged} of them diverging" if diverged else ""
        share = self.explored_steps / max(self._done, 1)
        return [f"the search took {self.explored_steps} steps in {len(self.entries)} probes{among}: {share:.2f} x the {self._done} training steps"]

    def found(self) -> dict[str, Any]:
        """The schedule found so far, with every probe: what ``found.json`` holds."""
        return found_schedule(
            method=self.method_name,
            lr=self.lr,
            total=self._total,
            done=self._done,
            entries=self.entries,
            decisions=self.decisions,
            trained=self.stretches,
        )

    # -- Lightning's hooks
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin()
        total = self.total_steps or trainer.estimated_stepping_batches
        require(0 < total < math.inf, "a search of the schedule needs a budget with an end: set trainer.max_steps or trainer.max_epochs", total)
        self._total, self._done = int(total), trainer.global_step
        self.method.check(self._total)
        self.lr = float(base_rate(trainer.optimizers[0].param_groups[0]))
        require(self.lr > 0, "optimizer.lr must be > 0: what is searched are factors on it", self.lr)
        self._prober = Prober(trainer, measure_on=self.probe_data, give_up=lambda done: self._looked_after(trainer, done))
        if self._prober.measure_on != self.probe_data:
            self.say("no validation data: probes are judged by training batches of their own (probe_data=train)")
        self._asked, self._signum = 0, 0
        self._interrupts = next((c for c in trainer.callbacks if isinstance(c, Interrupts)), None)  # type: ignore[attr-defined]
        if self._interrupts is not None:
            self._interrupts.watch()
        self._record = Record(self.directory if trainer.is_global_zero else None, self._settings())
        self._take_up(trainer)
        if trainer.is_global_zero:
            self._plan: Plan = self.method.plan(Budget(self._total, self.seed, self.lr))
            self._request: Request = next(self._plan)
        self._advance(trainer)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        set_rate(trainer.optimizers[0], self(trainer.global_step))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._done = trainer.global_step
        if self.method.reads_training:
            self._follow(trainer, outputs)
        if at_optimizer_step(trainer, batch_idx) and self.stretches[-1][1].until <= self._done < self._total:
            self._advance(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._prober.release()
        self._write()
        self._keep(trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        if self.entries:
            self._keep(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "probes": [entry.as_dict() for entry in self.entries],
            "ended": [list(losses) for losses in self._ended],
            "losses": list(self._losses),
            "bucket": [float(loss) for loss in self._bucket],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    # -- the search
    def _advance(self, trainer: lightning.Trainer) -> None:
        """Do what the method asks for until it has training go on."""
        while True:
            request = cast(Request, trainer.strategy.broadcast(self._request if trainer.is_global_zero else None))
            answer: Outcome | TrainingLosses | None = None
            if isinstance(request, Probe):
                answer = self._probed(trainer, request)
            elif isinstance(request, Decision):
                self._decide(trainer, request)
            else:
                if not self.stretches or self.stretches[-1][1] != request:
                    self.stretches.append((self._reached, request))
                    set_options(trainer.optimizers[0], request.options)
                if trainer.global_step < request.until:
                    self._prober.release()
                    self._write()
                    return
                answer = self._end_stretch()
            if trainer.is_global_zero:
                self._request = self._plan.send(answer) if answer is not None else next(self._plan)

    def _probed(self, trainer: lightning.Trainer, probe: Probe) -> Outcome:
        """The outcome of a probe: kept from an earlier session, or of running it now."""
        outcome = self._kept_outcome(probe)
        known = outcome is not None
        if outcome is None:
            outcome = self._run(trainer, probe)
            self._record.append(Entry(self._reached, probe, outcome).as_dict())
        self.entries.append(Entry(self._reached, probe, outcome))
        if not known:
            self._tell(trainer, probe, outcome)
        self._write()
        return outcome

    def _kept_outcome(self, probe: Probe) -> Outcome | None:
        if not self._kept:
            return None
        outcome = outcome_of(self._kept.pop(0), self._reached, probe)
        if outcome is None:  # it was of another search: nothing of it can be gone on from
            self._kept.clear()
            self._record.rewrite([entry.as_dict() for entry in self.entries])
        return outcome

    def _run(self, trainer: lightning.Trainer, probe: Probe) -> Outcome:
        if self._prober.snapshot is None:
            self._prober.remember()
        factors = [rate / self.lr for rate in probe.rates.each(probe.steps)]
        self._running = probe
        try:
            tried = self._prober.probe(factors, seed=mixed_seed(self.seed, probe.stage), measure_after=probe.measure_after, options=probe.options)
        except ProbeStopped:
            checkpoints = checkpoints_of(trainer.callbacks)  # type: ignore[attr-defined]
            if checkpoints is not None and trainer.global_step:
                checkpoints.save_last(trainer)
            raise TrainingInterrupted(self._signum, trainer.global_step) from None
        return Outcome(tried.losses, tried.measured, tried.diverged)

    def _decide(self, trainer: lightning.Trainer, decision: Decision) -> None:
        self.decisions.append((self._reached, decision))
        if decision.study is not None:
            self._record.study(decision.study)
        if not self._kept:
            self.say(f"step {self._reached}: {decision.question} = {decision.chosen:.4g} ({decision.why})")
            self._log(trainer, {f"autolrs/{decision.question}": decision.chosen, "autolrs/explored_steps": float(self.explored_steps)}, trainer.global_step)

    def _tell(self, trainer: lightning.Trainer, probe: Probe, outcome: Outcome) -> None:
        gave = "diverged" if outcome.diverged else f"loss {(outcome.measured or outcome.losses)[-1]:.5g}"
        number = sum(entry.probe.stage == probe.stage for entry in self.entries)
        self.say(f"probe {number}: {probe.question} = {probe.value:.4g} over {probe.steps} steps: {gave}")
        if not outcome.diverged and probe.question != "range":
            value = {f"autolrs/probe_{probe.question}": probe.value, "autolrs/probe_loss": float((outcome.measured or outcome.losses)[-1])}
            self._log(trainer, value, self.explored_steps)

    # -- training losses, for methods that fit a law to them
    def _follow(self, trainer: lightning.Trainer, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._bucket.append(loss.detach() * trainer.accumulate_grad_batches)  # Lightning has divided it by their number
        if len(self._bucket) >= self.bucket_steps * trainer.accumulate_grad_batches:
            self._losses = self._flushed()
            self._bucket.clear()

    @property
    def bucket_steps(self) -> int:
        """Training steps whose losses are kept as one mean."""
        return max(1, self._total // BUCKETS)

    def _flushed(self) -> list[float]:
        if not self._bucket:
            return list(self._losses)
        return [*self._losses, sum(float(loss) for loss in self._bucket) / len(self._bucket)]

    def _end_stretch(self) -> TrainingLosses:
        number = len(self.stretches) - 1
        if number == len(self._ended):
            self._ended.append(self._flushed())
            self._losses, self._bucket = [], []
        return TrainingLosses(self._ended[number], self.bucket_steps)

    # -- going on from a checkpoint, or from the probes of a session that ended before its first one
    def _take_up(self, trainer: lightning.Trainer) -> None:
        state, self._resumed = self._resumed, None
        kept = self._record.open()
        if state is not None:
            require(
                state["settings"] == self._settings(),
                "a searched schedule is of one budget and one search, and cannot be gone on with under another: resume the run as it was, "
                "or start a new one with schedule=replay; it was searched with",
                state["settings"],
            )
            probes = state["probes"]
            kept = probes + (kept[len(probes) :] if [p["value"] for p in kept[: len(probes)]] == [p["value"] for p in probes] else [])
            self._ended, self._losses = [list(losses) for losses in state["ended"]], list(state["losses"])
            self._bucket = [torch.tensor(loss) for loss in state["bucket"]]
        self._kept = trainer.strategy.broadcast(kept)

    def _settings(self) -> dict[str, Any]:
        settings = {"method": self.method_name, "options": repr(self.method), "probe_data": self.probe_data}
        return settings | {"total_steps": self._total, "lr": self.lr, "seed": self.seed}

    # -- ranks, signals, files
    def _looked_after(self, trainer: lightning.Trainer, done: int) -> bool:
        """Show how far the running probe has come, and whether it is to be given up."""
        self.show(f"probe {self._running.question} = {self._running.value:.4g}", done, self._running.steps)
        return bool(self._signal(trainer))

    def _signal(self, trainer: lightning.Trainer) -> int:
        """The signal that some rank has received; ranks ask each other at the same probe steps."""
        own = self._interrupts.received if self._interrupts is not None else 0
        if trainer.world_size > 1:
            self._asked += 1
            if self._asked % ASK_RANKS:
                return 0
            own = largest_of_ranks([own], trainer)[0]
        self._signum = own
        return own

    def _write(self) -> None:
        if self._record.directory is not None:
            self._record.found(self.found())

    def _log(self, trainer: lightning.Trainer, values: Mapping[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=step)

    def _keep(self, trainer: lightning.Trainer) -> None:
        self._log(trainer, {"autolrs/explored_steps": float(self.explored_steps)}, trainer.global_step)
        for logger in trainer.loggers:
            for path in self._record.files:
                if hasattr(logger, "keep"):
                    logger.keep(path, "schedule")

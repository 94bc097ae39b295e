"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning

from components.callbacks.checkpoints import at_optimizer_step, checkpoints_of, largest_of_ranks


class TrainingInterrupted(Exception):
    """Training was asked to stop by a signal; a checkpoint of the step that it reached is saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum, self.step = signum, step


class Interrupts(lightning.Callback):
    """While training runs, SIGINT and SIGTERM save ``last.ckpt`` at the next optimizer step and raise :class:`TrainingInterrupted`.

    A second signal acts at once (``KeyboardInterrupt``). Outside the training loop the signals act as ever. Under DDP any
    rank's signal stops all ranks at the same step: at times, about twice a second, all of them ask each other.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    ASK_SECONDS = 0.5
    ASK_STEPS = 100  # at most from one time to the next: steps may become slower

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[signal.Signals, Any] = {}
        self._asked, self._ask_next = (0.0, 0), 0  # when and at which step the ranks asked each other; the step when they do again

    @property
    def received(self) -> int:
        """The signal that this process has received while training, 0 if none."""
        return self._received

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._asked, self._ask_next = (time.monotonic(), trainer.global_step), 0
        self.watch()

    def watch(self) -> None:
        """Begin to take signals, if that has not begun: for what works before the first step."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.world_size == 1 and not self._received:
            return
        if not at_optimizer_step(trainer, batch_idx):
            return
        signum = self._received if trainer.world_size == 1 else self._received_by_any(trainer)
        if not signum:
            return
        checkpoints = checkpoints_of(trainer.callbacks)  # type: ignore[attr-defined]
        if checkpoints is not None:
            checkpoints.save_last(trainer)
        raise TrainingInterrupted(signum, trainer.global_step)

    def _received_by_any(self, trainer: lightning.Trainer) -> int:
        """The signal that some rank has received, if this is a step at which the ranks ask each other: the same steps on all of them."""
        step = trainer.global_step
        if step < self._ask_next and step != trainer.max_steps and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return 0
        now = time.monotonic()
        before, first = self._asked
        pace = (step - first) / max(now - before, 1e-6) * self.ASK_SECONDS
        signum, steps = largest_of_ranks([self._received, -int(min(max(pace, 1), self.ASK_STEPS))], trainer)
        self._asked, self._ask_next = (now, step), step - steps
        return signum

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = signum

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

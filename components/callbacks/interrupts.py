"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning

from components.callbacks.checkpoints import any_rank, at_optimizer_step, checkpoints_of


class TrainingInterrupted(Exception):
    """Training was asked to stop by a signal; a checkpoint of the step that it reached is saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum, self.step = signum, step


class Interrupts(lightning.Callback):
    """While training runs, SIGINT and SIGTERM save ``last.ckpt`` at the next optimizer step and raise :class:`TrainingInterrupted`.

    A second signal acts at once (``KeyboardInterrupt``). Outside the training loop the signals act as ever. Under DDP any
    rank's signal stops all ranks at the same step.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.world_size == 1 and not self._received:
            return
        if not at_optimizer_step(trainer, batch_idx) or not any_rank(bool(self._received), trainer):
            return
        signum = self._received or int(signal.SIGINT)
        checkpoints = checkpoints_of(trainer.callbacks)  # type: ignore[attr-defined]
        if checkpoints is not None:
            checkpoints.save_last(trainer)
        raise TrainingInterrupted(signum, trainer.global_step)

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

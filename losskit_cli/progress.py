"""Progress of training on the terminal: step, loss, metric, rate, time left. Quiet where nobody watches."""

from __future__ import annotations

import time
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar(lightning.Callback):
    """One line that is redrawn at most ten times a second; drawing reads only values that were logged anyway.

    Args:
        total_steps: optimizer steps of the whole run.
        console: where to draw (stderr).
        monitor: the validation metric to show beside the losses.
    """

    INTERVAL = 0.1

    def __init__(self, total_steps: int, console: Console, monitor: str = "val/loss") -> None:
        self.total_steps, self.console, self.monitor = total_steps, console, monitor
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._next_draw = 0.0
        self._started = (0.0, 0)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        self._started = (time.monotonic(), trainer.global_step)
        self._bar = self._progress.add_task("training", total=self.total_steps, completed=trainer.global_step, values="")
        self._progress.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._progress is None or now < self._next_draw:
            return
        self._next_draw = now + self.INTERVAL
        began, first_step = self._started
        step = trainer.global_step
        rate = (step - first_step) / max(now - began, 1e-9)
        metrics = trainer.callback_metrics
        shown = [f"{name} {float(metrics[name]):.4f}" for name in dict.fromkeys(("train/loss", self.monitor, "val/acc")) if name in metrics]
        self._progress.update(self._bar, completed=step, values="  ".join([*shown, f"{rate:.0f} steps/s"]))
        self._progress.refresh()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

"""Progress of training on the terminal: step, loss, metric, rate, time left. Quiet where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

WIDE = 100  # characters of a line from which on there is room for more than the values


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
        wide = self.console.width >= WIDE
        columns: list[ProgressColumn] = [TextColumn("training")] if wide else []
        columns += [BarColumn(bar_width=24 if wide else 10), MofNCompleteColumn(), TextColumn("{task.fields[values]}", table_column=Column(no_wrap=True))]
        columns += [TimeElapsedColumn()] if wide else []
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True, auto_refresh=False)
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
        values = [f"{name} {float(metrics[name]):.4f}" for name in dict.fromkeys(("train/loss", self.monitor, "val/acc")) if name in metrics]
        speed = f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.1f} steps/s"
        self._progress.update(self._bar, completed=step, values=fitting([*values[:2], speed, *values[2:]], self._room()))
        self._progress.refresh()

    def aside(self, what: str, done: int, total: int) -> None:
        """Show what is done between two training steps: a probe of a search."""
        now = time.monotonic()
        if self._progress is not None and now >= self._next_draw:
            self._next_draw = now + self.INTERVAL
            self._progress.update(self._bar, values=fitting([f"{what}: {done}/{total}"], self._room()))
            self._progress.refresh()

    def _room(self) -> int:
        """Characters left for values beside the bar, the count and the times."""
        taken = 2 * len(str(self.total_steps)) + (8 + 24 + 7 + 7 + 6 if self.console.width >= WIDE else 10 + 7 + 4)
        return self.console.width - taken

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def fitting(values: Sequence[str], room: int) -> str:
    """As many of the values as there is room for, the first ones before the others.

    >>> fitting(["train/loss 0.5000", "val/loss 0.6000", "90 steps/s"], 36)
    'train/loss 0.5000  val/loss 0.6000'
    """
    shown: list[str] = []
    for value in values:
        if len("  ".join([*shown, value])) <= room:
            shown.append(value)
    return "  ".join(shown)

"""The stopwatch that both sides of the comparison carry: a Lightning callback, the same code for the baseline and for losskit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning


class Stopwatch(lightning.Callback):
    """Training time without validation, and the whole of ``fit``.

    Args:
        to: a JSON file to write the times to when training ends.

    Attributes:
        seconds: time between the start of an epoch and its validation, summed.
        steps: training steps in that time.
        fit_seconds: from the first step's preparations to the end of training, validations and checkpoints included.
    """

    def __init__(self, to: str | None = None) -> None:
        self.to = to
        self.seconds, self.steps, self.fit_seconds = 0.0, 0, 0.0
        self._since: float | None = None
        self._began = 0.0

    def on_train_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_start(self, *args: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1

    def on_validation_start(self, *args: Any) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_end(self, *args: Any) -> None:
        self.fit_seconds = time.perf_counter() - self._began
        if self.to is not None:
            Path(self.to).write_text(json.dumps(self.times()))

    def times(self) -> dict[str, float]:
        return {"steps": self.steps, "seconds": self.seconds, "steps_per_s": self.steps / self.seconds, "fit_seconds": self.fit_seconds}

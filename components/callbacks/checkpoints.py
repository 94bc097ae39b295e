"""Checkpoints: best and last, written atomically, the one before the last kept, damage noticed before it is loaded.

``last.ckpt`` and ``previous.ckpt`` are points to resume from; ``best.ckpt`` holds the weights of the best validation.
A file is written beside its place, flushed to the disk and then renamed, so a kill at any moment leaves whole files only.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from components.validation import did_you_mean, require, require_choice

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class DamagedCheckpointError(RuntimeError):
    """No checkpoint in the directory can be read."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, keeps the last one before, and loads with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                target.replace(target.with_name(PREVIOUS))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def is_intact(path: Path) -> bool:
    """Whether a checkpoint file is whole: a readable archive all of whose members have the right checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def newest_intact(directory: Path) -> tuple[Path, list[Path]]:
    """The checkpoint to resume from, and the damaged newer ones that were passed over.

    Raises:
        DamagedCheckpointError: there is none, or none is intact.
    """
    candidates = [directory / name for name in (LAST, PREVIOUS) if (directory / name).exists()]
    damaged: list[Path] = []
    for path in candidates:
        if is_intact(path):
            return path, damaged
        damaged.append(path)
    what = f"damaged: {', '.join(p.name for p in damaged)}" if damaged else "there is none yet"
    raise DamagedCheckpointError(f"no checkpoint to resume from in {directory} ({what})")


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` at every validation, ``best.ckpt`` when the monitored metric improves, and both at the end.

    What is best is asked anew when the task enters another :attr:`~components.tasks.Task.era`, such as that of more classes.

    Args:
        monitor: the metric that says what is best, as it is logged (``val/loss``); without validation it is not asked for.
        mode: ``min`` or ``max``: which way is better.
        every_n_steps: save ``last.ckpt`` also every so many optimizer steps.
        every_n_seconds: … and after so many seconds without a save.
        directory: where to; default: ``checkpoints`` below the trainer's root directory.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        every_n_steps: int | None = None,
        every_n_seconds: float | None = 300.0,
        directory: str | Path | None = None,
    ) -> None:
        super().__init__()
        require_choice("mode", mode, ("min", "max"))
        require(every_n_steps is None or every_n_steps >= 1, "every_n_steps must be >= 1", every_n_steps)
        require(every_n_seconds is None or every_n_seconds > 0, "every_n_seconds must be > 0", every_n_seconds)
        self.monitor, self.mode = monitor, mode
        self.every_n_steps, self.every_n_seconds = every_n_steps, every_n_seconds
        self.directory = Path(directory) if directory is not None else None
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.best_era = 0
        self._saved_step = -1
        self._saved_time = time.monotonic()
        self._due = False

    # -- Lightning's hooks -------------------------------------------------------------------------------------------
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.directory is None:
            self.directory = Path(trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_time = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not at_optimizer_step(trainer, batch_idx):
            return
        if self._due or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0) or self._time_is_up(trainer):
            self.save_last(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or is_fast_dev_run(trainer):
            return
        improved = self._improved(trainer)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if not at_optimizer_step(trainer, progress.current.ready - 1):
            self._due = True
            if improved:
                self._save(trainer, BEST)
            return
        self.save_last(trainer)
        if improved:
            self._link_best(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if is_fast_dev_run(trainer):
            return
        self.save_last(trainer)
        if self.best_score is None:  # no validation: the last weights are the best known
            self._link_best(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step, "best_era": self.best_era, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor:
            self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
            self.best_era = state_dict.get("best_era", 0)

    # -- what it does ---------------------------------------------------------------------------------------------------
    def save_last(self, trainer: lightning.Trainer) -> None:
        """Save ``last.ckpt`` at the current step, once a step."""
        self._due = False
        if trainer.global_step != self._saved_step:
            self._save(trainer, LAST)
            self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()

    def path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / name

    def _save(self, trainer: lightning.Trainer, name: str) -> None:
        check = getattr(trainer.lightning_module, "check_finite", None)
        if check is not None:  # weights that a diverged step has touched must not replace good ones
            check()
        trainer.save_checkpoint(self.path(name))

    def _link_best(self, trainer: lightning.Trainer) -> None:
        """``best.ckpt`` becomes another name of the file just written: no second write."""
        if trainer.is_global_zero:
            link = self.path(f".{BEST}.{os.getpid()}.partial")
            link.unlink(missing_ok=True)
            try:
                os.link(self.path(LAST), link)
            except OSError:  # a file system without hard links
                link.write_bytes(self.path(LAST).read_bytes())
            link.replace(self.path(BEST))
        trainer.strategy.barrier("best checkpoint")

    def _improved(self, trainer: lightning.Trainer) -> bool:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = sorted(metrics)
            raise ValueError(f"optimized_metric={self.monitor} was never logged{did_you_mean(self.monitor, names)} (logged: {', '.join(names)})")
        score = float(metrics[self.monitor])
        if math.isnan(score):
            return False
        era = int(getattr(trainer.lightning_module, "era", 0))
        comparable = self.best_score is not None and era == self.best_era
        better = not comparable or (score < self.best_score if self.mode == "min" else score > self.best_score)  # type: ignore[operator]
        if better:
            self.best_score, self.best_step, self.best_era = score, trainer.global_step, era
        return better

    def _time_is_up(self, trainer: lightning.Trainer) -> bool:
        if self.every_n_seconds is None:
            return False
        up = time.monotonic() - self._saved_time >= self.every_n_seconds
        if trainer.world_size == 1:
            return up
        return trainer.global_step % trainer.log_every_n_steps == 0 and bool(largest_of_ranks([up], trainer)[0])  # type: ignore[attr-defined]


def at_optimizer_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether this batch completes an optimizer step. In the middle of an accumulation nothing can be resumed: gradients are in no checkpoint."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def is_fast_dev_run(trainer: lightning.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def largest_of_ranks(values: list[int], trainer: lightning.Trainer) -> list[int]:
    """Each value's maximum over the ranks; all ranks must ask."""
    if trainer.world_size == 1:
        return values
    tensor = torch.tensor(values, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def checkpoints_of(callbacks: Iterable[Any]) -> Checkpoints | None:
    return next((c for c in callbacks if isinstance(c, Checkpoints)), None)

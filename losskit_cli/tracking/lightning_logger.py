"""Lightning's side of the journal."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from losskit_cli.tracking.journal import Journal


class JournalLogger(Logger):
    """A Lightning logger that appends to the journal, on rank zero only.

    Args:
        journal: the run's journal; ``None`` on the other ranks.
        name: the experiment's name.
        version: the run's name.
    """

    def __init__(self, journal: Journal | None, *, name: str = "losskit", version: str = "") -> None:
        super().__init__()
        self.journal, self._name, self._version = journal, name, version

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._version

    @property
    def experiment(self) -> Journal | None:
        return self.journal

    @property
    def save_dir(self) -> str | None:
        return str(self.journal.run_dir) if self.journal else None

    @property
    def log_dir(self) -> str | None:
        return self.save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self.journal is not None:
            self.journal.metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's parameters are its config, which is logged when the run starts; a module's own copy of them adds nothing."""

    @rank_zero_only
    def keep(self, path: Path | str, artifact_path: str = "") -> None:
        """Keep a file among the run's artifacts."""
        if self.journal is not None:
            self.journal.artifact(path, artifact_path)


class FlushBeforeCheckpoint(lightning.Callback):
    """Writes the journal before every checkpoint, so that a run resumed from it misses no value that was logged before it."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.flush()


__all__ = ["FlushBeforeCheckpoint", "JournalLogger"]

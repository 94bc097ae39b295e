"""A run's tracking from beginning to end: the store is checked and opened early, records go to the journal, the end is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losskit_cli.rundir import CHECKPOINTS, RunSpec
from losskit_cli.tracking.contents import PREFIX, describe_run
from losskit_cli.tracking.journal import Journal
from losskit_cli.tracking.process import Writer, start_writer
from losskit_cli.tracking.settings import TrackingSettings, require_reachable

TRIAL_STATE = f"{PREFIX}trial_state"
TRIAL_STATES = {"FINISHED": "COMPLETE", "FAILED": "FAIL", "KILLED": "RUNNING"}  # a trial that was interrupted goes on later


@dataclass
class Outcome:
    """What tracking has to say at the end."""

    run_id: str | None = None
    notes: list[str] = field(default_factory=list)


class Tracking:
    """The tracking of one run.

    :meth:`start` comes before torch is imported, so that MLflow's import and a new store's migrations pass beside it; the
    MLflow run itself is made by :meth:`begin`, when the experiment has been built.
    """

    def __init__(
        self, run_dir: Path | None, settings: TrackingSettings, writer: Writer | None, notes: list[str], tags: Mapping[str, Any] | None = None
    ) -> None:
        self.run_dir, self.settings, self.writer, self.notes, self.tags = run_dir, settings, writer, notes, tags or {}
        self.journal: Journal | None = None
        self.begun = False

    @classmethod
    def start(cls, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> Tracking:
        """Check that the store can be reached and start the process that writes to it.

        Args:
            run_dir: the run's directory.
            config: the config's ``tracking`` group.
            tags: further tags of the MLflow run.

        Raises:
            RunError: the store is away and ``tracking.on_error`` is ``stop``.
        """
        settings = TrackingSettings.from_config(config)
        if not settings.enabled:
            return cls(run_dir, settings, None, [])
        away = require_reachable(settings)
        notes = [f"{away}; values are kept in {run_dir} and sent when it is back (losskit sync)"] if away else []
        return cls(run_dir, settings, start_writer(run_dir, settings), notes, tags)

    @classmethod
    def off(cls) -> Tracking:
        """No tracking: dry runs, and ranks other than the first."""
        return cls(None, TrackingSettings(enabled=False), None, [])

    def open(self) -> None:
        """Open the journal (for the loggers), without beginning the run."""
        if self.writer is not None and self.journal is None:
            assert self.run_dir is not None
            self.journal = Journal(self.run_dir, flush_seconds=self.settings.flush_seconds)

    def loggers(self) -> list[Any]:
        """Lightning loggers and, through them, everything that is logged."""
        from losskit_cli.tracking.lightning_logger import JournalLogger

        self.open()
        return [JournalLogger(self.journal)] if self.journal is not None else []

    def callbacks(self) -> list[Any]:
        from losskit_cli.tracking.lightning_logger import FlushBeforeCheckpoint

        return [FlushBeforeCheckpoint(self.journal)] if self.journal is not None else []

    def begin(self, spec: RunSpec, fingerprint: str, facts: Mapping[str, Any], *, resumed: bool) -> None:
        """Make the MLflow run, or go on with it, and say what it is."""
        self.begun = True
        if self.journal is None:
            return
        assert self.run_dir is not None
        from losskit_cli.compose import to_yaml

        tags = {**self.tags, f"{PREFIX}run_dir": str(self.run_dir), f"{PREFIX}total_steps": facts["total_steps"]}
        metadata = describe_run(
            spec.config,
            name=spec.name,
            choices=spec.choices,
            overrides=spec.overrides,
            config_yaml=to_yaml(spec.config),
            data_fingerprint=fingerprint,
            tags=tags,
        )
        self.journal.start(metadata)
        if self.settings.log_checkpoints and not resumed:
            for name in ("best.ckpt", "last.ckpt"):
                self.journal.artifact(self.run_dir / CHECKPOINTS / name, CHECKPOINTS, when="end")

    def end(self, status: str, error: str | None = None, *, pruned: bool = False) -> Outcome:
        """Say how the run ended and wait until MLflow has it all."""
        if self.journal is None or self.writer is None:
            return Outcome(notes=self.notes)
        if TRIAL_STATE in self.tags:
            self.journal.tags({TRIAL_STATE: "PRUNED" if pruned else TRIAL_STATES[status]})
        self.journal.end(status, error)
        outcome = self.writer.wait(last_word=self.journal.unwritten_end)
        if not outcome.ok:
            self.notes.append(f"tracking: {outcome.error}" + (f"; {outcome.unsent} records are kept: losskit sync {self.run_dir}" if outcome.unsent else ""))
        return Outcome(outcome.run_id, self.notes)

    def abandon(self) -> None:
        """The run never began: let the writer go, without a run."""
        if self.begun:
            return
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        if self.writer is not None:
            self.writer.abandon()
            self.writer = None

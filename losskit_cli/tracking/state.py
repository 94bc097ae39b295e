"""What a run directory knows about its MLflow run: ``run.json`` (which run, in which store) and ``tracking.offset`` (what has been sent)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from losskit_cli.tracking.journal import JOURNAL_FILE
from losskit_cli.tracking.settings import TrackingSettings, resolve_uri, sqlite_path, sqlite_uri, without_credentials

RUN_FILE = "run.json"
OFFSET_FILE = "tracking.offset"


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass
class RunFile:
    """``run.json``: the MLflow run of a run directory and how it is written.

    Attributes:
        tracking_uri: the store, without credentials.
        run_id: MLflow's id, once the run has been made.
        creating: the run was being made when this was written; it may or may not exist.
        error: why the last writer could not send everything; ``None`` if it could.
        refused: what MLflow would not take, the first of each kind.
        unstored: artifacts (path, folder) that could not be stored yet.
    """

    tracking_uri: str = ""
    experiment: str = "losskit"
    artifacts: str | None = None
    flush_seconds: float = 1.0
    log_checkpoints: bool = True
    capture_code: bool = True
    plots: bool = True
    run_id: str | None = None
    experiment_id: str | None = None
    artifact_uri: str | None = None
    creating: bool = False
    error: str | None = None
    refused: list[str] = field(default_factory=list)
    unstored: list[list[str]] = field(default_factory=list)

    @classmethod
    def load(cls, run_dir: Path) -> Self:
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in read_json(run_dir / RUN_FILE).items() if k in known})

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / RUN_FILE, asdict(self))

    def apply(self, settings: TrackingSettings, run_dir: Path, cwd: Path | None = None) -> None:
        """Take over the settings; a run that is in a store already stays in it."""
        if not (self.tracking_uri and self.run_id):
            self.tracking_uri = without_credentials(resolve_uri(settings.uri, cwd))
        elif missing(self.tracking_uri):
            self.tracking_uri = moved_store(self.tracking_uri, run_dir) or without_credentials(resolve_uri(settings.uri, cwd))
        self.experiment, self.artifacts, self.flush_seconds = settings.experiment, settings.artifacts, float(settings.flush_seconds)
        self.log_checkpoints, self.capture_code, self.plots = settings.log_checkpoints, settings.capture_code, settings.plots


@dataclass
class Progress:
    """``tracking.offset``: how far the journal has been sent, and whether the run's end has been."""

    offset: int = 0
    finished: bool = False

    @classmethod
    def load(cls, run_dir: Path) -> Self:
        state = read_json(run_dir / OFFSET_FILE)
        return cls(int(state.get("offset", 0)), bool(state.get("finished", False)))

    def save(self, run_dir: Path) -> None:
        write_json(run_dir / OFFSET_FILE, asdict(self))


def missing(uri: str) -> bool:
    """Whether ``uri`` is a SQLite file that is not there."""
    path = sqlite_path(uri)
    return path is not None and not path.exists()


def moved_store(uri: str, run_dir: Path) -> str | None:
    """The store's address after the folder that holds it and the run directory has moved: a file of that name above the run directory."""
    path = sqlite_path(uri)
    if path is None:
        return None
    found = next((p / path.name for p in run_dir.absolute().parents if (p / path.name).is_file()), None)
    return sqlite_uri(found) if found else None


def unsent(run_dir: Path) -> int:
    """How many records of the journal have not been sent; at least 1 if the run's end or an artifact has not."""
    journal = run_dir / JOURNAL_FILE
    if not journal.exists():
        return 0
    progress = Progress.load(run_dir)
    with journal.open("rb") as file:
        file.seek(progress.offset)
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return lines or int(not progress.finished or bool(RunFile.load(run_dir).unstored))


__all__ = ["Progress", "RunFile", "missing", "moved_store", "read_json", "unsent", "write_json"]

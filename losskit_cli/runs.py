"""Which run the user means: an id, the unique beginning of one, a name or its unique end, a directory, or the last one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from components.validation import did_you_mean
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.rundir import SPEC, STAMP
from losskit_cli.tracking.process import training
from losskit_cli.tracking.settings import STORE_FILE
from losskit_cli.tracking.state import RunFile, missing, moved_store
from losskit_cli.tracking.store import Store


@dataclass(frozen=True)
class FoundRun:
    """A run and where it lives on this machine."""

    name: str
    run_dir: Path
    status: str | None = None
    run_id: str | None = None

    def is_running(self) -> bool:
        """Whether a process trains in its directory right now."""
        return training(self.run_dir, wait=3.0)  # a writer that sees to a killed run's end holds the same lock for a moment


def find_run(run: str | None, output_dir: str = "outputs") -> FoundRun:
    """The run that ``run`` names; ``None``: the one that was started last.

    Raises:
        UsageError: there is no such run, several, or its directory is gone.
    """
    if run is None:
        return _last(Path(output_dir))
    if (Path(run) / SPEC).is_file():
        return _at(Path(run).absolute())
    try:
        info = Store.open().find(run)
    except LosskitError as error:
        return _below(Path(output_dir), run, error)
    if info.run_dir is None or not (Path(info.run_dir) / SPEC).is_file():
        raise UsageError(f"run {info.name} is in the store, but its directory {info.run_dir or '(none recorded)'} is not on this machine")
    return FoundRun(info.name, Path(info.run_dir), info.status, info.run_id)


def _below(root: Path, run: str, error: LosskitError) -> FoundRun:
    """The run of that name below ``root``: one without tracking, or one that MLflow has not got or cannot be asked for; else ``error``."""
    directories = [spec.parent.absolute() for spec in sorted(root.glob(f"*/*/{SPEC}"))]
    matches = [d for d in directories if run in (d.name, d.name[STAMP:])]
    matches = matches or [d for d in directories if d.name.endswith(f"-{run.removeprefix('…')}")]
    if len(matches) == 1:
        return _at(matches[0])
    if matches:
        raise UsageError(f"{run!r} names {len(matches)} runs: {', '.join(os.path.relpath(m) for m in matches[:6])}. Use the directory") from None
    if directories and isinstance(error, UsageError) and not Path(STORE_FILE).exists():
        names = list(dict.fromkeys(d.name[STAMP:] for d in reversed(directories)))
        shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
        raise UsageError(f"there is no run {run!r}{did_you_mean(run, names)} (below {root}: {shown})") from None
    raise error from None


def _last(root: Path) -> FoundRun:
    run_dirs = [spec.parent.absolute() for spec in root.glob(f"*/*/{SPEC}")]
    if not run_dirs:
        raise UsageError(f"there is no run below {root.absolute()} yet: losskit train")
    # a resumed run's files are newer than its start, which the directories' names say to the second
    return _at(max(run_dirs, key=lambda d: (d.parent.name, d.name[:STAMP], d.stat().st_ctime)))


def _at(run_dir: Path) -> FoundRun:
    """The run of a directory, with what its own store says of it."""
    name, record = run_dir.name[STAMP:], RunFile.load(run_dir)
    if record.run_id is None:
        return FoundRun(name, run_dir)
    uri = (moved_store(record.tracking_uri, run_dir) if missing(record.tracking_uri) else None) or record.tracking_uri
    try:
        info = Store.open(uri).find(record.run_id)
    except LosskitError:  # the store is gone, or away
        return FoundRun(name, run_dir, None, record.run_id)
    return FoundRun(info.name, run_dir, info.status, info.run_id)

"""Which run the user means: an id, the unique beginning of one, a name, a directory, or the last one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from losskit_cli.errors import UsageError
from losskit_cli.rundir import SPEC
from losskit_cli.tracking.process import training
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
        return FoundRun(Path(run).name, Path(run).absolute())
    try:
        info = Store.open().find(run)
    except UsageError as error:
        below = [p.parent for p in Path(output_dir).glob(f"*/*{run}/{SPEC}")]  # a run without tracking, or one that MLflow has not got yet
        if len(below) != 1:
            raise error from None
        return FoundRun(run, below[0].absolute())
    if info.run_dir is None or not (Path(info.run_dir) / SPEC).is_file():
        raise UsageError(f"run {info.name} is in the store, but its directory {info.run_dir or '(none recorded)'} is not on this machine")
    return FoundRun(info.name, Path(info.run_dir), info.status, info.run_id)


def _last(root: Path) -> FoundRun:
    specs = sorted(root.glob(f"*/*/{SPEC}"), key=lambda p: p.stat().st_mtime)
    if not specs:
        raise UsageError(f"there is no run below {root.absolute()} yet: losskit train")
    run_dir = specs[-1].parent.absolute()
    try:
        infos = [info for info in Store.open().runs() if info.run_dir and Path(info.run_dir) == run_dir]
    except UsageError:
        infos = []
    return FoundRun(run_dir.name, run_dir, infos[0].status if infos else None, infos[0].run_id if infos else None)

"""Starting the writer beside the training, waiting for it, and sending later what it could not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking.journal import JOURNAL_FILE, LIVE_LOCK
from losskit_cli.tracking.server import ServedProcess, fork_writer
from losskit_cli.tracking.settings import TrackingSettings, resolve_uri, without_credentials
from losskit_cli.tracking.state import RunFile, missing, moved_store, unsent

LOG_FILE = "tracking.log"
SYNC_LIMIT = 10_000


@dataclass(frozen=True)
class Outcome:
    """What became of a run's records.

    Attributes:
        run_id: MLflow's id; ``None`` if the run could not be made yet.
        ok: everything is in MLflow.
        error: why not, for the reader; also what MLflow refused to take.
        unsent: number of records that are still only in the journal; ``losskit sync`` sends them.
    """

    run_id: str | None
    ok: bool
    error: str | None = None
    unsent: int = 0


class Writer:
    """The process beside the training that sends its journal to MLflow. Made by :func:`start_writer`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.process = _spawn(run_dir)

    @property
    def run_id(self) -> str | None:
        """MLflow's run id, ``None`` while the run is being made."""
        return RunFile.load(self.run_dir).run_id

    def wait(self, timeout: float | None = 60.0, last_word: dict[str, Any] | None = None) -> Outcome:
        """Let the writer send what is left, and say how that went. It goes on by itself if that takes longer than ``timeout`` seconds.

        Args:
            last_word: :attr:`Journal.unwritten_end`, so that the run's end is known though the journal could not be written.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._hang_up(last_word)
        for attempt in range(2):
            try:
                code = self.process.wait(None if end is None else max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return Outcome(self.run_id, False, "MLflow is still being written, by a process of its own", unsent(self.run_dir))
            if code >= 0 or attempt:
                break
            self.process = _spawn(self.run_dir)  # it was killed: another one goes on where it stopped
            self._hang_up(last_word)
        return outcome(self.run_dir, code)

    def abandon(self) -> None:
        """Let go of a run that never began: the writer finishes what it is doing to the store, makes no run, and ends by itself."""
        self._hang_up(None)

    def _hang_up(self, last_word: dict[str, Any] | None) -> None:
        pipe = self.process.stdin
        if pipe is None or pipe.closed:
            return
        try:
            if last_word is not None:
                pipe.write(json.dumps(last_word).encode() + b"\n")
            pipe.close()
        except BrokenPipeError:
            return  # it is gone already, which wait() sees


def start_writer(run_dir: Path | str, settings: TrackingSettings, *, cwd: Path | None = None, run_id: str | None = None) -> Writer:
    """Start the writer as early as possible: importing MLflow and making a store take seconds, which then pass beside training.

    It makes the MLflow run when the journal has been started, and leaves no run behind if it never is.

    Args:
        run_dir: the run's directory; made if need be.
        settings: the config's ``tracking`` group.
        cwd: the working directory that a default store belongs to.
        run_id: the MLflow run to go on with, if ``run_dir`` does not know it (resumed on another machine).
    """
    run_dir = Path(run_dir).absolute()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        run = RunFile.load(run_dir)
        run.apply(settings, run_dir, cwd)
        run.run_id = run.run_id or run_id
        run.save(run_dir)
        return Writer(run_dir)
    except OSError as error:
        raise RunError(f"cannot start tracking in {run_dir}: {error.strerror or error}") from error


def sync(run_dir: Path | str, *, uri: str | None = None) -> Outcome:
    """Send what a run's journal holds and MLflow does not; nothing is sent twice.

    Args:
        uri: another store than the run's own. Only for a run that has not been made in a store yet.

    Raises:
        UsageError: there is no journal, or the run is in another store already.
        RunError: its own writer is still at work.
    """
    run_dir = Path(run_dir).absolute()
    if not (run_dir / JOURNAL_FILE).is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no {JOURNAL_FILE}")
    run = RunFile.load(run_dir)
    wanted = without_credentials(resolve_uri(uri)) if uri else None
    if wanted and run.run_id and run.tracking_uri != wanted:
        raise UsageError(f"the run is in {run.tracking_uri} already (run {run.run_id}): it cannot be sent to {wanted}")
    if not run.run_id:
        run.tracking_uri = wanted or run.tracking_uri or without_credentials(resolve_uri())
        run.save(run_dir)
    elif missing(run.tracking_uri):
        found = moved_store(run.tracking_uri, run_dir)
        if found is None:
            raise UsageError(f"the store of this run is gone: {run.tracking_uri}")
        run.tracking_uri = found
        run.save(run_dir)
    if unsent(run_dir) == 0:
        return Outcome(run.run_id, True)
    process = _spawn(run_dir, "--sync")
    assert process.stdin is not None
    process.stdin.close()
    code = process.wait()
    if code == 4:
        raise RunError(f"the writer of {run_dir} is still at work: wait for it")
    return outcome(run_dir, code)


def outcome(run_dir: Path, code: int) -> Outcome:
    """What the run directory says after its writer ended with exit status ``code``."""
    run, left = RunFile.load(run_dir), unsent(run_dir)
    if code < 0:
        return Outcome(run.run_id, False, f"the process that writes MLflow was killed (signal {-code})", left)
    error = run.error or ("; ".join(run.refused) and f"MLflow refused: {'; '.join(run.refused)}") or None
    if code and error is None:
        error = f"the process that writes MLflow failed: see {run_dir / LOG_FILE}"
    return Outcome(run.run_id, code == 0 and left == 0 and error is None, error, left)


def unsent_runs(root: Path | str) -> list[Path]:
    """Run directories below ``root`` with records that MLflow does not have; those of running trainings are left out."""
    found = []
    for number, journal in enumerate(sorted(Path(root).rglob(JOURNAL_FILE))):
        if number >= SYNC_LIMIT:
            break
        run_dir = journal.parent
        if unsent(run_dir) and not training(run_dir) and journal.stat().st_size:
            found.append(run_dir)
    return found


def training(run_dir: Path, wait: float = 0.0) -> bool:
    """Whether a training process is at work in ``run_dir``."""
    lock = FileLock(run_dir / LIVE_LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        return True
    lock.release()
    return False


def run_sync(runs: list[str], *, cwd: Path | None = None, output_dir: str = "outputs", uri: str | None = None) -> list[tuple[Path, Outcome]]:
    """The command ``losskit sync [RUN …]``: send what was kept. No run given: every run below ``output_dir`` that has something unsent.

    Args:
        runs: run directories, or names of run directories below ``output_dir``.
        uri: send to this store (runs that are in none yet).

    Raises:
        UsageError: a run that is not there.
    """
    root = (cwd or Path.cwd()) / output_dir
    if not runs:
        return [(run_dir, sync(run_dir, uri=uri)) for run_dir in unsent_runs(root)]
    return [(run_dir, sync(run_dir, uri=uri)) for run_dir in [find_run_dir(run, root) for run in runs]]


def find_run_dir(run: str, root: Path) -> Path:
    """The directory of a run that may not be in any store: a path, or the name, or the MLflow id of a run below ``root``."""
    direct = Path(run)
    if (direct / JOURNAL_FILE).is_file():
        return direct
    candidates = [journal.parent for journal in sorted(root.rglob(JOURNAL_FILE))]
    matches = [d for d in candidates if d.name == run] or [d for d in candidates if len(run) >= 4 and (RunFile.load(d).run_id or "").startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{run!r} names several runs: {', '.join(map(str, matches))}")
    raise UsageError(f"there is no run {run!r}: neither a run directory nor a run below {root}")


def _spawn(run_dir: Path, *options: str) -> subprocess.Popen[bytes] | ServedProcess:
    with (run_dir / LOG_FILE).open("ab") as log:
        served = fork_writer(run_dir, log) if not options else None
        if served is not None:
            return served
        command, environment = own_command("losskit_cli.tracking.writer", str(run_dir), *options)
        # a session of its own: Ctrl-C in the terminal is for training, which tells the writer how it ended.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=environment)


def own_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command that runs one of losskit's modules, and its environment; modules in the user's working directory do not stand in for the library's (-P)."""
    environment = dict(os.environ)
    home = Path(__file__).parents[2]
    if home.name not in ("site-packages", "dist-packages"):  # a source tree: -P keeps the working directory out, so name the tree
        environment["PYTHONPATH"] = os.pathsep.join(p for p in (environment.get("PYTHONPATH"), str(home)) if p)
    return [sys.executable, "-P", "-m", module, *arguments], environment


__all__ = ["Outcome", "Writer", "find_run_dir", "outcome", "own_command", "run_sync", "start_writer", "sync", "training", "unsent_runs"]

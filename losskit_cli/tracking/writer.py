"""The process beside the training: follows the journal and writes it to MLflow. ``python -m losskit_cli.tracking.writer RUN_DIR [--sync]``

It lives as long as the training process does: its standard input closing (or its parent changing) is how it learns that
training has ended, and without an ``end`` in the journal that was a kill. After every batch it notes how far it has come
(``tracking.offset``), and everything it sends can be sent twice without harm, so it may be killed at any time.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from losskit_cli.tracking import plots
from losskit_cli.tracking.environment import capture_environment, packages_text
from losskit_cli.tracking.journal import JOURNAL_FILE, LIVE_LOCK, Digest, Record, disk_message, read_records
from losskit_cli.tracking.mlflow_run import AwayError, LostError, MlflowRun, log
from losskit_cli.tracking.state import Progress, RunFile, read_json, write_json

WRITER_LOCK = "tracking.lock"
CHUNK = 2000  # records sent between two notes of the offset
LAST_TRIES_SECONDS = 10.0  # how long an ended run waits for a store that has just gone away
AWAY_TRIES_SECONDS = 3.0  # … and for one that has been away for a while
LET_GO_SECONDS = 15.0  # how long data-loader processes may outlive a killed training and hold its lock
LONGEST_PAUSE = 30.0
OK, UNSENT, BUSY = 0, 3, 4


class TrackingWriter:
    """Follows one run's journal.

    Args:
        run_dir: the run directory.
        live: whether this process accompanies a training process (else it catches up with one that has ended).
    """

    def __init__(self, run_dir: Path, *, live: bool) -> None:
        self.run_dir, self.live = run_dir, live
        self.journal = run_dir / JOURNAL_FILE
        self.run = RunFile.load(run_dir)
        self.progress = Progress.load(run_dir)
        self.mlflow = MlflowRun(run_dir, self.run)
        self.digest = Digest(plots.worth_drawing)
        self.parent = os.getppid()
        self.hung_up = False
        self.preloaded = self._environment_noted = False
        self._heard = b""
        self._caught_up = False

    def follow(self) -> int:
        """Send what there is and what comes, until training has ended; the exit status."""
        failures, pause, deadline = 0, 0.0, None
        self.run.error = None
        while True:
            self._listen(pause)
            if not self.run_dir.exists():  # the run never began, and its directory was taken away
                return OK
            try:
                self._note_environment()
                self._send_all()
                if self.hung_up and not self.progress.finished:
                    self._end_without_a_word()
                failures, pause = 0, self.run.flush_seconds
            except (AwayError, OSError) as error:
                failures += 1
                pause = min(LONGEST_PAUSE, 0.5 * 2**failures) if deadline is None else 1.0
                message = disk_message(error, self.run_dir) if isinstance(error, OSError) else str(error)
                log.warning("%s; trying again (%d)", message, failures)
                if deadline is not None and time.monotonic() > deadline:
                    return self._give_up(message)
            except LostError as error:
                return self._give_up(str(error))
            if self.hung_up:
                if not failures:
                    break
                deadline = deadline or time.monotonic() + (AWAY_TRIES_SECONDS if failures > 2 else LAST_TRIES_SECONDS)
        if self.run.run_id is not None:
            self.run.save(self.run_dir)
        return UNSENT if self.run.error else OK

    def _give_up(self, error: str) -> int:
        log.error("gave up: %s", error)
        self.run.error = error
        self.run.save(self.run_dir)
        return UNSENT

    # -- the training process -----------------------------------------------------------------------------------------
    def _listen(self, seconds: float) -> None:
        """Wait, at most until training hangs up."""
        until = time.monotonic() + seconds
        while not self.hung_up:
            left = until - time.monotonic()
            readable = select.select([sys.stdin], [], [], max(0.0, min(left, 0.5)))[0]
            if readable:
                data = os.read(sys.stdin.fileno(), 65536)
                self._heard += data
                self.hung_up = not data
            elif os.getppid() != self.parent:  # killed, while a process that it forked still holds the pipe
                self.hung_up = True
            elif left <= 0:
                return

    def _end_without_a_word(self) -> None:
        """Training is gone and the journal has no end: take its last word from the pipe, else it was killed."""
        if not self.digest.open:
            return
        if self._heard.endswith(b"\n"):
            self.digest.feed(json.loads(self._heard))
            self._finish()
            return
        try:
            # held while the end is written, so that nobody resumes the run meanwhile
            with FileLock(self.run_dir / LIVE_LOCK).acquire(timeout=LET_GO_SECONDS if self.live else 0.0):
                self._send_all()  # what it wrote last
                if self.digest.open:
                    last = int(self.journal.stat().st_mtime * 1000)
                    self.digest.feed({"t": "end", "status": "KILLED", "error": None, "time": max(last, self.digest.last_time)})
                    self._finish()
        except Timeout:
            log.info("training goes on without this writer")

    # -- the journal --------------------------------------------------------------------------------------------------
    def _send_all(self) -> None:
        self.mlflow.connect()
        if not self.journal.exists():
            self._preload()
            return
        self._catch_up()
        while chunk := self._next_records():
            self._send([record for _, record in chunk])
            self.progress.offset = chunk[-1][0]
            self.progress.save(self.run_dir)
        if self.digest.end is not None and (not self.progress.finished or self.run.unstored):
            self._finish()
        elif not self.hung_up:
            self._preload()

    def _catch_up(self) -> None:
        """Go once over what an earlier writer sent, for the curves and for what to keep at the end."""
        if self._caught_up:
            return
        for offset, record in read_records(self.journal):
            if offset > self.progress.offset:
                break
            self.digest.feed(record)
        if self.run.run_id is not None and self.progress.offset:
            self.mlflow.look_again()
        self._caught_up = True

    def _next_records(self) -> list[tuple[int, Record]]:
        chunk = []
        for entry in read_records(self.journal, self.progress.offset):
            chunk.append(entry)
            if len(chunk) >= CHUNK:
                break
        return chunk

    def _send(self, records: list[Record]) -> None:
        metrics: list[Record] = []
        for record in records:
            if record["t"] == "m":
                metrics.append(record)
            else:
                self.mlflow.metrics(metrics)
                metrics = []
                self._send_other(record)
        self.mlflow.metrics(metrics)
        for record in records:  # only once all of them are sent: a chunk that failed comes again
            self.digest.feed(record)

    def _send_other(self, record: Record) -> None:
        match record["t"]:
            case "start":
                self.progress.finished = False
                self.mlflow.begin(record)
                self._send_environment()
            case "p":
                self.mlflow.params(record["d"])
            case "g":
                self.mlflow.tags(record["d"])
            case "x":
                self.mlflow.text(record["text"], record["to"])
            case "a" if record["when"] == "now":
                self._artifact(record["path"], record["to"])

    def _artifact(self, path: str, to: str, *, must_exist: bool = True) -> None:
        if self.run.log_checkpoints or not to.startswith("checkpoints"):
            self.mlflow.artifact(Path(path), to, must_exist=must_exist)

    # -- the end ------------------------------------------------------------------------------------------------------
    def _finish(self) -> None:
        end = self.digest.end
        assert end is not None
        self.run.error = None
        for path, to in [*self.run.unstored]:
            self.mlflow.artifact(Path(path), to)
        if not self.progress.finished:
            for path, to in self.digest.keep_at_end:
                self._artifact(path, to, must_exist=False)
            if self.run.plots:
                for picture in plots.draw(self.digest.curves, self.run_dir / "plots"):
                    self.mlflow.artifact(picture, "plots")
            tags = {"losskit.duration_s": f"{self.digest.seconds:.3f}"}
            if end.get("error"):
                tags["losskit.error"] = str(end["error"])
            self.mlflow.terminate(end["status"], end["time"], tags)
            log.info("run %s: %s", self.run.run_id, end["status"])
        self.run.save(self.run_dir)
        self.progress.finished = True
        self.progress.save(self.run_dir)

    def _preload(self) -> None:
        if self.run.plots and not self.preloaded:
            plots.preload()
            self.preloaded = True

    # -- the environment ----------------------------------------------------------------------------------------------
    def _note_environment(self) -> None:
        """Keep what this session runs with, at once: the code may be edited while it trains. A resumed session's only if it differs."""
        if not self.live or self._environment_noted:
            return
        environment = capture_environment(code=self.run.capture_code)
        kept = self._environments()
        if environment not in (read_json(path) for path in kept):
            write_json(self.run_dir / ("environment.json" if not kept else f"environment-{len(kept) + 1}.json"), environment)
        self._environment_noted = True

    def _environments(self) -> list[Path]:
        return sorted(self.run_dir.glob("environment*.json"), key=lambda path: (len(path.name), path.name))

    def _send_environment(self) -> None:
        for number, path in enumerate(self._environments(), 1):
            environment, suffix = read_json(path), "" if number == 1 else f"-{number}"
            git = environment.pop("git", None) or {}
            diff = git.pop("diff", "")
            self.mlflow.text(json.dumps({**environment, "git": git or None}, indent=1), f"environment/environment{suffix}.json")
            self.mlflow.text(packages_text(environment), f"environment/packages{suffix}.txt")
            if diff:
                self.mlflow.text(diff, f"code/diff{suffix}.patch")
            if git.get("commit") and number == 1:
                tags = {"mlflow.source.git.commit": git["commit"], "losskit.git_dirty": json.dumps(git["dirty"])}
                tags |= {f"mlflow.source.git.{k}": git[v] for k, v in (("branch", "branch"), ("repoURL", "remote")) if git.get(v)}
                self.mlflow.tags(tags)


DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # trying again is this process's own business
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",
}


def set_defaults() -> None:
    """What MLflow reads from the environment, unless the user says otherwise; before it is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def main(arguments: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training process is who ends a run; this one ends with it
    run_dir, live = Path(arguments[0]), "--sync" not in arguments[1:]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    set_defaults()
    try:
        # a writer that is still sending for the session before this one is waited for
        with FileLock(run_dir / WRITER_LOCK).acquire(timeout=120.0 if live else 1.0):
            return TrackingWriter(run_dir, live=live).follow()
    except Timeout:
        log.error("another writer is at work in %s", run_dir)
        return BUSY


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    os._exit(status)  # all is on disk: taking MLflow's modules down would keep the user waiting for a second

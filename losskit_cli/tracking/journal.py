"""The journal: everything that a run logs, one JSON object a line, appended to ``tracking.jsonl`` in the run directory.

It is the truth about a run until MLflow has it: training only ever writes here, so tracking costs a list append a call, and
whatever kills training, the writer or the server, what was logged is still there.

Records (``t`` is the kind):

====== ==============================================================================================
start  a session begins (the first, or a resume): ``uid session time name tags params``
p      parameters: ``d``
g      tags: ``d``
m      metrics: ``s`` step, ``ts`` milliseconds, ``d``; NaN and infinities are the strings ``float()`` takes
a      a file or folder to keep: ``path to when`` (``now`` or ``end``: when the run ends, however it does)
x      a text to keep: ``to text``
end    the session ended: ``status error time``
====== ==============================================================================================
"""

from __future__ import annotations

import atexit
import errno
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from losskit_cli.errors import RunError

JOURNAL_FILE = "tracking.jsonl"
LIVE_LOCK = "tracking.live"
VERSION = 1
STATUSES = ("FINISHED", "FAILED", "KILLED")
Record = dict[str, Any]


class Journal:
    """What training logs to. Opening one that exists goes on with it.

    Values that an earlier session logged (the same key, up to the last step it logged) are left out, so the history of a run
    that was killed and resumed is that of an unbroken one.

    Args:
        run_dir: the run's directory; made if need be.
        flush_seconds: the longest that an entry stays in memory, in seconds.
        flush_entries: number of entries that are written at once at the latest.
        already_logged: key -> last step, for going on with a run whose journal is not here (see ``Store.last_steps``).

    Raises:
        RunError: another process is training in this directory, or it cannot be written.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        flush_seconds: float = 1.0,
        flush_entries: int = 500,
        already_logged: Mapping[str, int] | None = None,
        lock_timeout: float = 30.0,
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.path = self.run_dir / JOURNAL_FILE
        self.flush_seconds, self.flush_entries = flush_seconds, flush_entries
        self.unwritten_end: Record | None = None
        self._live = FileLock(self.run_dir / LIVE_LOCK)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            # the wait is for data-loader processes of a killed run, which outlive it by some seconds
            self._live.acquire(timeout=lock_timeout)
        except Timeout as error:
            raise RunError(f"another process is training in {self.run_dir}: wait for it, stop it, or use another run directory") from error
        except OSError as error:
            raise RunError(disk_message(error, self.run_dir)) from error
        self.uid, self.session, self._resumed = uuid.uuid4().hex, 1, dict(already_logged or {})
        if self.path.exists():
            drop_half_line(self.path)
            self._go_on()
        self._pid = os.getpid()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._last: dict[str, tuple[int, float]] = {}
        self._step = 0
        self._buffer: list[Record | tuple[int, int, dict[str, float]]] = []
        self._writing, self._wake = threading.Lock(), threading.Event()
        self._failure: RunError | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def _go_on(self) -> None:
        for _, record in read_records(self.path):
            if record["t"] == "start":
                self.uid, self.session = record["uid"], record["session"] + 1
        for key, step in last_steps(self.path).items():
            self._resumed[key] = max(step, self._resumed.get(key, step))

    @property
    def resumed(self) -> bool:
        """Whether an earlier session wrote to this run."""
        return self.session > 1 or bool(self._resumed)

    def already_logged(self, key: str, step: int) -> bool:
        """Whether an earlier session logged ``key`` at ``step``."""
        return step <= self._resumed.get(key, -1)

    # -- writing ------------------------------------------------------------------------------------------------------
    def start(self, metadata: Mapping[str, Any]) -> None:
        """Begin a session. The writer makes the MLflow run when it sees this.

        Args:
            metadata: ``name`` of the run, ``tags`` and ``params`` (name -> value), ``texts`` (artifact path -> text); all optional.
                Tags and texts are MLflow's for the asking, e.g. ``{"mlflow.parentRunId": …}``.
        """
        record: Record = {"t": "start", "v": VERSION, "uid": self.uid, "session": self.session, "time": now_ms(), "name": metadata.get("name")}
        self._append(record)
        for kind in ("tags", "params"):
            if metadata.get(kind):
                getattr(self, kind)(metadata[kind])
        for name, text in (metadata.get("texts") or {}).items():
            self.text(text, name)
        self._thread = threading.Thread(target=self._keep_flushing, name="losskit-journal", daemon=True)
        self._thread.start()
        atexit.register(self._flush_at_exit)
        self.flush()

    def params(self, values: Mapping[str, Any]) -> None:
        """Flat parameters. MLflow writes each once; what a resumed session changes goes to the tag ``losskit.param_drift``."""
        self._append({"t": "p", "d": {str(k): _text(v) for k, v in values.items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        self._append({"t": "g", "d": {str(k): _text(v) for k, v in values.items()}})

    def metrics(self, values: Mapping[str, Any], step: int | None = None, timestamp: float | None = None) -> None:
        """Metric values at ``step``. The same value for the same key and step is kept once.

        Args:
            values: name -> number (or tensor of one element).
            step: optimizer steps done; ``None``: the last one given.
            timestamp: seconds since the epoch; ``None``: now.
        """
        if step is None:
            step = self._step
        else:
            self._step = step
        resumed, last = self._resumed, self._last
        fresh: dict[str, float] = {}
        for key, raw in values.items():
            value = raw if type(raw) is float else float(raw)
            if resumed and step <= resumed.get(key, -1):
                continue
            entry = (step, value)
            if last.get(key) != entry:
                last[key] = entry
                fresh[key] = value
        if fresh:
            self._append((step, int((time.time() if timestamp is None else timestamp) * 1000), fresh))

    def artifact(self, path: Path | str, artifact_path: str = "", *, when: str = "now") -> None:
        """Keep a file or a folder's files among the run's artifacts, in the folder ``artifact_path``.

        ``when="end"`` takes it when the run ends, whichever way, if it is there then (checkpoints).
        """
        if when not in ("now", "end"):
            raise ValueError(f"when must be one of now, end, but got {when!r}")
        self._append({"t": "a", "path": str(Path(path).absolute()), "to": artifact_path, "when": when})

    def text(self, text: str, name: str) -> None:
        """Keep ``text`` as the artifact ``name`` (``config.yaml``, ``notes/why.md``)."""
        self._append({"t": "x", "to": name, "text": text})

    def end(self, status: str, error: str | None = None) -> None:
        """End the session: ``FINISHED``, ``FAILED`` or ``KILLED``. Never raises for a full disk: what could not be written is ``unwritten_end``."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, but got {status!r}")
        if self._closed:
            return
        record: Record = {"t": "end", "status": status, "error": error, "time": now_ms()}
        self._failure = None  # the disk may have room again
        self._append(record)
        try:
            self.flush()
        except RunError:
            self.unwritten_end = record
        self._let_go()

    def close(self) -> None:
        """Stop writing without ending the session (the run then counts as killed) and let go of the directory."""
        if not self._closed:
            try:
                self.flush()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        atexit.unregister(self._flush_at_exit)
        os.close(self._fd)
        self._live.release()

    def flush(self) -> None:
        """Write what is in memory. Call it before a checkpoint is written: what a checkpoint counts as done must be in the journal.

        Raises:
            RunError: the journal cannot be written (a full disk).
        """
        if os.getpid() != self._pid:  # a forked data-loader process has a copy of the buffer
            return
        with self._writing:
            entries, self._buffer = self._buffer, []
            if not entries:
                return
            try:
                self._write("".join([_line(entry) for entry in entries]).encode())
            except OSError as error:
                self._buffer[:0] = entries
                self._failure = RunError(disk_message(error, self.path))
                raise self._failure from error

    def _append(self, entry: Record | tuple[int, int, dict[str, float]]) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RunError(f"the journal {self.path} has been closed")
        self._buffer.append(entry)
        if len(self._buffer) >= self.flush_entries:
            if self._thread is None:
                self.flush()
            else:
                self._wake.set()

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._fd).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, before)  # a half-written line would swallow the next one
            raise

    def _keep_flushing(self) -> None:
        while not self._closed:
            self._wake.wait(self.flush_seconds)
            self._wake.clear()
            if self._failure is None:
                try:
                    self.flush()
                except RunError:
                    continue  # kept in self._failure: the training thread raises it at its next entry

    def _flush_at_exit(self) -> None:
        if not self._closed and self._failure is None:
            self.flush()


def _line(entry: Record | tuple[int, int, dict[str, float]]) -> str:
    if isinstance(entry, tuple):
        step, timestamp, values = entry
        entry = {"t": "m", "s": step, "ts": timestamp, "d": {k: v if math.isfinite(v) else repr(v) for k, v in values.items()}}
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def now_ms() -> int:
    return int(time.time() * 1000)


def disk_message(error: OSError, path: Path) -> str:
    """What to say about an ``OSError`` at ``path``; a full disk by name."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: cannot write {path}. Make room and go on with `losskit resume`; what was written before is safe"
    return f"cannot write {path}: {error.strerror or error}"


# -- reading ----------------------------------------------------------------------------------------------------------
def read_records(path: Path, offset: int = 0) -> Iterator[tuple[int, Record]]:
    """Complete records from byte ``offset`` on, each with the offset behind it. A half-written last line is left alone, an unreadable one passed over."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "t" in record:
                yield offset, record


def drop_half_line(path: Path) -> None:
    """Cut off what a kill left of a last line; the next record would be glued to it."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def last_steps(path: Path) -> dict[str, int]:
    """Key -> last step at which the journal has a value."""
    steps: dict[str, int] = {}
    for _, record in read_records(path):
        if record["t"] == "m":
            step = record["s"]
            for key in record["d"]:
                if step >= steps.get(key, step):
                    steps[key] = step
    return steps


class Digest:
    """What a run's records come to: whether it has ended and how, its curves, how long it ran, what to keep at its end.

    Args:
        curves: whether a metric is worth keeping whole.
    """

    def __init__(self, curves: Callable[[str], bool] = lambda key: False) -> None:
        self.start: Record | None = None
        self.end: Record | None = None
        self.sessions = 0
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.keep_at_end: dict[tuple[str, str], None] = {}
        self._wanted: dict[str, bool] = {}
        self._curve = curves
        self._seconds, self._begin, self.last_time = 0.0, 0, 0

    def feed(self, record: Record) -> None:
        kind = record["t"]
        if kind == "m":
            self.last_time = max(self.last_time, record["ts"])
            for key, value in record["d"].items():
                if self._wanted.setdefault(key, self._curve(key)):
                    self.curves.setdefault(key, []).append((record["s"], float(value)))
        elif kind == "start":
            if self.open:
                self._seconds += (self.last_time - self._begin) / 1000
            self.start, self.end, self.sessions = self.start or record, None, record["session"]
            self._begin = self.last_time = record["time"]
        elif kind == "end":
            self.end = record
            self.last_time = max(self.last_time, record["time"])
            self._seconds += (record["time"] - self._begin) / 1000
        elif kind == "a" and record.get("when") == "end":
            self.keep_at_end[record["path"], record["to"]] = None

    @property
    def open(self) -> bool:
        """Whether a session has begun and not ended."""
        return self.start is not None and self.end is None

    @property
    def seconds(self) -> float:
        """Seconds that the sessions took together; one that was killed counts up to its last metric."""
        return self._seconds + ((self.last_time - self._begin) / 1000 if self.open else 0.0)


__all__ = ["Digest", "Journal", "drop_half_line", "last_steps", "read_records"]

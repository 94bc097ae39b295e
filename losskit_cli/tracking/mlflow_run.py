"""One run in MLflow, as the writer sees it: made once, written in batches, every call safe to repeat."""

from __future__ import annotations

import getpass
import json
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from losskit_cli.importing import import_heavy
from losskit_cli.tracking.journal import Record, disk_message
from losskit_cli.tracking.settings import ARTIFACTS_DIR, location_of, sqlite_path, sqlite_uri, with_credentials
from losskit_cli.tracking.state import RunFile
from losskit_cli.tracking.store import BESIDE_STORE, local_artifact_dir, mend_moved

MAX_METRICS, MAX_PARAMS, MAX_PARAM_CHARS, MAX_TAG_CHARS = 1000, 100, 6000, 8000
LINK_FROM_BYTES = 1_000_000
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"})
FATAL = frozenset({"RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "INVALID_STATE"})
log = logging.getLogger("losskit.tracking")


class AwayError(Exception):
    """The store does not answer now (a server that is down, a locked or full disk): trying again may help."""


class LostError(Exception):
    """The store will not take this run: trying again does not help."""


class _RefusedError(Exception):
    """The store will not take these entries."""


@contextmanager
def _calling(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message, code = f"{what}: {_short(error)}", str(error.error_code)
        if "out-of-date database schema" in str(error):
            advice = "Another MLflow version made this store: back it up, run `mlflow db upgrade` on it, then `losskit sync`"
            raise LostError(f"{message}. {advice}") from error
        if code in REFUSALS:
            raise _RefusedError(message) from error
        if code in FATAL:
            raise LostError(message) from error
        raise AwayError(message) from error
    except OSError as error:  # requests' errors are OSErrors too
        raise AwayError(f"{what}: {_short(error)}") from error


class MlflowRun:
    """The MLflow run of a run directory.

    Args:
        run_dir: the run directory.
        run: its ``run.json``; kept up to date.
    """

    def __init__(self, run_dir: Path, run: RunFile) -> None:
        self.run_dir, self.run = run_dir, run
        self.client: Any = None
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._drift: dict[str, list[str]] = {}

    # -- the store ----------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Import MLflow and open the store; a SQLite store that is not there is made, by one process at a time."""
        if self.client is not None:
            return
        uri = with_credentials(self.run.tracking_uri)
        os.environ["MLFLOW_TRACKING_URI"] = uri
        try:
            import_heavy("mlflow.store.tracking.sqlalchemy_store" if sqlite_path(uri) else "mlflow")
            from mlflow import MlflowClient
        except ImportError as error:
            raise LostError(f"MLflow cannot be imported: {error}") from error
        path = sqlite_path(uri)
        if path is None:
            with _calling("opening the store"):
                client = MlflowClient(tracking_uri=uri)
        else:
            with _calling("making the store"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    if not path.exists():
                        _make_store(path)
                    client = MlflowClient(tracking_uri=uri)
                    if moved := mend_moved(path):
                        log.info("the store has moved; mended the artifact paths of %s", ", ".join(moved))
        self.client = client

    def _experiment(self) -> Any:
        name = self.run.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location, tags, path = self.run.artifacts, None, sqlite_path(self.run.tracking_uri)
            if location is None and path is not None:
                folder = path.parent / ARTIFACTS_DIR / (re.sub(r"[^\w.-]+", "_", name).strip(".") or "_")
                location, tags = location_of(folder), {BESIDE_STORE: folder.name}
            try:
                self.client.create_experiment(name, artifact_location=location, tags=tags)
            except Exception as error:
                if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":  # another run's writer was faster
                    raise
            found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise LostError(f"the MLflow experiment {name!r} has been deleted: restore it there, or use another (tracking.experiment=…)")
        return found

    # -- the run ------------------------------------------------------------------------------------------------------
    def begin(self, start: Record) -> None:
        """Make the run at its first session; set it running again at a later one."""
        from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

        with _calling("making the run"):
            if self.run.run_id is None and self.run.creating:
                self.run.run_id = self._made_before(start["uid"])
            if self.run.run_id is None:
                experiment = self._experiment()
                self.run.creating, self.run.experiment_id = True, experiment.experiment_id
                self.run.save(self.run_dir)
                tags = {
                    MLFLOW_SOURCE_NAME: "losskit",
                    MLFLOW_SOURCE_TYPE: "LOCAL",
                    MLFLOW_USER: _user(),
                    "losskit.run_dir": str(self.run_dir),
                    "losskit.journal": start["uid"],
                }
                made = self.client.create_run(experiment.experiment_id, start_time=start["time"], tags=tags, run_name=start.get("name"))
                self.run.run_id = made.info.run_id
            self._look()
            self.client.update_run(self.run.run_id, status="RUNNING")
            if start["session"] > 1:
                self._set_tags({"losskit.sessions": str(start["session"])})
            if self._tags.get("losskit.run_dir") != str(self.run_dir):  # it has moved, or goes on on another machine
                self._set_tags({"losskit.run_dir": str(self.run_dir)})
            if "losskit.error" in self._tags:
                self.client.delete_tag(self.run.run_id, "losskit.error")
        self.run.creating = False
        self.run.save(self.run_dir)

    def _look(self) -> None:
        found = self.client.get_run(self.run.run_id)
        self._params, self._tags = dict(found.data.params), dict(found.data.tags)
        self.run.experiment_id, self.run.artifact_uri = found.info.experiment_id, found.info.artifact_uri

    def _made_before(self, uid: str) -> str | None:
        """The run that a writer made and was killed before it could note down."""
        assert self.run.experiment_id is not None
        found = self.client.search_runs([self.run.experiment_id], filter_string=f"tags.`losskit.journal` = '{uid}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def look_again(self) -> None:
        """Read what the run holds, for a writer that goes on in the middle of a session."""
        with _calling("reading the run"):
            self._look()

    def terminate(self, status: str, end_time: int, tags: Mapping[str, str]) -> None:
        self.tags(tags)
        with _calling("ending the run"):
            self.client.set_terminated(self.run.run_id, status=status, end_time=end_time)

    # -- entries ------------------------------------------------------------------------------------------------------
    def metrics(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        entries = [Metric(safe_key(key), float(value), r["ts"], r["s"]) for r in records for key, value in r["d"].items()]
        self._batches("metrics", entries, MAX_METRICS)

    def params(self, values: Mapping[str, str]) -> None:
        """Write parameters that are new; what differs from what is there is noted in a tag."""
        from mlflow.entities import Param

        cut = {safe_key(key): value[:MAX_PARAM_CHARS] for key, value in values.items()}
        changed = {key: [self._params[key], value] for key, value in cut.items() if self._params.get(key, value) != value}
        new = {key: value for key, value in cut.items() if key not in self._params}
        self._batches("params", [Param(key, value) for key, value in new.items()], MAX_PARAMS)
        self._params |= new
        if changed:
            self._drift |= changed
            self.tags({"losskit.param_drift": json.dumps(self._drift)})

    def tags(self, values: Mapping[str, str]) -> None:
        with _calling("setting tags"):
            self._set_tags(values)

    def _set_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._batches("tags", [RunTag(safe_key(key), value[:MAX_TAG_CHARS]) for key, value in values.items()], MAX_PARAMS)

    def _batches(self, kind: str, entries: list[Any], size: int) -> None:
        for first in range(0, len(entries), size):
            self._send(kind, entries[first : first + size])

    def _send(self, kind: str, entries: list[Any]) -> None:
        """Send a batch; of one that is refused, everything but the entries to blame."""
        try:
            with _calling(f"writing {kind}"):
                self.client.log_batch(self.run.run_id, **{kind: entries})
        except _RefusedError as error:
            if len(entries) == 1:
                self.refuse(f"{kind.removesuffix('s')} {entries[0].key!r}: {error}")
                return
            middle = len(entries) // 2
            self._send(kind, entries[:middle])
            self._send(kind, entries[middle:])

    def refuse(self, message: str) -> None:
        """Note something that MLflow will never take; the rest goes on."""
        log.warning("left out: %s", message)
        if len(self.run.refused) < 10 and message not in self.run.refused:
            self.run.refused.append(message)

    # -- artifacts ----------------------------------------------------------------------------------------------------
    def artifact(self, path: Path, to: str, *, must_exist: bool = True) -> None:
        """Keep a file, or what is in a folder. What cannot be stored now is noted in ``run.json`` and tried again at the end and by ``losskit sync``."""
        if path.is_dir():
            for child in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".tmp")):
                inner = child.parent.relative_to(path).as_posix()
                self.artifact(child, posixpath.join(to, inner) if inner != "." else to)
        elif path.is_file():
            self._put(path, to)
        elif must_exist:
            self.refuse(f"artifact {path}: there is no such file")

    def text(self, text: str, to: str) -> None:
        folder, name = posixpath.split(posixpath.normpath(to).lstrip("/"))
        kept = self.run_dir / "artifacts" / folder
        kept.mkdir(parents=True, exist_ok=True)
        (kept / name).write_text(text, encoding="utf-8")
        self._put(kept / name, folder)

    def _put(self, path: Path, to: str) -> None:
        entry = [str(path), to]
        try:
            self._store(path, to)
        except AwayError:
            raise
        except (LostError, _RefusedError, OSError) as error:
            log.warning("cannot store %s: %s", path, error)
            if entry not in self.run.unstored:
                self.run.unstored.append(entry)
            self.run.error = disk_message(error, path) if isinstance(error, OSError) else f"the artifact {path.name} could not be stored: {error}"
            return
        if entry in self.run.unstored:
            self.run.unstored.remove(entry)

    def _store(self, path: Path, to: str) -> None:
        folder = local_artifact_dir(self.run.artifact_uri, sqlite_path(self.run.tracking_uri))
        if folder is not None:
            place(path, folder / to / path.name)
            return
        with _calling(f"storing {path.name}"):
            self.client.log_artifact(self.run.run_id, str(path), to or None)


def preload() -> None:
    """Import what a run needs of MLflow, for processes that are forked from this one."""
    import_heavy("mlflow.store.tracking.sqlalchemy_store")
    for module in ("mlflow.entities", "mlflow.utils.mlflow_tags", "mlflow.tracking.client"):
        import_module(module)
    import_module("sqlalchemy.orm").configure_mappers()


def _make_store(path: Path) -> None:
    """Make a SQLite store beside its place and put it there when it is whole: a kill in the seconds that this takes must not leave half a store."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f"{path.name}.new")
    for leftover in (new, new.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    # MLflow's own default for its "Default" experiment, which losskit does not use
    SqlAlchemyStore(sqlite_uri(new), str(path.parent / "mlruns")).engine.dispose()
    try:
        os.link(new, path)  # unlike a rename this never replaces a store that somebody else has made meanwhile
    except FileExistsError:
        log.info("the store %s has been made by another process meanwhile", path)
    except OSError:
        new.replace(path)  # a file system without links
    new.unlink(missing_ok=True)


def place(source: Path, target: Path) -> None:
    """Put a copy of ``source`` at ``target``, whole or not at all. A large checkpoint is linked if it can be: checkpoints are replaced, never changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if not (source.suffix == ".ckpt" and source.stat().st_size >= LINK_FROM_BYTES and _linked(source, temporary)):
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def safe_key(key: str) -> str:
    """``key`` in the characters and the length that MLflow takes."""
    clean = posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", key).strip("/") or "_")
    return ("_" + clean if clean.startswith(".") else clean)[:250]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return "unknown"


def _short(error: BaseException, limit: int = 300) -> str:
    text = str(error)
    if "database or disk is full" in text:
        return "the disk is full"
    if "database is locked" in text:
        return "the SQLite store is locked by another process"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]


__all__ = ["AwayError", "LostError", "MlflowRun", "place", "preload", "safe_key"]

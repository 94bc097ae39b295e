"""Where a study is kept, shared exactly by any number of workers: an SQLite file, PostgreSQL, MySQL, a journal file or a gRPC proxy.

Optuna's storages are used as they are but for three things that a sweep leans on: a waiting trial is given to one worker only (SQLite gives it to
several unless every writing transaction begins with ``BEGIN IMMEDIATE``), thousands of waiting trials cost next to nothing while they wait, and a
trial whose worker died can be put back.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import socket
import sqlite3
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, _CachedStorage
from optuna.storages._cached_storage import _StudyInfo
from optuna.storages._grpc.client import GrpcClientCache, GrpcClientCacheEntry
from optuna.storages._rdb import models
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event, exc, orm
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin

from components.validation import did_you_mean

if TYPE_CHECKING:
    import grpc

FILE = "sweeps.db"
PORT = 13000
CONNECT_SECONDS = 5
BUSY_SECONDS = 60  # how long a worker waits for the others' writes to one SQLite file before it gives up
SCHEMES = ("sqlite", "postgresql", "mysql", "journal", "grpc")
DRIVERS = {  # the driver that a bare scheme means, its package, and the extra of losskit that brings it
    "postgresql": ("psycopg", "psycopg[binary]", "postgres"),
    "mysql": ("pymysql", "PyMySQL", "mysql"),
}
SERVICE = "losskit.Storage"  # what `losskit storage serve` understands beyond Optuna's own calls
WINDOW = 32  # waiting trials asked about at a time through gRPC

_reading: ContextVar[bool] = ContextVar("losskit_reading", default=False)


class StorageError(Exception):
    """A storage that cannot be used; the message says why and what to do."""


# --------------------------------------------------------------------------- addresses


def address_of(address: str | None = None, *, directory: Path = Path()) -> str:
    """The normal form of an address, fit to be handed to another process: files with absolute paths, drivers named, ports filled in.

    Args:
        address: ``None`` (the file ``sweeps.db`` in ``directory``), ``sqlite:///path``, a path that ends in ``.db``, ``postgresql://user:password@host/database``,
            ``mysql://…``, ``journal:path`` or ``grpc://host[:port]`` (port 13000 by default).
        directory: what relative paths are relative to; the working directory by default.

    Returns:
        The address *with* its credentials. To show it, see ``shown``.

    Raises:
        StorageError: an unknown scheme, or an address that names nothing.
    """
    text = (address or "").strip()
    directory = directory.absolute()
    if not text:
        return _sqlite_address(directory / FILE)
    if "://" not in text and text.endswith((".db", ".sqlite", ".sqlite3")) and not text.startswith(("journal:", "sqlite:")):
        return _sqlite_address(directory / Path(text).expanduser())
    scheme, separator, rest = text.partition(":")
    base, _, driver = scheme.lower().partition("+")
    base = {"postgres": "postgresql", "mariadb": "mysql"}.get(base, base)
    if not separator or base not in SCHEMES:
        raise StorageError(
            f"unknown storage {shown(text)!r}{did_you_mean(base, SCHEMES)} "
            f"(storages: sqlite:///file.db, postgresql://user:password@host/database, mysql://…, journal:file, grpc://host:port)"
        )
    if base == "sqlite":
        path = unquote(rest.removeprefix("///").split("?", 1)[0])
        if not rest.startswith("///") or not path or path == ":memory:":
            raise StorageError(f"the storage {text!r} names no file that several workers could share: write sqlite:///sweeps.db, or sqlite:////absolute/path/sweeps.db")
        return _sqlite_address(directory / Path(path).expanduser())
    if base == "journal":
        path = rest.removeprefix("//")
        if not path:
            raise StorageError("the storage 'journal:' names no file: write journal:sweeps.journal")
        return f"journal:{(directory / Path(path).expanduser()).as_posix()}"
    if not rest.startswith("//") or not rest.removeprefix("//").strip("/"):
        raise StorageError(f"the storage {shown(text)!r} names no server: write {base}://{'host:13000' if base == 'grpc' else 'user:password@host/database'}")
    if base == "grpc":
        return _grpc_address(text)
    return f"{base}+{driver or DRIVERS[base][0]}:{rest}"


def shown(address: str) -> str:
    """``address`` with no user name or password in it, fit to be printed, logged and stored."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    rest = rest.rpartition("@")[2]  # whatever stands before the last @: a password may hold @ and / itself
    location, question, query = rest.partition("?")
    kept = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if not re.search("pass|user|secret|token", key, re.IGNORECASE)]
    return f"{scheme}://{location}{question if kept else ''}{urlencode(kept)}"


def _sqlite_address(path: Path) -> str:
    return "sqlite:///" + "".join(quote(c) if c in "%?#" else c for c in path.as_posix())


def _grpc_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or PORT
    except ValueError as error:
        raise StorageError(f"the storage {shown(text)!r} is no address: {error}") from error
    if not host or parts.path.strip("/"):
        raise StorageError(f"the storage {shown(text)!r} must be grpc://host:port")
    return f"grpc://{f'[{host}]' if ':' in host else host}:{port}"


# --------------------------------------------------------------------------- opening


def open_storage(address: str | None = None, *, directory: Path = Path()) -> BaseStorage:
    """Open a storage, making what is not there yet (an SQLite file, a journal file, the tables in an empty database).

    Any number of processes may open the same new storage at once. Connecting takes at most about 5 s; an SQLite file is waited for up to 60 s while
    others write to it.

    Args:
        address: see ``address_of``; ``None`` is the file ``sweeps.db`` in ``directory``.
        directory: what relative paths are relative to; the working directory by default.

    Raises:
        StorageError: it is away, refuses the login, cannot be written, holds something else or another version of Optuna's tables, or its driver is
            not installed.
    """
    address = address_of(address, directory=directory)
    scheme = address.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        return _open_sqlite(address)
    if scheme == "journal":
        return _open_journal(address)
    if scheme == "grpc":
        return _open_grpc(address)
    return _open_server(address)


def _open_sqlite(address: str) -> BaseStorage:
    path = Path(unquote(address.removeprefix("sqlite:///")))
    _require_writable_file(path, "SQLite's own files beside it")
    options: dict[str, Any] = {"plugins": [_SharedSqlite.NAME], _SharedSqlite.FILE: str(path), "connect_args": {"timeout": BUSY_SECONDS}}
    try:
        with _explained(address):
            if not _has_studies(_sqlite_tables(path), address):
                engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.NullPool, **options)
                with engine.begin() as connection:  # of several that find no tables, the first makes them while the others wait here
                    if not sqlalchemy.inspect(connection).has_table("studies"):
                        _make_tables(connection)
            with _only_reading():  # Optuna opens two transactions at once here; they would wait for each other
                return _Cached(_Rdb("sqlite://", engine_kwargs=options, skip_table_creation=True))
    except sqlite3.DatabaseError as error:
        raise StorageError(f"the storage {path} cannot be used: {error}") from error


def _open_server(address: str) -> BaseStorage:
    name = address.partition(":")[0].partition("+")[0]
    arguments: dict[str, Any] = {"connect_args": {"connect_timeout": CONNECT_SECONDS}, "pool_pre_ping": True}
    with _explained(address):
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=arguments["connect_args"])
        with engine.begin() as connection:
            # one at a time: of two that find an empty database, the second would fail over tables that the first has just made.
            # The lock goes with the transaction or the connection, however this process ends
            lock = "pg_advisory_xact_lock(7053211)" if name == "postgresql" else "GET_LOCK('losskit_storage', 60)"
            connection.execute(sqlalchemy.text(f"SELECT {lock}"))
            if not _has_studies(set(sqlalchemy.inspect(connection).get_table_names()), address):
                _make_tables(connection)
        url = address.replace("{", "{{").replace("}", "}}")  # Optuna fills {SCHEMA_VERSION} into addresses
        return _Cached(_Rdb(url, engine_kwargs=arguments, skip_table_creation=True))


def _open_journal(address: str) -> BaseStorage:
    path = Path(address.removeprefix("journal:"))
    _require_writable_file(path, "its lock")
    try:
        return _Journal(path)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is no journal of Optuna's ({error or type(error).__name__})") from error
    except OSError as error:
        raise StorageError(f"the storage {path} cannot be used: {error.strerror or error}") from error


def _open_grpc(address: str) -> BaseStorage:
    parts = urlsplit(address)
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise StorageError("a grpc:// storage needs the package grpcio: pip install 'losskit[grpc]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # said to Optuna's developers' users, not to ours
        storage = _Grpc(host=str(parts.hostname), port=int(parts.port or PORT))
    try:
        storage.wait_server_ready(timeout=CONNECT_SECONDS)
    except ConnectionError:
        storage.close()
        raise StorageError(f"no storage answers at {address} within {CONNECT_SECONDS} s: start one with `losskit storage serve`, or mend the address") from None
    return storage


def _require_writable_file(path: Path, beside: str) -> None:
    if path.is_dir():
        raise StorageError(f"the storage {path} is a directory")
    if not path.parent.is_dir():
        raise StorageError(f"the storage {path} cannot be made: there is no directory {path.parent}")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise StorageError(f"the storage {path} cannot be written: no permission")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"the storage {path} cannot be used: its directory is not writable, and {beside} must be made there")


def _sqlite_tables(path: Path) -> set[str]:
    """The tables of an SQLite file, looked at without making the file or changing it."""
    if not path.exists() or path.stat().st_size == 0:
        return set()
    # never by opening the file ourselves: closing it again would drop the locks of every connection that this process has to it, and another
    # process would take the write-ahead log away under them ("database disk image is malformed")
    connection = sqlite3.connect(f"file:{quote(path.as_posix())}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    try:
        return {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StorageError(f"the storage {path} is not an SQLite file") from error
        raise
    finally:
        connection.close()


def _has_studies(tables: set[str], address: str) -> bool:
    """Whether Optuna's tables are there; refuses a database of something else that uses the same names (MLflow's store has an ``alembic_version`` too)."""
    ours = set(models.BaseModel.metadata.tables)
    if {"studies", "trials", "version_info"} <= tables:
        return True
    taken = sorted(tables & (ours | {"alembic_version"}))
    if taken:
        raise StorageError(f"the database {shown(address)} belongs to another program (it has a table {taken[0]!r}): give the sweeps a database of their own")
    return False


def _make_tables(connection: sqlalchemy.Connection) -> None:
    """Optuna's tables as ``RDBStorage`` makes them, but all in the caller's one transaction."""
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    models.BaseModel.metadata.create_all(connection)
    connection.execute(sqlalchemy.insert(models.VersionInfoModel).values(schema_version=models.SCHEMA_VERSION, library_version=optuna.__version__))
    script = ScriptDirectory(str(Path(models.__file__).parent / "alembic"))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MigrationContext.configure(connection).stamp(script, str(script.get_current_head()))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what SQLAlchemy, the driver and Optuna raise on opening into one message without credentials."""
    where = shown(address)
    base, _, driver = address.partition(":")[0].partition("+")
    try:
        yield
    except ImportError as error:
        default, package, extra = DRIVERS.get(base, ("", driver, ""))
        hint = f"pip install 'losskit[{extra}]', or the package {package}" if driver == default else f"install {driver!r}, or write {base}://… for {default}"
        raise StorageError(f"the storage {where} needs a driver that is not installed: {hint}") from error
    except exc.NoSuchModuleError as error:
        raise StorageError(f"the storage {where} names an unknown driver {driver!r}: write {base}://…") from error
    except exc.ArgumentError as error:
        raise StorageError(f"the storage {where} is no address that can be read: write {base}://user:password@host:port/database") from error
    except (exc.SQLAlchemyError, StorageInternalError) as error:
        raise StorageError(_database_problem(where, error, _secrets(address))) from error
    except RuntimeError as error:  # Optuna's check of the schema's version
        if "table schema" not in str(error):
            raise
        todo = (
            f"bring it up to date with: optuna storage upgrade --storage {where}"
            if "storage upgrade" in str(error)
            else "it was made by a newer Optuna: pip install -U optuna"
        )
        raise StorageError(f"the storage {where} has another version of Optuna's tables than optuna {optuna.__version__} can use; {todo}") from error


def _database_problem(where: str, error: Exception, secrets: Sequence[str]) -> str:
    cause: BaseException = error
    while (deeper := getattr(cause, "orig", None) or cause.__cause__) is not None:
        cause = deeper
    reason = " ".join(str(cause).split()) or type(cause).__name__
    for secret in secrets:
        reason = reason.replace(secret, "***")
    reason = re.sub(r"[^\s'\"]*@", "", reason)  # an @ in a password makes its end a part of the host's name
    low = reason.lower()
    if any(word in low for word in ("password", "authentication", "access denied", "role ")):
        return f"the storage {where} refuses the login: {reason}"
    if "database" in low and ("does not exist" in low or "unknown database" in low):
        return f"the storage {where} has no such database; make it first (createdb NAME): {reason}"
    if where.startswith("sqlite"):
        return f"the storage {where} cannot be used: {reason}"
    return f"the storage {where} cannot be reached: {reason}"


def _secrets(address: str) -> list[str]:
    login, at, _ = address.partition("://")[2].rpartition("@")
    password = login.partition(":")[2]
    return [text for text in dict.fromkeys((password, unquote(password))) if at and len(text) > 2]


# --------------------------------------------------------------------------- tickets


def enqueue_many(study: optuna.Study, params: Sequence[Mapping[str, Any]], user_attrs: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Add waiting trials, as ``study.enqueue_trial`` does one by one, in as few steps as the storage allows.

    In the databases it is one transaction: all of them are there or none is, and their numbers follow each other whatever other workers add meanwhile.

    Args:
        study: opened on a storage of ``open_storage`` (on another one they are added singly).
        params: one mapping a trial, of the parameters that are given already; ``{}`` leaves them all to the sampler.
        user_attrs: one mapping a trial; ``None``: none.

    Raises:
        ValueError: ``params`` and ``user_attrs`` are not of the same length.
    """
    attributes = [{} for _ in params] if user_attrs is None else user_attrs
    if len(attributes) != len(params):
        raise ValueError(f"user_attrs must have one mapping for each of the {len(params)} trials, but has {len(attributes)}")
    if params:
        _enqueue(study._storage, study._study_id, [(dict(given), dict(attrs)) for given, attrs in zip(params, attributes, strict=True)])


def requeue(
    study: optuna.Study,
    trial_id: int,
    *,
    started: datetime | None = None,
    user_attrs: Mapping[str, Any] | None = None,
    system_attrs: Mapping[str, Any] | None = None,
) -> bool:
    """Put a running trial whose worker died back among the waiting ones: the same trial, with its number, parameters, intermediate values and attributes.

    Whoever pops it next gets the stored value from every ``trial.suggest_*``; steps that were reported before are not reported twice.

    Args:
        study: the study.
        trial_id: the trial's id in the storage (``FrozenTrial._trial_id``).
        started: ``datetime_start`` of the attempt that was judged dead. With it, of several that find the same dead worker only one puts the trial
            back, and an attempt that another worker has begun meanwhile is left alone. ``None``: whichever attempt is running.
        user_attrs: attributes to set with it, for instance the number of attempts; only where it is put back.
        system_attrs: the same, among Optuna's system attributes.

    Returns:
        ``False`` where there was nothing to put back: the trial is finished, waits already, or is another attempt than ``started``.

    Raises:
        KeyError: there is no such trial.
    """
    return _requeue(study._storage, trial_id, started, (dict(user_attrs or {}), dict(system_attrs or {})))


def claim_waiting(study: optuna.Study, mark: tuple[str, Any]) -> FrozenTrial | None:
    """Take the first waiting trial, so that nobody else has it.

    In the databases the trial runs and bears the mark in one transaction, so no other process ever sees one without the other.

    Args:
        study: the study.
        mark: a system attribute that is set with it, such as who has it.

    Returns:
        The trial as it is now; ``None``: none waits.
    """
    storage, study_id = study._storage, study._study_id
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if not isinstance(backend, _Rdb):
        return _look_and_claim(storage, study_id, mark)
    trial = backend.claim(study_id, mark)
    if trial is not None and isinstance(storage, _Cached):
        storage.know(study_id, trial)
    return trial


def finish(study: optuna.Study, trial_id: int, state: TrialState, values: Sequence[float] | None, *, held: tuple[str, Callable[[Any], bool]]) -> bool:
    """End a running trial, if whoever asks has it still.

    In the databases that is looked at in the transaction that ends it.

    Args:
        study: the study.
        trial_id: the trial's id in the storage.
        state: how it ended.
        values: of the objectives.
        held: a system attribute, and whether its value says that the trial is one's own.

    Returns:
        ``False``: it runs no more, or somebody else has it.
    """
    storage = study._storage
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if isinstance(backend, _Rdb):
        return backend.finish(trial_id, state, values, held)
    trial = storage.get_trial(trial_id)
    if trial.state != TrialState.RUNNING or not held[1](trial.system_attrs.get(held[0])):
        return False
    try:
        return storage.set_trial_state_values(trial_id, state, values)
    except UpdateFinishedTrialError:
        return False


def study_attr(study: optuna.Study, key: str) -> Any:
    """One user attribute of the study, ``None`` where it is not there; the others, which may be large, are not read."""
    storage, study_id = study._storage, study._study_id
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    return backend.study_attr(study_id, key) if isinstance(backend, _Rdb) else storage.get_study_user_attrs(study_id).get(key)


Tickets = list[tuple[dict[str, Any], dict[str, Any]]]  # parameters, user attributes
Attributes = tuple[dict[str, Any], dict[str, Any]]  # user's, system's


def _enqueue(storage: BaseStorage, study_id: int, tickets: Tickets) -> None:
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if isinstance(backend, _Rdb | _Journal | _Grpc):
        backend.enqueue(study_id, tickets)
        return
    _enqueue_singly(backend, study_id, tickets)


def _enqueue_singly(storage: BaseStorage, study_id: int, tickets: Tickets) -> None:
    for params, attributes in tickets:
        storage.create_new_trial(study_id, _waiting(params, attributes))


def _waiting(params: dict[str, Any], attributes: dict[str, Any]) -> FrozenTrial:
    return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params}, user_attrs=attributes)


def _requeue(storage: BaseStorage, trial_id: int, started: datetime | None, attributes: Attributes) -> bool:
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if isinstance(backend, _Rdb | _Journal | _Grpc):
        return backend.requeue(trial_id, started, attributes)
    return _look_and_requeue(backend, trial_id, started, attributes)


def _look_and_requeue(storage: BaseStorage, trial_id: int, started: datetime | None, attributes: Attributes) -> bool:
    trial = storage.get_trial(trial_id)
    if trial.state != TrialState.RUNNING or (started is not None and trial.datetime_start != started):
        return False
    try:
        for key, value in attributes[0].items():
            storage.set_trial_user_attr(trial_id, key, value)
        for key, value in attributes[1].items():
            storage.set_trial_system_attr(trial_id, key, value)
        return storage.set_trial_state_values(trial_id, TrialState.WAITING)
    except UpdateFinishedTrialError:  # its worker was not dead after all, and came first
        return False


def _look_and_claim(storage: BaseStorage, study_id: int, mark: tuple[str, Any]) -> FrozenTrial | None:
    for frozen in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,)):
        try:
            if not storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                continue
        except UpdateFinishedTrialError:
            continue
        storage.set_trial_system_attr(frozen._trial_id, *mark)
        return storage.get_trial(frozen._trial_id)
    return None


# --------------------------------------------------------------------------- databases


class _SharedSqlite(CreateEnginePlugin):
    """SQLite for many processes: a write-ahead log, patience, and writing transactions that take the lock when they begin.

    Optuna reads a trial's state and then writes it, under ``SELECT … FOR UPDATE``, which SQLite ignores: two workers that both read first would both
    pop the trial.
    """

    NAME: ClassVar[str] = "losskit_shared_sqlite"
    FILE: ClassVar[str] = "losskit_file"

    def __init__(self, url: sqlalchemy.URL, kwargs: dict[str, Any]) -> None:
        self.file = kwargs.pop(self.FILE)

    def update_url(self, url: sqlalchemy.URL) -> sqlalchemy.URL:
        return url.set(database=self.file)  # as it is: in an address some characters would be misread, each version of SQLAlchemy differently

    def engine_created(self, engine: sqlalchemy.Engine) -> None:
        event.listen(engine, "connect", self.connected)
        event.listen(engine, "begin", self.begun)

    @staticmethod
    def connected(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # the driver would otherwise begin transactions by itself, and not at once
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA synchronous = NORMAL")  # with a write-ahead log a killed process loses nothing; a power cut at most the last moments
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:  # the change of mode does not wait for busy_timeout when several open a new file
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @staticmethod
    def begun(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if _reading.get() else "BEGIN IMMEDIATE")


plugins.register(_SharedSqlite.NAME, __name__, _SharedSqlite.__name__)


@contextmanager
def _only_reading() -> Iterator[None]:
    """Transactions begun in here never write: they take no lock that a writer would wait for."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


class _Queries:
    """What is read of some trials. Made once: making a query takes SQLAlchemy longer than the database takes to answer it.

    Args:
        wanted: which trials.
    """

    def __init__(self, wanted: sqlalchemy.ColumnElement[bool]) -> None:
        trial, parameter, value, step = models.TrialModel, models.TrialParamModel, models.TrialValueModel, models.TrialIntermediateValueModel
        ids, select = sqlalchemy.select(trial.trial_id).where(wanted), sqlalchemy.select
        heads = select(trial.trial_id, trial.number, trial.state, trial._datetime_start_utc, trial._datetime_complete_utc)
        self.trials = heads.where(wanted).order_by(trial.trial_id)
        params = select(parameter.trial_id, parameter.param_name, parameter.param_value, parameter.distribution_json)
        self.params = params.where(parameter.trial_id.in_(ids)).order_by(parameter.param_id)
        self.values = select(value.trial_id, value.value, value.value_type).where(value.trial_id.in_(ids)).order_by(value.objective)
        self.steps = select(step.trial_id, step.step, step.intermediate_value, step.intermediate_value_type).where(step.trial_id.in_(ids))
        users, systems = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
        self.attributes = sqlalchemy.union_all(
            select(sqlalchemy.literal_column("0"), users.trial_id, users.key, users.value_json).where(users.trial_id.in_(ids)),
            select(sqlalchemy.literal_column("1"), systems.trial_id, systems.key, systems.value_json).where(systems.trial_id.in_(ids)),
        )


def _given(name: str) -> sqlalchemy.BindParameter[Any]:
    return sqlalchemy.bindparam(name, expanding=name == "ids")


_OF_STUDY = models.TrialModel.study_id == _given("study")
_ONE = _Queries(models.TrialModel.trial_id == _given("id"))
_SOME = _Queries(_OF_STUDY & (models.TrialModel.trial_id.in_(_given("ids")) | (models.TrialModel.trial_id > _given("last"))))
_ALL = _Queries(_OF_STUDY)
_POPPED = (models.TrialModel.state != TrialState.WAITING) | models.TrialModel._datetime_start_utc.is_not(None)
_CHANGED = sqlalchemy.select(models.TrialModel.trial_id).where(
    _OF_STUDY, models.TrialModel.trial_id > _given("floor"), _POPPED | (models.TrialModel.trial_id > _given("last"))
)
_WAITING = sqlalchemy.select(models.TrialModel.trial_id).where(_OF_STUDY, models.TrialModel.state == TrialState.WAITING)
_FIRST_WAITING = _WAITING.order_by(models.TrialModel.number).limit(1)
_STATE = sqlalchemy.select(models.TrialModel.state).where(models.TrialModel.trial_id == _given("id")).with_for_update()
_STUDY_ATTRIBUTE = sqlalchemy.select(models.StudyUserAttributeModel.value_json).where(
    models.StudyUserAttributeModel.study_id == _given("study"), models.StudyUserAttributeModel.key == _given("key")
)


class _Rdb(RDBStorage):
    """Optuna's database storage with tickets in bulk, putting back, and reads that are quick and hold nobody up."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = self._read(_ONE, id=trial_id)
        if not trials:
            raise KeyError(f"there is no trial with the id {trial_id}")
        return trials[0]

    def _get_trials(self, study_id: int, states: Any, included_trial_ids: set[int], trial_id_greater_than: int) -> list[FrozenTrial]:
        if trial_id_greater_than > -1:
            trials = self._read(_SOME, study=study_id, ids=sorted(included_trial_ids), last=trial_id_greater_than)
        else:
            trials = self._read(_ALL, study=study_id)
        if not trials:
            self.get_study_name_from_id(study_id)  # KeyError where it is not there
        return trials if states is None else [found for found in trials if found.state in states]

    def _read(self, queries: _Queries, **of: Any) -> list[FrozenTrial]:
        """The trials, by their ids. Optuna's own way, object by object, takes ten times as long."""
        value, step = models.TrialValueModel, models.TrialIntermediateValueModel
        params: dict[int, dict[str, tuple[float, BaseDistribution]]] = defaultdict(dict)
        values: dict[int, list[float]] = defaultdict(list)
        steps: dict[int, dict[int, float]] = defaultdict(dict)
        attributes: tuple[dict[int, dict[str, Any]], ...] = (defaultdict(dict), defaultdict(dict))
        with _only_reading(), self._connection() as connection:
            rows = connection.execute(queries.trials, of).all()
            if not rows:
                return []
            for trial_id, name, internal, text in connection.execute(queries.params, of):
                params[trial_id][name] = (internal, _distribution(text))
            for trial_id, stored, kind in connection.execute(queries.values, of):
                values[trial_id].append(value.stored_repr_to_value(stored, kind))
            for trial_id, number, stored, kind in connection.execute(queries.steps, of):
                steps[trial_id][number] = step.stored_repr_to_intermediate_value(stored, kind)
            for whose, trial_id, key, text in connection.execute(queries.attributes, of):
                attributes[whose][trial_id][key] = json.loads(text)
        return [
            FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=values.get(trial_id),
                datetime_start=_local(started),
                datetime_complete=_local(completed),
                params={name: distribution.to_external_repr(internal) for name, (internal, distribution) in params.get(trial_id, {}).items()},
                distributions={name: distribution for name, (_, distribution) in params.get(trial_id, {}).items()},
                user_attrs=attributes[0].get(trial_id, {}),
                system_attrs=attributes[1].get(trial_id, {}),
                intermediate_values=steps.get(trial_id, {}),
                trial_id=trial_id,
            )
            for trial_id, number, state, started, completed in rows
        ]

    def changed(self, study_id: int, floor: int, last: int) -> list[int]:
        """Ids of the trials above ``floor`` that were ever popped, and of all above ``last``."""
        with _only_reading(), self._connection() as connection:
            return list(connection.scalars(_CHANGED, {"study": study_id, "floor": floor, "last": last}))

    def study_attr(self, study_id: int, key: str) -> Any:
        with _only_reading(), self._connection() as connection:
            text = connection.scalar(_STUDY_ATTRIBUTE, {"study": study_id, "key": key})
        return None if text is None else json.loads(text)

    def claim(self, study_id: int, mark: tuple[str, Any]) -> FrozenTrial | None:
        trial, attribute = models.TrialModel, models.TrialSystemAttributeModel
        while True:
            with self._connection() as connection:
                trial_id = connection.scalar(_FIRST_WAITING, {"study": study_id})
                if trial_id is None:
                    return None
                run = {"state": TrialState.RUNNING, "_datetime_start_utc": datetime.now(UTC).replace(tzinfo=None)}
                # SQLite has the lock since the transaction began; in the other databases somebody else may have come first, then there is nothing to change
                if not connection.execute(sqlalchemy.update(trial).where(trial.trial_id == trial_id, trial.state == TrialState.WAITING).values(**run)).rowcount:
                    continue
                key, text = mark[0], json.dumps(mark[1])
                known = sqlalchemy.update(attribute).where(attribute.trial_id == trial_id, attribute.key == key)
                if not connection.execute(known.values(value_json=text)).rowcount:
                    connection.execute(sqlalchemy.insert(attribute).values(trial_id=trial_id, key=key, value_json=text))
            return self.get_trial(trial_id)

    def finish(self, trial_id: int, state: TrialState, values: Sequence[float] | None, held: tuple[str, Callable[[Any], bool]]) -> bool:
        trial, attribute, value = models.TrialModel, models.TrialSystemAttributeModel, models.TrialValueModel
        with self._connection() as connection:
            if connection.scalar(_STATE, {"id": trial_id}) != TrialState.RUNNING:  # from here on nobody else changes it
                return False
            text = connection.scalar(sqlalchemy.select(attribute.value_json).where(attribute.trial_id == trial_id, attribute.key == held[0]))
            if not held[1](None if text is None else json.loads(text)):
                return False
            stored = [value.value_to_stored_repr(number) for number in values or ()]
            rows = [{"trial_id": trial_id, "objective": i, "value": number, "value_type": kind} for i, (number, kind) in enumerate(stored)]
            if rows:
                connection.execute(sqlalchemy.insert(value), rows)
            ended = {"state": state, "_datetime_complete_utc": datetime.now(UTC).replace(tzinfo=None)}
            connection.execute(sqlalchemy.update(trial).where(trial.trial_id == trial_id).values(**ended))
            return True

    def enqueue(self, study_id: int, tickets: Tickets) -> None:
        with self._session() as session:
            # the lock that Optuna takes to number a new trial
            if session.execute(sqlalchemy.select(models.StudyModel).where(models.StudyModel.study_id == study_id).with_for_update()).first() is None:
                raise KeyError(f"there is no study with the id {study_id}")
            count = sqlalchemy.select(sqlalchemy.func.count(models.TrialModel.trial_id)).where(models.TrialModel.study_id == study_id)
            first = session.execute(count).scalar_one()
            trials = [models.TrialModel(study_id=study_id, number=first + index, state=TrialState.WAITING) for index in range(len(tickets))]
            session.add_all(trials)
            session.flush()  # gives them their ids
            for number, trial in enumerate(sorted(trials, key=lambda t: t.trial_id), start=first):
                if trial.number != number:  # Optuna's numbers follow the ids
                    trial.number = number
            trials.sort(key=lambda t: t.number)
            fixed = [{"trial_id": t.trial_id, "key": "fixed_params", "value_json": json.dumps(params)} for t, (params, _) in zip(trials, tickets, strict=True)]
            session.execute(sqlalchemy.insert(models.TrialSystemAttributeModel), fixed)
            attributes = [
                {"trial_id": trial.trial_id, "key": key, "value_json": json.dumps(value)}
                for trial, (_, attrs) in zip(trials, tickets, strict=True)
                for key, value in attrs.items()
            ]
            if attributes:
                session.execute(sqlalchemy.insert(models.TrialUserAttributeModel), attributes)

    def requeue(self, trial_id: int, started: datetime | None, attributes: Attributes) -> bool:
        with self._session() as session:
            trial = session.execute(sqlalchemy.select(models.TrialModel).where(models.TrialModel.trial_id == trial_id).with_for_update()).scalar_one_or_none()
            if trial is None:
                raise KeyError(f"there is no trial with the id {trial_id}")
            if trial.state != TrialState.RUNNING or (started is not None and trial.datetime_start != started):
                return False
            kinds: list[tuple[Any, dict[str, Any]]] = [(models.TrialUserAttributeModel, attributes[0]), (models.TrialSystemAttributeModel, attributes[1])]
            for model, values in kinds:
                for key, value in values.items():
                    found = session.execute(sqlalchemy.select(model).where(model.trial_id == trial_id, model.key == key)).scalar_one_or_none()
                    if found is None:
                        session.add(model(trial_id=trial_id, key=key, value_json=json.dumps(value)))
                    else:
                        found.value_json = json.dumps(value)
            # an old heartbeat would make the next attempt look dead before its first beat
            session.execute(sqlalchemy.delete(models.TrialHeartbeatModel).where(models.TrialHeartbeatModel.trial_id == trial_id))
            trial.state = TrialState.WAITING
            return True

    @contextmanager
    def _session(self) -> Iterator[orm.Session]:
        try:
            with orm.Session(self.engine) as session, session.begin():
                yield session
        except exc.SQLAlchemyError as error:
            raise StorageInternalError(f"the storage failed: {error}") from error

    @contextmanager
    def _connection(self) -> Iterator[sqlalchemy.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except exc.SQLAlchemyError as error:
            raise StorageInternalError(f"the storage failed: {error}") from error


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """A search space has few different ones, its trials have thousands of copies; nobody changes one."""
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """Databases hold UTC, Optuna's trials the local time, both without saying so."""
    return moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None) if moment else None


class _Cached(_CachedStorage):
    """Optuna's cache in front of a database, which reads waiting trials once instead of at every look.

    Optuna reads all unfinished trials anew each time: a sweep with 5,000 tickets would read 5,000 waiting trials for every trial that it runs.
    A trial that was never popped does not change. So a look asks the database for the ids of those that were, and reads the ones among them that
    were not finished at the last look.
    """

    _backend: _Rdb

    def __init__(self, backend: _Rdb) -> None:
        super().__init__(backend)
        self._never_popped: dict[int, set[int]] = {}
        self._popped: dict[int, set[int]] = {}  # running, or put back
        self._last: dict[int, int] = {}

    def delete_study(self, study_id: int) -> None:
        super().delete_study(study_id)
        for known in (self._never_popped, self._popped, self._last):
            known.pop(study_id, None)

    def know(self, study_id: int, trial: FrozenTrial) -> None:
        """Note a trial that was read past the cache: Optuna takes parameters only for trials that it knows."""
        with self._lock:
            self._studies.setdefault(study_id, _StudyInfo())
            self._add_trials_to_cache(study_id, [trial])

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            known = self._studies[study_id].trials
            trials = [known[number] for number in sorted(known)]  # the numbers are nearly sorted: Optuna asks each of thousands of trials for its own
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            if study_id not in self._studies:
                self._studies[study_id] = _StudyInfo()
            never_popped = self._never_popped.setdefault(study_id, set())
            popped = self._popped.setdefault(study_id, set())
            last = self._last.get(study_id, -1)
            floor = min(*never_popped, *popped, last + 1, last + 2) - 1  # all up to here are finished, and cached
            changed = self._backend.changed(study_id, floor, last)
            anew = {trial_id for trial_id in changed if trial_id in never_popped or trial_id in popped}
            if last >= 0 and not anew and all(trial_id <= last for trial_id in changed):
                return
            trials = self._backend._get_trials(study_id, None, anew, last)
            self._add_trials_to_cache(study_id, trials)
            for trial in trials:
                never_popped.discard(trial._trial_id)
                popped.discard(trial._trial_id)
                if _never_popped(trial):
                    never_popped.add(trial._trial_id)
                elif not trial.state.is_finished():
                    popped.add(trial._trial_id)
                last = max(last, trial._trial_id)
            self._last[study_id] = last


def _never_popped(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.WAITING and trial.datetime_start is None


# --------------------------------------------------------------------------- journal


class _Journal(JournalStorage):
    """Optuna's journal file, in which a trial can be popped again after it was put back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(JournalFileBackend(str(path)))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            # Optuna takes a trial for popped when this worker owns it; one that owned it before it was put back would win every race for it
            with self._thread_lock:
                self._replay_result._worker_id_to_owned_trial_id.pop(self._replay_result.worker_id, None)
        return super().set_trial_state_values(trial_id, state, values)

    def enqueue(self, study_id: int, tickets: Tickets) -> None:
        self.get_study_name_from_id(study_id)  # KeyError where it is not there
        # Optuna writes what it would have written to a journal in memory; that goes into the file in one step
        draft = _Draft()
        scratch = JournalStorage(draft)
        study = scratch.create_new_study([StudyDirection.MINIMIZE], "draft")
        _enqueue_singly(scratch, study, tickets)
        self._backend.append_logs([{**line, "study_id": study_id} for line in draft.lines[1:]])

    def requeue(self, trial_id: int, started: datetime | None, attributes: Attributes) -> bool:
        # a journal knows no "if": those who put back take turns, so that none acts on what another has just changed
        lock = JournalFileOpenLock(f"{self._path}.requeue")
        lock.acquire()
        try:
            return _look_and_requeue(self, trial_id, started, attributes)
        finally:
            lock.release()


class _Draft(BaseJournalBackend):
    """A journal in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        yield from json.loads(json.dumps(self.lines[log_number_from:]))  # as a file would give them back

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.lines += logs


# --------------------------------------------------------------------------- gRPC


class _Grpc(GrpcStorageProxy):
    """Optuna's gRPC client, with what `losskit storage serve` offers beyond Optuna's own server; with Optuna's, tickets are added singly."""

    def _setup(self) -> None:
        super()._setup()
        self._stub = _Stub(self._stub)  # type: ignore[assignment]
        self._cache = _GrpcCache(self._stub)

    def enqueue(self, study_id: int, tickets: Tickets) -> None:
        for start in range(0, len(tickets), 1000):  # a message has a largest size
            part = tickets[start : start + 1000]
            if self._call("Enqueue", {"study_id": study_id, "tickets": part}) is None:
                _enqueue_singly(self, study_id, part)

    def requeue(self, trial_id: int, started: datetime | None, attributes: Attributes) -> bool:
        answer = self._call("Requeue", {"trial_id": trial_id, "started": started.isoformat() if started else None, "attributes": attributes})
        return bool(answer["done"]) if answer is not None else _look_and_requeue(self, trial_id, started, attributes)

    def _call(self, method: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """The server's answer; ``None`` where the server is Optuna's own, which does not know the call."""
        import grpc

        try:
            return json.loads(self._channel.unary_unary(f"/{SERVICE}/{method}")(json.dumps(request).encode()))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                return None
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise KeyError(error.details()) from error
            raise _Stub.lost(error) from error


class _Stub:
    """Optuna's calls, with a server that is away told as by the other storages: those who work with one wait for it, or say so.

    Args:
        stub: the one that Optuna has made.
    """

    def __init__(self, stub: Any) -> None:
        self._calls = stub

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import grpc

        call = getattr(self._calls, name)

        def told(*arguments: Any, **options: Any) -> Any:
            try:
                return call(*arguments, **options)
            except grpc.RpcError as error:
                raise self.lost(error) from error

        return told

    @staticmethod
    def lost(error: Any) -> Exception:
        """``error`` itself where the server has answered, else Optuna's for a storage that failed."""
        import grpc

        away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return StorageInternalError(f"the storage failed: {error.details()}") if away else error


class _GrpcCache(GrpcClientCache):
    """Optuna's client cache, which asks about the first waiting trials only, as long as none of those was popped.

    Waiting trials are popped in the order of their numbers, so behind one that was never popped none was.
    """

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        study = self.studies.setdefault(study_id, GrpcClientCacheEntry())
        never_popped = sorted((trial._trial_id, number) for number, trial in study.trials.items() if _never_popped(trial))
        popped = {trial._trial_id for trial in study.trials.values() if not trial.state.is_finished() and not _never_popped(trial)}
        while True:
            window, never_popped = never_popped[:WINDOW], never_popped[WINDOW:]
            study.unfinished_trial_ids = popped | {trial_id for trial_id, _ in window}
            study.last_finished_trial_id = max((trial._trial_id for trial in study.trials.values()), default=-1)
            super()._read_trials_from_remote_storage(study_id)
            if all(_never_popped(study.trials[number]) for _, number in window):
                return
            popped = set()


def start_server(address: str | None = None, host: str = "127.0.0.1", port: int = PORT, *, directory: Path = Path()) -> tuple[grpc.Server, str]:
    """Start a gRPC server for a storage in this process's background.

    Args:
        address: the storage behind it, see ``address_of``.
        host: the interface to listen on; ``0.0.0.0`` is all of them. Whoever reaches it may read and change every study: there is no login.
        port: 0 takes a free one.
        directory: what relative paths are relative to.

    Returns:
        The server (``.stop(grace)`` ends it) and the ``grpc://`` address that workers use.

    Raises:
        StorageError: the storage cannot be opened, the port is taken, or grpcio is not installed.
    """
    try:
        import grpc
        from optuna.storages._grpc.auto_generated import api_pb2_grpc
        from optuna.storages._grpc.servicer import OptunaStorageProxyService
    except ImportError as error:
        raise StorageError("serving a storage needs the package grpcio: pip install 'losskit[grpc]'") from error
    if not 0 <= port <= 65535:
        raise StorageError(f"a port is a number from 0 to 65535, but got {port}")
    netloc = f"[{host}]" if ":" in host else host
    _require_free(host, port, netloc)
    storage = open_storage(address, directory=directory)
    # without so_reuseport=0 a second server would share the port in silence, and half of the calls would go to another storage
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(max_workers=10), options=options)
    api_pb2_grpc.add_StorageServiceServicer_to_server(OptunaStorageProxyService(storage), server)
    handlers = {
        "Enqueue": grpc.unary_unary_rpc_method_handler(_answer(storage, _serve_enqueue)),
        "Requeue": grpc.unary_unary_rpc_method_handler(_answer(storage, _serve_requeue)),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        bound = server.add_insecure_port(f"{netloc}:{port}")
    except RuntimeError as error:
        raise StorageError(f"cannot listen on {netloc}:{port}; take another --port, or 0 for a free one") from error
    server.start()
    reached = socket.gethostname() if host in ("0.0.0.0", "::") else netloc
    return server, f"grpc://{reached}:{bound}"


def serve(
    address: str | None = None, host: str = "127.0.0.1", port: int = PORT, *, directory: Path = Path(), announce: Callable[[str], object] = lambda text: None
) -> None:
    """Serve a storage through gRPC until Ctrl-C, for workers that cannot reach it themselves.

    Args:
        address: the storage behind it, see ``address_of``.
        host: the interface to listen on.
        port: the port; 0 takes a free one.
        directory: what relative paths are relative to.
        announce: is given the ``grpc://`` address when the server answers.

    Raises:
        StorageError: see ``start_server``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what the workers do is not this one's to tell
    server, reached = start_server(address, host, port, directory=directory)
    announce(reached)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        pass  # that is how it ends
    finally:
        server.stop(grace=2).wait()


def _require_free(host: str, port: int, netloc: str) -> None:
    """Say in words what gRPC would write to stderr as its own log."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: connections that have just ended do not count
            attempt.bind(where)
            attempt.listen(1)
    except OSError as error:
        raise StorageError(f"cannot listen on {netloc}:{port}: {error.strerror or error}; take another --port, or 0 for a free one") from error


def _answer(storage: BaseStorage, call: Callable[[BaseStorage, dict[str, Any]], dict[str, Any]]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
        import grpc

        try:
            return json.dumps(call(storage, json.loads(request))).encode()
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0] if error.args else error))
            raise

    return handler


def _serve_enqueue(storage: BaseStorage, request: dict[str, Any]) -> dict[str, Any]:
    _enqueue(storage, request["study_id"], [(params, attributes) for params, attributes in request["tickets"]])
    return {"done": True}


def _serve_requeue(storage: BaseStorage, request: dict[str, Any]) -> dict[str, Any]:
    started = datetime.fromisoformat(request["started"]) if request["started"] else None
    return {"done": _requeue(storage, request["trial_id"], started, (request["attributes"][0], request["attributes"][1]))}

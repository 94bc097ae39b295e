"""Reading runs. A SQLite store is read with Python's ``sqlite3``, in milliseconds; other stores through MLflow's client, which takes seconds to import."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking.settings import ARTIFACTS_DIR, is_server, location_of, resolve_uri, sqlite_path, unreachable, with_credentials, without_credentials

BESIDE_STORE = "losskit.artifacts_beside_store"
LARGEST = 1.7976931348623157e308  # what MLflow's SQL stores keep for an infinity


@dataclass(frozen=True)
class Point:
    """One value of a metric: ``timestamp`` in seconds since the epoch."""

    step: int
    timestamp: float
    value: float


@dataclass(frozen=True)
class RunInfo:
    """A run as a store has it.

    Attributes:
        start, end: seconds since the epoch; ``end`` is ``None`` while it runs.
        metrics: key -> latest value. ``steps``: key -> its step.
        artifact_uri: where the store says that the artifacts are.
    """

    run_id: str
    name: str
    status: str
    experiment: str
    start: float | None
    end: float | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    steps: dict[str, int]
    artifact_uri: str
    store: Store = field(repr=False, compare=False)

    @property
    def duration(self) -> float | None:
        """Seconds of work: the sessions of a resumed run together, without the time between them."""
        if "losskit.duration_s" in self.tags:
            return float(self.tags["losskit.duration_s"])
        return None if self.start is None or self.end is None else self.end - self.start

    @property
    def run_dir(self) -> Path | None:
        """The run's directory, also after the folder that holds it and the store has moved; ``None`` if it is not here."""
        given = self.tags.get("losskit.run_dir")
        return self.store.here(Path(given)) if given else None

    @property
    def artifact_dir(self) -> Path | None:
        """The artifacts' directory if it is a local one."""
        folder = local_artifact_dir(self.artifact_uri, self.store.path)
        return self.store.here(folder) if folder else None

    def option(self, group: str) -> str | None:
        """The chosen option of a group: ``option("loss")`` -> ``"focal"``."""
        return self.tags.get(f"losskit.{group}")

    def value(self, key: str) -> str | None:
        """What ``key`` is in this run: a chosen option (``loss``), a parameter (``loss.gamma``), or a tag."""
        for found in (self.option(key), self.params.get(key), self.tags.get(key)):
            if found is not None:
                return found
        return None

    def history(self, key: str) -> list[Point]:
        """All values of a metric, by step."""
        return self.store.history(self.run_id, key)

    def artifact(self, name: str) -> bytes | None:
        """What the artifact ``name`` (``config.yaml``, ``environment/packages.txt``) holds; ``None`` if there is none."""
        return self.store.artifact(self, name)


class Store(ABC):
    """Runs of one MLflow store, read only. Get one with :meth:`Store.open`.

    Attributes:
        uri: its address, without credentials.
        path: its file, if it is a SQLite store.
    """

    def __init__(self, uri: str, path: Path | None = None) -> None:
        self.uri, self.path = uri, path

    @staticmethod
    def open(uri: str | None = None, cwd: Path | None = None) -> Store:
        """The store at ``uri``, else the one that training in ``cwd`` writes to.

        Raises:
            UsageError: there is none. RunError: the server is away.
        """
        address = resolve_uri(uri, cwd)
        path = sqlite_path(address)
        if path is not None:
            return SqliteStore(address, path)
        return ClientStore(address)

    @abstractmethod
    def runs(self, experiment: str | None = None) -> list[RunInfo]:
        """All runs that have not been deleted, the newest first; of one experiment if it is named."""

    @abstractmethod
    def names(self) -> list[tuple[str, str]]:
        """(run id, name) of all runs, the newest first."""

    @abstractmethod
    def get(self, run_id: str) -> RunInfo:
        """One run by its whole id."""

    @abstractmethod
    def history(self, run_id: str, key: str) -> list[Point]:
        """All values of a metric, by step."""

    @abstractmethod
    def artifact(self, run: RunInfo, name: str) -> bytes | None:
        """What an artifact holds."""

    def find(self, reference: str) -> RunInfo:
        """The run whose id is ``reference`` or begins with it, or whose name it is, or ends with (``brave-owl``).

        Raises:
            UsageError: none (with the nearest names), or several.
        """
        names = self.names()
        if not names:
            raise UsageError(f"there are no runs in {self.uri} yet: `losskit train` makes one")
        matches = [run_id for run_id, name in names if run_id == reference]
        matches = matches or [run_id for run_id, name in names if name == reference]
        matches = matches or [run_id for run_id, name in names if name.endswith(f"-{reference.removeprefix('…')}")]
        if not matches and re.fullmatch(r"[0-9a-f]+", reference):
            matches = [run_id for run_id, _ in names if run_id.startswith(reference)]
        if len(matches) == 1:
            return self.get(matches[0])
        if matches:
            called = dict(names)
            shown = ", ".join(f"{run_id[:12]} ({called[run_id]})" for run_id in matches[:6])
            raise UsageError(f"{reference!r} names {len(matches)} runs: {shown}{' …' if len(matches) > 6 else ''}. Use more of the id")
        near = get_close_matches(reference, [*{name: None for _, name in names}], n=3, cutoff=0.5)
        hint = f"; the nearest names: {', '.join(near)}" if near else f"; the latest: {', '.join(name for _, name in names[:3])}"
        raise UsageError(f"there is no run {reference!r} among the {len(names)} of {self.uri}{hint}")

    def last(self, experiment: str | None = None) -> RunInfo:
        """The run that was started last."""
        if experiment is None:
            names = self.names()
            if names:
                return self.get(names[0][0])
        elif runs := self.runs(experiment):
            return runs[0]
        raise UsageError(f"there are no runs in {self.uri} yet: `losskit train` makes one")

    def last_steps(self, run_id: str) -> dict[str, int]:
        """Key -> last step logged, for going on with a run whose journal is not on this machine (``Journal(already_logged=…)``)."""
        return self.get(run_id).steps

    def here(self, path: Path) -> Path | None:
        """``path``, or what it has become after the folder that holds it and the store has moved; ``None`` if there is neither."""
        if path.exists():
            return path
        if self.path is None:
            return None
        tails = (Path(*path.parts[i:]) for i in range(1, len(path.parts)))
        return next((self.path.parent / tail for tail in tails if (self.path.parent / tail).exists()), None)


class SqliteStore(Store):
    """A SQLite store, read directly.

    Args:
        uri: its address.
        path: its file.
    """

    def __init__(self, uri: str, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"there is no store {path} yet: run `losskit train` here first, or go to the directory that it was run in")
        super().__init__(uri, path)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        assert self.path is not None
        try:
            with closing(sqlite3.connect(f"file:{quote(self.path.as_posix())}?mode=ro", uri=True, timeout=10.0)) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
        except sqlite3.Error as error:
            raise RunError(f"cannot read the store {self.path}: {error}") from error

    def _ready(self, connection: sqlite3.Connection) -> bool:
        """Whether it holds MLflow's tables; one that is being made does not yet."""
        wanted = {"runs", "experiments", "params", "tags", "metrics", "latest_metrics"}
        return wanted <= {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def runs(self, experiment: str | None = None) -> list[RunInfo]:
        return self._select("e.name = ?", (experiment,)) if experiment else self._select("1", ())

    def names(self) -> list[tuple[str, str]]:
        with self._reading() as connection:
            if not self._ready(connection):
                return []
            rows = connection.execute("SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time DESC, rowid DESC")
            return [(row[0], row[1] or "") for row in rows]

    def get(self, run_id: str) -> RunInfo:
        found = self._select("r.run_uuid = ?", (run_id,))
        if not found:
            raise UsageError(f"there is no run {run_id} in {self.uri}")
        return found[0]

    def _select(self, condition: str, values: Sequence[Any]) -> list[RunInfo]:
        with self._reading() as connection:
            if not self._ready(connection):
                return []
            source = f"FROM runs r JOIN experiments e USING (experiment_id) WHERE r.lifecycle_stage = 'active' AND {condition}"
            heads = connection.execute(f"SELECT r.*, e.name AS experiment {source} ORDER BY r.start_time DESC, r.rowid DESC", values).fetchall()
            ids = f"SELECT r.run_uuid {source}"
            params: dict[str, dict[str, str]] = {}
            tags: dict[str, dict[str, str]] = {}
            metrics: dict[str, dict[str, float]] = {}
            steps: dict[str, dict[str, int]] = {}
            for table, target in (("params", params), ("tags", tags)):
                for row in connection.execute(f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN ({ids})", values):
                    target.setdefault(row[0], {})[row[1]] = row[2]
            for row in connection.execute(f"SELECT run_uuid, key, value, is_nan, step FROM latest_metrics WHERE run_uuid IN ({ids})", values):
                metrics.setdefault(row[0], {})[row[1]] = stored_value(row[2], row[3])
                steps.setdefault(row[0], {})[row[1]] = row[4]
        return [
            RunInfo(
                run_id=head["run_uuid"],
                name=head["name"] or "",
                status=head["status"],
                experiment=head["experiment"],
                start=seconds(head["start_time"]),
                end=seconds(head["end_time"]),
                params=latest_params(params.get(head["run_uuid"], {}), tags.get(head["run_uuid"], {})),
                tags=tags.get(head["run_uuid"], {}),
                metrics=metrics.get(head["run_uuid"], {}),
                steps=steps.get(head["run_uuid"], {}),
                artifact_uri=head["artifact_uri"],
                store=self,
            )
            for head in heads
        ]

    def history(self, run_id: str, key: str) -> list[Point]:
        with self._reading() as connection:
            if not self._ready(connection):
                return []
            query = "SELECT step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
            return [Point(row[0], row[1] / 1000, stored_value(row[2], row[3])) for row in connection.execute(query, (run_id, key))]

    def artifact(self, run: RunInfo, name: str) -> bytes | None:
        folder = run.artifact_dir
        return (folder / name).read_bytes() if folder is not None and (folder / name).is_file() else None


class ClientStore(Store):
    """Any other store (a tracking server, PostgreSQL, …), read through MLflow's client."""

    def __init__(self, uri: str) -> None:
        super().__init__(without_credentials(uri))
        if is_server(uri) and (problem := unreachable(with_credentials(uri))):
            raise RunError(problem)
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=with_credentials(uri))

    def runs(self, experiment: str | None = None) -> list[RunInfo]:
        experiments = {e.experiment_id: e.name for e in self._pages(self.client.search_experiments) if experiment in (None, e.name)}
        if not experiments:
            return []
        found = self._pages(self.client.search_runs, experiment_ids=[*experiments], order_by=["attributes.start_time DESC"])
        return [self._info(run, experiments[run.info.experiment_id]) for run in found]

    @staticmethod
    def _pages(search: Any, **options: Any) -> Iterable[Any]:
        token = None
        while True:
            page = search(max_results=1000, page_token=token, **options)
            yield from page
            token = page.token
            if not token:
                return

    def names(self) -> list[tuple[str, str]]:
        return [(run.run_id, run.name) for run in self.runs()]

    def get(self, run_id: str) -> RunInfo:
        run = self.client.get_run(run_id)
        return self._info(run, self.client.get_experiment(run.info.experiment_id).name)

    def _info(self, run: Any, experiment: str) -> RunInfo:
        latest = {m.key: m for m in run.data._metric_objs}
        return RunInfo(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            experiment=experiment,
            start=seconds(run.info.start_time),
            end=seconds(run.info.end_time),
            params=latest_params(run.data.params, run.data.tags),
            tags=dict(run.data.tags),
            metrics={key: stored_value(m.value) for key, m in latest.items()},
            steps={key: m.step for key, m in latest.items()},
            artifact_uri=run.info.artifact_uri,
            store=self,
        )

    def history(self, run_id: str, key: str) -> list[Point]:
        points = [Point(m.step, m.timestamp / 1000, stored_value(m.value)) for m in self.client.get_metric_history(run_id, key)]
        return sorted(points, key=lambda p: (p.step, p.timestamp))

    def artifact(self, run: RunInfo, name: str) -> bytes | None:
        import tempfile

        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self.client.download_artifacts(run.run_id, name, folder)).read_bytes()
            except (MlflowException, OSError):
                return None  # no such artifact


def latest_params(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Parameters as the run was trained last. MLflow keeps their first values for good; what a resumed run changed is in a tag."""
    try:
        changed = json.loads(tags.get("losskit.param_drift", "{}"))
    except ValueError:  # cut off, being longer than a tag may be
        changed = {}
    return {**params, **{key: values[1] for key, values in changed.items()}}


def stored_value(value: float, is_nan: Any = False) -> float:
    """A metric value as it was logged: SQL stores keep NaN apart and the largest float for an infinity."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= LARGEST else float(value)


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def local_artifact_dir(artifact_uri: str | None, store: Path | None) -> Path | None:
    """The folder of an artifact address, if it is on this machine. What a tracking server on a SQLite file proxies lies in ``mlartifacts`` beside that file."""
    if not artifact_uri:
        return None
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme == "mlflow-artifacts" and store is not None:
        return store.parent / ARTIFACTS_DIR / unquote(parts.path).lstrip("/")
    return Path(artifact_uri) if not parts.scheme else None


def mend_moved(store: Path) -> list[str]:
    """Point the artifact paths of a SQLite store that was moved or copied, with ``mlartifacts`` beside it, at where it is now.

    MLflow keeps absolute paths, so a moved store would show no artifacts and put new ones into the old place. Only
    experiments that losskit made, with their artifacts beside the store, are touched.

    Returns:
        names of the experiments that were mended.
    """
    mended = []
    with closing(sqlite3.connect(store, timeout=20.0)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return []
        query = "SELECT experiment_id, name, artifact_location, t.value FROM experiments JOIN experiment_tags t USING (experiment_id) WHERE t.key = ?"
        for experiment_id, name, old, folder in connection.execute(query, (BESIDE_STORE,)).fetchall():
            new = location_of(store.absolute().parent / ARTIFACTS_DIR / folder)
            if new == old:
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment_id))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (new, len(old) + 1, experiment_id, len(old), old),
            )
            mended.append(name)
    return mended


__all__ = ["ClientStore", "Point", "RunInfo", "SqliteStore", "Store", "local_artifact_dir", "mend_moved"]

"""Where runs go: the tracking part of the config, store addresses, and whether a store can be reached (asked without importing MLflow)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from components.validation import did_you_mean
from losskit_cli.errors import RunError, UsageError

STORE_FILE = "mlflow.db"
ARTIFACTS_DIR = "mlartifacts"
ON_ERROR = ("stop", "buffer")


@dataclass(frozen=True)
class TrackingSettings:
    """The ``tracking`` group of the config.

    Args:
        enabled: ``False`` records nothing.
        uri: address of the store; ``None`` is ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory.
        experiment: the MLflow experiment.
        artifacts: where a *new* experiment keeps its files; ``None``: ``mlartifacts`` beside a SQLite store, else the server's choice.
        on_error: what to do about a server that is away at the start: ``"stop"`` or ``"buffer"``.
        flush_seconds: how often the journal is written and sent, in seconds.
        log_checkpoints: keep checkpoints among the run's artifacts.
        capture_code: keep the git revision and the uncommitted changes.
        plots: draw the learning rate and the losses when the run ends.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "losskit"
    artifacts: str | None = None
    on_error: str = "stop"
    flush_seconds: float = 1.0
    log_checkpoints: bool = True
    capture_code: bool = True
    plots: bool = True

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise UsageError(f"tracking.on_error must be one of {', '.join(ON_ERROR)}, but got {self.on_error!r}{did_you_mean(self.on_error, ON_ERROR)}")
        for name in ("enabled", "log_checkpoints", "capture_code", "plots"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"tracking.{name} must be true or false, but got {getattr(self, name)!r}")
        if isinstance(self.flush_seconds, bool) or not isinstance(self.flush_seconds, int | float) or not 0 < self.flush_seconds <= 60:
            raise UsageError(f"tracking.flush_seconds must be a number of seconds in (0, 60], but got {self.flush_seconds!r}")
        if not isinstance(self.experiment, str) or not 0 < len(self.experiment) <= 500:
            raise UsageError(f"tracking.experiment must be a name of 1 to 500 characters, but got {self.experiment!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrackingSettings:
        """Settings from the composed config's ``tracking`` node.

        Raises:
            UsageError: an unknown key or a value of the wrong kind.
        """
        known = [f.name for f in fields(cls)]
        for key in config:
            if key not in known:
                raise UsageError(f"there is no 'tracking.{key}'{did_you_mean(str(key), known)} (tracking has: {', '.join(known)})")
        return cls(**{str(key): value for key, value in config.items()})


def resolve_uri(uri: str | None = None, cwd: Path | None = None) -> str:
    """The absolute address of a store: the one given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in ``cwd``.

    That last one is where MLflow 3 itself looks by default, so a plain ``mlflow ui`` in the same directory shows the runs.
    """
    cwd = (cwd or Path.cwd()).absolute()
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not uri:
        return sqlite_uri(cwd / STORE_FILE)
    if uri.startswith("sqlite:"):
        path = sqlite_path(uri)
        if path is None:
            raise UsageError(f"tracking.uri {uri!r} names no file: write sqlite:///runs.db, or sqlite:////absolute/path/runs.db")
        return sqlite_uri(path if path.is_absolute() else cwd / path)
    if "://" not in uri and uri.endswith((".db", ".sqlite", ".sqlite3")):
        return sqlite_uri(cwd / uri)
    return uri


def sqlite_uri(path: Path) -> str:
    """The SQLAlchemy address of a SQLite file; only what would be misread is escaped."""
    text = path.absolute().as_posix()
    return "sqlite:///" + "".join(quote(c) if c in "%?#" else c for c in text)


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address; ``None`` for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    path = unquote(uri.removeprefix("sqlite:///").split("?", 1)[0])
    return Path(path) if path and path != ":memory:" else None


def location_of(folder: Path) -> str:
    """A folder as MLflow's artifact location; only a path that would be misread becomes a ``file:`` address."""
    return f"file://{quote(folder.as_posix())}" if any(c in str(folder) for c in "%?#") else folder.as_posix()


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def without_credentials(uri: str) -> str:
    """``uri`` with no user name or password in it, fit to be shown and stored."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_credentials(uri: str) -> str:
    """The stored address with the user name and password that ``MLFLOW_TRACKING_URI`` gives for it, if it does."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and without_credentials(given) == uri else uri


def require_reachable(settings: TrackingSettings, cwd: Path | None = None) -> str | None:
    """Check, before any training, that the store can be written.

    Returns:
        ``None``, or a warning when the store cannot be reached and ``on_error`` is ``"buffer"``.

    Raises:
        RunError: it cannot be reached and ``on_error`` is ``"stop"``.
    """
    uri = resolve_uri(settings.uri, cwd)
    problem = unreachable(uri)
    if problem is None:
        return None
    if settings.on_error == "stop":
        raise RunError(f"{problem}. Nothing was started. To train and send the run later: tracking.on_error=buffer; to train without tracking: tracking=none")
    return f"{problem}. Training goes on; what is logged is kept in the run directory, and `losskit sync` sends it later"


def unreachable(uri: str, timeout: float = 3.0) -> str | None:
    """Why the store cannot be reached, or ``None``. Servers are asked over HTTP, SQLite files are looked at; other stores are left to MLflow."""
    if is_server(uri):
        return _server_problem(uri, timeout)
    path = sqlite_path(uri)
    return _file_problem(path) if path else None


def _server_problem(uri: str, timeout: float) -> str | None:
    import ssl
    from base64 import b64encode
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

    address = without_credentials(uri).rstrip("/")
    parts = urlsplit(uri)
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    context = ssl._create_unverified_context() if insecure else ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    handlers: list[Any] = [HTTPSHandler(context=context)]
    if parts.hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(ProxyHandler({}))  # a proxy knows nothing of this machine's own ports
    opener: OpenerDirector = build_opener(*handlers)
    request = Request(f"{address}/health")
    if parts.username:
        request.add_header("Authorization", "Basic " + b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode())
    try:
        opener.open(request, timeout=timeout).close()
    except HTTPError as error:
        # any other answer (not found behind a proxy, login wanted) comes from something that is there
        return f"the MLflow server {address} answers with HTTP {error.code} {error.reason}" if error.code in (500, 502, 503, 504) else None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"the MLflow server {address} cannot be reached: {reason}"
    return None


def _file_problem(path: Path) -> str | None:
    if path.exists():
        if path.is_dir():
            return f"the MLflow store {path} is a directory"
        if not os.access(path, os.R_OK | os.W_OK):
            return f"the MLflow store {path} cannot be written: no permission"
        with path.open("rb") as file:
            head = file.read(16)
        if head and head != b"SQLite format 3\x00":
            return f"{path} is not an SQLite file, so it is no MLflow store"
    folder = next((p for p in path.parents if p.exists()), path.parent)
    if not os.access(folder, os.W_OK):
        return f"the MLflow store {path} cannot be made: {folder} is not writable"
    return None

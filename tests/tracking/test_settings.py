"""Where runs go, and whether that place is there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking import TrackingSettings, require_reachable, resolve_uri
from losskit_cli.tracking.settings import sqlite_path, sqlite_uri, unreachable, with_credentials, without_credentials

CONF = Path(__file__).parents[2] / "conf" / "tracking"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that answers with whatever ``server.answer`` is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(running.answer)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    seen: list[tuple[str, str | None]] = []
    running = HTTPServer(("127.0.0.1", 0), Handler)
    running.answer, running.seen = 200, seen  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


class TestConfig:
    @pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
    def test_every_option_can_be_used_and_says_what_it_is(self, path: Path) -> None:
        text = path.read_text()
        assert text.startswith("# ") and len(text.splitlines()[0]) > 30
        settings = TrackingSettings.from_config(yaml.safe_load(text))
        assert settings.enabled == (path.stem != "none")

    def test_mlflow_lists_every_setting_with_its_default(self) -> None:
        config = yaml.safe_load((CONF / "mlflow.yaml").read_text())
        assert config == vars(TrackingSettings())

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"on_error": "buffr"}, "tracking.on_error must be one of stop, buffer, but got 'buffr'; did you mean 'buffer'"),
            ({"url": "x"}, "there is no 'tracking.url'; did you mean 'uri'"),
            ({"flush_seconds": 0}, r"tracking.flush_seconds must be a number of seconds in \(0, 60\], but got 0"),
            ({"plots": "yes"}, "tracking.plots must be true or false, but got 'yes'"),
            ({"experiment": ""}, "tracking.experiment must be a name"),
        ],
    )
    def test_wrong_values_are_named(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            TrackingSettings.from_config(config)


class TestAddresses:
    def test_the_default_is_mlflows_own(self, workdir: Path) -> None:
        assert resolve_uri() == f"sqlite:///{workdir}/mlflow.db"

    def test_the_environment_comes_before_it_and_the_config_before_that(self, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
        assert resolve_uri() == "http://host:5000"
        assert resolve_uri("sqlite:///mine.db") == f"sqlite:///{workdir}/mine.db"

    def test_relative_files_become_absolute(self, tmp_path: Path) -> None:
        assert resolve_uri("runs/a.db", tmp_path) == resolve_uri("sqlite:///runs/a.db", tmp_path) == f"sqlite:///{tmp_path}/runs/a.db"

    @pytest.mark.parametrize("name", ["plain.db", "with space.db", "50%20.db", "ü#?.db"])
    def test_paths_survive(self, tmp_path: Path, name: str) -> None:
        assert sqlite_path(sqlite_uri(tmp_path / name)) == tmp_path / name

    @pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
    def test_a_store_in_memory_is_refused(self, uri: str) -> None:
        with pytest.raises(UsageError, match="names no file"):
            resolve_uri(uri)

    def test_passwords_are_neither_shown_nor_stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = "https://me:secret@host:8080/path"
        assert without_credentials(whole) == "https://host:8080/path"
        assert with_credentials("https://host:8080/path") == "https://host:8080/path"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
        assert with_credentials("https://host:8080/path") == whole
        assert with_credentials("https://other/path") == "https://other/path"


class TestReachable:
    def test_a_server_that_is_there(self, server: Any) -> None:
        assert unreachable(f"http://127.0.0.1:{server.server_port}") is None
        assert server.seen == [("/health", None)]

    def test_credentials_are_sent(self, server: Any) -> None:
        assert unreachable(f"http://me:p%40ss@127.0.0.1:{server.server_port}/") is None
        assert server.seen == [("/health", "Basic bWU6cEBzcw==")]

    @pytest.mark.parametrize("answer", [401, 403, 404])
    def test_an_answer_is_an_answer(self, server: Any, answer: int) -> None:
        server.answer = answer
        assert unreachable(f"http://127.0.0.1:{server.server_port}") is None

    def test_but_not_a_proxy_whose_server_is_down(self, server: Any) -> None:
        server.answer = 503
        assert "HTTP 503" in str(unreachable(f"http://127.0.0.1:{server.server_port}"))

    def test_away_at_the_start_stops_and_says_what_to_do(self) -> None:
        port = closed_port()
        with pytest.raises(RunError, match=rf"the MLflow server http://127.0.0.1:{port} cannot be reached: .*refused.*on_error=buffer") as error:
            require_reachable(TrackingSettings(uri=f"http://me:secret@127.0.0.1:{port}"))
        assert "secret" not in str(error.value)

    def test_or_warns_and_buffers(self) -> None:
        warning = require_reachable(TrackingSettings(uri=f"http://127.0.0.1:{closed_port()}", on_error="buffer"))
        assert warning is not None and "losskit sync" in warning

    def test_a_host_that_is_not_there(self) -> None:
        assert "cannot be reached" in str(unreachable("http://no-such-host.invalid:5000"))

    def test_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.db").write_text("these are notes, not a store")
        (tmp_path / "folder.db").mkdir()
        (tmp_path / "empty.db").touch()
        assert "is not an SQLite file" in str(unreachable(f"sqlite:///{tmp_path}/notes.db"))
        assert "is a directory" in str(unreachable(f"sqlite:///{tmp_path}/folder.db"))
        assert unreachable(f"sqlite:///{tmp_path}/empty.db") is None
        assert unreachable(f"sqlite:///{tmp_path}/new/store.db") is None

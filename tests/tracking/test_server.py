"""A real MLflow server: away at the start, killed in the middle of a run; and MLflow's own UI on a store of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking import Store, TrackingSettings, run_ui, sync
from losskit_cli.tracking.settings import unreachable
from losskit_cli.tracking.state import Progress
from losskit_cli.tracking.ui import free_port, ui_command
from tests.tracking.conftest import begin, complete, expected, history, log_steps, only_run, wait_for
from tests.tracking.test_settings import closed_port

Serve = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def serve(workdir: Path) -> Iterator[Serve]:
    """Starts a server process (in a group of its own, so that its workers go with it) and waits until it answers."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
        with (workdir / "server.log").open("ab") as log:
            environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            running.append(subprocess.Popen(command, cwd=workdir, stdout=log, stderr=log, start_new_session=True, env=environment))
        wait_for(lambda: unreachable(f"http://127.0.0.1:{port}", timeout=1) is None, 120)
        return running[-1]

    yield start
    for process in running:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def server_command(port: int) -> list[str]:
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--port", str(port), "--workers", "1"]


def get(port: int, path: str, body: Any = None) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers={"Content-Type": "application/json"})
    with opener.open(request, timeout=20) as response:
        return bytes(response.read())


class TestServer:
    def test_it_goes_away_during_the_run_and_comes_back_later(self, project: Path, run_dir: Path, serve: Serve) -> None:
        port = closed_port()
        uri = f"http://127.0.0.1:{port}"
        server = serve(server_command(port), port)
        writer, journal = begin(run_dir, {"texts": {"config.yaml": "a: 1\n"}}, uri=uri)
        log_steps(journal, range(50))
        wait_for(lambda: Progress.load(run_dir).offset > 0 and writer.run_id)
        end(server)
        log_steps(journal, range(50, 100))  # training does not notice
        journal.end("FINISHED")
        outcome = writer.wait()
        assert not outcome.ok and outcome.unsent >= 50 and outcome.run_id is not None
        serve(server_command(port), port)
        assert sync(run_dir).ok
        run = Store.open(uri).find(outcome.run_id[:10])  # read through the server
        assert run.status == "FINISHED" and history(run) == expected(range(100))
        assert run.artifact("config.yaml") == b"a: 1\n" and run.artifact("nothing") is None

    def test_away_at_the_start_everything_is_kept(self, project: Path, run_dir: Path) -> None:
        uri = f"http://127.0.0.1:{closed_port()}"
        outcome = complete(run_dir, range(20), uri=uri, on_error="buffer")
        assert not outcome.ok and outcome.run_id is None and outcome.unsent > 20 and "127.0.0.1" in str(outcome.error)
        assert sync(run_dir, uri="sqlite:///mlflow.db").ok  # it is in no store yet, so it can go to another one
        assert history(only_run(project)) == expected(range(20))

    def test_reading_from_one_that_is_away(self) -> None:
        with pytest.raises(RunError, match="cannot be reached"):
            Store.open(f"http://127.0.0.1:{closed_port()}")


class TestUi:
    def test_a_plain_mlflow_ui_in_the_directory_shows_runs_and_artifacts(self, project: Path, run_dir: Path, serve: Serve) -> None:
        run_id = complete(run_dir, range(10), {"name": "shown", "texts": {"config.yaml": "a: 1\n"}}).run_id
        port = closed_port()
        serve([sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"], port)
        experiment = only_run(project).store.get(str(run_id)).experiment
        ids = json.loads(get(port, f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}"))["experiment"]["experiment_id"]
        (found,) = json.loads(get(port, "/api/2.0/mlflow/runs/search", {"experiment_ids": [ids]}))["runs"]
        assert found["info"]["run_name"] == "shown" and found["info"]["status"] == "FINISHED"
        assert get(port, f"/get-artifact?path=config.yaml&run_uuid={run_id}") == b"a: 1\n"
        files = json.loads(get(port, f"/api/2.0/mlflow/artifacts/list?run_id={run_id}&path=plots"))["files"]
        assert [file["path"] for file in files] == ["plots/loss.png"]

    def test_the_command_serves_this_machine_only(self, project: Path) -> None:
        command = ui_command(f"sqlite:///{project}/mlflow.db", 5001)
        assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--port") + 1] == "5001"
        assert command[command.index("--artifacts-destination") + 1] == str(project / "mlartifacts")

    def test_a_taken_port(self, project: Path) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is taken"):
                run_ui(port=port)
        assert free_port(port) == port and free_port() >= 5000
        with pytest.raises(UsageError, match="--port must be between 1 and 65535, but got 99999"):
            run_ui(port=99999)

    def test_no_store_no_ui(self, workdir: Path) -> None:
        with pytest.raises(UsageError, match=r"there is no store .* yet: run `losskit train` here first"):
            run_ui()

    def test_a_server_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr("losskit_cli.tracking.ui.unreachable", lambda uri: None)
        assert run_ui(uri="http://me:secret@host:5000", say=said.append) == 0
        assert said == ["this project's runs are on a tracking server: http://host:5000"]

    def test_mlflow_that_fails_to_start(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("losskit_cli.tracking.ui.ui_command", lambda uri, port: [sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(RunError, match="ended with exit status 3"):
            run_ui(say=lambda line: None)


def test_settings_of_the_environment_reach_the_writer(project: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/other/mine.db")
    (project / "other").mkdir()
    (project / "mlflow.db").rename(project / "other" / "mine.db")
    assert complete(run_dir, range(3)).ok
    assert not (project / "mlflow.db").exists() and history(only_run(project)) == expected(range(3))
    assert (project / "other" / "mlartifacts" / "losskit").is_dir()
    assert TrackingSettings().uri is None

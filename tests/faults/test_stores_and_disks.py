"""Stores that are away or broken, disks that are full or read-only, and two processes that want the same thing: nothing that was there is lost."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from components.callbacks import is_intact
from tests.conftest import Result, command

Losskit = Callable[..., Result]
EXPERIMENT = ("data=iris", "model=mlp", "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_steps=3", "name=victim")
STEPS = 21
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def project(workdir: Path, store_template: Path) -> Path:
    shutil.copy(store_template, workdir / "mlflow.db")
    return workdir


def statuses(directory: Path) -> list[str]:
    with sqlite3.connect(directory / "mlflow.db") as store:
        return [status for (status,) in store.execute("select status from runs")]


def only_run_dir(root: Path) -> Path:
    (spec,) = root.glob("**/run_spec.json")
    return spec.parent


def losses(directory: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(directory / "mlflow.db") as store:
        return list(store.execute("select step, value from metrics where key = 'train/loss' order by step, timestamp"))


def assert_failed_with_one_message(result: Result, *says: str) -> None:
    assert result.code == 1, (result.code, result.err)
    errors = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in result.err, result.err
    for words in says:
        assert words in errors[0], (words, errors[0])


def assert_it_goes_on(losskit: Losskit, project: Path) -> None:
    """There is room again: the same MLflow run is finished, with every step logged once."""
    resumed = losskit("resume", "victim", "-q")
    assert resumed.code == 0, resumed.err
    assert statuses(project) == ["FINISHED"]
    assert [step for step, _ in losses(project)] == [*range(1, STEPS + 1)]


class TestFullDisk:
    def test_while_a_checkpoint_is_written(self, project: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
        saves, save = [], torch.save

        def save_until_full(content: Any, file: Any, *more: Any) -> None:
            saves.append(content)
            if len(saves) > 3:
                file.write(b"half of a checkpoint")
                raise FULL
            save(content, file, *more)

        with monkeypatch.context() as full:
            full.setattr("components.callbacks.checkpoints.torch.save", save_until_full)
            result = losskit("train", *EXPERIMENT)
        assert_failed_with_one_message(result, "the disk is full", "the last whole checkpoint is kept", "losskit resume victim")
        checkpoints = only_run_dir(project) / "checkpoints"
        assert {p.name for p in checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}  # no half one
        assert all(is_intact(p) for p in checkpoints.iterdir())
        assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 7  # 3, 6, 7 (the end of the epoch) were saved, 9 was not
        assert statuses(project) == ["FAILED"]
        assert_it_goes_on(losskit, project)

    def test_while_the_journal_is_written(self, project: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
        from losskit_cli.tracking.journal import Journal

        write = Journal._write
        written: list[bytes | None] = []

        def write_until_full(journal: Journal, data: bytes) -> None:
            if b'"s":8' in data or (written and written[-1] is None):
                written.append(None)
                raise FULL
            written.append(data)
            write(journal, data)

        with monkeypatch.context() as full:
            full.setattr(Journal, "_write", write_until_full)
            result = losskit("train", *EXPERIMENT, "tracking.flush_seconds=0.05")
        assert_failed_with_one_message(result, "the disk is full", "losskit resume victim")
        checkpoints = only_run_dir(project) / "checkpoints"
        assert is_intact(checkpoints / "last.ckpt") and torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] <= 9
        assert statuses(project) == ["FAILED"]  # the journal's last word could not be written: the writer had it from the pipe
        assert_it_goes_on(losskit, project)

    def test_for_real(self, project: Path, losskit: Losskit) -> None:
        with mounted(project / "small", "size=700k") as disk:
            result = losskit("train", *EXPERIMENT, "output_dir=small", "tracking.plots=false", "model.hidden=[128,128,32]")
            assert_failed_with_one_message(result, "the disk is full")
            checkpoints = only_run_dir(disk) / "checkpoints"
            kept = [p for p in checkpoints.iterdir() if p.suffix == ".ckpt"]
            assert kept and all(is_intact(p) for p in kept)
            assert not list(checkpoints.glob(".*"))
            assert statuses(project) == ["FAILED"]
            subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
            assert_it_goes_on(losskit, project)

    def test_before_anything_was_written(self, project: Path, losskit: Losskit) -> None:
        with mounted(project / "small", "size=8k") as disk:
            (disk / "everything").write_bytes(b"0" * 4096)
            result = losskit("train", *EXPERIMENT, "output_dir=small")
            assert result.code in (1, 2) and "No space left on device" in result.err and "Traceback" not in result.err
            assert result.err.count("\n") == 1
            assert [p.name for p in disk.iterdir()] == ["everything"]
        assert statuses(project) == []


class mounted:
    """A small file system of its own at ``path``; skips the test where mounting is not permitted."""

    def __init__(self, path: Path, options: str) -> None:
        self.path, self.options = path, options

    def __enter__(self) -> Path:
        self.path.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.path)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
        return self.path

    def __exit__(self, *given: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


class TestReadOnly:
    def test_the_output_directory(self, project: Path, losskit: Losskit) -> None:
        with mounted(project / "readonly", "ro,size=1m"):
            result = losskit("train", *EXPERIMENT, "output_dir=readonly")
            assert result.code == 2
            assert result.err == "Error: cannot make a run directory below readonly: Read-only file system (set output_dir=…)\n"
        assert statuses(project) == []

    def test_the_directory_of_a_run(self, project: Path, losskit: Losskit) -> None:
        with mounted(project / "small", "size=20m") as disk:
            assert losskit("train", *EXPERIMENT, "output_dir=small", "tracking=none", "-q").code == 0
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            resumed = losskit("resume", str(only_run_dir(disk)), "trainer.max_epochs=4", "-q")
            assert resumed.code in (1, 2) and "Read-only file system" in resumed.err and "Traceback" not in resumed.err
            evaluated = losskit("eval", str(only_run_dir(disk)), "--json")  # reading is enough for this
            assert evaluated.code == 0, evaluated.err


class TestBrokenStore:
    def test_a_file_that_is_no_store(self, workdir: Path, losskit: Losskit) -> None:
        (workdir / "mlflow.db").write_bytes(b"garbage" * 100)
        assert_failed_with_one_message(losskit("train", *EXPERIMENT), "mlflow.db is not an SQLite file", "Nothing was started", "tracking=none")
        assert [p.name for p in workdir.iterdir()] == ["mlflow.db"]
        assert (workdir / "mlflow.db").read_bytes() == b"garbage" * 100
        reading = losskit("compare")
        assert reading.code in (1, 2) and reading.err.startswith("Error: ") and "mlflow.db" in reading.err and "Traceback" not in reading.err
        assert losskit("train", *EXPERIMENT, "tracking=none", "-q").code == 0
        assert losskit("eval", "victim", "--json").code == 0  # the run is on the disk, whatever the store says

    def test_a_store_that_is_damaged_inside(self, project: Path, losskit: Losskit) -> None:
        content = bytearray((project / "mlflow.db").read_bytes())
        content[100:20000] = b"\xff" * 19900
        (project / "mlflow.db").write_bytes(content)
        result = losskit("train", *EXPERIMENT)
        assert result.code == 0, result.err  # what was trained is not lost
        assert "note: tracking: " in result.err and "losskit sync" in result.err
        shutil.rmtree(project / "mlartifacts", ignore_errors=True)
        sent = losskit("sync", "--uri", "sqlite:///other.db")
        assert sent.code == 0, sent.err
        with sqlite3.connect(project / "other.db") as store:
            assert store.execute("select status from runs").fetchall() == [("FINISHED",)]

    def test_a_store_that_somebody_else_has_locked(self, project: Path, losskit: Losskit) -> None:
        holder = sqlite3.connect(project / "mlflow.db", check_same_thread=False)
        holder.execute("begin exclusive")
        release = threading.Timer(7.0, holder.rollback)
        release.start()
        result = losskit("train", *EXPERIMENT, "-q")
        release.join()
        holder.close()
        assert result.code == 0, result.err
        if statuses(project) != ["FINISHED"]:
            assert losskit("sync").code == 0
        assert statuses(project) == ["FINISHED"] and len(losses(project)) == STEPS


class TestServerAway:
    def test_at_the_start_training_is_not_begun(self, workdir: Path, losskit: Losskit) -> None:
        uri = f"http://127.0.0.1:{closed_port()}"
        result = losskit("train", *EXPERIMENT, f"tracking.uri={uri}")
        assert_failed_with_one_message(result, f"the MLflow server {uri} cannot be reached", "Nothing was started", "tracking.on_error=buffer", "tracking=none")
        assert result.err.count("\n") == 1 and not list(workdir.iterdir())

    def test_the_address_in_the_environment_counts_too(self, workdir: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed_port()}")
        result = losskit("train", *EXPERIMENT)
        assert_failed_with_one_message(result, "cannot be reached")
        assert "secret" not in result.err and not list(workdir.iterdir())

    def test_at_the_start_with_buffer_the_run_is_kept_and_sent_later(self, project: Path, losskit: Losskit) -> None:
        uri = f"http://127.0.0.1:{closed_port()}"
        result = losskit("train", *EXPERIMENT, f"tracking.uri={uri}", "tracking.on_error=buffer")
        assert result.code == 0, result.err
        assert "cannot be reached" in result.err and "losskit sync" in result.err and "FINISHED" in result.out
        assert statuses(project) == []
        sent = losskit("sync", "--uri", "sqlite:///mlflow.db")
        assert sent.code == 0, sent.err
        assert statuses(project) == ["FINISHED"] and [step for step, _ in losses(project)] == [*range(1, STEPS + 1)]

    def test_during_the_run_training_goes_on_and_what_was_logged_is_sent_later(
        self, workdir: Path, losskit: Losskit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(workdir))
        (workdir / "goes_away.py").write_text(
            "import lightning\n\nHOOK = None\n\n\nclass At(lightning.Callback):\n    def on_train_batch_end(self, trainer, *given):\n"
            "        if trainer.global_step == 8:\n            HOOK()\n"
        )
        import goes_away  # type: ignore[import-not-found]

        server = StandIn(closed_port())
        server.start()

        def go_away() -> None:
            end = time.monotonic() + 60
            while not server.state.steps and time.monotonic() < end:  # MLflow has the beginning
                time.sleep(0.05)
            server.stop()

        goes_away.HOOK = go_away
        try:
            result = losskit("train", *EXPERIMENT, f"tracking.uri={server.uri}", "allow_targets=[goes_away]", "+callbacks.away={_target_: goes_away.At}")
            assert result.code == 0, result.err
            assert "FINISHED" in result.out and "records are kept" in result.err and "losskit sync" in result.err
            before = len(server.state.steps)
            assert 0 < before < STEPS
            server.start()  # back again, with what it had
            sent = losskit("sync")
            assert sent.code == 0, sent.err
            assert server.state.steps == [*range(1, STEPS + 1)]
            assert server.state.status == "FINISHED" and server.state.runs == 1
        finally:
            server.stop()
            sys.modules.pop("goes_away", None)


class Memory:
    """What the stand-in was told."""

    def __init__(self) -> None:
        self.runs, self.status = 0, "RUNNING"
        self.values: dict[tuple[str, int], float] = {}
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}

    @property
    def steps(self) -> list[int]:
        return sorted(step for key, step in self.values if key == "train/loss")


class StandIn:
    """As much of an MLflow server as one run needs; it can go away and come back on the same port."""

    def __init__(self, port: int) -> None:
        self.port, self.uri, self.state = port, f"http://127.0.0.1:{port}", Memory()
        self.server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        state = self.state

        class Bound(Handler):
            memory = state

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class Handler(BaseHTTPRequestHandler):
    memory: ClassVar[Memory]

    def do_GET(self) -> None:
        self.answer({key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))

    def answer(self, asked: dict[str, Any]) -> None:
        memory, path = self.memory, urlsplit(self.path).path.rpartition("/mlflow/")[2]
        now = int(time.time() * 1000)
        info = {"run_id": "0123abcd" * 4, "run_uuid": "0123abcd" * 4, "run_name": "victim", "experiment_id": "1", "status": memory.status, "start_time": now,
                "artifact_uri": "mlflow-artifacts:/1/run/artifacts", "lifecycle_stage": "active"}  # fmt: skip
        run = {"info": info, "data": {"tags": [{"key": k, "value": v} for k, v in memory.tags.items()],
                                      "params": [{"key": k, "value": v} for k, v in memory.params.items()]}}  # fmt: skip
        said: dict[str, Any] = {}
        if path == "experiments/get-by-name":
            said = {"experiment": {"experiment_id": "1", "name": "losskit", "artifact_location": "mlflow-artifacts:/1", "lifecycle_stage": "active"}}
        elif path == "runs/create":
            memory.runs += 1
            said = {"run": run}
        elif path == "runs/get":
            said = {"run": run}
        elif path == "runs/update":
            memory.status = asked.get("status", memory.status)
            said = {"run_info": info}
        elif path == "runs/log-batch":
            memory.values |= {(m["key"], int(m.get("step", 0))): m["value"] for m in asked.get("metrics", [])}
            memory.tags |= {t["key"]: t["value"] for t in asked.get("tags", [])}
            memory.params |= {p["key"]: p["value"] for p in asked.get("params", [])}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:  # an artifact
        with suppress(OSError):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def processes(workdir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands that run beside each other."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        running.append(subprocess.Popen(command(*arguments), cwd=workdir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


SLOW = '''
import time
import lightning


class Slow(lightning.Callback):
    """Stops the run at one step, once; afterwards takes its time."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer, *given):
        from pathlib import Path
        marker = Path(trainer.default_root_dir) / "stopped"
        if marker.exists():
            time.sleep(0.5)
        elif trainer.global_step == self.at:
            marker.touch()
            raise KeyboardInterrupt
'''


class TestAtTheSameTime:
    def test_two_runs_started_at_one_moment_in_an_empty_directory(self, workdir: Path, processes: Callable[..., subprocess.Popen[str]]) -> None:
        both = [processes("train", *EXPERIMENT, "--json") for _ in range(2)]
        outputs = [process.communicate(timeout=200) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        summaries = [json.loads(out) for out, _ in outputs]
        assert len({s["run_dir"] for s in summaries}) == len({s["run_id"] for s in summaries}) == 2
        assert statuses(workdir) == ["FINISHED", "FINISHED"] and len(losses(workdir)) == 2 * STEPS
        assert summaries[0]["metrics"] == summaries[1]["metrics"]

    def test_two_resumes_of_one_run(
        self, project: Path, losskit: Losskit, processes: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (project / "slowly.py").write_text(SLOW)
        monkeypatch.syspath_prepend(str(project))
        stopped = losskit("train", *EXPERIMENT, "allow_targets=[slowly]", "+callbacks.slow={_target_: slowly.Slow, at: 5}", "-q")
        sys.modules.pop("slowly", None)
        assert stopped.code == 130 and statuses(project) == ["KILLED"]
        both = [processes("resume", "victim", "-q") for _ in range(2)]
        errors = [process.communicate(timeout=200)[1] for process in both]
        codes = [process.returncode for process in both]
        assert sorted(codes) == [0, 2], (codes, errors)
        refused = errors[codes.index(2)]
        assert refused.startswith("Error: victim is still running") and refused.count("\n") == 1
        assert statuses(project) == ["FINISHED"] and [step for step, _ in losses(project)] == [*range(1, STEPS + 1)]

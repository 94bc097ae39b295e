"""A store to write to, and a training process to kill."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.tracking import Outcome, RunInfo, Store, TrackingSettings, Writer, start_writer
from losskit_cli.tracking.journal import Journal

TRAINING = '''
import sys, time
from pathlib import Path
from losskit_cli.tracking import TrackingSettings, start_writer
from losskit_cli.tracking.journal import Journal

run_dir, begin, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
writer = start_writer(run_dir, TrackingSettings(flush_seconds=0.2))
journal = Journal(run_dir, flush_seconds=0.2)
journal.start({"name": "victim"})
for step in range(begin, stop):
    journal.metrics({"train/loss": 1.0 / (1 + step), "epoch": step // 10}, step)
journal.flush()
(run_dir / "ready").write_text(str(writer.process.pid))
time.sleep(100)
'''


@pytest.fixture
def project(workdir: Path, store_template: Path) -> Path:
    """A working directory with an empty store in it."""
    shutil.copy(store_template, workdir / "mlflow.db")
    return workdir


@pytest.fixture
def run_dir(workdir: Path) -> Path:
    return workdir / "outputs" / "run"


def begin(run_dir: Path, metadata: dict[str, Any] | None = None, **settings: Any) -> tuple[Writer, Journal]:
    """A run of this process."""
    settings.setdefault("flush_seconds", 0.2)
    writer = start_writer(run_dir, TrackingSettings(**settings))
    journal = Journal(run_dir, flush_seconds=0.2)
    journal.start({"name": "run", **(metadata or {})})
    return writer, journal


def complete(run_dir: Path, steps: range, metadata: dict[str, Any] | None = None, **settings: Any) -> Outcome:
    """A run of this process from beginning to end."""
    writer, journal = begin(run_dir, metadata, **settings)
    log_steps(journal, steps)
    journal.end("FINISHED")
    return writer.wait(last_word=journal.unwritten_end)


def log_steps(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.metrics({"train/loss": 1.0 / (1 + step), "epoch": step // 10}, step)


def history(run: RunInfo, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in run.history(key)]


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 1.0 / (1 + step)) for step in steps]


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``condition`` gives, as soon as that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def only_run(cwd: Path) -> RunInfo:
    (run,) = Store.open(cwd=cwd).runs()
    return run


class Victim:
    """A training process of its own that logs steps and then sits there."""

    def __init__(self, run_dir: Path, steps: range) -> None:
        (run_dir / "ready").unlink(missing_ok=True)
        self.process = subprocess.Popen([sys.executable, "-c", TRAINING, str(run_dir), str(steps.start), str(steps.stop)], start_new_session=True)
        self.writer_pid = int(wait_for(lambda: (run_dir / "ready").exists() and (run_dir / "ready").read_text()))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def victim(run_dir: Path) -> Iterator[Callable[[range], Victim]]:
    victims: list[Victim] = []

    def start(steps: range) -> Victim:
        victims.append(Victim(run_dir, steps))
        return victims[-1]

    yield start
    for one in victims:
        one.kill()

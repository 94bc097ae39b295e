"""One process that forks the writers of all runs of a sweep: they are as good as processes of their own, and the runs survive without it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from losskit_cli.tracking import Store
from losskit_cli.tracking.server import ADDRESS, ServedProcess, WriterServer
from tests.tracking.conftest import begin, expected, history, log_steps, wait_for


@pytest.fixture
def server(project: Path) -> Iterator[WriterServer]:
    with WriterServer.start() as server:
        yield server


def test_its_writers_write_runs(project: Path, server: WriterServer) -> None:
    both = [begin(project / "outputs" / name) for name in ("one", "two")]
    for number, (writer, journal) in enumerate(both):
        assert isinstance(writer.process, ServedProcess)
        log_steps(journal, range(10 * (number + 1)))
        journal.end("FINISHED")
        outcome = writer.wait()
        assert outcome.ok and outcome.unsent == 0
        assert writer.process.poll() == 0
    runs = {run.run_dir.name: run for run in Store.open(cwd=project).runs() if run.run_dir}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    assert {name: history(run) for name, run in runs.items()} == {"one": expected(range(10)), "two": expected(range(20))}


def test_a_run_goes_on_when_the_server_is_killed(project: Path, server: WriterServer) -> None:
    writer, journal = begin(project / "outputs" / "one")
    wait_for(lambda: writer.run_id)
    log_steps(journal, range(5))
    os.killpg(server.process.pid, 9)
    server.process.wait()
    journal.end("FINISHED")
    assert writer.wait().ok, "another writer, a process of its own, has sent the rest"
    following, journal = begin(project / "outputs" / "two")
    assert isinstance(following.process, subprocess.Popen)
    journal.end("FINISHED")
    assert following.wait().ok
    assert sorted(run.status for run in Store.open(cwd=project).runs()) == ["FINISHED", "FINISHED"]


def test_it_ends_after_its_last_writer(project: Path) -> None:
    with WriterServer.start() as server:
        writer, journal = begin(project / "outputs" / "one")
        wait_for(lambda: writer.run_id)
    assert ADDRESS not in os.environ and not server.folder.exists()
    log_steps(journal, range(5))
    journal.end("FINISHED")
    assert writer.wait().ok, "it was at work when the server was let go"
    assert server.process.wait(30) == 0

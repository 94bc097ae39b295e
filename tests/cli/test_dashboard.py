"""``losskit ui --sweep``: optuna-dashboard on a sweep's storage, started and ended for real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import optuna
import psutil
import pytest

from losskit_cli.dashboard import ADDRESS, dashboard_command, run_dashboard
from losskit_cli.errors import UsageError
from sweeps.storage import open_storage
from tests.conftest import command


def make_study() -> None:
    optuna.create_study(study_name="night", storage=open_storage()).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_the_sweep_and_ends_with_all_its_processes(workdir: Path, number: int) -> None:
    make_study()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shown = command("ui", "--sweep", "night", "--port", str(port))
    process = subprocess.Popen(shown, cwd=workdir, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    family: list[psutil.Process] = []
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == f"starting optuna-dashboard on http://127.0.0.1:{port} …\n"
        said = next(line for line in process.stderr if line.startswith("optuna-dashboard: "))
        assert said == f"optuna-dashboard: http://127.0.0.1:{port}/dashboard/studies/1 (Ctrl-C ends it)\n"
        browser = build_opener(ProxyHandler({}))
        with browser.open(f"http://127.0.0.1:{port}/dashboard/studies/1", timeout=30) as page:
            assert page.status == 200 and b"<html" in page.read()
        with browser.open(f"http://127.0.0.1:{port}/api/studies/1?after=0", timeout=30) as answer:
            found = json.load(answer)
            assert found["name"] == "night" and [t["state"] for t in found["trials"]] == ["Complete", "Complete"]
        family = psutil.Process(process.pid).children(recursive=True)
        assert family and all(str(workdir) not in " ".join(one.cmdline()) for one in family)  # an address may hold a password
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        for orphan in alive:
            os.kill(orphan.pid, signal.SIGKILL)
    assert not alive


def test_a_taken_port(workdir: Path) -> None:
    make_study()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=f"port {taken.getsockname()[1]} of 127.0.0.1 is taken"):
            run_dashboard("night", port=taken.getsockname()[1])


def test_what_is_not_there_is_said(workdir: Path, losskit: Callable[..., Any]) -> None:
    nothing = losskit("ui", "--sweep", "night")
    assert nothing.code == 2 and "there is no storage of sweeps" in nothing.err and not list(workdir.iterdir())
    make_study()
    other = losskit("ui", "--sweep", "knight")
    assert other.code == 2 and "there is no sweep 'knight'; did you mean 'night'?" in other.err
    alone = losskit("ui", "--storage", "sweeps.db")
    assert alone.code == 2 and "--storage is about a sweep" in alone.err


def test_the_address_is_in_no_command_line(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study()
    given: dict[str, Any] = {}
    monkeypatch.setattr("losskit_cli.dashboard.serve", lambda what, command, port, **options: given.update(options, command=command) or 0)
    assert run_dashboard("night", say=lambda line: None) == 0
    assert given["environment"][ADDRESS] == f"sqlite:///{workdir}/sweeps.db" and given["command"] == dashboard_command(int(given["command"][-1]))
    assert not any("sweeps.db" in part for part in given["command"])

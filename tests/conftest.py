"""What all tests share: an empty working directory, the command line in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent
pytest.register_assert_rewrite("tests.faults.outcomes")  # so that its assertions say what differs


@dataclass
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out.strip().splitlines()[-1])


def invoke(*arguments: str) -> Result:
    """The command line in this process, in the working directory; for fixtures of a wider scope, which cannot use ``losskit``."""
    from losskit_cli.app import run

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run([*arguments])
    return Result(code, out.getvalue(), err.getvalue())


def trained(*arguments: str) -> dict[str, Any]:
    """The summary of a training that succeeds."""
    result = invoke("train", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = result.json()
    return found


def further_ranks(directory: Path) -> list[int]:
    """Processes of further ranks whose run is below ``directory``."""
    running = [p.info for p in psutil.process_iter(["pid", "status", "cmdline"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
    return [info["pid"] for info in running if "losskit_cli.ranks" in (info["cmdline"] or []) and str(directory) in " ".join(info["cmdline"])]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no store of anybody's in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOSSKIT_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def losskit(workdir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process (torch is imported once for all tests)."""
    from losskit_cli.app import run

    def invoke(*arguments: str) -> Result:
        capfd.readouterr()
        code = run([*arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return invoke


@pytest.fixture
def shell(workdir: Path) -> Callable[..., Result]:
    """The command line in a process of its own, as a user starts it."""

    def invoke(*arguments: str, timeout: float = 120, **environment: str) -> Result:
        done = subprocess.run(command(*arguments), cwd=workdir, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return invoke


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "losskit_cli", *arguments]


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store, made once: its migrations take seconds. Tests copy it to ``mlflow.db``."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = f"from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; SqlAlchemyStore('sqlite:///{path}', '{path.parent}')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return path

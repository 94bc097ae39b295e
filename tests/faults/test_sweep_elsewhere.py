"""Sweeps whose workers or whose storage are elsewhere: launchers, ``losskit worker``, servers; and what goes wrong with those."""

from __future__ import annotations

import importlib.util
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from sweeps.storage import open_storage
from sweeps.study import Sweep, runs_of
from tests.conftest import Result, command
from tests.faults.test_sweep_kills import EXPERIMENT, left_over, mlflow_runs, project, wait_until, workers_of  # noqa: F401
from tests.sweeps.conftest import postgres_server  # noqa: F401

Losskit = Callable[..., Result]
LR = "optimizer.lr=tag(log,interval(1e-3,1))"
QUICK = [*[text for text in EXPERIMENT if "slow" not in text], "trainer.max_epochs=2", LR, "sweep.grace_seconds=3"]
LONG = [*EXPERIMENT, "callbacks.slow.seconds=0.05", "trainer.max_epochs=12", LR, "sweep.grace_seconds=3"]


@pytest.fixture
def begin(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:  # noqa: F811
    """Start ``losskit`` in a process of its own; what it says goes to ``sweep.log``."""
    started = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        with (project / "sweep.log").open("a") as log:
            everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            started.append(subprocess.Popen(command(*arguments), cwd=project, env=everything, stdout=log, stderr=log, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for pid in left_over(project):
        psutil.Process(pid).kill()


def said() -> str:
    return Path("sweep.log").read_text()


def opened(name: str, address: str | None = None) -> Sweep:
    found: list[Sweep] = []

    def there() -> bool:
        if address is None and not Path("sweeps.db").exists():
            return False
        storage = open_storage(address)
        if name in [study.study_name for study in storage.get_all_studies()]:
            found.append(Sweep.open(name, storage, address or ""))
        return bool(found)

    wait_until(there, within=60)
    return found[0]


def at_work(sweep: Sweep, workers: int) -> Callable[[], bool]:
    """Whether so many workers are in the middle of a run, with a checkpoint."""
    return lambda: len([t for t in sweep.trials(TrialState.RUNNING) if len(t.intermediate_values) > 2]) >= workers


def assert_whole(sweep: Sweep, trials: int) -> None:
    """All trials are complete, each with one run below the sweep's."""
    assert [t.state for t in sweep.trials()] == [TrialState.COMPLETE] * trials, said()
    runs = mlflow_runs()
    (parent,) = [run for run, status, tags in runs if tags.get("losskit.kind") == "sweep" and status == "FINISHED"]
    children = [tags for _, status, tags in runs if tags.get("mlflow.parentRunId") == parent and status == "FINISHED"]
    assert sorted(int(tags["losskit.trial"]) for tags in children) == list(range(trials)) and len(runs) == trials + 1
    assert {tags["losskit.trial_state"] for tags in children} == {"COMPLETE"}


# -- launchers ---------------------------------------------------------------------------------------------------------------
def test_joblib_workers_are_stopped_with_ctrl_c_and_a_resumed_sweep_launches_them_again(begin: Any, project: Path) -> None:  # noqa: F811
    process = begin("sweep", *LONG, "sweep.n_trials=3", "sweep.workers=2", "sweep.name=threads", "hydra/launcher=joblib")
    sweep = opened("threads")
    wait_until(at_work(sweep, 2))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, said()
    assert said().strip().endswith("what ran is checkpointed. Go on with: losskit sweep --resume threads")
    assert not sweep.trials(TrialState.RUNNING) and not left_over(project)
    runs = {t.number: runs_of(t)["None"]["run_dir"] for t in sweep.trials() if runs_of(t)}
    assert len(runs) >= 2 and all((Path(run) / "checkpoints" / "last.ckpt").exists() for run in runs.values())
    assert begin("sweep", "--resume", "threads").wait(120) == 0, said()
    assert_whole(sweep, 3)
    assert runs.items() <= {t.number: runs_of(t)["None"]["run_dir"] for t in sweep.trials()}.items()
    assert "best val/loss" in said() and "optimizer.lr" in said()


def test_when_a_submitit_worker_is_killed_another_goes_on_with_its_trial(begin: Any) -> None:
    process = begin("sweep", *LONG, "sweep.n_trials=3", "sweep.workers=2", "sweep.name=jobs", "hydra/launcher=submitit_local")
    sweep = opened("jobs")
    wait_until(at_work(sweep, 2))
    os.kill(workers_of(sweep)[0], signal.SIGKILL)
    assert process.wait(120) == 0, said()
    assert_whole(sweep, 3)
    assert [t.system_attrs["losskit:lost"] for t in sweep.trials() if "losskit:lost" in t.system_attrs] == [1]
    assert "note: worker" in said() and "UncompletedJobError" in said()


def test_when_all_launched_workers_are_lost_the_sweep_says_how_to_go_on(begin: Any) -> None:
    process = begin("sweep", *LONG, "sweep.n_trials=2", "sweep.workers=1", "sweep.name=lost", "hydra/launcher=joblib")
    sweep = opened("lost")
    wait_until(at_work(sweep, 1))
    os.kill(workers_of(sweep)[0], signal.SIGKILL)
    assert process.wait(60) == 1, said()
    assert "all launched workers have ended with 0 of 2 trials done: the launcher's process was killed (SIGKILL)" in said()  # joblib's only worker is itself
    assert "Go on with: losskit sweep --resume lost" in said() and "Traceback" not in said()
    assert sweep.status().waiting == 2 and not sweep.trials(TrialState.RUNNING)
    (parent,) = [status for _, status, tags in mlflow_runs() if tags.get("losskit.kind") == "sweep"]
    assert parent == "FAILED"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed here: pip install 'losskit[ray]'")
def test_workers_on_a_local_ray_cluster(begin: Any, project: Path) -> None:  # noqa: F811
    arguments = ["sweep", *QUICK, "sweep.n_trials=2", "sweep.workers=2", "sweep.name=cluster", "hydra/launcher=ray"]
    assert begin(*arguments, HOME=str(project), RAY_USAGE_STATS_ENABLED="0").wait(120) == 0, said()
    assert_whole(opened("cluster"), 2)
    assert "best val/loss" in said() and "Ray instance" not in said()


@pytest.mark.parametrize(
    ("launcher", "error"),
    [
        (["hydra/launcher=joblb"], "there is no hydra/launcher=joblb; did you mean 'joblib'?"),
        (["hydra/launcher=rq"], "hydra/launcher=rq is not installed"),
        (["hydra/launcher=joblib", "hydra.launcher.jobs=2"], "hydra/launcher=joblib has no setting 'jobs'"),
        (["sweep.launcher=nowhere"], "there is no hydra/launcher=nowhere"),
        (["hydra/launcher=joblib", "sweep.workers=0"], "sweep.workers=0: it takes auto or a whole number >= 1"),
    ],
)
def test_a_launcher_that_cannot_be_is_an_error_before_anything_is_made(launcher: list[str], error: str, losskit: Losskit, workdir: Path) -> None:
    result = losskit("sweep", "data=iris", "model=linear", LR, *launcher)
    assert result.code == 2 and error in result.err and "Traceback" not in result.err
    assert not [*workdir.iterdir()]


# -- workers and storages elsewhere ------------------------------------------------------------------------------------------
def test_a_sweep_behind_a_storage_server_with_a_worker_more(begin: Any, losskit: Losskit, project: Path) -> None:  # noqa: F811
    begin("storage", "serve", "--storage", "journal:behind.journal", "--port", "0")
    wait_until(lambda: "grpc://" in said(), within=30)
    address = "grpc://" + said().partition("grpc://")[2].split()[0]
    process = begin("sweep", *LONG, "sweep.n_trials=3", "sweep.workers=1", "sweep.name=far", f"sweep.storage={address}")
    sweep = opened("far", address)
    worker = begin("worker", "far", "--storage", address)
    wait_until(at_work(sweep, 2))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == 130, said()
    assert "a trial that it was at is checkpointed" in said()
    assert losskit("sweep", "--stop", "far", "--storage", address).code == 0
    assert process.wait(60) == 1, said()
    assert f"stopped with losskit sweep --stop. Go on with: losskit sweep --resume far --storage {address}" in said()
    found = losskit("sweep", "--status", "far", "--storage", address, "--json").json()
    assert (found["total"], found["running"], found["waiting"], found["storage"]) == (3, 0, 3 - found["complete"], address)
    assert begin("sweep", "--resume", "far", "--storage", address).wait(120) == 0, said()
    assert_whole(sweep, 3)
    assert not Path("sweeps.db").exists()


def test_a_worker_from_another_shell_takes_over_from_one_that_is_killed(begin: Any, project: Path) -> None:  # noqa: F811
    process = begin("sweep", *LONG, "sweep.n_trials=1", "sweep.workers=1", "sweep.name=shells", "sweep.retries=5", "trainer.max_epochs=40")
    sweep = opened("shells")
    worker = begin("worker", "shells")
    wait_until(at_work(sweep, 1))
    process.kill()  # and with it its own worker, in good order
    process.wait()
    assert worker.wait(60) == 0, said()
    assert sweep.status().complete == 1
    assert "1 trial done; the sweep has none left" in said()


def test_a_sweep_in_postgresql(losskit: Losskit, project: Path, postgres_server: Any) -> None:  # noqa: F811
    address = postgres_server.new_database()
    shown = address.replace("losskit:secret-word@", "")
    first = losskit("sweep", *QUICK, "sweep.n_trials=2", "sweep.workers=1", "sweep.name=pg", f"sweep.storage={address}")
    assert first.code == 0, first.err
    assert shown.partition("://")[2] in first.err
    again = losskit("sweep", "--resume", "pg", "--storage", address, "sweep.n_trials=3")
    assert again.code == 0, again.err
    status = losskit("sweep", "--status", "pg", "--storage", address, "--json")
    assert status.json()["complete"] == 3
    assert_whole(Sweep.open("pg", open_storage(address)), 3)
    kept = b"".join(path.read_bytes() for path in project.rglob("*") if path.is_file())
    assert b"secret-word" not in kept and "secret-word" not in first.out + first.err + again.out + again.err + status.out, "a password is nobody's business"
    for wrong, error in ((postgres_server.url("postgres", "guess"), "refuses the login"), (postgres_server.url("nowhere"), "has no such database")):
        refused = losskit("sweep", "--status", "pg", "--storage", wrong)
        assert refused.code == 2 and error in refused.err and "guess" not in refused.err


def no_database(directory: Path) -> str:
    (directory / "notes.db").write_text("milk, bread, and what else is needed\n" * 9)
    return "notes.db"


def of_another_program(directory: Path) -> str:
    with sqlite3.connect(directory / "theirs.db") as database:
        database.execute("create table alembic_version (version_num text)")
    return "theirs.db"


def of_another_version(directory: Path) -> str:
    open_storage(f"sqlite:///{directory}/old.db")
    with sqlite3.connect(directory / "old.db") as database:
        database.execute("update alembic_version set version_num = 'v1.3.0.a'")
    return "old.db"


def there(directory: Path) -> set[str]:
    """What is in a directory, but for what SQLite keeps beside its files."""
    return {path.name for path in directory.iterdir() if not path.name.endswith(("-wal", "-shm"))}


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("redis://here", "unknown storage 'redis://here'"),
        ("grpc://127.0.0.1:1", "no storage answers at grpc://127.0.0.1:1"),
        ("postgresql://me:secret@127.0.0.1:1/sweeps", "cannot be reached"),
        ("sqlite:////nowhere/at/all/sweeps.db", "there is no directory /nowhere/at/all"),
        ("journal:/proc/sweeps.journal", "/proc/sweeps.journal cannot be used: "),
        (no_database, "is not an SQLite file"),
        (of_another_program, "belongs to another program"),
        (of_another_version, "has another version of Optuna's tables"),
    ],
)
def test_a_storage_that_cannot_be_used_is_an_error_before_anything_is_made(address: Any, error: str, losskit: Losskit, workdir: Path) -> None:
    if callable(address):
        address = address(workdir)
    before = there(workdir)
    for arguments in (["data=iris", "model=linear", LR, f"sweep.storage={address}"], ["--status", "any", "--storage", address]):
        result = losskit("sweep", *arguments)
        assert result.code == 2 and "Traceback" not in result.err and "secret" not in result.err, result.err
        assert error in result.err or (arguments[0] == "--status" and "there is no storage of sweeps" in result.err)
        assert there(workdir) == before


def test_looking_for_a_sweep_makes_no_storage(losskit: Losskit, workdir: Path) -> None:
    for arguments in (["--status", "any"], ["--status", "any", "--storage", "sweeps.db"], ["--resume", "any", "--storage", "journal:none.journal"]):
        result = losskit("sweep", *arguments)
        assert result.code == 2 and "there is no storage of sweeps" in result.err
    assert losskit("worker", "any", "--storage", "sweeps.db").code == 2
    assert not [*workdir.iterdir()]


def test_a_storage_that_goes_away_ends_the_sweep_in_words(begin: Any) -> None:
    server = begin("storage", "serve", "--port", "0")
    wait_until(lambda: "grpc://" in said(), within=30)
    address = "grpc://" + said().partition("grpc://")[2].split()[0]
    process = begin("sweep", *LONG, "sweep.n_trials=2", "sweep.workers=1", "sweep.name=cut", f"sweep.storage={address}")
    wait_until(at_work(opened("cut", address), 1))
    server.kill()
    server.wait()
    assert process.wait(90) == 1, said()
    assert "the storage failed" in said() and "Traceback" not in said()

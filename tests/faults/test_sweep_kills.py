"""Sweeps whose workers and whose own process are killed: nothing is lost and nothing is counted twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from sweeps.storage import open_storage
from sweeps.study import Sweep, runs_of
from tests.conftest import command

TRIALS, EPOCHS = 30, 10
# a run of 40 steps that is slow enough to be killed in the middle of
SLOW = '''
import time
import lightning


class Slow(lightning.Callback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        time.sleep(self.seconds)
'''
EXPERIMENT = [
    "data=iris", "model=linear", f"trainer.max_epochs={EPOCHS}", "trainer.accelerator=cpu", "data.batch_size=32", "callbacks.checkpoints.every_n_steps=5",
    "tracking.plots=false", "tracking.log_checkpoints=false", "tracking.capture_code=false", "allow_targets=[slow]",
    "+callbacks.slow={_target_: slow.Slow, seconds: 0.02}",
]  # fmt: skip


@pytest.fixture
def project(workdir: Path, store_template: Path) -> Path:
    (workdir / "slow.py").write_text(SLOW)
    shutil.copy(store_template, workdir / "mlflow.db")
    return workdir


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    log = (project / "sweep.log").open("a")
    return subprocess.Popen(command(*arguments), cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True)


def workers_of(sweep: Sweep) -> list[int]:
    """Process ids of the workers that have a trial, as they have signed it."""
    return [int(name.rpartition("-")[0].rpartition("-")[2]) for name in sweep.status().workers]


def opened(name: str, within: float = 60.0) -> Sweep:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if Path("sweeps.db").exists():
            storage = open_storage()
            if name in [study.study_name for study in storage.get_all_studies()]:
                return Sweep.open(name, storage)
        time.sleep(0.1)
    raise AssertionError(Path("sweep.log").read_text())


def wait_until(condition: Any, within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, Path("sweep.log").read_text()
        time.sleep(0.05)


def mlflow_runs() -> list[tuple[str, str, dict[str, str]]]:
    with sqlite3.connect("mlflow.db") as store:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in store.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        return [(run, status, tags[run]) for run, status in store.execute("select run_uuid, status from runs")]


def left_over(project: Path) -> list[int]:
    """Processes of this project's sweep that still run."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.cwd() == str(project) and "losskit" in " ".join(process.info["cmdline"] or []):
                found.append(process.info["pid"])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize(("pruner", "kills", "sweep_kills"), [("none", 8, 2), ("hyperband", 4, 1)])
def test_a_sweep_that_is_hunted_ends_with_exactly_its_trials(project: Path, pruner: str, kills: int, sweep_kills: int) -> None:
    """Workers are killed, and the sweep itself. Pruned trials end with the report that pruned them, whichever process reports."""
    arguments = ["sweep", *EXPERIMENT, "optimizer.lr=tag(log,interval(1e-3,1))", f"sweep.n_trials={TRIALS}", "sweep.workers=3", "sweep.name=hunted",
                 "sweep.retries=20", "sweep.grace_seconds=5", f"sweep.pruner={pruner}",
                 f"callbacks.slow.seconds={0.02 if pruner == 'none' else 0.04}"]  # fmt: skip
    draw = random.SystemRandom()
    process = start(project, *arguments)
    sweep = opened("hunted")
    killed = sweeps_killed = 0
    while killed < kills or sweeps_killed < sweep_kills:
        finished = sweep.status().finished
        assert finished < TRIALS, f"too quick: {killed} workers and {sweeps_killed} sweeps were killed"
        if sweeps_killed < sweep_kills and killed >= 4 * (sweeps_killed + 1):
            process.kill()
            process.wait()
            sweeps_killed += 1
            process = start(project, *arguments) if sweeps_killed == 1 else start(project, "sweep", "--resume", "hunted")
            continue
        wait_until(lambda: workers_of(sweep) or process.poll() is not None)  # noqa: B023  it is called at once
        assert process.poll() is None, (project / "sweep.log").read_text()
        time.sleep(draw.uniform(0.1, 0.6))
        alive = [pid for pid in workers_of(sweep) if psutil.pid_exists(pid)]
        if alive:
            os.kill(draw.choice(alive), signal.SIGKILL)
            killed += 1
            time.sleep(0.3)
    assert process.wait(180) == 0, (project / "sweep.log").read_text()

    trials = sweep.trials()
    states = Counter(t.state for t in trials)
    assert len(trials) == TRIALS and set(states) == ({TrialState.COMPLETE} if pruner == "none" else {TrialState.COMPLETE, TrialState.PRUNED})
    assert sorted(t.user_attrs["losskit:ticket"] for t in trials) == list(range(TRIALS))
    runs = mlflow_runs()
    (parent,) = [run for run, status, tags in runs if tags.get("losskit.kind") == "sweep" and status == "FINISHED"]
    children = {run: tags for run, status, tags in runs if tags.get("mlflow.parentRunId") == parent and status in ("FINISHED", "KILLED")}
    assert len(runs) == TRIALS + 1
    assert sorted(int(tags["losskit.trial"]) for tags in children.values()) == list(range(TRIALS)), "each trial has one run"
    assert {int(tags["losskit.trial"]): tags["losskit.trial_state"] for tags in children.values()} == {t.number: t.state.name for t in trials}
    assert {t.number: t.user_attrs["losskit:run_id"] for t in trials} == {int(tags["losskit.trial"]): run for run, tags in children.items()}
    with sqlite3.connect("mlflow.db") as store:
        logged = dict(store.execute("select run_uuid, value from latest_metrics where key = 'val/loss'").fetchall())
        validated = dict(store.execute("select run_uuid, count(distinct step) from metrics where key = 'val/acc' group by run_uuid").fetchall())
    best, complete = sweep.best()[0], [t.user_attrs["losskit:run_id"] for t in trials if t.state == TrialState.COMPLETE]
    assert best.values[0] == min(logged[run] for run in complete) == logged[best.user_attrs["losskit:run_id"]]
    for trial in trials:
        reports, run = sorted(trial.intermediate_values), trial.user_attrs["losskit:run_id"]
        assert reports == list(range(1, len(reports) + 1))
        if trial.state == TrialState.COMPLETE:
            assert len(reports) == EPOCHS
        else:
            assert validated[run] == len(reports) < EPOCHS, "it ended with the report that pruned it"
    steps = Counter()  # a run that was killed and gone on with has logged every step once
    with sqlite3.connect("mlflow.db") as store:
        for run, step in store.execute("select run_uuid, step from metrics where key = 'train/loss'"):
            steps[run, step] += 1
    assert set(steps.values()) == {1}
    wait_until(lambda: not left_over(project), within=30)


def test_a_trial_that_kills_its_worker_every_time_fails_and_the_sweep_goes_on(project: Path) -> None:
    (project / "slow.py").write_text(SLOW + "\n\nclass Deadly(Slow):\n    def on_train_start(self, trainer, module):\n        import os, signal\n\n"
                                     "        if self.seconds > 1:\n            os.kill(os.getpid(), signal.SIGKILL)\n        self.seconds = 0\n")  # fmt: skip
    deadly = [text.replace("slow.Slow, seconds: 0.02", "slow.Deadly, seconds: 0.5") for text in EXPERIMENT]
    done = subprocess.run(
        command("sweep", *deadly, "callbacks.slow.seconds=0.5,2,0.7", "sweep/sampler=grid", "sweep.workers=2", "sweep.name=deadly", "sweep.retries=1"),
        cwd=project, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    sweep = opened("deadly")
    assert [t.state.name for t in sweep.trials()] == ["COMPLETE", "FAIL", "COMPLETE"], done.stderr
    assert done.returncode == 0 and "trial 1 (callbacks.slow.seconds=2)" in done.stderr and "died; it was tried 2 times" in done.stderr


def test_ctrl_c_checkpoints_what_runs_and_resume_goes_on_in_the_same_runs(project: Path) -> None:
    settings = ("sweep.n_trials=4", "sweep.workers=2", "sweep.name=stopped", "callbacks.slow.seconds=0.05")
    process = start(project, "sweep", *EXPERIMENT, "optimizer.lr=tag(log,interval(1e-3,1))", *settings)
    sweep = opened("stopped")

    def trained() -> list[Path]:
        """Checkpoints of the trials that run: one that has none yet would be begun anew."""
        runs = [run for t in sweep.trials(TrialState.RUNNING) for run in runs_of(t).values()]
        return [path for run in runs if (path := Path(run["run_dir"]) / "checkpoints" / "last.ckpt").exists()]

    wait_until(lambda: len(trained()) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (project / "sweep.log").read_text()
    assert "losskit sweep --resume stopped" in (project / "sweep.log").read_text()
    begun = {t.number: runs_of(t)["None"]["run_dir"] for t in sweep.trials() if runs_of(t)}
    assert begun and not sweep.trials(TrialState.RUNNING)
    (parent,) = [status for _, status, tags in mlflow_runs() if tags.get("losskit.kind") == "sweep"]
    assert parent == "KILLED"
    wait_until(lambda: not left_over(project), within=30)
    resumed = subprocess.run(command("sweep", "--resume", "stopped"), cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert sweep.status().complete == 4
    assert begun.items() <= {t.number: runs_of(t)["None"]["run_dir"] for t in sweep.trials()}.items()
    assert len(mlflow_runs()) == 5 and {status for _, status, _ in mlflow_runs()} == {"FINISHED"}


def test_a_stopped_worker_that_comes_back_drops_what_it_found(project: Path) -> None:
    space = ["optimizer.lr=tag(log,interval(1e-3,1))", "sweep.n_trials=3"]
    process = start(project, "sweep", *EXPERIMENT, *space, "sweep.workers=2", "sweep.name=asleep", "sweep.grace_seconds=2")
    sweep = opened("asleep")
    wait_until(lambda: workers_of(sweep))
    time.sleep(0.3)
    asleep = workers_of(sweep)[0]
    os.kill(asleep, signal.SIGSTOP)
    wait_until(lambda: sweep.status().complete == 3, within=60)
    os.kill(asleep, signal.SIGCONT)
    assert process.wait(60) == 0, (project / "sweep.log").read_text()
    assert sweep.status().complete == 3 and len(sweep.trials()) == 3

"""Workers through Hydra's launcher plugins, with real ones: each runs a function that notes what it was told, one is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.launchers import LauncherError, check, is_launcher_override, launch, launcher_of
from tests.conftest import REPOSITORY

ENTRY = "losskit_test_worker:run"
WORKER = """
import os, signal, sys, time
from pathlib import Path

def run(told):
    Path(f"worker-{told['worker']}").write_text(f"{os.getpid()} {told['study']}")
    if told.get("together"):  # each waits for all the others: they do run at the same time
        deadline = time.time() + 60
        while len(list(Path(".").glob("worker-*"))) < told["together"]:
            assert time.time() < deadline, "the others did not start"
            time.sleep(0.02)
    if told["worker"] == told.get("raises"):
        raise RuntimeError("lost my way\\nentirely")
    if told["worker"] == told.get("exits"):
        sys.exit(3)
    if told["worker"] == told.get("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if told.get("slow"):
        time.sleep(told["slow"])
    Path(f"done-{told['worker']}").touch()
    return {"worker": told["worker"], "directory": os.getcwd(), "pid": os.getpid()}
"""


@pytest.fixture
def worker(tmp_path: Path) -> dict[str, Any]:
    """A worker that no installed package has: it is found through ``paths``."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "losskit_test_worker.py").write_text(WORKER)
    (tmp_path / "work 'of' mine, 100 %").mkdir()
    return {"entry": ENTRY, "directory": tmp_path / "work 'of' mine, 100 %", "paths": [tmp_path / "code"]}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_run_at_once_and_are_told_who_they_are(launcher: str, worker: dict[str, Any]) -> None:
    outcomes = launch([f"hydra/launcher={launcher}"], 2, argument={"study": "s", "together": 2}, **worker)
    assert [(o.worker, o.error) for o in outcomes] == [(0, None), (1, None)]
    assert all(o.host for o in outcomes)
    assert [o.result["worker"] for o in outcomes] == [0, 1]
    assert {o.result["directory"] for o in outcomes} == {str(worker["directory"])}
    assert os.getpid() not in {o.result["pid"] for o in outcomes}
    assert len({o.result["pid"] for o in outcomes}) == 2
    assert {path.name for path in worker["directory"].iterdir()} == {"worker-0", "worker-1", "done-0", "done-1", "launcher"}
    assert (worker["directory"] / "worker-0").read_text().endswith(" s")


def test_the_basic_launcher_runs_them_one_after_another(worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(worker["directory"])
    outcomes = launch(["hydra/launcher=basic"], 2, argument={"study": "s"}, **worker)
    assert [o.error for o in outcomes] == [None, None]
    assert {o.result["pid"] for o in outcomes} == {os.getpid()}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_worker_that_raises_is_an_outcome(launcher: str, worker: dict[str, Any]) -> None:
    first, second, third = launch([f"hydra/launcher={launcher}"], 3, argument={"study": "s", "raises": 0, "exits": 2}, **worker)
    assert first.error == "RuntimeError: lost my way entirely"
    assert "in run" in first.traceback
    assert (second.error, second.result["worker"]) == (None, 1)
    assert third.error == "SystemExit: 3"


def test_with_submitit_the_others_go_on_when_one_is_killed(worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # how long submitit waits for the result of one that has ended without
    outcomes = launch(["hydra/launcher=submitit_local"], 2, argument={"study": "s", "killed": 0, "slow": 3}, **worker)
    assert "UncompletedJobError" in str(outcomes[0].error)
    assert (outcomes[1].error, outcomes[1].result["worker"]) == (None, 1)  # it was waited for
    assert (worker["directory"] / "done-1").exists()


def test_with_joblib_a_killed_worker_ends_all_and_says_so(worker: dict[str, Any]) -> None:
    with pytest.raises(LauncherError, match=r"joblib ended all its workers because one of them was killed; the sweep can be resumed"):
        launch(["hydra/launcher=joblib"], 2, argument={"study": "s", "killed": 0, "slow": 1}, **worker)


def test_an_entry_point_that_is_not_there_is_an_outcome(worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(worker["directory"])
    for entry, said in (("losskit_nowhere:run", "No module named"), ("json:nothing", "no attribute 'nothing'"), ("json", "module:function, but got 'json'")):
        (outcome,) = launch(["hydra/launcher=basic"], 1, argument={"study": "s"}, **{**worker, "entry": entry})
        assert said in str(outcome.error)


def test_settings_reach_the_launcher(worker: dict[str, Any]) -> None:
    """One job at a time: the second starts when the first has ended."""
    outcomes = launch(["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], 2, argument={"study": "s"}, **worker)
    assert len({o.result["pid"] for o in outcomes}) == 1


def test_a_preset_of_the_users_own_is_a_launcher(worker: dict[str, Any], tmp_path: Path) -> None:
    preset = tmp_path / "conf" / "hydra" / "launcher" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("defaults: [submitit_local]\ntimeout_min: 5\n")
    assert check(["hydra/launcher=mine"], config_dirs=[tmp_path / "conf"]) == "mine"
    (outcome,) = launch(["hydra/launcher=mine"], 1, argument={"study": "s"}, config_dirs=[tmp_path / "conf"], **worker)
    assert outcome.error is None
    assert list((worker["directory"] / "launcher" / ".submitit").iterdir())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed here: pip install 'losskit[ray]'")
def test_workers_run_on_a_local_ray_cluster(worker: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own: ray keeps threads and handlers in the process that starts it. Its home is the test's: ray writes there."""
    code = f"""
import json, sys
from pathlib import Path
from sweeps.launchers import launch
where = dict(directory=Path({str(worker["directory"])!r}), paths={[str(path) for path in worker["paths"]]!r})
outcomes = launch(["hydra/launcher=ray"], 2, {ENTRY!r}, {{"study": "s", "together": 2, "raises": 1}}, **where)
import ray
print(json.dumps([[o.worker, o.error, o.result] for o in outcomes] + [ray.is_initialized()]))
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    first, second, still_there = json.loads(done.stdout.strip().splitlines()[-1])
    assert first[:2] == [0, None]
    assert first[2]["directory"] == str(worker["directory"])
    assert second == [1, "RuntimeError: lost my way entirely", None]
    assert still_there is False


# --------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("overrides", "jobs", "said"),
    [
        ([], 1, "chooses no launcher: add hydra/launcher=NAME"),
        (["hydra.launcher.n_jobs=2"], 1, "'hydra.launcher.n_jobs=2' chooses no launcher"),
        (["hydra/launcher=jobilb"], 1, r"there is no hydra/launcher=jobilb; did you mean 'joblib'\? \(installed: basic, "),
        (["hydra/launcher=slurm"], 1, r"there is no hydra/launcher=slurm; did you mean 'submitit_slurm'\?"),
        (["hydra/launcher=rq"], 1, "hydra/launcher=rq is not installed: pip install hydra-rq-launcher"),
        (["hydra/launcher=joblib", "hydra.launcher.njobs=2"], 1, r"joblib has no setting 'njobs'; did you mean 'n_jobs'\? \(it has: n_jobs, "),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=many"], 1, "Value 'many' of type 'str' could not be converted to Integer"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=["], 1, "hydra/launcher=joblib: "),
        (["hydra/launcher=joblib", "loss=focal"], 1, "'loss=focal' is not about the launcher"),
        (["hydra/launcher=joblib"], 0, "at least one worker must be launched, but got 0"),
    ],
)
def test_what_cannot_be_launched_says_why_before_anything_starts(overrides: list[str], jobs: int, said: str) -> None:
    with pytest.raises(LauncherError, match=said) as raised:
        check(overrides, jobs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_plugin_that_is_not_installed_is_named(launcher: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    monkeypatch.setattr(ConfigLoaderImpl, "get_group_options", lambda self, group: ["basic"])
    with pytest.raises(LauncherError, match=rf"hydra/launcher={launcher} is not installed: pip install 'losskit\[{extra}\]', or the package hydra-"):
        check([f"hydra/launcher={launcher}"])


def test_slurm_without_sbatch_is_an_error_in_words(worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LauncherError, match="hydra/launcher=submitit_slurm failed: "):
        launch(["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"], 1, argument={"study": "s"}, **worker)
    assert "hydra.launcher.timeout_min is not set" in caplog.text


def test_launcher_overrides_are_told_from_others() -> None:
    assert is_launcher_override("hydra/launcher=ray")
    assert is_launcher_override("+hydra.launcher.ray.init.num_cpus=2")
    assert not is_launcher_override("hydra.sweep.dir=x")
    assert not is_launcher_override("loss=focal")
    assert launcher_of(["loss=focal", "hydra/launcher=ray", "hydra/launcher=joblib"]) == "joblib"
    assert launcher_of(["hydra.launcher.n_jobs=2"]) is None


def test_ctrl_c_reaches_the_caller(worker: dict[str, Any], tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from sweeps.launchers import launch
where = dict(directory=Path({str(worker["directory"])!r}), paths={[str(path) for path in worker["paths"]]!r})
launch(["hydra/launcher=submitit_local"], 1, {ENTRY!r}, {{"study": "s", "slow": 30}}, **where)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors)
    deadline = time.monotonic() + 60
    while not (worker["directory"] / "worker-0").exists() or not (worker["directory"] / "worker-0").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    assert "KeyboardInterrupt" in (tmp_path / "errors").read_text()
    os.kill(int((worker["directory"] / "worker-0").read_text().split()[0]), signal.SIGKILL)  # submitit leaves its jobs to run on

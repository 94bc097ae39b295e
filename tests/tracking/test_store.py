"""Stores are read right and fast, and what cannot be found is explained."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking import RunInfo, Store
from losskit_cli.tracking.settings import sqlite_uri
from losskit_cli.tracking.store import BESIDE_STORE, ClientStore, mend_moved

Make = Callable[..., str]


@pytest.fixture
def client(project: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(sqlite_uri(project / "mlflow.db"))


@pytest.fixture
def make(client: Any, project: Path) -> Make:
    """Makes a run; its id."""
    experiment = client.create_experiment("losskit", artifact_location=str(project / "mlartifacts" / "losskit"), tags={BESIDE_STORE: "losskit"})

    def one(name: str, *, status: str = "FINISHED", params: dict[str, str] | None = None, tags: dict[str, str] | None = None, **metrics: Any) -> str:
        run = client.create_run(experiment, run_name=name, tags=tags or {}, start_time=int(time.time() * 1000))
        for key, value in (params or {}).items():
            client.log_param(run.info.run_id, key, value)
        for key, values in metrics.items():
            for step, value in enumerate(values if isinstance(values, list) else [values]):
                client.log_metric(run.info.run_id, key.replace("__", "/"), value, step=step, timestamp=1000 + step)
        client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    return one


class TestReading:
    def test_a_run(self, make: Make, project: Path) -> None:
        run_id = make("focal-1", params={"loss.gamma": "2.0"}, tags={"losskit.loss": "focal", "losskit.run_dir": str(project)}, val__loss=[0.5, 0.25])
        run = Store.open().get(run_id)
        assert (run.name, run.status, run.experiment) == ("focal-1", "FINISHED", "losskit")
        assert run.params == {"loss.gamma": "2.0"} and run.metrics == {"val/loss": 0.25} and run.steps == {"val/loss": 1}
        assert [(p.step, p.timestamp, p.value) for p in run.history("val/loss")] == [(0, 1.0, 0.5), (1, 1.001, 0.25)]
        assert run.run_dir == project and run.option("loss") == "focal" and run.duration is not None
        assert (run.value("loss"), run.value("loss.gamma"), run.value("nothing")) == ("focal", "2.0", None)
        assert Store.open().last_steps(run_id) == {"val/loss": 1}

    def test_nan_and_infinities_come_back_as_they_were_logged(self, make: Make) -> None:
        run = Store.open().get(make("odd", a=[1.0, math.nan], b=math.inf, c=-math.inf))
        assert math.isnan(run.metrics["a"]) and run.metrics["b"] == math.inf and run.metrics["c"] == -math.inf
        assert [p.value for p in run.history("b")] == [math.inf]

    def test_both_ways_of_reading_agree(self, make: Make, project: Path) -> None:
        for number in range(3):
            make(f"run-{number}", params={"a": str(number)}, tags={"losskit.loss": "focal"}, loss=[1.0, 2.0], bad=math.nan)
        quick, client = Store.open(), ClientStore(sqlite_uri(project / "mlflow.db"))
        both = [sorted(store.runs(), key=lambda run: run.name) for store in (quick, client)]
        for one, two in zip(*both, strict=True):
            fields = [{**vars(run), "metrics": repr(run.metrics), "store": None} for run in (one, two)]
            assert fields[0] == fields[1]
            assert one.history("loss") == two.history("loss")
        assert len(both[0]) == 3 and len(client.runs("losskit")) == 3 and client.runs("Default") == []

    def test_deleted_runs_are_gone(self, make: Make, client: Any) -> None:
        gone, there = make("gone"), make("there")
        client.delete_run(gone)
        assert [run.run_id for run in Store.open().runs()] == [there]
        with pytest.raises(UsageError, match="there is no run 'gone'"):
            Store.open().find("gone")

    def test_of_one_experiment(self, make: Make, client: Any) -> None:
        make("one")
        other = client.create_experiment("other")
        client.create_run(other, run_name="two")
        assert [run.name for run in Store.open().runs("other")] == ["two"]
        assert Store.open().last().name == "two" and Store.open().last("losskit").name == "one"

    def test_it_takes_no_mlflow(self, make: Make, project: Path) -> None:
        make("run", loss=1.0)
        code = (
            "import sys; from losskit_cli.tracking import Store; history = Store.open().find('run').history('loss');"
            "print(len(history), 'mlflow' in sys.modules)"
        )
        values, imported = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True).stdout.split()
        assert int(values) >= 1 and imported == "False"


class TestFinding:
    def test_by_id_its_beginning_and_name(self, make: Make) -> None:
        run_id = make("focal-digits-s3")
        store = Store.open()
        assert store.find(run_id).run_id == store.find(run_id[:8]).run_id == store.find("focal-digits-s3").run_id == run_id

    def test_a_name_that_looks_like_the_beginning_of_an_id(self, make: Make) -> None:
        other = make("other")
        named = make(other[:3])
        assert Store.open().find(other[:3]).run_id == named

    def test_several(self, make: Make) -> None:
        ids = [make("twin"), make("twin")]
        with pytest.raises(UsageError, match=r"'twin' names 2 runs: .*Use more of the id") as error:
            Store.open().find("twin")
        assert all(run_id[:12] in str(error.value) for run_id in ids)

    def test_none_names_the_nearest(self, make: Make, project: Path) -> None:
        make("focal-digits-s3"), make("dice-cells-s1")
        with pytest.raises(UsageError, match=r"there is no run 'focal-digit-s4' among the 2 of sqlite:///.*mlflow.db; the nearest names: focal-digits-s3"):
            Store.open().find("focal-digit-s4")
        with pytest.raises(UsageError, match="the latest: dice-cells-s1"):
            Store.open().find("zzz")

    def test_an_empty_store(self, project: Path) -> None:
        for ask in (lambda: Store.open().find("x"), lambda: Store.open().last()):
            with pytest.raises(UsageError, match=r"there are no runs in sqlite:///.*`losskit train` makes one"):
                ask()

    def test_no_store(self, workdir: Path) -> None:
        with pytest.raises(UsageError, match=rf"there is no store {workdir}/mlflow.db yet: run `losskit train`"):
            Store.open()

    def test_a_store_that_is_being_made(self, workdir: Path) -> None:
        sqlite3.connect(workdir / "mlflow.db").execute("CREATE TABLE runs (run_uuid)").connection.close()
        assert Store.open().runs() == []

    def test_a_file_that_is_no_store(self, workdir: Path) -> None:
        (workdir / "mlflow.db").write_text("x" * 1000)
        with pytest.raises(RunError, match="cannot read the store"):
            Store.open().runs()


class TestMoving:
    def artifact(self, run: RunInfo) -> None:
        folder = Path(run.artifact_uri)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("a: 1\n")

    def test_artifacts_and_run_directories_are_found_after_a_move(self, make: Make, project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        (project / "outputs" / "run").mkdir(parents=True)
        run_id = make("run", tags={"losskit.run_dir": str(project / "outputs" / "run")})
        self.artifact(Store.open().get(run_id))
        assert Store.open().get(run_id).artifact("config.yaml") == b"a: 1\n"
        moved = tmp_path_factory.mktemp("moved") / "here"
        shutil.move(project, moved)
        run = Store.open(cwd=moved).get(run_id)
        assert run.artifact_dir == moved / "mlartifacts" / "losskit" / run_id / "artifacts" and run.run_dir == moved / "outputs" / "run"
        assert run.artifact("config.yaml") == b"a: 1\n" and run.artifact("nothing") is None
        project.mkdir()  # pytest wants to take it away

    def test_mending_makes_a_copy_independent(self, make: Make, client: Any, project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        run_id = make("run")
        other = client.create_experiment("other", artifact_location="/somewhere/else")
        copy = tmp_path_factory.mktemp("copy")
        shutil.copy(project / "mlflow.db", copy)
        assert mend_moved(copy / "mlflow.db") == ["losskit"]
        assert mend_moved(copy / "mlflow.db") == []
        assert Store.open(cwd=copy).get(run_id).artifact_uri == f"{copy}/mlartifacts/losskit/{run_id}/artifacts"
        assert Store.open().get(run_id).artifact_uri.startswith(str(project))
        with sqlite3.connect(copy / "mlflow.db") as connection:
            assert connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = ?", (other,)).fetchone() == ("/somewhere/else",)

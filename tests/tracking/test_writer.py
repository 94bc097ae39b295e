"""The whole life of a run in a real MLflow store, whoever gets killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking import Store, TrackingSettings, run_sync, start_writer, sync, unsent_runs
from losskit_cli.tracking.journal import JOURNAL_FILE, Journal
from losskit_cli.tracking.process import find_run_dir, training
from losskit_cli.tracking.state import OFFSET_FILE, RUN_FILE, Progress, RunFile, unsent, write_json
from tests.tracking.conftest import Victim, begin, complete, expected, history, log_steps, only_run, wait_for

METADATA = {
    "name": "focal-s0",
    "tags": {"losskit.loss": "focal", "losskit.seed": 0},
    "params": {"loss.gamma": 2.0, "long": "x" * 7000, **{f"p{i}": i for i in range(150)}},
    "texts": {"config.yaml": "loss: focal\n"},
}


class TestLife:
    def test_everything_is_in_mlflow(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir, METADATA)
        log_steps(journal, range(1500))
        journal.metrics({"val/loss": float("nan"), "lr-SGD": 0.1, "odd key!": float("inf")}, 1500)
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints" / "last.ckpt").write_bytes(b"w" * 2_000_000)
        journal.artifact(run_dir / "checkpoints", "checkpoints", when="end")
        (run_dir / "note.txt").write_text("now")
        journal.artifact(run_dir / "note.txt", "notes")
        journal.end("FINISHED")
        outcome = writer.wait()
        assert outcome.ok and outcome.error is None and outcome.unsent == 0
        run = only_run(project)
        assert run.run_id == outcome.run_id and run.name == "focal-s0" and run.status == "FINISHED" and run.run_dir == run_dir
        assert run.params["loss.gamma"] == "2.0" and len(run.params["long"]) == 6000 and run.params["p149"] == "149"
        assert run.tags["losskit.loss"] == "focal" and run.tags["mlflow.source.name"] == "losskit" and "mlflow.user" in run.tags
        assert history(run) == expected(range(1500))
        assert len(history(run, "epoch")) == 1500
        assert str(run.metrics["val/loss"]) == "nan" and run.metrics["odd key_"] == float("inf")
        assert run.start is not None and run.end is not None and 0 < float(run.tags["losskit.duration_s"]) < 60
        assert run.artifact("config.yaml") == b"loss: focal\n" and run.artifact("notes/note.txt") == b"now"
        for picture in ("plots/lr.png", "plots/loss.png"):
            assert (run.artifact(picture) or b"").startswith(b"\x89PNG")
        assert b"torch==" in (run.artifact("environment/packages.txt") or b"")
        assert json.loads(run.artifact("environment/environment.json") or b"")["python"] == ".".join(map(str, sys.version_info[:3]))
        kept = run.artifact_dir / "checkpoints" / "last.ckpt"  # type: ignore[operator]
        assert kept.stat().st_size == 2_000_000 and kept.samefile(run_dir / "checkpoints" / "last.ckpt")  # linked: no second copy on disk

    def test_mlflows_own_client_sees_it_with_no_address_given(self, project: Path, run_dir: Path) -> None:
        outcome = complete(run_dir, range(10), METADATA)
        code = (
            "from mlflow import MlflowClient; c = MlflowClient(); e = c.get_experiment_by_name('losskit'); (r,) = c.search_runs([e.experiment_id]);"
            "print(r.info.run_id, r.info.status, r.data.metrics['train/loss'], [f.path for f in c.list_artifacts(r.info.run_id)], "
            "open(c.download_artifacts(r.info.run_id, 'config.yaml')).read())"
        )
        said = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True).stdout
        assert said == f"{outcome.run_id} FINISHED 0.1 ['config.yaml', 'environment', 'plots'] loss: focal\n\n"

    def test_code_is_kept(self, project: Path, run_dir: Path) -> None:
        for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", *command], cwd=project, check=True)
        (project / "mine.py").write_text("class Mine: ...\n")
        complete(run_dir, range(2))
        run = only_run(project)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, check=True, capture_output=True, text=True).stdout.strip()
        assert run.tags["mlflow.source.git.commit"] == commit and run.tags["losskit.git_dirty"] == "true"
        assert b"+class Mine: ..." in (run.artifact("code/diff.patch") or b"")

    def test_a_failure_and_its_reason(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir)
        log_steps(journal, range(3))
        journal.end("FAILED", "NonFiniteLossError: the training loss is not finite at step 3")
        assert writer.wait().ok
        run = only_run(project)
        assert run.status == "FAILED" and "step 3" in run.tags["losskit.error"] and history(run) == expected(range(3))

    def test_what_may_be_left_out_is(self, project: Path, run_dir: Path) -> None:
        run_dir.mkdir(parents=True)
        (run_dir / "last.ckpt").write_bytes(b"w")
        writer, journal = begin(run_dir, log_checkpoints=False, plots=False, capture_code=False)
        log_steps(journal, range(3))
        journal.artifact(run_dir / "last.ckpt", "checkpoints", when="end")
        journal.end("FINISHED")
        assert writer.wait().ok
        assert sorted(p.name for p in (only_run(project).artifact_dir or project).iterdir()) == ["environment"]

    def test_a_run_that_never_began_leaves_nothing(self, project: Path, run_dir: Path) -> None:
        writer = start_writer(run_dir, TrackingSettings())
        writer.abandon()
        assert writer.process.wait(30) == 0
        assert Store.open().runs() == [] and unsent_runs(project) == []

    def test_nor_does_one_whose_directory_is_taken_away(self, project: Path, run_dir: Path) -> None:
        writer = start_writer(run_dir, TrackingSettings())
        wait_for(lambda: (run_dir / "environment.json").exists())
        shutil.rmtree(run_dir)
        writer.abandon()
        assert writer.process.wait(30) == 0 and not run_dir.exists()

    def test_what_mlflow_refuses_does_not_hold_up_the_rest(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir)
        log_steps(journal, range(5))
        journal.metrics({"train/loss": 7.0}, 5, timestamp=-9.0)
        log_steps(journal, range(6, 10))
        journal.artifact(run_dir / "nothing.txt")
        journal.end("FINISHED")
        outcome = writer.wait()
        assert not outcome.ok and outcome.unsent == 0 and "train/loss" in str(outcome.error) and "nothing.txt: there is no such file" in str(outcome.error)
        assert history(only_run(project)) == expected(range(5)) + expected(range(6, 10)) and only_run(project).status == "FINISHED"

    def test_the_end_is_told_though_the_journal_is_full(self, project: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writer, journal = begin(run_dir)
        log_steps(journal, range(4))
        journal.flush()

        def full(fd: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            journal.end("FAILED", "the disk is full")
        assert writer.wait(last_word=journal.unwritten_end).ok
        run = only_run(project)
        assert (run.status, run.tags["losskit.error"]) == ("FAILED", "the disk is full") and history(run) == expected(range(4))


class TestKilledTraining:
    def test_the_run_is_killed_and_has_everything(self, project: Path, run_dir: Path, victim: Callable[[range], Victim]) -> None:
        victim(range(300)).kill()
        run = wait_for(lambda: next((r for r in Store.open().runs() if r.status == "KILLED"), None))
        assert history(run) == expected(range(300)) and run.artifact("plots/loss.png") is not None
        assert not training(run_dir) and wait_for(lambda: unsent(run_dir) == 0)

    def test_resuming_goes_on_with_the_same_run_and_history(self, project: Path, run_dir: Path, victim: Callable[[range], Victim]) -> None:
        victim(range(50)).kill()
        writer, journal = begin(run_dir)  # at once: the first writer may be at work still
        log_steps(journal, range(30, 80))  # from the checkpoint at step 30
        wait_for(lambda: any(r.status == "RUNNING" and r.tags.get("losskit.sessions") == "2" for r in Store.open().runs()))
        journal.end("FINISHED")
        outcome = writer.wait()
        run = only_run(project)
        assert outcome.ok and run.status == "FINISHED"
        assert history(run) == expected(range(80)) and len(history(run, "epoch")) == 80

    def test_a_killed_run_whose_resume_fails_early_stays_killed(self, project: Path, run_dir: Path, victim: Callable[[range], Victim]) -> None:
        victim(range(5)).kill()
        wait_for(lambda: Progress.load(run_dir).finished)
        writer = start_writer(run_dir, TrackingSettings())
        writer.abandon()
        assert writer.process.wait(30) == 0
        assert only_run(project).status == "KILLED"


class TestResume:
    def test_parameters_are_written_once_and_a_change_is_noted(self, project: Path, run_dir: Path) -> None:
        first = complete(run_dir, range(5), {"params": {"epochs": 5, "lr": 0.1}})
        second = complete(run_dir, range(10), {"params": {"epochs": 10, "lr": 0.1, "new": 1}})
        assert first.run_id == second.run_id
        run = only_run(project)
        with sqlite3.connect(project / "mlflow.db") as store:
            assert dict(store.execute("SELECT key, value FROM params")) == {"epochs": "5", "lr": "0.1", "new": "1"}
        assert run.params == {"epochs": "10", "lr": "0.1", "new": "1"}  # as it was trained last
        assert json.loads(run.tags["losskit.param_drift"]) == {"epochs": ["5", "10"]}
        assert history(run) == expected(range(10)) and run.status == "FINISHED"

    def test_an_error_of_before_is_gone(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir)
        journal.end("FAILED", "it broke")
        assert writer.wait().ok and only_run(project).tags["losskit.error"] == "it broke"
        assert complete(run_dir, range(3)).ok
        assert only_run(project).status == "FINISHED" and "losskit.error" not in only_run(project).tags

    def test_on_another_machine(self, project: Path, run_dir: Path) -> None:
        run_id = complete(run_dir, range(10)).run_id
        assert run_id is not None
        elsewhere = project / "copied"
        writer = start_writer(elsewhere, TrackingSettings(), run_id=run_id)
        journal = Journal(elsewhere, already_logged=Store.open().last_steps(run_id))
        journal.start({"name": "run"})
        log_steps(journal, range(5, 15))
        journal.end("FINISHED")
        assert writer.wait().run_id == run_id
        assert history(only_run(project)) == expected(range(15)) and only_run(project).run_dir == elsewhere

    def test_in_a_folder_that_has_moved(self, project: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        complete(run_dir, range(5), METADATA)
        moved = project.with_name("moved")
        project.rename(moved)
        project.mkdir()
        monkeypatch.chdir(moved)
        assert complete(moved / "outputs" / "run", range(10)).ok
        run = only_run(moved)
        assert history(run) == expected(range(10)) and run.artifact_uri.startswith(str(moved)) and run.artifact("config.yaml") == b"loss: focal\n"
        assert list(project.iterdir()) == []


class TestKilledWriter:
    def test_another_one_takes_over_at_the_end(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir)
        log_steps(journal, range(20))
        wait_for(lambda: Progress.load(run_dir).offset > 0)
        writer.process.kill()
        writer.process.wait()
        log_steps(journal, range(20, 40))
        journal.end("FINISHED")
        outcome = writer.wait()
        assert outcome.ok and only_run(project).status == "FINISHED" and history(only_run(project)) == expected(range(40))

    def test_sync_sends_the_rest_and_nothing_twice(self, project: Path, run_dir: Path, victim: Callable[[range], Victim]) -> None:
        running = victim(range(100))
        run = wait_for(lambda: next((r for r in Store.open().runs() if len(history(r)) == 100), None))
        os.kill(running.writer_pid, signal.SIGKILL)
        Progress(0, False).save(run_dir)  # as if it had been killed before it could note how far it was
        assert sync(run_dir).run_id == run.run_id
        assert only_run(project).status == "RUNNING"  # training goes on: that is not for sync to say
        running.kill()
        assert [d for d, _ in run_sync([])] == [run_dir]
        assert only_run(project).status == "KILLED" and history(only_run(project)) == expected(range(100))
        with sqlite3.connect(project / "mlflow.db") as store:
            assert store.execute("SELECT count(*) FROM metrics").fetchone() == (200,)
        assert run_sync([]) == [] and sync(run_dir).ok  # there is nothing left to do

    def test_killed_between_making_the_run_and_noting_it(self, project: Path, run_dir: Path) -> None:
        run_id = complete(run_dir, range(5)).run_id
        state = RunFile.load(run_dir)
        state.run_id, state.creating = None, True
        state.save(run_dir)
        (run_dir / OFFSET_FILE).unlink()
        outcome = sync(run_dir)
        assert outcome.ok and outcome.run_id == run_id and history(only_run(project)) == expected(range(5))

    def test_killed_while_it_makes_the_store(self, workdir: Path, run_dir: Path) -> None:
        writer = start_writer(run_dir, TrackingSettings())
        wait_for(lambda: (workdir / "mlflow.db.new").exists())
        writer.process.kill()
        writer.process.wait()
        assert not (workdir / "mlflow.db").exists()
        assert complete(run_dir, range(5)).ok and history(only_run(workdir)) == expected(range(5))


class TestStores:
    def test_two_first_runs_at_once_make_one_store(self, workdir: Path) -> None:
        both = [begin(workdir / "outputs" / name, {"name": name}) for name in ("one", "two")]
        for _, journal in both:
            log_steps(journal, range(10))
            journal.end("FINISHED")
        assert all(writer.wait().ok for writer, _ in both)
        runs = Store.open().runs()
        assert sorted(run.name for run in runs) == ["one", "two"] and all(history(run) == expected(range(10)) for run in runs)
        assert not (workdir / "mlflow.db.new").exists()

    def test_a_locked_store_is_waited_for(self, project: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with contextlib.closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as other:
            writer, journal = begin(run_dir)
            other.execute("BEGIN EXCLUSIVE")
            log_steps(journal, range(20))
            journal.end("FINISHED")
            time.sleep(4)
            assert writer.process.poll() is None
            other.execute("ROLLBACK")
        assert writer.wait().ok and history(only_run(project)) == expected(range(20))

    @pytest.mark.parametrize("name", ["my runs ü", "50%20#1"])
    def test_paths_with_spaces_and_odd_letters(self, name: str, workdir: Path, store_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        odd = workdir / name
        odd.mkdir()
        shutil.copy(store_template, odd / "mlflow.db")
        monkeypatch.chdir(odd)
        assert complete(odd / "outputs" / "a b", range(3), METADATA).ok
        run = only_run(odd)
        assert history(run) == expected(range(3)) and run.artifact("config.yaml") == b"loss: focal\n"
        assert run.artifact_dir == odd / "mlartifacts" / "losskit" / run.run_id / "artifacts"

    def test_a_store_of_another_mlflow_is_explained_and_the_journal_kept(self, project: Path, run_dir: Path) -> None:
        with sqlite3.connect(project / "mlflow.db") as store:
            (version,) = store.execute("SELECT version_num FROM alembic_version").fetchone()
            store.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        outcome = complete(run_dir, range(5))
        assert not outcome.ok and outcome.unsent > 0 and "mlflow db upgrade" in str(outcome.error)
        with sqlite3.connect(project / "mlflow.db") as store:
            store.execute("UPDATE alembic_version SET version_num = ?", (version,))
        assert sync(run_dir).ok and history(only_run(project)) == expected(range(5))

    def test_artifacts_that_cannot_be_stored_are_kept_for_later(self, project: Path, run_dir: Path) -> None:
        (project / "mlartifacts").write_text("a file where the folder should be")
        outcome = complete(run_dir, range(5), METADATA)
        assert not outcome.ok and "config.yaml" in json.dumps(RunFile.load(run_dir).unstored) and only_run(project).status == "FINISHED"
        (project / "mlartifacts").unlink()
        assert sync(run_dir).ok and only_run(project).artifact("config.yaml") == b"loss: focal\n" and RunFile.load(run_dir).unstored == []

    def test_a_deleted_experiment_is_explained(self, project: Path, run_dir: Path) -> None:
        with sqlite3.connect(project / "mlflow.db") as store:
            store.execute("INSERT INTO experiments (name, artifact_location, lifecycle_stage, workspace) VALUES ('gone', 'x', 'deleted', 'default')")
        outcome = complete(run_dir, range(2), experiment="gone")
        assert not outcome.ok and "the MLflow experiment 'gone' has been deleted" in str(outcome.error)


class TestSync:
    def test_only_where_there_is_a_run(self, project: Path, run_dir: Path) -> None:
        with pytest.raises(UsageError, match=r"is no run directory: it has no tracking\.jsonl"):
            sync(project)
        with pytest.raises(UsageError, match="there is no run 'nobody': neither a run directory nor a run below"):
            run_sync(["nobody"])

    def test_a_run_stays_in_its_store(self, project: Path, run_dir: Path) -> None:
        complete(run_dir, range(2))
        with pytest.raises(UsageError, match=r"is in sqlite:///.*mlflow\.db already .*cannot be sent to"):
            sync(run_dir, uri="sqlite:///other.db")

    def test_found_by_path_name_or_id(self, project: Path, run_dir: Path) -> None:
        run_dir.mkdir(parents=True)
        (run_dir / JOURNAL_FILE).write_text("")
        write_json(run_dir / RUN_FILE, {"run_id": "abcdef0123456789"})
        for name in (str(run_dir), "run", "abcdef"):
            assert find_run_dir(name, project / "outputs") == run_dir

    def test_not_beside_the_runs_own_writer(self, project: Path, run_dir: Path) -> None:
        writer, journal = begin(run_dir)
        wait_for(lambda: writer.run_id)
        log_steps(journal, range(3))
        with pytest.raises(RunError, match="is still at work"):
            sync(run_dir)
        journal.end("FINISHED")
        assert writer.wait().ok

"""Runs after they were made: going on with them, running them again, comparing, testing and predicting with them, all on a real store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest
from filelock import FileLock

from losskit_cli.compare import compare_runs, to_table
from losskit_cli.compose import Composer
from losskit_cli.errors import UsageError
from losskit_cli.overlay import overlay, relocated
from losskit_cli.progress import fitting
from losskit_cli.rundir import SPEC, RunSpec
from losskit_cli.runs import find_run
from losskit_cli.tracking.journal import LIVE_LOCK
from losskit_cli.tracking.store import Store
from tests.conftest import Result, command, invoke, trained
from tests.tracking.memory import MemoryStore

TINY = ["model=mlp", "model.hidden=[16]", "data.batch_size=256", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
PLAIN = [*TINY, "name=plain", "seed=1"]
VARIED = [*TINY, "loss=focal", "loss.gamma=3", "optimizer=adamw", "schedule=wsd", "regularizer=[l1,l2]", "data.label_noise=0.2", "seed=2"]
SUMMARY = ["run_id", "run_name", "status", "steps", "duration_s", "metrics", "best_checkpoint", "last_checkpoint", "run_dir"]


class Project:
    """A directory with a git repository, a store and two finished runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.git("init", "-q")
        (directory / ".gitignore").write_text("outputs\nmlflow.db*\nmlartifacts\n")
        (directory / "mine.py").write_text("x = 1\n")
        self.git("add", ".")
        self.git("-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", "first")
        self.plain = trained(*PLAIN)
        (directory / "mine.py").write_text("x = 2\n")
        self.varied = trained(*VARIED)

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.directory, check=True, capture_output=True)

    def count(self) -> int:
        return len(Store.open(cwd=self.directory).names())

    def spec_file(self, run: dict[str, Any]) -> bytes:
        return (Path(run["run_dir"]) / SPEC).read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Project]:
    directory = tmp_path_factory.mktemp("project")
    shutil.copy(store_template, directory / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Project(directory)


@pytest.fixture
def project(made: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The two runs, with their directory as the working directory. What a test adds to them stays for the next."""
    monkeypatch.chdir(made.directory)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


@pytest.fixture
def stored(workdir: Path, store_template: Path) -> Path:
    """An empty directory with an empty store."""
    shutil.copy(store_template, workdir / "mlflow.db")
    return workdir


def parts(table: str, width: int) -> tuple[str, list[str], str]:
    """A table's heading, its rows, and the notes below it; every line is at most ``width`` characters long."""
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─", " "})
    end = next((i for i, line in enumerate(lines) if line.startswith(("also different", "no room for"))), len(lines))
    return " ".join(lines[:rule]), lines[rule + 1 : end], " ".join(line.strip() for line in lines[end:])


def history(directory: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    with contextlib.closing(sqlite3.connect(directory / "mlflow.db")) as store:
        return store.execute("SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step", (run_id, key)).fetchall()


class TestSummary:
    def test_json_is_one_object_with_these_keys_and_nothing_else_on_stdout(self, project: Project) -> None:
        assert list(project.plain) == SUMMARY
        assert (project.plain["run_name"], project.plain["status"], project.plain["steps"]) == ("plain", "FINISHED", 10)
        assert {"train/loss", "val/loss", "val/acc", "test/loss", "test/acc"} <= set(project.plain["metrics"])
        for key in ("best_checkpoint", "last_checkpoint", "run_dir"):
            assert Path(project.plain[key]).is_absolute() and Path(project.plain[key]).exists()
        assert re.fullmatch("[0-9a-f]{32}", project.plain["run_id"])
        assert re.fullmatch("focal-digits-s2-[a-z]+-[a-z]+", project.varied["run_name"])

    def test_a_table_on_stdout_and_quiet_nothing(self, stored: Path, losskit: Callable[..., Result]) -> None:
        shown = losskit("train", *TINY, "tracking=none", "trainer.max_epochs=1")
        assert shown.code == 0, shown.err
        assert re.search(r"^cross_entropy-digits-s0-\S+  FINISHED  5 steps in ", shown.out)
        assert re.search(r"│ acc +│ [\d.]+ │ [\d.]+ │ [\d.]+ │", shown.out)
        assert "best checkpoint  outputs/" in shown.out and "losskit compare" not in shown.out  # it is in no store
        quiet = losskit("train", *TINY, "tracking=none", "trainer.max_epochs=1", "-q")
        assert (quiet.code, quiet.out, quiet.err) == (0, "", "")

    def test_multirun_shows_what_was_varied(self, workdir: Path, losskit: Callable[..., Result]) -> None:
        arguments = ["train", "-m", *TINY, "tracking=none", "trainer.max_epochs=1", "regularizer=[l1],[l2]"]
        shown = losskit(*arguments)
        assert shown.code == 0, shown.err
        heading, _, *rows = shown.out.splitlines()  # brackets are no markup
        assert heading.split()[:3] == ["name", "regularizer", "val/loss"] and [row.split()[1] for row in rows] == ["[l1]", "[l2]"]
        found = losskit(*arguments, "--json").json()
        assert [run["overrides"][-1] for run in found] == ["regularizer=[l1]", "regularizer=[l2]"] and set(found[0]) == {"overrides", *SUMMARY}

    def test_values_beside_the_progress_bar_fit_its_line(self) -> None:
        values = ["train/loss 0.5000", "val/loss 0.6000", "90 steps/s", "val/acc 0.9000"]
        assert fitting(values, 100) == "  ".join(values)
        assert fitting(values, 50) == "train/loss 0.5000  val/loss 0.6000  90 steps/s"
        assert fitting(values, 20) == "train/loss 0.5000"
        assert fitting(values, 5) == ""


class TestFinding:
    def test_by_id_its_beginning_the_name_its_end_and_the_directory(self, project: Project) -> None:
        run = project.varied
        end = "-".join(run["run_name"].split("-")[-2:])
        for reference in (run["run_id"], run["run_id"][:9], run["run_name"], end, f"…{end}", run["run_dir"], os.path.relpath(run["run_dir"])):
            found = find_run(reference)
            assert (found.run_id, found.status, str(found.run_dir)) == (run["run_id"], "FINISHED", run["run_dir"]), reference

    def test_what_is_not_there_is_answered_with_the_nearest_and_several_with_all(self, project: Project) -> None:
        with pytest.raises(UsageError, match=r"there is no run 'plane' .*plain"):
            find_run("plane")
        with pytest.raises(UsageError, match="there is no run"):
            find_run("lain")  # not a word of a name
        again = [Path("elsewhere", day, "14-05-09-twin").absolute() for day in ("2026-01-30", "2026-01-31")]
        for run_dir in again:
            run_dir.mkdir(parents=True)
            RunSpec.load(Path(project.plain["run_dir"])).save(run_dir)
        with pytest.raises(UsageError, match=r"'twin' names 2 runs: .*Use the directory"):
            find_run("twin", "elsewhere")
        assert find_run(str(again[1])).run_dir == again[1]

    def test_a_run_without_tracking_is_found_by_its_name(self, workdir: Path, losskit: Callable[..., Result]) -> None:
        run = losskit("train", *TINY, "tracking=none", "trainer.max_epochs=1", "name=untracked", "--json").json()
        assert run["run_id"] is None
        assert str(find_run("untracked").run_dir) == run["run_dir"] == str(find_run(None).run_dir)
        found = losskit("eval", "untracked", "--json")
        assert found.json()["metrics"]["test/loss"] == pytest.approx(run["metrics"]["test/loss"])

    def test_the_last_is_the_one_started_last_not_the_one_touched_last(self, workdir: Path) -> None:
        spec = RunSpec("x", {}, {}, [], [])
        for name in ("09-00-00-early", "10-00-00-late"):
            run_dir = workdir / "outputs" / "2026-01-31" / name
            run_dir.mkdir(parents=True)
            spec.save(run_dir)
        spec.save(workdir / "outputs" / "2026-01-31" / "09-00-00-early")  # as resuming it would
        assert find_run(None).name == "late"


class TestResume:
    def test_a_finished_run_trains_longer_in_the_same_mlflow_run(self, stored: Path, losskit: Callable[..., Result]) -> None:
        run = losskit("train", *TINY, "name=long", "--json").json()
        before = history(stored, run["run_id"], "val/loss")
        resumed = losskit("resume", "--last", "trainer.max_epochs=4", "--json")
        assert resumed.code == 0, resumed.err
        assert "schedule=cosine now spans the whole longer run" in resumed.err
        found = resumed.json()
        assert (found["run_id"], found["run_name"], found["status"], found["steps"]) == (run["run_id"], "long", "FINISHED", 20)
        after = history(stored, run["run_id"], "val/loss")
        assert after[: len(before)] == before and len(after) == 2 * len(before)
        info = Store.open().find("long")
        assert info.status == "FINISHED" and info.value("trainer.max_epochs") == "4" and len(Store.open().names()) == 1
        assert RunSpec.load(Path(run["run_dir"])).overrides[-1] == "trainer.max_epochs=4"

        finished = losskit("resume", "long")
        assert finished.code == 2 and "long is finished. To train it longer: losskit resume long trainer.max_epochs=…" in finished.err
        for fewer in ("trainer.max_epochs=4", "trainer.max_epochs=2"):
            assert losskit("resume", "long", fewer).code == 2
        assert Store.open().find("long").status == "FINISHED"

    @pytest.mark.parametrize("override", ["loss=focal", "optimizer.lr=0.5", "seed=7", "data.batch_size=8", "+model.depth=3"])
    def test_another_experiment_is_refused_and_the_run_stays_what_it_was(self, project: Project, override: str) -> None:
        before = project.spec_file(project.plain)
        result = invoke("resume", "plain", override, "trainer.max_epochs=9")
        assert result.code == 2
        key = override.split("=")[0].lstrip("+")
        assert f"{key} cannot change in the middle of a run" in result.err and f"losskit rerun plain {override}" in result.err
        assert project.spec_file(project.plain) == before

    @pytest.mark.parametrize("override", ["trainer.max_epochs=many", "trainer.precision=7", "trainer.max_epoch=9", "data.path=there"])
    def test_what_cannot_be_leaves_the_run_as_it_was(self, project: Project, override: str) -> None:
        before = project.spec_file(project.plain)
        assert invoke("resume", "plain", override, "trainer.max_epochs=9" if "max_epochs=" not in override else "trainer.max_steps=99").code == 2
        assert project.spec_file(project.plain) == before
        assert find_run("plain").status == "FINISHED"

    def test_which_run_must_be_said(self, project: Project) -> None:
        for arguments in ((), ("plain", "--last")):
            result = invoke("resume", *arguments)
            assert result.code == 2 and "losskit resume RUN, or --last" in result.err

    def test_a_run_that_is_still_training_is_left_alone(self, project: Project) -> None:
        with FileLock(Path(project.plain["run_dir"]) / LIVE_LOCK):
            result = invoke("resume", "plain", "trainer.max_epochs=9")
        assert result.code == 2 and "plain is still running" in result.err


class TestRerun:
    def test_the_same_again_gives_the_same_numbers_in_a_run_of_its_own(self, project: Project) -> None:
        before = project.count()
        again = invoke("rerun", "plain", "--json")
        assert again.code == 0, again.err
        found = again.json()
        assert found["metrics"] == project.plain["metrics"]
        assert found["run_id"] != project.plain["run_id"] and project.count() == before + 1
        assert re.fullmatch("cross_entropy-digits-s1-[a-z]+-[a-z]+", found["run_name"])  # a name is one run's

    def test_changes_are_shown_and_a_dry_run_records_nothing(self, project: Project) -> None:
        before = project.count()
        result = invoke("rerun", "plain", "loss=focal", "regularizer=[l1]", "seed=5", "name=other", "--dry-run")
        assert result.code == 0, result.err
        lines = result.out.splitlines()
        assert {"loss: cross_entropy → focal", "regularizer: [l1] (new)", "seed: 1 → 5", "loss.gamma: 2.0 (new)", "name: plain → other"} <= set(lines)
        assert not any("_target_" in line for line in lines)
        assert invoke("rerun", "plain", "--dry-run").out == "the same config as plain\n"
        assert project.count() == before

    def test_dry_run_as_json(self, project: Project) -> None:
        name = project.varied["run_name"]
        found = invoke("rerun", name, "loss=poly1", "regularizer=[l2]", "--dry-run", "--json").json()
        assert found["choices"] == {"loss": ["focal", "poly1"], "regularizer": ["[l1,l2]", "[l2]"]}
        assert found["config"]["loss.gamma"] == [3, None] and found["config"]["loss.epsilon"] == [None, 1.0]
        assert found["left_out"] == ["loss.gamma=3"] and found["drift"] == {}

    def test_and_then_it_runs(self, project: Project) -> None:
        result = invoke("rerun", project.varied["run_name"], "loss=poly1", "trainer.max_epochs=1", "name=changed")
        assert result.code == 0, result.err
        assert "loss: focal → poly1" in result.err and "left out: loss.gamma=3, which was set for loss=focal" in result.err
        assert "changed  FINISHED  5 steps" in result.out and f"losskit diff {project.varied['run_name']} changed" in result.out
        spec = RunSpec.load(find_run("changed").run_dir)
        assert spec.choices["loss"] == "poly1" and spec.config["name"] == "changed" and "loss=focal" not in spec.overrides
        twice = overlay(spec, ["trainer.max_epochs=3"]).spec.overrides  # a rerun of a rerun
        assert [text for text in twice if text.startswith(("loss=", "trainer.max_epochs="))] == ["loss=poly1", "trainer.max_epochs=3"]

    def test_a_mistake_is_told_before_anything_is_made(self, project: Project) -> None:
        before = project.count()
        for override, message in (("loss=focl", "did you mean 'focal'"), ("optimizer.lrr=1", "did you mean 'lr'"), ("loss", "is not an override|cannot read")):
            result = invoke("rerun", "plain", override)
            assert result.code == 2 and re.search(message, result.err), result.err
        assert project.count() == before


class TestOverlay:
    """What a saved run becomes under new overrides, while the config tree moves on."""

    @pytest.fixture
    def conf(self, workdir: Path) -> Path:
        conf = workdir / "conf"
        for group in ("loss", "optimizer"):
            (conf / group).mkdir(parents=True)
        (conf / "loss" / "mine.yaml").write_text("# Mine (me)\n_target_: components.losses.FocalLoss\ngamma: 2.0\n")
        (conf / "optimizer" / "mine.yaml").write_text("# Mine (me)\n_target_: torch.optim.SGD\nlr: 0.1\nmomentum: 0.9\n")
        return conf

    @pytest.fixture
    def saved(self, conf: Path) -> RunSpec:
        composed = Composer([conf]).compose(["loss=mine", "optimizer=mine", "regularizer=[l1,l2]", "regularizer.l2.weight=0.5", "seed=3"])
        return RunSpec("saved", composed.resolved(), composed.choices, composed.overrides, [str(conf)])

    @pytest.fixture
    def drifted(self, saved: RunSpec, conf: Path) -> RunSpec:
        """The run was saved, and then its option files were edited."""
        (conf / "loss" / "mine.yaml").write_text("# Mine (me)\n_target_: components.losses.FocalLoss\ngamma: 5.0\n")
        (conf / "optimizer" / "mine.yaml").write_text("# Mine (me)\n_target_: torch.optim.AdamW\nlr: 0.001\nweight_decay: 0.1\n")
        return saved

    def test_nothing_changes_by_itself(self, drifted: RunSpec) -> None:
        laid = overlay(drifted, [])
        assert laid.spec == drifted
        was, now = laid.drift
        assert (was["loss"]["gamma"], now["loss"]["gamma"]) == (2.0, 5.0)

    def test_a_change_leaves_everything_else_as_it_was_saved(self, drifted: RunSpec) -> None:
        config = overlay(drifted, ["seed=4"]).spec.config
        assert config["seed"] == config["data"]["seed"] == 4
        assert config | {"seed": 3, "data": drifted.config["data"]} == drifted.config

    def test_a_value_for_a_component_that_only_the_tree_has_replaced(self, drifted: RunSpec) -> None:
        config = overlay(drifted, ["optimizer.lr=0.7"]).spec.config
        assert config["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.7, "momentum": 0.9}

    def test_what_is_asked_for_counts_though_the_tree_says_the_same_today(self, drifted: RunSpec) -> None:
        assert overlay(drifted, ["loss.gamma=5.0"]).spec.config["loss"]["gamma"] == 5.0
        assert drifted.config["loss"]["gamma"] == 2.0  # the saved one is left alone

    def test_another_choice_brings_its_own_values_and_leaves_the_old_ones_out(self, saved: RunSpec) -> None:
        laid = overlay(replace(saved, overrides=[*saved.overrides, "loss.gamma=4"]), ["loss=poly1"])
        assert laid.spec.config["loss"]["epsilon"] == 1.0 and "gamma" not in laid.spec.config["loss"]
        assert laid.spec.choices["loss"] == "poly1" and laid.left_out == (("loss.gamma=4", "loss=mine"),)
        assert "loss.gamma=4" not in laid.spec.overrides

    def test_the_same_choice_again_keeps_its_values(self, saved: RunSpec) -> None:
        given = replace(saved, overrides=[*saved.overrides, "optimizer.lr=0.3"], config=overlay(saved, ["optimizer.lr=0.3"]).spec.config)
        assert overlay(given, ["optimizer=mine"]).spec.config["optimizer"]["lr"] == 0.3

    def test_lists_of_options(self, saved: RunSpec) -> None:
        laid = overlay(saved, ["regularizer=[l1,confidence_penalty]"])
        assert list(laid.spec.config["regularizer"]) == ["l1", "confidence_penalty"] == laid.spec.choices["regularizer"]
        assert laid.left_out == (("regularizer.l2.weight=0.5", "regularizer=[l2]"),)
        kept = overlay(saved, ["regularizer=[l2]"])
        assert kept.spec.config["regularizer"]["l2"]["weight"] == 0.5 and not kept.left_out
        assert overlay(saved, ["regularizer=[]"]).spec.config["regularizer"] == {}

    def test_an_added_loss_and_a_deletion(self, saved: RunSpec) -> None:
        added = overlay(saved, ["+loss@auxiliary.poly=poly1", "+auxiliary.poly.weight=0.2"]).spec
        assert added.config["auxiliary"]["poly"]["weight"] == 0.2
        assert overlay(added, ["auxiliary.poly.weight=0.4"]).spec.config["auxiliary"]["poly"]["weight"] == 0.4
        assert "l1" not in overlay(saved, ["~regularizer.l1"]).spec.config["regularizer"]

    def test_a_choice_that_changes_others_carries_over_what_has_a_place(self, conf: Path) -> None:
        composed = Composer().compose(["data=csv", "data.path=a.csv", "data.target=y", 'data.separator=";"', "model.hidden=[8]"])
        saved = RunSpec("table", composed.resolved(), composed.choices, composed.overrides, [])
        laid = overlay(saved, ["data=parquet", "data.path=a.parquet"])
        assert laid.spec.config["data"]["target"] == "y" and laid.spec.config["data"]["path"] == "a.parquet"
        assert laid.left_out == (('data.separator=";"', "data=csv"),) and laid.spec.config["model"]["hidden"] == [8]
        pictures = overlay(saved, ["data=digits"])  # which chooses another model
        assert {text for text, _ in pictures.left_out} == {"data.path=a.csv", "data.target=y", 'data.separator=";"', "model.hidden=[8]"}

    def test_an_option_file_that_is_gone(self, saved: RunSpec, conf: Path) -> None:
        (conf / "loss" / "mine.yaml").unlink()
        assert overlay(saved, []).spec == saved
        with pytest.raises(UsageError, match=r"saved cannot be changed: .*there is no loss=mine.*it can be run again as it was saved"):
            overlay(saved, ["seed=4"])

    def test_config_directories_that_moved_with_the_project(self, saved: RunSpec, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        moved = conf.parent.parent / f"{conf.parent.name}-moved"
        moved.mkdir()
        conf.rename(moved / "conf")
        monkeypatch.chdir(moved)
        assert relocated(saved.config_dirs) == [moved / "conf"]
        laid = overlay(saved, ["loss.gamma=1"])
        assert laid.spec.config["loss"]["gamma"] == 1 and laid.spec.config_dirs == [str(moved / "conf")]


class TestEval:
    def test_its_own_test_split_gives_its_own_figures(self, project: Project) -> None:
        found = invoke("eval", "plain", "--json").json()
        assert list(found) == ["run_id", "run_name", "checkpoint", "split", "samples", "metrics"]
        assert found["metrics"] == {k: pytest.approx(v) for k, v in project.plain["metrics"].items() if k.startswith("test/")}
        assert (found["run_id"], found["checkpoint"], found["samples"]) == (project.plain["run_id"], project.plain["best_checkpoint"], 270)

    def test_other_splits_and_checkpoints(self, project: Project) -> None:
        sizes = {split: invoke("eval", "plain", "--split", split, "--json").json()["samples"] for split in ("train", "val", "all")}
        assert sizes["all"] == 1797 == sizes["train"] + sizes["val"] + 270
        validated = invoke("eval", "plain", "--split", "val", "--checkpoint", "last", "--json").json()["metrics"]["test/loss"]
        assert validated == pytest.approx(project.plain["metrics"]["val/loss"])

    def test_as_a_table(self, project: Project) -> None:
        result = invoke("eval", project.varied["run_name"])
        assert result.out.startswith(f"{project.varied['run_name']}, best.ckpt: 270 samples of the test split\n")  # on one line, whatever its length
        assert re.search(r"│ acc +│ [\d.]+ │", result.out)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["data=iris"], "prepares its inputs otherwise than Digits|of another model"),
            (["model.hidden=[8]"], "best.ckpt is of another model: model.body"),
            (["--split", "tests"], "--split must be one of test, val, train, all, but got 'tests'; did you mean 'test'"),
            (["--checkpoint", "bset"], "there is no checkpoint bset"),
        ],
    )
    def test_what_does_not_fit(self, project: Project, arguments: list[str], message: str) -> None:
        result = invoke("eval", "plain", *arguments)
        assert result.code == 2 and re.search(message, result.err), result.err


class TestDiff:
    def test_config_code_data_and_metrics(self, project: Project) -> None:
        found = invoke("diff", "plain", project.varied["run_name"], "--json").json()
        assert list(found) == ["runs", "config", "code", "environment", "packages", "data", "metrics"]
        assert list(found["config"])[:2] == ["loss", "regularizer"]
        assert found["config"]["loss"] == ["cross_entropy", "focal"] and found["config"]["regularizer"] == [None, "l1,l2"]
        assert found["config"]["loss.gamma"] == [None, "3"] and "loss._target_" not in found["config"] and "name" not in found["config"]
        assert found["code"]["commit"][0] == found["code"]["commit"][1] and "+x = 2" in found["code"]["patch"]
        assert found["data"]["data_fingerprint"][0] != found["data"]["data_fingerprint"][1]
        assert found["packages"] == {} and found["environment"] == {}
        loss = found["metrics"]["test/loss"]
        assert (loss["first"], loss["second"]) == tuple(pytest.approx(run["metrics"]["test/loss"]) for run in (project.plain, project.varied))

    def test_as_text_for_80_columns(self, project: Project) -> None:
        result = invoke("diff", "plain", project.varied["run_name"])
        assert re.search(r"^  loss +cross_entropy → focal$", result.out, re.MULTILINE)
        assert "the uncommitted changes differ in" in result.out and "the same: environment, packages" in result.out
        figures = result.out.partition("\nmetrics\n")[2]
        assert figures and max(map(len, figures.splitlines())) <= 80

    def test_a_run_that_is_not_there(self, project: Project) -> None:
        result = invoke("diff", "plain", "plane")
        assert result.code == 2 and "there is no run 'plane'" in result.err


class TestCompare:
    def test_a_pipe_gets_all_of_it(self, project: Project) -> None:
        heading, _, *rows = invoke("compare", "--filter", "params.trainer.max_epochs = 2").out.splitlines()
        assert {"name", "status", "loss", "optimizer", "regularizer", "seed", "test/acc", "test/loss"} <= set(heading.split())
        assert any(row.startswith("plain ") for row in rows) and any(row.startswith(project.varied["run_name"]) for row in rows)

    @pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
    def test_a_terminal_gets_what_fits(self, project: Project, width: int) -> None:
        compared = compare_runs(Store.open(), filter="params.trainer.max_epochs = 2")
        heading, rows, _ = parts(to_table(compared, width), width)
        assert {"name", "loss", "val/loss"} <= set(heading.split()) and len(rows) == len(compared.rows)
        for row in rows:  # what is shown of a name names the run
            assert find_run(row.split()[0]).run_id in {r["id"] for r in compared.rows}

    def test_the_terminals_width_is_taken(self, project: Project) -> None:
        import pty

        primary, secondary = pty.openpty()
        environment = {**os.environ, "COLUMNS": "72"}
        with subprocess.Popen(command("compare"), stdout=secondary, stderr=secondary, env=environment, cwd=project.directory) as process:
            os.close(secondary)
            text = b""
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                while part := os.read(primary, 65536):
                    text += part
        os.close(primary)
        lines = text.decode().splitlines()
        assert process.returncode == 0 and lines[0].startswith("name ") and max(map(len, lines)) <= 72

    def test_json_csv_markdown_and_groups(self, project: Project) -> None:
        rows = invoke("compare", "--metric", "test/acc", "--json").json()["rows"]
        best = [row["test/acc"] for row in rows]
        assert best == sorted(best, reverse=True) and {row["id"] for row in rows} >= {project.plain["run_id"], project.varied["run_id"]}
        assert invoke("compare", "--csv").out.startswith("id,name,status,")
        assert invoke("compare", "--markdown").out.startswith("| id | name | status |")
        grouped = invoke("compare", "--group-by", "loss,regularizer", "--metric", "test/acc", "--json").json()["rows"]
        assert {k: grouped[0][k] for k in ("loss", "regularizer")} == {"loss": "cross_entropy", "regularizer": None} or len(grouped) > 1
        assert sum(row["n"] for row in grouped) == project.count()

    @pytest.mark.parametrize("width", [60, 80, 100, 140])
    def test_runs_that_differ_in_everything_stay_readable(self, width: int) -> None:
        store = MemoryStore()
        for number, (loss, optimizer, schedule) in enumerate((("cross_entropy", "sgd", "cosine"), ("focal", "adamw", "wsd"), ("poly1", "muon", "one_cycle"))):
            params = {"seed": str(number), "data.seed": str(number), "optimizer.lr": f"0.{number}", f"optimizer.only_{optimizer}": "1"}
            params |= {f"loss.{loss}_{i}": str(i) for i in range(9)} | {"metrics.acc.average": str(number)}
            options = {"loss": loss, "optimizer": optimizer, "schedule": schedule, "data": "digits", "regularizer": f"l{number},confidence_penalty"}
            metrics = {"val/loss": 1.0 + number, "test/acc": 0.5, "test/ece": 0.1, "test/f1": 0.2, "test/loss": 1.0}
            tags = {"losskit.optimized_metric": "val/loss"}
            status = "FINISHED" if number else "KILLED"
            store.add(f"{loss}-digits-s{number}-brave-owl{number}", metrics, params=params, options=options, tags=tags, status=status)
        heading, rows, notes = parts(to_table(compare_runs(store), width), width)
        assert {"name", "status", "val/loss", "test/acc", "loss"} <= set(heading.split()) and "KILLED" in rows[0]
        assert ("schedule" in heading) == (width >= 80) and "data." not in heading  # data.seed is the seed
        assert re.search(r"also different: .* and \d+ more", notes) and "data.seed" not in notes
        assert notes.endswith("(all of it: --json or --csv)")

    def test_runs_of_one_name_are_told_apart_by_their_ids(self) -> None:
        store = MemoryStore()
        for value in (1.0, 2.0):
            store.add("same", {"val/loss": value})
        text = to_table(compare_runs(store), 80)
        assert text.startswith("id ") and text.count("same") == 2


class TestMoved:
    def test_everything_works_after_the_folder_was_moved(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere = project.directory.with_name("moved elsewhere")
        monkeypatch.chdir("/")
        project.directory.rename(elsewhere)
        try:
            monkeypatch.chdir(elsewhere)
            found = find_run("plain")
            assert found.run_dir.is_relative_to(elsewhere) and found.status == "FINISHED"
            assert "plain" in invoke("compare").out
            evaluated = invoke("eval", "plain", "--json").json()
            assert Path(evaluated["checkpoint"]).is_relative_to(elsewhere)
            assert evaluated["metrics"]["test/loss"] == pytest.approx(project.plain["metrics"]["test/loss"])
            difference = invoke("diff", "plain", project.varied["run_name"], "--json").json()
            assert "+x = 2" in difference["code"]["patch"]  # artifacts are found, too
            assert find_run(str(found.run_dir)).run_id == project.plain["run_id"]
            assert invoke("predict", "plain", "--output", "p.csv").code == 0
            assert invoke("rerun", "plain", "--dry-run").out == "the same config as plain\n"
        finally:
            monkeypatch.chdir("/")
            elsewhere.rename(project.directory)

    def test_a_run_directory_that_is_gone_is_said(self, project: Project) -> None:
        run_dir = Path(project.plain["run_dir"])
        hidden = run_dir.rename(run_dir.with_name("hidden"))
        try:
            result = invoke("eval", "plain")
            assert result.code == 2 and "run plain is in the store, but its directory" in result.err and "is not on this machine" in result.err
            assert "plain" in invoke("compare").out
        finally:
            hidden.rename(run_dir)


class TestPredict:
    def test_the_test_split_beside_its_targets(self, project: Project) -> None:
        import pandas as pd

        result = invoke("predict", "plain", "--output", "new/predictions.csv")
        assert (result.code, result.err) == (0, "270 predictions in new/predictions.csv\n")
        table = pd.read_csv("new/predictions.csv")
        assert list(table.columns) == ["target", "prediction", *(f"probability_{i}" for i in range(10))]
        assert (table["target"] == table["prediction"]).mean() == pytest.approx(project.plain["metrics"]["test/acc"], abs=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--input", "mine.py", "--output", "p.csv"], "--input mine.py: Digits cannot read new inputs from a file"),
            (["--input", "nothing.csv", "--output", "p.csv"], "--input nothing.csv: there is no such file"),
            (["--output", "p.xlsx"], "--output must end in .csv, .parquet, .json or .npz, but got p.xlsx"),
            (["--output", "mine.py/p.csv"], "--output mine.py/p.csv: "),
        ],
    )
    def test_what_cannot_be_predicted(self, project: Project, arguments: list[str], message: str) -> None:
        result = invoke("predict", "plain", *arguments)
        assert result.code == 2 and message in result.err, result.err


class TestSync:
    def test_a_run_made_without_its_server_is_usable_and_sent_later(self, stored: Path, losskit: Callable[..., Result]) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            server = f"http://127.0.0.1:{unused.getsockname()[1]}"
        arguments = [*TINY, "trainer.max_epochs=1", "name=away", f"tracking.uri={server}"]
        stopped = losskit("train", *arguments)
        assert stopped.code == 1 and "cannot be reached" in stopped.err and "tracking.on_error=buffer" in stopped.err
        assert not list(stored.glob("outputs/*/*"))
        kept = losskit("train", *arguments, "tracking.on_error=buffer", "--json")
        assert kept.code == 0 and kept.json()["run_id"] is None
        assert losskit("eval", "away", "--json").json()["run_name"] == "away"
        sent = losskit("sync", "away", "--uri", "sqlite:///mlflow.db")
        assert sent.code == 0 and "all of it is in the store" in sent.err
        info = Store.open().find("away")
        assert info.status == "FINISHED" and info.metrics["test/acc"] == pytest.approx(kept.json()["metrics"]["test/acc"])
        assert "nothing to send" in losskit("sync").err
        assert losskit("sync", "nobody").code == 2


class TestUi:
    def test_it_serves_this_store_and_ends_with_all_its_processes(self, project: Project) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen(command("ui", "--port", str(port)), cwd=project.directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        family: list[psutil.Process] = []
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if line.startswith("MLflow's UI: "))
            assert said == f"MLflow's UI: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            browser = build_opener(ProxyHandler({}))
            with browser.open(f"http://127.0.0.1:{port}/", timeout=30) as page:
                assert page.status == 200 and b"<html" in page.read()
            with browser.open(f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/runs/get?run_id={project.plain['run_id']}", timeout=30) as answer:
                assert json.load(answer)["run"]["info"]["run_name"] == "plain"
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            taken = subprocess.run(command("ui", "--port", str(port)), cwd=project.directory, capture_output=True, text=True, timeout=60, check=False)
            assert taken.returncode == 2 and f"port {port} of 127.0.0.1 is taken" in taken.stderr
            process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()
            _, alive = psutil.wait_procs(family, timeout=10)
            for orphan in alive:
                orphan.kill()
        assert not alive

    def test_a_signal_before_it_answers_leaves_nothing_behind(self, project: Project) -> None:
        process = subprocess.Popen(command("ui"), cwd=project.directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("starting MLflow's UI on http://127.0.0.1:")
        until = time.monotonic() + 30
        while not (family := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        assert family and not alive

    def test_no_store_is_said(self, workdir: Path, losskit: Callable[..., Result]) -> None:
        result = losskit("ui")
        assert result.code == 2 and "run `losskit train` here first" in result.err


def test_doctor_counts_the_runs(project: Project) -> None:
    report = json.loads(invoke("doctor", "--json").out)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["store"]["status"] == "ok" and f"{project.count()} runs" in findings["store"]["value"]


def test_every_command_has_a_help_with_an_example_for_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.main import get_command

    from losskit_cli.app import app

    monkeypatch.setenv("COLUMNS", "80")
    overview = invoke("--help").out
    for name, entry in get_command(app).commands.items():  # type: ignore[attr-defined]
        if entry.hidden:
            continue
        text = invoke(name, "--help").out
        assert f"losskit {name}" in text.split("Usage:")[1].partition("\n")[2], name
        line = next(line for line in overview.splitlines() if line.split()[:1] == [name])
        assert not line.endswith("..."), line


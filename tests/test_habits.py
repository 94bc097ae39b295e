"""What people have in their fingers from Hydra, Lightning and the popular template works, or says what to write instead."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import Result, command

Losskit = Callable[..., Result]
TINY = ("tracking=none", "data=iris", "model=mlp", "trainer.max_epochs=2")


def ok(result: Result) -> Result:
    assert result.code == 0, (result.code, result.err)
    return result


def run_dirs() -> list[Path]:
    return sorted(p.parent for p in Path("outputs").glob("*/*/run_spec.json"))


def config_of(run_dir: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run_dir / "config.yaml").read_text()))


class TestMultirun:
    def test_the_product_and_a_table_at_the_end(self, losskit: Losskit) -> None:
        result = ok(losskit("train", "-m", "loss=cross_entropy,focal", "seed=range(2)", *TINY))
        assert re.fullmatch(r"multirun-\w+-\w+: 4 trials in sqlite:///.*sweeps\.db\n", result.err), "quiet in a pipe"
        configs = [config_of(d) for d in run_dirs()]
        assert sorted((config["seed"], "gamma" in config["loss"]) for config in configs) == [(0, False), (0, True), (1, False), (1, True)]
        heading, _, *rows = (line.split() for line in result.out.splitlines())
        assert heading[:3] == ["name", "loss", "seed"] and "test/acc" in heading
        assert [row[1:3] for row in rows] == [[loss, seed] for loss in ("cross_entropy", "focal") for seed in "01"], "in the order of the product"
        assert all("-iris-s" in row[0] for row in rows)

    def test_json_is_one_list(self, losskit: Losskit) -> None:
        result = ok(losskit("train", "--multirun", "model.hidden=[4],[8]", *TINY, "--json"))
        first, second = json.loads(result.out)
        assert "model.hidden=[4]" in first["overrides"] and "model.hidden=[8]" in second["overrides"]
        assert first["status"] == second["status"] == "FINISHED" and first["run_dir"] != second["run_dir"]

    def test_one_that_fails_does_not_stop_the_others(self, losskit: Losskit) -> None:
        result = losskit("train", "-m", "optimizer=sgd", "optimizer.lr=1e30,0.1", *TINY, "--json")
        assert result.code == 1
        assert "Error: trial 0 (optimizer.lr=1e+30): the training loss is not finite" in result.err and "Error: 1 of 2 runs failed" in result.err
        failed, finished = json.loads(result.out)
        assert failed["status"] == "FAILED" and "not finite at step 2" in failed["error"] and "optimizer.lr=1e+30" in failed["overrides"]
        assert finished["status"] == "FINISHED"

    def test_a_mistake_in_any_of_them_is_found_before_the_first(self, losskit: Losskit) -> None:
        result = losskit("train", "-m", "loss=focal,focl", *TINY)
        assert result.code == 2 and "there is no loss=focl; did you mean 'focal'?" in result.err and not run_dirs()

    def test_a_dry_run_of_each(self, losskit: Losskit) -> None:
        result = ok(losskit("train", "-m", "seed=1,2", "--dry-run", "--json", *TINY))
        assert [set(tried) >= {"loss", "bindings", "overrides"} for tried in json.loads(result.out)] == [True, True] and not run_dirs()

    def test_without_the_flag_it_is_said(self, losskit: Losskit) -> None:
        result = losskit("train", "seed=1,2", *TINY)
        assert result.code == 2 and "--multirun" in result.err


class TestComposing:
    def test_cfg_job(self, losskit: Losskit) -> None:
        plain = yaml.safe_load(ok(losskit("train", "--cfg", "job", "loss=focal", "seed=5")).out)
        resolved = yaml.safe_load(ok(losskit("train", "--cfg", "job", "--resolve", "loss=focal", "seed=5")).out)
        assert plain["data"]["seed"] == "${seed}" and resolved["data"]["seed"] == 5
        assert plain["loss"] == resolved["loss"] and plain["loss"]["gamma"] == 2.0
        assert not run_dirs()
        assert yaml.safe_load(ok(losskit("config", "loss=focal", "seed=5", "--resolve")).out) == resolved

    def test_overrides_and_flags_in_any_order(self, losskit: Losskit) -> None:
        results = [losskit("train", "-q", *TINY, "seed=3"), losskit("train", "seed=3", "--quiet", *TINY), losskit("train", *TINY, "seed=3", "-q")]
        assert [r.code for r in results] == [0, 0, 0]
        weights = [torch.load(d / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for d in run_dirs()]
        assert len(weights) == 3 and all(torch.equal(weights[0][k], w[k]) for w in weights for k in w)

    def test_hydras_grammar(self, losskit: Losskit) -> None:
        overrides = ("+extra={a: [1, 'b c'], d: {e: null}}", "~optimizer.weight_decay", "++trainer.max_epochs=7", "tags=[one,two]", "name='with space'")
        config = json.loads(ok(losskit("config", "data=iris", *overrides, "--json")).out)
        assert config["extra"] == {"a": [1, "b c"], "d": {"e": None}} and "weight_decay" not in config["optimizer"]
        assert config["trainer"]["max_epochs"] == 7 and config["tags"] == ["one", "two"] and config["name"] == "with space"

    def test_a_config_directory_and_a_primary_config_of_ones_own(self, losskit: Losskit) -> None:
        Path("conf/loss").mkdir(parents=True)
        Path("conf/loss/mine.yaml").write_text("# mine (me)\n_target_: components.losses.FocalLoss\ngamma: 7.0\n")
        defaults = "defaults: [train, override /data: iris, override /model: mlp, _self_]"
        Path("conf/quick.yaml").write_text(f"# quick (me)\n{defaults}\ntrainer: {{max_epochs: 1}}\n")
        for flag in ("-cd", "--config-dir"):
            assert json.loads(ok(losskit("config", flag, "conf", "loss=mine", "--json")).out)["loss"]["gamma"] == 7.0
        for flag in ("-cn", "--config-name"):
            config = json.loads(ok(losskit("config", "-cd", "conf", flag, "quick", "--json")).out)
            assert config["trainer"]["max_epochs"] == 1 and config["data"]["_target_"] == "components.data.Iris"
        trained = ok(losskit("train", "-cd", "conf", "-cn", "quick", "loss=mine", "tracking=none", "--json")).json()
        assert config_of(Path(trained["run_dir"]))["loss"]["gamma"] == 7.0

    def test_an_optional_local_default(self, losskit: Losskit) -> None:
        Path("conf/local").mkdir(parents=True)
        Path("conf/local/default.yaml").write_text("# @package _global_\n# this machine\nseed: 99\noutput_dir: elsewhere\n")
        config = json.loads(ok(losskit("config", "-cd", "conf", "--json")).out)
        assert config["seed"] == 99 and config["output_dir"] == "elsewhere"
        assert json.loads(ok(losskit("config", "-cd", "conf", "seed=1", "--json")).out)["seed"] == 1
        assert json.loads(ok(losskit("config", "--json")).out)["seed"] == 0

    def test_origins(self, losskit: Losskit) -> None:
        result = ok(losskit("config", "--origins", "loss=focal", "loss.gamma=3", "experiment=byte_lm"))
        lines = {line.split()[0]: line for line in result.out.splitlines()}
        assert re.search(r"\b3\s+# override loss.gamma=3$", lines["loss.gamma"])
        assert lines["loss._target_"].endswith("# loss/focal.yaml") and lines["optimizer.lr"].endswith("# experiment/byte_lm.yaml")
        assert lines["seed"].endswith("# train.yaml") and lines["data._target_"].endswith("# data/python_source.yaml")
        as_json = json.loads(ok(losskit("config", "--origins", "loss=focal", "loss.gamma=3", "--json")).out)
        assert as_json["origins"]["loss.gamma"] == "override loss.gamma=3" and as_json["choices"]["loss"] == "focal"

    def test_experiments_and_what_wins(self, losskit: Losskit) -> None:
        config = json.loads(ok(losskit("config", "experiment=byte_lm", "trainer.max_steps=5", "--json")).out)
        assert config["trainer"]["max_steps"] == 5 and config["model"]["_target_"] == "components.models.TransformerLM"


class TestDebug:
    def test_fdr_is_one_batch_of_each_and_saves_nothing(self, losskit: Losskit) -> None:
        summary = ok(losskit("train", "debug=fdr", "data=iris", "model=mlp", "--json")).json()
        assert summary["steps"] == 1 and summary["run_id"] is None and summary["last_checkpoint"] is None and summary["run_dir"] is None
        assert "test/loss" in summary["metrics"]
        assert not Path("outputs").exists() and not Path("mlflow.db").exists()

    def test_limit_is_at_least_a_batch(self, losskit: Losskit) -> None:
        assert ok(losskit("train", "debug=limit", *TINY[:3], "--json")).json()["steps"] == 3

    def test_overfit_drives_the_loss_down(self, losskit: Losskit) -> None:
        summary = ok(losskit("train", "debug=overfit", *TINY[:3], "optimizer.lr=0.01", "--json")).json()
        assert summary["steps"] == 60 and summary["metrics"]["train/loss"] < 0.3

    def test_profiler_leaves_its_report_in_the_run_directory(self, losskit: Losskit) -> None:
        summary = ok(losskit("train", "debug=profiler", *TINY[:3], "--json")).json()
        assert summary["steps"] == 7
        reports = {p.name: p.read_text() for p in Path(summary["run_dir"]).glob("*-profile.txt")}
        assert set(reports) == {"fit-profile.txt", "test-profile.txt"} and "Profiler Report" in reports["fit-profile.txt"]

    def test_profilers_have_names(self, losskit: Losskit) -> None:
        result = losskit("train", *TINY, "trainer.profiler=simpel")
        assert result.code == 2 and "trainer.profiler='simpel': it takes simple, advanced, pytorch or null; did you mean 'simple'?" in result.err

    def test_default_detects_anomalies(self, losskit: Losskit) -> None:
        config = json.loads(ok(losskit("config", "debug=default", "--json")).out)
        assert config["trainer"]["detect_anomaly"] is True and config["trainer"]["max_epochs"] == 1 and config["task_name"] == "debug"


class TestTopLevelKeys:
    def test_seed_tags_and_task_name_are_in_the_store(self, losskit: Losskit, store_template: Path, workdir: Path) -> None:
        shutil.copy(store_template, "mlflow.db")
        options = ("seed=7", "tags=[baseline,try me]", "task_name=habits", "name=called")
        summary = ok(losskit("fit", "data=iris", "model=mlp", "trainer.max_epochs=1", *options, "--json")).json()
        with sqlite3.connect("mlflow.db") as store:
            tags = dict(store.execute("select key, value from tags where run_uuid = ?", (summary["run_id"],)))
            params = dict(store.execute("select key, value from params where run_uuid = ?", (summary["run_id"],)))
            assert store.execute("select name, status from runs").fetchall() == [("called", "FINISHED")]
        assert params["seed"] == "7"
        assert any("baseline" in f"{key}={value}" for key, value in tags.items()) and any("try me" in f"{key}={value}" for key, value in tags.items())
        assert "habits" in tags.values()

    def test_test_alone_evaluates_a_checkpoint(self, losskit: Losskit) -> None:
        trained = ok(losskit("train", *TINY, "--json")).json()
        tested = ok(losskit("train", *TINY, "train=false", f"ckpt_path={trained['best_checkpoint']}", "--json")).json()
        assert tested["steps"] == 0 and tested["last_checkpoint"] is None
        wanted = {name: value for name, value in trained["metrics"].items() if name.startswith("test/")}
        assert wanted and tested["metrics"] == wanted
        assert ok(losskit("eval", trained["run_dir"], "--json")).json()["metrics"] == pytest.approx(wanted)

    def test_an_untrained_model_is_said_to_be_one(self, losskit: Losskit) -> None:
        result = ok(losskit("train", *TINY, "train=false"))
        assert "note: train=false without ckpt_path=…" in result.err

    def test_training_alone_does_not_test(self, losskit: Losskit) -> None:
        metrics = ok(losskit("train", *TINY, "test=false", "--json")).json()["metrics"]
        assert "val/loss" in metrics and not [name for name in metrics if name.startswith("test/")]

    def test_a_checkpoints_weights_are_what_training_starts_from(self, losskit: Losskit) -> None:
        first = ok(losskit("train", *TINY, "trainer.max_epochs=8", "optimizer.lr=0.01", "--json")).json()
        second = ok(losskit("train", *TINY, "trainer.max_epochs=1", "optimizer.lr=0", f"ckpt_path={first['last_checkpoint']}", "test=false", "--json")).json()
        assert second["steps"] == 7
        states = [torch.load(run["last_checkpoint"], weights_only=True)["state_dict"] for run in (first, second)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    @pytest.mark.parametrize(("metric", "better"), [("val/loss", min), ("val/acc", max)])
    def test_the_optimized_metric_says_what_is_best(self, losskit: Losskit, metric: str, better: Callable[[float, float], float]) -> None:
        options = ("trainer.max_epochs=4", "optimizer=sgd", "optimizer.lr=0.5", f"optimized_metric={metric}")
        summary = ok(losskit("train", *TINY, *options, "--json")).json()
        best, last = (torch.load(summary[f"{which}_checkpoint"], weights_only=True) for which in ("best", "last"))
        state = next(s for name, s in last["callbacks"].items() if "Checkpoints" in name)
        assert state["monitor"] == metric and best["global_step"] == state["best_step"]
        assert better(state["best_score"], summary["metrics"][metric]) == state["best_score"]


class TestTheTemplatesNames:
    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("logger=wandb", "it calls that 'tracking'"),
            ("hparams_search=mnist_optuna", "it calls that 'sweep'"),
            ("datamodule=mnist", "it calls that 'data'"),
            ("paths.output_dir=here", "losskit says output_dir"),
            ("model.optimizer.lr=0.1", "losskit says optimizer.…"),
            ("trainer=gpu", "losskit says trainer.accelerator=gpu"),
            ("trainer=ddp", "losskit says trainer.strategy=ddp"),
            ("trainer.gpus=1", "losskit says trainer.devices"),
            ("callbacks=default", "losskit says callbacks=[checkpoints]"),
            ("hydra.run.dir=here", "has no effect"),
            ("hydra/launcher=joblib", "has no effect"),
        ],
    )
    def test_get_a_hint(self, losskit: Losskit, override: str, says: str) -> None:
        result = losskit("train", override)
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1

    def test_metric_names_have_a_slash(self, losskit: Losskit) -> None:
        metrics = ok(losskit("fit", *TINY, "--json")).json()["metrics"]
        assert {"train/loss", "val/loss", "test/loss", "val/acc", "test/acc"} <= set(metrics)


class TestQuietAndProgress:
    def test_quiet_prints_nothing_on_success(self, losskit: Losskit) -> None:
        for flag in ("-q", "--quiet"):
            result = ok(losskit("train", *TINY, flag))
            assert (result.out, result.err) == ("", "")
        assert losskit("train", *TINY, "-q", "optimizer.lr=-1").err.startswith("Error: ")  # errors are never quiet

    def test_no_progress_in_a_pipe(self, workdir: Path) -> None:
        done = subprocess.run(command("train", *TINY), cwd=workdir, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0 and done.stderr == ""
        assert "FINISHED" in done.stdout and "best checkpoint" in done.stdout
        assert "\x1b" not in done.stdout and "\r" not in done.stdout and "steps/s" not in done.stdout

    def test_a_progress_bar_on_a_terminal(self, workdir: Path) -> None:
        code, seen = on_a_terminal(workdir, "train", *TINY, "trainer.max_epochs=40")
        assert code == 0
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
        assert "training" in text and "/280" in text and "steps/s" in text and "val/loss" in text
        assert "FINISHED" in text

    def test_quiet_on_a_terminal(self, workdir: Path) -> None:
        code, seen = on_a_terminal(workdir, "train", *TINY, "-q")
        assert code == 0 and seen.strip() == ""


def on_a_terminal(directory: Path, *arguments: str) -> tuple[int, str]:
    """A command whose stdout and stderr are a terminal: its exit code and what was shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    for name in ("CI", "NO_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    process = subprocess.Popen(command(*arguments), cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    return process.wait(timeout=60), seen.decode(errors="replace")


class TestExitCodes:
    def test_success_wrong_usage_and_a_failed_run(self, losskit: Losskit) -> None:
        assert losskit("train", *TINY, "-q").code == 0
        assert losskit("--help").code == 0 and losskit("version").code == 0
        assert losskit("train", "loss=focl").code == 2
        assert losskit("train", "--no-such-flag").code == 2
        assert losskit("train", *TINY, "optimizer=sgd", "optimizer.lr=1e30").code == 1

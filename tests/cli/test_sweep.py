"""``losskit sweep``: what is asked for is checked before anything starts, runs to its total, and says how it ended."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from losskit_cli.studies import train_command
from sweeps.storage import open_storage
from sweeps.study import Sweep, runs_of
from tests.conftest import Result, command

Losskit = Callable[..., Result]
TINY = ("data=iris", "model=linear", "trainer.max_epochs=2", "trainer.accelerator=cpu")
QUIET = ("tracking=none", *TINY)
TRACKED = ("tracking.plots=false", "tracking.log_checkpoints=false", "tracking.capture_code=false", *TINY)
RATE = "optimizer.lr=tag(log,interval(1e-3,1))"
BREAKS = """
import lightning


class Breaks(lightning.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_start(self, trainer, module):
        if self.at % 2:  # the odd ones
            raise RuntimeError("the disk of the moon is full")
"""


def opened(name: str) -> Sweep:
    return Sweep.open(name, open_storage())


def ok(result: Result) -> Result:
    assert result.code == 0, (result.out, result.err)
    return result


@pytest.fixture
def breaking(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    (workdir / "breaks.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(str(workdir))
    return (*QUIET, "allow_targets=[breaks]", "+callbacks.breaks={_target_: breaks.Breaks, at: 0}")


class TestBadInput:
    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["optimizer.lrr=interval(0,1)"], r"there is no 'optimizer.lrr'; did you mean 'optimizer.lr'\?"),
            (["optimizer.lr=interval(1,0)"], "the wrong way round"),
            (["optimizer.lr=tag(log,interval(0,1))"], "a log interval begins above 0"),
            (["loss=focal,focl"], r"there is no loss=focl; did you mean 'focal'\?"),
            ([RATE, "sweep.workers=0"], r"sweep.workers=0: it takes auto or a whole number >= 1"),
            ([RATE, "sweep.n_trials=0"], "sweep.n_trials=0"),
            ([RATE, "sweep.seeds=[1,1]"], "sweep.seeds=.*different seeds"),
            ([RATE, "sweep.on_failure=stopp"], "sweep.on_failure=.*'continue' or 'stop'"),
            ([RATE, "+sweep.worker=2"], r"there is no sweep.worker; did you mean 'workers'\?"),
            ([RATE, "sweep.sampler=tpee"], r"sampler=tpee; did you mean 'tpe'\?"),
            ([RATE, "sweep.sampler=grid"], "has no end of values"),
            ([RATE, "sweep.objectives=[val/los]"], r"logs no 'val/los'; did you mean 'val/loss'\? \(it logs: .*test/acc.*val/loss"),
            ([RATE, "sweep.constraints=['test/latency <= 5']"], r"logs no 'test/latency'"),
            ([RATE, "sweep.constraints=['val/acc > 5']"], "is no constraint; write 'metric <= number'"),
            ([RATE, "sweep.objectives=[val/acc,val/loss]", "sweep.directions=[maximize]"], "directions are of objectives, one each"),
            ([RATE, "sweep.storage=postgresql://me:hidden@127.0.0.1:1/x"], r"127.0.0.1:1/x cannot be reached"),
            ([RATE, "sweep.storage=postgre://x"], "sweep|storage"),
            ([RATE, "sweep=null"], "there is no sweep=null: to have none write ~sweep"),
            (["seed=1,2", "sweep=[grid,default]"], "sweep takes one option"),
            ([RATE, "sweep.seed=1,2"], "is not a trial's to choose"),
            ([], "there is nothing to search: give at least one parameter choices"),
        ],
    )
    def test_is_said_before_anything_starts(self, losskit: Losskit, overrides: list[str], said: str) -> None:
        result = losskit("sweep", *TINY, *overrides)
        assert result.code == 2, result.err
        assert re.search(said, result.err), result.err
        assert "hidden" not in result.err and "Traceback" not in result.err
        assert not list(Path().iterdir()), "nothing is half-created"

    def test_a_plain_run_takes_no_settings_of_a_sweep(self, losskit: Losskit) -> None:
        for override in ("sweep=grid", "sweep.n_trials=3", "sweep/sampler=tpe"):
            result = losskit("train", *QUIET, override)
            assert result.code == 2 and f"{override} is about a sweep, and this is one run: losskit sweep" in result.err

    def test_commands_on_a_sweep_that_is_not_there(self, losskit: Losskit) -> None:
        for arguments in (["sweep", "--resume", "x"], ["sweep", "--status", "x"], ["sweep", "--stop", "x"], ["worker", "x"], ["report", "x"]):
            result = losskit(*arguments)
            assert result.code == 2 and "there is no storage of sweeps" in result.err and not Path("sweeps.db").exists(), arguments
        ok(losskit("sweep", *QUIET, "seed=1,2", "sweep.name=there"))
        for arguments in (["sweep", "--resume", "theer"], ["sweep", "--status", "theer"], ["sweep", "--stop", "theer"], ["worker", "theer"]):
            result = losskit(*arguments)
            assert result.code == 2 and "there is no sweep 'theer'; did you mean 'there'?" in result.err, arguments
        assert losskit("sweep", "--resume", "a", "--status", "b").code == 2


class TestNames:
    def test_one_that_exists_goes_on_or_is_refused(self, losskit: Losskit) -> None:
        given = (*QUIET, RATE, "sweep.n_trials=2", "sweep.name=mine", "sweep.workers=1")
        ok(losskit("sweep", *given))
        again = losskit("sweep", *given)
        assert again.code == 2 and "mine is finished: all of its 2 trials are done. More: losskit sweep --resume mine sweep.n_trials=…" in again.err
        other = losskit("sweep", *given, "optimizer.weight_decay=0.5", "seed=1,2")
        assert other.code == 2 and "seed: 1,2 (new)" in other.err and "optimizer.weight_decay: 0.01 → 0.5" in other.err
        assert "losskit sweep --resume mine" in other.err and "--force" in other.err
        fewer = losskit("sweep", "--resume", "mine", "sweep.n_trials=1")
        assert fewer.code == 2 and "started with 2 trials, which cannot become 1" in fewer.err
        more = ok(losskit("sweep", "--resume", "mine", "sweep.n_trials=4", "--json"))
        assert more.json()["complete"] == more.json()["total"] == 4
        assert [t.number for t in opened("mine").trials()] == [0, 1, 2, 3]

    def test_force_records_both(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, RATE, "sweep.n_trials=1", "sweep.name=changed"))
        refused = losskit("sweep", "--resume", "changed", "sweep.n_trials=2", "model.bias=false")
        assert refused.code == 2 and "model.bias: " in refused.err
        ok(losskit("sweep", "--resume", "changed", "sweep.n_trials=2", "model.bias=false", "--force"))
        sweep = opened("changed")
        (before,) = sweep.study.user_attrs["losskit:plans"]
        assert json.loads(before)["config"]["model"] != sweep.plan.config["model"]
        assert sweep.status().complete == 2
        first, second = (train_command(asdict(sweep.plan), trial) for trial in sweep.trials())
        assert "model.bias=false" in second and "model.bias=false" not in first, "each as it was trained"

    def test_choices_cannot_change_under_a_sweep(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, "loss=focal,poly1", "optimizer.lr=interval(0,1)", "sweep.n_trials=1", "sweep.name=fixed"))
        result = losskit("sweep", "--resume", "fixed", "loss=focal,cross_entropy", "sweep.n_trials=3", "--force")
        assert result.code == 2 and "loss has been searched among other choices" in result.err
        assert opened("fixed").status().total == 1

    def test_a_space_that_was_tried_whole_has_no_more(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, "seed=1,2", "sweep.name=whole"))
        for arguments in (["--resume", "whole"], ["--resume", "whole", "sweep.n_trials=4"]):
            result = losskit("sweep", *arguments)
            assert result.code == 2 and "whole is finished: it has tried every point of its space. Another sweep: sweep.name=…" in result.err

    def test_two_started_at_once_are_one(self, workdir: Path) -> None:
        given = command("sweep", *QUIET, RATE, "sweep.n_trials=3", "sweep.name=twins", "sweep.workers=1")
        both = [subprocess.Popen(given, cwd=workdir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        ended = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
        (said,) = [err for err, code in ended if code == 2]
        assert sorted(code for _, code in ended) == [0, 2], ended
        # by how far the first was when the second looked, waited for it, or wanted to make it too
        assert re.search(r"there is a sweep 'twins' already|twins is running already. One more worker for it: losskit worker twins|twins is finished", said)
        assert [t.state.name for t in opened("twins").trials()] == ["COMPLETE"] * 3
        assert len(list(Path("outputs").glob("*/*-twins"))) == 1 and len(list(Path("outputs").glob("*/*/run_spec.json"))) == 3

    def test_a_name_of_its_own_is_readable(self, losskit: Losskit) -> None:
        found = ok(losskit("sweep", *QUIET, "seed=1,2", "--json")).json()
        assert re.fullmatch(r"sweep-[a-z]+-[a-z]+", found["name"])


class TestSpaces:
    def test_what_does_not_apply_is_not_sampled(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, "loss=poly1,focal", "loss.epsilon=interval(-1,5)", "sweep.n_trials=8", "sweep.sampler=random", "sweep.name=c"))
        params = [t.params for t in opened("c").trials()]
        assert {p["loss"] for p in params} == {"poly1", "focal"}
        assert all(("loss.epsilon" in p) == (p["loss"] == "poly1") for p in params)

    def test_choices_of_lists_and_null_pairs_and_a_presets_own(self, losskit: Losskit) -> None:
        Path("conf/sweep").mkdir(parents=True)
        Path("conf/sweep/mine.yaml").write_text(
            "# Mine (me)\ndefaults: [default, override sampler: grid, _self_]\nspace: {model.bias: 'true,false', loss: 'focal,poly1', seed: '1,2,3'}\n"
        )
        given = ["regularizer=[],[l2]", "optimizer.lr=tag('zip=a',choice(0.1,0.2))", "data.batch_size=tag('zip=a',choice(16,32))", "seed=5"]
        only = "loss.epsilon=tag('loss=poly1',choice(1,2))"  # its condition is on a parameter of the preset
        plan = ok(losskit("sweep", "-cd", "conf", "sweep=mine", *QUIET, *given, only, "--dry-run", "--json")).json()
        # regularizer x the pair x bias x (focal, poly1 with either epsilon); the seed is fixed on the command line
        assert plan["total"] == 2 * 2 * 2 * 3
        pairs = {json.dumps(point["a"]) for point in plan["points"]}
        assert len(pairs) == 2 and all("seed" not in point for point in plan["points"])
        assert all(("loss.epsilon" in point) == (point["loss"] == "poly1") for point in plan["points"])

    def test_an_experiment_may_choose_its_sweep(self, losskit: Losskit) -> None:
        Path("conf/experiment").mkdir(parents=True)
        Path("conf/experiment/small.yaml").write_text(
            "# @package _global_\n# Small (me)\ndefaults: [override /data: iris, override /model: linear, override /sweep: quick_tpe]\n"
            "sweep: {n_trials: 7, space: {optimizer.lr: 'interval(0,1)'}}\n"
        )
        plan = ok(losskit("sweep", "-cd", "conf", "experiment=small", "--dry-run", "--json")).json()
        assert plan["total"] == 7 and plan["settings"]["pruner"]["_target_"].endswith("Median") and plan["space_given"] == ["optimizer.lr=interval(0,1)"]
        ok(losskit("train", "-cd", "conf", "experiment=small", *QUIET))  # which a plain run does without

    def test_how_many_trials_there_are(self, losskit: Losskit) -> None:
        def total(*overrides: str) -> int:
            return int(ok(losskit("sweep", *QUIET, *overrides, "--dry-run", "--json")).json()["total"])

        assert total("seed=range(3)", "loss=focal,poly1") == 6, "every point of a finite space"
        assert total("seed=range(3)", "loss=focal,poly1", "sweep.n_trials=4") == 4
        assert total("seed=range(3)", "loss=focal,poly1", "sweep.n_trials=40") == 6, "none twice"
        assert total(RATE) == 20
        assert total("data.batch_size=tag(log,int(interval(8,64)))") == 20, "an interval is drawn from, also one of whole numbers"

    def test_no_password_is_shown(self, losskit: Losskit) -> None:
        shown = losskit("sweep", *QUIET, RATE, "sweep.storage=postgresql://me:hidden@127.0.0.1:1/x", "--dry-run", "--json").out
        assert "127.0.0.1:1/x" in shown and "hidden" not in shown

    def test_a_dry_run_shows_it(self, losskit: Losskit) -> None:
        shown = ok(losskit("sweep", *QUIET, RATE, "sweep.seeds=3", "sweep.n_trials=9", "--dry-run")).out
        assert "9 trials, each over the seeds 0, 1, 2" in shown and RATE in shown and "val/loss (minimize)" in shown
        assert not list(Path().iterdir())


class TestJudging:
    def test_over_seeds_the_mean_counts(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, "optimizer.lr=0.01,0.1", "sweep.seeds=3", "sweep.name=seeds"))
        sweep = opened("seeds")
        for trial in sweep.trials():
            runs = runs_of(trial)
            assert list(runs) == ["0", "1", "2"]
            values = [run["metrics"]["val/loss"] for run in runs.values()]
            assert len(set(values)) == 3 and trial.values == [pytest.approx(sum(values) / 3)]

    def test_a_trial_may_be_pruned_over_its_seeds(self, losskit: Losskit) -> None:
        rates = "optimizer.lr=0.5,0.4,0.3,1e-6,2e-6,3e-6"  # the last three learn nothing
        pruner = ("sweep.pruner=median", "sweep.pruner.n_startup_trials=3", "sweep.pruner.n_warmup_steps=0")
        ok(losskit("sweep", *QUIET, "trainer.max_epochs=4", rates, "sweep.seeds=3", *pruner, "sweep.workers=1", "sweep.name=few"))
        states = [(t.state.name, len([r for r in runs_of(t).values() if "metrics" in r])) for t in opened("few").trials()]
        assert states == [("COMPLETE", 3)] * 3 + [("PRUNED", 1)] * 3

    def test_several_objectives_give_a_front(self, losskit: Losskit) -> None:
        given = (RATE, "sweep.objectives=[val/acc,time/step]", "sweep.sampler=nsga2", "sweep.n_trials=4")
        shown = ok(losskit("sweep", *QUIET, *given, "sweep.name=front"))
        assert "best val/acc, time/step  (" in shown.out
        sweep = opened("front")
        assert sweep.plan.directions == ["maximize", "minimize"]
        found = ok(losskit("sweep", "--status", "front", "--json")).json()
        assert found["best_value"] == [t.values for t in sweep.best()] and len(found["best_params"]) == len(found["best_value"])
        assert all(0 < t.values[1] < 1 for t in sweep.trials()), "seconds of a step"

    def test_the_best_keeps_to_the_constraints(self, losskit: Losskit) -> None:
        ok(losskit("sweep", *QUIET, "optimizer.lr=1e-5,0.01,0.5", "sweep.constraints=['val/loss >= 0.5']", "sweep.name=kept"))
        values = sorted(t.values[0] for t in opened("kept").trials())
        assert values[0] < 0.5
        assert ok(losskit("sweep", "--status", "kept", "--json")).json()["best_value"] == min(v for v in values if v >= 0.5)

    def test_it_is_said_when_the_yardstick_is_searched_too(self, losskit: Losskit) -> None:
        given = (*QUIET, "loss=poly1,focal", "sweep.workers=1")
        assert "note: loss changes what val/loss measures" in ok(losskit("sweep", *given)).err
        assert "changes what" not in ok(losskit("sweep", *given, "sweep.objectives=[val/acc]")).err

    def test_the_same_seed_and_one_worker_give_the_same_trials(self, losskit: Losskit) -> None:
        given = (*QUIET, RATE, "loss=poly1,focal", "sweep.n_trials=5", "sweep.workers=1", "sweep.sampler.n_startup_trials=2")
        for name, seed in (("one", 3), ("two", 3), ("other", 4)):
            ok(losskit("sweep", *given, f"sweep.name={name}", f"sweep.seed={seed}"))
        one, two, other = ([(t.params, t.values) for t in opened(name).trials()] for name in ("one", "two", "other"))
        assert one == two and [params for params, _ in one] != [params for params, _ in other]


class TestFailures:
    def test_one_is_kept_and_shown_and_the_sweep_goes_on(self, losskit: Losskit, breaking: tuple[str, ...]) -> None:
        result = ok(losskit("sweep", *breaking, "callbacks.breaks.at=0,1,2", "sweep.name=f"))
        assert "Error: trial 1 (callbacks.breaks.at=1): RuntimeError: the disk of the moon is full" in result.err
        trials = opened("f").trials()
        assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
        assert "the disk of the moon is full" in trials[1].user_attrs["losskit:error"]
        assert re.search(r"^1 .*FAIL", result.out, re.MULTILINE)

    def test_the_first_may_stop_it(self, losskit: Losskit, breaking: tuple[str, ...]) -> None:
        given = (*breaking, "callbacks.breaks.at=1,0,2,4", "sweep.workers=1", "sweep.on_failure=stop", "sweep.name=g")
        result = losskit("sweep", *given)
        assert result.code == 1
        assert re.search(r"Error: trial 0 failed: RuntimeError: the disk of the moon is full.*Go on with: losskit sweep --resume g\n", result.err)
        assert opened("g").status().failed == 1 and opened("g").status().waiting == 3
        resumed = ok(losskit("sweep", "--resume", "g", "sweep.on_failure=continue", "--json")).json()
        assert (resumed["complete"], resumed["failed"], resumed["total"]) == (3, 1, 4)

    def test_so_many_in_a_row_stop_it(self, losskit: Losskit, breaking: tuple[str, ...]) -> None:
        result = losskit("sweep", *breaking, "callbacks.breaks.at=range(1,19,2)", "sweep.workers=1", "sweep.max_failures_in_a_row=3")
        assert result.code == 1 and "3 trials in a row failed, the last: " in result.err
        assert result.err.count("Error: trial ") == 3

    @pytest.mark.parametrize(("nan", "state"), [("prune", "PRUNED"), ("fail", "FAIL")])
    def test_a_loss_that_is_not_finite(self, losskit: Losskit, nan: str, state: str) -> None:
        ok(losskit("sweep", *QUIET, "model=mlp", "optimizer=sgd", "optimizer.lr=0.1,1e30", f"sweep.nan={nan}", "sweep.name=n"))
        assert [t.state.name for t in opened("n").trials()] == ["COMPLETE", state]

    def test_none_complete_is_a_failure(self, losskit: Losskit, breaking: tuple[str, ...]) -> None:
        result = losskit("sweep", *breaking, "callbacks.breaks.at=1,3", "sweep.name=h")
        assert result.code == 1 and "no trial of h was completed" in result.err


def test_in_mlflow_it_is_a_run_with_its_trials_below(losskit: Losskit, store_template: Path) -> None:
    shutil.copy(store_template, "mlflow.db")
    given = ("optimizer.lr=0.001,0.1", "sweep.seeds=2", "sweep.objectives=[val/acc]", "sweep.name=nested", "sweep.workers=2")
    ok(losskit("sweep", *TRACKED, *given))
    with sqlite3.connect("mlflow.db") as store:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in store.execute("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        params = dict(store.execute("select run_uuid || ' ' || key, value from params").fetchall())
        latest: dict[str, Any] = dict(store.execute("select run_uuid || ' ' || key, value from latest_metrics").fetchall())
        status = dict(store.execute("select run_uuid, status from runs").fetchall())
    (parent,) = [run for run, of in tags.items() if of.get("losskit.kind") == "sweep"]
    children = {run: of for run, of in tags.items() if of.get("mlflow.parentRunId") == parent}
    assert len(status) == 5 and set(status.values()) == {"FINISHED"}
    assert sorted((of["losskit.trial"], of["losskit.seed"], of["losskit.trial_state"]) for of in children.values()) == [
        (trial, seed, "COMPLETE") for trial in "01" for seed in "01"
    ]
    assert tags[parent]["mlflow.runName"] == "nested" and params[f"{parent} space.optimizer.lr"] == "0.001,0.1" and params[f"{parent} sweep.seeds"] == "0,1"
    best = opened("nested").status()
    assert latest[f"{parent} best"] == best.best_value and latest[f"{parent} trials_complete"] == 2
    assert set(opened("nested").best()[0].user_attrs["losskit:runs"]) == {"0", "1"} and best.best_run_id in children
    (page,) = Path().glob("**/artifacts/**/report.html")
    assert "nested" in page.read_text()
    compared = ok(losskit("compare", "--sweep", "nested", "--group-by", "optimizer.lr", "--over", "seed", "--json")).json()
    assert compared["metric"] == "val/acc" and compared["direction"] == "max", "what the sweep is about"
    assert {str(group["optimizer.lr"]): group["n"] for group in compared["rows"]} == {"0.001": 2, "0.1": 2}


def test_status_says_it_all(losskit: Losskit) -> None:
    ok(losskit("sweep", *QUIET, "optimizer.lr=0.01,0.1", "sweep.name=s"))
    found = ok(losskit("sweep", "--status", "s", "--json")).json()
    keys = "name storage total complete pruned failed running waiting best_value best_params best_run_id workers"
    assert list(found) == keys.split()
    best = min(opened("s").trials(), key=lambda t: t.values[0])
    assert (found["total"], found["complete"], found["best_value"], found["best_params"]) == (2, 2, best.values[0], best.params)
    shown = ok(losskit("sweep", "--status", "s", "--watch")).out
    assert "2 of 2 trials" in shown and "COMPLETE" in shown
    stopped = losskit("sweep", "--stop", "s")
    assert stopped.code == 2 and "s is finished: there is nothing to stop" in stopped.err


def test_the_preset_with_another_pruner(losskit: Losskit) -> None:
    found = ok(losskit("sweep", "sweep=quick_tpe", *QUIET, "sweep.n_trials=3", "sweep.pruner=hyperband", "sweep.name=p", "--json")).json()
    assert found["complete"] + found["pruned"] == 3
    assert opened("p").plan.settings["pruner"]["_target_"] == "sweeps.algorithms.Hyperband"
    assert list(opened("p").trials()[0].params) == ["optimizer.lr"], "the preset's own space"


def test_a_checkpoint_knows_of_the_report_before_it(losskit: Losskit) -> None:
    """Else a trial that goes on from it would give the next report this one's number."""
    ok(losskit("sweep", *QUIET, "seed=0,1", "sweep.name=numbered"))
    for trial in opened("numbered").trials():
        assert sorted(trial.intermediate_values) == [1, 2]
        checkpoint = torch.load(Path(runs_of(trial)["None"]["run_dir"]) / "checkpoints" / "last.ckpt", weights_only=True)
        assert {"made": 2} in checkpoint["callbacks"].values()

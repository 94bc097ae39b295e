"""What a run found: ``schedule/found.json``, ``schedule=replay``, ``losskit plot schedule=RUN``, on real runs with files written by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.schedules.compose import straight
from losskit_cli.errors import UsageError
from losskit_cli.found_schedule import FoundSchedule, source_of, with_replay
from tests.cli.found import found, write_found
from tests.conftest import Result, invoke, trained

Losskit = Callable[..., Result]
TINY = ["data=iris", "model=linear", "optimizer=sgd", "trainer.accelerator=cpu", "trainer.max_epochs=10", "trainer.log_every_n_steps=2", "data.batch_size=32"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A directory with two tracked runs of 40 steps: one that is given a found schedule, one with a WSD schedule."""
    directory = tmp_path_factory.mktemp("found")
    shutil.copy(store_template, directory / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        searched = trained(*TINY, "name=searched", "optimizer.lr=0.1")
        given = trained(*TINY, "name=given", "schedule=wsd", "schedule.warmup=8", "optimizer.lr=0.2")
    write_found(searched["run_dir"])
    return directory, searched, given


@pytest.fixture
def project(made: tuple[Path, dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made[0])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made[0]


def saved(run: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load((Path(run["run_dir"]) / "config.yaml").read_text())


class TestFile:
    def test_what_it_says(self, tmp_path: Path) -> None:
        write_found(tmp_path)
        schedule = FoundSchedule.read(tmp_path / "schedule" / "found.json")
        assert [schedule.factor(step) for step in (0, 2, 4, 19, 20, 30, 40)] == [0.0, 1.0, 2.0, 2.0, 1.0, 0.5, 0.0]
        (stage,) = schedule.stages
        assert [probe.outcome for probe in stage.probes] == [0.9, None] and stage.probes[0].forecast == ([20.0, 40.0], [1.0, 0.8])
        assert schedule.finished and schedule.node()["at"] == [0.0, 0.1, 0.5, 0.5, 1.0]

    def test_an_unfinished_run(self, tmp_path: Path) -> None:
        stage = {**found()["stages"][0], "chosen": None, "probes": []}
        write_found(tmp_path, trained_steps=10, at=[0, 4], factors=[0.0, 2.0], stages=[stage])
        schedule = FoundSchedule.read(tmp_path / "schedule" / "found.json")
        assert not schedule.finished and schedule.factor(39) == 2.0 and schedule.stages[0].chosen is None

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"version": 2}, "no found schedule of version 1: its version is 2"),
            ({"lr": 0}, "lr must be > 0"),
            ({"lr": "0.1"}, "lr must be a finite number, but got '0.1'"),
            ({"at": [0, 4]}, r"at and factors must be one point or more, and as many \(2 and 5\)"),
            ({"at": [0, 9, 4, 20, 40]}, "at must rise from 0 to at most total_steps=40"),
            ({"at": [0, 4, 20, 20, 41]}, "at most total_steps=40"),
            ({"factors": [0, 1, -1, 1, 1]}, "factors must be >= 0"),
            ({"factors": [0, 0, 0, 0, 0]}, "factors must not all be 0"),
            ({"factors": [0, 1, float("nan"), 1, 1]}, "factors must be a list of finite numbers"),
            ({"total_steps": 0}, "total_steps must be a whole number >= 1"),
            ({"stages": {}}, "stages must be a list"),
            ({"stages": [1]}, r"stages\[0\] must be an object"),
            ({"stages": [{"stage": 0}]}, r"stages\[0\]: chosen is missing"),
            ({"stages": [{**found()["stages"][0], "probes": [{**found()["stages"][0]["probes"][0], "train_losses": [1.0]}]}]}, r"probes\[0\]: train_steps and"),
            ({"method": None}, "method must be a text, but got None"),
        ],
    )
    def test_malformed_is_refused_in_words(self, tmp_path: Path, changed: dict[str, Any], says: str) -> None:
        write_found(tmp_path, **changed)
        with pytest.raises(UsageError, match=says) as refused:
            FoundSchedule.read(tmp_path / "schedule" / "found.json")
        assert "found.json" in str(refused.value)

    def test_no_json(self, tmp_path: Path) -> None:
        (tmp_path / "found.json").write_text('{"version": 1,')
        with pytest.raises(UsageError, match="is no found schedule: Expecting"):
            FoundSchedule.read(tmp_path / "found.json")
        with pytest.raises(UsageError, match="cannot read"):
            FoundSchedule.read(tmp_path)


class TestRates:
    def test_of_the_schedule_and_as_logged(self, project: Path) -> None:
        source = source_of("given")
        rates = source.rates()
        assert len(rates) == source.total_steps == source.trained_steps == 40
        assert source.curves["lr-SGD"] and source.curves["train/loss"]
        for step, value in source.curves["lr-SGD"]:
            assert rates[step - 1] == pytest.approx(value)

    def test_found_ones_win_over_the_config(self, project: Path) -> None:
        rates = source_of("searched").rates()
        assert rates[19:21] == pytest.approx([0.2, 0.1]) and rates[2] == pytest.approx(0.1)

    def test_without_schedule(self, losskit: Losskit) -> None:
        losskit("train", *TINY, "~schedule", "name=flat", "tracking=none", "optimizer.lr=0.3")
        source = source_of("flat")
        with pytest.raises(UsageError, match="how many steps run flat had is not recorded"):
            source.rates()
        refused = losskit("train", *TINY, "schedule=replay", "schedule.run=flat")
        assert refused.code == 2 and "run flat had no schedule: its learning rate was 0.3 throughout" in refused.err


class TestReplay:
    def test_found_schedule_stretched_and_absolute(self, project: Path) -> None:
        run = trained(*TINY, "schedule=replay", "schedule.run=searched", "optimizer.lr=0.05", "seed=5", "data.batch_size=16", "name=again")
        rates = source_of("again").rates()
        assert len(rates) == 70  # 10 epochs of 7 batches
        searched = source_of("searched").found
        assert searched is not None
        assert rates == pytest.approx([0.1 * searched.factor(step * 40 / 70) for step in range(70)], abs=1e-9)
        for step, value in source_of("again").curves["lr-SGD"]:
            assert rates[step - 1] == pytest.approx(value)
        node = saved(run)["schedule"]
        assert (node["run"], node["of_lr"], node["base_lr"]) == ("searched", 0.1, 0.05) and node["of"]["factors"] == [0.0, 2.0, 2.0, 1.0, 0.0]

    def test_factors_instead(self, project: Path) -> None:
        trained(*TINY, "schedule=replay", "schedule.run=searched", "schedule.absolute=false", "optimizer.lr=0.05", "name=relative")
        assert max(source_of("relative").rates()) == pytest.approx(2 * 0.05)

    def test_a_run_with_an_ordinary_schedule(self, project: Path) -> None:
        trained(*TINY, "schedule=replay", "schedule.run=given", "optimizer.lr=0.05", "trainer.max_epochs=20", "name=longer")
        given, longer = source_of("given").rates(), source_of("longer").rates()
        assert len(longer) == 2 * len(given) == 80
        assert longer[::2] == pytest.approx(given)

    def test_saved_run_is_run_again_when_the_other_is_gone(self, losskit: Losskit) -> None:
        trained(*TINY, "tracking=none", "name=source", "optimizer.lr=0.1")
        directory = source_of("source").run.run_dir
        write_found(directory)
        first = trained(*TINY, "tracking=none", "schedule=replay", "schedule.run=source", "name=first")
        lr = saved(first)["optimizer"]["lr"]
        shutil.rmtree(directory)
        again = losskit("rerun", "first", "--json")
        assert again.code == 0, again.err
        assert again.json()["metrics"] == first["metrics"]
        changed = losskit("rerun", "first", "optimizer.lr=0.02", "--dry-run")
        assert changed.code == 0 and changed.out.splitlines() == [f"{key}: {lr} → 0.02" for key in ("schedule.base_lr", "optimizer.lr")]
        other = losskit("rerun", "first", "schedule.run=nobody")
        assert other.code == 2 and "schedule.run=nobody: there is no run 'nobody'" in other.err

    def test_rerun_with_another_run_takes_that_ones(self, project: Path) -> None:
        trained(*TINY, "schedule=replay", "schedule.run=searched", "name=before")
        result = invoke("rerun", "before", "schedule.run=given", "name=after", "--json")
        assert result.code == 0, result.err
        assert saved(result.json())["schedule"]["of"]["_target_"] == "components.schedules.WSD"

    def test_unfinished_is_said(self, losskit: Losskit) -> None:
        run = trained(*TINY, "tracking=none", "name=half")
        write_found(run["run_dir"], trained_steps=10, at=[0, 4], factors=[0.0, 2.0])
        result = losskit("train", *TINY, "tracking=none", "schedule=replay", "schedule.run=half")
        assert result.code == 0 and "note: half stopped after 10 of 40 steps; from there on its last learning rate is held" in result.err

    def test_filled_in_once(self) -> None:
        node = {"_target_": "components.schedules.Replay", "run": "gone", "of_run": "gone", "of": {"_target_": "components.schedules.Cosine"}}
        assert with_replay({"schedule": node}) == {"schedule": node}
        assert with_replay({"schedule": None}) == {"schedule": None}

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["schedule=replay"], "schedule.run is required"),
            (["schedule=replay", "schedule.run=nobody"], "schedule.run=nobody: there is no run 'nobody'"),
            (["schedule=replay", "schedule.run=searched", "optimizer.lr=0"], "base_lr must be a number > 0"),
            (["schedule=replay", "schedule.run=searched", "schedule.absolut=false"], "did you mean 'absolute'"),
        ],
    )
    def test_refused(self, project: Path, overrides: list[str], says: str) -> None:
        result = invoke("train", *TINY, *overrides)
        assert result.code == 2 and says in result.err, result.err

    def test_a_search_that_kept_nothing(self, losskit: Losskit) -> None:
        run = trained(*TINY, "tracking=none", "name=lost")
        file = Path(run["run_dir"]) / "run_spec.json"
        spec = json.loads(file.read_text())
        spec["config"]["schedule"] = {"_target_": "sweeps.autolrs.AutoLRS"}
        file.write_text(json.dumps(spec))
        result = losskit("train", *TINY, "schedule=replay", "schedule.run=lost")
        assert result.code == 2 and "searched for its schedule, but has not kept any" in result.err


class TestPlot:
    def test_found_schedule_with_probes(self, project: Path) -> None:
        shown = invoke("plot", "schedule=searched", "--json").json()
        assert (shown["kind"], shown["name"]) == ("run", "searched")
        rate, loss = shown["panels"]
        found_rates = [0.1 * straight([0, 4, 20, 20, 40], [0, 2, 2, 1, 0], step) for step in shown["x"]]
        assert rate["curves"]["searched"] == pytest.approx(found_rates)
        assert max(rate["curves"]["cosine"]) == pytest.approx(0.2) and max(rate["curves"]["wsd"]) == pytest.approx(0.2)
        assert set(loss["curves"]) == {"train/loss", "val/loss"} and all(map(math.isfinite, loss["curves"]["train/loss"]))
        assert [probe["losses"] for probe in shown["found"]["stages"][0]["probes"]] == [[2.0, 1.6, 1.2], [5.0, None]]
        assert (project / "schedule-searched.png").read_bytes().startswith(PNG)

    def test_in_the_terminal(self, project: Path) -> None:
        result = invoke("plot", "schedule=searched", "-o", "pictures/found.png")
        assert result.code == 0, result.err
        assert "learning rate found by searched (cooldown): 40 steps, 13 more in probes" in result.out
        assert "steps 0–40  lr: 2  (2 probes, 1 diverged; best of 2 probes)" in result.out
        assert any(0x2800 < ord(c) < 0x2900 for c in result.out)
        assert (project / "pictures" / "found.png").read_bytes().startswith(PNG)

    def test_a_run_with_an_ordinary_schedule(self, project: Path) -> None:
        shown = invoke("plot", "schedule=given", "--json").json()
        assert shown["found"] is None
        assert shown["panels"][0]["curves"]["given"] == pytest.approx([source_of("given").rates()[int(step)] for step in shown["x"]])

    def test_replay_as_an_option(self, project: Path) -> None:
        shown = invoke("plot", "schedule=replay", "schedule.run=searched", "schedule.absolute=false", "--steps", "80", "--json").json()
        assert shown["panels"][0]["curves"]["replay"][8] == pytest.approx(2.0)

    def test_an_options_name_wins(self, project: Path) -> None:
        trained(*TINY, "name=wsd")
        assert invoke("plot", "schedule=wsd", "--json").json()["kind"] == "schedule"

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["schedule=searchd"], ["there is no schedule=searchd", "constant, cosine", "no run of that name", "the nearest names: searched"]),
            (["schedule=cosin"], ["did you mean 'cosine'", "no run of that name"]),
            (["schedule=searched", "schedule.warmup=3"], ["schedule.warmup=3: a run's schedule is drawn as it was"]),
            (["schedule=replay"], ["schedule.run is required"]),
            (["schedule=autolrs"], ["schedule=autolrs is found while a run trains: losskit plot schedule=RUN"]),
        ],
    )
    def test_refused(self, project: Path, words: list[str], says: list[str]) -> None:
        result = invoke("plot", *words)
        assert result.code == 2 and result.out == ""
        for text in says:
            assert text in result.err, result.err

    def test_without_any_store(self, losskit: Losskit) -> None:
        result = losskit("plot", "schedule=brave-owl")
        assert result.code == 2 and "there is no schedule=brave-owl" in result.err and "no run of that name" in result.err

    def test_malformed_file_is_named(self, losskit: Losskit) -> None:
        run = trained(*TINY, "tracking=none", "name=broken")
        write_found(run["run_dir"], lr=-1)
        result = losskit("plot", "schedule=broken")
        assert result.code == 2 and "found.json: lr must be > 0" in result.err

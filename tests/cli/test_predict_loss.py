"""``losskit predict-loss``: laws fitted to real runs' journals; their losses replaced by a known law's where the numbers must come out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from components.schedules import WSD, Cosine
from components.schedules.laws import AnnealingLaw, Curve
from losskit_cli.errors import RunError
from losskit_cli.found_schedule import source_of
from losskit_cli.predict_loss import fitting_law, measure, thin
from tests.cli.found import write_found
from tests.conftest import invoke, trained

TINY = ["data=digits", "model=linear", "optimizer=sgd", "optimizer.lr=0.05", "trainer.accelerator=cpu", "data.batch_size=64", "trainer.max_epochs=10"]
TINY += ["trainer.log_every_n_steps=2", "trainer.check_val_every_n_epoch=5"]
TRUE = {"L0": 0.3, "A": 0.4, "alpha": 0.4, "C": 0.1}
PNG = b"\x89PNG\r\n\x1a\n"


def rewritten(run: dict[str, Any], loss: Callable[[int], float], key: str = "train/loss") -> None:
    """Replace what a run logged as ``key`` at a step by ``loss(step)``."""
    file = Path(run["run_dir"]) / "tracking.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["t"] == "m" and key in record["d"]:
            record["d"][key] = loss(record["s"])
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Path:
    """A directory with runs of 200 steps that obey :data:`TRUE`: ``flat``, ``cos``, ``decayed``; and ``real``, whose losses are its own."""
    directory = tmp_path_factory.mktemp("predict")
    shutil.copy(store_template, directory / "mlflow.db")
    law = AnnealingLaw(TRUE, decay=0.95)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, schedule in {"flat": "constant", "cos": "cosine", "decayed": "wsd"}.items():
            run = trained(*TINY, f"name={name}", f"schedule={schedule}")
            rates = np.asarray(source_of(name).rates())
            rewritten(run, lambda step, rates=rates: float(law.predict(rates, [step - 1]).loss[0]))  # type: ignore[misc]
        trained(*TINY, "name=real", "schedule=cosine")
    return directory


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


class TestPrediction:
    def test_known_law_is_foreseen(self, project: Path) -> None:
        result = invoke("predict-loss", "cos", "flat", "schedule=wsd", "schedule.total_steps=200", "--law", "annealing", "--metric", "train/loss", "--json")
        assert result.code == 0, result.err
        shown = result.json()
        assert shown["law"] == "AnnealingLaw" and shown["fitted_runs"] == ["cos", "flat"] and shown["horizon"] == 200
        assert shown["params"] == pytest.approx(TRUE, rel=0.05)
        (foreseen,) = shown["predictions"]
        rates = 0.05 * np.asarray(WSD(warmup=0.05, total_steps=200).values())
        truth = AnnealingLaw(TRUE, decay=0.95).predict(rates, foreseen["curve"]["steps"]).loss
        assert foreseen["curve"]["loss"][20:] == pytest.approx(truth[20:].tolist(), rel=0.01)
        assert foreseen["low"] <= foreseen["final"] <= foreseen["high"] and foreseen["final"] == foreseen["curve"]["loss"][-1]
        assert all(run["r2"] > 0.99 for run in shown["runs"])
        assert (project / shown["file"]).read_bytes().startswith(PNG)
        assert not any("intervals hold only" in note for note in shown["notes"])  # within the horizon

    def test_beyond_the_horizon_is_said(self, project: Path) -> None:
        result = invoke("predict-loss", "cos", "schedule=cosine", "schedule.total_steps=2000")
        assert result.code == 0, result.err
        assert "2,000 steps are more than the 200 of the longest fitted run" in result.out
        assert "90 % intervals held 34 to 59 %" in result.out and "fitted to one run" in result.out
        for text in ("train/loss by AnnealingLaw, fitted to cos", "R²", "mean error", "worst", "90% interval", "predict-loss.png", "cosine"):
            assert text in result.out
        assert any(0x2800 < ord(c) < 0x2900 for c in result.out)

    def test_a_higher_rate_than_any_fitted_is_said(self, project: Path) -> None:
        shown = invoke("predict-loss", "cos", "schedule=cosine", "optimizer.lr=0.08", "--json").json()
        assert shown["predictions"][0]["lr"] == 0.08 and any("above the highest fitted, 0.05" in note for note in shown["notes"])

    def test_several_schedules_in_one_table(self, project: Path) -> None:
        shown = invoke("predict-loss", "cos", "schedule=cosine,wsd,linear", "--steps", "100", "--json").json()
        assert [p["schedule"] for p in shown["predictions"]] == ["cosine", "wsd", "linear"]
        assert {p["total_steps"] for p in shown["predictions"]} == {100}

    def test_a_found_and_a_replayed_schedule(self, project: Path) -> None:
        run = trained(*TINY, "name=searched", "trainer.max_epochs=5")
        write_found(run["run_dir"], lr=0.05, total_steps=100, trained_steps=100, at=[0, 50, 100], factors=[1.0, 1.0, 0.0])
        source = source_of("searched")
        assert source.rates()[49:52] == pytest.approx([0.05, 0.05, 0.049])
        shown = invoke("predict-loss", "cos", "schedule=replay", "schedule.run=searched", "--steps", "100", "--json").json()
        rates = [0.05 * min(1.0, 2 - step / 50) for step in range(100)]
        law = invoke("predict-loss", "cos", "--save", "law.json", "--json")
        assert law.code == 0
        from losskit_cli.predict_loss import Fitted

        assert shown["predictions"][0]["final"] == pytest.approx(Fitted.load(project / "law.json").law.final(rates), rel=1e-6)

    def test_without_schedule_only_the_fit(self, project: Path) -> None:
        shown = invoke("predict-loss", "real", "--json").json()
        assert shown["predictions"] == [] and shown["runs"][0]["points"] > 50 and 0.5 < shown["runs"][0]["r2"] <= 1

    def test_validation_loss(self, project: Path) -> None:
        run = trained(*TINY, "name=validated", "schedule=cosine", "trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=0.25")
        assert len(source_of("validated").curves["val/loss"]) >= 20
        shown = invoke("predict-loss", "validated", "schedule=wsd", "--json").json()
        assert shown["metric"] == "val/loss" and set(shown["runs"][0]["steps"]) <= {step for step, _ in source_of("validated").curves["val/loss"]}
        assert run["steps"] >= shown["runs"][0]["steps"][-1]


class TestMeasuring:
    def test_training_losses_count_for_the_middle_of_their_steps_after_the_warmup(self, project: Path) -> None:
        source = source_of("decayed")
        measured = measure(source, "train/loss", 0.0, [])
        assert measured.curve.steps[0] == 11 and (np.diff(measured.curve.steps) == 2).all()  # WSD's warm-up is a twentieth of 200
        assert measured.curve.rates.tolist() == pytest.approx(source.rates())
        assert measure(source, "train/loss", 0.5, []).curve.steps[0] >= 100

    def test_many_points_are_averaged(self, project: Path) -> None:
        source = source_of("cos")
        steps = [(step, 1 + 1 / step) for step in range(1, 201)]
        dense = type(source)(source.run, source.spec, None, 200, {"train/loss": steps * 1, "val/loss": steps})
        few = measure(dense, "train/loss", 0, []).curve
        assert few.steps.size == 200

    def test_log_wins_where_a_run_left_its_schedule(self, project: Path) -> None:
        run = trained(*TINY, "name=drifted", "schedule=cosine")
        rewritten(run, lambda step: 0.05, "lr-SGD")
        notes: list[str] = []
        measured = measure(source_of("drifted"), "train/loss", 0.05, notes)
        assert measured.curve.rates.tolist() == pytest.approx([0.05] * 200) and "did not keep to the schedule" in notes[0]

    def test_which_law(self) -> None:
        def curve(schedule: Any, points: int) -> Curve:
            steps = np.linspace(10, 100, points).astype(int)
            return Curve.of(schedule, 0.1, steps, 1 + 1 / steps)

        flat, cos = (curve(s.with_total_steps(100), 40) for s in (Cosine(end_factor=1.0), Cosine()))
        assert fitting_law([flat]) == "power"
        assert fitting_law([cos]) == fitting_law([cos, cos]) == "annealing"
        assert fitting_law([flat, cos]) == "multi_power"
        assert fitting_law([curve(Cosine(end_factor=1.0, total_steps=100), 10), curve(Cosine(total_steps=100), 10)]) == "annealing"


class TestOptimise:
    def test_no_worse_than_the_usual_ones_and_usable(self, project: Path) -> None:
        result = invoke(
            "predict-loss", "cos", "flat", "--law", "annealing", "schedule=wsd,cosine", "--steps", "200", "--optimise",
            "--save-schedule", "conf/schedule/mine.yaml", "--json",
        )  # fmt: skip
        assert result.code == 0, result.err
        shown = result.json()
        assert [p["schedule"] for p in shown["predictions"]] == ["wsd", "cosine", "optimised"]
        finals = [p["final"] for p in shown["predictions"]]
        assert finals[2] <= finals[0] * (1 + 1e-6)
        option = yaml.safe_load((project / "conf" / "schedule" / "mine.yaml").read_text())
        assert option == shown["optimised"] and option["_target_"] == "components.schedules.Piecewise"
        run = trained(*TINY, "--config-dir", "conf", "schedule=mine", "name=mine")
        assert run["status"] == "FINISHED"
        again = invoke("predict-loss", "cos", "flat", "--law", "annealing", "-cd", "conf", "schedule=mine", "--steps", "200", "--json").json()
        assert again["predictions"][0]["final"] == pytest.approx(finals[2], rel=2e-3)

    def test_terminal_says_how_to_use_it(self, project: Path) -> None:
        result = invoke("predict-loss", "cos", "--optimise", "--steps", "50", "--save-schedule", "conf/schedule/short.yaml")
        assert result.code == 0, result.err
        assert f"losskit train --config-dir {project / 'conf'} schedule=short optimizer.lr=0.05" in result.out

    def test_thinning_keeps_the_line(self) -> None:
        at = [i / 100 for i in range(101)]
        values = [min(1.0, 2 - 2 * x) for x in at]
        assert thin(at, values) == [(0.0, 1.0), (0.5, 1.0), (1.0, 0.0)]


class TestSaving:
    def test_saved_law_predicts_the_same_without_the_runs(self, project: Path) -> None:
        first = invoke("predict-loss", "cos", "flat", "schedule=wsd", "--steps", "150", "--save", "laws/digits.json", "--json").json()
        again = invoke("predict-loss", "--load", "laws/digits.json", "schedule=wsd", "--steps", "150", "--json").json()
        assert again["predictions"] == first["predictions"] and again["params"] == first["params"] and again["runs"] == []
        compared = invoke("predict-loss", "--load", "laws/digits.json", "decayed", "--json").json()
        assert [run["name"] for run in compared["runs"]] == ["decayed"] and compared["fitted_runs"] == ["cos", "flat"]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "is no saved law: Expecting"),
            ("{}", "is no saved law: losskit predict-loss RUN --save"),
            ('{"format": "losskit.law", "version": 1}', "is no whole law: law must be one of"),
            ('{"format": "losskit.law", "version": 1, "law": "PowerLaw", "options": {}}', "is no whole law: the state of a law must have"),
        ],
    )
    def test_what_is_no_law(self, project: Path, text: str, says: str) -> None:
        Path("bad.json").write_text(text)
        result = invoke("predict-loss", "--load", "bad.json", "schedule=cosine")
        assert result.code == 2 and says in result.err, result.err


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ([], "say which runs to learn from"),
            (["schedule=cosine"], "say which runs to learn from"),
            (["nobody"], "there is no run 'nobody'"),
            (["cos", "--law", "anealing"], "did you mean 'annealing'"),
            (["cos", "--metric", "train/los"], "run cos has not logged train/los; did you mean 'train/loss'"),
            (["cos", "--skip", "1"], "--skip must be in [0, 1)"),
            (["cos", "--level", "90"], "--level must be in (0, 1)"),
            (["cos", "--steps", "1"], "--steps must be at least 2"),
            (["cos", "schedule=cosin"], "did you mean 'cosine'"),
            (["cos", "schedule=cosine", "schedule.total_steps=0.5"], "schedule.total_steps must be a whole number >= 2"),
            (["cos", "schedule=autolrs"], "schedule=autolrs is found while a run trains"),
            (["cos", "loss=focal"], "loss=focal: only the schedule and optimizer.lr have a part"),
            (["cos", "--save-schedule", "x.yaml"], "--save-schedule is about the schedule that --optimise finds"),
            (["cos", "--optimise", "--save-schedule", "x.json"], "--save-schedule must end in .yaml"),
            (["cos", "--load", "law.json", "--law", "power"], "--law is about fitting a law, and --load takes one"),
            (["--load", "nowhere.json", "schedule=cosine"], "--load nowhere.json: No such file"),
            (["cos", "-o", "x.nothing"], "cannot write x.nothing"),
        ],
    )
    def test_usage(self, project: Path, words: list[str], says: str) -> None:
        result = invoke("predict-loss", *words)
        assert (result.code, result.out) == (2, "") and says in result.err, result.err

    def test_a_law_that_does_not_fit_says_why(self, project: Path) -> None:
        refused = invoke("predict-loss", "flat", "schedule=cosine", "--law", "annealing")
        assert refused.code == 1 and refused.out == "" and "AnnealingLaw needs a run whose learning rate falls" in refused.err
        run = trained(*TINY, "name=rising", "schedule=cosine")
        rewritten(run, lambda step: 1 + 0.3 * math.sin(step))
        refused = invoke("predict-loss", "rising", "schedule=cosine")
        assert refused.code == 1 and "no law could be fitted to train/loss of rising" in refused.err
        assert "residuals of log loss" in refused.err and "another: --law" in refused.err

    def test_a_fit_worse_than_a_constant_is_refused(self, project: Path) -> None:
        run = trained(*TINY, "name=cliff", "schedule=cosine")
        rewritten(run, lambda step: 1e-4 + 40 * step**-2.0 if step > 80 else 3.0)
        refused = invoke("predict-loss", "cliff", "schedule=wsd")
        assert refused.code == 1 and refused.out == "" and "worse than a constant would (R² -" in refused.err and "--skip 0.2" in refused.err

    def test_a_loss_below_zero_is_refused(self, project: Path) -> None:
        refused = invoke("predict-loss", "cos", "schedule=cosine", "optimizer.lr=5")
        assert refused.code == 1 and refused.out == "" and "foresees a loss of -" in refused.err and "says nothing about that schedule" in refused.err

    def test_too_few_points(self, project: Path) -> None:
        refused = invoke("predict-loss", "cos", "schedule=cosine", "--metric", "val/loss")
        assert refused.code == 1 and "run cos has 2 values of val/loss after step 10: too few" in refused.err

    def test_losses_that_are_not_finite(self, project: Path) -> None:
        run = trained(*TINY, "name=burst", "schedule=cosine")
        rewritten(run, lambda step: math.inf if step > 150 else 1.0)
        with pytest.raises(RunError, match="values of train/loss are not finite or not above 0"):
            measure(source_of("burst"), "train/loss", 0, [])

    def test_a_run_without_tracking(self, project: Path) -> None:
        trained(*TINY, "name=silent", "tracking=none", "trainer.max_epochs=1")
        refused = invoke("predict-loss", "silent", "schedule=cosine")
        assert refused.code == 2 and "run silent has logged nothing: it was trained without tracking" in refused.err

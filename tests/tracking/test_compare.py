"""Tables of runs: what is in them, in which order, and how they are filtered and printed."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from losskit_cli.compare import better_direction, compare_runs, run_compare, show_seconds, to_csv, to_json, to_markdown, to_table
from losskit_cli.errors import UsageError
from losskit_cli.tracking import Store
from losskit_cli.tracking.filter import keep, parse_filter
from tests.tracking.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    """Two losses with three seeds each, one killed run."""
    store = MemoryStore()
    for loss, accuracy, gamma in (("focal", 0.9, "2.0"), ("cross_entropy", 0.8, None)):
        for seed in range(3):
            params = {"seed": str(seed), "optimizer.lr": "0.1", "loss._target_": f"components.losses.{loss}", "name": f"{loss}-{seed}"}
            params |= {"loss.gamma": gamma} if gamma else {}
            metrics = {"val/loss": [0.05, 1 - accuracy + seed / 100], "test/acc": accuracy + seed / 100, "train/loss": 0.0}
            store.add(f"{loss}-{seed}", metrics, params=params, options={"loss": loss, "model": "mlp"}, duration=10 + seed)
    store.add("killed", {"val/loss": 0.01}, status="KILLED", params={"seed": "9"}, options={"loss": "focal", "model": "mlp"}, duration=None)
    return store


def names(found: Any) -> list[str]:
    return [row["name"] for row in found.rows]


class TestRuns:
    def test_what_differs_is_shown_and_what_does_not_is_not(self, store: MemoryStore) -> None:
        found = compare_runs(store, filter="status = FINISHED")
        assert [c.name for c in found.columns] == ["id", "name", "status", "loss", "seed", "loss.gamma", "test/acc", "duration"]
        row = found.rows[0]
        assert (row["name"], row["loss"], row["loss.gamma"], row["test/acc"], row["duration"]) == ("focal-2", "focal", "2.0", 0.92, 12.0)

    def test_sorted_by_the_first_metric_in_its_better_direction(self, store: MemoryStore) -> None:
        found = compare_runs(store, metrics=["test/acc", "val/loss"])
        assert (found.metric, found.direction) == ("test/acc", "max")
        assert names(found)[:2] == ["focal-2", "focal-1"] and names(found)[-1] == "killed"  # it has no test/acc
        lower = compare_runs(store, metrics=["val/loss"])
        assert lower.direction == "min" and names(lower)[:2] == ["killed", "focal-0"]
        assert names(compare_runs(store, metrics=["val/loss"], direction="max"))[0] == "cross_entropy-2"

    def test_the_runs_say_what_they_were_optimised_for(self, store: MemoryStore) -> None:
        tags = {"losskit.optimized_metric": "val/score", "losskit.optimized_direction": "minimize"}
        for number in range(2):
            store.add(f"tagged-{number}", {"val/score": float(number)}, tags=tags)
        found = compare_runs(store)
        assert (found.metric, found.direction) == ("val/score", "min") and names(found)[:2] == ["tagged-0", "tagged-1"]

    def test_the_best_of_the_history(self, store: MemoryStore) -> None:
        found = compare_runs(store, metrics=["val/loss"], best=True, filter="name = focal-0")
        assert found.rows[0]["val/loss"] == 0.05

    def test_nan_comes_last(self) -> None:
        store = MemoryStore()
        for name, value in (("nan", math.nan), ("bad", 2.0), ("good", 1.0)):
            store.add(name, {"val/loss": value})
        assert names(compare_runs(store)) == ["good", "bad", "nan"]

    def test_limit(self, store: MemoryStore) -> None:
        found = compare_runs(store, limit=2)
        assert len(found.rows) == 2 and found.notes == ["2 of 7 rows shown"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"metrics": ["val/los"]}, "no run has a metric 'val/los'; did you mean 'val/loss'"),
            ({"group_by": ["los"]}, "--group-by: no run has 'los'; did you mean 'loss'"),
            ({"filter": "name = nobody"}, "none of the 7 runs passes --filter"),
            ({"experiment": "other"}, "there are no runs in the experiment 'other' of memory yet"),
            ({"direction": "up"}, "direction must be one of auto, min, max"),
            ({"limit": 0}, "--limit must be at least 1"),
            ({"group_by": ["loss"], "filter": "status = KILLED"}, "none of the 1 runs has finished"),
        ],
    )
    def test_what_is_not_there_is_named(self, store: MemoryStore, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            compare_runs(store, **options)

    @pytest.mark.parametrize(
        ("metric", "direction"),
        [("val/loss", "min"), ("val/acc", "max"), ("test/rmse", "min"), ("val/bits_per_byte", "min"), ("test/auroc", "max"), ("val/kd_loss", "min"),
         ("test/f1", "max"), ("test/perplexity", "min"), ("test/calibration_error", "min"), ("test/r2", "max")],
    )  # fmt: skip
    def test_directions_of_well_known_metrics(self, metric: str, direction: str) -> None:
        assert better_direction(metric) == direction


class TestGroups:
    def test_mean_and_spread_over_seeds(self, store: MemoryStore) -> None:
        found = compare_runs(store, metrics=["test/acc"], group_by=["loss"])
        first, second = found.rows
        values = [0.9, 0.91, 0.92]
        spread = {"mean": pytest.approx(0.91), "std": pytest.approx(statistics.stdev(values)), "n": 3}
        assert first == {"loss": "focal", "n": 3, "test/acc": spread, "duration": 11.0}
        assert second["loss"] == "cross_entropy"
        assert found.notes == ["1 of 7 runs have not finished and are left out"]

    def test_by_several_keys(self, store: MemoryStore) -> None:
        found = compare_runs(store, metrics=["test/acc"], group_by=["loss", "seed"])
        assert len(found.rows) == 6 and found.rows[0]["test/acc"]["std"] is None  # one run has no spread


ACCURACIES = {"cross_entropy": (0.80, 0.83, 0.81), "focal": (0.90, 0.94, 0.92), "poly1": (0.83, 0.84, 0.85)}


def sweep_store(name: str = "night") -> MemoryStore:
    """A sweep of three losses over three seeds, cross-entropy started first; its parent run; a pruned and two failed trials."""
    store = MemoryStore()
    store.add(name, {"test/acc": 0.99}, status="RUNNING", tags={"losskit.sweep": name, "losskit.kind": "sweep"})
    for trial, (loss, accuracies) in enumerate(ACCURACIES.items()):
        for seed, accuracy in enumerate(accuracies):
            trial_of(store, f"{loss}-{seed}", name, trial, {"test/acc": accuracy, "test/nll": 1 - accuracy}, loss, seed)
    trial_of(store, "pruned", name, 3, {"test/acc": 0.1}, "focal", 0, state="PRUNED")
    for trial in (4, 5):
        trial_of(store, f"failed-{trial}", name, trial, {}, "focal", 0, state="FAIL", status="FAILED")
    return store


def trial_of(
    store: MemoryStore, name: str, sweep: str, trial: int, metrics: dict[str, float], loss: str, seed: int, state: str = "COMPLETE", **given: Any
) -> None:
    tags = {"losskit.sweep": sweep, "losskit.trial": str(trial), "losskit.trial_state": state, "losskit.seed": str(seed)}
    store.add(name, metrics, tags=tags, options={"loss": loss}, params={"seed": str(seed)}, **given)


class TestSweeps:
    def test_the_parent_run_is_no_run(self) -> None:
        store = sweep_store()
        assert len(store.runs()) == 13 and len(compare_runs(store).rows) == 12
        assert "night" not in names(compare_runs(store))
        only_parent = MemoryStore()
        only_parent.add("night", tags={"losskit.sweep": "night", "losskit.kind": "sweep"})
        with pytest.raises(UsageError, match="there are no runs in memory yet"):
            compare_runs(only_parent)

    def test_only_the_trials_of_a_sweep(self) -> None:
        store = sweep_store()
        store.add("plain", {"test/acc": 1.0})
        trial_of(store, "other", "day", 0, {"test/acc": 0.5}, "focal", 0)
        assert len(compare_runs(store, sweeps=["night"]).rows) == 12
        assert names(compare_runs(store, sweeps=["day"])) == ["other"]
        assert len(compare_runs(store, sweeps=["day", "night"]).rows) == 13
        with pytest.raises(UsageError, match=r"--sweep: no run is of a sweep 'nigth'; did you mean 'night'\? \(there is: day, night\)"):
            compare_runs(store, sweeps=["nigth"])

    def test_trials_say_their_number_and_what_became_of_them(self) -> None:
        found = compare_runs(sweep_store(), sweeps=["night"])
        rows = {row["name"]: row for row in found.rows}
        assert (rows["pruned"]["trial"], rows["pruned"]["status"], rows["failed-4"]["status"]) == ("3", "PRUNED", "FAIL")
        text = to_table(found, 120)
        assert "trial" in text.splitlines()[0] and "PRUNED" in text

    def test_across_sweeps(self) -> None:
        store = sweep_store()
        for seed, accuracy in enumerate((0.95, 0.97, 0.96)):
            trial_of(store, f"day-{seed}", "day", 0, {"test/acc": accuracy}, "focal", seed)
        found = compare_runs(store, sweeps=["night", "day"], group_by=["sweep", "loss"], metrics=["test/acc"])
        assert [(row["sweep"], row["loss"]) for row in found.rows] == [("day", "focal"), ("night", "focal"), ("night", "poly1"), ("night", "cross_entropy")]


class TestOverSeeds:
    @pytest.fixture
    def found(self) -> Any:
        return compare_runs(sweep_store(), sweeps=["night"], group_by=["loss"], over=["seed"], metrics=["test/acc"])

    def test_mean_interval_difference_and_test(self, found: Any) -> None:
        assert [row["loss"] for row in found.rows] == ["focal", "poly1", "cross_entropy"]
        assert found.reference.label == "loss=cross_entropy"  # it was started first
        focal, poly1, reference = (row["test/acc"] for row in found.rows)
        low, high = stats.t.interval(0.95, 2, statistics.fmean(ACCURACIES["focal"]), stats.sem(ACCURACIES["focal"]))
        assert (focal["n"], focal["mean"], focal["low"], focal["high"]) == (3, pytest.approx(0.92), pytest.approx(low), pytest.approx(high))
        assert focal["values"] == {"0": 0.90, "1": 0.94, "2": 0.92}
        p = [stats.ttest_rel(ACCURACIES[loss], ACCURACIES["cross_entropy"]).pvalue for loss in ("focal", "poly1")]
        compared = focal["comparison"], poly1["comparison"]
        assert [c["p"] for c in compared] == [pytest.approx(value) for value in p]
        assert [c["p_corrected"] for c in compared] == [pytest.approx(2 * p[0]), pytest.approx(max(p[1], 2 * p[0]))]
        differences = [a - b for a, b in zip(ACCURACIES["focal"], ACCURACIES["cross_entropy"], strict=True)]
        assert compared[0]["difference"] == pytest.approx(statistics.fmean(differences))
        assert reference["comparison"] is None

    def test_pruned_and_failed_trials_are_left_out_and_counted(self, found: Any) -> None:
        assert found.notes[0] == "1 pruned trial and 2 failed trials left out, which flatters the groups that they were in"
        assert {row["n"] for row in found.rows} == {3}

    def test_one_line_explains_the_columns(self, found: Any) -> None:
        (note,) = found.notes[1:]
        assert note == (
            "mean over seeds ± 95 % t-interval; difference: to loss=cross_entropy, ± 95 %; p: paired t-test, Holm-corrected over 2 comparisons; "
            "effect: Hedges' g of the paired difference"
        )

    def test_plain_runs_work_the_same_way(self, store: MemoryStore) -> None:
        found = compare_runs(store, group_by=["loss"], over=["seed"], metrics=["test/acc"])
        assert found.reference is not None and found.reference.label == "loss=focal"
        second = found.rows[1]["test/acc"]["comparison"]
        assert second["difference"] == pytest.approx(-0.1) and second["p"] is None  # each seed shows the same difference
        assert any("no test for loss=cross_entropy: every pair shows the same difference" in note for note in found.notes)
        assert found.notes[0] == "1 of 7 runs have not finished and are left out"

    def test_without_the_new_options_groups_are_as_they_were(self) -> None:
        found = compare_runs(sweep_store(), group_by=["loss"], metrics=["test/acc"])
        assert found.reference is None and set(found.rows[0]["test/acc"]) == {"mean", "std", "n"}
        assert [c.name for c in found.columns] == ["loss", "n", "test/acc", "duration"]

    @pytest.mark.parametrize("wanted", ["loss=focal", " loss = focal "])
    def test_a_chosen_reference(self, wanted: str) -> None:
        found = compare_runs(sweep_store(), group_by=["loss"], reference=wanted, metrics=["test/acc"])
        assert found.reference is not None and found.reference.label == "loss=focal" and found.rows[0]["test/acc"]["comparison"] is None

    def test_a_reference_with_several_keys_and_commas_in_a_value(self) -> None:
        store = MemoryStore()
        for regularizer in ("l1,l2", "l1"):
            for seed in range(2):
                store.add("r", {"val/loss": seed + len(regularizer)}, options={"loss": "focal", "regularizer": regularizer}, params={"seed": str(seed)})
        found = compare_runs(store, group_by=["regularizer", "loss"], reference="regularizer=l1,l2,loss=focal")
        assert found.reference is not None and found.reference.label == "regularizer=l1,l2, loss=focal"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reference": "loss=focl"}, "there is no group 'loss=focl'; did you mean 'loss=focal'"),
            ({"reference": "los=focal"}, "write loss=…; did you mean 'loss'"),
            ({"reference": "focal"}, "--reference 'focal': write loss=…"),
            ({"over": ["sead"]}, "--over: no run has 'sead'; did you mean 'seed'"),
            ({"over": ["loss"]}, "--over loss: the runs are grouped by it"),
            ({"group_by": [], "over": ["seed"]}, "--over is about groups of runs: say what makes a group, for instance --group-by loss"),
            ({"group_by": [], "reference": "loss=focal"}, "--reference is about groups"),
            ({"group_by": ["loss", "seed"], "over": ["trial"], "reference": "loss=focal"}, "is 3 groups: loss=focal, seed=0; "),
            ({"filter": "tags.trial_state = PRUNED"}, r"none of the 1 runs has finished, so there is nothing to average \(1 pruned trial left out"),
        ],
    )
    def test_what_cannot_be_compared_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            compare_runs(sweep_store(), **{"group_by": ["loss"], "sweeps": ["night"], **options})

    def test_a_single_seed_has_no_interval(self) -> None:
        found = compare_runs(sweep_store(), group_by=["loss"], over=["seed"], metrics=["test/acc"], filter="params.seed = 0")
        assert all(row["test/acc"]["low"] is None for row in found.rows)
        assert "no interval for loss=cross_entropy, loss=focal, loss=poly1: it takes two seeds or more" in found.notes
        assert "no test for loss=focal, loss=poly1: a test needs two pairs" in found.notes
        assert "0.9 " in to_table(found, 80) and "+0.1" in to_table(found, 80)

    def test_what_is_not_finite_is_counted(self) -> None:
        store = sweep_store()
        trial_of(store, "diverged", "night", 6, {"test/acc": math.nan}, "poly1", 3)
        found = compare_runs(store, group_by=["loss"], over=["seed"], metrics=["test/acc"])
        poly1 = found.rows[1]["test/acc"]
        assert (poly1["n"], poly1["nonfinite"], poly1["mean"]) == (3, 1, pytest.approx(0.84))
        assert "1 value not finite and left out of means and tests: loss=poly1 (1)" in found.notes
        assert json.loads(to_json(found))["rows"][1]["test/acc"]["values"]["3"] is None

    def test_runs_of_one_seed_are_one_value(self) -> None:
        store = sweep_store()
        trial_of(store, "again", "night", 6, {"test/acc": 0.60}, "cross_entropy", 0)  # as 0.80 before: 0.70 on average
        found = compare_runs(store, group_by=["loss"], over=["seed"], metrics=["test/acc"])
        reference = found.rows[-1]["test/acc"]
        assert reference["values"]["0"] == pytest.approx(0.70) and reference["n"] == 3 and found.rows[-1]["n"] == 3
        assert any("10 runs have 9 seeds of their groups: averaged per seed first" in note for note in found.notes)

    def test_over_trials(self) -> None:
        """A search with one seed: every trial counts for itself, and pairs with none of another group or sweep."""
        store = MemoryStore()
        for sweep in ("night", "day"):
            for number, value in enumerate((1.0, 2.0, 4.0)):
                trial_of(store, f"{sweep}-{number}", sweep, number, {"val/loss": value + (sweep == "day")}, "focal", 0)
        found = compare_runs(store, group_by=["sweep"], over=["trial"])
        assert found.rows[0]["n"] == 3 and found.rows[1]["val/loss"]["comparison"]["test"] == "Welch's t-test"
        assert set(found.rows[0]["val/loss"]["values"]) == {"night/0", "night/1", "night/2"}
        by_seed = compare_runs(store, group_by=["sweep"], over=["seed"])
        assert by_seed.rows[0]["n"] == 1 and "--over trial takes every trial for itself" in by_seed.notes[0]

    def test_over_several_keys(self) -> None:
        store = MemoryStore()
        for loss, shift in (("a", 0.0), ("b", 1.0)):
            for seed in range(2):
                for lr in ("0.1", "0.2"):
                    value = shift + seed + float(lr) * (2 if loss == "b" else 1)
                    store.add(f"{loss}{seed}{lr}", {"val/loss": value}, options={"loss": loss}, params={"seed": str(seed), "optimizer.lr": lr})
        found = compare_runs(store, group_by=["loss"], over=["seed", "optimizer.lr"])
        assert found.rows[1]["val/loss"]["comparison"]["n"] == 4
        assert found.rows[0]["n"] == 4 and set(found.rows[0]["val/loss"]["values"]) == {"0, 0.1", "0, 0.2", "1, 0.1", "1, 0.2"}
        assert found.notes[-1].startswith("mean over combinations of seed and optimizer.lr ± 95 % t-interval")

    def test_seeds_that_do_not_pair(self) -> None:
        store = MemoryStore()
        for seed, value in enumerate((1.0, 2.0, 4.0, 5.0)):
            store.add(f"r{seed}", {"val/loss": value}, options={"loss": "a" if seed < 2 else "b"}, params={"seed": str(seed)})
        found = compare_runs(store, group_by=["loss"], over=["seed"])
        assert found.rows[1]["val/loss"]["comparison"]["test"] == "Welch's t-test"
        assert "loss=b: its seeds do not pair with the reference's, so Welch's t-test" in found.notes
        assert "p: Welch's t-test, a single comparison; effect: Hedges' g of the difference" in found.notes[-1]

    def test_missing_seeds_are_said(self) -> None:
        found = compare_runs(sweep_store(), group_by=["loss"], over=["seed"], metrics=["test/acc"], filter="name != cross_entropy-2")
        assert "loss=focal, loss=poly1: compared over 2 of 3 seeds, which the reference has too" in found.notes

    def test_one_group(self) -> None:
        found = compare_runs(sweep_store(), group_by=["loss"], over=["seed"], metrics=["test/acc"], filter="params.loss = focal")
        assert "one group only: nothing to compare it with" in found.notes[-1]

    def test_in_80_columns(self, found: Any) -> None:
        lines = to_table(found, 80).splitlines()
        assert lines[0].split() == ["loss", "n", "test/acc", "↑", "difference", "p", "effect", "duration"]
        assert lines[2].startswith("focal          3  0.920 ± 0.050  +0.107 ± 0.014") and lines[4].split()[-4:] == ["reference", "-", "-", "10.0s"]
        assert max(map(len, lines)) <= 80

    def test_further_metrics_have_differences_where_they_were_asked_for(self) -> None:
        options: dict[str, Any] = {"group_by": ["loss"], "over": ["seed"]}
        plain = compare_runs(sweep_store(), **options)
        assert [c.name for c in plain.columns] == ["loss", "n", "test/acc", "difference", "p", "effect", "test/nll", "duration"]
        asked = compare_runs(sweep_store(), metrics=["test/nll", "test/acc"], **options)
        assert [c.name for c in asked.columns][-4:] == ["test/acc difference", "test/acc p", "test/acc effect", "duration"]
        assert "for each metric" in asked.notes[-1]

    def test_json_has_all_of_it(self, found: Any) -> None:
        kept = json.loads(to_json(found))
        assert (kept["reference"], kept["over"], kept["confidence"]) == ("loss=cross_entropy", ["seed"], 0.95)
        focal = kept["rows"][0]["test/acc"]
        assert focal["comparison"]["p_corrected"] == found.rows[0]["test/acc"]["comparison"]["p_corrected"] and focal["std"] == pytest.approx(0.02)

    def test_csv_has_all_of_it(self, found: Any) -> None:
        rows = list(csv.DictReader(io.StringIO(to_csv(found))))
        compared = found.rows[0]["test/acc"]["comparison"]
        for part in ("difference", "p", "p_corrected", "effect"):
            assert float(rows[0][f"test/acc_{part}"]) == compared[part]
        assert (float(rows[0]["test/acc_difference_low"]), rows[0]["test/acc_pairs"], rows[0]["test/acc_test"]) == (compared["low"], "3", "paired t-test")
        assert rows[2]["test/acc_difference"] == "" and float(rows[2]["test/acc_low"]) < 0.8133 and "difference" not in rows[0]

    def test_markdown_has_all_of_it(self, found: Any) -> None:
        lines = to_markdown(found).splitlines()
        heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
        assert heads[:5] == ["loss", "n", "test/acc ↑", "test/acc ↑ 95 %", "test/acc ↑ std"]
        assert heads[5:] == ["difference", "difference 95 %", "difference pairs", "p", "p (Holm)", "effect", "duration"]
        assert all(line.count("|") == lines[0].count("|") for line in lines[1:5]) and "| reference | - | - |" in lines[4]
        assert "0.92 | 0.870317 to 0.969683 | 0.02 | 0.106667" in lines[2]

    def test_the_picture(self, found: Any, tmp_path: Path) -> None:
        from losskit_cli.group_plot import draw_groups

        file = tmp_path / "new" / "groups.png"
        draw_groups(found, file)
        assert file.read_bytes().startswith(b"\x89PNG")
        with pytest.raises(UsageError, match=r"cannot write .*groups\.doc"):
            draw_groups(found, tmp_path / "groups.doc")

    def test_the_command(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        monkeypatch.setattr(Store, "open", staticmethod(lambda uri, cwd: sweep_store()))
        run_compare(["test/acc"], group_by="loss", plot=tmp_path / "g.png", json=True)
        out, err = capsys.readouterr()
        assert json.loads(out)["over"] == ["seed"] and err == f"{tmp_path / 'g.png'}\n" and (tmp_path / "g.png").is_file()
        with pytest.raises(UsageError, match="--plot draws groups of runs"):
            run_compare(plot=tmp_path / "g.png")


class TestPrinting:
    def test_table(self, store: MemoryStore) -> None:
        text = to_table(compare_runs(store, metrics=["test/acc"]), width=120)
        assert "test/acc ↑" in text and "focal-2" in text and "0.92" in text
        assert text.index("focal-2") < text.index("cross_entropy-0")
        grouped = to_table(compare_runs(store, metrics=["test/acc"], group_by=["loss"]), width=120)
        assert "0.91 ± 0.01" in grouped and "left out" in grouped

    def test_a_table_of_many_parameters_stays_narrow(self) -> None:
        store = MemoryStore()
        for number in range(2):
            store.add(f"r{number}", {"val/loss": 1.0}, params={f"p{i}": str(number) for i in range(20)})
        text = to_table(compare_runs(store), width=100)
        assert "also different: p6, p7" in text and max(len(line) for line in text.splitlines()) <= 100
        assert "p19" in to_csv(compare_runs(store))

    def test_names_are_shown_as_they_are(self) -> None:
        store = MemoryStore()
        store.add("[red]x|y[/red]", {"val/loss": 1.0})
        assert "[red]x|y[/red]" in to_table(compare_runs(store), width=100)
        assert "[red]x\\|y[/red]" in to_markdown(compare_runs(store))

    def test_json_is_strict_and_on_one_line(self, store: MemoryStore) -> None:
        store.add("nan", {"test/acc": math.nan})
        text = to_json(compare_runs(store, metrics=["test/acc"]))
        assert text.count("\n") == 1 and "NaN" not in text
        found = json.loads(text)
        assert found["metric"] == "test/acc" and len(found["rows"]) == 8 and found["rows"][-1]["test/acc"] is None

    def test_csv(self, store: MemoryStore) -> None:
        rows = list(csv.DictReader(io.StringIO(to_csv(compare_runs(store, metrics=["test/acc"])))))
        assert len(rows) == 7 and float(rows[0]["test/acc"]) == 0.92 and len(rows[0]["id"]) == 32
        grouped = list(csv.DictReader(io.StringIO(to_csv(compare_runs(store, metrics=["test/acc"], group_by=["loss"])))))
        assert float(grouped[0]["test/acc_mean"]) == pytest.approx(0.91) and float(grouped[0]["test/acc_std"]) == pytest.approx(0.01)

    def test_markdown(self, store: MemoryStore) -> None:
        lines = to_markdown(compare_runs(store, metrics=["test/acc"], group_by=["loss"])).splitlines()
        assert lines[:3] == ["| loss | n | test/acc ↑ | duration |", "| --- | ---: | ---: | ---: |", "| focal | 3 | 0.91 ± 0.01 | 11.0s |"]

    def test_durations(self) -> None:
        assert [show_seconds(s) for s in (0.14, 59.9, 75.2, 3661)] == ["0.1s", "59.9s", "1m15s", "1h01m"]

    def test_the_command_prints_what_was_asked_for(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(Store, "open", staticmethod(lambda uri, cwd: store))
        run_compare(["test/acc,val/loss"], group_by="loss", json=True)
        assert json.loads(capsys.readouterr().out)["rows"][0]["val/loss"]["n"] == 3
        run_compare(["test/acc"], csv=True)
        assert capsys.readouterr().out.startswith("id,name,status,loss")
        with pytest.raises(UsageError, match="choose one of"):
            run_compare(json=True, csv=True)


class TestFilter:
    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("params.loss = 'focal' and metrics.val/loss < 0.105", {"focal-0", "killed"}),
            ("params.loss == focal AND params.seed >= 1 and status != KILLED", {"focal-1", "focal-2"}),
            ("params.loss.gamma = 2", {"focal-0", "focal-1", "focal-2"}),  # a number, however it is written
            ("tags.losskit.loss = focal and params.seed < 1", {"focal-0"}),
            ("tags.loss = focal and params.seed < 1", {"focal-0"}),
            ("name like 'cross%0'", {"cross_entropy-0"}),
            ("name ilike 'CROSS%_1'", {"cross_entropy-1"}),
            ("params.seed in (1, '2') and params.loss != focal", {"cross_entropy-1", "cross_entropy-2"}),
            ("metrics.`test/acc` >= 0.92", {"focal-2"}),
            ('metrics."test/acc" >= 0.92', {"focal-2"}),
            ("duration > 11.5", {"focal-2", "cross_entropy-2"}),
            ("attributes.status = 'KILLED'", {"killed"}),
            ("params.optimizer.lr < 1e-1", set()),
            ("params.optimizer.lr <= 1e-1 and metrics.train/loss = 0 and params.seed=0", {"focal-0", "cross_entropy-0"}),
            ("name = \"it's\"", set()),
        ],
    )
    def test_what_passes(self, store: MemoryStore, text: str, kept: set[str]) -> None:
        assert {run.name for run in keep(store.runs(), text)} == kept

    def test_nan_and_what_is_missing_never_pass(self) -> None:
        store = MemoryStore()
        store.add("nan", {"a": math.nan})
        store.add("none")
        for text in ("metrics.a < 1", "metrics.a >= 1", "metrics.a = 1"):
            assert keep(store.runs(), text) == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "--filter is empty"),
            ("param.loss", "expected a comparison after param.loss at the end"),
            ("metrics.val/loss < low", "needs a number, but got 'low'"),
            ("metric.val/loss <", "expected a value after metric.val/loss < at the end"),
            ("parms.loss = x", "there is no 'parms.loss'; did you mean 'params'"),
            ("statu = x", "there is no 'statu'; did you mean 'status'"),
            ("status = x or name = y", "expected `and`, but got 'or' \\(only `and` joins"),
            ("status = x name = y", "expected `and`, but got 'name'"),
            ("name = 'open", "cannot read"),
            ("name in (a b)", "expected , or \\) in a list"),
            ("name in a", "expected \\( after in"),
            ("(name = a)", "expected a name such as"),
        ],
    )
    def test_what_cannot_be_read_is_explained(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            parse_filter(text)

    def test_a_metric_that_no_run_has(self, store: MemoryStore) -> None:
        with pytest.raises(UsageError, match="no run has a metric 'val/los'; did you mean 'val/loss'"):
            keep(store.runs(), "metrics.val/los < 1")

"""Tables of runs: what is in them, in which order, and how they are filtered and printed."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from typing import Any

import pytest

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

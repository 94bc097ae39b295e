"""The page of a sweep: what is on it, for sweeps of every kind and state, and that it needs and lets in nothing from outside."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from losskit_cli.errors import UsageError
from losskit_cli.report import report_html, run_report, view_of
from losskit_cli.report_figures import MAX_CURVES, MAX_LINES, MAX_POINTS, decimated, with_only
from losskit_cli.studies import train_command
from sweeps.storage import open_storage
from tests.tracking.memory import MemoryStore

START = datetime(2026, 1, 31, 14, 5)
PLAN: dict[str, Any] = {
    "name": "night",
    "fixed": ["data=digits", "sweep=quick_tpe", "sweep.n_trials=9", "hydra/launcher=joblib", "+tags=[a b]"],
    "space": {"loss": "poly1,focal", "loss.epsilon": "interval(-1,5)", "optimizer.lr": "tag(log,interval(0.0001,1))"},
    "settings": {"sampler": {"_target_": "sweeps.TPE", "multivariate": True}, "pruner": None, "retries": 2},
    "objectives": ["val/loss"],
    "total": 9,
}


def trial(number: int, values: float | tuple[float, ...] | None = None, state: TrialState = TrialState.COMPLETE, **given: Any) -> FrozenTrial:
    """A trial of a conditional space: ``loss.epsilon`` exists under every second trial's loss."""
    params: dict[str, Any] = {"loss": "poly1" if number % 2 else "focal", "optimizer.lr": max(0.1 / (number + 1), 1e-4)}
    distributions: dict[str, Any] = {"loss": CategoricalDistribution(["poly1", "focal"]), "optimizer.lr": FloatDistribution(1e-4, 1, log=True)}
    if number % 2:
        params["loss.epsilon"], distributions["loss.epsilon"] = float(number % 5), FloatDistribution(-1, 5)
    several = values if isinstance(values, tuple) else None if values is None else (values,)
    attributes = {"losskit:overrides": [f"{key}={value}" for key, value in params.items()], **given.pop("user_attrs", {})}
    waiting = state == TrialState.WAITING
    made = create_trial(
        state=state, values=several, params={} if waiting else params, distributions={} if waiting else distributions, user_attrs=attributes, **given
    )
    if not waiting:
        made.datetime_start = START + timedelta(seconds=60 * number)
        made.datetime_complete = None if state == TrialState.RUNNING else made.datetime_start + timedelta(seconds=45)
    return made


def study_of(*trials: FrozenTrial, directions: tuple[str, ...] = ("minimize",), plan: dict[str, Any] | None = PLAN, storage: Any = None) -> optuna.Study:
    study = optuna.create_study(study_name="night", directions=directions, storage=storage)
    if plan is not None:
        study.set_user_attr("losskit:plan", json.dumps(plan))
    for one in trials:
        study._storage.create_new_trial(study._study_id, template_trial=one)
    return study


def mixed_study(**given: Any) -> optuna.Study:
    """Four complete trials (the best: 2), a pruned, a failed, a running and a waiting one."""
    error = "NonFiniteLossError: the loss is nan <script>alert('x')</script>\nat step 12"
    return study_of(
        *(trial(number, value, intermediate_values={0: value + 1, 10: value}) for number, value in enumerate((0.5, 0.4, 0.2, 0.3))),
        trial(4, state=TrialState.PRUNED, intermediate_values={0: 2.0, 10: 1.9}),
        trial(5, state=TrialState.FAIL, user_attrs={"losskit:error": error}),
        trial(6, state=TrialState.RUNNING, intermediate_values={0: 1.5}),
        trial(7, state=TrialState.WAITING),
        **given,
    )


def store_of(study: optuna.Study, points: int = 5) -> MemoryStore:
    store = MemoryStore()
    store.add("night", tags={"losskit.sweep": "night", "losskit.kind": "sweep"})
    for one in study.get_trials(deepcopy=False):
        if one.state != TrialState.WAITING:
            tags = {"losskit.sweep": "night", "losskit.trial": str(one.number), "losskit.trial_state": one.state.name, "losskit.seed": "0"}
            store.add(f"run-{one.number}", {"val/loss": [1.0 / (step + 1 + one.number) for step in range(points)]}, tags=tags)
    return store


class Page(HTMLParser):
    """What a browser would find: text by element, attributes, figures."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.open, self.tags, self.texts = html, [""], [], []
        self.figures: list[Any] = []
        self.unclosed: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1] == tag:
            self.open.pop()
        else:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "script":
            if self.tags[-1][1].get("type") == "application/json":
                self.figures.append(json.loads(data))
        elif self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def headings(self) -> list[str]:
        return [unescape(found) for found in re.findall(r"<h[123][^>]*>(.*?)</h[123]>", self.html)]


@pytest.fixture(scope="module")
def mixed() -> Page:
    study = mixed_study()
    return Page(report_html(study, store_of(study)))


class TestPage:
    def test_it_is_whole_and_well_formed(self, mixed: Page) -> None:
        assert mixed.html.startswith("<!DOCTYPE html>") and mixed.unclosed == [] and mixed.open == [""]
        assert mixed.headings == [
            "night", "Reproduce", "Pictures", "Optimisation history", "Parameter importances", "Slices", "Parallel coordinates", "Learning curves",
            "Trials", "What failed", "Set-up", "Space", "The same in all trials", "Sampler", "Pruner", "Settings",
        ]  # fmt: skip

    def test_nothing_is_fetched(self, mixed: Page) -> None:
        links = [a[name] for _, a in mixed.tags for name in ("src", "href", "action", "data") if name in a]
        assert links and all(link.startswith("#") for link in links)
        assert not any(tag in ("link", "img", "iframe", "object", "form", "base") for tag, _ in mixed.tags)
        policy = next(a["content"] for tag, a in mixed.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'") and "http" not in policy
        assert "url(" not in mixed.html.partition("<style>")[2].partition("</style>")[0]

    def test_plotly_is_in_it_once(self, mixed: Page) -> None:
        assert len(re.findall(r"\* plotly\.js v\d", mixed.html)) == 1

    def test_every_place_for_a_figure_has_one(self, mixed: Page) -> None:
        places = [a["data-figure"] for _, a in mixed.tags if "data-figure" in a]
        ids = [a["id"] for tag, a in mixed.tags if tag == "script" and "id" in a]
        assert places == ids and len(mixed.figures) == len(ids) == 7  # history, importances, three slices, parallel coordinates, curves
        assert all(a.get("aria-label") for _, a in mixed.tags if a.get("class") == "plot")

    def test_the_same_sweep_gives_the_same_page(self, mixed: Page) -> None:
        study = mixed_study()
        assert report_html(study, store_of(study)) == mixed.html

    def test_headline(self, mixed: Page) -> None:
        assert "3 parameters searched for the best val/loss (lower is better). 2026-01-31 14:05 to 14:11." in mixed.text
        assert "Best val/loss 0.2 trial 2" in mixed.text and "Best trial 2 run run-2, 45.0s" in mixed.text
        assert "Trials 9 4 complete, 1 pruned, 1 failed, 1 running, 2 waiting" in mixed.text  # by the plan's total: tickets are made only a few ahead
        assert "The sweep has not ended" in mixed.text

    def test_the_table_has_every_trial_the_best_first(self, mixed: Page) -> None:
        table = mixed.html.partition('<table class="sortable">')[2].partition("</table>")[0]
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table)[1:]
        assert [int(re.findall(r'class="num">(\d+)<', row)[0]) for row in rows] == [2, 3, 1, 0, 6, 4, 5, 7]
        assert '<tr class="best"><th scope="row" class="num">2</th>' in table and table.count("class=\"best\"") == 1
        assert '<td class="num" data-sort="">–</td>' in rows[0]  # trial 2 chose focal, which has no epsilon
        assert '<td class="id">00000000</td>' in rows[0] and '<td class="id">–</td>' in rows[-1]  # the one that waits has no run

    def test_what_failed_is_told_and_escaped(self, mixed: Page) -> None:
        assert "Trial 5 NonFiniteLossError: the loss is nan <script>alert('x')</script> at step 12" in mixed.text
        assert "<script>alert" not in mixed.html

    def test_set_up(self, mixed: Page) -> None:
        assert "optimizer.lr tag(log,interval(0.0001,1))" in mixed.text and "sweeps.TPE multivariate true Pruner none Settings retries 2" in mixed.text

    def test_hostile_names_and_values_stay_text(self) -> None:
        hostile = "</script><img src=x onerror=alert(1)>"
        study = optuna.create_study(study_name=hostile)
        study.set_user_attr("losskit:plan", json.dumps({**PLAN, "fixed": [f"name={hostile}"], "space": {hostile: hostile}, "settings": {"x": hostile}}))
        for number in range(3):
            choices = CategoricalDistribution([hostile, "b"])
            attributes = {"losskit:error": hostile}
            study.add_trial(create_trial(value=float(number), params={hostile: hostile}, distributions={hostile: choices}, user_attrs=attributes))
        page = Page(report_html(study))
        assert not any(tag == "img" for tag, _ in page.tags) and page.unclosed == [] and hostile in page.text
        assert hostile in json.dumps(page.figures)


class TestFigures:
    def test_curves_come_from_the_store(self, mixed: Page) -> None:
        curves = mixed.figures[-1]["data"]
        assert len(curves) == 7 and curves[-1]["name"] == "best" and curves[-1]["line"]["width"] > curves[0]["line"]["width"]
        assert len(curves[0]["x"]) == 5 and {c["name"]: c["line"]["dash"] for c in curves if c["name"] != "best"} == {
            "complete": "solid", "pruned": "dash", "failed": "dot", "running": "dashdot",
        }  # fmt: skip
        assert "val/loss of 7 trials while they ran." in mixed.text

    def test_without_a_store_from_what_trials_reported(self) -> None:
        page = Page(report_html(mixed_study()))
        assert "All from what trials reported to the study, not from the tracking store." in page.text
        assert len(page.figures[-1]["data"]) == 6 and page.figures[-1]["data"][0]["x"] == [0, 10]
        assert "its run is not in the tracking store" in page.text

    def test_a_curve_for_each_seed(self) -> None:
        study = study_of(trial(0, 0.5), plan={**PLAN, "seeds": [3, 4]})
        store = MemoryStore()
        for seed in (3, 4):
            store.add(f"s{seed}", {"val/loss": [1.0, 0.5]}, tags={"losskit.sweep": "night", "losskit.trial": "0", "losskit.seed": str(seed)})
        page = Page(report_html(study, store))
        assert len(page.figures[-1]["data"]) == 2 and "A trial over several seeds has a curve for each." in page.text
        assert "trial 0, mean over 2 seeds" in page.text and "losskit train --multirun data=digits" in page.text and "seed=3,4" in page.text

    def test_an_objective_of_the_end_has_the_validation_metric_as_its_curve(self) -> None:
        study = study_of(trial(0, 0.9), directions=("maximize",), plan={**PLAN, "objectives": ["test/acc"]})
        store = MemoryStore()
        store.add("r", {"test/acc": 0.9, "val/acc": [0.5, math.nan, 0.9]}, tags={"losskit.sweep": "night", "losskit.trial": "0"})
        page = Page(report_html(study, store))
        assert page.figures[-1]["layout"]["yaxis"]["title"]["text"] == "val/acc" and page.figures[-1]["data"][0]["y"] == [0.5, 0.9]
        assert "test/acc (higher is better)" in page.text

    def test_parallel_coordinates_show_conditional_parameters(self, mixed: Page) -> None:
        lines = [t for t in mixed.figures[-2]["data"] if t["mode"] == "lines"]
        assert len(lines) == 4 and mixed.figures[-2]["layout"]["xaxis"]["ticktext"][0] == "val/loss" and len(lines[0]["x"]) == 4
        assert "None: the parameter does not exist under the options that the trial chose." in mixed.text

    def test_points_are_thinned_evenly_with_both_ends(self) -> None:
        curve = [(step, float(step)) for step in range(1001)]
        thin = decimated(curve)
        assert len(thin) == MAX_POINTS and thin[0] == curve[0] and thin[-1] == curve[-1]
        assert {b[0] - a[0] for a, b in pairwise(thin)} <= {5, 6} and decimated(curve[:7]) == curve[:7]

    def test_two_thousand_trials(self) -> None:
        study = study_of(*(trial(n, 1 + math.sin(n), intermediate_values={s: 2.0 + math.sin(n) for s in range(3)}) for n in range(2000)), plan=None)
        page = Page(report_html(study))
        curves, parallel = page.figures[-1]["data"], page.figures[-2]["data"]
        assert len(curves) == MAX_CURVES and len([t for t in parallel if t["mode"] == "lines"]) == MAX_LINES
        assert "60 of 2,000 trials are drawn" in page.text and "300 of 2,000 finished trials are drawn" in page.text
        assert "1,000 of 2,000 finished trials are drawn" in page.text and "1,000 of 2,000 trials." in page.text
        assert len(page.html) < 8e6

    def test_the_best_are_always_among_those_drawn(self) -> None:
        study = study_of(*(trial(n, abs(n - 41.5)) for n in range(100)))
        kept = [t.number for t in with_only(study, 10).get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        assert len(kept) == 10 and {40, 41, 42, 43} <= set(kept) and {0, 99} <= set(kept)
        assert with_only(study, 100) is study


class TestKinds:
    def test_an_empty_study(self) -> None:
        page = Page(report_html(study_of(plan={**PLAN, "total": 5})))
        assert "No trial has begun." in page.text and "Trials 5 0 complete, 5 waiting" in page.text and "none yet" in page.text
        assert page.figures == [] and len(page.html) < 20_000 and page.headings[:2] == ["night", "Set-up"]

    def test_nothing_finished(self) -> None:
        page = Page(report_html(study_of(trial(0, state=TrialState.RUNNING), trial(1, state=TrialState.PRUNED), trial(2, state=TrialState.FAIL))))
        assert "No trial has finished yet" in page.text and "no reason is known" in page.text and "Reproduce" not in page.headings
        assert "there are no curves" in page.text

    def test_one_trial(self) -> None:
        page = Page(report_html(study_of(trial(0, 0.5))))
        assert "One trial has finished" in page.text and "Importances need two finished trials or more." in page.text
        assert "Parallel coordinates" not in page.headings

    def test_values_that_are_all_equal(self) -> None:
        assert "Parameter importances" in Page(report_html(study_of(*(trial(n, 1.0) for n in range(4))))).headings

    def test_an_infinite_value_breaks_nothing(self) -> None:
        page = Page(report_html(study_of(trial(0, 1.0), trial(1, math.inf), trial(2, 2.0), trial(3, 3.0))))
        assert "Best val/loss 1 trial 0" in page.text and "inf" in page.text

    def test_several_objectives(self) -> None:
        values = [(1.0, 4.0), (2.0, 2.0), (4.0, 1.0), (5.0, 5.0)]
        plan = {**PLAN, "objectives": ["val/loss", "time/step"]}
        study = study_of(*(trial(n, v) for n, v in enumerate(values)), directions=("minimize", "minimize"), plan=plan)
        page = Page(report_html(study))
        assert "Pareto front 3 trials val/loss 1 to 4; time/step 1 to 4" in page.text
        assert "Pareto front" in page.headings and "Optimisation history" not in page.headings and "Slices of time/step" in page.headings
        assert [h for h in page.headings if h.startswith("Trial ")] == [
            "Trial 0: val/loss 1, time/step 4", "Trial 1: val/loss 2, time/step 2", "Trial 2: val/loss 4, time/step 1",
        ]  # fmt: skip
        fronts = {t["name"]: len(t["x"]) for t in page.figures[0]["data"]}
        assert fronts == {"Pareto front": 3, "other trials": 1} and page.figures[0]["layout"]["yaxis"]["title"]["text"] == "time/step"

    def test_more_objectives_than_a_picture_has_axes(self) -> None:
        page = Page(report_html(study_of(trial(0, (1.0, 2.0, 3.0, 4.0)), trial(1, (2.0, 1.0, 3.0, 4.0)), directions=("minimize",) * 4, plan=None)))
        assert "There is no picture of 4 objectives at once" in page.text and "objective 3" in page.text

    def test_constraints_that_no_trial_keeps(self) -> None:
        broken = trial(0, 0.5, system_attrs={"constraints": [1.0]})
        page = Page(report_html(study_of(broken)))
        assert "No finished trial keeps to the constraints, so there is no best one." in page.text

    def test_a_study_of_somebody_else(self) -> None:
        study = optuna.create_study(study_name="theirs")
        study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=3)
        page = Page(report_html(study))
        assert "The study was not started by losskit" in page.text and "losskit train x=" in page.text and "FloatDistribution(high=1.0" in page.text

    @pytest.mark.parametrize("kept", ["no json", "[1]"])
    def test_a_plan_that_cannot_be_read(self, kept: str) -> None:
        study = study_of(trial(0, 0.5), plan=None)
        study.set_user_attr("losskit:plan", kept)
        assert view_of(study).plan == {} and view_of(study).objectives == ["value"]

    def test_a_space_as_sweeps_keep_it(self) -> None:
        from sweeps.space import SearchSpace

        space, _ = SearchSpace.parse(["loss=poly1,focal", "optimizer.lr=tag(log,interval(0.0001,1))"])
        page = Page(report_html(study_of(trial(0, 0.5), plan={**PLAN, "space": space.to_dict()})))
        assert "loss poly1,focal optimizer.lr tag(log,interval(0.0001,1" in page.text


class TestCommandLine:
    def test_the_command_is_quoted_and_says_nothing_of_the_sweep(self) -> None:
        made = train_command(PLAN, trial(1, 0.5))
        assert made == "losskit train data=digits '+tags=[a b]' loss=poly1 optimizer.lr=0.05 loss.epsilon=1.0"
        assert shlex.split(made)[3] == "+tags=[a b]"

    def test_config_directories_and_names(self) -> None:
        made = train_command({"config_dirs": ["/my conf"], "config_name": "mine", "fixed": [], "seeds": [7]}, trial(0, 0.5))
        assert made == "losskit train --config-dir '/my conf' --config-name mine loss=focal optimizer.lr=0.1 seed=7"

    def test_a_trial_without_its_overrides(self) -> None:
        made = create_trial(value=1.0, params={"model.name": "a b"}, distributions={"model.name": CategoricalDistribution(["a b", "c"])})
        assert train_command({}, made) == "losskit train 'model.name=a b'"


class TestCommand:
    def test_it_writes_the_page(self, workdir: Path, losskit: Callable[..., Any]) -> None:
        mixed_study(storage=open_storage())
        result = losskit("report", "night")
        assert result.code == 0 and result.out == "night.html\n"
        assert result.err.startswith("without the tracking store: there is no store") and result.err.count("\n") == 1  # Optuna has nothing to say
        assert "<h1>night</h1>" in (workdir / "night.html").read_text(encoding="utf-8")
        assert losskit("report", "night", "-o", "new/page.html", "--storage", f"sqlite:///{workdir}/sweeps.db").out == "new/page.html\n"
        assert (workdir / "new" / "page.html").is_file()

    def test_an_unknown_sweep(self, workdir: Path, losskit: Callable[..., Any]) -> None:
        study_of(storage=open_storage())
        result = losskit("report", "nihgt")
        assert result.code == 2 and "there is no sweep 'nihgt'; did you mean 'night'? (there is: night)" in result.err
        assert not list(workdir.glob("*.html"))

    def test_no_storage(self, workdir: Path, losskit: Callable[..., Any]) -> None:
        result = losskit("report", "night")
        assert result.code == 2 and "there is no storage of sweeps" in result.err and not list(workdir.iterdir())
        assert "unknown storage" in losskit("report", "night", "--storage", "redis://x").err

    def test_a_file_that_cannot_be_written(self, workdir: Path) -> None:
        study_of(storage=open_storage())
        (workdir / "taken").touch()
        with pytest.raises(UsageError, match=r"cannot write taken/page\.html"):
            run_report("night", output=Path("taken/page.html"))

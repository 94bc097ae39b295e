"""Samplers and pruners: what the config files say, the same seed the same points, and what is refused in words."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import sweeps.algorithms
import sweeps.samplers
from sweeps.algorithms import (
    METRICS,
    AlgorithmError,
    Constraint,
    Pruner,
    Sampler,
    build_pruner,
    build_sampler,
    mixed_seed,
    parse_constraints,
    read_pruner,
    read_sampler,
    record_constraints,
)
from sweeps.quasirandom import stretched
from sweeps.settings import SweepSettings
from sweeps.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)

CONF = Path(__file__).parent.parent.parent / "conf" / "sweep"
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
PRUNERS = sorted(path.stem for path in (CONF / "pruner").glob("*.yaml"))
DRAWING = [name for name in SAMPLERS if name not in ("grid", "brute_force")]
MIXED = ["x=interval(-1,1)", "lr=tag(log,interval(1e-4,1))", "n=int(interval(1,9))", "c=a,b,c", "one=interval(2,2)"]
NUMBERS = ["x=interval(-1,1)", "y=interval(-1,1)"]


class Flat:
    """A configuration without groups, in which every key is there."""

    def is_group(self, key: str) -> bool:
        return False

    def has(self, key: str, chosen: Mapping[str, str]) -> bool:
        return True

    def nearest(self, key: str) -> str:
        return ""


def config(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / kind / f"{name}.yaml").read_text()), **changes}


def space_of(*overrides: str) -> SearchSpace:
    return SearchSpace.parse(overrides)[0]


def objective(params: Mapping[str, Any]) -> float:
    return sum((float(v) - 0.3) ** 2 if isinstance(v, int | float) else float("abcd".index(v)) for v in params.values())


def run(
    sampler: Mapping[str, Any],
    overrides: Sequence[str],
    trials: int,
    *,
    seed: int = 0,
    directions: Sequence[str] = ("minimize",),
    values: Callable[[Mapping[str, Any]], Sequence[float]] = lambda params: [objective(params)],
    metrics: Callable[[Mapping[str, Any]], dict[str, float]] = lambda params: {},
    constraints: Sequence[str] = (),
    at_once: int = 1,
) -> optuna.Study:
    """A search as workers do it, ``at_once`` trials asked for before the first of them is told."""
    space, bounds = space_of(*overrides), parse_constraints(constraints)
    study = optuna.create_study(directions=list(directions), sampler=optuna.samplers.RandomSampler(0))
    for first in range(0, trials, at_once):
        running = []
        for number in range(first, min(first + at_once, trials)):
            study.enqueue_trial({})
            study.sampler = build_sampler(sampler, seed=seed, trial_number=number, space=space, directions=directions, constraints=bounds)
            trial = study.ask()
            space.suggest(trial, Flat())
            running.append(trial)
        for trial in reversed(running):
            record_constraints(trial, bounds, metrics(trial.params))
            study.tell(trial, list(values(trial.params)))
    return study


def points(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


class TestConfigFiles:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_samplers_say_their_classes_defaults(self, name: str) -> None:
        sampler = read_sampler(config("sampler", name))
        assert sampler == type(sampler)()
        assert set(config("sampler", name)) - {"_target_"} == set(vars(sampler))
        assert sampler.exhaustive is (name in ("grid", "brute_force"))

    @pytest.mark.parametrize("name", PRUNERS)
    def test_pruners_say_their_classes_defaults(self, name: str) -> None:
        pruner = read_pruner(config("pruner", name))
        assert pruner == type(pruner)()
        assert set(config("pruner", name)) - {"_target_"} == set(vars(pruner))
        assert (pruner.prunes, pruner.over_seeds) == (name != "none", name == "wilcoxon")

    def test_every_class_has_its_file(self) -> None:
        named = {config(kind, name)["_target_"] for kind, names in (("sampler", SAMPLERS), ("pruner", PRUNERS)) for name in names}
        classes = [getattr(sweeps.algorithms, name) for name in sweeps.algorithms.__all__]
        ours = {f"sweeps.algorithms.{c.__name__}" for c in classes if isinstance(c, type) and issubclass(c, Sampler | Pruner) and c not in (Sampler, Pruner)}
        assert named == ours

    @pytest.mark.parametrize(
        ("name", "sampler", "pruner", "trials"),
        [("default", "Tpe", "NoPruning", None), ("quick_tpe", "Tpe", "Median", 20), ("grid", "Grid", "NoPruning", None)],
    )
    def test_whole_sweeps(self, name: str, sampler: str, pruner: str, trials: int | None) -> None:
        from losskit_cli.compose import Composer

        composed = Composer().compose([f"sweep={name}"]).resolved()["sweep"]
        found = SweepSettings.from_config(composed)
        assert type(read_sampler(found.sampler)).__name__ == sampler
        assert type(read_pruner(found.pruner)).__name__ == pruner
        assert found.n_trials == trials
        defaults = SweepSettings().model_dump(exclude={"sampler", "pruner", "n_trials", "space"})
        assert found.model_dump(exclude={"sampler", "pruner", "n_trials", "space"}) == defaults
        assert set(composed) == set(SweepSettings.model_fields)

    def test_an_experiment_may_choose_a_sweep(self, tmp_path: Path) -> None:
        from losskit_cli.compose import Composer

        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [override /sweep: quick_tpe]\nsweep: {space: {seed: 'range(3)'}}\n")
        composer = Composer([tmp_path])
        assert composer.compose(["experiment=mine"]).resolved()["sweep"]["space"]["seed"] == "range(3)"
        again = composer.compose(["experiment=mine", "sweep/sampler=gp", "sweep.sampler.n_startup_trials=3", "sweep/pruner=none"]).resolved()["sweep"]
        assert again["sampler"]["n_startup_trials"] == 3 and again["n_trials"] == 20
        assert "sweep" not in composer.compose([]).config

    def test_a_run_takes_no_notice_of_a_sweep(self) -> None:
        from losskit_cli.commands import spec_of
        from losskit_cli.compose import Composer

        plain, with_sweep = (spec_of(Composer().compose(overrides)).config for overrides in (["name=x"], ["name=x", "sweep=default"]))
        assert {k: v for k, v in with_sweep.items() if k != "sweep"} == plain

    def test_reading_them_needs_no_optuna(self) -> None:
        code = (
            "import sys; from sweeps.algorithms import read_sampler, read_pruner, parse_constraints\n"
            "read_sampler({'_target_': 'sweeps.algorithms.Tpe'}), read_pruner({'_target_': 'sweeps.algorithms.Hyperband'}), parse_constraints(['a <= 1'])\n"
            "print(*sorted({m.split('.')[0] for m in sys.modules} & {'optuna', 'torch', 'scipy', 'hydra', 'cmaes'}))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


class TestSeeds:
    @pytest.mark.parametrize("name", DRAWING)
    def test_one_worker_and_one_seed_give_the_same_trials(self, name: str) -> None:
        changes = {"n_startup_trials": 4} if name in ("tpe", "gp", "cmaes") else {"population_size": 4} if name == "nsga2" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nor does any of them warn
            first, again, other = (points(run(config("sampler", name, **changes), MIXED, 9, seed=seed)) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert len({str(point) for point in first}) == len(first)

    @pytest.mark.parametrize("name", ["random", "qmc"])
    def test_any_number_of_workers_give_the_same_points(self, name: str) -> None:
        runs = [points(run(config("sampler", name), MIXED, 12, seed=3, at_once=workers)) for workers in (1, 4, 12)]
        assert runs[0] == runs[1] == runs[2]

    def test_many_workers_never_ask_for_one_point_twice(self) -> None:
        for name in DRAWING:
            found = points(run(config("sampler", name), NUMBERS, 12, at_once=6))
            assert len({str(point) for point in found}) == 12, name

    def test_neighbouring_seeds_share_nothing(self) -> None:
        found = [str(p) for seed in range(4) for p in points(run(config("sampler", "random"), NUMBERS, 8, seed=seed))]
        assert len(set(found)) == len(found)
        assert mixed_seed(0, 1) != mixed_seed(1, 0) != mixed_seed(1, 1)

    def test_a_conditional_parameter_moves_no_other_quasi_random_one(self) -> None:
        def values(*overrides: str) -> list[Any]:
            return [point["x"] for point in points(run(config("sampler", "qmc"), overrides, 8))]

        assert values("c=1,2", "y=tag('c=1',interval(0,1))", "x=interval(0,1)") == values("c=1,2", "y=interval(0,1)", "x=interval(0,1)")


class TestSamplers:
    @pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
    def test_they_beat_random_search(self, name: str) -> None:
        best = {n: run(config("sampler", n), NUMBERS, 40, seed=5).best_value for n in (name, "random")}
        assert best[name] < best["random"] / 2

    @pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
    def test_several_objectives(self, name: str) -> None:
        changes = {"population_size": 8} if name == "nsga2" else {"n_startup_trials": 5}
        study = run(
            config("sampler", name, **changes), NUMBERS, 16, directions=["minimize", "maximize"], values=lambda p: [p["x"] ** 2 + p["y"] ** 2, p["x"]]
        )
        assert len(study.best_trials) >= 2

    @pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random", "qmc"])
    def test_the_best_trial_keeps_the_constraints(self, name: str) -> None:
        changes = {"population_size": 8} if name == "nsga2" else {"n_startup_trials": 5} if name in ("tpe", "gp") else {}
        study = run(config("sampler", name, **changes), NUMBERS, 20, metrics=lambda p: {"test/size": p["x"]}, constraints=["test/size<=-0.5"])
        assert study.best_params["x"] <= -0.5
        assert study.best_trial.constraints == {"test/size <= -0.5": pytest.approx(study.best_params["x"] + 0.5)}

    @pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
    def test_samplers_heed_constraints(self, name: str) -> None:
        changes = {"population_size": 8} if name == "nsga2" else {"n_startup_trials": 6}
        kept = []
        for constraints in ([], ["m <= -0.5"]):
            study = run(config("sampler", name, **changes), NUMBERS, 40, metrics=lambda p: {"m": p["x"]}, constraints=constraints, seed=1)
            kept.append(sum(trial.params["x"] < -0.49 for trial in study.trials[20:]))  # the best that keeps it is on the border
        assert kept[1] >= kept[0] + 5

    def test_quasi_random_points_are_spread_evenly(self) -> None:
        found = points(run(config("sampler", "qmc"), ["x=interval(0,1)", "c=a,b,c,d", "n=int(interval(1,4))"], 16, seed=9))
        assert sorted(int(p["x"] * 16) for p in found) == list(range(16))
        assert all(sum(p["c"] == c for p in found) == 4 for c in "abcd")
        assert all(sum(p["n"] == n for p in found) == 4 for n in (1, 2, 3, 4))
        assert points(run(config("sampler", "qmc", scramble=False), NUMBERS, 1))[0] == {"x": -1.0, "y": -1.0}
        halton = points(run(config("sampler", "qmc", qmc_type="halton"), NUMBERS, 8))
        assert halton != points(run(config("sampler", "qmc"), NUMBERS, 8))

    def test_exhaustive_ones_order_their_points(self) -> None:
        listed = space_of("x=range(4)", "y=a,b,c").points(Flat())
        grid, brute = read_sampler(config("sampler", "grid")), read_sampler(config("sampler", "brute_force"))
        assert grid.order(listed, 1) == listed
        assert brute.order(listed, 1) == brute.order(listed, 1) != listed
        assert brute.order(listed, 2) != brute.order(listed, 1)
        assert sorted(map(str, brute.order(listed, 1))) == sorted(map(str, listed))
        study = optuna.create_study(sampler=build_sampler(config("sampler", "grid"), seed=0, trial_number=0, space=space_of("x=1,2"), directions=["minimize"]))
        study.enqueue_trial({"x": 2})
        assert study.ask(space_of("x=1,2").distributions).params == {"x": 2}


class TestStretched:
    @given(st.floats(0, 1, exclude_max=True), st.integers(1, 50), st.integers(0, 50), st.integers(1, 7))
    @settings(max_examples=200, deadline=None)
    def test_every_value_is_one_of_the_distribution(self, u: float, low: int, width: int, step: int) -> None:
        distributions: list[BaseDistribution] = [
            IntDistribution(low, low + width * step, step=step),
            IntDistribution(low, low + width, log=True),
            FloatDistribution(low, low + width),
            FloatDistribution(low / 7, low / 7 + width + 1, log=True),
            FloatDistribution(0, width * step / 10, step=step / 10),
            CategoricalDistribution(list(range(width + 1))),
        ]
        for d in distributions:
            assert d._contains(d.to_internal_repr(stretched(u, d))), (u, d)

    @pytest.mark.parametrize("d", [IntDistribution(1, 7, step=2), FloatDistribution(0, 0.3, step=0.1), CategoricalDistribution(["a", "b", "c", "d"])])
    def test_steps_and_choices_get_equal_shares(self, d: BaseDistribution) -> None:
        values = [stretched((i + 0.5) / 400, d) for i in range(400)]
        assert [values.count(v) for v in dict.fromkeys(values)] == [100] * 4

    def test_the_logarithm(self) -> None:
        assert stretched(0.5, FloatDistribution(1e-4, 1.0, log=True)) == pytest.approx(0.01)
        d = IntDistribution(1, 100, log=True)
        assert (stretched(0.0, d), stretched(math.nextafter(1, 0), d)) == (1, 100)


class TestPruners:
    def curve(self, study: optuna.Study, slope: float, steps: int = 9) -> TrialState:
        trial = study.ask()
        for step in range(steps):
            trial.report(slope * (step + 1), step)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return TrialState.PRUNED
        study.tell(trial, slope * steps)
        return TrialState.COMPLETE

    @pytest.mark.parametrize("name", ["median", "percentile", "successive_halving", "hyperband", "patient", "wilcoxon"])
    def test_the_hopeless_are_ended_and_the_best_never(self, name: str) -> None:
        changes: dict[str, Any] = {"hyperband": {"max_resource": 9}, "successive_halving": {"min_resource": 1, "reduction_factor": 2}}.get(name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pruner = build_pruner(config("pruner", name, **changes))
        study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(0), study_name="x")
        good = [self.curve(study, slope) for slope in (-5, -4, -3, -2, -6, -7)]
        bad = [self.curve(study, slope) for slope in (1, 2, 3, 4)]
        assert TrialState.PRUNED in bad
        assert good[0] == good[4] == good[5] == TrialState.COMPLETE

    def test_none_ends_nothing(self) -> None:
        for nothing in (config("pruner", "none"), None, {}):
            study = optuna.create_study(pruner=build_pruner(nothing))
            assert {self.curve(study, slope) for slope in range(10)} == {TrialState.COMPLETE}

    def test_patience_asks_another(self) -> None:
        pruner = read_pruner(config("pruner", "patient", patience=1, wrapped={"_target_": "sweeps.algorithms.Median", "n_startup_trials": 2}))
        assert pruner == sweeps.algorithms.Patient(1, 0.0, sweeps.algorithms.Median(2))
        assert "wrapped_pruner" in str(vars(build_pruner(pruner)))

    def test_one_objective_only(self) -> None:
        with pytest.raises(AlgorithmError, match="one objective to compare trials by, but there are 2: sweep/pruner=none"):
            build_pruner(config("pruner", "median"), directions=["minimize", "maximize"])
        build_pruner(config("pruner", "none"), directions=["minimize", "maximize"])


class TestConstraints:
    @pytest.mark.parametrize(
        ("text", "metric", "bound", "at_most"),
        [
            ("test/latency <= 5", "test/latency", 5.0, True),
            ("val/acc>=0.9", "val/acc", 0.9, False),
            ("  time/step  <=  1e-3 ", "time/step", 1e-3, True),
            ("a >= -2", "a", -2.0, False),
        ],
    )
    def test_reading(self, text: str, metric: str, bound: float, at_most: bool) -> None:
        found = Constraint.parse(text)
        assert (found.metric, found.bound, found.at_most) == (metric, bound, at_most)
        assert Constraint.parse(found.text) == found

    @pytest.mark.parametrize("text", ["a < 5", "a == 5", "a <= b", "<= 5", "a <=", "a", "", "a b <= 5", "a <= nan", "a <= inf", "a => 5", "1 <= a <= 2", 5])
    def test_what_is_none(self, text: Any) -> None:
        with pytest.raises(AlgorithmError, match="'metric <= number' or 'metric >= number'"):
            parse_constraints([text])

    def test_twice(self) -> None:
        with pytest.raises(AlgorithmError, match="'a <= 1' is there twice"):
            parse_constraints(["a<=1", "b <= 2", "a <= 1"])

    @given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
    def test_violation_is_above_0_just_where_it_is_broken(self, value: float, bound: float) -> None:
        assert (Constraint.parse(f"m <= {bound!r}").violation({"m": value}) <= 0) is (value <= bound)
        assert (Constraint.parse(f"m >= {bound!r}").violation({"m": value}) <= 0) is (value >= bound)

    def test_no_number_breaks_it(self) -> None:
        assert Constraint.parse("m <= 5").violation({"m": math.nan}) == math.inf
        assert Constraint.parse("m >= 5").violation({"m": math.nan}) == math.inf

    def test_a_metric_that_was_not_logged(self) -> None:
        says = r"'test/latncy <= 5' is on a metric that the run never logged; did you mean 'test/latency'\? \(it logged: test/latency, val/loss\)"
        with pytest.raises(AlgorithmError, match=says):
            Constraint.parse("test/latncy <= 5").violation({"val/loss": 1.0, "test/latency": 2.0})

    def test_they_are_kept_with_the_trial_once(self) -> None:
        study = optuna.create_study(storage=optuna.storages.RDBStorage("sqlite:///:memory:"))
        trial = study.ask()
        trial.set_user_attr(METRICS, {"m": 3.0, "k": math.inf})
        bounds = parse_constraints(["m <= 5", "m >= 4", "k <= 1"])
        record_constraints(trial, bounds)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            record_constraints(trial, bounds)  # the trial was taken up again
        study.tell(trial, 0.0)
        assert study.trials[0].constraints == {"m <= 5": -2.0, "m >= 4": 1.0, "k <= 1": math.inf}


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "node", "says"),
        [
            ("sampler", {}, "sweep.sampler names no class"),
            ("sampler", {"_target_": "os.system"}, "os.system is refused"),
            ("sampler", {"_target_": "sweeps.algorithms.Tp"}, "refused; did you mean 'Tpe'?"),
            ("sampler", {"_target_": "sweeps.algorithms.read_sampler"}, "refused"),
            ("sampler", {"_target_": "sweeps.algorithms.Median"}, "is no sampler (losskit list sweep/sampler)"),
            ("pruner", {"_target_": "sweeps.algorithms.Tpe"}, "is no pruner (losskit list sweep/pruner)"),
            ("sampler", {"_target_": "sweeps.algorithms.Tpe", "n_startup_trails": 3}, "no sweep.sampler.n_startup_trails; did you mean 'n_startup_trials'"),
            ("sampler", {"_target_": "sweeps.algorithms.Random", "x": 3}, "(it has: none)"),
            ("sampler", {"_target_": "sweeps.algorithms.Tpe", "n_startup_trials": "many"}, "n_startup_trials='many': it takes a whole number"),
            ("sampler", {"_target_": "sweeps.algorithms.Tpe", "multivariate": "perhaps"}, "it takes true or false or null"),
            ("sampler", {"_target_": "sweeps.algorithms.Tpe", "n_startup_trials": -1}, "sweep.sampler: n_startup_trials must be >= 0, but got -1"),
            ("sampler", {"_target_": "sweeps.algorithms.Tpe", "group": True, "multivariate": False}, "multivariate=true"),
            ("sampler", {"_target_": "sweeps.algorithms.Qmc", "qmc_type": "soboll"}, "qmc_type='soboll': it takes sobol or halton"),
            ("sampler", {"_target_": "sweeps.algorithms.Cmaes", "with_margin": True, "lr_adapt": True}, "one of with_margin"),
            ("sampler", {"_target_": "sweeps.algorithms.Nsga2", "crossover_prob": 2}, "crossover_prob must be in [0, 1]"),
            ("pruner", {"_target_": "sweeps.algorithms.Percentile", "percentile": 101}, "percentile must be in [0, 100]"),
            ("pruner", {"_target_": "sweeps.algorithms.Median", "interval_steps": 0}, "interval_steps must be >= 1"),
            ("pruner", {"_target_": "sweeps.algorithms.Hyperband", "max_resource": "lots"}, "it takes a whole number or auto"),
            ("pruner", {"_target_": "sweeps.algorithms.Hyperband", "min_resource": 9, "max_resource": 3}, "max_resource must be auto or >= min_resource"),
            ("pruner", {"_target_": "sweeps.algorithms.SuccessiveHalving", "bootstrap_count": 3}, "bootstrap_count needs"),
            ("pruner", {"_target_": "sweeps.algorithms.Patient", "wrapped": {"_target_": "sweeps.algorithms.Grid"}}, "wrapped must be another pruner"),
            ("pruner", {"_target_": "sweeps.algorithms.Patient", "wrapped": "median"}, "sweep.pruner.wrapped='median': it takes a pruner's node or null"),
            ("pruner", {"_target_": "sweeps.algorithms.Patient", "wrapped": {"_target_": "sweeps.algorithms.Median", "x": 1}}, "no sweep.pruner.wrapped.x"),
        ],
    )  # fmt: skip
    def test_the_config(self, kind: str, node: dict[str, Any], says: str) -> None:
        reading: Callable[[Any], Any] = read_sampler if kind == "sampler" or not node else read_pruner
        with pytest.raises(AlgorithmError) as caught:
            reading(node)
        assert says in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize(
        ("name", "overrides", "directions", "constraints", "says"),
        [
            ("cmaes", NUMBERS, ["minimize", "maximize"], [], "takes one objective, but there are 2"),
            ("cmaes", NUMBERS, ["minimize"], ["m <= 1"], "does not heed constraints"),
            ("cmaes", ["c=a,b", "one=interval(1,1)"], ["minimize"], [], "this space has only choices"),
            ("grid", NUMBERS, ["minimize"], [], "sweep/sampler=grid tries every point, but x=interval(-1.0,1.0) has no end"),
            ("brute_force", NUMBERS, ["minimize"], [], "no end of values"),
        ],
    )
    def test_what_a_sampler_cannot_search(self, name: str, overrides: list[str], directions: list[str], constraints: list[str], says: str) -> None:
        with pytest.raises(AlgorithmError) as caught:
            build_sampler(config("sampler", name), seed=0, trial_number=0, space=space_of(*overrides), directions=directions, constraints=constraints)
        assert says in str(caught.value)

    @pytest.mark.parametrize(("name", "package"), [("cmaes", "cmaes"), ("gp", "torch")])
    def test_a_package_that_is_missing(self, name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweeps.samplers, "find_spec", lambda wanted: None if wanted == package else wanted)
        with pytest.raises(AlgorithmError, match=f"sampler={name} needs the package {package}: pip install {package}"):
            build_sampler(config("sampler", name), seed=0, trial_number=0, space=space_of(*NUMBERS), directions=["minimize"])

    def test_a_class_of_the_users_own(self) -> None:
        class Always(Sampler):
            def __init__(self, value: float = 1.0) -> None:
                self.value = value

            def build(self, wanted: sweeps.algorithms.Wanted) -> optuna.samplers.BaseSampler:
                return optuna.samplers.PartialFixedSampler({"x": self.value}, optuna.samplers.RandomSampler(wanted.trial_seed))

        made = read_sampler({"_target_": "mine.Always", "value": 0.25}, resolve=lambda target, key: Always)
        with pytest.raises(AlgorithmError, match=r"sweep.sampler.value='much': it takes a number"):
            read_sampler({"_target_": "mine.Always", "value": "much"}, resolve=lambda target, key: Always)
        study = optuna.create_study(sampler=build_sampler(made, seed=0, trial_number=0, space=space_of(*NUMBERS), directions=["minimize"]))
        assert study.ask(space_of(*NUMBERS).distributions).params["x"] == 0.25

    def test_settings_survive_the_plan(self) -> None:
        node = config("sampler", "tpe", n_startup_trials=3)
        assert read_sampler(json.loads(json.dumps(node))) == sweeps.algorithms.Tpe(n_startup_trials=3)

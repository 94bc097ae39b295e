"""Search spaces: what is read, refused, sampled, listed, and that nothing is lost on the way through a storage."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.grammar import as_override
from sweeps.space import Parameter, SearchSpace, SpaceError

optuna.logging.set_verbosity(optuna.logging.ERROR)

OPTIONS: Mapping[str, Mapping[str, list[str]]] = {
    "loss": {"mse": [], "poly1": ["epsilon"], "focal": ["gamma", "alpha"]},
    "optimizer": {"sgd": ["lr", "momentum"], "adam": ["lr", "betas"]},
    "regularizer": {"l1": ["weight"], "l2": ["weight"]},
}


class Tree:
    """A small configuration: three groups with the options above, the first of each chosen, and ``seed``."""

    def __init__(self) -> None:
        self.asked = 0

    def is_group(self, key: str) -> bool:
        return key in OPTIONS

    def has(self, key: str, chosen: Mapping[str, str]) -> bool:
        self.asked += 1
        for group, option in chosen.items():
            for name in option.strip("[]").split(",") if option != "[]" else ():
                if name not in OPTIONS[group]:
                    raise LookupError(f"there is no {group}={name}")
        group, dot, name = key.partition(".")
        if not dot:
            return key == "seed" or key in OPTIONS
        option = chosen.get(group, next(iter(OPTIONS.get(group, {"": []}))))
        return name in OPTIONS.get(group, {}).get(option, [])

    def nearest(self, key: str) -> str:
        return "; did you mean 'loss.gamma'?" if key == "loss.gama" else ""


def space_of(*overrides: str) -> SearchSpace:
    return SearchSpace.parse(overrides)[0]


def one(override: str) -> Parameter:
    (parameter,) = space_of(override).parameters
    return parameter


def value_of(text: str) -> Any:
    """What Hydra reads on the right of an override."""
    return OverridesParser.create().parse_override(f"k={text}").value()


def points(*overrides: str) -> list[list[str]]:
    space = space_of(*overrides)
    return [space.overrides_of(point) for point in space.points(Tree())]


class TestGrammar:
    @pytest.mark.parametrize(
        ("override", "distribution"),
        [
            ("x=interval(1,5)", FloatDistribution(1.0, 5.0)),  # whole ends or not: a float
            ("x=interval(0.5,1e3)", FloatDistribution(0.5, 1000.0)),
            ("x=int(interval(1,8))", IntDistribution(1, 8)),
            ("x=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1.0, log=True)),
            ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
            ("x=int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
            ("x=tag('step=0.1',interval(0,1))", FloatDistribution(0, 1, step=0.1)),
            ("x=tag('step=0.3',interval(0,1))", FloatDistribution(0, 0.9, step=0.3)),
            ("x=tag('step=2',int(interval(1,9)))", IntDistribution(1, 9, step=2)),
            ("x=tag('step=2',int(interval(1,8)))", IntDistribution(1, 7, step=2)),
            ("x=range(5)", IntDistribution(0, 4)),
            ("x=range(1,10,3)", IntDistribution(1, 7, step=3)),
            ("x=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
            ("x=range(0,2.1,0.7)", FloatDistribution(0, 1.4, step=0.7)),
            ("x=a,b", CategoricalDistribution(["a", "b"])),
            ("x=choice(a)", CategoricalDistribution(["a"])),
            ("x=1,2.5", CategoricalDistribution([1, 2.5])),
            ("x=null,1", CategoricalDistribution(["null", 1])),
            ("x=True,FALSE", CategoricalDistribution(["true", "false"])),
            ("x=[a],[a,b],[]", CategoricalDistribution(["[a]", "[a,b]", "[]"])),
            ("x=[l1],[{a:1,b:null}]", CategoricalDistribution(["[l1]", "[{a:1,b:null}]"])),
            ("x={a:1},{a:2}", CategoricalDistribution(["{a:1}", "{a:2}"])),
            ("x='1',1", CategoricalDistribution(["'1'", 1])),
            ("x=choice('true',b)", CategoricalDistribution(["'true'", "b"])),
            ("x='a b',\"c,d\"", CategoricalDistribution(["'a b'", "'c,d'"])),
            ("x=${seed},1", CategoricalDistribution(["${seed}", 1])),
            ("x=inf,1", CategoricalDistribution(["inf", 1])),
            ("x=sort(3,1,2)", CategoricalDistribution([1, 2, 3])),
            ("x=str(1,2)", CategoricalDistribution(["'1'", "'2'"])),
        ],
    )
    def test_what_it_is_drawn_from(self, override: str, distribution: optuna.distributions.BaseDistribution) -> None:
        found = one(override).distribution
        assert found == distribution
        if isinstance(found, CategoricalDistribution):
            assert isinstance(distribution, CategoricalDistribution)
            assert [type(c) for c in found.choices] == [type(c) for c in distribution.choices]

    def test_the_key_is_as_in_the_override(self) -> None:
        keys = [p.key for p in space_of("+x.y=1,2", "++z=1,2", "+loss@auxiliary.kd=mse,poly1", "loss=mse,poly1").parameters]
        assert keys == ["+x.y", "++z", "+loss@auxiliary.kd", "loss"]
        assert [p.name for p in space_of("+x.y=1,2").parameters] == ["x.y"]

    def test_fixed_ones_keep_their_order_and_text(self) -> None:
        space, fixed = SearchSpace.parse(["b=1", "~c", "x=1,2", "a='1, 2'", "b=[1,2]", "+d={e: 1}"])
        assert fixed == ["b=1", "~c", "a='1, 2'", "b=[1,2]", "+d={e: 1}"]
        assert [p.key for p in space.parameters] == ["x"]

    def test_ranges_list_what_hydra_does(self) -> None:
        for text in ("range(5)", "range(5,0,-2)", "range(1,10,3)", "range(0,1,0.25)", "range(2,0,-0.5)", "range(0,0.3,0.1)"):
            override = OverridesParser.create().parse_override(f"x={text}")
            p = one(f"x={text}")
            assert [p.value(i) for i in range(p.size or 0)] == pytest.approx(list(override.sweep_iterator())), text

    def test_tags_of_all_kinds_together(self) -> None:
        space = space_of("loss=mse,poly1", "loss.epsilon=tag('loss=poly1',log,interval(1e-3,1))")
        assert space.parameters[1] == Parameter("loss.epsilon", FloatDistribution(1e-3, 1.0, log=True), ("loss", "poly1"))

    @pytest.mark.parametrize(("condition", "choice"), [("seed=5", "5"), ("optimizer=sgd", "sgd"), ("x=True", "true"), ("y=0.5", "0.5"), ("z=[a,b]", "[a,b]")])
    def test_a_condition_is_on_a_choice_however_written(self, condition: str, choice: str) -> None:
        others = ["seed=range(9)", "optimizer=sgd,adam", "x=true,false", "y=range(0,1,0.1)", "z=[a, b],[]"]
        space = space_of(*others, f"w=tag('{condition}',choice(1,2))")
        assert space.parameters[-1].condition == (condition.partition("=")[0], choice)

    def test_a_condition_that_a_fixed_override_meets_is_none(self) -> None:
        space, fixed = SearchSpace.parse(["loss=poly1", "y=True", "a=tag('loss=poly1',choice(1,2))", "b=tag('y=true',choice(1,2))"])
        assert [p.condition for p in space.parameters] == [None, None]
        assert fixed == ["loss=poly1", "y=True"]

    def test_glob_takes_its_options_from_the_configuration(self) -> None:
        class Loader:
            def get_group_options(self, group_name: str, results_filter: object = None, **_: object) -> list[str]:
                return ["focal", "mse", "poly1"] if group_name == "loss" else []

        space, _ = SearchSpace.parse(["loss=glob(*,exclude=m*)"], Loader())  # type: ignore[arg-type]
        assert space.parameters[0].distribution == CategoricalDistribution(["focal", "poly1"])
        with pytest.raises(SpaceError, match="no option of a group 'los' fits"):
            SearchSpace.parse(["los=glob(*)"], Loader())  # type: ignore[arg-type]
        with pytest.raises(SpaceError, match="no configuration is at hand"):
            SearchSpace.parse(["loss=glob(*)"])


class TestErrors:
    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["x=interval(10,1)"], ["x=interval(10,1)", "wrong way round", "interval(1.0,10.0)"]),
            (["x=int(interval(8,1))"], ["wrong way round", "interval(1,8)"]),
            (["x=interval(0,inf)"], ["finite numbers"]),
            (["x=interval(nan,1)"], ["finite numbers"]),
            (["x=int(interval(0,inf))"], ["finite numbers"]),
            (["x=interval(1)"], ["cannot read", "interval(low,high)"]),
            (["x=interval(a,b)"], ["cannot read", "interval(low,high)"]),
            (["x=tag(log,interval(0,1))"], ["begins above 0", "interval(0.001"]),
            (["x=tag(log,interval(-1,1))"], ["begins above 0"]),
            (["x=tag(log,int(interval(0,9)))"], ["begins above 0", "interval(1,"]),
            (["x=tag(log,choice(1,2))"], ["log goes with interval"]),
            (["x=tag(log,range(1,5))"], ["log goes with interval"]),
            (["x=tag('step=1',range(1,5))"], ["range(start,stop,step) has a step of its own"]),
            (["x=tag(log,'step=1',interval(1,5))"], ["log and step do not go together"]),
            (["x=tag('step=0',interval(0,1))"], ["a number above 0"]),
            (["x=tag('step=-1',interval(0,1))"], ["a number above 0"]),
            (["x=tag('step=much',interval(0,1))"], ["a step is a number", "'much'"]),
            (["x=tag('step=0.5',int(interval(0,9)))"], ["between whole numbers"]),
            (["x=tag('step=2',interval(0,1))"], ["longer than the interval"]),
            (["x=tag('step=1','step=2',interval(0,9))"], ["takes one step"]),
            (["x=tag(lgo,interval(1,2))"], ["no tag 'lgo'", "did you mean 'log'"]),
            (["x=tag('stpe=0.1',interval(0,1))"], ["'stpe=0.1' is no tag, nor a condition"]),
            (["x=tag('x=1',choice(1,2))"], ["'x=1' is no tag, nor a condition"]),
            (["a=1,2", "b=3,4", "x=tag('a=1','b=3',interval(0,1))"], ["takes one condition"]),
            (["loss=mse,poly1", "x=tag('loss=ploy1',interval(0,1))"], ["none of the choices of loss=mse,poly1", "did you mean 'poly1'"]),
            (["loss=mse", "x=tag('loss=poly1',interval(0,1))"], ["never met, as loss=mse is fixed"]),
            (["a=interval(0,1)", "x=tag('a=0.5',interval(0,1))"], ["needs choices", "no end of values"]),
            (["a=range(5)", "x=tag('a=7',interval(0,1))"], ["none of the choices of a="]),
            (["a=tag('b=1',choice(1,2))", "b=tag('a=1',choice(1,2))"], ["hangs on itself", "a → b → a"]),
            (["x=tag(log,tag('step=1',interval(1,2)))"], ["one tag() around everything"]),
            (["x=int(tag('zip=a',choice(1,2)))"], ["one tag() around everything"]),
            (["x=choice()"], ["at least one choice"]),
            (["x=choice(null)"], ["choice() takes no null", "key=null,1"]),
            (["x=choice(choice(a,b))"], ["cannot read"]),
            (["x=interval(1,2),3"], ["a sweep is no choice", "x=interval(1,3)"]),
            (["x=3,interval(1,2)"], ["a sweep is no choice"]),
            (["x=range(3),7"], ["a sweep is no choice"]),
            (["x=choice(interval(1,2),3)"], ["cannot read", "choice(a,b)"]),
            (["x=choice(choice(a,b),c)"], ["a sweep is no choice"]),
            (["x=[interval(1,2),3]"], ["inside a list or mapping"]),
            (["x={a:range(3)}"], ["inside a list or mapping"]),
            (["x=[range(3)],[1]"], ["inside a list or mapping"]),
            (["x=a,b,a"], ["a is there twice"]),
            (["x='a',a"], ["a is there twice"]),
            (["x=True,1"], ["true and 1 are equal"]),
            (["x=1,1.0"], ["1 and 1.0 are equal"]),
            (["x=[1],[true]"], ["[1] and [true] are equal"]),
            (["x=nan,1"], ["nan is no choice"]),
            (["x=range(0)"], ["nothing in this range", "range(0,1)"]),
            (["x=range(5,1)"], ["nothing in this range", "range(1,5,1)"]),
            (["x=range(0,5,0)"], ["step of a range is not 0"]),
            (["x=range(0,inf)"], ["finite numbers"]),
            (["x=shuffle(1,2,3)"], ["shuffle() has no seed", "brute_force"]),
            (["x=shuffle(range(3))"], ["shuffle() has no seed"]),
            (["~x=1,2"], ["a deletion takes no choices"]),
            (["x=1,2", "x=3,4"], ["x is given twice", "x=1,2 and x=3,4"]),
            (["x=1,2", "+x=3"], ["x is given twice"]),
            (["sweep/sampler=tpe,gp"], ["not a trial's to choose"]),
            (["sweep.n_trials=1,2"], ["not a trial's to choose"]),
            (["hydra.job.name=a,b"], ["not a trial's to choose"]),
            (["x=intervall(1,2)"], ["no intervall()", "did you mean 'interval'"]),
            (["x=[1,2"], ["a bracket is not closed"]),
            (["x='a"], ["a quote is not closed"]),
            (["x=a=b"], ["goes into quotes"]),
            (["x"], ["write key=value"]),
            (["a=tag('zip=z',choice(1,2))", "b=tag('zip=z',choice(1,2,3))"], ["equally many", "a has 2, b has 3"]),
            (["a=tag('zip=z',choice(1,2))", "b=tag('zip=zz',choice(1,2))"], ["no other override has 'zip=z'", "did you mean 'zz'"]),
            (["a=tag('zip=z',choice(1,2))", "b=tag('zip=z',interval(1,2))"], ["needs choice(…) or range(…)"]),
            (["a=tag('zip=z',choice(1,1))", "b=tag('zip=z',choice(2,2))"], ["the row 'a=1 b=2' twice"]),
            (["a=tag('zip=b',choice(1,2))", "b=tag('zip=b',choice(1,2))"], ["has the name of a parameter"]),
            (["c=1,2", "a=tag('zip=z','c=1',choice(1,2))", "b=tag('zip=z',choice(1,2))"], ["the same condition"]),
        ],
    )
    def test_they_name_the_override_and_what_would_be_right(self, overrides: list[str], says: list[str]) -> None:
        with pytest.raises(SpaceError) as caught:
            SearchSpace.parse(overrides)
        message = str(caught.value)
        for words in [*says, overrides[-1].partition("=")[0].lstrip("+~") if len(overrides) == 1 else ""]:
            assert words in message, message
        assert len(message.splitlines()) == 1

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["loss.gama=interval(0,1)"], ["loss.gama=interval(0.0,1.0): there is no 'loss.gama'; did you mean 'loss.gamma'?"]),
            (["loss=mse,poly1", "loss.gamma=interval(0,1)"], ["no 'loss.gamma', whichever loss is chosen"]),
            (["loss=mse,poly1", "loss.epsilon=tag('loss=mse',interval(0,1))"], ["no 'loss.epsilon' with loss=mse"]),
            (["loss=interval(0,1)"], ["loss is a group", "losskit list loss"]),
            (["loss=range(3)"], ["loss is a group"]),
            (["loss=tag('zip=a',choice(poly1,mse))", "loss.epsilon=tag('zip=a',choice(1,2))"], ["in the row 'loss=mse loss.epsilon=2'", "no 'loss.epsilon'"]),
            (["optimizer.lr=tag('zip=a',choice(1,2))", "loss.epsilon=tag('zip=a',choice(1,2))"], ["no 'loss.epsilon'"]),
        ],
    )
    def test_those_that_only_the_configuration_shows(self, overrides: list[str], says: list[str]) -> None:
        space = space_of(*overrides)
        with pytest.raises(SpaceError) as caught:
            space.check(Tree())
        for words in says:
            assert words in str(caught.value)

    def test_every_option_is_composed(self) -> None:
        with pytest.raises(LookupError, match="no loss=focl"):
            space_of("optimizer=sgd,adam", "loss=mse,poly1,focl").check(Tree())

    def test_a_space_that_is_right(self) -> None:
        space = space_of("loss=mse,focal,poly1", "loss.epsilon=interval(-1,5)", "optimizer=sgd,adam", "optimizer.momentum=0,0.9", "seed=range(3)", "+new=1,2")
        space.check(Tree())

    def test_a_key_that_only_a_combination_has_is_found(self) -> None:
        class Both(Tree):
            def has(self, key: str, chosen: Mapping[str, str]) -> bool:
                return key != "x" or (chosen.get("loss"), chosen.get("optimizer")) == ("poly1", "adam")

        space_of("loss=mse,poly1", "optimizer=sgd,adam", "x=1,2").check(Both())
        with pytest.raises(SpaceError, match="no 'x', whichever loss and optimizer is chosen"):
            space_of("loss=mse,poly1", "optimizer=sgd,sgd2".replace("sgd2", "muon"), "x=1,2").check(Both())

    def test_endless_and_far_too_many_points(self) -> None:
        with pytest.raises(SpaceError, match=r"x=interval\(0.0,1.0\) has no end of values"):
            space_of("x=interval(0,1)").points(Tree())
        with pytest.raises(SpaceError, match="too many to try all"):
            space_of("+x=int(interval(0,10000000))").points(Tree())

    def test_params_of_another_space(self) -> None:
        space = space_of("loss=mse,poly1")
        with pytest.raises(SpaceError, match="no parameter 'los'; did you mean 'loss'"):
            space.overrides_of({"los": "mse"})
        with pytest.raises(SpaceError, match="none of its choices"):
            space.overrides_of({"loss": "focal"})


class TestSuggest:
    def test_groups_come_first_and_what_does_not_apply_is_not_sampled(self) -> None:
        space = space_of("loss.epsilon=interval(-1,5)", "seed=range(3)", "loss=mse,poly1")
        for loss, applies in (("mse", False), ("poly1", True)):
            study = optuna.create_study()
            study.enqueue_trial({"loss": loss, "loss.epsilon": 2.5, "seed": 1})
            trial = study.ask()
            overrides = space.suggest(trial, Tree())
            assert overrides == [f"loss={loss}", *(["loss.epsilon=2.5"] if applies else []), "seed=1"]
            assert ("loss.epsilon" in trial.params) is applies

    def test_explicit_conditions_of_conditions(self) -> None:
        space = space_of("+c=tag('b=y',choice(1,2))", "+b=tag('a=1',choice(x,y))", "+a=1,2")
        assert space.suggest(optuna.trial.FixedTrial({"a": 1, "b": "y", "c": 2}), Tree()) == ["+a=1", "+b=y", "+c=2"]
        assert space.suggest(optuna.trial.FixedTrial({"a": 1, "b": "x"}), Tree()) == ["+a=1", "+b=x"]
        assert space.suggest(optuna.trial.FixedTrial({"a": 2}), Tree()) == ["+a=2"]

    def test_a_group_may_hang_on_another(self) -> None:
        space = space_of("regularizer=tag('loss=poly1',choice([l1],[l2]))", "loss=mse,poly1")
        assert space.suggest(optuna.trial.FixedTrial({"loss": "mse"}), Tree()) == ["loss=mse"]
        assert space.suggest(optuna.trial.FixedTrial({"loss": "poly1", "regularizer": "[l2]"}), Tree()) == ["loss=poly1", "regularizer=[l2]"]

    def test_zip_goes_row_by_row(self) -> None:
        space = space_of("loss=tag('zip=a',choice(focal,poly1,mse))", "seed=1,2", "optimizer.lr=tag('zip=a',range(0.1,0.4,0.1))")
        assert [u.name for u in space.units] == ["a", "seed"]
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        rows = set()
        for _ in range(30):
            trial = study.ask()
            loss, lr, seed = space.suggest(trial, Tree())
            rows.add((loss, lr))
            assert set(trial.params) == {"a", "seed"} and trial.params["a"] == f"{loss} {lr}" and seed.startswith("seed=")
        assert rows == {("loss=focal", "optimizer.lr=0.1"), ("loss=poly1", "optimizer.lr=0.2"), ("loss=mse", "optimizer.lr=0.3")}

    @pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(1), optuna.samplers.TPESampler(seed=1, n_startup_trials=5)])
    def test_values_on_a_grid_are_written_as_such(self, sampler: optuna.samplers.BaseSampler) -> None:
        space = space_of("+a=tag('step=0.1',interval(0,1))", "+b=range(0,0.7,0.1)", "+c=tag('step=2',int(interval(1,9)))")
        study = optuna.create_study(sampler=sampler)
        for _ in range(30):
            trial = study.ask()
            a, b, c = (text.partition("=")[2] for text in space.suggest(trial, Tree()))
            assert a in {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"}
            assert b in {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"}
            assert c in {"1", "3", "5", "7", "9"}
            study.tell(trial, float(a))

    def test_it_is_the_same_from_the_storage(self) -> None:
        space = space_of("loss=mse,poly1,focal", "loss.epsilon=tag(log,interval(1e-3,5))", "regularizer=[l1],[]", "+x=null,2,true", "seed=range(5,0,-1)")
        study = optuna.create_study(storage=optuna.storages.RDBStorage("sqlite:///:memory:"), sampler=optuna.samplers.RandomSampler(3))
        for _ in range(10):
            overrides = space.suggest(study.ask(), Tree())
            kept = study.get_trials()[-1].params
            assert sorted(space.overrides_of(kept)) == sorted(overrides)

    def test_an_empty_space(self) -> None:
        assert space_of("seed=1").suggest(optuna.create_study().ask(), Tree()) == []
        assert space_of().points(Tree()) == [{}]
        space_of().check(Tree())


class TestPoints:
    def test_the_order_is_that_of_hydras_multirun(self) -> None:
        assert points("seed=2,1", "+x=range(3)", "loss=poly1,mse") == [
            [f"seed={s}", f"+x={x}", f"loss={loss}"] for s, x, loss in itertools.product((2, 1), (0, 1, 2), ("poly1", "mse"))
        ]  # fmt: skip
        assert points("+x=range(3,0,-1)") == [["+x=3"], ["+x=2"], ["+x=1"]]

    def test_what_does_not_apply_makes_no_points(self) -> None:
        assert points("loss.epsilon=1,2", "loss=mse,poly1,focal", "loss.gamma=0,5") == [
            ["loss=mse"],
            ["loss.epsilon=1", "loss=poly1"],
            ["loss=focal", "loss.gamma=0"],
            ["loss=focal", "loss.gamma=5"],
            ["loss.epsilon=2", "loss=poly1"],
        ]  # fmt: skip

    def test_zips(self) -> None:
        assert points("loss=tag('zip=a',choice(focal,poly1))", "seed=1,2", "optimizer.lr=tag('zip=a',choice(0.1,0.2))") == [
            ["loss=focal", "optimizer.lr=0.1", "seed=1"],
            ["loss=focal", "optimizer.lr=0.1", "seed=2"],
            ["loss=poly1", "optimizer.lr=0.2", "seed=1"],
            ["loss=poly1", "optimizer.lr=0.2", "seed=2"],
        ]  # fmt: skip

    def test_size_and_finite(self) -> None:
        space = space_of("seed=range(5)", "loss=mse,poly1", "+x=tag('step=0.5',interval(0,1))")
        assert (space.finite, space.size, len(space)) == (True, 30, 3)
        assert (space_of("+x=interval(0,1)").finite, space_of("+x=interval(0,1)").size) == (False, None)
        assert space_of("+x=interval(1,1)").size == 1

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_enqueued_they_are_the_trials(self, data: st.DataObject) -> None:
        lines = ["loss=mse,poly1,focal", "loss.epsilon=1,2", "optimizer=sgd,adam", "optimizer.momentum=range(0,0.3,0.1)", "seed=range(2)"]
        overrides = data.draw(st.lists(st.sampled_from([*lines, "regularizer=[l1],[]"]), min_size=1, max_size=4, unique=True))
        try:
            space = space_of(*overrides)
            space.check(Tree())
        except SpaceError:
            return
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        listed = space.points(Tree())
        for point in listed:
            study.enqueue_trial(point)
        seen = []
        for point in listed:
            trial = study.ask()
            suggested = space.suggest(trial, Tree())
            assert trial.params == point
            assert sorted(space.overrides_of(point)) == sorted(suggested)
            seen.append(tuple(sorted(suggested)))
        assert len(set(seen)) == len(seen) <= (space.size or 0)


class TestSavingAndComparing:
    SPACES = (
        ["loss=mse,poly1", "loss.epsilon=tag('loss=poly1',interval(-1,5))", "optimizer.lr=tag(log,interval(1e-4,1))"],
        ["loss=tag('zip=a',choice(focal,poly1))", "optimizer.lr=tag('zip=a',range(0.1,0.3,0.1))", "seed=range(5,0,-1)"],
        ["regularizer=[l1],[]", "+x=null,true,'1',2,'a b',{a:[1,2]}", "+y=tag('step=0.1',interval(0,1))", "+z=tag('step=2',int(interval(1,9)))"],
        ["+f=range(1,0,-0.25)", "+i=tag(log,int(interval(1,64)))", "+g=tag('f=0.5',choice('1',b))"],
    )

    @pytest.mark.parametrize("overrides", SPACES)
    def test_json_and_back(self, overrides: list[str]) -> None:
        space = space_of(*overrides)
        saved = json.loads(json.dumps(space.to_dict()))
        assert SearchSpace.from_dict(saved) == space
        assert SearchSpace.from_dict(saved).to_dict() == space.to_dict()

    @pytest.mark.parametrize("overrides", SPACES)
    def test_its_text_reads_as_the_same_space(self, overrides: list[str]) -> None:
        space = space_of(*overrides)
        assert space_of(*map(str, space.parameters)) == space

    def test_differences_in_words(self) -> None:
        old = space_of("loss=mse,l1", "optimizer.lr=tag(log,interval(1e-4,1))", "seed=1,2", "+x=1,2")
        new = space_of("++x=1,2", "optimizer.lr=tag(log,interval(1e-3,1))", "loss=l1,mse", "+y=int(interval(1,2))")
        assert old.differences(new) == [
            "loss: mse,l1 → l1,mse",
            "optimizer.lr: tag(log,interval(0.0001,1.0)) → tag(log,interval(0.001,1.0))",
            "seed: 1,2 (gone)",
            "x: +x=1,2 → ++x=1,2",
            "y: int(interval(1,2)) (new)",
        ]
        assert old.differences(SearchSpace.from_dict(old.to_dict())) == []
        assert space_of("+a=1,2", "+b=1,2").differences(space_of("+b=1,2", "+a=1,2")) == []


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS
KEYS = st.from_regex(r"[a-z_]\w{0,4}", fullmatch=True).filter(lambda key: key.isascii() and key not in ("true", "false", "null", "inf", "nan"))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


class TestText:
    @given(VALUES)
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_any_value_is_read_as_it_was(self, value: Any) -> None:
        read = value_of(as_override(value))
        assert read == value
        assert type(read) is type(value)

    @given(st.lists(SCALARS, min_size=1, max_size=4))
    @settings(max_examples=100, deadline=None)
    def test_choices_survive_the_way_through_optuna(self, values: list[Any]) -> None:
        if any(a == b for a, b in itertools.combinations(values, 2)):
            return
        override = "x=" + ",".join(map(as_override, values)) if len(values) > 1 else f"x=choice({as_override(values[0])})"
        if values == [None]:
            return
        space = SearchSpace.from_dict(json.loads(json.dumps(space_of(override).to_dict())))
        texts = [space.overrides_of({"x": choice})[0].partition("=")[2] for choice in space.parameters[0].distribution.choices]  # type: ignore[attr-defined]
        assert [(type(v), v) for v in map(value_of, texts)] == [(type(v), v) for v in values]

    @given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
    @settings(max_examples=100, deadline=None)
    def test_a_drawn_number_is_written_exactly(self, low: float, width: float) -> None:
        space = space_of(f"x=interval({low!r},{low + width!r})")
        study = optuna.create_study()
        trial = study.ask(space.distributions)
        assert value_of(space.overrides_of(trial.params)[0].partition("=")[2]) == trial.params["x"]

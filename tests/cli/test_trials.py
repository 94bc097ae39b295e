"""Trials composed the short way: the same as in full, whatever the overrides, and the same errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import losskit_cli.trials
from losskit_cli.compose import Composed, Composer
from losskit_cli.errors import UsageError
from losskit_cli.trials import NUMBER, TrialComposer
from sweeps.space import Resolver, SearchSpace, SpaceError

FIXED = ["optimizer=adamw", "optimizer.lr=0.5", "trainer.max_epochs=3", "+note={a: 1}"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.fixture(scope="module")
def trials(composer: Composer) -> TrialComposer:
    return TrialComposer(composer, FIXED)


def same(one: Composed, other: Composed) -> bool:
    assert OmegaConf.to_yaml(one.config) == OmegaConf.to_yaml(other.config)
    assert OmegaConf.is_struct(one.config) == OmegaConf.is_struct(other.config)
    assert one.choices == other.choices
    assert one.origins == other.origins
    assert one.overrides == other.overrides
    return one.config_dirs == other.config_dirs and one.resolved() == other.resolved()


CHOICES = ["loss=poly1", "loss=focal", "loss=cross_entropy", "regularizer=[l1]", "regularizer=[l1,l2]", "regularizer=[]", "model=mlp"]
VALUES = [
    "seed=7",
    "seed=${trainer.max_epochs}",
    "optimizer.lr=1e-05",
    "++optimizer.lr=2",
    "optimizer.betas=[0.5,0.6]",
    "optimizer.betas.0=0.25",
    "optimizer.maximize=true",  # no option file lists it: + is put before it
    "loss.ignore_index=-1",
    "+loss.label_smoothing=0.1",
    "loss.gamma=3",
    "model={_target_: components.models.MLP, hidden: [4]}",
    "trainer.max_epochs=null",
    "note.a=5",
    "+note.b=[1,{c: d}]",
    "name='a, b'",
    "tags=[x,y]",
    "data.batch_size=13",
    "data.seed=5",
    "callbacks.checkpoints.monitor=${optimized_metric}",
    "~optimizer.eps",
    "~note",
    "regularizer.l1.weight=0.5",
    "+loss@auxiliary.f=focal",
    "+auxiliary.f.weight=0.25",
    "output_dir=a b",
    "debug=default",
]


class TestTheShortWay:
    @given(
        st.lists(st.sampled_from(CHOICES), max_size=2, unique_by=lambda text: text.partition("=")[0]),
        st.lists(st.sampled_from(VALUES), max_size=5, unique=True),
    )
    @settings(max_examples=30, deadline=None)
    def test_it_leads_where_the_long_one_does(self, composer: Composer, trials: TrialComposer, choices: list[str], values: list[str]) -> None:
        overrides = [*values[:2], *choices, *values[2:]]
        try:
            expected = composer.compose([*FIXED, *overrides])
        except UsageError as error:
            with pytest.raises(UsageError) as caught:
                trials.compose(overrides)
            assert str(caught.value) == str(error)
            return
        for _ in range(2):  # as it is met first, and from what was kept
            assert same(trials.compose(overrides), expected)

    @pytest.mark.parametrize("overrides", [["optimizer=sgd", "optimizer.lr=1"], ["loss=focal", "loss=poly1"], ["seed=1", "seed=2"], []])
    def test_what_is_given_twice(self, composer: Composer, trials: TrialComposer, overrides: list[str]) -> None:
        assert same(trials.compose(overrides), composer.compose([*FIXED, *overrides]))

    def test_it_is_taken(self, composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
        trials = TrialComposer(composer, FIXED)
        given = ["loss=focal", "loss.gamma=1.5", "optimizer.maximize=true", "+loss@auxiliary.k=poly1", "tags=[a]", "seed=1"]
        trials.compose(given)
        monkeypatch.setattr(composer, "compose", lambda overrides: pytest.fail(f"composed in full: {overrides}"))
        again = trials.compose([text.replace("1.5", "2.5") for text in given])
        assert again.resolved()["loss"]["gamma"] == 2.5
        assert "+optimizer.maximize=true" in again.overrides
        assert again.resolved()["auxiliary"]["k"]["_target_"].endswith("Poly1Loss")

    def test_no_trial_changes_another(self, trials: TrialComposer) -> None:
        first = trials.compose(["seed=1"])
        first.config.seed = 99
        first.config.tags.append("mine")
        first.origins["seed"] = "?"
        first.choices["callbacks"].append("?")
        first.overrides.append("?")
        second = trials.compose(["optimizer.lr=0.1"])
        assert (second.resolved()["seed"], second.resolved()["tags"], second.origins["seed"]) == (0, [], "train.yaml")
        assert "?" not in [*second.overrides, *second.choices["callbacks"]]

    def test_interpolations_follow(self, trials: TrialComposer) -> None:
        assert trials.compose(["seed=41"]).resolved()["data"]["seed"] == 41

    def test_presets_and_the_users_own_tree(self, tmp_path: Path) -> None:
        (tmp_path / "experiment").mkdir()
        values = "loss: {gamma: 4.0}\noptimizer: {lr: 0.123}\n"
        (tmp_path / "experiment" / "big.yaml").write_text(f"# @package _global_\ndefaults: [override /loss: focal, override /optimizer: adamw]\n{values}")
        composer = Composer([tmp_path])
        trials = TrialComposer(composer, ["experiment=big"])
        for overrides in (["loss=poly1"], ["loss=focal", "seed=2"], ["optimizer=sgd", "seed=3"], ["optimizer=sgd", "seed=4"]):
            assert same(trials.compose(overrides), composer.compose(["experiment=big", *overrides]))

    def test_another_primary_config(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: 5\n")
        trials = TrialComposer(Composer([tmp_path]), [], "mine")
        assert trials.compose(["optimizer.lr=0.1"]).resolved()["seed"] == 5

    def test_what_is_kept_does_not_grow_without_end(self, composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(losskit_cli.trials, "COMBINATIONS_KEPT", 2)
        monkeypatch.setattr(losskit_cli.trials, "TEXTS_KEPT", 3)
        trials = TrialComposer(composer)
        for loss in ("poly1", "focal", "mse", "poly1"):
            assert trials.compose([f"loss={loss}", "name=x", f"tags=[{loss}]"]).choices["loss"] == loss
        assert len(trials._kept) == 2
        assert len(trials._parsed) <= 3

    @pytest.mark.parametrize(
        "overrides",
        [["loss=focl"], ["loss.gama=1"], ["loss=poly1,focal"], ["x=interval(0,1)"], ["seed"], ["seed=[1"], ["logger=x"], ["+logger=x"], ["hydra.run.dir=x"],
         ["~nothing"], ["+seed=1"], ["loss=null"], ["a/b=c"], ["nothing.at.all=1"]],
    )  # fmt: skip
    def test_errors_are_the_same(self, composer: Composer, trials: TrialComposer, overrides: list[str]) -> None:
        with pytest.raises(UsageError) as expected:
            composer.compose([*FIXED, *overrides])
        for _ in range(2):
            with pytest.raises(UsageError) as caught:
                trials.compose(overrides)
            assert str(caught.value) == str(expected.value)


class TestNumbers:
    @given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False, places=3))
    @settings(max_examples=200, deadline=None)
    def test_they_are_read_as_hydra_reads_them(self, number: object) -> None:
        text = f"optimizer.lr={number}"
        if NUMBER.fullmatch(text) is not None:
            ours, theirs = TrialComposer.__new__(TrialComposer)._parse(text), OverridesParser.create().parse_override(text)
            assert ours == theirs
            assert type(ours.value()) is type(theirs.value())

    @pytest.mark.parametrize("text", ["x=1", "a.b_c=-0.5", "x=1e-05", "x=+3", "x=1.5E+300"])
    def test_these_are_numbers(self, text: str) -> None:
        assert NUMBER.fullmatch(text)
        assert TrialComposer.__new__(TrialComposer)._parse(text) == OverridesParser.create().parse_override(text)

    @pytest.mark.parametrize("text", ["x=01", "x=1.", "x=.5", "x=1_000", "x=inf", "+x=1", "x@y=1", "x/y=1", "1x=1", "x=1,2", "x=", "x= 1", "x=1 ", "x=٣"])
    def test_these_are_hydras_to_read(self, text: str) -> None:
        assert NUMBER.fullmatch(text) is None


class TestWhatASpaceAsks:
    def test_it_is_a_resolver(self, trials: TrialComposer) -> None:
        resolver: Resolver = trials
        assert resolver.is_group("loss") and resolver.is_group("sweep/sampler")
        assert not resolver.is_group("loss.gamma") and not resolver.is_group("seed")

    @pytest.mark.parametrize(
        ("key", "chosen", "there"),
        [
            ("loss.gamma", {"loss": "focal"}, True),
            ("loss.gamma", {"loss": "poly1"}, False),
            ("loss.reduction", {"loss": "focal"}, True),  # the class takes it, the file does not list it
            ("seed", {}, True),
            ("name", {}, True),  # it is null
            ("nothing", {}, False),
            ("nothing.at.all", {}, False),
            ("seed.x", {}, False),
            ("optimizer.betas.1", {}, True),
            ("optimizer.betas.2", {}, False),
            ("note.a", {}, True),
            ("regularizer.l1.weight", {"regularizer": "[l1]"}, True),
            ("regularizer.l1.weight", {"regularizer": "[]"}, False),
            ("loss", {"loss": "poly1"}, True),
            ("auxiliary.f.gamma", {"+loss@auxiliary.f": "focal"}, True),
            ("loss@auxiliary.f", {"+loss@auxiliary.f": "focal"}, True),
        ],
    )
    def test_whether_a_key_is_there(self, trials: TrialComposer, key: str, chosen: dict[str, str], there: bool) -> None:
        assert trials.has(key, chosen) is there

    def test_what_does_not_compose_says_why(self, trials: TrialComposer) -> None:
        with pytest.raises(UsageError, match="no loss=focl; did you mean 'focal'"):
            trials.has("loss", {"loss": "focl"})

    def test_a_space_over_the_real_configuration(self, composer: Composer) -> None:
        trials = TrialComposer(composer, ["trainer.max_epochs=1"])
        overrides = ["loss=poly1,focal", "loss.epsilon=interval(-1,5)", "optimizer.lr=tag(log,interval(1e-4,1))"]
        space, fixed = SearchSpace.parse([*overrides, "regularizer=[l1],[]", "regularizer.l1.weight=1,2"], trials.config_loader)
        space.check(trials)
        assert fixed == []
        with pytest.raises(SpaceError, match=r"loss.epsilo.*no 'loss.epsilo', whichever loss is chosen; did you mean 'loss.epsilon'"):
            SearchSpace.parse(["loss=poly1,focal", "loss.epsilo=1,2"])[0].check(trials)
        with pytest.raises(UsageError, match="no loss=focl"):
            SearchSpace.parse(["loss=poly1,focl"])[0].check(trials)

    def test_every_point_composes_to_what_it_says(self, composer: Composer) -> None:
        trials = TrialComposer(composer)
        overrides = ["regularizer=[l1],[l1,l2],[]", "regularizer.l1.weight=range(0.1,0.3,0.1)", "name=null,'a b','1'", "tags=[],[a,'b c']", "test=true,false"]
        space, _ = SearchSpace.parse(overrides)
        space.check(trials)
        listed = space.points(trials)
        assert len(listed) == (2 + 2 + 1) * 3 * 2 * 2
        seen = []
        for point in listed:
            composed = trials.compose(space.overrides_of(point))
            config = composed.resolved()
            assert composed.choices.get("regularizer", []) == list(config["regularizer"])
            seen.append((str(config["regularizer"]), config["name"], tuple(config["tags"]), config["test"]))
        assert len(set(seen)) == len(listed)
        assert {name for _, name, _, _ in seen} == {None, "a b", "1"}

    def test_glob_over_a_real_group(self, trials: TrialComposer) -> None:
        space, _ = SearchSpace.parse(["loss=glob([poly1,linear_c*])"], trials.config_loader)
        assert [trials.compose(space.overrides_of(point)).choices["loss"] for point in space.points(trials)] == ["linear_cross_entropy", "poly1"]

    def test_the_nearest_without_anything_composed(self, composer: Composer) -> None:
        assert TrialComposer(composer).nearest("optimizer.lrr") == "; did you mean 'optimizer.lr'?"
        assert "averaging" not in TrialComposer(composer).nearest("schedule.zzzzzzzz")
        assert "(schedule has: " in TrialComposer(composer).nearest("schedule.zzzzzzzz")

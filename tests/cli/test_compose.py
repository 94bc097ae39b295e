"""Composition: what wins over what, what is refused and how, where values came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from losskit_cli.compose import Composer
from losskit_cli.errors import UsageError


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.fixture
def user_conf(tmp_path: Path) -> Path:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("loss/mine.yaml", "# my loss (nobody)\n_target_: components.losses.FocalLoss\ngamma: 7.0\n")
    write("loss/focal.yaml", "# focal as we use it (us)\n_target_: components.losses.FocalLoss\ngamma: 5.0\n")
    values = "loss: {gamma: 4.0}\noptimizer: {lr: 0.123}\nregularizer: {l1: {weight: 9.0}}\n"
    write("experiment/big.yaml", f"# @package _global_\ndefaults: [override /loss: focal, override /optimizer: adamw]\n{values}")
    return tmp_path


class TestChoices:
    def test_the_default_is_digits_with_a_convnet(self, composer: Composer) -> None:
        choices = composer.compose([]).choices
        assert {k: choices[k] for k in ("data", "model", "task", "loss", "metrics")} == {
            "data": "digits", "model": "convnet", "task": "classification", "loss": "cross_entropy", "metrics": "classification",
        }  # fmt: skip

    def test_data_brings_task_model_loss_and_metrics_that_suit_it(self, composer: Composer) -> None:
        choices = composer.compose(["data=co2"]).choices
        assert (choices["task"], choices["loss"], choices["metrics"]) == ("forecasting", "mse", "forecasting")

    def test_what_the_user_chooses_wins_over_what_the_data_suggests(self, composer: Composer) -> None:
        choices = composer.compose(["data=co2", "loss=huber", "model=patch_transformer"]).choices
        assert (choices["task"], choices["loss"], choices["model"]) == ("forecasting", "huber", "patch_transformer")

    def test_a_chosen_task_brings_its_own_loss(self, composer: Composer) -> None:
        choices = composer.compose(["data=digits", "task=embedding"]).choices
        assert (choices["loss"], choices["metrics"], choices["model"]) == ("triplet", "embedding", "convnet")

    def test_lists_of_options_and_an_empty_one(self, composer: Composer) -> None:
        config = composer.compose(["regularizer=[l1,confidence_penalty]"]).resolved()
        assert set(config["regularizer"]) == {"l1", "confidence_penalty"}
        assert composer.compose([]).resolved()["regularizer"] == {}

    def test_an_auxiliary_loss_in_hydras_own_grammar(self, composer: Composer) -> None:
        config = composer.compose(["+loss@auxiliary.f=focal", "+auxiliary.f.weight=0.5"]).resolved()
        assert config["auxiliary"]["f"]["_target_"].endswith("FocalLoss")
        assert config["auxiliary"]["f"]["weight"] == 0.5

    def test_debug_presets_and_experiments(self, composer: Composer) -> None:
        assert composer.compose(["debug=fdr"]).resolved()["trainer"]["fast_dev_run"] is True
        assert composer.compose(["experiment=byte_lm"]).choices["task"] == "language_modelling"


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [("seed=7", "seed", 7), ("+extra=[1,2]", "extra", [1, 2]), ("tags=[a,'b c']", "tags", ["a", "b c"]),
         ("++trainer.max_epochs=3", "trainer.max_epochs", 3), ("+thing={a: 1, b: {c: x}}", "thing", {"a": 1, "b": {"c": "x"}})],
    )  # fmt: skip
    def test_hydras_grammar(self, composer: Composer, override: str, key: str, value: object) -> None:
        config: object = composer.compose([override]).resolved()
        for part in key.split("."):
            config = config[part]  # type: ignore[index]
        assert config == value

    def test_deleting(self, composer: Composer) -> None:
        assert "momentum" not in composer.compose(["~optimizer.momentum"]).resolved()["optimizer"]

    def test_a_parameter_that_the_option_file_does_not_list_needs_no_plus(self, user_conf: Path) -> None:
        composed = Composer([user_conf]).compose(["loss=mine", "loss.ignore_index=-1"])
        assert composed.resolved()["loss"]["ignore_index"] == -1
        assert "+loss.ignore_index=-1" in composed.overrides

    def test_a_preset_keeps_out_of_an_option_that_the_user_chose_instead(self, user_conf: Path) -> None:
        composer = Composer([user_conf])
        assert composer.compose(["experiment=big"]).resolved()["optimizer"]["lr"] == 0.123
        chosen = composer.compose(["experiment=big", "optimizer=sgd", "loss=poly1", "regularizer=[l2]"]).resolved()
        assert chosen["optimizer"]["lr"] != 0.123
        assert "gamma" not in chosen["loss"]
        assert set(chosen["regularizer"]) == {"l2"}

    def test_a_preset_keeps_its_values_when_the_user_names_the_same_option(self, user_conf: Path) -> None:
        assert Composer([user_conf]).compose(["experiment=big", "optimizer=adamw"]).resolved()["optimizer"]["lr"] == 0.123


class TestUsersOwnTree:
    def test_it_adds_options_and_shadows_shipped_ones(self, user_conf: Path) -> None:
        composer = Composer([user_conf])
        assert composer.compose(["loss=mine"]).resolved()["loss"]["gamma"] == 7.0
        assert composer.compose(["loss=focal"]).resolved()["loss"]["gamma"] == 5.0
        assert composer.compose(["loss=poly1"]).resolved()["loss"]["epsilon"] == 1.0

    def test_optional_local(self, tmp_path: Path) -> None:
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "default.yaml").write_text("# @package _global_\nseed: 99\n")
        assert Composer([tmp_path]).compose([]).resolved()["seed"] == 99

    def test_a_directory_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match="no such directory"):
            Composer(["/nowhere/conf"])


class TestOrigins:
    def test_every_value_says_where_it_came_from(self, composer: Composer) -> None:
        origins = composer.compose(["loss=focal", "loss.gamma=3", "experiment=byte_lm"]).origins
        assert origins["loss.gamma"] == "override loss.gamma=3"
        assert origins["optimizer.lr"] == "experiment/byte_lm.yaml"
        assert origins["seed"] == "train.yaml"
        assert origins["data._target_"] == "data/python_source.yaml"


class TestErrors:
    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["loss=focl"], ["no loss=focl", "did you mean 'focal'", "losskit list loss"]),
            (["regularizer=[l1,l22]"], ["no regularizer=l22", "did you mean"]),
            (["los=focal"], ["no 'los'", "did you mean 'loss'"]),
            (["loss=focal", "loss.gama=3"], ["no 'loss.gama'", "did you mean 'gamma'"]),
            (["trainer.max_epoch=3"], ["did you mean 'max_epochs'"]),
            (["modle.width=3"], ["no 'modle.width'", "did you mean 'model'"]),
            (["experiment=nope"], ["no experiment=nope", "losskit list experiment"]),
            (["loss"], ["not an override", "key=value"]),
            (["loss=[a"], ["cannot read the override"]),
            (["loss=focal,poly1"], ["--multirun"]),
            (["logger=wandb"], ["calls that 'tracking'"]),
            (["hparams_search=x"], ["calls that 'sweep'"]),
            (["seed=${nowhere}"], ["nowhere"]),
        ],
    )
    def test_they_say_what_was_wrong_and_what_is_near(self, composer: Composer, overrides: list[str], says: list[str]) -> None:
        with pytest.raises(UsageError) as caught:
            composer.compose(overrides).resolved()
        for words in says:
            assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    def test_an_unknown_primary_config(self) -> None:
        with pytest.raises(UsageError, match="no config 'nope'"):
            Composer(config_name="nope").compose([])


class TestMultirun:
    def test_the_product_of_all_choices(self, composer: Composer) -> None:
        jobs = composer.expand(["loss=focal,poly1", "seed=range(3)", "data=digits"])
        assert len(jobs) == 6
        assert jobs[0] == ["loss=focal", "seed=0", "data=digits"]

    def test_a_broken_sweep(self, composer: Composer) -> None:
        with pytest.raises(UsageError):
            composer.expand(["seed=interval(0,1)"])

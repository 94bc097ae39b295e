"""What an experiment's ``claim:`` block says, what is wrong with one that says something else, and what runs make of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from losskit_cli.catalogue import Catalogue
from losskit_cli.claims import Claim, claims_of
from losskit_cli.compose import Composer, not_overridden
from losskit_cli.errors import UsageError
from losskit_cli.reproduce import Reproduction
from losskit_cli.statistics import compare_with
from losskit_cli.trials import TrialComposer
from tests.conftest import REPOSITORY, Result

BLOCK: dict[str, Any] = {
    "paper": "A. Author, A paper, 2026",
    "says": "a large rate beats a tiny one",
    "baseline": ["loss=cross_entropy"],
    "method": ["loss=poly1", "loss.epsilon=2"],
    "others": {"focal": ["loss=focal"]},
    "metric": "test/acc",
    "better": "higher",
}
SHIPPED = claims_of(Catalogue([REPOSITORY / "conf"]))


@pytest.fixture
def own(workdir: Path) -> Callable[..., Path]:
    """Writes an experiment of one's own; its config directory."""

    def write(**changes: Any) -> Path:
        directory = workdir / "mine" / "experiment"
        directory.mkdir(parents=True, exist_ok=True)
        text = "# @package _global_\n# Something of mine (me, 2026)\ndefaults: [{override /data: iris}, {override /model: linear}]\n"
        (directory / "mine.yaml").write_text(text + yaml.safe_dump({"claim": {**BLOCK, **changes}}))
        return directory.parent

    return write


class TestBlock:
    def test_what_it_says(self) -> None:
        claim = Claim.read("mine", {**BLOCK, "margin": 0.01, "seeds": [3, 1, 4, 5, 9], "tune": ["optimizer.lr=0.1,1"]})
        assert [*claim.arms] == ["method", "baseline", "focal"]
        assert (claim.higher_is_better, claim.margin, claim.seeds, claim.tuning_metric) == (True, 0.01, (3, 1, 4, 5, 9), "val/acc")
        assert Claim.read("mine", {**BLOCK, "seeds": 7}).seeds == tuple(range(7))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"metod": []}, r"claim has no 'metod'; did you mean 'method'\?"),
            ({"paper": ""}, "claim needs 'paper'"),
            ({"metric": None}, "claim needs 'metric'"),
            ({"better": "highre"}, r"better must be higher or lower, but got 'highre'; did you mean 'higher'\?"),
            ({"method": "loss=poly1"}, r"claim.method must be a list of overrides"),
            ({"baseline": None}, "claim.baseline must be a list of overrides"),
            ({"method": ["poly1"]}, "claim.method must be a list of overrides"),
            ({"method": ["loss=cross_entropy"]}, "method and baseline are the same"),
            ({"others": {"method": []}}, "claim.others takes further arms by name"),
            ({"others": ["loss=focal"]}, "claim.others takes further arms by name"),
            ({"margin": -1}, "claim.margin must be a number >= 0"),
            ({"margin": True}, "claim.margin must be a number >= 0"),
            ({"seeds": 4}, "claim.seeds must be a number of seeds, 5 or more"),
            ({"seeds": [1, 1, 2, 3, 4]}, "as many different ones"),
            ({"seeds": [1, 2, 3, 4, 1000]}, "below 1000"),
            ({"seeds": True}, "claim.seeds must be"),
            ({"metric": "time/run", "tune": ["optimizer.lr=1,2"]}, "claim.tune goes by the validation split"),
        ],
    )
    def test_what_is_wrong_with_it(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            Claim.read("mine", {**BLOCK, **changes})

    def test_it_is_a_mapping(self) -> None:
        with pytest.raises(UsageError, match="claim takes keys and values"):
            Claim.read("mine", ["method"])


class TestVerdict:
    """Over five pairs whose differences are 0.1 ± 0.01: the 95 % interval is about [0.08, 0.12]."""

    REFERENCE: ClassVar = dict.fromkeys(range(5), 0.5)
    BETTER: ClassVar = {seed: 0.6 + 0.01 * (seed - 2) for seed in range(5)}

    @pytest.mark.parametrize(
        ("better", "margin", "swapped", "verdict"),
        [
            ("higher", 0.0, False, "reproduced"),
            ("higher", 0.0, True, "the other way"),
            ("lower", 0.0, False, "the other way"),
            ("lower", 0.0, True, "reproduced"),
            ("higher", 0.2, True, "reproduced"),  # 0.1 worse, and 0.2 are allowed
            ("higher", 0.1, True, "not seen here"),
            ("lower", 0.05, False, "the other way"),
        ],
    )
    def test_the_whole_interval_decides(self, better: str, margin: float, swapped: bool, verdict: str) -> None:
        one, other = (self.REFERENCE, self.BETTER) if swapped else (self.BETTER, self.REFERENCE)
        assert Claim.read("mine", {**BLOCK, "better": better, "margin": margin}).verdict(compare_with(one, other)) == verdict

    def test_an_interval_over_zero_is_not_seen(self) -> None:
        wide = {seed: 0.5 + value for seed, value in enumerate((0.3, -0.2, 0.1, -0.1, 0.2))}
        assert Claim.read("mine", BLOCK).verdict(compare_with(wide, self.REFERENCE)) == "not seen here"

    def test_without_pairs_there_is_none(self) -> None:
        assert Claim.read("mine", BLOCK).verdict(compare_with({0: 1.0}, {0: math.nan})) == "no verdict"


class TestArm:
    def test_the_method_is_what_is_trained(self, own: Callable[..., Path]) -> None:
        composed = Composer([own()]).compose(["experiment=mine"])
        assert (composed.config.arm, composed.choices["loss"], composed.config.loss.epsilon) == ("method", "poly1", 2)
        assert composed.overrides == ["experiment=mine"]
        assert composed.origins["loss.epsilon"] == "experiment/mine.yaml, arm=method"

    @pytest.mark.parametrize(("arm", "loss"), [("baseline", "cross_entropy"), ("focal", "focal")])
    def test_the_others(self, own: Callable[..., Path], arm: str, loss: str) -> None:
        composed = Composer([own()]).compose(["experiment=mine", f"arm={arm}"])
        assert (composed.config.arm, composed.choices["loss"]) == (arm, loss)

    def test_the_command_line_wins(self, own: Callable[..., Path]) -> None:
        composer = Composer([own()])
        assert composer.compose(["experiment=mine", "loss.epsilon=3"]).config.loss.epsilon == 3
        chosen = composer.compose(["experiment=mine", "loss=focal"])
        assert chosen.choices["loss"] == "focal" and "epsilon" not in chosen.config.loss

    def test_in_a_sweep_it_goes_the_same_way(self, own: Callable[..., Path]) -> None:
        composer = Composer([own()])
        trials = TrialComposer(composer, ["experiment=mine"])
        for overrides in (["arm=baseline", "seed=1"], ["arm=method", "seed=2"], ["seed=3", "loss.epsilon=5", "arm=method"], ["arm=baseline", "seed=4"]):
            assert trials.compose(overrides).config == composer.compose(["experiment=mine", *overrides]).config

    def test_an_arm_stays_where_it_was_given(self, own: Callable[..., Path]) -> None:
        """A sweep of one arm searches other options of it by the place of its overrides."""
        composer, fixed, searched = Composer([own()]), ["experiment=mine", "arm=baseline", "seed=3"], ["loss=focal", "optimizer.lr=0.5"]
        for _ in range(2):
            assert TrialComposer(composer, fixed).compose(searched).overrides == composer.compose([*fixed, *searched]).overrides == [*fixed, *searched]

    def test_a_name_that_is_none(self, own: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match=r"there is no arm=base_line; did you mean 'baseline'\? \(experiment=mine has: method, baseline, focal\)"):
            Composer([own()]).compose(["experiment=mine", "arm=base_line"])
        with pytest.raises(UsageError, match="this experiment makes none"):
            Composer().compose(["arm=baseline"])

    def test_a_wrong_block_is_said_when_it_is_chosen(self, own: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match=r"experiment=mine: claim.better must be"):
            Composer([own(better="more")]).compose(["experiment=mine"])

    def test_what_is_left_of_it(self) -> None:
        arm = ["loss=poly1", "loss.epsilon=2", "+loss@auxiliary.kd=kd", "optimizer.lr=1", "+a.b=1"]
        assert not_overridden(arm, []) == arm
        assert not_overridden(arm, ["loss=focal"]) == arm[2:]
        assert not_overridden(arm, ["optimizer.lr=2", "a=3"]) == arm[:3]
        assert not_overridden(arm, ["optimizer.lrs=2", "~loss@auxiliary.kd"]) == [arm[0], arm[1], arm[3], arm[4]]

    def test_a_run_knows_its_arm_and_not_the_claim(self, losskit: Callable[..., Result], own: Callable[..., Path]) -> None:
        result = losskit("train", "--json", "-cd", str(own()), "experiment=mine", "arm=baseline", "trainer.max_epochs=1", "tracking=none")
        assert result.code == 0, result.err
        saved = (Path(result.json()["run_dir"]) / "config.yaml").read_text()
        config = yaml.safe_load(saved)
        assert config["arm"] == "baseline" and "claim" not in config

    def test_show_tells_it(self, losskit: Callable[..., Result], own: Callable[..., Path]) -> None:
        shown = losskit("show", "experiment=mine", "-cd", str(own())).out
        assert "arm=method    loss=poly1 loss.epsilon=2" in shown and "losskit reproduce mine" in shown


def test_the_page_of_claims_has_them_all() -> None:
    """``losskit reproduce --all --output docs/claims.md`` wrote it; a claim that is added or renamed is to be run."""
    page = (REPOSITORY / "docs" / "claims.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `losskit reproduce (\w+)` \|", page, re.MULTILINE) == [claim.name for claim in SHIPPED]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.mark.parametrize("claim", SHIPPED, ids=lambda claim: claim.name)
class TestShipped:
    def test_its_source_is_one(self, claim: Claim) -> None:
        assert '"' in claim.paper and any(str(year) in claim.paper for year in range(1990, 2027)), "authors, \"title\", venue and year"
        assert claim.shown_by, "what stands for the paper's setting"

    def test_every_arm_composes(self, claim: Claim, composer: Composer) -> None:
        assert Reproduction(composer, claim).plans()[-1].total == len(claim.arms) * len(claim.seeds)

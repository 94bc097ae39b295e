"""Every option of ``conf/reweighting`` through the public trials, and what is particular to option files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from components.binding import requirements
from components.quantities import FACTS
from components.testing.reweighting import ReweightingContract

CONF = Path(__file__).parents[3] / "conf" / "reweighting"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))
BUILT = [option for option in OPTIONS if OmegaConf.load(CONF / f"{option}.yaml")]
FACTS_OF_THE_DATA = {"num_classes": 3, "class_counts": [60, 30, 10], "num_samples": 100, "total_steps": 50, "steps_per_epoch": 10, "batch_size": 6}


def build(option: str) -> nn.Module:
    config = OmegaConf.load(CONF / f"{option}.yaml")
    names = [name for names in requirements(get_class(config._target_)) for name in names]
    return instantiate(config, **{name: FACTS_OF_THE_DATA[name] for name in names if name in FACTS and name not in config})


class TestEveryOption(ReweightingContract):
    @pytest.fixture(params=BUILT)
    def reweighter(self, request: pytest.FixtureRequest) -> nn.Module:
        return build(request.param)


@pytest.mark.parametrize("option", OPTIONS)
def test_says_what_it_is(option: str) -> None:
    assert (CONF / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("option", BUILT)
def test_shows_all_arguments_that_are_not_facts_with_their_defaults(option: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    required, optional = requirements(get_class(config.pop("_target_")))
    assert set(required) <= set(FACTS)
    assert set(config) == set(optional) - set(FACTS)
    assert vars(build(option)).items() >= config.items()


def test_none_is_empty_and_the_rest_is_there() -> None:
    assert set(OPTIONS) - set(BUILT) == {"none"}
    assert "class_balanced" in BUILT

"""Every option of ``conf/regularizer`` through the public trials, and what is particular to option files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from components.binding import requirements
from components.testing.regularizers import RegularizerContract

CONF = Path(__file__).parents[3] / "conf" / "regularizer"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def build(option: str) -> nn.Module:
    config = OmegaConf.load(CONF / f"{option}.yaml")
    return instantiate({k: v for k, v in config.items() if k not in ("weight", "inputs")})


class TestEveryOption(RegularizerContract):
    @pytest.fixture(params=OPTIONS)
    def regularizer(self, request: pytest.FixtureRequest) -> nn.Module:
        return build(request.param)


@pytest.mark.parametrize("option", OPTIONS)
class TestOptionFile:
    def test_says_what_it_is_and_where_it_goes(self, option: str) -> None:
        first, second, *_ = (CONF / f"{option}.yaml").read_text().splitlines()
        assert first == f"# @package regularizer.{option}", "Hydra stops looking for the package at the first other line"
        assert second.startswith("# ")
        assert second.endswith(")"), "the description ends with its source in parentheses"

    def test_lands_in_its_own_place_of_a_list(self, option: str) -> None:
        with initialize_config_dir(str(CONF.parent), version_base="1.3"):
            config = compose(overrides=[f"+regularizer=[{option}]"])
        assert list(config.regularizer) == [option]
        assert "_target_" in config.regularizer[option]

    def test_has_a_positive_weight(self, option: str) -> None:
        assert OmegaConf.load(CONF / f"{option}.yaml").weight > 0

    def test_shows_all_arguments_with_their_defaults(self, option: str) -> None:
        config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
        cls = get_class(config.pop("_target_"))
        del config["weight"]
        required, optional = requirements(cls)
        assert not required
        assert set(config) == set(optional)
        assert vars(cls()).items() >= config.items()


def test_there_are_the_seven() -> None:
    assert {"l1", "l2", "group_lasso", "spectral", "confidence_penalty", "activation_l2", "jacobian"} <= set(OPTIONS)

"""Every option of ``conf/transform`` through the public trials, and what is particular to option files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from components.binding import requirements
from components.testing.transforms import TransformContract

CONF = Path(__file__).parents[3] / "conf" / "transform"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


class TestEveryOption(TransformContract):
    @pytest.fixture(params=OPTIONS)
    def transform(self, request: pytest.FixtureRequest) -> nn.Module:
        return instantiate(OmegaConf.load(CONF / f"{request.param}.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
class TestOptionFile:
    def test_says_what_it_is_and_where_it_goes(self, option: str) -> None:
        first, second, *_ = (CONF / f"{option}.yaml").read_text().splitlines()
        assert first == f"# @package transform.{option}", "Hydra stops looking for the package at the first other line"
        assert second.startswith("# ")
        assert second.endswith(")"), "the description ends with its source in parentheses"

    def test_lands_in_its_own_place_of_a_list(self, option: str) -> None:
        with initialize_config_dir(str(CONF.parent), version_base="1.3"):
            config = compose(overrides=[f"+transform=[{option}]"])
        assert list(config.transform) == [option]
        assert "_target_" in config.transform[option]

    def test_shows_all_arguments_with_their_defaults(self, option: str) -> None:
        config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
        cls = get_class(config.pop("_target_"))
        required, optional = requirements(cls)
        assert not required
        assert set(config) == set(optional)
        defaults = vars(cls())
        for name, value in config.items():
            expected = list(defaults[name]) if isinstance(value, list) else defaults[name]
            assert value == pytest.approx(expected, rel=1e-4) if not isinstance(value, str) else value == expected


def test_there_are_the_six() -> None:
    assert {"mixup", "cutmix", "gaussian_noise", "random_shift", "random_flip", "image_augment"} <= set(OPTIONS)

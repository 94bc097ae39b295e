"""Every option of conf/schedule goes through the public trials."""

import timeit
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import components.schedules
from components.schedules import Schedule
from components.testing.schedules import ScheduleContract

SEARCHED = {"autolrs"}  # no schedule before it has trained: tests/sweeps/autolrs
OPTIONS = [path for path in sorted((Path(__file__).parents[3] / "conf" / "schedule").glob("*.yaml")) if path.stem not in SEARCHED]
REPLAYED = {"run": "other", "of_run": "other", "of": {"_target_": "components.schedules.Cosine"}, "of_steps": 40, "of_lr": 0.05, "base_lr": 0.1}


def option(path: Path) -> Schedule:
    filled = REPLAYED if path.stem == "replay" else {}
    return instantiate(OmegaConf.merge(OmegaConf.load(path), filled), _convert_="all")


@pytest.mark.parametrize("path", OPTIONS, ids=lambda p: p.stem)
class TestEveryOption(ScheduleContract):
    @pytest.fixture
    def schedule(self, path: Path) -> Schedule:
        return option(path)

    def test_option_file_lists_every_field(self, path: Path, schedule: Schedule) -> None:
        assert path.read_text().startswith("# ")
        assert set(OmegaConf.load(path)) == {f.name for f in fields(schedule)} - {"total_steps"} | {"_target_"}

    def test_fast_enough_to_be_called_at_every_step(self, path: Path, schedule: Schedule) -> None:
        ready = schedule.with_total_steps(1000)
        seconds = min(timeit.repeat(lambda: ready(700), number=1000, repeat=5)) / 1000
        assert seconds < 10e-6  # about 1e-6 on an idle core


def test_every_shape_has_an_option():
    composed = {"Power", "Product", "Scaled"}  # they need a schedule to act on
    shapes = {name for name in components.schedules.__all__ if name[0].isupper()} - {"Schedule", "Span"} - composed
    assert {type(option(path)).__name__ for path in OPTIONS} == shapes

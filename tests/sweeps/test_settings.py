"""What a sweep is told: refused in words where it is wrong, kept whole in its study, and compared when it is gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from losskit_cli.merging import flat
from sweeps.settings import RESUMABLE, Plan, SweepError, SweepSettings, auto_workers
from sweeps.space import SearchSpace
from tests.conftest import REPOSITORY

OTHERWISE: dict[str, Any] = {  # every setting with another value than its default
    "name": "other",
    "sampler": {"_target_": "sweeps.algorithms.Random"},
    "pruner": {"_target_": "sweeps.algorithms.Median"},
    "n_trials": 7,
    "seeds": 3,
    "workers": 3,
    "storage": "sqlite:///other.db",
    "objectives": ["val/other"],
    "directions": ["maximize"],
    "constraints": ["val/loss <= 1"],
    "retries": 5,
    "on_failure": "stop",
    "max_failures_in_a_row": 9,
    "nan": "prune",
    "seed": 8,
    "launcher": "hydra/launcher=joblib",
    "grace_seconds": 4.0,
    "space": {"optimizer.lr": "interval(0,1)"},
}
NEITHER = ("name", "storage", "space")  # where it is and how the space is written: no part of what the sweep is


def plan(**changes: Any) -> Plan:
    space, fixed = SearchSpace.parse(["optimizer.lr=tag(log,interval(1e-4,1))", "loss=poly1,focal", "model.width=int(interval(1,8))", "seed=3"])
    given: dict[str, Any] = {
        "name": "mine",
        "given": ["loss=poly1,focal"],
        "fixed": fixed,
        "space_given": ["loss=poly1,focal"],
        "space": space.to_dict(),
        "settings": SweepSettings().model_dump(),
        "objectives": ["val/loss"],
        "directions": ["minimize"],
        "seeds": [],
        "total": 20,
        "config": {"loss": {"gamma": 2, "weights": [1.0, None, {"a": True}]}, "name": "ünï", "callbacks": {}},
        "points": [{"loss": "focal", "optimizer.lr": 0.5}],
    }
    return Plan(**(given | changes))


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"workers": 0}, "sweep.workers=0: it takes auto or a whole number >= 1"),
        ({"workers": -2}, "sweep.workers=-2: it takes auto or a whole number >= 1"),
        ({"workers": "many"}, "sweep.workers='many': Input should be"),
        ({"seeds": 0}, "sweep.seeds=0: it takes a whole number >= 1, or a list of different seeds"),
        ({"seeds": -1}, "sweep.seeds=-1: it takes a whole number >= 1"),
        ({"seeds": []}, "sweep.seeds=[]: it takes a whole number >= 1"),
        ({"seeds": [1, 2, 1]}, "sweep.seeds=[1, 2, 1]: it takes a whole number >= 1, or a list of different seeds"),
        ({"seeds": [3, -1]}, "sweep.seeds=[3, -1]: it takes a whole number >= 1"),
        ({"seeds": 1.5}, "sweep.seeds=1.5: Input should be"),
        ({"objectives": ["a", "b"], "directions": ["minimize"]}, "sweep: directions are of objectives, one each: 2 objectives, 1 directions"),
        ({"directions": ["minimize"]}, "sweep: directions are of objectives, one each: 0 objectives, 1 directions"),
        ({"objectives": ["a"], "directions": ["min"]}, "sweep.directions='min': Input should be 'minimize' or 'maximize'"),
        ({"objectives": "val/loss"}, "sweep.objectives='val/loss': Input should be a valid list"),
        ({"n_trials": 0}, "sweep.n_trials=0: Input should be greater than or equal to 1"),
        ({"retries": -1}, "sweep.retries=-1: Input should be greater than or equal to 0"),
        ({"max_failures_in_a_row": -1}, "sweep.max_failures_in_a_row=-1: Input should be"),
        ({"seed": -1}, "sweep.seed=-1: Input should be"),
        ({"grace_seconds": 0}, "sweep.grace_seconds=0: Input should be greater than 0"),
        ({"on_failure": "go on"}, "sweep.on_failure='go on': Input should be 'continue' or 'stop'"),
        ({"nan": "ignore"}, "sweep.nan='ignore': Input should be 'prune' or 'fail'"),
        ({"n_trails": 5}, "there is no sweep.n_trails; did you mean 'n_trials'? (there is: name, sampler, pruner, n_trials,"),
        ({"zzz": 5}, "there is no sweep.zzz (there is: name,"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SweepError) as raised:
        SweepSettings.from_config(config)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_setting_is_taken() -> None:
    assert SweepSettings.from_config(OTHERWISE).model_dump() == OTHERWISE
    defaults = SweepSettings.from_config({})
    assert OTHERWISE.keys() == SweepSettings.model_fields.keys()
    assert not [name for name, value in defaults.model_dump().items() if value == OTHERWISE[name]]
    assert SweepSettings.from_config({"workers": "auto", "seeds": [4, 0]}).seeds == [4, 0]


def test_the_shipped_options_are_settings() -> None:
    shipped = sorted((REPOSITORY / "conf" / "sweep").glob("*.yaml"))
    assert "default" in [path.stem for path in shipped]
    for path in shipped:
        config = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "defaults"}
        SweepSettings.from_config(config)


@pytest.mark.parametrize(("seeds", "wanted"), [(1, [7]), (3, [7, 8, 9]), ([5], [5]), ([9, 2], [9, 2])])
def test_seeds_begin_with_the_experiments_own_or_are_those_listed(seeds: int | list[int], wanted: list[int]) -> None:
    assert SweepSettings(seeds=seeds).seed_list(7) == wanted


@pytest.mark.parametrize(
    ("cores", "devices", "trials", "workers"),
    [
        (1, 0, 20, 1),
        (2, 0, 20, 2),
        (4, 0, 20, 4),
        (6, 0, 20, 4),
        (8, 0, 20, 4),
        (10, 0, 20, 5),
        (64, 0, 20, 20),
        (64, 0, 100, 32),
        (4, 0, 3, 3),
        (4, 0, 0, 1),  # nothing left to do: a worker finds that out
        (64, 1, 20, 1),
        (2, 8, 20, 8),
        (64, 8, 5, 5),
    ],
)
def test_workers_where_it_is_left_to_us(cores: int, devices: int, trials: int, workers: int) -> None:
    assert auto_workers(cores, devices, trials) == workers


# --------------------------------------------------------------------------- the plan


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    before = plan(settings=SweepSettings(**OTHERWISE).model_dump(), seeds=[1, 2], config_dirs=["/a"], config_name="mine", kind="multirun", cwd="/work")
    after = Plan.from_json(before.to_json())
    assert after == before
    assert after.to_json() == before.to_json()
    assert after.fingerprint == before.fingerprint
    assert before.differences(after, flat) == []
    assert SearchSpace.from_dict(after.space).to_dict() == before.space


@pytest.mark.parametrize("setting", SweepSettings.model_fields)
def test_a_setting_tells_sweeps_apart_unless_it_is_only_how_they_are_run(setting: str) -> None:
    before = plan()
    after = plan(settings=before.settings | {setting: OTHERWISE[setting]})
    same = setting in RESUMABLE or setting in NEITHER
    assert (after.fingerprint == before.fingerprint) == same
    lines = before.differences(after, flat)
    assert (lines == []) == same
    if not same:
        assert all(line.startswith(f"settings.{setting}") for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": plan().config | {"name": "other"}},
        {"space": SearchSpace.parse(["optimizer.lr=tag(log,interval(1e-4,1))", "loss=poly1,focal", "model.width=int(interval(1,9))"])[0].to_dict()},
        {"seeds": [0, 1]},
        {"directions": ["maximize"]},
    ],
)
def test_what_is_searched_tells_sweeps_apart(changes: dict[str, Any]) -> None:
    assert plan(**changes).fingerprint != plan().fingerprint
    (line,) = plan().differences(plan(**changes), flat)
    assert "\n" not in line


def test_another_objective_tells_sweeps_apart() -> None:
    other = plan(objectives=["val/accuracy"])
    assert other.fingerprint != plan().fingerprint
    assert plan().differences(other, flat) == ["objectives.val/loss: minimize → (not there)", "objectives.val/accuracy: (not there) → minimize"]


def test_where_and_how_long_does_not_tell_sweeps_apart() -> None:
    other = replace(plan(), name="other", total=99, cwd="/elsewhere", config_dirs=["/a"], given=["x=1"], points=[])
    assert other.fingerprint == plan().fingerprint
    assert plan().differences(other, flat) == []
    assert len(other.fingerprint) == 12
    assert set(other.fingerprint) <= set("0123456789abcdef")


def test_differences_are_a_line_each() -> None:
    before = plan(config={"loss": {"gamma": 2, "weight": 1.0}, "name": "a"}, seeds=[0, 1])
    after = plan(config={"loss": {"gamma": 3, "epsilon": 0.5}, "name": "a"}, seeds=[0, 1, 2], directions=["maximize"])
    assert sorted(before.differences(after, flat)) == [
        "loss.epsilon: (not there) → 0.5",
        "loss.gamma: 2 → 3",
        "loss.weight: 1.0 → (not there)",
        "objectives.val/loss: minimize → maximize",
        "seeds: [0, 1] → [0, 1, 2]",
    ]

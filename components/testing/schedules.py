"""Trials that every schedule must pass. Inherit :class:`ScheduleContract` and give one fixture.

    class TestTriangle(ScheduleContract):
        @pytest.fixture
        def schedule(self) -> Schedule:
            return Triangle()
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import pytest

from components.schedules.base import Schedule, schedule_from_state

LENGTHS = (1, 2, 3, 10, 101)


class ScheduleContract:
    """The trials.

    Give:
        schedule: fixture; the schedule without ``total_steps``.

    Attributes:
        maximum: no value may exceed it; 1 for a factor.
    """

    maximum: float = 1.0

    @pytest.fixture
    def schedule(self) -> Schedule:
        raise NotImplementedError("a ScheduleContract needs a fixture `schedule`: the schedule without total_steps")

    @pytest.fixture(params=LENGTHS)
    def ready(self, schedule: Schedule, request: pytest.FixtureRequest) -> Schedule:
        return schedule.with_total_steps(request.param)

    def test_finite_and_within_bounds_at_every_step(self, ready: Schedule) -> None:
        assert ready.total_steps is not None
        for step in range(ready.total_steps + 1):
            value = ready(step)
            assert isinstance(value, float) and math.isfinite(value), f"step {step}: {value!r}"
            assert 0 <= value <= self.maximum * (1 + 1e-12), f"step {step}: {value}"

    def test_same_step_same_value(self, ready: Schedule) -> None:
        assert ready.total_steps is not None
        there = [ready(step) for step in range(ready.total_steps)]
        back = [ready(step) for step in reversed(range(ready.total_steps))]
        assert there == back[::-1] == ready.values()

    def test_stays_after_the_end(self, ready: Schedule) -> None:
        assert ready.total_steps is not None
        assert {ready(ready.total_steps + more) for more in (0, 1, 7, 10**6)} == {ready(ready.total_steps)}

    def test_warmup_rises_evenly_to_the_first_value(self, schedule: Schedule) -> None:
        warm = dataclasses.replace(schedule, warmup=20, warmup_factor=0.1, total_steps=100)
        ramp = warm.values(20)
        assert ramp == sorted(ramp)
        assert ramp[-1] == pytest.approx(warm.factor(0, 80), rel=1e-12)
        assert ramp == pytest.approx([ramp[-1] * (0.1 + 0.9 * (step + 1) / 20) for step in range(20)], rel=1e-12)

    def test_warmup_as_a_fraction(self, schedule: Schedule) -> None:
        in_steps, fraction = (dataclasses.replace(schedule, warmup=warmup, total_steps=100) for warmup in (10, 0.1))
        assert in_steps.values() == fraction.values()

    def test_warmup_longer_than_the_run_stays_on_the_ramp(self, schedule: Schedule) -> None:
        values = dataclasses.replace(schedule, warmup=50, total_steps=10).values(20)
        assert values == sorted(values) and values[10:] == [values[10]] * 10

    def test_state_survives_json(self, ready: Schedule) -> None:
        again = schedule_from_state(json.loads(json.dumps(ready.state())))
        assert type(again) is type(ready) and again == ready and again.values() == ready.values()

    def test_state_before_the_length_is_known(self, schedule: Schedule) -> None:
        assert schedule_from_state(json.loads(json.dumps(schedule.state()))) == schedule

    def test_pickles_and_copies(self, ready: Schedule) -> None:
        for again in (pickle.loads(pickle.dumps(ready)), copy.deepcopy(ready)):
            assert again == ready and again.values() == ready.values()

    def test_hashable_and_equal_by_value(self, schedule: Schedule) -> None:
        one, two, other = (schedule.with_total_steps(n) for n in (10, 10, 11))
        assert one == two and hash(one) == hash(two) and one != other

    def test_cannot_be_changed(self, ready: Schedule) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            ready.total_steps = 7  # type: ignore[misc]

    def test_a_length_that_is_set_is_kept(self, schedule: Schedule) -> None:
        ready = schedule.with_total_steps(10)
        assert ready.with_total_steps(20) is ready

    def test_refuses_to_be_called_without_a_length(self, schedule: Schedule) -> None:
        with pytest.raises(ValueError, match="total_steps is not set"):
            schedule(0)

    @pytest.mark.parametrize("bad", [{"total_steps": 0}, {"total_steps": 2.5}, {"warmup": -1}, {"warmup": 1.5}, {"warmup": "long"}, {"warmup_factor": 2.0}])
    def test_refuses_fields_out_of_range(self, schedule: Schedule, bad: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            dataclasses.replace(schedule, **bad)  # type: ignore[arg-type]

    def test_refuses_a_negative_step(self, ready: Schedule) -> None:
        with pytest.raises(ValueError, match="step must be >= 0, but got -1"):
            ready(-1)

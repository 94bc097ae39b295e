import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from components.schedules import Constant, Cosine, Exponential, Join, Linear, OneCycle, Piecewise, Product, Replay, Scaled, Schedule, Step
from components.testing.schedules import ScheduleContract


class TestJoin:
    class TestContract(ScheduleContract):
        @pytest.fixture
        def schedule(self) -> Schedule:
            return Join(schedules=[Linear(start_factor=0.1, end_factor=1.0), Step(milestones=[0.5]), OneCycle()], boundaries=[0.2, 0.6])

    def test_each_runs_over_its_own_segment(self):
        join = Join(schedules=[Linear(start_factor=0.0, end_factor=1.0), Cosine(), Constant(value=0.25)], boundaries=[4, 8], total_steps=10)
        cosine = [0.5 * (1 + math.cos(math.pi * s / 4)) for s in range(4)]
        assert join.values(12) == pytest.approx([0, 0.25, 0.5, 0.75, *cosine, 0.25, 0.25, 0.25, 0.25])

    def test_a_boundary_opens_the_next_segment_and_the_end_is_the_lasts(self):
        join = Join(schedules=[Constant(), Linear()], boundaries=[0.5], total_steps=8)
        assert join(3) == 1.0 and join(4) == 1.0 and join(5) == 0.75 and join(8) == 0.0

    def test_agrees_with_torch(self):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=10), lr_scheduler.ExponentialLR(optimizer, 0.9)]
            theirs = lr_scheduler.SequentialLR(optimizer, parts, milestones=[10])
            join = Join(schedules=[Linear(start_factor=0.1, end_factor=1.0), Exponential(gamma=0.9)], boundaries=[10], total_steps=40)
            for step in range(40):
                assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * join(step), abs=1e-12)
                theirs.step()

    def test_a_part_keeps_a_length_of_its_own(self):
        join = Join(schedules=[Linear(total_steps=2), Constant(value=0.5)], boundaries=[4], total_steps=6)
        assert join.values() == [1.0, 0.5, 0.0, 0.0, 0.5, 0.5]

    def test_parts_have_warmups_of_their_own(self):
        join = Join(schedules=[Constant(warmup=2), Constant(warmup=0.5)], boundaries=[4], total_steps=8)
        assert join.values() == [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]

    def test_warmup_shortens_the_first_segment(self):
        join = Join(schedules=[Linear(), Constant(value=0.0)], boundaries=[6], warmup=2, total_steps=8)
        assert join.values() == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    def test_segments_beyond_a_short_run_are_passed_over(self):
        join = Join(schedules=[Constant(), Linear(), Constant(value=0.1)], boundaries=[100, 200], total_steps=5)
        assert join.values(7) == [1.0] * 7
        assert Join(schedules=[Constant(), Linear()], boundaries=[0], total_steps=2).values(3) == [1.0, 0.5, 0.0]

    def test_joins_join(self):
        inner = Join(schedules=[Constant(), Constant(value=0.5)], boundaries=[0.5])
        outer = Join(schedules=[inner, inner], boundaries=[0.5], total_steps=8)
        assert outer.values() == [1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"schedules": []}, "schedules must be one schedule or more"),
            ({"schedules": [0.5]}, "schedules must be one schedule or more"),
            ({"schedules": [Linear(), Linear()]}, r"boundaries must be one fewer than the 2 schedules, but got \[\]"),
            ({"schedules": [Linear()] * 3, "boundaries": [0.8, 0.2], "total_steps": 10}, "boundaries must be in rising order"),
            ({"schedules": [Linear()] * 2, "boundaries": [-1]}, "boundaries must be >= 0"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Join(**arguments)


class TestProduct:
    class TestContract(ScheduleContract):
        @pytest.fixture
        def schedule(self) -> Schedule:
            return Product(schedules=[Linear(), Cosine(cycles=3)])

    def test_multiplies(self):
        product = Product(schedules=[Linear(), Step(milestones=[0.5], gamma=0.5)], total_steps=4)
        assert product.values(5) == [1.0, 0.75, 0.25, 0.125, 0.0]


class TestScaled:
    class TestContract(ScheduleContract):
        maximum = 0.1

        @pytest.fixture
        def schedule(self) -> Schedule:
            return Scaled(base=0.1, schedule=Cosine())

    def test_is_a_value(self):
        scaled = Scaled(base=0.1, schedule=Linear(start_factor=0.0, end_factor=1.0), total_steps=4)
        assert scaled.values(5) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])

    def test_its_warmup_and_the_schedules(self):
        assert Scaled(base=4.0, schedule=Constant(warmup=2), total_steps=4).values() == [2.0, 4.0, 4.0, 4.0]
        assert Scaled(base=4.0, schedule=Constant(), warmup=2, total_steps=4).values() == [2.0, 4.0, 4.0, 4.0]

    def test_refuses(self):
        with pytest.raises(ValueError, match="base must be a number >= 0, but got -1"):
            Scaled(base=-1, schedule=Linear())
        with pytest.raises(ValueError, match="schedule must be one schedule"):
            Scaled(base=1.0, schedule=0.5)


class TestPiecewise:
    def test_straight_between_points_and_flat_outside(self):
        values = Piecewise(at=[2, 4, 8], factors=[1.0, 0.5, 0.1], total_steps=10).values(11)
        assert values == pytest.approx([1, 1, 1, 0.75, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])

    def test_held(self):
        assert Piecewise(at=[0.0, 0.5], factors=[1.0, 0.25], between="hold", total_steps=4).values() == [1.0, 1.0, 0.25, 0.25]

    def test_positions_count_the_warmup(self):
        assert Piecewise(at=[4, 6], factors=[1.0, 0.0], warmup=2, total_steps=6).values(7) == [0.5, 1, 1, 1, 1, 0.5, 0]

    def test_any_schedule_is_its_points(self):
        cosine = Cosine(total_steps=20)
        assert Piecewise(at=range(21), factors=cosine.values(21), total_steps=20).values(21) == cosine.values(21)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"at": [], "factors": []}, "at and factors"),
            ({"at": [1], "factors": [1.0, 2.0]}, r"as many, but got \(1, 2\)"),
            ({"at": [5, 2], "factors": [1.0, 2.0], "total_steps": 10}, "at must be in rising order"),
            ({"at": [1], "factors": [-1.0]}, "factors"),
            ({"at": [1], "factors": [1.0], "between": "cubic"}, "between"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Piecewise(**arguments)


class TestReplay:
    class TestContract(ScheduleContract):
        @pytest.fixture
        def schedule(self) -> Schedule:
            return Replay(run="other", of=Step(milestones=[3, 7]), of_steps=10, of_lr=0.05, of_run="other", base_lr=0.1)

    def test_stretched_over_another_length(self):
        other = Linear(start_factor=0.0, end_factor=1.0, warmup=2, total_steps=10)
        replay = Replay(of=other, of_steps=10, absolute=False, total_steps=20)
        assert replay.values()[::2] == other.values()
        assert replay(7) == pytest.approx((other(3) + other(4)) / 2)
        assert replay(20) == other(10)
        assert Replay(of=other, of_steps=10, absolute=False, total_steps=5).values() == other.values()[::2]

    def test_absolute_rates_whatever_the_base_rate_is(self):
        other = Cosine(total_steps=10)
        for base in (0.01, 0.2, 3.0):
            replay = Replay(of=Cosine(), of_steps=10, of_lr=0.5, base_lr=base, total_steps=10)
            assert [base * v for v in replay.values()] == pytest.approx([0.5 * v for v in other.values()])

    def test_without_a_length_of_its_own_it_runs_over_this_one(self):
        assert Replay(of=Step(milestones=[0.5]), absolute=False, total_steps=8).values() == Step(milestones=[0.5], total_steps=8).values()

    def test_of_a_replay(self):
        first = Replay(of=Cosine(), of_steps=10, of_lr=0.5, base_lr=0.1)
        second = Replay(of=first, of_steps=20, of_lr=0.1, base_lr=0.25, total_steps=10)
        assert [0.25 * v for v in second.values()] == pytest.approx([0.5 * v for v in Cosine(total_steps=10).values()])

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            ({"of": None}, "of must be the other run's schedule"),
            ({"of": 0.5}, "of must be the other run's schedule"),
            ({"of_steps": 0}, "of_steps must be an int >= 1"),
            ({"of_lr": None}, "of_lr must be a number > 0 for absolute learning rates"),
            ({"base_lr": 0}, "base_lr must be a number > 0"),
        ],
    )
    def test_refused(self, bad, says):
        with pytest.raises(ValueError, match=says):
            Replay(**({"of": Cosine(), "of_lr": 0.1, "base_lr": 0.1} | bad))

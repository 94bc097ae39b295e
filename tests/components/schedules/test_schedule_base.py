from dataclasses import dataclass

import pytest

from components.schedules import Constant, Cosine, Linear, Polynomial, Schedule, schedule_from_state, span_steps
from components.testing.schedules import ScheduleContract


@dataclass(frozen=True, kw_only=True)
class Triangle(Schedule):
    """Somebody's own: one method."""

    def factor(self, step: int, total: int) -> float:
        return 1 - abs(2 * step / total - 1)


class TestOwnSchedule(ScheduleContract):
    @pytest.fixture
    def schedule(self) -> Schedule:
        return Triangle()


class TestSpan:
    def test_int_is_steps_and_float_a_fraction(self):
        assert span_steps(50, 2000) == 50 and span_steps(0.1, 2000) == 200
        assert span_steps(1, 2000) == 1 and span_steps(1.0, 2000) == 2000

    def test_a_float_beyond_one_is_refused_with_the_remedy(self):
        with pytest.raises(ValueError, match=r"warmup as a fraction \(a float\) must be in \[0, 1\]; write an int for a number of steps, but got 10.0"):
            Constant(warmup=10.0)

    def test_bool_and_nan_are_no_numbers(self):
        for bad in (True, float("nan"), None):
            with pytest.raises(ValueError, match="warmup"):
                Constant(warmup=bad)


class TestEnd:
    """What steps total_steps - 1 (the last that training takes) and total_steps give."""

    def test_cosine(self):
        cosine = Cosine(total_steps=100)
        assert cosine(100) == 0.0
        assert cosine(99) == pytest.approx(0.000246719817, abs=1e-12)  # (1 + cos(0.99 pi)) / 2

    def test_linear(self):
        linear = Linear(total_steps=10, end_factor=0.5)
        assert linear(10) == 0.5 and linear(9) == pytest.approx(0.55)

    def test_with_warmup_the_shape_has_what_is_left(self):
        linear = Linear(total_steps=10, warmup=2)
        assert linear.values(12) == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0])

    def test_one_step(self):
        assert Linear(total_steps=1).values(3) == [1.0, 0.0, 0.0]


class TestWarmup:
    def test_first_step_is_not_wasted(self):
        assert Constant(total_steps=10, warmup=4).values(6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]

    def test_warmup_factor_is_where_it_starts(self):
        assert Constant(total_steps=10, warmup=4, warmup_factor=0.2)(0) == pytest.approx(0.2 + 0.8 / 4)

    def test_rises_to_the_shapes_first_value(self):
        assert Linear(start_factor=0.5, total_steps=12, warmup=2).values(3) == [0.25, 0.5, 0.5]

    def test_whole_run(self):
        assert Constant(total_steps=4, warmup=1.0).values(6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


class TestState:
    def test_is_plain_and_names_its_class(self):
        state = Polynomial(total_steps=5, power=2.0).state()
        assert state == {
            "class": "components.schedules.decay.Polynomial",
            "total_steps": 5,
            "warmup": 0,
            "warmup_factor": 0.0,
            "power": 2.0,
            "end_factor": 0.0,
        }

    def test_unknown_class_is_refused_and_imports_nothing(self):
        with pytest.raises(ValueError, match=r"must name an imported schedule; did you mean 'components\.schedules\.decay\.Linear'"):
            schedule_from_state({"class": "components.schedules.decay.Linea"})
        with pytest.raises(ValueError, match="antigravity"):
            schedule_from_state({"class": "antigravity.Schedule"})

    def test_wrong_field_of_a_state_is_refused(self):
        with pytest.raises(ValueError, match="power"):
            schedule_from_state({"class": "components.schedules.decay.Polynomial", "power": 0.0})


def test_values_default_to_the_whole_run():
    assert Linear(total_steps=4).values() == [1.0, 0.75, 0.5, 0.25]
    assert len(Linear(total_steps=4).values(2)) == 2

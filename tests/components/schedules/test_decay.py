import math

import pytest
from torch.optim import lr_scheduler

from components.schedules import Constant, Cosine, Exponential, InverseSqrt, Linear, Polynomial, Step

BASE = 0.3  # the fixtures' learning rate
T = 60
AGREEMENT = {
    "constant": (Constant(value=0.5), lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=10_000)),
    "linear": (Linear(start_factor=0.2, end_factor=0.9), lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, end_factor=0.9, total_iters=T)),
    "cosine": (Cosine(end_factor=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=T, eta_min=0.1 * BASE)),
    "polynomial": (Polynomial(power=0.9), lambda o: lr_scheduler.PolynomialLR(o, total_iters=T, power=0.9)),
    "exponential": (Exponential(gamma=0.97), lambda o: lr_scheduler.ExponentialLR(o, gamma=0.97)),
    "step every": (Step(every=7, gamma=0.5), lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.5)),
    "step milestones": (Step(milestones=[10, 11, 40], gamma=0.5), lambda o: lr_scheduler.MultiStepLR(o, milestones=[10, 11, 40], gamma=0.5)),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_agrees_with_torch_at_every_step(name, our_rates, torch_rates):
    schedule, make_scheduler = AGREEMENT[name]
    assert our_rates(schedule.with_total_steps(T), T + 1) == pytest.approx(torch_rates(make_scheduler, T + 1), abs=1e-12, rel=0)


class TestCosine:
    def test_warm_restarts_agree_with_torch(self, our_rates, torch_rates):
        ours = our_rates(Cosine(cycles=3, total_steps=T), T)
        assert ours == pytest.approx(torch_rates(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=T // 3), T), abs=1e-12, rel=0)

    def test_ends_at_the_end_even_with_restarts(self):
        assert Cosine(cycles=3, total_steps=T, end_factor=0.2)(T) == pytest.approx(0.2, abs=1e-15)

    def test_half_way(self):
        assert Cosine(total_steps=10, end_factor=0.2)(5) == pytest.approx(0.6)


class TestExponential:
    def test_reaches_its_end(self):
        schedule = Exponential(end_factor=0.01, total_steps=10)
        assert schedule(5) == pytest.approx(0.1) and schedule(10) == pytest.approx(0.01)

    def test_gamma_wins(self):
        assert Exponential(gamma=0.5, end_factor=0.9, total_steps=10)(3) == 0.125


class TestStep:
    def test_milestones_count_the_warmup(self):
        values = Step(milestones=[5, 8], total_steps=10, warmup=4, gamma=0.1).values()
        assert values[4:] == pytest.approx([1, 0.1, 0.1, 0.1, 0.01, 0.01])

    def test_default_is_half_and_three_quarters(self):
        values = Step(total_steps=8).values()
        assert values == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_every_as_a_fraction(self):
        assert Step(every=0.5, total_steps=4, gamma=0.5).values() == [1.0, 1.0, 0.5, 0.5]

    def test_milestones_must_rise(self):
        with pytest.raises(ValueError, match=r"milestones must be in rising order, but got \[0.5, 3\]"):
            Step(milestones=[0.5, 3], total_steps=100)


class TestInverseSqrt:
    @pytest.mark.parametrize("warmup", [1, 10, 25])
    def test_is_vaswanis_after_the_warmup(self, warmup):
        schedule = InverseSqrt(warmup=warmup, total_steps=100)
        for t in range(warmup, 100):
            assert schedule(t) == pytest.approx(min(t**-0.5, t * warmup**-1.5) / warmup**-0.5, abs=1e-12)

    def test_timescale(self):
        assert InverseSqrt(timescale=30, total_steps=100)(30) == pytest.approx(1 / math.sqrt(2))
        assert InverseSqrt(timescale=0.3, total_steps=100)(30) == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Constant(value=-1.0), "value must be a number >= 0, but got -1.0"),
        (lambda: Linear(start_factor=-0.1), "start_factor"),
        (lambda: Linear(end_factor=float("nan")), "end_factor"),
        (lambda: Linear(end_factor=float("inf")), "end_factor"),
        (lambda: Cosine(end_factor=1.5), r"end_factor must be a number in \[0, 1\]"),
        (lambda: Cosine(cycles=0), "cycles"),
        (lambda: Polynomial(power=0.0), "power must be > 0"),
        (lambda: Polynomial(end_factor=-0.5), "end_factor"),
        (lambda: Exponential(end_factor=0.0), "end_factor must be > 0"),
        (lambda: Exponential(gamma=1.5), "gamma"),
        (lambda: Step(gamma=0.0), "gamma must be > 0"),
        (lambda: Step(every=0), "every must be > 0"),
        (lambda: Step(milestones=[-1]), "milestones"),
        (lambda: InverseSqrt(timescale=0), "timescale must be > 0"),
    ],
)
def test_refuses(make, word):
    with pytest.raises(ValueError, match=word):
        make()

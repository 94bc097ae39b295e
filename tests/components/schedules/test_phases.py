import math
from itertools import pairwise

import pytest
from torch.optim import lr_scheduler

from components.schedules import WSD, WSDS, Cosine, CyclicCosine, DoubleSigmoid, OneCycle


class TestOneCycle:
    @pytest.mark.parametrize("anneal", ["cos", "linear"])
    @pytest.mark.parametrize("total", [1, 2, 7, 100])
    @pytest.mark.parametrize("pct_start", [0.3, 0.45])
    def test_agrees_with_torch_at_every_step(self, anneal, total, pct_start, our_rates, torch_rates, base_lr):
        ours = our_rates(OneCycle(anneal=anneal, pct_start=pct_start, total_steps=total), total)
        theirs = torch_rates(
            lambda o: lr_scheduler.OneCycleLR(o, max_lr=base_lr, total_steps=total, anneal_strategy=anneal, pct_start=pct_start, cycle_momentum=False),
            total,
        )
        assert ours == pytest.approx(theirs, abs=1e-12, rel=0)

    def test_worked_values(self):
        schedule = OneCycle(pct_start=0.5, div_factor=10, final_div_factor=100, anneal="linear", total_steps=10)
        assert schedule(0) == pytest.approx(0.1)
        assert schedule(4) == 1.0
        assert schedule(2) == pytest.approx(0.55)
        assert schedule(9) == schedule(10) == pytest.approx(0.001)  # its end is step total_steps - 1

    def test_a_rise_of_one_step_is_the_peak(self):
        assert OneCycle(pct_start=0.5, total_steps=2)(0) == 1.0  # torch divides by zero here

    @pytest.mark.parametrize("bad", [{"pct_start": 0.0}, {"pct_start": 1.0}, {"div_factor": 0.5}, {"final_div_factor": 0.0}, {"anneal": "cosine"}])
    def test_refuses(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            OneCycle(**bad)


class TestWSD:
    def test_constant_then_linear(self):
        assert WSD(decay=4, shape="linear", total_steps=8).values(9) == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    @pytest.mark.parametrize("n", range(101))
    def test_one_minus_sqrt_is_the_papers(self, n):
        # Hägele et al. 2024: 1 - sqrt((n - (N - N_decay)) / N_decay) for n > N - N_decay
        schedule = WSD(decay=0.3, total_steps=100)
        assert schedule(n) == pytest.approx(1.0 if n <= 70 else 1 - math.sqrt((n - 70) / 30), abs=1e-12)

    def test_cosine_shape_to_an_end(self):
        schedule = WSD(decay=0.5, shape="cosine", end_factor=0.2, total_steps=8)
        assert schedule(6) == pytest.approx(0.6) and schedule(8) == pytest.approx(0.2)

    def test_decay_takes_its_share_of_the_whole_run(self):
        values = WSD(decay=0.2, shape="linear", warmup=0.5, total_steps=10).values(11)
        assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 0.5, 0])

    def test_decay_is_cut_to_what_the_warmup_leaves(self):
        values = WSD(decay=100, shape="linear", warmup=2, total_steps=6).values(7)
        assert values == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])

    def test_no_decay_is_constant(self):
        assert set(WSD(decay=0, total_steps=10).values(12)) == {1.0}

    @pytest.mark.parametrize("bad", [{"decay": -1}, {"decay": 1.5}, {"shape": "sqrt"}, {"end_factor": 2.0}, {"decay": 0.6, "warmup": 0.6}])
    def test_refuses(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            WSD(**bad)

    def test_inverse_shape(self):
        values = WSD(decay=4, shape="inverse", end_factor=0.1, total_steps=8).values(9)[4:]
        assert values == pytest.approx([1, 0.3077, 0.1818, 0.1290, 0.1], abs=5e-5)
        gaps = [1 / b - 1 / a for a, b in pairwise(values)]
        assert gaps == pytest.approx([gaps[0]] * 4)  # the inverse of the rate is a straight line

    def test_exponential_shape(self):
        assert WSD(decay=2, shape="exponential", end_factor=0.01, total_steps=4).values(5) == pytest.approx([1, 1, 1, 0.1, 0.01])

    @pytest.mark.parametrize("shape", ["inverse", "exponential"])
    def test_some_shapes_never_get_to_zero(self, shape):
        with pytest.raises(ValueError, match=f"end_factor must be > 0 for shape='{shape}'"):
            WSD(shape=shape)


class TestWSDS:
    @pytest.mark.parametrize("decay_of", ["period", "total"])
    @pytest.mark.parametrize("warmup", [0, 7])
    def test_with_one_budget_it_is_wsd(self, decay_of, warmup):
        options = {"decay": 0.2, "shape": "inverse", "end_factor": 0.1, "warmup": warmup, "total_steps": 100}
        assert WSDS(budgets=[], decay_of=decay_of, **options).values(102) == WSD(**options).values(102)

    def test_decays_before_each_budget_and_is_straight_back_after(self):
        values = WSDS(budgets=[4], decay=2, shape="linear", end_factor=0.5, total_steps=8).values(9)
        assert values == [1, 1, 1, 0.75, 1, 1, 1, 0.75, 0.5]

    @pytest.mark.parametrize("decay_of", ["period", "total"])
    def test_a_budgets_checkpoint_is_that_of_a_run_of_its_length(self, decay_of):
        whole = WSDS(budgets=[100, 200], decay_of=decay_of, warmup=10, total_steps=400)
        for budget in (100, 200):
            alone = WSDS(budgets=[100, 200], decay_of=decay_of, warmup=10, total_steps=budget)
            assert alone.values() == whole.values(budget)
            assert alone(budget) == pytest.approx(0.1) and whole(budget) == 1.0

    def test_length_of_the_decay(self):
        def steps(decay_of):
            values = WSDS(budgets=[100, 200], decay_of=decay_of, total_steps=400).values()
            return [sum(value < 1 for value in values[start:end]) for start, end in ((0, 100), (100, 200), (200, 400))]

        assert steps("period") == [9, 9, 19]  # the first step of a decay of 10 is still at 1
        assert steps("total") == [9, 19, 39]

    def test_budgets_beyond_the_run_and_in_the_warmup_are_passed_over(self):
        assert WSDS(budgets=[3, 50, 900], warmup=5, total_steps=100) != WSDS(budgets=[50], warmup=5, total_steps=100)
        assert WSDS(budgets=[3, 50, 900], warmup=5, total_steps=100).values(101) == WSDS(budgets=[50], warmup=5, total_steps=100).values(101)

    @pytest.mark.parametrize("bad", [{"budgets": [0.5, 0.2], "total_steps": 10}, {"budgets": [-1]}, {"decay_of": "segment"}, {"end_factor": 0.0}])
    def test_refuses(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            WSDS(**bad)


class TestRiverValley:
    """The paper's picture: L = -g x + h y² / 2 with noise on y's gradient. Means and variances are followed exactly."""

    h, sigma, g, lr = 1.0, 1.0, 0.02, 0.2

    def losses(self, schedule):
        x, y2, seen = 0.0, 0.0, []
        for step in range(schedule.total_steps):
            rate = self.lr * schedule(step)
            x, y2 = x + rate * self.g, (1 - rate * self.h) ** 2 * y2 + (rate * self.sigma) ** 2
            seen.append((x, 0.5 * self.h * y2, 0.5 * self.h * y2 - self.g * x))
        return seen

    def test_the_hill_is_in_proportion_to_the_rate_and_the_decay_takes_it_away(self):
        wsd = WSD(decay=0.1, shape="inverse", end_factor=0.05, total_steps=4000)
        x, hill, _ = self.losses(wsd)[3599]
        assert hill == pytest.approx(0.5 * self.lr * self.sigma**2 / (2 - self.lr * self.h), rel=1e-6)
        end_x, end_hill, _ = self.losses(wsd)[-1]
        assert end_hill < 0.1 * hill and end_x == pytest.approx(x, rel=0.03)

    def test_above_cosine_while_stable_and_below_it_in_the_end(self):
        stable_then_down = self.losses(WSD(decay=0.1, shape="inverse", end_factor=0.1, total_steps=1000))
        cosine = self.losses(Cosine(end_factor=0.1, total_steps=1000))
        assert stable_then_down[800][2] > cosine[800][2] and stable_then_down[-1][2] < cosine[-1][2]


class TestCyclicCosine:
    def test_equal_segments_are_warm_restarts(self):
        ours = CyclicCosine(budgets=[20, 40], end_factor=0.1, total_steps=60).values(61)
        assert ours == pytest.approx(Cosine(cycles=3, end_factor=0.1, total_steps=60).values(61), abs=1e-12)

    def test_one_budget_is_cosine_after_the_warmup(self):
        ours = CyclicCosine(budgets=[], warmup=10, total_steps=60).values(61)
        assert ours == pytest.approx(Cosine(end_factor=0.1, warmup=10, total_steps=60).values(61), abs=1e-12)

    def test_half_way_of_each(self):
        cyclic = CyclicCosine(budgets=[10, 30], end_factor=0.2, total_steps=70)
        assert [cyclic(step) for step in (0, 5, 10, 20, 30, 50, 70)] == pytest.approx([1, 0.6, 1, 0.6, 1, 0.6, 0.2])

    def test_refuses(self):
        with pytest.raises(ValueError, match="budgets must be in rising order"):
            CyclicCosine(budgets=[5, 2], total_steps=10)


class TestDoubleSigmoid:
    def test_the_papers_values(self):
        schedule = DoubleSigmoid(total_steps=100)
        epochs = {1: 0.003953, 10: 0.489013, 20: 0.975321, 22: 0.977687, 100: 0.5}
        assert {epoch: round(schedule(epoch - 1), 6) for epoch in epochs} == epochs
        values = schedule.values()
        assert values.index(max(values)) + 1 == 22

    def test_one_value_per_epoch(self):
        by_step, by_epoch = DoubleSigmoid(total_steps=700).values(), DoubleSigmoid(total_steps=100).values()
        assert by_step == [value for value in by_epoch for _ in range(7)]

    def test_as_the_released_loop(self):
        late = DoubleSigmoid(first_epoch_at_base=True, total_steps=100).values()
        assert late == [1.0, *DoubleSigmoid(total_steps=100).values()[:-1]]

    def test_steep_ones_do_not_overflow(self):
        values = DoubleSigmoid(growth=1e4, total_steps=100).values()
        assert values[0] == 0.0 and values[20] == 1.0

    @pytest.mark.parametrize("bad", [{"epochs": 0}, {"growth": 0.0}, {"smoothing": 1.0}, {"midpoint": -1.0}])
    def test_refuses(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DoubleSigmoid(**bad)


def test_warmup_cosine_is_cards():
    # CARD: lr e / w up to epoch w, then half a cosine over the other E - w; the ramp is one step up, as every warm-up of ours
    schedule, w, total = Cosine(warmup=10, total_steps=100), 10, 100
    for e in range(101):
        theirs = (e + 1) / w if e < w else 0.5 * (1 + math.cos(math.pi * (e - w) / (total - w)))
        assert schedule(e) == pytest.approx(theirs, abs=1e-12)

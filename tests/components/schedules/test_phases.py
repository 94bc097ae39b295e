import math

import pytest
from torch.optim import lr_scheduler

from components.schedules import WSD, OneCycle


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

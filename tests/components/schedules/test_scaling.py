import numpy as np
import pytest

from components.schedules import Constant, Linear, Power
from components.schedules.scaling import scaled_ema_decay, scaled_options, scaled_steps
from components.testing.schedules import ScheduleContract


class TestEmaDecay:
    @pytest.mark.parametrize(("decay", "kappa", "expected"), [(0.99, 8, 0.922745), (0.9999, 256, 0.974724)])
    def test_the_papers_values(self, decay, kappa, expected):
        assert scaled_ema_decay(decay, kappa) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
    def test_identity_and_fixed_points(self, decay):
        assert scaled_ema_decay(decay, 1) == decay
        assert scaled_ema_decay(round(decay), 7) == round(decay)

    def test_one_scaled_update_is_kappa_updates_towards_weights_that_stand_still(self):
        average, weights, decay, kappa = 3.0, -1.0, 0.9, 5
        many = average
        for _ in range(kappa):
            many = decay * many + (1 - decay) * weights
        scaled = scaled_ema_decay(decay, kappa)
        assert scaled * average + (1 - scaled) * weights == pytest.approx(many, abs=1e-14)

    def test_the_average_follows_the_same_path_per_sample_only_with_the_rule(self):
        # SGD on x^2 / 2 with gradient noise of variance 1 / batch; the mean over many runs at the same number of samples
        def path(kappa: int, decay: float) -> np.ndarray:
            generator = np.random.default_rng(0)
            x, average, seen = np.full(4000, 1.0), np.full(4000, 1.0), []
            for step in range(400 // kappa):
                x = x - 0.002 * kappa * (x + generator.normal(size=x.shape) / np.sqrt(kappa))
                average = decay * average + (1 - decay) * x
                if (step + 1) * kappa % 40 == 0:
                    seen.append(average.mean())
            return np.array(seen)

        reference = path(1, 0.99)
        with_rule = np.abs(path(8, scaled_ema_decay(0.99, 8)) - reference).max()
        without = np.abs(path(8, 0.99) - reference).max()
        assert with_rule < 0.01 < 0.1 < without


class TestOptions:
    def test_adam_at_four_times_the_batch(self):
        options = scaled_options({"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}, 4, "adam")
        assert options["lr"] == pytest.approx(2e-3) and options["eps"] == pytest.approx(5e-9) and options["weight_decay"] == 0.1
        assert options["betas"] == pytest.approx((0.6, 0.996))

    def test_sgd_is_linear_and_keeps_the_momentum(self):
        assert scaled_options({"lr": 0.1, "momentum": 0.9}, 8, "sgd") == {"lr": pytest.approx(0.8), "momentum": 0.9}

    def test_rmsprop(self):
        assert scaled_options({"lr": 0.1, "alpha": 0.99}, 4, "rmsprop") == {"lr": pytest.approx(0.2), "alpha": pytest.approx(0.96)}

    def test_there_and_back(self):
        options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
        back = scaled_options(scaled_options(options, 4, "adam"), 0.25, "adam")
        assert back["lr"] == pytest.approx(1e-3) and back["betas"] == pytest.approx((0.9, 0.999)) and back["eps"] == pytest.approx(1e-8)

    def test_given_options_are_not_changed(self):
        options = {"lr": 0.1}
        scaled_options(options, 2, "sgd")
        assert options == {"lr": 0.1}

    def test_refuses_what_the_rule_does_not_reach(self):
        with pytest.raises(ValueError, match=r"kappa must be at most 1 / \(1 - betas\) = 10 for betas of 0.9, but got 16"):
            scaled_options({"lr": 1e-3, "betas": (0.9, 0.999)}, 16, "adam")
        with pytest.raises(ValueError, match="kappa must be > 0"):
            scaled_options({}, 0, "sgd")
        with pytest.raises(ValueError, match="rule must be one of"):
            scaled_options({}, 2, "adams")
        with pytest.raises(ValueError, match="decay"):
            scaled_ema_decay(1.1, 2)


def test_steps():
    assert scaled_steps(10_000, 8) == 1250 and scaled_steps(100, 0.5) == 200 and scaled_steps(3, 100) == 1
    with pytest.raises(ValueError, match="steps"):
        scaled_steps(0, 2)


class TestPower:
    class TestContract(ScheduleContract):
        @pytest.fixture
        def schedule(self):
            return Power(schedule=Linear(start_factor=0.9, end_factor=1.0), exponent=8, after=0.5)

    def test_scales_the_scheduled_value_at_each_step(self):
        inner = Linear(start_factor=0.99, end_factor=1.0, total_steps=10)
        assert Power(schedule=inner, exponent=8, total_steps=10).values(11) == [scaled_ema_decay(v, 8) for v in inner.values(11)]

    def test_the_batch_grows_in_the_middle_of_the_run(self):
        assert Power(schedule=Constant(value=0.5), exponent=3, after=2, total_steps=4).values() == [0.5, 0.5, 0.125, 0.125]

    @pytest.mark.parametrize("bad", [{"exponent": 0}, {"exponent": -1.0}, {"after": 1.5}, {"schedule": 0.5}])
    def test_refuses(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Power(**({"schedule": Constant(), "exponent": 2} | bad))

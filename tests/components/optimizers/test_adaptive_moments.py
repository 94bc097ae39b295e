import math
from functools import partial

import pytest
import torch

from components.optimizers import AdamNC, AdEMAMix, AMSGrad
from components.optimizers.adaptive_moments import slow_beta, slow_weight
from components.testing.optimizers import (
    MakeOptimizer,
    OptimizerContract,
    OptimizerReferenceContract,
    assert_close,
    assert_same,
    through_a_file,
    values_after,
)

run = partial(values_after, steps=100)


def play(optimizer, theta, gradients):
    """Feed a sequence of gradients; the parameter after each."""
    values = []
    for gradient in gradients:
        theta.grad = torch.as_tensor(gradient, dtype=theta.dtype).expand_as(theta).clone()
        optimizer.step()
        values.append(float(theta.detach().sum()))
    return values


def scalar(value=0.0):
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


class TestAMSGradAsInTheory(OptimizerContract, OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(AMSGrad, lr=0.1, betas=(0.8, 0.9), lr_power=0.5, beta1_decay=0.95, bounds=(-3.0, 3.0))

    @pytest.fixture
    def reference(self):
        def amsgrad(theta, g, s):
            s["t"] = t = s.get("t", 0) + 1
            beta1 = 0.8 * 0.95 ** (t - 1)
            s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
            s["v"] = 0.9 * s.get("v", 0.0) + 0.1 * g**2
            s["u"] = torch.maximum(s.get("u", torch.zeros_like(g)), s["v"])
            return (theta - 0.1 / math.sqrt(t) * s["m"] / (s["u"].sqrt() + 1e-8)).clamp(-3, 3)

        return amsgrad


class TestAMSGrad:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_with_bias_correction_it_is_torchs(self, weight_decay):
        ours = run(AMSGrad, lr=0.01, bias_correction=True, weight_decay=weight_decay)
        assert_close(ours, run(torch.optim.AdamW, lr=0.01, amsgrad=True, weight_decay=weight_decay))
        if not weight_decay:
            assert_close(ours, run(torch.optim.Adam, lr=0.01, amsgrad=True))

    def test_the_second_moment_never_shrinks(self):
        theta = torch.zeros(5, requires_grad=True)
        optimizer = AMSGrad([theta], betas=(0.9, 0.5))
        generator, last = torch.Generator().manual_seed(0), torch.zeros(5)
        for _ in range(50):
            theta.grad = torch.randn(5, generator=generator)
            optimizer.step()
            largest = optimizer.state[theta]["max_exp_avg_sq"]
            assert bool((largest >= last).all()) and bool((largest >= optimizer.state[theta]["exp_avg_sq"]).all())
            last = largest.clone()

    def test_gradients_that_never_shrink_make_it_uncorrected_adam(self):
        theta, expected, m, v = scalar(), 0.0, 0.0, 0.0
        gradients = [1.0 + 0.1 * k for k in range(30)]
        values = play(AMSGrad([theta], lr=0.01), theta, gradients)
        for g, value in zip(gradients, values, strict=True):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            expected -= 0.01 * m / (math.sqrt(v) + 1e-8)
            assert value == pytest.approx(expected, abs=1e-12)


class TestCounterExample:
    """Linear losses on [-1, 1] whose sum falls towards -1: the large gradient comes seldom, and Adam forgets it."""

    def play(self, optimizer, theta, period, large, small, steps):
        gradients = [torch.tensor([value], dtype=torch.float64) for value in (large, -small)]
        for t in range(1, steps + 1):
            theta.grad = gradients[0] if t % period == 1 else gradients[1]
            for group in optimizer.param_groups:
                group["lr"] = 0.5 / math.sqrt(t)
            optimizer.step()
            with torch.no_grad():
                theta.clamp_(-1, 1)
        return float(theta.detach())

    def test_adam_goes_to_the_worst_point_and_amsgrad_to_the_best(self):
        # C = 3 and beta2 = 1 / (1 + C^2): the setting of the paper's first theorem
        options = {"lr": 0.5, "betas": (0.0, 0.1), "eps": 1e-8}
        worst, best = scalar(), scalar()
        assert self.play(torch.optim.Adam([worst], **options), worst, 3, 3.0, 1.0, 30_000) == pytest.approx(1.0, abs=1e-3)
        assert self.play(AMSGrad([best], **options), best, 3, 3.0, 1.0, 30_000) == pytest.approx(-0.998, abs=1e-3)

    def test_its_own_rate_and_box_do_the_same(self):
        theta, again = scalar(), scalar()
        last = play(AMSGrad([theta], lr=0.5, betas=(0.0, 0.1), lr_power=0.5, bounds=(-1, 1)), theta, [3.0, -1.0, -1.0] * 100)[-1]
        assert last == pytest.approx(self.play(AMSGrad([again], lr=0.5, betas=(0.0, 0.1)), again, 3, 3.0, 1.0, 300), abs=1e-12)

    def test_the_synthetic_experiment(self):
        # 1010 x every 101st step and -10 x otherwise; 8000 steps show the direction. After 300,000, which take minutes, Adam is at
        # 0.9950 and AMSGrad at -0.9998
        options = {"lr": 0.5, "betas": (0.9, 0.99)}
        adam, amsgrad = scalar(), scalar()
        assert self.play(torch.optim.Adam([adam], **options), adam, 101, 1010.0, 10.0, 8000) > 0.7
        assert self.play(AMSGrad([amsgrad], **options), amsgrad, 101, 1010.0, 10.0, 8000) < -0.2


class TestAdamNC(OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(AdamNC, lr=0.1, beta1=0.7, lr_power=0.5)

    @pytest.fixture
    def reference(self):
        def adamnc(theta, g, s):
            s.setdefault("all", []).append(g)
            t = len(s["all"])
            s["m"] = 0.7 * s.get("m", 0.0) + 0.3 * g
            return theta - 0.1 / math.sqrt(t) * s["m"] / (torch.stack(s["all"]).square().mean(0).sqrt() + 1e-8)

        return adamnc

    def test_equal_gradients(self):
        theta = scalar()
        optimizer = AdamNC([theta], lr=0.01, beta1=0.0, eps=0.0, lr_power=0.0)
        values = play(optimizer, theta, [-3.0] * 7)
        assert float(optimizer.state[theta]["mean_sq"]) == pytest.approx(9.0, abs=1e-14)
        assert values == pytest.approx([0.01 * (k + 1) for k in range(7)], abs=1e-14)

    def test_without_momentum_it_is_adagrad(self):
        assert_close(run(AdamNC, lr=0.1, beta1=0.0, eps=0.0), run(torch.optim.Adagrad, lr=0.1, eps=0.0), 1e-11)


class TestAdEMAMixWarm(OptimizerContract, OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(AdEMAMix, lr=0.01, betas=(0.9, 0.99, 0.995), alpha=5.0, weight_decay=0.1, total_steps=15)

    @pytest.fixture
    def reference(self):
        def half_life(beta):
            return math.log(0.5) / math.log(beta)

        def ademamix(theta, g, s):
            s["t"] = t = s.get("t", 0) + 1
            part = min(t / 15, 1.0)
            beta3 = 0.5 ** (1 / ((1 - part) * half_life(0.9) + part * half_life(0.995)))
            s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
            s["slow"] = beta3 * s.get("slow", 0.0) + (1 - beta3) * g
            s["v"] = 0.99 * s.get("v", 0.0) + 0.01 * g**2
            direction = (s["m"] / (1 - 0.9**t) + 5.0 * part * s["slow"]) / ((s["v"] / (1 - 0.99**t)).sqrt() + 1e-8)
            return theta - 0.01 * (direction + 0.1 * theta)

        return ademamix


class TestAdEMAMix:
    def test_without_the_slow_average_it_is_adamw(self):
        assert_close(run(AdEMAMix, lr=0.01, alpha=0.0, weight_decay=0.1), run(torch.optim.AdamW, lr=0.01, weight_decay=0.1))

    def test_constant_gradient(self):
        theta = scalar()
        values = play(AdEMAMix([theta], lr=1.0, betas=(0.9, 0.999, 0.99), alpha=3.0, eps=0.0), theta, [1.0] * 20)
        steps = [before - after for before, after in zip([0.0, *values], values, strict=False)]
        assert steps == pytest.approx([1 + 3.0 * (1 - 0.99**t) for t in range(1, 21)], abs=1e-11)
        assert steps[0] == pytest.approx(1 + 3.0 * 0.01)

    def test_schedulers(self):
        assert slow_beta(0, 0.9, 0.9999, 1000) == pytest.approx(0.9, abs=1e-14)
        assert slow_beta(500, 0.9, 0.9999, 1000) == pytest.approx(0.99980020, abs=1e-8)
        assert slow_beta(1000, 0.9, 0.9999, 1000) == 0.9999
        assert slow_weight(1000, 8.0, 1000) == 8.0 and slow_weight(250, 8.0, 1000) == 2.0
        rising = [slow_beta(t, 0.9, 0.9999, 50) for t in range(60)]
        assert rising == sorted(rising) and rising[-1] == 0.9999
        assert slow_beta(0, 0.0, 0.9999, 10) == 0.0  # no fast average: the half-life grows from 0
        assert slow_beta(5, 0.0, 0.9999, 10) == pytest.approx(0.9999**2)

    def test_without_a_fast_average_one_buffer_less(self):
        theta = torch.ones(3, requires_grad=True)
        optimizer = AdEMAMix([theta], betas=(0.0, 0.999, 0.9999))
        theta.grad = torch.ones(3)
        optimizer.step()
        assert set(optimizer.state[theta]) == {"step", "exp_avg_slow", "exp_avg_sq"}

    def test_follows_a_slow_drift_better_than_adamw(self):
        # a noisy quadratic whose centre moves steadily: the old gradients agree, and say where it goes
        def error(make):
            generator = torch.Generator().manual_seed(0)
            theta = torch.zeros(20, requires_grad=True)
            optimizer = make([theta])
            errors = []
            for step in range(1500):
                theta.grad = theta.detach() - 0.002 * step + 2 * torch.randn(20, generator=generator)
                optimizer.step()
                errors.append(float((theta.detach() - 0.002 * step).square().mean()))
            return sum(errors[500:]) / 1000

        adamw = error(partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0))
        mix = error(partial(AdEMAMix, lr=1e-2, betas=(0.9, 0.999, 0.99), alpha=4.0, total_steps=500))
        assert mix < 0.8 * adamw


@pytest.mark.parametrize("make", [AMSGrad, AdamNC, AdEMAMix])
def test_sparse_and_complex_gradients_are_refused(make):
    theta = torch.zeros(4, 2, requires_grad=True)
    theta.grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2), check_invariants=True)
    with pytest.raises(ValueError, match=f"{make.__name__} takes dense gradients.*sparse"):
        make([theta]).step()
    unreal = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    unreal.grad = torch.ones_like(unreal)
    with pytest.raises(ValueError, match="complex"):
        make([unreal]).step()


def test_bfloat16_parameters_resume_bit_for_bit():
    theta = torch.ones(7, dtype=torch.bfloat16, requires_grad=True)
    optimizer = AdEMAMix([theta], lr=0.1)
    play(optimizer, theta, [1.0, -0.3])
    other = theta.detach().clone().requires_grad_()
    again = AdEMAMix([other], lr=0.1)
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    play(optimizer, theta, [0.7])
    play(again, other, [0.7])
    assert_same([theta.detach()], [other.detach()])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (AMSGrad, {"betas": (0.9, 1.0)}, "betas.*1.0"),
        (AMSGrad, {"bounds": (1.0, -1.0)}, r"bounds.*\[1.0, -1.0\]"),
        (AMSGrad, {"lr_power": -1}, "lr_power.*-1"),
        (AdamNC, {"beta1": 1.0}, "beta1.*1.0"),
        (AdamNC, {"beta1_decay": 0.0}, "beta1_decay.*0.0"),
        (AdEMAMix, {"betas": (0.9, 0.999)}, "three numbers"),
        (AdEMAMix, {"alpha": -1.0}, "alpha.*-1.0"),
        (AdEMAMix, {"alpha_warmup": math.inf}, "alpha_warmup.*inf"),
        (AdEMAMix, {"weight_decay": -1.0}, "weight_decay.*-1.0"),
    ],
)
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([scalar()], **options)

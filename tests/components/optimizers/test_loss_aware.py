import math
from functools import partial

import pytest
import torch
from torch.nn.functional import softplus

from components.optimizers import MoMo, MoMoAdam, NormalizedGD
from components.testing.optimizers import MakeOptimizer, OptimizerContract, Quadratic, assert_close, assert_same, through_a_file, values_after


def scalar(value=0.0):
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


run = partial(values_after, steps=20)


def problem_as_a_vector():
    problem = Quadratic()
    x, c, h = (torch.cat([each.detach().reshape(-1) for each in parts]) for parts in (problem.parameters, problem.centres, problem.curvatures))
    return x, lambda x: (0.5 * float((h * (x - c) ** 2).sum()), h * (x - c))


def momo(steps, lr, beta=0.9, decay=0.0, bound=0.0, correct=False, estimate=False):
    """The algorithm in plain floats over one long vector."""
    x, evaluate = problem_as_a_vector()
    model, d, gamma, lowest = 0.0, torch.zeros_like(x), 0.0, bound
    for k in range(1, steps + 1):
        f, g = evaluate(x)
        if k == 1 and not correct:
            model, d, gamma = f, g, float(g @ x)
        model, d, gamma = beta * model + (1 - beta) * f, beta * d + (1 - beta) * g, beta * gamma + (1 - beta) * float(g @ x)
        rho, grow, norm = 1 - beta**k if correct else 1.0, 1 + lr * decay, float(d @ d)
        if estimate:
            cap = grow * model + float(d @ x) - grow * gamma
            if cap < grow * rho * bound:
                bound = max(cap / (2 * grow * rho), lowest)
        tau = min(lr / rho, max(grow * (model - rho * bound) + float(d @ x) - grow * gamma, 0.0) / norm)
        if estimate:
            bound = max((model + float(d @ x) - gamma - tau * norm / 2) / rho, lowest)
        x = (x - tau * d) / grow
    return x


def momo_adam(steps, lr, decay=0.0, bound=0.0, proximal=True, estimate=False):
    x, evaluate = problem_as_a_vector()
    model, d, v, gamma, lowest = 0.0, torch.zeros_like(x), torch.zeros_like(x), 0.0, bound
    for k in range(1, steps + 1):
        f, g = evaluate(x)
        model, d, gamma = 0.9 * model + 0.1 * f, 0.9 * d + 0.1 * g, 0.9 * gamma + 0.1 * float(g @ x)
        v = 0.999 * v + 0.001 * g * g
        scale = (v / (1 - 0.999**k)).sqrt() + 1e-8
        rho, grow, norm = 1 - 0.9**k, 1 + lr * decay, float((d * d / scale).sum())
        if estimate:
            cap = grow * model + float(d @ x) - grow * gamma
            if cap < grow * rho * bound:
                bound = max(cap / (2 * grow * rho), lowest)
        tau = min(lr / rho, max(grow * (model - rho * bound) + float(d @ x) - grow * gamma, 0.0) / norm)
        if estimate:
            bound = max((model + float(d @ x) - gamma - tau * norm / 2) / rho, lowest)
        x = (x - tau * d / scale) / grow if proximal else x * (1 - lr * decay) - tau * d / scale
    return x


class TestMoMoStarContract(OptimizerContract):
    steps_by_the_loss = True

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(MoMo, lr=0.5, bias_correction=True, weight_decay=0.001, estimate_lower_bound=True)


class TestMoMo:
    @pytest.mark.parametrize("lr", [0.05, 1.0, 50.0])
    @pytest.mark.parametrize(
        ("options", "same"),
        [
            ({}, {}),
            ({"bias_correction": True, "momentum": 0.7}, {"correct": True, "beta": 0.7}),
            ({"weight_decay": 0.1, "lower_bound": 0.5}, {"decay": 0.1, "bound": 0.5}),
            ({"weight_decay": 0.1, "lower_bound": -3.0, "estimate_lower_bound": True}, {"decay": 0.1, "bound": -3.0, "estimate": True}),
            ({"bias_correction": True, "lower_bound": 4.0, "estimate_lower_bound": True}, {"correct": True, "bound": 4.0, "estimate": True}),
        ],
    )
    def test_agrees_with_the_algorithm(self, lr, options, same):
        ours = torch.cat([value.reshape(-1) for value in run(MoMo, lr=lr, **options)])
        assert float((ours - momo(20, lr, **same)).abs().max()) <= 1e-10

    def test_without_momentum_it_is_polyaks_step(self):
        theta = scalar(2.0)
        theta.grad = theta.detach().clone()
        MoMo([theta], lr=1.0, momentum=0.0).step(loss=0.5 * theta.square().sum())  # tau = min(1, 2 / 4)
        assert float(theta.detach()) == pytest.approx(1.0, abs=1e-15)

    def test_small_rates_make_it_momentum_sgd(self):
        # SGD whose momentum averages: dampening; its first step takes the gradient whole, as MoMo's average starts at it
        assert_close(run(MoMo, lr=1e-3), run(torch.optim.SGD, lr=1e-3, momentum=0.9, dampening=0.9), 1e-13)

    def test_huge_rates_do_no_harm(self):
        problem = Quadratic()
        optimizer = MoMo(problem.parameters, lr=1e6)
        losses = [problem.step(optimizer) for _ in range(300)]
        assert losses[-1] < 1e-6 * losses[0] and max(losses) < 3 * losses[0]

    def test_where_the_point_stays_the_step_is_the_averaged_gap(self):
        # fbar + <d, x> - gamma = fbar for constant x: with lr = 0 nothing moves, and the last step is Polyak's of the averages
        theta = scalar(3.0)
        optimizer = MoMo([theta], lr=0.0, lower_bound=1.0)
        for loss, gradient in ((5.0, 2.0), (6.0, 1.0), (4.0, 3.0)):
            theta.grad = torch.full_like(theta, gradient)
            optimizer.step(loss=loss)
        assert float(theta.detach()) == 3.0
        optimizer.param_groups[0]["lr"] = 1e9
        theta.grad = torch.full_like(theta, 2.5)
        optimizer.step(loss=7.0)
        model = direction = None
        for loss, gradient in ((5.0, 2.0), (6.0, 1.0), (4.0, 3.0), (7.0, 2.5)):
            model = loss if model is None else 0.9 * model + 0.1 * loss
            direction = gradient if direction is None else 0.9 * direction + 0.1 * gradient
        assert float(theta.detach()) == pytest.approx(3.0 - (model - 1.0) / direction, abs=1e-12)

    def test_sees_the_loss_once_and_refuses_two(self):
        theta = scalar(1.0)
        theta.grad = torch.ones_like(theta)
        with pytest.raises(ValueError, match="closure or a loss, not both"):
            MoMo([theta]).step(lambda: 1.0, loss=1.0)
        with pytest.raises(ValueError, match=r"one loss value.*\(3,\)"):
            MoMo([theta]).step(loss=torch.ones(3))

    def test_a_flat_loss_moves_nothing(self):
        theta = scalar(1.0)
        theta.grad = torch.zeros_like(theta)
        MoMo([theta]).step(loss=2.0)
        assert float(theta.detach()) == 1.0


class TestMoMoAdam:
    @pytest.mark.parametrize("lr", [1e-3, 0.5])
    @pytest.mark.parametrize(
        ("options", "same"),
        [
            ({}, {}),
            ({"weight_decay": 0.1}, {"decay": 0.1}),
            ({"weight_decay": 0.1, "proximal_decay": False, "lower_bound": -1.0}, {"decay": 0.1, "proximal": False, "bound": -1.0}),
            ({"weight_decay": 0.1, "lower_bound": -3.0, "estimate_lower_bound": True}, {"decay": 0.1, "bound": -3.0, "estimate": True}),
        ],
    )
    def test_agrees_with_the_algorithm(self, lr, options, same):
        ours = torch.cat([value.reshape(-1) for value in run(MoMoAdam, lr=lr, **options)])
        assert float((ours - momo_adam(20, lr, **same)).abs().max()) <= 1e-10

    def test_far_above_the_bound_it_is_adam(self):
        assert_close(run(MoMoAdam, steps=100, lr=0.01, lower_bound=-1e9), run(torch.optim.Adam, steps=100, lr=0.01), 1e-12)
        decayed = run(MoMoAdam, steps=100, lr=0.01, lower_bound=-1e9, weight_decay=0.1, proximal_decay=False)
        assert_close(decayed, run(torch.optim.AdamW, steps=100, lr=0.01, weight_decay=0.1), 1e-12)

    def test_bfloat16_parameters_keep_a_precise_loss_through_a_checkpoint(self):
        theta = torch.ones(5, dtype=torch.bfloat16, requires_grad=True)
        optimizer = MoMoAdam([theta])
        theta.grad = torch.full_like(theta, 0.3)
        optimizer.step(loss=torch.tensor(1.234567))
        other = theta.detach().clone().requires_grad_()
        again = MoMoAdam([other])
        again.load_state_dict(through_a_file(optimizer.state_dict()))
        stored, loaded = optimizer.state[theta], again.state[other]
        for name in ("loss_avg", "grad_dot", "lower_bound"):
            assert loaded[name].dtype == torch.float32
            assert_same([stored[name]], [loaded[name]])


def separable(easy=10):
    """Easy samples that mislead, and one that they outvote: (3, 1) many times against (-3, 1.2)."""
    return torch.tensor([[3.0, 1.0]] * easy + [[-3.0, 1.2]], dtype=torch.float64)


def steps_to_separate(samples, make, limit=3000):
    theta = torch.zeros(samples.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make([theta])
    for step in range(1, limit):

        def closure():
            losses = softplus(-samples @ theta)
            if not isinstance(optimizer, NormalizedGD):
                optimizer.zero_grad()
                losses.mean().backward()
            return losses

        optimizer.step(closure)
        if bool((samples @ theta.detach() > 0).all()):
            return step
    return limit


class TestNormalizedGD:
    def test_the_step_is_a_weighted_mean_of_the_samples(self):
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(30, 4, dtype=torch.float64, generator=generator)
        theta = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
        before = theta.detach().clone()
        NormalizedGD([theta], lr=2.0).step(lambda: softplus(-samples @ theta))
        weights = torch.softmax(torch.nn.functional.logsigmoid(-samples @ before), 0)
        step = theta.detach() - before
        assert float((step - 2.0 * weights @ samples).abs().max()) < 1e-12
        assert float(step.norm()) <= 2.0 * float(samples.norm(dim=1).max())

    def test_beta_holds_the_step_back(self):
        samples, steps = separable(), []
        for beta in (0.0, 0.3):
            theta = torch.tensor([0.2, 0.1], dtype=torch.float64, requires_grad=True)
            before = theta.detach().clone()
            NormalizedGD([theta], beta=beta).step(lambda theta=theta: softplus(-samples @ theta))
            steps.append(theta.detach() - before)
            error = float(torch.sigmoid(-samples @ before).mean())
        assert_close([steps[1]], [steps[0] * error / (error + 0.3)], 1e-14)

    def test_tiny_losses_still_move_it(self):
        # each loss is e^-80: in float32 their gradients underflow when they are summed with a plain weight of 1/n ... squared
        theta = torch.tensor([80.0], requires_grad=True)
        NormalizedGD([theta], lr=1.0).step(lambda: torch.nn.functional.softplus(-theta * torch.ones(4)))
        assert float(theta.detach()) == pytest.approx(81.0, abs=1e-4)

    def test_one_loss_counts_as_one_sample(self):
        theta, same = scalar(0.3), scalar(0.3)
        NormalizedGD([theta], lr=1.0).step(lambda: softplus(-2 * theta))
        optimizer = NormalizedGD([same], lr=1.0)

        def closure():
            optimizer.zero_grad()
            loss = softplus(-2 * same).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert_close([theta.detach()], [same.detach()], 1e-14)
        assert float(theta.detach()) == pytest.approx(2.3, abs=1e-12)

    def test_large_steps_of_plain_descent_are_the_batch_perceptron(self):
        generator = torch.Generator().manual_seed(1)
        samples = torch.randn(40, 3, dtype=torch.float64, generator=generator)
        samples *= torch.sign(samples @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64))[:, None]
        theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer, perceptron = torch.optim.SGD([theta], lr=1e6), torch.zeros(3, dtype=torch.float64)
        for step in range(20):
            optimizer.zero_grad()
            softplus(-samples @ theta).mean().backward()
            optimizer.step()
            perceptron = perceptron + torch.heaviside(-(samples @ perceptron), torch.tensor(0.5, dtype=torch.float64)) @ samples / len(samples)
            assert_close([theta.detach() / 1e6], [perceptron], 1e-6)
            if step == 0:
                assert_close([perceptron], [samples.mean(0) / 2], 1e-15)

    def test_easy_samples_slow_plain_descent_only(self):
        plain = [steps_to_separate(separable(n), partial(torch.optim.SGD, lr=10.0)) for n in (10, 100, 1000)]
        normalised = [steps_to_separate(separable(n), partial(NormalizedGD, lr=10.0)) for n in (10, 100, 1000)]
        assert plain[1] > 5 * plain[0] and plain[2] > 5 * plain[1]
        assert max(normalised) <= 3

    def test_larger_steps_separate_sooner_at_a_higher_loss(self):
        samples = separable(30)
        slow, fast = (steps_to_separate(samples, partial(torch.optim.SGD, lr=lr)) for lr in (1.0, 100.0))
        assert fast < slow
        highest = []
        for lr in (1.0, 100.0):
            theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
            optimizer, losses = torch.optim.SGD([theta], lr=lr), []
            for _ in range(10):
                optimizer.zero_grad()
                loss = softplus(-samples @ theta).mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            highest.append(max(losses))
        assert highest[1] > highest[0]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (MoMo, {"momentum": 1.0}, "momentum.*1.0"),
        (MoMo, {"lower_bound": -math.inf}, "lower_bound.*inf"),
        (MoMoAdam, {"betas": (0.9,)}, "two numbers"),
        (MoMoAdam, {"eps": -1.0}, "eps.*-1.0"),
        (NormalizedGD, {"beta": -0.1}, "beta.*-0.1"),
    ],
)
def test_wrong_options_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([scalar()], **options)


def average_loss_on_a_rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    theta = torch.tensor([3.0], requires_grad=True)
    optimizer = MoMo([theta], lr=100.0, momentum=0.0)
    theta.grad = torch.tensor([2.0])  # DDP has averaged the gradients; the losses 1 and 3 are each rank's own
    optimizer.step(loss=torch.tensor(1.0 + 2 * rank))
    assert float(theta.detach()) == 3.0 - 2.0 / 4.0 * 2.0
    torch.distributed.destroy_process_group()


def test_ranks_take_the_same_step(tmp_path):
    torch.multiprocessing.spawn(average_loss_on_a_rank, args=(str(tmp_path / "store"),), nprocs=2)

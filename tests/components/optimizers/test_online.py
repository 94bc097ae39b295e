import math
from functools import partial

import pytest
import torch

from components.optimizers import AOG, ImplicitFTRL, LogBarrierFTRL, importance_weighted, log_barrier_distribution, magnitude_reduced
from components.optimizers.online import implicit_slope, linear_loss
from components.testing.optimizers import MakeOptimizer, OptimizerContract, OptimizerReferenceContract, assert_same, through_a_file

LOSSES = ["square", "absolute", "hinge", "logistic"]


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class TestLinearFTRL(OptimizerContract, OptimizerReferenceContract):
    rests_at_zero_rate = False

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(ImplicitFTRL, lr=0.3, update="linear")

    @pytest.fixture
    def reference(self):
        def ftrl(x, g, s):
            start = s.setdefault("start", x.clone())
            s["t"], s["sum"] = s.get("t", 0) + 1, s.get("sum", 0.0) + g
            return start - 0.3 / math.sqrt(s["t"] + 1) * s["sum"]

        return ftrl


class TestMirrorProxFTRL(OptimizerContract):
    rests_at_zero_rate = False
    steps_by_the_loss = True

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(ImplicitFTRL, lr=0.3, update="mirror_prox")


class TestAdaGradFTRL(OptimizerContract):
    rests_at_zero_rate = False
    steps_by_the_loss = True

    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(ImplicitFTRL, lr=2.0, regularizer="adagrad")


def stream(steps, loss, seed=0, d=4):
    generator = torch.Generator().manual_seed(seed)
    truth = draw(generator, d)
    for _ in range(steps):
        a = draw(generator, d)
        score = a @ truth
        yield a, score if loss in ("square", "absolute") else torch.sign(score)


def feed(optimizer, x, a, y, loss):
    """One step on one sample; the loss before it."""

    def closure():
        optimizer.zero_grad()
        value = linear_loss(loss, a @ x, y)
        value.backward()
        return value

    return float(optimizer.step(closure).detach())


class TestImplicitFTRL:
    def test_constant_regularizer_takes_polyaks_truncated_step(self):
        # passive-aggressive: s = min(1, lambda loss / |g|^2)
        for rate in (0.05, 1.0, 1e4):
            x = vector(0.3, -0.2, 0.5, 1.0).requires_grad_()
            optimizer, expected = ImplicitFTRL([x], lr=rate, regularizer="constant"), x.detach().clone()
            for a, y in stream(20, "absolute"):
                value = float((a @ expected - y).abs())
                g = torch.sign(a @ expected - y) * a
                expected = expected - min(rate, value / float(g @ g)) * g
                feed(optimizer, x, a, y, "absolute")
                assert float((x.detach() - expected).abs().max()) < 1e-10

    def test_small_rates_are_linear(self):
        one, two = (torch.ones(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        aprox, linear = ImplicitFTRL([one], lr=1e-4), ImplicitFTRL([two], lr=1e-4, update="linear")
        for a, y in stream(10, "square"):
            feed(aprox, one, a, y, "square")
            feed(linear, two, a, y, "square")
        assert_same([one.detach()], [two.detach()])

    @pytest.mark.parametrize("regularizer", ["constant", "sqrt", "adagrad"])
    @pytest.mark.parametrize("update", ["aprox", "linear", "mirror_prox"])
    def test_agrees_with_the_algorithm(self, update, regularizer):
        x = vector(0.3, -0.2, 0.5, 1.0).requires_grad_()
        optimizer, start, dual, squares = ImplicitFTRL([x], lr=0.2, update=update, regularizer=regularizer), x.detach().clone(), torch.zeros(4).double(), 0.0
        for t, (a, y) in enumerate(stream(20, "square"), start=1):
            now = x.detach().clone()
            gradient = (a @ now - y) * a
            squares += float(gradient @ gradient)
            strength = {"constant": 1.0, "sqrt": math.sqrt(t + 1), "adagrad": math.sqrt(squares)}[regularizer] / 0.2
            z = gradient
            if update == "aprox":
                left = max(0.0, float(0.5 * (a @ now - y) ** 2 + gradient @ (start + dual / strength - now)))
                z = min(1.0, strength * left / float(gradient @ gradient)) * gradient
            elif update == "mirror_prox":
                there = start + (dual - gradient) / strength
                z = (a @ there - y) * a
            dual = dual - z
            feed(optimizer, x, a, y, "square")
            assert float((x.detach() - (start + dual / strength)).abs().max()) < 1e-10

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("rate", [0.01, 0.7, 100.0])
    def test_the_implicit_step_is_the_proximal_one(self, loss, rate):
        x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = ImplicitFTRL([x], lr=rate, regularizer="constant")
        for a, y in stream(8, loss):
            before = x.detach().clone()
            slope = optimizer.step_linear(a, y, loss)
            after = x.detach()
            assert float((after - (before - rate * slope * a)).abs().max()) < 1e-10 * max(1, rate)

            def proximal(point, a=a, y=y, before=before):
                return float(linear_loss(loss, a @ point, y) + (point - before).square().sum() / (2 * rate))

            best = proximal(after)
            for size in (1e-1, 1e-3, 1e-5):  # a strictly convex objective: along a is where its minimum lies
                assert best <= min(proximal(after + size * a), proximal(after - size * a)) + 1e-12
            if loss in ("square", "logistic"):
                score = (a @ after).requires_grad_()
                (there,) = torch.autograd.grad(linear_loss(loss, score, y), score)
                assert float(slope) == pytest.approx(float(there), abs=1e-8)

    @pytest.mark.parametrize("loss", ["square", "logistic"])
    def test_each_choice_lowers_the_bound(self, loss):
        # H(z) = psi*(theta - z) + l*(z), for z = r a: |theta - r a|^2 / (2 lam) + h*(r)
        def conjugate(r, y):
            if loss == "square":
                return 0.5 * r * r + r * y
            s = -r * y  # in [0, 1]
            return torch.special.xlogy(s, s) + torch.special.xlogy(1 - s, 1 - s)

        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            a, theta, x = draw(generator, 3), draw(generator, 3), draw(generator, 3)
            smooth = float(a @ a) * (1.0 if loss == "square" else 0.25)
            y = draw(generator) if loss == "square" else torch.sign(draw(generator))
            for strength in (0.3 * smooth, smooth, 5 * smooth):
                x = theta / strength  # lambda constant: x_t = theta_t / lambda

                def bound(r, theta=theta, a=a, y=y, strength=strength):
                    return float((theta - r * a).square().sum() / (2 * strength) + conjugate(r, y))

                def slope(point, a=a, y=y):
                    score = (a @ point).requires_grad_()
                    return torch.autograd.grad(linear_loss(loss, score, y), score)[0]

                linear = slope(x)
                value = linear_loss(loss, a @ x, y)
                aprox = linear * min(1.0, float(strength * value / (linear * linear * (a @ a))))
                implicit = implicit_slope(loss, a @ x, a @ a / strength, y)
                assert bound(implicit) <= bound(aprox) + 1e-9
                assert bound(aprox) <= bound(linear) + 1e-9
                if strength >= smooth:
                    assert bound(slope(x - linear * a / strength)) <= bound(linear) + 1e-9

    def test_rates_far_too_large_are_forgiven(self):
        def losses(update):
            x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
            optimizer = ImplicitFTRL([x], lr=100.0, update="linear" if update == "implicit" else update)
            values = []
            for a, y in stream(150, "square"):
                a, y = 10 * a, 10 * y
                values.append(float(linear_loss("square", a @ x.detach(), y)))
                optimizer.step_linear(a, y) if update == "implicit" else feed(optimizer, x, a, y, "square")
            return values

        first = losses("linear")
        assert first[5] > 1e10
        for update in ("aprox", "implicit"):
            values = losses(update)
            assert max(values) < 1e6 and values[-1] < 1.0

    def test_misuse_is_refused(self):
        x = torch.zeros(3, requires_grad=True)
        x.grad = torch.ones(3)
        with pytest.raises(ValueError, match=r"twice \(mirror_prox\): call step\(closure\)"):
            ImplicitFTRL([x], update="mirror_prox").step()
        with pytest.raises(ValueError, match=r"features must have the weights' shape \(3,\)"):
            ImplicitFTRL([x]).step_linear(torch.ones(2), 1.0)
        with pytest.raises(ValueError, match="step_linear takes one parameter"):
            ImplicitFTRL([x, torch.zeros(3, requires_grad=True)]).step_linear(torch.ones(3), 1.0)
        with pytest.raises(ValueError, match="loss must be one of"):
            ImplicitFTRL([x]).step_linear(torch.ones(3), 1.0, "squares")
        with pytest.raises(ValueError, match=r"update must be one of.*'aprx'"):
            ImplicitFTRL([x], update="aprx")


class TestAOGReference(OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(AOG, lr=0.2, bounds=(-2.5, 2.5))

    @pytest.fixture
    def reference(self):
        def aog(z_half, g, s):
            if not s:
                s.update(t=1, z1=z_half.clone(), z=z_half.clone())
            else:
                s["z"] = (s["z"] - 0.2 * g + (s["z1"] - s["z"]) / (s["t"] + 1)).clamp(-2.5, 2.5)
                s["t"] += 1
            return (s["z"] - 0.2 * g + (s["z1"] - s["z"]) / (s["t"] + 1)).clamp(-2.5, 2.5)

        return aog


class TestOptimisticGradient(OptimizerContract, OptimizerReferenceContract):
    @pytest.fixture
    def make(self) -> MakeOptimizer:
        return partial(AOG, lr=0.2, anchor=False)

    @pytest.fixture
    def reference(self):
        def optimistic(z_half, g, s):
            s["z"] = s["z"] - 0.2 * g if s else z_half.clone()
            return s["z"] - 0.2 * g

        return optimistic

    # z_t is not the point played: at a rate of 0 the parameters go there
    rests_at_zero_rate = False


class Bilinear:
    """x'Ay: x descends it, y climbs it; |A| = 1. Their equilibrium is the origin."""

    def __init__(self, bounds=None):
        generator = torch.Generator().manual_seed(0)
        matrix = draw(generator, 3, 3)
        self.matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
        self.players = [draw(generator, 3).clamp(-1, 1).requires_grad_() for _ in range(2)]
        self.bounds = bounds

    def operator(self, x, y):
        return self.matrix @ y, -self.matrix.mT @ x

    def round(self, optimizer):
        x, y = (p.detach() for p in self.players)
        for p, g in zip(self.players, self.operator(x, y), strict=True):
            p.grad = g
        optimizer.step()

    def residual(self):
        z = [p.detach() for p in self.players]
        moved = [p - g for p, g in zip(z, self.operator(*z), strict=True)]
        if self.bounds:
            moved = [p.clamp(*self.bounds) for p in moved]
        return float(torch.cat([p - q for p, q in zip(z, moved, strict=True)]).norm())


class TestAOG:
    def test_the_first_half_step_is_the_gradient(self):
        z = vector(1.0, -2.0).requires_grad_()
        z.grad = vector(0.5, 0.25)
        AOG([z], lr=0.1).step()
        assert_same([z.detach()], [vector(0.95, -2.025)])

    @pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
    def test_the_residual_falls_like_one_over_t(self, bounds):
        game = Bilinear(bounds)
        optimizer, scaled = AOG(game.players, lr=1 / math.sqrt(6), bounds=bounds), {}
        for t in range(1, 4001):
            game.round(optimizer)
            if t in (400, 1200, 4000):
                scaled[t] = t * game.residual()
        assert max(scaled.values()) < 1.5 * min(scaled.values())

    def test_plain_descent_diverges_in_the_same_game(self):
        game = Bilinear()
        optimizer, before = torch.optim.SGD(game.players, lr=1 / math.sqrt(6)), game.residual()
        for _ in range(300):
            game.round(optimizer)
        assert game.residual() > 100 * before

    def test_bounds_are_refused_upside_down(self):
        with pytest.raises(ValueError, match="bounds must be"):
            AOG([torch.zeros(1, requires_grad=True)], bounds=(1.0, 1.0))


class TestLogBarrier:
    def test_worked_values(self):
        assert torch.allclose(log_barrier_distribution(torch.zeros(5).double(), 0.3), torch.full((5,), 0.2).double(), atol=1e-15)
        golden = (math.sqrt(5) - 1) / 2
        assert torch.allclose(log_barrier_distribution(vector(0.0, 1.0), 1.0), vector(golden, 1 - golden), atol=1e-12)

    def test_shifts_and_very_negative_losses(self):
        losses = vector(0.0, 1.0, 4.0)
        expected = log_barrier_distribution(losses, 0.7)
        for shift in (5.0, -1e6):
            assert torch.allclose(log_barrier_distribution(losses + shift, 0.7), expected, atol=1e-9)
        extreme = log_barrier_distribution(vector(-1e6, 0.0, 3.0), 1.0)
        assert float(extreme.sum()) == pytest.approx(1.0, abs=1e-12)
        assert torch.allclose(extreme[1:], vector(1e-6, 1e-6), rtol=1e-4)

    def test_optimality(self):
        generator = torch.Generator().manual_seed(0)
        for lr in (0.01, 1.0, 50.0):
            losses = 10 * draw(generator, 7, 40)  # seven distributions at once
            p = log_barrier_distribution(losses, lr)
            level = losses - 1 / (lr * p)
            assert float((level - level.mean(-1, keepdim=True)).abs().max()) < 1e-8 * float(level.abs().max())
            assert torch.allclose(p.sum(-1), torch.ones(7).double())

    def test_many_arms_of_one_loss(self):
        assert torch.allclose(log_barrier_distribution(torch.zeros(100_000).double(), 1.0), torch.tensor(1e-5).double())

    def test_the_optimizer_sums_losses_and_resumes(self):
        p = torch.full((3,), 1 / 3, requires_grad=True)
        optimizer, losses = LogBarrierFTRL([p], lr=0.5), torch.zeros(3)
        generator = torch.Generator().manual_seed(0)
        for step in range(6):
            p.grad = torch.randn(3, generator=generator)
            losses = losses + p.grad
            optimizer.step()
            assert torch.allclose(p.detach(), log_barrier_distribution(losses, 0.5), atol=1e-6)
            if step == 2:
                q = p.detach().clone().requires_grad_()
                again = LogBarrierFTRL([q], lr=0.5)
                again.load_state_dict(through_a_file(optimizer.state_dict()))
            elif step > 2:
                q.grad = p.grad.clone()
                again.step()
        assert_same([p.detach()], [q.detach()])
        with pytest.raises(ValueError, match=r"learning rate.*0"):
            LogBarrierFTRL([p], lr=0.0)

    def test_finds_the_best_of_five_arms(self):
        # losses in [-1, 1], of which the fourth arm's are the least on average
        generator = torch.Generator().manual_seed(0)
        p = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)
        optimizer, means = LogBarrierFTRL([p], lr=0.05), vector(0.2, 0.1, 0.3, -0.5, 0.0)
        for _ in range(1500):
            losses = (means + 0.5 * (2 * torch.rand(5, generator=generator, dtype=torch.float64) - 1)).clamp(-1, 1)
            arm = torch.multinomial(p.detach(), 1, generator=generator)[0]
            p.grad = importance_weighted(losses[arm], arm, p.detach())
            optimizer.step()
        assert int(p.argmax()) == 3 and float(p.max().detach()) > 0.5

    def test_estimates_are_unbiased(self):
        generator = torch.Generator().manual_seed(0)
        p = torch.softmax(draw(generator, 6), 0)
        losses = torch.rand(6, generator=generator, dtype=torch.float64)
        mean = sum(p[k] * importance_weighted(losses[k], torch.tensor(k), p) for k in range(6))
        assert torch.allclose(mean, losses)

    def test_magnitude_reduced(self):
        generator = torch.Generator().manual_seed(0)
        for horizon in (1.0, 3.0):
            features, p = draw(generator, 6, 3), torch.softmax(2 * draw(generator, 6), 0)
            losses = features @ draw(generator, 3)
            losses = losses * horizon / losses.abs().max()
            estimates = [magnitude_reduced(losses[k], torch.tensor(k), p, features, horizon=horizon) for k in range(6)]
            assert torch.allclose(sum(p[k] * q for k, q in enumerate(estimates)), losses)
        # of losses in [0, H] it is bounded below by the root of the leverage, the plain estimate only by the leverage
        losses = torch.rand(6, generator=generator, dtype=torch.float64)
        covariance = features.T @ (p[:, None] * features)
        leverage = (features @ torch.linalg.inv(covariance) * features).sum(1)
        for k in range(6):
            assert bool((magnitude_reduced(losses[k], torch.tensor(k), p, features) >= -leverage.sqrt() - 1e-12).all())

    def test_orthonormal_features_give_importance_weights(self):
        p = vector(0.1, 0.2, 0.7)
        for k in range(3):
            ours = magnitude_reduced(torch.tensor(0.4).double(), torch.tensor(k), p, torch.eye(3).double())
            assert torch.allclose(ours, importance_weighted(torch.tensor(0.4).double(), torch.tensor(k), p))

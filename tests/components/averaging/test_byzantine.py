import functools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from components.averaging.byzantine import ATTACKS, Workers, deal, inner_product, little_is_enough, random_vectors, sign_flip
from components.models import LinearModel


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs, target = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return (inputs[:1400], target[:1400]), (inputs[1400:], target[1400:])


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return LinearModel([64], 10)


class Point(nn.Module):
    """A model that puts out its parameters, whatever it is given: with squared error, a quadratic whose minimum is the mean of the targets."""

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((size,), 10.0, dtype=torch.float64))

    def forward(self, inputs):
        return self.theta.expand(len(inputs), -1)


CENTRE = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0], dtype=torch.float64)


def noisy_targets(count=2000, noise=1.0):
    return CENTRE + noise * torch.randn(count, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def half_square(output, target):
    return 0.5 * (output - target).square().sum(-1).mean()


def quadratic(**options) -> Workers:
    target = noisy_targets()
    common = {"loss": half_square, "weight_decay": 0.0, "lr": 0.1, "batch_size": 2, "momentum": 0.0}
    return Workers(Point(), torch.zeros(len(target), 1), target, **common | options)


def error(workers: Workers, average_over: int = 1) -> float:
    """Mean squared distance of the honest workers' models to the optimum, over some last steps."""
    total = 0.0
    for _ in range(average_over):
        workers.step()
        total += float((workers.models[workers.honest] - CENTRE).square().sum(1).mean())
    return total / average_over


class TestAttacks:
    OWN, HONEST = torch.ones(2, 3, dtype=torch.float64), torch.arange(12.0, dtype=torch.float64).view(4, 3)

    def test_worked_values(self):
        generator = torch.Generator()
        assert sign_flip(self.OWN, self.HONEST, generator, scale=4.0).tolist() == [[-4] * 3] * 2
        assert inner_product(self.OWN, self.HONEST, generator, scale=0.5)[1].tolist() == [-2.25, -2.75, -3.25]
        deviation = self.HONEST[:, 0].std()
        assert little_is_enough(self.OWN, self.HONEST, generator, z=2.0)[0, 0].item() == pytest.approx(4.5 - 2 * float(deviation))
        sizes = random_vectors(self.OWN, self.HONEST, generator).norm(dim=1)
        torch.testing.assert_close(sizes, (10 * self.HONEST.norm(dim=1).mean()).expand(2))

    def test_the_default_of_alie_lets_honest_workers_stand_further_out(self):
        honest = torch.randn(21, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        own = honest[:5]
        sent = little_is_enough(own, honest, torch.Generator())
        z = float(((honest.mean(0) - sent[0]) / honest.std(0)).mean())
        # n = 26, f = 5: s = 9, Phi^-1(12 / 21)
        assert z == pytest.approx(0.18, abs=0.01)
        assert float((honest < sent[0]).double().mean()) * 21 > 26 // 2 + 1 - 5 - 1

    @pytest.mark.parametrize("name", ATTACKS)
    def test_every_attack_has_its_shape(self, name):
        assert ATTACKS[name](self.OWN, self.HONEST, torch.Generator().manual_seed(0)).shape == self.OWN.shape


class TestDeal:
    @pytest.mark.parametrize("heterogeneity", [None, 0.1, 1.0, 100.0])
    def test_each_sample_once_and_no_worker_without(self, heterogeneity):
        target = torch.arange(200) % 7
        shares = deal(target, 12, heterogeneity, torch.Generator().manual_seed(0))
        assert len(shares) == 12 and all(len(share) >= 1 for share in shares)
        assert sorted(torch.cat(shares).tolist()) == list(range(200))

    def test_a_small_parameter_gives_each_worker_few_classes(self):
        target = torch.arange(2000) % 10
        kinds = [
            sum(len(target[share].unique()) for share in deal(target, 10, h, torch.Generator().manual_seed(0))) / 10 for h in (0.05, 100.0)
        ]
        assert kinds[0] < 5 < 9.5 < kinds[1]


class TestWorkers:
    def test_without_faults_it_is_sgd_with_the_averaged_gradient(self, digits, linear):
        (inputs, target), _ = digits
        inputs = inputs.double()
        model = linear.double()
        together = Workers(model, inputs, target, workers=10, rule="nna", momentum=0.0, batch_size=None, lr=0.5, weight_decay=0.0)
        served = Workers(model, inputs, target, workers=10, rule="mean", momentum=0.0, batch_size=None, lr=0.5, weight_decay=0.0)
        together.run(5)
        served.run(5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            torch.stack([nn.functional.cross_entropy(model(inputs[s]).output, target[s]) for s in together.shares]).mean().backward()
            optimizer.step()
        for workers in (together, served):
            for name, value in workers.weights().items():
                torch.testing.assert_close(value, dict(model.named_parameters())[name].detach(), rtol=1e-12, atol=1e-12)

    def test_the_rules_of_a_server_give_all_workers_one_model(self, digits, linear):
        (inputs, target), _ = digits
        workers = Workers(linear, inputs, target, rule="median", byzantine=2, heterogeneity=1.0)
        workers.run(5)
        assert bool((workers.models == workers.models[0]).all())
        own = Workers(linear, inputs, target, rule="nna", byzantine=2, heterogeneity=1.0)
        own.run(5)
        assert not bool((own.models[:8] == own.models[0]).all())

    def test_is_deterministic_and_leaves_the_model(self, digits, linear):
        (inputs, target), _ = digits
        before = [p.detach().clone() for p in linear.parameters()]
        runs = []
        for seed in (3, 3, 4):
            workers = Workers(linear, inputs, target, byzantine=2, attack="random", seed=seed)
            workers.run(5)
            runs.append(workers.models)
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
        assert all(torch.equal(a, b) for a, b in zip(before, linear.parameters(), strict=True))

    @pytest.mark.parametrize("rule", ["nna", "trimmed_mean", "geometric_median", "cva", "multi_krum"])
    def test_quadratic_with_a_fifth_of_sign_flippers(self, rule):
        attack = functools.partial(sign_flip, scale=5.0)
        robust, plain = (quadratic(workers=10, byzantine=2, attack=attack, rule=r, momentum=0.9, seed=1) for r in (rule, "mean"))
        robust.run(250)
        plain.run(250)
        assert error(robust) < 0.3
        assert not error(plain) < 10

    def test_momentum_lowers_the_error_floor(self):
        floors = []
        for momentum in (0.9, 0.0):
            attack = functools.partial(little_is_enough, z=1.5)
            workers = quadratic(workers=10, byzantine=2, attack=attack, rule="nna", momentum=momentum, seed=2)
            workers.run(300)
            floors.append(error(workers, average_over=200))
        assert floors[0] < 0.7 * floors[1], floors

    @pytest.mark.parametrize("rule", ["nna", "median"])
    def test_crashed_workers(self, rule):
        workers = quadratic(workers=10, byzantine=1, crashed=3, crash_after=20, rule=rule, momentum=0.9, attack=functools.partial(sign_flip, scale=5.0))
        assert workers.honest == list(range(9))
        workers.run(21)
        assert workers.honest == list(range(6))
        frozen = workers.models[6:9].clone()
        workers.run(230)
        assert error(workers) < 0.3
        if rule == "nna":
            assert torch.equal(workers.models[6:9], frozen)

    @pytest.mark.parametrize("rule", ["nna", "trimmed_mean", "flag"])
    def test_what_is_not_finite_is_not_taken(self, rule):
        workers = quadratic(workers=10, byzantine=2, rule=rule, momentum=0.9, attack=lambda own, honest, generator: torch.full_like(own, math.nan))
        workers.run(250)
        assert error(workers) < 0.3

    def test_asynchronous_neighbours(self):
        workers = quadratic(workers=10, byzantine=2, rule="nna", asynchronous=True, momentum=0.9, attack=functools.partial(sign_flip, scale=5.0))
        workers.run(250)
        assert error(workers) < 0.5

    @pytest.mark.parametrize("attack", ["sign_flip", "label_flip", "alie", "ipm"])
    def test_digits_under_attack_within_a_few_points_of_none(self, attack, digits, linear):
        train, test = digits
        options = {"lr": 2.0, "momentum": 0.9, "rule": "nna", "heterogeneity": 5.0}
        clean = Workers(linear, *train, byzantine=0, **options)
        attacked = Workers(linear, *train, byzantine=2, attack=attack, **options)
        for workers in (clean, attacked):
            workers.run(150)
        assert clean.accuracy(*test) > 0.9
        assert attacked.accuracy(*test) > clean.accuracy(*test) - 0.04
        assert attacked.loss(*test) < 0.6

    def test_digits_the_rules_beside_the_mean(self, digits, linear):
        train, test = digits
        attack = functools.partial(random_vectors, scale=30.0)
        scores = {}
        for rule in ("mean", "median", "trimmed_mean", "multi_krum", "flag", "nna"):
            workers = Workers(linear, *train, byzantine=2, attack=attack, rule=rule, lr=2.0, momentum=0.9)
            workers.run(100)
            scores[rule] = workers.accuracy(*test)
        assert min(value for rule, value in scores.items() if rule != "mean") > max(0.88, scores["mean"]), scores

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"workers": 0}, "workers must be >= 1"),
            ({"byzantine": 8, "crashed": 2}, "must leave an honest worker"),
            ({"byzantine": 5}, "faulty must be below half"),
            ({"momentum": 1.0}, "momentum must be"),
            ({"batch_size": 0}, "batch_size must be"),
            ({"attack": "sign_flop"}, "did you mean 'sign_flip'"),
            ({"rule": "krumm"}, "did you mean 'krum'"),
            ({"heterogeneity": 0.0}, "heterogeneity must be"),
            ({"workers": 5000}, "a sample for each of 5000 workers"),
        ],
    )
    def test_refuses(self, bad, message):
        with pytest.raises(ValueError, match=message):
            quadratic(**bad)

    def test_refuses_a_model_with_buffers(self, digits):
        (inputs, target), _ = digits
        with pytest.raises(ValueError, match="model must have no buffers"):
            Workers(nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)), inputs, target)

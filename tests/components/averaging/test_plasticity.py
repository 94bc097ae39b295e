import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from components.averaging import PlasticityStabilityEMA, stability
from components.testing.averaging import Data, Net, assert_same, trainer_for


def tensors(*values):
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


def one(g, g_before, theta, theta_before, average, **options):
    return float(stability(*([t] for t in tensors(g, g_before, theta, theta_before, average)), **options)[0])


class TestCoefficient:
    def test_worked_value(self):
        # secant (.5 - 1) / (.9 - 1) = 5; beta = 1.5 / (.5 * 5) = .6; the new average .6 * .4 + .4 * .9 = .6
        beta = one(0.5, 1.0, 0.9, 1.0, 0.4)
        assert beta == pytest.approx(0.6)
        assert beta * 0.4 + (1 - beta) * 0.9 == pytest.approx(0.6)

    @pytest.mark.parametrize("curvature", [0.5, 3.0])
    def test_the_secant_of_a_quadratic_is_its_curvature(self, curvature):
        centre, before, theta, average = 0.3, 1.4, 1.1, -2.0
        g_before, g = curvature * (before - centre), curvature * (theta - centre)
        expected = abs((g + 1) / ((theta - average) * curvature))
        assert one(g, g_before, theta, before, average, high=10.0) == pytest.approx(expected)

    def test_bounds_and_fallback(self):
        assert one(50.0, 1.0, 0.9, 1.0, 0.899, high=0.9999) == 0.9999
        assert one(-1.0, 1.0, 0.9, 1.0, 0.4) == 0.0  # g + 1 = 0
        assert one(-1.0, 1.0, 0.9, 1.0, 0.4, low=0.2) == 0.2
        assert one(0.5, 0.5, 0.9, 1.0, 0.4) == 0.99  # no curvature
        assert one(0.5, 1.0, 0.9, 1.0, 0.9, fallback=0.7) == 0.7  # the average is there already

    def test_is_never_negative_since_norms_have_no_sign(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(100):
            values = [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(5)]
            assert float(stability(*([v] for v in values), low=-1.0, high=1e9)[0]) >= 0

    def test_by_tensor_or_global(self):
        generator = torch.Generator().manual_seed(0)
        lists = [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))] for _ in range(5)]
        g, g_before, theta, before, average = lists
        above = [((a + 1) * (t - b)).abs().sum() for a, t, b in zip(g, theta, before, strict=True)]
        below = [((t - m) * (a - b)).abs().sum() for t, m, a, b in zip(theta, average, g, g_before, strict=True)]
        by_tensor, whole = stability(*lists, high=1e9), stability(*lists, scope="global", high=1e9)
        torch.testing.assert_close(by_tensor, torch.stack([a / b for a, b in zip(above, below, strict=True)]))
        torch.testing.assert_close(whole, (sum(above) / sum(below)).expand(2))


class Noting(Net):
    """Notes weights and gradients before each step."""

    def __init__(self, seed=0) -> None:
        super().__init__(seed)
        self.double()
        self.notes = []

    def training_step(self, batch, batch_idx):
        return super().training_step({name: value.double() for name, value in batch.items()}, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.notes.append([(p.detach().clone(), p.grad.clone()) for p in self.parameters()])


class TestInARun:
    @pytest.mark.parametrize("scope", ["tensor", "global"])
    def test_is_the_recursion(self, scope, tmp_path):
        module, average = Noting(), [p.detach().clone() for p in Noting().parameters()]
        trainer_for([PlasticityStabilityEMA(scope=scope)], tmp_path).fit(module, datamodule=Data())
        names = [name for name, _ in module.named_parameters()]
        for before, now in itertools.pairwise(module.notes):
            above = [((g + 1) * (t - u)).abs().sum() for (t, g), (u, _) in zip(now, before, strict=True)]
            below = [((t - m) * (g - h)).abs().sum() for (t, g), (_, h), m in zip(now, before, average, strict=True)]
            if scope == "global":
                above, below = [sum(above)] * len(above), [sum(below)] * len(below)
            betas = [min(float(a / b), 0.9999) if b >= 1e-12 else 0.99 for a, b in zip(above, below, strict=True)]
            moved = [beta * m + (1 - beta) * t for beta, m, (t, _) in zip(betas, average, now, strict=True)]
            for m, old, (t, _) in zip(moved, average, now, strict=True):  # within the segment
                assert bool(((m - old) * (t - m) >= -1e-12).all())
            average = moved
        for name, value in zip(names, average, strict=True):
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-9, atol=1e-11)

    def test_beta_zero_is_the_weights_before_the_last_step_and_one_the_start(self, tmp_path):
        for bounds, expected in (({"beta_max": 0.0, "fallback": 0.0}, None), ({"beta_min": 1.0, "beta_max": 1.0}, Net().state_dict())):
            module = Net()
            trainer_for([PlasticityStabilityEMA(**bounds)], tmp_path).fit(module, datamodule=Data())
            expected = module.after[-2] if expected is None else expected
            for name, _ in module.named_parameters():
                torch.testing.assert_close(module.state_dict()[name], expected[name], rtol=1e-6, atol=1e-7)

    def test_frozen_weights_stay(self, tmp_path):
        module = Net()
        module.head.requires_grad_(False)
        start = module.head.weight.clone()
        trainer_for([PlasticityStabilityEMA()], tmp_path).fit(module, datamodule=Data())
        assert_same(module.head.weight.detach(), start)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"scope": "layer"}, "scope must be one of tensor, global"),
            ({"beta_max": 1.5}, "beta_max must be a number in"),
            ({"beta_min": 0.5, "beta_max": 0.4}, "beta_min must be <= beta_max"),
            ({"fallback": -1}, "fallback must be a number in"),
        ],
    )
    def test_refuses(self, bad, message):
        with pytest.raises(ValueError, match=message):
            PlasticityStabilityEMA(**bad)


class TestTwoTasks:
    def test_keeps_more_of_the_first_task_than_fixed_coefficients_that_learn_the_second_as_well(self):
        scores = [two_tasks(seed) for seed in range(3)]
        first, second = ({name: sum(s[name][task] for s in scores) / len(scores) for name in scores[0]} for task in (0, 1))
        similar = [name for name in ("none", "0.9", "0.99", "0.999") if abs(second[name] - second["tensor"]) < 0.02]
        assert similar == ["none", "0.9", "0.99"]  # 0.999 has hardly begun with the second task
        for name in similar:
            assert first["tensor"] > first[name] and first["global"] > first[name], (first, second)


def two_tasks(seed: int) -> dict[str, list[float]]:
    """Accuracy on upright digits and on digits lying on their side, after training on the first and then on the second, by average."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images / 16, dtype=torch.float32)[order].view(-1, 8, 8), torch.tensor(labels)[order]
    tasks = [torch.rot90(images, turns, (1, 2)).flatten(1) for turns in (0, 1)]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    generator, parameters = torch.Generator().manual_seed(seed), list(model.parameters())

    def gradients(task: int) -> list[torch.Tensor]:
        chosen = torch.randint(1300, (32,), generator=generator)
        return list(torch.autograd.grad(nn.functional.cross_entropy(model(tasks[task][chosen]), labels[chosen]), parameters))

    optimizer = torch.optim.Adam(parameters, 1e-3)
    for _ in range(600):
        for parameter, gradient in zip(parameters, gradients(0), strict=True):
            parameter.grad = gradient
        optimizer.step()
    averages = {name: [p.detach().clone() for p in parameters] for name in ("0.9", "0.99", "0.999", "tensor", "global")}
    optimizer, before = torch.optim.SGD(parameters, 0.05, momentum=0.9), None
    for _ in range(400):
        now = (gradients(1), [p.detach().clone() for p in parameters])
        for name, average in averages.items():
            if name in ("tensor", "global"):
                share = torch.zeros(4) if before is None else stability(now[0], before[0], now[1], before[1], average, scope=name)
            else:
                share = torch.full((4,), float(name))
            averages[name] = [torch.lerp(w, a, s) for w, a, s in zip(now[1], average, share, strict=True)]
        before = now
        for parameter, gradient in zip(parameters, now[0], strict=True):
            parameter.grad = gradient
        optimizer.step()
    averages["none"] = [p.detach().clone() for p in parameters]
    scores = {}
    with torch.no_grad():
        for name, average in averages.items():
            for parameter, value in zip(parameters, average, strict=True):
                parameter.copy_(value)
            scores[name] = [float((model(task[1300:]).argmax(1) == labels[1300:]).float().mean()) for task in tasks]
    return scores

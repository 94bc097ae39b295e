import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import CompSumLoss, CrossEntropyLoss, SmoothAdversarialCompSumLoss, comp_sum

F64 = torch.float64


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestCompSum:
    @pytest.mark.parametrize(("tau", "value"), [(0.0, 3.0), (0.5, 2.0), (1.0, 1.38629), (1.5, 1.0), (1.8, 0.83765), (2.0, 0.75)])
    def test_worked_values(self, tau: float, value: float) -> None:  # p = 1/4, u = 3
        logits = torch.tensor([[math.log(1 / 3), 0.0]], dtype=F64)
        assert CompSumLoss(tau)(logits, torch.tensor([0])).item() == pytest.approx(value, abs=1e-5)

    def test_continuous_at_cross_entropy(self, logits: Tensor, target: Tensor) -> None:  # the gap is (1 - tau) CE² / 2
        ce = CrossEntropyLoss(reduction="none")(logits, target)
        for shift in (1e-6, -1e-6, 1e-12):
            values = CompSumLoss(1 + shift, reduction="none")(logits, target)
            assert ((values - ce).abs() <= 0.51 * abs(shift) * ce**2 + 1e-15).all()
        torch.testing.assert_close(CompSumLoss(1.0, reduction="none")(logits, target), ce, rtol=1e-12, atol=0)

    def test_series_meets_the_formula(self) -> None:  # both ways to (e^x - 1) / x around the point where one takes over
        ce = torch.linspace(0.5e-3, 2e-3, 31, dtype=F64).requires_grad_()
        for rate in (1.0, -1.0):
            values = comp_sum(ce, 1 - rate)
            torch.testing.assert_close(values, torch.expm1(rate * ce) / rate, rtol=1e-13, atol=0)
            torch.testing.assert_close(gradient(values.sum(), ce), (rate * ce).exp().detach(), rtol=1e-9, atol=0)

    @pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
    def test_above_one_is_generalized_cross_entropy(self, logits: Tensor, target: Tensor, q: float) -> None:
        p = logits.softmax(1)[range(16), target]
        torch.testing.assert_close(CompSumLoss(1 + q, reduction="none")(logits, target), (1 - p**q) / q)

    def test_two_is_the_mean_absolute_error_of_probabilities(self, logits: Tensor, target: Tensor) -> None:
        error = (logits.softmax(1) - F.one_hot(target, 5)).abs().sum(1) / 2
        torch.testing.assert_close(CompSumLoss(2.0, reduction="none")(logits, target), error)

    def test_zero_is_the_sum_of_exponentials(self, logits: Tensor, target: Tensor) -> None:
        sums = (logits - logits.gather(1, target.unsqueeze(1))).exp().sum(1) - 1
        torch.testing.assert_close(CompSumLoss(0.0, reduction="none")(logits, target), sums)

    def test_a_shift_changes_nothing_and_tau_lowers_the_loss(self, logits: Tensor, target: Tensor) -> None:
        values = [CompSumLoss(tau, reduction="none")(logits, target) for tau in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)]
        assert all((low < high).all() for high, low in pairwise(values))
        torch.testing.assert_close(CompSumLoss(0.5, reduction="none")(logits + 7, target), values[1])

    @pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
    def test_gradient_identity(self, logits: Tensor, target: Tensor, tau: float) -> None:
        p = logits.detach().softmax(1)
        expected = p.gather(1, target.unsqueeze(1)) ** (tau - 1) * (p - F.one_hot(target, 5))
        torch.testing.assert_close(gradient(CompSumLoss(tau, reduction="sum")(logits, target), logits), expected)

    def test_goes_on_along_its_tangent_where_it_would_overflow(self) -> None:
        ce = torch.tensor([59.0, 60.0, 61.0, 1000.0], dtype=F64, requires_grad=True)
        values = comp_sum(ce, 0.0)
        torch.testing.assert_close(values[:2], torch.expm1(ce[:2]))
        torch.testing.assert_close(values[2:], math.expm1(60) + math.exp(60) * (ce[2:] - 60))
        torch.testing.assert_close(gradient(values.sum(), ce), ce.detach().clamp(max=60).exp())

    def test_refuses_tau(self) -> None:
        with pytest.raises(ValueError, match=r"tau must be >= 0, but got -0\.1"):
            CompSumLoss(-0.1)


class Toy(nn.Module):
    """Two inputs, three classes, curved; dropout makes it matter in which mode it runs."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = nn.Parameter(torch.randn(2, 8, dtype=F64, generator=generator) * 2)
        self.second = nn.Parameter(torch.randn(8, 3, dtype=F64, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(x @ self.first)) @ self.second


class TestSmoothAdversarial:
    X = torch.tensor([[0.3, -0.2], [0.0, 0.5], [-1.0, 0.4], [0.2, 0.2]], dtype=F64)
    Y = torch.tensor([0, 2, 1, 0])

    def loss(self, model: nn.Module, **options: object) -> Tensor:
        value: Tensor = SmoothAdversarialCompSumLoss(**options)(model, self.X, model(self.X), self.Y)  # type: ignore[arg-type]
        return value

    @pytest.mark.parametrize("off", [{"gamma": 0.0, "nu": 2.0}, {"nu": 0.0, "gamma": 0.3}])
    def test_without_an_attack_it_is_comp_sum(self, off: dict[str, float]) -> None:
        model = Toy().eval()
        torch.testing.assert_close(self.loss(model, tau=1.5, **off), CompSumLoss(1.5)(model(self.X), self.Y))
        torch.testing.assert_close(self.loss(model, rho=0.5, **off), CompSumLoss(1.0)(2 * model(self.X), self.Y))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_attack_lies_between_random_and_brute_force(self, norm: str) -> None:
        model, gamma = Toy().eval(), 0.3
        loss = SmoothAdversarialCompSumLoss(gamma=gamma, norm=norm)
        logits = model(self.X).detach()
        worst = loss.worst_inputs(model, self.X, logits, self.Y)
        moved = worst - self.X
        assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= gamma + 1e-12
        found = loss._distance(model(worst), logits, self.Y)
        sides = torch.linspace(-gamma, gamma, 61, dtype=F64)
        grid = torch.cartesian_prod(sides, sides)
        if norm == "l2":
            ring = torch.linspace(0, 2 * math.pi, 200, dtype=F64)
            grid = torch.cat([grid[grid.norm(dim=1) <= gamma], gamma * torch.stack([ring.cos(), ring.sin()], 1)])
        points = (self.X.unsqueeze(1) + grid).flatten(0, 1)
        all_distances = loss._distance(model(points), logits.repeat_interleave(len(grid), 0), self.Y.repeat_interleave(len(grid))).unflatten(0, (4, -1))
        assert (found <= all_distances.amax(1) * 1.001).all()
        assert (found > all_distances.mean(1)).all()
        assert (found >= 0.9 * all_distances.amax(1)).float().mean() >= 0.75

    def test_distance_is_of_the_margins(self) -> None:  # moved by (1, 0, -2): the target's margins over the others change by 1 and 3
        loss = SmoothAdversarialCompSumLoss()
        distance = loss._distance(torch.tensor([[1.0, 0.0, -2.0]]), torch.zeros(1, 3), torch.tensor([0]))
        assert distance.item() == pytest.approx(math.sqrt(10))

    def test_parameters_learn_from_both_terms(self) -> None:
        model = Toy().eval()
        both, clean = (torch.autograd.grad(self.loss(model, nu=nu, gamma=0.3), model.first)[0] for nu in (1.0, 0.0))
        assert not torch.allclose(both, clean)

    def test_mode_of_the_model_is_put_back_and_nothing_is_random_but_its_own(self) -> None:
        model = Toy().train()
        loss = SmoothAdversarialCompSumLoss(gamma=0.3)
        logits = model.eval()(self.X).detach()
        expected = loss.worst_inputs(model, self.X, logits, self.Y)
        model.train()
        assert torch.equal(loss.worst_inputs(model, self.X, logits, self.Y), expected)
        assert model.training and model.dropout.training

    def test_under_inference_mode(self) -> None:
        model = Toy().eval()
        expected = self.loss(model, gamma=0.3).detach()
        with torch.inference_mode():
            x, y = self.X.clone(), self.Y.clone()
            value = SmoothAdversarialCompSumLoss(gamma=0.3)(model, x, model(x), y)
        torch.testing.assert_close(value, expected)

    def test_mixed_precision(self) -> None:
        model = Toy().float().eval()
        x, exact = self.X.float(), SmoothAdversarialCompSumLoss(gamma=0.3)(model, self.X.float(), model(self.X.float()), self.Y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = SmoothAdversarialCompSumLoss(gamma=0.3)(model, x, model(x), self.Y)
        assert value.item() == pytest.approx(exact.item(), rel=0.05)

    @pytest.mark.parametrize("wrong", [{"rho": 0.0}, {"nu": -1.0}, {"gamma": -0.1}, {"norm": "l1"}, {"steps": 0}, {"tau": -1.0}])
    def test_refusals(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            SmoothAdversarialCompSumLoss(**wrong)  # type: ignore[arg-type]

    def test_refuses_tokens(self) -> None:
        with pytest.raises(ValueError, match="inputs must be real-valued"):
            SmoothAdversarialCompSumLoss()(Toy(), torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 3), self.Y)

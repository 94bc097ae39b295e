import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import CompSumLoss, CrossEntropyLoss, SmoothAdversarialCompSumLoss, TRADESLoss

Kind = type[SmoothAdversarialCompSumLoss] | type[TRADESLoss]
F64 = torch.float64
X = torch.tensor([[0.3, -0.2], [0.0, 0.5], [-1.0, 0.4], [0.2, 0.2]], dtype=F64)
Y = torch.tensor([0, 2, 1, 0])


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


def value(kind: Kind, model: nn.Module, **options: Any) -> Tensor:
    found: Tensor = kind(**options)(model, X, model(X), Y)
    return found


@pytest.mark.parametrize("kind", [SmoothAdversarialCompSumLoss, TRADESLoss])
def test_under_inference_mode(kind: Kind) -> None:
    model = Toy().eval()
    expected = value(kind, model, gamma=0.3).detach()
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
        found = kind(gamma=0.3)(model, x, model(x), y)
    torch.testing.assert_close(found, expected)


class TestSmoothAdversarial:
    @pytest.mark.parametrize("off", [{"gamma": 0.0, "nu": 2.0}, {"nu": 0.0, "gamma": 0.3}])
    def test_without_an_attack_it_is_comp_sum(self, off: dict[str, float]) -> None:
        model = Toy().eval()
        torch.testing.assert_close(value(SmoothAdversarialCompSumLoss, model, tau=1.5, **off), CompSumLoss(1.5)(model(X), Y))
        torch.testing.assert_close(value(SmoothAdversarialCompSumLoss, model, rho=0.5, **off), CompSumLoss(1.0)(2 * model(X), Y))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_attack_lies_between_random_and_brute_force(self, norm: str) -> None:
        model, gamma = Toy().eval(), 0.3
        loss = SmoothAdversarialCompSumLoss(gamma=gamma, norm=norm)
        logits = model(X).detach()
        worst = loss.worst_inputs(model, X, logits, Y)
        moved = worst - X
        assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= gamma + 1e-12
        found = loss._distance(model(worst), logits, Y)
        sides = torch.linspace(-gamma, gamma, 61, dtype=F64)
        grid = torch.cartesian_prod(sides, sides)
        if norm == "l2":
            ring = torch.linspace(0, 2 * math.pi, 200, dtype=F64)
            grid = torch.cat([grid[grid.norm(dim=1) <= gamma], gamma * torch.stack([ring.cos(), ring.sin()], 1)])
        points = (X.unsqueeze(1) + grid).flatten(0, 1)
        all_distances = loss._distance(model(points), logits.repeat_interleave(len(grid), 0), Y.repeat_interleave(len(grid))).unflatten(0, (4, -1))
        assert (found <= all_distances.amax(1) * 1.001).all()
        assert (found > all_distances.mean(1)).all()
        assert (found >= 0.9 * all_distances.amax(1)).float().mean() >= 0.75

    def test_distance_is_of_the_margins(self) -> None:  # moved by (1, 0, -2): the target's margins over the others change by 1 and 3
        loss = SmoothAdversarialCompSumLoss()
        distance = loss._distance(torch.tensor([[1.0, 0.0, -2.0]]), torch.zeros(1, 3), torch.tensor([0]))
        assert distance.item() == pytest.approx(math.sqrt(10))

    def test_parameters_learn_from_both_terms(self) -> None:
        model = Toy().eval()
        both, clean = (torch.autograd.grad(value(SmoothAdversarialCompSumLoss, model, nu=nu, gamma=0.3), model.first)[0] for nu in (1.0, 0.0))
        assert not torch.allclose(both, clean)

    def test_mode_of_the_model_is_put_back_and_nothing_is_random_but_its_own(self) -> None:
        model = Toy().train()
        loss = SmoothAdversarialCompSumLoss(gamma=0.3)
        logits = model.eval()(X).detach()
        expected = loss.worst_inputs(model, X, logits, Y)
        model.train()
        assert torch.equal(loss.worst_inputs(model, X, logits, Y), expected)
        assert model.training and model.dropout.training

    def test_mixed_precision(self) -> None:
        model = Toy().float().eval()
        x, exact = X.float(), SmoothAdversarialCompSumLoss(gamma=0.3)(model, X.float(), model(X.float()), Y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = SmoothAdversarialCompSumLoss(gamma=0.3)(model, x, model(x), Y)
        assert value.item() == pytest.approx(exact.item(), rel=0.05)

    @pytest.mark.parametrize("wrong", [{"rho": 0.0}, {"nu": -1.0}, {"gamma": -0.1}, {"norm": "l1"}, {"steps": 0}, {"tau": -1.0}])
    def test_refusals(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            SmoothAdversarialCompSumLoss(**wrong)  # type: ignore[arg-type]

    def test_refuses_tokens(self) -> None:
        with pytest.raises(ValueError, match="inputs must be real-valued"):
            SmoothAdversarialCompSumLoss()(Toy(), torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 3), Y)


def start(loss: TRADESLoss, model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """Where the ascent begins: where it ends without a step."""
    steps, loss.steps = loss.steps, 0
    begun = loss.worst_inputs(model, inputs, target)
    loss.steps = steps
    return begun


class TestTRADES:
    def test_worked_value(self) -> None:
        """One weight: the ascent goes to the end of the interval on whose side the noise lies, and KL is that of two coins."""
        model = nn.Linear(1, 2, bias=False, dtype=F64)
        model.weight.data = torch.tensor([[1.0], [0.0]], dtype=F64)
        x, y = torch.tensor([[1.0]], dtype=F64), torch.tensor([0])
        loss = TRADESLoss(beta=3.0, gamma=0.5)
        end = 1.5 if start(loss, model, x, y) > x else 0.5
        p, q = (1 / (1 + math.exp(-z)) for z in (1.0, end))
        divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert loss(model, x, model(x), y).item() == pytest.approx(math.log1p(math.exp(-1)) + 3 * divergence, rel=1e-12)

    @pytest.mark.parametrize("off", [{"gamma": 0.3, "beta": 0.0}, {"gamma": 0.0, "beta": 2.0}])
    def test_without_an_attack_it_is_cross_entropy(self, off: dict[str, float]) -> None:
        model = Toy().eval()
        torch.testing.assert_close(value(TRADESLoss, model, **off), CrossEntropyLoss()(model(X), Y))

    def test_is_the_authors_procedure(self) -> None:
        """Their loop, written plainly, from the same noise."""
        model, gamma, beta = Toy().eval(), 0.2, 6.0
        loss = TRADESLoss(beta, gamma=gamma, steps=7)
        p = model(X).softmax(1).detach()
        x = start(loss, model, X, Y)
        assert 0 < (x - X).abs().max() < 0.001 * 5.4
        for _ in range(7):
            x = x.detach().requires_grad_()
            divergence = F.kl_div(model(x).log_softmax(1), p, reduction="sum")
            (gradient,) = torch.autograd.grad(divergence, x)
            x = torch.min(torch.max(x + gamma / 4 * gradient.sign(), X - gamma), X + gamma)
        torch.testing.assert_close(loss.worst_inputs(model, X, Y), x.detach())
        logits = model(X)
        expected = F.cross_entropy(logits, Y) + beta * F.kl_div(model(x.detach()).log_softmax(1), logits.softmax(1), reduction="batchmean")
        found = loss(model, X, logits, Y)
        torch.testing.assert_close(found, expected)
        for got, wanted in zip(*(torch.autograd.grad(v, [model.first, model.second], retain_graph=True) for v in (found, expected)), strict=True):
            torch.testing.assert_close(got, wanted)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_attack_finds_the_worst_on_one_side_or_the_other(self, norm: str) -> None:
        """Near the input the divergence is a bowl: on which side the ascent goes up is the noise's choice, and both sides are met within a few."""
        model, gamma = Toy().eval(), 0.3

        def distance(x: Tensor) -> Tensor:
            return F.kl_div(model(x).log_softmax(1), model(X).softmax(1).repeat(len(x) // len(X), 1), reduction="none").sum(1).detach()

        shift = torch.randn(2000, 1, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        shift = gamma * (shift / (shift.abs().amax(2) if norm == "linf" else shift.norm(dim=2)).unsqueeze(2))
        worst = distance((X + shift).flatten(0, 1)).unflatten(0, (-1, len(X))).amax(0)
        found = []
        for seed in range(5):
            attacked = TRADESLoss(gamma=gamma, norm=norm, seed=seed).worst_inputs(model, X, Y)
            moved = attacked - X
            assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= gamma + 1e-12
            found.append(distance(attacked))
            assert (found[-1] > 1e4 * distance(start(TRADESLoss(gamma=gamma, norm=norm, seed=seed), model, X, Y))).all()
        torch.testing.assert_close(torch.stack(found).amax(0), worst, rtol=0.1, atol=0.01)

    def test_noise_goes_on_with_the_batches_and_survives_a_resume(self) -> None:
        model = Toy().eval()
        loss = TRADESLoss(gamma=0.3, steps=1)
        loss(model, X, model(X), Y)
        assert int(loss.batches) == 1
        resumed, fresh = TRADESLoss(gamma=0.3), TRADESLoss(gamma=0.3)
        resumed.load_state_dict(loss.state_dict())
        assert torch.equal(start(resumed, model, X, Y), start(loss, model, X, Y))
        assert not torch.equal(start(fresh, model, X, Y), start(loss, model, X, Y))
        loss.eval()(model, X, model(X), Y)
        assert int(loss.batches) == 1, "evaluation does not go on"

    def test_mode_of_the_model_is_put_back(self) -> None:
        model = Toy().train()
        TRADESLoss(gamma=0.3).worst_inputs(model, X, Y)
        assert model.training and model.dropout.training

    @pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"gamma": -0.1}, {"norm": "l1"}, {"steps": 0}])
    def test_refusals(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            TRADESLoss(**wrong)  # type: ignore[arg-type]

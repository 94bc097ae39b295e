import math

import pytest
import torch
from torch import Tensor

from components.losses import ALDRKLLoss, CrossEntropyLoss, LDRKLLoss
from components.losses.robust_ldr import ldr_kl

F64 = torch.float64
STEPS = torch.tensor([[0.0, -1.0, -2.0]], dtype=F64)  # the margins (0, -1, -2) of target 0
FIRST, ZERO = torch.tensor([0]), torch.tensor([0])


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestLDRKL:
    def test_at_one_without_a_margin_it_is_cross_entropy_less_a_constant(self, logits: Tensor, target: Tensor) -> None:
        loss = LDRKLLoss(1.0, margin=0.0)
        assert loss(torch.tensor([[1.0, 0.0]]), FIRST).item() == pytest.approx(-0.379885, abs=1e-6)
        ours, ce = loss(logits, target), CrossEntropyLoss()(logits, target)
        torch.testing.assert_close(ours, ce - math.log(5))
        torch.testing.assert_close(gradient(ours, logits), gradient(ce, logits))

    @pytest.mark.parametrize(("temperature", "value"), [(0.01, -0.010986), (1.0, -0.691006), (100.0, -0.996667)])
    def test_between_the_largest_and_the_mean_margin(self, temperature: float, value: float) -> None:
        assert LDRKLLoss(temperature, margin=0.0)(STEPS, FIRST).item() == pytest.approx(value, abs=1e-6)

    def test_is_the_worst_case_over_distributions(self) -> None:
        """The maximum of <p, delta> - lambda KL(p || uniform) over a grid of the simplex of three classes."""
        sides = torch.linspace(0, 1, 401, dtype=F64)
        grid = torch.cartesian_prod(sides, sides)
        grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
        grid = grid[grid[:, 2] >= 0]
        for temperature in (0.3, 1.0, 5.0):
            divergence = torch.special.xlogy(grid, 3 * grid).sum(1)
            best = (grid @ STEPS[0] - temperature * divergence).max()
            assert ldr_kl(STEPS, temperature).item() == pytest.approx(best.item(), abs=5e-4)

    def test_margin_counts_for_the_others(self) -> None:  # margins (0, -0.5, -1.5)
        expected = math.log((1 + math.exp(-0.5) + math.exp(-1.5)) / 3)
        assert LDRKLLoss(margin=0.5)(STEPS, FIRST).item() == pytest.approx(expected)

    def test_normalised_scores_have_mean_size_one(self, logits: Tensor, target: Tensor) -> None:
        for kind in ("l1", "softplus"):
            loss = LDRKLLoss(normalize=kind)
            torch.testing.assert_close(loss.class_logits(logits).abs().mean(1), torch.ones(16, dtype=F64))
            assert torch.equal(loss.class_logits(logits).argmax(1), logits.argmax(1))
        torch.testing.assert_close(LDRKLLoss(normalize="l1")(3 * logits, target), LDRKLLoss(normalize="l1")(logits, target))

    @pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"margin": -1.0}, {"normalize": "l2"}])
    def test_refusals(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            LDRKLLoss(**wrong)  # type: ignore[arg-type]


class TestALDRKL:
    def at_fixed_point(self, loss: ALDRKLLoss, scores: Tensor) -> Tensor:
        for _ in range(60):
            value: Tensor = loss(scores, FIRST, ZERO)
        return value

    def test_fixed_point(self) -> None:
        loss = ALDRKLLoss(3, temperature=1.0, alpha=2.0, margin=0.0)
        value = self.at_fixed_point(loss.double(), STEPS)
        assert loss.ratios[0].item() == pytest.approx(0.842380, abs=1e-4)  # the floor of 1e-5 under probabilities moves it
        divergence = (1 - loss.ratios[0].item()) * 2 * math.log(3)
        assert divergence == pytest.approx(0.346325, abs=2e-4)
        assert value.item() == pytest.approx(-0.670397, abs=1e-5)

    def test_fixed_point_is_the_best_temperature(self) -> None:
        loss = ALDRKLLoss(3, margin=0.0)
        value = self.at_fixed_point(loss.double(), STEPS)
        temperatures = torch.linspace(0.4, 1.2, 4001, dtype=F64)
        objective = torch.stack([ldr_kl(STEPS, t)[0] for t in temperatures]) - math.log(3) * (temperatures - 1) ** 2
        assert value.item() == pytest.approx(objective.max().item(), abs=1e-6)

    def test_equal_scores_keep_the_temperature(self) -> None:
        loss = ALDRKLLoss(1, temperature=0.7, margin=0.1)
        equal = torch.full((1, 4), 3.0)
        torch.testing.assert_close(loss(equal, FIRST, ZERO), LDRKLLoss(0.7, margin=0.1)(equal, FIRST))
        assert loss.ratios.item() == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.parametrize(("classes", "gap"), [(3, 2e-4), (100, 1.5e-3)])
    def test_certain_scores_reach_the_lowest_temperature(self, classes: int, gap: float) -> None:
        loss = ALDRKLLoss(1, temperature=1.0, alpha=2.0)
        loss(torch.cat([torch.tensor([[1e4]]), torch.zeros(1, classes - 1)], 1), FIRST, ZERO)
        assert 0.5 <= loss.ratios.item() <= 0.5 + gap

    def test_temperatures_are_the_samples_own(self, logits: Tensor, target: Tensor) -> None:
        loss = ALDRKLLoss(100)
        index = torch.arange(16) * 3
        loss(logits, target, index)
        seen = torch.zeros(100, dtype=torch.bool).index_fill(0, index, True)
        assert (loss.ratios[seen] < 1).all() and (loss.ratios[~seen] == 1).all()
        assert len(loss.ratios[seen].unique()) > 10

    def test_gradient_holds_temperatures_fixed(self, logits: Tensor, target: Tensor) -> None:
        loss = ALDRKLLoss(16, reduction="sum").double()
        of_logits = gradient(loss(logits, target, torch.arange(16)), logits)
        expected = torch.stack([gradient(LDRKLLoss(r.item())(logits[i : i + 1], target[i : i + 1]), logits)[i] for i, r in enumerate(loss.ratios)])
        torch.testing.assert_close(of_logits, expected)

    def test_evaluation_remembers_nothing(self, logits: Tensor, target: Tensor) -> None:
        loss = ALDRKLLoss(16)
        first = loss(logits, target, torch.arange(16))
        kept = loss.ratios.clone()
        loss.eval()
        far = torch.arange(16) + 1000  # positions in another split
        torch.testing.assert_close(loss(logits, target, far), first)
        assert torch.equal(loss.ratios, kept)

    def test_pixels_share_their_samples_temperature(self) -> None:
        dense = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
        target = torch.zeros(2, 4, dtype=torch.long)
        target[1, 2:] = -100
        loss, other = ALDRKLLoss(2).double(), ALDRKLLoss(2).double()
        values = loss(dense, target, torch.arange(2))
        dense[1, :, 2:] = 50.0  # what is ignored does not matter
        torch.testing.assert_close(other(dense, target, torch.arange(2)), values)
        assert torch.equal(loss.ratios, other.ratios)

    @pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"temperature": 0.0}, {"alpha": 0.5}])
    def test_refusals(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            ALDRKLLoss(**{"num_samples": 3, **wrong})  # type: ignore[arg-type]

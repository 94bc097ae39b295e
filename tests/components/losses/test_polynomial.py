import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CrossEntropyLoss, FocalLoss, Poly1Loss, PolyNLoss
from components.losses.polynomial import power_series

F64 = torch.float64
HALF = torch.zeros(1, 2, dtype=F64)  # p = 1/2
FIRST = torch.tensor([0])


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestPolyN:
    @pytest.mark.parametrize(("epsilons", "value"), [([], 0.693147), ([1.0], 1.193147), ([-1.0], 0.193147), ([1.0, 2.0, -1 / 3], 1.693147 - 1 / 24)])
    def test_worked_values(self, epsilons: list[float], value: float) -> None:
        assert PolyNLoss(epsilons)(HALF, FIRST).item() == pytest.approx(value, abs=1e-6)

    def test_worked_value_on_focal_loss(self) -> None:  # ln 2 / 4 + 1/8
        assert PolyNLoss([1.0], gamma=2.0)(HALF, FIRST).item() == pytest.approx(0.298287, abs=1e-6)

    def test_without_shifts_it_is_the_base_loss(self, logits: Tensor, target: Tensor) -> None:
        weight = [0.5, 2.0, 1.0, 3.0, 0.25]
        for gamma, base in ((0.0, CrossEntropyLoss(weight=weight)), (2.0, FocalLoss(2.0, weight=weight)), (0.5, FocalLoss(0.5, weight=weight))):
            ours = PolyNLoss([0.0], gamma=gamma, weight=weight)(logits, target)
            torch.testing.assert_close(ours, base(logits, target))
            torch.testing.assert_close(gradient(ours, logits), gradient(base(logits, target), logits))

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_one_shift_is_poly1(self, logits: Tensor, target: Tensor, smoothing: float) -> None:
        ours = PolyNLoss([1.7], label_smoothing=smoothing)(logits, target)
        torch.testing.assert_close(ours, Poly1Loss(1.7, label_smoothing=smoothing)(logits, target))

    def test_slope_by_the_probability(self) -> None:  # of Poly-1: -1/p - epsilon; with epsilon = -1 it vanishes towards p = 1
        for epsilon in (1.0, -1.0):
            for probability in (0.2, 0.5, 0.999):
                p = torch.tensor(probability, dtype=F64, requires_grad=True)
                logits = torch.stack([p.log(), (1 - p).log()]).unsqueeze(0)
                assert gradient(PolyNLoss([epsilon])(logits, FIRST), p).item() == pytest.approx(-1 / probability - epsilon)

    def test_the_whole_series_is_cross_entropy(self) -> None:
        x = torch.tensor(0.5, dtype=F64)
        assert power_series(x, [1 / j for j in range(1, 201)]).item() == pytest.approx(math.log(2), abs=1e-12)
        assert PolyNLoss([], terms=200)(HALF, FIRST).item() == pytest.approx(math.log(2), abs=1e-12)
        assert PolyNLoss([], terms=2)(HALF, FIRST).item() == pytest.approx(1 / 2 + 1 / 8)

    def test_certain_and_hopeless_distributions_equal_class_indices(self, logits: Tensor, target: Tensor) -> None:
        for options in ({}, {"gamma": 1.5}, {"label_smoothing": 0.1, "weight": [0.5, 2.0, 1.0, 3.0, 0.25]}):
            loss = PolyNLoss([1.0, -0.5], **options)  # type: ignore[arg-type]
            hard, soft = loss(logits, target), loss(logits, F.one_hot(target, 5).double())
            torch.testing.assert_close(soft, hard)
            torch.testing.assert_close(gradient(soft, logits), gradient(hard, logits))

    def test_soft_labels_by_the_formula(self, logits: Tensor) -> None:
        q = torch.rand(16, 5, dtype=F64, generator=torch.Generator().manual_seed(2))
        q = q / q.sum(1, keepdim=True)
        p = logits.softmax(1)
        expected = -(q * p.log()).sum(1) + 2 * (1 - (q * p).sum(1))
        torch.testing.assert_close(PolyNLoss([2.0], reduction="none")(logits, q), expected)
        torch.testing.assert_close(PolyNLoss([0.0])(logits, q), F.cross_entropy(logits, q))

    def test_distributions_may_be_missing(self, logits: Tensor, target: Tensor) -> None:
        q = F.one_hot(target, 5).double()
        q[3:6] = math.nan
        kept = [0, 1, 2, *range(6, 16)]
        value = PolyNLoss([1.0])(logits, q)
        torch.testing.assert_close(value, PolyNLoss([1.0])(logits[kept], q[kept]))
        assert (gradient(value, logits)[3:6] == 0).all()

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match=r"epsilons must be >= -1/j .* the 2. >= -0.5, but got -0.6"):
            PolyNLoss([0.0, -0.6])
        with pytest.raises(ValueError, match="gamma must be >= 0"):
            PolyNLoss(gamma=-1.0)
        with pytest.raises(ValueError, match="terms must be >= 1"):
            PolyNLoss(terms=0)
        with pytest.raises(ValueError, match="target must have the shape of logits"):
            PolyNLoss()(torch.zeros(3, 2), torch.zeros(3))
        with pytest.raises(ValueError, match="target must hold probabilities"):
            PolyNLoss()(torch.zeros(1, 2), torch.tensor([[1.5, -0.5]]))

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import CrossEntropyLoss, MSELoss, RescaledSquareLoss, SquentropyLoss

F64 = torch.float64


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestSquentropy:
    def test_worked_values(self) -> None:  # 0.407606 + (0 + 1) / 2
        assert SquentropyLoss()(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])).item() == pytest.approx(0.907606, abs=1e-6)
        assert SquentropyLoss()(torch.zeros(1, 7), torch.tensor([3])).item() == pytest.approx(math.log(7))

    def test_gradient_by_its_formula(self, logits: Tensor, target: Tensor) -> None:
        is_target = F.one_hot(target, 5)
        z = logits.detach()
        expected = z.softmax(1) - is_target + 2 * z / 4 * (1 - is_target)
        torch.testing.assert_close(gradient(SquentropyLoss(reduction="sum")(logits, target), logits), expected)

    def test_without_the_square_it_is_cross_entropy_and_with_it_a_shift_matters(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(SquentropyLoss(0.0)(logits, target), CrossEntropyLoss()(logits, target))
        assert not torch.isclose(SquentropyLoss()(logits + 1, target), SquentropyLoss()(logits, target))

    @pytest.mark.parametrize("lead", [5.0, 8.0, 12.0])
    def test_wrong_scores_settle_just_below_zero(self, lead: float) -> None:  # softmax = -2 z / (C - 1) there
        wrong = torch.zeros(4, dtype=F64, requires_grad=True)
        for _ in range(200):
            loss = SquentropyLoss()(torch.cat([torch.tensor([lead], dtype=F64), wrong]).unsqueeze(0), torch.tensor([0]))
            wrong = (wrong - gradient(loss, wrong)).detach().requires_grad_()
        assert (wrong < 0).all() and (wrong > -2 * math.exp(-lead)).all()

    def test_a_large_target_score_does_not_cancel_the_square(self) -> None:
        loss = SquentropyLoss()(torch.tensor([[1e4, 0.1, 0.1]]), torch.tensor([0]))
        assert loss.item() == pytest.approx(0.01, rel=1e-5)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="square_weight must be >= 0"):
            SquentropyLoss(-1.0)
        with pytest.raises(ValueError, match="logits must have two classes or more"):
            SquentropyLoss()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


class TestRescaledSquare:
    def test_worked_value(self) -> None:  # (15 · (2 - 30)² + 1 + 4) / 3
        loss = RescaledSquareLoss(15.0, 30.0)(torch.tensor([[2.0, 1.0, -2.0]]), torch.tensor([0]))
        assert loss.item() == pytest.approx((15 * 28**2 + 5) / 3)

    def test_plain_it_is_the_mean_squared_error_of_the_one_hot_target(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(RescaledSquareLoss()(logits, target), MSELoss()(logits, F.one_hot(target, 5).double()))

    @pytest.mark.parametrize("wrong", ["k", "m"])
    def test_refusals(self, wrong: str) -> None:
        with pytest.raises(ValueError, match=f"{wrong} must be > 0"):
            RescaledSquareLoss(**{wrong: 0.0})

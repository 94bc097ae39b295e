import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import DecoupledSoftmaxLoss, ListwiseSoftmaxLoss, SoftTopKLoss, soft_top_k


def tensor(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestDecoupledSoftmax:
    def test_one_positive_is_cross_entropy(self, scores: Tensor) -> None:
        target = torch.tensor([0, 8, 3, 3, 1])
        torch.testing.assert_close(DecoupledSoftmaxLoss()(scores, F.one_hot(target, 9).double()), F.cross_entropy(scores, target))

    def test_worked_values(self) -> None:
        logits, target = tensor([2.0, 1.0, 0.0]), tensor([1.0, 1.0, 0.0])
        assert DecoupledSoftmaxLoss()(logits, target).item() == pytest.approx(0.220095, abs=1e-6)
        assert DecoupledSoftmaxLoss()(logits[:, [0, 2]], tensor([1.0, 0.0])).item() == pytest.approx(0.126928, abs=1e-6)
        assert DecoupledSoftmaxLoss()(logits[:, [1, 2]], tensor([1.0, 0.0])).item() == pytest.approx(0.313262, abs=1e-6)
        assert ListwiseSoftmaxLoss("sum")(logits, target).item() == pytest.approx(0.407606 + 1.407606, abs=1e-5)

    def test_another_large_positive_changes_no_other_positives_loss(self) -> None:
        before = DecoupledSoftmaxLoss()(tensor([2.0, 1.0, 0.0]), tensor([1.0, 1.0, 0.0])) * 2
        after = DecoupledSoftmaxLoss()(tensor([2.0, 1.0, 0.0, 500.0]), tensor([1.0, 1.0, 0.0, 1.0])) * 3
        torch.testing.assert_close(after, before)
        assert ListwiseSoftmaxLoss("sum")(tensor([2.0, 1.0, 0.0, 500.0]), tensor([1.0, 1.0, 0.0, 1.0])) > 900

    def test_relevances_weigh_positives(self) -> None:
        half = DecoupledSoftmaxLoss()(tensor([2.0, 1.0, 0.0]), tensor([1.0, 0.5, 0.0]))
        assert half.item() == pytest.approx((0.126928 + 0.5 * 0.313262) / 2, abs=1e-6)

    def test_no_positives_or_no_negatives_cost_nothing(self, scores: Tensor) -> None:
        for target in (torch.zeros_like(scores), torch.ones_like(scores)):
            assert DecoupledSoftmaxLoss()(scores, target) == 0


class TestSoftTopK:
    def test_worked_values(self) -> None:
        y = soft_top_k(tensor([1.0, 0.0, -1.0]), 1, 2.0)
        assert y[0].tolist() == pytest.approx([0.709148, 0.248104, 0.042748], abs=1e-6)
        t = torch.logit(y[0, 1]) / 2
        assert t.item() == pytest.approx(-0.554375, abs=1e-6)
        loss = SoftTopKLoss(1, 2.0)(tensor([1.0, 0.0, -1.0]), tensor([1.0, 0.0, 0.0]))
        assert loss.item() == pytest.approx(0.343691, abs=1e-6)

    @pytest.mark.parametrize("alpha", [0.1, 2.0, 100.0])
    @pytest.mark.parametrize("k", [1, 4, 8])
    def test_adds_up_to_k_and_ignores_a_shift(self, scores: Tensor, alpha: float, k: int) -> None:
        y = soft_top_k(scores, k, alpha)
        torch.testing.assert_close(y.sum(1), torch.full((5,), float(k), dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(soft_top_k(scores + 37.0, k, alpha), y)

    def test_sharp_is_the_hard_top_k(self, scores: Tensor) -> None:
        hard = torch.zeros_like(scores).scatter(1, scores.topk(3, 1).indices, 1.0)
        torch.testing.assert_close(soft_top_k(scores, 3, 1e5), hard)

    def test_many_nearly_equal_scores(self) -> None:
        """The authors' bracket of ±10/alpha has no solution within it here."""
        scores = 1e-3 * torch.rand(2, 30_000, generator=torch.Generator().manual_seed(1))
        assert soft_top_k(scores, 1, 2.0).sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-3)

    def test_gradient_is_the_implicit_one(self, scores: Tensor) -> None:
        """∂ log y_i / ∂ s_j = alpha (1 - y_i) (δ_ij - v_j / Σ v), which adds up to 0 over j."""
        s = scores[:1].requires_grad_()
        alpha, y = 2.0, soft_top_k(s, 3, 2.0)
        v = (y * (1 - y))[0].detach()
        for i in range(9):
            (gradient,) = torch.autograd.grad(y[0, i].log(), s, retain_graph=True)
            delta = torch.zeros(9, dtype=torch.float64)
            delta[i] = 1.0
            torch.testing.assert_close(gradient[0], alpha * (1 - y[0, i].detach()) * (delta - v / v.sum()))
            assert abs(float(gradient.sum())) < 1e-12

    def test_gradient_agrees_with_differences_of_the_bisection(self, scores: Tensor) -> None:
        s = scores[:2].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: soft_top_k(x, 3, 2.0), s)
        assert torch.autograd.gradgradcheck(lambda x: soft_top_k(x, 3, 2.0), s)

    def test_a_positive_far_below_still_has_a_gradient(self) -> None:
        """All of v underflows in float32, and the threshold still moves with the scores next to it."""
        logits = torch.tensor([[500.0, 500.0, -500.0, -500.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(SoftTopKLoss(2, 2.0)(logits, torch.tensor([[0.0, 0.0, 1.0, 0.0]])), logits)
        torch.testing.assert_close(gradient, torch.tensor([[0.5, 0.5, -1.5, 0.5]]))

    def test_as_many_as_there_are_positives(self) -> None:
        logits, target = tensor([1.0, 0.0, -1.0], [1.0, 0.0, -1.0]), tensor([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
        each = SoftTopKLoss(None, reduction="none")(logits, target)
        torch.testing.assert_close(each[:1], SoftTopKLoss(1, reduction="none")(logits[:1], target[:1]))
        torch.testing.assert_close(each[1:], SoftTopKLoss(2, reduction="none")(logits[1:], target[1:]))

    def test_one_label_alone_costs_nothing(self) -> None:
        logits = torch.randn(3, 1, requires_grad=True)
        loss = SoftTopKLoss()(logits, torch.ones(3, 1))
        assert loss == 0 and bool((torch.autograd.grad(loss, logits)[0] == 0).all())

    @pytest.mark.parametrize("wrong", [{"k": 0}, {"alpha": 0.0}])
    def test_wrong_arguments(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            SoftTopKLoss(**wrong)
        with pytest.raises(ValueError, match="k must be in 1 … 2"):
            soft_top_k(torch.zeros(1, 3), 3)

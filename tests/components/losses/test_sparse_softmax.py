import math

import entmax
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import MultilabelSparsemaxLoss, Sparsemax, SparsemaxLoss, sparsemax

F64 = torch.float64


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def scores(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64, requires_grad=True)


class TestSparsemax:
    def test_worked_values(self) -> None:
        torch.testing.assert_close(sparsemax(scores(0.5, 0.0)), scores(0.75, 0.25))
        torch.testing.assert_close(sparsemax(scores(1.0, 0.0)), scores(1.0, 0.0))
        torch.testing.assert_close(sparsemax(scores(0.0, 0.0, 0.0)), torch.full((1, 3), 1 / 3, dtype=F64))

    def test_is_the_projection_onto_the_simplex(self, logits: Tensor) -> None:
        for z in logits.detach()[:4]:
            start, point = torch.full((5,), 0.2, dtype=F64).numpy(), z.numpy()
            found = scipy.optimize.minimize(
                lambda p, point=point: ((p - point) ** 2).sum(), start, bounds=[(0, 1)] * 5, constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, tol=1e-14
            )
            torch.testing.assert_close(sparsemax(z), torch.tensor(found.x), atol=1e-6, rtol=0)

    def test_small_scores_are_nearly_uniform_and_a_shift_changes_nothing(self, logits: Tensor) -> None:
        torch.testing.assert_close(sparsemax(1e-9 * logits), torch.full((16, 5), 0.2, dtype=F64), atol=1e-8, rtol=0)
        torch.testing.assert_close(sparsemax(logits + 100), sparsemax(logits))
        torch.testing.assert_close(sparsemax(logits).sum(1), torch.ones(16, dtype=F64))

    @pytest.mark.parametrize("dim", [0, 1, -1])
    def test_agrees_with_entmax(self, logits: Tensor, dim: int) -> None:
        ours, theirs = sparsemax(logits, dim), entmax.sparsemax(logits, dim)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        mix = torch.randn(16, 5, dtype=F64, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(gradient((mix * ours).sum(), logits), gradient((mix * theirs).sum(), logits), rtol=1e-9, atol=1e-12)

    def test_jacobian(self) -> None:  # diag(s) - s s^T / |S|
        jacobian = torch.autograd.functional.jacobian(sparsemax, torch.tensor([0.5, 0.2, -3.0], dtype=F64))
        torch.testing.assert_close(jacobian, torch.tensor([[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]], dtype=F64))

    def test_layer_in_the_place_of_softmax(self, logits: Tensor) -> None:
        attention = nn.Sequential(Sparsemax(dim=1))(logits.unsqueeze(-1).expand(-1, -1, 3))
        torch.testing.assert_close(attention[..., 1], sparsemax(logits))
        assert repr(Sparsemax(1)) == "Sparsemax(dim=1)"


class TestSparsemaxLoss:
    def test_worked_values(self) -> None:
        for z, value in ((scores(0.5, 0.0), 0.0625), (scores(1.0, 0.0), 0.0), (scores(-2.0, 0.0), 2.0)):
            assert SparsemaxLoss()(z, torch.tensor([0])).item() == pytest.approx(value, abs=1e-12)

    @pytest.mark.parametrize("lead", [-3.0, -1.0, -0.4, 0.3, 1.0, 2.0])
    def test_two_classes_are_a_huber_loss_of_the_margin(self, lead: float) -> None:
        expected = 0.0 if lead >= 1 else -lead if lead <= -1 else (lead - 1) ** 2 / 4
        assert SparsemaxLoss()(scores(lead, 0.0), torch.tensor([0])).item() == pytest.approx(expected)

    def test_closed_form_and_gradient(self, logits: Tensor, target: Tensor) -> None:
        p = sparsemax(logits).detach()
        z = logits.detach()
        tau = torch.where(p > 0, z - p, -torch.inf).amax(1, keepdim=True)
        expected = -z[range(16), target] + ((z**2 - tau**2) * (p > 0)).sum(1) / 2 + 0.5
        values = SparsemaxLoss(reduction="none")(logits, target)
        torch.testing.assert_close(values, expected)
        assert (values >= 0).all()
        torch.testing.assert_close(gradient(values.sum(), logits), p - F.one_hot(target, 5))

    def test_agrees_with_entmax(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(SparsemaxLoss(reduction="sum")(logits, target), entmax.SparsemaxLoss(reduction="sum")(logits, target))

    @pytest.mark.parametrize(("lead", "zero"), [(1.0, True), (0.999, False)])
    def test_zero_once_the_target_leads_by_one(self, lead: float, zero: bool) -> None:
        assert (SparsemaxLoss()(scores(0.3, 0.3 + lead, -1.0), torch.tensor([1])).item() < 1e-15) == zero

    def test_class_logits_give_sparse_probabilities_to_softmax(self, logits: Tensor) -> None:
        torch.testing.assert_close(SparsemaxLoss().class_logits(logits).softmax(1), sparsemax(logits), atol=1e-12, rtol=0)


class TestMultilabel:
    def test_a_perfect_prediction_costs_nothing(self) -> None:  # p = q = (1/2, 1/2, 0)
        loss = MultilabelSparsemaxLoss()(scores(2.0, 2.0, 1.0), torch.tensor([[1.0, 1.0, 0.0]]))
        assert loss.item() == pytest.approx(0.0, abs=1e-12)

    def test_one_label_is_the_single_label_loss(self, logits: Tensor, target: Tensor) -> None:
        one_hot = F.one_hot(target, 5).double()
        torch.testing.assert_close(MultilabelSparsemaxLoss()(logits, one_hot), SparsemaxLoss()(logits, target))

    def test_gradient_is_what_is_predicted_less_the_shares(self, logits: Tensor) -> None:
        labels = (torch.rand(16, 5, generator=torch.Generator().manual_seed(4)) > 0.5).double()
        labels[:, 0] = 1
        value = MultilabelSparsemaxLoss(reduction="sum")(logits, labels)
        torch.testing.assert_close(gradient(value, logits), (sparsemax(logits) - labels / labels.sum(1, keepdim=True)).detach())

    def test_unknown_labels_are_left_out(self, logits: Tensor) -> None:
        labels = torch.tensor([[1.0, math.nan, 0.0, 1.0, -100.0]]).expand(16, 5)
        value = MultilabelSparsemaxLoss()(logits, labels)
        torch.testing.assert_close(value, MultilabelSparsemaxLoss()(logits[:, [0, 2, 3]], labels[:, [0, 2, 3]]))
        assert (gradient(value, logits)[:, [1, 4]] == 0).all()

    def test_no_label_at_all_costs_nothing(self, logits: Tensor) -> None:
        value = MultilabelSparsemaxLoss(reduction="none")(logits, torch.zeros(16, 5))
        assert (value == 0).all() and (gradient(value.sum(), logits) == 0).all()

    def test_labels_above_the_threshold_have_positive_scores(self, logits: Tensor) -> None:
        predicted = MultilabelSparsemaxLoss(0.2).class_logits(logits) > 0
        assert torch.equal(predicted, sparsemax(logits) > 0.2)

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\)"):
            MultilabelSparsemaxLoss(1.0)
        with pytest.raises(ValueError, match=r"target_multi_hot must hold values in \[0, 1\]"):
            MultilabelSparsemaxLoss()(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]))

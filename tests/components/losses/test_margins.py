import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import BCEWithLogitsLoss, CrossEntropyLoss, FocalLoss, HingeLoss, KLDivergenceLoss, MultiClassHingeLoss, Poly1Loss


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (16,), generator=torch.Generator().manual_seed(1))


class TestHinge:
    def test_worked_values(self) -> None:
        scores, labels = torch.tensor([[0.3], [0.3], [2.0], [-2.0]]), torch.tensor([[1.0], [0.0], [1.0], [1.0]])
        torch.testing.assert_close(HingeLoss(reduction="none")(scores, labels), torch.tensor([[0.7], [1.3], [0.0], [3.0]]))
        torch.testing.assert_close(HingeLoss(squared=True, reduction="none")(scores, labels), torch.tensor([[0.49], [1.69], [0.0], [9.0]]))

    @pytest.mark.parametrize("squared", [False, True])
    def test_is_scikit_learns_svm_objective(self, logits: Tensor, squared: bool) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        labels = (logits[:, :1] > 0.5).double()
        value = HingeLoss(squared=squared)(logits[:, 1:2], labels)
        squares = (1 - (2 * labels - 1) * logits[:, 1:2]).clamp(min=0).square().mean()
        own = squares if squared else metrics.hinge_loss(labels[:, 0].numpy(), logits[:, 1].numpy())
        assert value.item() == pytest.approx(float(own), abs=1e-12)

    def test_soft_label_is_the_mean_of_both(self, logits: Tensor) -> None:
        ones = torch.ones_like(logits)
        loss = HingeLoss(margin=0.4)
        torch.testing.assert_close(loss(logits, 0.3 * ones), 0.3 * loss(logits, ones) + 0.7 * loss(logits, 0 * ones))

    def test_margin_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="margin must be > 0, but got 0"):
            HingeLoss(margin=0.0)


class TestMultiClassHinge:
    def test_worked_values(self) -> None:  # target 0: the others' distances are 1 + 1 - 2 = 0 and 1 + 1.5 - 2 = 0.5
        logits, target = torch.tensor([[2.0, 1.0, 1.5]]), torch.tensor([0])
        assert MultiClassHingeLoss()(logits, target).item() == pytest.approx(0.5)
        assert MultiClassHingeLoss(margin=1.5)(logits, target).item() == pytest.approx(1.5)
        assert MultiClassHingeLoss(margin=1.5, over="max")(logits, target).item() == pytest.approx(1.0)

    @pytest.mark.parametrize("squared", [False, True])
    def test_mean_is_torchs_multi_margin_loss(self, logits: Tensor, target: Tensor, squared: bool) -> None:
        expected = F.multi_margin_loss(logits, target, p=2 if squared else 1, margin=0.7)
        torch.testing.assert_close(MultiClassHingeLoss(over="mean", margin=0.7, squared=squared)(logits, target), expected, rtol=1e-12, atol=1e-12)

    def test_torch_divides_by_the_number_of_classes(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(MultiClassHingeLoss()(logits, target), 5 * F.multi_margin_loss(logits, target))

    def test_max_is_scikit_learns(self, logits: Tensor, target: Tensor) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        expected = metrics.hinge_loss(target.numpy(), logits.numpy(), labels=list(range(5)))
        assert MultiClassHingeLoss(over="max")(logits, target).item() == pytest.approx(expected, abs=1e-12)

    def test_wrong_choice_is_named(self) -> None:
        with pytest.raises(ValueError, match="over must be one of sum, mean, max, but got 'maximum'"):
            MultiClassHingeLoss(over="maximum")


class TestKLDivergence:
    def test_one_class_a_sample_is_cross_entropy(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(KLDivergenceLoss()(logits, F.one_hot(target, 5).double()), F.cross_entropy(logits, target))

    def test_is_torchs(self, logits: Tensor) -> None:
        votes = torch.rand(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        expected = F.kl_div(logits.log_softmax(1), votes / votes.sum(1, keepdim=True), reduction="batchmean")
        torch.testing.assert_close(KLDivergenceLoss()(logits, votes), expected)

    def test_is_zero_where_the_labels_share_equally(self) -> None:
        logits = torch.tensor([[3.0, 3.0, -1e4]])
        assert KLDivergenceLoss()(logits, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-6)

    def test_unknown_class_is_left_out_of_the_softmax(self, logits: Tensor) -> None:
        labels = torch.tensor([[1.0, 0.0, torch.nan, 1.0, 0.0]], dtype=torch.float64)
        without = [0, 1, 3, 4]
        torch.testing.assert_close(KLDivergenceLoss()(logits[:1], labels), KLDivergenceLoss()(logits[:1, without], labels[:, without]))


class TestSurvey:
    """What the survey (Terven et al., 2023) says of the standard losses of classification."""

    def test_closed_numbers(self) -> None:
        half = torch.zeros(1, 2)  # p = 1/2
        assert BCEWithLogitsLoss()(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(0.693147, abs=1e-6)
        assert 0.25 * FocalLoss(gamma=2.0)(half, torch.tensor([0])).item() == pytest.approx(0.0433217, abs=1e-7)

    def test_special_cases_are_cross_entropy(self, logits: Tensor, target: Tensor) -> None:
        expected = F.cross_entropy(logits, target)
        for loss in (CrossEntropyLoss(), FocalLoss(gamma=0.0), Poly1Loss(epsilon=0.0)):
            torch.testing.assert_close(loss(logits, target), expected)

    def test_weighted_cross_entropy_and_label_smoothing_are_torchs(self, logits: Tensor, target: Tensor) -> None:
        weight = [0.5, 2.0, 1.0, 3.0, 0.25]
        expected = F.cross_entropy(logits, target, torch.tensor(weight, dtype=torch.float64), label_smoothing=0.1)
        torch.testing.assert_close(CrossEntropyLoss(weight=weight, label_smoothing=0.1)(logits, target), expected)

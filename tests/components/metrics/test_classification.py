from __future__ import annotations

import pytest
import torch
import torchmetrics.classification as tm
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from components.metrics import (
    Agreement,
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    CalibrationError,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)


def binary(size: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    target = (torch.rand(size, 1, generator=g) > 0.4).float()
    return target + torch.randn(size, 1, generator=g) - 0.5, target


def multilabel(size: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    target = (torch.rand(size, 3, generator=g) > 0.6).float()
    return target + torch.randn(size, 3, generator=g) - 0.5, target


class TestAgainstScikitLearn:
    def test_binary(self):
        logits, target = binary()
        predicted = (logits > 0).int()
        for metric, expected in (
            (BinaryAccuracy(), accuracy_score(target, predicted)),
            (BinaryF1Score(), f1_score(target, predicted)),
            (BinaryAUROC(), roc_auc_score(target, logits)),
        ):
            metric.update(logits, target)
            assert metric.compute().item() == pytest.approx(expected, abs=1e-6)

    def test_multilabel(self):
        logits, target = multilabel()
        predicted = (logits > 0).int()
        for metric, expected in (
            (MultilabelAccuracy(3, average="micro"), (predicted == target).double().mean().item()),
            (MultilabelF1Score(3), f1_score(target, predicted, average="macro")),
            (MultilabelAveragePrecision(3), average_precision_score(target, logits, average="macro")),
        ):
            metric.update(logits, target)
            assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


class TestLogitsAreNeverTakenForProbabilities:
    """All logits of the batch in [0, 1]: torchmetrics' own would threshold them at 0.5 as they are."""

    logits = torch.tensor([[0.2], [0.3], [0.4], [0.9]])
    target = torch.tensor([[1.0], [1.0], [1.0], [1.0]])

    def test_binary(self):
        ours, theirs = BinaryAccuracy(), tm.BinaryAccuracy()
        ours.update(self.logits, self.target)
        theirs.update(self.logits, self.target.long())
        assert ours.compute() == 1.0
        assert theirs.compute() == 0.25

    def test_batches_share_one_scale(self):
        """AUROC over batches of which only one leaves [0, 1]."""
        metric = BinaryAUROC()
        logits, target = torch.tensor([[0.9], [0.1], [3.0], [-3.0]]), torch.tensor([[0.0], [0.0], [1.0], [0.0]])
        metric.update(logits[:2], target[:2])
        metric.update(logits[2:], target[2:])
        assert metric.compute() == 1.0

    def test_calibration(self):
        logits = torch.tensor([[0.2, 0.9], [0.4, 0.1]])
        metric = CalibrationError(n_bins=10)
        metric.update(logits, torch.tensor([1, 0]))
        confidence = logits.softmax(1).max(1).values  # 0.668 and 0.574: two bins
        assert metric.compute().item() == pytest.approx((1 - confidence).mean().item(), abs=1e-6)


class TestCalibrationError:
    @pytest.mark.parametrize("n_bins", [1, 7, 15])
    def test_is_torchmetrics_on_probabilities(self, n_bins):
        g = torch.Generator().manual_seed(0)
        logits, target = 3 * torch.randn(500, 5, generator=g), torch.randint(5, (500,), generator=g)
        ours, theirs = CalibrationError(n_bins), tm.MulticlassCalibrationError(5, n_bins=n_bins)
        ours.update(logits, target)
        theirs.update(logits.softmax(1), target)
        assert ours.compute().item() == pytest.approx(theirs.compute().item(), abs=1e-6)

    def test_worked_value(self):
        """Four sure answers (confidence 1), of which three are right: 1 - 3/4."""
        metric = CalibrationError()
        metric.update(torch.tensor([[200.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        assert metric.compute().item() == pytest.approx(0.25)

    def test_uniform_is_calibrated_by_chance(self):
        metric = CalibrationError()
        metric.update(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        assert metric.compute().item() == 0.0

    def test_memory_does_not_grow(self):
        metric = CalibrationError()
        for _ in range(3):
            metric.update(torch.randn(50, 4), torch.zeros(50, dtype=torch.long))
        assert metric.sums.shape == (3, 15) and metric.sums[0].sum() == 150

    def test_bins(self):
        with pytest.raises(ValueError, match="n_bins must be >= 1"):
            CalibrationError(0)


class TestAgreement:
    def test_worked_value(self):
        metric = Agreement()
        student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
        metric.update(student, torch.tensor([[5.0, 0.0], [9.0, 1.0], [0.1, 0.0]]))
        assert metric.compute().item() == pytest.approx(2 / 3)

    def test_pixels(self):
        metric, logits = Agreement(), torch.randn(2, 3, 4, 4)
        metric.update(logits, 2 * logits + 1)
        assert metric.compute() == 1.0

import pytest
import torch
from torch import Tensor

from components.metrics import (
    BrierScore,
    ConfidenceAUROC,
    Coverage,
    CoverageAtPrecision,
    KSCalibrationError,
    PrecisionCoverageArea,
    RejectionCost,
    SelectivePrecision,
)

SCORES = torch.tensor([[3.0], [2.0], [1.0], [-1.0], [-2.0]])
RIGHT = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0]])


def value(metric: object, preds: Tensor, target: Tensor) -> float:
    metric.update(preds, target)  # type: ignore[attr-defined]
    return float(metric.compute())  # type: ignore[attr-defined]


def logits_of(*probabilities: float) -> Tensor:
    p = torch.tensor(probabilities)
    return torch.stack([p, 1 - p], 1).log()


class TestCalibration:
    def test_brier_score(self) -> None:  # 2 · 0.1² and 2 · 0.6²
        assert value(BrierScore(), logits_of(0.9, 0.6), torch.tensor([0, 1])) == pytest.approx((0.02 + 0.72) / 2)
        assert value(BrierScore(), logits_of(0.9, 0.6), torch.tensor([0, -100])) == pytest.approx(0.02, abs=1e-6)

    def test_brier_score_is_scikit_learns(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        logits, target = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
        expected = 2 * metrics.brier_score_loss(target.numpy(), logits.softmax(1)[:, 1].numpy())
        assert value(BrierScore(), logits, target) == pytest.approx(expected, abs=1e-6)

    def test_ks_error(self) -> None:  # sorted: 0.6 wrong, 0.8 right, 0.9 right: drift 0.6, 0.4, 0.3
        assert value(KSCalibrationError(), logits_of(0.9, 0.6, 0.8), torch.tensor([0, 1, 0])) == pytest.approx(0.2, abs=1e-6)

    def test_ks_error_takes_equal_confidences_together(self) -> None:
        """As sure on both, right on one: neither order of the two may be seen."""
        assert value(KSCalibrationError(), torch.zeros(2, 2), torch.tensor([0, 1])) == pytest.approx(0.0, abs=1e-6)

    def test_confidence_auroc(self) -> None:  # right at 0.9 and 0.6, wrong at 0.7: one of two pairs in order
        assert value(ConfidenceAUROC(), logits_of(0.9, 0.6, 0.7), torch.tensor([0, 0, 1])) == pytest.approx(0.5)
        assert value(ConfidenceAUROC(), logits_of(0.9, 0.8, 0.7), torch.tensor([0, 0, 1])) == pytest.approx(1.0)


class TestSelective:
    def test_at_the_threshold(self) -> None:
        assert value(Coverage(), SCORES, RIGHT) == pytest.approx(3 / 5)
        assert value(SelectivePrecision(), SCORES, RIGHT) == pytest.approx(2 / 3)
        assert value(RejectionCost(0.1), SCORES, RIGHT) == pytest.approx((1 + 2 * 0.1) / 5)
        assert value(SelectivePrecision(), -SCORES.abs(), RIGHT) == 1

    def test_area_under_precision_coverage(self) -> None:  # precision 1, 1, 2/3, 3/4, 3/5 at coverage 1/5 … 1
        expected = (1 + 1 + (1 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2 + (3 / 4 + 3 / 5) / 2) / 5
        assert value(PrecisionCoverageArea(), SCORES, RIGHT) == pytest.approx(expected, abs=1e-6)

    def test_coverage_at_precision(self) -> None:
        for precision, coverage in ((1.0, 2 / 5), (0.75, 4 / 5), (0.6, 1.0)):
            assert value(CoverageAtPrecision(precision), SCORES, RIGHT) == pytest.approx(coverage)
        assert value(CoverageAtPrecision(0.9), SCORES, 1 - RIGHT) == 0

    def test_equal_scores_are_given_together(self) -> None:
        flat = torch.zeros_like(SCORES)
        assert value(PrecisionCoverageArea(), flat, RIGHT) == pytest.approx(3 / 5)
        assert value(CoverageAtPrecision(0.9), flat, RIGHT) == 0

    def test_unknown_answers_do_not_count(self) -> None:
        target = torch.cat([RIGHT, torch.tensor([[torch.nan]])])
        assert value(Coverage(), torch.cat([SCORES, torch.ones(1, 1)]), target) == pytest.approx(3 / 5)

    def test_wrong_options_are_named(self) -> None:
        with pytest.raises(ValueError, match="precision"):
            CoverageAtPrecision(0.0)
        with pytest.raises(ValueError, match="cost"):
            RejectionCost(1.0)

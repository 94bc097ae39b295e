import numpy as np
import pytest
import torch
import torchmetrics.classification as tm

from components.losses.confusion import RATES
from components.metrics import BinaryAUROC, ConfusionRate
from components.metrics.confusion import COMPLEMENTS


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(300, 1, generator=g), (torch.rand(300, 1, generator=g) < 0.2).float()


def value(rate: str, logits: torch.Tensor, target: torch.Tensor, **options: float) -> float:
    metric = ConfusionRate(rate, **options)  # type: ignore[arg-type]
    metric.update(logits, target)
    return float(metric.compute())


class TestConfusionRate:
    def test_agrees_with_torchmetrics(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, target = batch
        theirs = {
            "accuracy": tm.BinaryAccuracy(),
            "f_beta": tm.BinaryFBetaScore(beta=1.0),
            "jaccard": tm.BinaryJaccardIndex(),
            "mcc": tm.BinaryMatthewsCorrCoef(),
            "negative_predictive_value": tm.BinaryNegativePredictiveValue(),
            "precision": tm.BinaryPrecision(),
            "recall": tm.BinaryRecall(),
            "specificity": tm.BinarySpecificity(),
        }
        for rate, metric in theirs.items():
            assert value(rate, logits, target) == pytest.approx(float(metric(logits.sigmoid(), target.long())), abs=1e-6), rate
        recall, specificity = (value(rate, logits, target) for rate in ("recall", "specificity"))
        assert value("balanced_accuracy", logits, target) == pytest.approx((recall + specificity) / 2, abs=1e-6)
        assert value("gmean", logits, target) == pytest.approx((recall * specificity) ** 0.5, abs=1e-6)
        assert theirs.keys() | {"balanced_accuracy", "gmean"} == RATES.keys()

    def test_complements(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        for name, of in COMPLEMENTS.items():
            assert value(name, *batch) == pytest.approx(1 - value(of, *batch), abs=1e-6)
            assert not ConfusionRate(name).higher_is_better and ConfusionRate(of).higher_is_better

    def test_nothing_to_count_is_zero(self) -> None:
        assert all(abs(value(rate, torch.full((4, 1), -1.0), torch.zeros(4, 1))) < 1e-9 for rate in ("precision", "recall", "f_beta", "mcc", "gmean"))

    def test_unknown_labels_do_not_count(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, target = batch
        hidden = target.clone()
        hidden[::3] = torch.nan
        kept = ~hidden[:, 0].isnan()
        assert value("f_beta", logits, hidden) == pytest.approx(value("f_beta", logits[kept], target[kept]))

    def test_threshold_and_labels(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, target = batch
        assert value("recall", logits, target, threshold=0.01) > value("recall", logits, target)
        both = torch.cat([logits, -logits], 1), torch.cat([target, target], 1)
        assert value("mcc", *both) == pytest.approx((value("mcc", logits, target) + value("mcc", -logits, target)) / 2, abs=1e-6)

    def test_wrong_options_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"rate must be one of .*; did you mean 'recall'"):
            ConfusionRate("recal")
        with pytest.raises(ValueError, match="threshold"):
            ConfusionRate(threshold=1.0)


def test_roc_auc_counts_pairs_with_ties_as_one_half() -> None:
    rng = np.random.default_rng(0)
    score, y = rng.integers(-3, 4, 60).astype(np.float32), rng.random(60) < 0.4
    pairs = score[y][:, None] - score[~y][None]
    metric = BinaryAUROC()
    metric.update(torch.from_numpy(score)[:, None], torch.from_numpy(y)[:, None].float())
    assert float(metric.compute()) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)

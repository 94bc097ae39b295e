import numpy as np
import pytest
import torch
from torch import Tensor

from components.losses import AnyLoss, DiceLoss, SelfAdjustingDiceLoss
from components.losses.confusion import RATES, confusion, hard_elements

PROBABILITIES = torch.tensor([[0.55], [0.52], [0.40], [0.51]], dtype=torch.float64)
LABELS = torch.tensor([[1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)


def amplified(p: Tensor, amplifier: float = 73.0) -> Tensor:
    return (amplifier * (p - 0.5)).sigmoid()


class TestAnyLoss:
    def test_amplifier(self) -> None:
        p = torch.tensor([0.5, 0.51, 0.55, 0.6], dtype=torch.float64)
        torch.testing.assert_close(amplified(p), torch.tensor([0.5, 0.67481, 0.97467, 0.999325], dtype=torch.float64), atol=1e-5, rtol=0)

    def test_worked_values(self) -> None:
        counts = torch.stack(confusion(amplified(PROBABILITIES), LABELS))[:, 0]
        torch.testing.assert_close(counts, torch.tensor([0.97534, 1.02466, 1.48634, 0.51366], dtype=torch.float64), atol=1e-5, rtol=0)
        logits = PROBABILITIES.logit()
        for metric, value in {"f_beta": 0.56279, "accuracy": 0.62775, "balanced_accuracy": 0.62775, "gmean": 0.6460945}.items():
            assert AnyLoss(metric)(logits, LABELS).item() == pytest.approx(value, abs=1e-5)

    def test_all_at_one_half_is_one_half(self) -> None:
        for metric in ("f_beta", "accuracy", "balanced_accuracy", "gmean"):
            assert AnyLoss(metric)(torch.zeros(2, 1), LABELS[:2].float()).item() == pytest.approx(0.5, abs=1e-6)

    def test_gradient_is_the_amplifiers_chain_rule(self) -> None:
        logits = PROBABILITIES.logit().requires_grad_()
        a = amplified(PROBABILITIES)
        gradient = torch.autograd.grad(AnyLoss("accuracy", eps=1e-300)(logits, LABELS), logits)[0]
        expected = -(2 * LABELS - 1) / 4 * 73 * a * (1 - a) * PROBABILITIES * (1 - PROBABILITIES)
        torch.testing.assert_close(gradient, expected)

    def test_counts_of_labels_are_kept_whatever_the_scores(self) -> None:
        called = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
        labels = (torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) < 0.3).float()
        c = confusion(called, labels)
        torch.testing.assert_close(c.tp + c.fn, labels.sum(0))
        torch.testing.assert_close(c.tn + c.fp, (1 - labels).sum(0))

    def test_a_large_amplifier_is_the_hard_metric(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(0)
        y, score = rng.random(200) < 0.2, rng.normal(size=200)
        logits, labels = torch.from_numpy(score)[:, None], torch.from_numpy(y)[:, None].double()
        called = score > 0
        expected = {
            "accuracy": metrics.accuracy_score(y, called),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
            "jaccard": metrics.jaccard_score(y, called),
            "mcc": metrics.matthews_corrcoef(y, called),
            "precision": metrics.precision_score(y, called),
            "recall": metrics.recall_score(y, called),
            "specificity": metrics.recall_score(~y, ~called),
            "negative_predictive_value": metrics.precision_score(~y, ~called),
            "f_beta": metrics.fbeta_score(y, called, beta=2.0),
            "gmean": np.sqrt(metrics.recall_score(y, called) * metrics.recall_score(~y, ~called)),
        }
        assert expected.keys() == RATES.keys()
        for metric, rate in expected.items():
            assert AnyLoss(metric, beta=2.0, amplifier=1e9)(logits, labels).item() == pytest.approx(1 - rate, abs=1e-6), metric

    def test_any_function_of_the_counts(self) -> None:
        own = AnyLoss(lambda tp, fn, fp, tn: tp / (tp + fn + fp))
        logits = PROBABILITIES.logit()
        torch.testing.assert_close(own(logits, LABELS), AnyLoss("jaccard")(logits, LABELS))

    def test_labels_are_averaged_with_their_weights(self) -> None:
        logits = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = (torch.rand(30, 2, generator=torch.Generator().manual_seed(1)) < 0.4).double()
        one, two = (AnyLoss()(logits[:, i : i + 1], labels[:, i : i + 1]) for i in range(2))
        torch.testing.assert_close(AnyLoss()(logits, labels), (one + two) / 2)
        torch.testing.assert_close(AnyLoss(weight=[3.0, 1.0])(logits, labels), (3 * one + two) / 4)

    def test_wrong_options_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"metric must be one of .*; did you mean 'f_beta'"):
            AnyLoss("fbeta")
        with pytest.raises(ValueError, match="amplifier"):
            AnyLoss(amplifier=0.0)


def dice(p: float, y: float, **options: float) -> float:
    logits = torch.tensor([[p]], dtype=torch.float64).logit()
    return SelfAdjustingDiceLoss(**options)(logits, torch.tensor([[y]], dtype=torch.float64)).item()  # type: ignore[arg-type]


class TestSelfAdjustingDice:
    def test_worked_values(self) -> None:
        assert dice(0.5, 1, alpha=0, square=True) == pytest.approx(0.111111, abs=1e-6)
        assert dice(0.5, 0, alpha=0, square=True) == pytest.approx(0.2, abs=1e-6)
        assert dice(0.5, 1) == pytest.approx(1 / 3, abs=1e-6)
        assert dice(0.5, 0) == pytest.approx(0.2, abs=1e-6)
        assert dice(0.9, 1) == pytest.approx(0.435407, abs=1e-6)

    def test_tversky_has_twice_its_smoothing_here(self) -> None:
        assert dice(0.5, 1, alpha=0, smooth=2.0) == pytest.approx(0.142857, abs=1e-6)
        p, a, b, gamma = 0.7, 0.2, 0.8, 1.0
        assert dice(p, 1, alpha=0, smooth=2 * gamma, fp_weight=a, fn_weight=b) == pytest.approx(1 - (p + gamma) / (p + b * (1 - p) + gamma))
        assert dice(p, 0, alpha=0, smooth=2 * gamma, fp_weight=a, fn_weight=b) == pytest.approx(1 - gamma / (a * p + gamma))

    def test_set_level(self) -> None:
        logits, labels = torch.tensor([[0.9], [0.1]], dtype=torch.float64).logit(), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        assert SelfAdjustingDiceLoss(alpha=0, level="set")(logits, labels).item() == pytest.approx(0.066667, abs=1e-6)
        tversky = 1 - (0.9 + 0.5) / (0.9 + 0.5 * (0.1 + 0.1) + 0.5)  # a = b = 1/2 with half the smoothing
        assert SelfAdjustingDiceLoss(alpha=0, level="set")(logits, labels).item() == pytest.approx(tversky, abs=1e-6)

    def test_is_not_monotone_in_the_probability_of_a_positive(self) -> None:
        assert dice(0.5, 1) < dice(0.9, 1), "the damping (1 - p) p is largest at one half"
        for label in (1.0, 0.0):
            logit = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
            value = SelfAdjustingDiceLoss()(logit, torch.full((1, 1), label, dtype=torch.float64))
            assert torch.autograd.grad(value, logit)[0].item() == pytest.approx(0.0, abs=1e-12)

    def test_set_level_under_softmax_is_the_dice_loss_over_the_batch(self) -> None:
        logits = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        target = torch.arange(12) % 4
        expected = DiceLoss(per_image=False, smooth=0.7)(logits, target)
        labels = torch.nn.functional.one_hot(target, 4).double()
        torch.testing.assert_close(SelfAdjustingDiceLoss(alpha=0, level="set", smooth=0.7)(logits, labels), expected)
        squared = DiceLoss(per_image=False, smooth=0.7, square=True)(logits, target)
        torch.testing.assert_close(SelfAdjustingDiceLoss(alpha=0, level="set", smooth=0.7, square=True)(logits, labels), squared)

    def test_sum_over_classes_is_the_released_modules(self) -> None:
        """Its binary path: q = (1 - p)^alpha p, 1 - (2 sum q y + s) / (sum q^2 + sum y^2 + s)."""
        logits = torch.randn(12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = (torch.arange(12) % 3 == 0).double()[:, None]
        p = logits.sigmoid()
        q = (1 - p) ** 0.01 * p
        plain = 1 - (2 * (q * y).sum() + 1) / (q.sum() + y.sum() + 1)
        torch.testing.assert_close(SelfAdjustingDiceLoss(alpha=0.01, level="set")(logits, y), plain)
        squared = 1 - (2 * (q * y).sum() + 1) / (q.square().sum() + y.square().sum() + 1)
        torch.testing.assert_close(SelfAdjustingDiceLoss(alpha=0.01, level="set", square=True)(logits, y), squared)

    def test_complement_is_exact_where_the_softmax_is_sure(self) -> None:
        loss = SelfAdjustingDiceLoss()
        log_p, log_not_p = loss._log_probabilities(torch.tensor([[60.0, 0.0, 1.0]], dtype=torch.float64), None)
        assert log_not_p[0, 0].item() == pytest.approx(np.log(1 + np.e) - 60, abs=1e-9)
        torch.testing.assert_close(log_p.exp()[:, 1:], 1 - log_not_p.exp()[:, 1:], atol=1e-12, rtol=0)

    def test_hard_negatives(self) -> None:
        scores = torch.tensor([[0.9], [0.1], [0.8], [0.3], [0.7], [0.2]])
        labels = torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]])
        assert hard_elements(scores, labels, None, 1.0)[:, 0].tolist() == [True, True, True, False, True, False]
        assert hard_elements(scores, labels, None, 0.5)[:, 0].tolist() == [True, True, True, False, False, False]
        kept = torch.tensor([[True], [True], [False], [True], [True], [True]])
        assert hard_elements(scores, labels, kept, 0.5)[:, 0].tolist() == [True, True, False, False, True, False]
        logits = scores.logit().requires_grad_()
        value = SelfAdjustingDiceLoss(ohem_ratio=0.5)(logits, labels)
        torch.testing.assert_close(value, SelfAdjustingDiceLoss()(logits[:3], labels[:3]))
        assert (torch.autograd.grad(value, logits)[0][3:] == 0).all()

    def test_unknown_class_is_left_out_of_the_softmax(self) -> None:
        logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.eye(4, dtype=torch.float64)[:3]
        labels[:, 3] = torch.nan
        torch.testing.assert_close(SelfAdjustingDiceLoss()(logits, labels), SelfAdjustingDiceLoss()(logits[:, :3], labels[:, :3]))

    def test_wrong_options_are_named(self) -> None:
        with pytest.raises(ValueError, match="square must be false unless"):
            SelfAdjustingDiceLoss(square=True, fp_weight=0.3, fn_weight=0.7)
        with pytest.raises(ValueError, match="fp_weight"):
            SelfAdjustingDiceLoss(fp_weight=0.0, fn_weight=0.0)
        with pytest.raises(ValueError, match="two columns"):
            SelfAdjustingDiceLoss(activation="softmax")(torch.zeros(2, 1), torch.ones(2, 1))

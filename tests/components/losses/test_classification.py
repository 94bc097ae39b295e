import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import BCEWithLogitsLoss, CrossEntropyLoss, FocalLoss, Poly1Loss, check_target, cross_entropy_per_element, probability_of_target

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


class TestHelpers:
    def test_worked_values(self) -> None:  # softmax([ln 2, 0, 0]) = [1/2, 1/4, 1/4]
        logits = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64)
        target = torch.tensor([0])
        assert cross_entropy_per_element(logits, target).item() == pytest.approx(math.log(2))
        assert probability_of_target(logits, target).item() == pytest.approx(0.5)
        # smoothing 0.3: q = [0.8, 0.1, 0.1]; 0.8 ln 2 + 0.2 ln 4 = 1.2 ln 2, and 0.8 / 2 + 0.2 / 4 = 0.45
        assert cross_entropy_per_element(logits, target, 0.3).item() == pytest.approx(1.2 * math.log(2))
        assert probability_of_target(logits, target, 0.3).item() == pytest.approx(0.45)

    def test_smoothing_may_be_a_tensor(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(
            cross_entropy_per_element(logits, target, torch.tensor(0.3, dtype=torch.float64)), cross_entropy_per_element(logits, target, 0.3)
        )

    def test_probability_without_logarithm(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(probability_of_target(logits, target), logits.softmax(1)[range(16), target])

    def test_check_of_targets_says_whether_something_is_ignored(self) -> None:
        logits = torch.zeros(3, 4)
        assert check_target(logits, torch.tensor([0, 3, 1]), -100)
        assert not check_target(logits, torch.tensor([0, -100, 1]), -100)
        assert not check_target(logits, torch.tensor([0, 2, 1]), 1)
        with pytest.raises(ValueError, match=r"target must hold classes in \[0, 4\) or ignore_index=-100, but got 7"):
            check_target(logits, torch.tensor([0, 7, -100]), -100)
        with pytest.raises(ValueError, match="target must hold class indices"):
            check_target(logits, torch.tensor([0.0, 1.0, 1.0]), -100)
        with pytest.raises(ValueError, match="logits must have shape"):
            check_target(torch.zeros(3), torch.tensor([0, 1, 1]), -100)

    def test_check_reads_no_values_where_data_are_batched_by_vmap(self) -> None:
        logits, target = torch.randn(3, 8, 5), torch.randint(5, (3, 8))
        at_once = torch.func.vmap(FocalLoss())(logits, target)
        torch.testing.assert_close(at_once, torch.stack([FocalLoss()(x, y) for x, y in zip(logits, target, strict=True)]))


class TestCrossEntropy:
    def test_worked_value(self) -> None:  # p = [1/2, 1/4, 1/4]; targets 0 and 2, weights 1 and 3: (1 · ln 2 + 3 · ln 4) / (1 + 3)
        logits = torch.tensor([[math.log(2), 0.0, 0.0]] * 2)
        loss = CrossEntropyLoss(weight=[1.0, 2.0, 3.0])(logits, torch.tensor([0, 2]))
        assert loss.item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    @pytest.mark.parametrize("ignored", [False, True])
    def test_equals_torch(self, logits: Tensor, target: Tensor, reduction: str, smoothing: float, weight: Tensor | None, ignored: bool) -> None:
        if ignored:
            target = torch.where(torch.arange(16) < 4, 3, target)
        index = 3 if ignored else -100
        ours = CrossEntropyLoss(label_smoothing=smoothing, weight=weight, ignore_index=index, reduction=reduction)(logits, target)
        theirs = nn.CrossEntropyLoss(weight=weight, ignore_index=index, reduction=reduction, label_smoothing=smoothing)(logits, target)
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(gradient(ours.sum(), logits), gradient(theirs.sum(), logits), rtol=1e-7, atol=1e-7)

    def test_plain_path_is_torchs_bit_for_bit(self, logits: Tensor, target: Tensor) -> None:
        assert torch.equal(CrossEntropyLoss()(logits, target), F.cross_entropy(logits, target))

    def test_weight_of_zero_everywhere_gives_zero(self, logits: Tensor) -> None:
        value = CrossEntropyLoss(weight=[0.0, 1, 1, 1, 1])(logits, torch.zeros(16, dtype=torch.long))
        assert value == 0 and (gradient(value, logits) == 0).all()

    def test_a_nan_in_the_logits_is_not_hidden(self, target: Tensor) -> None:
        assert CrossEntropyLoss()(torch.full((16, 5), math.nan), target).isnan()
        assert CrossEntropyLoss()(torch.full((16, 5), math.nan), torch.where(torch.arange(16) < 4, -100, target)).isnan()

    def test_masked_classes_may_have_a_score_of_minus_infinity(self) -> None:
        logits = torch.tensor([[0.0, 0.0, -math.inf]])
        assert CrossEntropyLoss()(logits, torch.tensor([1])).item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("smoothing", [-0.1, 1.0])
    def test_refuses_smoothing(self, smoothing: float) -> None:
        with pytest.raises(ValueError, match="label_smoothing"):
            CrossEntropyLoss(label_smoothing=smoothing)

    @pytest.mark.parametrize("weight", [[-1.0, 1.0], [[1.0]], [math.nan, 1.0], "balanced", 2.0])
    def test_refuses_weights(self, weight: list) -> None:
        with pytest.raises(ValueError, match="weight must"):
            CrossEntropyLoss(weight=weight)

    def test_refuses_a_reduction(self) -> None:
        with pytest.raises(ValueError, match="reduction must be one of mean, sum, none"):
            CrossEntropyLoss(reduction="avg")


class TestBCE:
    def test_worked_value(self) -> None:  # sigmoid(ln 3) = 3/4; label 1: ln 4/3, label 0: ln 4
        logits = torch.tensor([[math.log(3), math.log(3)]])
        loss = BCEWithLogitsLoss(reduction="none")(logits, torch.tensor([[1.0, 0.0]]))
        torch.testing.assert_close(loss, torch.tensor([[math.log(4 / 3), math.log(4)]]))
        # smoothing 0.2: targets 0.9 and 0.1
        loss = BCEWithLogitsLoss(label_smoothing=0.2, reduction="none")(logits, torch.tensor([[1.0, 0.0]]))
        near, far = math.log(4 / 3), math.log(4)
        torch.testing.assert_close(loss, torch.tensor([[0.9 * near + 0.1 * far, 0.1 * near + 0.9 * far]]))

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("pos_weight", [None, WEIGHT], ids=["plain", "pos_weight"])
    def test_equals_torch(self, logits: Tensor, reduction: str, pos_weight: Tensor | None) -> None:
        target = torch.randint(2, (16, 5), generator=torch.Generator().manual_seed(2)).double()
        ours = BCEWithLogitsLoss(pos_weight=pos_weight, reduction=reduction)(logits, target)
        torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction=reduction), rtol=1e-7, atol=1e-7)

    def test_label_weights_make_a_weighted_mean(self, logits: Tensor) -> None:
        target = torch.ones(16, 5, dtype=torch.float64)
        target[:, 2] = math.nan  # weight 1 of 6.75 is out
        elements = F.binary_cross_entropy_with_logits(logits, torch.ones_like(target), reduction="none")
        expected = (elements * WEIGHT)[:, [0, 1, 3, 4]].sum() / (16 * (0.5 + 2 + 3 + 0.25))
        torch.testing.assert_close(BCEWithLogitsLoss(weight=WEIGHT)(logits, target), expected)

    def test_ignore_index_marks_unknown_labels_too(self, logits: Tensor) -> None:
        unknown, nan = torch.ones(16, 5, dtype=torch.float64), torch.ones(16, 5, dtype=torch.float64)
        unknown[3:9, 1], nan[3:9, 1] = -100, math.nan
        torch.testing.assert_close(BCEWithLogitsLoss()(logits, unknown), BCEWithLogitsLoss()(logits, nan))

    def test_two_classes_are_a_softmax_over_zero_and_the_score(self, logits: Tensor, target: Tensor) -> None:
        score, label = logits[:, :1], (target > 2).double().unsqueeze(1)
        both = torch.cat([torch.zeros_like(score), score], 1)
        torch.testing.assert_close(BCEWithLogitsLoss()(score, label), CrossEntropyLoss()(both, (target > 2).long()))

    def test_boolean_targets(self, logits: Tensor) -> None:
        target = torch.randint(2, (16, 5), generator=torch.Generator().manual_seed(2)).bool()
        torch.testing.assert_close(BCEWithLogitsLoss()(logits, target), BCEWithLogitsLoss()(logits, target.double()))

    def test_refuses_pos_weight(self) -> None:
        with pytest.raises(ValueError, match="pos_weight must hold values > 0"):
            BCEWithLogitsLoss(pos_weight=[1.0, 0.0])


class TestFocal:
    def test_worked_value(self) -> None:  # p = 1/2: (1/2)² · ln 2; p = 1/4: (3/4)² · ln 4
        loss = FocalLoss(gamma=2.0, reduction="none")(torch.tensor([[math.log(2), 0.0, 0.0]] * 2), torch.tensor([0, 1]))
        torch.testing.assert_close(loss, torch.tensor([math.log(2) / 4, 9 / 16 * math.log(4)]))

    def test_a_sample_at_09_counts_100_times_less(self) -> None:  # the paper's own example, gamma = 2
        logits = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
        target = torch.tensor([0])
        assert (FocalLoss(2.0)(logits, target) / CrossEntropyLoss()(logits, target)).item() == pytest.approx(0.01)

    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    def test_gamma_zero_is_cross_entropy(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
        ours, ce = FocalLoss(gamma=0.0, weight=weight)(logits, target), CrossEntropyLoss(weight=weight)(logits, target)
        torch.testing.assert_close(ours, ce)
        torch.testing.assert_close(gradient(ours, logits), gradient(ce, logits))

    @pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
    def test_agrees_with_the_formula_on_probabilities(self, logits: Tensor, target: Tensor, gamma: float) -> None:
        p = logits.softmax(1)[range(16), target]
        ours, formula = FocalLoss(gamma, weight=WEIGHT, reduction="sum")(logits, target), (-WEIGHT[target] * (1 - p) ** gamma * p.log()).sum()
        torch.testing.assert_close(ours, formula)
        torch.testing.assert_close(gradient(ours, logits), gradient(formula, logits))

    def test_tiny_errors_keep_their_digits(self) -> None:  # 1 - p = e^-30 / (1 + e^-30) ≈ 9.3576e-14: 1 - softmax would be 0 in float32
        loss = FocalLoss(gamma=1.0)(torch.tensor([[0.0, 30.0]], dtype=torch.float64), torch.tensor([1]))
        assert loss.item() == pytest.approx(math.exp(-60), rel=1e-3)

    @pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0])
    def test_certain_samples_have_a_finite_gradient(self, gamma: float) -> None:
        logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
        value = FocalLoss(gamma)(logits, torch.tensor([0]))
        assert value == 0 and torch.isfinite(gradient(value, logits)).all()

    def test_refuses_gamma(self) -> None:
        with pytest.raises(ValueError, match="gamma must be >= 0, but got -1"):
            FocalLoss(gamma=-1)


class TestPoly1:
    def test_worked_value(self) -> None:  # p = softmax([2, 0, 0]); p_0 = 0.786986
        loss = Poly1Loss(epsilon=1.0)(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))
        assert loss.item() == pytest.approx(0.239545 + 0.213014, abs=1e-5)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_epsilon_zero_is_cross_entropy(self, logits: Tensor, target: Tensor, smoothing: float) -> None:
        torch.testing.assert_close(Poly1Loss(0.0, label_smoothing=smoothing)(logits, target), CrossEntropyLoss(label_smoothing=smoothing)(logits, target))

    def test_gradient_is_cross_entropys_scaled(self, logits: Tensor, target: Tensor) -> None:  # d/dz_y = (p_y - 1)(1 + epsilon p_y)
        p = logits.softmax(1)[range(16), target]
        got = gradient(Poly1Loss(epsilon=1.5, reduction="sum")(logits, target), logits)[range(16), target]
        torch.testing.assert_close(got, (p - 1) * (1 + 1.5 * p))

    def test_smoothed_target(self, logits: Tensor, target: Tensor) -> None:
        q = 0.8 * F.one_hot(target, 5) + 0.2 / 5
        expected = -(q * logits.log_softmax(1)).sum(1) + 2.0 * (1 - (q * logits.softmax(1)).sum(1))
        torch.testing.assert_close(Poly1Loss(2.0, label_smoothing=0.2, reduction="none")(logits, target), expected)

    def test_refuses_epsilon(self) -> None:
        with pytest.raises(ValueError, match="epsilon must be >= -1"):
            Poly1Loss(epsilon=-1.5)

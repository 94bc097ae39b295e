import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import BilateralSoftmaxLoss, ListwiseSoftmaxLoss, MannWhitneyLoss, PairwiseRankingLoss, PairwiseSoftmaxLoss
from components.losses.ranking import log_surrogate
from components.testing import LossContract

ACTIVATIONS = ("exp", "tanh", "atan", "relu")


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(6, generator=generator, dtype=torch.float64), torch.randn(6, 9, generator=generator, dtype=torch.float64)
    return positive.requires_grad_(), negative.requires_grad_()


class TestPSLWithArcTangent(LossContract):
    @pytest.fixture
    def loss(self) -> nn.Module:
        return PairwiseSoftmaxLoss("atan")


class TestPSLOverPairs(LossContract):
    @pytest.fixture
    def loss(self) -> nn.Module:
        return PairwiseSoftmaxLoss("tanh", over="pairs")


class TestPSL:
    def test_second_variant_is_the_log_of_a_mean_over_all_pairs(self, scores: tuple[Tensor, Tensor]) -> None:
        positive, negative = scores
        d = (negative - positive[:, None]) / 2
        expected = (d.tanh() + 1).pow(1 / 0.3).mean().log()
        loss = PairwiseSoftmaxLoss("tanh", 0.3, over="pairs")
        torch.testing.assert_close(loss(positive, negative), expected)
        assert loss.pairwise and not PairwiseSoftmaxLoss().pairwise

    def test_with_exp_is_the_softmax_loss(self, scores: tuple[Tensor, Tensor]) -> None:
        positive, negative = scores
        expected = (torch.exp((negative - positive[:, None]) / 0.3).sum(1)).log().mean()
        torch.testing.assert_close(PairwiseSoftmaxLoss("exp", 0.3, score_temperature=1.0)(positive, negative), expected)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("temperature", [0.05, 1.0])
    def test_equal_scores_give_log_m(self, activation: str, temperature: float) -> None:
        loss = PairwiseSoftmaxLoss(activation, temperature)(tensor(0.3, 0.3), torch.full((2, 7), 0.3, dtype=torch.float64))
        assert loss.item() == pytest.approx(math.log(7), abs=1e-12)

    @pytest.mark.parametrize(
        ("activation", "expected"),
        [("exp", (0.6065, 1, 1.6487)), ("tanh", (0.5379, 1, 1.4621)), ("atan", (0.5364, 1, 1.4636)), ("relu", (0.5, 1, 1.5))],
    )
    def test_surrogates_lie_between_the_step_and_exp(self, activation: str, expected: tuple[float, ...]) -> None:
        d = tensor(-0.5, 0.0, 0.5)
        assert log_surrogate(d, activation).exp().tolist() == pytest.approx(expected, abs=5e-5)
        grid = torch.linspace(-1, 1, 201, dtype=torch.float64)
        s = log_surrogate(grid, activation).exp()
        assert bool((s >= (grid >= 0).double() - 1e-12).all()) and bool((s <= grid.exp() + 1e-12).all())

    @pytest.mark.parametrize(("activation", "expected"), [("relu", 0.336472), ("exp", 0.413015)])
    def test_worked_value(self, activation: str, expected: float) -> None:
        loss = PairwiseSoftmaxLoss(activation, 1.0, score_temperature=1.0)
        assert loss(tensor(0.5), tensor([0.0, 0.4])).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("activation", ["tanh", "atan", "relu"])
    def test_a_negative_far_above_weighs_less_than_under_exp(self, activation: str) -> None:
        d = tensor(0.0, 0.3, 0.6, 0.9).requires_grad_()
        (rate,) = torch.autograd.grad(log_surrogate(d, activation).sum(), d)
        assert rate[0].item() == pytest.approx(1) and bool((rate[1:] < 1).all()) and bool((rate.diff() < 0).all())

    def test_false_negative_gets_a_smaller_share_of_the_gradient(self) -> None:
        positive, shares = tensor(0.2), {}
        for activation in ("exp", "tanh"):
            negative = tensor([0.9, 0.1, -0.3]).requires_grad_()
            (gradient,) = torch.autograd.grad(PairwiseSoftmaxLoss(activation, 0.2, score_temperature=1.0)(positive, negative), negative)
            shares[activation] = float(gradient[0, 0] / gradient.sum())
        assert shares["tanh"] < shares["exp"]

    def test_sampled_softmax_is_cross_entropy_over_the_sample(self, scores: tuple[Tensor, Tensor]) -> None:
        positive, negative = scores
        together = torch.cat([positive[:, None], negative], 1) / 0.7
        expected = F.cross_entropy(together, torch.zeros(6, dtype=torch.long))
        torch.testing.assert_close(PairwiseSoftmaxLoss("exp", 0.7, score_temperature=1.0, include_positive=True)(positive, negative), expected)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_far_below_counts_for_nothing(self, activation: str) -> None:
        loss = PairwiseSoftmaxLoss(activation, 0.05)(tensor(1e4), tensor([-1e4, 1e4]))
        assert loss.item() == pytest.approx(0, abs=1e-9)  # the one negative level with the positive


class TestPairwise:
    def test_hinge_is_torchs_margin_ranking(self, scores: tuple[Tensor, Tensor]) -> None:
        positive, negative = scores
        expected = nn.MarginRankingLoss(0.5)(positive[:, None].expand_as(negative), negative, torch.ones_like(negative))
        torch.testing.assert_close(PairwiseRankingLoss(link="hinge", margin=0.5)(positive, negative), expected)

    def test_logistic_is_bpr(self, scores: tuple[Tensor, Tensor]) -> None:
        positive, negative = scores
        expected = -F.logsigmoid(positive[:, None] - negative)
        torch.testing.assert_close(PairwiseRankingLoss()(positive, negative), expected.mean())
        torch.testing.assert_close(PairwiseRankingLoss(negatives="sum", reduction="sum")(positive, negative), expected.sum())


class TestMannWhitney:
    S = ([2.0, 0.0], [1.0, 3.0])

    def in_batch(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal and, of each row, the rest."""
        apart = ~torch.eye(len(s), dtype=torch.bool)
        return s.diagonal(), s[apart].view(len(s), -1)

    def info_nce(self, s: Tensor) -> float:
        return PairwiseSoftmaxLoss("exp", 1.0, score_temperature=1.0, include_positive=True)(*self.in_batch(s)).item()

    def test_worked_values(self) -> None:
        positive, negative = self.in_batch(tensor(*self.S))
        assert MannWhitneyLoss(1.0)(positive, negative).item() == pytest.approx(0.153926, abs=1e-6)
        assert MannWhitneyLoss(1.0, negatives="sum")(positive, negative).item() == pytest.approx(0.307853, abs=1e-6)
        assert self.info_nce(tensor(*self.S)) == pytest.approx(0.126928, abs=1e-6)

    def test_sees_a_shift_of_one_query_that_info_nce_does_not(self) -> None:
        shifted = tensor(*self.S) + tensor([5.0], [0.0])
        assert self.info_nce(shifted) == pytest.approx(0.126928, abs=1e-6)
        assert MannWhitneyLoss(1.0)(*self.in_batch(shifted)).item() == pytest.approx(0.595815, abs=1e-6)

    def test_equal_scores_give_log_2(self) -> None:
        assert MannWhitneyLoss(0.01)(torch.zeros(5), torch.zeros(5, 3)).item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("temperature", [0.1, 1.0])
    def test_bounds_the_area_over_the_curve(self, temperature: float) -> None:
        for seed in range(20):
            s = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            positive, negative = self.in_batch(s)
            area = (positive[:, None] < negative.flatten()).double().mean()
            assert area <= MannWhitneyLoss(temperature)(positive, negative) / math.log(2)

    def test_one_query_is_ranknet(self) -> None:
        positive, negative = tensor(0.4), tensor([0.1, 0.9, -2.0])
        torch.testing.assert_close(MannWhitneyLoss(0.5)(positive, negative), PairwiseRankingLoss(temperature=0.5)(positive, negative))


class TestBilateralSoftmax:
    def test_equal_temperatures_are_the_softmax_loss_but_for_a_constant(self, scores: tuple[Tensor, Tensor]) -> None:
        plain = PairwiseSoftmaxLoss("exp", 0.2, score_temperature=1.0)(*scores)
        torch.testing.assert_close(BilateralSoftmaxLoss(0.2, 0.2)(*scores), plain - math.log(9))


class TestListwise:
    def test_list_net_by_hand(self) -> None:
        logits, relevance = tensor([1.0, 0.0, -1.0]), tensor([1.0, 0.0, 0.0])
        expected = -(relevance.softmax(1) * logits.log_softmax(1)).sum()
        torch.testing.assert_close(ListwiseSoftmaxLoss()(logits, relevance), expected)

    def test_one_positive_is_cross_entropy(self) -> None:
        logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
        target = torch.tensor([0, 6, 3, 3, 1])
        for wanted in ("normalized", "sum"):
            torch.testing.assert_close(ListwiseSoftmaxLoss(wanted)(logits, F.one_hot(target, 7).float()), F.cross_entropy(logits, target))

    def test_left_out_is_as_if_not_there(self) -> None:
        logits, relevance = tensor([1.0, 9.0, -1.0]), tensor([1.0, math.nan, 0.0])
        for wanted in ("softmax", "normalized", "sum"):
            torch.testing.assert_close(ListwiseSoftmaxLoss(wanted)(logits, relevance), ListwiseSoftmaxLoss(wanted)(logits[:, [0, 2]], relevance[:, [0, 2]]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PairwiseSoftmaxLoss("attan"), "activation must be one of .* did you mean 'atan'"),
        (lambda: PairwiseSoftmaxLoss(temperature=0.0), "temperature must be > 0, but got 0.0"),
        (lambda: PairwiseSoftmaxLoss(score_temperature=-1.0), "score_temperature must be > 0"),
        (lambda: PairwiseSoftmaxLoss(over="pair"), "did you mean 'pairs'"),
        (lambda: PairwiseSoftmaxLoss(over="pairs", include_positive=True), "include_positive must be false"),
        (lambda: BilateralSoftmaxLoss(positive_temperature=0.0), "positive_temperature must be > 0"),
        (lambda: MannWhitneyLoss(0.0), "temperature must be > 0"),
        (lambda: MannWhitneyLoss(negatives="max"), "negatives must be one of"),
        (lambda: PairwiseRankingLoss(link="hing"), "did you mean 'hinge'"),
        (lambda: PairwiseRankingLoss(margin=-1.0), "margin must be >= 0"),
        (lambda: ListwiseSoftmaxLoss("softmin"), "did you mean 'softmax'"),
        (lambda: PairwiseRankingLoss()(torch.zeros(3, 1), torch.zeros(3, 2)), "positive_scores must hold one score a query"),
        (lambda: PairwiseRankingLoss()(torch.zeros(3), torch.zeros(3, 0)), r"negative_scores must have shape \(3, M\), M >= 1"),
    ],
)
def test_wrong_input_is_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()

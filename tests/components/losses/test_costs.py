import pytest
import torch
from torch import Tensor

from components.losses import BCEWithLogitsLoss, ProfitRegretLoss, RejectionLoss
from components.losses.costs import value_of_targeting


@pytest.fixture
def customers() -> tuple[Tensor, Tensor, Tensor]:
    """Scores, whether they leave, what they are worth."""
    g = torch.Generator().manual_seed(0)
    scores = 40 * torch.randn(64, 1, dtype=torch.float64, generator=g)
    leaves = (torch.rand(64, 1, generator=g) < 0.4).double()
    return scores, leaves, 80 * torch.randn(64, dtype=torch.float64, generator=g).exp()


def value(leaves: Tensor, worth: Tensor) -> Tensor:
    return value_of_targeting(leaves, worth[:, None], 0.3, 10.0, 1.0)


class TestProfitRegret:
    def test_value_by_hand(self) -> None:
        one = torch.ones(1)
        assert value_of_targeting(one, 200 * one, 0.3, 10.0, 1.0).item() == pytest.approx(56.0)
        assert value_of_targeting(0 * one, 200 * one, 0.3, 10.0, 1.0).item() == pytest.approx(-11.0)

    def test_spo_is_above_the_regret_and_meets_the_value_at_zero(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        v = value(leaves, worth)
        values = ProfitRegretLoss("spo", reduction="none")(scores, leaves, worth)
        assert (values >= v.abs() * ((scores > 0) != (v > 0)) - 1e-12).all()
        torch.testing.assert_close(ProfitRegretLoss("spo", reduction="none")(0 * scores, leaves, worth), v.abs())

    def test_spo_is_the_maximum_over_decisions(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        v = value(leaves, worth)
        best = (v > 0).double()
        brute = torch.stack([(2 * scores - v) * z - 2 * scores * best + v * best for z in (0.0, 1.0)]).amax(0)
        torch.testing.assert_close(ProfitRegretLoss("spo", reduction="none")(scores, leaves, worth), brute)

    def test_spo_is_convex_with_a_slope_of_two(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        other = scores.flip(0)
        f = ProfitRegretLoss("spo", reduction="none")
        assert (f((scores + other) / 2, leaves, worth) <= (f(scores, leaves, worth) + f(other, leaves, worth)) / 2 + 1e-9).all()
        leaf = torch.zeros_like(scores, requires_grad=True)
        assert (torch.autograd.grad(f(leaf, leaves, worth).sum(), leaf)[0].abs() == 2).all(), "whatever the value"

    def test_smooth_is_the_regret_of_sure_decisions(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        v = value(leaves, worth)
        regret = ((v > 0).double() - (scores > 0).double()) * v
        torch.testing.assert_close(ProfitRegretLoss("smooth", temperature=1e-6)(scores, leaves, worth), regret.mean())

    def test_weighted_is_weighted_cross_entropy_on_the_best_decision(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        v = value(leaves, worth)
        expected = v.abs() * BCEWithLogitsLoss(reduction="none")(scores / 40, (v > 0).double())
        torch.testing.assert_close(ProfitRegretLoss("weighted", reduction="none")(scores / 40, leaves, worth), expected)

    @pytest.mark.parametrize("surrogate", ["smooth", "weighted"])
    def test_a_customers_pull_is_affine_in_what_they_are_worth(self, surrogate: str) -> None:
        def pull(worth: float) -> float:
            score = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
            loss = ProfitRegretLoss(surrogate)(score, torch.ones(1, 1, dtype=torch.float64), torch.tensor([worth], dtype=torch.float64))
            return float(torch.autograd.grad(loss, score)[0])

        assert pull(400) - pull(200) == pytest.approx(2 * (pull(200) - pull(100)))
        assert pull(400) / pull(200) == pytest.approx((0.3 * 390 - 1) / (0.3 * 190 - 1)), "as the value, not as the worth"

    def test_unit_divides_the_values(self, customers: tuple[Tensor, Tensor, Tensor]) -> None:
        scores, leaves, worth = customers
        for surrogate in ("smooth", "weighted"):
            torch.testing.assert_close(ProfitRegretLoss(surrogate, unit=4.0)(scores, leaves, worth), ProfitRegretLoss(surrogate)(scores, leaves, worth) / 4)
        torch.testing.assert_close(ProfitRegretLoss("spo", unit=4.0)(scores / 4, leaves, worth), ProfitRegretLoss("spo")(scores, leaves, worth) / 4)

    def test_wrong_options_are_named(self) -> None:
        for wrong in ({"accept": 0.0}, {"offer": -1.0}, {"contact": -1.0}, {"temperature": 0.0}, {"unit": 0.0}, {"surrogate": "hinge"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                ProfitRegretLoss(**wrong)  # type: ignore[arg-type]


class TestRejection:
    def test_worked_values(self) -> None:
        loss = RejectionLoss(cost=0.05, alpha=2.0)
        assert 2 * 0.05 * float(loss.beta) / 2.0 == pytest.approx(0.485400, abs=1e-6), "I_c"
        assert float(loss.beta) == pytest.approx(9.707991, abs=1e-5)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        assert loss(zero, zero + 1).item() == pytest.approx(0.417879, abs=1e-6)
        assert loss(zero, zero).item() == pytest.approx(2.768282, abs=1e-6)

    @pytest.mark.parametrize(("wrong", "minimiser"), [(0.02, 0.014659), (0.05, 0.0), (0.10, -0.0202476)])
    def test_minimiser_is_positive_where_errors_are_rarer_than_the_cost(self, wrong: float, minimiser: float) -> None:
        score, expected = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True), torch.full((1, 1), 1 - wrong, dtype=torch.float64)
        for _ in range(50):  # Newton
            value = RejectionLoss()(score, expected)
            slope = torch.autograd.grad(value, score, create_graph=True)[0]
            curvature = torch.autograd.grad(slope.sum(), score)[0]
            score = (score - slope / curvature).detach().requires_grad_()
        assert score.item() == pytest.approx(minimiser, abs=1e-6)

    @pytest.mark.parametrize("cost", [0.01, 0.05, 0.3, 0.9])
    @pytest.mark.parametrize("alpha", [1.0, 2.0, 8.0])
    def test_lies_above_the_cost_and_is_convex_and_calibrated(self, cost: float, alpha: float) -> None:
        scores = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
        loss = RejectionLoss(cost, alpha=alpha, reduction="none")
        for right in (0.0, 1.0):
            values = loss(scores, torch.full_like(scores, right))
            actual = (scores > 0) * (1 - right) + cost * (scores <= 0)
            assert (values >= actual - 1e-12).all()
            assert (values[:, 0].diff().diff() >= -1e-9 * values.max()).all()
        at_zero = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
        probability_right = torch.tensor([[1 - 0.9 * cost], [1 - min(1.1 * cost, 1.0)]], dtype=torch.float64)
        slope = torch.autograd.grad(loss(at_zero, probability_right).sum(), at_zero)[0]
        assert slope[0] < 0 < slope[1], "convex: the sign of the slope at 0 is where the minimum lies"

    def test_constant_rejector_follows_the_cost(self) -> None:
        """c -> 1 accepts almost everything, c -> 0 rejects it."""
        right = (torch.arange(10) < 8).double()[:, None]
        for cost, sign in ((0.99, 1), (0.001, -1)):
            score = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
            slope = torch.autograd.grad(RejectionLoss(cost)(score.expand(10, 1), right), score)[0]
            assert (-slope.sign()).item() == sign

    def test_any_score_is_finite_in_float32(self) -> None:
        """Clipping at ±20 would not be enough: beta is near 10, and float32 ends at exp(88)."""
        score = torch.tensor([[-1e4], [-20.0], [20.0], [1e4]], requires_grad=True)
        value = RejectionLoss()(score, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
        assert value.isfinite() and torch.autograd.grad(value, score)[0].isfinite().all()

    def test_wrong_options_are_named(self) -> None:
        for wrong in ({"cost": 0.0}, {"cost": 1.0}, {"alpha": 0.0}, {"alpha": 9.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                RejectionLoss(**wrong)

import numpy as np
import pytest
import torch
from empulse.metrics import empc_score
from scipy.stats import beta as beta_distribution
from torch import Tensor

from components.metrics import CampaignProfit, CampaignRegret, ExpectedMaximumProfit

LEAVES = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
WORTH = torch.tensor([200.0, 200.0, 20.0, 500.0])
VALUES = torch.tensor([56.0, -11.0, 0.3 * 10 - 1, -11.0])  # gamma (CLV - 10) - 1, or -11


def value(metric: CampaignProfit, scores: list[float]) -> float:
    metric.update(torch.tensor(scores)[:, None], LEAVES, WORTH)
    return float(metric.compute())


class TestCampaign:
    def test_by_the_score(self) -> None:
        assert value(CampaignProfit(), [1.0, 1.0, -1.0, -1.0]) == pytest.approx((56 - 11) / 4)
        assert value(CampaignRegret(), [1.0, 1.0, -1.0, -1.0]) == pytest.approx((11 + 2) / 4)

    def test_perfect_always_and_never(self) -> None:
        assert value(CampaignRegret(), [1.0, -1.0, 1.0, -1.0]) == pytest.approx(0)
        assert value(CampaignRegret(), [1.0] * 4) == pytest.approx(22 / 4), "always: what is lost on those not worth it"
        assert value(CampaignRegret(), [-1.0] * 4) == pytest.approx(58 / 4), "never: what was to be had"

    def test_scaling_all_values_scales_the_regret(self) -> None:
        scaled = CampaignRegret(offer=30.0, contact=3.0)
        scaled.update(torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), LEAVES, 3 * WORTH)
        assert float(scaled.compute()) == pytest.approx(3 * 13 / 4)

    def test_by_probability_and_the_average_or_own_value(self) -> None:
        """At a probability p targeting pays if p (0.3 (CLV - 10) - 1) > 11 (1 - p): from 0.145 for the average of 230."""
        scores = torch.logit(torch.tensor([0.17, 0.14, 0.5, 0.14])).tolist()
        assert value(CampaignProfit("average"), scores) == pytest.approx((56 + 2) / 4)
        own = value(CampaignProfit("individual"), scores)  # 0.164 for 200, 0.846 for 20, 0.070 for 500
        assert own == pytest.approx((56 - 11) / 4)

    def test_best_threshold_in_hindsight(self) -> None:
        assert value(CampaignProfit("best"), [3.0, 2.0, 1.0, 0.0]) == pytest.approx(56 / 4)
        assert value(CampaignProfit("best"), [1.0, 2.0, 3.0, 4.0]) == pytest.approx((-22 + 2 + 56) / 4)
        assert value(CampaignProfit("best"), [-5.0, 2.0, -6.0, 4.0]) == pytest.approx((56 - 22 + 2) / 4)

    def test_budget_keeps_the_highest_scores(self) -> None:
        assert value(CampaignProfit(budget=0.25), [1.0, 2.0, 3.0, -1.0]) == pytest.approx(2 / 4)
        assert value(CampaignRegret(budget=0.25), [1.0, 2.0, 3.0, -1.0]) == pytest.approx((56 - 2) / 4)

    def test_wrong_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="budget"):
            CampaignProfit(budget=0.0)
        with pytest.raises(ValueError, match="lifetime_value"):
            CampaignProfit().update(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1))


def test_values_by_hand() -> None:
    metric = CampaignProfit()
    metric.update(torch.zeros(4, 1), LEAVES, WORTH)
    got: Tensor = metric.values()
    torch.testing.assert_close(got.float(), VALUES)


PAPER = {"lifetime_value": 200.0, "offer": 10.0, "contact": 1.0, "alpha": 6.0, "beta": 14.0}
COSTS = [
    PAPER,
    {"lifetime_value": 30.0, "offer": 12.0, "contact": 2.0, "alpha": 2.0, "beta": 3.0},
    {"lifetime_value": 40.0, "offer": 0.0, "contact": 3.0, "alpha": 1.0, "beta": 1.0},
    {"lifetime_value": 50.0, "offer": 15.0, "contact": 0.0, "alpha": 3.0, "beta": 1.5},
]
"""What a customer is worth, what the offer costs, and how it is accepted."""
UNIFORM = {"lifetime_value": 20.0, "offer": 10.0, "contact": 1.0, "alpha": 1.0, "beta": 1.0}  # with gamma: 10 gamma - 1 from one about to leave, else -11
BASE = {"lifetime_value": 100.0, "offer": 20.0, "contact": 2.0, "alpha": 1.0, "beta": 1.0}  # 80 gamma - 2, else -22


def emp(scores: Tensor, leaves: Tensor, **options: float) -> float:
    metric = ExpectedMaximumProfit(**options)
    metric.update(scores[:, None], leaves[:, None])
    return float(metric.compute())


def customers(seed: int, number: int = 60) -> tuple[Tensor, Tensor]:
    """Scores, rounded so that many are equal, which tell a little of who leaves: a third."""
    g = torch.Generator().manual_seed(seed)
    leaves = (torch.rand(number, generator=g) < 1 / 3).float()
    return (2 * (torch.randn(number, generator=g) + leaves)).round(), leaves


def by_brute_force(scores: Tensor, leaves: Tensor, lifetime_value: float, offer: float, contact: float, alpha: float, beta: float) -> float:
    """Every threshold at each of many gammas: midpoints of steps of equal width, weighted by the step's probability."""
    edges = np.linspace(0, 1, 20_001)
    accept = (edges[1:] + edges[:-1]) / 2
    best = np.zeros_like(accept)  # nobody
    for threshold in scores.unique():
        targeted = scores >= threshold
        churners, others = float(leaves[targeted].sum()), float((1 - leaves[targeted]).sum())
        best = np.maximum(best, churners * (accept * (lifetime_value - offer) - contact) - others * (offer + contact))
    return float(best @ np.diff(beta_distribution(alpha, beta).cdf(edges))) / len(scores)


class TestExpectedMaximumProfit:
    def test_one_who_leaves_is_targeted_from_the_gamma_at_which_it_pays(self) -> None:
        """Uniform gamma: the integral of 10 gamma - 1 from 0.1 to 1."""
        assert emp(torch.tensor([0.0]), torch.tensor([1.0]), **UNIFORM) == pytest.approx(5 * 0.99 - 0.9)

    def test_those_ranked_behind_others_are_targeted_only_where_they_pay_for_them(self) -> None:
        """One who leaves, one who does not, one who leaves: the first from 80 gamma > 2; the third, with the second, from 80 gamma > 24."""
        leaves = torch.tensor([1.0, 0.0, 1.0])
        first, rest = 40 * (1 - 0.025**2) - 2 * (1 - 0.025), 40 * (1 - 0.3**2) - 24 * (1 - 0.3)
        assert emp(torch.tensor([3.0, 2.0, 1.0]), leaves, **BASE) == pytest.approx((first + rest) / 3)

    def test_equal_scores_are_targeted_together(self) -> None:
        """All three or nobody: 160 gamma > 26."""
        leaves = torch.tensor([1.0, 0.0, 1.0])
        assert emp(torch.zeros(3), leaves, **BASE) == pytest.approx((80 * (1 - 0.1625**2) - 26 * (1 - 0.1625)) / 3)

    def test_a_perfect_ranking_earns_what_targeting_only_those_who_leave_earns(self) -> None:
        leaves = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
        alone = emp(torch.zeros(2), torch.ones(2), **BASE)
        assert alone == pytest.approx(40 * (1 - 0.025**2) - 2 * (1 - 0.025))
        assert emp(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), leaves, **BASE) == pytest.approx(2 / 5 * alone)

    def test_a_useless_ranking_earns_what_targeting_all_or_nobody_earns(self) -> None:
        scores, leaves = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
        alike = emp(torch.zeros(6), leaves, **BASE)
        assert alike == pytest.approx((80 * (1 - 0.575**2) - 92 * (1 - 0.575)) / 3 / 2), "160 gamma - 92 on six customers"
        assert emp(scores, leaves, **BASE) == pytest.approx(alike)
        assert emp(-torch.arange(6.0), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), **BASE) == pytest.approx(alike), "the wrong way round: no vertex"

    def test_nobody_is_targeted_where_nobody_leaves(self) -> None:
        assert emp(torch.arange(4.0), torch.zeros(4), **PAPER) == 0

    def test_nobody_is_targeted_where_no_gamma_pays(self) -> None:
        assert emp(torch.tensor([1.0, 0.0]), torch.ones(2), lifetime_value=10.5, offer=10.0, contact=1.0) == 0

    def test_everybody_leaves(self) -> None:
        scores = torch.arange(7.0)
        assert emp(scores, torch.ones(7), **BASE) == pytest.approx(40 * (1 - 0.025**2) - 2 * (1 - 0.025))

    def test_a_campaign_that_costs_nothing_targets_all(self) -> None:
        leaves = torch.tensor([0.0, 1.0, 0.0, 1.0])
        assert emp(torch.arange(4.0), leaves, lifetime_value=200.0, offer=0.0, contact=0.0) == pytest.approx(200 * 0.3 / 2)

    @pytest.mark.parametrize("costs", COSTS)
    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_every_threshold_at_every_gamma(self, seed: int, costs: dict[str, float]) -> None:
        scores, leaves = customers(seed)
        assert emp(scores, leaves, **costs) == pytest.approx(by_brute_force(scores, leaves, **costs), rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize("costs", COSTS)
    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_empulse(self, seed: int, costs: dict[str, float]) -> None:
        scores, leaves = customers(seed)
        theirs = {"clv": costs["lifetime_value"], "incentive_cost": costs["offer"], "contact_cost": costs["contact"]}
        expected = empc_score(leaves.int().numpy(), scores.numpy(), alpha=costs["alpha"], beta=costs["beta"], **theirs)
        assert expected > 0.05
        assert emp(scores, leaves, **costs) == pytest.approx(expected, rel=1e-6, abs=1e-6)

    def test_defaults_are_the_papers(self) -> None:
        scores, leaves = customers(0)
        assert emp(scores, leaves) == emp(scores, leaves, **PAPER) == pytest.approx(empc_score(leaves.int().numpy(), scores.numpy()), rel=1e-6)

    def test_only_the_order_of_scores_counts(self) -> None:
        scores, leaves = customers(1)
        assert emp((scores / 4).exp() - 100, leaves) == emp(scores, leaves) != emp(-scores, leaves)

    def test_batches_and_the_order_of_customers_do_not_matter(self) -> None:
        scores, leaves = customers(2)
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
        batched = ExpectedMaximumProfit()
        for part in order.split([7, 1, 40, 12]):
            batched.update(scores[part][:, None], leaves[part][:, None])
        assert float(batched.compute()) == emp(scores, leaves)

    def test_a_sharp_distribution_gives_the_best_threshold_in_hindsight(self) -> None:
        scores, leaves = customers(3)
        known = CampaignProfit("best")
        known.update(scores[:, None] + 1e-3 * leaves[:, None], leaves[:, None], torch.full((len(scores),), 200.0))
        broken_ties = scores + 1e-3 * leaves
        assert emp(broken_ties, leaves, alpha=3e7, beta=7e7) == pytest.approx(float(known.compute()), rel=1e-3)

    def test_unknown_targets_are_left_out(self) -> None:
        scores, leaves = customers(4)
        unknown = torch.arange(len(scores)) % 5 == 0
        asked = leaves.masked_fill(unknown, torch.nan)
        assert emp(scores, asked) == emp(scores[~unknown], leaves[~unknown]) != emp(scores, leaves)

    def test_nothing_known_is_nan(self) -> None:
        assert np.isnan(emp(torch.zeros(3), torch.full((3,), torch.nan)))

    @pytest.mark.parametrize(
        ("name", "wrong"), [("lifetime_value", 10.0), ("lifetime_value", float("nan")), ("offer", -1.0), ("contact", -0.5), ("alpha", 0.0), ("beta", -1.0)]
    )
    def test_wrong_arguments_are_named(self, name: str, wrong: float) -> None:
        with pytest.raises(ValueError, match=rf"^{name} must be .*{wrong}"):
            ExpectedMaximumProfit(**{name: wrong})

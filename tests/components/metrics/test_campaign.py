import pytest
import torch
from torch import Tensor

from components.metrics import CampaignProfit, CampaignRegret

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

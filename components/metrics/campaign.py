"""What a campaign earns by whom it targets."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.losses.costs import check_campaign, per_sample, value_of_targeting
from components.validation import require, require_choice


class CampaignProfit(Metric):
    r"""Profit of a retention campaign, per customer there is: what those targeted were worth targeting.

    .. math:: \frac{1}{N} \sum_i z_i v_i, \qquad v_i = \gamma (\mathrm{CLV}_i - d) - f \text{ if about to leave, else } -(d + f)

    with :math:`z_i` whether customer *i* is targeted.

    Args:
        rule: who is targeted. ``score``: a score above 0. ``average``: the score is a log odds of leaving, and targeting would pay for a customer of
            *average* lifetime value, the usual practice. ``individual``: the same with the customer's own. ``best``: the threshold on the score that
            would have been best for these very customers (maximum profit): how well they are ranked.
        budget: largest share of customers that can be targeted, in (0, 1]; those with the highest scores. None: no limit.
        accept: :math:`\gamma`, the probability that the offer keeps a customer who is about to leave, in (0, 1].
        offer: *d* >= 0, what the offer costs where it is taken.
        contact: *f* >= 0, what making it costs.

    Shapes:
        preds (N, 1), scores; target (N, 1), 1: about to leave; lifetime_value (N,), in money.

    Raises:
        ValueError: an option out of its range.

    Source:
        Verbeke et al., "New insights into churn prediction in the telecommunication sector: A profit driven data mining approach", EJOR 218, 2012;
        with individual values: Gómez-Vargas et al., EJOR 2025, arXiv:2310.07047.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    positive: list[Tensor]
    worth: list[Tensor]

    def __init__(self, rule: str = "score", *, budget: float | None = None, accept: float = 0.3, offer: float = 10.0, contact: float = 1.0) -> None:
        super().__init__()
        require_choice("rule", rule, ("score", "average", "individual", "best"))
        require(budget is None or 0 < budget <= 1, "budget must be in (0, 1], or null", budget)
        check_campaign(accept, offer, contact)
        self.rule, self.budget, self.accept, self.offer, self.contact = rule, budget, accept, offer, contact
        for name in ("scores", "positive", "worth"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, lifetime_value: Tensor) -> None:
        per_sample(lifetime_value, preds)
        kept = ~target[:, 0].isnan()
        self.scores.append(preds[:, 0].float()[kept])
        self.positive.append(target[:, 0].float()[kept])
        self.worth.append(lifetime_value.float()[kept])

    def values(self) -> Tensor:
        """What targeting each customer is worth."""
        positive, worth = (dim_zero_cat(state).cpu().double() for state in (self.positive, self.worth))
        return value_of_targeting(positive, worth, self.accept, self.offer, self.contact)

    def gain(self, scores: Tensor) -> Tensor:
        """How much the rule wants to target each customer: it does above 0."""
        if self.rule == "score":
            return scores
        worth = dim_zero_cat(self.worth).cpu().double()
        worth = worth.mean() if self.rule == "average" else worth
        return value_of_targeting(scores.sigmoid(), worth, self.accept, self.offer, self.contact)

    def compute(self) -> Tensor:
        scores, values = dim_zero_cat(self.scores).cpu().double(), self.values()
        if self.rule == "best":
            order = scores.argsort(descending=True, stable=True)[: self.most(len(scores))]
            return (values[order].cumsum(0).clamp(min=0).max() / len(scores)).float()
        gain = self.gain(scores)
        chosen = gain.argsort(descending=True, stable=True)[: self.most(len(scores))]
        return ((gain[chosen] > 0) * values[chosen]).sum().div(len(scores)).float()

    def most(self, customers: int) -> int:
        """How many can be targeted."""
        return customers if self.budget is None else int(self.budget * customers + 1e-9)


class CampaignRegret(CampaignProfit):
    """What the campaign earned less than one that knew who leaves, per customer: 0 is perfect. Arguments as of :class:`CampaignProfit`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        values = self.values()
        best = values.clamp(min=0).sort(descending=True).values[: self.most(len(values))]
        return (best.sum() / len(values)).float() - super().compute()

"""What a campaign earns by whom it targets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betainc
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.losses.costs import check_campaign, per_sample, value_of_targeting
from components.metrics.selective import counted
from components.validation import require, require_choice


class OfCustomers(Metric):
    """Base of metrics of all customers of a split at once: gathers scores and who is about to leave, and leaves out of whom that is not known (NaN)."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    positive: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        kept = ~target[:, 0].isnan()
        self.scores.append(preds[:, 0].float()[kept])
        self.positive.append(target[:, 0].float()[kept])


class CampaignProfit(OfCustomers):
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

    worth: list[Tensor]

    def __init__(self, rule: str = "score", *, budget: float | None = None, accept: float = 0.3, offer: float = 10.0, contact: float = 1.0) -> None:
        super().__init__()
        require_choice("rule", rule, ("score", "average", "individual", "best"))
        require(budget is None or 0 < budget <= 1, "budget must be in (0, 1], or null", budget)
        check_campaign(accept, offer, contact)
        self.rule, self.budget, self.accept, self.offer, self.contact = rule, budget, accept, offer, contact
        self.add_state("worth", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, lifetime_value: Tensor) -> None:  # type: ignore[override]
        per_sample(lifetime_value, preds)
        super().update(preds, target)
        self.worth.append(lifetime_value.float()[~target[:, 0].isnan()])

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


class ExpectedMaximumProfit(OfCustomers):
    r"""Expected maximum profit for churn (EMPC), per customer: the best threshold's on the score, where how readily the offer is accepted is uncertain.

    .. math:: \int_0^1 \max_t P(t; \gamma)\, h(\gamma)\, d\gamma, \qquad
              P(t; \gamma) = \pi_0 F_0(t)\, (\gamma (\mathrm{CLV} - d) - f) - \pi_1 F_1(t)\, (d + f)

    with :math:`\pi_0` the share of customers about to leave, :math:`\pi_1` of the others, :math:`F_0(t), F_1(t)` the share of each that scores at least *t*
    and is targeted, and *h* the density of :math:`\mathrm{Beta}(\alpha, \beta)`. To target nobody is a threshold too, so it is never below 0; it is 0
    where nobody is about to leave, and NaN over nobody.

    Only the order of the scores counts. The best thresholds are the vertices of the convex hull of the ROC curve, each of them from the :math:`\gamma` on
    at which it earns what the one before it does, and over such an interval the integral is a difference of incomplete beta functions: nothing is
    approximated.

    Args:
        lifetime_value: CLV > *d*, what a customer is worth if kept, on average.
        offer: *d* >= 0, what the offer costs where it is taken.
        contact: *f* >= 0, what making it costs.
        alpha: :math:`\alpha` > 0 of the distribution of :math:`\gamma`, the probability that the offer keeps a customer who is about to leave.
        beta: :math:`\beta` > 0 of it; the mean is :math:`\alpha / (\alpha + \beta)`, 0.3 as the paper has it.

    Shapes:
        preds (N, 1), scores; target (N, 1), 1: about to leave, NaN: unknown and left out.

    Raises:
        ValueError: an option out of its range.

    Source:
        Verbraken, Verbeke, Baesens, "A Novel Profit Maximizing Metric for Measuring Classification Performance of Customer Churn Prediction Models",
        IEEE TKDE 25(5), 2013.
    """

    def __init__(self, lifetime_value: float = 200.0, *, offer: float = 10.0, contact: float = 1.0, alpha: float = 6.0, beta: float = 14.0) -> None:
        super().__init__()
        require(alpha > 0, "alpha must be > 0", alpha)
        require(beta > 0, "beta must be > 0", beta)
        self.accept = alpha / (alpha + beta)
        check_campaign(self.accept, offer, contact)
        require(lifetime_value > offer, f"lifetime_value must be > offer ({offer})", lifetime_value)
        self.lifetime_value, self.offer, self.contact, self.alpha, self.beta = lifetime_value, offer, contact, alpha, beta

    def compute(self) -> Tensor:
        scores, positive = (dim_zero_cat(state).cpu().double() for state in (self.scores, self.positive))
        leavers, others = roc_hull(scores, positive)
        kept = self.lifetime_value - self.offer
        costs = self.contact * leavers + (self.offer + self.contact) * others
        earned = kept * np.diff(leavers)
        # targeting more customers none of whom leaves pays at no gamma
        break_even = np.divide(np.diff(costs), earned, out=np.full_like(earned, np.inf), where=earned > 0)
        limits = np.concatenate([[0.0], break_even.clip(0, 1), [1.0]])
        probability = np.diff(betainc(self.alpha, self.beta, limits))
        accepted = self.accept * np.diff(betainc(self.alpha + 1, self.beta, limits))  # integral of gamma h(gamma) over each interval
        return torch.tensor(kept * leavers @ accepted - costs @ probability).div(len(scores)).float()


def roc_hull(scores: Tensor, positive: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many of those about to leave and how many others are targeted at each vertex of the ROC curve's upper convex hull, from nobody to everybody.

    Numbers, not shares: the hull is the same, they are exact, and there may be none of either.

    Args:
        scores: (N,); equal ones are targeted together.
        positive: whether the customer is about to leave, (N,).
    """
    hull = [(0.0, 0.0)]
    for others, leavers in zip(*(counts.tolist() for counts in counted(scores, positive)), strict=True):
        while len(hull) > 1 and not _bends_down(hull[-2], hull[-1], (leavers, others)):
            hull.pop()
        hull.append((leavers, others))
    vertices = np.array(hull)
    return vertices[:, 0], vertices[:, 1]


def _bends_down(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Whether the way on from the second point gains fewer of those about to leave per other customer than the way to it."""
    return (second[0] - first[0]) * (third[1] - second[1]) > (third[0] - second[0]) * (second[1] - first[1])

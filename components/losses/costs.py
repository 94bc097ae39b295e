r"""Losses of decisions that cost money: whom to make an offer, and what to leave unanswered.

A score's sign is the decision. What a decision is worth differs from sample to sample (:class:`ProfitRegretLoss`), or from answer to abstention
(:class:`RejectionLoss`); both learn the score such that zero is the right threshold.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Loss, Reduction, reduce_values
from components.losses.margins import known_labels, label_weights
from components.validation import require, require_choice

STEEPEST = 8.0
"""Exponent up to which an exponential is one; beyond it goes on along its tangent."""


def value_of_targeting(positive: Tensor, lifetime_value: Tensor, accept: float | Tensor, offer: float | Tensor, contact: float | Tensor) -> Tensor:
    r"""What a campaign gains by targeting a customer: :math:`\gamma (\mathrm{CLV} - d) - f` from one about to leave, :math:`-(d + f)` from any other.

    Args:
        positive: whether the customer is about to leave, in [0, 1], (N, …).
        lifetime_value: CLV, what the customer is worth if kept, broadcastable to ``positive``.
        accept: :math:`\gamma`, the probability that the offer keeps a customer who is about to leave.
        offer: *d*, what the offer costs where it is taken.
        contact: *f*, what making it costs.
    """
    return positive * (accept * (lifetime_value - offer) - contact) - (1 - positive) * (offer + contact)


def per_sample(lifetime_value: Tensor, logits: Tensor) -> Tensor:
    """(N,) as (N, 1, …), to go with ``logits``.

    Raises:
        ValueError: naming ``lifetime_value``, where it is not one value a sample.
    """
    if lifetime_value.shape != logits.shape[:1]:
        raise ValueError(f"lifetime_value must hold one value a sample, shape {tuple(logits.shape[:1])}, but got {tuple(lifetime_value.shape)}")
    return lifetime_value.reshape(-1, *[1] * (logits.ndim - 1))


def check_campaign(accept: float, offer: float, contact: float) -> None:
    require(0 < accept <= 1, "accept must be in (0, 1]", accept)
    require(offer >= 0, "offer must be >= 0", offer)
    require(contact >= 0, "contact must be >= 0", contact)


class ProfitRegretLoss(Loss):
    r"""Whom a retention campaign should target: learns the decision from what it is worth, not the probability of leaving.

    Targeting customer *i* gains

    .. math:: v_i = \begin{cases} \gamma\,(\mathrm{CLV}_i - d) - f & \text{about to leave} \\ -(d + f) & \text{not} \end{cases}

    the best decision is :math:`z_i^* = [v_i > 0]`, the score's is :math:`[s_i > 0]`, and the regret :math:`(z_i^* - [s_i > 0])\, v_i \ge 0` is minimised by
    one of three surrogates:

    .. math:: \ell_i = \max(0,\, |v_i| - 2 s_i \operatorname{sign} v_i) \;(\texttt{spo}), \qquad \max(v_i, 0) - v_i\, \sigma(s_i / T) \;(\texttt{smooth}),
              \qquad |v_i| \operatorname{BCE}(s_i, z_i^*) \;(\texttt{weighted})

    ``spo`` (SPO+) is convex and above the regret; its score predicts :math:`v_i`, in money. ``smooth`` is the expected regret of a decision taken with
    probability :math:`\sigma(s/T)`; not convex. ``weighted`` is cross-entropy on the best decision, weighted by what is at stake; convex.

    Try it where customers' values differ and can be told from what is known of them: a campaign by probability alone reaches those likely to leave,
    not those worth keeping. Its metric is :class:`components.metrics.CampaignProfit`.

    Our reading: the profit's form is that of the churn literature, and which surrogate the paper trains is not confirmed.

    Args:
        surrogate: ``"spo"`` | ``"smooth"`` | ``"weighted"``.
        accept: :math:`\gamma`, the probability that the offer keeps a customer who is about to leave, in (0, 1].
        offer: *d* >= 0, what the offer costs where it is taken.
        contact: *f* >= 0, what making it costs.
        temperature: *T* > 0 of ``smooth``.
        unit: values are divided by it, > 0: losses and ``spo``'s scores are in units of so much money, which a learning rate may like small.
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (shaped like ``logits``).

    Shapes:
        logits (N, 1) or (N, C, d1, …), raw; target_multi_hot of the same shape, 1: about to leave; lifetime_value (N,), in money.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, 1].

    Source:
        Gómez-Vargas, Maldonado, Vairetti, "A predict-and-optimize approach to profit-driven churn prevention", EJOR 2025, arXiv:2310.07047; SPO+:
        Elmachtoub and Grigas, "Smart 'Predict, then Optimize'", Management Science 2022, arXiv:1710.08005.
    """

    def __init__(
        self,
        surrogate: str = "smooth",
        *,
        accept: float = 0.3,
        offer: float = 10.0,
        contact: float = 1.0,
        temperature: float = 1.0,
        unit: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require_choice("surrogate", surrogate, ("spo", "smooth", "weighted"))
        check_campaign(accept, offer, contact)
        require(temperature > 0, "temperature must be > 0", temperature)
        require(unit > 0, "unit must be > 0", unit)
        self.surrogate = surrogate
        self.accept: float | Tensor = accept
        self.offer: float | Tensor = offer
        self.contact: float | Tensor = contact
        self.temperature: float | Tensor = temperature
        self.unit: float | Tensor = unit

    def forward(self, logits: Tensor, target_multi_hot: Tensor, lifetime_value: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        scores = logits.to(positive.dtype)
        worth = per_sample(lifetime_value, logits).to(positive.dtype)
        value = value_of_targeting(positive, worth, self.accept, self.offer, self.contact) / self.unit
        if self.surrogate == "spo":
            values = F.relu(value.abs() - 2 * scores * value.sign())
        elif self.surrogate == "smooth":
            values = F.relu(value) - value * (scores / self.temperature).sigmoid()
        else:
            values = value.abs() * F.softplus(-scores * value.sign())
        return reduce_values(values, label_weights(values, kept, None), self.reduction).to(logits.dtype)


class RejectionLoss(Loss):
    r"""Which answers of a fixed predictor to give and which to withhold: a rejector's score, whose threshold is zero by construction.

    A wrong answer given costs 1, an answer withheld costs *c*, so an answer should be given iff it is wrong with probability below *c*. With
    *a* = 1 where the predictor is right and -1 where it is wrong, and *r* the rejector's score (give the answer iff *r* > 0),

    .. math:: \ell = e^{\frac{\alpha}{2} (r - a)} + c\, e^{-\beta r}, \qquad
              \beta = \frac{\alpha}{2c} \left( c\, e^{\alpha / 2} + (1 - c)\, e^{-\alpha / 2} \right)

    lies above that cost, is convex, and with this :math:`\beta` its expectation is least at a positive *r* exactly where wrong answers are rarer than *c*.
    Beyond an exponent of 8, far from where the minimum can be, each exponential goes on along its tangent (ours): scores may be any size and a step
    cannot be. Clipping *r* would not do: with *c* = 0.05, :math:`\beta` is near 10.

    Try it where a wrong answer is worse than none and the predictor cannot be changed. With ``task=rejection`` the columns mean: *logits* the rejector's
    score, *target_multi_hot* whether the predictor is right. Choose *c* as the share of errors that is still acceptable among the hardest answers given.

    Args:
        cost: *c* of withholding an answer, in (0, 1).
        alpha: :math:`\alpha` in (0, 8], steepness; the paper's figure has 2.
        ignore_index: target value that contributes neither value nor gradient (as NaN does).
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (shaped like ``logits``).

    Shapes:
        logits (N, 1) or (N, C, d1, …), scores; target_multi_hot of the same shape, 1: the predictor is right, 0: wrong, between: the mean of both.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or a target lies outside [0, 1].

    Source:
        Mohri, Andor, Choi, Collins, Mao, Zhong, "Learning to Reject with a Fixed Predictor: Application to Decontextualization", ICLR 2024,
        arXiv:2301.09044. The relation of alpha, beta and c is the paper's; that the loss is calibrated with it is checked by its tests.
    """

    def __init__(self, cost: float = 0.05, *, alpha: float = 2.0, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        require(0 < cost < 1, "cost must be in (0, 1)", cost)
        require(0 < alpha <= 8, "alpha must be in (0, 8]", alpha)
        self.cost: float | Tensor = cost
        self.alpha: float | Tensor = alpha

    @property
    def beta(self) -> float | Tensor:
        r""":math:`\beta`, as the loss's calibration ties it to *c* and :math:`\alpha`."""
        half = math.e ** (self.alpha / 2)
        return self.alpha / (2 * self.cost) * (self.cost * half + (1 - self.cost) / half)

    def forward(self, logits: Tensor, target_multi_hot: Tensor) -> Tensor:
        positive, kept = known_labels(logits, target_multi_hot, self.ignore_index)
        scores = logits.to(positive.dtype)
        right, wrong = (exponential(self.alpha / 2 * (scores - a)) for a in (1, -1))
        values = wrong + positive * (right - wrong) + self.cost * exponential(-self.beta * scores)
        return reduce_values(values, label_weights(values, kept, None), self.reduction).to(logits.dtype)


def exponential(exponent: Tensor) -> Tensor:
    """``exp``, from :data:`STEEPEST` on its tangent: convex, increasing, finite."""
    return exponent.clamp(max=STEEPEST).exp() * (1 + F.relu(exponent - STEEPEST))

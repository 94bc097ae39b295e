"""Is a classifier as sure as it is right, and what is left unanswered: calibration and selective prediction."""

from __future__ import annotations

import torch
import torchmetrics.classification as tm
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.metrics.base import Quotient
from components.validation import require


def confidence_and_correctness(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability of each sample whose class is known (not negative), and whether it is that class's."""
    confidence, predicted = preds.float().softmax(1).max(1)
    kept = target >= 0
    return confidence[kept], (predicted == target)[kept]


class ConfidenceAUROC(tm.BinaryAUROC):
    """Area under the ROC curve of confidence against correctness: the probability that a right answer is given with more confidence than a wrong one.

    Shapes:
        preds (N, C) logits; target (N,), class indices; negative ones are not counted.

    Source:
        Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", ICLR 2017, arXiv:1610.02136.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        confidence, right = confidence_and_correctness(preds, target)
        super().update(confidence, right.long())


class BrierScore(Quotient):
    r"""Squared distance of the probabilities from the one-hot target, in [0, 2].

    .. math:: \frac{1}{N} \sum_i \sum_k (p_{ik} - [y_i = k])^2

    Shapes:
        preds (N, C) logits; target (N,), class indices; negative ones are not counted.

    Source:
        Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78, 1950.
    """

    higher_is_better = False
    is_differentiable = True

    def __init__(self) -> None:
        super().__init__()

    def update(self, preds: Tensor, target: Tensor) -> None:
        kept = target >= 0
        distance = (preds.float().softmax(1) - one_hot(target.clamp(min=0), preds.shape[1])).square().sum(1)
        self.add((distance * kept).sum(), kept.sum())


class KSCalibrationError(Metric):
    r"""Kolmogorov–Smirnov calibration error: how far confidence and correctness drift apart, summed up from the least sure answer; no bins.

    .. math:: \max_n \frac{1}{N} \Bigl| \sum_{i \le n} (c_{(i)} - r_{(i)}) \Bigr|

    with confidences :math:`c_{(1)} \le c_{(2)} \le \dots` and :math:`r` whether the answer is right. Equally sure answers are added together.

    Shapes:
        preds (N, C) logits; target (N,), class indices; negative ones are not counted.

    Source:
        Gupta et al., "Calibration of Neural Networks using Splines", ICLR 2021, arXiv:2006.12800.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    confidence: list[Tensor]
    right: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        confidence, right = confidence_and_correctness(preds, target)
        self.confidence.append(confidence)
        self.right.append(right)

    def compute(self) -> Tensor:
        confidence, order = dim_zero_cat(self.confidence).cpu().double().sort()
        drift = (confidence - dim_zero_cat(self.right).cpu().double()[order]).cumsum(0)
        return (drift[last_of_equals(confidence)].abs().max() / len(drift)).float()


class Selective(Metric):
    """Base of metrics of a rejector: gathers scores and whether the predictor is right, and leaves out what is not known (NaN).

    Shapes:
        preds (N, 1), the rejector's scores, an answer is given iff above 0; target (N, 1), 1 where the predictor is right, 0 where it is wrong.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    right: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        kept = ~target.isnan()
        self.scores.append(preds.float()[kept])
        self.right.append(target.float()[kept])

    def gathered(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.scores).cpu().double(), dim_zero_cat(self.right).cpu().double()

    def curve(self) -> tuple[Tensor, Tensor]:
        """Coverage and precision at every threshold, from the surest answer down: equally scored answers are given together."""
        scores, right = self.gathered()
        scores, order = scores.sort(descending=True)
        given = torch.arange(1, len(scores) + 1, dtype=torch.float64)
        last = last_of_equals(scores)
        return (given / len(scores))[last], (right[order].cumsum(0) / given)[last]


class Coverage(Selective):
    """Share of the answers that are given (score above 0)."""

    def compute(self) -> Tensor:
        return (self.gathered()[0] > 0).double().mean().float()


class SelectivePrecision(Selective):
    """Share of right answers among those given; 1 if none is."""

    def compute(self) -> Tensor:
        scores, right = self.gathered()
        given = scores > 0
        return (right[given].mean() if bool(given.any()) else torch.ones(())).float()


class PrecisionCoverageArea(Selective):
    r"""Area under the precision–coverage curve: the mean precision over all coverages.

    .. math:: \int_0^1 \mathrm{precision}(c)\, dc, \qquad \text{by trapezoids; flat to the left of the first point}

    Source:
        One minus the area under the risk–coverage curve of El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010.
    """

    def compute(self) -> Tensor:
        coverage, precision = self.curve()
        coverage, precision = torch.cat([torch.zeros(1), coverage]), torch.cat([precision[:1], precision])
        return torch.trapezoid(precision, coverage).float()


class CoverageAtPrecision(Selective):
    """The largest coverage at which the answers given are right in a share of ``precision``; 0 if there is none.

    Args:
        precision: in (0, 1].

    Raises:
        ValueError: if ``precision`` is outside (0, 1].
    """

    def __init__(self, precision: float = 0.95) -> None:
        super().__init__()
        require(0 < precision <= 1, "precision must be in (0, 1]", precision)
        self.precision = precision

    def compute(self) -> Tensor:
        coverage, precision = self.curve()
        return torch.where(precision >= self.precision, coverage, torch.zeros_like(coverage)).max().float()


class RejectionCost(Selective):
    r"""Mean cost of what a rejector does: 1 for a wrong answer given, ``cost`` for an answer withheld.

    .. math:: \frac{1}{N} \sum_i [a_i = -1][r_i > 0] + c\,[r_i \le 0]

    Args:
        cost: *c* in (0, 1).

    Raises:
        ValueError: if ``cost`` is outside (0, 1).

    Source:
        Mohri et al., "Learning to Reject with a Fixed Predictor", ICLR 2024, arXiv:2301.09044.
    """

    higher_is_better = False

    def __init__(self, cost: float = 0.05) -> None:
        super().__init__()
        require(0 < cost < 1, "cost must be in (0, 1)", cost)
        self.cost = cost

    def compute(self) -> Tensor:
        scores, right = self.gathered()
        return torch.where(scores > 0, 1 - right, torch.full_like(right, self.cost)).mean().float()


def last_of_equals(values: Tensor) -> Tensor:
    """Where a sorted 1-D tensor goes on to another value, its end included."""
    return torch.cat([values[1:] != values[:-1], values.new_ones(min(len(values), 1), dtype=torch.bool)])


def counted(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """How many negatives and how many positives score at or above each threshold (each score that there is, from the highest down), in float64."""
    scores, order = scores.sort(descending=True)
    positive, last = positive[order].double(), last_of_equals(scores)
    return (1 - positive).cumsum(0)[last], positive.cumsum(0)[last]

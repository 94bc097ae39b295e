"""Rates of the confusion matrix, of hard decisions: the metrics that :class:`components.losses.AnyLoss` makes into losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchmetrics.classification as tm
from torch import Tensor
from torchmetrics import Metric

from components.losses.confusion import RATES, Confusion, confusion
from components.metrics.classification import FromLogits
from components.validation import require, require_choice

COMPLEMENTS: Mapping[str, str] = {
    "false_discovery_rate": "precision",
    "false_negative_rate": "recall",
    "false_positive_rate": "specificity",
}
"""Rates of which less is better, and what they are one minus of."""


class ConfusionRate(Metric):
    r"""A rate of each label's confusion matrix, averaged over labels; a rate without anything to count (0/0) is 0.

    .. math:: \frac{1}{C} \sum_c \mathrm{rate}(TP_c, FN_c, FP_c, TN_c)

    Args:
        rate: ``accuracy``, ``balanced_accuracy``, ``f_beta``, ``gmean`` (the root of recall times specificity), ``jaccard``, ``mcc``,
            ``negative_predictive_value``, ``precision``, ``recall``, ``specificity``; or ``false_discovery_rate``, ``false_negative_rate``,
            ``false_positive_rate``, of which less is better.
        beta: of ``f_beta``: recall counts *beta* times as much as precision.
        threshold: a label is called positive if its probability is above it.

    Shapes:
        preds (N, C) or (N, C, d1, …), logits, C = 1 for two classes; target of the same shape, in {0, 1}; NaN is unknown and not counted.

    Raises:
        ValueError: an unknown rate, ``beta < 0`` or a threshold outside (0, 1).

    Source:
        Terven et al., "Loss Functions and Metrics in Deep Learning", 2023, arXiv:2307.02694; Han et al., "AnyLoss", 2024, arXiv:2405.14745.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, rate: str = "f_beta", *, beta: float = 1.0, threshold: float = 0.5) -> None:
        super().__init__()
        require_choice("rate", rate, [*RATES, *COMPLEMENTS])
        require(beta >= 0, "beta must be >= 0", beta)
        require(0 < threshold < 1, "threshold must be in (0, 1)", threshold)
        self.rate, self.beta, self.threshold = rate, beta, threshold
        self.add_state("counts", torch.zeros(4, 1, dtype=torch.long), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.rate not in COMPLEMENTS

    def update(self, preds: Tensor, target: Tensor) -> None:
        kept = ~target.isnan()
        called = (preds.float().sigmoid() > self.threshold).float()
        self.counts = self.counts + torch.stack(confusion(called, target.float().masked_fill(~kept, 0), kept)).long()

    def compute(self) -> Tensor:
        counts = Confusion(*self.counts.cpu().double())
        value = RATES[COMPLEMENTS.get(self.rate, self.rate)](counts, self.beta, 1e-30).mean().float()
        return 1 - value if self.rate in COMPLEMENTS else value


class BinaryAveragePrecision(FromLogits, tm.BinaryAveragePrecision):
    """Area under the precision–recall curve, from logits: :class:`torchmetrics.classification.BinaryAveragePrecision`."""

"""Metrics of classification that torchmetrics lacks, or that it would compute from the wrong numbers.

torchmetrics guesses, batch by batch, whether it was given logits or probabilities: a batch whose logits all lie in [0, 1] counts as
probabilities. Metrics of a task's logits must not guess, so those here that need probabilities make them first. Their
``update`` takes ``preds`` and ``target`` as torchmetrics' own do; option files say which quantities those are.
"""

from __future__ import annotations

import torch
import torchmetrics.classification as tm
from torch import Tensor
from torchmetrics import Metric

from components.metrics.base import Quotient
from components.validation import require


class FromLogits(Metric):
    """Mixin before a binary or multi-label metric of torchmetrics: ``preds`` are logits, ``target`` is multi-hot of any type."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().sigmoid(), target.long())  # type: ignore[safe-super]


class BinaryAccuracy(FromLogits, tm.BinaryAccuracy):
    """Share of right answers, from logits: :class:`torchmetrics.classification.BinaryAccuracy`."""


class BinaryF1Score(FromLogits, tm.BinaryF1Score):
    """Harmonic mean of precision and recall, from logits: :class:`torchmetrics.classification.BinaryF1Score`."""


class BinaryAUROC(FromLogits, tm.BinaryAUROC):
    """Area under the ROC curve, from logits: :class:`torchmetrics.classification.BinaryAUROC`."""


class MultilabelAccuracy(FromLogits, tm.MultilabelAccuracy):
    """Share of right labels, from logits: :class:`torchmetrics.classification.MultilabelAccuracy`."""


class MultilabelF1Score(FromLogits, tm.MultilabelF1Score):
    """F1 of each label, averaged, from logits: :class:`torchmetrics.classification.MultilabelF1Score`."""


class MultilabelAveragePrecision(FromLogits, tm.MultilabelAveragePrecision):
    """Mean average precision over labels, from logits: :class:`torchmetrics.classification.MultilabelAveragePrecision`."""


class CalibrationError(Metric):
    r"""Expected calibration error of the most probable class: how far confidence and accuracy lie apart.

    With :math:`B_b` the samples whose confidence :math:`\max_c p_c` lies in the *b*-th of ``n_bins`` equal bins of (0, 1],

    .. math:: \mathrm{ECE} = \sum_b \frac{|B_b|}{N}\,\bigl|\mathrm{accuracy}(B_b) - \mathrm{confidence}(B_b)\bigr|

    Three sums a bin are kept, whatever the size of the set; torchmetrics' own keeps every sample's confidence.

    Args:
        n_bins: number of bins.

    Shapes:
        preds (N, C) logits; target (N,), class indices.

    Raises:
        ValueError: if ``n_bins < 1``.

    Source:
        Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; with bins of the most
        probable class: Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, eq. 3.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, n_bins: int = 15) -> None:
        super().__init__()
        require(n_bins >= 1, "n_bins must be >= 1", n_bins)
        self.n_bins = n_bins
        self.add_state("sums", torch.zeros(3, n_bins), dist_reduce_fx="sum")  # samples, confidence, right answers

    def update(self, preds: Tensor, target: Tensor) -> None:
        confidence, predicted = preds.float().softmax(1).max(1)
        bins = (confidence * self.n_bins).ceil().long().clamp(1, self.n_bins) - 1
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == target).to(confidence.dtype)])
        self.sums = self.sums.index_add(1, bins, rows)

    def compute(self) -> Tensor:
        samples, confidence, right = self.sums
        return (right - confidence).abs().sum() / samples.sum()


class Agreement(Quotient):
    r"""Share of samples for which two classifiers choose the same class, right or wrong: how closely a student follows its teacher.

    .. math:: \frac{1}{N} \sum_i \bigl[\arg\max_c z_{ic} = \arg\max_c z'_{ic}\bigr]

    Shapes:
        preds and target (N, C) or (N, C, d1, …), scores of the classes.

    Source:
        Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021, arXiv:2106.05945, section 3 (top-1 agreement).
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(whole=True)

    def update(self, preds: Tensor, target: Tensor) -> None:
        same = preds.argmax(1) == target.argmax(1)
        self.add(same.sum(), same.numel())

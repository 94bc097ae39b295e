"""Learning from label proportions: samples come in bags, and of a bag only the share of each class is known.

The element is the sample, whose value is its own (EasyLLP) or its bag's (proportion matching). Two classes may have one logit, the score of class 1:
it is read as the two logits (0, score).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.losses.base import Loss, Reduction, at_least_float32
from components.losses.classification import CrossEntropyLoss
from components.validation import require


class EasyLLPLoss(Loss):
    r"""Makes any loss of single samples one of label proportions: an unbiased estimate of it, sample by sample.

    In a bag of *k* independent samples with proportions :math:`\alpha`, and with *p* the proportions of all bags together,

    .. math:: \ell = \sum_c \tilde y_c\, \ell_{\text{base}}(z, c), \qquad \tilde y_c = k\,(\alpha_c - p_c) + p_c,
              \qquad \mathbb{E}[\tilde y_c \mid x] = P(y = c \mid x)

    so its expectation is that of the base loss under the true labels, whatever the model says. The soft label lies outside [0, 1] for most bags: the
    variance grows with *k*, and the training loss may fall below 0 without bound (stop early, or regularise). ``k = 1`` is the base loss itself.
    For the cross-entropy of one score *h* it is :math:`\log(1 + e^h) - \tilde y_1 h`.

    Try it where only totals of groups are published (votes of a precinct, conversions of a campaign) and single samples are to be told.

    The base loss is evaluated for all classes of all samples: :math:`O(N C^2)` time and memory.

    Args:
        class_counts: training samples of each class, which give *p*; filled in from the data. They follow from the proportions and sizes of the bags.
        base: the loss of ``(logits, target)`` that is wrapped, with class indices as target; ``None``: cross-entropy.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample).

    Shapes:
        logits (N, C), or (N, 1) for two classes; proportions (N, C), of each sample's bag; bag_size (N,), samples of each sample's bag.

    Raises:
        ValueError: if counts are negative or all 0, ``base`` has no ``reduction``, or shapes disagree.

    Source:
        Busa-Fekete, Choi, Dick, Gentile, Munoz Medina, "Easy Learning from Label Proportions", NeurIPS 2023, arXiv:2302.03115.
    """

    dense: ClassVar[bool] = False

    prior: Tensor

    def __init__(self, class_counts: Sequence[int], base: nn.Module | None = None, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        fits = counts.ndim == 1 and bool((counts >= 0).all()) and bool((counts > 0).any())
        require(fits, "class_counts must be a list of counts >= 0, one a class, not all 0", class_counts)
        self.register_buffer("prior", (counts / counts.sum()).to(torch.get_default_dtype()))
        base = CrossEntropyLoss() if base is None else base
        require(hasattr(base, "reduction"), "base must be a loss with a reduction", type(base).__name__)
        self.base = copy.deepcopy(base)  # whose reduction may be another elsewhere
        self.base.reduction = "none"  # type: ignore[assignment]

    def forward(self, logits: Tensor, proportions: Tensor, bag_size: Tensor) -> Tensor:
        scores = two_or_more_logits(logits)
        check_proportions(scores, proportions)
        if bag_size.shape != logits.shape[:1]:
            raise ValueError(f"bag_size must have shape {tuple(logits.shape[:1])}, but got {tuple(bag_size.shape)}")
        samples, classes = scores.shape
        if len(self.prior) != classes:
            raise ValueError(f"class_counts must have one count for each of the {classes} classes, but got {len(self.prior)}")
        prior, size = self.prior.to(scores.dtype), bag_size.to(scores.dtype).unsqueeze(1)
        soft_label = size * (proportions.to(scores.dtype) - prior) + prior
        each_class = torch.arange(classes, device=logits.device).repeat(samples)
        losses: Tensor = self.base(scores.repeat_interleave(classes, 0), each_class)
        return self.reduce((soft_label * losses.reshape(samples, classes)).sum(1).to(logits.dtype))


class ProportionMatchingLoss(Loss):
    r"""The mean prediction over a bag should be the bag's proportions: cross-entropy between the two (DLLP).

    .. math:: \ell_B = -\sum_c \alpha_c \log \frac{1}{|B|} \sum_{i \in B} \operatorname{softmax}(z_i)_c

    which is the Kullback-Leibler divergence but for a constant. The best score is reached by right proportions, even if every sample
    of the bag is predicted alike; bags of one sample give cross-entropy.

    Try it first: it is what other ways to learn from proportions are compared with. A batch must hold whole bags: of a bag torn over two batches
    it matches each half with the proportions of the whole.

    Takes :math:`O(N^2)` memory for the bags and :math:`O(N C)` for the predictions.

    Args:
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per sample: its bag's), so that the mean weighs bags by their size.

    Shapes:
        logits (N, C), or (N, 1) for two classes; proportions (N, C), of each sample's bag; bag (N,), the number of each sample's bag.

    Raises:
        ValueError: if shapes disagree or ``bag`` is not of integers.

    Source:
        Ardehaly and Culotta, "Co-training for Demographic Classification Using Deep Learning from Label Proportions", 2017, arXiv:1709.04108.
    """

    dense: ClassVar[bool] = False

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, logits: Tensor, proportions: Tensor, bag: Tensor) -> Tensor:
        scores = two_or_more_logits(logits)
        check_proportions(scores, proportions)
        if bag.shape != logits.shape[:1] or bag.is_floating_point():
            raise ValueError(f"bag must hold one whole number a sample, shape {tuple(logits.shape[:1])}, but got {bag.dtype} {tuple(bag.shape)}")
        log_mean = log_mean_over_bags(scores.log_softmax(1), bag)
        return self.reduce(-(proportions.to(scores.dtype) * log_mean).sum(1).to(logits.dtype))


def log_mean_over_bags(log_p: Tensor, bag: Tensor) -> Tensor:
    """(N, C): the logarithm of the mean of ``exp(log_p)`` over all samples of each sample's bag."""
    same = bag.unsqueeze(0) == bag.unsqueeze(1)
    if not len(bag):
        return log_p
    first = same.to(torch.int8).argmax(1)  # stands for the bag
    index = first.unsqueeze(1).expand_as(log_p)
    lowest = torch.full_like(log_p, torch.finfo(log_p.dtype).min)
    highest = lowest.scatter_reduce(0, index, log_p.detach(), "amax").gather(0, index)  # of the bag: its exponentials neither overflow nor all vanish
    total = torch.zeros_like(log_p).index_add(0, first, (log_p - highest).exp()).index_select(0, first)
    return highest + total.log() - same.sum(1, keepdim=True).to(log_p.dtype).log()


def two_or_more_logits(logits: Tensor) -> Tensor:
    """Logits (N, C) in float32 at least; the score of class 1 alone, (N, 1), becomes (0, score).

    Raises:
        ValueError: naming ``logits``, unless they are (N, C).
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (N, C), but got {tuple(logits.shape)}")
    logits = logits.to(at_least_float32(logits.dtype))
    return pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def check_proportions(logits: Tensor, proportions: Tensor) -> None:
    if proportions.shape != logits.shape:
        raise ValueError(f"proportions must have one value a class, shape {tuple(logits.shape)}, but got {tuple(proportions.shape)}")
    if not proportions.is_floating_point():
        raise ValueError(f"proportions must be real values in [0, 1], but got {proportions.dtype}")

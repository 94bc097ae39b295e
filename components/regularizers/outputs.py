"""Regularizers on what a model puts out: how confident its predictions are, how large its representation is."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from components.regularizers.base import Regularizer, widened
from components.validation import require


class ConfidencePenalty(Regularizer):
    r"""Negative entropy of the predicted distribution: minimising it keeps predictions from becoming certain.

    .. math:: R = -\frac{1}{N} \sum_i H(p_i), \qquad H(p) = -\sum_c p_c \log p_c, \quad p_i = \operatorname{softmax}(z_i)

    It lies between :math:`-\log C` (uniform) and 0 (certain). With a ``threshold`` :math:`\Gamma` only entropies below it are
    penalised, which lets a network learn quickly at first and acts as it grows too sure:

    .. math:: R = \frac{1}{N} \sum_i \max(0, \Gamma - H(p_i))

    A single logit a sample is read as a binary prediction, :math:`p = (\sigma(z), 1 - \sigma(z))`.

    Args:
        threshold: entropy in nats below which a prediction is penalised, >= 0; none penalises all. Default none.

    Shapes:
        logits: (N, C) or (N, C, d1, …), raw, one distribution over C for each sample or position. The value is a scalar, the
        mean over samples and positions.

    Raises:
        ValueError: if ``threshold`` is negative, or ``logits`` has no class dimension.

    Source:
        Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017, arXiv:1701.06548
        (which prints the threshold's term with the opposite sign; taken literally that would reward confidence).
    """

    lower_bound: ClassVar[float] = -math.inf  # -log C without a threshold, 0 with one

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        require(threshold is None or threshold >= 0, "threshold must be >= 0 (nats), or none", threshold)
        self.threshold = threshold

    def forward(self, logits: Tensor) -> Tensor:
        require(logits.ndim >= 2, "logits must be (N, C) or (N, C, d1, …)", tuple(logits.shape))
        entropy = entropy_of_logits(logits)
        if self.threshold is None:
            return -entropy.mean()
        return (self.threshold - entropy).clamp_min(0).mean()


def entropy_of_logits(logits: Tensor) -> Tensor:
    """(N, …) entropy in nats of softmax over dimension 1, or of the Bernoulli distribution of a single logit."""
    logits = widened(logits)
    if logits.shape[1] == 1:
        logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
    log_p = logits.log_softmax(1)
    # a masked class (logit -inf) adds 0: without the clamp it would add 0 · inf
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(1)


class ActivationL2(Regularizer):
    r"""Mean squared length of the features: keeps activations small (activation regularization, AR).

    .. math:: R = \frac{1}{N} \sum_i \lVert h_i \rVert_2^2

    The AWD-LSTM code averages over the features as well: its strength :math:`\alpha` is :math:`\alpha / D` here.

    Shapes:
        features: (N, D) or (N, d1, …), as the model reports them. The value is a scalar.

    Raises:
        ValueError: if the model reports no features.

    Source:
        Merity, McCann and Socher, "Revisiting Activation Regularization for Language RNNs", 2017, arXiv:1708.01009.
    """

    def forward(self, features: Tensor) -> Tensor:
        require(features is not None, "features must be a tensor (N, …): the model must return ModelOutput(output, features)", features)
        return widened(features).square().flatten(1).sum(1).mean()

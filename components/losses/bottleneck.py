"""Information bottlenecks for regression: predict the target from features that keep as little of the inputs as that takes.

How much the features keep is measured without a density model, by kernels over the batch: every pair of samples is compared.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, at_least_float32
from components.losses.metric_learning import dot_products
from components.losses.regression import check_real_target, without_missing
from components.validation import require


class CSIBLoss(Loss):
    r"""Cauchy–Schwarz information bottleneck: fit :math:`p(y|x)` as a distribution and squeeze the features.

    With Gaussian kernels :math:`k(u, v) = \exp(-\lVert u - v \rVert^2 / 2\sigma^2)` over the batch, *K* of the inputs, *Q* of the features and
    :math:`L^{uv}_{ji} = k(u_j, v_i)` of targets and predictions, the loss is :math:`D + \beta\, I / \sqrt{I_{xx} I_{tt}}`:

    .. math:: D = \log S(L^{yy}) + \log S(L^{\hat y \hat y}) - 2 \log S(L^{\hat y y}), \qquad
              S(L) = \sum_j \frac{\sum_i K_{ji} L_{ji}}{\big(\sum_i K_{ji}\big)^2}

    .. math:: I = \log \tfrac{1}{N^2} \sum_{ij} K_{ij} Q_{ij} + \log \tfrac{1}{N^4} \sum_{ij} K_{ij} \sum_{ij} Q_{ij}
              - 2 \log \tfrac{1}{N^3} \sum_i \big(\textstyle\sum_j K_{ij}\big) \big(\sum_j Q_{ij}\big)

    *D*, a conditional Cauchy–Schwarz divergence, stands in the place of the squared error: it is 0 if the predictions are the targets, and an outlier's pull
    is bounded. It is not symmetric in target and prediction. *I* is the Cauchy–Schwarz mutual information of inputs and features: 0 for constant features,
    1 after the division if they are the inputs. All of it is computed on logarithms, so no kernel underflows.

    Memory: five N × N kernels, and nothing larger than the inputs beside them.

    Try it for regression that should withstand perturbed inputs, with standardised inputs, batches of 64 and more, and a narrow last hidden layer: of wide
    features every pair is far apart at a width of 1, and the compression then has no gradient; raise ``sigma_features`` there.

    Args:
        beta: weight of the compression, >= 0; the authors try 0 and 1e-4 to 1.
        sigma_inputs: kernel width of the inputs > 0, in their unit; 1 in the paper (standardised data), and so the others.
        sigma_features: that of the features.
        sigma_target: that of targets and predictions.
        code_compat: as the authors' released code has it: :math:`\sum_i K_{ji}^2` below the line in *S*, and logarithms to base 2.
        eps: added below the root of the normalisation, > 0: constant inputs or features have no information, not NaN.
        reduction: ``"mean"`` | ``"sum"`` (N times it) | ``"none"`` (the batch's value, once for each sample: it has no parts).

    Shapes:
        inputs (N, …), features (N, D), prediction and target (N, T) or (N, …); NaN anywhere in a sample's target leaves the sample out.

    Raises:
        ValueError: if an option is out of its range, shapes disagree or the target is not real-valued.

    Source:
        Yu et al., "Cauchy-Schwarz Divergence Information Bottleneck for Regression", ICLR 2024, arXiv:2404.17951, eq. 18 and after; ``code_compat`` from the
        released code.
    """

    pairwise: ClassVar[bool] = True

    def __init__(
        self,
        beta: float = 0.01,
        *,
        sigma_inputs: float = 1.0,
        sigma_features: float = 1.0,
        sigma_target: float = 1.0,
        code_compat: bool = False,
        eps: float = 1e-12,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        require(beta >= 0, "beta must be >= 0", beta)
        for name, value in {"sigma_inputs": sigma_inputs, "sigma_features": sigma_features, "sigma_target": sigma_target, "eps": eps}.items():
            require(value > 0, f"{name} must be > 0", value)
        self.code_compat = code_compat
        self.beta: float | Tensor = beta
        self.sigma_inputs: float | Tensor = sigma_inputs
        self.sigma_features: float | Tensor = sigma_features
        self.sigma_target: float | Tensor = sigma_target
        self.eps: float | Tensor = eps

    def forward(self, inputs: Tensor, features: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
        check_real_target(prediction, target)
        if features.ndim != 2 or len(features) != len(inputs):
            raise ValueError(f"features must be (N, D) with N = {len(inputs)}, the number of inputs, but got {tuple(features.shape)}")
        if len(prediction) != len(inputs):
            raise ValueError(f"prediction must have a row for each of the {len(inputs)} inputs, but got {tuple(prediction.shape)}")
        dtype, precise = prediction.dtype, torch.promote_types(at_least_float32(prediction.dtype), at_least_float32(features.dtype))
        rows = [tensor.to(precise).reshape(len(tensor), max(1, math.prod(tensor.shape[1:]))) for tensor in (inputs, features, prediction, target)]
        x, t, predicted, y = rows
        kept = ~y.isnan().any(1)
        if len(y) == 0:
            return self.reduce(predicted.sum(1)).to(dtype)
        y = without_missing(y, predicted)
        value = self.divergence(x, predicted, y, kept)
        value = value + self.beta * self.normalised_information(x, t, kept)
        elements = torch.where(kept, value, torch.zeros_like(value)).to(dtype)
        return self.reduce(elements, torch.where(kept, y[:, 0].detach(), torch.nan))

    def divergence(self, inputs: Tensor, prediction: Tensor, target: Tensor, kept: Tensor | None = None) -> Tensor:
        """*D* of (N, F) inputs and (N, T) predictions and targets; ``kept`` (N,) says which samples count."""
        kept = torch.ones_like(inputs[:, 0], dtype=torch.bool) if kept is None else kept
        k = masked(log_kernel(inputs, inputs, self.sigma_inputs), kept)
        below = torch.logsumexp(2 * k, 1) if self.code_compat else 2 * torch.logsumexp(k, 1)

        def log_s(first: Tensor, second: Tensor) -> Tensor:
            above = torch.logsumexp(k + log_kernel(first, second, self.sigma_target), 1)
            return torch.logsumexp((above - below).masked_fill(~kept, NOTHING), 0)

        value = log_s(target, target) + log_s(prediction, prediction) - 2 * log_s(prediction, target)
        return value / math.log(2) if self.code_compat else value

    def information(self, first: Tensor, second: Tensor, sigma: float | Tensor, other_sigma: float | Tensor, kept: Tensor | None = None) -> Tensor:
        """*I* of two (N, D) variables, >= 0."""
        kept = torch.ones_like(first[:, 0], dtype=torch.bool) if kept is None else kept
        k, q = masked(log_kernel(first, first, sigma), kept), masked(log_kernel(second, second, other_sigma), kept)
        k_rows, q_rows = (torch.logsumexp(kernel, 1) for kernel in (k, q))
        of_rows = [torch.logsumexp(rows.masked_fill(~kept, NOTHING), 0) for rows in (k_rows, q_rows, k_rows + q_rows)]
        joint = torch.logsumexp(torch.logsumexp(masked(k + q, kept), 1).masked_fill(~kept, NOTHING), 0)
        # the powers of N cancel: 2 + 4 - 2 · 3 = 0
        value = joint + of_rows[0] + of_rows[1] - 2 * of_rows[2]
        return value / math.log(2) if self.code_compat else value

    def normalised_information(self, inputs: Tensor, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """:math:`I / \\sqrt{I_{xx} I_{tt}}` of inputs and features: 0 if they are independent in the batch, 1 if they are the same."""
        of_inputs, of_features = self.sigma_inputs, self.sigma_features
        both = self.information(inputs, features, of_inputs, of_features, kept)
        alone = self.information(inputs, inputs, of_inputs, of_inputs, kept) * self.information(features, features, of_features, of_features, kept)
        return both / (alone.clamp(min=0) + self.eps).sqrt()


NOTHING = -1e30
"""Logarithm of next to nothing: unlike that of 0 its differences are numbers."""


def log_kernel(first: Tensor, second: Tensor, sigma: float | Tensor) -> Tensor:
    """Logarithm of the Gaussian kernel of all pairs of rows, (N, D) and (M, D) -> (N, M)."""
    centre = second.detach().mean(0)  # distances are of differences: nearer to 0 they lose fewer digits
    first, second = first - centre, second - centre
    squares = first.square().sum(1)[:, None] + second.square().sum(1)[None, :] - 2 * dot_products(first, second)
    return -squares.clamp(min=0) / (2 * sigma**2)


def masked(kernel: Tensor, kept: Tensor) -> Tensor:
    """A log kernel without the columns of what is not kept."""
    return kernel.masked_fill(~kept[None, :], NOTHING)



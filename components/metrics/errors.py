"""More errors of regression, beside :mod:`components.metrics.regression`: in per cent, of the mean, against noise, of the spectrum, under attack.

As there, a target that is NaN is missing and counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from components.losses.spectral import Basis, FourierPlane, FourierSeries
from components.metrics.regression import MeanOfErrors, R2Score, RootMeanSquaredError, same_shape
from components.models.base import evaluating, split_output
from components.validation import require


class MeanSquaredError(MeanOfErrors):
    r"""Mean squared error :math:`\frac1n \sum_i (\hat y_i - y_i)^2`.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        return (preds - target).square()


class MeanBiasError(MeanOfErrors):
    r"""Mean bias :math:`\frac1n \sum_i (y_i - \hat y_i)`: > 0 where predictions are too low on average. Its best value is 0.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        return target - preds


class PercentageError(MeanOfErrors):
    r"""Mean absolute percentage error: of the target, or (``symmetric``) of the mean of target and prediction, in [0, 200].

    .. math:: \frac{100}{n} \sum_i \frac{|y_i - \hat y_i|}{\max(|y_i|, \epsilon)} \qquad\text{or}\qquad
              \frac{100}{n} \sum_i \frac{2\,|y_i - \hat y_i|}{\max(|y_i| + |\hat y_i|, \epsilon)}

    Args:
        symmetric: the second form.
        eps: least divisor.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def __init__(self, symmetric: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        require(eps > 0, "eps must be > 0", eps)
        self.symmetric, self.eps = symmetric, eps

    def error(self, preds: Tensor, target: Tensor) -> Tensor:
        error = 100 * (preds - target).abs()
        if self.symmetric:
            return 2 * error / (preds.abs() + target.abs()).clamp(min=self.eps)
        return error / target.abs().clamp(min=self.eps)


class AdjustedR2Score(R2Score):
    r"""R² that pays for its inputs: :math:`1 - (1 - R^2) \frac{n - 1}{n - k - 1}` with *n* samples and *k* columns. NaN for *n* <= *k* + 1.

    Args:
        num_features: *k*, input columns of the table.

    Shapes:
        preds and target (N, T), or (N, …, T). Missing targets are NaN; *n* counts what the first target has.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        require(num_features >= 1, "num_features must be >= 1", num_features)
        self.num_features = num_features

    def compute(self) -> Tensor:
        n = dim_zero_cat(self.moments)[:, 0, 0].sum().double().cpu()
        score = 1 - (1 - super().compute()) * (n - 1) / (n - self.num_features - 1)
        return torch.where(n > self.num_features + 1, score, torch.nan)


class PeakSignalNoiseRatio(MeanSquaredError):
    r"""Peak signal-to-noise ratio in decibels: :math:`10 \log_{10} (\text{data\_range}^2 / \mathrm{MSE})`.

    Args:
        data_range: largest minus smallest value that a target can have; > 0.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    higher_is_better = True

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__()
        require(data_range > 0, "data_range must be > 0", data_range)
        self.data_range = data_range

    def compute(self) -> Tensor:
        return 20 * math.log10(self.data_range) - 10 * super().compute().log10()


class LogSpectralDistance(Metric):
    r"""How far the power spectrum of predictions is from that of targets, in decibels: 0 is as rough and as smooth as the truth.

    .. math:: \sqrt{\frac1K \sum_k \Big( 10 \log_{10} \frac{\sum_i P_k(\hat y_i)}{\sum_i P_k(y_i)} \Big)^2}

    over the wavenumbers *k* > 0 of which targets have any power (more than a share ``eps`` of all), *P* summed over samples (and channels) first. Where
    things are does not count; a blurred prediction that has lost its small waves is some 10 dB away.

    Args:
        from_share: count wavenumbers from this share of the highest on, in [0, 1): 0.5 looks at small scales only.
        shape: [height, width] of fields, the last dimension unfolded; null: series along dimension 1.
        eps: share of the targets' power below which a wavenumber counts for nothing, and power for this share; in (0, 1).

    Shapes:
        preds and target (N, T) or (N, T, C), with ``shape`` (N, H·W) or (N, C, H·W). A sample with a missing target is left out.
    """

    higher_is_better = False
    is_differentiable = True
    full_state_update = False
    power: list[Tensor]

    def __init__(self, from_share: float = 0.0, shape: Sequence[int] | None = None, eps: float = 1e-8) -> None:
        super().__init__()
        require(0 <= from_share < 1, "from_share must be in [0, 1)", from_share)
        require(0 < eps < 1, "eps must be in (0, 1)", eps)
        self.from_share, self.eps = from_share, eps
        self.shape = None if shape is None else (int(shape[0]), int(shape[1]))
        self.basis: Basis = FourierSeries() if self.shape is None else FourierPlane(*self.shape)
        self.add_state("power", [], dist_reduce_fx="cat")  # (1, 2, K) a batch: spectra of predictions and of targets

    def update(self, preds: Tensor, target: Tensor) -> None:
        same_shape(preds, target)
        there = ~target.isnan().flatten(1).any(1)
        both = []
        for values in (preds[there].double(), target[there].double()):
            fields = values.movedim(1, -1) if self.shape is None else values.unflatten(-1, self.shape)
            waves = self.basis.coefficients(fields)
            power = self.basis.cross_power(waves, waves)
            both.append(power.reshape(-1, power.shape[-1]).sum(0))
        self.power.append(torch.stack(both)[None])

    def compute(self) -> Tensor:
        predicted, true = dim_zero_cat(self.power).sum(0)
        least = self.eps * true.sum()
        first = max(1, math.ceil(self.from_share * (len(true) - 1)))
        counts = (true > least) & (torch.arange(len(true), device=true.device) >= first)
        decibels = 10 * (predicted.clamp(min=least) / true.clamp(min=least)).log10()
        return (decibels.square() * counts).sum().div(counts.sum().clamp(min=1)).sqrt()


class AdversarialRMSE(RootMeanSquaredError):
    r"""Root mean squared error on inputs that have been moved against the model, one step of the fast gradient sign method.

    .. math:: x' = x + \epsilon \operatorname{sign} \nabla_x \lVert f(x) - y \rVert^2

    The model is in evaluation mode meanwhile. It costs a forward and a backward pass and a further forward pass.

    Args:
        epsilon: how far each input value is moved, in the unit of inputs (standardised: in their standard deviations); >= 0, 0 is the plain error.

    Shapes:
        inputs (N, …), the model's output and target of one shape. Missing targets are NaN.

    Source:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        require(epsilon >= 0, "epsilon must be >= 0", epsilon)
        self.epsilon = epsilon

    def update(self, model: nn.Module, inputs: Tensor, target: Tensor) -> None:  # type: ignore[override]
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            truth = target.detach().clone()
            moved = inputs.detach().clone().requires_grad_()
            output = split_output(model(moved)).output
            same_shape(output, truth)
            known = ~truth.isnan()
            loss = F.mse_loss(torch.where(known, output, 0.0), torch.where(known, truth, 0.0), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            with torch.no_grad():
                attacked = split_output(model(moved + self.epsilon * gradient.sign())).output
        super().update(attacked.detach(), truth)

"""xPatch: a forecaster of two streams, a linear one for the trend and a convolutional one for what is left of the series."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.models.base import ModelOutput
from components.models.forecasting import channels_last, instance_norm, outputs_per_channel
from components.models.layers import check_inputs
from components.validation import require


class XPatch(nn.Module):
    r"""Exponential smoothing splits the series; the trend goes through linear layers, the rest through convolutions over patches.

    .. math:: s_0 = x_0, \qquad s_t = a\,x_t + (1 - a)\,s_{t-1}, \qquad \text{trend} = s, \quad \text{seasonal} = x - s

    Each channel is a series of its own for the same weights (channel independence), shifted and scaled by its mean and deviation and at the end back.
    *Seasonal stream*: patches of P = ``patch_length`` steps (the last value repeated ``stride`` times at the end) are embedded in P² numbers, a depthwise
    convolution brings each patch back to P, a linear shortcut is added, a pointwise convolution mixes patches, and two layers make the forecast; GELU and
    batch normalisation between. *Trend stream*: two linear layers, each followed by average pooling and layer normalisation, and a third; no activation. A
    last linear layer mixes both forecasts.

    Args:
        in_channels: C, series that are observed and forecast.
        history_length: L, observed steps.
        horizon: H, steps to forecast.
        num_outputs: C·K; K = 1 for a point forecast, more for distributional heads.
        head: what the K outputs are, so that they can be scaled back: ``point`` or ``quantile`` (values), ``gaussian`` (a mean and a log variance).
        alpha: *a* in (0, 1]; 1: everything is trend.
        patch_length: steps of a patch, >= 2; at most L. The paper's are 16.
        stride: steps from a patch to the next, >= 1; the paper's are 8.
        revin: reversible instance normalisation, as said above.
        revin_affine: a learned gain and shift of each channel after it, undone before it is undone.

    Shapes:
        inputs (N, L, C), floating point; output (N, H, C·K), a channel's K outputs side by side; features (N, 2·H·K), the two streams' forecasts side by
        side, the mean over channels.

    Raises:
        ValueError: if an option is out of its range, or the inputs have another shape.

    Source:
        Stitsyuk and Choi, "xPatch: Dual-Stream Time Series Forecasting with Exponential Seasonal-Trend Decomposition", AAAI 2025, arXiv:2412.17323; sizes of
        layers as in the released code, with :math:`\max(1, \cdot)` where a horizon below 2 would leave none.
    """

    def __init__(
        self,
        in_channels: int,
        history_length: int,
        horizon: int,
        num_outputs: int | None = None,
        head: str = "point",
        *,
        alpha: float = 0.3,
        patch_length: int = 16,
        stride: int = 8,
        revin: bool = True,
        revin_affine: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.history_length, self.horizon = in_channels, history_length, horizon
        self.per_channel = outputs_per_channel(in_channels, history_length, horizon, num_outputs, head)
        require(0 < alpha <= 1, "alpha must be in (0, 1]", alpha)
        require(2 <= patch_length <= history_length, f"patch_length must be in [2, history_length = {history_length}]", patch_length)
        require(stride >= 1, "stride must be >= 1", stride)
        self.alpha = alpha
        self.normalise = instance_norm(in_channels, head, revin, revin_affine)
        outputs = horizon * self.per_channel
        self.seasonal = PatchStream(history_length, outputs, patch_length, stride)
        self.trend = TrendStream(history_length, outputs)
        self.feature_dim = 2 * outputs
        self.head = nn.Linear(2 * outputs, outputs)

    def decompose(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Seasonal part and trend of ``series`` (…, L)."""
        trend = exponential_average(series, self.alpha)
        return series - trend, trend

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "xpatch", "series", (self.history_length, self.in_channels))
        series = inputs.transpose(1, 2)
        if self.normalise is not None:
            mean, deviation = self.normalise.statistics(series)
            series = self.normalise(series, mean, deviation)
        seasonal, trend = self.decompose(series.flatten(0, 1))
        both = torch.cat([self.seasonal(seasonal), self.trend(trend)], 1).unflatten(0, (-1, self.in_channels))
        output = self.head(both).unflatten(2, (self.horizon, self.per_channel))
        if self.normalise is not None:
            output = self.normalise.undo(output, mean, deviation)
        return ModelOutput(channels_last(output), both.mean(1))


class PatchStream(nn.Module):
    """The convolutional stream, (B, L) -> (B, outputs)."""

    def __init__(self, history_length: int, outputs: int, patch_length: int, stride: int) -> None:
        super().__init__()
        self.patch_length, self.stride = patch_length, stride
        patches, width = (history_length - patch_length) // stride + 2, patch_length**2
        self.embed = nn.Sequential(nn.Linear(patch_length, width), nn.GELU(), nn.BatchNorm1d(patches))
        self.depthwise = nn.Sequential(nn.Conv1d(patches, patches, patch_length, patch_length, groups=patches), nn.GELU(), nn.BatchNorm1d(patches))
        self.shortcut = nn.Linear(width, patch_length)
        self.pointwise = nn.Sequential(nn.Conv1d(patches, patches, 1), nn.GELU(), nn.BatchNorm1d(patches))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(patches * patch_length, 2 * outputs), nn.GELU(), nn.Linear(2 * outputs, outputs))

    def forward(self, series: Tensor) -> Tensor:
        padded = torch.cat([series, series[:, -1:].expand(-1, self.stride)], 1)
        states = self.embed(padded.unfold(1, self.patch_length, self.stride))
        states = self.pointwise(self.depthwise(states) + self.shortcut(states))
        forecast: Tensor = self.head(states)
        return forecast


class TrendStream(nn.Module):
    """The linear stream, (B, L) -> (B, outputs)."""

    def __init__(self, history_length: int, outputs: int) -> None:
        super().__init__()
        half = max(1, outputs // 2)
        self.layers = nn.Sequential(
            nn.Linear(history_length, 4 * outputs), nn.AvgPool1d(2), nn.LayerNorm(2 * outputs),
            nn.Linear(2 * outputs, 2 * half), nn.AvgPool1d(2), nn.LayerNorm(half) if half > 1 else nn.Identity(),
            nn.Linear(half, outputs),
        )  # fmt: skip

    def forward(self, series: Tensor) -> Tensor:
        forecast: Tensor = self.layers(series)
        return forecast


def exponential_average(series: Tensor, alpha: float) -> Tensor:
    r""":math:`s_0 = x_0, s_t = a x_t + (1 - a) s_{t-1}` along the last dimension (…, L), as one product with the (L, L) matrix of weights.

    The weights are :math:`(1 - a)^t` of the first value and :math:`a (1 - a)^{t - j}` of value *j*: nothing is divided by a power that has vanished, as it is
    where this is written as a quotient of cumulative sums.
    """
    steps = torch.arange(series.shape[-1], device=series.device)
    age = (steps[:, None] - steps[None, :]).to(series.dtype)
    weights = torch.where(age >= 0, torch.full_like(age, 1 - alpha) ** age.clamp(min=0), torch.zeros_like(age))
    share = torch.full_like(age[0], alpha).masked_fill(steps == 0, 1.0)
    return series @ (weights * share).T

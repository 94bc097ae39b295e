"""Forecasting models: from the observed past (N, L, C) to the future (N, H, C·K), K outputs of each channel and step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, linear

from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.models.transformer import Block
from components.validation import require, require_choice


class DLinear(nn.Module):
    r"""Decomposition and one linear layer for each part: the plain model that embarrassed transformers.

    The moving average over ``kernel_size`` steps (edges repeated) is the trend, the rest is seasonal; each is mapped from the L
    past steps to the H future ones:

    .. math:: t = \mathrm{average}(x), \qquad \hat y = W_s (x - t) + b_s + W_t\, t + b_t

    Args:
        in_channels: C, series that are observed and forecast.
        history_length: L, observed steps.
        horizon: H, steps to forecast.
        num_outputs: C·K; K = 1 for a point forecast, more for distributional heads.
        kernel_size: steps of the moving average, odd; the paper's is 25.
        individual: weights of its own for each channel, instead of the same for all.

    Shapes:
        inputs (N, L, C), floating point; output (N, H, C·K), a channel's K outputs side by side; features (N, 2·C·L), both parts.

    Raises:
        ValueError: if ``kernel_size`` is even, ``num_outputs`` no multiple of ``in_channels``, or the inputs have another shape.

    Source:
        Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023, arXiv:2205.13504, section 4.
    """

    def __init__(
        self, in_channels: int, history_length: int, horizon: int, num_outputs: int | None = None, *, kernel_size: int = 25, individual: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.history_length, self.horizon = in_channels, history_length, horizon
        self.per_channel = outputs_per_channel(in_channels, history_length, horizon, num_outputs)
        require(kernel_size >= 1 and kernel_size % 2 == 1, "kernel_size must be odd and >= 1", kernel_size)
        self.kernel_size = kernel_size
        groups = in_channels if individual else 1
        self.seasonal = ChannelLinear(groups, history_length, horizon * self.per_channel)
        self.trend = ChannelLinear(groups, history_length, horizon * self.per_channel)
        self.feature_dim = 2 * in_channels * history_length

    def decompose(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Seasonal part and trend of ``series`` (N, C, L)."""
        trend = moving_average(series, self.kernel_size)
        return series - trend, trend

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "dlinear", "series", (self.history_length, self.in_channels))
        seasonal, trend = self.decompose(inputs.transpose(1, 2))
        output = self.seasonal(seasonal) + self.trend(trend)
        return ModelOutput(channels_last(output.unflatten(2, (self.horizon, self.per_channel))), torch.cat([seasonal, trend], 1).flatten(1))


class PatchTransformer(nn.Module):
    r"""PatchTST: a transformer on patches of each series by itself.

    Each channel is a sequence of its own for the same weights (channel independence). It is shifted and scaled by its mean and
    deviation over the history, cut into patches of ``patch_length`` steps every ``stride`` steps (the last value repeated
    ``stride`` times at the end), and the encoded patches are mapped to the forecast, which is shifted and scaled back. Blocks
    are pre-norm with RMSNorm, the paper's are post-norm with batch normalisation.

    Args:
        in_channels: C, series that are observed and forecast.
        history_length: L, observed steps.
        horizon: H, steps to forecast.
        num_outputs: C·K; K = 1 for a point forecast, more for distributional heads.
        head: what the K outputs are, so that they can be scaled back: ``point`` or ``quantile`` (values), ``gaussian`` (a mean and a log variance).
        patch_length: steps of a patch; the paper's are 16.
        stride: steps from a patch to the next; the paper's are 8.
        width: size of the states.
        depth: transformer blocks.
        num_heads: attention heads; must divide ``width``.
        dropout: probability, in [0, 1).
        revin: reversible instance normalisation, as said above.
        revin_affine: a learned gain and shift of each channel after it, undone before it is undone.

    Shapes:
        inputs (N, L, C), floating point; output (N, H, C·K), a channel's K outputs side by side; features (N, width), the mean of
        the encoded patches of all channels.

    Raises:
        ValueError: if ``patch_length > history_length``, another option is out of its range, or the inputs have another shape.

    Source:
        Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers", ICLR 2023, arXiv:2211.14730; reversible
        instance normalisation: Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting against
        Distribution Shift", ICLR 2022.
    """

    def __init__(
        self,
        in_channels: int,
        history_length: int,
        horizon: int,
        num_outputs: int | None = None,
        head: str = "point",
        *,
        patch_length: int = 8,
        stride: int = 4,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        revin: bool = True,
        revin_affine: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.history_length, self.horizon = in_channels, history_length, horizon
        self.per_channel = outputs_per_channel(in_channels, history_length, horizon, num_outputs, head)
        require(1 <= patch_length <= history_length, f"patch_length must be in [1, history_length = {history_length}]", patch_length)
        require(stride >= 1, "stride must be >= 1", stride)
        require(depth >= 1, "depth must be >= 1", depth)
        self.patch_length, self.stride = patch_length, stride
        self.feature_dim = width
        self.normalise = instance_norm(in_channels, head, revin, revin_affine)
        patches = (history_length - patch_length) // stride + 2
        self.embed = nn.Linear(patch_length, width)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(patches * width, horizon * self.per_channel)

    def patches(self, series: Tensor) -> Tensor:
        """(…, L) -> (…, P, patch_length), the last value repeated ``stride`` times at the end."""
        padded = torch.cat([series, series[..., -1:].expand(*series.shape[:-1], self.stride)], -1)
        return padded.unfold(-1, self.patch_length, self.stride)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "patch_transformer", "series", (self.history_length, self.in_channels))
        series = inputs.transpose(1, 2)
        if self.normalise is not None:
            mean, deviation = self.normalise.statistics(series)
            series = self.normalise(series, mean, deviation)
        states = self.dropout(self.embed(self.patches(series)) + self.positions).flatten(0, 1)
        for block in self.blocks:
            states = block(states)
        states = self.norm(states).unflatten(0, (-1, self.in_channels))
        output = self.head(states.flatten(2)).unflatten(2, (self.horizon, self.per_channel))
        if self.normalise is not None:
            output = self.normalise.undo(output, mean, deviation)
        return ModelOutput(channels_last(output), states.mean((1, 2)))


class InstanceNorm(nn.Module):
    r"""Reversible instance normalisation: :math:`\tilde x = \gamma (x - \mu) / \sigma + \beta` of each series, and back.

    Statistics are over the history of one sample and channel. A log variance goes back as
    :math:`\log\hat\sigma^2 + 2 \log(\sigma / |\gamma|)`.

    Args:
        channels: C.
        affine: learn the gain γ and shift β of each channel.
        gaussian: the outputs to undo are a mean and a log variance.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, affine: bool, gaussian: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.gaussian, self.eps = gaussian, eps
        self.gain = nn.Parameter(torch.ones(channels, 1)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels, 1)) if affine else None

    def statistics(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 1) mean and standard deviation of ``series`` (N, C, L)."""
        return series.mean(2, keepdim=True), (series.var(2, keepdim=True, unbiased=False) + self.eps).sqrt()

    def forward(self, series: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        normalised = (series - mean) / deviation
        return normalised if self.gain is None or self.shift is None else normalised * self.gain + self.shift

    def undo(self, output: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Scale and shift ``output`` (N, C, H, K) back."""
        mean, scale = mean[..., None], deviation[..., None]
        values, log_variance = (output[..., :1], output[..., 1:]) if self.gaussian else (output, None)
        if self.gain is not None and self.shift is not None:
            gain = self.gain[..., None]
            gain = torch.where(gain.abs() < self.eps, torch.full_like(gain, self.eps), gain)
            values, scale = values - self.shift[..., None], scale / gain
        values = values * scale + mean
        return values if log_variance is None else torch.cat([values, log_variance + 2 * scale.abs().log()], -1)


class ChannelLinear(nn.Module):
    """A linear layer over time, (N, C, L) -> (N, C, O): the same for all channels (``groups`` 1) or one for each (``groups`` C)."""

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, out_features).uniform_(-bound, bound))

    def forward(self, series: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return linear(series, self.weight[0], self.bias[0])
        return torch.einsum("ncl,col->nco", series, self.weight) + self.bias


def moving_average(series: Tensor, kernel_size: int) -> Tensor:
    """Centred mean over ``kernel_size`` (odd) steps of the last dimension of (N, C, L), the first and last value repeated at the edges."""
    side = (kernel_size - 1) // 2
    first, last = series[..., :1].expand(-1, -1, side), series[..., -1:].expand(-1, -1, side)
    return avg_pool1d(torch.cat([first, series, last], -1), kernel_size, stride=1)


def channels_last(output: Tensor) -> Tensor:
    """(N, C, H, K) -> (N, H, C·K)."""
    return output.transpose(1, 2).flatten(2)


def instance_norm(in_channels: int, head: str, revin: bool, revin_affine: bool) -> InstanceNorm | None:
    """Reversible instance normalisation as the options of a forecaster ask for it."""
    require(revin or not revin_affine, "revin_affine needs revin=true")
    return InstanceNorm(in_channels, affine=revin_affine, gaussian=head == "gaussian") if revin else None


def outputs_per_channel(in_channels: int, history_length: int, horizon: int, num_outputs: int | None, head: str = "point") -> int:
    """K = num_outputs / in_channels, all sizes checked, and that K is what a Gaussian head takes."""
    for name, value in {"in_channels": in_channels, "history_length": history_length, "horizon": horizon}.items():
        require(value >= 1, f"{name} must be >= 1", value)
    num_outputs = in_channels if num_outputs is None else num_outputs
    require(
        num_outputs >= 1 and num_outputs % in_channels == 0,
        f"num_outputs must be a multiple of in_channels = {in_channels} (the model forecasts every channel that it observes)",
        num_outputs,
    )
    per_channel = num_outputs // in_channels
    require_choice("head", head, ("point", "gaussian", "quantile"))
    require(head != "gaussian" or per_channel == 2, "head='gaussian' needs num_outputs = 2 in_channels (a mean and a log variance)", num_outputs)
    return per_channel

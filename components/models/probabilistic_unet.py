"""Probabilistic U-Net: a U-Net that takes a latent as well, so that each draw of it is another plausible segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_pool3d, relu

from components.models.base import ModelOutput
from components.models.layers import init_he
from components.models.unet import UNet, pointwise, two_convolutions
from components.validation import require

LOG_STD_RANGE = (-6.0, 3.0)


class ProbabilisticUNet(UNet):
    r"""A U-Net whose last 1×1 convolutions see a latent *z*; the prior says from the picture alone what *z* may be, the posterior from picture and mask.

    .. math:: z \sim p(z | x) = N(\mu(x), \operatorname{diag} \sigma^2(x)), \qquad q(z | x, y) \text{ likewise}, \qquad \hat y = f(\text{maps}(x), z)

    Called with pictures alone (in any task of segmentation) it decodes the prior's mean. ``task=probabilistic_segmentation`` draws: :meth:`prior`,
    :meth:`posterior`, :meth:`decode`. The maps are computed once for all draws.

    Args:
        in_channels: channels of the picture.
        num_outputs: classes.
        image_size: as of :class:`~components.models.UNet`.
        latent_dim: size of *z*; the paper's is 6.
        depth: halvings of the picture, of the U-Net and of both encoders.
        width: channels at full size.
        norm: group | batch | none.

    Shapes:
        inputs (N, in_channels, H, W), floating point, any H and W; output (N, num_outputs, H, W); features (N, width). Volumes have a dimension more.

    Raises:
        ValueError: if an option is out of its range, or the inputs are no pictures of ``in_channels`` channels.

    Source:
        Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images", NeurIPS 2018, arXiv:1806.05034; smaller encoders.
    """

    name = "probabilistic_unet"

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        *,
        image_size: Sequence[int] | None = None,
        latent_dim: int = 6,
        depth: int = 3,
        width: int = 16,
        norm: str = "group",
    ) -> None:
        require(latent_dim >= 1, "latent_dim must be >= 1", latent_dim)
        super().__init__(in_channels, num_outputs, image_size=image_size, depth=depth, width=width, norm=norm)
        self.latent_dim = latent_dim
        self.from_latent = nn.Linear(latent_dim, width)
        self.prior_net = GaussianEncoder(in_channels, latent_dim, depth, width, norm, self.dimensions)
        self.posterior_net = GaussianEncoder(in_channels + num_outputs, latent_dim, depth, width, norm, self.dimensions)

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.ModuleList(pointwise(self.feature_dim, n, self.dimensions) for n in (self.feature_dim, self.feature_dim, num_outputs))

    def prior(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of *z* given the pictures, (N, latent_dim) each."""
        mean, log_std = self.prior_net(inputs)
        return mean, log_std

    def posterior(self, inputs: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """The same given pictures and masks (N, num_outputs, H, W)."""
        mean, log_std = self.posterior_net(torch.cat([inputs, one_hot.to(inputs.dtype)], 1))
        return mean, log_std

    def decode(self, maps: Tensor, latent: Tensor) -> Tensor:
        """Scores of the classes for S draws of each picture's latent: (N, width, H, W), (N, S, latent_dim) -> (N, S, num_outputs, H, W)."""
        first, second, last = cast(nn.ModuleList, self.head)
        shift = self.from_latent(latent).reshape(*latent.shape[:2], -1, *[1] * self.dimensions)
        hidden = relu(first(maps).unsqueeze(1) + shift)  # a 1×1 convolution of maps and latent, joined
        scores = last(relu(second(hidden.flatten(0, 1))))
        return cast(Tensor, scores.unflatten(0, latent.shape[:2]))

    def forward(self, inputs: Tensor) -> ModelOutput:
        maps = self.maps(inputs)
        mean, _ = self.prior(inputs)
        return ModelOutput(self.decode(maps, mean.unsqueeze(1))[:, 0], maps.flatten(2).mean(2))


class GaussianEncoder(nn.Module):
    """Convolutions and poolings, the mean over the picture, and a linear layer for mean and log standard deviation."""

    def __init__(self, in_channels: int, latent_dim: int, depth: int, width: int, norm: str, dimensions: int) -> None:
        super().__init__()
        channels = [min(width * 2**level, 4 * width) for level in range(depth + 1)]
        befores = [in_channels, *channels[:-1]]
        self.dimensions = dimensions
        self.levels = nn.ModuleList(two_convolutions(before, after, norm, dimensions) for before, after in zip(befores, channels, strict=True))
        init_he(self)
        self.head = nn.Linear(channels[-1], 2 * latent_dim)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.levels[0](inputs)
        pool = max_pool2d if self.dimensions == 2 else max_pool3d
        for level in self.levels[1:]:
            maps = level(pool(maps, 2, ceil_mode=True))  # ceil: a side of 1 stays 1
        mean, log_std = self.head(maps.flatten(2).mean(2)).chunk(2, 1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL divergence of one diagonal Gaussian from another, summed over the last dimension."""
    ratio = log_std - other_log_std
    return 0.5 * ((2 * ratio).exp() + ((mean - other_mean) / other_log_std.exp()).square() - 1 - 2 * ratio).sum(-1)

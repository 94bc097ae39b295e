"""U-Net: one output for each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from components.models.base import ModelOutput
from components.models.convolutional import conv_block
from components.models.layers import check_inputs, init_he
from components.validation import require


class UNet(nn.Module):
    r"""Encoder and decoder with skip connections, for segmentation and other outputs of the picture's own size.

    ``depth`` times: two 3×3 convolutions, then a 2×2 max pooling that halves the picture while the channels double; then the way
    back by 2×2 transposed convolutions, each joined with the encoder's maps of the same size. Convolutions keep the size
    (the paper's shrink it). Pictures whose sides are no multiples of 2^depth are padded with zeros and the output is cropped.

    Args:
        in_channels: channels of the picture.
        num_outputs: outputs of each pixel.
        depth: halvings of the picture, >= 1; the paper's are 4.
        width: channels at full size; the paper's are 64.
        norm: group | batch | none.

    Shapes:
        inputs (N, in_channels, H, W), floating point, any H and W; output (N, num_outputs, H, W); features (N, width), the mean
        over the picture of the last maps before the output layer.

    Raises:
        ValueError: if an option is out of its range, or the inputs are no pictures of ``in_channels`` channels.

    Source:
        Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, arXiv:1505.04597.
    """

    def __init__(self, in_channels: int, num_outputs: int, *, depth: int = 3, width: int = 16, norm: str = "group") -> None:
        super().__init__()
        require(in_channels >= 1, "in_channels must be >= 1", in_channels)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(depth >= 1, "depth must be >= 1", depth)
        require(width >= 1, "width must be >= 1", width)
        self.in_channels = in_channels
        self.multiple = 2**depth
        self.feature_dim = width
        channels = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(two_convolutions(before, after, norm) for before, after in zip([in_channels, *channels[:-1]], channels, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(two_convolutions(2 * c, c, norm) for c in reversed(channels[:-1]))
        init_he(self)
        self.head = nn.Conv2d(width, num_outputs, 1)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "unet", "images", (self.in_channels, "H", "W"))
        height, width = inputs.shape[2:]
        padding = (-width % self.multiple, -height % self.multiple)
        maps = self.encoder[0](pad(inputs, (0, padding[0], 0, padding[1])))
        skips: list[Tensor] = []
        for level in self.encoder[1:]:
            skips.append(maps)
            maps = level(max_pool2d(maps, 2))
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            maps = level(torch.cat([skip, up(maps)], 1))
        maps = maps[:, :, :height, :width]
        return ModelOutput(self.head(maps), maps.mean((2, 3)))


def two_convolutions(before: int, after: int, norm: str) -> nn.Sequential:
    return nn.Sequential(conv_block(before, after, norm), conv_block(after, after, norm))

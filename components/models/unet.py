"""U-Net: one output for each pixel of a picture or voxel of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_pool3d, pad

from components.models.base import ModelOutput
from components.models.convolutional import conv_block
from components.models.layers import check_inputs, init_he, norm2d
from components.validation import require


class UNet(nn.Module):
    r"""Encoder and decoder with skip connections, for segmentation and other outputs of the picture's own size.

    ``depth`` times: two 3×3 convolutions, then a 2×2 max pooling that halves the picture while the channels double; then the way
    back by 2×2 transposed convolutions, each joined with the encoder's maps of the same size. Convolutions keep the size
    (the paper's shrink it). Pictures whose sides are no multiples of 2^depth are padded with zeros and the output is cropped.
    Volumes get the same with 3×3×3 and 2×2×2.

    Args:
        in_channels: channels of the picture.
        num_outputs: outputs of each pixel.
        image_size: (H, W) of pictures, (D, H, W) of volumes: only how many numbers these are counts; None: pictures.
        depth: halvings of the picture, >= 1; the paper's are 4.
        width: channels at full size; the paper's are 64.
        norm: group | batch | none.

    Shapes:
        inputs (N, in_channels, H, W) or (N, in_channels, D, H, W), floating point, any sides; output (N, num_outputs, H, W) or
        (N, num_outputs, D, H, W); features (N, width), the mean over the picture of the last maps before the output layer.

    Raises:
        ValueError: if an option is out of its range, or the inputs are no pictures (or volumes) of ``in_channels`` channels.

    Source:
        Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, arXiv:1505.04597;
        volumes: Çiçek et al., "3D U-Net", MICCAI 2016, arXiv:1606.06650.
    """

    name = "unet"

    def __init__(
        self, in_channels: int, num_outputs: int, *, image_size: Sequence[int] | None = None, depth: int = 3, width: int = 16, norm: str = "group"
    ) -> None:
        super().__init__()
        require(in_channels >= 1, "in_channels must be >= 1", in_channels)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(image_size is None or len(image_size) in (2, 3), "image_size must be (H, W) or (D, H, W)", image_size)
        require(depth >= 1, "depth must be >= 1", depth)
        require(width >= 1, "width must be >= 1", width)
        self.in_channels = in_channels
        self.dimensions = 2 if image_size is None else len(image_size)
        self.multiple = 2**depth
        self.feature_dim = width
        channels = [width * 2**level for level in range(depth + 1)]
        pairs = zip([in_channels, *channels[:-1]], channels, strict=True)
        self.encoder = nn.ModuleList(two_convolutions(before, after, norm, self.dimensions) for before, after in pairs)
        transposed = nn.ConvTranspose2d if self.dimensions == 2 else nn.ConvTranspose3d
        self.up = nn.ModuleList(transposed(2 * c, c, 2, stride=2) for c in reversed(channels[:-1]))
        self.decoder = nn.ModuleList(two_convolutions(2 * c, c, norm, self.dimensions) for c in reversed(channels[:-1]))
        init_he(self)
        self.head = self.make_head(num_outputs)

    def make_head(self, num_outputs: int) -> nn.Module:
        return pointwise(self.feature_dim, num_outputs, self.dimensions)

    def maps(self, inputs: Tensor) -> Tensor:
        """The last maps before the output layer, (N, width, …) of the inputs' size."""
        images = self.dimensions == 2
        check_inputs(inputs, self.name, "images" if images else "volumes", (self.in_channels, "H", "W") if images else (self.in_channels, "D", "H", "W"))
        sides = inputs.shape[2:]
        padding = [both for side in reversed(sides) for both in (0, -side % self.multiple)]
        maps = self.encoder[0](pad(inputs, padding))
        skips: list[Tensor] = []
        for level in self.encoder[1:]:
            skips.append(maps)
            maps = level(max_pool2d(maps, 2) if images else max_pool3d(maps, 2))
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            maps = level(torch.cat([skip, up(maps)], 1))
        for dim, side in enumerate(sides, start=2):
            maps = maps.narrow(dim, 0, side)
        return maps

    def forward(self, inputs: Tensor) -> ModelOutput:
        maps = self.maps(inputs)
        return ModelOutput(self.head(maps), maps.flatten(2).mean(2) if self.dimensions == 3 else maps.mean((2, 3)))


def two_convolutions(before: int, after: int, norm: str, dimensions: int = 2) -> nn.Sequential:
    if dimensions == 2:
        return nn.Sequential(conv_block(before, after, norm), conv_block(after, after, norm))
    return nn.Sequential(volume_block(before, after, norm), volume_block(after, after, norm))


def volume_block(before: int, after: int, norm: str) -> nn.Sequential:
    """3×3×3 convolution, normalisation, ReLU."""
    return nn.Sequential(nn.Conv3d(before, after, 3, padding=1, bias=norm == "none"), norm2d(norm, after, 3), nn.ReLU())


def pointwise(before: int, after: int, dimensions: int = 2) -> nn.Module:
    """1×1 convolution."""
    return nn.Conv2d(before, after, 1) if dimensions == 2 else nn.Conv3d(before, after, 1)

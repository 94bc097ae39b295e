"""Image classifiers: a small convolutional network and the CIFAR-style residual network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from components.models.base import ModelOutput
from components.models.layers import check_inputs, init_he, norm2d
from components.validation import require


class ConvNet(nn.Module):
    r"""A small convolutional network: 3×3 convolutions with pooling between them, then the mean over the picture.

    Each block is convolution, normalisation, ReLU; a 2×2 max pooling stands between two blocks. The mean over all positions
    gives the features, so pictures of any size will do.

    Args:
        in_channels: channels of the picture.
        num_outputs: outputs.
        channels: channels of each block.
        norm: group | batch | none.
        dropout: probability, in [0, 1), on the features.

    Shapes:
        inputs (N, in_channels, H, W), floating point; output (N, num_outputs); features (N, channels[-1]).

    Raises:
        ValueError: if an option is out of its range, or the inputs are no pictures of ``in_channels`` channels.

    Source:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998; mean over the picture:
        Lin, Chen, Yan, "Network In Network", 2013, arXiv:1312.4400.
    """

    def __init__(self, in_channels: int, num_outputs: int, *, channels: Sequence[int] = (16, 32, 64), norm: str = "group", dropout: float = 0.0) -> None:
        super().__init__()
        require(in_channels >= 1, "in_channels must be >= 1", in_channels)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(len(channels) >= 1 and min(channels) >= 1, "channels must be a list of at least one number >= 1", list(channels))
        require(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
        self.in_channels = in_channels
        self.feature_dim = channels[-1]
        self.blocks = nn.ModuleList(
            conv_block(before, after, norm) for before, after in zip([in_channels, *channels[:-1]], channels, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        init_he(self.blocks)
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "convnet", "images", (self.in_channels, "H", "W"))
        maps = self.blocks[0](inputs)
        for block in self.blocks[1:]:
            maps = block(max_pool2d(maps, 2, ceil_mode=True))  # ceil: a side of 1 stays 1
        features = self.dropout(maps.mean((2, 3)))
        return ModelOutput(self.head(features), features)


class ResNet(nn.Module):
    r"""Residual network for small pictures, as the paper trains it on CIFAR-10.

    A 3×3 convolution, three stages of :math:`n` residual blocks of two 3×3 convolutions with ``width``, 2 ``width`` and
    4 ``width`` channels (the second and third stage halve the picture), the mean over the picture, a linear layer:
    :math:`6n + 2` layers. Where a block changes the shape its shortcut is a 1×1 convolution.

    Args:
        in_channels: channels of the picture.
        num_outputs: outputs.
        depth: layers, 6n + 2: 8, 14, 20, 26, 32 …; the paper's are 20, 32, 44, 56 and 110.
        width: channels of the first stage; the paper's are 16.
        norm: batch | group | none.

    Shapes:
        inputs (N, in_channels, H, W), floating point, any H and W; output (N, num_outputs); features (N, 4 width).

    Raises:
        ValueError: if ``depth`` is not 6n + 2, an option is out of its range, or the inputs are no pictures of ``in_channels`` channels.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2.
    """

    def __init__(self, in_channels: int, num_outputs: int, *, depth: int = 8, width: int = 16, norm: str = "batch") -> None:
        super().__init__()
        require(in_channels >= 1, "in_channels must be >= 1", in_channels)
        require(num_outputs >= 1, "num_outputs must be >= 1", num_outputs)
        require(depth >= 8 and depth % 6 == 2, "depth must be 6n + 2 with n >= 1: 8, 14, 20, 26, 32, …", depth)
        require(width >= 1, "width must be >= 1", width)
        self.in_channels = in_channels
        self.feature_dim = 4 * width
        blocks_a_stage = (depth - 2) // 6
        self.stem = conv_block(in_channels, width, norm)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(3):
            for block in range(blocks_a_stage):
                after = width * 2**stage
                blocks.append(ResidualBlock(before, after, stride=2 if stage > 0 and block == 0 else 1, norm=norm))
                before = after
        self.blocks = nn.Sequential(*blocks)
        init_he(self)
        self.head = nn.Linear(self.feature_dim, num_outputs)

    def forward(self, inputs: Tensor) -> ModelOutput:
        check_inputs(inputs, "resnet", "images", (self.in_channels, "H", "W"))
        features = self.blocks(self.stem(inputs)).mean((2, 3))
        return ModelOutput(self.head(features), features)


class ResidualBlock(nn.Module):
    r""":math:`\mathrm{relu}(x + \mathrm{norm}(\mathrm{conv}(\mathrm{relu}(\mathrm{norm}(\mathrm{conv}(x))))))`."""

    def __init__(self, before: int, after: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv_block(before, after, norm, stride), *conv3x3(after, after, norm))
        changes = stride != 1 or before != after
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=norm == "none"), norm2d(norm, after)) if changes else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return relu(self.shortcut(inputs) + self.inner(inputs))


def conv3x3(before: int, after: int, norm: str, stride: int = 1) -> list[nn.Module]:
    """3×3 convolution and normalisation; a bias only where no normalisation would take it away."""
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=norm == "none"), norm2d(norm, after)]


def conv_block(before: int, after: int, norm: str, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, normalisation, ReLU."""
    return nn.Sequential(*conv3x3(before, after, norm, stride), nn.ReLU())

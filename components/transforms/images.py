"""Augmentations of pictures, each sample differently, vectorised over the batch and on its device; any size and number of channels.

Where the target is a mask with one entry a pixel (segmentation), what moves the picture moves the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from components.losses.base import IGNORE_INDEX
from components.transforms.base import Transform, image_inputs, is_per_pixel, positive_range
from components.validation import require, require_choice

if TYPE_CHECKING:
    from components.data.base import Batch

Fill = Literal["reflect", "edge", "zeros"]


class RandomShift(Transform):
    r"""Shifts each picture by a random number of pixels: the pad-and-crop augmentation of small pictures.

    .. math:: \tilde{x}_{i}[r, c] = x_i[r + a_i, c + b_i], \qquad a_i, b_i \sim \mathcal{U}\{-p, …, p\}

    Args:
        pixels: *p*, the largest shift in each direction, >= 0. Default 2.
        fill: what comes in at the border: ``"reflect"`` (mirrored), ``"edge"`` (its last pixel repeated) or ``"zeros"`` (a mask
            then holds -100, which losses leave out). Default ``"reflect"``.

    Shapes:
        inputs (N, C, H, W) with H, W > ``pixels``, floating point; target, where it is (N, H, W) or (N, K, H, W), moves along.

    Raises:
        ValueError: if ``pixels`` < 0 or not smaller than the picture, ``fill`` is something else, or inputs are not pictures.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2 (4 pixels of zeros).
    """

    def __init__(self, pixels: int = 2, fill: Fill = "reflect") -> None:
        super().__init__()
        require(pixels >= 0, "pixels must be >= 0", pixels)
        require_choice("fill", fill, ("reflect", "edge", "zeros"))
        self.pixels, self.fill = pixels, fill

    def forward(self, batch: Batch) -> Batch:
        inputs = image_inputs(batch, "random_shift")
        require(self.pixels < min(inputs.shape[-2:]), f"pixels must be smaller than the picture's sides {tuple(inputs.shape[-2:])}", self.pixels)
        offsets = torch.randint(-self.pixels, self.pixels + 1, (2, len(inputs), 1), device=inputs.device)
        rows = offsets[0] + torch.arange(inputs.shape[-2], device=inputs.device)
        columns = offsets[1] + torch.arange(inputs.shape[-1], device=inputs.device)
        moved = {**batch, "inputs": self._take(inputs, rows, columns, 0)}
        if is_per_pixel(batch.get("target"), inputs):
            moved["target"] = self._take(batch["target"], rows, columns, IGNORE_INDEX)
        return moved

    def _take(self, pictures: Tensor, rows: Tensor, columns: Tensor, padding: int) -> Tensor:
        """``pictures[n, …, rows[n, h], columns[n, w]]``, with what lies outside filled."""
        planes = pictures if pictures.ndim == 4 else pictures.unsqueeze(1)
        height, width = planes.shape[-2:]
        sample = torch.arange(len(planes), device=planes.device)[:, None, None]
        # the slice between index arrays puts their dimensions first: (N, H, W, K)
        taken = planes[sample, :, self._inside(rows, height).unsqueeze(2), self._inside(columns, width).unsqueeze(1)].movedim(-1, 1)
        if self.fill == "zeros":
            outside = ((rows < 0) | (rows >= height)).unsqueeze(2) | ((columns < 0) | (columns >= width)).unsqueeze(1)
            taken = taken.masked_fill(outside.unsqueeze(1), padding)
        return taken.reshape(pictures.shape).contiguous()

    def _inside(self, position: Tensor, length: int) -> Tensor:
        if self.fill == "reflect":
            position = (length - 1) - ((length - 1) - position.abs()).abs()
        return position.clamp(0, length - 1)


class RandomFlip(Transform):
    r"""Mirrors each picture with a given probability.

    .. math:: \tilde{x}_i = \begin{cases} \operatorname{flip}(x_i) & u_i < p \\ x_i & \text{else} \end{cases}, \qquad u_i \sim \mathcal{U}(0, 1)

    Args:
        probability: *p*, share of the pictures that are mirrored, in [0, 1]. Default 0.5.
        direction: ``"horizontal"`` swaps left and right, ``"vertical"`` top and bottom. Default ``"horizontal"``.

    Shapes:
        inputs (N, C, H, W), floating point; target, where it is (N, H, W) or (N, K, H, W), is mirrored along.

    Raises:
        ValueError: if ``probability`` is outside [0, 1], ``direction`` is something else, or inputs are not pictures.

    Source:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
        section 4.1.
    """

    def __init__(self, probability: float = 0.5, direction: Literal["horizontal", "vertical"] = "horizontal") -> None:
        super().__init__()
        require(0 <= probability <= 1, "probability must be in [0, 1]", probability)
        require_choice("direction", direction, ("horizontal", "vertical"))
        self.probability, self.direction = probability, direction

    def forward(self, batch: Batch) -> Batch:
        inputs = image_inputs(batch, "random_flip")
        chosen = torch.rand(len(inputs), device=inputs.device) < self.probability
        flipped = {**batch, "inputs": self._flip(inputs, chosen)}
        if is_per_pixel(batch.get("target"), inputs):
            flipped["target"] = self._flip(batch["target"], chosen)
        return flipped

    def _flip(self, pictures: Tensor, chosen: Tensor) -> Tensor:
        mirrored = pictures.flip(-1 if self.direction == "horizontal" else -2)
        return torch.where(chosen.reshape(-1, *[1] * (pictures.ndim - 1)), mirrored, pictures)


class ImageAugment(Transform):
    r"""Random crop and resize, mirroring, brightness, contrast and noise: one view of each picture, for contrastive learning.

    .. math:: \tilde{x} = m + c\,(b \cdot \operatorname{crop}(x) - m) + \sigma \varepsilon, \qquad m = \operatorname{mean}(b \cdot \operatorname{crop}(x))

    with the factors :math:`b \sim \mathcal{U}(1 - B, 1 + B)` and :math:`c \sim \mathcal{U}(1 - K, 1 + K)` of each picture. Values are
    not cut off, since inputs may be standardised. As a transform it augments the batch's inputs; :meth:`augment` gives a view
    of a tensor, and two calls give the two views of self-supervised learning.

    Args:
        crop_scale: smallest and largest share of the area that is kept, 0 < low <= high <= 1; ``[1, 1]`` crops nothing.
        crop_ratio: smallest and largest width-to-height ratio of the crop, relative to the picture's own.
        flip: probability of mirroring left and right; 0 where left and right matter (digits, letters).
        brightness: *B* >= 0.
        contrast: *K* >= 0.
        noise: :math:`\sigma` >= 0, in the inputs' units.

    Shapes:
        inputs (N, C, H, W), floating point, any size; the result has the same shape. target, where it is (N, H, W) or
        (N, K, H, W), is cropped and mirrored along (nearest pixel).

    Raises:
        ValueError: if an argument is outside its range, or inputs are not pictures.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709,
        appendix A (here without colour changes across channels and without blur: it serves any number of channels).
    """

    def __init__(
        self,
        crop_scale: Sequence[float] = (0.5, 1.0),
        crop_ratio: Sequence[float] = (0.75, 4 / 3),
        flip: float = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.crop_scale = positive_range("crop_scale", crop_scale, at_most=1)
        self.crop_ratio = positive_range("crop_ratio", crop_ratio)
        require(0 <= flip <= 1, "flip must be in [0, 1] (a probability)", flip)
        for name, value in (("brightness", brightness), ("contrast", contrast), ("noise", noise)):
            require(value >= 0, f"{name} must be >= 0", value)
        self.flip, self.brightness, self.contrast, self.noise = flip, brightness, contrast, noise

    def forward(self, batch: Batch) -> Batch:
        inputs = image_inputs(batch, "image_augment")
        boxes = self.random_boxes(inputs)
        view = {**batch, "inputs": self._recolour(_sample(inputs, boxes, "bilinear"))}
        if is_per_pixel(batch.get("target"), inputs):
            view["target"] = _sample(batch["target"], boxes, "nearest")
        return view

    def augment(self, images: Tensor) -> Tensor:
        """One random view of pictures (N, C, H, W), of the same shape."""
        view: Tensor = self({"inputs": images})["inputs"]
        return view

    def random_boxes(self, images: Tensor) -> Tensor:
        """(N, 2, 3) affine maps from the view's coordinates to the picture's, both in [-1, 1]: a crop, perhaps mirrored."""
        count = len(images)
        scale = torch.empty(count, dtype=torch.float32, device=images.device).uniform_(*self.crop_scale)
        narrowest, widest = self.crop_ratio
        ratio = torch.empty_like(scale).uniform_(math.log(narrowest), math.log(widest)).exp()
        width, height = (scale * ratio).sqrt().clamp_max(1), (scale / ratio).sqrt().clamp_max(1)
        x, y = (1 - width) * _between_minus_one_and_one(width), (1 - height) * _between_minus_one_and_one(height)
        mirrored = torch.where(torch.rand_like(width) < self.flip, -width, width)
        zero = torch.zeros_like(width)
        return torch.stack([mirrored, zero, x, zero, height, y], dim=1).reshape(count, 2, 3)

    def _recolour(self, images: Tensor) -> Tensor:
        one = torch.ones_like(images[:, :1, :1, :1])
        images = images * (one + self.brightness * _between_minus_one_and_one(one))
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (one + self.contrast * _between_minus_one_and_one(one)) * (images - mean)
        return images + self.noise * torch.randn_like(images)


def _between_minus_one_and_one(like: Tensor) -> Tensor:
    return 2 * torch.rand_like(like) - 1


def _sample(pictures: Tensor, boxes: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """``pictures`` (N, K, H, W) or (N, H, W) seen through ``boxes``; computed in float32 or float64, returned in their own type."""
    planes = pictures if pictures.ndim == 4 else pictures.unsqueeze(1)
    planes = planes if planes.dtype == torch.float64 else planes.float()  # exact for class indices below 2^24
    grid = affine_grid(boxes.to(planes.dtype), list(planes.shape), align_corners=False)
    view = grid_sample(planes, grid, mode=mode, padding_mode="border", align_corners=False)
    return view.reshape(pictures.shape).to(pictures.dtype)

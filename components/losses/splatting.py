r"""Losses of rendered pictures: absolute error, structural similarity, and a mask that turns from smooth regions to edges as training goes on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, at_least_float32, check_same_shape
from components.validation import require

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


class FrequencyModulatedLoss(Loss):
    r"""Picture loss with a curriculum of frequencies: extra weight on smooth regions early, on edges late.

    .. math:: \ell = (1 - w_s - w_f) \overline{|I - J|} + w_s \big(1 - \mathrm{SSIM}(I, J)\big) + w_f\, \overline{M \odot |I - J|}

    with *I* the rendered and *J* the true picture, a bar for the mean over pixels and channels, and *M* a binary mask of the rendered picture
    (no gradient). With *f* = 100 · step / total_steps:

    .. math:: D = (G_{\sigma} - G_{2\sigma}) * \downarrow I_{\text{grey}}, \qquad
              \sigma = \begin{cases} 0.1 + 0.1 f & f < 50 \\ 0.1 + 0.1\,(100 - f) & f \ge 50 \end{cases}

    scaled up again and to [0, 1] by its least and greatest value; *M* is where that is at least 1/2, and for *f* < 50 where one minus it is.
    A difference that is the same everywhere has an empty mask (the authors' code divides 0 by 0 there).

    ``mask_weight=0`` is the loss of 3-D Gaussian splatting.

    Try it where a model of few smooth pieces is fitted to pictures: pieces first go where they cover much.

    Args:
        total_steps: optimizer steps of the whole run (filled in by the trainer).
        ssim_weight: :math:`w_s \ge 0`.
        mask_weight: :math:`w_f \ge 0`; :math:`w_s + w_f \le 1`.
        downscale: the mask is made of the picture at one over this; 5 in the paper. Small pictures want 1 or 2.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per picture).

    Shapes:
        image and target_image (N, C, H, W), values about [0, 1]; step an int, steps taken so far.

    Raises:
        ValueError: if a weight is negative or both exceed 1, ``downscale`` or ``total_steps`` is below 1, or shapes differ.

    Source:
        Hamdi et al., "GES: Generalized Exponential Splatting for Efficient Radiance Field Rendering", CVPR 2024, arXiv:2402.10128, with the
        schedule, the grey value of three channels and the zero padding of the authors' code (ajhamdi/ges-splatting); the mask is scaled
        picture by picture. SSIM: Wang et al., IEEE Transactions on Image Processing 13(4), 2004, window of 11, zero padding.
    """

    def __init__(
        self, total_steps: int, ssim_weight: float = 0.2, mask_weight: float = 0.5, downscale: int = 5, *, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        require(total_steps >= 1, "total_steps must be >= 1", total_steps)
        require(ssim_weight >= 0, "ssim_weight must be >= 0", ssim_weight)
        require(mask_weight >= 0, "mask_weight must be >= 0", mask_weight)
        require(ssim_weight + mask_weight <= 1, "ssim_weight + mask_weight must be <= 1", ssim_weight + mask_weight)
        require(downscale >= 1, "downscale must be >= 1", downscale)
        self.total_steps, self.downscale = total_steps, downscale
        self.ssim_weight: float | Tensor = ssim_weight
        self.mask_weight: float | Tensor = mask_weight

    def forward(self, image: Tensor, target_image: Tensor, step: int) -> Tensor:
        require(image.ndim == 4, "image must have shape (N, C, H, W)", tuple(image.shape))
        check_same_shape("target_image", target_image, "image", image)
        dtype = at_least_float32(image.dtype)
        rendered, truth = image.to(dtype), target_image.to(dtype)
        error = (rendered - truth).abs()
        mask = frequency_mask(rendered, 100 * step / self.total_steps, self.downscale)
        values = (1 - self.ssim_weight - self.mask_weight) * error.mean((1, 2, 3))
        values = values + self.ssim_weight * (1 - ssim_map(rendered, truth).mean((1, 2, 3)))
        values = values + self.mask_weight * (error * mask).mean((1, 2, 3))
        return self.reduce(values.to(image.dtype))


def frequency_sigma(frequency: float) -> float:
    """Standard deviation of the narrow Gaussian, in pixels of the small picture: 0.1 at both ends of training, 5 in the middle."""
    return 0.1 + 0.1 * (frequency if frequency < 50 else 100 - frequency)


def frequency_mask(image: Tensor, frequency: float, downscale: int = 5) -> Tensor:
    """(N, 1, H, W) of 0 and 1: smooth regions of each picture for a frequency below 50, else edges.

    Args:
        image: (N, C, H, W).
        frequency: 0 … 100.
        downscale: how much smaller the picture is that the difference of Gaussians is made of.
    """
    with torch.no_grad():
        height, width = image.shape[2:]
        grey = image.mean(1, keepdim=True)
        if downscale > 1:
            size = (max(height // downscale, 1), max(width // downscale, 1))
            grey = F.interpolate(grey, size=size, mode="bilinear", align_corners=False)
        sigma = frequency_sigma(frequency)
        difference = blurred(grey, sigma) - blurred(grey, 2 * sigma)
        if downscale > 1:
            difference = F.interpolate(difference, size=(height, width), mode="bilinear", align_corners=False)
        difference = difference - difference.amin((1, 2, 3), keepdim=True)
        greatest = difference.amax((1, 2, 3), keepdim=True)
        scaled = difference / torch.where(greatest > 0, greatest, torch.ones_like(greatest))
        chosen = (scaled if frequency >= 50 else 1 - scaled) >= 0.5
        rounding = 100 * torch.finfo(grey.dtype).eps * grey.abs().amax((1, 2, 3), keepdim=True)
        return (chosen & (greatest > rounding)).to(image.dtype)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """(N, 1, H, W) convolved with a normalised Gaussian of 2·round(3σ) + 1 pixels; zeros outside."""
    return convolved(image, gaussian_kernel(2 * round(3 * sigma) + 1, sigma, image))


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """(N, C, H, W) structural similarity at each pixel, of pictures about [0, 1]; zeros outside."""
    kernel = gaussian_kernel(SSIM_WINDOW, SSIM_SIGMA, first)
    mean_1, mean_2 = convolved(first, kernel), convolved(second, kernel)
    # sums of squares of rounded numbers: a variance is not below 0
    variance_1 = (convolved(first.square(), kernel) - mean_1.square()).clamp(min=0)
    variance_2 = (convolved(second.square(), kernel) - mean_2.square()).clamp(min=0)
    covariance = convolved(first * second, kernel) - mean_1 * mean_2
    likeness = (2 * mean_1 * mean_2 + C1) / (mean_1.square() + mean_2.square() + C1)
    return likeness * (2 * covariance + C2) / (variance_1 + variance_2 + C2)


def gaussian_kernel(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size,) normalised, in type and on the device of ``like``."""
    place = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    kernel = torch.exp(-place.square() / (2 * sigma**2))
    return kernel / kernel.sum()


def convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with the kernel along both sides: a 2-D Gaussian is the product of two 1-D ones."""
    channels, half = image.shape[1], len(kernel) // 2
    rows, columns = kernel.reshape(1, 1, -1, 1), kernel.reshape(1, 1, 1, -1)
    image = F.conv2d(image, rows.expand(channels, 1, -1, 1), padding=(half, 0), groups=channels)
    return F.conv2d(image, columns.expand(channels, 1, 1, -1), padding=(0, half), groups=channels)

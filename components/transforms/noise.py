"""Transforms that disturb the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from components.transforms.base import Transform, real_inputs
from components.validation import require

if TYPE_CHECKING:
    from components.data.base import Batch


class GaussianNoise(Transform):
    r"""Adds independent normal noise to the inputs; for small noise close to a penalty on the input gradient (Tikhonov).

    .. math:: \tilde{x} = x + \sigma \varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, I)

    Args:
        std: :math:`\sigma`, in the inputs' own units (losskit's data modules standardise them), >= 0. Default 0.1.

    Shapes:
        inputs (N, …), floating point; all else stays.

    Raises:
        ValueError: if ``std`` < 0, or inputs are not floating point.

    Source:
        Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural Computation 7(1), 1995.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        require(std >= 0, "std must be >= 0", std)
        self.std = std

    def forward(self, batch: Batch) -> Batch:
        inputs = real_inputs(batch, "gaussian_noise")
        return {**batch, "inputs": inputs + self.std * torch.randn_like(inputs)}

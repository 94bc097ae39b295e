"""Deep unfolding: the iterations of a solver as the layers of a network whose step sizes are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses.unfolding import hard_threshold, soft_threshold
from components.models.base import ModelOutput
from components.models.layers import check_inputs
from components.validation import require


class UnfoldedISTA(nn.Module):
    r"""The iterative shrinkage-thresholding algorithm for the lasso, unfolded: *T* layers, one learned step size each.

    .. math:: r_t = s_t - \gamma_t A^\top (A s_t - y), \qquad s_{t+1} = \operatorname{sign}(r_t) \max(|r_t| - \lambda \gamma_t,\, 0), \qquad s_0 = 0

    Step sizes are softplus of a parameter and start at :math:`1 / \lVert A \rVert_2^2`, with which it is the algorithm itself.

    Args:
        measurement_matrix: *A*, M rows of N numbers.
        num_outputs: N.
        layers: T >= 1.
        lam: :math:`\lambda \ge 0`.
        incremental: train the output of the first layer first, then of two, and so on, an equal number of steps each; out of training it is always
            the last layer's.
        total_steps: of the whole run, which ``incremental`` divides by T.

    Shapes:
        inputs (B, M), the measurements; output (B, N); features (B, N), the layer before the last.

    Raises:
        ValueError: if an option is out of its range, ``num_outputs`` is not N, or the inputs are not M measurements.

    Source:
        Daubechies, Defrise and De Mol, 2004 (the algorithm); Gregor and LeCun, "Learning Fast Approximations of Sparse Coding", ICML 2010
        (unfolding); Nagahisa, Hayakawa and Iiguni, 2025, arXiv:2509.01331 (step sizes alone, incremental training). That nothing but the step sizes is
        learned is our reading.
    """

    name: ClassVar[str] = "unfolded_ista"

    matrix: Tensor
    steps_seen: Tensor

    def __init__(
        self,
        measurement_matrix: Sequence[Sequence[float]] | Tensor,
        num_outputs: int | None = None,
        *,
        layers: int = 10,
        lam: float = 0.1,
        incremental: bool = False,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        matrix = torch.as_tensor(measurement_matrix, dtype=torch.get_default_dtype())
        require(matrix.ndim == 2 and matrix.numel() > 0, "measurement_matrix must be M rows of N numbers", tuple(matrix.shape))
        require(num_outputs in (None, matrix.shape[1]), f"num_outputs must be the {matrix.shape[1]} columns of the matrix (one prediction each)", num_outputs)
        require(layers >= 1, "layers must be >= 1", layers)
        require(lam >= 0, "lam must be >= 0", lam)
        require(not incremental or (total_steps or 0) >= 1, "incremental needs total_steps, the optimizer steps of the whole run", total_steps)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))
        self.layers, self.lam, self.incremental, self.total_steps = layers, lam, incremental, total_steps
        self.feature_dim = matrix.shape[1]
        start = 1 / float(torch.linalg.matrix_norm(matrix.double(), 2)) ** 2
        self.raw_steps = nn.Parameter(torch.full((layers,), inverse_softplus(start)))

    def step_sizes(self) -> Tensor:
        """(T,) the learned step sizes, > 0."""
        return F.softplus(self.raw_steps)

    def threshold(self, values: Tensor, step: Tensor) -> Tensor:
        return soft_threshold(values, self.lam * step)

    def trajectory(self, inputs: Tensor) -> list[Tensor]:
        """The output of every layer, (B, N) each."""
        check_inputs(inputs, self.name, "measurements", self.matrix.shape[:1])
        signal = inputs.new_zeros(len(inputs), self.matrix.shape[1])
        found = []
        for step in self.step_sizes().unbind():
            signal = self.threshold(signal - step * ((signal @ self.matrix.T - inputs) @ self.matrix), step)
            found.append(signal)
        return found

    def forward(self, inputs: Tensor) -> ModelOutput:
        found = self.trajectory(inputs)
        before = found[-2] if self.layers > 1 else torch.zeros_like(found[-1])
        if not (self.incremental and self.training):
            return ModelOutput(found[-1], before)
        layer = (self.steps_seen * self.layers // (self.total_steps or 1)).clamp(max=self.layers - 1)
        self.steps_seen.add_(1)
        return ModelOutput(torch.stack(found).index_select(0, layer.reshape(1)).squeeze(0), before)


class UnfoldedIHT(UnfoldedISTA):
    r"""Iterative hard thresholding for the :math:`\ell_0` penalty, unfolded: as :class:`UnfoldedISTA`, with another threshold.

    .. math:: r_t = s_t - \gamma_t A^\top (A s_t - y), \qquad s_{t+1} = r_t \, [\, |r_t| > \sqrt{2 \lambda \gamma_t} \,], \qquad s_0 = 0

    The threshold is not differentiable in :math:`\lambda \gamma_t`: gradients flow through :math:`r_t` on the support alone.

    Args:
        measurement_matrix: *A*, M rows of N numbers.
        num_outputs: N.
        layers: T >= 1.
        lam: :math:`\lambda \ge 0`.
        incremental: as in :class:`UnfoldedISTA`.
        total_steps: of the whole run, which ``incremental`` divides by T.

    Shapes:
        inputs (B, M), the measurements; output (B, N); features (B, N), the layer before the last.

    Raises:
        ValueError: if an option is out of its range, ``num_outputs`` is not N, or the inputs are not M measurements.

    Source:
        Blumensath and Davies, "Iterative Thresholding for Sparse Approximations", 2008; Nagahisa, Hayakawa and Iiguni, 2025, arXiv:2509.01331.
    """

    name: ClassVar[str] = "unfolded_iht"

    def threshold(self, values: Tensor, step: Tensor) -> Tensor:
        return hard_threshold(values, (2 * self.lam * step).sqrt())


def inverse_softplus(value: float) -> float:
    """The number whose softplus is ``value`` > 0."""
    return value + math.log(-math.expm1(-value))

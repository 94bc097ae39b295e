"""Regularizers on derivatives of the model: how much its output moves when its input does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize

from components.models.base import split_output
from components.regularizers.base import Regularizer, uncompiled, widened
from components.validation import require


class JacobianNorm(Regularizer):
    r"""Squared Frobenius norm of the input-output Jacobian, by random projections: makes predictions robust to small input changes.

    .. math:: R = \frac{1}{N} \sum_i \lVert J(x_i) \rVert_F^2 \approx
              \frac{1}{N} \sum_i \frac{C}{n} \sum_{\mu=1}^{n} \left\lVert \frac{\partial (v_i^\mu \cdot z(x_i))}{\partial x_i} \right\rVert^2

    with *z* the model's raw output, C its size, and :math:`v_i^1, …, v_i^n` random unit vectors, new at each step and for each
    sample. They are orthogonal to each other, so the estimate is unbiased for any n and exact for n >= C. The source's
    strength is :math:`\lambda_{JR}/2`.

    The model runs a second time, on ``inputs`` alone, and each projection is differentiated twice: a step costs a multiple of
    a plain one. What to know:

    - Buffers are put back afterwards: BatchNorm's running statistics count each batch once. In training mode BatchNorm
      mixes the samples of a batch, so the derivative then includes what a sample does to the others' outputs.
    - Dropout draws anew in the second run, from the global random state.
    - A compiled model runs uncompiled here, and attention by its plain kernel: the fast ones cannot be differentiated twice.
    - Under DDP the gradients arrive in the parameters' ``.grad`` and are averaged like the loss's. It must be part of the
      loss inside the wrapped forward (as in losskit's tasks), and reentrant activation checkpointing does not work with it.

    Args:
        projections: random directions n a step, >= 1. Default 1, as in the source.

    Shapes:
        model: maps ``inputs`` to a tensor or ModelOutput of (N, …); inputs: (N, …), floating point. The value is a scalar.

    Raises:
        ValueError: if ``projections`` < 1, or ``inputs`` is not floating point (tokens have no derivative).

    Source:
        Hoffman, Roberts and Yaida, "Robust Learning with Jacobian Regularization", 2019, arXiv:1908.02729, algorithm 1.
    """

    def __init__(self, projections: int = 1) -> None:
        super().__init__()
        require(projections >= 1, "projections must be >= 1", projections)
        self.projections = projections

    def forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        require(inputs.is_floating_point(), "inputs must be floating point (a derivative by them is taken)", inputs.dtype)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = inputs.detach().requires_grad_()
            output = run_leaving_buffers(model, x).flatten(1)
            size = output.shape[1]
            directions = random_directions(output, min(self.projections, size))
            squares = []
            for v in directions.unbind(1):
                (derivative,) = torch.autograd.grad(output, x, v, create_graph=differentiable, retain_graph=True)
                squares.append(widened(derivative).flatten(1).square().sum(1))
            return torch.stack(squares).mean(0).mean() * size


def run_leaving_buffers(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output; running statistics and other buffers that a forward pass changes stay as they were."""
    model = uncompiled(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return split_output(functional_call(model, buffers, (inputs,))).output


def random_directions(output: Tensor, count: int) -> Tensor:
    """(N, count, C) random unit vectors for outputs (N, C); those of one sample are orthogonal to each other."""
    size = output.shape[1]
    gaussian = torch.randn(len(output), size, count, dtype=widened(output).dtype, device=output.device)
    vectors = normalize(gaussian, dim=1) if count == 1 else torch.linalg.qr(gaussian).Q
    return vectors.mT.to(output.dtype)

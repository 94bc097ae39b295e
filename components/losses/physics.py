r"""Physics-informed losses: the residuals of a differential equation, squared, beside those of its initial and boundary values.

The residuals are a task's (:class:`components.tasks.PhysicsInformedTask` computes them by automatic differentiation); the two ways to write
the same equation differ in what the network puts out. A wave that moves fast is steep in *t* everywhere when it is watched from a fixed
place; along its own characteristics it does not change at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from components.losses.base import Loss, Reduction, check_same_shape
from components.validation import require

Velocity = Callable[[Tensor], Tensor]


class PINNLoss(Loss):
    r"""The plain physics-informed loss: one network :math:`u(x, t)` that has to solve the equation and keep its initial and boundary values.

    .. math:: \ell_i = \lVert r_i \rVert^2 + \lambda_0 \lVert r^0_i \rVert^2 + \lambda_b \lVert r^b_i \rVert^2, \qquad
              r = u_t + c\,u_x - \nu\,u_{xx}, \quad r^0 = u(x, 0) - u_0(x), \quad r^b = u(x_{\min}, t) - u(x_{\max}, t)

    The norms are sums over the *K* equations (one here, two in :class:`LagrangianPINNLoss`).

    Try it where the solution is smooth at the scale of the domain; fast convection (:math:`c \gtrsim 20` here) stalls it at a flat solution.

    Args:
        initial_weight: :math:`\lambda_0 \ge 0`.
        boundary_weight: :math:`\lambda_b \ge 0`; for a model that is periodic by itself the term is 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per point).

    Shapes:
        residual, initial_residual and boundary_residual (N, K), in the equation's own units.

    Raises:
        ValueError: if a weight is negative or shapes differ.

    Source:
        Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks", Journal of Computational Physics 378, 2019; as the
        baseline of Mojgani, Balajewicz and Hassanzadeh, arXiv:2205.02902.
    """

    def __init__(self, initial_weight: float = 1.0, boundary_weight: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(initial_weight >= 0, "initial_weight must be >= 0", initial_weight)
        require(boundary_weight >= 0, "boundary_weight must be >= 0", boundary_weight)
        self.initial_weight: float | Tensor = initial_weight
        self.boundary_weight: float | Tensor = boundary_weight

    def forward(self, residual: Tensor, initial_residual: Tensor, boundary_residual: Tensor) -> Tensor:
        require(residual.ndim == 2, "residual must have shape (N, K)", tuple(residual.shape))
        check_same_shape("initial_residual", initial_residual, "residual", residual)
        check_same_shape("boundary_residual", boundary_residual, "residual", residual)
        squared = residual.square() + self.initial_weight * initial_residual.square() + self.boundary_weight * boundary_residual.square()
        return self.reduce(squared.sum(1))


class LagrangianPINNLoss(PINNLoss):
    r"""The same along characteristics: where the point that started at :math:`x_0` is, :math:`X(x_0, t)`, and the state on it, :math:`U(x_0, t)`.

    .. math:: r_X = \dot X - c(U), \quad r_U = \dot U - \nu\,u_{xx}, \qquad u_{xx} = \frac{1}{X'} \Big( \frac{U'}{X'} \Big)'

    with a dot for :math:`\partial_t` and a dash for :math:`\partial_{x_0}` at fixed label; initially :math:`X = x_0` and :math:`U = u_0(x_0)`. Both
    residuals, squared, are added up as in :class:`PINNLoss`. Without viscosity the state does not change at all along its characteristic, so the
    network has to learn next to nothing: that is why training is easy.

    Try it where convection dominates and characteristics do not cross.

    Args:
        initial_weight: :math:`\lambda_0 \ge 0`.
        boundary_weight: :math:`\lambda_b \ge 0`; for a model that is periodic by itself the term is 0.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per point).

    Shapes:
        residual, initial_residual and boundary_residual (N, 2): of position and of state.

    Raises:
        ValueError: if a weight is negative or shapes differ.

    Source:
        Mojgani, Balajewicz and Hassanzadeh, "Lagrangian PINNs: A causality-conforming solution to failure modes of physics-informed neural
        networks", 2022, arXiv:2205.02902.
    """

    @classmethod
    def outputs_per_target(cls, **config: Any) -> int:
        return 2


def derivative(values: Tensor, points: Tensor) -> Tensor:
    """Of each value with respect to its own point, differentiable again; 0 where values do not depend on points."""
    if not values.requires_grad:
        return torch.zeros_like(points)
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=True, allow_unused=True)
    return torch.zeros_like(points) if found is None else found


def eulerian_residual(u: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, velocity: Velocity, viscosity: float) -> Tensor:
    r""":math:`u_t + c(u)\,u_x - \nu\,u_{xx}` at the points, (N,).

    Args:
        u: the state, a function of (N,) places and (N,) times, each value depending on its own point alone.
        x, t: (N,).
        velocity: :math:`c(u)`.
        viscosity: :math:`\nu`; second derivatives are taken only where it is not 0.
    """
    x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
    state = u(x, t)
    slope = derivative(state, x)
    residual = derivative(state, t) + velocity(state) * slope
    return residual - viscosity * derivative(slope, x) if viscosity else residual


def lagrangian_residual(
    flow: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], label: Tensor, t: Tensor, velocity: Velocity, viscosity: float
) -> Tensor:
    r""":math:`(\dot X - c(U),\; \dot U - \nu\,u_{xx})` at the labels, (N, 2).

    Args:
        flow: position and state, a function of (N,) labels and (N,) times, each value depending on its own label and time alone.
        label, t: (N,).
        velocity, viscosity: as in :func:`eulerian_residual`.
    """
    label, t = label.detach().requires_grad_(), t.detach().requires_grad_()
    position, state = flow(label, t)
    moved, changed = derivative(position, t) - velocity(state), derivative(state, t)
    if viscosity:
        changed = changed - viscosity * along_characteristics(position, state, label)
    return torch.stack([moved, changed], 1)


def along_characteristics(position: Tensor, state: Tensor, label: Tensor) -> Tensor:
    r""":math:`u_{xx} = (U' / X')' / X'` by the chain rule, (N,). The map from labels to places must be invertible: :math:`X' \ne 0`."""
    stretch = derivative(position, label)
    return derivative(derivative(state, label) / stretch, label) / stretch

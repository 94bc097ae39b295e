r"""Optimal transport with a quadratic penalty and at most *k* nonzero weights a column.

.. math:: \min_{T \ge 0,\; T 1 = a,\; T^\top 1 = b} \langle T, C \rangle + \sum_j \Omega(t_j), \qquad
          \Omega(t) = \tfrac\gamma2 \lVert t \rVert^2 + [\, \lVert t \rVert_0 \le k \,]

with :math:`t_j` the columns of T. ``k >= m`` (the rows) is quadratically regularised transport; ``k = 1`` has the value of transport without any
regularisation plus :math:`\tfrac\gamma2 \lVert b \rVert^2`. The cardinality makes the problem nonconvex; what its dual solves, and this module,
is the convex relaxation, whose plan has more than *k* nonzeros in a column only where its k-th and (k+1)-th slacks are equal (which is common).

The relaxation, with weights that share *k* units out over the rows of a column, is

.. math:: \min_{T, Z} \langle T, C \rangle + \tfrac\gamma2 \sum_{ij} \frac{T_{ij}^2}{Z_{ij}}, \qquad 0 \le Z \le 1, \quad \sum_i Z_{ij} \le k,

convex in both. For given weights it is a smooth quadratic dual, which a few Newton steps solve; for a given plan the best weights have a closed form.
Alternating between the two converges linearly where slacks are not all but equal, which a gradient method on the dual, kinked at every tie, does not.

Source:
    Liu, Puigcerver and Blondel, "Sparsity-Constrained Optimal Transport", ICLR 2023, arXiv:2209.15466 (problem, duals, conjugates); quadratic
    regularisation: Blondel, Seguy and Rolet, AISTATS 2018, arXiv:1710.06276. The solver is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from components.validation import require

STEP_SIZES = (0.0, 0.1, 0.25, 0.5, 1.0)


class Transport(NamedTuple):
    """A plan (m, n), its value, and the potentials of rows (m,) and columns (n,)."""

    plan: Tensor
    value: Tensor
    row_potential: Tensor
    column_potential: Tensor


# -- conjugates -----------------------------------------------------------------------------------------------------------------------------


def conjugate(scores: Tensor, k: int, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\Omega^*_+(s) = \frac{1}{2\gamma} \sum_{i \in \text{top-}k} \max(s_i, 0)^2` of each column, and its gradient.

    Args:
        scores: (m, …), the columns along dimension 0.
        k: nonzeros a column, at least 1.
        gamma: > 0.

    Returns:
        Values (…) and gradients (m, …): the weights of a column whose mass is free.
    """
    kept = scores.clamp(min=0) * largest(scores, k)
    return kept.square().sum(0) / (2 * gamma), kept / gamma


def simplex_conjugate(scores: Tensor, mass: float | Tensor, k: int, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\max \{ \langle s, t \rangle - \frac\gamma2 \lVert t \rVert^2 : t \ge 0, \sum t = b, \lVert t \rVert_0 \le k \}` and its gradient *t*.

    This is :math:`\Omega^*_b`. The *k* largest scores over :math:`\gamma` are projected on the simplex of size *b*.

    Args:
        scores: (m, …), the columns along dimension 0.
        mass: b > 0, (…) or one for all columns.
        k, gamma: as in :func:`conjugate`.
    """
    top, place = scores.topk(min(k, len(scores)), dim=0)
    weights = torch.zeros_like(scores).scatter(0, place, on_simplex(top / gamma, torch.as_tensor(mass, dtype=scores.dtype, device=scores.device)))
    return (scores * weights).sum(0) - 0.5 * gamma * weights.square().sum(0), weights


def on_simplex(values: Tensor, mass: Tensor) -> Tensor:
    """Euclidean projection of each column on the nonnegative weights whose sum is ``mass``."""
    ordered = values.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device).reshape(-1, *[1] * (values.ndim - 1))
    threshold = (ordered.cumsum(0) - mass) / counts
    support = (ordered > threshold).sum(0, keepdim=True).clamp(min=1)
    return (values - threshold.gather(0, support - 1)).clamp(min=0)


def largest(scores: Tensor, k: int) -> Tensor:
    """1 at the ``k`` largest of each column, else 0; ties go to the first that :func:`torch.topk` finds."""
    return torch.zeros_like(scores).scatter(0, scores.topk(min(k, len(scores)), dim=0).indices, 1.0)


def dual_value(row_potential: Tensor, column_potential: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float | Tensor) -> Tensor:
    r""":math:`\langle \alpha, a \rangle + \langle \beta, b \rangle - \sum_j \Omega^*_+(\alpha + \beta_j - c_j)`: never above the value."""
    slack = row_potential.unsqueeze(1) + column_potential - cost
    return row_potential @ a + column_potential @ b - conjugate(slack, k, gamma)[0].sum()


def semi_dual_value(row_potential: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float | Tensor) -> Tensor:
    r""":math:`\langle \alpha, a \rangle - \sum_j \Omega^*_{b_j}(\alpha - c_j)`: the dual value with the best column potentials."""
    return row_potential @ a - simplex_conjugate(row_potential.unsqueeze(1) - cost, b, k, gamma)[0].sum()


# -- solver ---------------------------------------------------------------------------------------------------------------------------------


def sparse_transport(cost: Tensor, a: Tensor, b: Tensor, *, k: int, gamma: float | Tensor, iterations: int = 50, newton_steps: int = 2) -> Transport:
    r"""Solve the problem of this module.

    The work is fixed by its arguments: nothing is read back from the device. Each iteration takes ``newton_steps`` solves of m + n unknowns.

    Args:
        cost: (m, n).
        a, b: (m,) and (n,) masses > 0 of equal sum.
        k: nonzeros a column, at least 1; m or more: no constraint.
        gamma: :math:`\gamma > 0`, in units of cost over mass.
        iterations: of weights and plan. 50 give about 1e-3 of the value where *k* binds, and 1e-8 where it does not.
        newton_steps: for each.

    Returns:
        Plan, value, potentials. The value is differentiable in ``cost``, with the plan as its gradient; the plan itself is not.

    Raises:
        ValueError: if shapes disagree, or ``k`` or ``iterations`` is below 1.
    """
    rows, columns = cost.shape
    require(a.shape == (rows,), f"a must have shape ({rows},)", tuple(a.shape))
    require(b.shape == (columns,), f"b must have shape ({columns},)", tuple(b.shape))
    require(k >= 1, "k must be >= 1", k)
    require(iterations >= 1, "iterations must be >= 1", iterations)
    with torch.no_grad():
        fixed = cost.detach()
        share = min(k, rows) / rows
        weights = torch.full_like(fixed, share)
        potentials = torch.cat([torch.zeros_like(a), fixed.mean(0) + gamma * b / (share * rows)])
        for _ in range(iterations):
            for _ in range(newton_steps):
                potentials = newton_step(potentials, weights, fixed, a, b, gamma)
            if k < rows:
                weights = best_weights(slack_of(potentials, fixed) * weights, k)
        for _ in range(newton_steps + 2):
            potentials = newton_step(potentials, weights, fixed, a, b, gamma)
        slack = slack_of(potentials, fixed)
        plan = slack * weights / gamma
        value = potentials[:rows] @ a + potentials[rows:] @ b - 0.5 * (plan * slack).sum()  # the dual's: what is left of an error counts squared
    value = value + (plan * (cost - fixed)).sum()
    return Transport(plan, value, potentials[:rows], potentials[rows:])


def slack_of(potentials: Tensor, cost: Tensor) -> Tensor:
    rows = len(cost)
    return (potentials[:rows].unsqueeze(1) + potentials[rows:] - cost).clamp(min=0)


def newton_step(potentials: Tensor, weights: Tensor, cost: Tensor, a: Tensor, b: Tensor, gamma: float | Tensor) -> Tensor:
    """One damped Newton step up the dual, which is piecewise quadratic; of several step lengths the best is taken, 0 among them."""
    slack = slack_of(potentials, cost)
    plan = weights * slack
    gradient = torch.cat([gamma * a - plan.sum(1), gamma * b - plan.sum(0)])
    active = weights * (slack > 0)
    hessian = torch.cat([torch.cat([active.sum(1).diag(), active], 1), torch.cat([active.T, active.sum(0).diag()], 1)])
    # singular: a constant moved from rows to columns changes nothing, nor does one within a part of the plan that stands alone. The small ridge
    # gives Newton's step; where that leads out of such a part and far astray, the large one still goes up
    ridges = torch.tensor([1e-6 if cost.dtype == torch.float32 else 1e-10, 1e-3, 1e-1], dtype=cost.dtype, device=cost.device)
    hessians = hessian + ridges.reshape(-1, 1, 1) * torch.eye(len(potentials), dtype=cost.dtype, device=cost.device)
    directions, _ = torch.linalg.solve_ex(hessians, gradient.expand(len(ridges), -1).unsqueeze(2))
    lengths = torch.tensor(STEP_SIZES, dtype=cost.dtype, device=cost.device)
    tried = (potentials + lengths.reshape(-1, 1, 1) * directions.squeeze(2)).flatten(0, 1)
    linear = tried[:, : len(a)] @ a + tried[:, len(a) :] @ b
    slacks = (tried[:, : len(a), None] + tried[:, None, len(a) :] - cost).clamp(min=0)
    values = gamma * linear - 0.5 * (weights * slacks.square()).sum((1, 2))
    best = values.argmax()
    return tried.index_select(0, best.unsqueeze(0)).squeeze(0)


def best_weights(plan: Tensor, k: int) -> Tensor:
    r"""Weights in [0, 1] of sum *k* in each column that make :math:`\sum_i T_i^2 / Z_i` least: proportional to the plan, but 1 at most.

    The largest of a column, at most *k* of them, have weight 1; how many is found by sorting.
    """
    rows = len(plan)
    ordered = plan.sort(dim=0, descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)  # what is left from each place on
    taken = torch.arange(min(k, rows), dtype=plan.dtype, device=plan.device).unsqueeze(1)
    scale = rest[: min(k, rows)] / (k - taken)  # the plan that a weight of 1 stands for, if so many have weight 1 already
    fits = ordered[: min(k, rows)] <= scale
    first = torch.where(fits.any(0), fits.to(plan.dtype).argmax(0), torch.full_like(fits[0], min(k, rows) - 1, dtype=torch.long))
    chosen = scale.gather(0, first.unsqueeze(0))
    tiny = torch.finfo(plan.dtype).tiny
    return (plan / chosen.clamp(min=tiny)).clamp(max=1)

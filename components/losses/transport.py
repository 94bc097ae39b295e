r"""Matching two clouds of points without knowing which belongs to which: the cost of transport between them (:mod:`components.transport`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import Loss, Reduction, at_least_float32, check_same_shape
from components.transport import sparse_transport
from components.validation import require


class SparseTransportLoss(Loss):
    r"""Cost of moving one batch of projections onto the other, each point of the second fed by about *k* points of the first at most.

    .. math:: \ell = \frac1N \min_{T \ge 0,\; T1 = 1,\; T^\top 1 = 1} \sum_{ij} T_{ij} C_{ij} + \sum_j \Omega(t_j), \qquad
              C_{ij} = 1 - \cos(p_i, q_j), \quad \Omega(t) = \tfrac\gamma2 \lVert t \rVert^2 + [\, \lVert t \rVert_0 \le k \,]

    solved as its convex relaxation. ``k=1`` is assignment, ``k=N`` quadratically regularised transport; between them plans are sparse and still
    change smoothly. The gradient with respect to the cost is the plan;
    second derivatives take the plan as fixed.

    Try it as an auxiliary term that aligns two distributions whose pairs are not known. Alone it is satisfied by equal points.

    Memory: some ten N×N tensors and a (2N)×(2N) one; each iteration solves ``2`` linear systems of 2N unknowns.

    Args:
        k: nonzeros a column, at least 1; N or more: no constraint.
        gamma: :math:`\gamma > 0`, in units of the cost, which is in [0, 2].
        iterations: of the solver; see :func:`components.transport.sparse_transport`.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (the batch's mean cost, once for each sample: a plan has no cost of one sample).

    Shapes:
        projections_1 and projections_2 (N, D), raw.

    Raises:
        ValueError: if ``k`` or ``iterations`` is below 1, ``gamma <= 0`` or shapes differ.

    Source:
        Liu, Puigcerver and Blondel, "Sparsity-Constrained Optimal Transport", ICLR 2023, arXiv:2209.15466.
    """

    pairwise = True

    def __init__(self, k: int = 2, gamma: float = 0.1, iterations: int = 30, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        require(k >= 1, "k must be >= 1", k)
        require(gamma > 0, "gamma must be > 0", gamma)
        require(iterations >= 1, "iterations must be >= 1", iterations)
        self.k, self.iterations = k, iterations
        self.gamma: float | Tensor = gamma

    def forward(self, projections_1: Tensor, projections_2: Tensor) -> Tensor:
        require(projections_1.ndim == 2, "projections_1 must have shape (N, D)", tuple(projections_1.shape))
        check_same_shape("projections_2", projections_2, "projections_1", projections_1)
        dtype = at_least_float32(projections_1.dtype)
        first, second = (F.normalize(p.to(dtype), dim=1) for p in (projections_1, projections_2))
        if not len(first):
            return self.reduce((first + second).sum(1).to(projections_1.dtype))
        # not a matrix product, which autocast would take to half precision
        cost = 1 - (first.unsqueeze(1) * second).sum(2)
        ones = torch.ones_like(cost[0])
        value = sparse_transport(cost, ones, ones, k=self.k, gamma=self.gamma, iterations=self.iterations).value / len(ones)
        return self.reduce(value.to(projections_1.dtype).expand(len(ones)))

"""Metrics that put an error in proportion, and those of order and of likelihood."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from components.losses.unfolding import SparseObjectiveLoss
from components.metrics.base import Quotient
from components.metrics.regression import MeanOfErrors, same_shape
from components.validation import require_choice


class NormalisedSquaredError(Quotient):
    r"""Squared error over the target's own size, :math:`\sum (\hat y - y)^2 / \sum y^2`: 0 is exact, 1 as good as predicting 0.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    higher_is_better = False
    is_differentiable = True

    def __init__(self) -> None:
        super().__init__(counted=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        same_shape(preds, target)
        kept = ~target.isnan()
        error, size = (values.square().masked_fill(~kept, 0.0).sum() for values in (preds.float() - target.float(), target.float()))
        self.add(error, size)


class RelativeL2Error(NormalisedSquaredError):
    r"""Relative L2 error :math:`\lVert \hat u - u \rVert / \lVert u \rVert`, the usual measure of a solution of a differential equation.

    Shapes:
        preds and target: any, the same. Missing targets are NaN.
    """

    def compute(self) -> Tensor:
        return super().compute().sqrt()


class WithinGroupCorrelation(Metric):
    r"""Correlation of scores with ratings within each data set, the mean over data sets.

    Args:
        kind: ``pearson`` (PLCC, of values) or ``spearman`` (SRCC, of ranks).

    Shapes:
        preds and target (N,); group (N,), long. Groups of fewer than two samples, or without differences, are left out.

    Raises:
        ValueError: if ``kind`` is not known or shapes differ.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]
    group: list[Tensor]

    def __init__(self, kind: str = "pearson") -> None:
        super().__init__()
        require_choice("kind", kind, ("pearson", "spearman"))
        self.kind = kind
        for name in ("preds", "target", "group"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, group: Tensor) -> None:
        same_shape(preds, target)
        same_shape(preds, group)
        self.preds.append(preds.float())
        self.target.append(target.float())
        self.group.append(group)

    def compute(self) -> Tensor:
        preds, target, group = (dim_zero_cat(values).cpu() for values in (self.preds, self.target, self.group))
        correlation = pearson_corrcoef if self.kind == "pearson" else spearman_corrcoef
        found = []
        for one in group.unique():
            members = group == one
            ours, theirs = preds[members].double(), target[members].double()
            if len(ours) > 1 and bool((ours != ours[0]).any()) and bool((theirs != theirs[0]).any()):
                found.append(correlation(ours, theirs))
        return torch.stack(found).mean().float() if found else torch.tensor(0.0)


class SparseObjective(MeanOfErrors):
    r"""The lasso's objective at the recovered signals, the mean over signals of

    .. math:: \frac1N \Big( \frac12 \lVert A \hat s - y \rVert^2 + \lambda \lVert \hat s \rVert_1 \Big)

    Args:
        lam: :math:`\lambda \ge 0`; the same for all that are compared.
        penalty: ``l1`` or ``l0``.

    Shapes:
        preds (B, N); residual (B, M).
    """

    def __init__(self, lam: float = 0.1, penalty: str = "l1") -> None:
        super().__init__()
        self.objective = SparseObjectiveLoss(lam, penalty, reduction="none")

    def update(self, preds: Tensor, residual: Tensor) -> None:  # type: ignore[override]
        values = self.objective(preds.float(), residual.float())
        self.add_kept(values, torch.ones_like(values, dtype=torch.bool))


class NegativeLogLikelihood(MeanOfErrors):
    """Mean of minus the log density.

    Shapes:
        log_density (N,), normalised.
    """

    def update(self, log_density: Tensor) -> None:  # type: ignore[override]
        self.add_kept(-log_density.float(), torch.ones_like(log_density, dtype=torch.bool))

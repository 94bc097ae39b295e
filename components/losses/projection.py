"""Losses of projections: a volume judged by its maximum-intensity projections as well, where a gap in a thin tube shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.losses.base import IGNORE_INDEX, Reduction
from components.losses.overlap import RegionLoss, check_foreground, check_tversky, tversky_cost
from components.validation import require


class MIPLoss(RegionLoss):
    r"""Focal Tversky loss of a volume and of its maximum-intensity projections: thin tubes without gaps.

    With :math:`M_a` the largest value along axis *a* and FTL the focal Tversky loss (:class:`~components.losses.TverskyLoss`) of the foreground,

    .. math:: \ell = w_v\, \mathrm{FTL}(p, y) + w_m \sum_a \mathrm{FTL}(M_a p, M_a y), \qquad p = \mathrm{softmax}(z)

    The gradient of a projection goes to one voxel of each ray, the first of the largest.

    Try it where thin, connected structures (vessels, roads) break up. Any number of spatial dimensions: a picture is projected onto its rows and columns.

    Args:
        volume_weight: :math:`w_v` >= 0.
        mip_weight: :math:`w_m` >= 0.
        axes: ``all`` spatial axes (the paper's multi-axis loss), or a list of them, counted from 0; ``[-1]`` is the paper's single-axis loss.
        fp_weight: price of false alarms in FTL.
        fn_weight: price of misses in FTL.
        gamma: FTL's power.
        smooth: FTL's smoothing.
        per_image: FTL of the volume for each image; False: over the whole batch at once, as the authors' code has it (projections are per image there too).
        include_background: project class 0 too.
        weight: per-class weights, shape (C,). A weighting *within* an element.
        ignore_index: target value that contributes neither value nor gradient; a ray passes by ignored voxels.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,); with ``per_image=False`` each holds the batch's term).

    Shapes:
        logits (N, C, d1, …), raw, two classes or more; target (N, d1, …), class indices; optionally target_projections, for crops of a larger volume: for
        each of ``axes`` one (N, C, …) without that axis, float in [0, 1], the whole volume's label projected and then cropped (the paper's training;
        without it, the crop's own label is projected).

    Raises:
        ValueError: if an option is out of its range, an axis is not there, shapes disagree or a target lies outside [0, C).

    Source:
        Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity Projection as Loss", 2024,
        arXiv:2407.08655, and the authors' code. Several classes (the mean over the foreground) and softmax are our reading of its single sigmoid.
    """

    def __init__(
        self,
        *,
        volume_weight: float = 0.7,
        mip_weight: float = 0.3,
        axes: str | Sequence[int] = "all",
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1.0,
        per_image: bool = True,
        include_background: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require(volume_weight >= 0, "volume_weight must be >= 0", volume_weight)
        require(mip_weight >= 0, "mip_weight must be >= 0", mip_weight)
        numbers = not isinstance(axes, str) and len(axes) > 0 and all(isinstance(axis, int) for axis in axes)
        require(axes == "all" or numbers, "axes must be 'all' or a list of spatial axes, counted from 0", axes)
        check_tversky(fp_weight, fn_weight, gamma, smooth)
        self.volume_weight, self.mip_weight = volume_weight, mip_weight
        self.axes = "all" if isinstance(axes, str) else tuple(axes)
        self.fp_weight, self.fn_weight, self.gamma, self.smooth = fp_weight, fn_weight, gamma, smooth
        self.per_image, self.include_background = per_image, include_background

    def forward(self, logits: Tensor, target: Tensor, target_projections: Sequence[Tensor] | None = None) -> Tensor:
        p, y, kept = self.regions(logits, target)
        check_foreground(logits, self.include_background)
        first = 0 if self.include_background else 1
        shape = tuple(logits.shape[2:]) or (1,)
        axes = self.spatial_axes(len(shape))
        if target_projections is not None and len(target_projections) != len(axes):
            raise ValueError(f"target_projections must be one for each of the axes {axes}, but got {len(target_projections)}")
        volume = self.cost(p, y) if self.per_image else self.cost(p.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1)).unsqueeze(0)
        values = self.volume_weight * self.over_classes(volume, first)
        p_grid, y_grid, kept_grid = (x.reshape(*x.shape[:-1], *shape) for x in (p, y, kept))
        for place, axis in enumerate(axes):
            seen = maximum_intensity_projection(p_grid, axis)  # ignored voxels have p = 0, which is never above the others
            wanted = maximum_intensity_projection(y_grid, axis)
            if target_projections is not None:
                given = target_projections[place]
                if given.shape != wanted.shape:
                    raise ValueError(f"target_projections of axis {axis} must have shape {tuple(wanted.shape)}, but got {tuple(given.shape)}")
                wanted = given.to(wanted.dtype) * kept_grid.any(axis + 1).unsqueeze(1)
            projected = self.cost(seen.unsqueeze(-1).flatten(2), wanted.unsqueeze(-1).flatten(2))
            values = values + self.mip_weight * self.over_classes(projected, first)
        return self.reduce_images(values, kept, logits.dtype)

    def cost(self, p: Tensor, y: Tensor) -> Tensor:
        return tversky_cost(p, y, self.fp_weight, self.fn_weight, self.gamma, self.smooth)

    def spatial_axes(self, count: int) -> tuple[int, ...]:
        if isinstance(self.axes, str):
            return tuple(range(count))
        if not all(-count <= axis < count for axis in self.axes):
            raise ValueError(f"axes must be spatial axes of logits, which has {count}, but got {list(self.axes)}")
        return tuple(axis % count for axis in self.axes)


def maximum_intensity_projection(values: Tensor, axis: int) -> Tensor:
    """(N, C, d1, …) -> the largest values along spatial ``axis`` (from 0; negative from the end), with a gradient to one voxel a ray."""
    dims = values.ndim - 2
    require(-dims <= axis < dims, f"axis must be in [-{dims}, {dims})", axis)
    return torch.max(values, axis % dims + 2).values

"""Metrics of a segmentation's shape beyond its overlap: features in the right place, components, holes, centre lines, outlines.

Each picture's foreground classes are looked at one after the other, as binary masks, on the CPU; values are means over pictures and these classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from components.losses.topology import DIMENSIONS, check_dimensions, match_bars
from components.metrics.base import Quotient
from components.validation import require

Mask = NDArray[np.bool_]


class MaskMetric(Quotient):
    """Base of means over pictures and foreground classes: a subclass says what a pair of masks is worth in :meth:`value`.

    Args:
        ignore_index: pixels of this target are background in both masks.

    Shapes:
        preds (N, C, d1, …), scores, each pixel's class the largest; target (N, d1, …), class indices. Class 0 is background.
    """

    higher_is_better = False

    def __init__(self, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def value(self, ours: Mask, truth: Mask) -> float:
        raise NotImplementedError

    def update(self, preds: Tensor, target: Tensor) -> None:
        num_classes = preds.shape[1]
        require(num_classes >= 2, "preds must have two classes or more, the first of them background", num_classes)
        drawn = np.asarray(preds.argmax(1).masked_fill(target == self.ignore_index, 0).cpu())
        truth = np.asarray(target.cpu())
        values = [self.value(drawn[i] == c, truth[i] == c) for i in range(len(drawn)) for c in range(1, num_classes)]
        self.add(float(np.sum(values)), len(values))


class BettiMatchingError(MaskMetric):
    """Components and holes of prediction and truth that have no partner in the same place: unmatched bars of both masks.

    Args:
        dimensions: 0 (components), 1 (holes), or both.
        ignore_index: see :class:`MaskMetric`.

    Raises:
        ValueError: if ``dimensions`` are others, or the masks are no pictures.

    Source:
        Stucki et al., 2023, arXiv:2211.15272; see :class:`components.losses.BettiMatchingLoss`. One component is always matched, wherever it lies.
    """

    def __init__(self, *, dimensions: Sequence[int] = DIMENSIONS, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        self.dimensions = check_dimensions(dimensions)

    def value(self, ours: Mask, truth: Mask) -> float:
        require(ours.ndim == 2, "the Betti matching error takes pictures (H, W)", ours.shape)
        matching = match_bars(ours.astype(np.float64), truth.astype(np.float64), self.dimensions)
        return matching.unmatched.shape[1] + matching.unmatched_truth.shape[1]


class BettiNumberError(MaskMetric):
    r"""How many components, holes (and in volumes cavities) the prediction has too many or too few: :math:`\sum_k |\beta_k - \beta'_k|`, wherever they are.

    Foreground hangs together along rows and columns, not diagonally; background diagonally too.

    Args:
        dimensions: which of 0 (components), 1 (holes, tunnels), 2 (cavities of volumes).
        ignore_index: see :class:`MaskMetric`.

    Raises:
        ValueError: if ``dimensions`` are others.

    Source:
        Hu et al., "Topology-Preserving Deep Image Segmentation", NeurIPS 2019, arXiv:1906.05404 (over whole pictures instead of patches).
    """

    def __init__(self, *, dimensions: Sequence[int] = DIMENSIONS, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        self.dimensions = tuple(dimensions)
        require(len(self.dimensions) > 0 and set(self.dimensions) <= {0, 1, 2}, "dimensions must be a list of 0, 1 and 2", list(dimensions))

    def value(self, ours: Mask, truth: Mask) -> float:
        first, second = betti_numbers(ours), betti_numbers(truth)
        return sum(abs(first[k] - second[k]) for k in self.dimensions if k < len(first))


def betti_numbers(mask: Mask) -> tuple[int, ...]:
    """Components and holes of a picture; components, tunnels and cavities of a volume."""
    from scipy.ndimage import label

    components = int(label(mask)[1])
    if mask.ndim == 1:
        return (components,)
    everywhere = np.ones((3,) * mask.ndim)
    enclosed = int(label(np.pad(~mask, 1, constant_values=True), everywhere)[1]) - 1
    if mask.ndim == 2:
        return components, enclosed
    return components, components + enclosed - euler_characteristic(mask), enclosed


def euler_characteristic(mask: Mask) -> int:
    """Vertices less edges plus squares less cubes, where each cell is there if all of its pixels are."""
    total = 0
    for count in range(mask.ndim + 1):
        for axes in combinations(range(mask.ndim), count):
            cells = mask
            for axis in axes:
                cells = np.take(cells, np.arange(cells.shape[axis] - 1), axis) & np.take(cells, np.arange(1, cells.shape[axis]), axis)
            total += (-1) ** count * int(cells.sum())
    return total


class CenterlineDice(MaskMetric):
    r"""clDice: how much of each mask's centre line lies in the other mask, for tubes and networks.

    .. math:: \frac{2\, T_p T_s}{T_p + T_s}, \qquad T_p = \frac{|S_p \cap V|}{|S_p|}, \quad T_s = \frac{|S \cap V_p|}{|S|}

    with V, V_p the masks of truth and prediction and S, S_p their skeletons. 1 where both are empty, 0 where one is.

    Args:
        ignore_index: see :class:`MaskMetric`.

    Source:
        Shit et al., "clDice – a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation", CVPR 2021, arXiv:2003.07311; skeletons of
        scikit-image.
    """

    higher_is_better = True

    def value(self, ours: Mask, truth: Mask) -> float:
        from skimage.morphology import skeletonize

        if not ours.any() or not truth.any():
            return float(ours.any() == truth.any())
        lines: list[Any] = [np.asarray(skeletonize(mask)) > 0 for mask in (ours, truth)]
        precision, sensitivity = (lines[0] & truth).sum() / max(lines[0].sum(), 1), (lines[1] & ours).sum() / max(lines[1].sum(), 1)
        return float(2 * precision * sensitivity / max(precision + sensitivity, 1e-12))


class BoundaryF1(MaskMetric):
    """F1 of the outlines: which share of each mask's outline has the other's within ``tolerance``. 1 where both are empty, 0 where one is.

    Args:
        tolerance: distance in pixels, >= 0.
        ignore_index: see :class:`MaskMetric`.

    Raises:
        ValueError: if ``tolerance < 0``.

    Source:
        Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013. An outline is what an erosion takes away.
    """

    higher_is_better = True

    def __init__(self, *, tolerance: float = 1.5, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        require(tolerance >= 0, "tolerance must be >= 0", tolerance)
        self.tolerance = tolerance

    def value(self, ours: Mask, truth: Mask) -> float:
        from scipy.ndimage import binary_erosion, distance_transform_edt

        if not ours.any() or not truth.any():
            return float(ours.any() == truth.any())
        first, second = (mask & ~binary_erosion(mask) for mask in (ours, truth))
        precision, recall = ((distance_transform_edt(~other)[line] <= self.tolerance).mean() for line, other in ((first, second), (second, first)))
        return float(2 * precision * recall / max(precision + recall, 1e-12))

"""Metrics of several segmentations of a picture against the masks of several raters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.metrics.base import Quotient


def mask_distances(first: Tensor, second: Tensor) -> Tensor:
    """1 − IoU of all pairs, (N, S, C, P) and (N, R, C, P) bool -> (N, S, R): the mean over the foreground classes that either has; 0 where none has one."""
    a, b = first[:, :, 1:].float(), second[:, :, 1:].float()
    both = torch.einsum("nscp,nrcp->nsrc", a, b)
    either = a.sum(3).unsqueeze(2) + b.sum(3).unsqueeze(1) - both
    present = (either > 0).float()
    iou = both / either.clamp(min=1)
    return ((1 - iou) * present).sum(3) / present.sum(3).clamp(min=1)


class SampleDiversity(Quotient):
    r"""How much a model's samples of a picture differ among themselves: :math:`E\, d(s, s')` over all pairs, d = 1 − IoU, averaged over pictures.

    0 where all are equal; to be read beside :class:`GeneralizedEnergyDistance`.

    Shapes:
        sample_logits (N, S, C, d1, …), each pixel's class the largest. Class 0 is background.

    Source:
        Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images", NeurIPS 2018, arXiv:1806.05034, section 4, one term.
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()

    def update(self, sample_logits: Tensor) -> None:
        drawn = masks_of(sample_logits.argmax(2), sample_logits.shape[2])
        self.add(mask_distances(drawn, drawn).mean((1, 2)).sum(), len(drawn))


class GeneralizedEnergyDistance(SampleDiversity):
    r"""Squared generalised energy distance between a model's sampled masks and the raters', with d = 1 − IoU, averaged over pictures.

    .. math:: D^2 = 2\, E\, d(s, y) - E\, d(s, s') - E\, d(y, y')

    over all pairs, also of one with itself. 0 where both sets are the same in the same proportions.

    Shapes:
        sample_logits (N, S, C, d1, …), each pixel's class the largest; rater_targets (N, R, d1, …), class indices. Class 0 is background.

    Source:
        Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images", NeurIPS 2018, arXiv:1806.05034, section 4; several foreground classes: the
        mean over those that either mask has (our reading).
    """

    higher_is_better = False

    def update(self, sample_logits: Tensor, rater_targets: Tensor) -> None:  # type: ignore[override]
        drawn, masks = (masks_of(x, sample_logits.shape[2]) for x in (sample_logits.argmax(2), rater_targets))
        across = mask_distances(drawn, masks).mean((1, 2))
        distances = 2 * across - mask_distances(drawn, drawn).mean((1, 2)) - mask_distances(masks, masks).mean((1, 2))
        self.add(distances.sum(), len(distances))


def masks_of(classes: Tensor, count: int) -> Tensor:
    """Class indices (N, S, d1, …) -> bool (N, S, C, P)."""
    return one_hot(classes, count).movedim(-1, 2).unsqueeze(-1).flatten(3).bool()

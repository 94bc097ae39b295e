"""Separation of sources: segmentation of a mixture's spectrogram, with the sounds at hand to judge it by."""

from __future__ import annotations

from typing import ClassVar

from components.data.base import Batch
from components.quantities import Quantities
from components.tasks.segmentation import SegmentationTask


class SeparationTask(SegmentationTask):
    """Predict which source is the loudest in each bin of a spectrogram, or the share of each.

    Args:
        num_classes: K, sources.
        ignore_index: bins of this target belong to no source.

    Shapes:
        inputs (N, channels, F, T); logits (N, K, F, T), the model's output; target (N, F, T), class indices; from the data: mixture (N, L),
        mixture_magnitudes (N, F, T), target_signals (N, K, L), target_magnitudes (N, K, F, T).

    Raises:
        ValueError: if the data have no sounds, or the model's output is not of the target's size.
    """

    offers: ClassVar[frozenset[str]] = frozenset(
        {"target", "target_multi_hot", "logits", "features", "mixture", "mixture_magnitudes", "target_signals", "target_magnitudes"}
    )

    def quantities(self, batch: Batch) -> Quantities:
        missing = [name for name in ("mixture", "mixture_magnitudes", "target_signals", "target_magnitudes") if name not in batch]
        if missing:
            raise ValueError(f"task=separation needs data with {', '.join(missing)}: data=voice_mixtures has them")
        return super().quantities(batch)

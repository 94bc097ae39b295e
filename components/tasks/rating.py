"""Ratings on ordered levels, by people who disagree."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from components.data.base import Batch
from components.losses.ordinal import moments
from components.quantities import Quantities, lazy
from components.tasks.classification import ClassificationTask
from components.validation import require


class RatingTask(ClassificationTask):
    """Predict a distribution over ordered levels; its mean is the predicted score.

    ``target`` is the nearest level, so that every loss of classes can be taken (cross-entropy on levels is the usual way);
    ``target_mean``, ``target_std`` and ``group`` say more, and come from the data.

    Args:
        kind: as in :class:`ClassificationTask`; it must come out as multiclass.

    Shapes:
        logits (N, C), in the order of the levels 1 … C; level_score, target_mean, target_std (N,), in levels; group (N,).

    Raises:
        ValueError: if the data has no single levels.
    """

    offers: ClassVar[frozenset[str]] = frozenset(
        {"target", "target_multi_hot", "logits", "features", "target_mean", "target_std", "group", "level_score"}
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(self.kind == "multiclass", "task=rating needs one level of several a sample: task.kind must be multiclass", self.kind)

    def quantities(self, batch: Batch) -> Quantities:
        return super().quantities(batch).replace(level_score=lazy(lambda q: moments(q["logits"].float())[0]))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        score, variance = moments(self.run_model(batch["inputs"]).output.float())
        return {"score": score, "standard_deviation": variance.sqrt()}

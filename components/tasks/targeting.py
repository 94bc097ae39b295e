"""Targeting: whom a campaign should reach, where customers differ in what they are worth."""

from __future__ import annotations

from typing import ClassVar

from components.data.base import Batch
from components.quantities import Quantities
from components.tasks.classification import ClassificationTask
from components.validation import require, require_choice


class TargetingTask(ClassificationTask):
    """Two classes by one score, with each customer's ``lifetime_value`` at hand: the score's sign says whom to target.

    Args:
        kind: ``auto`` or ``binary``, which is the same here.
        num_classes, target_kind: facts of the data: two classes.

    Source:
        Gómez-Vargas, Maldonado, Vairetti, "A predict-and-optimize approach to profit-driven churn prevention", EJOR 2025, arXiv:2310.07047.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target_multi_hot", "logits", "features", "lifetime_value"})

    @staticmethod
    def resolve_kind(kind: str, target_kind: str) -> str:
        require_choice("task.kind", kind, ("auto", "binary"))
        require(target_kind == "multiclass", "task=targeting needs two classes: target_kind must be 'multiclass'", target_kind)
        return "binary"

    def quantities(self, batch: Batch) -> Quantities:
        require("lifetime_value" in batch, "task=targeting needs data whose batches hold lifetime_value, such as data=churn; the batch holds", sorted(batch))
        return super().quantities(batch)

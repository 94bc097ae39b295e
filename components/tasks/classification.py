"""Classification: one class of several, one of two, or any number of labels a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.data.base import Batch
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require, require_choice

Kind = Literal["auto", "multiclass", "binary", "multilabel"]


class ClassificationTask(Task):
    """Predict classes.

    Args:
        kind: ``multiclass`` (one logit a class; offers ``target`` and its one-hot ``target_multi_hot``), ``binary`` (one logit,
            classes 0 and 1), ``multilabel`` (one logit a label; offers ``target_multi_hot`` alone); ``auto`` takes it from the data.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "target_multi_hot", "logits", "features"})

    def __init__(self, *args: Any, kind: Kind = "auto", num_classes: int, target_kind: str = "multiclass", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = self.resolve_kind(kind, target_kind)
        self.num_classes = num_classes

    @staticmethod
    def resolve_kind(kind: str, target_kind: str) -> str:
        require_choice("task.kind", kind, ("auto", "multiclass", "binary", "multilabel"))
        require(target_kind != "real", "the data's target_kind must be multiclass or multilabel (task=regression predicts real values)", target_kind)
        fits = kind == "auto" or (target_kind == "multilabel") == (kind == "multilabel")
        require(fits, f"task.kind={kind} does not go with the data's target_kind: it needs another", target_kind)
        return target_kind if kind == "auto" else kind

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, *, kind: Kind = "auto", **config: Any) -> dict[str, Any]:
        binary = cls.resolve_kind(kind, data["target_kind"]) == "binary"
        require(not binary or data["num_classes"] == 2, "task.kind=binary needs data with 2 classes", data["num_classes"])
        return {"num_outputs": 1 if binary else data["num_classes"]}

    @property
    def offered(self) -> frozenset[str]:
        return super().offered - {"multiclass": frozenset[str](), "binary": {"target"}, "multilabel": {"target"}}[self.kind]

    def quantities(self, batch: Batch) -> Quantities:
        output, features = self.run_model(batch["inputs"])
        return self.common(batch, logits=output, features=features, target_multi_hot=lazy(lambda q: self.multi_hot(q["target"], output.dtype)))

    def multi_hot(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        if self.kind == "multilabel":
            return target.to(dtype)
        if self.kind == "binary":
            return target.to(dtype).unsqueeze(1)
        return one_hot(target.clamp(min=0), self.num_classes).to(dtype) * (target >= 0).unsqueeze(1)  # an ignored sample has no class

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.class_logits(self.run_model(batch["inputs"]).output)
        if self.kind == "multiclass":
            probabilities = logits.softmax(1)
            return {"prediction": probabilities.argmax(1), "probability": probabilities}
        probabilities = logits.sigmoid()
        prediction = (probabilities > 0.5).long()
        return {"prediction": prediction.squeeze(1) if self.kind == "binary" else prediction, "probability": probabilities}

"""Learning from label proportions: training sees bags and the share of each class in them, validation and test judge single samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.data.base import Batch
from components.quantities import Quantities
from components.tasks.base import Task
from components.validation import require


class LabelProportionsTask(Task):
    """Predict classes of single samples, having seen the label proportions of bags alone.

    The data must be :class:`~components.data.Bags` (``data=bags``), or give ``bag``, ``bag_size`` and ``proportions`` with each training batch. A
    loss is never given the classes of training samples; metrics get them as ``instance_target``, of validation and test. There every sample is a bag
    of one, so that the validation loss is the supervised one: of EasyLLP the wrapped loss's, of proportion matching cross-entropy.

    Args:
        num_classes: C.

    Shapes:
        logits, proportions (N, C); bag, bag_size, instance_target (N,).

    Raises:
        ValueError: a training batch without bags.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"logits", "features", "proportions", "bag", "bag_size", "instance_target"})
    metric_stages = ("val", "test")

    def __init__(self, *args: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        require(data["target_kind"] == "multiclass", "task=label_proportions needs one class a sample: target_kind must be 'multiclass'", data["target_kind"])
        return {"num_outputs": data["num_classes"]}

    def quantities(self, batch: Batch) -> Quantities:
        if "bag" not in batch:
            require(not self.training, "task=label_proportions trains on bags: take data=bags (data.source says whose samples); a batch has no", "bag")
            batch = {**batch, **self.bags_of_one(batch["target"])}
        output, features = self.run_model(batch["inputs"])
        return self.common(batch, logits=output, features=features, instance_target=batch["target"]).without("target")

    def bags_of_one(self, target: Tensor) -> dict[str, Tensor]:
        alone = torch.arange(len(target), device=target.device)
        return {"bag": alone, "bag_size": torch.ones_like(alone), "proportions": one_hot(target, self.num_classes).float()}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        probabilities = self.run_model(batch["inputs"]).output.softmax(1)
        return {"prediction": probabilities.argmax(1), "probability": probabilities}

"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import one_hot

from components.data.base import Batch
from components.losses.base import IGNORE_INDEX
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require


class SegmentationTask(Task):
    """Predict a class for each pixel.

    Args:
        num_classes: C.
        ignore_index: pixels of this target belong to no class: their ``target_multi_hot`` is 0 everywhere.

    Shapes:
        inputs (N, channels, H, W); logits (N, C, H, W), the model's output; target (N, H, W), class indices; target_multi_hot (N, C, H, W).
        Volumes have a dimension more.

    Raises:
        ValueError: if the data's targets are no classes, or the model's output is not of the target's height and width.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "target_multi_hot", "logits", "features"})
    dense = True

    def __init__(self, *args: Any, num_classes: int, ignore_index: int = IGNORE_INDEX, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(num_classes >= 2, "num_classes must be >= 2 (background is a class)", num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        require(data["target_kind"] == "multiclass", "task=segmentation needs one class a pixel: target_kind must be 'multiclass'", data["target_kind"])
        return {"num_outputs": data["num_classes"]}

    def quantities(self, batch: Batch) -> Quantities:
        output, features = self.run_model(batch["inputs"])
        if "target" in batch and (output.ndim not in (4, 5) or output.shape[2:] != batch["target"].shape[1:]):
            raise ValueError(
                f"task=segmentation needs target (N, H, W) and logits (N, C, H, W), but the model puts out {tuple(output.shape)} "
                f"for targets {tuple(batch['target'].shape)}"
            )
        return self.common(batch, logits=output, features=features, target_multi_hot=lazy(lambda q: self.multi_hot(q["target"]).to(output.dtype)))

    def multi_hot(self, target: Tensor) -> Tensor:
        kept = target != self.ignore_index
        return (one_hot(target.masked_fill(~kept, 0), self.num_classes) * kept.unsqueeze(-1)).movedim(-1, 1)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``prediction`` (N, H, W), ``area`` (N, C): each class's share of the pixels, ``confidence`` (N,): mean of the largest probability."""
        confidence, classes = self.run_model(batch["inputs"]).output.softmax(1).max(1)
        area = one_hot(classes, self.num_classes).float().flatten(1, -2).mean(1)
        return {"prediction": classes, "area": area, "confidence": confidence.flatten(1).mean(1)}

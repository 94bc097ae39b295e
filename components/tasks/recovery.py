"""Getting back what was lost: sparse signals from few measurements, pictures from spoilt ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.base import Batch
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.tasks.regression import RegressionTask
from components.validation import require


class SparseRecoveryTask(RegressionTask):
    r"""Recover signals from linear measurements: regression that also knows the measurement matrix.

    Args:
        measurement_matrix: *A*, M rows of N numbers.
        num_targets: N.
        head: ``point``.

    Shapes:
        inputs (B, M), the measurements *y*; target and prediction (B, N); measurement_residual (B, M), :math:`A \hat s - y`.

    Raises:
        ValueError: if the loss asks for more than one value for each target.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "prediction", "features", "measurement_residual"})

    matrix: Tensor

    def __init__(self, *args: Any, measurement_matrix: Sequence[Sequence[float]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(self.head == "point", "head must be point (task=sparse_recovery takes losses of one value a target)", self.head)
        self.register_buffer("matrix", torch.as_tensor(measurement_matrix, dtype=torch.get_default_dtype()), persistent=False)

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        _ = data["measurement_matrix"]
        return super().facts(data, outputs_per_target, **config)

    def quantities(self, batch: Batch) -> Quantities:
        return super().quantities(batch).replace(measurement_residual=lazy(lambda q: q["prediction"] @ self.matrix.to(q["prediction"].dtype).T - q["inputs"]))


class ImageRegressionTask(Task):
    """Predict a picture from a picture of the same size: denoising and the like.

    The data's target is the picture's pixels in a row; both forms are offered, so that losses of pictures and losses of numbers can be taken.

    Args:
        image_size: height and width.

    Shapes:
        inputs (N, C', H, W); image and target_image (N, C, H, W), prediction and target (N, C·H·W). The model's output is (N, C, H, W).

    Raises:
        ValueError: if the data's target is no picture of the inputs' size, or the model's output is not.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "prediction", "image", "target_image", "features"})

    def __init__(self, *args: Any, image_size: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_size = tuple(int(size) for size in image_size)

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        require(data["target_kind"] == "real", "the data's target_kind must be real, the pixels of a picture", data["target_kind"])
        pixels = math.prod(data["image_size"])
        require(data["num_targets"] % pixels == 0, f"the data's targets must be pictures of {pixels} pixels a channel", data["num_targets"])
        return {"num_outputs": data["num_targets"] // pixels * outputs_per_target}

    def quantities(self, batch: Batch) -> Quantities:
        output, features = self.run_model(batch["inputs"])
        fits = output.ndim == 4 and output.shape[2:] == self.image_size
        require(fits, "the model must put out pictures of the inputs' size (model=unet)", tuple(output.shape))
        return self.common(
            batch,
            image=output,
            prediction=output.flatten(1),
            target_image=lazy(lambda q: q["target"].reshape(output.shape)),
            features=features,
        )

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"prediction": self.run_model(batch["inputs"]).output}

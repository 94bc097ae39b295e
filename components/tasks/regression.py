"""Regression and forecasting: real values, as points, as Gaussians or as quantiles, whichever the loss asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.base import Batch
from components.losses.base import Head
from components.quantities import Quantities
from components.tasks.base import Task
from components.validation import require, require_choice

HEADS: tuple[Head, ...] = ("point", "gaussian", "quantile")


class RegressionTask(Task):
    """Predict real values.

    The model puts out K values for each target, side by side; the loss's class says how many and what they are:
    ``point`` (K = 1: the prediction), ``gaussian`` (K = 2: mean and log variance), ``quantile`` (K levels; the prediction is the
    one nearest to the median). Everything is in the data's units, standardised where the data module standardises its targets.

    Args:
        num_targets: T, columns to predict.
        head: what the loss has the model put out; default: ``head`` of the objective's loss.

    Shapes:
        target and prediction (N, T), log_variance (N, T), quantiles (N, T, K); the model's output (N, T·K).

    Raises:
        ValueError: if the data's targets are classes, or the model's output or the target has another shape.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "prediction", "log_variance", "quantiles", "features"})

    def __init__(self, *args: Any, num_targets: int, head: Head | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if head is None:
            head = "point" if self.objective is None else getattr(self.objective.loss.module, "head", "point")
        require_choice("head", str(head), HEADS)
        require(num_targets >= 1, "num_targets must be >= 1", num_targets)
        self.head, self.num_targets = str(head), num_targets

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        require(data["target_kind"] == "real", "the data's target_kind must be real (task=classification predicts classes)", data["target_kind"])
        return {"num_outputs": data["num_targets"] * outputs_per_target}

    @property
    def offered(self) -> frozenset[str]:
        return super().offered - {"point": {"log_variance", "quantiles"}, "gaussian": {"quantiles"}, "quantile": {"log_variance"}}[self.head]

    def quantities(self, batch: Batch) -> Quantities:
        output, features = self.run_model(batch["inputs"])
        if "target" in batch and output.shape[:-1] != batch["target"].shape[:-1]:
            raise ValueError(f"the model puts out {tuple(output.shape)} for targets {tuple(batch['target'].shape)}; all but the last size must agree")
        return self.common(batch, features=features, **self.named(output))

    def named(self, output: Tensor) -> dict[str, Tensor]:
        """The model's output (…, T·K) as ``prediction`` and what the head adds, each (…, T) or (…, T, K)."""
        if output.shape[-1] % self.num_targets or (self.head == "point" and output.shape[-1] != self.num_targets):
            raise ValueError(f"head={self.head} for {self.num_targets} targets does not go with a model output of shape {tuple(output.shape)}")
        if self.head == "point":
            return {"prediction": output}
        values = output.unflatten(-1, (self.num_targets, -1))
        if self.head == "gaussian":
            prediction, log_variance = values.unbind(-1)
            return {"prediction": prediction, "log_variance": log_variance}
        middle = getattr(self.objective.loss.module, "point_index", values.shape[-1] // 2)
        return {"prediction": values[..., middle], "quantiles": values}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``prediction``, and ``standard_deviation`` or one column ``quantile_0.1`` … a level; each shaped like target."""
        named = self.named(self.run_model(batch["inputs"]).output)
        columns = {"prediction": named["prediction"]}
        if "log_variance" in named:
            columns["standard_deviation"] = torch.exp(0.5 * named["log_variance"])
        if "quantiles" in named:
            levels = getattr(self.objective.loss.module, "levels", range(named["quantiles"].shape[-1]))
            columns |= {f"quantile_{level:g}": values for level, values in zip(levels, named["quantiles"].unbind(-1), strict=True)}
        return columns


class ForecastingTask(RegressionTask):
    """Predict the next H steps of C series from the L observed ones.

    Heads are those of :class:`RegressionTask`, with K values for each step and series. Predictions and metrics are in the
    data's units: standardised where the data module standardises its series (its ``to_units`` goes back).

    Args:
        num_targets: C, series to forecast.
        horizon: H, steps to forecast.
        head: see :class:`RegressionTask`.

    Shapes:
        history (the batch's ``inputs``) (N, L, C), target and prediction (N, H, C), log_variance (N, H, C), quantiles (N, H, C, K);
        the model's output (N, H, C·K).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "prediction", "log_variance", "quantiles", "features", "history"})

    def __init__(self, *args: Any, horizon: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(horizon >= 1, "horizon must be >= 1", horizon)
        self.horizon = horizon

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        return super().facts(data, outputs_per_target, **config) | {"horizon": data["horizon"], "history_length": data["history_length"]}

    def quantities(self, batch: Batch) -> Quantities:
        return super().quantities(batch).replace(history=batch["inputs"])

    def named(self, output: Tensor) -> dict[str, Tensor]:
        if output.ndim != 3 or output.shape[1] != self.horizon:
            raise ValueError(f"a forecasting model must put out (N, horizon={self.horizon}, outputs), but got {tuple(output.shape)}")
        return super().named(output)

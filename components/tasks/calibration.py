"""Stages on a frozen classifier: a calibrator that says how sure it may be, a rejector that says when it should not answer.

The model of the experiment is the classifier. It is trained first, on a part of the training split, and frozen; the stage learns from the rest, on
which the classifier is as often wrong as on anything new. Both tasks are trained, logged, saved and resumed like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from components.counter_random import uniform
from components.data.base import Batch, DataModule
from components.losses.base import IGNORE_INDEX
from components.models.calibrators import AdaptiveTemperature, TemperatureScaling, transformed_views, view_probabilities
from components.models.dense import MLP
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.tasks.distillation import check_training, train_teacher
from components.validation import require, require_choice


class PostHocTask(Task):
    """Base of stages on a frozen classifier.

    The classifier stays in evaluation mode and without gradients; it is part of the checkpoint, so a resumed run needs nothing else. In training,
    samples that it has learnt from are ignored: their target is :data:`~components.losses.base.IGNORE_INDEX`. Training metrics are not logged.

    Args:
        predictor_run, predictor_epochs, predictor_lr: say where the builder gets the trained classifier from: a finished run (which has seen the whole
            training split, the held-out part too), or :func:`train_predictor`. They are noted here and no more.
        held_out: share of the training samples that the classifier does not learn from and the stage does, in (0, 1). Which ones is a function of their
            index alone.
        num_classes, target_kind: facts of the data; one class of several.
    """

    metric_stages: ClassVar[tuple[str, ...]] = ("val", "test")
    post_hoc: ClassVar[bool] = True
    """The builder hands over a trained model."""

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        predictor_run: str | None = None,
        predictor_epochs: int = 10,
        predictor_lr: float = 1e-3,
        held_out: float = 0.3,
        num_classes: int,
        target_kind: str = "multiclass",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        check_training(predictor_epochs, predictor_lr, "predictor")
        check_held_out(held_out)
        check_one_class(target_kind)
        self.model.requires_grad_(False)
        self.model.eval()
        self.predictor_source = {"run": predictor_run, "epochs": predictor_epochs, "lr": predictor_lr}
        self.held_out = held_out
        self.num_classes = num_classes

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        check_one_class(data["target_kind"])
        return {"num_outputs": data["num_classes"]}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        return self

    def learnt_from(self, batch: Batch) -> Tensor:
        """The batch's target; in training, of samples that are not the stage's, ``IGNORE_INDEX``."""
        require("mix_target" not in batch, f"{type(self).__name__} learns from samples as they are: choose a transform that does not mix them")
        target: Tensor = batch["target"]
        if not self.training:
            return target
        return torch.where(is_held_out(batch["index"], self.held_out), target, torch.full_like(target, IGNORE_INDEX))


class CalibrationTask(PostHocTask):
    """Calibrate a frozen classifier by a temperature: ``logits`` are its logits over *T*, so its answers stay what they are.

    Args:
        calibrator: ``adaptive`` (each sample its own *T*: :class:`~components.models.AdaptiveTemperature`) or ``temperature`` (one for all).
        hidden: units of the adaptive one.
        top: classes that it looks at in each of three views.
        min_temperature, max_temperature: bounds of *T*.
        rotation: degrees by which pictures are turned for a view.
        jitter: how much the views' brightness and contrast (other inputs': scale and place) change.
        predictor_run, predictor_epochs, predictor_lr, held_out, num_classes, target_kind: see :class:`PostHocTask`.

    Source:
        Liu et al., "Optimizing Calibration by Gaining Aware of Prediction Correctness", 2024, arXiv:2404.13016; one temperature: Guo et al., ICML 2017,
        arXiv:1706.04599.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "target_multi_hot", "logits", "features"})

    def __init__(
        self,
        *args: Any,
        calibrator: str = "adaptive",
        hidden: int = 5,
        top: int = 4,
        min_temperature: float = 0.1,
        max_temperature: float = 10.0,
        rotation: float = 15.0,
        jitter: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require_choice("calibrator", calibrator, ("adaptive", "temperature"))
        require(top >= 1, "top must be >= 1", top)
        require(0 < min_temperature < 1, "min_temperature must be in (0, 1)", min_temperature)
        require(max_temperature > 1, "max_temperature must be > 1", max_temperature)
        self.adaptive, self.top, self.rotation, self.jitter = calibrator == "adaptive", top, rotation, jitter
        bounds = {"minimum": min_temperature, "maximum": max_temperature}
        self.calibrator: nn.Module = TemperatureScaling(**bounds)
        if self.adaptive:
            self.calibrator = AdaptiveTemperature(3 * min(top, self.num_classes), hidden, **bounds)

    def calibrated(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Calibrated logits (N, C), temperatures (N, 1) and the classifier's features."""
        with torch.no_grad():
            logits, features = self.run_model(inputs)
            seen = logits
            if self.adaptive:
                views = transformed_views(inputs, self.rotation, self.jitter)
                seen = self.run_model(views.flatten(0, 1)).output.unflatten(0, views.shape[:2])
                seen = view_probabilities(logits, seen, self.top)
        temperature = self.calibrator(seen)
        return logits / temperature, temperature, features

    def quantities(self, batch: Batch) -> Quantities:
        logits, _, features = self.calibrated(batch["inputs"])
        quantities = self.common(batch, logits=logits, features=features)
        return quantities.replace(target=self.learnt_from(batch), target_multi_hot=lazy(lambda q: multi_hot(q["target"], self.num_classes, logits.dtype)))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        logits, temperature, _ = self.calibrated(batch["inputs"])
        return {"prediction": logits.argmax(1), "probability": logits.softmax(1), "temperature": temperature.squeeze(1)}


class RejectionTask(PostHocTask):
    """Learn which answers of a frozen classifier to give: ``logits`` (N, 1) is the rejector's score, ``target_multi_hot`` whether the classifier is right.

    An answer is given iff the score is above 0. To a loss this is a problem of two classes, so every loss of two classes can train the rejector.

    Args:
        rejector: ``features`` (an MLP on the classifier's features and log-probabilities) or ``confidence`` (a line through the log odds of its largest
            probability: the order of samples is that of the confidence, only the threshold is learnt).
        hidden: units of the MLP's hidden layer.
        feature_dim: fact of the model.
        predictor_run, predictor_epochs, predictor_lr, held_out, num_classes, target_kind: see :class:`PostHocTask`.

    Source:
        Mohri et al., "Learning to Reject with a Fixed Predictor", ICLR 2024, arXiv:2301.09044.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target_multi_hot", "logits", "features"})

    def __init__(self, *args: Any, rejector: str = "features", hidden: int = 32, feature_dim: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_choice("rejector", rejector, ("features", "confidence"))
        require(hidden >= 1, "hidden must be >= 1", hidden)
        self.by_confidence = rejector == "confidence"
        self.feature_dim = feature_dim
        self.rejector: nn.Module = nn.Linear(1, 1) if self.by_confidence else MLP((feature_dim + self.num_classes,), 1, hidden=(hidden,))

    def scores(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rejector's scores (N, 1), the classifier's logits (N, C) and its features."""
        with torch.no_grad():
            logits, features = self.run_model(inputs)
            log_p = logits.log_softmax(1)
            if self.by_confidence:
                others = log_p.scatter(1, log_p.argmax(1, keepdim=True), -torch.inf).logsumexp(1, keepdim=True)
                seen = (log_p.amax(1, keepdim=True) - others).clamp(max=50.0)
            else:
                seen = log_p.clamp(min=-20.0) if not self.feature_dim or features is None else torch.cat([features, log_p.clamp(min=-20.0)], 1)
        result = self.rejector(seen)
        return (result if isinstance(result, Tensor) else result.output), logits, features

    def quantities(self, batch: Batch) -> Quantities:
        scores, answers, features = self.scores(batch["inputs"])
        target = self.learnt_from(batch)
        right = (answers.argmax(1) == target).to(scores.dtype).masked_fill(target == IGNORE_INDEX, torch.nan)
        return self.common(batch, logits=scores, features=features, target_multi_hot=right.unsqueeze(1))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        scores, answers, _ = self.scores(batch["inputs"])
        return {"prediction": answers.argmax(1), "probability": answers.softmax(1), "score": scores.squeeze(1), "accepted": (scores.squeeze(1) > 0).long()}


def multi_hot(target: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """One-hot (N, C) of class indices, NaN where ignored."""
    hot = one_hot(target.clamp(min=0), num_classes).to(dtype)
    return hot.masked_fill((target == IGNORE_INDEX).unsqueeze(1), torch.nan)


def is_held_out(index: Tensor, share: float) -> Tensor:
    """Whether a training sample is the stage's and not the classifier's: a function of its index, true for about ``share`` of them."""
    return uniform(0x5EED, index) < share


def check_held_out(held_out: float) -> None:
    require(0 < held_out < 1, "held_out must be in (0, 1): the classifier learns from the others", held_out)


def check_one_class(target_kind: str) -> None:
    require(target_kind == "multiclass", "calibration and rejection need one class a sample: target_kind must be 'multiclass'", target_kind)


def train_predictor(model: nn.Module, datamodule: DataModule, *, held_out: float, epochs: int = 10, lr: float = 1e-3, seed: int = 0) -> nn.Module:
    """Train the classifier as :func:`~components.tasks.train_teacher` does, without the samples that are held out, and freeze it."""
    check_held_out(held_out)
    return train_teacher(model, datamodule, epochs=epochs, lr=lr, seed=seed, keep=lambda index: ~is_held_out(index, held_out), role="predictor")

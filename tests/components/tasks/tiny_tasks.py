"""The eight tasks with tiny models and made-up data, built as the command line builds them."""

from __future__ import annotations

import functools
import logging
import random
import warnings
from typing import Any

import lightning
import numpy as np
import torch
import torchmetrics
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn.functional import one_hot

from components.binding import bind
from components.data.base import Batch, DataModule, Split
from components.losses import (
    AdversarialCalibrationLoss,
    CorrectnessAwareLoss,
    CrossEntropyLoss,
    DistributionBoundLoss,
    EasyLLPLoss,
    ElboSegmentationLoss,
    GaussianNLLLoss,
    IdealBinaryMaskLoss,
    InfoNCELoss,
    KDLoss,
    LagrangianPINNLoss,
    LinearCrossEntropyLoss,
    ListwiseSoftmaxLoss,
    MSELoss,
    NCELoss,
    NextTokenCrossEntropyLoss,
    ProfitRegretLoss,
    QuantileLoss,
    RejectionLoss,
    ScoreDistributionLoss,
    SparseObjectiveLoss,
    TriBCELoss,
    TripletAlignmentLoss,
    TripletLoss,
    WelfareRankLoss,
)
from components.models import MLP, DLinear, ModelOutput, ProbabilisticUNet, TransformerLM, UNet
from components.objective import Objective
from components.tasks import BY_NAME, Task

CLASSES = 3
REAL_TARGETS = ("regression", "forecasting", "physics_informed", "density_estimation", "sparse_recovery", "image_regression")
MATRIX = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).tolist()


class Recorder(Logger):
    """Keeps what is logged: (step, values)."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None and all(isinstance(value, int | float) for value in metrics.values())
        self.rows.append((step, dict(metrics)))


class TinyData(DataModule):
    """Made-up data of the shapes that a task takes."""

    def __init__(self, kind: str, samples: int = 20, eval_samples: int = 7, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "eval_batch_size": 4, "seed": 1, **options})
        self.kind, self.samples, self.eval_samples = kind, samples, eval_samples

    def load(self) -> tuple[Split, Split, Split]:
        self.target_kind = "real" if self.kind in REAL_TARGETS else "multilabel" if self.kind in ("multilabel", "auctions") else "multiclass"
        self.class_names = [] if self.target_kind == "real" else [str(i) for i in range(2 if self.kind in ("ctr", "targeting") else CLASSES)]
        generator = torch.Generator().manual_seed(0)
        return tuple(self.make(n, generator) for n in (self.samples, self.eval_samples, self.eval_samples))  # type: ignore[return-value]

    def make(self, n: int, generator: torch.Generator) -> Split:
        normal, integers = functools.partial(torch.randn, generator=generator), functools.partial(torch.randint, generator=generator)
        if self.kind == "regression":
            return {"inputs": normal(n, 6), "target": normal(n, 2)}
        if self.kind == "forecasting":
            return {"inputs": normal(n, 8, 2), "target": normal(n, 3, 2)}
        if self.kind == "probabilistic_segmentation":
            raters = integers(0, CLASSES, (n, 2, 4, 4))
            return {"inputs": normal(n, 1, 4, 4), "target": raters[:, 0], "rater_targets": raters}
        if self.kind == "separation":
            sounds = {"mixture": normal(n, 16), "mixture_magnitudes": normal(n, 5, 5).abs(), "target_signals": normal(n, CLASSES, 16)}
            magnitudes = normal(n, CLASSES, 5, 5).abs()
            return {"inputs": normal(n, 1, 5, 5), "target": magnitudes.argmax(1), "target_magnitudes": magnitudes, **sounds}
        if self.kind == "segmentation":
            return {"inputs": normal(n, 1, 4, 4), "target": integers(0, CLASSES, (n, 4, 4))}
        if self.kind == "language_modelling":
            tokens = integers(0, 11, (n, 7))
            return {"inputs": tokens[:, :-1], "target": tokens[:, 1:].clone()}
        if self.kind == "auctions":
            auctions = {"inputs": normal(n, 6), "target": integers(0, 2, (n, CLASSES))}
            return auctions | {"bids": normal(n, CLASSES).exp(), "click_rate": normal(n, CLASSES).sigmoid()}
        if self.kind == "targeting":
            return {"inputs": normal(n, 6), "target": torch.arange(n) % 2, "lifetime_value": 80 * normal(n).exp()}
        if self.kind in ("physics_informed", "density_estimation"):
            return {"inputs": torch.rand(n, 2, generator=generator), "target": normal(n, 1)}
        if self.kind == "sparse_recovery":
            return {"inputs": normal(n, 4), "target": normal(n, 6)}
        if self.kind == "image_regression":
            return {"inputs": normal(n, 1, 4, 4), "target": normal(n, 16)}
        if self.kind == "rating":
            mean = 1 + (CLASSES - 1) * torch.rand(n, generator=generator)
            more = {"target_mean": mean, "target_std": 0.3 + mean / 10, "group": torch.arange(n) % 2}
            return {"inputs": normal(n, 6), "target": (mean.round() - 1).long(), **more}
        if self.kind == "ctr":
            return {"inputs": normal(n, 6), "target": torch.arange(n) % 2}
        if self.kind == "multilabel":
            return {"inputs": normal(n, 6), "target": integers(0, 2, (n, CLASSES))}
        if self.kind == "noisy_pairs":
            return {"inputs": normal(n, 6), "inputs_2": normal(n, 6), "target": torch.arange(n) % CLASSES}
        if self.kind == "label_proportions":
            bag, target = torch.arange(n) // 2, torch.arange(n) % CLASSES
            sizes = torch.bincount(bag)
            shares = torch.zeros(len(sizes), CLASSES).index_add(0, bag, one_hot(target, CLASSES).float()) / sizes.unsqueeze(1)
            return {"inputs": normal(n, 6), "target": target, "bag": bag, "bag_size": sizes[bag], "proportions": shares[bag]}
        target = torch.arange(n) % CLASSES
        shape = (1, 4, 4) if self.kind == "self_supervised" else (6,)
        return {"inputs": normal(n, *shape) + target.reshape(-1, *[1] * len(shape)), "target": target}

    def facts(self) -> dict[str, Any]:
        more = {"forecasting": {"history_length": 8, "horizon": 3, "in_channels": 2, "num_targets": 2}}
        more |= {"physics_informed": {"equation": {"speed": 2.0, "viscosity": 0.1}}, "sparse_recovery": {"measurement_matrix": MATRIX}}
        more |= {"language_modelling": {"vocab_size": 11, "sequence_length": 6}}
        return super().facts() | more.get(self.kind, {})


class RandomScale(nn.Module):
    """A transform that draws from all of the global random states."""

    def forward(self, batch: Batch) -> Batch:
        factor = torch.rand(len(batch["inputs"])) + random.random() + np.random.rand()
        return {**batch, "inputs": batch["inputs"] * factor.reshape(-1, *[1] * (batch["inputs"].ndim - 1)).float()}


class Jitter(nn.Module):
    """Two views for self-supervision."""

    def forward(self, batch: Batch) -> Batch:
        return {**batch, "inputs": batch["inputs"] + 0.1 * torch.randn_like(batch["inputs"])}


class ShiftBySample(nn.Module):
    """As an ``augment``: a view that depends on the sample alone, so that one process and two see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, batch: Batch) -> Batch:
        self.calls += 1
        angle = batch["index"].to(batch["inputs"].dtype) * (1.0 + self.calls % 2)
        return {**batch, "inputs": batch["inputs"] + 0.3 * torch.sin(angle).reshape(-1, *[1] * (batch["inputs"].ndim - 1))}


class Hits(torchmetrics.MeanMetric):
    """Accuracy, as a metric with named inputs."""

    higher_is_better = True

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update((logits.argmax(1) == target).float())


LOSSES: dict[str, Any] = {
    "adversarial_calibration": AdversarialCalibrationLoss,
    "class_incremental": DistributionBoundLoss,
    "label_proportions": functools.partial(EasyLLPLoss, [7, 7, 6]),
    "noisy_pairs": TripletAlignmentLoss,
    "classification": CrossEntropyLoss,
    "regression": MSELoss,
    "forecasting": MSELoss,
    "segmentation": CrossEntropyLoss,
    "separation": IdealBinaryMaskLoss,
    "physics_informed": LagrangianPINNLoss,
    "density_estimation": NCELoss,
    "sparse_recovery": SparseObjectiveLoss,
    "image_regression": MSELoss,
    "rating": ScoreDistributionLoss,
    "probabilistic_segmentation": ElboSegmentationLoss,
    "embedding": TripletLoss,
    "self_supervised": InfoNCELoss,
    "distillation": KDLoss,
    "language_modelling": NextTokenCrossEntropyLoss,
    "ctr": TriBCELoss,
    "ranking": ListwiseSoftmaxLoss,
    "auctions": WelfareRankLoss,
    "calibration": CorrectnessAwareLoss,
    "rejection": RejectionLoss,
    "targeting": ProfitRegretLoss,
}
OTHER_HEADS = {"gaussian": GaussianNLLLoss, "quantile": QuantileLoss, "linear_cross_entropy": LinearCrossEntropyLoss}
OPTIONS: dict[str, dict[str, Any]] = {
    "physics_informed": {"labels": 16},
    "density_estimation": {"noise": "gaussian", "grid": 10, "noise_samples": 3},
    "adversarial_calibration": {"rank": 3, "epsilon": 0.1, "attack_steps": 2},
    "class_incremental": {"samples_per_class": 4},
    "noisy_pairs": {"projection_dim": 5},
    "embedding": {"embedding_dim": 5},
    "self_supervised": {"projection_dim": 5, "projection_norm": "layer", "neighbours": 3},
    "calibration": {"held_out": 0.6},
    "rejection": {"held_out": 0.6},
}


def model_for(name: str, facts: dict[str, Any], dropout: float = 0.0) -> nn.Module:
    if name == "probabilistic_segmentation":
        return ProbabilisticUNet(1, facts["num_outputs"], latent_dim=2, depth=1, width=4)
    if name in ("segmentation", "separation", "image_regression"):
        return UNet(1, facts["num_outputs"], depth=1, width=4)
    if name == "forecasting":
        return DLinear(2, 8, 3, facts["num_outputs"], kernel_size=3)
    if name == "language_modelling":
        return TransformerLM(11, 6, width=8, depth=1, num_heads=2, dropout=dropout)
    return MLP(facts["input_shape"], facts["num_outputs"], hidden=(8,), dropout=dropout)


def build(
    name: str,
    *,
    loss: nn.Module | None = None,
    data: DataModule | None = None,
    dropout: float = 0.0,
    transforms: list[nn.Module] | None = None,
    metrics: bool = False,
    seed: int = 0,
    **more: Any,
) -> tuple[Task, DataModule]:
    torch.manual_seed(seed)
    data = TinyData(name) if data is None else data
    data.setup()
    task_class, loss, options = BY_NAME[name], LOSSES[name]() if loss is None else loss, {**OPTIONS.get(name, {}), **more.pop("options", {})}
    facts = data.facts()
    outputs = loss.outputs_per_target(**({"levels": loss.levels} if hasattr(loss, "levels") else {})) if hasattr(loss, "outputs_per_target") else 1  # type: ignore[operator,unused-ignore]
    facts |= task_class.facts(facts, outputs, **options)
    facts["head"] = getattr(loss, "head", "point")
    model = model_for(name, facts, dropout)
    given: dict[str, Any] = {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "schedule": lambda step: 1 / (1 + step), "log_every": 4}
    if name in ("ctr", "ranking", "auctions", "calibration", "classification", "distillation", "rejection", "targeting"):
        given |= {"num_classes": facts["num_classes"], "target_kind": facts["target_kind"]}
    for fact in {
        "physics_informed": ("equation", "num_outputs"),
        "density_estimation": ("input_shape",),
        "sparse_recovery": ("measurement_matrix", "num_targets", "head"),
        "image_regression": ("image_size",),
        "rating": ("num_classes", "target_kind"),
    }.get(name, ()):
        given[fact] = facts[fact]
    if name == "rejection":
        given["feature_dim"] = model.feature_dim
    if name in ("distillation", "auctions"):
        given["teacher"] = MLP(facts["input_shape"], facts["num_outputs"], hidden=(16,), dropout=0.5)
    if name in ("regression", "forecasting"):
        given |= {"num_targets": facts["num_targets"], "head": facts["head"]} | ({"horizon": 3} if name == "forecasting" else {})
    if name in ("segmentation", "separation", "probabilistic_segmentation"):
        given["num_classes"] = CLASSES
    if name == "self_supervised":
        given |= {"augment": Jitter(), "feature_dim": model.feature_dim}
    if name in ("adversarial_calibration", "class_incremental", "label_proportions"):
        given["num_classes"] = facts["num_classes"]
    if name in ("adversarial_calibration", "class_incremental", "noisy_pairs"):
        given["feature_dim"] = model.feature_dim
    if name == "adversarial_calibration":
        given["teacher"] = MLP(facts["input_shape"], facts["num_outputs"], hidden=(16,), dropout=0.5)
    if name == "class_incremental":
        given |= {"steps_per_epoch": 5, "total_steps": 10}
    if name == "noisy_pairs":
        given["num_samples"] = facts["num_samples"]
    task = task_class(model, transforms=transforms or [], **{**given, **options, **more})  # type: ignore[arg-type]
    task.objective = Objective(bind(loss, task.offered, name="loss", task=name))
    if metrics:
        task.add_metrics({"acc": bind(Hits(), task.offered, name="metrics.acc", task=name, method="update")})
    return task, data


def trainer(recorder: Recorder | None = None, **options: Any) -> lightning.Trainer:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    defaults: dict[str, Any] = {"max_epochs": 1, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1, "use_distributed_sampler": False}
    defaults |= dict.fromkeys(("enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    return lightning.Trainer(logger=[recorder] if recorder else False, **{**defaults, **options})


__all__ = ["LOSSES", "MLP", "OTHER_HEADS", "ModelOutput", "Recorder", "TinyData", "build", "trainer"]

"""Class-incremental learning: classes arrive in phases, and nothing is kept of old ones but the distribution of their features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.binding import gather_rows
from components.data.base import Batch, DataModule
from components.models.base import evaluating, features_of, leave_out_head
from components.quantities import Quantities, lazy
from components.tasks.base import Average, Task
from components.validation import require, require_choice

UNSEEN = -1e4
"""Logit of a class that has not arrived: its probability is exactly 0."""


class ClassIncrementalTask(Task):
    r"""Learn classes phase by phase, without exemplars: of a class that has been, the mean and covariance of its features are left.

    The classes come in the order of their indices, the run's epochs are shared evenly among the phases. A batch is of all classes; a phase uses
    those of its samples that are of its own classes, nothing else. What a step minimises is

    .. math:: \ell_{\text{main}}(\text{classifier}; \{N(\mu_c, \Sigma_c)\}_{c \text{ seen}}) + \big[\text{while the extractor learns: }
              \operatorname{CE}_{\text{new classes}} + \gamma\, \lVert f(x) - f_{\text{old}}(x) \rVert^2 / D\big]

    The main loss is what the config chooses: a loss of Gaussians (``amarx``, ``distribution_bound``) gets them as they are; a loss of ``logits`` and
    ``target`` gets prototypes, ``samples_per_class`` drawn from each Gaussian at every step. Classes of all phases so far weigh the same in both.
    The extractor is the model up to its features; the classifier is a linear layer of the task's own. New classes are measured when their phase
    begins, and again at every epoch in which the extractor learns.

    Validation and test are of the classes seen so far, and of single samples; their loss is cross-entropy. Logged beside the metrics:
    ``average_incremental_acc``, the mean over the phases so far of the accuracy at the end of each, on all classes seen by then. (That
    of the test split is measured when a phase ends, and used for nothing else.)

    Args:
        num_classes: C.
        feature_dim: D.
        total_steps, steps_per_epoch: of the run; they say how long a phase is.
        first_classes: classes of the first phase; default: as many as of the others.
        classes_per_phase: classes that each further phase brings (the last one what is left).
        extractor: ``frozen`` after the first phase, or ``distilled``: it learns in all phases, held by :math:`\gamma`, and old Gaussians grow stale.
        distillation: :math:`\gamma \ge 0`.
        covariance: ``full`` (D, D) or ``diagonal`` (D,).
        samples_per_class: prototypes a class and step, for losses of logits.

    Shapes:
        In training: feature_means (M, D) of the M classes seen; feature_covariances (M, D, D) or (M, D); class_target, is_old (M,); output_weight (M, D);
        output_bias (M,); features, logits and target of M · samples_per_class prototypes; logits (…, C), classes unseen at -1e4. Else: of the samples.

    Raises:
        ValueError: an option out of its range, or no data module to measure classes with.

    Source:
        Yao and Chang, "Adaptive Margin Global Classifier for Exemplar-Free Class-Incremental Learning", 2024, arXiv:2409.13275; prototypes: Zhu et
        al., "Prototype Augmentation and Self-Supervision for Incremental Learning", CVPR 2021. That the classifier and the extractor learn
        together, and the extractor's own losses, are our reading.
    """

    offers: ClassVar[frozenset[str]] = frozenset(
        {"logits", "target", "features", "feature_means", "feature_covariances", "class_target", "is_old", "output_weight", "output_bias"}
    )
    metric_stages = ("val", "test")
    own_metrics: ClassVar[dict[str, bool]] = {"average_incremental_acc": True}

    class_means: Tensor
    class_covariances: Tensor
    class_roots: Tensor
    seen_classes: Tensor
    accuracies: Tensor

    def __init__(
        self,
        *args: Any,
        num_classes: int,
        feature_dim: int,
        total_steps: int,
        steps_per_epoch: int,
        first_classes: int | None = None,
        classes_per_phase: int = 2,
        extractor: str = "frozen",
        distillation: float = 1.0,
        covariance: str = "full",
        samples_per_class: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require(classes_per_phase >= 1, "classes_per_phase must be >= 1", classes_per_phase)
        first = classes_per_phase if first_classes is None else first_classes
        require(1 <= first <= num_classes, f"first_classes must be in 1 … {num_classes}", first)
        require_choice("extractor", extractor, ("frozen", "distilled"))
        require(distillation >= 0, "distillation must be >= 0", distillation)
        require_choice("covariance", covariance, ("full", "diagonal"))
        require(samples_per_class >= 1, "samples_per_class must be >= 1", samples_per_class)
        self.num_classes, self.extractor, self.distillation, self.samples_per_class = num_classes, extractor, distillation, samples_per_class
        self.phase_ends = [*range(first, num_classes, classes_per_phase), num_classes]
        """Classes seen in each phase."""
        self.phase_epochs = max(1, -(-total_steps // steps_per_epoch) // len(self.phase_ends))
        self.phase = 0
        self.classifier = nn.Linear(feature_dim, num_classes)
        self.previous = copy.deepcopy(self.model).requires_grad_(False).eval() if extractor == "distilled" else None
        leave_out_head(self.model)
        spread = (feature_dim,) if covariance == "diagonal" else (feature_dim, feature_dim)
        self.register_buffer("class_means", torch.zeros(num_classes, feature_dim))
        self.register_buffer("class_covariances", torch.zeros(num_classes, *spread))
        self.register_buffer("class_roots", torch.zeros(num_classes, *spread))  # times itself: the covariance
        self.register_buffer("seen_classes", torch.tensor(first))
        self.register_buffer("accuracies", torch.zeros(2, len(self.phase_ends), dtype=torch.float64))  # val and test, at the end of each phase
        self._right = {"val": Average(), "test": Average()}

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        require(data["target_kind"] == "multiclass", "task=class_incremental needs one class a sample: target_kind must be 'multiclass'", data["target_kind"])
        return {"num_outputs": 1}

    # -- where the run stands: buffers say it to a checkpoint, attributes to a step ---------------------------------------------
    @property
    def seen(self) -> int:
        """Classes that have arrived."""
        return self.phase_ends[self.phase]

    @property
    def old(self) -> int:
        """Classes of earlier phases."""
        return self.phase_ends[self.phase - 1] if self.phase else 0

    @property
    def era(self) -> int:
        """The phase: few classes are easier than many, so the best weights are those of the last."""
        return self.phase

    @property
    def learning(self) -> bool:
        """Whether the extractor learns in this phase."""
        return self.phase == 0 or self.extractor == "distilled"

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.phase = self.phase_ends.index(int(self.seen_classes))
        return result

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.previous is not None:
            self.previous.eval()
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0:
            self.begin_epoch(self.current_epoch)

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Close the phase that has ended, enter the next, and measure the classes of a phase whose features are new or have moved."""
        phase = min(epoch // self.phase_epochs, len(self.phase_ends) - 1)
        with evaluating(self):
            if self.learning or phase > self.phase:
                self.measure(self.old, self.seen)
            if phase > self.phase:
                for row, split in enumerate(("val", "test")):
                    self.accuracies[row, self.phase] = self.accuracy(split)
                if self.previous is not None:
                    self.previous.load_state_dict(self.model.state_dict())
                self.phase = phase
                self.seen_classes.fill_(self.seen)
                self.measure(self.old, self.seen)

    # -- quantities -------------------------------------------------------------------------------------------------------------
    def quantities(self, batch: Batch) -> Quantities:
        seen = torch.arange(self.seen, device=self.classifier.weight.device)
        gaussians = {
            "feature_means": self.class_means[: self.seen],
            "feature_covariances": self.class_covariances[: self.seen],
            "class_target": seen,
            "is_old": (seen < self.old).to(self.class_means.dtype),
            "output_weight": self.classifier.weight[: self.seen],
            "output_bias": self.classifier.bias[: self.seen],
        }
        features = lazy(lambda q: self.prototypes()) if self.training else lazy(lambda q: features_of(self.model, q["inputs"]))
        quantities = self.common(batch, **gaussians, features=features, logits=lazy(lambda q: self.logits(q["features"])))
        return quantities.replace(target=seen.repeat_interleave(self.samples_per_class)) if self.training else quantities

    def prototypes(self) -> Tensor:
        """(M · samples_per_class, D): features drawn from the Gaussians, class after class."""
        roots = self.class_roots[: self.seen].unsqueeze(1)
        drawn = torch.randn(self.seen, self.samples_per_class, self.class_means.shape[1], dtype=roots.dtype, device=roots.device)
        spread = drawn * roots if roots.ndim == 3 else (drawn.unsqueeze(2) @ roots).squeeze(2)
        return (self.class_means[: self.seen].unsqueeze(1) + spread).flatten(0, 1)

    def logits(self, features: Tensor) -> Tensor:
        unseen = torch.arange(self.num_classes, device=features.device) >= self.seen
        logits: Tensor = self.classifier(features)
        return logits.masked_fill(unseen, UNSEEN)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        for transform in self.transforms:
            batch = transform(batch)
        quantities = self.quantities(batch)
        total, parts = self.objective(quantities, quantities["step"])
        parts["extractor"] = extractor = self.extractor_loss(batch) if self.learning else torch.zeros_like(total)
        parts["total"] = total = total + extractor
        if not self.probing:
            self._window.append({name: value.detach() for name, value in parts.items()})
            self._window_steps.append(quantities["step"] + 1)
        return total

    def extractor_loss(self, batch: Batch) -> Tensor:
        """Of the batch's samples of new classes: cross-entropy among these classes, and how far the features are from the last phase's."""
        new = (batch["target"] >= self.old) & (batch["target"] < self.seen)
        inputs, target = batch["inputs"][new], batch["target"][new] - self.old
        features = features_of(self.model, inputs)
        count = self.mean_over_ranks(len(target))
        loss = cross_entropy(self.classifier(features)[:, self.old : self.seen], target, reduction="sum") / count
        if self.previous is not None and self.phase:
            with torch.no_grad():
                before = features_of(self.previous, inputs)
            loss = loss + self.distillation * (features - before).square().mean(1).sum() / count
        return loss

    def mean_over_ranks(self, samples: int) -> float:
        """Samples a rank, 1 for none: what sums are divided by, so that ranks with unequal shares do as one process with the whole."""
        if self._trainer is not None and self.trainer.world_size > 1:
            return float(gather_rows(torch.tensor([samples], device=self.device)).double().mean().clamp(min=1e-3))
        return max(samples, 1)

    def prepare_for(self, optimizer: torch.optim.Optimizer, trainer: lightning.Trainer) -> None:
        super().prepare_for(optimizer, trainer)
        for bound in self.objective.bounds():
            asked = set(bound.arguments.values())
            if "inputs" in asked and asked & {"logits", "target"}:
                raise ValueError(f"{bound.name} looks at inputs together with their logits or target; task=class_incremental has prototypes without inputs")

    # -- what is measured of the data ---------------------------------------------------------------------------------------------
    def measure(self, first: int, end: int) -> None:
        """Means and covariances of the training features of the classes ``first`` … ``end - 1``."""
        found = [(self.features(inputs), target) for inputs, target in self.samples("train", first, end)]
        features, target = (gather_rows(torch.cat(rows)) for rows in zip(*found, strict=True))
        for c in range(first, end):
            own = features[target == c].double()
            mean = own.mean(0)
            apart = own - mean
            self.class_means[c] = mean
            if self.class_covariances.ndim == 2:
                variance = apart.square().mean(0)
                self.class_covariances[c], self.class_roots[c] = variance, variance.sqrt()
                continue
            covariance = apart.T @ apart / len(own)
            values, vectors = torch.linalg.eigh(covariance)
            self.class_covariances[c] = covariance
            self.class_roots[c] = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def accuracy(self, split: str) -> float:
        """On all seen classes of a split; 0 of an empty one."""
        counts = self.accuracies.new_zeros(1, 2)
        for inputs, target in self.samples(split, 0, self.seen):
            counts[0, 0] += (self.logits(self.features(inputs)).argmax(1) == target).sum()
            counts[0, 1] += len(target)
        right, count = gather_rows(counts).sum(0).tolist()
        return float(right / max(count, 1))

    def samples(self, split: str, first: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of some classes of a split, on the device."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise ValueError("task=class_incremental measures classes on its data: fit with datamodule=, a components.data.DataModule")
        for batch in data.loader(split, data.eval_batch_size):
            wanted = (batch["target"] >= first) & (batch["target"] < end)
            yield batch["inputs"][wanted].to(self.device), batch["target"][wanted].to(self.device)

    def features(self, inputs: Tensor) -> Tensor:
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            return features_of(self.model, precision.convert_input(inputs)).float()

    # -- validation and test: the seen classes' samples ---------------------------------------------------------------------------
    def _evaluate(self, stage: str, batch: Batch) -> None:
        wanted = batch["target"] < self.seen
        super()._evaluate(stage, {name: value[wanted] if isinstance(value, Tensor) else value for name, value in batch.items()})

    def evaluation_loss(self, quantities: Quantities) -> Tensor:
        return cross_entropy(quantities["logits"], quantities["target"])

    def evaluate_more(self, stage: str, quantities: Quantities) -> None:
        right = (quantities["logits"].argmax(1) == quantities["target"]).float().mean()
        self._right[stage].update(right, len(quantities["target"]))

    def evaluation(self, stage: str) -> dict[str, float]:
        values, now = super().evaluation(stage), self._right[stage].compute(self)
        if now is None:
            return values
        before = self.accuracies[("val", "test").index(stage), : self.phase]
        return values | {f"{stage}/average_incremental_acc": (float(before.sum()) + now) / (self.phase + 1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        probabilities = self.logits(features_of(self.model, batch["inputs"])).softmax(1)
        return {"prediction": probabilities.argmax(1), "probability": probabilities}

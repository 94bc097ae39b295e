"""Self-supervision from two views of each sample; labels serve only to judge the features, by a linear probe and k-NN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from components.binding import gather_rows
from components.data.base import Batch, DataModule
from components.models import ProjectionHead
from components.models.base import features_of, leave_out_head
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require


class SelfSupervisedTask(Task):
    """Learn features without labels: two random views of each sample should agree.

    Validation and test also judge the frozen features of the plain, not augmented inputs, where the data has one class a sample:
    ``linear_probe_acc`` (multinomial logistic regression) and ``knn_acc``, both fitted on the training split's features. The data
    must be a :class:`~components.data.base.DataModule`; without one, or without labels, only the loss is logged.

    Args:
        augment: batch -> batch, random: called twice, it gives the two views. It draws from torch's global random state.
        feature_dim: D, size of the model's features.
        projection_dim: size of what the loss compares.
        projection_hidden: width of the projection's hidden layers; default: D.
        projection_depth: linear layers of the projection.
        projection_norm: ``batch``, ``layer`` or ``none``.
        probe_samples: at most so many training samples are used for the probe and as neighbours, spread evenly over the split.
        neighbours: k.

    Shapes:
        projections_1, projections_2 (N, projection_dim); features_1, features_2, features (N, D), the latter of the plain inputs.

    Raises:
        ValueError: if the model reports no features.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"projections_1", "projections_2", "features_1", "features_2", "features"})
    metric_stages = ("val", "test")
    own_metrics: ClassVar[dict[str, bool]] = {"linear_probe_acc": True, "knn_acc": True}

    def __init__(
        self,
        *args: Any,
        augment: nn.Module,
        feature_dim: int,
        projection_dim: int = 64,
        projection_hidden: int | None = None,
        projection_depth: int = 2,
        projection_norm: str = "batch",
        probe_samples: int = 2000,
        neighbours: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require(probe_samples >= 1, "probe_samples must be >= 1", probe_samples)
        require(neighbours >= 1, "neighbours must be >= 1", neighbours)
        self.augment = augment
        self.projection = ProjectionHead(feature_dim, projection_hidden, projection_dim, depth=projection_depth, norm=projection_norm)
        self.probe_samples, self.neighbours = probe_samples, neighbours
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        leave_out_head(self.model)

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        return {"num_outputs": 1}

    def quantities(self, batch: Batch) -> Quantities:
        features_1, features_2 = (self.features_of(self.augment(batch)["inputs"]) for _ in range(2))
        return self.common(
            batch,
            features_1=features_1,
            features_2=features_2,
            projections_1=self.projection(features_1),
            projections_2=self.projection(features_2),
            features=lazy(lambda q: self.features_of(q["inputs"])),
        )

    def features_of(self, inputs: Tensor) -> Tensor:
        return features_of(self.model, inputs, "task=self_supervised")

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"features": self.features_of(batch["inputs"])}

    # -- validation -----------------------------------------------------------------------------------------------------
    def _evaluate(self, stage: str, batch: Batch) -> None:
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):  # the same views at every validation, and training's random state stays as it is
            torch.manual_seed(0)
            super()._evaluate(stage, batch)
        if has_labels(batch):
            self._features.append(self.features_of(batch["inputs"]).float())
            self._labels.append(batch["target"])

    def evaluation(self, stage: str) -> dict[str, float]:
        values = super().evaluation(stage)
        if self._features and not self.trainer.sanity_checking and isinstance(self._data, DataModule):
            held_out, labels = (gather_rows(torch.cat(rows)) for rows in (self._features, self._labels))
            features, known = self.training_features(self._data)
            values |= {
                f"{stage}/linear_probe_acc": linear_probe_accuracy(features, known, held_out, labels),
                f"{stage}/knn_acc": knn_accuracy(features, known, held_out, labels, self.neighbours),
            }
        self._features, self._labels = [], []
        return values

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    @torch.no_grad()
    def training_features(self, data: DataModule) -> tuple[Tensor, Tensor]:
        """Features and labels of the training split, of at most ``probe_samples`` samples, from all ranks."""
        features, labels = [], []
        precision = self.trainer.precision_plugin
        for batch in data.loader("train", data.eval_batch_size):
            with precision.forward_context():
                features.append(self.features_of(precision.convert_input(batch["inputs"].to(self.device))).float())
            labels.append(batch["target"].to(self.device))
        all_features, all_labels = gather_rows(torch.cat(features)), gather_rows(torch.cat(labels))
        chosen = torch.linspace(0, len(all_features) - 1, min(self.probe_samples, len(all_features)), device=self.device).round().long()
        return all_features[chosen], all_labels[chosen]


def has_labels(batch: Batch) -> bool:
    target = batch.get("target")
    return isinstance(target, Tensor) and target.ndim == 1 and target.dtype == torch.long


def linear_probe_accuracy(features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, *, l2: float = 1e-3, iterations: int = 100) -> float:
    r"""Accuracy on held-out features of multinomial logistic regression, fitted by L-BFGS from zero: the same every time.

    .. math:: \min_{W, b} \; \tfrac1n \sum_i -\log \operatorname{softmax}(W x_i + b)_{y_i} + \tfrac{\lambda}{2} \lVert W \rVert^2

    on features scaled to mean 0 and variance 1.

    Args:
        features, held_out: (n, D) and (m, D).
        labels, held_out_labels: (n,) and (m,), class indices.
        l2: λ.
        iterations: of L-BFGS, at most.

    Source:
        Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016, arXiv:1610.01644.
    """
    with torch.inference_mode(False), torch.no_grad():
        mean, std = features.mean(0), features.std(0, unbiased=False).clamp(min=1e-6)
        x = torch.cat([(features - mean) / std, features.new_ones(len(features), 1)], 1)
        y = one_hot(labels, int(torch.maximum(labels.max(), held_out_labels.max())) + 1).to(x.dtype)
        weight = nn.Parameter(x.new_zeros(x.shape[1], y.shape[1]), requires_grad=False)
        optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")
        penalty = torch.full_like(weight, l2)
        penalty[-1] = 0  # the bias

        def value_and_gradient() -> Tensor:
            with torch.no_grad():
                log_p = (x @ weight).log_softmax(1)
                weight.grad = x.T @ (log_p.exp() - y) / len(x) + penalty * weight
                return -(y * log_p).sum() / len(x) + 0.5 * (penalty * weight**2).sum()

        optimizer.step(value_and_gradient)
        scores = torch.cat([(held_out - mean) / std, held_out.new_ones(len(held_out), 1)], 1) @ weight
        return float((scores.argmax(1) == held_out_labels).float().mean())


def knn_accuracy(features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy of the vote of the ``k`` nearest training samples by cosine similarity *s*, each with weight exp(s / temperature).

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv:1805.01978, section 3.4.
    """
    train, test = (nn.functional.normalize(x, dim=1) for x in (features, held_out))
    right = 0
    for part, expected in zip(test.split(1024), held_out_labels.split(1024), strict=True):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        votes = one_hot(labels[nearest]) * ((similarity - 1) / temperature).exp().unsqueeze(2)
        right += int((votes.sum(1).argmax(1) == expected).sum())
    return right / len(test)

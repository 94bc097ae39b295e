"""Metric learning: embeddings in which samples of one class lie close together, judged by retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from components.data.base import Batch
from components.quantities import Quantities
from components.tasks.base import Task
from components.validation import require


class EmbeddingTask(Task):
    """Learn embeddings from classes; validation and test retrieve among the samples of their own split.

    The model's output is the embedding, raw: losses and metrics normalise it where they want that. Where the data module holds
    classes out, retrieval is judged on classes that training never saw; a loss with something learnt for each training class
    (``num_classes``) then has no value there, and ``val/loss`` is left out. Metrics see validation and test only: a retrieval
    among the embeddings of a model that changes from batch to batch would mean nothing.

    Args:
        embedding_dim: size of the embedding.

    Shapes:
        embeddings (N, embedding_dim); target (N,), class indices.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"embeddings", "target", "features"})
    metric_stages = ("val", "test")

    def __init__(self, *args: Any, embedding_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.embedding_dim = embedding_dim

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, *, embedding_dim: int = 64, **config: Any) -> dict[str, Any]:
        require(embedding_dim >= 1, "task.embedding_dim must be >= 1", embedding_dim)
        require(data["target_kind"] == "multiclass", "task=embedding needs one class a sample: target_kind must be 'multiclass'", data["target_kind"])
        return {"num_outputs": embedding_dim, "embedding_dim": embedding_dim}

    def quantities(self, batch: Batch) -> Quantities:
        output, features = self.run_model(batch["inputs"])
        return self.common(batch, embeddings=output, features=features)

    def evaluation_loss(self, quantities: Quantities) -> Tensor | None:
        known = getattr(self.objective.loss.module, "num_classes", None)
        if isinstance(known, int) and bool((quantities["target"] >= known).any()):
            return None
        return super().evaluation_loss(quantities)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.run_model(batch["inputs"]).output}

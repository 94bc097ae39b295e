"""Ranking: the candidates of each query in an order, the wanted ones first; click-through rates; ad auctions.

All three are classification in another light: ``logits`` (N, L) hold the score of every candidate of a query and ``target_multi_hot`` which of them
are wanted, so losses and metrics of several labels serve here as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.data.base import Batch
from components.losses.ctr import fuse_branches
from components.quantities import Quantities, lazy
from components.tasks.classification import ClassificationTask, Kind
from components.tasks.distillation import DistillationTask
from components.validation import require, require_choice


class RankingTask(ClassificationTask):
    """Rank candidates: items for a user, labels for a text, documents for a question.

    A sample is a query; with one wanted candidate each (``target``, an interaction of implicit feedback) or any number of them. The batch may say with
    ``left_out`` (N, L) which candidates take no part for a query (what a user is known to like beside the target): they are NaN in
    ``target_multi_hot``.

    For the losses of sampled scores one wanted candidate is drawn for each query (where there are several) and ``negatives`` others, with
    replacement, that are neither wanted nor left out; a query that has none such is given any. Validation and test draw from a seed of their own.

    Args:
        negatives: M, how many negatives are drawn for each query, >= 1.
        sampler: ``uniform``; ``popular``: as often as training has them; ``in_batch``: among what the batch's other queries want.
        kind: ``multiclass`` (one wanted candidate) or ``multilabel``; ``auto`` takes it from the data.
        class_counts: how often training has each candidate.
        num_classes, target_kind: see :class:`~components.tasks.ClassificationTask`.

    Shapes:
        logits, target_multi_hot (N, L); positive_scores (N,); negative_scores (N, M).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "target_multi_hot", "logits", "features", "positive_scores", "negative_scores"})
    frequency: Tensor

    def __init__(
        self, *args: Any, kind: Kind = "auto", negatives: int = 100, sampler: str = "uniform", class_counts: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, kind=kind, **kwargs)
        require(self.kind != "binary", "task.kind must be multiclass or multilabel (task=ctr is for one logit)", self.kind)
        require(negatives >= 1, "task.negatives must be >= 1", negatives)
        require_choice("task.sampler", sampler, ("uniform", "popular", "in_batch"))
        require(sampler != "popular" or class_counts is not None, "task.sampler=popular needs data that counts its candidates")
        self.negatives, self.sampler = negatives, sampler
        counts = torch.ones(self.num_classes) if sampler != "popular" or class_counts is None else torch.tensor(class_counts, dtype=torch.float32)
        self.register_buffer("frequency", counts, persistent=False)

    def quantities(self, batch: Batch) -> Quantities:
        quantities = super().quantities(batch)
        logits: Tensor = quantities["logits"]
        return quantities.replace(
            target_multi_hot=lazy(lambda q: self.relevance(q, logits.dtype)),
            wanted=lazy(self.one_wanted),
            positive_scores=lazy(lambda q: q["logits"].gather(1, q["wanted"].unsqueeze(1)).squeeze(1)),
            negative_scores=lazy(lambda q: q["logits"].gather(1, self.draw_negatives(q))),
        )

    def relevance(self, quantities: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
        """(N, L): 1 wanted, 0 not, NaN left out."""
        relevance = self.multi_hot(quantities["target"], dtype)
        if "left_out" not in quantities:
            return relevance
        return relevance.masked_fill(quantities["left_out"] & (relevance == 0), torch.nan)

    def one_wanted(self, quantities: Mapping[str, Any]) -> Tensor:
        """(N,): a wanted candidate of each query."""
        if self.kind == "multiclass":
            return quantities["target"].clamp(min=0)  # type: ignore[no-any-return]
        wanted = (quantities["target_multi_hot"] > 0).float()
        return self._drawn(wanted, 1).squeeze(1) if self.training else wanted.argmax(1)

    def draw_negatives(self, quantities: Mapping[str, Any]) -> Tensor:
        """(N, M): candidates that are neither wanted nor left out."""
        allowed = (quantities["target_multi_hot"] == 0).float()
        frequency = self.frequency
        if self.sampler == "in_batch":
            frequency = torch.zeros_like(frequency).scatter_add(0, quantities["wanted"], torch.ones_like(quantities["wanted"], dtype=frequency.dtype))
        return self._drawn(allowed * (frequency + 1e-6), self.negatives)

    def _drawn(self, weights: Tensor, count: int) -> Tensor:
        """Indices (N, count) drawn by weight, with replacement; among all where a row has no weight."""
        weights = torch.where((weights > 0).any(1, keepdim=True), weights, torch.ones_like(weights))
        generator = None if self.training else torch.Generator(weights.device).manual_seed(0)
        return torch.multinomial(weights, count, replacement=True, generator=generator)


class CTRTask(ClassificationTask):
    """Predict whether a click follows, with a model of one branch or of several.

    The model puts out one logit for each of its *K* branches, (N, K); ``logits`` fuses them. Any model with one output is one of one branch.

    Args:
        fuse: ``logit``: the mean of the branches' logits; ``probability``: the logit of the mean of their probabilities.
        kind: ``auto`` or ``binary``, which is the same here.
        num_classes, target_kind: see :class:`~components.tasks.ClassificationTask`.

    Shapes:
        logits, target_multi_hot (N, 1); branch_logits (N, 1, K).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target_multi_hot", "logits", "features", "branch_logits"})

    def __init__(self, *args: Any, kind: Kind = "auto", fuse: str = "logit", **kwargs: Any) -> None:
        require_choice("task.fuse", fuse, ("logit", "probability"))
        super().__init__(*args, kind=self.binary(kind), **kwargs)
        self.fuse = fuse

    @staticmethod
    def binary(kind: str) -> Kind:
        require_choice("task.kind", kind, ("auto", "binary"))
        return "binary"

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, *, kind: Kind = "auto", **config: Any) -> dict[str, Any]:
        return super().facts(data, outputs_per_target, kind=cls.binary(kind), **config)

    def quantities(self, batch: Batch) -> Quantities:
        quantities = super().quantities(batch)
        branches = quantities["logits"].unsqueeze(1)
        return quantities.replace(logits=fuse_branches(branches, self.fuse), branch_logits=branches)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        probabilities = fuse_branches(self.run_model(batch["inputs"]).output, self.fuse).sigmoid().unsqueeze(1)
        return {"prediction": (probabilities > 0.5).long().squeeze(1), "probability": probabilities}


class AuctionsTask(DistillationTask):
    """Predict the click rates of the ads of an auction, which the largest bid x click rate wins; with a teacher's click rates at hand.

    A sample is an auction of *n* ads with one label each, whether it would be clicked. The teacher, trained first on the clicks with binary
    cross-entropy, is for losses that ask for it (``loss.labels=teacher``).

    Args:
        teacher: the network; its outputs are shaped like the student's.
        teacher_run, teacher_model, teacher_epochs, teacher_lr: see :class:`~components.tasks.DistillationTask`.
        kind, num_classes, target_kind: see :class:`~components.tasks.ClassificationTask`.

    Shapes:
        logits, target_multi_hot, bids, click_rate (the clicks, where it is not known), teacher_logits (N, n).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target_multi_hot", "logits", "features", "teacher_logits", "teacher_features", "bids", "click_rate"})

    def quantities(self, batch: Batch) -> Quantities:
        require("bids" in batch, "task=auctions needs data with bids, as data=auctions has them; this data's batches have", sorted(batch))
        quantities = super().quantities(batch)
        return quantities if "click_rate" in batch else quantities.replace(click_rate=lazy(lambda q: q["target_multi_hot"]))

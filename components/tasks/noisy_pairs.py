"""Noisy pairs: two encoders embed the two views of a pair close together, though some training pairs do not belong together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from components.data.base import Batch, DataModule
from components.models import ProjectionHead
from components.models.base import evaluating, features_of, leave_out_head
from components.quantities import Quantities, lazy
from components.tasks.base import Task
from components.validation import require


class NoisyPairsTask(Task):
    """Learn embeddings of two views such that each finds the other; judged by retrieval from view to view.

    ``inputs`` is the first view and ``inputs_2`` the second, each with an encoder of its own and ``heads`` embeddings: a linear one, and one through a
    hidden layer. The objective is the mean of its values under the heads, each with its own ``projections_1`` and ``projections_2``; retrieval takes
    the mean of the heads' cosines. Two heads err differently, which is what ``reweighting=ccd`` lives on: for a component that asks for
    ``training_losses``, the losses of all training pairs under each head are measured at the start of every epoch, in evaluation mode.

    Args:
        feature_dim: size of the model's features.
        num_samples: training pairs.
        projection_dim: size of each head's embedding.
        heads: 1 or 2.
        second_encoder: of the second view; default: a copy of the model, for views of the same shape.

    Shapes:
        projections_1, projections_2 (N, projection_dim), of one head; embeddings_1, embeddings_2 (N, heads · projection_dim), each head's part of length
        1; target (N,), identities; training_losses (heads, num_samples).

    Raises:
        ValueError: if ``heads`` is not 1 or 2, the model reports no features, or ``training_losses`` is asked for on several devices.

    Source:
        Qin et al., "Noisy-Correspondence Learning for Text-to-Image Person Re-identification", CVPR 2024, arXiv:2308.09911 (where the second head
        selects tokens: a hidden layer is our reading of it for inputs without tokens).
    """

    offers: ClassVar[frozenset[str]] = frozenset(
        {"projections_1", "projections_2", "features_1", "features_2", "embeddings_1", "embeddings_2", "target", "training_losses"}
    )
    metric_stages = ("val", "test")

    training_losses: Tensor

    def __init__(
        self,
        *args: Any,
        feature_dim: int,
        num_samples: int,
        projection_dim: int = 64,
        heads: int = 2,
        second_encoder: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require(projection_dim >= 1, "projection_dim must be >= 1", projection_dim)
        require(heads in (1, 2), "heads must be 1 or 2", heads)
        self.encoder_2 = copy.deepcopy(self.model) if second_encoder is None else second_encoder
        sizes = (feature_dim, getattr(self.encoder_2, "feature_dim", feature_dim))
        self.projections = nn.ModuleList(nn.ModuleList(projection(n, size, projection_dim) for size in sizes) for n in range(heads))
        self.register_buffer("training_losses", torch.zeros(heads, num_samples))
        for encoder in (self.model, self.encoder_2):
            leave_out_head(encoder)

    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        return {"num_outputs": 1}

    def quantities(self, batch: Batch) -> Quantities:
        if "inputs_2" not in batch:
            raise ValueError("task=noisy_pairs needs a second view, inputs_2, with each sample (data=paired_views has it)")
        features = (features_of(self.model, batch["inputs"]), features_of(self.encoder_2, batch["inputs_2"]))
        embedded = [[project(f) for project, f in zip(cast(nn.ModuleList, views), features, strict=True)] for views in self.projections]
        quantities = self.common(
            batch,
            features_1=features[0],
            features_2=features[1],
            projections_1=embedded[0][0],
            projections_2=embedded[0][1],
            embeddings_1=lazy(lambda q: torch.cat([normalize(head[0], dim=1) for head in embedded], 1)),
            embeddings_2=lazy(lambda q: torch.cat([normalize(head[1], dim=1) for head in embedded], 1)),
            training_losses=self.training_losses,
        )
        if len(embedded) == 1:
            return quantities
        # two heads are one batch with two sets of embeddings: the objective's mixture of two losses, in equal parts
        second = {"projections_1": embedded[1][0], "projections_2": embedded[1][1]}
        return quantities.replace(mix_target=second, mix_weight=features[0].new_full((), 0.5))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        views = [("embedding_1", self.model, batch["inputs"], 0)]
        if "inputs_2" in batch:
            views.append(("embedding_2", self.encoder_2, batch["inputs_2"], 1))
        found = {}
        for name, encoder, inputs, view in views:
            features = features_of(encoder, inputs)
            found[name] = torch.cat([normalize(head[view](features), dim=1) for head in self.projections], 1)  # type: ignore[index]
        return found

    # -- losses of the whole training set, for who divides it ----------------------------------------------------------------
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and "training_losses" in self.asked():
            self.measure_training_losses()

    @torch.no_grad()
    def measure_training_losses(self) -> None:
        """Fill :attr:`training_losses`; batches are those of the epoch that begins, since a loss of pairs depends on the batch."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise ValueError("training_losses need the training data: fit with datamodule=, a components.data.DataModule")
        require(self.trainer.world_size == 1, "training_losses are measured on one device: trainer.devices must be 1", self.trainer.world_size)
        precision = self.trainer.precision_plugin
        with evaluating(self):
            for batch in data.loader("train", data.batch_size, shuffle=True, position=lambda: (self.current_epoch, 0)):
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                with precision.forward_context():
                    quantities = self.quantities(precision.convert_input(batch))
                    heads = [quantities.without("mix_target", "mix_weight")]
                    if "mix_target" in quantities:
                        heads.append(heads[0].replace(**quantities["mix_target"]))
                    losses = torch.stack([self.objective.per_sample_loss(head).float() for head in heads])
                self.training_losses[:, batch["index"]] = losses


def projection(number: int, in_features: int, out_features: int) -> nn.Module:
    """The heads: a linear layer, and one with a hidden layer before it."""
    return nn.Linear(in_features, out_features) if number == 0 else ProjectionHead(in_features, None, out_features, norm="layer")

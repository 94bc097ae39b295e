"""How well the training set covers the space in which embeddings of new samples lie."""

from __future__ import annotations

from typing import Any, cast

import lightning
import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.data.base import Batch, DataModule
from components.metrics import utilisation
from components.tasks.base import Task


class Utilisation(lightning.Callback):
    r"""Logs ``val/utilisation`` and ``test/utilisation``: the mean squared distance of the split's embeddings to the nearest one of training.

    .. math:: u(Q, X) = \frac{1}{|Q|} \sum_{q \in Q} \min_{x \in X} \lVert f(q) - f(x) \rVert^2

    on embeddings (of a task that has none: features) of length 1. Lower means that new samples lie where training had samples, too. Costs the training
    set's embeddings at every validation.

    Args:
        max_samples: of the training set, evenly spread over it; ``None``: all.

    Source:
        Venkataramanan et al., "It Takes Two to Tango: Mixup for Deep Metric Learning", ICLR 2022, arXiv:2106.04990, eq. 11.
    """

    def __init__(self, max_samples: int | None = 10_000) -> None:
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples must be >= 1, or null, but got {max_samples}")
        self.max_samples = max_samples
        self._gathered: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._gathered = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if len(batch["index"]):
            self._gathered.append(embedded(cast(Task, pl_module), batch))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.log_of("val", trainer, cast(Task, pl_module))

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.log_of("test", trainer, cast(Task, pl_module))

    def log_of(self, stage: str, trainer: lightning.Trainer, task: Task) -> None:
        """Log the gathered embeddings' distance from training's."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DataModule) or not self._gathered:
            return
        value = utilisation(torch.cat(self._gathered), self.of_training(data, task))
        self._gathered = []
        training = trainer.state.fn == "fit"
        task.log(f"{stage}/utilisation", value, logger=not training, sync_dist=trainer.world_size > 1)
        if training and not trainer.sanity_checking:
            task.record({f"{stage}/utilisation": float(value)})

    def of_training(self, data: DataModule, task: Task) -> Tensor:
        """Embeddings of training samples, without training's transforms."""
        size = data.size(data.splits["train"])
        chosen = torch.arange(size)
        if self.max_samples is not None and size > self.max_samples:
            chosen = torch.linspace(0, size - 1, self.max_samples).long()
        return torch.cat([embedded(task, data.fetch("train", part)) for part in chosen.split(data.eval_batch_size)])


@torch.no_grad()
def embedded(task: Task, batch: Batch) -> Tensor:
    """(N, D) embeddings, or features, of a batch at length 1."""
    moved = {name: value.to(task.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    quantities = task.quantities(moved)
    return normalize(quantities["embeddings" if "embeddings" in task.offered else "features"].float().flatten(1), dim=1)

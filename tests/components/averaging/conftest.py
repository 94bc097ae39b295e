"""A small network with batch normalisation, on data whose order is resumable, and a trainer without frills."""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from components.data.base import BatchLoader, BatchOrder


class Data(lightning.LightningDataModule):
    """48 training samples in batches of 8: six steps an epoch, in a shuffled order that goes on where a run stopped."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(64, 4, generator=generator)
        self.target = self.inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(64, generator=generator)

    def loader(self, first: int, size: int, **options: Any) -> BatchLoader:
        order = BatchOrder(size, 8, shuffle=bool(options))
        return BatchLoader(order, lambda index: {"inputs": self.inputs[first + index], "target": self.target[first + index]}, **options)

    def train_dataloader(self) -> BatchLoader:
        return self.loader(0, 48, position=self.position)

    def val_dataloader(self) -> BatchLoader:
        return self.loader(48, 8)

    def test_dataloader(self) -> BatchLoader:
        return self.loader(56, 8)

    def position(self) -> tuple[int, int]:
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


class Net(lightning.LightningModule):
    """Regression by SGD with momentum; notes the weights that each step leaves and that each evaluation sees."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 1)
        self.register_buffer("memory", torch.zeros(3))  # as a loss keeps one: no statistics of activations
        self.seen: list[tuple[str, int, dict[str, Tensor]]] = []
        self.after: list[dict[str, Tensor]] = []

    def training_step(self, batch, batch_idx):
        self.memory += 1
        return (self.head(self.body(batch["inputs"])).squeeze(1) - batch["target"]).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step > len(self.after):
            self.after.append(snapshot(self))

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append(("val", self.global_step, snapshot(self)))

    def test_step(self, batch, batch_idx):
        self.seen.append(("test", self.global_step, snapshot(self)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trainer(callbacks, directory, **options) -> lightning.Trainer:
    options = {"max_epochs": 4, "val_check_interval": 4} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=callbacks,
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )


@pytest.fixture
def data() -> type[Data]:
    return Data


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def make_trainer(tmp_path):
    """(callbacks, **options) -> Trainer: four epochs of six steps, validation after every fourth batch of an epoch."""
    return lambda callbacks, **options: trainer(callbacks, tmp_path, **options)

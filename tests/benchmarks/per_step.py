"""What one training step costs, layer by layer, in one process: ``python per_step.py [EPOCHS]``, prints JSON: name -> milliseconds a step.

The same model, optimizer and batches each time, digits with the MLP of the baseline, no logger, no checkpoints, no validation:

plain       a loop written by hand
lightning   a LightningModule that only returns the loss, on the same batches
task        losskit's task without metrics
metrics     … with its default metrics
baseline    the baseline's module, with its DataLoader
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import baseline
import lightning
import torch
from torch import Tensor, nn

from components.data.base import Batch
from losskit_cli.build import Builder, Experiment
from losskit_cli.compose import Composer


class Bare(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch["inputs"]).output, batch["target"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class EpochTimes(lightning.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []
        self._since = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_end(self, *args: Any) -> None:
        self.times.append(time.perf_counter() - self._since)


def experiment(*overrides: str) -> Experiment:
    composed = Composer().compose(["data=digits", "model=mlp", "model.hidden=[128,128]", "callbacks=[]", "tracking=none", *overrides])
    return Builder(composed.resolved(), composed.choices).experiment()


def trainer(epochs: int, times: EpochTimes) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[times],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def plain(epochs: int) -> list[float]:
    built = experiment()
    model, data = built.task.model, built.data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    times = []
    for _ in range(epochs):
        began = time.perf_counter()
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["inputs"]).output, batch["target"]).backward()
            optimizer.step()
        times.append(time.perf_counter() - began)
    return times


def bare(epochs: int) -> list[float]:
    built, times = experiment(), EpochTimes()
    trainer(epochs, times).fit(Bare(built.task.model), built.data.train_dataloader())
    return times.times


def task(epochs: int, *overrides: str) -> list[float]:
    built, times = experiment(f"trainer.max_epochs={epochs}", "trainer.limit_val_batches=0", *overrides), EpochTimes()
    built.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    built.trainer.fit(built.task, datamodule=built.data)
    return times.times


def baselines(epochs: int) -> list[float]:
    times = EpochTimes()
    trainer(epochs, times).fit(baseline.Net(128, 0.05, 0.9), baseline.loaders(64)[0])
    return times.times


def measured(epochs: int) -> Iterator[tuple[str, list[float]]]:
    yield "plain", plain(epochs)
    yield "lightning", bare(epochs)
    yield "task", task(epochs, "metrics=none")
    yield "metrics", task(epochs)
    yield "baseline", baselines(epochs)


def main(epochs: int = 10) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    steps = len(experiment().data.train_dataloader())
    list(measured(1))
    print(json.dumps({name: 1000 * sorted(times)[len(times) // 2] / steps for name, times in measured(epochs)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

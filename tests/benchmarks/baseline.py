"""The comparison: digits with an MLP, written the way people write it today.

Hydra's ``@hydra.main``, a LightningModule that logs with ``self.log``, ``TensorDataset`` and ``DataLoader``, ``MLFlowLogger`` on SQLite.
MLP 64-128-128-10, SGD with momentum, batch 64, 20 epochs, validation every epoch. Run it in an empty directory:

    python tests/benchmarks/baseline.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import DictConfig, OmegaConf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from stopwatch import Stopwatch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Net(L.LightningModule):
    def __init__(self, hidden: int, lr: float, momentum: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.loss = nn.CrossEntropyLoss()
        self.val_acc = MulticlassAccuracy(10, average="micro")
        self.test_acc = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.val_acc(logits, y)
        self.log("val/loss", self.loss(logits, y), on_epoch=True)
        self.log("val/acc", self.val_acc, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.test_acc(logits, y)
        self.log("test/loss", self.loss(logits, y), on_epoch=True)
        self.log("test/acc", self.test_acc, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=self.hparams["momentum"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders(batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any]]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    train, rest = train_test_split(range(len(x)), test_size=0.3, stratify=y, random_state=0)
    val, test = train_test_split(rest, test_size=0.5, stratify=y[rest], random_state=0)
    sets = [TensorDataset(x[i], y[i]) for i in (train, val, test)]
    return DataLoader(sets[0], batch_size, shuffle=True), DataLoader(sets[1], 512), DataLoader(sets[2], 512)


@hydra.main(version_base=None, config_path=".", config_name="baseline")
def main(config: DictConfig) -> float:
    L.seed_everything(config.seed, verbose=False)
    train, val, test = loaders(config.batch_size)
    net = Net(config.hidden, config.lr, config.momentum)
    logger = MLFlowLogger(experiment_name="baseline", tracking_uri=f"sqlite:///{Path(config.directory) / 'mlflow.db'}")
    logger.log_hyperparams(OmegaConf.to_container(config))  # type: ignore[arg-type]
    watch = Stopwatch()
    trainer = L.Trainer(
        max_epochs=config.epochs, accelerator="cpu", devices=1, logger=logger, log_every_n_steps=10, default_root_dir=config.directory,
        callbacks=[ModelCheckpoint(monitor="val/loss", auto_insert_metric_name=False, save_last=True), watch], enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(net, train, val)
    metrics = trainer.test(net, test, ckpt_path="best", verbose=False)[0]
    print(json.dumps(watch.times() | {"metrics": metrics}))
    return float(metrics["test/loss"])  # for sweepers that optimise it


if __name__ == "__main__":
    main()

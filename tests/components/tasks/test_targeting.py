from pathlib import Path

import pytest
import torch
from tiny_tasks import build, trainer

from components.losses import EnsLoss
from components.tasks import TargetingTask


def test_gives_each_customers_worth() -> None:
    task, data = build("targeting")
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(task.quantities(batch)["lifetime_value"], batch["lifetime_value"])


def test_data_without_it_are_refused() -> None:
    task, data = build("targeting")
    batch = next(iter(data.train_dataloader()))
    del batch["lifetime_value"]
    with pytest.raises(ValueError, match="needs data whose batches hold lifetime_value"):
        task.quantities(batch)


def test_takes_two_classes_alone() -> None:
    with pytest.raises(ValueError, match="2 classes"):
        TargetingTask.facts({"target_kind": "multiclass", "num_classes": 3})
    with pytest.raises(ValueError, match=r"task\.kind must be one of auto, binary"):
        TargetingTask.facts({"target_kind": "multiclass", "num_classes": 2}, kind="multilabel")


def test_ensembles_of_losses_go_on_where_they_stood(tmp_path: Path) -> None:
    """What EnsLoss draws, and its lambda by epoch, are those of an unbroken run after a resume."""
    ends = []
    for stops in ((4,), (2, 4)):
        path = None
        for epochs in stops:
            task, data = build("targeting", loss=EnsLoss(period=1))
            fit = trainer(max_epochs=epochs)
            fit.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
            path = tmp_path / f"{epochs}.ckpt"
            fit.save_checkpoint(path)
        assert task.objective.loss.arguments["epoch"] == "epoch"
        assert task.objective.loss.module.batches == 20
        ends.append([*task.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))

"""What each of the two ranks of ``test_ddp.py`` runs: every task for two steps; weights and logged values go to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from tiny_tasks import OTHER_HEADS, Recorder, ShiftBySample, TinyData, build, trainer

from components.tasks import BY_NAME, NonFiniteLossError

NAMES = [*BY_NAME, "linear_cross_entropy", "resumed"]


class SaveFirst(lightning.Callback):
    """Saves after the first step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)


def run(name: str, directory: Path, **options: Any) -> dict[str, Any]:
    """Two steps on one batch of eight samples each, and a validation: in one process, or half the batch on each of two ranks."""
    ranks = options.get("devices", 1)
    recorder = Recorder()
    kind = {"linear_cross_entropy": "language_modelling", "resumed": "classification"}.get(name, name)
    data = TinyData(kind, samples=16, batch_size=8 // ranks, eval_batch_size=8 // ranks)
    more: dict[str, Any] = {"augment": ShiftBySample()} if name == "self_supervised" else {}
    loss = OTHER_HEADS[name]() if name in OTHER_HEADS else None
    more["log_every"] = 2 if name == "resumed" else 1
    task, _ = build(data.kind, data=data, loss=loss, metrics=data.kind == "classification", **more)
    checkpoint = None
    if name == "resumed":  # in the middle of the epoch, with a loss that is not logged yet and differs between the ranks
        checkpoint = directory / f"resumed-{ranks}.ckpt"
        first, _ = build(data.kind, data=data, metrics=True, **more)
        trainer(callbacks=[SaveFirst(checkpoint)], **options).fit(first, datamodule=data)
    fit = trainer(recorder, **options)
    fit.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    fit.test(task, datamodule=data, verbose=False)
    weights = {key: value.detach().clone() for key, value in task.state_dict().items()}
    return {"weights": weights, "rows": recorder.rows, "steps": fit.global_step}


def diverged(rank: str) -> str:
    """The error on this rank when the inputs of the other one's first batch are infinite."""
    data = TinyData("classification", samples=16)
    task, _ = build("classification", data=data, log_every=1)
    if rank == "1":
        data.splits["train"]["inputs"].fill_(torch.inf)
    try:
        trainer(strategy="ddp", devices=2).fit(task, datamodule=data)
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, rank = Path(sys.argv[1]), sys.argv[2]
    results = {name: run(name, directory, strategy="ddp", devices=2) for name in NAMES}
    results["diverged"] = {"error": diverged(rank)}
    torch.save(results, directory / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()

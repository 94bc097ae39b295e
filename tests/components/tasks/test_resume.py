"""A run that goes on from any of its checkpoints ends with the same bits and logs the same values as one never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tiny_tasks import RandomScale, Recorder, TinyData, build, trainer

from components.callbacks.checkpoints import at_optimizer_step
from components.losses import ALDRKLLoss, EnsLoss, LegendreTronLoss, Loss

SETTINGS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 13},
    "steps that end with an epoch": {"max_epochs": -1, "max_steps": 10},
    "validation within epochs": {"max_epochs": 2, "val_check_interval": 2},
    "validation by steps over epochs": {"max_epochs": -1, "max_steps": 12, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "validation every other epoch": {"max_epochs": 3, "check_val_every_n_epoch": 2},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "accumulation, validation within epochs, by steps": {"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2, "val_check_interval": 2},
    "no validation": {"max_epochs": 2, "limit_val_batches": 0},
}


class SaveEverywhere(lightning.Callback):
    """Saves at the end of each batch that completes an optimizer step, after each validation, and at the end."""

    def __init__(self, directory: Path, recorder: Recorder) -> None:
        self.directory, self.recorder, self.saved = directory, recorder, dict[Path, int]()

    def save(self, trainer: lightning.Trainer, where: str) -> None:
        path = self.directory / f"{trainer.global_step:02d}-{len(self.saved):02d}-{where}.ckpt"
        trainer.save_checkpoint(path)
        self.saved[path] = len(self.recorder.rows)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if at_optimizer_step(trainer, batch_idx):
            self.save(trainer, "batch")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if at_optimizer_step(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1):
            self.save(trainer, "validation")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.save(trainer, "end")


STATEFUL: dict[str, Callable[[], Loss]] = {
    "a memory of samples": lambda: ALDRKLLoss(num_samples=20, temperature=1.0),
    "draws counted by batches": lambda: EnsLoss(period=1),
    "parameters of its own": lambda: LegendreTronLoss(num_classes=3),
}
"""Losses that are another one after every step."""


def experiment(loss: Loss | None = None):
    recorder = Recorder()
    task, _ = build("classification", loss=loss, dropout=0.5, transforms=[RandomScale()], metrics=True, data=TinyData("classification"))
    return task, TinyData("classification"), recorder


def run(
    settings: dict[str, Any], *, callbacks: Any = (), checkpoint: Path | None = None, seed: int = 5, test: bool = False, loss: Loss | None = None
):
    task, data, recorder = experiment(loss)
    lightning.seed_everything(seed, verbose=False)
    made = [make(recorder) for make in callbacks]
    fit = trainer(recorder, callbacks=made, **settings)
    fit.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if test:
        fit.test(task, datamodule=data, verbose=False)
    return task, recorder, made, fit


def state(task: lightning.LightningModule, fit: lightning.Trainer) -> list[torch.Tensor]:
    optimizer = [v for s in fit.optimizers[0].state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [*task.state_dict().values(), *optimizer, torch.get_rng_state()]


@pytest.mark.parametrize("setting", SETTINGS)
def test_any_checkpoint_continues_the_run_exactly(setting: str, tmp_path: Path):
    task, whole, (saver,), fit = run(SETTINGS[setting], callbacks=[lambda recorder: SaveEverywhere(tmp_path, recorder)], test=True)
    expected = state(task, fit)
    assert whole.rows[-1][0] == fit.global_step and "test/loss" in whole.rows[-1][1]
    assert any("val/loss" in row for _, row in whole.rows) == (setting != "no validation")
    assert any("train/loss" in row for _, row in whole.rows) and any("train/acc" in row for _, row in whole.rows)
    assert len(saver.saved) > 6
    for checkpoint, logged in saver.saved.items():
        resumed, part, _, fit = run(SETTINGS[setting], checkpoint=checkpoint, seed=99, test=True)
        if "end" not in checkpoint.name:
            got = state(resumed, fit)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), f"{checkpoint.name}: other weights, optimizer or random state"
        assert part.rows == whole.rows[logged:], f"{checkpoint.name}: logged something else"


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_loss_with_a_state_goes_on_with_it(kind: str, tmp_path: Path):
    settings = SETTINGS["validation within epochs"]
    torch.manual_seed(0)
    task, whole, (saver,), fit = run(settings, callbacks=[lambda recorder: SaveEverywhere(tmp_path, recorder)], loss=STATEFUL[kind]())
    before = [value.clone() for value in STATEFUL[kind]().state_dict().values()]
    assert not all(torch.equal(a, b) for a, b in zip(before, task.objective.loss.module.state_dict().values(), strict=True)), "it has changed"
    middle = next(path for path in saver.saved if path.name.startswith("03") and "batch" in path.name)
    resumed, part, _, again = run(settings, checkpoint=middle, seed=99, loss=STATEFUL[kind]())
    assert all(torch.equal(a, b) for a, b in zip(state(resumed, again), state(task, fit), strict=False))
    assert part.rows == whole.rows[saver.saved[middle] :]


def test_a_run_resumed_twice(tmp_path: Path):
    settings = SETTINGS["validation within epochs"]
    task, whole, _, fit = run(settings)
    expected, rows, checkpoint = state(task, fit), [], None
    saved: dict[Path, int] = {}
    for number in range(3):
        directory = tmp_path / str(number)
        _, part, (saver,), _ = run(settings, callbacks=[lambda recorder, d=directory: SaveEverywhere(d, recorder)], checkpoint=checkpoint, seed=5 + number)
        saved = saver.saved
        checkpoint = next(path for path in saved if path.name.startswith(f"{2 + 2 * number:02d}") and "batch" in path.name)
        rows += part.rows[: saved[checkpoint]]
    resumed, part, _, fit = run(settings, checkpoint=checkpoint, seed=77)
    assert rows + part.rows == whole.rows
    assert all(torch.equal(a, b) for a, b in zip(state(resumed, fit), expected, strict=True))


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path):
    def callbacks() -> list[Any]:
        return [lambda _: lightning.pytorch.callbacks.EarlyStopping("val/loss", patience=1, mode="max"), lambda recorder: SaveEverywhere(tmp_path, recorder)]

    _, whole, made, fit = run({"max_epochs": 20}, callbacks=callbacks())
    assert fit.current_epoch < 20
    last = [path for path in made[1].saved if "validation" in path.name][-1]
    logged = made[1].saved[last]
    _, part, _, again = run({"max_epochs": 20}, callbacks=callbacks(), checkpoint=last, seed=3)
    assert again.global_step == fit.global_step and part.rows == whole.rows[logged:]

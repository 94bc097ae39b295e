"""Checkpoint files: whole or not there, the one before kept, damage noticed; and when they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from components.callbacks import AtomicCheckpointIO, Checkpoints, DamagedCheckpointError, is_intact, newest_intact

STATE = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


class TestFiles:
    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        io = AtomicCheckpointIO()
        io.save_checkpoint(STATE, tmp_path / "new" / "last.ckpt")
        assert torch.equal(io.load_checkpoint(tmp_path / "new" / "last.ckpt")["state_dict"]["w"], STATE["state_dict"]["w"])  # type: ignore[index]

    def test_the_one_before_the_last_is_kept(self, tmp_path: Path) -> None:
        io = AtomicCheckpointIO()
        for step in (1, 2, 3):
            io.save_checkpoint({**STATE, "global_step": step}, tmp_path / "last.ckpt")
        assert io.load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
        assert io.load_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 2
        assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]

    def test_a_write_that_fails_half_way_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        io = AtomicCheckpointIO()
        io.save_checkpoint(STATE, tmp_path / "last.ckpt")
        before = (tmp_path / "last.ckpt").read_bytes()

        def half(checkpoint: Any, file: Any) -> None:
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="No space"):
            io.save_checkpoint(STATE, tmp_path / "last.ckpt")
        assert (tmp_path / "last.ckpt").read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "evil"),)

        torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "last.ckpt")
        with pytest.raises(Exception, match="weights_only"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
    def test_every_damage_is_noticed(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint(STATE, path)
        assert is_intact(path)
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        path.write_bytes({"truncate": content[:-100], "flip": content, "empty": b"", "text": b"hello"}[damage])
        assert not is_intact(path)

    def test_the_newest_whole_one_is_chosen_and_the_damaged_ones_are_named(self, tmp_path: Path) -> None:
        io = AtomicCheckpointIO()
        io.save_checkpoint(STATE, tmp_path / "last.ckpt")
        io.save_checkpoint(STATE, tmp_path / "last.ckpt")
        assert newest_intact(tmp_path) == (tmp_path / "last.ckpt", [])
        (tmp_path / "last.ckpt").write_bytes(b"")
        assert newest_intact(tmp_path) == (tmp_path / "previous.ckpt", [tmp_path / "last.ckpt"])
        (tmp_path / "previous.ckpt").write_bytes(b"")
        with pytest.raises(DamagedCheckpointError, match=r"damaged: last\.ckpt, previous\.ckpt"):
            newest_intact(tmp_path)

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DamagedCheckpointError, match="none yet"):
            newest_intact(tmp_path)


class Toy(lightning.LightningModule):
    """Logs a validation loss that is given for each epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.layer, self.losses = nn.Linear(2, 1), losses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.tensor(self.losses[self.current_epoch]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 2)), batch_size=2)

    val_dataloader = train_dataloader


def fit(tmp_path: Path, module: Toy, callback: Checkpoints, **options: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=len(module.losses), logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        plugins=[AtomicCheckpointIO()], default_root_dir=tmp_path, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    trainer.fit(module)
    return trainer


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


class TestWhen:
    @pytest.mark.parametrize(("mode", "losses", "best"), [("min", [3.0, 1.0, 2.0], 8), ("max", [3.0, 1.0, 2.0], 4), ("min", [float("nan"), 2.0, 2.0], 8)])
    def test_best_is_the_first_best_validation_and_last_the_end(self, tmp_path: Path, mode: Any, losses: list[float], best: int) -> None:
        fit(tmp_path, Toy(losses), Checkpoints(mode=mode))
        assert step_of(tmp_path / "checkpoints" / "best.ckpt") == best
        assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 12

    def test_best_is_the_best_of_the_last_era(self, tmp_path: Path) -> None:
        """What a task validates may become another, harder problem: then its first validations were better, and mean nothing."""

        class Eras(Toy):
            @property
            def era(self) -> int:
                return self.current_epoch // 2

        callback = Checkpoints()
        fit(tmp_path, Eras([0.1, 0.2, 3.0, 4.0]), callback)
        assert step_of(tmp_path / "checkpoints" / "best.ckpt") == 12
        again = Checkpoints()
        again.load_state_dict(callback.state_dict())
        assert (again.best_score, again.best_era) == (3.0, 1)

    def test_every_so_many_steps(self, tmp_path: Path) -> None:
        fit(tmp_path, Toy([1.0]), Checkpoints(every_n_steps=3))
        assert step_of(tmp_path / "checkpoints" / "previous.ckpt") == 3
        assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 4

    def test_after_so_many_seconds(self, tmp_path: Path) -> None:
        fit(tmp_path, Toy([1.0]), Checkpoints(every_n_seconds=1e-9))
        assert step_of(tmp_path / "checkpoints" / "previous.ckpt") == 3

    def test_never_in_the_middle_of_an_accumulation(self, tmp_path: Path) -> None:
        seen = []

        class Watch(AtomicCheckpointIO):
            def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
                seen.append((checkpoint["global_step"], checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]))

        trainer = lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            plugins=[Watch()], default_root_dir=tmp_path, accumulate_grad_batches=2, val_check_interval=1,
        )  # fmt: skip
        trainer.callbacks.append(Checkpoints(every_n_seconds=1e-9))  # type: ignore[attr-defined]
        trainer.fit(Toy([1.0]))
        last = [(step, batches) for step, batches in seen if (step, batches) != (0, 1)]  # the first validation's best.ckpt is no point to resume from
        assert last
        assert all(batches == 2 * step for step, batches in last)

    def test_without_validation_the_last_weights_are_the_best(self, tmp_path: Path) -> None:
        fit(tmp_path, Toy([1.0]), Checkpoints(), limit_val_batches=0)
        assert step_of(tmp_path / "checkpoints" / "best.ckpt") == 4

    def test_a_metric_that_is_not_logged(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="val/los was never logged; did you mean 'val/loss'"):
            fit(tmp_path, Toy([1.0]), Checkpoints(monitor="val/los"))

    @pytest.mark.parametrize("options", [{"mode": "up"}, {"every_n_steps": 0}, {"every_n_seconds": 0}])
    def test_wrong_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpoints(**options)

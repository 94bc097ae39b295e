from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from components.data import BatchOrder, DataModule, Diabetes, Digits, Split


def test_the_last_training_batch_is_full_on_every_rank_even_if_ranks_outnumber_samples() -> None:
    found = [list(BatchOrder(5, 4, shuffle=True, rank=r, world_size=3).batches(0)) for r in range(3)]
    assert [[len(b) for b in batches] for batches in found] == [[4]] * 3
    assert torch.cat([b for batches in found for b in batches]).unique().tolist() == [0, 1, 2, 3, 4]


def test_evaluation_counts_no_sample_twice_over_ranks() -> None:
    found = [list(BatchOrder(10, 4, rank=r, world_size=2).batches(0)) for r in range(2)]
    assert sorted(torch.cat([torch.cat(b) for b in found]).tolist()) == list(range(10))
    assert len(found[0]) == len(found[1])


def test_drop_last() -> None:
    data = Digits(batch_size=100, drop_last=True)
    data.setup()
    loader = data.train_dataloader()
    assert [len(b["index"]) for b in loader] == [100] * 12 and len(loader) == 12


def test_eval_batch_size_defaults_to_512() -> None:
    assert Digits(batch_size=8).eval_batch_size == 512
    assert Digits(batch_size=1024).eval_batch_size == 1024
    assert Digits(eval_batch_size=7).eval_batch_size == 7


def test_batches_are_slices_of_the_tensors() -> None:
    data = Digits(batch_size=4)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["inputs"], data.splits["val"]["inputs"][batch["index"]])
    assert set(batch) == {"inputs", "target", "index"}


def test_a_module_that_cannot_read_new_inputs_says_who_can() -> None:
    with pytest.raises(ValueError, match="Digits cannot read new inputs from a file; csv"):
        Digits().read_inputs("new.csv")


def test_targets_go_back_to_their_units() -> None:
    data, raw = Diabetes(), Diabetes(standardise_target=False)
    data.setup()
    raw.setup()
    assert torch.allclose(data.to_units(data.splits["test"]["target"]), raw.splits["test"]["target"], atol=1e-3)
    assert raw.to_units(raw.splits["test"]["target"]) is raw.splits["test"]["target"]
    train = data.splits["train"]["target"]
    assert abs(float(train.mean())) < 1e-5 and float(train.std(correction=0)) == pytest.approx(1, abs=1e-5)


class Tiny(DataModule):
    def load(self) -> tuple[Split, Split, Split]:
        self.class_names = ["a", "b"]
        split = {"inputs": torch.randn(12, 3), "target": torch.arange(12) % 2}
        self.rows = {"train": torch.arange(12), "val": torch.arange(12), "test": torch.arange(12)}
        return dict(split), dict(split), dict(split)


class Fit(lightning.LightningModule):
    """Notes which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["index"].tolist())
        return self.layer(batch["inputs"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps: int, folder: Path, resume: Path | None = None) -> Fit:
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    options = {"logger": False, "callbacks": [saving], "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=-1, max_steps=steps, default_root_dir=folder, **options)
    module = Fit()
    trainer.fit(module, datamodule=Tiny(batch_size=5), ckpt_path=resume, weights_only=True)
    return module


def test_a_resumed_run_sees_the_batches_that_an_unbroken_one_sees(tmp_path: Path) -> None:
    whole = fit(7, tmp_path).seen
    rest = fit(7, tmp_path / "resumed", resume=tmp_path / "4.ckpt").seen  # one step into the second epoch
    assert rest == whole[4:]
    assert whole[:3] != whole[3:6] and sorted(i for batch in whole[:3] for i in batch) == list(range(12))
    state = torch.load(tmp_path / "4.ckpt", weights_only=True)
    assert state["Tiny"]["facts"]["num_samples"] == 12, "Lightning keeps the module's state in its checkpoints"

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from components.data import Diabetes, Digits, GaussianMixture
from components.data.samplers import BatchOrder, ClassBatchOrder

TARGET = torch.tensor([0] * 50 + [1] * 20 + [2] * 7 + [3] * 3 + [5] * 20)  # 4 does not occur, 3 has fewer than m


def order(**settings: object) -> ClassBatchOrder:
    return ClassBatchOrder(len(TARGET), 16, shuffle=True, target=TARGET, samples_per_class=4, **settings)  # type: ignore[arg-type]


def batches(of: BatchOrder, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in of.batches(epoch, start)]


class TestClassBatchOrder:
    def test_every_batch_has_m_samples_of_different_classes(self) -> None:
        for epoch in range(20):
            found = batches(order(), epoch)
            assert len(found) == len(order()) == 7
            for batch in found:
                classes, counts = TARGET[batch].unique(return_counts=True)
                assert len(classes) == 4 and (counts == 4).all()

    def test_samples_of_a_batch_differ_where_their_class_has_enough(self) -> None:
        for batch in batches(order()):
            enough = [i for i in batch if TARGET[i] != 3]
            assert len(set(enough)) == len(enough)

    def test_a_class_hands_out_all_its_samples_before_it_repeats_one(self) -> None:
        for epoch in range(5):
            handed = [i for batch in batches(order(), epoch) for i in batch]
            for c in (0, 1, 2, 5):
                own = [i for i in handed if TARGET[i] == c]
                size = int((c == TARGET).sum())
                for first in range(0, len(own), size):
                    turn = own[first : first + size]
                    assert len(set(turn)) == len(turn)

    def test_is_a_pure_function_of_seed_and_epoch(self) -> None:
        assert batches(order(seed=3), 2) == batches(order(seed=3), 2)
        assert batches(order(seed=3), 2) != batches(order(seed=3), 3)
        assert batches(order(seed=3), 2) != batches(order(seed=4), 2)

    def test_start_in_the_middle_is_the_tail_of_the_epoch(self) -> None:
        for start in range(8):
            assert batches(order(), 1, start) == batches(order(), 1)[start:]

    def test_two_ranks_share_the_batch_of_one(self) -> None:
        ranks = [batches(ClassBatchOrder(len(TARGET), 8, shuffle=True, target=TARGET, samples_per_class=4, rank=rank, world_size=2)) for rank in (0, 1)]
        for whole, left, right in zip(batches(order()), *ranks, strict=True):
            assert whole[::2] == left and whole[1::2] == right

    def test_all_classes_come_up_equally_often(self) -> None:
        classes = torch.cat([TARGET[batch].unique() for epoch in range(300) for batch in batches(order(), epoch)])
        shares = torch.bincount(classes)[[0, 1, 2, 3, 5]] / (300 * 7)
        assert ((shares - 0.8).abs() < 0.05).all()


class TestDataModule:
    def test_training_batches_are_drawn_so_and_evaluation_is_whole(self) -> None:
        data = Digits(batch_size=24, samples_per_class=8)
        data.setup()
        for batch in data.train_dataloader():
            assert (batch["target"].unique(return_counts=True)[1] == 8).all() and len(batch["target"]) == 24
        assert sum(len(batch["target"]) for batch in data.val_dataloader()) == len(data.splits["val"]["target"])

    def test_epoch_is_as_long_as_without(self) -> None:
        lengths = set()
        for samples_per_class in (None, 8):
            data = Digits(batch_size=24, samples_per_class=samples_per_class)
            data.setup()
            lengths.add(len(data.train_dataloader()))
        assert len(lengths) == 1

    def test_tried_steps_have_batches_of_the_same_kind(self) -> None:
        data = Digits(batch_size=24, samples_per_class=8)
        data.setup()
        apart = data.train_dataloader().apart(seed=5)
        first = next(iter(apart))
        assert (first["target"].unique(return_counts=True)[1] == 8).all()
        assert first["index"].tolist() != next(iter(data.train_dataloader()))["index"].tolist()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"samples_per_class": 0}, "samples_per_class must be >= 1"),
            ({"samples_per_class": 7}, "batch_size must be a multiple of samples_per_class=7, but got 24"),
            ({"samples_per_class": 2}, r"batch_size must be at most 10, samples_per_class=2 of 5 classes \(of all devices\), but got 24"),
        ],
    )
    def test_refuses(self, settings, message) -> None:
        with pytest.raises(ValueError, match=message):
            GaussianMixture(size=200, batch_size=24, **settings).setup()

    def test_refuses_data_without_one_class_a_sample(self) -> None:
        with pytest.raises(ValueError, match="samples_per_class needs one class a sample, but the target is real"):
            Diabetes(batch_size=24, samples_per_class=4).setup()


class Notes(lightning.LightningModule):
    """Notes which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(10, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["index"].tolist())
        return self.layer(batch["inputs"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_the_batches_that_an_unbroken_one_sees(tmp_path: Path) -> None:
    def seen(steps: int, resume: Path | None = None) -> list[list[int]]:
        saving = ModelCheckpoint(tmp_path / str(resume is None), "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
        options = {"logger": False, "callbacks": [saving], "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = lightning.Trainer(max_epochs=-1, max_steps=steps, default_root_dir=tmp_path, **options)
        module, data = Notes(), GaussianMixture(size=120, classes=4, batch_size=16, samples_per_class=4, seed=7)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return module.seen

    whole = seen(14)
    assert len({tuple(batch) for batch in whole}) == 14  # nothing repeats, from epoch to epoch either
    for step in (4, 6, 9):  # within an epoch of six batches, at its end, in the second one
        assert seen(14, tmp_path / "True" / f"{step}.ckpt") == whole[step:]

"""What all data modules share: batches as dictionaries, an order that is a pure function of (seed, epoch), facts, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor

from components.validation import require

Batch = dict[str, Any]
Split = dict[str, Tensor]
"""A data set in memory: equally long tensors ``inputs``, ``target``, … ; ``index`` is added when batches are drawn."""


@dataclass
class BatchOrder:
    """Which samples form which batch: a pure function of ``(seed, epoch)``, so training can go on anywhere in an epoch.

    Args:
        num_samples: size of the set.
        batch_size: samples a batch *on one rank*; over all ranks a step sees ``batch_size * world_size``.
        shuffle: a new permutation every epoch.
        drop_last: leave out an incomplete last batch. With several ranks of a shuffled (training) order, the last batch is
            filled up from the epoch's start instead, so that ranks stay equal.
    """

    num_samples: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Index tensors of this rank's batches of ``epoch``, from batch ``start`` on."""
        order = self.permutation(epoch)
        step = self.batch_size * self.world_size
        for first in range(start * step, len(self) * step, step):
            both = order[first : first + step]
            if self.world_size > 1 and self.shuffle and len(both) < step:
                both = torch.cat([both, order[: step - len(both)]])
            yield both[self.rank :: self.world_size] if self.world_size > 1 else both

    def permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 63))
        return torch.randperm(self.num_samples, generator=generator)


class BatchLoader:
    """An iterable of batches for Lightning that starts where training stands.

    The position is asked for when the first batch is drawn, not when the iterator is made: a resumed run, whose loop has
    been put in the middle of an epoch by then, goes on at exactly the next batch.

    Args:
        order: which samples form which batch.
        fetch: index tensor -> batch, for data in memory, or a function of an iterator of index tensors -> iterator of batches
            (see ``streaming``) for data that worker processes read.
        position: () -> (epoch, batches of this epoch already done).
    """

    def __init__(
        self,
        order: BatchOrder,
        fetch: Callable[[Tensor], Batch],
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
        stream: Callable[[Iterator[Tensor]], Iterator[Batch]] | None = None,
    ) -> None:
        self.order, self.fetch, self.position, self.stream = order, fetch, position, stream

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.position()
        batches = self.order.batches(epoch, start)
        yield from self.stream(batches) if self.stream is not None else map(self.fetch, batches)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands. Lightning asks for it; the position itself follows from the training loop's counters."""
        epoch, batch = self.position()
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to load: :attr:`position` reads the loop's restored counters."""


class DataModule(lightning.LightningDataModule):
    """Base of losskit's data modules: give it three splits and facts, and it makes resumable, rank-aware batches.

    A subclass implements :meth:`load`, which returns ``(train, val, test)`` splits in memory, or overrides the dataloaders.

    Args:
        batch_size: samples a batch on each device.
        eval_batch_size: the same for validation and test; default: the larger of ``batch_size`` and 512.
        drop_last: leave out an incomplete last training batch.
        seed: order of the training batches, and corruptions.
    """

    def __init__(self, *, batch_size: int = 64, eval_batch_size: int | None = None, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size must be >= 1", batch_size)
        require(eval_batch_size is None or eval_batch_size >= 1, "eval_batch_size must be >= 1", eval_batch_size)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or max(batch_size, 512)
        self.drop_last = drop_last
        self.seed = seed
        self.splits: dict[str, Split] = {}

    # -- what a subclass gives ---------------------------------------------------------------------------------------
    def load(self) -> tuple[Split, Split, Split]:
        """The training, validation and test split."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Facts of the data (names of :data:`components.quantities.FACTS`); call after :meth:`setup`."""
        raise NotImplementedError

    # -- what it gets -------------------------------------------------------------------------------------------------
    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = dict(zip(("train", "val", "test"), self.load(), strict=True))
            size = len(self.splits["train"]["inputs"])
            require(self.batch_size <= size, f"batch_size must be at most the {size} training samples", self.batch_size)

    def fingerprint(self) -> str:
        """SHA-256 over all splits' tensors, in order: the same data give the same fingerprint on every machine."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            for key, tensor in sorted(split.items()):
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()

    def train_dataloader(self) -> BatchLoader:
        return self.loader("train", self.batch_size, shuffle=True, drop_last=self.drop_last, position=self.position)

    def val_dataloader(self) -> BatchLoader:
        return self.loader("val", self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self.loader("test", self.eval_batch_size)

    def loader(self, split: str, batch_size: int, *, shuffle: bool = False, drop_last: bool = False, position: Callable[[], tuple[int, int]] = lambda: (0, 0)) -> BatchLoader:
        tensors = self.splits[split]
        order = BatchOrder(
            len(tensors["inputs"]), batch_size, shuffle=shuffle, drop_last=drop_last, seed=self.seed, rank=self.rank, world_size=self.world_size
        )
        return BatchLoader(order, lambda index: {name: tensor[index] for name, tensor in tensors.items()} | {"index": index}, position)

    def position(self) -> tuple[int, int]:
        """(epoch, batches of it already done), as the trainer's loop counts them; (0, 0) outside a trainer."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

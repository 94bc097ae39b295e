"""Bags: any set with one class a sample, of which training may know no more than the shares of the classes in bags of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from components.data.base import Batch, BatchLoader, DataModule, Split
from components.data.samplers import BatchOrder
from components.validation import require


@dataclass
class BagOrder(BatchOrder):
    """Batches of whole bags: the bags are permuted every epoch, an incomplete one comes last; ranks share a step by bags, not by samples.

    Args:
        bag: (num_samples,) number of each sample's bag, from 0; all bags but the last are equally large.
    """

    bag: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return self.bag.argsort(stable=True)
        bags = int(self.bag.max()) + 1
        whole = bags - 1 if int((self.bag == bags - 1).sum()) < int((self.bag == 0).sum()) else bags
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 63))
        place = torch.arange(bags)
        place[:whole] = torch.randperm(whole, generator=generator)
        return place[self.bag].argsort(stable=True)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        order = self.permutation(epoch)
        step = self.batch_size * self.world_size
        for first in range(start * step, len(self) * step, step):
            both = order[first : first + step]
            if self.world_size > 1 and len(both) < step:
                both = torch.cat([both, order.repeat(step // len(order) + 1)[: step - len(both)]])
            yield both[self.rank * self.batch_size : (self.rank + 1) * self.batch_size] if self.world_size > 1 else both


class Bags(DataModule):
    """Another set's training samples in bags of fixed members: beside its class each gets its bag's number, size and label proportions.

    Which samples share a bag is drawn once, by ``split_seed``; what is left over forms a smaller last bag. Training batches are of whole bags.
    Validation and test samples have classes and no bags. Training's classes stay in the batch, for comparison with full supervision:
    ``task=label_proportions`` does not look at them.

    Args:
        source: the data module whose samples these are, with one class a sample. How it is split is said here, not there.
        bag_size: samples of a bag, >= 1; must divide ``batch_size``.
        **common: see :class:`~components.data.base.DataModule`.

    Shapes:
        in training: bag (N,), bag_size (N,), proportions (N, C), besides the source's inputs and target.

    Raises:
        ValueError: if ``bag_size`` does not divide ``batch_size``, or the source has not one class a sample.

    Source:
        Quadrianto, Smola, Caetano, Le, "Estimating Labels from Label Proportions", JMLR 10, 2009.
    """

    def __init__(self, source: DataModule, *, bag_size: int = 4, **common: Any) -> None:
        super().__init__(**common)
        require(isinstance(source, DataModule), "source must be a data module", type(source).__name__)
        require(bag_size >= 1, "bag_size must be >= 1", bag_size)
        require(self.batch_size % bag_size == 0, f"batch_size must be a multiple of bag_size={bag_size}, so that batches are of whole bags", self.batch_size)
        self.source, self.bag_size = source, bag_size
        self.channel_dim = source.channel_dim  # type: ignore[misc]

    def load(self) -> tuple[Split, Split, Split]:
        source = self.source
        source.val_fraction, source.test_fraction, source.split_seed = self.val_fraction, self.test_fraction, self.split_seed
        source.setup()
        require(source.target_kind == "multiclass" and source.splits["train"]["target"].ndim == 1, "source must have one class a sample", source.target_kind)
        self.target_kind, self.class_names, self.rows = source.target_kind, list(source.class_names), dict(source.rows)
        return source.splits["train"], source.splits["val"], source.splits["test"]

    def corrupt(self, train: Split) -> Split:
        train = super().corrupt(train)
        target = train["target"]
        generator = torch.Generator().manual_seed((self.split_seed * 1_000_003 + 53) % (1 << 63))
        bag = torch.empty_like(target)
        bag[torch.randperm(len(target), generator=generator)] = torch.arange(len(target)) // self.bag_size
        sizes = torch.bincount(bag)
        counts = torch.zeros(len(sizes), len(self.class_names)).index_add(0, bag, one_hot(target, len(self.class_names)).float())
        return train | {"bag": bag, "bag_size": sizes[bag], "proportions": (counts / sizes.unsqueeze(1))[bag]}

    def train_dataloader(self) -> BatchLoader:
        bag = self.splits["train"]["bag"]
        settings = {"seed": self.seed, "rank": self.rank, "world_size": self.world_size, "bag": bag}
        order = BagOrder(len(bag), self.batch_size, shuffle=True, drop_last=self.drop_last, **settings)  # type: ignore[arg-type]
        return BatchLoader(order, partial(self.fetch, "train"), self.position, self.stream("train"))

    def read_inputs(self, path: str | Path) -> Batch:
        return self.source.read_inputs(path)

    def fitted_state(self) -> dict[str, Any]:
        return {"source": self.source.state_dict()}

    def load_fitted_state(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])

"""Which samples form which batch: in a plain random order, or several samples of each of several classes, as losses of pairs and centroids want them.

An order is a pure function of ``(seed, epoch)``, and a batch of the position in it, so a resumed run goes on with the very batch that was next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from components.validation import require


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
                both = torch.cat([both, order.repeat(step // len(order) + 1)[: step - len(both)]])
            yield both[self.rank :: self.world_size] if self.world_size > 1 else both

    def permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 63))
        return torch.randperm(self.num_samples, generator=generator)


@dataclass
class ClassBatchOrder(BatchOrder):
    """Batches of ``samples_per_class`` samples of each of as many different classes as fill them (n-by-m, m per class).

    The classes of each batch are drawn anew. A class hands out its samples in a random order, a new one every epoch, and starts over when it is through:
    in an epoch, samples of small classes come more often than once and some of large ones not at all. An epoch has as many batches as it would have
    otherwise, all of them full. Over several ranks the whole step is such a batch.

    Args:
        target: (num_samples,) class of each sample.
        samples_per_class: m; a class with fewer samples repeats them.

    Source:
        Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv:1703.07737 (P classes, K samples); Wan et al.,
        "Generalized End-to-End Loss for Speaker Verification", ICASSP 2018, arXiv:1710.10467 (N speakers, M utterances).
    """

    target: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    samples_per_class: int = 2

    def permutation(self, epoch: int) -> Tensor:
        """Sample numbers, batch after batch; each step's are ``samples_per_class`` of each of its classes."""
        step = self.batch_size * self.world_size
        check_classes(self.target, "multiclass", step, self.samples_per_class)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 63))
        _, classes, counts = self.target.unique(return_inverse=True, return_counts=True)
        # by class, and at random within a class
        shuffled = (classes + torch.rand(len(classes), generator=generator, dtype=torch.float64)).argsort()
        chosen = torch.rand(len(self), len(counts), generator=generator).argsort(1)[:, : step // self.samples_per_class]
        turns = torch.zeros(len(self), len(counts), dtype=torch.long).scatter(1, chosen, 1).cumsum(0).gather(1, chosen) - 1
        place = turns.unsqueeze(2) * self.samples_per_class + torch.arange(self.samples_per_class)
        starts = (counts.cumsum(0) - counts)[chosen].unsqueeze(2)
        return shuffled[(starts + place % counts[chosen].unsqueeze(2)).flatten()]


def check_classes(target: Tensor, target_kind: str, batch_size: int, samples_per_class: int) -> None:
    """Refuse data without one class a sample, and a batch that does not hold a whole number of different classes.

    Raises:
        ValueError: naming ``samples_per_class`` or ``batch_size``.
    """
    one_class = target_kind == "multiclass" and target.ndim == 1
    require(one_class, f"samples_per_class needs one class a sample, but the target is {target_kind} of shape {tuple(target.shape)}")
    classes = len(target.unique())
    require(batch_size % samples_per_class == 0, f"batch_size must be a multiple of samples_per_class={samples_per_class}", batch_size)
    most = classes * samples_per_class
    require(batch_size <= most, f"batch_size must be at most {most}, samples_per_class={samples_per_class} of {classes} classes (of all devices)", batch_size)

"""What all data modules share: batches as dictionaries, an order that is a pure function of (seed, epoch), corruption, facts, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from torch import Tensor

from components.data.corruption import Corruption
from components.data.samplers import BatchOrder, ClassBatchOrder, check_classes
from components.validation import require

Batch = dict[str, Any]
Split = dict[str, Tensor]
"""A data set in memory: equally long tensors ``inputs``, ``target``, … ; ``index`` is added when batches are drawn."""


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

    def apart(self, seed: int, epoch: int = 0) -> BatchLoader:
        """The same data in an order of its own, a pure function of ``(seed, epoch)``, wherever training stands: for steps that are only tried."""
        order = replace(self.order, seed=(seed * 2_654_435_761 + self.order.seed + 1) % (1 << 40))
        return BatchLoader(order, self.fetch, lambda: (epoch, 0), self.stream)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands. Lightning asks for it; the position itself follows from the training loop's counters."""
        epoch, batch = self.position()
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to load: :attr:`position` reads the loop's restored counters."""


class DataModule(lightning.LightningDataModule):
    """Base of losskit's data modules: give it three splits and facts, and it makes resumable, rank-aware batches.

    A subclass implements :meth:`load`, which returns ``(train, val, test)`` splits in memory, sets :attr:`target_kind` and
    :attr:`class_names` there, and leaves corruption, order, batches, facts and saved state to this class.

    Splits are the same whatever ``seed`` is, so that runs with several seeds are judged on the same samples. Only the training
    split is ever corrupted. What is fitted (means, medians, categories) is fitted on the uncorrupted training split, so that
    validation and test inputs stay the same under every corruption.

    Args:
        batch_size: samples a batch on each device.
        eval_batch_size: the same for validation and test; default: the larger of ``batch_size`` and 512.
        drop_last: leave out an incomplete last training batch.
        samples_per_class: make training batches of that many samples of each of ``batch_size / samples_per_class`` classes
            (:class:`~components.data.samplers.ClassBatchOrder`); ``None``: of any samples.
        seed: order of the training batches, and corruptions.
        split_seed: which samples go into which split (of a synthetic set: the draw itself); unused where time splits.
        val_fraction, test_fraction: shares of the samples for validation and test, in [0, 1), together < 1.
        label_noise, noise_kind, imbalance, fraction, missing: see :class:`~components.data.corruption.Corruption`.

    Attributes:
        splits: ``train``, ``val``, ``test`` -> tensors.
        rows: ``train``, ``val``, ``test`` -> where in the source each sample comes from (row, picture, time step).
        target_kind: ``multiclass``, ``multilabel`` or ``real``.
        class_names: names of the classes or labels, in the order of their indices.
    """

    channel_dim: ClassVar[int] = 1
    """Dimension of ``inputs`` along which lost values share no mean: columns of a table, channels of an image."""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        samples_per_class: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        label_noise: float = 0.0,
        noise_kind: str = "symmetric",
        imbalance: float = 1.0,
        fraction: float = 1.0,
        missing: float = 0.0,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size must be >= 1", batch_size)
        require(eval_batch_size is None or eval_batch_size >= 1, "eval_batch_size must be >= 1", eval_batch_size)
        require(0 <= val_fraction < 1, "val_fraction must be in [0, 1)", val_fraction)
        require(0 <= test_fraction < 1, "test_fraction must be in [0, 1)", test_fraction)
        require(val_fraction + test_fraction < 1, "val_fraction + test_fraction must be < 1, or nothing is left for training", val_fraction + test_fraction)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or max(batch_size, 512)
        self.drop_last = drop_last
        require(samples_per_class is None or samples_per_class >= 1, "samples_per_class must be >= 1, or null", samples_per_class)
        self.samples_per_class = samples_per_class
        self.seed = seed
        self.split_seed = split_seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.corruption = Corruption(label_noise, noise_kind, imbalance, fraction, missing, seed)
        self.splits: dict[str, Split] = {}
        self.rows: dict[str, Tensor] = {}
        self.target_kind = "multiclass"
        self.class_names: list[str] = []
        self.target_scale: tuple[Tensor, Tensor] | None = None
        self._saved: dict[str, Any] = {}

    # -- what a subclass gives ---------------------------------------------------------------------------------------
    def load(self) -> tuple[Split, Split, Split]:
        """The training, validation and test split, uncorrupted."""
        raise NotImplementedError

    def read_inputs(self, path: str | Path) -> Batch:
        """Inputs of a new file without targets, prepared exactly as in training: ``{"inputs": …, "index": …}``."""
        raise ValueError(f"{type(self).__name__} cannot read new inputs from a file; csv, parquet, npz, image_folder, huggingface and the bundled tables can")

    # -- what it gets -------------------------------------------------------------------------------------------------
    def setup(self, stage: str | None = None) -> None:
        """Load, split and corrupt; further calls do nothing."""
        if self.splits:
            return
        train, val, test = self.load()
        train = self.corrupt(train)
        size = self.size(train)
        require(self.batch_size <= size, f"batch_size must be at most the {size} training samples", self.batch_size)
        if self.samples_per_class is not None:
            check_classes(train["target"], self.target_kind, self.batch_size, self.samples_per_class)
        self.splits = {"train": train, "val": val, "test": test}

    def corrupt(self, train: Split) -> Split:
        """The training split after what :class:`~components.data.corruption.Corruption` says."""
        kept = self.corruption.kept(train["target"], self.target_kind, len(self.class_names))
        if len(kept) < len(train["target"]):
            train = {name: tensor[kept] for name, tensor in train.items()}
            self.rows["train"] = self.rows["train"][kept]
        changed = {"target": self.corruption.noisy(train["target"], self.target_kind, len(self.class_names))}
        if "inputs" in train:
            changed["inputs"] = self.corruption.with_missing(train["inputs"], self.channel_dim)
        return train | changed

    def facts(self) -> dict[str, Any]:
        """Facts of the data (names of :data:`components.quantities.FACTS`); call after :meth:`setup` or :meth:`load_state_dict`.

        ``class_counts`` counts what training sees: after corruption; pixels of each class in segmentation, positives of each
        label in multi-label sets.
        """
        if not self.splits:
            require("facts" in self._saved, f"{type(self).__name__}: call setup() before facts()")
            return dict(self._saved["facts"])
        train = self.splits["train"]
        return {"num_samples": self.size(train), "target_kind": self.target_kind} | self.input_facts(train) | self.target_facts(train)

    def input_facts(self, train: Split) -> dict[str, Any]:
        return shape_facts(tuple(train["inputs"].shape[1:]))

    def target_facts(self, train: Split) -> dict[str, Any]:
        target = train["target"]
        if self.target_kind == "real":
            return {"num_targets": target.shape[-1]}
        classes = len(self.class_names)
        counts = target.sum(0) if self.target_kind == "multilabel" else torch.bincount(target[target >= 0], minlength=classes)
        return {"num_classes": classes, "class_names": list(self.class_names), "class_counts": [int(n) for n in counts]}

    def size(self, split: Split) -> int:
        """Samples in a split."""
        return len(split["target"])

    def fingerprint(self) -> str:
        """SHA-256 over all splits' tensors, in order: the same data give the same fingerprint on every machine."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            for key, tensor in sorted(split.items()):
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return digest.hexdigest()

    def to_units(self, values: Tensor) -> Tensor:
        """Predictions in the target's own units: undoes its standardisation (targets without one: ``values`` itself)."""
        if self.target_scale is None:
            return values
        mean, std = (t.to(values) for t in self.target_scale)
        return values * std + mean

    # -- saved in checkpoints: plain types and tensors, so that a finished run can predict without its training data ----------
    def state_dict(self) -> dict[str, Any]:
        """Facts, class names and whatever was fitted on the training split."""
        if not self.splits:
            return dict(self._saved)
        scale = {} if self.target_scale is None else {"target_mean": self.target_scale[0], "target_std": self.target_scale[1]}
        return {"facts": self.facts(), "class_names": list(self.class_names), "target_kind": self.target_kind} | scale | self.fitted_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was fitted; a :meth:`setup` that follows fits nothing anew."""
        self._saved = dict(state_dict)
        if state_dict:
            self.class_names, self.target_kind = list(state_dict["class_names"]), state_dict["target_kind"]
            if "target_mean" in state_dict:
                self.target_scale = state_dict["target_mean"], state_dict["target_std"]
            self.load_fitted_state(state_dict)

    def fitted_state(self) -> dict[str, Any]:
        """What a subclass fitted beside the target's scale."""
        return {}

    def load_fitted_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of :meth:`fitted_state`."""

    # -- batches ------------------------------------------------------------------------------------------------------
    def train_dataloader(self) -> BatchLoader:
        return self.loader("train", self.batch_size, shuffle=True, drop_last=self.drop_last, position=self.position)

    def val_dataloader(self) -> BatchLoader:
        return self.loader("val", self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self.loader("test", self.eval_batch_size)

    def loader(
        self, split: str, batch_size: int, *, shuffle: bool = False, drop_last: bool = False, position: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> BatchLoader:
        order = BatchOrder(
            self.size(self.splits[split]), batch_size, shuffle=shuffle, drop_last=drop_last, seed=self.seed, rank=self.rank, world_size=self.world_size
        )
        if shuffle and self.samples_per_class is not None:
            order = ClassBatchOrder(**vars(order), target=self.splits[split]["target"], samples_per_class=self.samples_per_class)
        return BatchLoader(order, partial(self.fetch, split), position, self.stream(split))

    def fetch(self, split: str, index: Tensor) -> Batch:
        """The samples at ``index``: in-memory tensors are indexed a batch at a time, nothing is collated."""
        return {name: tensor[index] for name, tensor in self.splits[split].items()} | {"index": index}

    def stream(self, split: str) -> Callable[[Iterator[Tensor]], Iterator[Batch]] | None:
        """Index tensors -> batches, for data that worker processes read; ``None``: :meth:`fetch` does it."""
        return None

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


def shape_facts(shape: tuple[int, ...]) -> dict[str, Any]:
    """Facts that follow from the shape of one input: (F,) a table's row, (C, H, W) an image, (C, D, H, W) a volume."""
    facts: dict[str, Any] = {"input_shape": shape}
    if len(shape) == 1:
        facts["num_features"] = shape[0]
    if len(shape) in (3, 4):
        facts |= {"in_channels": shape[0], "image_size": shape[1:]}
    return facts

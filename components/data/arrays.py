"""Sets that are read whole: a set of samples is checked, split, encoded by what the training part shows, and handed on as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from components.data.base import DataModule, Split
from components.data.corruption import IGNORED
from components.validation import did_you_mean, require

PARTS = ("train", "val", "test")


@dataclass
class Samples:
    """All samples of a source, before they are split.

    Args:
        inputs: what the module's encoder takes: a tensor (N, …) or a pandas DataFrame of N rows.
        target: class indices, long (N,) or (N, H, W); labels in {0, 1}, long (N, K); or values, float (N, T).
        target_kind: ``multiclass``, ``multilabel`` or ``real``.
        class_names: of the classes or labels; empty for values.
        part: ``train``, ``val`` or ``test`` for each sample, where the source has splits of its own; what it lacks of
            ``val`` and ``test`` is taken from its ``train``.
        strata: (N,) groups of which every split gets its share; default: the classes.
    """

    inputs: Any
    target: Tensor
    target_kind: str
    class_names: list[str]
    part: Sequence[str] | None = None
    strata: Tensor | None = None


class Encoder(Protocol):
    """Turns raw inputs into a float32 tensor; whatever it needs to know it learns from the training part."""

    def fit(self, inputs: Any) -> None: ...
    def transform(self, inputs: Any) -> Tensor: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TensorEncoder:
    """float32 inputs: divided by ``divisor``, then, if ``standardise``, to mean 0 and standard deviation 1 along dimension 1.

    Dimension 1 holds the columns of a table (N, F) or the channels of images (N, C, H, W). A constant column is only centred.
    """

    def __init__(self, *, standardise: bool, divisor: float = 1.0) -> None:
        self.standardise, self.divisor = standardise, divisor
        self.mean, self.std = torch.zeros(1), torch.ones(1)

    def fit(self, inputs: Tensor) -> None:
        if self.standardise:
            self.mean, self.std = mean_and_std(self._scaled(inputs), [d for d in range(inputs.ndim) if d != 1])

    def transform(self, inputs: Tensor) -> Tensor:
        scaled = self._scaled(inputs)
        broken = ~torch.isfinite(scaled).flatten(1).all(1)
        if bool(broken.any()):
            raise ValueError(f"inputs have NaN or infinite values in {int(broken.sum())} samples, first in sample {int(broken.nonzero()[0, 0])}")
        return (scaled - self.mean) / self.std

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "divisor": self.divisor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.std, self.divisor = state["mean"], state["std"], state["divisor"]

    def _scaled(self, inputs: Tensor) -> Tensor:
        return inputs.float() / self.divisor


class ArrayData(DataModule):
    """Base of sets that are read whole: give it :meth:`read` and an encoder.

    Splits are stratified: every split has its share of every class, up to rounding, and no class is missing from training.

    Args:
        encoder: of the inputs.
        standardise_target: real targets to mean 0 and standard deviation 1 of the training split (:meth:`to_units` goes back).
        holdout_classes: classes (indices or names) that training never sees: validation and test hold these alone, training all
            samples of the others. Targets are renumbered: training's classes 0 … K-1 in their old order, then the held-out
            ones K … C-1; the facts speak of the K that training knows. For metric learning.
        **common: see :class:`~components.data.base.DataModule`.

    Raises:
        ValueError: one class only, a class that training lacks, a label out of range, NaN in the target or the inputs.
    """

    def __init__(self, encoder: Encoder, *, standardise_target: bool = True, holdout_classes: Sequence[int | str] = (), **common: Any) -> None:
        super().__init__(**common)
        self.encoder = encoder
        self.standardise_target = standardise_target
        self.holdout_classes = list(holdout_classes)
        self.known_classes: list[str] = []
        """Classes of the source, held-out ones included; a subclass that names labels by text numbers them by this once it is loaded."""

    def read(self) -> Samples:
        """All samples of the source."""
        raise NotImplementedError

    def load(self) -> tuple[Split, Split, Split]:
        samples = self.read()
        require(len(samples.target) > 0, f"{type(self).__name__}: the source has no samples")
        check_target(samples)
        check_inputs(samples)
        self.target_kind, self.class_names, self.known_classes = samples.target_kind, list(samples.class_names), list(samples.class_names)
        self.rows = self.hold_out(samples) if self.holdout_classes else self.split(samples)
        if not self._saved:
            check_training_classes(samples, self.rows, self.class_names, held_out=bool(self.holdout_classes))
        return self.encode(samples)

    def split(self, samples: Samples) -> dict[str, Tensor]:
        """Row numbers of each part, ascending."""
        strata = samples.strata
        if strata is None and samples.target_kind != "real" and samples.target.ndim <= 2:
            strata = samples.target if samples.target.ndim == 1 else torch.unique(samples.target, dim=0, return_inverse=True)[1]
        given = list(samples.part) if samples.part is not None else ["train"] * len(samples.target)
        rows = {name: torch.tensor([i for i, part in enumerate(given) if part == name], dtype=torch.long) for name in PARTS}
        val_fraction = 0.0 if len(rows["val"]) else self.val_fraction
        test_fraction = 0.0 if len(rows["test"]) else self.test_fraction
        pool = rows["train"]
        drawn = split_rows(None if strata is None else strata[pool], len(pool), val_fraction, test_fraction, self.split_seed)
        return {name: pool[drawn[name]] if name == "train" or not len(rows[name]) else rows[name] for name in PARTS}

    def hold_out(self, samples: Samples) -> dict[str, Tensor]:
        """Row numbers of each part where classes are held out; renumbers ``samples.target`` and ``class_names``."""
        require(samples.target_kind == "multiclass" and samples.target.ndim == 1, "holdout_classes needs a target with one class per sample")
        names = samples.class_names
        held = [class_index(c, names) for c in self.holdout_classes]
        require(len(set(held)) >= 2, "holdout_classes must name two classes or more (with one, every neighbour is right)", self.holdout_classes)
        kept = [c for c in range(len(names)) if c not in held]
        require(len(kept) >= 2, "holdout_classes must leave two classes or more for training", self.holdout_classes)
        renumbered = torch.empty(len(names), dtype=torch.long)
        renumbered[torch.tensor(kept + sorted(set(held)))] = torch.arange(len(names))
        samples.target = renumbered[samples.target]
        self.class_names = [names[c] for c in kept]
        outside = (samples.target >= len(kept)).nonzero()[:, 0]
        share = self.val_fraction / ((self.val_fraction + self.test_fraction) or 1.0)
        # the part that stays here is the test split: drawn as "train" of the held-out samples
        drawn = split_rows(samples.target[outside], len(outside), share, 0.0, self.split_seed)
        return {"train": (samples.target < len(kept)).nonzero()[:, 0], "val": outside[drawn["val"]], "test": outside[drawn["train"]]}

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        """The three splits as tensors; fits the encoder and the target's scale on the training part, unless they were loaded."""
        train = self.rows["train"]
        if not self._saved:
            self.encoder.fit(take(samples.inputs, train))
            if samples.target_kind == "real" and self.standardise_target:
                mean, std = mean_and_std(samples.target[train].double(), [0])
                self.target_scale = mean[0].float(), std[0].float()
        target = samples.target
        if self.target_scale is not None:
            target = (target - self.target_scale[0]) / self.target_scale[1]
        target = target.float() if samples.target_kind == "real" else target.long()
        first, second, third = ({"inputs": self.encoder.transform(take(samples.inputs, rows)), "target": target[rows]} for rows in self.rows.values())
        return first, second, third

    def fitted_state(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "known_classes": self.known_classes}

    def load_fitted_state(self, state: Mapping[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.known_classes = list(state["known_classes"])

    def encoded(self, inputs: Any) -> dict[str, Any]:
        """A batch of new inputs, for :meth:`read_inputs`."""
        require(bool(self.splits or self._saved), f"{type(self).__name__}: read_inputs needs setup() or a loaded state first")
        encoded = self.encoder.transform(inputs)
        return {"inputs": encoded, "index": torch.arange(len(encoded))}


def take(inputs: Any, rows: Tensor) -> Any:
    """Rows of a tensor or of a DataFrame."""
    return inputs[rows] if isinstance(inputs, Tensor) else inputs.iloc[rows.numpy()]


def mean_and_std(values: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over ``dims``, kept as size 1; a constant column has standard deviation 1.

    Computed in float64: a column of large values with a small spread would lose it in float32.
    """
    std, mean = torch.std_mean(values.double(), dims, correction=0, keepdim=True)
    std = torch.where(std <= 1e-12 * mean.abs().clamp(min=1e-12), torch.ones_like(std), std)
    return mean.to(values.dtype), std.to(values.dtype)


def split_rows(strata: Tensor | None, total: int, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Tensor]:
    """Split ``0 … total-1`` at random into train, val and test, each with its share of every stratum.

    Rounding errors are carried from stratum to stratum, so that many small ones give splits of the right size. Every stratum
    keeps at least one sample in training.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed % (1 << 63)))
    groups = [order] if strata is None else [order[strata[order] == g] for g in strata.unique()]
    rows: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    carried_val = carried_test = 0.0
    for group in groups:
        carried_test += test_fraction * len(group)
        carried_val += val_fraction * len(group)
        test = max(0, min(int(carried_test + 0.5), len(group) - 1))
        val = max(0, min(int(carried_val + 0.5), len(group) - 1 - test))
        carried_test, carried_val = carried_test - test, carried_val - val
        for name, members in zip(PARTS, (group[test + val :], group[test : test + val], group[:test]), strict=True):
            rows[name].append(members)
    empty = torch.empty(0, dtype=torch.long)
    return {name: torch.cat([empty, *members]).sort().values for name, members in rows.items()}


def class_index(wanted: int | str, names: Sequence[str]) -> int:
    """Index of a class given by index or name."""
    if isinstance(wanted, int):
        require(0 <= wanted < len(names), f"holdout_classes must be names or in 0 … {len(names) - 1}", wanted)
        return wanted
    require(wanted in names, f"holdout_classes: no class {wanted!r}{did_you_mean(wanted, names)}; the classes are {', '.join(names)}")
    return list(names).index(wanted)


def check_inputs(samples: Samples) -> None:
    """Raise if inputs that are a tensor hold NaN or infinities, by the number that the sample has in the source."""
    if isinstance(samples.inputs, Tensor) and samples.inputs.is_floating_point():
        broken = ~torch.isfinite(samples.inputs).flatten(1).all(1)
        if bool(broken.any()):
            raise ValueError(f"inputs have NaN or infinite values in {int(broken.sum())} samples, first in sample {int(broken.nonzero()[0, 0])}")


def check_target(samples: Samples) -> None:
    """Raise unless the target is what its kind says."""
    target = samples.target
    if samples.target_kind == "real":
        broken = ~torch.isfinite(target).flatten(1).all(1)
        if bool(broken.any()):
            raise ValueError(f"the target has NaN or infinite values in {int(broken.sum())} samples, first in sample {int(broken.nonzero()[0, 0])}")
        return
    classes = 2 if samples.target_kind == "multilabel" else len(samples.class_names)
    outside = (target < 0) | (target >= classes)
    if target.ndim >= 3:  # pixels may be left out of the loss
        outside &= target != IGNORED
    if bool(outside.any()):
        first = outside.nonzero()[0]
        raise ValueError(
            f"label out of range: {int(outside.sum())} labels are not in 0 … {classes - 1}, first {int(target[tuple(first)])} in sample {int(first[0])}"
        )


def check_training_classes(samples: Samples, rows: Mapping[str, Tensor], names: Sequence[str], *, held_out: bool) -> None:
    """Raise if training has one class only, or lacks one that validation or test has."""
    if samples.target_kind != "multiclass":
        return
    present = {name: set(samples.target[r].unique().tolist()) - {IGNORED} for name, r in rows.items()}
    if len(present["train"]) < 2:
        only = ", ".join(repr(names[c]) for c in present["train"]) or "none"
        raise ValueError(f"the training split has one class only ({only}); classification needs two or more")
    for part in ("val", "test"):
        unknown = sorted(present[part] - present["train"])
        if unknown and not held_out:
            raise ValueError(f"the {part} split has {', '.join(repr(names[c]) for c in unknown)}, a class that the training split does not have")

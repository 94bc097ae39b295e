"""The user's own arrays, in a NumPy ``.npz`` file: a table or pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import PARTS, ArrayData, Samples, TensorEncoder
from components.data.base import Batch
from components.data.files import existing_file
from components.data.tables import classes_likely
from components.validation import did_you_mean, require, require_choice


class Npz(ArrayData):
    """Arrays in a NumPy ``.npz`` file: a table (N, F) or images (N, C, H, W), unsigned bytes being scaled to [0, 1].

    Splits of the file's own are used if it has ``train_…``, ``val_…`` and ``test_…`` arrays (``train_inputs``, ``train_target`` …);
    what it lacks of ``val`` and ``test`` is taken from training.

    Args:
        path: the file.
        inputs, target: names of its arrays. The target is (N,) class indices, (N, K) of 0 and 1 (labels), (N, H, W) class indices of
            pixels (-100: ignored), or (N,) or (N, T) values.
        kind: ``auto``: whole numbers are classes, others values; ``class``; ``real``.
        num_classes: default: the largest label + 1.
        standardise: inputs to mean 0 and standard deviation 1 of training, per column or channel.
        **common: see :class:`~components.data.arrays.ArrayData`.
    """

    def __init__(
        self,
        path: str,
        *,
        inputs: str = "inputs",
        target: str = "target",
        kind: str = "auto",
        num_classes: int | None = None,
        standardise: bool = True,
        **common: Any,
    ) -> None:
        self.tensor_encoder = TensorEncoder(standardise=standardise)
        super().__init__(self.tensor_encoder, **common)
        require_choice("kind", kind, ("auto", "class", "real"))
        require(num_classes is None or num_classes >= 2, "num_classes must be >= 2", num_classes)
        self.path, self.names, self.kind, self.num_classes = path, (inputs, target), kind, num_classes

    def read(self) -> Samples:
        arrays = read_npz(existing_file(self.path, "data.path"))
        parts = [p for p in PARTS if f"{p}_{self.names[0]}" in arrays]
        if "train" in parts:
            pairs = [[array_of(arrays, f"{p}_{name}") for name in self.names] for p in parts]
            for i, name in enumerate(self.names):
                shapes = [pair[i].shape[1:] for pair in pairs]
                require(len(set(shapes)) == 1, f"the splits' {name} must have the same shape but for the first dimension", shapes)
            inputs, target = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
            part: list[str] | None = [p for p, (_, y) in zip(parts, pairs, strict=True) for _ in range(len(y))]
            require([len(x) for x, _ in pairs] == [len(y) for _, y in pairs], f"{self.names[0]} and {self.names[1]} must be equally long in every split")
        else:
            inputs, target = (array_of(arrays, name) for name in self.names)
            part = None
        require(len(inputs) == len(target), f"{self.names[0]} and {self.names[1]} must be equally long", (len(inputs), len(target)))
        if not self._saved:
            self.tensor_encoder.divisor = 255.0 if inputs.dtype == np.uint8 and inputs.ndim == 4 else 1.0
        values, kind, classes = self._target(target, inputs)
        return Samples(self._inputs(inputs), values, kind, classes, part)

    def read_inputs(self, path: str | Path) -> Batch:
        """Inputs from the array of the same name in a new ``.npz`` file."""
        require(bool(self.splits or self._saved), "Npz: read_inputs needs setup() or a loaded state first")
        array = array_of(read_npz(existing_file(path, "input")), self.names[0])
        expected = tuple(self.facts()["input_shape"])
        require(array.shape[1:] == expected, f"the array {self.names[0]!r} must have the shape (N, {', '.join(map(str, expected))})", array.shape)
        return self.encoded(self._inputs(array))

    def _inputs(self, array: np.ndarray) -> Tensor:
        require(array.ndim in (2, 4), f"the array {self.names[0]!r} must be (N, F) for a table or (N, C, H, W) for images", array.shape)
        require(array.dtype.kind in "fiub", f"the array {self.names[0]!r} must hold numbers", str(array.dtype))
        return torch.from_numpy(array.astype(np.float32))

    def _target(self, array: np.ndarray, inputs: np.ndarray) -> tuple[Tensor, str, list[str]]:
        name = self.names[1]
        require(array.dtype.kind in "fiub", f"the array {name!r} must hold numbers: class indices or values", str(array.dtype))
        fits = array.ndim in (1, 2) or (array.ndim == 3 and array.shape[1:] == inputs.shape[2:])
        require(fits, f"the array {name!r} must be (N,), (N, K) or, for images, (N, H, W) with the height and width of the inputs", array.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            broken = ~np.isfinite(array).reshape(len(array), -1).all(1)
            raise ValueError(f"the array {name!r} has NaN or infinite values in {int(broken.sum())} samples, first in sample {int(broken.argmax())}")
        whole = array.dtype.kind != "f" or bool((array == np.round(array)).all())
        require(self.kind != "class" or whole, f"the array {name!r} holds fractions, so it cannot be classes: data.kind=real task=regression")
        if self.kind == "real" or not whole or (self.kind == "auto" and array.dtype.kind == "f" and not classes_likely(array)):
            require(array.ndim <= 2, f"the array {name!r} must be (N,) or (N, T) to hold values", array.shape)
            return torch.from_numpy(array.astype(np.float64)).reshape(len(array), -1), "real", []
        labels = torch.from_numpy(array.astype(np.int64))
        if array.ndim == 2 and self.kind == "auto" and not np.isin(array, (0, 1)).all():
            return labels.double(), "real", []
        if array.ndim == 2:
            return labels, "multilabel", [str(i) for i in range(array.shape[1])]
        count = self.num_classes or max(2, int(labels.max()) + 1)
        require(count <= max(2, labels.numel()), f"label out of range: the array {name!r} must hold class indices 0 … C-1", int(labels.max()))
        return labels, "multiclass", self.known_classes if self._saved else [str(i) for i in range(count)]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        require(not isinstance(loaded, np.ndarray), f"{path} holds a single array: save inputs and target together with np.savez")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable NPZ file: {error}") from error


def array_of(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"the NPZ file has no array {name!r}{did_you_mean(name, arrays)}; it has {', '.join(arrays) or 'none'}")
    require(arrays[name].ndim > 0 and len(arrays[name]) > 0, f"the array {name!r} is empty")
    return arrays[name]

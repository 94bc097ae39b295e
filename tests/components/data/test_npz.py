from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.data import Npz

RNG = np.random.default_rng(0)
TABLE = RNG.normal(5, 2, (60, 4))
PICTURES = RNG.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
CLASSES = np.arange(60) % 3


def ready(folder: Path, options: dict[str, Any] | None = None, **arrays: np.ndarray) -> Npz:
    np.savez(folder / "arrays.npz", **arrays)
    data = Npz(str(folder / "arrays.npz"), **{"batch_size": 1} | (options or {}))
    data.setup()
    return data


def test_table(tmp_path: Path) -> None:
    data = ready(tmp_path, inputs=TABLE, target=CLASSES)
    train = data.splits["train"]["inputs"]
    assert torch.allclose(train.mean(0), torch.zeros(4), atol=1e-5) and torch.allclose(train.std(0, correction=0), torch.ones(4), atol=1e-5)
    assert data.facts()["class_counts"] == [14, 14, 14]


def test_pictures_of_bytes_are_scaled(tmp_path: Path) -> None:
    data = ready(tmp_path, {"standardise": False}, inputs=PICTURES, target=CLASSES)
    assert torch.allclose(data.splits["train"]["inputs"] * 255, torch.from_numpy(PICTURES)[data.rows["train"]].float(), atol=1e-3)
    assert data.facts()["image_size"] == (8, 8)


@pytest.mark.parametrize(
    ("target", "options", "kind"),
    [
        (CLASSES, {}, "multiclass"),
        (CLASSES.astype(float), {}, "multiclass"),
        (CLASSES, {"kind": "real"}, "real"),
        (TABLE[:, 0], {}, "real"),
        (TABLE[:, :2], {}, "real"),
        (RNG.integers(0, 2, (60, 5)), {}, "multilabel"),
        (RNG.integers(0, 9, (60, 2)), {}, "real"),
        (RNG.integers(0, 3, (60, 8, 8)), {}, "multiclass"),
    ],
)
def test_kinds(tmp_path: Path, target: np.ndarray, options: dict[str, Any], kind: str) -> None:
    facts = ready(tmp_path, options, inputs=PICTURES, target=target).facts()
    assert facts["target_kind"] == kind
    if target.ndim == 2:
        assert facts.get("num_targets", facts.get("num_classes")) == target.shape[1]


def test_ignored_pixels(tmp_path: Path) -> None:
    target = RNG.integers(0, 3, (60, 8, 8))
    target[:, 0] = -100
    data = ready(tmp_path, inputs=PICTURES, target=target)
    assert data.facts()["num_classes"] == 3 and sum(data.facts()["class_counts"]) == data.facts()["num_samples"] * 56


def test_splits_of_its_own(tmp_path: Path) -> None:
    data = ready(tmp_path, train_inputs=TABLE[:50], train_target=CLASSES[:50], test_inputs=TABLE[50:], test_target=CLASSES[50:])
    assert data.rows["test"].tolist() == list(range(50, 60)) and len(data.rows["val"]) == 7


def test_a_class_that_validation_has_and_training_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the val split has '2', a class that the training split does not have"):
        ready(tmp_path, train_inputs=TABLE[:40], train_target=CLASSES[:40] % 2, val_inputs=TABLE[40:], val_target=CLASSES[40:])


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"inputs": TABLE, "targets": CLASSES}, {}, r"no array 'target'; did you mean 'targets'\?; it has inputs, targets"),
        ({"x": TABLE}, {}, "no array 'inputs'; it has x"),
        ({"inputs": TABLE, "target": CLASSES[:50]}, {}, r"equally long, but got \(60, 50\)"),
        ({"inputs": TABLE[0], "target": CLASSES[:4]}, {}, r"must be \(N, F\) for a table or \(N, C, H, W\)"),
        ({"inputs": TABLE, "target": CLASSES - 1}, {}, "label out of range: 20 labels are not in 0 … 1, first -1 in sample 0"),
        ({"inputs": TABLE, "target": CLASSES}, {"num_classes": 2}, "label out of range: 20 labels are not in 0 … 1, first 2"),
        ({"inputs": TABLE, "target": CLASSES * 10**6}, {}, "label out of range"),
        ({"inputs": TABLE, "target": TABLE[:, 0]}, {"kind": "class"}, "holds fractions, so it cannot be classes: data.kind=real task=regression"),
        ({"inputs": TABLE, "target": np.where(CLASSES == 1, np.nan, 1.0)}, {}, "NaN or infinite values in 20 samples, first in sample 1"),
        ({"inputs": np.where(TABLE > 9, np.nan, TABLE), "target": CLASSES}, {}, "inputs have NaN"),
        ({"inputs": TABLE, "target": CLASSES.astype(str)}, {}, "must hold numbers"),
        ({"inputs": TABLE[:0], "target": CLASSES[:0]}, {}, "the array 'inputs' is empty"),
        ({"inputs": TABLE, "target": CLASSES * 0}, {}, "one class only"),
        ({"inputs": PICTURES, "target": np.zeros((60, 4, 4), dtype=int)}, {}, "the height and width of the inputs"),
    ],
)
def test_errors(tmp_path: Path, arrays: dict[str, np.ndarray], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(tmp_path, options, **arrays)


@pytest.mark.parametrize("content", [b"PK\x03\x04 broken", b"no archive at all"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(ValueError, match="is no readable NPZ file"):
        Npz(str(tmp_path / "broken.npz")).setup()


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no readable NPZ file"):
        ready(tmp_path, inputs=np.array([{"a": 1}, {}], dtype=object), target=CLASSES[:2])


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", TABLE)
    with pytest.raises(ValueError, match="holds a single array"):
        Npz(str(tmp_path / "one.npy")).setup()


def test_new_inputs(tmp_path: Path) -> None:
    data = ready(tmp_path, inputs=PICTURES, target=CLASSES)
    np.savez(tmp_path / "new.npz", inputs=PICTURES[data.rows["test"].numpy()])
    finished = Npz("gone.npz")
    finished.load_state_dict(data.state_dict())
    assert torch.equal(finished.read_inputs(tmp_path / "new.npz")["inputs"], data.splits["test"]["inputs"])
    np.savez(tmp_path / "small.npz", inputs=PICTURES[:, :, :4])
    with pytest.raises(ValueError, match=r"must have the shape \(N, 3, 8, 8\)"):
        finished.read_inputs(tmp_path / "small.npz")

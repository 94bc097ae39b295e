"""A folder of pictures, one sub-folder a class: held in memory, or decoded by worker processes while training goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from components.data.arrays import PARTS, ArrayData, Samples, TensorEncoder
from components.data.base import Batch, Split, shape_facts
from components.data.files import existing_path
from components.validation import require

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class ImageFolder(ArrayData):
    """``path/<class>/*.png`` (jpg, …), or ``path/{train,val,test}/<class>/*.png`` with splits of its own.

    Pictures are decoded by Pillow, resized (bilinear, the aspect ratio is not kept) and scaled to [0, 1].

    Args:
        path: the folder.
        image_size: side in pixels, or (height, width).
        channels: 3 (RGB) or 1 (grey).
        in_memory: decode all pictures once, at the start. ``False``: decode them batch by batch, so that a set larger than the memory
            can be trained on; the order of the batches is the same, and so is resuming in the middle of an epoch.
        num_workers: processes that decode ahead, where ``in_memory=False``; 0: the training process itself.
        standardise: mean 0 and standard deviation 1 of training, per channel, instead of [0, 1]; needs ``in_memory``.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.

    Raises:
        ValueError: no such folder, no pictures, a picture that cannot be decoded (with its name), one class only.
    """

    def __init__(
        self,
        path: str,
        *,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        in_memory: bool = True,
        num_workers: int = 0,
        standardise: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(TensorEncoder(standardise=standardise, divisor=255.0), **common)
        self.image_size = sides(image_size)
        require(channels in (1, 3), "channels must be 1 (grey) or 3 (RGB)", channels)
        require(num_workers >= 0, "num_workers must be >= 0", num_workers)
        require(in_memory or not standardise, "standardise needs in_memory=true")
        require(in_memory or self.corruption.missing == 0, "missing needs in_memory=true")
        self.path, self.channels, self.in_memory, self.num_workers = path, channels, in_memory, num_workers
        self.files: list[Path] = []

    def read(self) -> Samples:
        self.files, labels, part = list_pictures(existing_path(self.path, "data.path"))
        names = self.known_classes if self._saved else sorted(set(labels))
        unknown = sorted(set(labels) - set(names))
        require(not unknown, f"label out of range: {self.path} has the classes {', '.join(unknown)}; training had {', '.join(names)}")
        index = {name: i for i, name in enumerate(names)}
        # a streamed set is split and checked by its labels alone; what stands for its inputs is each picture's place in the list
        inputs = read_pictures(self.files, self.image_size, self.channels) if self.in_memory else torch.arange(len(self.files))
        return Samples(inputs, torch.tensor([index[label] for label in labels]), "multiclass", names, part)

    def encode(self, samples: Samples) -> tuple[Split, Split, Split]:
        if self.in_memory:
            return super().encode(samples)
        first, second, third = ({"target": samples.target[rows], "file": rows} for rows in self.rows.values())
        return first, second, third

    def input_facts(self, train: Split) -> dict[str, Any]:
        return shape_facts((self.channels, *self.image_size))

    def fetch(self, split: str, index: Tensor) -> Batch:
        return super().fetch(split, index) if self.in_memory else PictureBatches(self, split)[index]

    def stream(self, split: str) -> Callable[[Iterator[Tensor]], Iterator[Batch]] | None:
        if self.in_memory or self.num_workers == 0:
            return None
        reader = PictureBatches(self, split)

        def batches(order: Iterator[Tensor]) -> Iterator[Batch]:
            # a generator of its own: the workers' seed must not be drawn from the global one, which a resumed run restores
            generator = torch.Generator().manual_seed(self.seed)
            return iter(DataLoader(reader, batch_size=None, sampler=list(order), num_workers=self.num_workers, generator=generator))

        return batches

    def fingerprint(self) -> str:
        """As for sets in memory; of a streamed one over the names and sizes of the files, and the labels, instead of the pixels."""
        if self.in_memory:
            return super().fingerprint()
        root = existing_path(self.path, "data.path")
        digest = hashlib.sha256(super().fingerprint().encode())
        for file in self.files:
            digest.update(f"{file.relative_to(root).as_posix()}:{file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def read_inputs(self, path: str | Path) -> Batch:
        """A new picture, or all pictures in a folder and the folders below it, in the order of their names."""
        found = existing_path(path, "input")
        files = pictures_below(found) if found.is_dir() else [found]
        require(len(files) > 0, f"input: the folder {str(path)!r} has no pictures ({', '.join(sorted(ENDINGS))})")
        return self.encoded(read_pictures(files, self.image_size, self.channels))


class PictureBatches(Dataset[Mapping[str, Any]]):
    """A streamed split, whose items are whole batches asked for by index tensor; goes to the worker processes."""

    def __init__(self, module: ImageFolder, split: str) -> None:
        # not the module itself: it may hold the trainer, and that the model
        self.files, self.size, self.channels = module.files, module.image_size, module.channels
        self.tensors, self.encoder = module.splits[split], module.encoder

    def __getitem__(self, index: Tensor) -> Batch:
        batch: Batch = {name: tensor[index] for name, tensor in self.tensors.items()} | {"index": index}
        files = [self.files[i] for i in batch.pop("file").tolist()]
        return batch | {"inputs": self.encoder.transform(read_pictures(files, self.size, self.channels))}


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an ``image_size`` option."""
    both = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    require(len(both) == 2 and all(s >= 1 for s in both), "image_size must be one or two numbers >= 1", image_size)
    return both[0], both[1]


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def pictures_below(folder: Path) -> list[Path]:
    """All pictures in a folder and the folders below it, in the order of their names."""
    return sorted(p for p in folder.rglob("*") if is_picture(p))


def list_pictures(root: Path) -> tuple[list[Path], list[str], list[str] | None]:
    """Files, the class of each, and the split of each where the folder has splits of its own."""
    require(root.is_dir(), f"data.path must be a folder with one sub-folder a class, but {str(root)!r} is a file")
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    own_splits = (root / "train").is_dir() and all(p.name in PARTS for p in folders)
    parts = {p.name: p for p in folders} if own_splits else {"train": root}
    classes = [(part, folder) for part, top in parts.items() for folder in sorted(top.iterdir()) if folder.is_dir()]
    found = [(file, folder.name, part) for part, folder in classes for file in sorted(folder.iterdir()) if is_picture(file)]
    require(len(found) > 0, f"data.path: {str(root)!r} has no pictures in sub-folders, one a class (…/cat/1.png); endings read: {', '.join(sorted(ENDINGS))}")
    files, labels, part_names = (list(column) for column in zip(*found, strict=True))
    return files, labels, part_names if own_splits else None


def read_pictures(files: Sequence[Path], size: tuple[int, int], channels: int) -> Tensor:
    """(N, C, H, W), bytes."""
    return torch.stack([read_picture(file, size, channels) for file in files])


def read_picture(file: Path, size: tuple[int, int], channels: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return picture_tensor(picture, size, channels)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"the picture {str(file)!r} cannot be decoded: {error}") from error


def picture_tensor(picture: Any, size: tuple[int, int], channels: int) -> Tensor:
    """A Pillow picture as a tensor of bytes (C, H, W)."""
    from PIL import Image

    converted = picture.convert("RGB" if channels == 3 else "L").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(converted, dtype=np.uint8)).reshape(*size, channels).permute(2, 0, 1)

"""Text as bytes, for language models: 256 tokens, no tokeniser, windows cut out when a batch asks for them."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from components.data.base import Batch, DataModule, Split
from components.data.files import existing_file
from components.validation import require

VOCABULARY = 256
END_OF_FILE = 0  # a byte that text does not have


class ByteText(DataModule):
    """Base of texts: give it :meth:`read_parts`, the bytes of the three splits.

    A sample is a window of ``sequence_length`` bytes; its target is the same window one byte later. Windows start every
    ``stride`` bytes. A split's bytes are held once; windows are gathered for each batch.

    ``fraction`` keeps that share of the training windows, ``label_noise`` makes that share of the training bytes wrong as targets (as
    inputs they stay right), ``missing`` replaces that share of the training bytes by byte 0 as inputs. There are no classes to
    imbalance.

    Args:
        sequence_length: T, bytes of one sample.
        stride: bytes from one window's start to the next; default: ``sequence_length``, so that every byte is a target once.
        **common: see :class:`~components.data.base.DataModule`.

    Raises:
        ValueError: a text is shorter than ``sequence_length`` + 1.
    """

    def __init__(self, *, sequence_length: int = 128, stride: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        require(sequence_length >= 1, "sequence_length must be >= 1", sequence_length)
        require(stride is None or stride >= 1, "stride must be >= 1", stride)
        require(self.corruption.imbalance == 1, "imbalance needs a target with one class per sample; a text has none, leave it at 1", self.corruption.imbalance)
        self.sequence_length, self.stride = sequence_length, stride or sequence_length

    def read_parts(self) -> tuple[bytes, bytes, bytes]:
        """The bytes of the training, validation and test split."""
        raise NotImplementedError

    def load(self) -> tuple[Split, Split, Split]:
        parts = self.read_parts()
        splits = dict(zip(("train", "val", "test"), map(self.windows, parts), strict=True))
        for (name, split), text in zip(splits.items(), parts, strict=True):
            wanted = name == "train" or len(text) > 0
            require(self.size(split) > 0 or not wanted, f"sequence_length must be less than the {len(text)} bytes of the {name} text", self.sequence_length)
        offsets = (0, len(parts[0]), len(parts[0]) + len(parts[1]))
        self.rows = {name: split["start"] + offset for (name, split), offset in zip(splits.items(), offsets, strict=True)}
        return splits["train"], splits["val"], splits["test"]

    def windows(self, text: bytes) -> Split:
        """A split: its bytes as inputs and as targets (the same memory), and where the windows start."""
        content = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        starts = torch.arange(0, max(0, len(text) - self.sequence_length), self.stride)
        return {"inputs": content, "target": content, "start": starts}

    def corrupt(self, train: Split) -> Split:
        kept = self.corruption.kept(train["start"], "real", VOCABULARY)
        self.rows["train"] = self.rows["train"][kept]
        noisy = self.corruption.noisy(train["target"], "multiclass", VOCABULARY)
        inputs = train["inputs"]
        if self.corruption.missing > 0:
            inputs = torch.where(self.corruption.lost(inputs.shape), END_OF_FILE, inputs)
        return {"inputs": inputs, "target": noisy, "start": train["start"][kept]}

    def size(self, split: Split) -> int:
        return len(split["start"])

    def fetch(self, split: str, index: Tensor) -> Batch:
        tensors = self.splits[split]
        here = tensors["start"][index].unsqueeze(1) + torch.arange(self.sequence_length)
        return {"inputs": tensors["inputs"][here].long(), "target": tensors["target"][here + 1].long(), "index": index}

    def facts(self) -> dict[str, Any]:
        if not self.splits:
            return super().facts()
        length = self.sequence_length
        return {"num_samples": self.size(self.splits["train"]), "vocab_size": VOCABULARY, "sequence_length": length, "input_shape": (length,)}

    def read_inputs(self, path: str | Path) -> Batch:
        """A new text as windows without overlap, whatever training's ``stride`` was; the last one ends at the text's end."""
        content = torch.from_numpy(np.frombuffer(existing_file(path, "input").read_bytes(), dtype=np.uint8).copy()).long()
        require(len(content) >= self.sequence_length, f"input: {str(path)!r} is shorter than sequence_length={self.sequence_length} bytes", len(content))
        starts = torch.arange(0, len(content), self.sequence_length).clamp(max=len(content) - self.sequence_length)
        return {"inputs": content[starts.unsqueeze(1) + torch.arange(self.sequence_length)], "index": torch.arange(len(starts))}


class PythonSource(ByteText):
    """The running Python's own standard library: about 11 MB in 577 ``.py`` files (3.11), whole files in one split each.

    Another Python version is another text: the fingerprint tells. Files are parted by a byte 0; tests and IDLE are left out.

    Args:
        max_bytes: stop reading with the file that reaches it, in the order of a shuffle by ``split_seed``; default: read all.
        **common: see :class:`ByteText`.
    """

    left_out: ClassVar[frozenset[str]] = frozenset(
        {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "__pycache__"}
    )

    def __init__(self, *, max_bytes: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        require(max_bytes is None or max_bytes >= 10_000, "max_bytes must be >= 10,000", max_bytes)
        self.max_bytes = max_bytes

    def read_parts(self) -> tuple[bytes, bytes, bytes]:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(self.sources(root))
        require(len(files) >= 10, f"this Python has no sources of its standard library at {root}")
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(self.split_seed % (1 << 63))).tolist()
        texts: list[bytes] = []
        seen: set[bytes] = set()  # a few files are copies of others, which would be in two splits
        total = 0
        for i in order:
            text = files[i].read_bytes()
            if text in seen or not text:
                continue
            seen.add(text)
            texts.append(text + bytes([END_OF_FILE]))
            total += len(texts[-1])
            if self.max_bytes is not None and total >= self.max_bytes:
                break
        parts = {"test": b"", "val": b""}
        for name, share in (("test", self.test_fraction), ("val", self.val_fraction)):
            taken: list[bytes] = []
            while texts and sum(map(len, taken)) < share * total:
                taken.append(texts.pop())
            parts[name] = b"".join(taken)
        require(bool(texts), "max_bytes leaves no file for training: it must be larger", self.max_bytes)
        return b"".join(texts), parts["val"], parts["test"]

    def sources(self, root: Path) -> Iterator[Path]:
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in self.left_out]  # walk does not go there: site-packages may be huge
            yield from (Path(folder) / name for name in names if name.endswith(".py"))


class TextFile(ByteText):
    """The user's own text, any file: its end is the test split, what comes before that validation.

    Args:
        path: the file, read as bytes.
        **common: see :class:`ByteText`; ``split_seed`` has no effect.
    """

    def __init__(self, path: str, **common: Any) -> None:
        super().__init__(**common)
        self.path = path

    def read_parts(self) -> tuple[bytes, bytes, bytes]:
        text = existing_file(self.path, "data.path").read_bytes()
        test = round(self.test_fraction * len(text))
        val = round(self.val_fraction * len(text))
        train = len(text) - val - test
        return text[:train], text[train : train + val], text[train + val :]

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from components.data import PythonSource, TextFile

TEXT = bytes(i % 251 for i in range(5000))


def ready(folder: Path, content: bytes = TEXT, **options: Any) -> TextFile:
    (folder / "book.txt").write_bytes(content)
    data = TextFile(str(folder / "book.txt"), **{"batch_size": 1, "sequence_length": 10, "val_fraction": 0.1, "test_fraction": 0.1} | options)
    data.setup()
    return data


def test_targets_are_the_next_bytes_and_every_byte_is_one_once(tmp_path: Path) -> None:
    data = ready(tmp_path)
    for part, content in (("train", TEXT[:4000]), ("val", TEXT[4000:4500]), ("test", TEXT[4500:])):
        batch = data.fetch(part, torch.arange(data.size(data.splits[part])))
        assert batch["inputs"].dtype == batch["target"].dtype == torch.long
        assert torch.equal(batch["inputs"][:, 1:], batch["target"][:, :-1])
        targets = bytes(batch["target"].flatten().tolist())
        assert targets == content[1 : len(targets) + 1] and len(content) - len(targets) <= 10


def test_stride(tmp_path: Path) -> None:
    data = ready(tmp_path, stride=3)
    batch = data.fetch("train", torch.tensor([0, 1, 2]))
    assert batch["inputs"][:, 0].tolist() == [0, 3, 6]
    assert data.facts()["num_samples"] == len(range(0, 3990, 3))


def test_bytes_are_held_once(tmp_path: Path) -> None:
    split = ready(tmp_path).splits["train"]
    assert split["inputs"].dtype == torch.uint8 and split["inputs"].data_ptr() == split["target"].data_ptr()


def test_noise_is_in_the_targets_and_missing_in_the_inputs(tmp_path: Path) -> None:
    text = bytes(1 + i % 200 for i in range(5000))
    split = ready(tmp_path, text, label_noise=0.25, missing=0.5).splits["train"]
    clean = torch.tensor(list(text[:4000]))
    assert int((split["target"] != clean).sum()) == 1000
    lost = split["inputs"] != clean
    assert 0.45 < float(lost.float().mean()) < 0.55 and bool((split["inputs"][lost] == 0).all())


def test_new_text(tmp_path: Path) -> None:
    data = ready(tmp_path)
    (tmp_path / "new.txt").write_bytes(TEXT[:25])
    batch = data.read_inputs(tmp_path / "new.txt")
    assert [bytes(row) for row in batch["inputs"].tolist()] == [TEXT[:10], TEXT[10:20], TEXT[15:25]]
    (tmp_path / "short.txt").write_bytes(b"short")
    with pytest.raises(ValueError, match="is shorter than sequence_length=10 bytes"):
        data.read_inputs(tmp_path / "short.txt")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sequence_length must be less than the 40 bytes of the train text, but got 100"):
        ready(tmp_path, TEXT[:50], sequence_length=100)
    with pytest.raises(ValueError, match="must be less than the 50 bytes of the val text"):
        ready(tmp_path, TEXT[:500], sequence_length=60)
    with pytest.raises(ValueError, match="is empty"):
        ready(tmp_path, b"")
    with pytest.raises(ValueError, match="imbalance needs a target with one class per sample"):
        ready(tmp_path, imbalance=2)
    with pytest.raises(ValueError, match=r"did you mean 'book.txt'"):
        TextFile(str(tmp_path / "bok.txt")).setup()


class TestPythonSource:
    def test_whole_files_in_one_split_each(self) -> None:
        data = PythonSource(val_fraction=0.1, test_fraction=0.1)
        parts = data.read_parts()
        texts = [set(part.split(b"\0")) - {b""} for part in parts]
        assert all(texts) and not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
        known = {p.read_bytes() for p in Path(sysconfig.get_paths()["stdlib"]).glob("*.py")}
        assert len(known & (texts[0] | texts[1] | texts[2])) > 100, "the standard library's modules are all there"
        total = sum(map(len, parts))
        assert total > 5_000_000 and all(0.1 * total <= len(part) < 0.15 * total for part in parts[1:])

    def test_max_bytes(self) -> None:
        assert 200_000 <= sum(map(len, PythonSource(max_bytes=200_000).read_parts())) < 600_000

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.data import ImageFolder

from .conftest import write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "set", ("cat", "dog", "owl"), 10)
    return tmp_path / "set"


def ready(path: Path, **options: object) -> ImageFolder:
    data = ImageFolder(str(path), **{"batch_size": 4, "image_size": 8} | options)  # type: ignore[arg-type]
    data.setup()
    return data


def test_pictures_are_decoded_resized_and_scaled(tmp_path: Path) -> None:
    for name, value in (("dark", 51), ("light", 204)):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (20, 30), value).save(tmp_path / name / f"{i}.png")
    data = ready(tmp_path, image_size=[6, 4], batch_size=1)
    assert data.facts()["input_shape"] == (3, 6, 4) and data.class_names == ["dark", "light"]
    for inputs, target in zip(data.splits["train"]["inputs"], data.splits["train"]["target"], strict=True):
        assert torch.allclose(inputs, torch.full((3, 6, 4), 0.2 + 0.6 * int(target)))
    assert ready(tmp_path, channels=1, batch_size=1).facts()["in_channels"] == 1


def test_splits_of_its_own(tmp_path: Path) -> None:
    for part, each in (("train", 8), ("test", 3)):
        write_pictures(tmp_path / part, ("cat", "dog"), each)
    data = ready(tmp_path)
    assert [data.files[i].parts[-3] for i in data.rows["test"].tolist()] == ["test"] * 6
    assert len(data.rows["val"]) == 2 and len(data.rows["train"]) == 14


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_memory_also_from_the_middle(folder: Path, workers: int) -> None:
    held, streamed = ready(folder, label_noise=0.2), ready(folder, label_noise=0.2, in_memory=False, num_workers=workers)
    assert "inputs" not in streamed.splits["train"]
    assert held.facts() == streamed.facts()
    for start in (0, 3):
        both = [list(d.loader("train", 4, shuffle=True, position=lambda s=start: (1, s))) for d in (held, streamed)]  # type: ignore[misc]
        assert len(both[0]) == len(both[1]) == 5 - start
        for a, b in zip(*both, strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_streaming_draws_nothing_from_the_global_generator(folder: Path) -> None:
    data = ready(folder, in_memory=False, num_workers=1)
    state = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(state, torch.get_rng_state())


def test_streamed_fingerprint_knows_the_files(folder: Path) -> None:
    first = ready(folder, in_memory=False).fingerprint()
    assert ready(folder, in_memory=False).fingerprint() == first
    Image.new("RGB", (40, 40)).save(folder / "cat" / "0.png")
    assert ready(folder, in_memory=False).fingerprint() != first


def test_new_pictures(folder: Path) -> None:
    data = ready(folder, standardise=True)
    finished = ImageFolder("gone", image_size=8, standardise=True)
    finished.load_state_dict(data.state_dict())
    every = finished.read_inputs(folder)
    assert every["inputs"].shape == (30, 3, 8, 8)
    assert torch.equal(every["inputs"][data.rows["train"]], data.splits["train"]["inputs"])
    assert torch.equal(finished.read_inputs(folder / "cat" / "0.png")["inputs"], every["inputs"][:1])
    (folder / "void").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        finished.read_inputs(folder / "void")


def test_held_out_classes(folder: Path) -> None:
    write_pictures(folder, ("ant", "bee"), 10)
    data = ready(folder, holdout_classes=["owl", "bee"])
    assert data.class_names == ["ant", "cat", "dog"] and data.splits["val"]["target"].unique().tolist() == [3, 4]


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no 'sets' in .*; did you mean 'set'\?"):
        ready(tmp_path / "sets")
    with pytest.raises(ValueError, match="has no pictures in sub-folders, one a class"):
        ready(folder / "cat")
    with pytest.raises(ValueError, match="must be a folder"):
        ready(folder / "cat" / "0.png")
    with pytest.raises(ValueError, match="batch_size must be at most the 20 training samples"):
        ready(folder, batch_size=22)
    with pytest.raises(ValueError, match="missing needs in_memory=true"):
        ImageFolder(str(folder), in_memory=False, missing=0.1)
    with pytest.raises(ValueError, match="standardise needs in_memory=true"):
        ImageFolder(str(folder), in_memory=False, standardise=True)
    with pytest.raises(ValueError, match="image_size must be one or two numbers"):
        ImageFolder(str(folder), image_size=[1, 2, 3])
    (folder / "dog" / "3.png").write_bytes(np.arange(50, dtype=np.uint8).tobytes())
    with pytest.raises(ValueError, match=r"the picture '.*3.png' cannot be decoded"):
        ready(folder)


def test_one_class_only(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("cat",), 10)
    with pytest.raises(ValueError, match=r"one class only \('cat'\)"):
        ready(tmp_path)

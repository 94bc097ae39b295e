from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch

from components.data import Digits, DigitsAttributes, Faces, PictureTiles
from components.data.images import cut


def test_digits_are_scikit_learns() -> None:
    bunch, samples = sklearn.datasets.load_digits(), Digits().read()
    assert np.array_equal(samples.inputs[:, 0].numpy(), bunch.images) and samples.target.tolist() == bunch.target.tolist()
    data = Digits()
    data.setup()
    assert (float(data.splits["train"]["inputs"].min()), float(data.splits["train"]["inputs"].max())) == (0, 1)


def test_attributes_follow_from_the_digit() -> None:
    labels, digit = DigitsAttributes().read().target, Digits().read().target
    by_digit = {int(d): labels[digit == d].unique(dim=0).tolist() for d in digit.unique()}
    assert by_digit[0] == [[1, 0, 1, 0]] and by_digit[2] == [[1, 0, 0, 1]] and by_digit[9] == [[0, 1, 1, 0]] and by_digit[4] == [[1, 0, 0, 0]]
    data, plain = DigitsAttributes(), Digits()
    data.setup()
    plain.setup()
    assert data.rows["test"].tolist() == plain.rows["test"].tolist(), "split by the digit, as data=digits is"


def test_faces_are_scikit_images() -> None:
    samples = Faces().read()
    assert np.allclose(samples.inputs[:, 0].numpy(), skimage.data.lfw_subset(), atol=1e-7)
    assert [samples.class_names[i] for i in (samples.target[0], samples.target[-1])] == ["face", "background"]
    assert samples.target.sum() == 100


@pytest.mark.parametrize(
    ("picture", "tile", "tiles", "pixels"),
    [("cells", 64, 64, skimage.data.immunohistochemistry()), ("coins", 32, 108, skimage.data.coins()[..., None])],
)
def test_tiles_are_the_picture(picture: str, tile: int, tiles: int, pixels: np.ndarray) -> None:
    samples = PictureTiles(picture=picture, tile=tile).read()
    assert samples.inputs.shape == (tiles, pixels.shape[2], tile, tile) and samples.target.shape == (tiles, tile, tile)
    assert np.array_equal(samples.inputs[0].permute(1, 2, 0).numpy(), pixels[:tile, :tile])
    assert np.array_equal(samples.inputs[1].permute(1, 2, 0).numpy(), pixels[:tile, tile : 2 * tile])


def test_masks_are_what_the_recipe_says() -> None:
    cells, coins = PictureTiles(picture="cells"), PictureTiles(picture="coins", tile=32)
    colours = cells.read().inputs.permute(0, 2, 3, 1).float()
    mask = cells.read().target
    background, nucleus, gland = (colours[mask == c].mean(0) for c in range(3))
    assert background.min() > nucleus.max() - 30 and background.mean() > nucleus.mean() and background.mean() > gland.mean(), "background is light"
    assert nucleus[2] > nucleus[0], "nuclei are blue"
    assert gland[0] > gland[2], "glands are brown"
    picture = coins.read()
    share = float((picture.target == 1).float().mean())
    assert 0.3 < share < 0.45
    assert picture.inputs[:, 0][picture.target == 1].float().mean() > 1.5 * picture.inputs[:, 0][picture.target == 0].float().mean()


def test_cut_keeps_whole_tiles_only() -> None:
    tiles = cut(torch.arange(5 * 7).reshape(5, 7), 2)
    assert tiles.shape == (6, 2, 2) and tiles[1].tolist() == [[2, 3], [9, 10]] and tiles[3].tolist() == [[14, 15], [21, 22]]


def test_errors() -> None:
    with pytest.raises(ValueError, match="picture must be one of cells, coins, but got 'cell'; did you mean 'cells'"):
        PictureTiles(picture="cell")
    with pytest.raises(ValueError, match="tile must be in 8 … 256"):
        PictureTiles(tile=4)

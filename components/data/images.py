"""Pictures: handwritten digits, faces, and stained tissue or coins to segment. All are files inside scikit-learn and scikit-image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from components.data.arrays import ArrayData, Samples, TensorEncoder
from components.data.files import bundled
from components.validation import require, require_choice


class Images(ArrayData):
    """Base of sets of pictures in memory: float32 (N, C, H, W) in [0, 1].

    Args:
        standardise: to mean 0 and standard deviation 1 of the training split, per channel, instead of [0, 1].
        divisor: of the raw values: their white.
        **common: see :class:`~components.data.arrays.ArrayData` and :class:`~components.data.base.DataModule`.
    """

    def __init__(self, *, standardise: bool = False, divisor: float = 1.0, **common: Any) -> None:
        super().__init__(TensorEncoder(standardise=standardise, divisor=divisor), **common)


class Digits(Images):
    """1,797 pictures, 8×8, of handwritten digits in 10 classes, values 0 … 16 scaled to [0, 1].

    Args:
        standardise, **common: see :class:`Images`.

    Source:
        Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998, the test part; in scikit-learn.
    """

    def __init__(self, *, standardise: bool = False, **common: Any) -> None:
        super().__init__(standardise=standardise, divisor=16.0, **common)

    def read(self) -> Samples:
        inputs, digit = read_digits()
        return Samples(inputs, digit, "multiclass", [str(d) for d in range(10)])


class DigitsAttributes(Digits):
    """The same pictures with several labels each, which follow from the digit: a multi-label set.

    ``even``: 0 2 4 6 8; ``five_or_more``: 5 6 7 8 9; ``loop`` (drawn with a closed loop): 0 6 8 9 (a 4 is drawn either way and has
    no loop here); ``prime``: 2 3 5 7. Every split has its share of every digit.
    """

    attributes: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "even": (0, 2, 4, 6, 8),
        "five_or_more": (5, 6, 7, 8, 9),
        "loop": (0, 6, 8, 9),
        "prime": (2, 3, 5, 7),
    }

    def read(self) -> Samples:
        inputs, digit = read_digits()
        labels = torch.stack([torch.isin(digit, torch.tensor(digits)) for digits in self.attributes.values()], dim=1).long()
        return Samples(inputs, labels, "multilabel", list(self.attributes), strata=digit)


class Faces(Images):
    """200 grey pictures, 25×25: 100 faces and 100 pieces of background, from Labeled Faces in the Wild.

    Args:
        standardise, **common: see :class:`Images`.

    Source:
        Huang et al., "Labeled Faces in the Wild", 2007; the subset in scikit-image (``skimage.data.lfw_subset``).
    """

    def read(self) -> Samples:
        pictures = np.load(bundled("skimage", "data/lfw_subset.npy"))
        target = (torch.arange(len(pictures)) < 100).long()  # the file holds the faces first
        return Samples(torch.from_numpy(pictures).float().unsqueeze(1), target, "multiclass", ["background", "face"])


class PictureTiles(Images):
    """Segmentation: one large picture of scikit-image's, cut into square tiles that do not overlap.

    The masks come from a classical recipe, not from an annotator: what a model can learn here is to reproduce the recipe from
    the pixels of a tile. Tiles, not pixels, are split at random; a tile has neighbours in other splits, but shares no pixel.

    - ``cells``: immunohistochemically stained colon tissue, 512×512, RGB; classes background, nucleus, gland. The colours are
      separated into haematoxylin (blue) and DAB (brown) (:func:`skimage.color.rgb2hed`), both are smoothed (Gaussian, 2 pixels)
      and thresholded (Otsu); where brown is above its threshold it is gland, else where blue is above its own, nucleus.
    - ``coins``: Greek coins, 303×384, grey; classes background, coin. Edges (Sobel) are flooded from what is surely dark (below
      30) and surely bright (above 150) (watershed); holes are filled, specks below 64 pixels removed.

    Args:
        picture: ``cells`` or ``coins``.
        tile: side of a tile in pixels; what is left at the right and lower edge is not used.
        standardise, **common: see :class:`Images`.

    Source:
        scikit-image's ``data.immunohistochemistry`` and ``data.coins``; Ruifrok & Johnston, "Quantification of histochemical
        staining by color deconvolution", 2001; Otsu, 1979; the coins' recipe is scikit-image's "region-based segmentation" tutorial.
    """

    pictures: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {
        "cells": ("data/ihc.png", ("background", "nucleus", "gland")),
        "coins": ("data/coins.png", ("background", "coin")),
    }

    def __init__(self, *, picture: str = "cells", tile: int = 64, standardise: bool = False, **common: Any) -> None:
        super().__init__(standardise=standardise, divisor=255.0, **common)
        require_choice("picture", picture, self.pictures)
        require(8 <= tile <= 256, "tile must be in 8 … 256 pixels", tile)
        self.picture, self.tile = picture, tile

    def read(self) -> Samples:
        from PIL import Image

        file, names = self.pictures[self.picture]
        with Image.open(bundled("skimage", file)) as image:
            pixels = np.asarray(image)
        mask = stain_mask(pixels) if self.picture == "cells" else coin_mask(pixels)
        channels = pixels.reshape(*pixels.shape[:2], -1)
        tiles = cut(torch.tensor(channels), self.tile).permute(0, 3, 1, 2)
        return Samples(tiles, cut(torch.from_numpy(mask), self.tile).long(), "multiclass", list(names))


def read_digits() -> tuple[Tensor, Tensor]:
    """(N, 1, 8, 8) values 0 … 16, and the digit of each picture."""
    rows = torch.from_numpy(np.loadtxt(bundled("sklearn", "datasets/data/digits.csv.gz"), delimiter=",", dtype=np.float32))
    return rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].long()


def stain_mask(pixels: np.ndarray) -> np.ndarray:
    """(H, W): 0 background, 1 nucleus, 2 gland; see :class:`PictureTiles`."""
    from skimage.color import rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    stains = rgb2hed(pixels)
    blue, brown = gaussian(stains[..., 0], 2), gaussian(stains[..., 2], 2)
    return np.where(brown > threshold_otsu(brown), 2, np.where(blue > threshold_otsu(blue), 1, 0))


def coin_mask(pixels: np.ndarray) -> np.ndarray:
    """(H, W): 0 background, 1 coin; see :class:`PictureTiles`."""
    from scipy.ndimage import binary_fill_holes, label
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    markers = np.where(pixels > 150, 2, np.where(pixels < 30, 1, 0))
    filled = binary_fill_holes(watershed(sobel(pixels), markers) == 2)
    regions, _ = label(filled)
    large = np.bincount(regions.ravel()) >= 64
    return np.where(large[regions] & filled, 1, 0)


def cut(pixels: Tensor, side: int) -> Tensor:
    """(H, W, …) -> (tiles, side, side, …), row by row."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    pixels = pixels[: rows * side, : columns * side]
    return pixels.reshape(rows, side, columns, side, *pixels.shape[2:]).transpose(1, 2).flatten(0, 1)

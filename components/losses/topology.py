"""Topology of segmentations: components and holes of prediction and truth, matched where they lie (Betti matching).

A picture of likelihoods is a *cubical complex* whose vertices are the pixels; an edge joins two neighbours in a row or column, a square four. Walking a
threshold from high to low, components and holes are born at one pixel's value and die at another's: the *bars* of its persistence barcode, dimension 0 and 1.
Which bar of the prediction is the same feature as which bar of the truth is settled through a third picture, the larger of both at each pixel, in which
both are included (:func:`match_bars`). That part is combinatorial and exact; it runs on the CPU, a picture at a time, in time near linear in the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from components.losses.base import IGNORE_INDEX, Reduction
from components.losses.overlap import WITHIN, RegionLoss, check_foreground
from components.validation import require, require_choice

Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
DIMENSIONS = (0, 1)


class BettiMatchingLoss(RegionLoss):
    r"""Squared differences of the births and deaths of matched components and holes: right topology in the right place.

    With the bars (b, d) of the prediction and (b', d') of the truth, matched where both are the same feature of their union,

    .. math:: \ell = \sum_{\text{matched}} 2 \bigl[ (b - b')^2 + (d - d')^2 \bigr] + \sum_{\text{unmatched of } p} (b - d)^2
              + \sum_{\text{unmatched of } y} (b' - d')^2

    over one foreground class's probabilities :math:`p = \mathrm{softmax}(z)` and the class's mask; with several, the mean over them. Each *b* and *d* is the
    value of one pixel, to which the gradient goes. The component that never dies dies at 0 (of sublevel sets: at 1). Bars of length 0 are left out.

    Try it beside an overlap loss, from a model that already segments: ``loss=dice +loss@auxiliary.topology=betti_matching auxiliary.topology.weight=0.05``. A
    cost for each picture and class of some 20 microseconds a pixel, on the CPU, whatever the device: take pictures of up to 64×64, or patches.

    Ties: cubes of equal value are ordered by dimension, then by the pixel that gives the value, later pixels first (the authors' order): with another order the
    loss may differ.

    Args:
        filtration: ``superlevel`` (bright features on dark ground) | ``sublevel`` (the mirror image) | ``both``, their sum.
        dimensions: which bars count: 0 (components), 1 (holes).
        relative: a frame of the largest value around both pictures, so that what touches the border is closed there.
        include_background: class 0's topology too.
        weight: per-class weights, shape (C,). A weighting *within* an element.
        ignore_index: target value whose pixels contribute neither value nor gradient: they are background in both pictures.
        reduction: ``"mean"`` | ``"sum"`` | ``"none"`` (one value per image, shape (N,)).

    Shapes:
        logits (N, C, H, W) or (N, C, L), raw, two classes or more; target (N, H, W) or (N, L), class indices.

    Raises:
        ValueError: if an option is unknown, there are three spatial dimensions, shapes disagree or a target lies outside [0, C).

    Source:
        Stucki et al., "Topologically faithful image segmentation via induced matching of persistence barcodes", ICML 2023, arXiv:2211.15272, definitions and
        algorithm; as the authors' code, every pair of the image barcode takes part in the matching. More than one foreground class is our reading.
    """

    exempt: ClassVar[Mapping[str, str]] = {**WITHIN, "no_host_sync": "which bars match is found by union-find on the CPU"}

    def __init__(
        self,
        *,
        filtration: str = "superlevel",
        dimensions: Sequence[int] = DIMENSIONS,
        relative: bool = False,
        include_background: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        require_choice("filtration", filtration, ("superlevel", "sublevel", "both"))
        self.filtration, self.relative, self.include_background = filtration, relative, include_background
        self.dimensions = check_dimensions(dimensions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p, y, kept = self.regions(logits, target)
        check_foreground(logits, self.include_background)
        if logits.ndim > 4:
            raise ValueError(f"logits must have one or two spatial dimensions for the Betti matching, but got shape {tuple(logits.shape)}")
        shape = (1, 1, *logits.shape[2:])[-2:]
        first = 0 if self.include_background else 1
        costs = torch.zeros(p.shape[:2], dtype=p.dtype, device=p.device)
        for mirrored in {"superlevel": (False,), "sublevel": (True,), "both": (False, True)}[self.filtration]:
            ours, truth = ((1 - x if mirrored else x).reshape(*p.shape[:2], *shape)[:, first:] for x in (p, y))
            if self.relative:
                ours, truth = framed(ours), framed(truth)
            costs = costs + F.pad(matching_cost(ours.flatten(0, 1), truth.flatten(0, 1), self.dimensions).unflatten(0, tuple(ours.shape[:2])), (first, 0))
        return self.reduce_images(self.over_classes(costs, first), kept, logits.dtype)


def check_dimensions(dimensions: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(dimensions)
    require(len(chosen) > 0 and set(chosen) <= set(DIMENSIONS), "dimensions must be a list of 0 (components) and 1 (holes)", list(dimensions))
    return chosen


def framed(pictures: Tensor) -> Tensor:
    """(…, H, W) -> (…, H + 2, W + 2), the largest value around."""
    inner = F.pad(pictures, (1, 1, 1, 1))
    edge = F.pad(torch.ones_like(pictures), (1, 1, 1, 1)) == 0
    return torch.where(edge, pictures.amax((-2, -1), keepdim=True), inner)


def matching_cost(pictures: Tensor, truths: Tensor, dimensions: Sequence[int]) -> Tensor:
    """Betti matching loss of superlevel sets, one value a picture: (B, H, W) and (B, H, W) -> (B,)."""
    index, sample, kind = matched_pixels(pictures, truths, tuple(dimensions))

    def value(images: Tensor, pixel: Tensor) -> Tensor:
        return torch.cat([images.flatten(), images.new_zeros(1)])[pixel]  # the last is where the essential bar dies

    birth, death = value(pictures, index[0]), value(pictures, index[1])
    true_birth, true_death = value(truths, index[2]), value(truths, index[3])
    matched = 2 * ((birth - true_birth).square() + (death - true_death).square())
    costs = torch.where(kind == 0, matched, torch.where(kind == 1, (birth - death).square(), (true_birth - true_death).square()))
    return torch.zeros(len(pictures), dtype=pictures.dtype, device=pictures.device).index_add(0, sample, costs)


@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def matched_pixels(pictures: Tensor, truths: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """For all bars of a batch: the flat indices of four pixels (birth and death of ours, of the truth; the size of the batch stands for "never" and "none"),
    the picture, and the kind: 0 matched, 1 ours alone, 2 the truth's alone."""
    size, count = pictures[:1].numel(), pictures.numel()
    rows: list[Ints] = []
    ours, theirs = (images.detach().cpu().double().numpy() for images in (pictures, truths))
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        pixels, kind = match_bars(one, other, dimensions).table()
        pixels = np.where(pixels < 0, count, pixels + number * size)
        rows.append(np.vstack([pixels, np.full_like(kind, number), kind]))
    table = torch.from_numpy(np.concatenate(rows, 1) if rows else np.zeros((6, 0), dtype=np.intp)).to(pictures.device)
    return table[:4], table[4], table[5]


# -- barcodes and their matching, on the CPU ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """Bars as flat indices of pixels, (2, n) each: birth, death; -1 for the death of the bar that never dies."""

    matched: Ints
    matched_truth: Ints
    unmatched: Ints
    unmatched_truth: Ints

    def table(self) -> tuple[Ints, Ints]:
        """Four rows of pixels (ours: birth, death; the truth's: birth, death), and each column's kind: 0 matched, 1 ours alone, 2 the truth's alone."""
        alone, alone_truth = np.full_like(self.unmatched, -1), np.full_like(self.unmatched_truth, -1)
        pixels = np.hstack([np.vstack([self.matched, self.matched_truth]), np.vstack([self.unmatched, alone]), np.vstack([alone_truth, self.unmatched_truth])])
        kind = np.repeat(np.arange(3), [self.matched.shape[1], self.unmatched.shape[1], self.unmatched_truth.shape[1]])
        return pixels, kind


def match_bars(picture: Floats, truth: Floats, dimensions: Sequence[int] = DIMENSIONS) -> Matching:
    """The Betti matching of the superlevel sets of two pictures (H, W).

    A bar of either is linked to the bar of the union (the larger value at each pixel) that dies where its image in the union's barcode dies; two bars
    linked to the same one are matched.
    """
    grid = grid_of(*picture.shape)
    ours, other, union = (Barcode(grid, -image.ravel()) for image in (picture, truth, np.maximum(picture, truth)))
    bars: dict[str, list[Ints]] = {"matched": [], "matched_truth": [], "unmatched": [], "unmatched_truth": []}
    for dimension in dimensions:
        link, link_other = ours.linked_to(union, dimension), other.linked_to(union, dimension)
        both = np.flatnonzero((link >= 0) & (link_other >= 0))
        essential = np.array([[barcode.oldest, -1] for barcode in (ours, other)]) if dimension == 0 else np.zeros((2, 0), dtype=np.intp)
        for key, barcode, links, mine in (("", ours, link, essential[:1].T), ("_truth", other, link_other, essential[1:].T)):
            paired = barcode.bars(links[both], dimension)
            alone = barcode.bars(np.setdiff1d(barcode.positive(dimension), links[both]), dimension)
            bars[f"matched{key}"].append(np.hstack([mine, paired]) if dimension == 0 else paired)
            bars[f"unmatched{key}"].append(alone)
    return Matching(**{key: np.hstack(parts) for key, parts in bars.items()})


class Grid:
    """The cells of an (m, n) picture and how they hang together; pixels, edges and squares are numbered row by row, horizontal edges first."""

    def __init__(self, rows: int, columns: int) -> None:
        pixel = np.arange(rows * columns).reshape(rows, columns)
        square = np.arange(max(rows - 1, 0) * max(columns - 1, 0)).reshape(max(rows - 1, 0), max(columns - 1, 0))
        self.num_pixels, self.num_squares = pixel.size, square.size
        outside = self.num_squares  # a square more: the plane around the picture
        around = np.pad(square, 1, constant_values=outside) if square.size else np.full((rows + 1, columns + 1), outside)
        self.ends = np.hstack([_pairs(pixel[:, :-1], pixel[:, 1:]), _pairs(pixel[:-1], pixel[1:])])
        self.sides = np.hstack([_pairs(around[:-1, 1:-1], around[1:, 1:-1]), _pairs(around[1:-1, :-1], around[1:-1, 1:])])
        self.num_edges = self.ends.shape[1]
        horizontal = np.arange(self.num_edges) < pixel[:, :-1].size
        # where an edge or square lies, seen from each of its pixels: the last key of the order of equal cells
        self.edge_places = np.where(horizontal, [[3], [1]], [[2], [0]])
        self.corners = np.vstack([c.ravel() for c in (pixel[:-1, :-1], pixel[:-1, 1:], pixel[1:, :-1], pixel[1:, 1:])])
        self.square_places = np.array([[3], [2], [1], [0]])


def _pairs(first: Ints, second: Ints) -> Ints:
    return np.vstack([first.ravel(), second.ravel()])


@lru_cache(maxsize=16)
def grid_of(rows: int, columns: int) -> Grid:
    return Grid(rows, columns)


class Barcode:
    """Persistence of the sublevel sets of ``values`` (one a pixel), dimensions 0 and 1, by union-find on pixels and, dually, on squares.

    A bar is known by the cell that it is born with: a pixel (dimension 0) or an edge (dimension 1).
    """

    def __init__(self, grid: Grid, values: Floats) -> None:
        self.grid = grid
        self.values = values
        self.pixel_order = np.lexsort((-np.arange(grid.num_pixels), values))
        self.edge_pixel, self.edge_order = _cells(values, grid.ends, grid.edge_places)
        self.square_pixel, self.square_order = _cells(values, grid.corners, grid.square_places)
        self.pixel_rank = _ranks(self.pixel_order)
        self.square_rank = np.append(_ranks(self.square_order), grid.num_squares)
        self.oldest = int(self.pixel_order[0])

        edges, squares, self.tree = self._holes(self.edge_order[::-1], self.square_rank)  # the tree's edges join components, the others close holes
        self.cycles = edges
        self.dies_at_square = np.full(grid.num_edges, -1)
        self.dies_at_square[edges] = self.square_order[squares]
        self.tree = self.tree[::-1]
        pixels, edges = self._components(self.tree, self.pixel_rank)
        self.dies_at_edge = np.full(grid.num_pixels, -1)
        self.dies_at_edge[self.pixel_order[pixels]] = edges

    def positive(self, dimension: int) -> Ints:
        """The cells with which bars of positive length are born (without the one that never dies)."""
        dies = self.dies_at_edge if dimension == 0 else self.dies_at_square
        born = np.flatnonzero(dies >= 0)
        return born[self._value_born(born, dimension) < self._value_dies(dies[born], dimension)]

    def bars(self, born: Ints, dimension: int) -> Ints:
        """(2, n): the pixels at whose value the bars born with the given cells are born and die."""
        if dimension == 0:
            return np.vstack([born, self.edge_pixel[self.dies_at_edge[born]]])
        return np.vstack([self.edge_pixel[born], self.square_pixel[self.dies_at_square[born]]])

    def linked_to(self, union: Barcode, dimension: int) -> Ints:
        """For each cell that may end a bar of ``union``: the birth of the bar of this picture that is linked to it, or -1 (the induced matching).

        ``union`` is nowhere above this picture. The image barcode has births in this picture's order and deaths in the union's.
        """
        if dimension == 0:
            pixels, ends = self._components(union.tree, self.pixel_rank)
            born = self.pixel_order[pixels]
            ending = union.dies_at_edge[union.positive(0)]
        else:
            born, squares, _ = self._holes(self.cycles, union.square_rank)
            ends = union.square_order[squares]
            ending = union.dies_at_square[union.positive(1)]
        link = np.full(self.grid.num_edges if dimension == 0 else self.grid.num_squares, -1)
        kept = np.isin(born, self.positive(dimension)) & np.isin(ends, ending)
        link[ends[kept]] = born[kept]
        return link

    def _components(self, edges: Ints, rank: Ints) -> tuple[Ints, Ints]:
        """Join pixels along ``edges``, one after the other; the younger of two components (higher rank) dies: ranks of its oldest pixel, and the edges."""
        first, second = rank[self.grid.ends[:, edges]].tolist()
        dying, place = _merge(first, second, list(range(self.grid.num_pixels)), keep_smaller=True)
        return dying, edges[place]

    def _holes(self, edges: Ints, rank: Ints) -> tuple[Ints, Ints, Ints]:
        """Join squares (and the outside) across ``edges``, one after the other: the edges that do so, the rank of the square that dies with its hole,
        and the other edges."""
        first, second = rank[self.grid.sides[:, edges]].tolist()
        dying, place = _merge(first, second, list(range(self.grid.num_squares + 1)), keep_smaller=False)
        rest = np.ones(len(edges), dtype=bool)
        rest[place] = False
        return edges[place], dying, edges[rest]

    def _value_born(self, cells: Ints, dimension: int) -> Floats:
        return self.values[cells if dimension == 0 else self.edge_pixel[cells]]

    def _value_dies(self, cells: Ints, dimension: int) -> Floats:
        return self.values[(self.edge_pixel if dimension == 0 else self.square_pixel)[cells]]


def _cells(values: Floats, pixels: Ints, places: Ints) -> tuple[Ints, Ints]:
    """Of cells with the given pixels (k, n): the pixel that gives the value (the first of the largest), and the cells' order."""
    largest = values[pixels].argmax(0) if pixels.size else np.zeros(pixels.shape[1], dtype=np.intp)
    columns = np.arange(pixels.shape[1])
    pixel = pixels[largest, columns]
    place = np.broadcast_to(places, pixels.shape)[largest, columns]
    return pixel, np.lexsort((-place, -pixel, values[pixel]))


def _ranks(order: Ints) -> Ints:
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _merge(first: list[int], second: list[int], parent: list[Any], *, keep_smaller: bool) -> tuple[Ints, Ints]:
    """Union-find over ranks: a set is known by its smallest (or largest) member. Of each pair that joins two sets: the name that is lost, and its place."""
    lost: list[int] = []
    places: list[int] = []
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b:
            if (a < b) == keep_smaller:
                a, b = b, a
            parent[a] = b  # a is the name that is lost
            lost.append(a)
            places.append(place)
    return np.array(lost, dtype=np.intp), np.array(places, dtype=np.intp)

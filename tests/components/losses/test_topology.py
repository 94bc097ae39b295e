"""Betti matching: the catalogue's numbers, the definition by reducing boundary matrices, and gudhi's barcodes."""

from __future__ import annotations

import gudhi
import numpy as np
import pytest
import torch
from torch import Tensor

from components.losses import BettiMatchingLoss
from components.losses.topology import Barcode, framed, grid_of, match_bars, matching_cost

RING = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=float)
ZERO = np.zeros((5, 5))


def cost(likelihood: np.ndarray, truth: np.ndarray) -> float:
    return float(matching_cost(torch.tensor(likelihood)[None], torch.tensor(truth)[None], (0, 1)))


def blobs(*corners: tuple[int, int], shape: tuple[int, int] = (7, 7)) -> np.ndarray:
    picture = np.zeros(shape)
    for row, column in corners:
        picture[row : row + 2, column : column + 2] = 1
    return picture


class TestNumbers:
    def test_equal_pictures(self) -> None:
        random = np.random.default_rng(0).random((6, 7))
        assert cost(random, random) == 0
        assert cost(RING, RING) == 0

    def test_nothing_against_blobs(self) -> None:
        assert cost(np.zeros((7, 7)), blobs((2, 2))) == pytest.approx(2)  # the essential bars: 2 ((0 - 1)^2 + 0)
        assert cost(np.zeros((7, 7)), blobs((0, 0), (4, 4))) == pytest.approx(3)  # and a bar (1, 0) without a partner

    def test_grey_against_a_blob(self) -> None:
        assert cost(np.full((7, 7), 0.5), blobs((2, 2))) == pytest.approx(0.5)

    def test_a_ring_with_a_weak_pixel(self) -> None:
        weak = RING.copy()
        weak[1, 2] = 0.4
        assert cost(weak, RING) == pytest.approx(2 * 0.6**2)

    def test_an_open_ring(self) -> None:
        broken = RING.copy()
        broken[1, 2] = 0
        assert cost(broken, RING) == pytest.approx(1)

    def test_rings_in_other_places_do_not_match(self) -> None:
        left, right = np.hstack([RING, ZERO]), np.hstack([ZERO, RING])
        assert cost(left, right) == pytest.approx(2)
        matching = match_bars(left, right)
        assert matching.unmatched.shape[1] == matching.unmatched_truth.shape[1] == 1

    def test_a_single_blob_may_lie_anywhere(self) -> None:
        """A known limit of the method: the component that never dies is always matched."""
        assert cost(blobs((0, 0)), blobs((5, 5))) == 0


# -- the definition, by reducing boundary matrices over Z/2 -----------------------------------------------------------------------


def cells(values: np.ndarray) -> dict[tuple[int, int], tuple[float, int, tuple[int, int]]]:
    """Cell (in doubled coordinates) -> its key in the order of sublevel sets: value, then dimension, then later pixels first, then place."""
    rows, columns = values.shape
    keys = {}
    for x in range(2 * rows - 1):
        for y in range(2 * columns - 1):
            pixels = [(i, j) for i in {x // 2, (x + 1) // 2} for j in {y // 2, (y + 1) // 2}]
            pixel = max(sorted(pixels), key=lambda p: values[p])
            # as seen from the pixel: up, left, down, right for edges; the corners row by row for squares
            seen = (x - 2 * pixel[0], y - 2 * pixel[1])
            place = [(-1, 0), (0, -1), (1, 0), (0, 1)].index(seen) if x % 2 + y % 2 == 1 else [(-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0)].index(seen)
            keys[x, y] = (values[pixel], x % 2 + y % 2, -(pixel[0] * columns + pixel[1]), -place, pixel)
    return keys


def pairs(born_by: dict, dies_by: dict, dimension: int) -> set[tuple]:
    """Pairs of the image barcode: rows in one filtration's order, columns in the other's; the lowest row of a reduced column is its birth."""
    rank = {cell: i for i, cell in enumerate(sorted((c for c in born_by if born_by[c][1] == dimension), key=born_by.__getitem__))}
    by_rank = {i: cell for cell, i in rank.items()}
    reduced: dict[int, set[int]] = {}
    found = set()
    for cell in sorted((c for c in dies_by if dies_by[c][1] == dimension + 1), key=dies_by.__getitem__):
        x, y = cell
        faces = ([(x - 1, y), (x + 1, y)] if x % 2 else []) + ([(x, y - 1), (x, y + 1)] if y % 2 else [])
        column = {rank[face] for face in faces}
        while column and max(column) in reduced:
            column ^= reduced[max(column)]
        if column:
            reduced[max(column)] = column
            found.add((by_rank[max(column)], cell))
    return found


def brute_force(likelihood: np.ndarray, truth: np.ndarray) -> float:
    ours, other, union = cells(-likelihood), cells(-truth), cells(-np.maximum(likelihood, truth))
    total = 2 * (likelihood.max() - truth.max()) ** 2
    for dimension in (0, 1):

        def bars(keys: dict, dimension: int = dimension) -> dict:
            return {born: dead for born, dead in pairs(keys, keys, dimension) if keys[born][0] < keys[dead][0]}

        mine, theirs, common = bars(ours), bars(other), set(bars(union).values())
        link = {dead: born for born, dead in pairs(ours, union, dimension) if born in mine and dead in common}
        link_other = {dead: born for born, dead in pairs(other, union, dimension) if born in theirs and dead in common}
        for dead in set(link) & set(link_other):
            a, b = link[dead], link_other[dead]
            total += 2 * ((ours[a][0] - other[b][0]) ** 2 + (ours[mine[a]][0] - other[theirs[b]][0]) ** 2)
        matched, matched_other = ({link[d] for d in set(link) & set(link_other)}, {link_other[d] for d in set(link) & set(link_other)})
        total += sum((ours[a][0] - ours[d][0]) ** 2 for a, d in mine.items() if a not in matched)
        total += sum((other[b][0] - other[d][0]) ** 2 for b, d in theirs.items() if b not in matched_other)
    return float(total)


class TestDefinition:
    @pytest.mark.parametrize("kind", ["likelihood and mask", "two likelihoods", "few values and mask", "two masks"])
    def test_is_that_of_reduced_boundary_matrices(self, kind: str) -> None:
        rng = np.random.default_rng(3)
        for _ in range(12):
            shape = tuple(rng.integers(1, 7, 2))
            truth = rng.random(shape) if kind == "two likelihoods" else rng.integers(0, 2, shape).astype(float)
            coarse = {"few values and mask": rng.integers(0, 4, shape) / 3, "two masks": rng.integers(0, 2, shape).astype(float)}
            likelihood = coarse.get(kind, rng.random(shape))
            assert cost(likelihood, truth) == pytest.approx(brute_force(likelihood, truth), abs=1e-12)

    def test_barcodes_are_gudhis(self) -> None:
        rng = np.random.default_rng(4)
        for values in (rng.random((7, 9)), rng.integers(0, 3, (8, 6)).astype(float), rng.random((1, 5)), rng.random((4, 1))):
            barcode = Barcode(grid_of(*values.shape), values.ravel())
            complex_ = gudhi.CubicalComplex(vertices=values)
            complex_.compute_persistence(min_persistence=0.0)
            for dimension in (0, 1):
                born, dies = values.ravel()[barcode.bars(barcode.positive(dimension), dimension)]
                ours = sorted(zip(born, dies, strict=True))
                theirs = sorted((b, d) for b, d in complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2).tolist() if b < d < np.inf)
                np.testing.assert_allclose(np.reshape(ours, (-1, 2)), np.reshape(theirs, (-1, 2)))
            assert values.ravel()[barcode.oldest] == values.min()


class TestLoss:
    @pytest.fixture
    def logits(self) -> Tensor:
        return torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def target(self) -> Tensor:
        return torch.randint(2, (2, 8, 8), generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("settings", [{}, {"filtration": "sublevel"}, {"filtration": "both"}, {"relative": True}, {"dimensions": [1]}])
    def test_gradient_agrees_with_finite_differences(self, logits: Tensor, target: Tensor, settings: dict) -> None:
        assert torch.autograd.gradcheck(lambda z: BettiMatchingLoss(reduction="none", **settings)(z, target), (logits.requires_grad_(),))

    def test_is_the_cost_of_the_foregrounds_probabilities(self, logits: Tensor, target: Tensor) -> None:
        p, y = logits.softmax(1)[:, 1], (target == 1).double()
        values = BettiMatchingLoss(reduction="none")(logits, target)
        torch.testing.assert_close(values, matching_cost(p, y, (0, 1)))
        parts = [BettiMatchingLoss(dimensions=[k], reduction="none")(logits, target) for k in (0, 1)]
        torch.testing.assert_close(sum(parts), values)

    def test_sublevel_is_the_mirror_image(self, logits: Tensor, target: Tensor) -> None:
        """Of two classes, one's sublevel sets are the other's superlevel sets."""
        sublevel, superlevel = BettiMatchingLoss(filtration="sublevel"), BettiMatchingLoss()
        torch.testing.assert_close(sublevel(logits, target), superlevel(logits.flip(1), 1 - target))
        torch.testing.assert_close(BettiMatchingLoss(filtration="both")(logits, target), sublevel(logits, target) + superlevel(logits, target))

    def test_relative_closes_at_the_border(self) -> None:
        """Half a ring that ends at the border has no hole, in a frame it has one."""
        half = RING[2:]
        assert match_bars(half, half, (1,)).matched.shape[1] == 0
        closed = framed(torch.tensor(half)).numpy()
        assert match_bars(closed, closed, (1,)).matched.shape[1] > 0
        assert closed.shape == (5, 7) and (closed[0] == 1).all() and (closed[:, -1] == 1).all()

    def test_ignored_pixels_are_background(self, logits: Tensor, target: Tensor) -> None:
        hidden = target.clone()
        hidden[:, 3:5, 2:6] = -100
        changed = logits.clone()
        changed[:, :, 3:5, 2:6] = 3.0
        torch.testing.assert_close(BettiMatchingLoss()(changed, hidden), BettiMatchingLoss()(logits, hidden))

    def test_training_on_it_closes_a_ring(self) -> None:
        """Gradient descent on the loss alone fills the pixel that opens a ring."""
        truth = torch.tensor(RING).long()[None]
        start = torch.tensor(RING)
        start[1, 2] = 0.3
        logits = torch.stack([torch.zeros(5, 5, dtype=torch.float64), (4 * start - 2)])[None].requires_grad_()
        for _ in range(60):
            gradient = torch.autograd.grad(BettiMatchingLoss(dimensions=[1])(logits, truth), logits)[0]
            logits = (logits - 2 * gradient).detach().requires_grad_()
        assert (logits[0, 1, 1, 2] > logits[0, 0, 1, 2]).item()

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="filtration must be one of"):
            BettiMatchingLoss(filtration="superlevels")
        with pytest.raises(ValueError, match="dimensions must be a list of 0"):
            BettiMatchingLoss(dimensions=[2])
        with pytest.raises(ValueError, match="logits must have one or two spatial dimensions"):
            BettiMatchingLoss()(torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 3, 3, 3, dtype=torch.long))
        with pytest.raises(ValueError, match="logits must have two classes"):
            BettiMatchingLoss()(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))

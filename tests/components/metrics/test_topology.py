import numpy as np
import pytest
import torch
from skimage.measure import euler_number, label

from components.metrics import BettiMatchingError, BettiNumberError, BoundaryF1, CenterlineDice
from components.metrics.topology import betti_numbers


def scores(*masks: np.ndarray) -> torch.Tensor:
    """Scores (N, 2, …) whose largest class is the mask."""
    stacked = torch.tensor(np.stack(masks)).float()
    return torch.stack([0.5 - stacked, stacked - 0.5], 1)


def value(metric, ours: np.ndarray, truth: np.ndarray) -> float:
    metric.update(scores(ours), torch.tensor(truth).long()[None])
    return metric.compute().item()


RING = np.pad(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), 1)
ZERO = np.zeros((5, 5), dtype=int)


class TestBetti:
    def test_rings_in_other_places(self) -> None:
        """The numbers of components and holes agree; neither ring has a partner."""
        left, right = np.hstack([RING, ZERO]), np.hstack([ZERO, RING])
        assert value(BettiNumberError(), left, right) == 0
        assert value(BettiMatchingError(), left, right) == 2

    def test_equal_masks(self) -> None:
        assert value(BettiMatchingError(), RING, RING) == value(BettiNumberError(), RING, RING) == 0

    def test_an_open_ring(self) -> None:
        broken = RING.copy()
        broken[1, 2] = 0
        assert value(BettiMatchingError(), broken, RING) == value(BettiNumberError(), broken, RING) == 1
        assert value(BettiMatchingError(dimensions=[0]), broken, RING) == value(BettiNumberError(dimensions=[0]), broken, RING) == 0

    def test_classes_and_pictures_are_averaged(self) -> None:
        metric = BettiNumberError()
        target = torch.tensor(np.stack([RING, 2 * RING, ZERO]))
        metric.update(torch.nn.functional.one_hot(torch.tensor(np.stack([RING, RING, ZERO])), 3).movedim(-1, 1).float(), target)
        assert metric.compute().item() == pytest.approx(4 / 6)  # the second: a component and a hole of each class

    def test_ignored_pixels_are_background(self) -> None:
        metric, target = BettiNumberError(), torch.tensor(RING)[None]
        target[0, 0] = -100
        ours = RING.copy()
        ours[0, 4] = 1
        metric.update(scores(ours), target)
        assert metric.compute() == 0

    @pytest.mark.parametrize("shape", [(6, 7), (5, 6, 4)])
    def test_numbers_are_scikit_images(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        for share in (0.3, 0.5, 0.7, 0.0, 1.0):
            mask = rng.random(shape) < share
            numbers = betti_numbers(mask)
            assert numbers[0] == label(mask, connectivity=1).max()
            assert numbers[0] - sum(numbers[1:2]) + sum(numbers[2:]) == euler_number(mask, connectivity=1)
            assert min(numbers) >= 0

    def test_a_torus_and_a_shell(self) -> None:
        torus = np.pad(np.repeat(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])[..., None], 1, 2), 1).astype(bool)
        shell = np.ones((3, 3, 3), dtype=bool)
        shell[1, 1, 1] = False
        assert betti_numbers(torus) == (1, 1, 0)
        assert betti_numbers(shell) == (1, 0, 1)

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="dimensions"):
            BettiMatchingError(dimensions=[2])
        with pytest.raises(ValueError, match="dimensions"):
            BettiNumberError(dimensions=[])
        with pytest.raises(ValueError, match="takes pictures"):
            value(BettiMatchingError(), np.zeros((3, 3, 3)), np.zeros((3, 3, 3)))
        with pytest.raises(ValueError, match="preds must have two classes"):
            BettiMatchingError().update(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3, 3).long())


class TestCenterlineDice:
    LINE = np.pad(np.ones((1, 9), dtype=int), ((3, 3), (2, 2)))

    def test_of_a_line_with_a_gap(self) -> None:
        """Of the true line 7 of 9 pixels are found, of the found one all are right: 2 · 1 · 7/9 / (1 + 7/9)."""
        gap = self.LINE.copy()
        gap[3, 5:7] = 0
        assert value(CenterlineDice(), gap, self.LINE) == pytest.approx(14 / 16)

    def test_thickness_does_not_matter(self) -> None:
        thick = np.pad(np.ones((3, 9), dtype=int), ((2, 2), (2, 2)))
        assert value(CenterlineDice(), thick, thick) == 1
        assert value(CenterlineDice(), self.LINE, thick) > 0.9  # a skeleton may bend at its ends

    def test_empty_masks(self) -> None:
        nothing = np.zeros_like(self.LINE)
        assert value(CenterlineDice(), nothing, nothing) == 1
        assert value(CenterlineDice(), nothing, self.LINE) == value(CenterlineDice(), self.LINE, nothing) == 0

    def test_volumes(self) -> None:
        tube = np.zeros((7, 7, 7), dtype=int)
        tube[2:5, 2:5] = 1
        assert value(CenterlineDice(), tube, tube) == 1


class TestBoundaryF1:
    SQUARE = np.pad(np.ones((4, 4), dtype=int), 4)

    def test_a_shift_within_the_tolerance_is_none(self) -> None:
        shifted = np.roll(self.SQUARE, 1, 0)
        assert value(BoundaryF1(tolerance=1.0), shifted, self.SQUARE) == 1
        # within 0: 12 pixels each; the two sides share 3 pixels each, and the row above lies where the other's second row is
        assert value(BoundaryF1(tolerance=0.0), shifted, self.SQUARE) == pytest.approx(6 / 12)

    def test_empty_masks(self) -> None:
        nothing = np.zeros_like(self.SQUARE)
        assert value(BoundaryF1(), nothing, nothing) == 1
        assert value(BoundaryF1(), nothing, self.SQUARE) == 0

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="tolerance"):
            BoundaryF1(tolerance=-1.0)

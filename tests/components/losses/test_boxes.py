import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import BalancedL1Loss, BoxIoULoss, HuberLoss, L1Loss, SmoothL1Loss

KINDS = ("iou", "giou", "diou", "ciou")


@pytest.fixture
def boxes() -> tuple[Tensor, Tensor]:
    """Pairs of overlapping and disjoint plane boxes."""
    draw = torch.Generator().manual_seed(0)
    low = torch.rand(2, 30, 2, dtype=torch.float64, generator=draw)
    both = torch.cat([low, low + 0.1 + torch.rand(2, 30, 2, dtype=torch.float64, generator=draw)], -1)
    return both[0].requires_grad_(), both[1]


class TestElements:
    @pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
    def test_smooth_l1_is_torchs(self, boxes: tuple[Tensor, Tensor], beta: float) -> None:
        ours, theirs = SmoothL1Loss(beta)(*boxes), F.smooth_l1_loss(*boxes, beta=beta)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(HuberLoss(beta)(*boxes) / beta, theirs)

    def test_smooth_l1_without_a_corner_is_l1(self, boxes: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(SmoothL1Loss(1e-9)(*boxes), L1Loss()(*boxes))

    def test_balanced_l1_is_the_papers_formula(self) -> None:
        error = torch.tensor([0.0, 0.3, 0.999, 1.001, 4.0], dtype=torch.float64)
        b = math.exp(1.5 / 0.5) - 1

        def inside(x: float) -> float:
            return 0.5 / b * (b * x + 1) * math.log(b * x + 1) - 0.5 * x

        expected = [inside(x) if x < 1 else 1.5 * x + inside(1) - 1.5 for x in error.tolist()]
        ours = BalancedL1Loss(reduction="none")(error, torch.zeros_like(error))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))

    def test_balanced_l1s_gradient(self) -> None:
        error = torch.tensor([-0.4, 0.2, 3.0], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(BalancedL1Loss(reduction="sum")(error, torch.zeros(3, dtype=torch.float64)), error)
        b = math.exp(3) - 1
        torch.testing.assert_close(gradient, torch.tensor([-0.5 * math.log(b * 0.4 + 1), 0.5 * math.log(b * 0.2 + 1), 1.5], dtype=torch.float64))


class TestBoxes:
    def test_worked_value(self) -> None:  # unit boxes in a hull of 4: no overlap, an empty share of (4 - 2) / 4
        one, other = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0, 2.0]])
        assert BoxIoULoss("giou")(one, other).item() == pytest.approx(1.5)
        assert BoxIoULoss("iou")(one, other).item() == 1

    def test_equal_aspect_ratios(self) -> None:
        one, other = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.5, 0.2, 4.5, 2.2]])
        torch.testing.assert_close(BoxIoULoss("ciou")(one, other), BoxIoULoss("diou")(one, other))

    @pytest.mark.parametrize("kind", KINDS)
    def test_agrees_with_another_implementation(self, boxes: tuple[Tensor, Tensor], kind: str) -> None:
        expected = by_hand(*(box.detach() for box in boxes), kind)
        torch.testing.assert_close(BoxIoULoss(kind, reduction="none")(*boxes), expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_target_itself(self, boxes: tuple[Tensor, Tensor], kind: str) -> None:
        assert BoxIoULoss(kind)(boxes[1], boxes[1]).item() == pytest.approx(0, abs=1e-12)

    def test_disjoint_boxes_are_drawn_together(self) -> None:
        target = torch.tensor([[5.0, 5.0, 6.0, 6.0]])
        for kind in KINDS:
            box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], requires_grad=True)
            (gradient,) = torch.autograd.grad(BoxIoULoss(kind)(box, target), box)
            assert bool((gradient[0, 2:] < 0).all()) == (kind != "iou")

    @pytest.mark.parametrize("dimensions", [1, 3])
    def test_intervals_and_cuboids(self, dimensions: int) -> None:
        one = torch.tensor([[0.0] * dimensions + [2.0] * dimensions])
        other = torch.tensor([[1.0] * dimensions + [3.0] * dimensions])
        volume = 2.0**dimensions
        assert BoxIoULoss("iou")(one, other).item() == pytest.approx(1 - 1 / (2 * volume - 1))
        assert BoxIoULoss("giou")(one, other).item() == pytest.approx(1 - 1 / (2 * volume - 1) + (3.0**dimensions - 2 * volume + 1) / 3.0**dimensions)

    def test_half_a_box(self) -> None:
        with pytest.raises(ValueError, match=r"prediction must be boxes \(N, …, 2d\)"):
            BoxIoULoss()(torch.zeros(4, 3), torch.zeros(4, 3))


def by_hand(first: Tensor, second: Tensor, kind: str) -> Tensor:
    """Box by box in plain Python."""
    values = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        union = sum(areas) - width * height
        loss = 1 - width * height / union
        hull = [max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)]
        if kind == "giou":
            loss += (hull[0] * hull[1] - union) / (hull[0] * hull[1])
        elif kind != "iou":
            centres = [[(box[i] + box[i + 2]) / 2 for i in (0, 1)] for box in (a, b)]
            loss += math.dist(*centres) ** 2 / (hull[0] ** 2 + hull[1] ** 2)
            if kind == "ciou":
                angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
                v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
                overlap = 1 - width * height / union
                loss += v * v / (overlap + v)
        values.append(loss)
    return torch.tensor(values, dtype=first.dtype)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SmoothL1Loss(0.0), "beta must be > 0"),
        (lambda: BalancedL1Loss(0.0), "alpha must be > 0"),
        (lambda: BalancedL1Loss(0.01, 5.0), "gamma / alpha must be <= 80"),
        (lambda: BoxIoULoss("eiou"), "kind must be one of"),
        (lambda: BoxIoULoss(eps=0.0), "eps must be > 0"),
    ],
)
def test_wrong_options_are_named(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()

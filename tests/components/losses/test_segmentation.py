import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics.functional.segmentation import dice_score

from components.losses import DiceLoss


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(1))


def test_worked_value() -> None:
    """Two pixels, p = (3/4, 1/4) and (1/2, 1/2), targets 0 and 1, smooth 1.

    class 0: both 3/4, total 5/4 + 1: (3/2 + 1) / (9/4 + 1) = 10/13; class 1: both 1/2, total 3/4 + 1: (1 + 1) / (7/4 + 1) = 8/11.
    """
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]])  # (1, C=2, 2 pixels)
    assert DiceLoss(smooth=1.0)(logits, torch.tensor([[0, 1]])).item() == pytest.approx(1 - (10 / 13 + 8 / 11) / 2)
    # squares: class 0: 9/16 + 1/4 + 1 = 29/16: (5/2) / (45/16) = 8/9; class 1: 1/16 + 1/4 + 1 = 21/16: 2 / (37/16) = 32/37
    assert DiceLoss(smooth=1.0, square=True)(logits, torch.tensor([[0, 1]])).item() == pytest.approx(1 - (8 / 9 + 32 / 37) / 2)
    # class 0 counts three times as much as class 1
    assert DiceLoss(smooth=1.0, weight=[3.0, 1.0])(logits, torch.tensor([[0, 1]])).item() == pytest.approx(1 - (3 * 10 / 13 + 8 / 11) / 4)


def test_certain_predictions_agree_with_torchmetrics(logits: Tensor, target: Tensor) -> None:
    hard = logits.argmax(1)
    certain = 1e4 * one_hot(hard, 3).movedim(-1, 1).double()
    score = dice_score(hard, target, num_classes=3, average="macro", input_format="index")
    torch.testing.assert_close(DiceLoss(smooth=1e-9, reduction="none")(certain, target), 1 - score.double(), rtol=1e-6, atol=1e-6)


def test_agrees_with_a_plain_implementation(logits: Tensor, target: Tensor) -> None:
    p = logits.softmax(1)
    for per_image in (True, False):
        values = []
        for images in [[0], [1], [2], [3]] if per_image else [[0, 1, 2, 3]]:
            overlaps = []
            for c in range(3):
                y = (target[images] == c).double()
                overlaps.append((2 * (p[images, c] * y).sum() + 0.5) / (p[images, c].sum() + y.sum() + 0.5))
            values.append(1 - sum(overlaps) / 3)
        torch.testing.assert_close(DiceLoss(smooth=0.5, per_image=per_image, reduction="none")(logits, target), torch.stack(values))


def test_perfect_and_hopeless_predictions(target: Tensor) -> None:
    perfect = 1e4 * one_hot(target, 3).movedim(-1, 1).float()
    assert DiceLoss()(perfect, target).item() == pytest.approx(0, abs=1e-6)
    assert DiceLoss(smooth=1e-3)(1e4 * one_hot((target + 1) % 3, 3).movedim(-1, 1).float(), target).item() == pytest.approx(1, abs=1e-3)


def test_an_image_without_a_pixel_left_is_ignored(logits: Tensor, target: Tensor) -> None:
    holes = target.clone()
    holes[1] = -100
    torch.testing.assert_close(DiceLoss()(logits, holes), DiceLoss()(logits[[0, 2, 3]], target[[0, 2, 3]]))
    assert DiceLoss(reduction="none")(logits, holes)[1] == 0


def test_ignored_pixels_are_as_if_cut_out(logits: Tensor, target: Tensor) -> None:
    holes = target.clone()
    holes[:, :, 4:] = 255
    torch.testing.assert_close(DiceLoss(ignore_index=255)(logits, holes), DiceLoss()(logits[..., :4], target[..., :4]))


def test_large_images_in_half_precision() -> None:  # sums over 65,536 pixels: bfloat16 would stop counting at 256
    target = torch.zeros(1, 256, 256, dtype=torch.long)
    logits = torch.zeros(1, 2, 256, 256, dtype=torch.bfloat16)  # p = 1/2: class 0: 65536 / 98304 = 2/3; class 1: 0
    assert DiceLoss(smooth=1e-3)(logits, target).item() == pytest.approx(1 - (2 / 3 + 0) / 2, abs=5e-3)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="smooth must be > 0"):
        DiceLoss(smooth=0)
    with pytest.raises(ValueError, match="weight must have a value > 0"):
        DiceLoss(weight=[0.0, 0.0])
    with pytest.raises(ValueError, match="target must hold one class index an element"):
        DiceLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.long))

import math

import monai.losses
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import one_hot

from components.losses import BoundaryLoss, DiceLoss, GeneralizedDiceLoss, LovaszSoftmaxLoss, TverskyLoss
from components.losses.overlap import signed_distance

SURE = 200.0  # a logit whose probability is 1


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(1))


def hard(*probabilities: float) -> Tensor:
    """Logits of a picture (1, 2, P) whose foreground has these probabilities, 0 or 1."""
    return torch.tensor([[[0.0] * len(probabilities), [SURE if p else -SURE for p in probabilities]]], dtype=torch.float64)


class TestTversky:
    @pytest.mark.parametrize(
        ("p", "g", "value"),
        [((1, 0), (1, 1), 0.363330), ((0, 0), (1, 1), 0.667479), ((1, 1), (1, 0), 0.217043), ((1, 0), (1, 0), 0.0)],
    )
    def test_focal_tversky_of_a_foreground(self, p: tuple[int, ...], g: tuple[int, ...], value: float) -> None:
        """Misses cost more than false alarms; the background is left out by its weight."""
        loss = TverskyLoss(gamma=0.75, weight=[0.0, 1.0])
        assert loss(hard(*p), torch.tensor([g])).item() == pytest.approx(value, abs=1e-6)

    def test_half_and_half_is_dice(self, logits: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(TverskyLoss(fp_weight=0.5, fn_weight=0.5, smooth=0.3)(logits, target), DiceLoss(smooth=0.6)(logits, target))

    def test_one_and_one_is_the_soft_jaccard(self, logits: Tensor, target: Tensor) -> None:
        p, y = logits.softmax(1).flatten(2), one_hot(target, 3).movedim(-1, 1).flatten(2)
        both = (p * y).sum(2)
        expected = (1 - (both + 1) / (p.sum(2) + y.sum(2) - both + 1)).mean()
        torch.testing.assert_close(TverskyLoss(fp_weight=1.0, fn_weight=1.0)(logits, target), expected)

    def test_agrees_with_monai(self, logits: Tensor, target: Tensor) -> None:
        theirs = monai.losses.TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.2, beta=0.9, smooth_nr=0.5, smooth_dr=0.5)(logits, target.unsqueeze(1))
        torch.testing.assert_close(TverskyLoss(fp_weight=0.2, fn_weight=0.9, smooth=0.5)(logits, target), theirs, rtol=1e-6, atol=1e-6)

    def test_a_perfect_prediction_has_no_gradient_and_no_nan(self) -> None:
        logits = hard(1, 0).requires_grad_()
        value = TverskyLoss(gamma=0.5)(logits, torch.tensor([[1, 0]]))
        assert value == 0
        assert (torch.autograd.grad(value, logits)[0] == 0).all()

    @pytest.mark.parametrize("wrong", [{"fp_weight": -1.0}, {"fn_weight": -0.1}, {"gamma": 0.0}, {"smooth": 0.0}, {"weight": [0.0, 0.0]}])
    def test_bad_options(self, wrong: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TverskyLoss(**wrong)
        with pytest.raises(ValueError, match="fp_weight and fn_weight"):
            TverskyLoss(fp_weight=0.0, fn_weight=0.0)


class TestGeneralizedDice:
    @pytest.mark.parametrize("weighting", ["square", "simple", "uniform"])
    def test_agrees_with_monai(self, logits: Tensor, target: Tensor, weighting: str) -> None:
        target = target.clone()
        target[0] = 1  # a picture that lacks two classes
        theirs = monai.losses.GeneralizedDiceLoss(softmax=True, to_onehot_y=True, w_type=weighting)
        torch.testing.assert_close(GeneralizedDiceLoss(weighting=weighting)(logits, target), theirs(logits, target.unsqueeze(1)), rtol=1e-6, atol=1e-6)

    def test_worked_value(self) -> None:
        """Three pixels, target 1 0 0, all predicted background: u = (1/4, 1), both = (2, 0), total = (3 + 2, 0 + 1)."""
        value = GeneralizedDiceLoss(smooth=1e-12)(hard(0, 0, 0), torch.tensor([[1, 0, 0]]))
        assert value.item() == pytest.approx(1 - 2 * (0.25 * 2) / (0.25 * 5 + 1))

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'square'"):
            GeneralizedDiceLoss(weighting="squared")


def jaccard_loss(wrong: set[int], inside: set[int]) -> float:
    return len(wrong) / len(inside | wrong) if inside | wrong else 0.0


class TestLovasz:
    def test_is_the_extension_by_its_definition(self, logits: Tensor, target: Tensor) -> None:
        values = LovaszSoftmaxLoss(reduction="none")(logits, target)
        for image in range(4):
            p, y = logits[image].softmax(0).flatten(1), target[image].flatten()
            costs = []
            for c in y.unique().tolist():
                errors = ((y == c).double() - p[c]).abs().tolist()
                inside = {i for i, label in enumerate(y.tolist()) if label == c}
                order = sorted(range(len(errors)), key=lambda i: -errors[i])
                steps = [jaccard_loss(set(order[: i + 1]), inside) - jaccard_loss(set(order[:i]), inside) for i in range(len(order))]
                costs.append(sum(errors[i] * step for i, step in zip(order, steps, strict=True)))
            assert values[image].item() == pytest.approx(np.mean(costs), abs=1e-12)

    def test_of_hard_predictions_is_one_minus_iou(self) -> None:
        predicted, target = (1, 1, 0, 0, 1), torch.tensor([[1, 0, 0, 1, 1]])
        value = LovaszSoftmaxLoss(weight=[0.0, 1.0])(hard(*predicted), target)
        assert value.item() == pytest.approx(1 - 2 / 4)

    def test_absent_classes_count_only_on_demand(self) -> None:
        logits, target = torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.long)
        assert LovaszSoftmaxLoss()(logits, target).item() == pytest.approx(0.5)  # of class 0: every error is 1/2
        assert LovaszSoftmaxLoss(classes="all")(logits, target).item() == pytest.approx((0.5 + 0.5) / 2)

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="classes must be one of"):
            LovaszSoftmaxLoss(classes="some")


class TestBoundary:
    @pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 5, 3)])
    def test_distances_are_the_authors(self, shape: tuple[int, ...]) -> None:
        y = one_hot(torch.randint(3, (2, *shape), generator=torch.Generator().manual_seed(2)), 3).movedim(-1, 1)
        found = signed_distance(y.double())
        for n in range(2):
            for c in range(3):
                inside = y[n, c].numpy().astype(bool)
                expected = distance_transform_edt(~inside) * ~inside - (distance_transform_edt(inside) - 1) * inside if 0 < inside.sum() < inside.size else 0
                np.testing.assert_allclose(found[n, c].numpy(), np.broadcast_to(expected, shape), atol=1e-6)
        on_the_device = torch.func.vmap(signed_distance)(y.double().unsqueeze(0))[0]  # what is batched cannot be read: no SciPy
        torch.testing.assert_close(on_the_device, found, atol=1e-6, rtol=1e-6)

    def test_worked_value(self) -> None:
        """Foreground at the second of four pixels, maps 1 0 1 2: a sure false alarm at the last costs 2/4, the hit nothing."""
        assert BoundaryLoss()(hard(0, 1, 0, 1), torch.tensor([[0, 1, 0, 0]])).item() == pytest.approx(0.5)
        assert BoundaryLoss(normalize=True)(hard(0, 1, 0, 1), torch.tensor([[0, 1, 0, 0]])).item() == pytest.approx(0.125)

    def test_an_image_without_an_outline_costs_nothing(self, logits: Tensor) -> None:
        assert BoundaryLoss()(logits, torch.zeros(4, 5, 6, dtype=torch.long)) == 0

    def test_gradient_of_pictures(self, logits: Tensor, target: Tensor) -> None:
        leaf = logits[:2, :, :3, :3].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z: BoundaryLoss(reduction="none")(z, target[:2, :3, :3]), (leaf,))
        assert torch.autograd.grad(BoundaryLoss()(leaf, target[:2, :3, :3]), leaf)[0].abs().sum() > 0

    def test_one_class_has_no_foreground(self) -> None:
        with pytest.raises(ValueError, match="logits must have two classes"):
            BoundaryLoss()(torch.zeros(1, 1, 4), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("loss", [TverskyLoss(), GeneralizedDiceLoss(), LovaszSoftmaxLoss(), BoundaryLoss()], ids=lambda loss: type(loss).__name__)
class TestAll:
    def test_volumes(self, loss: torch.nn.Module) -> None:
        logits, target = torch.randn(2, 3, 4, 5, 3), torch.randint(3, (2, 4, 5, 3))
        assert math.isfinite(loss(logits, target))

    def test_a_classes_weight_counts_in_proportion(self, loss: torch.nn.Module, logits: Tensor, target: Tensor) -> None:
        """A weight for all alike changes nothing; one class alone is another value."""
        settings = {"weight": [2.0, 2.0, 2.0]}
        torch.testing.assert_close(type(loss)(**settings)(logits, target), loss(logits, target))
        assert not torch.isclose(type(loss)(weight=[0.0, 0.0, 1.0])(logits, target), loss(logits, target))

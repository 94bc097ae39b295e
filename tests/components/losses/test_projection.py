import pytest
import torch
from torch import Tensor

from components.losses import MIPLoss, TverskyLoss
from components.losses.projection import maximum_intensity_projection

FOREGROUND = {"weight": [0.0, 1.0, 1.0]}


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(3, 3, 4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(3, (3, 4, 5, 3), generator=torch.Generator().manual_seed(1))


def test_a_perfect_prediction_costs_nothing(target: Tensor) -> None:
    logits = 300.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    assert MIPLoss()(logits, target).item() == pytest.approx(0, abs=1e-12)
    assert MIPLoss(volume_weight=0.0, mip_weight=1.0)(logits, target).item() == pytest.approx(0, abs=1e-12)


def test_without_projections_it_is_the_focal_tversky_loss(logits: Tensor, target: Tensor) -> None:
    expected = 0.7 * TverskyLoss(gamma=0.75, **FOREGROUND)(logits, target)
    torch.testing.assert_close(MIPLoss(mip_weight=0.0)(logits, target), expected)


def test_is_the_sum_over_axes_of_the_projected_loss(logits: Tensor, target: Tensor) -> None:
    p = logits.softmax(1)
    y = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()

    def ftl(p: Tensor, y: Tensor) -> Tensor:
        hit, missed, alarm = (p * y).flatten(2).sum(2), ((1 - p) * y).flatten(2).sum(2), (p * (1 - y)).flatten(2).sum(2)
        return (1 - (hit + 1) / (hit + 0.7 * missed + 0.3 * alarm + 1)).abs().pow(0.75)[:, 1:].mean(1)

    expected = 0.7 * ftl(p, y) + 0.3 * sum(ftl(p.amax(axis), y.amax(axis)) for axis in (2, 3, 4))
    torch.testing.assert_close(MIPLoss(reduction="none")(logits, target), expected)
    single = 0.7 * ftl(p, y) + 0.3 * ftl(p.amax(4), y.amax(4))
    torch.testing.assert_close(MIPLoss(axes=[-1], reduction="none")(logits, target), single)


def test_the_gradient_of_a_projection_goes_to_one_voxel_of_each_ray(logits: Tensor) -> None:
    for axis in range(3):
        leaf = logits.softmax(1).requires_grad_()
        gradient = torch.autograd.grad(maximum_intensity_projection(leaf, axis).sum(), leaf)[0]
        assert ((gradient != 0).sum(axis + 2) == 1).all()


def test_the_order_of_slices_does_not_matter_to_a_projection_along_them(logits: Tensor, target: Tensor) -> None:
    loss, order = MIPLoss(volume_weight=0.0, axes=[2]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(logits[..., order], target[..., order]), loss(logits, target))
    assert not torch.isclose(MIPLoss(axes=[0])(logits[..., order], target), MIPLoss(axes=[0])(logits, target))


def test_a_gap_costs_more_where_projections_count() -> None:
    """A tube along the last axis; the prediction misses one voxel of it. Seen from two sides the gap shows, along the tube it does not."""
    target = torch.zeros(1, 5, 5, 5, dtype=torch.long)
    target[0, 2, 2] = 1
    logits = torch.stack([torch.zeros(1, 5, 5, 5), 200.0 * (2.0 * target - 1)], 1).double()
    logits[0, 1, 2, 2, 3] = -200.0
    along, across = (MIPLoss(volume_weight=0.0, axes=[axis])(logits, target) for axis in (2, 0))
    assert along == 0
    assert across > 0


def test_projections_of_the_whole_volume_replace_the_crops_own(logits: Tensor, target: Tensor) -> None:
    y = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    own = [y.amax(axis) for axis in (2, 3, 4)]
    loss = MIPLoss()
    torch.testing.assert_close(loss(logits, target, own), loss(logits, target))
    assert not torch.isclose(loss(logits, target, [torch.ones_like(x) for x in own]), loss(logits, target))
    with pytest.raises(ValueError, match="target_projections"):
        loss(logits, target, own[:2])
    with pytest.raises(ValueError, match="target_projections of axis 0"):
        loss(logits, target, own[::-1])


def test_the_batch_as_one_volume(logits: Tensor, target: Tensor) -> None:
    """As the authors' code has it: the term of the volume is one value for the batch."""
    loss = MIPLoss(mip_weight=0.0, per_image=False, reduction="none")
    joined = 0.7 * TverskyLoss(gamma=0.75, **FOREGROUND)(logits.transpose(0, 1).flatten(1, 2).unsqueeze(0), target.flatten(0, 1).unsqueeze(0))
    torch.testing.assert_close(loss(logits, target), joined.expand(3))


def test_rays_pass_by_ignored_voxels(logits: Tensor, target: Tensor) -> None:
    hidden = target.clone()
    hidden[:, :, :, 1] = -100
    changed = logits.clone()
    changed[..., 1] = 50.0
    torch.testing.assert_close(MIPLoss()(changed, hidden), MIPLoss()(logits, hidden))


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"volume_weight": -1.0}, "volume_weight"),
        ({"mip_weight": -1.0}, "mip_weight"),
        ({"axes": []}, "axes"),
        ({"axes": "last"}, "axes"),
        ({"gamma": 0.0}, "gamma"),
    ],
)
def test_bad_options(wrong: dict, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        MIPLoss(**wrong)


def test_an_axis_that_is_not_there(logits: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match="axes must be spatial axes of logits"):
        MIPLoss(axes=[3])(logits, target)
    with pytest.raises(ValueError, match="axis must be in"):
        maximum_intensity_projection(logits, 3)

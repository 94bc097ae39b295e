import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import TriBCELoss, WelfareRankLoss, fuse_branches
from components.testing import LossContract


def tensor(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestTriBCE:
    def test_worked_value(self) -> None:
        branches, y = torch.tensor([[[math.log(3), 0.0]]], dtype=torch.float64), tensor([1.0])
        fused = fuse_branches(branches, "logit")
        assert fused.sigmoid().item() == pytest.approx(0.633975, abs=1e-6)
        assert F.binary_cross_entropy_with_logits(fused, y).item() == pytest.approx(0.455746, abs=1e-6)
        worse = F.binary_cross_entropy_with_logits(branches[..., 1], y) - 0.455746
        assert worse.item() == pytest.approx(0.237401, abs=1e-6)
        assert TriBCELoss()(fused, branches, y).item() == pytest.approx(0.620300, abs=1e-6)

    def test_equal_branches_are_bce(self) -> None:
        logits = random(6, 1).requires_grad_()
        y = (random(6, 1, seed=1) > 0).double()
        loss = TriBCELoss()(logits, torch.stack([logits, logits], -1), y)
        plain = F.binary_cross_entropy_with_logits(logits, y)
        torch.testing.assert_close(loss, plain, rtol=0, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(plain, logits)[0])

    def test_never_below_bce_and_the_worse_branch_alone_is_trained(self) -> None:
        for seed in range(10):
            branches = random(20, 1, 2, seed=seed).requires_grad_()
            y = (random(20, 1, seed=seed + 100) > 0).double()
            fused = fuse_branches(branches, "logit").detach()
            loss, plain = TriBCELoss()(fused, branches, y), F.binary_cross_entropy_with_logits(fused, y)
            assert loss > plain  # of a mean of logits one branch is worse, as BCE is convex
            (gradient,) = torch.autograd.grad(loss, branches)
            for k in range(2):
                worse = F.binary_cross_entropy_with_logits(branches[..., k], y) > plain
                assert bool(gradient[..., k].abs().sum() > 0) == bool(worse)

    def test_detached_weights_change_the_gradient_alone(self) -> None:
        branches, y = random(8, 1, 2).requires_grad_(), (random(8, 1, seed=1) > 0).double()
        fused = fuse_branches(branches, "logit")
        through, detached = TriBCELoss()(fused, branches, y), TriBCELoss(detach_weights=True)(fused, branches, y)
        assert torch.equal(through, detached)
        assert not torch.allclose(torch.autograd.grad(through, branches, retain_graph=True)[0], torch.autograd.grad(detached, branches)[0])

    def test_fusing_probabilities_is_their_mean(self) -> None:
        branches = random(5, 1, 3)
        torch.testing.assert_close(fuse_branches(branches, "probability").sigmoid(), branches.sigmoid().mean(-1))
        assert torch.isfinite(fuse_branches(torch.tensor([[1e4, -1e4]]), "probability")).all()

    def test_branches_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"branch_logits must have shape \(4, 1\) \+ \(K,\), but got \(4, 2\)"):
            TriBCELoss()(torch.zeros(4, 1), torch.zeros(4, 2), torch.zeros(4, 1))


class TestWelfareWithTeacher(LossContract):
    """The contract, with the labels of a teacher."""

    @pytest.fixture
    def loss(self) -> nn.Module:
        return WelfareRankLoss(labels="teacher")

    def arguments(self, loss: nn.Module) -> dict[str, str]:
        return {**super().arguments(loss), "teacher_logits": "teacher_logits"}


class TestWelfare:
    @pytest.mark.parametrize(("link", "expected"), [("log", 1.288793), ("hinge", 1.8)])
    def test_worked_value(self, link: str, expected: float) -> None:
        loss = WelfareRankLoss(link=link)(torch.logit(tensor([0.3, 0.5])), tensor([1.0, 0.0]), tensor([2.0, 1.0]))
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    def test_equal_worth_costs_nothing(self) -> None:
        assert WelfareRankLoss()(random(3, 4), torch.full((3, 4), 0.5, dtype=torch.float64), torch.full((3, 4), 2.0, dtype=torch.float64)) == 0

    def test_depends_on_differences_of_worth_and_scales_with_bids(self) -> None:
        logits, y, bids = random(3, 4), (random(3, 4, seed=1) > 0).double(), random(3, 4, seed=2).exp()
        loss, scaled = WelfareRankLoss()(logits, y, bids), WelfareRankLoss(sharpness=1 / 3)(logits, y, 3 * bids)
        torch.testing.assert_close(scaled, 3 * loss)  # weights times 3, arguments times 3 / 3
        worth = bids * logits.sigmoid()
        other_bids = 2 * bids
        moved = torch.logit((worth + 0.01) / other_bids)  # every b f larger by the same, with the labels' worth as before
        torch.testing.assert_close(WelfareRankLoss()(moved, y * bids / other_bids, other_bids), loss)

    def test_vanishes_where_the_order_of_worth_is_right_and_sharp(self) -> None:
        y, bids = tensor([0.9, 0.2, 0.5]), tensor([1.0, 2.0, 3.0])
        logits = torch.logit(tensor([0.5, 0.1, 0.3]))  # b f: 0.5, 0.2, 0.9 in the order of b y: 0.9, 0.4, 1.5
        assert WelfareRankLoss(sharpness=1e3)(logits, y, bids).item() == pytest.approx(0, abs=1e-9)
        assert WelfareRankLoss(sharpness=1e3, link="hinge")(logits, y, bids) == 0
        assert int((bids * logits.sigmoid()).argmax()) == int((bids * y).argmax())
        assert WelfareRankLoss(sharpness=1e3)(-logits, y, bids) > 1

    def test_bounds_what_the_wrong_winner_loses(self) -> None:
        """The hinge at margin 1 is above the step, so the loss is above the welfare that is lost."""
        for seed in range(20):
            logits, p, bids = random(1, 6, seed=seed), random(1, 6, seed=seed + 50).sigmoid(), random(1, 6, seed=seed + 90).exp()
            lost = (bids * p).max() - (bids * p)[0, (bids * logits.sigmoid()).argmax()]
            assert WelfareRankLoss(link="hinge")(logits, p, bids) >= lost

    def test_an_ad_left_out_is_as_if_not_there(self) -> None:
        logits, y, bids = random(2, 4), (random(2, 4, seed=1) > 0).double(), random(2, 4, seed=2).exp()
        gone = y.clone()
        gone[:, 3] = math.nan
        for per_pair in (False, True):
            loss = WelfareRankLoss(per_pair=per_pair)
            torch.testing.assert_close(loss(logits, gone, bids), loss(logits[:, :3], y[:, :3], bids[:, :3]))

    def test_the_teachers_click_rates_are_labels(self) -> None:
        logits, teacher, bids = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2).exp()
        clicks = torch.zeros_like(logits)
        torch.testing.assert_close(WelfareRankLoss(labels="teacher")(logits, clicks, bids, teacher), WelfareRankLoss()(logits, teacher.sigmoid(), bids))

    def test_wrong_input_is_named(self) -> None:
        zeros = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="needs teacher_logits, but got None"):
            WelfareRankLoss(labels="teacher")(zeros, zeros, zeros + 1)
        with pytest.raises(ValueError, match="bids must be >= 0, but got -1"):
            WelfareRankLoss()(zeros, zeros, zeros - 1)
        with pytest.raises(ValueError, match="sharpness must be > 0"):
            WelfareRankLoss(sharpness=0.0)
        with pytest.raises(ValueError, match="did you mean 'hinge'"):
            WelfareRankLoss(link="hing")

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from components.losses import PFIDLoss

DOUBLE = torch.float64


@pytest.fixture
def logits() -> Tensor:
    return (2 * torch.randn(16, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (16,), generator=torch.Generator().manual_seed(1))


class TestPFID:
    def test_without_pairs_is_cross_entropy(self, logits, target) -> None:
        ours, theirs = PFIDLoss(pairs=0.0)(logits, target), cross_entropy(logits, target)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (ours, theirs)))

    def test_identical_predictions(self) -> None:
        """Of one class they cost nothing beside cross-entropy; of two classes each direction costs the margin."""
        logits = torch.tensor([[1.0, 2.0, 0.5]], dtype=DOUBLE).repeat(2, 1)
        for target, extra in (([0, 0], 0.0), ([0, 1], 2 * 1.7)):
            y = torch.tensor(target)
            assert float(PFIDLoss(1.7)(logits, y) - cross_entropy(logits, y)) == pytest.approx(extra, abs=1e-9)

    def test_worked_value(self) -> None:
        logits = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=DOUBLE).log()
        for target, extra in (([0, 0], 0.375829), ([0, 1], 3.624171)):
            y = torch.tensor(target)
            assert float(PFIDLoss(2.0)(logits, y) - cross_entropy(logits, y)) == pytest.approx(extra, abs=1e-6)

    def test_far_pairs_have_no_gradient(self) -> None:
        logits = torch.tensor([[6.0, 0.0], [0.0, 6.0]], dtype=DOUBLE, requires_grad=True)
        y = torch.tensor([0, 1])
        gradients = [torch.autograd.grad(v, logits)[0] for v in (PFIDLoss(2.0)(logits, y), cross_entropy(logits, y))]
        torch.testing.assert_close(gradients[0], gradients[1])

    @pytest.mark.parametrize("weight", [1.0, 0.3])
    def test_agrees_with_pair_by_pair(self, logits, target, weight) -> None:
        log_p = logits.log_softmax(1)

        def kl(i: int, j: int) -> Tensor:
            return kl_div(log_p[j], log_p[i], reduction="sum", log_target=True)

        similar, dissimilar = [], []
        for i in range(16):
            for j in range(i + 1, 16):
                if target[i] == target[j]:
                    similar.append(kl(i, j) + kl(j, i))
                else:
                    dissimilar.append((1.5 - kl(i, j)).clamp(min=0) + (1.5 - kl(j, i)).clamp(min=0))
        expected = cross_entropy(logits, target) + weight * (torch.stack(similar).mean() + torch.stack(dissimilar).mean())
        ours = PFIDLoss(1.5, pairs=weight)(logits, target)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (ours, expected)))

    def test_holding_the_first_distribution_changes_the_gradient_alone(self, logits, target) -> None:
        held, free = PFIDLoss(hold_first=True), PFIDLoss()
        assert torch.equal(held(logits, target), free(logits, target))
        assert not torch.allclose(*(torch.autograd.grad(loss(logits, target), logits)[0] for loss in (held, free)))

    def test_refuses(self, target) -> None:
        with pytest.raises(ValueError, match=r"logits must have shape \(N, C\)"):
            PFIDLoss()(torch.zeros(16, 5, 2), torch.zeros(16, 2, dtype=torch.long))
        with pytest.raises(ValueError, match="margin must be >= 0"):
            PFIDLoss(-1.0)
        with pytest.raises(ValueError, match="pairs must be >= 0"):
            PFIDLoss(pairs=-1.0)

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from components.losses import SymmetricInfoNCELoss, TripletAlignmentLoss

D = torch.float64


def views(count: int = 10, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, size, generator=generator, dtype=D).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def with_similarity(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors whose cosines are the given (symmetric, small) matrix."""
    n = len(similarity)
    first = torch.eye(n, 2 * n, dtype=D)
    second = torch.cat([similarity.T, torch.diag((1 - similarity.square().sum(0)).sqrt())], 1)
    return first, second


def row_by_row(s: Tensor, target: Tensor, margin: float, tau: float, negatives: str) -> Tensor:
    """One direction, as the paper says it."""
    values = []
    for i in range(len(s)):
        same = [j for j in range(len(s)) if target[j] == target[i]]
        other = [j for j in range(len(s)) if target[j] != target[i]]
        alpha = (s[i, same] / tau).softmax(0).detach()
        positive = (alpha * s[i, same]).sum()
        if not other:
            values.append(0 * positive)
        elif negatives == "soft":
            values.append((margin - positive + tau * (s[i, other] / tau).exp().sum().log()).relu())
        elif negatives == "hardest":
            values.append((margin - positive + max(s[i, j] for j in other)).relu())
        else:
            values.append(sum((margin - positive + s[i, j]).relu() for j in other))
    return torch.stack(values)


class TestTripletAlignment:
    @pytest.mark.parametrize("negatives", ["soft", "hardest", "sum"])
    def test_agrees_with_row_by_row(self, negatives: str) -> None:
        (a, b), target = views(), torch.tensor([0, 1, 2, 3, 3, 4, 4, 4, 5, 6])
        s = normalize(a) @ normalize(b).T
        expected = sum(row_by_row(x, target, 0.3, 0.05, negatives) for x in (s, s.T))
        ours = TripletAlignmentLoss(0.3, 0.05, negatives=negatives, reduction="none")(a, b, target)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, expected)
        for leaf in (a, b):
            torch.testing.assert_close(*(torch.autograd.grad(v.sum(), leaf, retain_graph=True)[0] for v in (ours, expected)))  # type: ignore[union-attr]

    @pytest.mark.parametrize("tau", [0.015, 0.2, 5.0])
    def test_one_negative_a_row_is_the_hardest_negative(self, tau: float) -> None:
        a, b = with_similarity(torch.full((2, 2), 0.5, dtype=D))
        for negatives in ("soft", "hardest", "sum"):
            value = TripletAlignmentLoss(0.1, tau, negatives=negatives, reduction="none")(a, b, torch.arange(2))  # type: ignore[arg-type]
            torch.testing.assert_close(value, torch.tensor([0.2, 0.2], dtype=D))

    def test_worked_value(self) -> None:
        a, b = with_similarity(torch.full((3, 3), 0.4, dtype=D) + 0.1 * torch.eye(3, dtype=D))
        value = TripletAlignmentLoss(0.1, 0.02, reduction="none")(a, b, torch.arange(3))
        torch.testing.assert_close(value, torch.full((3,), 2 * 0.02 * math.log(2), dtype=D))
        assert value[0].item() == pytest.approx(0.0277259, abs=1e-7)

    @pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
    def test_lies_between_the_hardest_negative_and_a_logarithm_more(self, tau: float) -> None:
        (a, b), target = views(), torch.arange(10)
        soft, hardest = (TripletAlignmentLoss(0.2, tau, negatives=n, reduction="none")(a, b, target) for n in ("soft", "hardest"))  # type: ignore[arg-type]
        assert (soft >= hardest - 1e-12).all() and (soft <= hardest + 2 * tau * math.log(9) + 1e-12).all()

    def test_becomes_the_hardest_negative_as_the_temperature_falls(self) -> None:
        (a, b), target = views(), torch.arange(10)
        hardest = TripletAlignmentLoss(0.2, negatives="hardest")(a, b, target)
        gaps = [float((TripletAlignmentLoss(0.2, tau)(a, b, target) - hardest).detach()) for tau in (0.1, 0.01, 1e-4)]
        assert gaps[0] > gaps[1] > gaps[2] >= 0 and gaps[2] < 1e-6

    def test_no_overflow_at_the_papers_temperature(self) -> None:
        s = torch.linspace(-1, 1, 64).reshape(8, 8).requires_grad_()
        loss = TripletAlignmentLoss(temperature=0.015)
        mask = torch.eye(8, dtype=torch.bool)
        value = loss.one_way(s, mask, ~mask)
        value.sum().backward()
        assert value.isfinite().all() and s.grad.isfinite().all()  # type: ignore[union-attr]

    def test_gradient_of_a_row(self) -> None:
        """-alpha on positives, the softmax of negatives on negatives, while the hinge is active."""
        s = (0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=D)).requires_grad_()
        target, tau = torch.tensor([0, 0, 0, 1, 1, 2]), 0.05
        positive = target.unsqueeze(0) == target.unsqueeze(1)
        values = TripletAlignmentLoss(1.0, tau).one_way(s, positive, ~positive)
        assert (values > 0).all()
        values.sum().backward()
        alpha = (s / tau).masked_fill(~positive, -math.inf).softmax(1)
        among_negatives = (s / tau).masked_fill(positive, -math.inf).softmax(1)
        torch.testing.assert_close(s.grad, torch.where(positive, -alpha, among_negatives).detach())

    def test_a_batch_of_one_identity_has_nothing_to_say(self) -> None:
        (a, b), target = views(4), torch.zeros(4, dtype=torch.long)
        for negatives in ("soft", "hardest", "sum"):
            value = TripletAlignmentLoss(negatives=negatives)(a, b, target)  # type: ignore[arg-type]
            assert value == 0
            assert (torch.autograd.grad(value, a)[0] == 0).all()

    def test_bad_input(self) -> None:
        for wrong in ({"margin": 0.0}, {"temperature": -1.0}, {"negatives": "softest"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                TripletAlignmentLoss(**wrong)  # type: ignore[arg-type]
        (a, b), loss = views(), TripletAlignmentLoss()
        with pytest.raises(ValueError, match="target must hold one identity"):
            loss(a, b, torch.arange(9))
        with pytest.raises(ValueError, match="projections_2 must have the shape of projections_1"):
            loss(a, b[:, :3], torch.arange(10))


class TestSymmetricInfoNCE:
    def test_is_cross_entropy_in_both_directions(self) -> None:
        a, b = views()
        s = normalize(a) @ normalize(b).T / 0.2
        expected = 0.5 * (cross_entropy(s, torch.arange(10)) + cross_entropy(s.T, torch.arange(10)))
        torch.testing.assert_close(SymmetricInfoNCELoss(0.2)(a, b), expected)

    def test_worked_value(self) -> None:
        """Orthonormal pairs: log(1 + (N - 1) exp(-1/tau))."""
        eye = torch.eye(4, dtype=D)
        assert SymmetricInfoNCELoss(1.0)(eye, eye).item() == pytest.approx(math.log(1 + 3 / math.e))

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="temperature must be > 0"):
            SymmetricInfoNCELoss(0.0)
        a, b = views()
        with pytest.raises(ValueError, match="projections_1 must have shape"):
            SymmetricInfoNCELoss()(a[0], b[0])

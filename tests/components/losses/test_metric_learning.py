import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn.functional import normalize

from components.losses import SupervisedContrastiveLoss, TripletLoss


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(24, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))


def brute_force_triplets(distances: Tensor, target: Tensor, margin: float) -> Tensor:
    """Anchor by anchor, pair by pair, as the paper says it; None-like NaN for an anchor without a triplet."""
    values = []
    for a in range(len(target)):
        positives = [p for p in range(len(target)) if p != a and target[p] == target[a]]
        negatives = [n for n in range(len(target)) if target[n] != target[a]]
        costs = []
        for p in positives:
            semi_hard = [distances[a, n] for n in negatives if distances[a, n] > distances[a, p]]
            chosen = min(semi_hard) if semi_hard else max(distances[a, n] for n in negatives)
            costs.append((distances[a, p] - chosen + margin).clamp(min=0))
        values.append(torch.stack(costs).mean() if costs else torch.tensor(math.nan, dtype=torch.float64))
    return torch.stack(values)


class TestTriplet:
    def test_worked_value(self) -> None:
        """On a line: a=0, p=1 of one class; n=1.5, m=4 of another. Squared distances, margin 2.

        a: d(a,p)=1, nearest beyond: 2.25 → 1 - 2.25 + 2 = 0.75. p: d=1, n is at 0.25 (not beyond), m at 9 → 1 - 9 + 2 < 0 → 0.
        n: d(n,m)=6.25, negatives at 2.25 and 0.25, none beyond: the farthest, 2.25 → 6. m: d=6.25, nearest beyond: 9 → 0 (6.25 - 9 + 2 = -0.75).
        """
        embeddings = torch.tensor([[0.0], [1.0], [1.5], [4.0]])
        loss = TripletLoss(margin=2.0, normalize=False, reduction="none")(embeddings, torch.tensor([0, 0, 1, 1]))
        torch.testing.assert_close(loss, torch.tensor([0.75, 0.0, 6.0, 0.0]))

    @pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
    @pytest.mark.parametrize("normalized", [True, False])
    @pytest.mark.parametrize("margin", [0.2, 1.5])
    def test_agrees_with_brute_force(self, embeddings: Tensor, target: Tensor, distance: str, normalized: bool, margin: float) -> None:
        z = normalize(embeddings) if normalized or distance == "cosine" else embeddings
        squared = (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(2)
        distances = {"euclidean": lambda: (squared + torch.eye(24)).sqrt(), "squared_euclidean": lambda: squared, "cosine": lambda: 1 - z @ z.T}[distance]()
        expected = brute_force_triplets(distances, target, margin)
        assert not expected.isnan().any()
        ours = TripletLoss(margin, distance=distance, normalize=normalized, reduction="none")(embeddings, target)
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), embeddings)[0] for v in (ours, expected)), rtol=1e-6, atol=1e-6)

    def test_mean_is_over_anchors_that_have_a_triplet(self, embeddings: Tensor) -> None:
        target = torch.tensor([0] * 6 + [1] * 6 + list(range(2, 14)))  # the last twelve are alone in their class
        elements = TripletLoss(reduction="none")(embeddings, target)
        assert (elements[12:] == 0).all()
        torch.testing.assert_close(TripletLoss()(embeddings, target), elements.sum() / 12)

    @pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
    def test_identical_embeddings(self, distance: str) -> None:
        embeddings = torch.ones(6, 4, requires_grad=True)
        value = TripletLoss(0.2, distance=distance)(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]))
        assert value.item() == pytest.approx(0.2, abs=1e-3)
        assert torch.isfinite(torch.autograd.grad(value, embeddings)[0]).all()

    def test_separated_classes_cost_nothing(self) -> None:
        embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
        assert TripletLoss(0.2)(embeddings, torch.tensor([0, 0, 1, 1])) == 0

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match=r"distance must be one of .* did you mean 'cosine'"):
            TripletLoss(distance="cosin")
        with pytest.raises(ValueError, match="margin must be > 0"):
            TripletLoss(margin=0)


class TestSupervisedContrastive:
    def test_worked_value(self) -> None:
        """a, b equal and c at a right angle, τ = 1: for a and b the logits are 1 (partner) and 0: ln(1 + e^-1); c has no partner."""
        embeddings = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
        loss = SupervisedContrastiveLoss(1.0, reduction="none")(embeddings, torch.tensor([0, 0, 1]))
        expected = math.log(1 + math.exp(-1))
        torch.testing.assert_close(loss, torch.tensor([expected, expected, 0.0]))
        assert SupervisedContrastiveLoss(1.0)(embeddings, torch.tensor([0, 0, 1])).item() == pytest.approx(expected)

    @pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
    def test_agrees_with_pytorch_metric_learning(self, embeddings: Tensor, target: Tensor, temperature: float) -> None:
        ours, theirs = SupervisedContrastiveLoss(temperature)(embeddings, target), SupConLoss(temperature)(embeddings, target)
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(*(torch.autograd.grad(v, embeddings)[0] for v in (ours, theirs)), rtol=1e-6, atol=1e-6)

    def test_scale_of_embeddings_does_not_matter(self, embeddings: Tensor, target: Tensor) -> None:
        loss = SupervisedContrastiveLoss()
        torch.testing.assert_close(loss(1000 * embeddings, target), loss(embeddings, target))

    def test_no_pairs_at_all(self, embeddings: Tensor) -> None:
        value = SupervisedContrastiveLoss()(embeddings, torch.arange(24))
        assert value == 0 and (torch.autograd.grad(value, embeddings)[0] == 0).all()

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="temperature must be > 0"):
            SupervisedContrastiveLoss(0.0)
        with pytest.raises(ValueError, match="embeddings must have shape"):
            SupervisedContrastiveLoss()(torch.zeros(4, 2, 2), torch.zeros(4, dtype=torch.long))

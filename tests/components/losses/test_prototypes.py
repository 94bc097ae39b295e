import math

import pytest
import torch
from torch import Tensor

from components.losses import ICNNLoss, PrototypeTripletLoss, PrototypicalLoss

DOUBLE = torch.float64


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(20, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 3, 1, 2, 3, 0, 0, 1, 2, 3, 3, 2, 1, 0, 2, 1, 3, 0, 1, 2])


def prototype_distances(embeddings: Tensor, target: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Squared distances of sample i to its own prototype (without it) and to the others'."""
    own = embeddings[[j for j in range(len(target)) if target[j] == target[i] and j != i]].mean(0)
    others = torch.stack([embeddings[target == k].mean(0) for k in target.unique() if k != target[i]])
    return (embeddings[i] - own).square().sum(), (embeddings[i] - others).square().sum(1)


class TestPrototypical:
    @pytest.mark.parametrize("temperature", [1.0, 0.3])
    def test_agrees_with_brute_force(self, embeddings, target, temperature) -> None:
        values = []
        for i in range(20):
            own, others = prototype_distances(embeddings, target, i)
            values.append(-torch.cat([-own[None], -others]).div(temperature).log_softmax(0)[0])
        torch.testing.assert_close(PrototypicalLoss(temperature, reduction="none")(embeddings, target), torch.stack(values))

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="temperature must be > 0"):
            PrototypicalLoss(0.0)


class TestPrototypeTriplet:
    def test_query_at_its_prototype_with_the_nearest_other_at_distance_2(self) -> None:
        embeddings = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        assert PrototypeTripletLoss()(embeddings, torch.tensor([0, 0, 1, 1])) == 0

    def test_equidistant_query(self) -> None:
        """The first sample lies in the middle between its own class' prototype (the second sample) and the other class'."""
        embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
        assert PrototypeTripletLoss(reduction="none")(embeddings, torch.tensor([0, 0, 1, 1]))[0].item() == pytest.approx(0.5, abs=1e-6)

    def test_agrees_with_brute_force(self, embeddings, target) -> None:
        values = []
        for i in range(20):
            own, others = prototype_distances(embeddings, target, i)
            values.append(((own + 1e-6).sqrt() - (others.min() + 1e-6).sqrt() + 0.7).clamp(min=0))
        torch.testing.assert_close(PrototypeTripletLoss(0.7, reduction="none")(embeddings, target), torch.stack(values))

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="margin must be > 0"):
            PrototypeTripletLoss(0.0)


def brute_force_score(points: Tensor, target: Tensor, k: int) -> Tensor:
    """The score, sample by sample: compactness, separation and the neighbours' share, as the released code means them."""
    size = len(points)
    whole = k + 2 >= size
    k = size - 2 if whole else k
    distance = ((points[:, None] - points[None]).square().sum(2) + 1e-6).sqrt()
    compact, own_share = [], []
    impostors = []
    for i in range(size):
        order = sorted((j for j in range(size) if j != i), key=lambda j: float(distance[i, j]))
        listed, near = order[: k + 1], order[:k]
        strangers = [distance[i, j] for j in listed if target[j] != target[i]]
        relative = {j: distance[i, j] / (min(strangers) + 1e-7) if strangers else torch.zeros((), dtype=DOUBLE) for j in near}
        largest = max([*relative.values(), torch.ones((), dtype=DOUBLE)])
        friends = [relative[j] / largest for j in near if target[j] == target[i]]
        if friends:
            compact.append(torch.stack(friends).mean())
        own_share.append(len(friends) / k)
        impostors.append([distance[i, j] for j in near if target[j] != target[i]])
    compactness = 1 - torch.stack(compact).mean() if compact else torch.ones((), dtype=DOUBLE)
    if any(impostors):
        farthest = max(d for row in impostors for d in row)
        separation = torch.stack([torch.stack(row).mean() / farthest for row in impostors if row]).mean()
    else:
        separation = torch.ones((), dtype=DOUBLE)
    gamma = 1.0 if whole else sum(own_share) / size
    return ((compactness + separation) / 2 + gamma) / 2


class TestICNN:
    def test_two_tight_clusters_cost_nothing(self) -> None:
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(12) % 2
        embeddings = target[:, None] * torch.tensor([[100.0, 0.0]]) + 0.001 * torch.randn(12, 2, generator=generator)
        assert ICNNLoss()(embeddings, target).item() == pytest.approx(0, abs=1e-3)

    def test_one_cloud_with_random_labels_costs(self) -> None:
        values = []
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            embeddings, target = torch.randn(12, 2, generator=generator), torch.arange(12)[torch.randperm(12, generator=generator)] % 2
            values.append(ICNNLoss()(embeddings, target).item())
        assert sum(values) / 20 == pytest.approx(0.89, abs=0.1)
        assert min(values) > 0.4

    @pytest.mark.parametrize("neighbours", [1, 2, 4, 7, 17, 18, 40])
    def test_agrees_with_brute_force(self, embeddings, target, neighbours) -> None:
        expected = -brute_force_score(embeddings, target, neighbours).log()
        ours = ICNNLoss(neighbours)(embeddings, target)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*(torch.autograd.grad(v, embeddings)[0] for v in (ours, expected)), rtol=1e-4, atol=1e-5)

    def test_scale_does_not_matter(self, embeddings, target) -> None:
        loss = ICNNLoss()
        assert loss(100 * embeddings, target).item() == pytest.approx(loss(embeddings, target).item(), abs=1e-4)

    def test_every_sample_gets_the_value_of_the_batch(self, embeddings, target) -> None:
        elements = ICNNLoss(reduction="none")(embeddings, target)
        assert (elements == ICNNLoss()(embeddings, target)).all() and math.isfinite(elements[0])

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="neighbours must be >= 1"):
            ICNNLoss(0)

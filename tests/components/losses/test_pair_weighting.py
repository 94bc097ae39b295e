import math

import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor
from torch.nn.functional import normalize

from components.losses import BinomialDevianceLoss, ContrastiveLoss, LiftedStructureLoss, MultiSimilarityLoss, ProxyAnchorLoss

DISTANCE = {"euclidean": lambda: pml_distances.LpDistance(), "squared_euclidean": lambda: pml_distances.LpDistance(power=2)}
DOUBLE = torch.float64


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(24, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))


def assert_agrees(ours: Tensor, theirs: Tensor, embeddings: Tensor, *more: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(v, embeddings, retain_graph=True)[0] for v in (ours, theirs)), rtol=1e-6, atol=1e-6)


def one_anchor(loss: MultiSimilarityLoss, positives: list[float], negatives: list[float]) -> tuple[Tensor, Tensor]:
    """The value of one anchor with these cosines, and its derivative with respect to each."""
    similarity = torch.tensor([positives + negatives], dtype=DOUBLE, requires_grad=True)
    belongs = torch.tensor([[1.0] * len(positives) + [0.0] * len(negatives)], dtype=DOUBLE)
    value = loss.values(similarity, belongs, 1 - belongs, torch.ones(1, dtype=DOUBLE))[0]
    return value, torch.autograd.grad(value, similarity)[0][0]


class TestContrastive:
    @pytest.mark.parametrize("distance", DISTANCE)
    @pytest.mark.parametrize(("average", "reducer"), [("nonzero", None), ("all", MeanReducer())])
    @pytest.mark.parametrize(("margin", "positive_margin"), [(1.0, 0.0), (1.3, 0.4)])
    def test_agrees_with_pytorch_metric_learning(self, embeddings, target, distance, average, reducer, margin, positive_margin) -> None:
        ours = ContrastiveLoss(margin, positive_margin=positive_margin, distance=distance, squared=False, average=average)(embeddings, target)
        theirs = pml.ContrastiveLoss(positive_margin, margin, distance=DISTANCE[distance](), reducer=reducer)(embeddings, target)
        assert_agrees(ours, theirs, embeddings)

    def test_squared_hinge_is_halved(self) -> None:
        """Cosine 0.5 is distance 1: a pair of one class costs 1/2, one of two classes (1.5 - 1)²/2."""
        embeddings = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
        loss = ContrastiveLoss(1.5)
        assert loss(embeddings, torch.tensor([0, 0])).item() == pytest.approx(0.5, abs=1e-6)
        assert loss(embeddings, torch.tensor([0, 1])).item() == pytest.approx(0.125, abs=1e-6)

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="margin must be > 0"):
            ContrastiveLoss(0.0)
        with pytest.raises(ValueError, match=r"distance must be one of .* did you mean 'cosine'"):
            ContrastiveLoss(distance="cosin")
        with pytest.raises(ValueError, match="average must be one of nonzero, all"):
            ContrastiveLoss(average="mean")


class TestLiftedStructure:
    @pytest.mark.parametrize("distance", DISTANCE)
    @pytest.mark.parametrize(("per", "theirs"), [("pair", pml.LiftedStructureLoss), ("anchor", pml.GeneralizedLiftedStructureLoss)])
    @pytest.mark.parametrize(("margin", "positive_margin"), [(1.0, 0.0), (0.3, 0.1)])
    def test_agrees_with_pytorch_metric_learning(self, embeddings, target, distance, per, theirs, margin, positive_margin) -> None:
        ours = LiftedStructureLoss(margin, positive_margin=positive_margin, distance=distance, per=per)(embeddings, target)
        assert_agrees(ours, theirs(margin, positive_margin, distance=DISTANCE[distance]())(embeddings, target), embeddings)

    def test_without_negatives_costs_nothing(self, embeddings) -> None:
        for per in ("pair", "anchor"):
            value = LiftedStructureLoss(per=per)(embeddings, torch.zeros(24, dtype=torch.long))
            assert value == 0 and (torch.autograd.grad(value, embeddings)[0] == 0).all()


class TestBinomialDeviance:
    def test_agrees_with_brute_force(self, embeddings, target) -> None:
        z = normalize(embeddings.detach())
        values = []
        for i in range(24):
            near = [math.log1p(math.exp(-2 * (float(z[i] @ z[j]) - 0.4))) for j in range(24) if j != i and target[i] == target[j]]
            far = [math.log1p(math.exp(10 * (float(z[i] @ z[j]) - 0.4))) for j in range(24) if target[i] != target[j]]
            values.append(sum(near) / len(near) + sum(far) / len(far))
        ours = BinomialDevianceLoss(2.0, 10.0, 0.4, reduction="none")(embeddings, target)
        torch.testing.assert_close(ours, torch.tensor(values, dtype=DOUBLE), rtol=1e-9, atol=1e-9)


class TestMultiSimilarity:
    def test_one_positive_and_one_negative_at_the_base(self) -> None:
        value, _ = one_anchor(MultiSimilarityLoss(2.0, 50.0, 0.5), [0.5], [0.5])
        assert value.item() == pytest.approx(0.36044, abs=1e-5)
        assert value.item() == pytest.approx(math.log(2) / 2 + math.log(2) / 50, abs=1e-9)

    def test_two_negatives(self) -> None:
        loss = MultiSimilarityLoss(2.0, 50.0, 0.5)
        value, weights = one_anchor(loss, [], [0.4, 0.6])
        assert value.item() == pytest.approx(0.100135, abs=1e-5)
        torch.testing.assert_close(weights, torch.tensor([4.5e-5, 0.99326], dtype=DOUBLE), atol=1e-5, rtol=0)
        assert weights.sum() < 1

    def test_weights_are_those_of_general_pair_weighting(self, embeddings, target) -> None:
        """w+ and w- in closed form over the mined pairs, with the signs - and +; nothing on pairs that were mined away."""
        alpha, beta, base = 2.0, 40.0, 0.5
        loss = MultiSimilarityLoss(alpha, beta, base)
        got = loss.pair_weights(embeddings, target)
        z = normalize(embeddings.detach())
        similarity = z @ z.T
        positive, negative = loss.mine(similarity, *loss.masks(target))
        assert positive.sum() > 0 and 0 < negative.sum() < (target[:, None] != target).sum()
        expected = torch.zeros(24, 24, dtype=DOUBLE)
        for i in range(24):
            for j in range(24):
                s = similarity[i]
                if positive[i, j]:
                    expected[i, j] = -1 / (torch.exp(-alpha * (base - s[j])) + torch.exp(-alpha * (s[positive[i]] - s[j])).sum())
                if negative[i, j]:
                    expected[i, j] = 1 / (torch.exp(beta * (base - s[j])) + torch.exp(beta * (s[negative[i]] - s[j])).sum())
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)

    def test_scale_of_embeddings_does_not_matter(self, embeddings, target) -> None:
        loss = MultiSimilarityLoss()
        torch.testing.assert_close(loss(embeddings * torch.linspace(0.1, 50, 24, dtype=DOUBLE)[:, None], target), loss(embeddings, target))

    @pytest.mark.parametrize(("alpha", "beta", "base"), [(2.0, 50.0, 0.5), (2.0, 50.0, 1.0), (4.0, 10.0, 0.3)])
    def test_without_mining_agrees_with_pytorch_metric_learning(self, embeddings, target, alpha, beta, base) -> None:
        ours = MultiSimilarityLoss(alpha, beta, base, epsilon=math.inf)(embeddings, target)
        assert_agrees(ours, pml.MultiSimilarityLoss(alpha, beta, base)(embeddings, target), embeddings)

    def test_without_mining_every_pair_is_kept(self, embeddings, target) -> None:
        loss = MultiSimilarityLoss(epsilon=math.inf)
        z = normalize(embeddings)
        masks = loss.masks(target)
        for kept, every in zip(loss.mine(z @ z.T, *masks), masks, strict=True):
            assert torch.equal(kept, every)

    def test_mining_follows_its_definition(self, embeddings, target) -> None:
        z = normalize(embeddings)
        similarity = z @ z.T
        loss = MultiSimilarityLoss(epsilon=0.2)
        every_positive, every_negative = loss.masks(target)
        positive, negative = loss.mine(similarity, every_positive, every_negative)
        for i in range(24):
            least, most = similarity[i][every_positive[i]].min(), similarity[i][every_negative[i]].max()
            keeps_negative = every_negative[i] & (similarity[i] > least - 0.2)
            keeps_positive = every_positive[i] & (similarity[i] < most + 0.2)
            both = bool(keeps_negative.any() and keeps_positive.any())
            assert torch.equal(negative[i], keeps_negative & both) and torch.equal(positive[i], keeps_positive & both)

    def test_separated_classes_are_mined_away(self) -> None:
        embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]], requires_grad=True)
        value = MultiSimilarityLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
        assert value == 0 and (torch.autograd.grad(value, embeddings)[0] == 0).all()


class TestProxyAnchor:
    @pytest.mark.parametrize(("alpha", "delta"), [(32.0, 0.1), (8.0, 0.3)])
    def test_agrees_with_pytorch_metric_learning(self, embeddings, target, alpha, delta) -> None:
        """Six proxies for five classes: the sixth has no sample and is everybody's negative."""
        ours, theirs = ProxyAnchorLoss(6, 7, alpha, delta).double(), pml.ProxyAnchorLoss(6, 7, margin=delta, alpha=alpha)
        theirs.proxies.data = ours.proxies.detach().clone()
        a, b = ours(embeddings, target), theirs(embeddings, target)
        assert_agrees(a, b, embeddings)
        torch.testing.assert_close(torch.autograd.grad(a, ours.proxies)[0], torch.autograd.grad(b, theirs.proxies)[0], rtol=1e-6, atol=1e-6)

    def test_refuses(self, embeddings, target) -> None:
        with pytest.raises(ValueError, match=r"target must hold classes in \[0, 3\)"):
            ProxyAnchorLoss(3, 7)(embeddings, target)
        with pytest.raises(ValueError, match=r"embeddings must have size 6 \(embedding_dim\), but got 7"):
            ProxyAnchorLoss(5, 6)(embeddings, target)

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from components.losses import ContrastiveLoss, LiftedStructureLoss, MetrixLoss, MultiSimilarityLoss, ProxyAnchorLoss
from components.losses.mixed_pairs import draws, mixed_similarity
from components.losses.pair_weighting import PairLoss

DOUBLE = torch.float64
BASES = {
    "contrastive": lambda: ContrastiveLoss(0.5, squared=False),
    "multi_similarity": lambda: MultiSimilarityLoss(),
    "lifted_structure": lambda: LiftedStructureLoss(per="anchor"),
    "proxy_anchor": lambda: ProxyAnchorLoss(5, 7).double(),
}


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(24, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))


def metrix(pairs: str, base: PairLoss | None = None, **settings: object) -> MetrixLoss:
    loss = MetrixLoss(5, 7, pairs=pairs, **settings).double()  # type: ignore[arg-type]
    if base is not None:
        loss.pairs.load_state_dict(base.state_dict())
    return loss


@pytest.mark.parametrize("pairs", BASES)
class TestEveryLossOfPairs:
    def test_mixing_0_is_the_loss_of_pairs(self, embeddings, target, pairs) -> None:
        base = BASES[pairs]()
        expected = base(embeddings, target)
        assert torch.equal(metrix(pairs, base, mixing=0.0)(embeddings, target, 3), expected)
        assert metrix(pairs, base)(embeddings, target, 3) > expected

    def test_evaluation_is_the_loss_of_pairs(self, embeddings, target, pairs) -> None:
        base = BASES[pairs]()
        assert torch.equal(metrix(pairs, base).eval()(embeddings, target, 3), base(embeddings, target))

    @pytest.mark.parametrize("mixes", ["positive_negative", "anchor_negative"])
    def test_mixed_part_is_the_loss_on_embeddings_that_were_mixed(self, embeddings, target, pairs, mixes) -> None:
        """Against mixed vectors that are really made, anchor by anchor; the labels are λ and 1 - λ."""
        base = BASES[pairs]()
        share = 0.37
        got = metrix(pairs, base, mixes=mixes).mixed_values(normalize(embeddings), target, torch.ones(24, dtype=DOUBLE), share, 0.0)
        z = normalize(embeddings)
        anchors = base.anchors(z)
        positive, negative = base.masks(target)
        similarity = torch.zeros(len(anchors), 24, dtype=DOUBLE)
        for a in range(len(anchors)):
            theirs = anchors[a]
            if mixes == "positive_negative":
                members = positive[a].nonzero()[:, 0]
                if not len(members):
                    continue
                theirs = z[members[(z[members] @ anchors[a]).argmin()]]
            for n in range(24):
                similarity[a, n] = anchors[a] @ normalize(share * theirs + (1 - share) * z[n], dim=0)
        there = (negative & positive.any(1, keepdim=True) if mixes == "positive_negative" else negative).double()
        torch.testing.assert_close(got, base.values(similarity, share * there, (1 - share) * there, torch.ones(24, dtype=DOUBLE)))

    def test_gradient_reaches_the_embeddings(self, embeddings, target, pairs) -> None:
        gradient = torch.autograd.grad(metrix(pairs)(embeddings, target, 3), embeddings)[0]
        assert torch.isfinite(gradient).all() and (gradient != 0).any()


class TestLabels:
    @pytest.mark.parametrize("pairs", ["contrastive", "multi_similarity"])
    def test_degree_1_is_the_positive_part_and_0_the_negative(self, pairs) -> None:
        base, none = BASES[pairs](), torch.zeros(4, 6, dtype=DOUBLE)
        similarity = 0.7 + 0.3 * torch.rand(4, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        some = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
        kept = torch.ones(4, dtype=DOUBLE)
        positive_part, negative_part = base.values(similarity, some.double(), none, kept), base.values(similarity, none, some.double(), kept)
        assert (positive_part > 0).any() and (negative_part > 0).any()
        if pairs == "multi_similarity":
            by_hand = torch.stack([(1 + torch.exp(-2 * (s[m] - 0.5)).sum()).log() / 2 for s, m in zip(similarity, some, strict=True)])
            torch.testing.assert_close(positive_part, by_hand)
            by_hand = torch.stack([(1 + torch.exp(40 * (s[m] - 0.5)).sum()).log() / 40 for s, m in zip(similarity, some, strict=True)])
            torch.testing.assert_close(negative_part, by_hand)
        else:
            distance = (2 - 2 * similarity).sqrt()
            torch.testing.assert_close(positive_part.mean(), distance[some].mean())
            hinge = (0.5 - distance).relu()[some]
            torch.testing.assert_close(negative_part.mean(), hinge[hinge > 0].mean())

    def test_lifted_structure_needs_both_kinds(self) -> None:
        """Its sum of logarithms has no value for one kind alone; the loss is 0 there."""
        similarity, one = torch.zeros(1, 3, dtype=DOUBLE), torch.ones(1, 3, dtype=DOUBLE)
        assert BASES["lifted_structure"]().values(similarity, one, torch.zeros_like(one), torch.ones(1, dtype=DOUBLE)) == 0

    @pytest.mark.parametrize(("distance", "expected"), [(0.2, 0.24), (0.8, 0.48)])
    def test_worked_value_of_a_mixed_pair(self, distance, expected) -> None:
        similarity = torch.tensor([[1 - distance**2 / 2]], dtype=DOUBLE)
        value = BASES["contrastive"]().values(similarity, torch.tensor([[0.6]]).double(), torch.tensor([[0.4]]).double(), torch.ones(1, dtype=DOUBLE))
        assert value.item() == pytest.approx(expected, abs=1e-6)


class TestDraws:
    def test_share_follows_beta_2_2(self) -> None:
        shares = torch.tensor([draws(step)[0] for step in range(4000)], dtype=DOUBLE)
        uniform = 3 * shares.square() - 2 * shares**3  # the distribution function
        expected = (torch.arange(4000) + 0.5) / 4000
        assert (uniform.sort().values - expected).abs().max() < 0.002

    def test_both_kinds_are_drawn_equally_often_whatever_the_share(self) -> None:
        pairs = [draws(step) for step in range(4000)]
        for low, high in ((0.0, 0.5), (0.5, 1.0)):
            kinds = [kind < 0.5 for share, kind in pairs if low <= share < high]
            assert abs(sum(kinds) / len(kinds) - 0.5) < 0.01

    def test_depend_on_the_step_alone(self, embeddings, target) -> None:
        loss = metrix("contrastive")
        assert torch.equal(loss(embeddings, target, 5), loss(embeddings, target, 5))
        assert not torch.equal(loss(embeddings, target, 5), loss(embeddings, target, 6))


def test_opposite_embeddings_mix_to_something_finite() -> None:
    first = torch.tensor([1.0], requires_grad=True)
    value = mixed_similarity(first, -first, -first.detach(), 0.5)
    assert torch.isfinite(value) and torch.isfinite(torch.autograd.grad(value.sum(), first)[0])


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"pairs must be one of .* did you mean 'contrastive'"):
        MetrixLoss(pairs="contrastiv")
    with pytest.raises(ValueError, match=r"settings: multi_similarity takes .* but got 'betta'; did you mean 'beta'|settings: .*did you mean 'beta'"):
        MetrixLoss(pairs="multi_similarity", settings={"betta": 3})
    with pytest.raises(ValueError, match="mixing must be >= 0"):
        MetrixLoss(mixing=-1.0)
    with pytest.raises(ValueError, match="needs num_classes and embedding_dim"):
        MetrixLoss(pairs="proxy_anchor")
    assert MetrixLoss(pairs="multi_similarity", settings={"beta": 50.0}).pairs.beta == 50.0
    assert not hasattr(MetrixLoss(5, 7), "num_classes"), "what has no proxies has a value on unseen classes"
    assert math.isfinite(draws(10**9)[0])

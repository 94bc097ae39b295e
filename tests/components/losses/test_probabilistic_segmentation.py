import geomloss
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional as F

from components.losses import ElboSegmentationLoss, StatisticalDistanceLoss
from components.losses.probabilistic_segmentation import energy_distance, frechet_distance, sinkhorn_divergence


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def samples() -> Tensor:
    return torch.rand(3, 4, 64, dtype=torch.float64, generator=generator(0))


@pytest.fixture
def masks() -> Tensor:
    return (torch.rand(3, 5, 64, dtype=torch.float64, generator=generator(1)) > 0.5).double()


def each_frechet(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([frechet_distance(a, b) for a, b in zip(x, y, strict=True)])


DISTANCES = [sinkhorn_divergence, energy_distance, each_frechet]


class TestDistances:
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_equal_sets_have_distance_and_gradient_zero(self, distance, samples: Tensor) -> None:
        leaf = samples.clone().requires_grad_()
        value = distance(leaf, samples.flip(1))
        torch.testing.assert_close(value, torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)
        torch.testing.assert_close(torch.autograd.grad(value.sum(), leaf)[0], torch.zeros_like(leaf), atol=1e-10, rtol=0)

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_the_order_of_samples_and_raters_does_not_matter(self, distance, samples: Tensor, masks: Tensor) -> None:
        torch.testing.assert_close(distance(samples[:, [2, 0, 3, 1]], masks[:, [4, 1, 0, 3, 2]]), distance(samples, masks))

    def test_worked_values(self) -> None:
        x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
        assert energy_distance(x[None], y[None]).item() == pytest.approx(0.5)  # E|x - y| = 1, E|x - x'| = 1
        assert frechet_distance(x, y).item() == pytest.approx(2)  # equal means; variances 2 and 0

    def test_energy_distance_is_geomloss(self, samples: Tensor, masks: Tensor) -> None:
        """To a tenth of a thousandth: geomloss takes distances below 1e-4, a sample's from itself, for 1e-4."""
        torch.testing.assert_close(energy_distance(samples, masks), geomloss.SamplesLoss("energy")(samples, masks), rtol=0, atol=1e-4)

    def test_sinkhorn_divergence_is_geomloss_in_the_limit(self, samples: Tensor, masks: Tensor) -> None:
        near = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.3, scaling=0.98)(samples, masks)
        torch.testing.assert_close(sinkhorn_divergence(samples, masks, 0.3, 400), near, rtol=1e-3, atol=0)
        default = geomloss.SamplesLoss("sinkhorn")(samples, masks)
        torch.testing.assert_close(sinkhorn_divergence(samples, masks), default, rtol=5e-3, atol=0)

    def test_sinkhorn_divergence_of_points_is_half_the_squared_distance(self) -> None:
        x, y = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 1.0, 0.0]]])
        assert sinkhorn_divergence(x, y).item() == pytest.approx(1.0, rel=1e-5)

    def test_frechet_distance_by_the_matrix_root(self, samples: Tensor, masks: Tensor) -> None:
        x, y = samples[..., :2].flatten(0, 1), masks[..., :2].flatten(0, 1)
        s, r = torch.cov(x.T), torch.cov(y.T)
        expected = (x.mean(0) - y.mean(0)).square().sum() + (s + r).trace() - 2 * float(sqrtm((s @ r).numpy()).real.trace())
        torch.testing.assert_close(frechet_distance(x, y), expected)


class TestStatisticalDistance:
    @pytest.fixture
    def logits(self) -> Tensor:
        return torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=generator(2))

    @pytest.fixture
    def raters(self) -> Tensor:
        return torch.randint(2, (2, 4, 4, 5), generator=generator(3))

    @pytest.fixture
    def kl(self) -> Tensor:
        return torch.tensor([0.3, 0.7], dtype=torch.float64)

    @pytest.mark.parametrize(("name", "distance"), [("sinkhorn", sinkhorn_divergence), ("energy", energy_distance)])
    def test_is_the_distance_of_the_foregrounds_plus_the_divergence(self, name: str, distance, logits: Tensor, raters: Tensor, kl: Tensor) -> None:
        expected = distance(logits.softmax(2)[:, :, 1].flatten(2), raters.double().flatten(2)) + 2 * kl
        torch.testing.assert_close(StatisticalDistanceLoss(distance=name, kl_weight=2.0, reduction="none")(logits, raters, kl), expected)

    def test_frechet_pools_the_batch(self, logits: Tensor, raters: Tensor, kl: Tensor) -> None:
        x, y = logits.softmax(2)[:, :, 1].flatten(0, 1).flatten(1), raters.double().flatten(0, 1).flatten(1)
        torch.testing.assert_close(StatisticalDistanceLoss(distance="frechet", reduction="none")(logits, raters, kl), frechet_distance(x, y) + kl)

    def test_features_are_frozen(self, logits: Tensor, raters: Tensor, kl: Tensor) -> None:
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double()
        loss = StatisticalDistanceLoss(distance="frechet", features=net)
        loss.train()
        leaf = logits.requires_grad_()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        torch.autograd.grad(loss(leaf, raters, kl), leaf)
        assert not any(p.requires_grad for p in loss.parameters())
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    @pytest.mark.parametrize("distance", ["sinkhorn", "energy", "frechet"])
    def test_samples_that_are_the_raters_masks_cost_nothing(self, distance: str, raters: Tensor) -> None:
        logits = 300.0 * F.one_hot(raters, 2).movedim(-1, 2).double()
        assert StatisticalDistanceLoss(distance=distance)(logits, raters, torch.zeros(2, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-9)

    def test_samples_take_the_raters_proportions_and_no_grey(self) -> None:
        """Half of four raters mark a blob: four free masks end up half with it and half without, where cross-entropy with all of them goes to 0.5."""
        raters = torch.zeros(1, 4, 3, 3, dtype=torch.long)
        raters[:, :2, 1:] = 1

        def trained(loss) -> Tensor:
            scores = (0.1 * torch.randn(1, 4, 3, 3, dtype=torch.float64, generator=generator(0))).requires_grad_()
            optimizer = torch.optim.Adam([scores], lr=0.1)
            for _ in range(100):
                optimizer.zero_grad()
                loss(torch.stack([torch.zeros_like(scores), scores], 2)).backward()
                optimizer.step()
            return scores.detach().sigmoid()[0, :, 1:]

        drawn = trained(lambda z: StatisticalDistanceLoss(distance="energy")(z, raters, torch.zeros(1, dtype=torch.float64)))
        assert sorted((drawn.flatten(1).mean(1) > 0.5).tolist()) == [False, False, True, True]
        assert ((drawn < 0.1) | (drawn > 0.9)).all()
        every = torch.stack([raters] * 4, 1).flatten(1, 2)
        grey = trained(lambda z: F.cross_entropy(z.repeat_interleave(4, 1).flatten(0, 1), every.flatten(0, 1)))
        torch.testing.assert_close(grey, torch.full_like(grey, 0.5), atol=0.05, rtol=0)

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'sinkhorn'"):
            StatisticalDistanceLoss(distance="sinkhorm")
        for wrong in ({"kl_weight": -1.0}, {"blur": 0.0}, {"steps": 0}, {"features": nn.Identity()}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                StatisticalDistanceLoss(**wrong)

    def test_bad_input(self, logits: Tensor, raters: Tensor, kl: Tensor) -> None:
        with pytest.raises(ValueError, match="rater_targets must hold classes"):
            StatisticalDistanceLoss()(logits, raters + 1, kl)
        with pytest.raises(ValueError, match="rater_targets must hold two or more"):
            StatisticalDistanceLoss(distance="frechet")(logits[:1], raters[:1, :1], kl[:1])
        with pytest.raises(ValueError, match="sample_logits must have shape"):
            StatisticalDistanceLoss()(logits[:, :, :1], raters, kl)


class TestElbo:
    def test_is_cross_entropy_of_each_sample_plus_the_divergence(self) -> None:
        logits, target = torch.randn(2, 3, 4, 5, generator=generator(4), dtype=torch.float64), torch.randint(4, (2, 5), generator=generator(5))
        kl = torch.tensor([0.5, 1.5], dtype=torch.float64)
        each = torch.stack([F.cross_entropy(logits[:, s], target, reduction="none").sum(1) for s in range(3)]).mean(0)
        torch.testing.assert_close(ElboSegmentationLoss(kl_weight=2.0, reduction="none")(logits, target, kl), each + 2 * kl)
        torch.testing.assert_close(ElboSegmentationLoss(over_pixels="mean", reduction="none")(logits, target, kl), each / 5 + kl)

    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="over_pixels must be one of"):
            ElboSegmentationLoss(over_pixels="average")
        with pytest.raises(ValueError, match="kl_weight"):
            ElboSegmentationLoss(kl_weight=-0.1)

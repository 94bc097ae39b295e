import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from components.counter_random import normal, random_bits, uniform
from components.losses import EnsLoss
from components.losses.ensembles import inverse_box_cox


def batch(size: int = 64, columns: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(size, columns, dtype=torch.float64, generator=generator)
    return scores.requires_grad_(), torch.randint(2, (size, columns), generator=generator).double()


def applied(loss: EnsLoss, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margins, and the derivative with respect to each margin that training applies."""
    sign = 2 * labels - 1
    gradient = torch.autograd.grad(loss(scores, labels), scores)[0] * scores.numel()
    return (sign * scores).detach(), sign * gradient


class TestEnsLoss:
    @pytest.mark.parametrize("lam", [-1.0, -0.3, 0.0, 0.5, 1.0])
    def test_derivatives_increase_with_the_margin_and_are_negative_and_bounded(self, lam: float) -> None:
        for seed in range(5):
            margins, derivatives = applied(EnsLoss(lam, seed=seed), *batch(seed=seed))
            ordered = derivatives[:, 0][margins[:, 0].argsort()]
            assert (ordered.diff() >= -1e-15).all(), "also across a margin of 1"
            assert (ordered < 0).all() and (ordered >= -1 - 1e-6 - 1e-15).all()
            assert (margins > 1).any() and (margins < 1).any()

    def test_gradient_is_the_drawn_derivative_and_nothing_flows_through_it(self) -> None:
        scores, labels = batch()
        loss = EnsLoss(0.4)
        margins = ((2 * labels - 1) * scores).detach()
        drawn = loss.derivatives(margins, None, 0.4)
        assert not drawn.requires_grad
        expected = (drawn / margins.clamp(min=1) - 1e-6) * (2 * labels - 1) / len(labels)
        torch.testing.assert_close(torch.autograd.grad(loss(scores, labels), scores)[0], expected, rtol=1e-12, atol=1e-15)

    def test_lam_zero_is_lognormal_and_one_is_a_rectified_normal(self) -> None:
        margins = torch.zeros(200_000, 1, dtype=torch.float64)
        drawn = -EnsLoss(0.0).derivatives(margins, None, 0.0)[:, 0]
        quantiles = torch.tensor([0.02, 0.1, 0.25, 0.4], dtype=torch.float64)
        torch.testing.assert_close(drawn.quantile(quantiles), torch.special.ndtri(quantiles).exp(), rtol=0.02, atol=0.002)
        assert (drawn == 1).double().mean().item() == pytest.approx(0.5, abs=0.01), "half of a log-normal's values are above 1, and clipped"
        drawn = -EnsLoss(1.0).derivatives(margins, None, 1.0)[:, 0]
        assert (drawn == 0).double().mean().item() == pytest.approx(0.158655, abs=0.005), "P(1 + u <= 0)"
        torch.testing.assert_close(drawn.quantile(quantiles[2:]), 1 + torch.special.ndtri(quantiles[2:]), rtol=0.02, atol=0.005)

    def test_inverse_box_cox(self) -> None:
        u = torch.linspace(-3, 3, 13, dtype=torch.float64)
        torch.testing.assert_close(inverse_box_cox(u, 0.0), u.exp())
        torch.testing.assert_close(inverse_box_cox(u, 1e-5), u.exp(), rtol=1e-4, atol=0)
        torch.testing.assert_close(inverse_box_cox(u, 1.0), (1 + u).clamp(min=0))
        torch.testing.assert_close(inverse_box_cox(u, 0.5), (1 + 0.5 * u).clamp(min=0).square())
        assert inverse_box_cox(torch.tensor(2.0), -1.0).item() == math.inf

    def test_separates_what_can_be_separated(self) -> None:
        torch.manual_seed(0)
        points = torch.randn(200, 2)
        labels = (points.sum(1, keepdim=True) > 0).float()
        points = points + 0.3 * (2 * labels - 1)
        model, loss = nn.Linear(2, 1), EnsLoss(period=5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(400):
            optimizer.zero_grad()
            loss(model(points), labels, epoch=step // 10).backward()
            optimizer.step()
        assert ((model(points) > 0) == labels.bool()).all()

    def test_with_a_hinges_derivatives_it_is_the_hinge(self) -> None:
        scores, labels = batch()
        margins = (2 * labels - 1) * scores
        values = EnsLoss.antiderivative(margins, -(margins.detach() < 1).double()) + 1e-6 * margins
        own = torch.autograd.grad(values.mean(), scores, retain_graph=True)[0]
        torch.testing.assert_close(own, torch.autograd.grad((1 - margins).clamp(min=0).mean(), scores)[0])

    def test_every_batch_draws_another_loss_and_a_seed_the_same_ones(self) -> None:
        values = partial(batch, 32, 3)
        first, again, other = EnsLoss(seed=1), EnsLoss(seed=1), EnsLoss(seed=2)
        drawn = [first(*values()).item() for _ in range(4)]
        assert len(set(drawn)) == 4
        assert drawn == [again(*values()).item() for _ in range(4)]
        assert drawn[0] != other(*values()).item()

    def test_a_resumed_run_draws_what_an_unbroken_one_does(self) -> None:
        unbroken, saved, resumed = EnsLoss(), EnsLoss(), EnsLoss()
        for loss in (unbroken, saved):
            for _ in range(3):
                loss(*batch())
        torch.rand(5)  # whatever else has drawn meanwhile
        resumed.load_state_dict(saved.state_dict())
        assert torch.equal(resumed(*batch(), epoch=25), unbroken(*batch(), epoch=25))

    def test_leaves_the_global_random_state_alone(self) -> None:
        before = torch.get_rng_state()
        EnsLoss()(*batch())
        assert torch.equal(before, torch.get_rng_state())

    def test_lam_is_drawn_every_period_from_its_range(self) -> None:
        loss = EnsLoss(0.0, lam_range=(0.0, 1.0), period=10)
        assert [float(loss.lam_at(epoch)) for epoch in (0, 5, 9)] == [0.0] * 3
        later = [float(loss.lam_at(10 * i)) for i in range(1, 200)]
        assert float(loss.lam_at(14)) == later[0] and later[0] != later[1]
        assert 0 < min(later) < 0.05 and 0.95 < max(later) < 1
        assert EnsLoss(0.2, period=0).lam_at(1000) == 0.2

    def test_columns_are_ensembles_of_their_own(self) -> None:
        scores, labels = batch(32)
        both = EnsLoss(reduction="none")(scores.expand(-1, 2), labels.expand(-1, 2))
        assert not torch.equal(both[:, 0], both[:, 1])
        assert torch.equal(both[:, :1], EnsLoss(reduction="none")(scores, labels))

    def test_in_evaluation_it_is_binary_cross_entropy_and_draws_nothing(self) -> None:
        scores, labels = batch()
        loss = EnsLoss().eval()
        torch.testing.assert_close(loss(scores, labels), nn.functional.binary_cross_entropy_with_logits(scores, labels))
        assert loss.batches == 0

    def test_wrong_options_are_named(self) -> None:
        with pytest.raises(ValueError, match="lam_range"):
            EnsLoss(lam_range=(1.0, -1.0))
        with pytest.raises(ValueError, match="period must be >= 0"):
            EnsLoss(period=-1)


class TestCounterRandom:
    def test_is_splitmix64(self) -> None:
        """The generator's third output from seed 1234567, as its reference implementation gives it: the state is seed + 3 x golden."""
        golden = 0x9E3779B97F4A7C15
        mask = (1 << 64) - 1

        def reference(x: int) -> int:
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
            return x ^ (x >> 31)

        assert reference((1234567 + golden) & mask) == 6457827717110365317, "the published first output"
        for number in (0, 1, 2**40):
            assert int(random_bits(torch.tensor(number))) & mask == reference((number * golden + golden) & mask)

    def test_uniform_and_normal(self) -> None:
        index = torch.arange(100_000)
        drawn = uniform(3, index)
        assert drawn.min() > 0 and drawn.max() < 1
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.005) and drawn.var().item() == pytest.approx(1 / 12, abs=0.002)
        gauss = normal(3, index, dtype=torch.float64)
        assert gauss.mean().item() == pytest.approx(0, abs=0.02) and gauss.std().item() == pytest.approx(1, abs=0.02)
        neighbours = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
        assert abs(neighbours.item()) < 0.02
        assert not torch.equal(drawn, uniform(4, index))
        assert uniform(torch.tensor([2**62, -1])).isfinite().all()

    def test_needs_a_tensor(self) -> None:
        with pytest.raises(ValueError, match="numbers"):
            random_bits(1, 2)

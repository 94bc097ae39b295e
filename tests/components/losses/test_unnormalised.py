"""Unnormalised models: the normaliser, the update of its average, and how flat noise contrastive estimation is."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from components.losses import MECOLoss, NCELoss
from components.losses.unnormalised import log_mean_exp

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_normal(x):
    return -0.5 * x.square() - LOG_ROOT_TWO_PI


def batch(n=6, r=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64), torch.randn(n, r, generator=generator, dtype=torch.float64)


class TestMECO:
    @pytest.mark.parametrize("w", [0.0, 0.5, 1.0])
    def test_estimates_the_normaliser(self, w):
        """s = -(x - w)² / 2 integrates to the root of 2 pi for any w."""
        noise = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        z = log_mean_exp(-0.5 * (noise - w).square() - log_normal(noise)).exp().item()
        assert z == pytest.approx(2.506628, rel=0.01)

    def test_value_is_the_negative_log_likelihood(self):
        x, noise = batch()
        z = noise.numel()  # q proportional to the model: the ratio is constant
        value = MECOLoss()(-0.5 * x.square(), -0.5 * noise.square(), log_normal(noise))
        assert z == 24 and value.item() == pytest.approx(-log_normal(x).mean().item(), abs=1e-12)

    def test_gamma_1_has_the_gradient_of_the_plug_in(self):
        w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        loss = MECOLoss(gamma=1.0)
        for seed in range(3):  # also once the average has started
            x, noise = batch(seed=seed)
            value = loss(-0.5 * (x - w).square(), -0.5 * (noise - w).square(), log_normal(noise))
            plug_in = 0.5 * (x - w).square().mean() + log_mean_exp(-0.5 * (noise - w).square() - log_normal(noise))
            torch.testing.assert_close(value, plug_in)
            torch.testing.assert_close(torch.autograd.grad(value, w), torch.autograd.grad(plug_in, w))

    def test_average_moves_and_its_gradient_is_divided_by_it(self):
        w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        loss, u = MECOLoss(gamma=0.3), None
        for seed in range(4):
            x, noise = batch(seed=seed)
            ratio = torch.exp(-0.5 * (noise - w).square() - log_normal(noise)).mean()
            u = ratio.item() if u is None else 0.7 * u + 0.3 * ratio.item()
            value = loss(-0.5 * (x - w).square(), -0.5 * (noise - w).square(), log_normal(noise))
            assert value.item() == pytest.approx((0.5 * (x - w).square().mean() + math.log(u)).item(), abs=1e-6)
            surrogate = 0.5 * (x - w).square().mean() + ratio / u
            torch.testing.assert_close(torch.autograd.grad(value, w), torch.autograd.grad(surrogate, w), rtol=1e-6, atol=1e-7)
        assert loss.log_u.item() == pytest.approx(math.log(u), abs=1e-6)

    def test_noise_from_the_model_gives_the_exact_gradient(self):
        """Importance weights are then constant: E_p[grad s] - E_data[grad s] of this batch."""
        w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        x, noise = batch()
        noise = noise + 0.7
        loss = MECOLoss(gamma=0.2)
        for _ in range(2):
            value = loss(-0.5 * (x - w).square(), -0.5 * (noise - w).square(), log_normal(noise - 0.7))
            (gradient,) = torch.autograd.grad(value, w)
            assert gradient.item() == pytest.approx(((noise - 0.7).mean() - (x - 0.7).mean()).item(), abs=1e-6)

    def test_evaluation_takes_the_batch_s_own_and_remembers_nothing(self):
        x, noise = batch()
        loss = MECOLoss()
        loss(x, noise, log_normal(noise))
        before = loss.log_u.clone()
        value = loss.eval()(x, 3 * noise, log_normal(noise))
        torch.testing.assert_close(value, -x.mean() + log_mean_exp(3 * noise - log_normal(noise)))
        assert torch.equal(loss.log_u, before)

    @pytest.mark.parametrize("gamma", [0.0, 1.5])
    def test_refuses_a_wrong_gamma(self, gamma):
        with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\]"):
            MECOLoss(gamma=gamma)


class TestNCE:
    def test_is_logistic_regression_of_data_against_noise(self):
        x, noise = batch()
        loss = NCELoss(log_z=0.3)
        value = loss(x, log_normal(x), noise, log_normal(noise))
        scores = torch.cat([x - log_normal(x), (noise - log_normal(noise)).flatten()]) - 0.3 - math.log(4)
        labels = torch.cat([torch.ones(6), torch.zeros(24)]).double()
        torch.testing.assert_close(value, torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / 6, rtol=1e-6, atol=1e-6)

    def test_log_z_is_learned(self):
        x, noise = batch()
        loss = NCELoss()
        loss(x, log_normal(x), noise, log_normal(noise)).backward()
        assert loss.log_z.grad is not None and loss.log_z.grad != 0

    def test_refuses_a_start_that_is_not_finite(self):
        with pytest.raises(ValueError, match="log_z must be a finite number"):
            NCELoss(log_z=math.inf)


class TestLandscape:
    """A mean to be found, theta*, by noise N(0, 1), with the normaliser known: over whole distributions, by quadrature."""

    @staticmethod
    def population(kind, truth, w):
        """The loss of w at a grid of the real line, weighted by the data's and the noise's density."""
        grid = torch.linspace(-14, 20, 20001, dtype=torch.float64)
        step = grid[1] - grid[0]
        w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        data, noise = log_normal(grid - truth).exp() * step, log_normal(grid).exp() * step
        s = -0.5 * (grid - w).square()
        if kind == "meco":
            value = -(data * s).sum() + ((s - log_normal(grid)).exp() * noise).sum().log()
        else:
            loss = NCELoss(log_z=LOG_ROOT_TWO_PI, reduction="none")
            one, none = torch.full((len(grid), 1), -1e9, dtype=torch.float64), torch.zeros(len(grid), 1, dtype=torch.float64)
            of_data = loss(s, log_normal(grid), one, none)
            of_noise = loss(torch.full_like(s, 1e9), torch.zeros_like(s), s[:, None], log_normal(grid)[:, None])
            value = (data * of_data).sum() + (noise * of_noise).sum()
        (first,) = torch.autograd.grad(value, w, create_graph=True)
        (second,) = torch.autograd.grad(first, w)
        return first.item(), second.item()

    @pytest.mark.parametrize(("truth", "curvature"), [(2, 0.357844), (4, 0.148023), (6, 0.019068)])
    def test_curvature_at_the_optimum(self, truth, curvature):
        by_quadrature, _ = quad(lambda x: norm.pdf(x, truth) * norm.pdf(x) / (norm.pdf(x, truth) + norm.pdf(x)) * (x - truth) ** 2, -14, 20, points=[0, truth])
        first, second = self.population("nce", truth, float(truth))
        assert first == pytest.approx(0, abs=1e-6)
        assert second == pytest.approx(by_quadrature, abs=1e-5)
        assert second == pytest.approx(curvature, abs=1e-5)
        assert self.population("meco", truth, float(truth))[1] == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("truth", [2, 4, 6])
    def test_gradient_at_the_noise(self, truth):
        assert self.population("meco", truth, 0.0)[0] == pytest.approx(-truth, abs=1e-5)
        assert self.population("nce", truth, 0.0)[0] == pytest.approx(-truth / 2, abs=1e-5)
        assert self.population("meco", truth, 1.3)[1] == pytest.approx(1, abs=1e-5)

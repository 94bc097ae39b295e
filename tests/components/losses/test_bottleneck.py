import math

import pytest
import torch
from torch import Tensor, nn

from components.losses import CSIBLoss


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel(first: Tensor, second: Tensor, sigma: float = 1.0) -> Tensor:
    return torch.exp(-torch.cdist(first, second).square() / (2 * sigma**2))


@pytest.fixture
def loss() -> CSIBLoss:
    return CSIBLoss()


class TestDivergence:
    def test_the_target_itself(self, loss: CSIBLoss) -> None:
        target = noise(10, 2)
        assert loss.divergence(noise(10, 3, seed=1), target, target) == 0

    @pytest.mark.parametrize("compat", [False, True])
    def test_is_the_formula(self, compat: bool) -> None:
        """Written out with kernels that don't underflow here; the released code has the sum of squares below the line, and bits."""
        x, predicted, y = noise(9, 3), noise(9, 2, seed=1), noise(9, 2, seed=2)
        k = kernel(x, x)
        below = k.square().sum(1) if compat else k.sum(1).square()

        def s(first: Tensor, second: Tensor) -> Tensor:
            return ((k * kernel(first, second)).sum(1) / below).sum()

        expected = s(y, y).log() + s(predicted, predicted).log() - 2 * s(predicted, y).log()
        torch.testing.assert_close(CSIBLoss(code_compat=compat).divergence(x, predicted, y), expected / (math.log(2) if compat else 1))

    def test_is_not_symmetric(self, loss: CSIBLoss) -> None:
        x, a, b = noise(10, 3), noise(10, 1, seed=1), noise(10, 1, seed=2)
        assert abs(float(loss.divergence(x, a, b) - loss.divergence(x, b, a))) > 1e-4

    def test_never_negative_in_300_trials(self, loss: CSIBLoss) -> None:
        for seed in range(300):
            x, a, b = noise(6, 2, seed=3 * seed), noise(6, 1, seed=3 * seed + 1), noise(6, 1, seed=3 * seed + 2)
            assert float(loss.divergence(x, a, b)) > -1e-12

    def test_an_outliers_pull_is_bounded(self, loss: CSIBLoss) -> None:
        def pull(far: float) -> float:
            target = noise(12, 1, seed=2)
            predicted = (target + 0.1).requires_grad_()
            target = target.clone()
            target[3] += far
            (gradient,) = torch.autograd.grad(loss.divergence(noise(12, 3), predicted, target), predicted)
            assert torch.isfinite(gradient).all()
            return float(gradient[3].abs())

        assert pull(1e4) == pytest.approx(pull(1e2)), "squared error pulls a hundred times as hard"
        assert pull(1e4) < pull(1)


class TestInformation:
    def test_worked_value(self, loss: CSIBLoss) -> None:
        x, k = torch.tensor([[0.0], [1.0]], dtype=torch.float64), math.exp(-0.5)
        value = loss.information(x, x, 1.0, 1.0)
        assert value.item() == pytest.approx(math.log(2 * (1 + k * k) / (1 + k) ** 2), abs=1e-12) == pytest.approx(0.0582549, abs=1e-6)
        assert CSIBLoss(code_compat=True).information(x, x, 1.0, 1.0).item() == pytest.approx(0.0840440, abs=1e-6)

    def test_is_the_formula(self, loss: CSIBLoss) -> None:
        x, t = noise(7, 3), noise(7, 2, seed=1)
        k, q = kernel(x, x), kernel(t, t, 2.0)
        expected = ((k * q).mean() * (k.sum() * q.sum() / 7**4) / ((k.T @ q).sum() / 7**3) ** 2).log()
        torch.testing.assert_close(loss.information(x, t, 1.0, 2.0), expected)

    def test_of_constant_features(self, loss: CSIBLoss) -> None:
        x, constant = noise(10, 3), torch.ones(10, 2, dtype=torch.float64).requires_grad_()
        assert loss.information(x, constant, 1.0, 1.0).item() == pytest.approx(0, abs=1e-12)
        value = loss.normalised_information(x, constant)
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(torch.autograd.grad(value, constant)[0]).all()

    def test_of_the_inputs_themselves(self, loss: CSIBLoss) -> None:
        x = noise(10, 3)
        assert loss.normalised_information(x, x).item() == pytest.approx(1, abs=1e-6)

    def test_the_order_of_samples_does_not_matter(self, loss: CSIBLoss) -> None:
        x, t, order = noise(10, 3), noise(10, 2, seed=1), torch.randperm(10, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(loss.normalised_information(x[order], t[order]), loss.normalised_information(x, t))
        assert float((loss.normalised_information(x[order], t) - loss.normalised_information(x, t)).abs()) > 1e-3


class TestLoss:
    def test_is_the_sum(self) -> None:
        x, t, predicted, y = noise(8, 2, 2), noise(8, 5, seed=1), noise(8, 1, seed=2), noise(8, 1, seed=3)
        loss = CSIBLoss(0.3)
        torch.testing.assert_close(loss(x, t, predicted, y), loss.divergence(x.flatten(1), predicted, y) + 0.3 * loss.normalised_information(x.flatten(1), t))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"features": torch.zeros(8)}, r"features must be \(N, D\)"),
            ({"features": torch.zeros(7, 2)}, r"features must be \(N, D\) with N = 8"),
            ({"target": torch.zeros(8, 2)}, "target must have the shape of prediction"),
            ({"prediction": torch.zeros(7, 1), "target": torch.zeros(7, 1)}, "prediction must have a row for each of the 8 inputs"),
        ],
    )
    def test_wrong_input_is_named(self, loss: CSIBLoss, change: dict[str, Tensor], says: str) -> None:
        right = {"inputs": torch.zeros(8, 3), "features": torch.zeros(8, 2), "prediction": torch.zeros(8, 1), "target": torch.zeros(8, 1)}
        with pytest.raises(ValueError, match=says):
            loss(**{**right, **change})

    @pytest.mark.parametrize("name", ["sigma_inputs", "sigma_features", "sigma_target", "eps"])
    def test_wrong_options_are_named(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be > 0"):
            CSIBLoss(**{name: 0.0})
        with pytest.raises(ValueError, match="beta must be >= 0"):
            CSIBLoss(-1.0)


def test_compression_leaves_less_of_the_inputs_in_the_features() -> None:
    """A bottleneck of one layer, fitted with and without compression, keeps the input that matters and forgets the others."""
    x = noise(64, 4)
    y = torch.sin(x[:, :1])

    def fitted(beta: float) -> tuple[float, float]:
        torch.manual_seed(0)
        encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double(), nn.Linear(2, 1).double()
        loss = CSIBLoss(beta)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            t = encoder(x)
            loss(x, t, decoder(t), y).backward()
            optimizer.step()
        t = encoder(x).detach()
        return float(loss.normalised_information(x, t)), float((decoder(t).detach() - y).square().mean())

    (plain, error), (squeezed, other_error) = fitted(0.0), fitted(0.1)
    assert squeezed < 0.75 * plain
    assert max(error, other_error) < 0.15 * float(y.square().mean())

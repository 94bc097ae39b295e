import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.regression import log_cosh_error

from components.losses import GaussianNLLLoss, HuberLoss, L1Loss, LogCoshLoss, MSELoss, QuantileLoss


@pytest.fixture
def prediction() -> Tensor:
    return (2 * torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


ERRORS = torch.tensor([0.5, -2.0])  # all worked values below use these two errors


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (MSELoss(reduction="none"), [0.25, 4.0]),
        (L1Loss(reduction="none"), [0.5, 2.0]),
        (HuberLoss(delta=1.0, reduction="none"), [0.125, 1.5]),  # 0.5²/2; 1 · (2 - 1/2)
        (HuberLoss(delta=0.25, reduction="none"), [0.09375, 0.46875]),  # 0.25 · (0.5 - 0.125); 0.25 · (2 - 0.125)
        (LogCoshLoss(reduction="none"), [math.log((math.exp(0.5) + math.exp(-0.5)) / 2), math.log((math.exp(2) + math.exp(-2)) / 2)]),
    ],
    ids=str,
)
def test_worked_values(loss: torch.nn.Module, expected: list[float]) -> None:
    torch.testing.assert_close(loss(ERRORS + 1, torch.ones(2)), torch.tensor(expected))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
class TestEqualsTorch:
    def test_mse(self, prediction: Tensor, target: Tensor, reduction: str) -> None:
        torch.testing.assert_close(MSELoss(reduction=reduction)(prediction, target), F.mse_loss(prediction, target, reduction=reduction))

    def test_l1(self, prediction: Tensor, target: Tensor, reduction: str) -> None:
        torch.testing.assert_close(L1Loss(reduction=reduction)(prediction, target), F.l1_loss(prediction, target, reduction=reduction))

    @pytest.mark.parametrize("delta", [0.3, 1.0, 5.0])
    def test_huber(self, prediction: Tensor, target: Tensor, reduction: str, delta: float) -> None:
        ours, theirs = HuberLoss(delta, reduction=reduction)(prediction, target), F.huber_loss(prediction, target, delta=delta, reduction=reduction)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(value.sum(), prediction) for value in (ours, theirs)))

    @pytest.mark.parametrize("full", [False, True])
    def test_gaussian(self, prediction: Tensor, target: Tensor, reduction: str, full: bool) -> None:
        log_variance = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
        ours = GaussianNLLLoss(full=full, reduction=reduction)(prediction, log_variance, target)
        theirs = F.gaussian_nll_loss(prediction, target, log_variance.exp(), full=full, reduction=reduction)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(value.sum(), (prediction, log_variance)) for value in (ours, theirs)))


@pytest.mark.parametrize("loss", [MSELoss(), L1Loss(), HuberLoss(), LogCoshLoss()], ids=str)
class TestShared:
    def test_refuses_a_column_against_a_row(self, loss: torch.nn.Module) -> None:
        with pytest.raises(ValueError, match=r"target must have the shape of prediction, \(8, 1\), but got \(8,\)"):
            loss(torch.zeros(8, 1), torch.zeros(8))

    def test_refuses_classes(self, loss: torch.nn.Module) -> None:
        with pytest.raises(ValueError, match=r"target must be real-valued .* got torch.int64"):
            loss(torch.zeros(8), torch.zeros(8, dtype=torch.long))

    def test_one_missing_value_of_a_sample(self, loss: torch.nn.Module, prediction: Tensor, target: Tensor) -> None:
        holes = target.clone()
        holes[2, 1] = holes[7] = math.nan
        there = ~holes.isnan()
        torch.testing.assert_close(loss(prediction, holes), loss(prediction[there], target[there]))

    def test_a_nan_prediction_is_not_hidden(self, loss: torch.nn.Module, target: Tensor) -> None:
        assert loss(torch.full_like(target, math.nan), target).isnan()

    def test_target_of_another_precision(self, loss: torch.nn.Module, prediction: Tensor, target: Tensor) -> None:
        assert loss(prediction.float(), target).dtype == torch.float32


class TestHuber:
    def test_limits(self, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(HuberLoss(1e6)(prediction, target), MSELoss()(prediction, target) / 2)
        torch.testing.assert_close(HuberLoss(1e-9)(prediction, target) / 1e-9, L1Loss()(prediction, target), rtol=1e-8, atol=1e-8)

    def test_refuses_delta(self) -> None:
        with pytest.raises(ValueError, match="delta must be > 0, but got 0"):
            HuberLoss(0)


class TestLogCosh:
    def test_agrees_with_torchmetrics(self, prediction: Tensor, target: Tensor) -> None:
        theirs = log_cosh_error(prediction.flatten(), target.flatten())
        torch.testing.assert_close(LogCoshLoss()(prediction, target), theirs)

    def test_small_errors_keep_their_digits(self) -> None:  # log cosh e = e²/2 - e⁴/12 …; in float32 the textbook form gives 0 or 6e-8
        value = LogCoshLoss()(torch.tensor([1e-3]), torch.zeros(1))
        assert value.item() == pytest.approx(5e-7, rel=1e-3)

    def test_large_errors(self) -> None:  # |e| - log 2
        torch.testing.assert_close(LogCoshLoss()(torch.tensor([-300.0]), torch.zeros(1)), torch.tensor(300 - math.log(2)))

    def test_gradient_is_tanh(self, prediction: Tensor, target: Tensor) -> None:
        (gradient,) = torch.autograd.grad(LogCoshLoss(reduction="sum")(prediction, target), prediction)
        torch.testing.assert_close(gradient, torch.tanh(prediction - target))


class TestQuantile:
    def test_worked_value(self) -> None:  # levels 0.1 and 0.9, target 1, quantiles 0 and 3: (0.1 · 1 + 0.1 · 2) / 2
        loss = QuantileLoss([0.1, 0.9], reduction="none")(torch.tensor([[0.0, 3.0]]), torch.tensor([1.0]))
        torch.testing.assert_close(loss, torch.tensor([0.15]))

    def test_the_median_is_half_the_absolute_error(self, prediction: Tensor, target: Tensor) -> None:
        torch.testing.assert_close(QuantileLoss([0.5])(prediction.unsqueeze(-1), target), L1Loss()(prediction, target) / 2)

    @pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
    def test_is_least_at_the_quantile(self, level: float) -> None:
        sample = torch.randn(501, generator=torch.Generator().manual_seed(0))
        candidates = sample.sort().values
        losses = torch.stack([QuantileLoss([level])(c.expand(501, 1), sample) for c in candidates])
        assert losses.argmin().item() == pytest.approx(level * 501, abs=1)

    def test_agrees_with_scikit_learn(self, prediction: Tensor, target: Tensor) -> None:
        from sklearn.metrics import mean_pinball_loss

        levels = [0.2, 0.7]
        both = torch.stack([prediction, prediction + 1], -1)
        expected = [mean_pinball_loss(target.flatten(), both[..., i].detach().flatten(), alpha=level) for i, level in enumerate(levels)]
        assert QuantileLoss(levels)(both, target).item() == pytest.approx(sum(expected) / 2, rel=1e-6)

    def test_what_it_asks_of_the_model(self) -> None:
        assert QuantileLoss.outputs_per_target() == 3
        assert QuantileLoss.outputs_per_target(levels=[0.1, 0.2, 0.6, 0.9]) == 4
        assert QuantileLoss([0.1, 0.2, 0.6, 0.9]).point_index == 2
        assert QuantileLoss.head == "quantile"

    @pytest.mark.parametrize("levels", [[], [0.0, 0.5], [0.5, 1.0], [0.9, 0.1], [0.5, 0.5]])
    def test_refuses_levels(self, levels: list[float]) -> None:
        with pytest.raises(ValueError, match="levels"):
            QuantileLoss(levels)

    def test_refuses_another_number_of_quantiles(self) -> None:
        with pytest.raises(ValueError, match="quantiles must end in one value for each of the 3 levels"):
            QuantileLoss()(torch.zeros(4, 2), torch.zeros(4))


class TestGaussian:
    def test_worked_value(self) -> None:  # variance 4, error 2: (ln 4 + 4/4) / 2
        loss = GaussianNLLLoss()(torch.tensor([2.0]), torch.tensor([math.log(4)]), torch.tensor([0.0]))
        assert loss.item() == pytest.approx((math.log(4) + 1) / 2)

    def test_full_is_the_log_likelihood(self, prediction: Tensor, target: Tensor) -> None:
        log_variance = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(16, 3)
        likelihood = torch.distributions.Normal(prediction, (0.5 * log_variance).exp()).log_prob(target)
        torch.testing.assert_close(GaussianNLLLoss(full=True, reduction="none")(prediction, log_variance, target), -likelihood)

    def test_a_variance_below_the_bound_can_grow_again(self) -> None:
        log_variance = torch.tensor([-50.0], requires_grad=True)
        value = GaussianNLLLoss(min_log_variance=-4.0)(torch.tensor([1.0]), log_variance, torch.tensor([0.0]))
        assert value.item() == pytest.approx((-4 + math.exp(4)) / 2, rel=1e-5)
        assert torch.autograd.grad(value, log_variance)[0].item() < 0

    def test_asks_for_two_outputs(self) -> None:
        assert GaussianNLLLoss.outputs_per_target() == 2
        assert MSELoss.outputs_per_target() == 1

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional import regression as tm
from torchmetrics.functional.image import peak_signal_noise_ratio

from components.metrics import (
    AdjustedR2Score,
    AdversarialRMSE,
    LogSpectralDistance,
    MeanBiasError,
    MeanSquaredError,
    PeakSignalNoiseRatio,
    PercentageError,
    RootMeanSquaredError,
)


@pytest.fixture
def preds() -> Tensor:
    return 2 + torch.rand(30, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> Tensor:
    return 2 + torch.rand(30, 2, generator=torch.Generator().manual_seed(1))


def value(metric, *args) -> Tensor:
    metric.update(*args)
    return metric.compute()


def test_worked_values() -> None:
    preds, target = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])
    assert value(MeanSquaredError(), preds, target).item() == pytest.approx(4 / 3)
    assert value(MeanBiasError(), preds, target).item() == pytest.approx(-2 / 3)
    assert value(PercentageError(), preds, target).item() == pytest.approx(22.2222, abs=1e-4)
    assert value(PercentageError(symmetric=True), preds, target).item() == pytest.approx(100 * 2 * 2 / 8 / 3)


def test_agree_with_torchmetrics(preds: Tensor, target: Tensor) -> None:
    torch.testing.assert_close(value(MeanSquaredError(), preds, target), tm.mean_squared_error(preds, target))
    torch.testing.assert_close(value(PercentageError(), preds, target), 100 * tm.mean_absolute_percentage_error(preds, target))
    torch.testing.assert_close(value(PercentageError(symmetric=True), preds, target), 100 * tm.symmetric_mean_absolute_percentage_error(preds, target))
    torch.testing.assert_close(value(PeakSignalNoiseRatio(2.0), preds, target), peak_signal_noise_ratio(preds, target, data_range=2.0))
    expected = tm.r2_score(preds[:, :1], target[:, :1], adjusted=4)
    assert value(AdjustedR2Score(4), preds[:, :1], target[:, :1]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_adjusted_r2_of_too_few_samples_is_nan() -> None:
    assert value(AdjustedR2Score(4), torch.randn(5, 1), torch.randn(5, 1)).isnan()


@pytest.mark.parametrize("metric", [MeanSquaredError, MeanBiasError, PercentageError])
def test_missing_targets_count_for_nothing(metric, preds: Tensor, target: Tensor) -> None:
    holes = target.clone()
    holes[10:] = math.nan
    torch.testing.assert_close(value(metric(), preds, holes), value(metric(), preds[:10], target[:10]))


class TestSpectrum:
    def test_half_the_amplitude_is_6_decibels(self) -> None:
        field = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
        assert value(LogSpectralDistance(), 0.5 * field, field).item() == pytest.approx(20 * math.log10(2), abs=1e-5)

    def test_place_does_not_count(self) -> None:
        field = torch.randn(20, 16, 2, generator=torch.Generator().manual_seed(0))
        assert value(LogSpectralDistance(), field.roll(3, 1), field).item() == pytest.approx(0, abs=1e-5)

    def test_a_blur_is_seen_at_small_scales(self) -> None:
        field = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
        blurred = 0.5 * field + 0.25 * (field.roll(1, 1) + field.roll(-1, 1))
        assert value(LogSpectralDistance(0.5), blurred, field) > 1.2 * value(LogSpectralDistance(), blurred, field) > 5

    def test_planes(self) -> None:
        field = torch.randn(20, 2, 4, 6, generator=torch.Generator().manual_seed(0))
        flat = field.flatten(2)
        assert value(LogSpectralDistance(shape=[4, 6]), 0.5 * flat, flat).item() == pytest.approx(20 * math.log10(2), abs=1e-5)

    def test_a_sample_with_a_missing_value_is_left_out(self) -> None:
        preds, field = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
        holes = field.clone()
        holes[5:, 3] = math.nan
        torch.testing.assert_close(value(LogSpectralDistance(), preds, holes), value(LogSpectralDistance(), preds[:5], field[:5]))


class TestAdversarial:
    def test_of_a_linear_model_in_closed_form(self) -> None:
        """x is moved so that every |error| grows by ε Σ|w|."""
        model = nn.Linear(3, 1)
        inputs, target = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 1)
        with torch.no_grad():
            expected = (model(inputs).abs() + 0.2 * model.weight.abs().sum()).square().mean().sqrt()
        torch.testing.assert_close(value(AdversarialRMSE(0.2), model, inputs, target), expected)

    def test_without_an_attack(self, preds: Tensor, target: Tensor) -> None:
        model = nn.Linear(2, 2)
        plain = value(RootMeanSquaredError(), model(preds).detach(), target)
        torch.testing.assert_close(value(AdversarialRMSE(0.0), model, preds, target), plain)
        assert value(AdversarialRMSE(0.1), model, preds, target) > plain

    def test_leaves_the_model_and_the_random_state_alone(self, preds: Tensor, target: Tensor) -> None:
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
        model[2].eval()
        before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        with torch.inference_mode():
            value(AdversarialRMSE(), model, preds.clone(), target.clone())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert [m.training for m in model] == [True, True, False, True]
        assert all(p.grad is None for p in model.parameters())

    def test_missing_targets_count_for_nothing(self, preds: Tensor, target: Tensor) -> None:
        model, holes = nn.Linear(2, 2), target.clone()
        holes[10:] = math.nan
        torch.testing.assert_close(value(AdversarialRMSE(), model, preds, holes), value(AdversarialRMSE(), model, preds[:10], target[:10]))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: PercentageError(eps=0.0), "eps must be > 0"),
        (lambda: PeakSignalNoiseRatio(0.0), "data_range must be > 0"),
        (lambda: AdjustedR2Score(0), "num_features must be >= 1"),
        (lambda: LogSpectralDistance(1.0), "from_share must be in"),
        (lambda: AdversarialRMSE(-1.0), "epsilon must be >= 0"),
    ],
)
def test_wrong_options_are_named(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()

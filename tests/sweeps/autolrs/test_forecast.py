"""The exponential forecast: exact where there is no noise, and the released code's smoothing with its bias."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps.autolrs.forecast import DENOISE, Denoise, fit_exponential, forecast, smoothed


def decay(rate: float, steps: int = 100, a: float = 2.0, c: float = 0.5) -> list[float]:
    return (a * np.exp(-rate * np.arange(steps)) + c).tolist()


@pytest.mark.parametrize(("rate", "exact", "reference"), [(0.01, 0.500091, 0.38460), (0.05, 0.5, 0.39991)])
def test_noise_free_values_of_the_catalogue(rate: float, exact: float, reference: float) -> None:
    assert forecast(decay(rate), 1000, denoise="none") == pytest.approx(exact, abs=1e-6)
    assert forecast(decay(rate), 1000, denoise="reference") == pytest.approx(reference, abs=1e-4)


def test_the_fit_finds_the_parameters() -> None:
    fit = fit_exponential(decay(0.03, a=1.7, c=-0.3))
    assert (fit.a, fit.b, fit.c) == pytest.approx((1.7, -0.03, -0.3), abs=1e-5)
    assert fit.residual < 1e-12


@pytest.mark.parametrize("denoise", DENOISE)
def test_a_constant_series_forecasts_itself(denoise: Denoise) -> None:
    assert forecast([0.7] * 40, 400, denoise=denoise) == pytest.approx(0.7, abs=1e-9)


def test_without_smoothing_it_commutes_with_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    y = np.array(decay(0.02)) + 0.05 * rng.normal(size=100)
    plain = forecast(y.tolist(), 700, denoise="none")
    assert forecast((3 * y + 4).tolist(), 700, denoise="none") == pytest.approx(3 * plain + 4, abs=1e-5)


def test_smoothing_of_the_noises_size_commutes_too_and_the_releaseds_does_not() -> None:
    rng = np.random.default_rng(1)
    y = np.array(decay(0.02)) + 0.05 * rng.normal(size=100)
    for denoise, holds in (("scaled", True), ("reference", False)):
        one, scaled = smoothed(y.tolist(), denoise), smoothed((1000 * y).tolist(), denoise)
        assert (np.abs(scaled - 1000 * one).max() < 0.5) == holds, denoise


def test_spikes_of_the_beginning_are_dropped_and_those_of_the_end_are_not() -> None:
    early, late = decay(0.02), decay(0.02)
    early[5] += 3.0
    late[95] += 3.0
    clean = smoothed(decay(0.02), "scaled")
    assert np.abs(smoothed(early, "scaled") - clean)[:20].max() < 0.1
    assert np.abs(smoothed(late, "scaled") - clean)[90:].max() > 0.1


def test_a_rising_series_does_not_forecast_infinity() -> None:
    rising = np.linspace(1, 2, 50) ** 2
    assert np.isfinite(forecast(rising.tolist(), 10_000, denoise="none"))


@pytest.mark.parametrize("bad", [[1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_what_cannot_be_fitted_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="losses must be two finite numbers or more"):
        forecast(bad, 10, denoise="none")


def test_an_unknown_smoothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="scaled"):
        forecast([1.0, 2.0], 10, denoise="scale")  # type: ignore[arg-type]

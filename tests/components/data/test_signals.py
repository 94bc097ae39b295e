import math

import numpy as np
import pytest
import torch

from components.data import AdvectedField, Returns, Samples, SeasonalSeries
from components.data.signals import autoregression


class TestSeasonalSeries:
    def test_seasons_repeat(self) -> None:
        values, names = SeasonalSeries(size=300, channels=2, periods=[10], trend=0.0, noise=0.0).read_series()
        np.testing.assert_allclose(values[10:], values[:-10], atol=1e-9)
        assert names == ["series_0", "series_1"]
        assert not np.allclose(values[:, 0], values[:, 1]), "phases are each series' own"

    def test_noise_can_be_forecast_the_less_the_further_ahead(self) -> None:
        noise = SeasonalSeries(size=40_000, periods=[], trend=0.0, noise=0.5).read_series()[0][:, 0]
        assert noise.std() == pytest.approx(0.5, rel=0.1)
        for ahead in (1, 4, 16):
            error = noise[ahead:] - 0.95**ahead * noise[:-ahead]
            assert error.std() == pytest.approx(0.5 * math.sqrt(1 - 0.95 ** (2 * ahead)), rel=0.1)

    def test_outliers(self) -> None:
        plain, hit = (SeasonalSeries(outliers=share).read_series()[0] for share in (0.0, 0.1))
        changed = plain != hit
        assert 0.06 < changed.mean() < 0.14
        assert (hit - plain)[changed].std() == pytest.approx(5, rel=0.2)

    def test_the_draw_follows_split_seed(self) -> None:
        first, again, other = (SeasonalSeries(split_seed=s, seed=t).read_series()[0] for s, t in ((0, 0), (0, 1), (1, 0)))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Returns(size=20_000).read()


class TestReturns:
    def test_the_sign_can_hardly_be_predicted(self, samples: Samples) -> None:
        inputs, target = samples.inputs, samples.target[:, 0]
        solution = torch.linalg.lstsq(inputs, target[:, None]).solution
        hits = ((inputs @ solution)[:, 0].sign() == target.sign()).double().mean()
        assert 0.53 < hits < 0.60
        r2 = 1 - (target - (inputs @ solution)[:, 0]).square().sum() / target.square().sum()
        assert 0 < r2 < 0.05

    def test_tails_are_fat_and_volatility_clusters(self, samples: Samples) -> None:
        target = samples.target[:, 0]
        kurtosis = (target**4).mean() / (target**2).mean() ** 2
        assert kurtosis > 6
        size = target.abs().clamp(max=5)
        assert torch.corrcoef(torch.stack([size[1:], size[:-1]]))[0, 1] > 0.05

    def test_lags_are_the_past(self, samples: Samples) -> None:
        target, past = samples.target[:, 0].clamp(-20, 20), samples.inputs[:, 8:]
        for lag in range(5):  # the last column is yesterday's
            torch.testing.assert_close(past[5:, lag], target[lag : lag + len(target) - 5])

    def test_half_of_the_indicators_are_of_no_use(self, samples: Samples) -> None:
        correlations = torch.corrcoef(torch.cat([samples.inputs[:, :8], samples.target], 1).T)[-1, :8].abs()
        assert correlations[:4].norm() > 3 * correlations[4:].norm()

    def test_days_are_split_in_order(self) -> None:
        data = Returns(size=1000, val_fraction=0.2, test_fraction=0.3)
        data.setup()
        assert [int(data.rows[part][0]) for part in ("train", "val", "test")] == [0, 500, 700]
        target = data.splits["train"]["target"]
        assert data.to_units(target) is target, "a centred return would change its sign"


class TestAdvectedField:
    @pytest.mark.parametrize("dimensions", [1, 2])
    def test_coherence_and_strength(self, dimensions: int) -> None:
        data = AdvectedField(size=3000, points=16, dimensions=dimensions, scale=3.0, shift=2.0)
        samples = data.read()
        fields = [values.unflatten(1, (16,) * dimensions) for values in (samples.inputs, samples.target)]
        dims = tuple(range(1, dimensions + 1))
        carried = fields[0].roll((2,) * dimensions, dims)
        first, second = (torch.fft.rfftn(field, dim=dims) for field in (carried, fields[1]))
        power, other = (x.abs().square().mean(0) for x in (first, second))
        there = power > 1e-9
        assert (power / other)[there].log().abs().mean() < 0.1
        coherence = (first * second.conj()).real.mean(0)[there] / (power * other)[there].sqrt()
        assert (coherence - data.coherence()[there]).abs().max() < 0.08
        for values in fields:
            assert values.std() == pytest.approx(1, abs=0.05)

    def test_a_shift_by_part_of_a_point_keeps_fields_real_and_their_power(self) -> None:
        data = AdvectedField(size=200, scale=1e9, shift=2.5)
        samples = data.read()
        first, second = (torch.fft.rfft(values).abs() for values in (samples.inputs, samples.target))
        torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("persistence", [0.0, 0.9])
def test_autoregression_has_the_shocks_variance_from_the_first_step(persistence: float) -> None:
    walks = autoregression(np.random.default_rng(0).normal(size=(30, 5000)), persistence)
    np.testing.assert_allclose(walks.std(1), 1, atol=0.05)
    assert np.corrcoef(walks[10], walks[11])[0, 1] == pytest.approx(persistence, abs=0.05)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SeasonalSeries(channels=0), "channels must be >= 1"),
        (lambda: SeasonalSeries(periods=[0]), "periods must be > 0"),
        (lambda: SeasonalSeries(persistence=1.0), "persistence must be in"),
        (lambda: SeasonalSeries(outliers=2.0), "outliers must be in"),
        (lambda: Returns(tails=2), "tails must be >= 3"),
        (lambda: Returns(indicators=1), "indicators must be >= 2"),
        (lambda: Returns(edge=-1.0), "edge must be >= 0"),
        (lambda: AdvectedField(points=2), "points must be >= 4"),
        (lambda: AdvectedField(dimensions=3), "dimensions must be 1 or 2"),
        (lambda: AdvectedField(scale=0.0), "scale must be > 0"),
    ],
)
def test_wrong_options_are_named(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()

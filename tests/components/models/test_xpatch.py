import pytest
import torch
from torch import Tensor

from components.models import XPatch
from components.models.xpatch import exponential_average


@pytest.fixture
def series() -> Tensor:
    return torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model(**options) -> XPatch:
    torch.manual_seed(0)
    return XPatch(2, 24, 6, 2, **options)


class TestDecomposition:
    @pytest.mark.parametrize("alpha", [0.1, 0.3, 0.9, 1.0])
    def test_average_is_the_recurrence(self, series: Tensor, alpha: float) -> None:
        smoothed = [series[:, 0]]
        for t in range(1, 40):
            smoothed.append(alpha * series[:, t] + (1 - alpha) * smoothed[-1])
        torch.testing.assert_close(exponential_average(series, alpha), torch.stack(smoothed, 1))

    def test_parts_add_up(self, series: Tensor) -> None:
        seasonal, trend = model().decompose(series)
        torch.testing.assert_close(seasonal + trend, series, atol=1e-15, rtol=0)

    def test_all_is_trend_at_1(self, series: Tensor) -> None:
        seasonal, trend = model(alpha=1.0).decompose(series)
        torch.testing.assert_close(trend, series)
        torch.testing.assert_close(seasonal, torch.zeros_like(series))

    def test_a_constant_series_has_no_season(self) -> None:
        seasonal, _ = model().decompose(torch.full((1, 40), 3.0, dtype=torch.float64))
        torch.testing.assert_close(seasonal, torch.zeros_like(seasonal), atol=1e-14, rtol=0)

    def test_long_series_do_not_underflow(self) -> None:
        series = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
        exact = exponential_average(series.double(), 0.9)
        torch.testing.assert_close(exponential_average(series, 0.9).double(), exact, atol=1e-5, rtol=0)


class TestXPatch:
    def test_channels_are_independent(self) -> None:
        net, inputs = model().eval(), torch.randn(4, 24, 2, generator=torch.Generator().manual_seed(0))
        changed = inputs.clone()
        changed[..., 1] += torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
        assert torch.equal(net(inputs).output[..., 0], net(changed).output[..., 0])
        assert not torch.equal(net(inputs).output[..., 1], net(changed).output[..., 1])

    def test_shift_and_scale_go_through(self) -> None:
        net, inputs = model().eval(), torch.randn(4, 24, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(net(100 + 10 * inputs).output, 100 + 10 * net(inputs).output, rtol=1e-3, atol=1e-2)

    @pytest.mark.parametrize("horizon", [1, 2, 3])
    def test_short_horizons(self, horizon: int) -> None:
        assert XPatch(1, 16, horizon)(torch.randn(4, 16, 1)).output.shape == (4, horizon, 1)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"alpha": 0.0}, "alpha must be in"),
            ({"patch_length": 25}, "patch_length must be in"),
            ({"patch_length": 1}, "patch_length must be in"),
            ({"stride": 0}, "stride must be >= 1"),
            ({"revin": False}, "revin_affine needs revin=true"),
            ({"head": "gaussian"}, "head='gaussian' needs"),
        ],
    )
    def test_wrong_options_are_named(self, options: dict, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            model(**options)

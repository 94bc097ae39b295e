import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch import Tensor, nn

from components.losses import AMSELoss, MSELoss
from components.losses.spectral import FourierPlane, FourierSeries, SphericalHarmonics, clenshaw_curtis, gauss_legendre
from components.testing import LossContract

T = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
COS, SHIFTED = torch.cos(T)[None], torch.cos(T + 0.3)[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def band_limited(basis: SphericalHarmonics, latitudes: int, longitudes: int, grid: str, seed: int = 0) -> Tensor:
    """A random field of all degrees that the basis resolves, from SciPy's harmonics; its mean square over the sphere is Σ |a|²."""
    rng = np.random.default_rng(seed)
    cosines, _ = (gauss_legendre if grid == "gauss" else clenshaw_curtis)(latitudes)
    colatitude, longitude = np.arccos(np.clip(cosines, -1, 1))[:, None], 2 * np.pi * np.arange(longitudes)[None] / longitudes
    field = np.zeros((latitudes, longitudes))
    for degree in range(basis.degrees + 1):
        for order in range(degree + 1):
            harmonic = math.sqrt(4 * math.pi) * sph_harm_y(degree, order, colatitude, longitude)
            a = complex(*rng.normal(size=2)) if order else rng.normal()
            field += (a * harmonic).real * (math.sqrt(2) if order else 1)
    return torch.from_numpy(field)[None]


class TestWorkedValues:
    def test_phase_error_alone_is_the_squared_error(self) -> None:
        assert AMSELoss()(COS, SHIFTED).item() == pytest.approx(1 - math.cos(0.3), abs=1e-6) == pytest.approx(0.0446635, abs=1e-6)
        assert MSELoss()(COS, SHIFTED).item() == pytest.approx(0.0446635, abs=1e-6)

    def test_half_the_amplitude(self) -> None:
        assert AMSELoss()(0.5 * COS, SHIFTED).item() == pytest.approx(0.1696635, abs=1e-6)
        assert MSELoss()(0.5 * COS, SHIFTED).item() == pytest.approx(0.1473318, abs=1e-6)

    def test_equal_fields(self) -> None:
        field = noise(3, 32)
        assert AMSELoss()(field, field).item() == pytest.approx(0, abs=1e-10)

    def test_opposite_fields(self) -> None:
        assert AMSELoss()(-COS, COS).item() == pytest.approx(4 * 0.5, abs=1e-6)
        assert MSELoss()(-COS, COS).item() == pytest.approx(4 * 0.5, abs=1e-6)


class TestDoublePenalty:
    @pytest.mark.parametrize("phase", [math.pi / 2, 1.0])
    def test_the_best_amplitude_is_the_targets(self, phase: float) -> None:
        """Where a wave can't be placed MSE wants cos(phase) of its amplitude (nothing, if it is uncorrelated), AMSE all of it."""
        target = torch.cos(T + phase)[None]
        amplitudes = torch.linspace(0.01, 2, 200, dtype=torch.float64)
        best = {loss: amplitudes[torch.stack([loss(a * COS, target) for a in amplitudes]).argmin()] for loss in (AMSELoss(), MSELoss())}
        amse, mse = best.values()
        assert amse == pytest.approx(1, abs=0.01) and mse == pytest.approx(max(math.cos(phase), 0.01), abs=0.01)


SHAPES = {"series": (24,), "odd series": (25,), "plane": (8, 6), "odd plane": (7, 9)}


class TestParseval:
    @pytest.mark.parametrize("name", SHAPES)
    def test_power_sums_to_the_mean_square(self, name: str) -> None:
        shape = SHAPES[name]
        basis = FourierSeries() if len(shape) == 1 else FourierPlane(*shape)
        self.check(basis, noise(2, *shape), noise(2, *shape, seed=1), None)

    @pytest.mark.parametrize(("grid", "latitudes"), [("gauss", 8), ("equiangular", 15)])
    def test_on_the_sphere(self, grid: str, latitudes: int) -> None:
        basis = SphericalHarmonics(latitudes, 16, grid)
        assert basis.degrees == 7
        weights = torch.from_numpy((gauss_legendre if grid == "gauss" else clenshaw_curtis)(latitudes)[1])[:, None]
        fields = [band_limited(basis, latitudes, 16, grid, seed) for seed in (0, 1)]
        self.check(basis, *fields, weights)

    def check(self, basis: nn.Module, first: Tensor, second: Tensor, weights: Tensor | None) -> None:
        """Σ_k with √(P Q) in the place of the maximum is the squared error in space."""

        def mean(values: Tensor) -> Tensor:
            return values.flatten(1).mean(1) if weights is None else (values.mean(-1, keepdim=True) * weights).sum((1, 2))

        a, b = basis.coefficients(first), basis.coefficients(second)
        power, other, common = basis.cross_power(a, a), basis.cross_power(b, b), basis.cross_power(a, b)
        torch.testing.assert_close(power.sum(-1), mean(first.square()))
        torch.testing.assert_close((power + other - 2 * common).sum(-1), mean((first - second).square()))
        assert (common.abs() <= (power * other).sqrt() + 1e-12).all(), "a coherence lies in [-1, 1]"


class TestPlane:
    def test_a_wave_is_in_its_bin(self) -> None:
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        wave = torch.cos(2 * math.pi * (3 * rows + 4 * columns) / 16).double()[None]
        basis = FourierPlane(16, 16)
        spectrum = basis.cross_power(basis.coefficients(wave), basis.coefficients(wave))[0]
        assert spectrum[5].item() == pytest.approx(0.5) and spectrum.sum().item() == pytest.approx(0.5)

    def test_flat_and_unfolded_fields(self) -> None:
        loss = AMSELoss("plane", shape=[4, 6], reduction="none")
        first, second = noise(3, 2, 4, 6), noise(3, 2, 4, 6, seed=1)
        torch.testing.assert_close(loss(first.flatten(2), second.flatten(2)), loss(first, second))
        torch.testing.assert_close(loss(first[:, 0], second[:, 0]), loss(first, second)[:, 0])


class TestSphere:
    @pytest.mark.parametrize(("grid", "latitudes"), [("gauss", 6), ("equiangular", 11)])
    def test_agrees_with_scipys_harmonics(self, grid: str, latitudes: int) -> None:
        basis = SphericalHarmonics(latitudes, 12, grid)
        cosines, _ = (gauss_legendre if grid == "gauss" else clenshaw_curtis)(latitudes)
        colatitude, longitude = np.arccos(np.clip(cosines, -1, 1))[:, None], 2 * np.pi * np.arange(12)[None] / 12
        for degree in range(basis.degrees + 1):
            for order in range(degree + 1):
                field = math.sqrt(4 * math.pi) * sph_harm_y(degree, order, colatitude, longitude).real
                coefficients = basis.coefficients(torch.from_numpy(field)[None])[0]
                expected = torch.zeros_like(coefficients)
                expected[degree, order] = (-1) ** order * (0.5 if order else 1)  # SciPy has the Condon–Shortley sign
                torch.testing.assert_close(coefficients.abs(), expected.abs(), atol=1e-12, rtol=1e-10)

    @pytest.mark.parametrize(("grid", "theirs", "latitudes"), [("gauss", "legendre-gauss", 8), ("equiangular", "equiangular", 15)])
    def test_agrees_with_torch_harmonics(self, grid: str, theirs: str, latitudes: int) -> None:
        from torch_harmonics import RealSHT

        field = band_limited(SphericalHarmonics(latitudes, 16, grid), latitudes, 16, grid)
        ours = SphericalHarmonics(latitudes, 16, grid).coefficients(field)
        transform = RealSHT(latitudes, 16, lmax=8, mmax=8, grid=theirs, norm="ortho").double()
        torch.testing.assert_close(ours.abs(), transform(field).abs() / math.sqrt(4 * math.pi), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("quadrature", [gauss_legendre, clenshaw_curtis])
    def test_quadrature(self, quadrature: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> None:
        cosines, weights = quadrature(9)
        for power in range(9):
            assert (weights * cosines**power).sum() == pytest.approx(1 / (power + 1) if power % 2 == 0 else 0, abs=1e-12)
        assert (np.diff(cosines) < 0).all(), "north to south"

    def test_a_rotation_about_the_axis_is_a_phase_error(self) -> None:
        basis = SphericalHarmonics(8, 16)
        field = band_limited(basis, 8, 16, "gauss")
        turned = field.roll(3, -1)
        weights = torch.from_numpy(gauss_legendre(8)[1])[:, None]
        squared = ((field - turned).square().mean(-1, keepdim=True) * weights).sum()
        torch.testing.assert_close(AMSELoss("sphere", shape=[8, 16])(field, turned), squared, atol=1e-8, rtol=1e-8)


class TestChannels:
    def test_weights(self) -> None:
        first, second = noise(3, 12, 2), noise(3, 12, 2, seed=1)
        each = AMSELoss(reduction="none")(first, second)
        assert each.shape == (3, 2)
        torch.testing.assert_close(AMSELoss(channel_weights=[2.0, 0.5], reduction="none")(first, second), each * torch.tensor([2.0, 0.5]))
        with pytest.raises(ValueError, match="channel_weights has 3 values, but prediction has the channels"):
            AMSELoss(channel_weights=[1.0, 1.0, 1.0])(first, second)

    def test_a_missing_value_ignores_its_field_alone(self) -> None:
        first, second = noise(3, 12, 2), noise(3, 12, 2, seed=1)
        each = AMSELoss(reduction="none")(first, second)
        second[1, 4, 0] = math.nan
        holes = AMSELoss(reduction="none")(first, second)
        assert holes[1, 0] == 0
        assert AMSELoss()(first, second).item() == pytest.approx((each.sum() - each[1, 0]).item() / 5)


class TestPlaneContract(LossContract):
    """The trials that options of series pass, on a plane: the two targets of the kit are a 1 × 2 field."""

    @pytest.fixture
    def loss(self) -> nn.Module:
        return AMSELoss("plane", shape=[1, 2])


class TestSphereContract(LossContract):
    @pytest.fixture
    def loss(self) -> nn.Module:
        return AMSELoss("sphere", shape=[2, 1])


@pytest.mark.parametrize(("geometry", "shape"), [("plane", (3, 4)), ("sphere", (4, 7))])
def test_gradients(geometry: str, shape: tuple[int, int]) -> None:
    loss = AMSELoss(geometry, shape=shape, reduction="none")
    assert torch.autograd.gradcheck(loss, (noise(2, *shape).requires_grad_(), noise(2, *shape, seed=1)))
    assert torch.autograd.gradgradcheck(loss, (noise(2, *shape).requires_grad_(), noise(2, *shape, seed=1)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"geometry": "torus"}, "geometry must be one of"),
        ({"geometry": "plane"}, "shape must be"),
        ({"shape": [2, 2]}, "shape must be"),
        ({"geometry": "plane", "shape": [2]}, "shape must hold two sizes"),
        ({"geometry": "sphere", "shape": [4, 8], "degrees": 9}, r"degrees must be in \[0, 3\]"),
        ({"geometry": "sphere", "shape": [1, 8], "grid": "equiangular"}, "2 latitudes or more"),
        ({"grid": "icosahedral"}, "grid must be one of"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"channel_weights": [-1.0]}, "channel_weights must be >= 0"),
    ],
)
def test_wrong_options_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AMSELoss(**options)


def test_fields_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"prediction must end in the dimensions \[4, 6\]"):
        AMSELoss("plane", shape=[4, 6])(torch.zeros(2, 5, 5), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"prediction must be \(N, T\) or \(N, T, C\)"):
        AMSELoss()(torch.zeros(4), torch.zeros(4))

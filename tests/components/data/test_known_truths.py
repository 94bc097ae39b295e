"""Synthetic sets whose truth is written down: equations, densities, sparse signals, ratings, lines, noisy pictures."""

import math

import pytest
import torch

from components.data import Convection, GaussianRing, LineSignal, NoisyPictures, RatedQuality, SparseRecovery, TransportEquation


def ready(data):
    data.setup()
    return data


def everything(data, name):
    return torch.cat([split[name] for split in data.splits.values()])


class TestConvection:
    @pytest.mark.parametrize("options", [{"speed": 3.0}, {"speed": 3.0, "viscosity": 0.2, "wavenumber": 2}, {"burgers": True, "amplitude": 0.5}])
    def test_the_exact_solution_solves_the_equation(self, options):
        equation = TransportEquation(**options)
        x = torch.linspace(0.1, 6.2, 50, dtype=torch.float64)
        t, h = torch.full_like(x, 0.4), 1e-4
        u = equation.exact(x, t)
        u_t = (equation.exact(x, t + h) - equation.exact(x, t - h)) / (2 * h)
        u_x = (equation.exact(x + h, t) - equation.exact(x - h, t)) / (2 * h)
        u_xx = (equation.exact(x + h, t) - 2 * u + equation.exact(x - h, t)) / h**2
        assert (u_t + equation.velocity(u) * u_x - equation.viscosity * u_xx).abs().max() < 1e-4
        torch.testing.assert_close(equation.exact(x, torch.zeros_like(x)), equation.initial(x))

    def test_points_and_targets(self):
        data = ready(Convection(size=200, speed=30.0, duration=0.5))
        inputs, target = everything(data, "inputs"), everything(data, "target")
        assert inputs[:, 0].min() >= 0 and inputs[:, 0].max() < 2 * math.pi and inputs[:, 1].max() <= 0.5
        torch.testing.assert_close(target[:, 0], torch.sin(inputs[:, 0] - 30 * inputs[:, 1]), rtol=1e-3, atol=1e-4)
        assert data.facts()["equation"] == {"speed": 30.0, "viscosity": 0.0, "burgers": False, "wavenumber": 1, "amplitude": 1.0, "duration": 0.5}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"viscosity": -1.0}, "viscosity must be >= 0"),
            ({"burgers": True}, "must be < 1 for burgers"),
            ({"burgers": True, "amplitude": 0.1, "viscosity": 0.1}, "viscosity must be 0 for burgers"),
            ({"wavenumber": 0}, "wavenumber must"),
            ({"duration": 0.0}, "duration must"),
            ({"amplitude": 0.0}, "amplitude must"),
        ],
    )
    def test_refuses_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            Convection(**options)


class TestDensities:
    def test_the_log_density_integrates_to_one(self):
        data = GaussianRing(modes=3, radius=1.0, spread=0.5)
        places = torch.linspace(-5, 5, 201, dtype=torch.float64)
        total = data.log_density(torch.cartesian_prod(places, places)).exp().sum() * 0.05**2
        assert total.item() == pytest.approx(1, abs=1e-6)

    def test_points_lie_around_the_centres(self):
        data = ready(GaussianRing(size=4000))
        distance, nearest = torch.cdist(everything(data, "inputs").double(), data.centres()).min(1)
        assert distance.square().mean().item() == pytest.approx(2 * 0.2**2, rel=0.1)
        assert (torch.bincount(nearest, minlength=8) > 400).all()

    def test_one_gaussian_on_a_line(self):
        data = ready(GaussianRing(size=2000, modes=1, radius=4.0, spread=1.0, dimensions=1))
        points, target = everything(data, "inputs"), everything(data, "target")
        assert points.shape == (2000, 1) and points.mean().item() == pytest.approx(4, abs=0.1)
        torch.testing.assert_close(target, torch.distributions.Normal(4.0, 1.0).log_prob(points), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"), [({"dimensions": 1}, "dimensions must be 2"), ({"spread": 0.0}, "spread must"), ({"modes": 0}, "modes must")]
    )
    def test_refuses_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            GaussianRing(**options)


class TestSparseRecovery:
    def test_signals_and_noise_are_as_asked(self):
        data = ready(SparseRecovery(size=2000, dimensions=40, measurements=20, active=0.2, snr=10.0))
        signals, measured = everything(data, "target").double(), everything(data, "inputs").double()
        assert (signals != 0).double().mean().item() == pytest.approx(0.2, abs=0.01)
        assert signals[signals != 0].var().item() == pytest.approx(1, abs=0.05)
        clean = signals @ data.matrix().T
        expected = 0.2 * 40 / 20  # of a measurement, the mean over matrices
        assert clean.square().mean().item() == pytest.approx(expected, rel=0.2)
        assert (measured - clean).square().mean().item() == pytest.approx(expected / 10, rel=0.05)
        assert torch.tensor(data.facts()["measurement_matrix"]).shape == (20, 40)


class TestLines:
    @pytest.mark.parametrize(
        ("kind", "area"), [("square", 1.0), ("triangle", 0.5), ("parabola", 2 / 3), ("half_sinusoid", 2 / math.pi), ("exponential", 0.4908)]
    )
    def test_area(self, kind, area):
        data = ready(LineSignal(size=2000, kind=kind))
        assert 2 * everything(data, "target").mean().item() == pytest.approx(area, abs=2e-3)

    def test_refuses_an_unknown_kind(self):
        with pytest.raises(ValueError, match="did you mean 'square'"):
            LineSignal(kind="sqare")


class TestRatings:
    def test_each_data_set_fills_the_levels(self):
        data = ready(RatedQuality(size=1000))
        mean, group, target = (everything(data, name) for name in ("target_mean", "group", "target"))
        for data_set in (0, 1):
            assert mean[group == data_set].min().item() == pytest.approx(1) and mean[group == data_set].max().item() == pytest.approx(5)
        torch.testing.assert_close(target, mean.round().long() - 1)
        assert (everything(data, "target_std") > 0).any()

    def test_the_same_level_means_another_quality_in_each(self):
        """Inputs alone can't tell: a regression on both data sets at once has an offset between them."""
        data = ready(RatedQuality(size=2000, noise=0.02))
        x, mean, group = (everything(data, name) for name in ("inputs", "target_mean", "group"))
        one = torch.cat([x, torch.ones(len(x), 1)], 1)
        fitted = one @ torch.linalg.lstsq(one, mean.unsqueeze(1)).solution
        error = mean - fitted.squeeze(1)
        assert (error[group == 0].mean() - error[group == 1].mean()).abs() > 0.3

    @pytest.mark.parametrize(("options", "message"), [({"raters": 1}, "raters must"), ({"noise": 0.0}, "noise must"), ({"cut": 1.0}, "cut must")])
    def test_refuses_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            RatedQuality(**options)


def test_noisy_pictures_are_the_clean_ones_with_noise():
    data = ready(NoisyPictures(noise=0.2))
    noise = everything(data, "inputs").flatten(1) - everything(data, "target")
    assert noise.std().item() == pytest.approx(0.2, rel=0.02) and abs(noise.mean().item()) < 0.01
    assert everything(data, "target").min() >= 0 and everything(data, "target").max() <= 1

"""Mixtures of generalised exponentials: the function itself, its named shapes, what they fit."""

import math

import pytest
import torch

from components.models import GEFMixture
from components.models.splats import generalised_exponential, shape_factor


def one_bump(kind="exact", **values):
    """A single function of height 2 at 0.3, scale 0.5."""
    model = GEFMixture((1,), 1, particles=1, shape=kind)
    with torch.no_grad():
        for name, value in {"place": 0.3, "log_scale": math.log(0.5), "amplitude": 2.0, **values}.items():
            getattr(model, name).fill_(value)
    return model


class TestFunction:
    @pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 8.0])
    def test_at_one_scale_from_its_place_it_is_the_same_for_every_shape(self, beta):
        model = one_bump()
        with torch.no_grad():
            model.shape.fill_(math.log(beta))
        assert model(torch.tensor([[0.8], [-0.2]])).output.flatten().tolist() == pytest.approx([2 * 0.367879] * 2, abs=1e-5)

    @pytest.mark.parametrize(("beta", "height"), [(2.0, 0.778801), (8.0, 0.996101)])
    def test_at_half_a_scale(self, beta, height):
        value = generalised_exponential(torch.tensor([0.25], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64))
        assert value.item() == pytest.approx(height, abs=1e-6)

    def test_starts_as_a_gaussian(self):
        model = GEFMixture((1,), 1, particles=4)
        torch.testing.assert_close(model.exponents(), torch.full((4,), 2.0))

    def test_its_own_place_has_a_finite_gradient(self):
        model = one_bump()
        with torch.no_grad():
            model.shape.fill_(math.log(0.5))
        model(torch.tensor([[0.3]])).output.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_far_away_nothing_overflows(self):
        model = one_bump()
        with torch.no_grad():
            model.shape.fill_(math.log(20.0))
        output = model(torch.tensor([[1e3]])).output
        output.sum().backward()
        assert output.item() == 0 and all(p.grad.isfinite().all() for p in model.parameters())


class TestModulated:
    def test_factor(self):
        assert shape_factor(torch.tensor(0.0)).item() == 1
        assert shape_factor(torch.tensor(10.0)).item() == pytest.approx(2 / (1 + math.exp(-1)))

    def test_starts_equal_to_gaussian_splatting(self):
        torch.manual_seed(0)
        modulated = GEFMixture((2,), 3, shape="modulated")
        gaussian = GEFMixture((2,), 3, shape="gaussian")
        gaussian.load_state_dict({k: v for k, v in modulated.state_dict().items() if k != "shape"})
        points = torch.randn(5, 2)
        torch.testing.assert_close(modulated(points).output, gaussian(points).output)

    def test_a_vanished_particle_is_left_out(self):
        model = one_bump("modulated", shape=-80.0)
        assert model(torch.tensor([[0.3]])).output.item() == 0


def fit(shape, seed, signal, steps=300):
    """Mean squared error of five functions."""
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 200).unsqueeze(1)
    model = GEFMixture((1,), 1, particles=5, shape=shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x).output - signal(x)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("signal", [lambda x: (x.abs() < 0.5).float(), lambda x: ((x / 0.5).floor() % 2 == 0).float()], ids=["pulse", "wave"])
def test_five_fit_a_square_signal_better_than_five_gaussians(signal):
    ours, gaussians = (sorted(fit(shape, seed, signal) for seed in range(3))[1] for shape in ("exact", "gaussian"))
    assert ours < 0.5 * gaussians


@pytest.mark.parametrize(
    ("options", "message"),
    [({"particles": 0}, "particles must"), ({"shape": "box"}, "shape must be one of"), ({"scale": 0}, "scale must"), ({"extent": 0}, "extent must")],
)
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        GEFMixture((1,), 1, **options)


def test_refuses_pictures():
    with pytest.raises(ValueError, match=r"input_shape must be \[D\]"):
        GEFMixture((3, 8, 8), 1)

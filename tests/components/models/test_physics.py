"""Networks of place and time, and the one-parameter energy."""

import math

import pytest
import torch

from components.models import CoordinateMLP, GaussianEnergy


def test_coordinates_are_periodic_in_place():
    model = CoordinateMLP((2,), 2, hidden=(8, 8))
    points = torch.tensor([[0.3, 0.1], [5.0, 0.9]])
    moved = points + torch.tensor([2 * math.pi, 0.0])
    torch.testing.assert_close(model(points).output, model(moved).output, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(points).output, model(points + torch.tensor([0.0, 0.5])).output)


def test_branches_share_nothing():
    model = CoordinateMLP((2,), 2, hidden=(8,))
    model(torch.rand(4, 2)).output[:, 0].sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in [*model.branches[1].parameters(), *model.heads[1].parameters()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((3,), 1), r"input_shape must be \[2\]"), (((2,), 0), "num_outputs must"), (((2,), 1, (0,)), "hidden must"), (((2,), 1, (4,), -1.0), "period must")],
)
def test_refuses_wrong_options(arguments, message):
    shape, outputs, *more = arguments
    with pytest.raises(ValueError, match=message):
        CoordinateMLP(shape, outputs, **dict(zip(("hidden", "period"), more, strict=False)))


def test_energy_is_the_normal_log_density_without_its_constant():
    model = GaussianEnergy((2,), 1)
    points = torch.randn(5, 2)
    normal = torch.distributions.Normal(model.mean, 1.0).log_prob(points).sum(1) + math.log(2 * math.pi)
    torch.testing.assert_close(model(points).output.squeeze(1), normal)
    with pytest.raises(ValueError, match="num_outputs must be 1"):
        GaussianEnergy((2,), 3)

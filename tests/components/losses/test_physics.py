"""Physics-informed losses: exact solutions leave nothing, the chain rule along characteristics is right."""

import pytest
import torch

from components.losses import LagrangianPINNLoss, PINNLoss
from components.losses.physics import along_characteristics, derivative, eulerian_residual, lagrangian_residual

X = torch.linspace(0.3, 5.9, 7, dtype=torch.float64)
T = torch.linspace(0.0, 0.8, 7, dtype=torch.float64)


def constant(speed):
    return lambda state: torch.full_like(state, speed)


class TestResiduals:
    @pytest.mark.parametrize("speed", [1.0, 30.0])
    @pytest.mark.parametrize("viscosity", [0.0, 0.1])
    def test_exact_convection_diffusion_leaves_nothing(self, speed, viscosity):
        k = 2
        eulerian = eulerian_residual(lambda x, t: torch.exp(-viscosity * k**2 * t) * torch.sin(k * (x - speed * t)), X, T, constant(speed), viscosity)
        along = lagrangian_residual(lambda x, t: (x + speed * t, torch.exp(-viscosity * k**2 * t) * torch.sin(k * x)), X, T, constant(speed), viscosity)
        assert eulerian.abs().max() < 1e-10 and along.abs().max() < 1e-10

    def test_exact_inviscid_burgers_leaves_nothing_before_the_shock(self):
        residual = lagrangian_residual(lambda x, t: (x + t * torch.sin(x), torch.sin(x)), X, T, lambda u: u, 0.0)
        assert residual.shape == (7, 2) and residual.abs().max() < 1e-12

    def test_a_wrong_speed_is_seen(self):
        residual = lagrangian_residual(lambda x, t: (x + 2 * t, torch.sin(x)), X, T, constant(3.0), 0.0)
        torch.testing.assert_close(residual, torch.tensor([[-1.0, 0.0]], dtype=torch.float64).expand(7, 2))

    def test_second_derivative_by_the_chain_rule_is_the_direct_one(self):
        """X = x0 + 0.3 sin x0, U = u(X) with u(x) = exp(sin x): u_xx is known."""
        label = X.clone().requires_grad_()
        place = label + 0.3 * torch.sin(label)
        state = torch.exp(torch.sin(place))
        expected = torch.exp(torch.sin(place)) * (torch.cos(place) ** 2 - torch.sin(place))
        torch.testing.assert_close(along_characteristics(place, state, label), expected, rtol=1e-10, atol=1e-10)

    def test_what_does_not_depend_on_the_points_has_derivative_0(self):
        points = X.clone().requires_grad_()
        other = torch.ones(7, dtype=torch.float64, requires_grad=True)
        assert (derivative(other * 2, points) == 0).all() and (derivative(torch.ones(7), points) == 0).all()

    def test_residual_reaches_the_parameters(self):
        speed = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        eulerian_residual(lambda x, t: torch.sin(x - speed * t), X, T, constant(3.0), 0.0).square().mean().backward()
        assert speed.grad is not None and speed.grad < 0


class TestLoss:
    def test_worked_value(self):
        residual, initial, boundary = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0], [1.0]])
        values = PINNLoss(initial_weight=0.5, boundary_weight=2.0, reduction="none")(residual, initial, boundary)
        assert values.tolist() == [1 + 0.5 * 9, 4 + 2.0]

    def test_the_lagrangian_form_adds_both_equations(self):
        zero = torch.zeros(1, 2)
        assert LagrangianPINNLoss()(torch.tensor([[3.0, 4.0]]), zero, zero).item() == 25
        assert (PINNLoss.outputs_per_target(), LagrangianPINNLoss.outputs_per_target()) == (1, 2)

    @pytest.mark.parametrize("name", ["initial_weight", "boundary_weight"])
    def test_refuses_a_negative_weight(self, name):
        with pytest.raises(ValueError, match=rf"{name} must be >= 0, but got -1"):
            PINNLoss(**{name: -1})

    def test_refuses_points_without_equations(self):
        with pytest.raises(ValueError, match="residual must have shape"):
            PINNLoss()(torch.ones(3), torch.ones(3), torch.ones(3))


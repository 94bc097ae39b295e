"""Sparsity-constrained transport against linear programming, POT and its own duals."""

import itertools

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linprog

from components.transport import best_weights, conjugate, dual_value, on_simplex, semi_dual_value, simplex_conjugate, sparse_transport


def problem(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    cost, a, b = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((rows, columns), (rows,), (columns,)))
    a, b = a + 0.1, b + 0.1
    return cost, a / a.sum(), b / b.sum()


def linear_programme(cost, a, b):
    rows, columns = cost.shape
    marginals = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    return linprog(cost.flatten().numpy(), A_eq=marginals, b_eq=np.concatenate([a, b]))


class TestConjugates:
    def test_worked_values(self):
        s = torch.tensor([3.0, 1.0, -1.0])
        assert [conjugate(s, k, 1.0)[0].item() for k in (1, 2, 3)] == [4.5, 5.0, 5.0]
        assert conjugate(s, 1, 2.0)[1].tolist() == [1.5, 0, 0]

    def test_worked_values_on_the_simplex(self):
        s = torch.tensor([1.0, 0.8, 0.1], dtype=torch.float64)
        value, weights = simplex_conjugate(s, 1.0, 1, 1.0)
        assert value.item() == pytest.approx(0.5) and weights.tolist() == [1, 0, 0]
        for k in (2, 3):
            value, weights = simplex_conjugate(s, 1.0, k, 1.0)
            assert value.item() == pytest.approx(0.66) and weights.tolist() == pytest.approx([0.6, 0.4, 0])

    def test_one_nonzero_is_the_maximum(self):
        s, mass = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        torch.testing.assert_close(simplex_conjugate(s, mass, 1, 0.7)[0], mass * s.max(0).values - 0.35 * mass.square())

    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_gradients_are_the_weights(self, k):
        s = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for function in (lambda s: conjugate(s, k, 0.6), lambda s: simplex_conjugate(s, 0.8, k, 0.6)):
            directions = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)
            steps = [(function(s + 1e-6 * e)[0].sum() - function(s - 1e-6 * e)[0].sum()) / 2e-6 for e in directions]
            torch.testing.assert_close(function(s)[1].flatten(), torch.stack(steps), rtol=1e-6, atol=1e-6)

    def test_projection_on_the_simplex(self):
        weights = on_simplex(torch.randn(6, 50, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64))
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(0), torch.full((50,), 1.5, dtype=torch.float64))

    def test_best_weights_beat_all_others(self):
        generator = torch.Generator().manual_seed(0)
        plan = torch.rand(6, 1, generator=generator, dtype=torch.float64) ** 2
        chosen = best_weights(plan, 3)
        others = on_simplex(torch.rand(6, 2000, generator=generator, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
        others = others[:, (others <= 1).all(0) & (others > 0).all(0)]
        assert chosen.sum().item() == pytest.approx(3) and chosen.max() <= 1 and others.shape[1] > 100
        assert ((plan**2 / chosen).sum() <= (plan**2 / others).sum(0) + 1e-12).all()


class TestSolver:
    @pytest.mark.parametrize("k", [1, 2])
    def test_worked_value(self, k):
        half = torch.tensor([0.5, 0.5], dtype=torch.float64)
        found = sparse_transport(1 - torch.eye(2, dtype=torch.float64), half, half, k=k, gamma=0.1)
        torch.testing.assert_close(found.plan, 0.5 * torch.eye(2, dtype=torch.float64))
        assert found.value.item() == pytest.approx(0.025, abs=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    def test_without_a_constraint_is_quadratic_regularisation_as_in_pot(self, seed):
        cost, a, b = problem(7, 5, seed)
        found = sparse_transport(cost, a, b, k=7, gamma=0.5)
        theirs = ot.smooth.smooth_ot_dual(a.numpy(), b.numpy(), cost.numpy(), 0.5, reg_type="l2", stopThr=1e-13, numItermax=10_000)
        np.testing.assert_allclose(found.plan.numpy(), theirs, atol=1e-5)
        assert found.value.item() == pytest.approx(float((theirs * cost.numpy()).sum() + 0.25 * (theirs**2).sum()), abs=1e-6)

    @pytest.mark.parametrize("seed", range(3))
    def test_one_nonzero_is_transport_without_regularisation(self, seed):
        """Its value is that of the linear programme plus gamma / 2 |b|²."""
        cost, a, b = problem(4, 3, seed)
        found = sparse_transport(cost, a, b, k=1, gamma=1.0, iterations=300)
        assert found.value.item() == pytest.approx(linear_programme(cost, a, b).fun + 0.5 * b.square().sum().item(), abs=1e-7)

    def test_the_semi_dual_at_the_programme_s_potentials_is_exact(self):
        cost, a, b = problem(6, 5, 0)
        programme = linear_programme(cost, a, b)
        alpha = torch.as_tensor(programme.eqlin.marginals[:6])
        value = semi_dual_value(alpha, cost, a, b, 1, 1.0).item()
        assert value == pytest.approx(programme.fun + 0.5 * b.square().sum().item(), abs=1e-8)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_duals_certify_the_value(self, k):
        cost, a, b = problem(6, 5, 1)
        found = sparse_transport(cost, a, b, k=k, gamma=1.0, iterations=400)
        both = dual_value(found.row_potential, found.column_potential, cost, a, b, k, 1.0)
        semi = semi_dual_value(found.row_potential, cost, a, b, k, 1.0)
        assert both.item() == pytest.approx(found.value.item(), abs=1e-6)
        assert both <= semi + 1e-12 and semi.item() == pytest.approx(found.value.item(), abs=1e-6)

    def test_values_fall_with_k_and_marginals_hold(self):
        cost, a, b = problem(8, 6, 2)
        found = [sparse_transport(cost, a, b, k=k, gamma=1.0, iterations=200) for k in (1, 2, 4, 8)]
        assert all(x.value >= y.value - 1e-9 for x, y in itertools.pairwise(found))
        for one in found:
            torch.testing.assert_close(one.plan.sum(0), b, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(one.plan.sum(1), a, rtol=1e-6, atol=1e-8)

    def test_plan_exceeds_k_where_slacks_tie(self):
        """The paper's 'at most k nonzeros' is of the nonconvex problem; three columns of one row each cannot hold four rows' mass."""
        cost, a, b = problem(4, 3, 0)
        found = sparse_transport(cost, a, b, k=1, gamma=1.0, iterations=300)
        assert ((found.plan > 1e-6).sum(0) > 1).any()

    @pytest.mark.parametrize("k", [1, 2, 6])
    def test_gradient_is_the_plan(self, k):
        cost, a, b = problem(6, 4, 3)
        cost.requires_grad_()
        found = sparse_transport(cost, a, b, k=k, gamma=0.8, iterations=400)
        (gradient,) = torch.autograd.grad(found.value, cost)
        assert torch.equal(gradient, found.plan)
        direction = torch.randn(cost.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ends = [sparse_transport(cost.detach() + h * direction, a, b, k=k, gamma=0.8, iterations=400).value for h in (1e-4, -1e-4)]
        assert ((ends[0] - ends[1]) / 2e-4).item() == pytest.approx((gradient * direction).sum().item(), abs=1e-4)

    def test_in_single_precision(self):
        cost, a, b = problem(20, 10, 0)
        exact = sparse_transport(cost, a, b, k=3, gamma=1.0).value
        assert sparse_transport(cost.float(), a.float(), b.float(), k=3, gamma=1.0).value.item() == pytest.approx(exact.item(), rel=1e-3)

    @pytest.mark.parametrize(
        ("change", "message"), [({"a": torch.ones(3)}, "a must"), ({"b": torch.ones(2)}, "b must"), ({"k": 0}, "k must"), ({"iterations": 0}, "iterations")]
    )
    def test_refuses_wrong_arguments(self, change, message):
        cost, a, b = problem(4, 3, 0)
        with pytest.raises(ValueError, match=message):
            sparse_transport(**{"cost": cost, "a": a, "b": b, "k": 1, "gamma": 1.0, **change})

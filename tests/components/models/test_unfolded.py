"""Unfolded solvers: with fixed steps the algorithms themselves, with learned ones faster."""

import pytest
import torch

from components.losses import SparseObjectiveLoss
from components.models import UnfoldedIHT, UnfoldedISTA


def problem(rows=20, columns=40, signals=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) / rows**0.5
    signal = torch.randn(signals, columns, generator=generator) * (torch.rand(signals, columns, generator=generator) < 0.1)
    return matrix, signal, signal @ matrix.T


def objective(matrix, signal, measured, lam):
    return SparseObjectiveLoss(lam)(signal, signal @ matrix.T - measured).item()


class TestLayers:
    def test_one_layer_on_the_identity_solves_the_lasso(self):
        model = UnfoldedISTA(torch.eye(2), layers=1, lam=1.0)
        found = model(torch.tensor([[3.0, 0.5]])).output
        torch.testing.assert_close(found, torch.tensor([[2.0, 0.0]]))
        assert objective(torch.eye(2), found, torch.tensor([[3.0, 0.5]]), 1.0) == pytest.approx(2.625 / 2, abs=1e-6)

    def test_at_the_start_every_layer_is_plain_ista(self):
        matrix, _, measured = problem()
        model = UnfoldedISTA(matrix, layers=8, lam=0.1)
        step = 1 / torch.linalg.matrix_norm(matrix, 2) ** 2
        torch.testing.assert_close(model.step_sizes(), step.expand(8), rtol=1e-5, atol=1e-6)
        signal, before = torch.zeros(30, 40), float("inf")
        for found in model.trajectory(measured):
            r = signal - step * (signal @ matrix.T - measured) @ matrix
            signal = r.sign() * (r.abs() - 0.1 * step).clamp(min=0)
            torch.testing.assert_close(found, signal, rtol=1e-4, atol=1e-5)
            now = objective(matrix, found, measured, 0.1)
            assert now <= before + 1e-6
            before = now

    def test_hard_thresholding_keeps_what_is_large_whole(self):
        found = UnfoldedIHT(torch.eye(3), layers=1, lam=1.0)(torch.tensor([[3.0, -0.5, -2.0]])).output
        torch.testing.assert_close(found, torch.tensor([[3.0, 0.0, -2.0]]))

    def test_features_are_the_layer_before(self):
        matrix, _, measured = problem()
        model = UnfoldedISTA(matrix, layers=4)
        result = model(measured)
        torch.testing.assert_close(result.features, model.trajectory(measured)[2])


def trained(supervised, layers=5, steps=150):
    matrix, signal, measured = problem(signals=200)
    model = UnfoldedISTA(matrix, layers=layers, lam=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = SparseObjectiveLoss(0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        found = model(measured).output
        value = (found - signal).square().mean() if supervised else loss(found, found @ matrix.T - measured)
        value.backward()
        optimizer.step()
    found = model(measured).output.detach()
    return objective(matrix, found, measured, 0.1), (found - signal).square().mean().item()


class TestTrained:
    def test_unsupervised_lowers_the_objective_supervised_the_error(self):
        matrix, _, measured = problem(signals=200)
        start = UnfoldedISTA(matrix, layers=5, lam=0.1)(measured).output
        plain = objective(matrix, start, measured, 0.1)
        by_objective, by_error = trained(supervised=False), trained(supervised=True)
        assert by_objective[0] < plain and by_objective[0] < by_error[0]
        assert by_error[1] < by_objective[1]

    def test_both_reach_the_same_minimum_with_layers_enough(self):
        """The untrained algorithm at 400 iterations; the learned one at 20 is as near as the plain one at several times that."""
        matrix, _, measured = problem(signals=200)
        path = UnfoldedISTA(matrix, layers=400, lam=0.1).trajectory(measured)
        least = objective(matrix, path[-1], measured, 0.1)
        learned = trained(supervised=False, layers=20)[0]
        assert least <= learned + 1e-6
        assert learned - least < 0.5 * (objective(matrix, path[19], measured, 0.1) - least)


class TestIncremental:
    def test_trains_one_layer_after_the_other(self):
        matrix, _, measured = problem()
        model = UnfoldedISTA(matrix, layers=3, incremental=True, total_steps=6).train()
        path = model.trajectory(measured)
        for layer in (0, 0, 1, 1, 2, 2, 2):
            torch.testing.assert_close(model(measured).output, path[layer])
        torch.testing.assert_close(model.eval()(measured).output, path[-1])

    def test_evaluation_is_the_last_layer_and_counts_nothing(self):
        matrix, _, measured = problem()
        model = UnfoldedISTA(matrix, layers=3, incremental=True, total_steps=6).eval()
        torch.testing.assert_close(model(measured).output, model.trajectory(measured)[-1])
        assert model.steps_seen == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be >= 1"),
        ({"lam": -1}, "lam must be >= 0"),
        ({"incremental": True}, "incremental needs total_steps"),
        ({"num_outputs": 3}, "num_outputs must be the 2 columns"),
    ],
)
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        UnfoldedISTA(torch.eye(2), **options)


def test_refuses_a_vector():
    with pytest.raises(ValueError, match="measurement_matrix must be M rows of N numbers"):
        UnfoldedIHT(torch.ones(3))

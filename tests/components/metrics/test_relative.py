"""Errors in proportion, correlation within groups, likelihood."""

import math

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from components.metrics import NegativeLogLikelihood, NormalisedSquaredError, RelativeL2Error, SparseObjective, WithinGroupCorrelation


def value(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute().item()


def test_squared_error_in_proportion():
    preds, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, math.nan]])
    assert value(NormalisedSquaredError(), (preds, target)) == pytest.approx((4 + 9) / 10)
    assert value(RelativeL2Error(), (preds[:1], target[:1]), (preds[1:], target[1:])) == pytest.approx(1.3**0.5)
    assert value(NormalisedSquaredError(), (torch.zeros(3), torch.ones(3))) == 1


@pytest.mark.parametrize(("kind", "reference"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlation_is_the_mean_over_groups(kind, reference):
    generator = torch.Generator().manual_seed(0)
    preds, group = torch.randn(40, generator=generator), torch.arange(40) % 2
    target = preds + torch.randn(40, generator=generator) + 10 * group
    expected = sum(reference(preds[group == g].numpy(), target[group == g].numpy())[0] for g in (0, 1)) / 2
    assert value(WithinGroupCorrelation(kind), (preds[:7], target[:7], group[:7]), (preds[7:], target[7:], group[7:])) == pytest.approx(expected, abs=1e-5)


def test_groups_without_differences_are_left_out():
    preds, target, group = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0]), torch.tensor([1.0, 2.0, 9.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 2, 2])
    assert value(WithinGroupCorrelation(), (preds, target, group)) == pytest.approx(1)
    assert value(WithinGroupCorrelation(), (preds[2:], target[2:], group[2:])) == 0
    with pytest.raises(ValueError, match="kind must be one of"):
        WithinGroupCorrelation("kendall")


def test_negative_log_likelihood():
    assert value(NegativeLogLikelihood(), (torch.tensor([-1.0, -2.0]),), (torch.tensor([-6.0]),)) == 3


def test_objective_of_sparse_recovery():
    signal, measured = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.5], [0.0, 2.0]])
    assert value(SparseObjective(lam=1.0), (signal, signal - measured)) == pytest.approx((2.625 + 2) / 4)
    assert value(SparseObjective(lam=1.0, penalty="l0"), (signal, signal - measured)) == pytest.approx((1.625 + 2) / 4)

"""The transport cost between two batches as a loss; the solver itself: tests/components/test_transport.py."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from components.losses import SparseTransportLoss


def clouds(n=6):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 4, generator=generator, dtype=torch.float64) for _ in range(2))


def test_the_same_cloud_in_another_order_costs_the_penalty_alone():
    first, _ = clouds()
    value = SparseTransportLoss(k=1, gamma=0.1, iterations=100)(first, first[torch.tensor([3, 1, 5, 0, 2, 4])])
    assert value.item() == pytest.approx(0.05, abs=1e-6)


def test_one_nonzero_is_assignment():
    first, second = clouds()
    cost = 1 - torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
    rows, columns = linear_sum_assignment(cost.numpy())
    value = SparseTransportLoss(k=1, gamma=0.1, iterations=400)(first, second)
    assert value.item() == pytest.approx(cost[rows, columns].mean().item() + 0.05, abs=1e-5)


def test_descending_it_brings_the_clouds_together():
    first, second = clouds()
    moving = first.clone().requires_grad_()
    loss = SparseTransportLoss(k=1, gamma=0.05)
    optimizer = torch.optim.Adam([moving], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(moving, second)
        value.backward()
        optimizer.step()
    assert value.item() < 0.05 < loss(first, second).item() - 0.1


@pytest.mark.parametrize(("options", "message"), [({"k": 0}, "k must"), ({"gamma": 0}, "gamma must"), ({"iterations": 0}, "iterations must")])
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SparseTransportLoss(**options)

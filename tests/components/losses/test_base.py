import math

import pytest
import torch

from components.losses import Loss, reduce_values
from components.losses.base import check_same_shape, float_tensor, is_readable


def test_reduction_over_nothing_is_zero() -> None:
    assert reduce_values(torch.zeros(0), None, "mean") == 0
    assert reduce_values(torch.ones(3), torch.zeros(3), "mean") == 0


def test_weighted_mean() -> None:  # (1 · 2 + 3 · 4) / (1 + 3)
    values, weights = torch.tensor([2.0, 4.0, math.nan]), torch.tensor([1.0, 3.0, 0.0])
    assert reduce_values(values, weights, "mean") == 3.5
    assert reduce_values(values, weights, "sum") == 14
    assert reduce_values(values, weights, "none").tolist() == [2, 12, 0]


def test_half_precision_counts_beyond_256() -> None:
    assert reduce_values(torch.ones(1001, dtype=torch.bfloat16), torch.ones(1001, dtype=torch.bfloat16), "mean") == 1
    assert reduce_values(torch.full((70_000,), 2.0, dtype=torch.float16), torch.ones(70_000, dtype=torch.float16), "mean") == 2


def test_real_valued_targets_are_ignored_by_nan() -> None:
    loss = Loss(reduction="none")
    assert loss.reduce(torch.tensor([1.0, 2.0]), torch.tensor([0.3, math.nan])).tolist() == [1, 0]
    assert Loss().reduce(torch.tensor([1.0, 2.0]), torch.tensor([-100.0, 0.3])) == 1.5


def test_weight_is_state() -> None:
    loss = Loss(weight=(1, 2.5))
    assert loss.state_dict()["weight"].tolist() == [1.0, 2.5]
    assert Loss().state_dict() == {}


def test_what_can_be_read_for_free() -> None:
    assert is_readable(torch.zeros(2))
    assert not is_readable(torch.zeros(2, device="meta"))
    seen = []
    torch.func.vmap(lambda x: seen.append(is_readable(x)) or x)(torch.zeros(2, 3))
    assert seen == [False]


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2,\), but got \(2, 1\)"):
        check_same_shape("b", torch.zeros(2, 1), "a", torch.zeros(2))
    with pytest.raises(ValueError, match="pos_weight must be a 1-D tensor of finite values"):
        float_tensor("pos_weight", torch.tensor([1.0, math.inf]))

"""Learning rates as a torch user would see them."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

BASE_LR = 0.3


@pytest.fixture
def base_lr() -> float:
    return BASE_LR


@pytest.fixture
def torch_rates() -> Callable[[Callable[[torch.optim.Optimizer], LRScheduler], int], list[float]]:
    """(optimizer -> scheduler, steps) -> the learning rate of each step."""

    def rates(make_scheduler: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE_LR)
        scheduler = make_scheduler(optimizer)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer never steps
            for _ in range(steps):
                seen.append(optimizer.param_groups[0]["lr"])
                scheduler.step()
        return seen

    return rates


@pytest.fixture
def our_rates(torch_rates) -> Callable[[Callable[[int], float], int], list[float]]:
    """The same for one of our schedules, run as torch users would: by LambdaLR."""
    return lambda schedule, steps: torch_rates(lambda optimizer: LambdaLR(optimizer, schedule), steps)

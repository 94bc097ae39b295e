"""Scores and classes that the families of classification losses are tried on."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def logits() -> Tensor:
    return (2 * torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    return torch.randint(5, (16,), generator=torch.Generator().manual_seed(1))

"""A small network with batch normalisation, on data whose order is resumable, and a trainer without frills."""

from __future__ import annotations

import pytest

from components.testing.averaging import Data, Net, trainer_for


@pytest.fixture
def data() -> type[Data]:
    return Data


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def make_trainer(tmp_path):
    """(callbacks, **options) -> Trainer: four epochs of six steps, validation after every fourth batch of an epoch."""
    return lambda callbacks, **options: trainer_for(callbacks, tmp_path, **options)

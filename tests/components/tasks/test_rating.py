"""Ratings: the score is the mean of the predicted distribution."""

import pytest
import torch
from torch import nn

from components.data import RatedQuality
from components.tasks import RatingTask


def test_score_is_the_expected_level():
    task = RatingTask(nn.Identity(), num_classes=3, target_kind="multiclass")
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [0.0, 0.0, 100.0]])
    quantities = task.quantities({"inputs": logits, "target": torch.tensor([0, 1, 2])})
    torch.testing.assert_close(quantities["level_score"], torch.tensor([2.0, 1.0, 3.0]))
    predicted = task.predict({"inputs": logits})
    torch.testing.assert_close(predicted["standard_deviation"], torch.tensor([(2 / 3) ** 0.5, 0.0, 0.0]))


def test_takes_the_ratings_from_the_data():
    data = RatedQuality(size=100)
    data.setup()
    task = RatingTask(nn.Linear(10, 5), num_classes=5, target_kind="multiclass")
    quantities = task.quantities(data.fetch("train", torch.arange(6)))
    assert all(quantities[name].shape == (6,) for name in ("target_mean", "target_std", "group"))


def test_refuses_several_labels():
    with pytest.raises(ValueError, match="task=rating needs one level of several"):
        RatingTask(nn.Identity(), num_classes=3, target_kind="multilabel")

"""Sparse recovery and pictures from pictures."""

import pytest
import torch
from torch import nn

from components.data import NoisyPictures, SparseRecovery
from components.models import UNet, UnfoldedISTA
from components.tasks import ImageRegressionTask, SparseRecoveryTask


class TestSparseRecovery:
    def test_residual_is_that_of_the_prediction(self):
        data = SparseRecovery(size=40, dimensions=12, measurements=6, snr=200.0, batch_size=8)
        data.setup()
        facts = data.facts()
        task = SparseRecoveryTask(UnfoldedISTA(facts["measurement_matrix"]), measurement_matrix=facts["measurement_matrix"], num_targets=12, head="point")
        split = data.splits["train"]
        quantities = task.quantities(dict(split))
        expected = quantities["prediction"] @ data.matrix().float().T - split["inputs"]
        torch.testing.assert_close(quantities["measurement_residual"], expected)
        torch.testing.assert_close(split["target"] @ data.matrix().float().T, split["inputs"], rtol=1e-4, atol=1e-5)

    def test_refuses_other_heads(self):
        with pytest.raises(ValueError, match="head must be point"):
            SparseRecoveryTask(nn.Identity(), measurement_matrix=[[1.0]], num_targets=1, head="gaussian")


class TestImageRegression:
    def test_offers_both_forms(self):
        data = NoisyPictures()
        data.setup()
        batch = data.fetch("train", torch.arange(3))
        task = ImageRegressionTask(UNet(1, 1, depth=1, width=4), image_size=(25, 25))
        quantities = task.quantities(batch)
        assert quantities["image"].shape == quantities["target_image"].shape == (3, 1, 25, 25)
        torch.testing.assert_close(quantities["image"].flatten(1), quantities["prediction"])
        torch.testing.assert_close(quantities["target_image"].flatten(1), quantities["target"])
        assert task.predict(batch)["prediction"].shape == (3, 1, 25, 25)

    def test_facts(self):
        facts = {"target_kind": "real", "num_targets": 48, "image_size": (4, 4)}
        assert ImageRegressionTask.facts(facts) == {"num_outputs": 3}
        with pytest.raises(ValueError, match="must be pictures of 16 pixels a channel"):
            ImageRegressionTask.facts(facts | {"num_targets": 50})
        with pytest.raises(ValueError, match="target_kind must be real"):
            ImageRegressionTask.facts(facts | {"target_kind": "multiclass"})

    def test_refuses_a_model_of_numbers(self):
        with pytest.raises(ValueError, match="must put out pictures of the inputs' size"):
            ImageRegressionTask(nn.Flatten(), image_size=(4, 4)).quantities({"inputs": torch.zeros(2, 1, 4, 4)})

"""Densities up to a constant: noise of a known density, likelihood over a grid."""

import math

import lightning
import pytest
import torch
from tiny_tasks import Recorder, trainer

from components.binding import bind
from components.data import GaussianRing
from components.losses import MECOLoss, NCELoss
from components.metrics import NegativeLogLikelihood
from components.models import GaussianEnergy
from components.objective import Objective
from components.tasks import DensityEstimationTask


def task_of(dimensions, loss=None, **options):
    task = DensityEstimationTask(GaussianEnergy((dimensions,), 1), input_shape=(dimensions,), **options)
    task.objective = Objective(bind(loss or NCELoss(), task.offered, name="loss", task="density_estimation"))
    metric = bind(NegativeLogLikelihood(), task.offered, name="metrics.nll", task="x", method="update", inputs={"log_density": "normalised_log_density"})
    task.add_metrics({"nll": metric})
    return task


class TestNoise:
    @pytest.mark.parametrize("dimensions", [1, 2])
    @pytest.mark.parametrize("noise", ["uniform", "gaussian"])
    def test_density_is_that_of_the_draws(self, noise, dimensions):
        """The mean of 1 / q over draws of q in a box is the box's volume."""
        torch.manual_seed(0)
        task = task_of(dimensions, noise=noise, extent=2.0)
        drawn = task.draw(200_000, torch.zeros(1, dimensions))
        assert drawn.shape == (200_000, dimensions)
        inside = (drawn.abs() < 1).all(1)
        volume = (torch.exp(-task.log_noise(drawn)) * inside).mean().item()
        assert volume == pytest.approx(2.0**dimensions, rel=0.02)

    def test_is_new_in_training_and_the_same_in_every_validation(self):
        data = GaussianRing(size=200, modes=1, radius=0.0, spread=1.0, dimensions=1, batch_size=140)
        task = task_of(1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        recorder = Recorder()
        trainer(recorder, max_epochs=3).fit(task, datamodule=data)
        rows = [row for _, row in recorder.rows]
        assert len({row["val/loss"] for row in rows if "val/loss" in row}) == 1
        batch = data.fetch("train", torch.arange(5))
        assert not torch.equal(task.quantities(batch)["noise_log_density"], task.quantities(batch)["noise_log_density"])


class TestGrid:
    @pytest.mark.parametrize("dimensions", [1, 2])
    def test_normalises(self, dimensions):
        task = task_of(dimensions, grid=120, grid_extent=8.0)
        assert task.log_partition(torch.zeros(1, dimensions)).item() == pytest.approx(dimensions * 0.5 * math.log(2 * math.pi), abs=1e-4)

    def test_likelihood_of_the_truth_is_the_entropy(self):
        data = GaussianRing(size=400, modes=1, radius=1.5, spread=1.0, dimensions=1)
        data.setup()
        task = task_of(1, grid=400, grid_extent=10.0)
        with torch.no_grad():
            task.model.mean.fill_(1.5)
        found = task.quantities(dict(data.splits["test"]))["normalised_log_density"]
        torch.testing.assert_close(found, data.splits["test"]["target"].squeeze(1), rtol=1e-4, atol=1e-4)

    def test_covers_the_noise_unless_told(self):
        assert task_of(1, extent=3.0).grid_extent == 3.0
        assert task_of(1, extent=3.0, noise="gaussian").grid_extent == 24.0

    def test_refuses_many_dimensions(self):
        task = task_of(3)
        assert task.quantities({"inputs": torch.zeros(2, 3)})["log_density"].shape == (2,)
        with pytest.raises(ValueError, match="one or two dimensions"):
            task.log_partition(torch.zeros(1, 3))


def test_meco_finds_a_mean_that_nce_is_slow_to():
    """Noise N(0, 1), data N(3, 1): the flat landscape of noise contrastive estimation, the curved one of the likelihood."""
    found = {}
    for name, loss in (("meco", MECOLoss(gamma=0.1)), ("nce", NCELoss())):
        lightning.seed_everything(0, verbose=False)
        data = GaussianRing(size=500, modes=1, radius=3.0, spread=1.0, dimensions=1, batch_size=50)
        task = task_of(1, loss, noise="gaussian", extent=1.0, noise_samples=20, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        trainer(max_epochs=5, limit_val_batches=0).fit(task, datamodule=data)
        found[name] = abs(task.model.mean.item() - 3)
    assert found["meco"] < 0.5 < found["nce"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "cauchy"}, "noise must be one of"),
        ({"extent": 0}, "extent must be > 0"),
        ({"noise_samples": 0}, "noise_samples must"),
        ({"grid": 1}, "grid must"),
        ({"grid_extent": -1.0}, "grid_extent must"),
    ],
)
def test_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        task_of(1, **options)

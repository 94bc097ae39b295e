"""Solving a transport equation: residuals reach a validation, exact solutions are recognised, moving frames are read off right."""

import math

import lightning
import pytest
import torch
from tiny_tasks import Recorder, trainer
from torch import nn

from components.binding import bind
from components.data import Convection
from components.losses import LagrangianPINNLoss, PINNLoss
from components.models import CoordinateMLP
from components.objective import Objective
from components.tasks import PhysicsInformedTask

EQUATION = {"speed": 7.0, "viscosity": 0.0}


class Exact(nn.Module):
    """The exact solution as a network would put it out: the state; or the way gone and the state."""

    def __init__(self, task_outputs, speed=7.0):
        super().__init__()
        self.outputs, self.speed = task_outputs, nn.Parameter(torch.tensor(speed))

    def forward(self, inputs):
        x, t = inputs.unbind(1)
        if self.outputs == 1:
            return torch.sin(x - self.speed * t).unsqueeze(1)
        return torch.stack([self.speed * t, torch.sin(x)], 1)


def points(n=40):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2 * math.pi, 1.0])


def task_of(model, outputs, equation=EQUATION, **options):
    task = PhysicsInformedTask(model, equation=equation, num_outputs=outputs, **options)
    loss = (PINNLoss if outputs == 1 else LagrangianPINNLoss)()
    task.objective = Objective(bind(loss, task.offered, name="loss", task="physics_informed"))
    return task


@pytest.mark.parametrize("outputs", [1, 2])
class TestExactSolution:
    def test_has_no_residuals(self, outputs):
        quantities = task_of(Exact(outputs), outputs).quantities({"inputs": points(), "index": torch.arange(40)})
        for name in ("residual", "initial_residual", "boundary_residual"):
            assert quantities[name].shape == (40, outputs)
            assert quantities[name].abs().max() < 1e-4, name

    def test_is_predicted(self, outputs):
        where = points()
        exact = torch.sin(where[:, 0] - 7 * where[:, 1]).unsqueeze(1)
        predicted = task_of(Exact(outputs), outputs, labels=512).quantities({"inputs": where})["prediction"]
        assert (predicted - exact).abs().max() < 1e-4

    def test_of_another_speed_has_residuals(self, outputs):
        quantities = task_of(Exact(outputs, speed=6.0), outputs).quantities({"inputs": points()})
        assert quantities["residual"].abs().max() > 0.5 and quantities["initial_residual"].abs().max() < 1e-5

    def test_built_in_initial_values_hold_for_any_network(self, outputs):
        torch.manual_seed(0)
        task = task_of(CoordinateMLP((2,), outputs, hidden=(8,)), outputs, hard_initial=True)
        quantities = task.quantities({"inputs": points()})
        assert (quantities["initial_residual"] == 0).all()
        assert quantities["boundary_residual"].abs().max() < 1e-4
        assert quantities["residual"].abs().max() > 0.01

    def test_residual_is_the_same_where_gradients_are_off(self, outputs):
        task = task_of(Exact(outputs, speed=6.0), outputs)
        expected = task.quantities({"inputs": points()})["residual"]
        with torch.inference_mode():
            value = task.quantities({"inputs": points()})["residual"]
        assert not value.requires_grad and torch.equal(value, expected.detach())


def test_burgers_is_read_off_its_characteristics():
    data = Convection(size=50, burgers=True, amplitude=0.5, duration=1.0, batch_size=8)
    data.setup()

    class Flow(nn.Module):
        def forward(self, inputs):
            x, t = inputs.unbind(1)
            return torch.stack([t * 0.5 * torch.sin(x), 0.5 * torch.sin(x)], 1)

    split = data.splits["train"]
    task = task_of(Flow(), 2, data.facts()["equation"], labels=1024)
    assert (task.quantities(dict(split))["prediction"] - split["target"]).abs().max() < 1e-3
    assert task.quantities(dict(split))["residual"].abs().max() < 1e-5


@pytest.mark.parametrize("outputs", [1, 2])
def test_trains_with_viscosity_and_validates(outputs):
    lightning.seed_everything(0, verbose=False)
    data = Convection(size=100, speed=1.0, viscosity=0.1, batch_size=35)
    task = task_of(CoordinateMLP((2,), outputs, hidden=(8,)), outputs, {"speed": 1.0, "viscosity": 0.1}, optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
    recorder = Recorder()
    trainer(recorder, max_epochs=30).fit(task, datamodule=data)
    losses = [row["val/loss"] for _, row in recorder.rows if "val/loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_lagrangian_beats_the_fixed_frame_in_a_short_budget():
    """Convection at c = 30: along characteristics the error is far below what a fixed frame reaches."""
    errors = {}
    for outputs in (1, 2):
        lightning.seed_everything(0, verbose=False)
        data = Convection(size=600, speed=30.0, batch_size=105)
        task = task_of(CoordinateMLP((2,), outputs, hidden=(20, 20)), outputs, {"speed": 30.0}, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
        trainer(max_epochs=100, limit_val_batches=0).fit(task, datamodule=data)
        test = data.splits["test"]
        error = task.quantities(dict(test))["prediction"] - test["target"]
        errors[outputs] = (error.norm() / test["target"].norm()).item()
    assert errors[2] < 0.3 * errors[1] and errors[1] > 0.5


def test_refuses_a_loss_of_more_outputs():
    with pytest.raises(ValueError, match=r"num_outputs must be 1 \(a fixed frame\) or 2"):
        PhysicsInformedTask(Exact(1), equation=EQUATION, num_outputs=3)
    with pytest.raises(ValueError, match="labels must be >= 2"):
        PhysicsInformedTask(Exact(1), equation=EQUATION, num_outputs=1, labels=1)

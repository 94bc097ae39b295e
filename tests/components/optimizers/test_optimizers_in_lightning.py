"""Optimizers that ask more of the loop than ``step()``: closures that are evaluated several times, groups made by the optimizer."""

from pathlib import Path

import lightning
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from components.optimizers import MoMo
from components.schedules import Linear
from components.testing.optimizers import assert_same

CONF = Path(__file__).parents[3] / "conf" / "optimizer"


class Regression(lightning.LightningModule):
    """A small regression in full batches, with a schedule set at the beginning of each step as losskit's tasks do."""

    def __init__(self, make_optimizer):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.make_optimizer = make_optimizer
        self.schedule = Linear(total_steps=20, end_factor=0.1)
        self.losses, self.rates, self.evaluations = [], [], 0

    def on_train_batch_start(self, batch, batch_idx):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.schedule(self.global_step)
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    def training_step(self, batch, batch_idx):
        self.evaluations += 1
        inputs, target = batch
        loss = (self.net(inputs).squeeze(1) - target).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


@pytest.fixture
def fit(tmp_path):
    def run(name: str, **overrides) -> Regression:
        node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
        node.pop("decay_only_matrices", None)
        cls = get_class(node.pop("_target_"))
        inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
        loader = DataLoader(TensorDataset(inputs, inputs[:, 0] * inputs[:, 1]), batch_size=32)
        module = Regression(lambda parameters: cls(parameters, **(node | overrides)))
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=20,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader)
        assert trainer.global_step == 20
        return module

    return run


def test_lbfgs_evaluates_its_closure_and_converges(fit):
    module = fit("lbfgs")
    assert module.evaluations > 20
    assert module.losses[-1] < 1e-3 * module.losses[0]


def test_muon_follows_the_schedule_in_both_parts(fit):
    module = fit("muon", lr=0.05, adamw_lr=0.01)
    assert module.losses[-1] < 0.9 * module.losses[0]
    assert module.rates[0] == [0.05, 0.01] and module.rates[10] == pytest.approx([0.0275, 0.0055])


@pytest.mark.parametrize(("name", "lr"), [("momo", 1.0), ("momo_adam", 0.01), ("normalized_gd", 0.05), ("implicit_ftrl", 0.1)])
def test_lightning_hands_the_loss_to_optimizers_that_need_it(fit, name, lr):
    module = fit(name, lr=lr)
    assert module.evaluations == 20
    assert module.losses[-1] < module.losses[0]


def test_momos_steps_are_those_of_a_plain_loop(fit):
    module = fit("momo", lr=0.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, schedule = MoMo(net.parameters(), lr=0.5), Linear(total_steps=20, end_factor=0.1)
    inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.5 * schedule(step)
        optimizer.zero_grad()
        loss = (net(inputs).squeeze(1) - inputs[:, 0] * inputs[:, 1]).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    assert_same([p.detach() for p in module.net.parameters()], [p.detach() for p in net.parameters()])


def test_mirror_prox_evaluates_the_closure_twice(fit):
    module = fit("implicit_ftrl", update="mirror_prox")
    assert module.evaluations == 40
    assert module.losses[-1] < module.losses[0]

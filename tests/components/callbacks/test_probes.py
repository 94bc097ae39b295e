"""Steps that are only tried leave no trace: a run with probes that are thrown away is, bit for bit, the run without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from components.callbacks.probes import Prober, ProbeStopped, Snapshot, Tried
from losskit_cli.build import Builder
from losskit_cli.compose import Composer
from losskit_cli.run import quiet_libraries

OPTIMIZERS = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "optimizer").glob("*.yaml"))
ALONE = {"dot"}  # wants the two losses of a distillation
SMALL = ["data=digits", "data.fraction=0.25", "model=mlp", "trainer.max_steps=6", "trainer.max_epochs=-1", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    quiet_libraries()
    return Composer()


class Probing(lightning.Callback):
    """Tries steps with wild rates at steps 0, 2 and 3, and throws them away."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.tried: list[Tried] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.prober = Prober(trainer, **self.options)
        self.try_some(seed=0)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step in (2, 3):
            self.try_some(seed=trainer.global_step)

    def try_some(self, seed: int) -> None:
        self.prober.remember()
        self.tried.append(self.prober.probe([1.0, 0.5, 2.0], seed=seed, measure_after=[1, 3]))
        self.tried.append(self.prober.probe([1.0, 0.5, 2.0], seed=seed, measure_after=[1, 3]))
        self.tried.append(self.prober.probe([1e20, 1e20, 1e20, 1e20], seed=seed, measure_after=[4], options={"weight_decay": 0.3} if self.decays() else None))
        self.prober.release()

    def decays(self) -> bool:
        return "weight_decay" in self.prober.trainer.optimizers[0].param_groups[0]


def fit(composer: Composer, overrides: list[str], *callbacks: lightning.Callback) -> dict[str, Any]:
    """All that a run ends with: weights, optimizer, average, random state, logged values."""
    composed = composer.compose([*SMALL, *overrides])
    experiment = Builder(composed.resolved(), composed.choices).experiment()
    trainer = experiment.trainer
    trainer.callbacks[:0] = callbacks  # type: ignore[attr-defined]
    trainer.fit(experiment.task, datamodule=experiment.data)
    return {
        "weights": {name: tensor.clone() for name, tensor in experiment.task.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "random": torch.rand(3),
        "steps": trainer.global_step,
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(torch.nan_to_num(left.float()), torch.nan_to_num(right.float()))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def assert_no_trace(composer: Composer, overrides: list[str]) -> Probing:
    probing = Probing()
    plain, probed = fit(composer, overrides), fit(composer, overrides, probing)
    for part, value in plain.items():
        assert same(value, probed[part]), part
    first, again, wild = probing.tried[:3]
    assert len(first.losses) == 3 and len(first.measured) == 2
    assert first.losses == again.losses and first.measured == again.measured  # a function of state, rates and seed
    assert len(wild.losses) <= 4
    return probing


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in ALONE])
def test_no_trace_with_any_optimizer(composer: Composer, optimizer: str) -> None:
    assert_no_trace(composer, [f"optimizer={optimizer}"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.accumulate_grad_batches=3"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.gradient_clip_val=0.5"],
        ["averaging=ema"],
        ["averaging=switch_ema", "averaging.every_n_steps=2"],
        ["model=convnet", "model.norm=batch", "model.dropout=0.3"],
        ["transform=[mixup]", "loss=focal"],
        ["optimizer.weight_decay=0.1", "optimizer.decay_only_matrices=true"],
        ["task=self_supervised"],
        ["task=embedding", "loss=triplet"],
        ["trainer.val_check_interval=2", "trainer.check_val_every_n_epoch=null"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_no_trace_in_any_kind_of_step(composer: Composer, overrides: list[str]) -> None:
    assert_no_trace(composer, overrides)


def test_a_probe_takes_the_steps_that_training_would(composer: Composer) -> None:
    """The same batches and rates as a run from the same start give the same losses: precision, clipping and accumulation included."""
    overrides = ["data.fraction=0.5", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.7", "schedule=constant"]

    class Twice(lightning.Callback):
        losses: list[float]

        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            prober = Prober(trainer)
            loader = trainer.train_dataloader
            prober._training_batches = lambda seed: iter(loader)  # type: ignore[method-assign]  # the very ones that training sees
            self.losses, self.seen = prober.probe([1.0] * 3, seed=0).losses, []

        def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    both = Twice()
    fit(composer, overrides, both)
    means = [sum(both.seen[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert both.losses == pytest.approx(means, rel=1e-6)


def test_a_wild_rate_diverges_and_harms_nothing(composer: Composer) -> None:
    probing = assert_no_trace(composer, ["optimizer.lr=1"])
    assert probing.tried[2].diverged and not probing.tried[0].diverged


def test_a_probe_can_be_given_up_in_the_middle(composer: Composer) -> None:
    class GivingUp(Probing):
        stopped = 0

        def try_some(self, seed: int) -> None:
            calls = iter([False, False, True])
            self.prober.give_up = lambda done: next(calls)
            with pytest.raises(ProbeStopped):
                self.prober.probe([0.1] * 5, seed=seed)
            self.stopped += 1

    giving_up = GivingUp()
    assert same(fit(composer, []), fit(composer, [], giving_up))
    assert giving_up.stopped == 3


def test_an_error_of_the_model_is_not_taken_for_divergence(composer: Composer) -> None:
    class Failing(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            prober = Prober(trainer)
            before = [p.detach().clone() for p in pl_module.parameters()]
            whole = pl_module.training_step
            calls = iter([whole, whole])

            def training_step(*arguments: Any) -> Any:
                step = next(calls, None)
                if step is None:
                    raise RuntimeError("out of memory")
                return step(*arguments)

            pl_module.training_step = training_step
            with pytest.raises(RuntimeError, match="out of memory"):
                prober.probe([1.0] * 5, seed=0)
            del pl_module.training_step
            assert all(torch.equal(a, b) for a, b in zip(before, pl_module.parameters(), strict=True))
            self.seen = True

    failing = Failing()
    fit(composer, [], failing)
    assert failing.seen


class Plain(lightning.LightningModule):
    """Somebody's own module: logs in its training step, has a buffer that grows old and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.count = 0

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += len(batch[0])  # type: ignore[operator]
        self.count += 1
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_epoch=True, on_step=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        first, last = self.net[0], self.net[3]
        return torch.optim.AdamW([{"params": first.parameters(), "lr": 1e-2}, {"params": last.parameters()}], lr=1e-3)


def plain_run(*callbacks: lightning.Callback, workers: int = 0) -> tuple[Plain, lightning.Trainer]:
    lightning.seed_everything(3, verbose=False)
    module = Plain()
    inputs = torch.randn(64, 4)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :1]), batch_size=8, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    trainer = lightning.Trainer(max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=list(callbacks))
    trainer.fit(module, loader)
    return module, trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_no_trace_in_a_module_and_loader_of_ones_own(workers: int) -> None:
    plain, trainer = plain_run(workers=workers)
    probed, probed_trainer = plain_run(Probing(measure_on="train"), workers=workers)
    assert same(dict(plain.state_dict()), dict(probed.state_dict())) and plain.count == probed.count and torch.equal(plain.seen, probed.seen)  # type: ignore[arg-type]
    assert same(trainer.optimizers[0].state_dict(), probed_trainer.optimizers[0].state_dict())
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == {k: float(v) for k, v in probed_trainer.callback_metrics.items()}


def test_groups_keep_their_ratio() -> None:
    rates: list[list[float]] = []

    class Watching(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            Prober(trainer).probe([0.5, 0.25], seed=0)

        def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])

    plain_run(Watching())
    assert rates[:2] == [[5e-3, 5e-4], [2.5e-3, 2.5e-4]] and rates[2] == [1e-2, 1e-3]


def test_a_tensor_that_a_step_replaces_is_said() -> None:
    class Replacing(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            snapshot = Snapshot(trainer)
            pl_module.net[0].weight = nn.Parameter(torch.zeros(8, 4))  # type: ignore[index, union-attr]
            with pytest.raises(RuntimeError, match="replaced a parameter or buffer"):
                snapshot.restore()
            self.seen = True

    replacing = Replacing()
    plain_run(replacing)
    assert replacing.seen


def test_manual_optimization_is_refused() -> None:
    class Manual(Plain):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean())
            optimizer.step()

    class Making(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            with pytest.raises(ValueError, match="automatic optimization"):
                Prober(trainer)
            self.seen = True

    making = Making()
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[making])
    inputs = torch.randn(8, 4)
    trainer.fit(Manual(), DataLoader(TensorDataset(inputs, inputs[:, :1]), batch_size=4))
    assert making.seen

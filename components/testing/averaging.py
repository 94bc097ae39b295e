"""Trials that every average of the weights must pass. Inherit :class:`AveragingContract` and give one fixture.

    class TestMine(AveragingContract):
        @pytest.fixture
        def make(self) -> MakeCallbacks:
            return lambda **options: [MyAverage(**{"decay": 0.9, "total_steps": STEPS} | options)]

:class:`Data`, :class:`Net` and :func:`trainer_for` are what the trials train: four epochs of six steps.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.callbacks.probes import Prober
from components.data.base import BatchLoader
from components.data.samplers import BatchOrder

MakeCallbacks = Callable[..., list[Callback]]
"""(**options) -> the callbacks of the average, usually one; the options override those that it comes with."""

STEPS = 24
"""Optimizer steps of a whole run: 4 epochs of 6."""

State = dict[str, Tensor]


class Data(lightning.LightningDataModule):
    """48 training samples in batches of 8: six steps an epoch, in a shuffled order that goes on where a run stopped.

    Args:
        batches: into how many batches each of these is divided, for steps that accumulate as many.
    """

    def __init__(self, batches: int = 1) -> None:
        super().__init__()
        self.batch_size = 8 // batches
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(64, 4, generator=generator)
        self.target = self.inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(64, generator=generator)

    def loader(self, first: int, size: int, **options: Any) -> BatchLoader:
        order = BatchOrder(size, self.batch_size if options else 8, shuffle=bool(options))
        return BatchLoader(order, lambda index: {"inputs": self.inputs[first + index], "target": self.target[first + index]}, **options)

    def train_dataloader(self) -> BatchLoader:
        return self.loader(0, 48, position=self.position)

    def val_dataloader(self) -> BatchLoader:
        return self.loader(48, 8)

    def test_dataloader(self) -> BatchLoader:
        return self.loader(56, 8)

    def position(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


class Residual(nn.Module):
    """x + tanh(W x + b): one of several stages that are all alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        return states + 0.3 * torch.tanh(self.linear(states))


class Net(lightning.LightningModule):
    """Regression by SGD with momentum; notes the weights that each step leaves and that each evaluation sees.

    Args:
        seed: of the first weights.
        stages: residual blocks that are all alike.
    """

    memory: Tensor

    def __init__(self, seed: int = 0, stages: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.blocks = nn.Sequential(*(Residual(6) for _ in range(stages)))
        self.head = nn.Linear(6, 1)
        self.register_buffer("memory", torch.zeros(3))  # as a loss keeps one: no statistics of activations
        self.probing = False
        self.seen: list[tuple[str, int, State]] = []
        self.after: list[State] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.memory += len(batch["inputs"]) / 8
        outputs = self.head(self.blocks(self.body(batch["inputs"].to(self.dtype)))).squeeze(1)
        loss: Tensor = (outputs - batch["target"]).square().mean()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step > len(self.after):
            self.after.append(snapshot(self))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(("val", self.global_step, snapshot(self)))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen.append(("test", self.global_step, snapshot(self)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Killed(Exception):
    """The end of a run that a test kills."""


class SaveAndKill(Callback):
    """Saves after an optimizer step, or within a validation, and ends the process's run."""

    def __init__(self, step: int, path: Path, *, in_validation: bool = False) -> None:
        self.step, self.path, self.in_validation = step, path, in_validation

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.in_validation and trainer.global_step == self.step:
            self.act(trainer)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.in_validation and trainer.global_step == self.step:
            self.act(trainer)

    def act(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        raise Killed


class SaveAndKillLast(SaveAndKill, Checkpoint):
    """The same, but Lightning calls it after all other callbacks."""


class Probes(Callback):
    """Tries a few steps before some of the real ones, which must leave no trace."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in (0, 7, 13) and batch_idx % trainer.accumulate_grad_batches == 0:
            prober = Prober(trainer)
            for seed in (1, 2):
                prober.probe([1.0, 2.0, 0.5], seed=seed)


class Watch(TorchDispatchMode):
    """Notes the operations that the average's hooks run in each step, and whether one of them waits for the device."""

    HOOKS = ("on_train_batch_start", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end")

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Counter[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.steps[-1][func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def over(self, callback: Callback) -> Callback:
        for hook in self.HOOKS:
            setattr(callback, hook, functools.partial(self.watched, hook == "on_train_batch_start", getattr(callback, hook)))
        return callback

    def watched(self, begins: bool, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if begins:
            self.steps.append(Counter())
        with self:
            hook(*args, **kwargs)


def snapshot(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def trainer_for(callbacks: list[Callback], directory: Path, **options: Any) -> lightning.Trainer:
    """Four epochs of six steps, validation after every fourth batch of an epoch, on the processor."""
    options = {"max_epochs": 4, "val_check_interval": 4} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=callbacks,
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )


def read(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Nested dictionaries and sequences of the same shape, their tensors equal to the last bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), f"{where}: {left.keys() ^ right.keys()}"
        for name in left:
            assert_same(left[name], right[name], f"{where}.{name}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), f"{where}: differs by up to {float((left - right).abs().max())}"
    else:
        assert left == right, where


class AveragingContract:
    """The trials: interruption anywhere, averages where they belong, and the price of a step.

    Give:
        make: fixture; :data:`MakeCallbacks`.

    Facts that the trials enforce:
        off: options with which nothing is averaged and training is the plain run, bit for bit.
        averages: what is evaluated is not what training goes on from, and checkpoints hold both.
        changes_training: it acts on the weights that training goes on from.
        stages: how many blocks that are all alike the network needs.
        accumulates: batches of a step.
        rewinds: it may put the whole state back to an earlier one, counters and all.
        most_operations: operations a step, however many tensors the network has.
        price: options for the trial of that, without what happens rarely.
    """

    off: dict[str, Any] = {"start": 1.0}  # noqa: RUF012
    averages: bool = True
    changes_training: bool = False
    stages: int = 0
    accumulates: int = 1
    rewinds: bool = False
    most_operations: int = 8
    price: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture
    def make(self) -> MakeCallbacks:
        raise NotImplementedError("an AveragingContract needs a fixture `make`: (**options) -> callbacks")

    def net(self, seed: int = 0) -> Net:
        return Net(seed, self.stages)

    def data(self) -> Data:
        return Data(self.accumulates)

    def trainer(self, callbacks: list[Callback], directory: Path, **options: Any) -> lightning.Trainer:
        options["val_check_interval"] = options.get("val_check_interval", 4) * self.accumulates
        return trainer_for(callbacks, directory, accumulate_grad_batches=self.accumulates, **options)

    def plain(self, directory: Path) -> Net:
        module = self.net()
        self.trainer([], directory).fit(module, datamodule=self.data())
        return module

    # -- interruption -------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("killer", [SaveAndKill, SaveAndKillLast])  # before and after the average in Lightning's order
    @pytest.mark.parametrize("step", [1, 4, 6, 15, 18, 20, 23])  # first, at a validation, end of an epoch, mid-epoch …
    def test_killed_and_resumed_is_bit_identical(self, make: MakeCallbacks, step: int, killer: type[SaveAndKill], tmp_path: Path) -> None:
        unbroken, path = self.net(), tmp_path / "a.ckpt"
        whole = self.trainer([*make(), SaveAndKill(10**9, path)], tmp_path)
        whole.fit(unbroken, datamodule=self.data())
        whole.save_checkpoint(tmp_path / "whole.ckpt")

        with pytest.raises(Killed):
            self.trainer([killer(step, path), *make()], tmp_path).fit(self.net(), datamodule=self.data())
        resumed = self.net(seed=1)
        again = self.trainer([*make(), SaveAndKill(10**9, path)], tmp_path)
        again.fit(resumed, datamodule=self.data(), ckpt_path=path, weights_only=True)
        again.save_checkpoint(tmp_path / "again.ckpt")

        assert_same(resumed.state_dict(), unbroken.state_dict())
        left, right = read(tmp_path / "whole.ckpt"), read(tmp_path / "again.ckpt")
        assert left["global_step"] == right["global_step"] == STEPS
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "callbacks"):
            assert_same(left.get(part), right.get(part), part)
        # the validations after the interruption saw the same weights, too
        later = [entry for entry in unbroken.seen if entry[1] > step]
        assert_same([e for e in resumed.seen if e[1] > step], later)

    def test_a_second_fit_begins_anew(self, make: MakeCallbacks, tmp_path: Path) -> None:
        callbacks, module, fresh = make(), self.net(), self.net()
        self.trainer(callbacks, tmp_path).fit(self.net(seed=3), datamodule=self.data())
        self.trainer(callbacks, tmp_path).fit(module, datamodule=self.data())
        self.trainer(make(), tmp_path).fit(fresh, datamodule=self.data())
        assert_same(module.state_dict(), fresh.state_dict())

    @pytest.mark.parametrize("first", [True, False])
    def test_steps_that_are_only_tried_leave_no_trace(self, make: MakeCallbacks, first: bool, tmp_path: Path) -> None:
        module, probed = self.net(), self.net()
        trainer = self.trainer(make(), tmp_path)
        trainer.fit(module, datamodule=self.data())
        trainer.save_checkpoint(tmp_path / "plain.ckpt")
        probing = self.trainer([Probes(), *make()] if first else [*make(), Probes()], tmp_path)
        probing.fit(probed, datamodule=self.data())
        probing.save_checkpoint(tmp_path / "probed.ckpt")
        assert_same(probed.after, module.after)
        assert_same(probed.seen, module.seen)
        left, right = read(tmp_path / "plain.ckpt"), read(tmp_path / "probed.ckpt")
        for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "callbacks"):
            assert_same(left.get(part), right.get(part), part)

    # -- training -----------------------------------------------------------------------------------------------------
    def test_training_itself_is_untouched_or_not(self, make: MakeCallbacks, tmp_path: Path) -> None:
        module, plain = self.net(), self.plain(tmp_path)
        self.trainer(make(), tmp_path).fit(module, datamodule=self.data())
        assert len(plain.after) == len(module.after) == STEPS
        if not self.changes_training:
            assert_same(module.after, plain.after)
        else:
            assert not torch.equal(module.after[-1]["head.weight"], plain.after[-1]["head.weight"])

    def test_switched_off_it_is_the_plain_run(self, make: MakeCallbacks, tmp_path: Path) -> None:
        module, plain = self.net(), self.plain(tmp_path)
        trainer = self.trainer(make(**self.off), tmp_path)
        trainer.fit(module, datamodule=self.data())
        trainer.test(module, datamodule=self.data(), verbose=False)
        assert_same(module.after, plain.after)
        assert_same([s for kind, _, s in module.seen if kind == "val"], [s for _, _, s in plain.seen])
        assert_same(module.seen[-1][2], plain.after[-1])

    def test_weights_stay_finite_and_other_buffers_are_the_current_ones(self, make: MakeCallbacks, tmp_path: Path) -> None:
        module = self.net()
        self.trainer(make(), tmp_path).fit(module, datamodule=self.data())
        for name, tensor in module.state_dict().items():
            assert bool(torch.isfinite(tensor).all()), name
        for name in ("memory", "body.1.num_batches_tracked"):  # counters and memories: never averaged
            assert torch.equal(module.state_dict()[name], module.after[-1][name])
        assert int(module.memory[0]) == STEPS or self.rewinds

    def test_half_precision_weights_keep_their_type(self, make: MakeCallbacks, tmp_path: Path) -> None:
        module = self.net()
        self.trainer(make(), tmp_path, precision="bf16-true").fit(module, datamodule=self.data())
        assert module.head.weight.dtype == torch.bfloat16
        assert all(bool(torch.isfinite(p).all()) for p in module.parameters())

    # -- evaluation and checkpoints -----------------------------------------------------------------------------------
    def test_test_after_fit_runs_on_what_validation_ran_on(self, make: MakeCallbacks, tmp_path: Path) -> None:
        module = self.net()
        trainer = self.trainer(make(), tmp_path, val_check_interval=6)
        trainer.fit(module, datamodule=self.data())
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        final = next(state for kind, step, state in module.seen if kind == "val" and step == STEPS)
        trainer.test(module, datamodule=self.data(), verbose=False)
        assert_same(module.seen[-1][2], final)
        trainer.test(module, datamodule=self.data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
        assert_same(module.seen[-1][2], final)
        other = self.net(seed=1)
        self.trainer([], tmp_path).test(other, datamodule=self.data(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
        assert_same(other.seen[-1][2], final)

    @pytest.mark.parametrize("step", [10, 22])  # where a validation is, once before and once after a late start
    def test_a_checkpoint_holds_what_is_evaluated_and_what_is_trained(self, make: MakeCallbacks, step: int, tmp_path: Path) -> None:
        module = self.net()
        with pytest.raises(Killed):
            callbacks = [SaveAndKill(step, tmp_path / "v.ckpt", in_validation=True), *make()]
            self.trainer(callbacks, tmp_path).fit(module, datamodule=self.data())
        checkpoint = read(tmp_path / "v.ckpt")
        assert_same(checkpoint["state_dict"], module.seen[-1][2])
        assert_same(checkpoint.get("current_model_state", checkpoint["state_dict"]), module.after[-1])
        assert ("current_model_state" in checkpoint) == self.averages
        assert_same(module.state_dict(), module.after[-1])  # an error in a validation leaves the current weights

    # -- price --------------------------------------------------------------------------------------------------------
    def test_a_step_waits_for_nothing_and_costs_the_same_for_any_number_of_tensors(self, make: MakeCallbacks, tmp_path: Path) -> None:
        counts = []
        for stages in (max(self.stages, 3), max(self.stages, 3) + 4):
            watch = Watch()
            trainer = self.trainer([watch.over(callback) for callback in make(**self.price)], tmp_path, max_epochs=6, val_check_interval=6)
            trainer.fit(Net(0, stages), datamodule=self.data())
            assert not any(step["_local_scalar_dense"] for step in watch.steps), "an operation of the average waits for the device"
            views = ("detach", "alias", "view", "split", "split_with_sizes", "expand", "slice", "unbind")  # of no cost on the device
            counts.append(sum(n for step in watch.steps[-1:] for name, n in step.items() if name not in views))
        assert counts[0] == counts[1] <= self.most_operations, counts

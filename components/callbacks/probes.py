"""Training steps that leave no trace: everything is remembered in memory, a few steps are tried, and everything is put back, bit for bit.

What asks "what would happen if": a search of the learning rate, a range test. :class:`Snapshot` knows what a training step changes,
:class:`Prober` takes such steps through Lightning's own machinery (precision, accumulation, clipping, several devices).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from components.models.base import evaluating
from components.optimizers.groups import set_rate
from components.random_state import restore_rng, rng_state, set_seed
from components.validation import require

Rates = Sequence[float]


class Snapshot:
    """All that training steps change, kept on the device: weights, buffers, other module state, optimizer, gradient scaler, random state, step count.

    Weight averages are not in it: they follow finished training steps only, which steps that are thrown away never become.

    Args:
        trainer: a trainer in the middle of ``fit``, at a moment when no gradient is being accumulated.

    The memory for it is asked for once: a further :meth:`take` overwrites it.
    """

    def __init__(self, trainer: lightning.Trainer) -> None:
        self.trainer = trainer
        self.module = trainer.lightning_module
        self._live = unique([*self.module.parameters(), *self.module.buffers()])
        self._kept: list[Tensor] = []
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Remember how everything is now."""
        if len(self._kept) == len(self._live):
            torch._foreach_copy_(self._kept, self._live)
        else:
            self._kept = [tensor.detach().clone() for tensor in self._live]
        self._shapes = [tensor.shape for tensor in self._live]
        self._extra = {name: copy.deepcopy(module.get_extra_state()) for name, module in self.module.named_modules() if has_extra_state(module)}
        self._optimizers = [OptimizerState(optimizer) for optimizer in self.trainer.optimizers]
        self._scaler = copy.deepcopy(self.trainer.precision_plugin.state_dict())
        self._progress = copy.deepcopy(progress_of(self.trainer).state_dict())
        self._rng = rng_state()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; can be done again and again."""
        now = unique([*self.module.parameters(), *self.module.buffers()])
        if [id(t) for t in now] != [id(t) for t in self._live] or [t.shape for t in now] != self._shapes:
            raise RuntimeError("a training step has replaced a parameter or buffer of the model by another tensor: its state cannot be put back")
        torch._foreach_copy_(self._live, self._kept)
        modules = dict(self.module.named_modules())
        for name, state in self._extra.items():
            modules[name].set_extra_state(copy.deepcopy(state))
        for kept in self._optimizers:
            kept.restore()
        self.trainer.precision_plugin.load_state_dict(copy.deepcopy(self._scaler))
        progress_of(self.trainer).load_state_dict(copy.deepcopy(self._progress))
        restore_rng(self._rng)


class OptimizerState:
    """An optimizer's state and options, and how they were. ``state_dict`` would alias the live tensors, so each is copied."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = {parameter: {key: copied(value) for key, value in state.items()} for parameter, state in optimizer.state.items()}
        self.groups = [{key: copied(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def restore(self) -> None:
        state = self.optimizer.state
        for parameter in [p for p in state if p not in self.state]:
            del state[parameter]
        for parameter, kept in self.state.items():
            live = state[parameter]
            for key in [key for key in live if key not in kept]:
                del live[key]
            for key, value in kept.items():
                old = live.get(key)
                if isinstance(value, Tensor) and isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
                    old.copy_(value)
                else:
                    live[key] = copied(value)
        for group, options in zip(self.optimizer.param_groups, self.groups, strict=True):
            for key in [key for key in group if key != "params" and key not in options]:
                del group[key]
            group.update({key: copied(value) for key, value in options.items()})


@dataclass
class Tried:
    """What a probe gave.

    Attributes:
        losses: training loss of each step, as far as it came.
        measured: loss on the held-out batches after each of the steps that were asked for, as far as it came.
        diverged: whether it was ended for a loss that is not finite, or far above what it began with.
    """

    losses: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    diverged: bool = False


class ProbeStopped(Exception):
    """A probe was given up in the middle, and everything put back: a signal came in."""


class Prober:
    """Takes training steps with given learning rates and puts everything back.

    Each probe sees batches of its own, never the ones that training is about to see: those of ``seed``, the same for every probe with that
    seed. So its outcome is a function of the state that it starts from, the rates and the seed, and probes can be compared.

    Args:
        trainer: a trainer in the middle of ``fit``.
        held_out: batches that a probe is measured on at most; they are the first of the validation set, or, without one or with
            ``measure_on="train"``, further training batches.
        measure_on: ``val`` or ``train``; the attribute of this name says what it came to.
        give_up: called with the number of steps taken before every step; a probe ends with :class:`ProbeStopped` once it says true.
        too_high: a loss that so often exceeds the first one's size counts as diverged.

    Raises:
        ValueError: the module optimises by hand, or with several optimizers.
    """

    def __init__(
        self,
        trainer: lightning.Trainer,
        *,
        held_out: int = 8,
        measure_on: str = "val",
        give_up: Callable[[int], bool] = lambda done: False,
        too_high: float = 10.0,
    ) -> None:
        module = trainer.lightning_module
        require(module.automatic_optimization and len(trainer.optimizers) == 1, "probes need automatic optimization with one optimizer", type(module).__name__)
        self.trainer, self.module = trainer, module
        self.held_out, self.give_up, self.too_high = held_out, give_up, too_high
        if measure_on == "val" and trainer.enable_validation and trainer.val_dataloaders is None:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()  # Lightning does so only before the first epoch that ends with a validation
        self.measure_on = measure_on if trainer.val_dataloaders else "train"
        self.snapshot: Snapshot | None = None
        self._level: float | None = None  # held-out loss of the state that was remembered

    def remember(self) -> None:
        """Take the state that probes start from and go back to."""
        self._level = None
        if self.snapshot is None:
            self.snapshot = Snapshot(self.trainer)
        else:
            self.snapshot.take()

    def release(self) -> None:
        """Give the snapshot's memory back."""
        self.snapshot = None

    def probe(self, factors: Rates, *, seed: int, measure_after: Iterable[int] = (), options: Mapping[str, Any] | None = None) -> Tried:
        """Try so many steps as there are ``factors`` on the base learning rates; see :class:`Tried`.

        From the state that :meth:`remember` took, if it was called and :meth:`release` was not since; else from the present one.

        Args:
            factors: of each step, on every parameter group's base rate.
            seed: of the batches and of everything random.
            measure_after: numbers of steps after which to measure on the held-out batches.
            options: of the optimizer's groups (``weight_decay``, ``momentum``) during the probe.
        """
        snapshot = self.snapshot or Snapshot(self.trainer)
        tried = Tried()
        level = self._level if self.snapshot is not None else None
        wanted = set(measure_after)
        try:
            with self._apart(seed):
                set_options(self.trainer.optimizers[0], options or {})
                switch(self.trainer.optimizers[0], "train")
                if wanted and level is None:
                    level = self._level = self._measure(seed)
                batches = self._training_batches(seed)
                for number, factor in enumerate(factors, start=1):
                    if self.give_up(number - 1):
                        raise ProbeStopped
                    loss = self._step(islice(batches, self.trainer.accumulate_grad_batches), factor)
                    tried.losses.append(loss)
                    if not self._bearable(loss, tried.losses[0]):
                        tried.diverged = True
                        break
                    if number in wanted:
                        value = self._measure(seed)
                        tried.measured.append(value)
                        if not self._bearable(value, cast(float, level)):
                            tried.diverged = True
                            break
        except (ArithmeticError, ValueError, RuntimeError) as error:
            if not _about_numbers(error):
                raise
            tried.diverged = True
        finally:
            snapshot.restore()
        return tried

    def _bearable(self, loss: float, first: float) -> bool:
        return bool(np.isfinite(loss)) and loss <= first + self.too_high * max(abs(first), 1e-3)

    @contextmanager
    def _apart(self, seed: int) -> Iterator[None]:
        """Steps in here are logged nowhere, and everything random in them follows from the seed."""
        kept = rng_state()
        set_seed(seed % (1 << 32))
        self.module.log = self.module.log_dict = _no_log  # type: ignore[method-assign]
        set_flag(self.module, True)
        try:
            with torch.enable_grad():
                yield
        finally:
            del self.module.log, self.module.log_dict
            set_flag(self.module, False)
            restore_rng(kept)

    def _step(self, batches: Iterable[Any], factor: float) -> float:
        """One optimizer step over the micro-batches; the mean of their losses, over all ranks."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop.automatic_optimization
        optimizer = trainer.optimizers[0]
        set_rate(optimizer, factor)
        prepared = [self._prepared(batch) for batch in batches]
        losses = []
        for number, batch in enumerate(prepared):
            kwargs = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, number)
            closure = loop._make_closure(kwargs, optimizer, number)
            if number + 1 < len(prepared):
                with _block_parallel_sync_behavior(trainer.strategy, block=True):
                    closure()
            else:
                loop._optimizer_step(number, closure)
            losses.append(closure.consume_result().loss)
        mean = torch.stack([loss.float() for loss in losses if loss is not None]).mean()
        return float(trainer.strategy.reduce(mean * trainer.accumulate_grad_batches, reduce_op="mean"))  # Lightning has divided each by their number

    @torch.no_grad()
    def _measure(self, seed: int) -> float:
        switch(self.trainer.optimizers[0], "eval")
        kept = rng_state()  # a task may draw views of the held-out samples: always the same, and nothing of what follows depends on it
        set_seed(seed % (1 << 32))
        total, count = torch.zeros((), dtype=torch.float64), 0
        try:
            with evaluating(self.module), self.trainer.precision_plugin.forward_context():
                for batch in islice(self._held_out_batches(seed), self.held_out):
                    size = size_of(batch)
                    loss = self._loss(self._prepared(batch)) if size else None
                    if loss is not None:
                        total += loss.double().cpu() * size
                        count += size
        finally:
            switch(self.trainer.optimizers[0], "train")
            restore_rng(kept)
        both = torch.tensor([float(total), float(count)], dtype=torch.float32 if self.module.device.type == "mps" else torch.float64, device=self.module.device)
        both = cast(Tensor, self.trainer.strategy.reduce(both, reduce_op="sum"))
        return float(both[0] / both[1]) if both[1] else float("nan")

    def _loss(self, batch: Any) -> Tensor | None:
        if hasattr(self.module, "evaluation_loss"):
            task = cast(Any, self.module)
            return cast("Tensor | None", task.evaluation_loss(task.quantities(batch)))
        output = self.module.training_step(batch, 0)
        return cast(Tensor, output["loss"] if isinstance(output, Mapping) else output)

    def _prepared(self, batch: Any) -> Any:
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return call._call_strategy_hook(self.trainer, "batch_to_device", batch, dataloader_idx=0)

    # -- batches ------------------------------------------------------------------------------------------------------
    def _training_batches(self, seed: int) -> Iterator[Any]:
        """Training batches without end, epoch after epoch of an order of their own."""
        loader = self.trainer.train_dataloader
        epoch = 0
        while True:
            empty = True
            for batch in apart(loader, seed, epoch):
                empty = False
                yield batch
            require(not empty, "the training data are empty")
            epoch += 1

    def _held_out_batches(self, seed: int) -> Iterator[Any]:
        loader = None if self.measure_on == "train" else self.trainer.val_dataloaders
        if isinstance(loader, Sequence):
            loader = loader[0] if loader else None
        return iter(loader) if loader is not None else iter(apart(self.trainer.train_dataloader, seed, -1))


def apart(loader: Any, seed: int, epoch: int) -> Iterable[Any]:
    """A loader's batches in an order that training never sees; a losskit loader's follows from the seed, another's from the random state."""
    if hasattr(loader, "apart"):
        return cast(Iterable[Any], loader.apart(seed, epoch))
    if isinstance(loader, DataLoader):  # one whose workers stay would start the iterator anew that training is reading from
        loader = copy.copy(loader)
        loader._iterator = None
    return cast(Iterable[Any], loader)


def set_options(optimizer: Optimizer, options: Mapping[str, Any]) -> None:
    """Set options of every group that has them; ``momentum`` is Adam's first beta too."""
    for group in optimizer.param_groups:
        for name, value in options.items():
            if name in group:
                group[name] = value
            elif name == "momentum" and "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            else:
                require(False, f"{type(optimizer).__name__} has no option {name}", sorted(set(group) - {"params"}))


def switch(optimizer: Optimizer, mode: str) -> None:
    """Put in the weights to train with, or to evaluate, of an optimizer that tells them apart (Schedule-Free)."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def progress_of(trainer: lightning.Trainer) -> Any:
    """Where Lightning counts optimizer steps: ``trainer.global_step`` is made of it."""
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress


def has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def size_of(batch: Any) -> int:
    """Samples of a batch: of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((size for value in values if (size := size_of(value))), 0)


def _about_numbers(error: Exception) -> bool:
    """Whether an error is one of numbers that have grown too large: of a decomposition, or of a component that refuses what is not finite."""
    told = str(error).lower()  # torch's LinAlgError is a RuntimeError
    return isinstance(error, ArithmeticError) or any(word in told for word in ("finite", "nan", "inf ", "linalg", "converge", "singular"))


def set_flag(module: nn.Module, probing: bool) -> None:
    """Tell a module, and the callbacks that ask it, that its steps are only tried."""
    cast(Any, module).probing = probing


def _no_log(*args: Any, **kwargs: Any) -> None:
    return None


__all__ = ["ProbeStopped", "Prober", "Snapshot", "Tried", "set_options"]

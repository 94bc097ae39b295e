"""Averages of the weights along training: exponential (EMA) and equal (SWA). What is evaluated and deployed is the average.

Lightning's own ``WeightAveraging`` (2.6.6) is not built upon. With it, a validation before the first update sees a copy of the
untrained weights, ``trainer.test(ckpt_path=…)`` after ``fit`` in the same process runs on the current weights instead of the
average, the last checkpoint has lost the current weights, a checkpoint taken in a validation has the two interchanged, one
taken by a callback that comes before it misses the last update, and integer buffers are averaged like weights. Its checkpoint
layout is kept: ``state_dict`` is the average, ``current_model_state`` what training goes on from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from components.schedules import Schedule, Span, span_steps
from components.schedules.base import require_span
from components.validation import require, require_choice

Buffers = Literal["average", "copy"]
Begin = Literal["first", "initial", "zero"]


class WeightAverage(lightning.Callback):
    r"""Base of averages: :math:`\bar\theta \leftarrow \bar\theta + w\,(\theta - \bar\theta)` after the optimizer steps that :meth:`due` names.

    *w* comes from :meth:`share`.

    What is averaged: all parameters and, with ``buffers="average"``, the running statistics of batch (and instance)
    normalisation. All other buffers (counters, a loss's memory) are the current ones. Half-precision weights are averaged in float32.

    When it acts: validation within ``fit`` runs on the average; at the end of ``fit`` the model holds the average, so ``test`` and
    ``predict`` run on it. Before the first update the average is the current weights. Checkpoints hold both: ``state_dict`` is the
    average, ``current_model_state`` and ``averaging_state`` are what a resumed run goes on from, bit for bit.
    A checkpoint of a run without averaging can be resumed with it; the average then begins there. Checkpoints saved with ``save_weights_only``
    hold the weights that the model has at that moment, as Lightning asks no callback about them.

    Args:
        start: no update before this step: int steps or a fraction of ``total_steps``.
        every_n_steps: optimizer steps from one update to the next, the first of them at ``start``; ``None``: at the end of each epoch.
        buffers: ``average`` batch normalisation's running statistics with the weights, or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run; default: the trainer's own estimate.
        steps_per_epoch: optimizer steps of an epoch; default: the trainer's own count.
        initial: the average begins with the weights *before* step ``start``, which count as its first; default: with those of the first update.

    Raises:
        ValueError: an argument out of its range; a sharded strategy (FSDP, model parallel, DeepSpeed), where no rank has whole weights;
            a checkpoint of another kind of average.
    """

    def __init__(
        self,
        *,
        start: Span = 0,
        every_n_steps: int | None = 1,
        buffers: Buffers = "average",
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        initial: bool = False,
    ) -> None:
        require_span("start", start)
        require(every_n_steps is None or (isinstance(every_n_steps, int) and every_n_steps >= 1), "every_n_steps must be an int >= 1", every_n_steps)
        require_choice("buffers", buffers, ("average", "copy"))
        require(total_steps is None or total_steps >= 1, "total_steps must be >= 1", total_steps)
        require(steps_per_epoch is None or steps_per_epoch >= 1, "steps_per_epoch must be >= 1", steps_per_epoch)
        self.start, self.every_n_steps, self.buffers = start, every_n_steps, buffers
        self.total_steps, self.steps_per_epoch, self.initial = total_steps, steps_per_epoch, initial
        self._start, self._every = 0, 1  # in steps, once the run's length is known
        self._forget()

    # -- what a subclass gives ----------------------------------------------------------------------------------------
    def share(self, count: int, step: int) -> float:
        """The share *w* of the current weights in the new average, after ``count`` >= 1 updates, at optimizer step ``step``."""
        raise NotImplementedError

    def due(self, step: int) -> bool:
        """Whether to update after optimizer step ``step`` (0-based)."""
        first = -1 if self.every_n_steps is None else self._start  # epochs end at the steps that are one short of their multiples
        return step >= self._start and (step - first) % self._every == 0

    def result(self) -> Mapping[str, Tensor]:
        """What is evaluated: the average itself."""
        return self._average

    def more_state(self) -> dict[str, Any]:
        """What else a resumed run goes on from: plain values and tensors."""
        return {}

    def load_more_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`more_state` gave; before the model is on its device."""

    # -- following training -------------------------------------------------------------------------------------------
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_weights(trainer, "averaging")
            self._forget()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = self.in_steps(self.start, trainer)
        self._every = self.every_n_steps or self.epoch_length(trainer)
        self._bind(pl_module)
        self._begin_if_due()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow(trainer.global_step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._put_average_in()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._put_current_back()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._put_average_in()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._put_current_back()

    def in_steps(self, span: Span, trainer: lightning.Trainer) -> int:
        return span_steps(span, self.run_length(trainer)) if isinstance(span, float) else span

    def run_length(self, trainer: lightning.Trainer) -> int:
        total = self.total_steps or trainer.estimated_stepping_batches
        require(total != float("inf"), "averaging by fractions of the run needs its length: set total_steps, or the trainer's max_epochs or max_steps")
        return int(total)

    def epoch_length(self, trainer: lightning.Trainer) -> int:
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches
        require(batches != float("inf"), "an epoch without a length has no end: set every_n_steps")
        return math.ceil(batches / trainer.accumulate_grad_batches)

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._current is None:
            self._follow(trainer.global_step)  # a callback before this one may save at the end of a step
        state = checkpoint["state_dict"]
        current = dict(state)
        result = self.result() if self._count else {}
        for key, name in self._names.items():
            if key in state and self._count:
                current[key] = state[key] if self._current is None else self._current[name]
                state[key] = result[name].to(state[key].dtype)  # the tensor itself where the type is the same: stored once
        checkpoint["current_model_state"] = current
        own = {"kind": type(self).__name__, "count": self._count, "step": self._step, "average": self._average}
        checkpoint["averaging_state"] = own | self.more_state()

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._forget()
        if trainer.state.fn != TrainerFn.FITTING:
            return  # what has been loaded, state_dict, is the average: all that an evaluation needs
        state = checkpoint.get("averaging_state")
        if state is None:
            rank_zero_info("The checkpoint comes from a run without averaging: the average begins here.")
            self._step = checkpoint["global_step"]
            return
        require(state["kind"] == type(self).__name__, f"the checkpoint holds an average of the kind {state['kind']}; this run's is", type(self).__name__)
        self._count, self._step = state["count"], state["step"]
        self._average.update(state["average"])
        self.load_more_state(state)
        pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    # -- the average itself -------------------------------------------------------------------------------------------
    def _forget(self) -> None:
        self._count = 0  # updates so far
        self._step = 0  # optimizer steps seen
        self._average: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] | None = None  # the current weights, while the model holds the average
        self._live: dict[str, Tensor] = {}  # the model's own tensors
        self._names: dict[str, str] = {}  # every name in the model's state -> the name in the dictionaries here (tied weights have several)

    def _bind(self, module: nn.Module) -> None:
        """Find the tensors to be averaged, once the model is on its device."""
        first: dict[int, str] = {}
        for name, tensor in averaged_tensors(module, self.buffers):
            self._names[name] = first.setdefault(id(tensor), name)
            self._live.setdefault(self._names[name], tensor)
        missing = set(self._live) ^ set(self._average) if self._count else set()
        require(not missing, "the checkpoint's average is of another model: names that only one of them has", sorted(missing))
        self._average = {name: tensor.to(self._live[name].device) for name, tensor in self._average.items()}

    def _follow(self, steps_done: int) -> None:
        """Update after the optimizer step that has just been taken, if it is due and has not been seen yet."""
        if steps_done > self._step:
            self._step = steps_done
            if self.due(steps_done - 1):
                self._update(steps_done - 1)
            self._begin_if_due()

    def _begin_if_due(self) -> None:
        if self.initial and self._count == 0 and self._step >= self._start:
            self._begin()

    def _begin(self) -> None:
        self._average = {name: tensor.detach().to(average_dtype(tensor), copy=True) for name, tensor in self._live.items()}
        self._count = 1

    @torch.no_grad()
    def _update(self, step: int) -> None:
        if self._count == 0:
            self._begin()
            return
        average = list(self._average.values())
        current = [self._live[name].detach().to(tensor.dtype) for name, tensor in self._average.items()]
        torch._foreach_lerp_(average, current, self.share(self._count, step))
        self._count += 1

    def _put_average_in(self) -> None:
        if self._count and self._current is None:
            self._current = {name: tensor.detach().clone() for name, tensor in self._live.items()}
            self._copy(self.result())

    def _put_current_back(self) -> None:
        if self._current is not None:
            self._copy(self._current)
            self._current = None

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(list(self._live.values()), [values[name] for name in self._live])


class EMA(WeightAverage):
    r"""Exponential moving average of the weights: less noise than the last iterate, at no cost in training.

    .. math:: \bar\theta \leftarrow d_t\,\bar\theta + (1 - d_t)\,\theta, \qquad d_t = \min\left(d, \tfrac{1 + t}{10 + t}\right) \text{ with decay_warmup}

    after the optimizer's step; *t* counts the updates so far, and the first one (*t* = 0) takes the current weights.

    **Another batch size.** A decay belongs to the batch size B that it was tuned at. With ``reference_batch`` = B the average
    keeps its memory in samples: at a batch :math:`\kappa` times as large :math:`d_t` becomes :math:`d_t^\kappa`, and the warm-up
    counts :math:`\kappa t`. The optimizer has rules of its own: :func:`~components.schedules.scaled_options`.

    Args:
        decay: *d* in [0, 1], or a schedule of it over the run's steps; default 0.999, a memory of some 1,000 updates.
        decay_warmup: let the decay rise with the number of updates, so that short runs are not held at their beginning; default true.
        every_n_steps: optimizer steps between updates; default 1.
        start: step of the first update, int or a fraction of ``total_steps``; default 0.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        begin: ``first``: with the weights of the first update (default); ``initial``: with those before it; ``zero``: with 0, and the bias
            that this gives is divided out, :math:`\bar\theta / (1 - d^t)` (a constant decay without ``decay_warmup``).
        reference_batch: batch size that the decay is meant for; default: the run's own.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.
        batch_size: samples in a batch over all devices, filled in by the builder; asked for with ``reference_batch``. Accumulated batches
            count together.

    Source:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the warm-up of the decay as in TensorFlow's
        ``ExponentialMovingAverage``; the average itself as :func:`torch.optim.swa_utils.get_ema_avg_fn`; the rule for batch sizes:
        Busbridge et al., "How to Scale Your EMA", NeurIPS 2023, arXiv:2307.13813, definition 1.2.
    """

    def __init__(
        self,
        decay: float | Schedule = 0.999,
        decay_warmup: bool = True,
        every_n_steps: int = 1,
        start: Span = 0,
        buffers: Buffers = "average",
        begin: Begin = "first",
        reference_batch: int | None = None,
        total_steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(start=start, every_n_steps=every_n_steps, buffers=buffers, total_steps=total_steps, initial=begin == "initial")
        require(isinstance(decay, Schedule) or 0 <= decay <= 1, "decay must be in [0, 1], or a schedule", decay)
        require_choice("begin", begin, ("first", "initial", "zero"))
        require(begin != "zero" or not (decay_warmup or isinstance(decay, Schedule)), "begin=zero needs a constant decay and decay_warmup=false")
        require(reference_batch is None or reference_batch >= 1, "reference_batch must be >= 1", reference_batch)
        require(reference_batch is None or batch_size is not None, "reference_batch needs batch_size, the run's own")
        self.decay, self.decay_warmup, self.begin = decay, decay_warmup, begin
        self.reference_batch, self.batch_size = reference_batch, batch_size
        self.kappa = 1.0 if reference_batch is None or batch_size is None else batch_size / reference_batch
        self._decay_at: Callable[[int], float] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.reference_batch is not None and self.batch_size is not None:
            self.kappa = self.batch_size * trainer.accumulate_grad_batches / self.reference_batch
        if isinstance(self.decay, Schedule):
            self._decay_at = self.decay if self.decay.total_steps is not None else self.decay.with_total_steps(self.run_length(trainer))
        super().on_fit_start(trainer, pl_module)

    def share(self, count: int, step: int) -> float:
        decay = self.decay if not isinstance(self.decay, Schedule) else self._scheduled(step)
        if self.decay_warmup:
            done = self.kappa * count  # updates so far, counted in updates of the reference batch
            decay = min(decay, (1 + done) / (10 + done))
        decay = decay**self.kappa
        if self.begin == "zero" and decay < 1:
            return (1 - decay) / (1 - decay ** (count + 1))
        return 1 - decay if self.begin != "zero" else 1 / (count + 1)

    def _scheduled(self, step: int) -> float:
        assert self._decay_at is not None
        decay = self._decay_at(step)
        require(0 <= decay <= 1, f"the schedule of the decay must stay in [0, 1]; at step {step} it is", decay)
        return decay


class SWA(WeightAverage):
    r"""Stochastic weight averaging: the equal average of the weights from ``start`` on, a point in the middle of a wide valley.

    .. math:: \bar\theta_n = \frac1n \sum_{i=1}^n \theta_{t_i}, \qquad t_1 = \text{start},\quad t_{i+1} - t_i = \text{every\_n\_steps}

    It wants weights that keep moving: a constant or cyclical learning rate from ``start`` on, e.g. ``schedule=wsd`` with its
    ``decay`` at 0, or ``schedule=join``. The paper re-estimates batch normalisation's statistics on the training data; here they are
    averaged with the weights, which needs no pass over the data and so serves every validation, too.

    Args:
        start: when averaging begins, int steps or a fraction of ``total_steps``; default 0.75.
        every_n_steps: optimizer steps between the weights that are averaged; default: at the end of each epoch, as in the paper.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.
        steps_per_epoch: optimizer steps of an epoch, filled in by the builder; default: the trainer's count.

    Source:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, arXiv:1803.05407.
    """

    def __init__(
        self,
        start: Span = 0.75,
        every_n_steps: int | None = None,
        buffers: Buffers = "average",
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(start=start, every_n_steps=every_n_steps, buffers=buffers, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    def share(self, count: int, step: int) -> float:
        return 1 / (count + 1)


def require_whole_weights(trainer: lightning.Trainer, what: str) -> None:
    """Refuse strategies under which no rank has whole weights."""
    sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
    require(not sharded, f"{what} works on whole weights, and trainer.strategy shards them", type(trainer.strategy).__name__)


def tried(module: nn.Module) -> bool:
    """Whether the step at hand is only tried and will be put back (:mod:`components.callbacks.probes`): what a callback keeps must not hear of it."""
    return bool(getattr(module, "probing", False))


def averaged_tensors(module: nn.Module, buffers: Buffers) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all parameters and of batch normalisation's running statistics; tied tensors under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    if buffers == "average":
        for path, layer in module.named_modules(remove_duplicate=False):
            if isinstance(layer, _NormBase):
                for name, buffer in layer.named_buffers(path, recurse=False):
                    if buffer.is_floating_point():
                        yield name, buffer


def average_dtype(tensor: Tensor) -> torch.dtype:
    """Half precision has too few digits for small shares: 1 - 0.999 vanishes in bfloat16."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype

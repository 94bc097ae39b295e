"""Averages of the weights along training: exponential (EMA) and equal (SWA). What is evaluated and deployed is the average.

Lightning's own ``WeightAveraging`` (2.6.6) is not built upon. With it, a validation before the first update sees a copy of the
untrained weights, ``trainer.test(ckpt_path=…)`` after ``fit`` in the same process runs on the current weights instead of the
average, the last checkpoint has lost the current weights, a checkpoint taken in a validation has the two interchanged, one
taken by a callback that comes before it misses the last update, and integer buffers are averaged like weights. Its checkpoint
layout is kept: ``state_dict`` is the average, ``current_model_state`` what training goes on from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
    ) -> None:
        require_span("start", start)
        require(every_n_steps is None or (isinstance(every_n_steps, int) and every_n_steps >= 1), "every_n_steps must be an int >= 1", every_n_steps)
        require_choice("buffers", buffers, ("average", "copy"))
        require(total_steps is None or total_steps >= 1, "total_steps must be >= 1", total_steps)
        require(steps_per_epoch is None or steps_per_epoch >= 1, "steps_per_epoch must be >= 1", steps_per_epoch)
        self.start, self.every_n_steps, self.buffers = start, every_n_steps, buffers
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
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

    # -- following training -------------------------------------------------------------------------------------------
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
            require(not sharded, "averaging works on whole weights, and trainer.strategy shards them", type(trainer.strategy).__name__)
            self._forget()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = span_steps(self.start, self.run_length(trainer)) if isinstance(self.start, float) else self.start
        self._every = self.every_n_steps or self.epoch_length(trainer)
        self._bind(pl_module)

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
        for key, name in self._names.items():
            if key in state and self._count:
                current[key] = state[key] if self._current is None else self._current[name]
                state[key] = self._average[name].to(state[key].dtype)  # the tensor itself where the type is the same: stored once
        checkpoint["current_model_state"] = current
        checkpoint["averaging_state"] = {"kind": type(self).__name__, "count": self._count, "step": self._step, "average": self._average}

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

    @torch.no_grad()
    def _update(self, step: int) -> None:
        if self._count == 0:
            self._average = {name: tensor.detach().to(average_dtype(tensor), copy=True) for name, tensor in self._live.items()}
        else:
            average = list(self._average.values())
            current = [self._live[name].detach().to(tensor.dtype) for name, tensor in self._average.items()]
            torch._foreach_lerp_(average, current, self.share(self._count, step))
        self._count += 1

    def _put_average_in(self) -> None:
        if self._count and self._current is None:
            self._current = {name: tensor.detach().clone() for name, tensor in self._live.items()}
            self._copy(self._average)

    def _put_current_back(self) -> None:
        if self._current is not None:
            self._copy(self._current)
            self._current = None

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])


class EMA(WeightAverage):
    r"""Exponential moving average of the weights: less noise than the last iterate, at no cost in training.

    .. math:: \bar\theta \leftarrow d_t\,\bar\theta + (1 - d_t)\,\theta, \qquad d_t = \min\left(d, \tfrac{1 + t}{10 + t}\right) \text{ with decay_warmup}

    after the optimizer's step; *t* counts the updates so far, and the first one (*t* = 0) takes the current weights.

    Args:
        decay: *d* in [0, 1], or a schedule of it over the run's steps; default 0.999, a memory of some 1,000 updates.
        decay_warmup: let the decay rise with the number of updates, so that short runs are not held at their beginning; default true.
        every_n_steps: optimizer steps between updates; default 1.
        start: step of the first update, int or a fraction of ``total_steps``; default 0.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.

    Source:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the warm-up of the decay as in TensorFlow's
        ``ExponentialMovingAverage``; the average itself as :func:`torch.optim.swa_utils.get_ema_avg_fn`.
    """

    def __init__(
        self,
        decay: float | Schedule = 0.999,
        decay_warmup: bool = True,
        every_n_steps: int = 1,
        start: Span = 0,
        buffers: Buffers = "average",
        total_steps: int | None = None,
    ) -> None:
        super().__init__(start=start, every_n_steps=every_n_steps, buffers=buffers, total_steps=total_steps)
        require(isinstance(decay, Schedule) or 0 <= decay <= 1, "decay must be in [0, 1], or a schedule", decay)
        self.decay, self.decay_warmup = decay, decay_warmup
        self._decay_at: Callable[[int], float] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if isinstance(self.decay, Schedule):
            self._decay_at = self.decay if self.decay.total_steps is not None else self.decay.with_total_steps(self.run_length(trainer))

    def share(self, count: int, step: int) -> float:
        decay = self.decay if not isinstance(self.decay, Schedule) else self._scheduled(step)
        return 1 - min(decay, (1 + count) / (10 + count)) if self.decay_warmup else 1 - decay

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

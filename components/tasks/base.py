"""A task turns a batch into named quantities; training, validation, logging and resuming are the same for all of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, cast

import lightning
import torch
from torch import Tensor, nn

from components.binding import Bound
from components.callbacks.checkpoints import largest_of_ranks
from components.callbacks.optimizer_modes import OptimizerModes
from components.data.base import Batch
from components.models.base import ModelOutput, split_output
from components.objective import Objective
from components.optimizers.groups import set_rate
from components.quantities import Quantities
from components.random_state import restore_rng, rng_state
from components.tasks.resume import close_last_step, draw_otherwise, load_metric_state, metric_state, open_last_step, settle_loops
from components.tasks.stepping import AccumulatedLoss, check_loop, steps_by_the_loss, takes_two_gradients

COMMON_OFFERS = frozenset({"inputs", "index", "model", "step", "epoch", "loss_fn", "per_sample_loss"})


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Task(lightning.LightningModule):
    """Base of tasks. A subclass says what it offers and computes it in :meth:`quantities`.

    Args:
        model: the network; returns a tensor or a :class:`~components.models.base.ModelOutput`.
        objective: what training minimises; may be set later (a builder binds it to what the task offers).
        optimizer: parameters -> optimizer. A loss's own parameters are optimised with the model's.
        schedule: step -> factor on every parameter group's learning rate.
        metrics: name -> metric bound to quantities; logged as ``train/name``, ``val/name``, ``test/name``.
        transforms: applied to training batches one after the other (batch -> batch).
        log_every: steps between two training log entries; also how often the training metrics see a batch.

    Class facts (literals: the command line reads them without importing torch):
        offers: names of the quantities that the task offers beside :data:`COMMON_OFFERS`.
        dense: its logits have dimensions beyond the classes, (N, C, d1, …): pixels, tokens.
        own_metrics: metrics that the task computes itself in :meth:`evaluation` -> whether more of it is better.
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    dense: ClassVar[bool] = False
    metric_stages: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    own_metrics: ClassVar[dict[str, bool]] = {}
    """Stages in which the metrics mean something."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Callable[[int], float] | None = None,
        metrics: Mapping[str, Bound] | None = None,
        transforms: Iterable[nn.Module] = (),
        log_every: int = 10,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective  # type: ignore[assignment]
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.transforms = nn.ModuleList(transforms)
        self.log_every = log_every
        self.metrics = FullPrecision({"train_": nn.ModuleDict(), "val_": nn.ModuleDict(), "test_": nn.ModuleDict()})
        self.add_metrics(metrics or {})
        self._window: list[dict[str, Tensor]] = []  # parts of the objective since the last log entry, on the device
        self._window_steps: list[int] = []  # the optimizer step that each of them belongs to, counted from 1
        self._last_finite: dict[str, float] = {}
        self._evaluated = {"val": Average(), "test": Average()}
        self._resumed: dict[str, Any] | None = None  # what on_train_start has to put back
        self._optimizer_modes = OptimizerModes()
        self._accumulated: AccumulatedLoss | None = None  # where the optimizer steps by the loss
        self.probing = False  # steps that are only tried (components.callbacks.probes) are not logged

    # -- what a subclass gives ----------------------------------------------------------------------------------------
    @classmethod
    def facts(cls, data: Mapping[str, Any], outputs_per_target: int = 1, **config: Any) -> dict[str, Any]:
        """Facts that follow from the task: at least ``num_outputs``, what the model must put out.

        Args:
            data: the data module's facts.
            outputs_per_target: what the loss asks for (:meth:`components.losses.Loss.outputs_per_target`).
            config: the task's own options.
        """
        raise NotImplementedError

    def quantities(self, batch: Batch) -> Quantities:
        """What the task offers for this batch; start from :meth:`common`."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Columns of a prediction file for this batch: name -> (N,) or (N, …): several values a sample, e.g. (N, H, C) of a forecast."""
        raise NotImplementedError

    # -- shared -------------------------------------------------------------------------------------------------------
    @property
    def era(self) -> int:
        """Which problem validations are of now: what is best is only compared within one."""
        return 0

    @property
    def offered(self) -> frozenset[str]:
        """All that this instance offers; a subclass whose options narrow it overrides this."""
        return COMMON_OFFERS | self.offers

    def common(self, batch: Batch, **quantities: Any) -> Quantities:
        """The quantities that every task offers, the batch's own entries, and the given ones."""
        return Quantities(batch, model=self.model, step=self.global_step, epoch=self.current_epoch, **quantities)

    def add_metrics(self, metrics: Mapping[str, Bound]) -> None:
        """Log these, in every stage of :attr:`metric_stages`.

        One copy a stage: a validation in the middle of an epoch must not reset what training has gathered.
        """
        for stage in self.metric_stages:
            self.metrics_of(stage).update({name: clone(bound) for name, bound in metrics.items()})

    def metrics_of(self, stage: str) -> nn.ModuleDict:
        """The bound metrics of ``train``, ``val`` or ``test``, by name."""
        return cast(nn.ModuleDict, self.metrics[f"{stage}_"])

    def logged(self) -> list[str]:
        """Names of what is logged of a validation, without the stage: ``loss``, ``acc`` …"""
        return ["loss", *self.metrics_of("val").keys(), *self.own_metrics]

    def higher_is_better(self, name: str) -> bool:
        """Whether more of the logged metric ``name`` (``val/acc``) is better; of losses, less is."""
        metrics, key = self.metrics_of("val"), name.partition("/")[2]
        if key in metrics:
            return bool(cast(Any, metrics[key]).module.higher_is_better)
        return self.own_metrics.get(key, False)

    def asked(self) -> frozenset[str]:
        """Names of the quantities that some bound component asks for."""
        return frozenset(name for module in self.modules() if isinstance(module, Bound) for name in module.arguments.values())

    def compile_model(self) -> None:
        """Let :func:`torch.compile` compile what a step runs of the model, when it first does. Names in checkpoints stay."""
        self.model.compile()

    def run_model(self, inputs: Tensor) -> ModelOutput:
        return split_output(self.model(inputs))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        for transform in self.transforms:
            batch = transform(batch)
        quantities = self.quantities(batch)
        total, parts = self.objective(quantities, quantities["step"])
        if self.probing:
            return total
        if len(parts) > 1:
            parts["total"] = total
        self._window.append({name: value.detach() for name, value in parts.items()})
        self._window_steps.append(quantities["step"] + 1)
        if batch_idx % self.log_every == 0 and self.metrics_of("train"):
            with torch.no_grad():
                self._update_metrics("train", quantities)
        return total

    # Lightning inspects this method's signature at every step: kept ready, that costs a third
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning sets it some forty times a step, and a module's __setattr__ is slow: 0.1 ms a step
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.predict(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        if self.make_optimizer is None:
            return None
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [self._optimizer_modes]

    # -- optimizers that ask for more than gradients -------------------------------------------------------------------------
    def on_fit_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            self.prepare_for(optimizer, self.trainer)

    def prepare_for(self, optimizer: torch.optim.Optimizer, trainer: lightning.Trainer) -> None:
        """Get ready to give ``optimizer`` what it takes, or refuse it (ValueError); a builder may ask before there is a run."""
        check_loop(optimizer, trainer)
        self._accumulated = AccumulatedLoss() if steps_by_the_loss(optimizer) else None
        if takes_two_gradients(optimizer):
            self.take_apart(optimizer)

    def take_apart(self, optimizer: torch.optim.Optimizer) -> None:
        """Get ready to give ``optimizer`` the gradient of a distillation by itself."""
        raise ValueError(
            f"{type(optimizer).__name__} takes the gradients of two losses, the task's and the distillation's, and {type(self).__name__} has one loss: "
            "take task=distillation, or another optimizer"
        )

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        if self._accumulated is not None:
            self._accumulated.empty()

    def on_before_backward(self, loss: Tensor) -> None:
        if self._accumulated is not None:
            self._accumulated.add(loss)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        accumulated = self.trainer.accumulate_grad_batches
        if self._accumulated is not None and optimizer_closure is not None and accumulated > 1:
            optimizer_closure = self._accumulated.closure(optimizer, optimizer_closure, accumulated)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    # -- the learning rate is a pure function of the step, so a resumed run needs no scheduler state -------------------------
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.schedule is not None:
            set_rate(self.trainer.optimizers[0], self.schedule(self.global_step))

    # -- logging: accumulated on the device, read back every ``log_every`` steps ----------------------------------------------
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        if len(self._window) >= self.log_every * self.trainer.accumulate_grad_batches:
            self.flush_log()

    def flush_log(self) -> None:
        """Write the mean of the objective's parts since the last entry; stop the run if one of them is not finite."""
        if not self._window:
            return
        names, rows, means = self.check_finite()
        self._window.clear()
        self._window_steps.clear()
        self._last_finite = dict(zip(names, rows[-1].tolist(), strict=True))
        values = {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}
        optimizer = self.trainer.optimizers[0]
        self.record(values | {f"lr-{type(optimizer).__name__}": optimizer.param_groups[0]["lr"]})

    def check_finite(self) -> tuple[list[str], Tensor, Tensor]:
        """Stop the run, on every rank, if a part of the objective since the last log entry is not finite; nothing is logged.

        Returns:
            Names of the parts, their values since the last entry (one row a batch), and their means over batches and ranks.
        """
        if not self._window:
            return [], torch.empty(0, 0), torch.empty(0)
        names = list(self._window[0])
        rows = torch.stack([torch.stack([row[name].float() for name in names]) for row in self._window]).cpu().double()
        means = self._over_ranks(rows.mean(0))
        if not bool(torch.isfinite(means).all()):
            self._fail(names, rows)
        return names, rows, means

    def record(self, values: Mapping[str, float]) -> None:
        """Send values to the loggers, at the current step."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step=self.global_step)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def on_train_start(self) -> None:
        resumed = self._put_back()
        if resumed is None:
            draw_otherwise(self.global_rank)
            return
        if resumed["should_stop"]:
            self.trainer.should_stop = True
        # early stopping looks at the last validation's values at the end of the epoch, perhaps only now
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in resumed["callback_metrics"].items()})
        self.trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
        self._flush_if_full()  # the checkpoint may be older than its batch's on_train_batch_end
        if resumed["limit"] is not None:
            close_last_step(self.trainer, resumed["limit"])

    def on_fit_end(self) -> None:
        if self._put_back() is not None:  # there was nothing left to train, but perhaps to log
            self.flush_log()

    def _put_back(self) -> dict[str, Any] | None:
        """The random state and the unlogged window of this rank, from the checkpoint that the run was resumed from, if it was."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            mine = resumed["ranks"][self.global_rank % len(resumed["ranks"])]
            restore_rng(mine["rng"])
            if self.global_rank >= len(resumed["ranks"]):
                draw_otherwise(self.global_rank)
            self._window = [{name: value.to(self.device) for name, value in row.items()} for row in mine["window"]]
            self._window_steps = list(mine["window_steps"])
        return resumed

    def on_train_epoch_end(self) -> None:
        if self.metrics_of("train"):
            self.record(self._compute_metrics("train"))

    def on_train_end(self) -> None:
        self.flush_log()

    def on_validation_start(self) -> None:
        self._agree_on_buffers()

    def on_test_start(self) -> None:
        self._agree_on_buffers()

    def _agree_on_buffers(self) -> None:
        """Rank 0's buffers for all: in training each rank's running statistics are its own until the next step, and are not evaluated."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _evaluate(self, stage: str, batch: Batch) -> None:
        count = len(batch["index"])
        gathers = self.trainer.world_size > 1 and getattr(self.objective.loss.module, "pairwise", False)
        if count == 0 and not gathers:  # this rank's share of the last batch under DDP; a loss that gathers needs every rank
            return
        quantities = self.quantities(batch) if count else self._no_rows(batch)
        loss = self.evaluation_loss(quantities)
        if loss is not None:
            self._evaluated[stage].update(loss, count)
        if count:
            self._update_metrics(stage, quantities)
            self.evaluate_more(stage, quantities)

    def _no_rows(self, batch: Batch) -> Quantities:
        """What the main loss asks for, of no samples. Models and transforms need not take empty batches: they see one of zeros."""
        quantities = self.quantities({name: value.new_zeros(1, *value.shape[1:]) if isinstance(value, Tensor) else value for name, value in batch.items()})
        asked = {name: quantities[name] for name in self.objective.loss.arguments.values()}
        return quantities.replace(**{name: value[:0] for name, value in asked.items() if isinstance(value, Tensor) and value.ndim})

    def evaluation_loss(self, quantities: Quantities) -> Tensor | None:
        """The main loss of a validation or test batch; None where it has no value."""
        return self.objective.main_loss(quantities)

    def evaluate_more(self, stage: str, quantities: Quantities) -> None:
        """What a subclass gathers from each validation or test batch, for :meth:`evaluation`."""

    def evaluation(self, stage: str) -> dict[str, float]:
        """What is logged at the end of a validation or test: the loss and the metrics, reduced over ranks. A subclass may add to it."""
        loss = self._evaluated[stage].compute(self)
        return ({} if loss is None else {f"{stage}/loss": loss}) | self._compute_metrics(stage)

    def _log_evaluation(self, stage: str) -> None:
        values = self.evaluation(stage)
        training = self.trainer.state.fn == "fit"  # else Lightning logs the values itself, which puts them into what test() returns
        tensors = {name: torch.tensor(value, dtype=precise_float(self.device), device=self.device) for name, value in values.items()}
        self.log_dict(tensors, logger=not training, sync_dist=self.trainer.world_size > 1)
        if training and not self.trainer.sanity_checking:
            self.record(values)

    def class_logits(self, logits: Tensor) -> Tensor:
        """Scores whose softmax (of labels: sigmoid) is what the loss takes the model's ``logits`` for.

        A loss that reads them otherwise than softmax does, with a learned or another link, says how in a method ``class_logits``.
        """
        read = self._link()
        return logits if read is None else read(logits)

    def _link(self) -> Callable[[Tensor], Tensor] | None:
        objective: Objective | None = self.objective
        return None if objective is None else getattr(objective.loss.module, "class_logits", None)

    def _update_metrics(self, stage: str, quantities: Quantities) -> None:
        if "logits" in quantities and self._link() is not None:  # asked first: without a link, logits may never be made
            quantities = quantities.replace(logits=self.class_logits(quantities["logits"]))
        for metric in cast(Iterable[Any], self.metrics_of(stage).values()):
            metric.module.update(**{p: detached(quantities[q]) for p, q in metric.arguments.items()})

    def _compute_metrics(self, stage: str) -> dict[str, float]:
        values: dict[str, float] = {}
        metrics = cast(Iterable[tuple[str, Any]], self.metrics_of(stage).items())
        if self.trainer.world_size > 1:
            share_empty_states({name: metric.module for name, metric in metrics}, self.trainer.world_size)
        for name, metric in metrics:
            if metric.module.update_called:
                value = metric.module.compute()
                values[f"{stage}/{name}"] = float(value)
                metric.module.reset()
        return values

    def _over_ranks(self, values: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        return cast(Tensor, self.all_gather(values.to(self.device))).mean(0).cpu()

    def _fail(self, names: list[str], rows: Tensor) -> None:
        bad = ~torch.isfinite(rows)
        first = int(bad.any(1).nonzero()[0, 0]) if bool(bad.any()) else len(rows)
        if first > -largest_of_ranks([-first], self.trainer)[0]:  # through the shared gradient the others have it a step later: who had it first tells
            raise NonFiniteLossError("the training loss is not finite on another rank")
        culprits = [name for name, value in zip(names, rows[first].tolist(), strict=True) if not math.isfinite(value)]
        if first > 0:
            self._last_finite = dict(zip(names, rows[first - 1].tolist(), strict=True))
        last = ", ".join(f"{name}={value:.6g}" for name, value in self._last_finite.items()) or "none: it was the first step"
        raise NonFiniteLossError(
            f"the training loss is not finite at step {self._window_steps[first]}: {', '.join(culprits)} became "
            f"{rows[first, names.index(culprits[0])].item()}; last finite values: {last}"
        )

    # -- checkpoints hold the random state, the unlogged window and the training metrics too, of each rank ---------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {
            "rng": rng_state(),
            "window": [{name: value.cpu() for name, value in row.items()} for row in self._window],
            "window_steps": list(self._window_steps),
            "train_metrics": {name: metric_state(metric.module) for name, metric in cast(Iterable[tuple[str, Any]], self.metrics_of("train").items())},
        }
        ranks: list[Any] = [mine]
        if self.trainer.world_size > 1:
            ranks = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(ranks, mine)
        checkpoint["losskit"] = {
            "ranks": ranks,
            "last_finite": self._last_finite,
            "should_stop": self.trainer.should_stop,
            "callback_metrics": {name: float(value) for name, value in self.trainer.callback_metrics.items()},
        }
        settle_loops(checkpoint["loops"], self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("losskit")
        if state is None or self._trainer is None or self.trainer.state.fn != "fit":
            return
        self._resumed = {**state, "limit": open_last_step(checkpoint, self.trainer)}
        self._last_finite = state["last_finite"]
        for name, values in state["ranks"][self.global_rank % len(state["ranks"])]["train_metrics"].items():
            load_metric_state(cast(Any, self.metrics_of("train")[name]).module, values)


def share_empty_states(metrics: Mapping[str, Any], ranks: int) -> None:
    """Let a rank that has seen no sample take part in computing metrics, which all ranks do together.

    Its counts are zero already; of what the others gather in lists it has to hold nothing in their shape and type.
    """
    mine = {name: gathered_forms(metric) for name, metric in metrics.items() if metric.update_called}
    everybody: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(everybody, mine)
    for name, metric in metrics.items():
        forms = next((theirs[name] for theirs in everybody if name in theirs), None)
        if forms is not None and not metric.update_called:
            metric._update_count = 1
            for key, (dtype, shape) in forms.items():
                setattr(metric, key, [torch.empty(0, *shape, dtype=dtype, device=metric.device)])


def gathered_forms(metric: Any) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type of what a metric gathers in lists, and shape of each sample's."""
    lists = {key: getattr(metric, key) for key, default in metric._defaults.items() if isinstance(default, list)}
    return {key: (state[0].dtype, tuple(state[0].shape[1:])) for key, state in lists.items() if state}


class FullPrecision(nn.ModuleDict):
    """Metrics, which count and sum, and so stay as precise as they are when the task is put into half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)


class Average:
    """A weighted mean that stays on the device until it is read."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, value: Tensor, count: int) -> None:
        self.total = self.total + value.detach().to(precise_float(value.device)) * count
        self.count += count

    def compute(self, module: lightning.LightningModule) -> float | None:
        """The mean over all ranks, None if there was nothing; then start anew."""
        both = torch.tensor([float(self.total), float(self.count)], dtype=torch.float64)
        if module.trainer.world_size > 1:
            both = cast(Tensor, module.all_gather(both.to(module.device))).sum(0).cpu()
        self.reset()
        return float(both[0] / both[1]) if both[1] else None


def precise_float(device: torch.device) -> torch.dtype:
    """float64, but where the device has none (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def clone(bound: Bound) -> Bound:
    return Bound(cast(Any, bound.module).clone(), bound.arguments, bound.name)


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


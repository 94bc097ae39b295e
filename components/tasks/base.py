"""A task turns a batch into named quantities; training, validation, logging and resuming are the same for all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from components.binding import Bound
from components.data.base import Batch
from components.models.base import ModelOutput, split_output
from components.objective import Objective
from components.quantities import Quantities

COMMON_OFFERS = frozenset({"inputs", "index", "model", "step", "epoch", "loss_fn", "per_sample_loss"})


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class Task(lightning.LightningModule):
    """Base of tasks. A subclass says what it offers and computes it in :meth:`quantities`.

    Args:
        model: the network; returns a tensor or a :class:`~components.models.base.ModelOutput`.
        objective: what training minimises.
        optimizer: parameters -> optimizer. A loss's own parameters are optimised with the model's.
        schedule: step -> factor on every parameter group's learning rate.
        metrics: name -> metric bound to quantities; logged as ``train/name``, ``val/name``, ``test/name``.
        transforms: applied to training batches one after the other (batch -> batch).
        log_every: steps between two training log entries; also how often the training metrics see a batch.

    Class facts (literals: the command line reads them without importing torch):
        offers: names of the quantities that the task offers beside :data:`COMMON_OFFERS`.
    """

    offers: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Callable[[int], float] | None = None,
        metrics: Mapping[str, Bound] | None = None,
        transforms: Iterable[Callable[[Batch], Batch]] = (),
        log_every: int = 10,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.transforms = nn.ModuleList(transforms)
        self.log_every = log_every
        # one copy a stage: a validation in the middle of an epoch must not reset what training has gathered
        self.metrics = nn.ModuleDict({stage: nn.ModuleDict({k: clone(v) for k, v in (metrics or {}).items()}) for stage in ("train_", "val_", "test_")})
        self._window: list[dict[str, Tensor]] = []  # parts of the objective since the last log entry, on the device
        self._last_finite: dict[str, float] = {}
        self._evaluated = {"val": Average(), "test": Average()}
        self._rng_to_restore: list[Any] | None = None

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
        """Columns of a prediction file for this batch: name -> (N,) or (N, K)."""
        raise NotImplementedError

    # -- shared -------------------------------------------------------------------------------------------------------
    @property
    def offered(self) -> frozenset[str]:
        """All that this instance offers; a subclass whose options narrow it overrides this."""
        return COMMON_OFFERS | self.offers

    def common(self, batch: Batch, **quantities: Any) -> Quantities:
        """The quantities that every task offers, the batch's own entries, and the given ones."""
        return Quantities(batch, model=self.model, step=self.global_step, epoch=self.current_epoch, **quantities)

    def run_model(self, inputs: Tensor) -> ModelOutput:
        return split_output(self.model(inputs))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        for transform in self.transforms:
            batch = transform(batch)
        quantities = self.quantities(batch)
        total, parts = self.objective(quantities, self.global_step)
        if len(parts) > 1:
            parts["total"] = total
        self._window.append({name: value.detach() for name, value in parts.items()})
        if self.metrics["train_"] and batch_idx % self.log_every == 0:
            with torch.no_grad():
                self._update_metrics("train", quantities)
        return total

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

    # -- the learning rate is a pure function of the step, so a resumed run needs no scheduler state -------------------------
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._rng_to_restore is not None:
            restore_rng(self._rng_to_restore[self.global_rank % len(self._rng_to_restore)])
            self._rng_to_restore = None
        if self.schedule is not None:
            factor = self.schedule(self.global_step)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    # -- logging: accumulated on the device, read back every ``log_every`` steps ----------------------------------------------
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if len(self._window) >= self.log_every * self.trainer.accumulate_grad_batches:
            self.flush_log()

    def flush_log(self) -> None:
        """Write the mean of the objective's parts since the last entry; stop the run if one of them is not finite."""
        if not self._window:
            return
        names = list(self._window[0])
        rows = torch.stack([torch.stack([row[name].float() for name in names]) for row in self._window]).cpu()
        self._window.clear()
        if not bool(torch.isfinite(rows).all()):
            self._fail(names, rows)
        self._last_finite = dict(zip(names, rows[-1].tolist(), strict=True))
        means = self._over_ranks(rows.mean(0)).tolist()
        values = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        optimizer = self.trainer.optimizers[0]
        self.record(values | {f"lr-{type(optimizer).__name__}": optimizer.param_groups[0]["lr"]})
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def record(self, values: Mapping[str, float]) -> None:
        """Send values to the loggers, at the current step."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step=self.global_step)

    def on_train_epoch_end(self) -> None:
        if self.metrics["train_"]:
            self.record(self._compute_metrics("train"))

    def on_train_end(self) -> None:
        self.flush_log()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _evaluate(self, stage: str, batch: Batch) -> None:
        if len(batch["index"]) == 0:  # the last ranks' share of the last batch under DDP
            return
        quantities = self.quantities(batch)
        self._evaluated[stage].update(self.objective.main_loss(quantities), len(batch["index"]))
        self._update_metrics(stage, quantities)

    def _log_evaluation(self, stage: str) -> None:
        values = {f"{stage}/loss": self._evaluated[stage].compute(self)} | self._compute_metrics(stage)
        self.log_dict(values, logger=False)
        if not self.trainer.sanity_checking:
            self.record(values)

    def _update_metrics(self, stage: str, quantities: Quantities) -> None:
        for metric in self.metrics[f"{stage}_"].values():
            metric.module.update(**{p: detached(quantities[q]) for p, q in metric.arguments.items()})

    def _compute_metrics(self, stage: str) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, metric in self.metrics[f"{stage}_"].items():
            if metric.module.update_called:
                value = metric.module.compute()
                values[f"{stage}/{name}"] = float(value)
                metric.module.reset()
        return values

    def _over_ranks(self, values: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        return self.all_gather(values.to(self.device)).mean(0).cpu()

    def _fail(self, names: list[str], rows: Tensor) -> None:
        first = int((~torch.isfinite(rows)).any(1).nonzero()[0, 0])
        culprits = [name for name, value in zip(names, rows[first].tolist(), strict=True) if not math.isfinite(value)]
        step = self.global_step - (len(rows) - 1 - first) // self.trainer.accumulate_grad_batches
        if first > 0:
            self._last_finite = dict(zip(names, rows[first - 1].tolist(), strict=True))
        last = ", ".join(f"{name}={value:.6g}" for name, value in self._last_finite.items()) or "none: it was the first step"
        raise NonFiniteLossError(
            f"the training loss is not finite at step {step}: {', '.join(culprits)} became {rows[first, names.index(culprits[0])].item()}; last finite values: {last}"
        )

    # -- checkpoints hold the random state and the unlogged window too ------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = [rng_state()]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        checkpoint["losskit"] = {
            "rng": states,
            "window": [{k: v.cpu() for k, v in row.items()} for row in self._window],
            "last_finite": self._last_finite,
            "train_metrics": {name: metric_state(metric.module) for name, metric in self.metrics["train_"].items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("losskit")
        if state is None:
            return
        self._rng_to_restore = state["rng"]
        self._window = [dict(row) for row in state["window"]]
        self._last_finite = state["last_finite"]
        for name, values in state["train_metrics"].items():
            load_metric_state(self.metrics["train_"][name].module, values)


class Average:
    """A weighted mean that stays on the device until it is read."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, value: Tensor, count: int) -> None:
        self.total = self.total + value.detach().double() * count
        self.count += count

    def compute(self, module: lightning.LightningModule) -> float:
        """The mean over all ranks, then start anew."""
        both = torch.tensor([float(self.total), float(self.count)], dtype=torch.float64)
        if module.trainer.world_size > 1:
            both = module.all_gather(both.to(module.device)).sum(0).cpu()
        self.reset()
        return float(both[0] / both[1]) if both[1] else math.nan


def clone(bound: Bound) -> Bound:
    return Bound(bound.module.clone(), bound.arguments, bound.name)


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def metric_state(metric: Any) -> dict[str, Any]:
    """A torchmetrics metric's accumulated state as plain tensors (its own ``state_dict`` leaves out what is not persistent)."""
    return {"updates": metric._update_count, "states": {name: getattr(metric, name) for name in metric._defaults}}


def load_metric_state(metric: Any, state: Mapping[str, Any]) -> None:
    metric._update_count = state["updates"]
    for name, value in state["states"].items():
        setattr(metric, name, value)


def rng_state() -> dict[str, Any]:
    """The random state of Python, NumPy, torch and the accelerators, in types that ``torch.load(weights_only=True)`` takes."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])

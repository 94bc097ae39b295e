"""Lost pipeline stages, simulated, and what makes up for them without a checkpoint: CheckFree."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.averaging.weights import average_dtype, require_whole_weights, tried
from components.schedules.base import require_number
from components.validation import require, require_choice

Recovery = Literal["checkfree", "checkfree_plus", "mean", "previous", "random", "rollback"]
RECOVERIES: tuple[Recovery, ...] = ("checkfree", "checkfree_plus", "mean", "previous", "random", "rollback")


@torch.no_grad()
def recovered(before: Sequence[Tensor], after: Sequence[Tensor], norm_before: Tensor, norm_after: Tensor, power: float = 2.0) -> list[Tensor]:
    r"""A lost stage's tensors from its neighbours', each weighing as much as it is still learning.

    .. math:: W_i \leftarrow \frac{g_{i-1} W_{i-1} + g_{i+1} W_{i+1}}{g_{i-1} + g_{i+1}}, \qquad g = \lVert \nabla W \rVert^{\text{power}}

    Args:
        before, after: the tensors of the two neighbours, of the same shapes; integer ones are taken from ``before``.
        norm_before, norm_after: norm of each neighbour's last gradient, scalars. Both 0: the plain mean.
        power: default 2, as in the paper; 1 as in the authors' code; 0 the plain mean.
    """
    one, other = (norm.double() ** power for norm in (norm_before, norm_after))
    whole = one + other
    share = torch.where(whole > 0, other / whole.clamp(min=torch.finfo(torch.float64).tiny), torch.full_like(whole, 0.5))
    result = []
    for left, right in zip(before, after, strict=True):
        if left.is_floating_point():
            exact = average_dtype(left)
            result.append((left.to(exact) * (1 - share).to(exact) + right.to(exact) * share.to(exact)).to(left.dtype))
        else:
            result.append(left.clone())
    return result


class StageFailures(lightning.Callback):
    r"""A pipeline of machines that fail: now and then a block of the model is lost, and is made anew from its neighbours.

    Before each step (but the first), each stage fails with ``probability``; of two neighbours only the first. The lost stage's weights and running
    statistics come from ``recovery``:

    ===================  =============================================================================================================
    ``checkfree``        the neighbours' average, weighed by their last gradients: :func:`recovered`
    ``checkfree_plus``   the same, and the outer stages can fail, too: in every second batch stages 1 and 2, and the last two, run in
                         each other's place, so that they learn to stand in for each other; a lost one of them is copied from the other
    ``mean``             the plain average of the neighbours
    ``previous``         a copy of the stage before it
    ``random``           first weights anew
    ``rollback``         the whole model and optimizer as they were at the last multiple of ``rollback_every`` steps; the data go on
    ===================  =============================================================================================================

    Except with ``rollback`` the stage's optimizer state is lost, and its learning rate rises by ``lr_factor``, for good. Without failures
    training is what it would be without this callback, bit for bit (but for the swaps of ``checkfree_plus``).
    Failures are a function of ``seed`` and step, so a resumed run has the same.

    Args:
        probability: of a failure, for each stage and step, in [0, 1]; default 0.001 (a rate *r* an hour of steps of *s* seconds each: r s / 3600).
        recovery: as above; default ``checkfree``.
        stages: path of the ``nn.Sequential`` or ``nn.ModuleList`` whose members are the stages (``blocks``); default: the longest of those
            whose members have all the same shapes.
        weight_power: power of the gradients' norms in the average, >= 0; default 2.
        lr_factor: of the lost stage's learning rate, > 0; default 1.1.
        rollback_every: steps from one snapshot to the next; default 100.
        failures: instead of chance, a list of [step, stage], both counted from 0.
        seed: of the failures and of what ``random`` draws; default 0.

    Raises:
        ValueError: an argument out of its range; a model without at least three such stages (four with ``checkfree_plus``); a stage that cannot
            fail; a sharded strategy.

    Source:
        Blagoev et al., "All is Not Lost: LLM Recovery without Checkpoints", 2025, arXiv:2506.15461; the released code weighs by norms clipped to 1, which
        are often all the same. Its factor is 1.1 (1.2 for 500M parameters), and stays.
    """

    def __init__(
        self,
        probability: float = 0.001,
        recovery: Recovery = "checkfree",
        stages: str | None = None,
        weight_power: float = 2.0,
        lr_factor: float = 1.1,
        rollback_every: int = 100,
        failures: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        require_number("probability", probability, 0, 1)
        require_choice("recovery", recovery, RECOVERIES)
        require_number("weight_power", weight_power, 0)
        require_number("lr_factor", lr_factor, 0)
        require(lr_factor > 0, "lr_factor must be > 0", lr_factor)
        require(isinstance(rollback_every, int) and rollback_every >= 1, "rollback_every must be an int >= 1", rollback_every)
        pairs = None if failures is None else [tuple(pair) for pair in failures]
        good = pairs is None or all(len(p) == 2 and all(isinstance(n, int) and n >= 0 for n in p) for p in pairs)
        require(good, "failures must be pairs [step, stage] of whole numbers >= 0", failures)
        self.probability, self.recovery, self.stages, self.weight_power = probability, recovery, stages, weight_power
        self.lr_factor, self.rollback_every, self.failures, self.seed = lr_factor, rollback_every, pairs, seed
        self._container: nn.Sequential | nn.ModuleList | None = None
        self._swapped = False
        self._forget()

    def _forget(self) -> None:
        self.failed: list[tuple[int, int]] = []  # (step, stage) so far
        self._step = 0  # the last step that failures have been looked up for
        self._raised: list[int] = []  # stages with parameter groups of their own, in the order in which they got them
        self._norms: Tensor | None = None  # (S,) of the last gradients
        self._snapshot: dict[str, Any] | None = None

    # -- what fails ---------------------------------------------------------------------------------------------------
    def failing(self, step: int, count: int) -> list[int]:
        """The stages of ``count`` that fail before optimizer step ``step``."""
        if self.failures is not None:
            return [stage for when, stage in self.failures if when == step]
        if step == 0 or self.probability == 0:
            return []
        draw = random.Random(self.seed * 1_000_003 + step).random
        lost: list[int] = []
        for stage in range(count):
            if draw() < self.probability and self.can_fail(stage, count) and (not lost or lost[-1] != stage - 1):
                lost.append(stage)
        return lost

    def can_fail(self, stage: int, count: int) -> bool:
        return 0 < stage < count - 1 or self.recovery == "checkfree_plus"

    # -- following training -------------------------------------------------------------------------------------------
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_weights(trainer, "averaging=checkfree")
            self._forget()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._container = find_stages(pl_module, self.stages)
        count, least = len(self._container), 4 if self.recovery == "checkfree_plus" else 3
        require(count >= least, f"recovery={self.recovery} needs at least {least} stages; the model has", count)
        for _, stage in self.failures or []:
            require(stage < count and self.can_fail(stage, count), f"failures: with recovery={self.recovery} this stage of {count} cannot be lost", stage)
        for stage in self._raised:  # before the optimizer's state is loaded: it has groups for these
            for optimizer in trainer.optimizers:
                own_groups(optimizer, self._container[stage].parameters())

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._container is not None
        step = trainer.global_step
        first = step == 0 and self._snapshot is None
        if self.recovery == "rollback" and (first or (step > self._step and step % self.rollback_every == 0)):
            self._snapshot = snapshot(pl_module, trainer.optimizers)
        if step > self._step:
            self._step = step
            for stage in self.failing(step, len(self._container)):
                self.recover(stage, pl_module, trainer.optimizers)
                self.failed.append((step, stage))
                for logger in trainer.loggers:
                    logger.log_metrics({"stage_failures": float(len(self.failed))}, step=step)
        if self.recovery == "checkfree_plus" and batch_idx % 2 == 1:
            self._swap()

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._swapped and not tried(pl_module):
            self._swap()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap()

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer) -> None:
        if tried(pl_module):
            return
        assert self._container is not None
        parameters = [p for stage in self._container for p in stage.parameters()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
        self._norms = torch.stack(torch._foreach_norm(gradients)).view(len(self._container), -1).float().norm(dim=1)

    def _swap(self) -> None:
        """Let the first two stages, and the last two, run in each other's place; once more: back."""
        assert self._container is not None
        modules, names = self._container._modules, list(self._container._modules)
        for one, other in ((names[0], names[1]), (names[-2], names[-1])):
            modules[one], modules[other] = modules[other], modules[one]
        self._swapped = not self._swapped

    # -- recovery -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def recover(self, stage: int, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Make stage ``stage`` anew, as after its loss."""
        assert self._container is not None
        if self.recovery == "rollback":
            assert self._snapshot is not None
            restore(self._snapshot, module, optimizers)
            return
        lost = self._container[stage]
        if self.recovery == "random":
            self._draw_anew(lost)
        else:
            for tensor, value in zip(tensors_of(lost), self._from_neighbours(stage), strict=True):
                tensor.copy_(value)
        for optimizer in optimizers:
            for parameter in lost.parameters():
                optimizer.state.pop(parameter, None)
            if self.lr_factor != 1:
                if stage not in self._raised:
                    self._raised.append(stage)
                for group in own_groups(optimizer, lost.parameters()):
                    for rate in ("lr", "initial_lr"):
                        if rate in group:
                            group[rate] = group[rate] * self.lr_factor

    def _from_neighbours(self, stage: int) -> list[Tensor]:
        assert self._container is not None
        container, last = self._container, len(self._container) - 1
        twins = {0: 1, 1: 0, last: last - 1, last - 1: last}
        if self.recovery == "previous" or (self.recovery == "checkfree_plus" and stage in twins):
            source = stage - 1 if self.recovery == "previous" else twins[stage]
            return [tensor.clone() for tensor in tensors_of(container[source])]
        before, after = tensors_of(container[stage - 1]), tensors_of(container[stage + 1])
        norms = torch.ones(last + 1, device=before[0].device) if self._norms is None else self._norms.to(before[0].device)
        return recovered(before, after, norms[stage - 1], norms[stage + 1], 0.0 if self.recovery == "mean" else self.weight_power)

    def _draw_anew(self, lost: nn.Module) -> None:
        owners = [m for m in lost.modules() if any(True for _ in m.parameters(recurse=False))]
        strange = sorted({type(m).__name__ for m in owners if not hasattr(m, "reset_parameters")})
        require(not strange, "recovery=random needs modules with reset_parameters; without it are", strange)
        devices = sorted({p.device.index for p in lost.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed * 1_000_003 + self._step)
            for owner in owners:
                cast(Any, owner).reset_parameters()

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        failed = [list(pair) for pair in self.failed]
        return {"step": self._step, "failed": failed, "raised": list(self._raised), "norms": self._norms, "snapshot": self._snapshot}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.failed = [(step, stage) for step, stage in state_dict["failed"]]
        self._step, self._raised = state_dict["step"], list(state_dict["raised"])
        self._norms, self._snapshot = state_dict["norms"], state_dict["snapshot"]


def find_stages(module: nn.Module, path: str | None = None) -> nn.Sequential | nn.ModuleList:
    """The container whose members are the stages: the one at ``path``, or the longest whose members are all alike.

    Raises:
        ValueError: there is none.
    """
    containers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)}
    alike = {name: m for name, m in containers.items() if len(m) >= 2 and len({shapes_of(stage) for stage in m}) == 1 and shapes_of(m[0])}
    if path is not None:
        name = path if path in containers else f"model.{path}"
        require(name in alike, f"stages must be the path of blocks of the same shapes ({', '.join(alike) or 'this model has none'})", path)
        return alike[name]
    require(bool(alike), "averaging=checkfree needs blocks of the same shapes, one after the other in an nn.Sequential or nn.ModuleList; this model has none")
    return max(alike.values(), key=len)


def shapes_of(stage: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in [*stage.named_parameters(), *stage.named_buffers()])


def tensors_of(stage: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*stage.parameters(), *stage.buffers())]


def own_groups(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameter groups that hold just these parameters, split off from those that they are in."""
    wanted = {id(p) for p in parameters}
    found = []
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in wanted]
        if not mine:
            continue
        if len(mine) < len(group["params"]):
            group["params"] = [p for p in group["params"] if id(p) not in wanted]
            group = {**group, "params": mine}
            optimizer.param_groups.append(group)
        found.append(group)
    return found


def snapshot(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    tensors = [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]
    return {"tensors": tensors, "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]}


@torch.no_grad()
def restore(taken: dict[str, Any], module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    for tensor, value in zip((*module.parameters(), *module.buffers()), taken["tensors"], strict=True):
        tensor.copy_(value)
    for optimizer, state in zip(optimizers, taken["optimizers"], strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))

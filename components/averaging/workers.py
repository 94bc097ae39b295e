"""Several workers in an ordinary run, each accumulated batch being one of them, and a robust rule in place of the mean of their gradients."""

from __future__ import annotations

import functools
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from components.averaging.aggregation import RULES
from components.averaging.byzantine import ATTACKS
from components.averaging.weights import tried
from components.schedules.base import require_number
from components.validation import require, require_choice


class WorkerAggregation(lightning.Callback):
    r"""Synchronous training on n simulated workers behind a server that takes any rule of aggregation, some workers Byzantine or crashing.

    ``losskit train trainer.accumulate_grad_batches=10 averaging=workers averaging.rule=trimmed_mean averaging.byzantine=2``: the batches
    of one optimizer step are the workers' own, in their order, whatever the task, the model and the optimizer are:

    .. math:: m_i \leftarrow \beta m_i + (1 - \beta)\, g_i, \qquad \text{gradient} = \mathrm{rule}(\text{what the workers send of } m_1, \dots, m_n)

    The Byzantine workers are the last ones, the crashing ones those before them. With ``rule: mean``, no faults and no momentum nothing is touched. What
    is evaluated are the current weights. Peers without a server: :class:`~components.averaging.byzantine.Workers`.

    Args:
        rule: a name of :data:`~components.averaging.aggregation.RULES`; default ``trimmed_mean``.
        byzantine: attackers; default 0.
        attack: a name of :data:`~components.averaging.byzantine.ATTACKS`; default ``sign_flip``.
        attack_scale: of the attack (for ``alie`` its *z*); default: the attack's own.
        faulty: *f* that the rule reckons with; default: as many as are Byzantine.
        crashed: workers that send nothing more after ``crash_after`` steps; default 0.
        crash_after: default 0.
        momentum: :math:`\beta` in [0, 1) of each worker, best with an optimizer that has none; default 0.
        seed: of attacks that draw; default 0.
        num_classes: classes of the data, filled in by the builder; ``attack="label_flip"`` needs it.

    Raises:
        ValueError: an argument out of its range; one batch a step; several devices or a gradient scaler, whose gradients are no worker's own.

    Source:
        The rules' and the attacks' own; local momentum: Farhadkhani et al., ICML 2023, arXiv:2209.10931, and Karimireddy et al., ICML 2021,
        arXiv:2012.10333.
    """

    def __init__(
        self,
        rule: str = "trimmed_mean",
        byzantine: int = 0,
        attack: str = "sign_flip",
        attack_scale: float | None = None,
        faulty: int | None = None,
        crashed: int = 0,
        crash_after: int = 0,
        momentum: float = 0.0,
        seed: int = 0,
        num_classes: int | None = None,
    ) -> None:
        require_choice("rule", rule, RULES)
        require_choice("attack", attack, ATTACKS)
        for name, value in {"byzantine": byzantine, "crashed": crashed, "crash_after": crash_after, "faulty": faulty or 0}.items():
            require(isinstance(value, int) and value >= 0, f"{name} must be an int >= 0", value)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require(attack != "label_flip" or not byzantine or num_classes is not None, "attack=label_flip needs data with classes (num_classes)")
        if attack_scale is not None:
            require_number("attack_scale", attack_scale, 0)
            require(attack in ("sign_flip", "alie", "ipm", "random"), "attack_scale is for sign_flip, alie, ipm and random; attack is", attack)
        self.rule, self.byzantine, self.attack, self.attack_scale, self.seed = rule, byzantine, attack, attack_scale, seed
        self.crashed, self.crash_after, self.momentum, self.num_classes = crashed, crash_after, momentum, num_classes
        self.faulty = byzantine if faulty is None else faulty
        option = {} if attack_scale is None else {"z" if attack == "alie" else "scale": attack_scale}
        self._attack = functools.partial(ATTACKS[attack], **option)
        self._untouched = rule == "mean" and byzantine == crashed == momentum == 0
        self._workers = 1
        self._forget()

    def _forget(self) -> None:
        self._rows: list[Tensor] = []  # gradients of the workers so far, in this step
        self._momenta: Tensor | None = None  # (n, d)
        self._real: tuple[int, Tensor | None] | None = None  # while steps are only tried: the step that they start from, and the momenta there

    # -- following training -------------------------------------------------------------------------------------------
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._workers = trainer.accumulate_grad_batches
        require(self._workers >= 2, "averaging=workers takes each accumulated batch for a worker: set trainer.accumulate_grad_batches to their number")
        require(self.byzantine + self.crashed < self._workers, "byzantine and crashed must leave an honest worker", (self.byzantine, self.crashed))
        require(2 * self.faulty < self._workers, f"faulty must be below half of the {self._workers} workers", self.faulty)
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None
        require(trainer.world_size == 1 and not scaled, "averaging=workers simulates its workers on one device, without a gradient scaler")

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.attack == "label_flip" and len(self._rows) >= self._workers - self.byzantine:
            assert self.num_classes is not None
            batch["target"] = self.num_classes - 1 - batch["target"]

    @torch.no_grad()
    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._untouched:
            return
        parameters = self._parameters(pl_module)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self._rows.append(torch.cat([g.flatten() for g in gradients]) * self._workers)  # the loss was divided by their number
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer) -> None:
        if self._untouched:
            return
        own, self._rows = torch.stack(self._rows[-self._workers :]), []  # a step that was tried and failed may have left some
        if self.momentum:
            self._choose_momenta(tried(pl_module), trainer.global_step)
            if self._momenta is None:
                self._momenta = own.new_zeros(self._workers, own.shape[1])
            self._momenta = self._momenta.to(own.device)
            self._momenta[: len(own)].mul_(self.momentum).add_(own, alpha=1 - self.momentum)  # the last step of an epoch may have fewer
            own = self._momenta[: len(own)]
        parameters = self._parameters(pl_module)
        parts = self.aggregate(own, trainer.global_step).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _choose_momenta(self, only_tried: bool, step: int) -> None:
        """Let steps that are only tried start from the real momenta, and put those back afterwards."""
        if only_tried and self._real is None:
            self._real = (step, None if self._momenta is None else self._momenta.clone())
        elif self._real is not None and (not only_tried or step == self._real[0]):
            momenta = self._real[1]
            self._momenta = None if momenta is None else momenta.clone()
            self._real = self._real if only_tried else None

    def aggregate(self, own: Tensor, step: int) -> Tensor:
        """What the server makes of the workers' vectors (n, d) at ``step``, after faults."""
        honest = self._workers - self.byzantine - (self.crashed if step >= self.crash_after else 0)
        sent, attackers = own[:honest], own[self._workers - self.byzantine :]
        if len(attackers):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            sent = torch.cat([sent, self._attack(attackers, sent, generator)])
        return RULES[self.rule](sent, min(self.faulty, (len(sent) - 1) // 2))

    @staticmethod
    def _parameters(module: lightning.LightningModule) -> list[torch.nn.Parameter]:
        return [p for p in module.parameters() if p.requires_grad]

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        momenta = self._momenta if self._real is None else self._real[1]
        return {} if momenta is None else {"momenta": momenta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._momenta = state_dict["momenta"]

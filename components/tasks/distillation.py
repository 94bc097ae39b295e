"""Distillation: a student learns classes from the labels and from a frozen teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from components.binding import Bound
from components.data.base import Batch, DataModule
from components.models.base import split_output
from components.objective import Objective, mixed
from components.quantities import Quantities, lazy
from components.tasks.classification import ClassificationTask
from components.validation import require


class DistillationTask(ClassificationTask):
    """Predict classes, with a teacher's outputs for the same inputs at hand.

    The teacher is frozen, in evaluation mode and without gradients. It sees what the student sees: after the transforms. It is part
    of the checkpoint, so a resumed run needs nothing else.

    Args:
        teacher: the network; its outputs are shaped like the student's.
        teacher_run, teacher_model, teacher_epochs, teacher_lr: say where the builder gets the teacher from: a finished run, or a
            model that :func:`train_teacher` trains first. They are noted here and no more.
        kind, num_classes, target_kind: see :class:`~components.tasks.ClassificationTask`.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"target", "target_multi_hot", "logits", "features", "teacher_logits", "teacher_features"})

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module,
        teacher_run: str | None = None,
        teacher_model: Any = None,
        teacher_epochs: int = 10,
        teacher_lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_training(teacher_epochs, teacher_lr)
        self.teacher = teacher.requires_grad_(False)
        self.teacher.eval()
        self.teacher_source = {"run": teacher_run, "epochs": teacher_epochs, "lr": teacher_lr}
        self._separate: SeparateLosses | None = None  # for an optimizer that takes two gradients

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def quantities(self, batch: Batch) -> Quantities:
        with torch.no_grad():
            logits, features = split_output(self.teacher(batch["inputs"]))
        return super().quantities(batch).replace(teacher_logits=logits, teacher_features=features)

    def take_apart(self, optimizer: torch.optim.Optimizer) -> None:
        self._separate = SeparateLosses(self.objective, type(optimizer).__name__)
        self.objective = self._separate

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._separate is None:
            super().backward(loss, *args, **kwargs)
            return
        task, distillation = self._separate.sides
        batches = self.trainer.accumulate_grad_batches
        self.trainer.optimizers[0].distill(distillation / batches)  # type: ignore[attr-defined]
        super().backward(task / batches, *args, **kwargs)


class SeparateLosses(Objective):
    """An objective that keeps its two sides apart: :attr:`sides` is ``(task, distillation)`` of the last batch, which add up to the total.

    The distillation's are the terms that ask for something of the teacher's; of a main loss with a method ``apart`` its second half.

    Args:
        whole: the objective; its components are shared.
        optimizer: who takes the sides, for errors.

    Raises:
        ValueError: one of the sides has no loss.
    """

    def __init__(self, whole: Objective, optimizer: str) -> None:
        super().__init__(whole.loss, dict(whole._terms(whole.auxiliary)), dict(whole._terms(whole.regularizers)), whole.reweighting)
        self.sides: tuple[Tensor, Tensor]
        losses = [self.loss, *(term.bound for _, term in self._terms(self.auxiliary))]
        has_both = any(looks_at_teacher(bound) for bound in losses) and not all(looks_at_teacher(bound) for bound in losses)
        require(
            has_both or hasattr(self.loss.module, "apart"),
            f"{optimizer} takes the gradients of two losses, the task's and the distillation's: take loss=kd, which is both, or one of each, as in "
            f"loss=cross_entropy +loss@auxiliary.kd=kd auxiliary.kd.alpha=1; the only side that this objective has is of "
            f"{', '.join(bound.name for bound in losses)}",
        )

    def forward(self, quantities: Quantities, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        quantities = quantities.replace(loss_fn=self.main_loss, per_sample_loss=lazy(self.per_sample_loss))
        sides: dict[bool, list[Tensor]] = {False: [], True: []}
        for bound, of_teacher in self._main():
            sides[of_teacher].append(self._value(bound, quantities))
        parts = {"loss": torch.stack([*sides[False], *sides[True]]).sum()}
        for group, terms in (("auxiliary", self.auxiliary), ("regularizer", self.regularizers)):
            for name, term in self._terms(terms):
                parts[f"{group}.{name}"] = value = mixed(term.bound, quantities) if group == "auxiliary" else term.bound(quantities)
                sides[looks_at_teacher(term.bound)].append(term.weight_at(step) * value)
        task, distillation = (torch.stack(sides[side]).sum() for side in (False, True))
        self.sides = (task, distillation)
        return task + distillation, parts

    def _main(self) -> list[tuple[Bound, bool]]:
        """The main loss's sides, each with whether it is the distillation's."""
        module: Any = self.loss.module
        if not hasattr(module, "apart"):
            return [(self.loss, looks_at_teacher(self.loss))]
        labels, teacher = module.apart()
        return [(Bound(labels, self.loss.arguments, self.loss.name), False), (Bound(teacher, self.loss.arguments, self.loss.name), True)]

    def _value(self, bound: Bound, quantities: Quantities) -> Tensor:
        """As the whole main loss is taken: mixed, and reweighted by weights that see the whole."""
        weights = self.reweighting
        if weights is None:
            return mixed(bound, quantities)
        alone = Objective(bound)
        return mixed(lambda q: (weights(q) * alone.per_sample_loss(q)).mean(), quantities)


def looks_at_teacher(bound: Bound) -> bool:
    return any(quantity.startswith("teacher_") for quantity in bound.arguments.values())


def train_teacher(
    model: nn.Module,
    datamodule: DataModule,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    seed: int = 0,
    keep: Callable[[Tensor], Tensor] | None = None,
    role: str = "teacher",
) -> nn.Module:
    """Train ``model`` on the training split with Adam, a cosine learning rate and cross-entropy (binary where that fits), and freeze it.

    The same arguments give the same weights, and the global random state stays as it was.

    Args:
        model: the teacher to be, changed in place.
        datamodule: set up; its transforms and corruptions are those of the student's run.
        epochs: passes over the training split, >= 1.
        lr: the first learning rate, > 0.
        seed: of dropout.
        keep: index -> whether to learn from that sample, where not all of the training split is for the model.
        role: what errors call it.

    Raises:
        ValueError: if ``epochs`` or ``lr`` is out of range, or the loss is not finite.
    """
    check_training(epochs, lr, role)
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loss = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        for epoch in range(epochs):
            loader = datamodule.loader("train", datamodule.batch_size, shuffle=True, position=lambda epoch=epoch: (epoch, 0))  # type: ignore[misc]
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
            for batch in loader:
                if keep is not None:
                    rows = keep(batch["index"])
                    if int(rows.sum()) < 2:  # too few for batch normalisation
                        continue
                    batch = {name: batch[name][rows] for name in ("inputs", "target")}
                logits, target = split_output(model(batch["inputs"].to(device))).output, batch["target"].to(device)
                optimizer.zero_grad()
                loss = classification_loss(logits, target)
                loss.backward()
                optimizer.step()
    last = float(loss.detach())
    require(math.isfinite(last), f"the {role}'s training diverged ({role}_lr={lr}): its loss is not finite", last)
    return model.requires_grad_(False).eval()


def check_training(epochs: int, lr: float, role: str = "teacher") -> None:
    require(epochs >= 1, f"{role}_epochs must be >= 1", epochs)
    require(lr > 0, f"{role}_lr must be > 0", lr)


def classification_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy for one class a sample, binary cross-entropy for one logit a sample or labels (N, K)."""
    if target.ndim > 1:
        return binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    if logits.shape[1] == 1:
        return binary_cross_entropy_with_logits(logits.squeeze(1), target.to(logits.dtype))
    return cross_entropy(logits, target)

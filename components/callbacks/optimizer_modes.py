"""Optimizers that train with one set of weights and are evaluated with another (Schedule-Free): each where it belongs."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from components.averaging import WeightAverage
from components.validation import require

Weights = list[Tensor]


class OptimizerModes(lightning.Callback):
    """Puts in the weights to evaluate, of any optimizer with methods ``train()`` and ``eval()``, and the weights to train with back again.

    Validation within ``fit`` runs on the weights of ``eval()``; at the end of ``fit`` the model holds them, so ``test`` and ``predict`` run
    on them. Checkpoints hold both, laid out as a weight average's: ``state_dict`` is what is evaluated and deployed, ``current_model_state``
    what training goes on from. The weights to train with are kept, not computed back: a validation or a checkpoint changes no bit of what follows.

    With any other optimizer it does nothing; every losskit task brings it along.

    Raises:
        ValueError: a weight average beside such an optimizer, which has one of its own.
    """

    def __init__(self) -> None:
        self._kept: Weights | None = None  # the weights to train with, while the model holds those to evaluate

    # -- Lightning's hooks ----------------------------------------------------------------------------------------------
    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._kept = None
        for optimizer in with_modes(trainer):
            averages = [type(c).__name__ for c in trainer.callbacks if averages_weights(c)]  # type: ignore[attr-defined]
            message = f"{type(optimizer).__name__} averages the weights itself, and an average of its training weights would be another: take averaging=none"
            require(not averages, message, ", ".join(averages))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for optimizer in with_modes(trainer):
            optimizer.train()  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._evaluate(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._train(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._evaluate(trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        self._train(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not with_modes(trainer):
            return
        others = weights_to_evaluate(trainer) if self._kept is None else self._kept
        instead = {p.data_ptr(): other for p, other in zip(weights_of(trainer), others, strict=True) if p.numel()}
        here = checkpoint["state_dict"]
        there = {name: instead.get(value.data_ptr(), value) if isinstance(value, Tensor) else value for name, value in here.items()}
        evaluated, training = (there, here) if self._kept is None else (here, there)
        checkpoint["state_dict"], checkpoint["current_model_state"] = evaluated, training

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and "current_model_state" in checkpoint and "averaging_state" not in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    # -- the exchange ---------------------------------------------------------------------------------------------------
    def _evaluate(self, trainer: lightning.Trainer) -> None:
        if self._kept is None and with_modes(trainer):
            evaluated = weights_to_evaluate(trainer)
            self._kept = copies(weights_of(trainer))
            put(trainer, evaluated)

    def _train(self, trainer: lightning.Trainer) -> None:
        if self._kept is not None:
            put(trainer, self._kept)
            self._kept = None


def with_modes(trainer: lightning.Trainer) -> list[Optimizer]:
    """The optimizers that have both modes."""
    return [o for o in trainer.optimizers if callable(getattr(o, "train", None)) and callable(getattr(o, "eval", None))]


def weights_of(trainer: lightning.Trainer) -> Weights:
    return [p for optimizer in with_modes(trainer) for group in optimizer.param_groups for p in group["params"]]


def copies(weights: Weights) -> Weights:
    return [p.detach().clone() for p in weights]


@torch.no_grad()
def put(trainer: lightning.Trainer, values: Weights) -> None:
    for parameter, value in zip(weights_of(trainer), values, strict=True):
        parameter.copy_(value)


def weights_to_evaluate(trainer: lightning.Trainer) -> Weights:
    """Copies of what ``eval()`` makes of the weights; the optimizers stay in the mode for training, and the weights as they are."""
    training = copies(weights_of(trainer))
    for optimizer in with_modes(trainer):
        optimizer.eval()  # type: ignore[attr-defined]
    evaluated = copies(weights_of(trainer))
    for optimizer in with_modes(trainer):
        optimizer.train()  # type: ignore[attr-defined]
    put(trainer, training)  # there and back again rounds
    return evaluated


def averages_weights(callback: Any) -> bool:
    """Whether a callback evaluates an average of the weights: one of losskit's, or of Lightning's."""
    return isinstance(callback, WeightAverage | WeightAveraging | StochasticWeightAveraging)

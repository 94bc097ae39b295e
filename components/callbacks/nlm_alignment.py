"""A diagnostic of training that only makes the logits larger."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.validation import require


def nlm_alignment(model: nn.Module) -> Tensor:
    r"""Cosine between the negative gradient and the weights, over all parameters that have a gradient; 0 where either is 0.

    .. math:: \cos(-\nabla_\theta \ell,\ \theta)
    """
    pairs = [(p.detach().double(), p.grad.detach().double()) for p in model.parameters() if p.grad is not None]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    inner, weights, gradients = (torch.stack(parts).sum() for parts in zip(*(((p * g).sum(), (p * p).sum(), (g * g).sum()) for p, g in pairs), strict=True))
    size = (weights * gradients).sqrt()
    return torch.where(size > 0, -inner / torch.where(size > 0, size, 1.0), 0.0)


class NLMAlignment(lightning.Callback):
    r"""Logs how much of the gradient only scales the weights: naive loss minimisation, which makes logits larger and predicts nothing better.

    .. math:: \cos(-\nabla_\theta \ell,\ \theta)

    Near 1, cross-entropy falls although every prediction stays: after everything is fitted, that is the way into softmax collapse.
    ``optimizer=orthograd`` leaves this direction out. Logged as ``train/nlm_alignment`` before the optimizer's step, over all parameters of the model.

    Args:
        every_n_steps: optimizer steps between two looks, >= 1; each waits for the device.

    Raises:
        ValueError: if ``every_n_steps < 1``.

    Source:
        Prieto, Barsbey, Mediano and Birdal, "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697, §4.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        super().__init__()
        require(every_n_steps >= 1, "every_n_steps must be >= 1", every_n_steps)
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step % self.every_n_steps or getattr(pl_module, "probing", False):
            return
        model: Any = getattr(pl_module, "model", pl_module)
        value = float(nlm_alignment(model))
        for logger in trainer.loggers:
            logger.log_metrics({"train/nlm_alignment": value}, step=trainer.global_step)
        trainer.callback_metrics["train/nlm_alignment"] = torch.tensor(value)

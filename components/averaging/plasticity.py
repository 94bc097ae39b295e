"""An exponential average whose coefficient follows the loss's slope and curvature: PlasticityStabilityEMA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn

from components.averaging.weights import Buffers, WeightAverage, tried
from components.schedules import Span
from components.schedules.base import require_number
from components.validation import require, require_choice

Scope = Literal["tensor", "global"]


@torch.no_grad()
def stability(
    gradients: Sequence[Tensor],
    previous_gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    previous_weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    *,
    scope: Scope = "tensor",
    fallback: float = 0.99,
    low: float = 0.0,
    high: float = 0.9999,
) -> Tensor:
    r"""The share of the old average, :math:`\beta_t`, that balances plasticity (the loss at the average) and stability (how far the average moves).

    .. math:: \beta_t = \frac{\lVert (g_t + 1) \odot (\theta_t - \theta_{t-1}) \rVert_1}{\lVert (\theta_t - \theta^*_{t-1}) \odot (g_t - g_{t-1}) \rVert_1}

    which is :math:`(g_t + 1) / \big((\theta_t - \theta^*_{t-1}) H_t\big)` with the secant :math:`H_t = (g_t - g_{t-1}) / (\theta_t - \theta_{t-1})`
    for the curvature, all of it collapsed to one number a tensor. Norms have no sign, so :math:`\beta_t \ge 0` by itself.

    Args:
        gradients: :math:`g_t`, at ``weights``; tensors of any shapes.
        previous_gradients: :math:`g_{t-1}`, at ``previous_weights``; the same shapes, as are all others.
        weights: :math:`\theta_t`.
        previous_weights: :math:`\theta_{t-1}`.
        averages: :math:`\theta^*_{t-1}`.
        scope: one coefficient for each ``tensor`` (default), or a ``global`` one, the norms taken over all of them.
        fallback: the coefficient where the denominator is below 1e-12; default 0.99.
        low, high: bounds; default 0 and 0.9999.

    Returns:
        (number of tensors,): :math:`\beta_t`.
    """
    slope = torch._foreach_add(list(gradients), 1)
    torch._foreach_mul_(slope, torch._foreach_sub(list(weights), list(previous_weights)))
    bend = torch._foreach_sub(list(weights), list(averages))
    torch._foreach_mul_(bend, torch._foreach_sub(list(gradients), list(previous_gradients)))
    above, below = (torch.stack(torch._foreach_norm(values, 1)) for values in (slope, bend))
    if scope == "global":
        above, below = above.sum().expand_as(above), below.sum().expand_as(below)
    share = torch.where(below < 1e-12, torch.full_like(below, fallback), above / below.clamp(min=1e-12))
    return share.clamp(low, high)


class PlasticityStabilityEMA(WeightAverage):
    r"""Average for fine-tuning on one task after another: it moves where the new task needs it, and stays where the old ones are.

    .. math:: \theta^*_t = \beta_t\,\theta^*_{t-1} + (1 - \beta_t)\,\theta_t

    with :math:`\beta_t` from :func:`stability`, worked out anew at each step from the gradients that training has anyway. The average begins with the
    weights that training begins with, those of the previous task (``ckpt_path=…``). After step t it is the average with
    the weights *before* that step, since only they have a gradient; running statistics of batch normalisation move by the mean of the
    coefficients.

    Try it where plain fine-tuning forgets; on a first task, use the last weights.

    Args:
        scope: one coefficient for each ``tensor`` (default) or a ``global`` one.
        fallback: the coefficient where the curvature is nothing, in [0, 1]; default 0.99.
        beta_min, beta_max: bounds of the coefficient, in [0, 1]; default 0 and 0.9999. With both 0 the average is the weights before the last
            step, with both 1 the beginning.
        start: the average begins with the weights before this step, int or a fraction of ``total_steps``; default 0.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.

    Raises:
        ValueError: an argument out of its range.

    Source:
        Qiao et al., "Large Continual Instruction Assistant", 2024, arXiv:2410.10868, the coefficient of its averaging; the collapse by L1 norms is the
        paper's as we read it, the bounds and the fallback are ours. Its second part, adapters chosen by the text of the instruction, is not here.
    """

    def __init__(
        self,
        scope: Scope = "tensor",
        fallback: float = 0.99,
        beta_min: float = 0.0,
        beta_max: float = 0.9999,
        start: Span = 0,
        buffers: Buffers = "average",
        total_steps: int | None = None,
    ) -> None:
        super().__init__(start=start, buffers=buffers, total_steps=total_steps, initial=True)
        require_choice("scope", scope, ("tensor", "global"))
        for name, value in {"fallback": fallback, "beta_min": beta_min, "beta_max": beta_max}.items():
            require_number(name, value, 0, 1)
        require(beta_min <= beta_max, "beta_min must be <= beta_max", beta_min)
        self.scope, self.fallback, self.beta_min, self.beta_max = scope, fallback, beta_min, beta_max

    def due(self, step: int) -> bool:
        return False  # all is done where the gradients are

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if not self._count or tried(pl_module):
            return
        names = [name for name, tensor in self._live.items() if tensor.requires_grad]
        averages = [self._average[name] for name in names]
        weights = [self._live[name].detach().to(average.dtype) for name, average in zip(names, averages, strict=True)]
        gradients = [self._gradient(name).to(average.dtype) for name, average in zip(names, averages, strict=True)]
        if self._previous:
            share = self._share(gradients, weights, averages, names)
            others = [name for name in self._live if not self._live[name].requires_grad]  # running statistics, frozen weights
            averages += [self._average[name] for name in others]
            current = weights + [self._live[name].to(self._average[name].dtype) for name in others]
            moves = torch._foreach_sub(current, averages)
            torch._foreach_mul_(moves, [*(1 - share).unbind(), *[(1 - share).mean()] * len(others)])
            torch._foreach_add_(averages, moves)
            torch._foreach_copy_(list(self._previous["weights"].values()), weights)
            torch._foreach_copy_(list(self._previous["gradients"].values()), gradients)
        else:  # the average is the current weights, whatever the share
            for kind, tensors in {"weights": weights, "gradients": gradients}.items():
                self._previous[kind] = {name: tensor.clone() for name, tensor in zip(names, tensors, strict=True)}

    def _share(self, gradients: list[Tensor], weights: list[Tensor], averages: list[Tensor], names: list[str]) -> Tensor:
        before = [[self._previous[kind][name] for name in names] for kind in ("gradients", "weights")]
        bounds = {"fallback": self.fallback, "low": self.beta_min, "high": self.beta_max}
        return stability(gradients, before[0], weights, before[1], averages, scope=self.scope, **bounds)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._live[name].grad
        return torch.zeros_like(self._live[name]) if gradient is None else gradient.detach()

    def more_state(self) -> dict[str, Any]:
        return {"previous": self._previous}

    def load_more_state(self, state: Mapping[str, Any]) -> None:
        self._previous.update(state["previous"])

    def _bind(self, module: nn.Module) -> None:
        super()._bind(module)
        moved = {kind: {n: t.to(self._live[n].device) for n, t in tensors.items()} for kind, tensors in self._previous.items()}
        self._previous.update(moved)

    def _forget(self) -> None:
        super()._forget()
        self._previous: dict[str, dict[str, Tensor]] = {}  # weights and gradients of the step before

"""Schedule-Free optimizers, from the package of their authors: no schedule, and no length of the run to know beforehand.

They keep three sequences: *z*, where plain steps go; *x*, its running mean, which is evaluated; and *y* between the two, where gradients
are taken. A model trains with *y* and is evaluated with *x*: :class:`components.callbacks.OptimizerModes`, which every task brings, changes
one for the other. The rate stays constant after its warm-up: ``schedule=constant``, as the option files have it.

Batch normalisation's running statistics are those of *y*; where they matter, prefer models with other norms.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from components.optimizers.base import require_options
from components.optimizers.groups import Group
from components.validation import require


def schedule_free_adamw(
    params: Iterable[Tensor] | Iterable[Group],
    lr: float = 2.5e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Optimizer:
    r"""AdamW whose steps *z* are averaged as they are made: what a good decaying schedule reaches, at every step and without one.

    .. math:: y_t &= (1 - \beta_1)\, z_t + \beta_1 x_t, \qquad z_{t+1} = z_t - \eta_t \Big(\frac{g(y_t)}{\sqrt{\hat v_t} + \epsilon} + w\, y_t\Big) \\
              x_{t+1} &= (1 - c_t)\, x_t + c_t z_{t+1}, \qquad c_t = \frac{(t+1)^r\, \eta_\text{max}^p}{\sum_{s \le t} (s+1)^r\, \eta_\text{max}^p}

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 2.5e-3, the authors'. Best rates are 1 to 10 times those with a schedule.
        betas: :math:`\beta_1` in (0, 1), where between *x* and *z* gradients are taken; :math:`\beta_2`. Default (0.9, 0.999).
        eps: >= 0; default 1e-8.
        weight_decay: *w* >= 0, at *y*; default 0.
        warmup_steps: steps in which the rate rises to ``lr``; default 0.
        r: power of the step in the average's weights; default 0: all alike.
        weight_lr_power: *p*, power of the largest rate so far in the average's weights (it matters in the warm-up); default 2.

    Raises:
        ValueError: an option out of its range, or the package schedulefree is not installed.

    Source:
        Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024, arXiv:2405.15682;
        https://github.com/facebookresearch/schedule_free.
    """
    require_options(lr, betas, eps, weight_decay)
    require(len(betas) == 2 and betas[0] > 0, "betas must be two numbers, the first above 0", list(betas))
    options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    return made("AdamWScheduleFree", "schedule_free_adamw", params, options, warmup_steps, r, weight_lr_power)


def schedule_free_sgd(
    params: Iterable[Tensor] | Iterable[Group],
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Optimizer:
    r"""SGD whose steps *z* are averaged as they are made. See :func:`schedule_free_adamw`.

    .. math:: y_t = (1 - \beta)\, z_t + \beta x_t, \qquad z_{t+1} = z_t - \eta_t \big(g(y_t) + w\, y_t\big), \qquad x_{t+1} = (1 - c_t)\, x_t + c_t z_{t+1}

    Args:
        params: parameters, or parameter groups with options of their own.
        lr: :math:`\eta` >= 0; default 1, the authors'. Best rates are 10 to 50 times those of SGD with momentum and a schedule.
        momentum: :math:`\beta` in (0, 1), where between *x* and *z* gradients are taken; default 0.9.
        weight_decay: *w* >= 0, at *y*; default 0.
        warmup_steps, r, weight_lr_power: see :func:`schedule_free_adamw`.

    Raises:
        ValueError: an option out of its range, or the package schedulefree is not installed.

    Source:
        Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024, arXiv:2405.15682;
        https://github.com/facebookresearch/schedule_free.
    """
    require_options(lr, (), 0.0, weight_decay)
    require(0 < momentum < 1, "momentum must be in (0, 1)", momentum)
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    return made("SGDScheduleFree", "schedule_free_sgd", params, options, warmup_steps, r, weight_lr_power)


def made(name: str, option: str, params: Any, options: dict[str, Any], warmup_steps: int, r: float, weight_lr_power: float) -> Optimizer:
    """The package's optimizer ``name``."""
    require(warmup_steps >= 0, "warmup_steps must be >= 0", warmup_steps)
    require(r >= 0, "r must be >= 0", r)
    require(weight_lr_power >= 0, "weight_lr_power must be >= 0", weight_lr_power)
    try:
        package = importlib.import_module("schedulefree")
    except ImportError as error:
        raise ValueError(f"optimizer={option} needs the package schedulefree: pip install schedulefree") from error
    optimizer: Optimizer = getattr(package, name)(params, **options, warmup_steps=warmup_steps, r=r, weight_lr_power=weight_lr_power)
    return optimizer

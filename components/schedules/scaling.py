r"""What to change when the batch becomes :math:`\kappa` times as large (or as small), so that training stays the same per sample.

    steps = scaled_steps(10_000, kappa=8)                                             # 1250
    options = scaled_options({"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}, kappa=8, rule="adam")
    decay = scaled_ema_decay(0.9999, kappa=8)                                         # 0.9999 ** 8

Schedules need no rule: written in fractions of the run they keep their shape in samples. A scheduled EMA decay: :class:`~components.schedules.Power`.

Source:
    Busbridge et al., "How to Scale Your EMA", NeurIPS 2023, arXiv:2307.13813 (averages, definition 1.2; the table of rules); SGD: Goyal et al., "Accurate,
    Large Minibatch SGD", 2017, arXiv:1706.02677; Adam and RMSProp: Malladi et al., "On the SDEs and Scaling Rules for Adaptive
    Gradient Algorithms", NeurIPS 2022, arXiv:2205.10287.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from components.schedules.base import require_number
from components.validation import require, require_choice

Rule = Literal["sgd", "adam", "rmsprop"]
RULES: tuple[Rule, ...] = ("sgd", "adam", "rmsprop")


def require_kappa(kappa: float) -> None:
    require_number("kappa", kappa, 0)
    require(kappa > 0, "kappa must be > 0 (new batch size / old batch size)", kappa)


def scaled_ema_decay(decay: float, kappa: float) -> float:
    r"""The decay of an average of the weights at a batch :math:`\kappa` times as large: :math:`\hat\rho = \rho^\kappa`.

    :math:`\kappa` updates towards weights that stand still are then exactly one. The linear rule :math:`1 - \kappa(1 - \rho)` is its first order
    only, and turns negative for large :math:`\kappa`.

    Args:
        decay: :math:`\rho` in [0, 1], the weight of the old average in one update.
        kappa: new batch size / old batch size, > 0; below 1 for smaller batches.

    Raises:
        ValueError: an argument is out of its range.
    """
    require_number("decay", decay, 0, 1)
    require_kappa(kappa)
    return float(decay**kappa)


def scaled_steps(steps: int, kappa: float) -> int:
    """Steps that see as many samples as ``steps`` did before, at least 1."""
    require(isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1, "steps must be an int >= 1", steps)
    require_kappa(kappa)
    return max(round(steps / kappa), 1)


def scaled_options(options: Mapping[str, Any], kappa: float, rule: Rule) -> dict[str, Any]:
    r"""An optimizer's options at a batch :math:`\kappa` times as large; what has no rule is kept (momentum, weight decay).

    ==============  ==========================================================================================================
    ``sgd``         :math:`\hat\eta = \kappa\eta`
    ``adam``        :math:`\hat\eta = \sqrt\kappa\,\eta,\quad \hat\beta_i = 1 - \kappa(1 - \beta_i),\quad \hat\epsilon = \epsilon/\sqrt\kappa`
    ``rmsprop``     the same, with ``alpha`` for :math:`\beta`
    ==============  ==========================================================================================================

    ``adam`` is for Adam, AdamW and what scales an update like them. Only the options that are given are scaled: give ``betas`` and ``eps`` too where the
    optimizer's defaults are in use.

    Args:
        options: as for the optimizer: ``lr``, ``betas``, ``eps``, ``alpha`` …
        kappa: new batch size / old batch size, > 0.
        rule: ``sgd``, ``adam`` or ``rmsprop``.

    Raises:
        ValueError: a decay would become negative: the rule holds only for :math:`\kappa \le 1 / (1 - \beta)`; or an argument is out of its range.
    """
    require_kappa(kappa)
    require_choice("rule", rule, RULES)
    scaled = dict(options)
    if "lr" in scaled:
        scaled["lr"] = scaled["lr"] * (kappa if rule == "sgd" else math.sqrt(kappa))
    if rule == "sgd":
        return scaled
    if "eps" in scaled:
        scaled["eps"] = scaled["eps"] / math.sqrt(kappa)
    if rule == "adam" and "betas" in scaled:
        scaled["betas"] = tuple(scaled_beta("betas", beta, kappa) for beta in scaled["betas"])
    if rule == "rmsprop" and "alpha" in scaled:
        scaled["alpha"] = scaled_beta("alpha", scaled["alpha"], kappa)
    return scaled


def scaled_beta(name: str, beta: float, kappa: float) -> float:
    require_number(name, beta, 0, 1)
    scaled = 1 - kappa * (1 - beta)
    require(scaled >= -1e-12, f"kappa must be at most 1 / (1 - {name}) = {1 / (1 - beta) if beta < 1 else math.inf:g} for {name} of {beta:g}", kappa)
    return max(scaled, 0.0)

"""Schedules of several phases in one formula: one cycle, warm-up–stable–decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from components.schedules.base import Schedule, Span, require_number, require_span, span_steps
from components.validation import require, require_choice

ANNEALING: dict[str, Callable[[float], float]] = {
    "cos": lambda u: 0.5 * (1 + math.cos(math.pi * u)),
    "linear": lambda u: 1 - u,
}
"""name -> function of the share of the phase that is done, from 1 at 0 to 0 at 1."""

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: 0.5 * (1 + math.cos(math.pi * u)),
    "1-sqrt": lambda u: 1 - math.sqrt(u),
}
"""The same, for the last phase of :class:`WSD`."""


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    r"""Up to the peak and down to nearly nothing, in one cycle ("super-convergence").

    With *p* = ``pct_start``, R steps, annealing *A* from 1 to 0, the factor goes from :math:`1/d` up to 1 at
    :math:`s = pR - 1`, and from there down to :math:`1/(d\,d_{\text{final}})` at :math:`s = R - 1`:

    .. math:: f(s) = \begin{cases} 1 + (\tfrac1d - 1)\, A\!\left(\frac{s}{pR - 1}\right) & s \le pR - 1 \\
                     \tfrac{1}{d\,d_f} + (1 - \tfrac{1}{d\,d_f})\, A\!\left(\frac{s - (pR - 1)}{R - pR}\right) & \text{else} \end{cases}

    The optimizer's ``lr`` is the peak (torch's ``max_lr``). It has a warm-up of its own: leave ``warmup`` at 0.

    Args:
        pct_start: *p* in (0, 1), the share of the run that rises; default 0.3.
        div_factor: *d* >= 1; default 25.
        final_div_factor: *d_f* >= 1; default 1e4.
        anneal: ``cos`` or ``linear``.

    Source:
        Smith and Topin, "Super-Convergence", 2018, arXiv:1708.07120; :class:`torch.optim.lr_scheduler.OneCycleLR`, whose learning
        rates it gives (two phases).
    """

    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"

    def __post_init__(self) -> None:
        require_number("pct_start", self.pct_start, 0, 1)
        require(0 < self.pct_start < 1, "pct_start must be in (0, 1)", self.pct_start)
        require_number("div_factor", self.div_factor, 1)
        require_number("final_div_factor", self.final_div_factor, 1)
        require_choice("anneal", self.anneal, ANNEALING)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        curve = ANNEALING[self.anneal]
        start, end = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        peak, last = self.pct_start * total - 1, total - 1
        if step <= peak:
            return 1 + (start - 1) * curve(step / peak) if peak > 0 else 1.0
        return end + (1 - end) * curve((min(step, last) - peak) / (last - peak))


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    r"""Warm-up, stable, decay: constant, then down over the last D steps; a run can be prolonged from its stable part.

    .. math:: f(s) = \begin{cases} 1 & s \le R - D \\ e + (1 - e)\, g\!\left(\frac{s - (R - D)}{D}\right) & \text{else} \end{cases}
              \qquad g(u) = 1 - u,\quad \tfrac12(1 + \cos\pi u),\quad 1 - \sqrt{u}

    Args:
        decay: length of the decay, int steps or a fraction of ``total_steps``; default 0.2. At most what the warm-up leaves.
        shape: *g*: ``linear``, ``cosine`` or ``1-sqrt`` (the paper's best).
        end_factor: *e* in [0, 1]; default 0.
        warmup: as for every schedule; the paper uses a few per cent of the run.

    Source:
        Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", NeurIPS 2024,
        arXiv:2405.18392, §3; the name: Hu et al., "MiniCPM", 2024, arXiv:2404.06395.
    """

    decay: Span = 0.2
    shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    end_factor: float = 0.0

    _decay: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require_span("decay", self.decay)
        require_choice("shape", self.shape, DECAYS)
        require_number("end_factor", self.end_factor, 0, 1)
        if isinstance(self.decay, float) and isinstance(self.warmup, float):
            require(self.warmup + self.decay <= 1 + 1e-9, "warmup and decay must leave room for each other: warmup + decay <= 1", (self.warmup, self.decay))
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_decay=min(span_steps(self.decay, self._last), total))

    def factor(self, step: int, total: int) -> float:
        done = step - (total - self._decay)
        if done <= 0:
            return 1.0
        return self.end_factor + (1 - self.end_factor) * DECAYS[self.shape](done / self._decay)

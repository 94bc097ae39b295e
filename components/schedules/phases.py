"""Schedules of several phases in one formula: one cycle, warm-up–stable–decay with one budget or several, cyclic cosine, rise and fall."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from components.schedules.base import Schedule, Span, require_number, require_span, span_steps
from components.validation import require, require_choice

ANNEALING: dict[str, Callable[[float], float]] = {
    "cos": lambda u: 0.5 * (1 + math.cos(math.pi * u)),
    "linear": lambda u: 1 - u,
}
"""name -> function of the share of the phase that is done, from 1 at 0 to 0 at 1."""

DECAYS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda u, e: e + (1 - e) * (1 - u),
    "cosine": lambda u, e: e + (1 - e) * (0.5 * (1 + math.cos(math.pi * u))),
    "1-sqrt": lambda u, e: e + (1 - e) * (1 - math.sqrt(u)),
    "inverse": lambda u, e: 1 / (u / e + (1 - u)),
    "exponential": lambda u, e: e**u,
}
"""name -> function of the share of the decay that is done and of the end factor *e*, from 1 at 0 to *e* at 1. Of :class:`WSD` and :class:`WSDS`."""

DecayShape = Literal["linear", "cosine", "1-sqrt", "inverse", "exponential"]


def require_decay(decay: Span, shape: str, end_factor: float) -> None:
    """Refuse a decay phase that cannot be."""
    require_span("decay", decay)
    require_choice("shape", shape, DECAYS)
    require_number("end_factor", end_factor, 0, 1)
    require(end_factor > 0 or shape not in ("inverse", "exponential"), f"end_factor must be > 0 for shape={shape!r} (it never gets to 0)", end_factor)


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

    or, in place of :math:`e + (1 - e)\,g(u)`, the inverse :math:`1 / (u/e + 1 - u)` (Wen et al.) or the exponential :math:`e^u`.

    Args:
        decay: length of the decay, int steps or a fraction of ``total_steps``; default 0.2. At most what the warm-up leaves.
        shape: ``linear``, ``cosine``, ``1-sqrt`` (the paper's best), ``inverse`` or ``exponential``; the last two need ``end_factor > 0``.
        end_factor: *e* in [0, 1]; default 0.
        warmup: as for every schedule; the paper uses a few per cent of the run.

    Source:
        Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", NeurIPS 2024,
        arXiv:2405.18392, §3; the name: Hu et al., "MiniCPM", 2024, arXiv:2404.06395.
    """

    decay: Span = 0.2
    shape: DecayShape = "1-sqrt"
    end_factor: float = 0.0

    _decay: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require_decay(self.decay, self.shape, self.end_factor)
        if isinstance(self.decay, float) and isinstance(self.warmup, float):
            require(self.warmup + self.decay <= 1 + 1e-9, "warmup and decay must leave room for each other: warmup + decay <= 1", (self.warmup, self.decay))
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_decay=min(span_steps(self.decay, self._last), total))

    def factor(self, step: int, total: int) -> float:
        done = step - (total - self._decay)
        if done <= 0:
            return 1.0
        return DECAYS[self.shape](done / self._decay, self.end_factor)


def segments(budgets: Sequence[Span], schedule: Schedule) -> list[tuple[int, int]]:
    """The stretches (start, end) between budgets, in steps of the whole run; the first opens at 0, the last ends with the run.

    What a short run has no room for is passed over: budgets beyond its end, within its warm-up, or on the same step as another.
    """
    ends = [span_steps(budget, schedule._last) for budget in budgets]
    require(ends == sorted(ends), "budgets must be in rising order", list(budgets))
    bounds = [0, *sorted({end for end in ends if schedule._warmup < end < schedule._last}), schedule._last]
    return list(pairwise(bounds))


@dataclass(frozen=True, kw_only=True)
class WSDS(Schedule):
    r"""WSD-S, "simplified": one run that gives a finished checkpoint at each of several budgets :math:`T_1 < T_2 < …`.

    Before each budget the rate decays over *D* steps, and right after it training goes on *from the decayed weights* at the full rate,
    without a warm-up and with the optimizer's state kept. Nothing is trained twice: all checkpoints together cost :math:`T_K` steps.
    In the segment that ends at :math:`T_k`, with *g* a decay from 1 to *e* as in :class:`WSD`:

    .. math:: f(t) = \begin{cases} 1 & t \le T_k - D_k \\ g\!\left(\frac{t - (T_k - D_k)}{D_k}\right) & T_k - D_k < t < T_k \end{cases}
              \qquad D_k = p\,(T_k - T_{k-1}) \ \text{or}\ p\,T_k,\quad T_0 = 0

    Step :math:`T_k` belongs to the segment that it opens, where the factor is 1 again; the checkpoint of budget k is the one after
    step :math:`T_k - 1`, whose factor is one step short of *e*, as at the end of every schedule. So the first :math:`T_k` steps are exactly
    those of a run whose ``total_steps`` is :math:`T_k`, and with one budget this is :class:`WSD`.

    Args:
        budgets: the steps :math:`T_k` of the whole run (warm-up included) that want a finished checkpoint, rising, int or fractions. The
            end of the run is always the last one and may be left out. Default: a quarter and half of the run, the paper's doubling.
        decay: *p*, a fraction (default 0.1), or *D* in int steps. At most the segment.
        decay_of: what the fraction is of: ``period``, the segment (default, as the authors' trainer has it), or ``total``, the budget.
        shape: as in :class:`WSD`; default ``inverse``, the paper's, in which the inverse of the rate grows evenly.
        end_factor: *e*; default 0.1.

    Source:
        Wen et al., "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective", ICLR 2025,
        arXiv:2410.05192. The lengths of the decays and their inverse shape are those of the cycles in Levanter, the trainer that the authors
        used; that a fraction of the segment is meant, not of the budget, is taken from there.
    """

    budgets: Sequence[Span] = (0.25, 0.5)
    decay: Span = 0.1
    decay_of: Literal["period", "total"] = "period"
    shape: DecayShape = "inverse"
    end_factor: float = 0.1

    _starts: ClassVar[list[int]] = []
    _phases: ClassVar[list[tuple[int, int]]] = []

    def __post_init__(self) -> None:
        self._set(budgets=tuple(self.budgets))
        for budget in self.budgets:
            require_span("budgets", budget)
        require_decay(self.decay, self.shape, self.end_factor)
        require_choice("decay_of", self.decay_of, ("period", "total"))
        super().__post_init__()

    def prepare(self, total: int) -> None:
        starts, phases = [], []
        for start, end in segments(self.budgets, self):
            length = span_steps(self.decay, end - start if self.decay_of == "period" else end)
            first = max(start - self._warmup, 0)  # of the part after the warm-up, as all that factor() sees
            last = max(end - self._warmup, first)
            starts.append(first)
            phases.append((last, min(length, last - first)))
        self._set(_starts=starts, _phases=phases)

    def factor(self, step: int, total: int) -> float:
        end, decay = self._phases[bisect_right(self._starts, step) - 1]
        done = step - (end - decay)
        return DECAYS[self.shape](min(done / decay, 1.0), self.end_factor) if done > 0 and decay > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class CyclicCosine(Schedule):
    r"""A whole cosine to each of several budgets :math:`T_1 < T_2 < …`, straight back to 1 after each: the baseline of :class:`WSDS`.

    .. math:: f(t) = e + (1 - e)\,\tfrac12\left(1 + \cos \pi \frac{t - T_{k-1}}{T_k - T_{k-1}}\right) \quad\text{for } T_{k-1} \le t < T_k

    With equal segments this is :class:`Cosine` with ``cycles``. The first segment starts after the warm-up.

    Args:
        budgets: as in :class:`WSDS`.
        end_factor: *e* in [0, 1]; default 0.1.

    Source:
        Wen et al., arXiv:2410.05192 (see :class:`WSDS`); Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983.
    """

    budgets: Sequence[Span] = (0.25, 0.5)
    end_factor: float = 0.1

    _starts: ClassVar[list[int]] = []
    _lengths: ClassVar[list[int]] = []

    def __post_init__(self) -> None:
        self._set(budgets=tuple(self.budgets))
        for budget in self.budgets:
            require_span("budgets", budget)
        require_number("end_factor", self.end_factor, 0, 1)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        spans = [(max(start - self._warmup, 0), max(end - self._warmup, 1)) for start, end in segments(self.budgets, self)]
        self._set(_starts=[start for start, _ in spans], _lengths=[end - start for start, end in spans])

    def factor(self, step: int, total: int) -> float:
        k = bisect_right(self._starts, step) - 1
        done = min((step - self._starts[k]) / self._lengths[k], 1.0)
        return self.end_factor + (1 - self.end_factor) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class DoubleSigmoid(Schedule):
    r"""A sigmoid rise, then a sigmoid fall that is *s* times slower; one value per epoch. xPatch's schedule.

    .. math:: f = \sigma\big(k\,(t - w)\big) - \sigma\big(\tfrac{k}{s}\,(t - s w)\big), \qquad t = 1, 2, …

    with :math:`\sigma` the logistic function and *t* the epoch, of which the run (after any warm-up, which this schedule does not need)
    has ``epochs``. With the defaults it rises through 1/2 about epoch 10, is highest (0.978) in epoch 22 and back at 1/2 in epoch 100.

    Args:
        epochs: epochs that the run is divided into, >= 1; default 100.
        growth: *k* > 0, steepness of the rise; default 0.5.
        midpoint: *w* >= 0, the epoch in the middle of the rise; default 10.
        smoothing: *s* > 1, how much slower the fall is; default 10.
        first_epoch_at_base: the released loop sets the rate of epoch t *after* that epoch: the first epoch runs at 1, epoch t at
            f(t - 1). Default false, the paper's formula.

    Source:
        Stitsyuk and Choi, "xPatch: Dual-Stream Time Series Forecasting with Exponential Seasonal-Trend Decomposition", AAAI 2025,
        arXiv:2412.17323; constants as in the released code.
    """

    epochs: int = 100
    growth: float = 0.5
    midpoint: float = 10.0
    smoothing: float = 10.0
    first_epoch_at_base: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.epochs, int) and not isinstance(self.epochs, bool) and self.epochs >= 1, "epochs must be an int >= 1", self.epochs)
        require_number("growth", self.growth, 0)
        require(self.growth > 0, "growth must be > 0", self.growth)
        require_number("midpoint", self.midpoint, 0)
        require_number("smoothing", self.smoothing, 1)
        require(self.smoothing > 1, "smoothing must be > 1 (at 1 the fall cancels the rise)", self.smoothing)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        epoch = min(step * self.epochs // total + 1, self.epochs)
        if self.first_epoch_at_base:
            if epoch == 1:
                return 1.0
            epoch -= 1
        rise = 0.5 * self.growth * (epoch - self.midpoint)
        fall = 0.5 * self.growth / self.smoothing * (epoch - self.smoothing * self.midpoint)
        return 0.5 * (math.tanh(rise) - math.tanh(fall))  # the difference of the logistic functions, without overflow

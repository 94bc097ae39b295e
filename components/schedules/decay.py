"""Shapes with one formula from the first step to the last: constant, linear, cosine, polynomial, exponential, steps, inverse square root.

In the formulas *s* counts steps after the warm-up, *R* is their number, *e* the ``end_factor``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from components.schedules.base import Schedule, Span, require_number, require_span, span_steps
from components.validation import require


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    r"""The same value throughout: :math:`f(s) = c`.

    Args:
        value: *c* >= 0; default 1.

    Source:
        :class:`torch.optim.lr_scheduler.ConstantLR` with ``total_iters`` beyond the run.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        require_number("value", self.value, 0)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    r"""A straight line: :math:`f(s) = a + (e - a)\, s / R`.

    Args:
        start_factor: *a* >= 0; default 1.
        end_factor: *e* >= 0, reached at step R; default 0. Larger than ``start_factor`` for a rising weight.

    Source:
        :class:`torch.optim.lr_scheduler.LinearLR`.
    """

    start_factor: float = 1.0
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        require_number("start_factor", self.start_factor, 0)
        require_number("end_factor", self.end_factor, 0)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        return self.start_factor + (self.end_factor - self.start_factor) * (step / total)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    r"""Half a cosine from 1 to ``end_factor``, once or with warm restarts.

    .. math:: f(s) = e + (1 - e)\,\tfrac12\left(1 + \cos \pi u\right), \qquad u = \frac{c s \bmod R}{R},\quad u = 1 \text{ at } s = R

    Args:
        end_factor: *e* in [0, 1]; default 0.
        cycles: *c*, the number of equally long cycles; each restarts at 1. Default 1, no restart.

    Source:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983, eq. 5;
        :class:`torch.optim.lr_scheduler.CosineAnnealingLR` and ``CosineAnnealingWarmRestarts``.
    """

    end_factor: float = 0.0
    cycles: int = 1

    def __post_init__(self) -> None:
        require_number("end_factor", self.end_factor, 0, 1)
        require(isinstance(self.cycles, int) and self.cycles >= 1, "cycles must be an int >= 1", self.cycles)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        # the remainder is taken among ints: restarts fall on exact steps
        progress = step * self.cycles % total / total if step < total else 1.0
        return self.end_factor + (1 - self.end_factor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    r"""A power of the time that is left: :math:`f(s) = e + (1 - e)\,(1 - s/R)^p`.

    Args:
        power: *p* > 0; default 1, a straight line; semantic segmentation uses 0.9.
        end_factor: *e* in [0, 1]; default 0.

    Source:
        :class:`torch.optim.lr_scheduler.PolynomialLR`; power 0.9: Chen et al., "DeepLab", 2016, arXiv:1606.00915.
    """

    power: float = 1.0
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        require_number("power", self.power, 0)
        require(self.power > 0, "power must be > 0", self.power)
        require_number("end_factor", self.end_factor, 0, 1)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        return self.end_factor + (1 - self.end_factor) * (1 - step / total) ** self.power


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    r"""The same ratio at every step: :math:`f(s) = e^{\,s / R}`, or :math:`\gamma^s`.

    Args:
        end_factor: *e* in (0, 1], reached at step R; default 0.01.
        gamma: ratio of one step to the one before, in (0, 1]; where it is given, ``end_factor`` is not used. Default: from ``end_factor``.

    Source:
        :class:`torch.optim.lr_scheduler.ExponentialLR`.
    """

    end_factor: float = 0.01
    gamma: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("end_factor", self.end_factor), ("gamma", self.gamma)):
            if value is not None:
                require_number(name, value, 0, 1)
                require(value > 0, f"{name} must be > 0", value)
        super().__post_init__()

    def factor(self, step: int, total: int) -> float:
        return self.end_factor ** (step / total) if self.gamma is None else self.gamma**step


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    r"""Stairs: multiplied by ``gamma`` at each milestone, :math:`f = \gamma^{\,\#\{m \le t\}}`.

    Args:
        milestones: steps of the whole run (warm-up included), ints or float fractions, in rising order; default half and
            three quarters of the run, as for ResNets.
        every: instead of milestones, the length of one stair, counted from the end of the warm-up; where it is given,
            ``milestones`` are not used. Default: ``milestones``.
        gamma: in (0, 1]; default 0.1.

    Source:
        :class:`torch.optim.lr_scheduler.MultiStepLR` and ``StepLR``; the default milestones: He et al., "Deep Residual
        Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, §4.2.
    """

    milestones: Sequence[Span] = (0.5, 0.75)
    every: Span | None = None
    gamma: float = 0.1

    _stairs: ClassVar[list[int]] = []
    _length: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self._set(milestones=tuple(self.milestones))  # a config gives a list, which has no hash
        for milestone in self.milestones:
            require_span("milestones", milestone)
        if self.every is not None:
            require_span("every", self.every)
            require(self.every > 0, "every must be > 0", self.every)
        require_number("gamma", self.gamma, 0, 1)
        require(self.gamma > 0, "gamma must be > 0", self.gamma)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        stairs = [span_steps(m, self._last) for m in self.milestones]
        require(stairs == sorted(stairs), "milestones must be in rising order", list(self.milestones))
        length = 0 if self.every is None else max(span_steps(self.every, self._last), 1)
        self._set(_stairs=[m - self._warmup for m in stairs], _length=length)

    def factor(self, step: int, total: int) -> float:
        return self.gamma ** (step // self._length if self._length else bisect_right(self._stairs, step))


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    r"""The transformer's decay, which needs no end: :math:`f(s) = \sqrt{\tau / (\tau + s)}`.

    With ``timescale`` equal to the warm-up this is :math:`\sqrt{W / t}` after the warm-up: Vaswani's
    :math:`\min(t^{-1/2}, t\,W^{-3/2})` scaled to a peak of 1.

    Args:
        timescale: :math:`\tau`, the steps after which the factor is :math:`1/\sqrt2`; int, or a fraction of ``total_steps``.
            Default: the length of the warm-up (1 step without one).

    Source:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, eq. 3.
    """

    timescale: Span | None = None

    _tau: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.timescale is not None:
            require_span("timescale", self.timescale)
            require(self.timescale > 0, "timescale must be > 0", self.timescale)
        super().__post_init__()

    def prepare(self, total: int) -> None:
        self._set(_tau=max(self._warmup if self.timescale is None else span_steps(self.timescale, self._last), 1))

    def factor(self, step: int, total: int) -> float:
        return math.sqrt(self._tau / (self._tau + step))

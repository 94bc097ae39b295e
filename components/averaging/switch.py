"""An average that training goes on from: Switch EMA."""

from __future__ import annotations

import math

import lightning

from components.averaging.weights import EMA, Buffers
from components.schedules import Schedule, Span
from components.schedules.base import require_span
from components.validation import require


class SwitchEMA(EMA):
    r"""Exponential moving average that becomes the current weights at the end of every interval: a wide valley, reached faster.

    After every optimizer step, and then, after an interval's last one, the switch:

    .. math:: \bar\theta \leftarrow d_t\,\bar\theta + (1 - d_t)\,\theta, \qquad\qquad \theta \leftarrow \bar\theta

    The average begins with the weights before the first step. The switch leaves the average and the optimizer's state (momentum, moments) as they are.

    Between two switches the average follows the weights with a lag of about :math:`1/(1 - d)` steps, and the switch gives that lag up: a memory
    that is longer than the interval slows training down by about their ratio. So the default memory is a fifth of the interval; the authors
    take 0.9998 on runs with thousands of steps an epoch.

    Args:
        decay: *d* in [0, 1], or a schedule of it over the run's steps; default ``None``: 1 - 5 / interval (0.999 with an endless interval).
        interval: steps from one switch to the next, int or a fraction of ``total_steps``; default ``None``: an epoch. ``inf`` never
            switches: an :class:`EMA` with ``begin="initial"``.
        switch_start: no switch up to this step, int or a fraction of ``total_steps``; default 0.
        warmup_length: :math:`\tau` of the authors' warm-up, by which the average follows closely at first:
            :math:`1 - d_t = d\,e^{-(1 + t)/\tau} + (1 - d)` after *t* updates; they take 2000. Default 0: none.
        every_n_steps: optimizer steps between updates of the average; default 1.
        start: the average begins with the weights before this step, int or a fraction of ``total_steps``; default 0.
        buffers: ``average`` batch normalisation's running statistics too, and switch them (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.
        steps_per_epoch: optimizer steps of an epoch, filled in by the builder; default: the trainer's count.

    Raises:
        ValueError: an argument out of its range.

    Source:
        Li et al., "Switch EMA: A Free Lunch for Better Flatness and Sharpness", 2024, arXiv:2402.09240; the warm-up and the knobs as in the authors'
        hook. Theirs counts whole epochs from the first on, so that an interval of two switches after epochs 1, 3, 5; here it is 2, 4, 6.
    """

    def __init__(
        self,
        decay: float | Schedule | None = None,
        interval: Span | None = None,
        switch_start: Span = 0,
        warmup_length: float = 0,
        every_n_steps: int = 1,
        start: Span = 0,
        buffers: Buffers = "average",
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(
            decay=0.999 if decay is None else decay,
            decay_warmup=False,
            every_n_steps=every_n_steps,
            start=start,
            buffers=buffers,
            begin="initial",
            total_steps=total_steps,
        )
        if interval is not None and interval != math.inf:
            require_span("interval", interval)
            require(interval > 0, "interval must be > 0", interval)
        require_span("switch_start", switch_start)
        require(0 <= warmup_length < math.inf, "warmup_length must be a number >= 0", warmup_length)
        require(steps_per_epoch is None or steps_per_epoch >= 1, "steps_per_epoch must be >= 1", steps_per_epoch)
        self.interval, self.switch_start, self.warmup_length = interval, switch_start, warmup_length
        self.steps_per_epoch = steps_per_epoch
        self._follows_interval = decay is None
        self._interval, self._switch_start = math.inf, 0  # in steps, once the run's length is known

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.interval is None:
            self._interval = self.epoch_length(trainer)
        elif self.interval == math.inf:
            self._interval = math.inf
        else:
            self._interval = max(self.in_steps(self.interval, trainer), 1)
        if self._follows_interval and self._interval < math.inf:
            self.decay = max(1 - 5 * (self.every_n_steps or 1) / self._interval, 0.0)
        self._switch_start = self.in_steps(self.switch_start, trainer)
        super().on_fit_start(trainer, pl_module)

    def switches(self, step: int) -> bool:
        """Whether the weights become the average after optimizer step ``step`` (0-based)."""
        done = step + 1
        return self._interval < math.inf and done % int(self._interval) == 0 and done > self._switch_start

    def share(self, count: int, step: int) -> float:
        share = super().share(count, step)
        if self.warmup_length:  # the first weights are the average's beginning, no update
            share += (1 - share) * math.exp(-count / self.warmup_length)
        return share

    def _follow(self, steps_done: int) -> None:
        seen = self._step
        super()._follow(steps_done)
        if steps_done > seen and self._count and self.switches(steps_done - 1):
            self._copy(self._average)

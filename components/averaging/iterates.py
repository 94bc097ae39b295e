"""Averages of the iterates as theory has them: of the tail, and of all (Polyak); and what any average makes of a trajectory."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from components.averaging.weights import EMA, SWA, Buffers, WeightAverage
from components.schedules import Schedule, Span, span_steps
from components.schedules.base import require_number, require_span
from components.validation import require


class TailAverage(WeightAverage):
    r"""The equal average of the run's last *N* weights: the beginning, still far off, is left out, and its noise averaged away.

    .. math:: \bar\theta_T = \frac1N \sum_{t = T - N + 1}^{T} \theta_t

    Before the tail begins, what is evaluated are the current weights.

    Args:
        last: *N*, int steps or a fraction of ``total_steps``, > 0; default 0.5, as in the source.
        every_n_steps: optimizer steps between the weights that are averaged; default 1.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.

    Source:
        Jain et al., "Parallelizing Stochastic Gradient Descent for Least Squares Regression: Mini-batching, Averaging, and Model
        Misspecification", JMLR 18(223), 2018, arXiv:1610.03774.
    """

    def __init__(self, last: Span = 0.5, every_n_steps: int = 1, buffers: Buffers = "average", total_steps: int | None = None) -> None:
        require_span("last", last)
        require(last > 0, "last must be > 0", last)
        super().__init__(every_n_steps=every_n_steps, buffers=buffers, total_steps=total_steps)
        self.last = last

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.begin_before(self.run_length(trainer))

    def begin_before(self, total: int) -> None:
        """The tail of a run of ``total`` steps: it ends with the last step, so the first update is a multiple of ``every_n_steps`` before it."""
        updates = max(1, span_steps(self.last, total) // self._every)
        self._start = max(total - 1 - (updates - 1) * self._every, (total - 1) % self._every)

    def share(self, count: int, step: int) -> float:
        return 1 / (count + 1)


class PolyakAverage(WeightAverage):
    r"""The average of all weights since the beginning; with ``power`` > 0 the later ones weigh more.

    .. math:: \bar\theta_n = \Big(1 - \frac{p + 1}{n + p}\Big)\,\bar\theta_{n-1} + \frac{p + 1}{n + p}\,\theta_n

    *p* = ``power`` = 0 is the equal average, in which the beginning fades only like 1/T; an integer *p* weighs :math:`\theta_n` by
    :math:`n (n + 1) \cdots (n + p - 1)`, about :math:`n^p`. Unlike an exponential average it needs no memory to be chosen, unlike a tail no
    length of the run.

    Args:
        power: *p* >= 0; default 0.
        initial: count the weights before the first step too, as the sum :math:`w_0, \dots, w_{T-1}` of the theory does; default false.
        every_n_steps: optimizer steps between the weights that are averaged; default 1.
        start: step of the first update, int or a fraction of ``total_steps``; default 0.
        buffers: ``average`` batch normalisation's running statistics too (default), or ``copy`` the current ones.
        total_steps: optimizer steps of the whole run, filled in by the builder; default: the trainer's estimate.

    Source:
        Polyak and Juditsky, 1992; ``power``: Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", ICML 2013,
        arXiv:1212.1824, section 4 (polynomial-decay averaging).
    """

    def __init__(
        self,
        power: float = 0.0,
        initial: bool = False,
        every_n_steps: int = 1,
        start: Span = 0,
        buffers: Buffers = "average",
        total_steps: int | None = None,
    ) -> None:
        require_number("power", power, 0)
        super().__init__(start=start, every_n_steps=every_n_steps, buffers=buffers, total_steps=total_steps, initial=initial)
        self.power = power

    def share(self, count: int, step: int) -> float:
        return (self.power + 1) / (count + 1 + self.power)


@torch.no_grad()
def averaged(iterates: Tensor, average: WeightAverage) -> Tensor:
    """What an average makes of a trajectory, without a trainer: for studies and notebooks.

    Args:
        iterates: (T + 1, …): the start, then what each of T steps left.
        average: a :class:`WeightAverage` whose ``start`` and ``last`` are then meant of these T steps.

    Returns:
        (T + 1, …): what would have been evaluated after 0, …, T steps; before the average begins, the iterate itself.

    Raises:
        ValueError: an average that steps by epochs, or that acts on the weights themselves.
    """
    total = len(iterates) - 1
    require(total >= 1, "iterates must be at least two: the start and what a step left", len(iterates))
    require(average.every_n_steps is not None, "averaged() knows no epochs: set every_n_steps")
    require(type(average) in (EMA, SWA, TailAverage, PolyakAverage), "averaged() takes EMA, SWA, TailAverage or PolyakAverage", type(average).__name__)
    average._every, average._start = average.every_n_steps or 1, span_steps(average.start, total)
    if isinstance(average, TailAverage):
        average.begin_before(total)
    if isinstance(average, EMA) and isinstance(average.decay, Schedule):
        average._decay_at = average.decay.with_total_steps(total)
    results, mean, count = [iterates[0]], iterates[0], int(average.initial and average._start == 0)
    for step in range(total):
        if average.due(step):
            mean = torch.lerp(mean, iterates[step + 1], average.share(count, step)) if count else iterates[step + 1]
            count += 1
        elif average.initial and count == 0 and step + 1 == average._start:
            mean, count = iterates[step + 1], 1
        results.append(mean if count else iterates[step + 1])
    return torch.stack(results)

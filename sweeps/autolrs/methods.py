"""How the learning rate is searched while training: each method is a plan (:mod:`sweeps.autolrs.plan`) and knows nothing of how probes are run."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from components.schedules.base import Span, span_steps
from components.schedules.laws import AnnealingLaw, Curve, FitError
from components.validation import require, require_choice
from sweeps.autolrs.forecast import Denoise, forecast
from sweeps.autolrs.plan import Budget, Decision, Outcome, Part, Plan, Probe, Rates, Request, SearchFailed, Train, TrainingLosses
from sweeps.autolrs.search import LowerConfidenceBound, RateSearch
from sweeps.samplers import mixed_seed

FALLS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Lengths of the fall at the end, as shares of the run, that ``law`` chooses among."""
MEMORIES = (0.02, 0.05, 0.15)
"""How long a fall of the rate goes on gaining, as a share of the run, that ``law`` chooses among."""
APART = 3.0
"""Factor between the rates of the long probes."""
MethodName = Literal["cooldown", "law", "paper", "paper_reference"]
RANGE_TEST = 1e3
"""A range test goes from the optimizer's rate divided by this to the rate times this."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share: the range, or how it is found.

    Args:
        low, high: learning rates, absolute; ``None``: :meth:`tested_range`.
        range_steps: length of the range test; default 1/20 of the run, at least 30 steps.
    """

    low: float | None = None
    high: float | None = None
    range_steps: Span = 0.05

    reads_training: ClassVar[bool] = False
    """Whether the method looks at training's own losses."""

    def check(self, total: int) -> None:
        """Whether it can search a run of so many steps.

        Raises:
            ValueError: it cannot.
        """
        for name, rate in (("lr_min", self.low), ("lr_max", self.high)):
            require(rate is None or 0 < rate < math.inf, f"schedule.{name} must be a finite number > 0", rate)
        if self.low is not None and self.high is not None:
            require(self.low <= self.high, "schedule.lr_min must be at most schedule.lr_max", [self.low, self.high])

    def plan(self, budget: Budget) -> Plan:
        """The search for one run."""
        raise NotImplementedError

    def range(self, budget: Budget) -> Generator[Probe | Decision, Any, tuple[float, float]]:
        """The given range, or the tested one."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return (yield from self.tested_range(budget))

    def tested_range(self, budget: Budget) -> Generator[Probe | Decision, Any, tuple[float, float]]:
        """One probe whose rate rises geometrically until it diverges: the search goes up to the rate at which the loss was least (but not below a tenth
        of where it diverged), from 1/300 of it.

        Source:
            Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186, section 3.3.
        """
        steps = max(span_steps(self.range_steps, budget.total), min(30, budget.total))
        lowest, highest = self.low or budget.lr / RANGE_TEST, self.high or budget.lr * RANGE_TEST
        rates = np.geomspace(lowest, highest, steps)
        outcome = yield Probe(0, "range", highest, Rates(tuple(range(steps)), tuple(rates.tolist())), steps)
        last, lowest_at = divergence(outcome.losses, outcome.diverged)
        if last < 2:
            raise SearchFailed(f"training diverges at a learning rate of {lowest:.3g} already (optimizer.lr / {RANGE_TEST:g}): give schedule.lr_min and lr_max")
        best = max(float(rates[lowest_at]), float(rates[last - 1]) / 10)  # by luck the loss may be least at the beginning
        low, high = self.low or best / 300, self.high or best
        grows = f"and it diverges at {float(rates[last - 1]):.3g}" if last < steps else f"and no rate up to {highest:.3g} diverges"
        why = f"the loss falls up to a rate of {best:.3g}, {grows}"
        yield Decision(0, "range", high, f"{why}: searched from {low:.3g} to {high:.3g}", [float(outcome.losses[last - 1])])
        return low, high


def divergence(losses: Sequence[float], broken: bool) -> tuple[int, int]:
    """How many steps of a range test are of use, and at which of them the smoothed loss was least.

    They end where the smoothed loss is four times its least, or half as much again as at the start.
    """
    average, first, lowest, at = 0.0, 0.0, math.inf, 0
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return step, at
        average = 0.7 * average + 0.3 * loss
        smooth = average / (1 - 0.7 ** (step + 1))
        if smooth < lowest:
            lowest, at = smooth, step
        if step < 5:
            first = max(first, smooth)
        elif smooth > 4 * lowest or smooth > 1.5 * first:
            return step, at
    return len(losses) - (1 if broken else 0), at


@dataclass(frozen=True, kw_only=True)
class Paper(Method):
    r"""AutoLRS as it was published: stages of one constant rate each, every rate judged by a short probe and an exponential forecast of its loss.

    A stage of :math:`\tau` steps: ``candidates`` times, a Gaussian process proposes the rate with the least :math:`\mu - \kappa\sigma` of the
    logarithm, :math:`\tau' = \tau / 10` steps are tried with it, and the loss at :math:`\tau` is forecast; then the stage is trained with the rate
    whose forecast was least. :math:`\tau` doubles from ``stage`` to ``longest``. A stage of that length is judged by the validation loss, measured
    sixteen times in a probe; a probe whose validation loss comes up to where the run began is judged by the last one.

    Args:
        stage: :math:`\tau_0`, default 1000 steps.
        longest: the longest stage, default 8000 steps.
        probe: :math:`\tau'/\tau`, default 0.1.
        candidates: rates of a stage, default 10.
        kappa: default 1000 (the released code's 1e6: ``paper_reference``).
        denoise: see :func:`sweeps.autolrs.forecast.forecast`; default ``scaled``, the paper's idea; ``reference`` is the released code's smoothing.
        warmup: of the run, before the first stage, up to the geometric mean of the range; default none.
        diverged: what a rate that diverges counts as to the Gaussian process; default a little worse than the others, in the released code 1e6.

    Source:
        Jin, Zhou, Zhao, Zhu, Guo, Canini and Krishnamurthy, "AutoLRS: Automatic Learning-Rate Schedule by Bayesian Optimization on the Fly",
        ICLR 2021, arXiv:2105.10762; https://github.com/YuchenJin/autolrs.
    """

    stage: Span = 1000
    longest: Span = 8000
    probe: float = 0.1
    candidates: int = 10
    kappa: float = 1000.0
    denoise: Denoise = "scaled"
    warmup: Span = 0
    diverged: float | None = None

    def check(self, total: int) -> None:
        super().check(total)
        require(self.candidates >= 1, "schedule.candidates must be >= 1", self.candidates)
        first = span_steps(self.stage, total)
        fits = f"schedule.stage must be at most the run's {total} steps: give a fraction (schedule.stage=0.1), or train longer; in steps it is"
        require(1 <= first <= total, fits, first)
        require(isinstance(self.probe, float) and 0 < self.probe <= 1, "schedule.probe must be a share of a stage, in (0, 1]", self.probe)
        require(round(first * self.probe) >= 2, f"schedule.probe must make two steps or more of a stage of {first}", self.probe)

    def plan(self, budget: Budget) -> Plan:
        first = span_steps(self.stage, budget.total)
        longest = max(span_steps(self.longest, budget.total), first)
        low, high = yield from self.range(budget)
        done, stage, length = span_steps(self.warmup, budget.total), 1, first
        if done:
            yield Train(done, Rates.trapeze(math.sqrt(low * high), done, warmup=done))
        start_loss = math.inf
        while done < budget.total:
            steps = min(length, budget.total - done)
            tried = max(round(steps * self.probe), 2)
            validated = length >= longest
            every = max(tried // 16, 1)
            search = RateSearch(f"stage-{stage}", low, high, LowerConfidenceBound(self.kappa, seed=mixed_seed(budget.seed, stage), diverged=self.diverged))
            forecasts: list[tuple[list[int], list[float]] | None] = []
            for _ in range(self.candidates):
                rate = search.ask()
                measured = tuple(range(every, tried + 1, every)) if validated else ()
                outcome = yield Probe(stage, "lr", rate, Rates.constant(rate), tried, measured)
                if start_loss == math.inf and outcome.losses:
                    start_loss = outcome.losses[0]
                value = self._forecast(outcome, steps, every, validated, start_loss)
                forecasts.append(([tried, steps], [float(outcome.losses[-1]), value]) if math.isfinite(value) and not validated else None)
                search.tell(value)
            best = chosen(search)
            yield Decision(stage, "lr", best, f"least forecast of {self.candidates}", search.told, forecasts, search.study)
            done += steps
            yield Train(done, Rates.constant(best))
            stage, length = stage + 1, min(2 * length, longest)

    def _forecast(self, outcome: Outcome, steps: int, every: int, validated: bool, start_loss: float) -> float:
        series = outcome.measured if validated else outcome.losses
        if outcome.diverged or len(series) < 2:
            return math.inf
        if not validated:
            return forecast(series, steps, denoise=self.denoise)
        if max(series) >= start_loss:
            return float(series[-1])
        return forecast(series, steps / every, denoise=self.denoise, rounds=1)


def chosen(search: RateSearch) -> float:
    best = search.best
    if best is None:
        ends = f"{search.range.low:.3g} and {search.range.high:.3g}"
        raise SearchFailed(f"training diverges with every {search.parameter} that was tried between {ends}: lower schedule.lr_min and schedule.lr_max")
    return best


def probe_steps(span: Span, total: int) -> int:
    """Steps of a probe: a fraction of a very short run is still some steps, if there are so many."""
    return max(span_steps(span, total), min(8, total)) if isinstance(span, float) else span


def vertex(outcomes: Mapping[float, float]) -> float:
    """Where the parabola through the best value and its neighbours (in logarithms) is least; the best value itself where it is at an end."""
    rates = sorted(outcomes)
    k = min(range(len(rates)), key=lambda i: outcomes[rates[i]])
    if not 0 < k < len(rates) - 1:
        return rates[k]
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(rate), outcomes[rate]) for rate in rates[k - 1 : k + 2])
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
    return math.exp(x1 + 0.5 * ((x2 - x1) * left - (x1 - x0) * right) / max(left + right, 1e-12)) if left + right > 0 else rates[k]


@dataclass(frozen=True, kw_only=True)
class Cooldown(Method):
    r"""Each peak rate is judged by a whole small run: warm up, hold, cool down to 0, and only then look at the validation loss. Then warmup–stable–decay.

    What is judged after a cool-down is free of the noise that a high rate carries along, so high rates, which pay later, are not passed over: the
    stage-wise search of the paper prefers small ones (it looks no further than its stage).

    Args:
        candidates: rates that are tried, default 4: at 0.85, 0.6, 0.35 and 0.1 of the range's logarithm; more are proposed by a Gaussian process.
        probe: length of a probe, default 0.08 of the run.
        finalists: how many rates are tried again in longer probes: the best one, a third of it, and three or a ninth of it, whichever way is down.
        long_probe: length of those, default 0.2 of the run.
        trend: the best rate falls with the length of a probe; this share of the fall (per factor of the length) is taken to go on to the whole
            run. Default 0.2: all of it is too much, as what short probes prefer is noise in part.
        cooldown: share of a probe that cools down, default 0.5.
        warmup: of the run and, in proportion, of a probe.
        decay: share of the run that decays at its end.
        kappa: of the Gaussian process.
        search: what is searched after the rate, one after the other, with probes of the same kind: ``warmup``, ``weight_decay``, ``momentum``.
    """

    candidates: int = 4
    probe: Span = 0.08
    finalists: int = 3
    long_probe: Span = 0.2
    trend: float = 0.2
    cooldown: float = 0.5
    warmup: Span = 0.05
    decay: Span = 0.2
    kappa: float = 1.0
    search: tuple[str, ...] = ()
    first: ClassVar[tuple[float, ...]] = (0.85, 0.6, 0.35, 0.1)
    others: ClassVar[dict[str, tuple[float, float, bool]]] = {
        "warmup": (0.0, 0.3, False),
        "weight_decay": (1e-6, 0.3, True),
        "momentum": (0.5, 0.99, False),
    }

    def check(self, total: int) -> None:
        super().check(total)
        require(self.candidates >= 1, "schedule.candidates must be >= 1", self.candidates)
        require(0 < self.cooldown <= 1, "schedule.cooldown must be in (0, 1]", self.cooldown)
        for question in self.search:
            require_choice("schedule.search", question, self.others)
        require(self.finalists >= 0, "schedule.finalists must be >= 0", self.finalists)
        for name, span in (("probe", self.probe), ("long_probe", self.long_probe)):
            steps = probe_steps(span, total)
            require(min(4, total) <= steps <= total, f"schedule.{name} must be 4 steps or more, and at most the run's {total}; in steps it is", steps)

    def plan(self, budget: Budget) -> Plan:
        low, high = yield from self.range(budget)
        peak, settings = yield from self.answers(budget, low, high)
        warmup = settings.pop("warmup", self.warmup)
        yield Train(budget.total, self.rates(budget, peak, warmup), settings)

    def answers(self, budget: Budget, low: float, high: float, curves: list[Curve] | None = None) -> Generator[Request, Any, tuple[float, dict[str, float]]]:
        """The peak rate, and what else was searched, by name."""
        peak = yield from self.ask(budget, "lr", (low, high, True), {}, 1, curves)
        if self.finalists:
            peak = yield from self.longer(budget, peak, curves)
        settings: dict[str, float] = {}
        for stage, question in enumerate(self.search, start=3):
            settings[question] = yield from self.ask(budget, question, self.others[question], {"lr": peak, **settings}, stage)
        return peak, settings

    def ask(
        self, budget: Budget, question: str, over: tuple[float, float, bool], known: Mapping[str, float], stage: int, curves: list[Curve] | None = None
    ) -> Part:
        """One search: the value whose probe ends with the least loss on held-out data."""
        low, high, log = over
        sampler = LowerConfidenceBound(self.kappa, first=self.first, seed=mixed_seed(budget.seed, stage))
        search = RateSearch(f"stage-{stage}", low, high, sampler, log=log, parameter=question)
        for _ in range(self.candidates):
            yield from self.put(budget, search, search.ask(), self.probe, known, stage, curves)
        best = chosen(search)
        yield Decision(stage, question, best, f"least held-out loss after a cool-down, of {self.candidates}", search.told, (), search.study)
        return best

    def longer(self, budget: Budget, peak: float, curves: list[Curve] | None) -> Part:
        """The peak again, with fewer and longer probes; what changes from the short to the long ones is taken to go on to the whole run."""
        search = RateSearch("stage-2", peak / APART**self.finalists, peak * APART**self.finalists, LowerConfidenceBound(1.0))
        for number in range(self.finalists):
            value = peak if number == 0 else peak / APART if number == 1 else self.onward(search.outcomes(), peak)
            yield from self.put(budget, search, search.ask(value), self.long_probe, {}, 2, curves)
        chosen(search)
        best = vertex(search.outcomes())
        steps, short = probe_steps(self.long_probe, budget.total), probe_steps(self.probe, budget.total)
        slope = math.log(best / peak) / math.log(steps / short) if steps > short else 0.0
        final = best * (budget.total / steps) ** (self.trend * min(slope, 0.0))
        why = f"best of {self.finalists} longer probes: {best:.4g}, where the short ones had {peak:.4g}"
        yield Decision(2, "lr", final, why, search.told, (), search.study)
        return final

    @staticmethod
    def onward(outcomes: Mapping[float, float], peak: float) -> float:
        """The next rate, on the side of the better one of ``peak`` and what is below it; downwards where one of them diverged."""
        below = peak / APART
        if peak in outcomes and below in outcomes and outcomes[peak] < outcomes[below]:
            return max(outcomes) * APART
        return min(outcomes, default=below) / APART

    def put(
        self, budget: Budget, search: RateSearch, value: float, length: Span, known: Mapping[str, float], stage: int, curves: list[Curve] | None
    ) -> Generator[Probe, Any, None]:
        """Try one value, all else as ``known``, in a small run of that length, and tell the search what it came to."""
        steps = probe_steps(length, budget.total)
        setting = {**known, search.parameter: value}
        ramp = span_steps(setting.pop("warmup", self.warmup), budget.total) * steps // budget.total
        rates = Rates.trapeze(setting.pop("lr"), steps, warmup=ramp, cooldown=round(steps * self.cooldown))
        outcome = yield Probe(stage, search.parameter, value, rates, steps, (steps,), setting)
        search.tell(math.inf if outcome.diverged else outcome.measured[-1])
        if curves is not None and not outcome.diverged and (found := curve(rates.each(steps), outcome.losses, 0)):
            curves.append(found)

    def rates(self, budget: Budget, peak: float, warmup: Span) -> Rates:
        return Rates.trapeze(peak, budget.total, warmup=span_steps(warmup, budget.total), cooldown=span_steps(self.decay, budget.total))


@dataclass(frozen=True, kw_only=True)
class Law(Cooldown):
    r"""The peak rate as :class:`Cooldown` finds it; how it falls, by a law of the loss that is fitted to the probes and to the training so far.

    At each of ``refits``, a probe cools down from where training stands. The law of learning-rate annealing is then fitted to the training losses of
    this, of the probes at the start and of the run itself, and among falls to 0 that begin sooner or later the one is taken whose final loss it
    predicts to be least. Where it cannot be fitted, training goes on as :class:`Cooldown` would.

    Why not the best of all schedules under the law (:meth:`~components.schedules.laws.RateLaw.optimise`): it is a sudden drop, which the law takes for as
    good as a slow fall, and training does not (co2, 400 steps: a final loss of .0042 instead of .0021).

    Args:
        refits: shares of the run at which to fit, rising, in (0, 1).
        cooldown_probe: length of the probe at each of them, default 1/20 of the run.

    Source:
        Tissue, Wang and Wang, "Scaling Law with Learning Rate Annealing", 2024, arXiv:2408.11029; as a search while training: losskit.
    """

    refits: tuple[float, ...] = (0.4, 0.6)
    cooldown_probe: Span = 0.05
    reads_training: ClassVar[bool] = True

    def check(self, total: int) -> None:
        super().check(total)
        require(list(self.refits) == sorted(self.refits) and all(0 < r < 1 for r in self.refits), "schedule.refits must rise, in (0, 1)", list(self.refits))

    def plan(self, budget: Budget) -> Plan:
        low, high = yield from self.range(budget)
        curves: list[Curve] = []
        peak, settings = yield from self.answers(budget, low, high, curves)
        warmup = settings.pop("warmup", self.warmup)
        rates = self.rates(budget, peak, warmup).each(budget.total)
        own: list[tuple[int, float]] = []
        done, stage = 0, 2 + len(self.search)  # the last stage of the answers'
        for share in self.refits:
            until = max(round(share * budget.total), done + 1)
            if until >= budget.total - 1:
                break
            answer = yield Train(until, Rates(tuple(range(until - done)), tuple(rates[done:until])), settings)
            own += bucket_ends(answer, done, until)
            done, stage = until, stage + 1
            steps = min(probe_steps(self.cooldown_probe, budget.total), budget.total - done)
            path = Rates.trapeze(rates[done], steps, cooldown=steps)
            outcome = yield Probe(stage, "schedule", rates[done], path, steps, (steps,), settings)
            branch = curve([*rates[:done], *path.each(steps)], outcome.losses, done) if not outcome.diverged else None
            law, why = fitted([*curves, *([branch] if branch else []), *own_curve(rates[:done], own)], budget.total)
            fall = span_steps(self.decay, budget.total)
            if law is not None:
                plans = falls(rates[:done], budget.total)
                fall = min(plans, key=lambda steps: law.final(plans[steps]))
                rates = plans[fall]
                why += f": falls over the last {fall} steps"
            yield Decision(stage, "schedule", fall, why, [outcome.measured[-1] if outcome.measured else math.inf])
        yield Train(budget.total, Rates(tuple(range(budget.total - done)), tuple(rates[done:])), settings)


def bucket_ends(answer: TrainingLosses, start: int, until: int) -> list[tuple[int, float]]:
    """(steps taken, loss): a bucket's mean counts for its middle."""
    found = []
    for number, loss in enumerate(answer.losses):
        first, last = start + number * answer.steps, min(start + (number + 1) * answer.steps, until)
        found.append(((first + last + 1) // 2, loss))
    return found


def own_curve(rates: Sequence[float], points: Sequence[tuple[int, float]]) -> list[Curve]:
    usable = [(step, loss) for step, loss in points if math.isfinite(loss) and loss > 0 and 0 < step <= len(rates)]
    return [Curve(np.array(rates), np.array([s for s, _ in usable]), np.array([v for _, v in usable]))] if len(usable) > 3 else []


def curve(rates: Sequence[float], losses: Sequence[float], start: int) -> Curve | None:
    """A probe's losses in some twenty means, as those of a run with these rates; the first tenth, in which everything falls quickly, is left out."""
    every = max(1, len(losses) // 20)
    answer = TrainingLosses([float(np.mean(losses[i : i + every])) for i in range(0, len(losses) - every + 1, every)], every)
    points = bucket_ends(answer, start, start + len(losses))
    skipped = [point for point in points if point[0] > (start or len(losses) // 10)]
    return next(iter(own_curve(list(rates), skipped)), None)


def falls(done: Sequence[float], total: int) -> dict[int, list[float]]:
    """Steps of the fall at the end -> rates of the whole run: straight down from where the rate stands, or down already."""
    left, last = total - len(done), done[-1]
    lengths = {min(max(round(share * total), 1), left) for share in FALLS}
    return {fall: [*done, *(last * min(1.0, (total - step) / fall) for step in range(len(done), total))] for fall in sorted(lengths)}


def fitted(curves: Sequence[Curve], total: int) -> tuple[AnnealingLaw | None, str]:
    """The law, with the best of three memories that go with the run's length, and what is to be said of it."""
    thinned = [thin(c) for c in curves]
    points = sum(c.steps.size for c in thinned)
    laws: list[AnnealingLaw] = []
    failure = ""
    for share in MEMORIES:
        try:
            laws.append(AnnealingLaw(decay=1 - 1 / max(share * total, 2)).fit(thinned, polish=2))
        except FitError as error:
            failure = str(error)
    if not laws:
        return None, f"no law could be fitted ({failure}): goes on as it was"
    return min(laws, key=lambda law: law.objective), f"least final loss under a law fitted to {len(curves)} curves with {points} points"


def thin(curve: Curve, points: int = 40) -> Curve:
    """At most so many of a curve's points, evenly: more would make the fit slower, not better."""
    kept = np.unique(np.linspace(0, curve.steps.size - 1, min(points, curve.steps.size)).astype(int))
    return Curve(curve.rates, curve.steps[kept], curve.losses[kept])


METHODS: dict[MethodName, tuple[type[Method], dict[str, Any]]] = {
    "cooldown": (Cooldown, {}),
    "law": (Law, {}),
    "paper": (Paper, {}),
    "paper_reference": (Paper, {"kappa": 1e6, "denoise": "reference", "diverged": 1e6}),
}
"""Name -> method, and the options that make it that one."""

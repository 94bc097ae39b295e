"""The methods alone, without any training: plans that are played against made-up losses, and against gradient descent on a quadratic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweeps.autolrs.methods import METHODS, Cooldown, Law, Method, Paper, divergence, vertex
from sweeps.autolrs.plan import Budget, Decision, Outcome, Probe, Rates, SearchFailed, Train, TrainingLosses

Answer = Callable[[Probe, int], Outcome]


class Played:
    """All that a plan asked for, its probes answered by ``answer(probe, training steps done)``."""

    def __init__(self, method: Method, budget: Budget, answer: Answer, training: Callable[[int], float] = lambda step: 1.0) -> None:
        self.probes: list[Probe] = []
        self.decisions: list[Decision] = []
        self.stretches: list[Train] = []
        self.rates: list[float] = []
        method.check(budget.total)
        plan = method.plan(budget)
        request: Any = next(plan)
        while True:
            reply: Any = None
            if isinstance(request, Probe):
                self.probes.append(request)
                reply = answer(request, len(self.rates))
            elif isinstance(request, Decision):
                self.decisions.append(request)
            else:
                steps = request.until - len(self.rates)
                assert steps > 0
                reply = TrainingLosses([training(len(self.rates) + step) for step in range(steps)])
                self.rates += request.rates.each(steps)
                self.stretches.append(request)
                if request.until == budget.total:
                    return
            request = plan.send(reply) if reply is not None else next(plan)


class Quadratic:
    """Gradient descent on 0.5 xᵀ diag(1, 100) x: rates from 2/100 on diverge."""

    def __init__(self) -> None:
        self.curvature = np.array([1.0, 100.0])

    def __call__(self, probe: Probe, done: int) -> Outcome:
        x, losses = np.ones(2), []
        for rate in probe.rates.each(probe.steps):
            losses.append(float(0.5 * (self.curvature * x**2).sum()))
            x = x - rate * self.curvature * x
            if not np.isfinite(losses[-1]) or losses[-1] > 1e6:
                return Outcome(losses, (), True)
        final = float(0.5 * (self.curvature * x**2).sum())
        return Outcome(losses, [final] * len(probe.measure_after))


def valley(best: float) -> Answer:
    """Every probe ends at the squared distance, in decades, of its highest rate from ``best``."""

    def answer(probe: Probe, done: int) -> Outcome:
        end = 1 + (math.log10(max(probe.rates.values)) - math.log10(best)) ** 2
        return Outcome(np.linspace(3, end, probe.steps).tolist(), [end] * len(probe.measure_after))

    return answer


GIVEN: dict[str, Any] = {"low": 1e-4, "high": 1.0}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fills_the_budget_and_finds_the_valley(name: str) -> None:
    kind, preset = METHODS[name]  # type: ignore[index]
    small = {"stage": 0.25, "longest": 0.25} if kind is Paper else {}
    played = Played(kind(**GIVEN, **preset, **small), Budget(400), valley(1e-2))
    assert len(played.rates) == 400 and all(rate >= 0 for rate in played.rates)
    chosen = next(decision for decision in played.decisions if decision.question == "lr").chosen
    assert abs(math.log10(chosen) + 2) < 0.5
    assert max(played.rates) <= 1.0


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_a_function_of_its_outcomes(name: str) -> None:
    kind, preset = METHODS[name]  # type: ignore[index]
    small = {"stage": 0.5, "longest": 0.5} if kind is Paper else {}
    one, again = (Played(kind(**GIVEN, **preset, **small), Budget(400, seed=2), valley(1e-2)) for _ in range(2))
    assert one.probes == again.probes and one.rates == again.rates


@pytest.mark.parametrize("name", METHODS)
def test_divergent_rates_are_never_chosen(name: str) -> None:
    kind, preset = METHODS[name]  # type: ignore[index]
    small = {"stage": 0.25, "longest": 0.5} if kind is Paper else {}
    played = Played(kind(**GIVEN, **preset, **small), Budget(400), Quadratic())
    assert max(played.rates) < 2 / 100
    assert any(len(decision.outcomes) and not all(map(math.isfinite, decision.outcomes)) for decision in played.decisions)


def test_if_everything_diverges_it_is_said() -> None:
    with pytest.raises(SearchFailed, match=r"training diverges with every lr that was tried between 0\.1 and 1"):
        Played(Cooldown(low=0.1, high=1.0), Budget(400), lambda probe, done: Outcome([math.inf], (), True))


class TestPaper:
    method = Paper(**GIVEN, stage=100, longest=400)

    def test_stages_double_and_probes_are_a_tenth(self) -> None:
        played = Played(self.method, Budget(1500), valley(1e-2))
        assert [stretch.until for stretch in played.stretches] == [100, 300, 700, 1100, 1500]
        assert [p.steps for p in played.probes] == [10] * 10 + [20] * 10 + [40] * 30
        assert all(len(p.rates.at) == 1 for p in played.probes)

    def test_the_cost_is_what_it_keeps(self) -> None:
        played = Played(replace(self.method, stage=100, longest=100), Budget(1000), valley(1e-2))
        assert sum(p.steps for p in played.probes) == 1000 == len(played.rates)

    def test_only_the_longest_stages_look_at_the_validation_loss(self) -> None:
        played = Played(self.method, Budget(1500), valley(1e-2))
        assert [bool(p.measure_after) for p in played.probes] == [False] * 20 + [True] * 30
        assert played.probes[20].measure_after == tuple(range(2, 41, 2))  # every tau'/16 steps

    def test_a_validation_loss_that_comes_up_to_the_runs_first_is_not_forecast(self) -> None:
        def answer(probe: Probe, done: int) -> Outcome:
            rising = [3.5 - 0.01 * i for i in range(len(probe.measure_after))] if probe.value > 1e-2 else [1.0] * len(probe.measure_after)
            return Outcome([3.0] * probe.steps, rising)

        played = Played(replace(self.method, stage=400, longest=400), Budget(400), answer)
        outcomes = dict(zip([p.value for p in played.probes], played.decisions[0].outcomes, strict=True))
        assert {round(value, 6) for value in outcomes.values()} == {1.0, round(3.5 - 0.01 * 19, 6)}

    def test_the_last_stage_is_cut_to_the_budget(self) -> None:
        played = Played(self.method, Budget(250), valley(1e-2))
        assert [stretch.until for stretch in played.stretches] == [100, 250] and played.probes[-1].steps == 15

    def test_warm_up_comes_before_the_first_stage(self) -> None:
        played = Played(replace(self.method, warmup=50), Budget(150), valley(1e-2))
        assert played.rates[0] < played.rates[48] < 1e-2 + 1e-9 and [s.until for s in played.stretches] == [50, 150]

    def test_one_candidate_and_one_rate_is_a_constant_rate(self) -> None:
        played = Played(Paper(low=0.1, high=0.1, candidates=1, stage=100, longest=100), Budget(300), valley(0.1))
        assert played.rates == [0.1] * 300

    def test_the_released_codes_constants(self) -> None:
        kind, preset = METHODS["paper_reference"]
        method = kind(**preset)
        assert isinstance(method, Paper)
        assert (method.stage, method.longest, method.probe, method.candidates) == (1000, 8000, 0.1, 10)
        assert (method.kappa, method.denoise, method.diverged) == (1e6, "reference", 1e6)
        assert (Paper().kappa, Paper().denoise, Paper().diverged) == (1000.0, "scaled", None)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stage": 1000}, "schedule.stage must be at most the run's 400 steps.*got 1000"),
            ({"stage": 10}, "two steps or more"),
            ({"probe": 1.5, "stage": 100}, r"in \(0, 1\]"),
            ({"candidates": 0, "stage": 100}, "candidates must be >= 1"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Paper(**GIVEN, **options).check(400)


class TestCooldown:
    def test_a_probe_is_a_small_run(self) -> None:
        played = Played(Cooldown(**GIVEN, probe=0.1, cooldown=0.5, warmup=0.1), Budget(1000), valley(1e-2))
        probe = played.probes[0]
        rates = probe.rates.each(probe.steps)
        assert probe.steps == 100 and probe.measure_after == (100,)
        assert rates[9] < probe.value == rates[10] == rates[49] > rates[60] > rates[99] > 0

    def test_then_warm_up_hold_and_decay(self) -> None:
        played = Played(Cooldown(**GIVEN, warmup=0.1, decay=0.2), Budget(1000), valley(1e-2))
        peak = played.decisions[-1].chosen
        assert played.rates[99] < peak == played.rates[100] == played.rates[799] > played.rates[900] > played.rates[999] > 0

    def test_what_else_is_searched_is_searched_with_what_was_found(self) -> None:
        played = Played(Cooldown(**GIVEN, search=("weight_decay", "momentum", "warmup"), candidates=5), Budget(1000), valley(1e-2))
        assert [d.question for d in played.decisions] == ["lr", "lr", "weight_decay", "momentum", "warmup"]
        peak, decay, momentum, warmup = (d.chosen for d in played.decisions[1:])
        last = played.probes[-1]
        assert last.options == {"weight_decay": decay, "momentum": momentum} and max(last.rates.values) == peak
        assert played.stretches[-1].options == last.options
        assert played.rates.index(peak) == round(warmup * 1000)

    def test_long_probes_go_down_as_long_as_that_helps(self) -> None:
        def answer(probe: Probe, done: int) -> Outcome:
            """The longer the probe, the smaller the best rate: 0.1 at 50 steps, 0.1 / 16 at 200."""
            return valley(0.1 * (50 / probe.steps) ** 2)(probe, done)

        played = Played(Cooldown(**GIVEN, trend=1.0), Budget(1000), answer)
        short, long = (decision.chosen for decision in played.decisions)
        tried = [p.value for p in played.probes if p.stage == 2]
        assert tried == pytest.approx([short, short / 3, short / 9]) and {p.steps for p in played.probes if p.stage == 2} == {200}
        assert long < short / 9  # and the trend goes on to 1,000 steps

    def test_where_the_best_rate_stays_long_probes_change_little(self) -> None:
        played = Played(Cooldown(**GIVEN), Budget(1000), valley(1e-2))
        short, long = (decision.chosen for decision in played.decisions)
        assert abs(math.log10(long) + 2) < max(abs(math.log10(short) + 2), 0.15)

    def test_long_probes_can_be_left_out(self) -> None:
        played = Played(Cooldown(**GIVEN, finalists=0), Budget(1000), valley(1e-2))
        assert [d.question for d in played.decisions] == ["lr"] and max(played.rates) == played.decisions[0].chosen

    @pytest.mark.parametrize(
        ("outcomes", "best"),
        [({1.0: 4.0, 10.0: 1.0, 100.0: 4.0}, 10.0), ({10.0**i: (i - 0.8) ** 2 for i in range(3)}, 10**0.8), ({1.0: 0.1, 10.0: 0.5}, 1.0), ({2.0: 1.0}, 2.0)],
    )
    def test_the_vertex_of_a_parabola(self, outcomes: dict[float, float], best: float) -> None:
        assert vertex(outcomes) == pytest.approx(best)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"probe": 500}, "at most the run's 400.*got 500"),
            ({"probe": 2}, "4 steps or more"),
            ({"cooldown": 0.0}, "cooldown must be in"),
            ({"search": ("wait_decay",)}, "weight_decay"),
            ({"low": 1.0, "high": 0.1}, "lr_min must be at most"),
            ({"low": 0.0}, "lr_min must be a finite number > 0"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Cooldown(**{**GIVEN, **options}).check(400)


class TestLaw:
    @staticmethod
    def losses(rates: list[float]) -> list[float]:
        """What the annealing law itself says, with a memory of 20 steps."""
        area, momentum, gained, found = 0.0, 0.0, 0.0, []
        before = rates[0]
        for rate in rates:
            area += rate
            momentum = 0.95 * momentum + max(before - rate, 0.0)
            gained += momentum
            before = rate
            found.append(1.0 + 0.5 * area**-0.4 - 2.0 * gained)
        return found

    def test_what_it_plans_is_better_under_the_law_than_what_it_started_from(self) -> None:
        known: list[float] = []
        method = Law(low=0.02, high=0.021, candidates=3, warmup=0)

        def answer(probe: Probe, done: int) -> Outcome:
            losses = self.losses([*known[:done], *probe.rates.each(probe.steps)])[done:]
            return Outcome(losses, [losses[-1]] * len(probe.measure_after))

        peak = 0.02
        usual = Rates.trapeze(peak, 400, cooldown=80).each(400)
        known[:] = usual
        played = Played(method, Budget(400), answer, lambda step: self.losses(usual)[step])
        assert "least final loss under a law" in played.decisions[-1].why
        assert self.losses(played.rates)[-1] < self.losses(Rates.trapeze(max(played.rates), 400, cooldown=80).each(400))[-1]

    def test_where_no_law_fits_it_goes_on(self) -> None:
        noise = np.random.default_rng(0)
        played = Played(Law(**GIVEN), Budget(400), valley(1e-2), lambda step: float(noise.uniform(0.5, 5)))
        usual = Played(Cooldown(**GIVEN), Budget(400), valley(1e-2))
        assert "no law could be fitted" in played.decisions[-1].why and played.rates == pytest.approx(usual.rates)

    def test_every_decision_has_a_stage_of_its_own(self) -> None:
        played = Played(Law(**GIVEN, search=("weight_decay", "momentum"), finalists=2), Budget(400), valley(1e-2))
        stages = [decision.stage for decision in played.decisions]
        assert [d.question for d in played.decisions] == ["lr", "lr", "weight_decay", "momentum", *["schedule"] * len(Law().refits)]
        assert stages == sorted(set(stages))

    @pytest.mark.parametrize("refits", [(0.5, 0.2), (0.0,), (1.5,)])
    def test_refits_are_shares_that_rise(self, refits: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="refits must rise"):
            Law(**GIVEN, refits=refits).check(400)


class TestRangeTest:
    @staticmethod
    def blows_up_at(rate: float) -> Answer:
        def answer(probe: Probe, done: int) -> Outcome:
            losses: list[float] = []
            for now in probe.rates.each(probe.steps):
                losses.append((losses[-1] if losses else 2.0) * (0.98 if now < rate else 1.5))
                if losses[-1] > 40:
                    return Outcome(losses, (), True)
            return Outcome(losses, [losses[-1]] * len(probe.measure_after))

        return answer

    def test_the_range_ends_below_where_it_diverges(self) -> None:
        played = Played(Cooldown(), Budget(2000, lr=0.1), self.blows_up_at(1.0))
        assert played.probes[0].question == "range" and played.probes[0].steps == 100
        assert 0.3 < played.decisions[0].chosen < 1.0
        assert max(p.value for p in played.probes[1:]) <= played.decisions[0].chosen

    def test_where_the_loss_was_least_is_told(self) -> None:
        losses = [*np.linspace(2, 1, 30), *np.linspace(1, 1.3, 10), 9.0, 9.0, 9.0]
        last, least = divergence(losses, False)
        assert 38 <= last <= 43 and 28 <= least <= 32

    def test_a_loss_that_is_least_at_the_beginning_by_luck_does_not_narrow_the_range_to_nothing(self) -> None:
        def answer(probe: Probe, done: int) -> Outcome:
            grows = [max(rate, 1.0) ** 3 for rate in probe.rates.each(probe.steps)]
            return Outcome([1.5, *(2.0 * by for by in grows[1:])], [2.0] * len(probe.measure_after))

        played = Played(Cooldown(), Budget(2000, lr=0.1), answer)
        assert played.decisions[0].chosen > 0.01

    def test_one_end_may_be_given(self) -> None:
        played = Played(Cooldown(low=0.05), Budget(2000, lr=0.1), self.blows_up_at(1.0))
        assert min(p.value for p in played.probes[1:]) >= 0.05

    def test_what_diverges_from_the_first_step_is_said(self) -> None:
        with pytest.raises(SearchFailed, match=r"give schedule\.lr_min and lr_max"):
            Played(Cooldown(), Budget(400, lr=0.1), lambda probe, done: Outcome([math.nan], (), True))

    @pytest.mark.parametrize(
        ("losses", "broken", "last"),
        [([2.0] * 50, False, 50), ([2.0] * 20 + [math.nan], True, 20), (np.linspace(2, 1, 30).tolist() + [9.0] * 20, False, 30)],
    )
    def test_divergence(self, losses: list[float], broken: bool, last: int) -> None:
        assert abs(divergence(losses, broken)[0] - last) <= 1


class TestRates:
    rates = Rates((0, 10, 10, 20), (1.0, 1.0, 0.5, 0.0))

    def test_straight_between_points_with_jumps(self) -> None:
        assert [self.rates(step) for step in (0, 9, 10, 15, 20, 99)] == [1.0, 1.0, 0.5, 0.25, 0.0, 0.0]

    def test_points_cover_the_steps_and_no_more(self) -> None:
        assert self.rates.points(15, start=100) == ([100, 110, 110, 115], [1.0, 1.0, 0.5, 0.25])
        assert Rates.constant(2.0).points(5) == ([0, 5], [2.0, 2.0])
        assert self.rates.points(10) == ([0, 10], [1.0, 1.0])

    @pytest.mark.parametrize(("at", "values"), [((1, 2), (1.0, 1.0)), ((0, 2, 1), (1.0, 1.0, 1.0)), ((0,), (1.0, 2.0)), ((0,), (-1.0,)), ((0,), (math.nan,))])
    def test_what_is_no_path_is_refused(self, at: tuple[int, ...], values: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match=r"values must be|at and values"):
            Rates(at, values)

"""A sweep's tickets, on every kind of storage: made once, each worked on once, put back when their worker is lost, ended by their owner."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sweeps import study as module
from sweeps.constraints import parse_constraints, record_constraints
from sweeps.settings import Plan, SweepError, SweepSettings
from sweeps.space import SearchSpace
from sweeps.storage import open_storage
from sweeps.study import ERROR, LOST, PLAN, TICKET, Claim, Sweep, ticket_of, worker_name, worker_of, worker_prefix
from tests.sweeps.test_storage import processes

optuna.logging.set_verbosity(optuna.logging.ERROR)

WAITING, RUNNING, COMPLETE, PRUNED, FAIL = TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def plan_of(
    total: int = 3, *, directions: Sequence[Any] = ("minimize",), points: Sequence[dict[str, Any]] = (), seeds: Sequence[int] = (), **settings: Any
) -> Plan:
    """A plan that needs no experiment."""
    return Plan(
        name="sweep",
        given=[],
        fixed=[],
        space_given=[],
        space=SearchSpace(()).to_dict(),
        settings=SweepSettings(**settings).model_dump(),
        objectives=[f"metric/{i}" for i in range(len(directions))],
        directions=list(directions),
        seeds=list(seeds),
        total=total,
        config={},
        points=[dict(point) for point in points],
    )


def create(address: str, plan: Plan | None = None) -> Sweep:
    return Sweep.create(plan or plan_of(), open_storage(address), address)


def same(address: str) -> Sweep:
    """The sweep as another process would open it."""
    return Sweep.open("sweep", open_storage(address), address)


def states(sweep: Sweep) -> list[TrialState]:
    return [trial.state for trial in sweep.trials()]


def claim(sweep: Sweep, worker: str = "mine") -> Claim:
    claimed = sweep.claim(worker)
    assert claimed is not None
    return claimed


def finish(sweep: Sweep, *outcomes: TrialState | float) -> None:
    """Claim a trial for each outcome and end it so; a number is the value of a complete one."""
    for outcome in outcomes:
        claimed = claim(sweep)
        if isinstance(outcome, TrialState):
            sweep.note(claimed, error=f"trial {claimed.number} broke")
            assert sweep.tell(claimed, outcome)
        else:
            assert sweep.tell(claimed, COMPLETE, [outcome])


@pytest.fixture
def sqlite(new_storage: Callable[[str], str]) -> str:
    """The address of an empty default storage, for what does not depend on the storage."""
    return new_storage("sqlite")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that ``sweeps.study`` sees: set its only element."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


# --------------------------------------------------------------------------- making and finding


def test_a_name_that_exists_is_refused_and_resume_offered(address: str) -> None:
    sweep = create(address)
    with pytest.raises(SweepError, match=r"there is a sweep 'sweep' already: to go on with it, losskit sweep --resume sweep; or set sweep\.name="):
        create(address, plan_of(9))
    assert same(address).plan == sweep.plan
    assert states(sweep) == [WAITING] * 3


def _create(address: str, total: int) -> int | str:
    try:
        return create(address, plan_of(total)).plan.total
    except SweepError as error:
        return str(error)


def test_of_several_that_start_one_name_at_once_one_wins(address: str) -> None:
    answers = processes(_create, [(address, 4), (address, 5), (address, 6)])
    won = [answer for answer in answers if isinstance(answer, int)]
    assert len(won) == 1, answers
    assert all("--resume sweep" in answer for answer in answers if isinstance(answer, str))
    sweep = same(address)
    assert sweep.plan.total == won[0]
    assert states(sweep) == [WAITING] * won[0]


def test_nobody_finds_a_new_sweep_before_its_tickets_are_there(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two that are started with one name at once would both top it up."""
    enqueue, looked = module.enqueue_many, []

    def look_and_enqueue(study: optuna.Study, *tickets: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
            with pytest.raises(SweepError, match="without a plan"):
                same(sqlite)
        looked.append(len(tickets[0]))
        enqueue(study, *tickets)

    monkeypatch.setattr(module, "enqueue_many", look_and_enqueue)
    create(sqlite)
    assert looked == [3]
    assert states(same(sqlite)) == [WAITING] * 3


def test_what_was_created_is_what_is_opened(sqlite: str) -> None:
    plan = plan_of(2, directions=["minimize", "maximize"], points=[{"x": 0.25}, {"x": 0.75}], seeds=[1, 2], retries=4)
    create(sqlite, plan)
    sweep = same(sqlite)
    assert (sweep.plan, sweep.settings.retries, sweep.address) == (plan, 4, sqlite)
    assert [direction.name for direction in sweep.study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert [trial.user_attrs for trial in sweep.trials()] == [{TICKET: 0}, {TICKET: 1}]


def test_an_unknown_name_names_the_nearest(sqlite: str) -> None:
    storage = open_storage(sqlite)
    with pytest.raises(SweepError, match=r"there is no sweep 'sweeep' \(the storage has none\)"):
        Sweep.open("sweeep", storage)
    create(sqlite)
    optuna.create_study(study_name="another", storage=storage)
    with pytest.raises(SweepError, match=r"there is no sweep 'sweeep'; did you mean 'sweep'\? \(there is: another, sweep\)"):
        Sweep.open("sweeep", storage)


def test_a_study_of_somebody_elses_is_none_of_ours(sqlite: str, clock: list[float]) -> None:
    storage = open_storage(sqlite)
    optuna.create_study(study_name="theirs", storage=storage)
    with pytest.raises(SweepError, match="'theirs' is a study without a plan of losskit's"):
        Sweep.open("theirs", storage)
    assert 1 <= clock[0] - 1000 <= 10  # it was waited for


def test_a_plan_that_comes_a_moment_later_is_waited_for(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(study_name="sweep", storage=open_storage(sqlite))
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: study.set_user_attr(PLAN, plan_of(8).to_json())))
    assert same(sqlite).plan.total == 8


def test_another_plan_takes_over_and_the_one_before_is_kept(sqlite: str) -> None:
    sweep = create(sqlite)
    first = sweep.plan
    more = plan_of(6, retries=9)  # no other sweep: only how long and how
    sweep.change(more)
    assert (sweep.plan, sweep.settings.retries) == (more, 9)
    assert same(sqlite).plan == more
    assert f"{PLAN}s" not in sweep.study.user_attrs
    forced, again = plan_of(6, seed=4), plan_of(6, seed=5)
    sweep.change(forced)
    same(sqlite).change(again)
    other = same(sqlite)
    assert (other.plan, other.settings.seed) == (again, 5)
    assert [Plan.from_json(text) for text in other.study.user_attrs[f"{PLAN}s"]] == [more, forced]
    assert first not in (more, forced)


# --------------------------------------------------------------------------- tickets


def test_tickets_are_topped_up_to_exactly_the_total(address: str) -> None:
    points = [{"x": float(i)} for i in range(7)]
    sweep = create(address, plan_of(3, points=points[:3]))
    finish(sweep, 0.5, FAIL)
    for total in (3, 7, 7):
        other = same(address)
        other.change(plan_of(total, points=points[:total]))
        other.top_up()
        other.top_up()
        assert sorted(ticket_of(trial) for trial in sweep.trials()) == list(range(total))
    assert states(same(address)) == [COMPLETE, FAIL, *[WAITING] * 5]
    for point in points[2:]:
        claimed = claim(other)
        assert optuna.Trial(other.study, claimed.trial_id).suggest_float("x", 0, 9) == point["x"]
    assert other.claim("mine") is None


def test_missing_tickets_are_filled_in(sqlite: str) -> None:
    """As after a top-up that was killed in its middle, on a storage that has no transactions."""
    study = optuna.create_study(study_name="sweep", storage=open_storage(sqlite))
    study.set_user_attr(PLAN, plan_of(4, points=[{"x": float(i)} for i in range(4)]).to_json())
    study.enqueue_trial({"x": 2.0}, user_attrs={TICKET: 2})
    sweep = same(sqlite)
    sweep.top_up()
    assert [ticket_of(trial) for trial in sweep.trials()] == [2, 0, 1, 3]
    assert [trial.system_attrs["fixed_params"]["x"] for trial in sweep.trials()] == [2.0, 0.0, 1.0, 3.0]


def _claim_all(address: str) -> list[tuple[int, float]]:
    """Take tickets until none waits; with each its parameter, as another process finds it."""
    sweep, mine = same(address), worker_name()
    found = []
    while (claimed := sweep.claim(mine)) is not None:
        assert sweep.owns(claimed)
        found.append((claimed.number, optuna.Trial(sweep.study, claimed.trial_id).suggest_float("x", 0, 100)))
    return found


def test_no_ticket_is_claimed_twice(address: str) -> None:
    total = 24
    create(address, plan_of(total, points=[{"x": float(i)} for i in range(total)]))
    answers = processes(_claim_all, [(address,)] * 3)
    assert sorted(itertools.chain.from_iterable(answers)) == [(i, float(i)) for i in range(total)]
    sweep = same(address)
    assert states(sweep) == [RUNNING] * total
    assert Counter(worker_of(trial) for trial in sweep.trials()).total() == total
    assert sweep.claim("late") is None


def test_a_trial_is_its_owners_as_long_as_it_beats_and_nobody_else_has_it(address: str) -> None:
    sweep = create(address, plan_of(1))
    mine = claim(sweep, "mine")
    other = same(address)
    assert sweep.owns(mine)
    assert not other.owns(Claim(mine.number, mine.trial_id, mine.frozen, "theirs"))
    assert sweep.beat(mine, 1)
    assert other.trials()[0].system_attrs[module.BEAT] == ["mine", 1]
    other._lost(other.trials()[0], "gone")
    assert not sweep.owns(mine)
    assert not sweep.beat(mine, 2)
    theirs = claim(other, "theirs")
    assert theirs.number == mine.number
    assert other.owns(theirs)
    assert not sweep.owns(mine)
    assert not sweep.beat(mine, 3)
    assert worker_of(same(address).trials()[0]) == "theirs"


def test_what_a_former_owner_found_is_dropped(address: str) -> None:
    sweep = create(address, plan_of(1))
    mine = claim(sweep, "mine")
    other = same(address)
    other._lost(other.trials()[0], "gone")
    assert not sweep.tell(mine, COMPLETE, [1.0])
    sweep.give_back(mine)  # and what is not its own it cannot give back
    assert states(other) == [WAITING]
    theirs = claim(other, "theirs")
    assert not sweep.tell(mine, COMPLETE, [1.0])
    sweep.give_back(mine)
    assert states(other) == [RUNNING]
    assert other.tell(theirs, COMPLETE, [2.0])
    assert not sweep.tell(mine, FAIL)
    assert not other.tell(theirs, COMPLETE, [3.0])
    assert [(trial.state, trial.values) for trial in same(address).trials()] == [(COMPLETE, [2.0])]


def test_a_trial_that_another_ends_while_it_is_told_is_theirs(address: str) -> None:
    sweep, other = create(address), same(address)
    mine = claim(sweep)

    class Late(optuna.samplers.RandomSampler):
        """It is asked between the look whose the trial is and its end."""

        def after_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
            theirs = Claim(mine.number, mine.trial_id, mine.frozen, mine.worker)
            assert other.tell(theirs, FAIL)

    sweep.study.sampler = Late()
    assert not sweep.tell(mine, COMPLETE, [1.0])
    assert states(other) == [FAIL, WAITING, WAITING]


@pytest.mark.parametrize("values", [[math.nan], [1.0, 2.0], [], None])
def test_values_that_no_trial_can_end_with_are_an_error(sqlite: str, values: list[float] | None) -> None:
    sweep = create(sqlite)
    mine = claim(sweep)
    with pytest.raises(ValueError, match="values"):
        sweep.tell(mine, COMPLETE, values)
    assert sweep.tell(mine, FAIL)


# --------------------------------------------------------------------------- losses


def test_the_trial_of_a_dead_process_goes_back_and_then_fails(address: str) -> None:
    sweep = create(address, plan_of(4, retries=1))
    name = f"{worker_prefix(4242)}abc"
    mine = claim(sweep, name)
    sweep.storage.set_trial_intermediate_value(mine.trial_id, 1, 0.5)
    neighbours = [claim(sweep, worker) for worker in (f"{worker_prefix(42424)}abc", f"{worker_prefix(424)}abc", "elsewhere-4242-abc")]
    other = same(address)
    assert other.lost(4243) == []
    assert other.lost(4242) == [0]
    assert other.lost(4242) == []
    trial = other.trials()[0]
    assert (trial.state, trial.system_attrs[LOST], trial.intermediate_values, worker_of(trial)) == (WAITING, 1, {1: 0.5}, None)
    assert ERROR not in trial.user_attrs
    again = claim(sweep, name)
    assert (again.number, again.frozen.intermediate_values) == (0, {1: 0.5})
    assert other.lost(4242) == [0]
    trial = other.trials()[0]
    assert (trial.state, trial.user_attrs[ERROR]) == (FAIL, "its worker (process 4242) died; it was tried 2 times")
    assert other.lost(4242) == []
    assert all(sweep.owns(neighbour) for neighbour in neighbours)
    assert other.status().failed == 1


def test_without_retries_a_lost_trial_fails_at_once(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(2, retries=0))
    claim(sweep, f"{worker_prefix(7)}a")
    assert same(sqlite).lost(7) == [0]
    assert states(sweep) == [FAIL, WAITING]


def test_a_beat_that_stands_still_is_a_loss(address: str, clock: list[float]) -> None:
    sweep, watcher = create(address, plan_of(3, grace_seconds=5, retries=1)), same(address)
    still, beating, ended = (claim(sweep, name) for name in ("still", "beating", "ended"))
    assert watcher.reap() == []
    for seconds in range(1, 6):
        clock[0] += 1
        assert sweep.beat(beating, seconds)
        assert watcher.reap() == []
    assert sweep.tell(ended, COMPLETE, [1.0])
    clock[0] += 1
    assert sweep.beat(beating, 6)
    late = same(address)
    assert late.reap() == []  # who has just come has not seen it stand still
    assert watcher.reap() == [still.number]
    assert watcher.reap() == []
    trial = watcher.trials()[still.number]
    assert (trial.state, trial.system_attrs[LOST]) == (WAITING, 1)
    again = claim(sweep, "again")
    assert again.number == still.number
    clock[0] += 6
    assert sweep.beat(beating, 7)
    assert watcher.reap() == []  # another attempt: its time begins now
    assert late.reap() == []
    clock[0] += 6
    assert sweep.beat(beating, 8)
    assert watcher.reap() == [again.number]
    assert states(watcher) == [FAIL, RUNNING, COMPLETE]
    assert watcher.trials()[0].user_attrs[ERROR] == "its worker gave no sign of life for 5 s; it was tried 2 times"


def test_two_that_see_one_loss_count_it_once(address: str, clock: list[float]) -> None:
    sweep, others = create(address, plan_of(1, grace_seconds=5, retries=3)), [same(address), same(address)]
    claim(sweep)
    seen = [other.trials()[0] for other in others]
    for other, trial in zip(others, seen, strict=True):
        other._lost(trial, "gone")
    assert sweep.trials()[0].system_attrs[LOST] == 1
    again = claim(sweep, "again")
    others[0]._lost(seen[0], "gone")  # what it saw is an attempt of long ago
    assert sweep.owns(again)
    assert sweep.trials()[0].system_attrs[LOST] == 1


def test_the_last_loss_does_not_fail_another_attempt(sqlite: str) -> None:
    sweep, other = create(sqlite, plan_of(1, retries=0)), same(sqlite)
    mine = claim(sweep)
    seen = other.trials()[0]
    sweep.give_back(mine)
    other._lost(seen, "gone")
    assert states(sweep) == [WAITING]
    theirs = claim(sweep, "theirs")
    other._lost(seen, "gone")
    assert sweep.owns(theirs)
    assert sweep.tell(theirs, COMPLETE, [1.0])
    other._lost(seen, "gone")
    assert [(trial.state, trial.user_attrs) for trial in other.trials()] == [(COMPLETE, {TICKET: 0})]


def test_a_ticket_given_back_is_no_loss(address: str) -> None:
    sweep = create(address, plan_of(2, retries=0))
    mine = claim(sweep)
    sweep.note(mine, runs={"None": {"run_dir": "/a"}})
    sweep.give_back(mine)
    trial = same(address).trials()[0]
    assert (trial.state, trial.system_attrs.get(LOST, 0), worker_of(trial)) == (WAITING, 0, None)
    again = claim(same(address), "again")
    assert again.number == mine.number
    assert module.runs_of(again.frozen) == {"None": {"run_dir": "/a"}}


# --------------------------------------------------------------------------- stopping


def test_the_wish_to_stop_is_seen_by_all_and_can_be_taken_back(address: str) -> None:
    sweep, other = create(address), same(address)
    assert other.stopped is None
    sweep.stop("enough")
    assert other.stopped == "enough"
    assert other.status().stop == "enough"
    other.stop(None)
    assert sweep.stopped is None


def test_so_many_failures_in_a_row_stop(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(9, max_failures_in_a_row=3))
    for outcome in (FAIL, FAIL, 1.0, FAIL, FAIL, PRUNED, FAIL, FAIL):
        finish(sweep, outcome)
        assert sweep.too_many_failures() is None
    finish(sweep, FAIL)
    assert sweep.too_many_failures() == "3 trials in a row failed, the last: trial 8 broke"


def test_failures_in_a_row_are_in_the_order_of_their_ends(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(4, max_failures_in_a_row=2))
    first, *others = [claim(sweep) for _ in range(3)]
    for other in others:
        assert sweep.tell(other, FAIL)
    assert sweep.too_many_failures() == "2 trials in a row failed, the last: no reason is known"
    assert sweep.tell(first, COMPLETE, [1.0])  # begun first, ended last
    assert sweep.too_many_failures() is None


@pytest.mark.parametrize(("settings", "said"), [({"on_failure": "stop"}, "trial 1 failed: trial 1 broke"), ({"max_failures_in_a_row": 0}, None)])
def test_whether_a_failure_stops_is_a_setting(sqlite: str, settings: dict[str, Any], said: str | None) -> None:
    sweep = create(sqlite, plan_of(9, **settings))
    finish(sweep, 1.0)
    assert sweep.too_many_failures() is None
    finish(sweep, *[FAIL] * 8)
    assert sweep.too_many_failures() == said


# --------------------------------------------------------------------------- looking


def test_status_counts(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(8, directions=["maximize"]))
    finish(sweep, 1.0, 3.0, 2.0, PRUNED, FAIL)
    running = claim(sweep, "me")
    sweep.note(running, run_id="r")
    now = same(sqlite).status()
    assert (now.name, now.storage, now.total) == ("sweep", sqlite, 8)
    assert (now.complete, now.pruned, now.failed, now.running, now.waiting) == (3, 1, 1, 1, 2)
    assert (now.best_value, now.best_params, now.best_run_id) == (3.0, {}, None)
    assert (now.workers, now.finished, now.done, now.stop) == (["me"], 5, False, None)


def test_status_of_a_sweep_that_has_just_begun_and_of_one_that_is_done(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(2, points=[{"x": 1.0}, {"x": 0.5}]))
    now = sweep.status()
    assert (now.waiting, now.best_value, now.best_params, now.best_run_id, now.workers, now.done) == (2, None, None, None, [], False)
    for value in (2.0, 1.0):
        claimed = claim(sweep)
        optuna.Trial(sweep.study, claimed.trial_id).suggest_float("x", 0, 1)
        sweep.note(claimed, run_id=f"run-{value}")
        assert sweep.tell(claimed, COMPLETE, [value])
    now = sweep.status()
    assert (now.waiting, now.finished, now.done) == (0, 2, True)
    assert (now.best_value, now.best_params, now.best_run_id) == (1.0, {"x": 0.5}, "run-1.0")
    sweep.change(plan_of(3))
    assert (sweep.status().waiting, sweep.status().done) == (1, False)  # before its ticket is there


def test_several_objectives_have_several_best(sqlite: str) -> None:
    sweep = create(sqlite, plan_of(5, directions=["minimize", "maximize"]))
    assert sweep.best() == []
    for values in ([2.0, 5.0], [1.0, 1.0], [3.0, 4.0], [1.5, 2.0]):
        claimed = claim(sweep)
        sweep.note(claimed, run_id=f"run-{claimed.number}")
        assert sweep.tell(claimed, COMPLETE, values)
    finish(sweep, PRUNED)
    now = same(sqlite).status()
    assert now.best_value == [[1.0, 1.0], [1.5, 2.0], [2.0, 5.0]]
    assert now.best_run_id == ["run-1", "run-3", "run-0"]
    assert now.best_params == [{}, {}, {}]


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "minimize"]])
def test_the_best_keeps_to_the_constraints(sqlite: str, directions: list[str]) -> None:
    texts = ["test/latency <= 5"]
    sweep = create(sqlite, plan_of(3, directions=directions, constraints=texts))

    def end(value: float, latency: float) -> None:
        claimed = claim(sweep)
        record_constraints(optuna.Trial(sweep.study, claimed.trial_id), parse_constraints(texts), {"test/latency": latency})
        assert sweep.tell(claimed, COMPLETE, [value] * len(directions))

    end(1.0, 9.0)
    assert sweep.best() == []
    assert sweep.status().best_value in (None, [])
    end(3.0, 5.0)
    end(2.0, 4.0)
    assert [trial.number for trial in same(sqlite).best()] == [2]

"""A worker and its trials: how each way to end one is kept, what interrupts it, and pruning between processes."""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import yaml
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from sweeps import worker as module
from sweeps.algorithms import build_pruner, build_sampler, read_sampler
from sweeps.space import SearchSpace
from sweeps.study import ERROR, LOST, Claim, Sweep, worker_of
from sweeps.worker import Attempt, Heart, RunTrial, TrialFailed, TrialInterrupted, TrialPruned, Worker
from tests.conftest import REPOSITORY
from tests.sweeps.test_space import Tree
from tests.sweeps.test_storage import processes
from tests.sweeps.test_study import COMPLETE, FAIL, PRUNED, WAITING, claim, create, plan_of, same, states

optuna.logging.set_verbosity(optuna.logging.ERROR)

LONG = 30.0  # seconds that a trial waits to be interrupted before it gives up: then the test fails


def worker_for(sweep: Sweep, run_trial: RunTrial, **options: Any) -> Worker:
    options = {"sampler_of": lambda number: optuna.samplers.RandomSampler(seed=number), "pruner": optuna.pruners.NopPruner()} | options
    return Worker(sweep, run_trial, **options)


def wait_for_the_end(attempt: Attempt) -> list[float]:
    """A trial that runs until it is interrupted."""
    threading.Event().wait(LONG)
    raise AssertionError("it was not interrupted")


@pytest.fixture
def address(new_storage: Callable[[str], str]) -> str:
    """The default storage; what depends on the kind of storage is the study's (test_study.py)."""
    return new_storage("sqlite")


@pytest.fixture
def no_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)


# --------------------------------------------------------------------------- how trials end


def test_each_end_is_kept_and_the_sweep_goes_on(address: str) -> None:
    def run_trial(attempt: Attempt) -> list[float]:
        match attempt.number:
            case 0:
                return [1.5]
            case 1:
                attempt.report(0.25, 3)
                raise TrialPruned("no good")
            case 2:
                raise TrialFailed("no such metric")
            case 3:
                raise ZeroDivisionError("one over nothing")
            case 4:
                return [math.nan]
            case 5:
                return [1.0, 2.0]
            case _:
                return [math.inf]

    told: list[tuple[int, TrialState]] = []
    sweep = create(address, plan_of(7, max_failures_in_a_row=0))
    assert worker_for(sweep, run_trial, told=lambda number, state: told.append((number, state))).work() is None
    wanted = [COMPLETE, PRUNED, FAIL, FAIL, FAIL, FAIL, COMPLETE]
    assert told == list(enumerate(wanted))
    trials = same(address).trials()
    assert [trial.state for trial in trials] == wanted
    assert [trials[n].values for n in (0, 1, 6)] == [[1.5], [0.25], [math.inf]]
    errors = [trial.user_attrs.get(ERROR) for trial in trials]
    assert errors[:4] == [None, None, "no such metric", "ZeroDivisionError: one over nothing"]
    assert errors[4]
    assert errors[5]
    assert errors[6] is None
    assert sweep.stopped is None


def test_a_failure_that_all_would_share_stops_the_sweep(address: str) -> None:
    def run_trial(attempt: Attempt) -> list[float]:
        if attempt.number == 1:
            raise TrialFailed("the run has logged no 'val/los'", fatal=True)
        return [1.0]

    sweep = create(address, plan_of(4))
    assert worker_for(sweep, run_trial).work() == "the run has logged no 'val/los'"
    assert states(sweep) == [COMPLETE, FAIL, WAITING, WAITING]
    assert same(address).stopped == "the run has logged no 'val/los'"


@pytest.mark.parametrize(
    ("settings", "ended", "said"), [({"on_failure": "stop"}, 1, "trial 0 failed: no"), ({"max_failures_in_a_row": 3}, 3, "3 trials in a row")]
)
def test_failures_stop_the_sweep_as_configured(address: str, settings: dict[str, Any], ended: int, said: str) -> None:
    def run_trial(attempt: Attempt) -> list[float]:
        raise TrialFailed("no")

    sweep = create(address, plan_of(5, **settings))
    why = worker_for(sweep, run_trial).work()
    assert why is not None
    assert why.startswith(said)
    assert states(sweep) == [FAIL] * ended + [WAITING] * (5 - ended)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, TrialInterrupted("checkpointed")])
def test_an_interrupted_trial_goes_back_and_on(address: str, interruption: Any) -> None:
    seen: list[tuple[int, dict[int, float]]] = []

    def run_trial(attempt: Attempt) -> list[float]:
        seen.append((attempt.number, dict(attempt.claim.frozen.intermediate_values)))
        first = attempt.number == 0 and len(seen) == 1
        for step in range(1, 3 if first else 5):
            attempt.report(10.0 * len(seen) + step, step)
        if first:
            raise interruption
        return [attempt.trial.suggest_float("x", 0, 1)]

    sweep = create(address, plan_of(2, retries=0))
    assert worker_for(sweep, run_trial).work() == "interrupted"
    trial = same(address).trials()[0]
    assert (trial.state, worker_of(trial), trial.system_attrs.get(LOST, 0)) == (WAITING, None, 0)
    other = same(address)
    assert worker_for(other, run_trial).work() is None
    assert seen == [(0, {}), (0, {1: 11.0, 2: 12.0}), (1, {})]
    trials = sweep.trials()
    assert states(sweep) == [COMPLETE, COMPLETE]
    assert trials[0].intermediate_values == {1: 11.0, 2: 12.0, 3: 23.0, 4: 24.0}  # what was reported before stays
    assert trials[1].intermediate_values == {1: 31.0, 2: 32.0, 3: 33.0, 4: 34.0}


@pytest.mark.parametrize("where", ["sampler", "tell"])
def test_an_interruption_as_a_trial_begins_or_ends_leaves_nothing_running(address: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = create(address, plan_of(2, retries=0))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    if where == "tell":
        monkeypatch.setattr(sweep, "tell", interrupted)
    worker = worker_for(sweep, lambda attempt: [1.0], **({"sampler_of": interrupted} if where == "sampler" else {}))
    with pytest.raises(KeyboardInterrupt):
        worker.work()
    trial = same(address).trials()[0]
    assert (trial.state, trial.system_attrs.get(LOST, 0)) == (WAITING, 0)


def test_a_trial_that_was_taken_away_is_not_told(address: str) -> None:
    told: list[int] = []

    def run_trial(attempt: Attempt) -> list[float]:
        if attempt.number == 0:
            other = same(address)
            other._lost(other.trials()[0], "gone")
            theirs = claim(other, "theirs")
            assert theirs.number == 0
            assert other.tell(theirs, COMPLETE, [5.0])
            raise ValueError("too late to matter")
        return [1.0]

    sweep = create(address, plan_of(2))
    assert worker_for(sweep, run_trial, told=lambda number, state: told.append(number)).work() is None
    assert told == [1]
    trial = sweep.trials()[0]
    assert (trial.state, trial.values, trial.user_attrs.get(ERROR)) == (COMPLETE, [5.0], None)


# --------------------------------------------------------------------------- between trials


@pytest.mark.usefixtures("no_idling")
def test_a_worker_stays_while_others_run_trials_that_may_come_back(address: str) -> None:
    sweep, other = create(address, plan_of(2)), same(address)
    theirs = claim(other, "theirs")
    looks: list[bool] = []

    def alive() -> bool:
        looks.append(True)
        if len(looks) == 5:
            other.give_back(theirs)
        return True

    told: list[int] = []
    assert worker_for(sweep, lambda attempt: [1.0], alive=alive, told=lambda number, state: told.append(number)).work() is None
    assert sorted(told) == [0, 1]
    assert len(looks) >= 5


@pytest.mark.usefixtures("no_idling")
def test_a_worker_takes_over_from_one_that_gives_no_sign(address: str) -> None:
    sweep = create(address, plan_of(2, grace_seconds=0.05))
    claim(same(address), "dead")
    assert worker_for(sweep, lambda attempt: [1.0]).work() is None
    assert [(trial.state, trial.system_attrs.get(LOST, 0)) for trial in sweep.trials()] == [(COMPLETE, 1), (COMPLETE, 0)]


def test_a_worker_ends_before_the_next_trial(address: str) -> None:
    sweep = create(address, plan_of(3))
    done: list[int] = []

    def run_trial(attempt: Attempt) -> list[float]:
        done.append(attempt.number)
        return [1.0]

    assert worker_for(sweep, run_trial, alive=lambda: not done).work() == "the process that started this worker is gone"
    assert done == [0]
    same(address).stop("enough")
    assert worker_for(sweep, run_trial).work() == "enough"
    assert done == [0]
    assert states(sweep) == [COMPLETE, WAITING, WAITING]


# --------------------------------------------------------------------------- the heart


def test_a_heart_beats_while_a_trial_runs(address: str) -> None:
    sweep, beats = create(address, plan_of(1, grace_seconds=0.1)), threading.Semaphore(0)
    beat = sweep.beat

    def counted(*arguments: Any) -> bool:
        answer = beat(*arguments)
        beats.release()
        return answer

    def run_trial(attempt: Attempt) -> list[float]:
        for _ in range(3):
            assert beats.acquire(timeout=LONG)
        return [same(address).trials()[0].system_attrs["losskit:beat"][1]]

    sweep.beat = counted  # type: ignore[method-assign]
    assert worker_for(sweep, run_trial, name="me").work() is None
    assert sweep.trials()[0].values[0] >= 2
    assert not [thread for thread in threading.enumerate() if thread.name == "losskit-heart"]


def test_stopping_interrupts_a_running_trial(address: str) -> None:
    sweep = create(address, plan_of(2, grace_seconds=0.6, retries=0))

    def run_trial(attempt: Attempt) -> list[float]:
        same(address).stop("enough")
        return wait_for_the_end(attempt)

    assert worker_for(sweep, run_trial).work() == "enough"
    trial = sweep.trials()[0]
    assert (trial.state, trial.system_attrs.get(LOST, 0)) == (WAITING, 0)


def test_a_running_trial_is_interrupted_when_the_one_who_started_it_is_gone(address: str) -> None:
    sweep, gone = create(address, plan_of(2, grace_seconds=0.6)), threading.Event()

    def run_trial(attempt: Attempt) -> list[float]:
        gone.set()
        return wait_for_the_end(attempt)

    assert worker_for(sweep, run_trial, alive=lambda: not gone.is_set()).work() == "the process that started this worker is gone"
    assert states(sweep) == [WAITING, WAITING]


def test_a_trial_that_another_worker_has_taken_is_interrupted(address: str) -> None:
    sweep, other = create(address, plan_of(2, grace_seconds=0.6)), same(address)
    theirs: list[Claim] = []
    beat = sweep.beat

    def late(*arguments: Any) -> bool:  # as after a pause: by the first beat, another worker has the trial
        if not theirs:
            other._lost(other.trials()[0], "gone")
            theirs.append(claim(other, "theirs"))
        return beat(*arguments)

    def run_trial(attempt: Attempt) -> list[float]:
        if attempt.number == 0:
            return wait_for_the_end(attempt)
        assert other.tell(theirs[0], COMPLETE, [7.0])
        return [1.0]

    sweep.beat = late  # type: ignore[method-assign]
    assert worker_for(sweep, run_trial).work() is None  # it goes on with the next trial
    assert theirs[0].number == 0
    assert [(trial.state, trial.values) for trial in sweep.trials()] == [(COMPLETE, [7.0]), (COMPLETE, [1.0])]


@pytest.mark.parametrize("problem", [StorageInternalError("gone"), OSError("gone"), "grpc"])
def test_a_heart_outlasts_a_storage_that_is_away_for_a_moment(address: str, problem: Any) -> None:
    if problem == "grpc":
        import grpc

        problem = grpc.RpcError("gone")
    sweep, beats = create(address, plan_of(1, grace_seconds=0.1)), threading.Semaphore(0)
    beat, away = sweep.beat, iter([True, True])

    def sometimes(*arguments: Any) -> bool:
        if next(away, False):
            raise problem
        answer = beat(*arguments)
        beats.release()
        return answer

    def run_trial(attempt: Attempt) -> list[float]:
        assert beats.acquire(timeout=10)
        return [1.0]

    sweep.beat = sometimes  # type: ignore[method-assign]
    assert worker_for(sweep, run_trial).work() is None
    assert states(sweep) == [COMPLETE]


def test_a_heart_beats_a_few_times_within_the_grace() -> None:
    def interval(grace: float) -> float:
        settings = plan_of(grace_seconds=grace).settings
        return Heart(type("Sweep", (), {"settings": type("Settings", (), settings)})(), None, lambda: True).interval  # type: ignore[arg-type]

    assert [interval(grace) for grace in (30, 6, 600, 0.1)] == [2.0, 1.0, 2.0, 0.1]


# --------------------------------------------------------------------------- pruning


def test_the_pruner_sees_what_other_workers_reported(address: str) -> None:
    sweep, other = create(address, plan_of(3)), same(address)
    theirs = claim(other, "theirs")
    for step in range(1, 5):
        other.storage.set_trial_intermediate_value(theirs.trial_id, step, float(step))
    assert other.tell(theirs, COMPLETE, [4.0])
    steps: dict[int, list[int]] = {1: [], 2: []}

    def run_trial(attempt: Attempt) -> list[float]:
        for step in range(1, 5):
            steps[attempt.number].append(step)
            attempt.report(step + (0.5 if attempt.number == 1 and step >= 3 else -0.5), step)
        return [0.0]

    worker = worker_for(sweep, run_trial, pruner=optuna.pruners.ThresholdPruner(upper=math.inf))
    sweep.study.pruner = _WorseThanTheBest()
    assert worker.work() is None
    assert steps == {1: [1, 2, 3], 2: [1, 2, 3, 4]}
    assert states(other) == [COMPLETE, PRUNED, COMPLETE]
    assert other.trials()[1].intermediate_values == {1: 0.5, 2: 1.5, 3: 3.5}


class _WorseThanTheBest(optuna.pruners.BasePruner):
    """Ends a trial whose newest value is worse than that of every other trial at that step."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step = trial.last_step
        assert step is not None
        others = [t.intermediate_values[step] for t in study.get_trials(deepcopy=False) if t.number != trial.number and step in t.intermediate_values]
        return bool(others) and trial.intermediate_values[step] > min(others)


def test_a_step_that_was_reported_before_is_not_changed_and_only_the_last_judged_again(address: str) -> None:
    sweep = create(address, plan_of(1))
    mine = claim(sweep)
    judged: list[int] = []

    class Recorded(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            judged.append(trial.last_step or 0)
            return False

    sweep.study.pruner = Recorded()
    attempt = Attempt(sweep, mine, optuna.Trial(sweep.study, mine.trial_id))
    for value, step in ((1.0, 1), (2.0, 2), (9.0, 1), (9.0, 2), (3.0, 3)):
        attempt.report(value, step)
    assert same(address).trials()[0].intermediate_values == {1: 1.0, 2: 2.0, 3: 3.0}
    assert judged == [1, 2, 2, 3], "the earlier attempt may have been killed between the report and the verdict"


STEPS = 12
QUOTA = 3  # pruned trials after which one of the processes leaves the rest to the other
TOTAL = 36


def _prune(address: str) -> dict[str, Any]:
    """A worker with conf's Hyperband; what its pruner said at each step of each trial, and how its trials ended."""
    config = yaml.safe_load((REPOSITORY / "conf" / "sweep" / "pruner" / "hyperband.yaml").read_text())
    sweep, pruner = same(address), build_pruner(config)
    said: dict[int, list[tuple[int, bool]]] = {}
    ended: dict[int, str] = {}
    judge = pruner.prune

    def recorded(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        verdict = judge(study, trial)
        said.setdefault(trial.number, []).append((trial.last_step or 0, verdict))
        return verdict

    pruner.prune = recorded  # type: ignore[method-assign]

    def run_trial(attempt: Attempt) -> list[float]:
        x = attempt.trial.suggest_float("x", 0, 1)
        for step in range(1, STEPS + 1):
            attempt.note(steps=list(range(1, step + 1)), process=os.getpid())
            attempt.report(x + 1 / step, step)
        return [x + 1 / STEPS]

    def enough() -> bool:
        return list(ended.values()).count("PRUNED") >= QUOTA

    worker = worker_for(sweep, run_trial, pruner=pruner, alive=lambda: not enough(), told=lambda number, state: ended.update({number: state.name}))
    worker.work()
    return {"process": os.getpid(), "said": said, "ended": ended}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_pruned_trials_stop_within_one_report_in_another_process(new_storage: Callable[[str], str], kind: str) -> None:
    address = new_storage(kind)
    quality = random.Random(0).sample(range(TOTAL), TOTAL)
    create(address, plan_of(TOTAL, points=[{"x": q / TOTAL} for q in quality]))
    answers = processes(_prune, [(address,)] * 2)
    assert len({answer["process"] for answer in answers}) == 2
    trials = same(address).trials()
    for answer in answers:
        assert list(answer["ended"].values()).count("PRUNED") == QUOTA
        assert answer["said"].keys() == answer["ended"].keys()
        for number, verdicts in answer["said"].items():
            trial, steps = trials[number], [step for step, _ in verdicts]
            assert trial.state.name == answer["ended"][number]
            assert trial.user_attrs["losskit:process"] == answer["process"]
            assert trial.user_attrs["losskit:steps"] == steps == list(trial.intermediate_values)
            said = [verdict for _, verdict in verdicts]
            if trial.state == PRUNED:
                assert said == [False] * (len(said) - 1) + [True]  # nothing is reported after the first "prune"
            else:
                assert steps == list(range(1, STEPS + 1))
                assert not any(said)
    ended = [number for answer in answers for number in answer["ended"]]
    assert len(ended) == len(set(ended))
    assert any(len(trials[number].intermediate_values) < STEPS for number in ended)
    assert {trial.state for trial in trials} == {COMPLETE, PRUNED, WAITING}


# --------------------------------------------------------------------------- seeds


def _parameters(address: str, sampler: str, seed: int, workers: int = 1) -> list[dict[str, Any]]:
    """Parameters of each trial of a sweep, with its sampler as ``losskit_cli.trial_runs.worker_of_sweep`` makes it."""
    space, _ = SearchSpace.parse(["loss=poly1,focal", "loss.epsilon=interval(-1,5)", "seed=range(0,9)"])
    read = read_sampler(yaml.safe_load((REPOSITORY / "conf" / "sweep" / "sampler" / f"{sampler}.yaml").read_text()))
    create(address, plan_of(14, seed=seed))
    sweeps = [same(address) for _ in range(workers)]

    def sampler_of(number: int) -> optuna.samplers.BaseSampler:
        return build_sampler(read, seed=seed, trial_number=number, space=space, directions=["minimize"])

    def run_trial(attempt: Attempt) -> list[float]:
        space.suggest(attempt.trial, Tree())
        values = attempt.sweep.storage.get_trial(attempt.claim.trial_id).params
        return [float(values["seed"]) + float(values.get("loss.epsilon", 3.0)) ** 2]

    several: Iterator[Sweep] = iter(sweeps * 14)
    quota: list[int] = []
    while sweeps[0].trials(WAITING):  # the workers take turns, a trial each
        quota.clear()
        worker_for(next(several), run_trial, sampler_of=sampler_of, alive=lambda: not quota, told=lambda number, state: quota.append(number)).work()
    assert states(sweeps[0]) == [COMPLETE] * 14
    return [dict(trial.params) for trial in sweeps[0].trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_one_seed_and_one_worker_give_the_same_trials(new_storage: Callable[[str], str], sampler: str) -> None:
    once = _parameters(new_storage("sqlite"), sampler, seed=5)
    assert once == _parameters(new_storage("journal"), sampler, seed=5)
    assert once != _parameters(new_storage("grpc-journal"), sampler, seed=6)
    assert len({str(sorted(parameters.items())) for parameters in once}) > 7
    assert any("loss.epsilon" in parameters for parameters in once)
    assert any("loss.epsilon" not in parameters for parameters in once)


def test_random_points_do_not_depend_on_who_draws_them(new_storage: Callable[[str], str]) -> None:
    assert _parameters(new_storage("sqlite"), "random", seed=5) == _parameters(new_storage("journal"), "random", seed=5, workers=3)



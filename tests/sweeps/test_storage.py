"""Storages, with real processes: what is shared is shared exactly, what is put back runs once more, and what is wrong is said."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps import storage as module
from sweeps.storage import StorageError, address_of, claim_waiting, enqueue_many, finish, open_storage, requeue, shown, start_server, study_attr
from tests.conftest import REPOSITORY, Result
from tests.conftest import command as losskit_command
from tests.sweeps.conftest import PostgresServer

optuna.logging.set_verbosity(optuna.logging.ERROR)


def processes(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """What ``function`` gives for each of ``arguments``, each in a process of its own, all of them at once."""
    context = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    context.set_forkserver_preload(["sweeps.storage", "tests.sweeps.test_storage"])
    several = list(arguments)
    answers = context.SimpleQueue()
    started = context.Barrier(len(several))
    workers = [context.Process(target=_call, args=(answers, started, function, arguments)) for arguments in several]
    for worker in workers:
        worker.start()
    given = [answers.get() for _ in workers]
    for worker in workers:
        worker.join(timeout=20)
    problems = [error for error, _ in given if error]
    assert not problems, problems
    return [answer for _, answer in given]


def _call(answers: Any, started: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started.wait(60)
    try:
        answers.put((None, function(*arguments)))
    except BaseException as error:
        answers.put((repr(error), None))
        raise


def new_study(address: str, **options: Any) -> optuna.Study:
    return optuna.create_study(study_name="sweep", storage=open_storage(address), sampler=optuna.samplers.RandomSampler(seed=0), **options)


def same_study(address: str) -> optuna.Study:
    """The study as another process would open it."""
    return optuna.load_study(study_name="sweep", storage=open_storage(address), sampler=optuna.samplers.RandomSampler(seed=0))


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        (None, "sqlite:////work/sweeps.db"),
        ("  ", "sqlite:////work/sweeps.db"),
        ("sqlite:///mine.db", "sqlite:////work/mine.db"),
        ("sqlite:////data/mine.db", "sqlite:////data/mine.db"),
        ("sqlite+pysqlite:////data/mine.db", "sqlite:////data/mine.db"),
        ("sub/mine.db", "sqlite:////work/sub/mine.db"),
        ("/data/100%.sqlite", "sqlite:////data/100%25.sqlite"),
        ("journal:mine.log", "journal:/work/mine.log"),
        ("journal:///data/mine.db", "journal:/data/mine.db"),
        ("postgresql://u:p@host/db", "postgresql+psycopg://u:p@host/db"),
        ("postgres://host/db", "postgresql+psycopg://host/db"),
        ("postgresql+pg8000://host/db", "postgresql+pg8000://host/db"),
        ("mysql://host/db", "mysql+pymysql://host/db"),
        ("mariadb://host/db", "mysql+pymysql://host/db"),
        ("grpc://host", "grpc://host:13000"),
        ("grpc://host:5/", "grpc://host:5"),
        ("grpc://[::1]:5", "grpc://[::1]:5"),
    ],
)
def test_an_address_has_a_normal_form(given: str | None, normal: str) -> None:
    assert address_of(given, directory=Path("/work")) == normal
    assert address_of(normal, directory=Path("/elsewhere")) == normal


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("postgressql://host/db", r"unknown storage .* did you mean 'postgresql'\?"),
        ("redis://u:secret@host", r"unknown storage 'redis://host'"),
        ("mine", "unknown storage 'mine'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file that several workers could share"),
        ("journal:", "names no file"),
        ("postgresql://", "names no server"),
        ("grpc:host:5", "names no server"),
        ("grpc://host:port", "is no address"),
        ("grpc://host/db", "must be grpc://host:port"),
    ],
)
def test_an_address_that_cannot_be_says_why(given: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as raised:
        address_of(given)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "visible"),
    [
        ("postgresql+psycopg://me:pa/ss@w#rd@host:5/db?sslmode=require", "postgresql+psycopg://host:5/db?sslmode=require"),
        ("mysql://me@host/db?password=hidden", "mysql://host/db"),
        ("postgresql://host/db?user=me&sslpassword=hidden&connect_timeout=3", "postgresql://host/db?connect_timeout=3"),
        ("sqlite:////data/mine.db", "sqlite:////data/mine.db"),
        ("journal:/data/mine", "journal:/data/mine"),
    ],
)
def test_shown_addresses_hold_no_credentials(address: str, visible: str) -> None:
    assert shown(address) == visible


# --------------------------------------------------------------------------- sharing


def test_the_default_is_a_file_in_the_directory(tmp_path: Path) -> None:
    storage = open_storage(directory=tmp_path)
    optuna.create_study(study_name="a", storage=storage)
    assert (tmp_path / "sweeps.db").is_file()
    assert [study.study_name for study in RDBStorage(f"sqlite:///{tmp_path / 'sweeps.db'}").get_all_studies()] == ["a"]  # Optuna's own tools read it


def test_a_file_name_may_hold_anything(tmp_path: Path) -> None:
    for name in ("with {braces} and % and ? and #.db", "ünï codé 'quoted'.db"):
        address = address_of(str(tmp_path / name))
        optuna.create_study(study_name="a", storage=open_storage(address))
        assert (tmp_path / name).is_file()
        assert len(open_storage(address).get_all_studies()) == 1


def _open_and_count(address: str) -> int:
    storage = open_storage(address)
    return len(storage.get_all_studies())


def test_several_processes_may_open_a_new_storage_at_once(new_storage: Callable[[str], str]) -> None:
    address = new_storage("sqlite")
    assert processes(_open_and_count, [(address,)] * 6) == [0] * 6
    with sqlite3.connect(address.removeprefix("sqlite:///")) as connection:
        assert connection.execute("SELECT count(*) FROM version_info").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_processes_may_open_an_empty_database_at_once(postgres_server: PostgresServer) -> None:
    address = postgres_server.new_database()
    assert processes(_open_and_count, [(address,)] * 4) == [0] * 4


def _work(address: str) -> tuple[list[int], int]:
    """Pop tickets until none waits; put every third back once. Gives the tickets that it finished, and how many it put back."""
    study = same_study(address)
    finished, back = [], 0
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        ticket = trial.user_attrs.get("ticket")
        if ticket is None:  # the last one went to another worker
            study.tell(trial, state=TrialState.FAIL)
        elif ticket % 3 == 0 and "back" not in trial.user_attrs:
            assert requeue(study, trial._trial_id, user_attrs={"back": os.getpid()})
            back += 1
        else:
            assert trial.suggest_float("x", 0, 100) == ticket
            study.tell(trial, float(ticket))
            finished.append(ticket)
    return finished, back


def test_four_processes_pop_sixty_tickets_exactly(address: str) -> None:
    study = new_study(address)
    enqueue_many(study, [{"x": float(ticket)} for ticket in range(60)], [{"ticket": ticket} for ticket in range(60)])
    answers = processes(_work, [(address,)] * 4)
    assert sorted(itertools.chain.from_iterable(finished for finished, _ in answers)) == list(range(60))
    assert sum(back for _, back in answers) == 20
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert [(trial.number, trial.value) for trial in complete] == [(ticket, float(ticket)) for ticket in range(60)]
    assert {trial.state for trial in trials[60:]} <= {TrialState.FAIL}


# --------------------------------------------------------------------------- tickets


def _claim_and_finish(address: str, mark: str) -> list[int]:
    """Claim tickets until none waits; put every third back once, end the others. Gives the tickets that it ended."""
    study, ended = same_study(address), []
    while (trial := claim_waiting(study, ("mark", mark))) is not None:
        assert (trial.state, trial.system_attrs["mark"]) == (TrialState.RUNNING, mark)
        if trial.number % 3 == 0 and "back" not in trial.user_attrs:
            assert requeue(study, trial._trial_id, started=trial.datetime_start, user_attrs={"back": mark})
        else:
            assert optuna.Trial(study, trial._trial_id).suggest_float("x", 0, 100) == trial.number
            assert finish(study, trial._trial_id, TrialState.COMPLETE, [float(trial.number)], held=("mark", lambda value: value == mark))
            ended.append(trial.number)
    return ended


def test_four_processes_claim_and_end_sixty_tickets_exactly(address: str) -> None:
    study = new_study(address)
    enqueue_many(study, [{"x": float(ticket)} for ticket in range(60)])
    ended = processes(_claim_and_finish, [(address, f"worker {i}") for i in range(4)])
    left = _claim_and_finish(address, "last")  # put back by one when the others had seen that none waits
    assert sorted(itertools.chain(left, *ended)) == list(range(60))
    trials = study.get_trials(deepcopy=False)
    assert [(trial.number, trial.state, trial.value) for trial in trials] == [(ticket, TrialState.COMPLETE, float(ticket)) for ticket in range(60)]
    assert all(trial.datetime_start <= trial.datetime_complete for trial in trials)


def test_only_who_holds_a_running_trial_ends_it(address: str) -> None:
    study = new_study(address, directions=["minimize", "maximize"])
    enqueue_many(study, [{}])
    trial = claim_waiting(study, ("mark", "mine"))
    assert trial is not None
    assert claim_waiting(study, ("mark", "theirs")) is None

    def end(who: str, state: TrialState = TrialState.COMPLETE, values: list[float] | None = None) -> bool:
        return finish(same_study(address), trial._trial_id, state, values, held=("mark", lambda value: value == who))

    assert not end("theirs", TrialState.FAIL)
    assert same_study(address).get_trials()[0].state == TrialState.RUNNING
    assert end("mine", values=[1.0, float("inf")])
    assert not end("mine", TrialState.FAIL)
    ended = same_study(address).get_trials()[0]
    assert (ended.state, ended.values) == (TrialState.COMPLETE, [1.0, float("inf")])


def test_one_attribute_of_a_study_is_read_alone(address: str) -> None:
    study = new_study(address)
    assert study_attr(study, "stop") is None
    study.set_user_attr("stop", {"why": "enough"})
    study.set_user_attr("other", 1)
    assert study_attr(same_study(address), "stop") == {"why": "enough"}
    study.set_user_attr("stop", None)
    assert study_attr(same_study(address), "stop") is None


@pytest.mark.parametrize("tickets", [20, 500])
def test_a_trial_takes_few_statements_however_many_wait(new_storage: Callable[[str], str], tickets: int) -> None:
    study = new_study(new_storage("sqlite"))
    enqueue_many(study, [{}] * tickets)
    sent: list[str] = []
    module.event.listen(study._storage._backend.engine, "before_cursor_execute", lambda _, __, statement, *___: sent.append(statement))
    for _ in range(10):
        trial = claim_waiting(study, ("mark", "mine"))
        assert trial is not None
        optuna.Trial(study, trial._trial_id).suggest_float("x", 0, 1)
        assert finish(study, trial._trial_id, TrialState.COMPLETE, [1.0], held=("mark", lambda value: value == "mine"))
    assert len(sent) <= 10 * 30


def test_many_tickets_are_what_singly_enqueued_ones_are(address: str) -> None:
    study = new_study(address)
    params: list[dict[str, Any]] = [{"x": 1.5, "name": "[a,b]"}, {}, {"x": None}]
    attributes: list[dict[str, Any]] = [{"ticket": 0, "more": [1, {"a": None}]}, {"ticket": 1}, {}]
    for given, attrs in zip(params, attributes, strict=True):
        study.enqueue_trial(given, user_attrs=attrs)
    enqueue_many(study, params, attributes)
    enqueue_many(study, [])
    enqueue_many(study, [{"x": 2.0}])
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(7))
    for one, other in zip(trials[:3], trials[3:6], strict=True):
        assert (one.state, one.params, one.user_attrs, one.system_attrs, one.datetime_start) == (
            TrialState.WAITING,
            other.params,
            other.user_attrs,
            other.system_attrs,
            other.datetime_start,
        )
    assert study.ask().suggest_float("x", 0, 2) == 1.5
    with pytest.raises(ValueError, match="one mapping for each of the 1 trials, but has 2"):
        enqueue_many(study, [{}], [{}, {}])


def test_tickets_of_an_unknown_study_are_refused(address: str) -> None:
    study = new_study(address)
    study._study_id += 1000
    with pytest.raises(KeyError):
        enqueue_many(study, [{}])


def _enqueue_and_create(address: str, process: int) -> None:
    study = same_study(address)
    for part in range(4):
        enqueue_many(study, [{}] * 10, [{"batch": f"{process}.{part}"}] * 10)
        study._storage.create_new_trial(study._study_id)


def test_numbers_follow_each_other_whoever_adds_meanwhile(new_storage: Callable[[str], str], request: pytest.FixtureRequest) -> None:
    for kind in ("sqlite", "journal", "postgresql"):
        address = new_storage(kind)
        study = new_study(address)
        processes(_enqueue_and_create, [(address, process) for process in range(3)])
        trials = study.get_trials(deepcopy=False)
        assert [trial.number for trial in trials] == list(range(3 * 4 * 11)), kind
        batches = [batch for batch, _ in itertools.groupby(trial.user_attrs.get("batch") for trial in trials) if batch]
        assert len(batches) == len(set(batches)) == 12, kind  # none was torn apart


def test_a_thousand_tickets_take_no_minute(new_storage: Callable[[str], str]) -> None:
    study = new_study(new_storage("sqlite"))
    start = time.monotonic()
    enqueue_many(study, [{}] * 1000, [{"ticket": ticket} for ticket in range(1000)])
    assert time.monotonic() - start < 5  # singly: ten seconds and more


def test_other_storages_get_their_tickets_singly() -> None:
    study = optuna.create_study(storage=InMemoryStorage())
    enqueue_many(study, [{"x": 1.0}, {}])
    trial = study.ask()
    assert trial.suggest_float("x", 0, 1) == 1.0
    assert requeue(study, trial._trial_id, user_attrs={"lost": 1}, system_attrs={"worker": None})
    assert [t.state for t in study.trials] == [TrialState.WAITING] * 2
    assert not requeue(study, trial._trial_id)


# --------------------------------------------------------------------------- putting back


def test_a_trial_that_is_put_back_goes_on_elsewhere(address: str) -> None:
    study, other, third = new_study(address), same_study(address), same_study(address)
    trial = study.ask()
    x, name = trial.suggest_float("x", 0, 1), trial.suggest_categorical("name", ["a", "b", "c"])
    trial.report(0.5, 1)
    trial.report(0.4, 2)
    trial.set_user_attr("losskit:run_id", "r1")
    assert [t.state for t in other.trials] == [t.state for t in third.trials] == [TrialState.RUNNING]  # all have it in their caches

    started = other.trials[0].datetime_start
    assert requeue(other, trial._trial_id, started=started, user_attrs={"lost": 1, "losskit:run_id": "r2"}, system_attrs={"worker": None})

    for view in (study, other, third):
        assert [t.state for t in view.trials] == [TrialState.WAITING]
    again = third.ask()
    assert (again.number, again._trial_id) == (trial.number, trial._trial_id)
    assert again.suggest_float("x", 0, 1) == x
    assert again.suggest_categorical("name", ["a", "b", "c"]) == name
    again.report(0.3, 3)
    third.tell(again, 0.3)
    (done,) = study.trials
    assert (done.state, done.value, done.intermediate_values) == (TrialState.COMPLETE, 0.3, {1: 0.5, 2: 0.4, 3: 0.3})
    assert done.user_attrs == {"losskit:run_id": "r2", "lost": 1}
    assert done.system_attrs["worker"] is None


def test_of_several_that_put_back_one_does(address: str) -> None:
    study, other = new_study(address), same_study(address)
    study.enqueue_trial({})
    trial = study.ask()
    first = study.trials[0].datetime_start
    assert first is not None
    assert not requeue(other, trial._trial_id, started=first - timedelta(seconds=1), user_attrs={"lost": 7})
    assert requeue(study, trial._trial_id, started=first)
    assert not requeue(other, trial._trial_id, started=first)  # it waits already
    time.sleep(0.002)
    again = other.ask()
    assert again._trial_id == trial._trial_id
    assert not requeue(study, trial._trial_id, started=first, user_attrs={"lost": 7})  # another attempt
    other.tell(again, 1.0)
    assert not requeue(study, trial._trial_id)
    assert "lost" not in study.trials[0].user_attrs
    with pytest.raises(KeyError):
        requeue(study, trial._trial_id + 1000)


def test_the_sampler_takes_a_trial_that_was_put_back_for_what_it_is(address: str) -> None:
    def suggestions(put_back: bool) -> list[float]:
        name = f"tpe-{put_back}"
        study = optuna.create_study(study_name=name, storage=open_storage(address), sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=3))
        for _ in range(5):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if put_back:
            assert requeue(study, trial._trial_id)
            trial = study.ask()
        following = study.ask()
        values = [trial.suggest_float("x", 0, 1), following.suggest_float("x", 0, 1)]
        study.tell(trial, values[0])
        study.tell(following, values[1])
        return [*values, study.ask().suggest_float("x", 0, 1)]

    assert suggestions(put_back=True) == suggestions(put_back=False)


def test_an_old_heartbeat_goes_with_the_old_attempt(new_storage: Callable[[str], str]) -> None:
    study = new_study(new_storage("sqlite"))
    trial = study.ask()
    backend = study._storage._backend
    backend.record_heartbeat(trial._trial_id)
    with sqlite3.connect(backend.engine.url.database) as connection:
        assert connection.execute("SELECT count(*) FROM trial_heartbeats").fetchone() == (1,)
        requeue(study, trial._trial_id)
        assert connection.execute("SELECT count(*) FROM trial_heartbeats").fetchone() == (0,)


def test_who_owned_a_trial_before_does_not_win_the_race_for_it(tmp_path: Path) -> None:
    """Optuna's journal would give the trial to both."""

    def race(mine: JournalStorage, theirs: JournalStorage, name: str) -> list[bool]:
        study = optuna.create_study(study_name=name, storage=mine)
        trial_id = study.ask()._trial_id
        theirs.set_trial_state_values(trial_id, TrialState.WAITING)
        won: list[bool] = []
        write = mine._write_log

        def late(*arguments: Any) -> None:  # between my look and my writing, they pop it
            won.append(theirs.set_trial_state_values(trial_id, TrialState.RUNNING))
            write(*arguments)

        mine._write_log = late  # type: ignore[method-assign]
        won.append(mine.set_trial_state_values(trial_id, TrialState.RUNNING))
        return won

    path = str(tmp_path / "j")
    assert race(JournalStorage(JournalFileBackend(path)), JournalStorage(JournalFileBackend(path)), "theirs") == [True, True]
    ours = [open_storage(f"journal:{path}") for _ in range(2)]
    assert all(isinstance(storage, JournalStorage) for storage in ours)
    assert race(ours[0], ours[1], "ours") == [True, False]  # type: ignore[arg-type]


# --------------------------------------------------------------------------- what others do is seen


def _facts(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs, t.datetime_start, t.datetime_complete) for t in trials]


@pytest.mark.parametrize("kind", ["sqlite", "grpc"])
@pytest.mark.parametrize("seed", range(3))
def test_a_cache_sees_all_that_others_do(new_storage: Callable[[str], str], tmp_path: Path, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    address = new_storage(kind)
    study, other = new_study(address), same_study(address)
    truth = optuna.load_study(study_name="sweep", storage=RDBStorage(f"sqlite:///{tmp_path / ('sweeps.db' if kind == 'sqlite' else 'behind.db')}"))
    draw = random.Random(seed)
    running: list[optuna.Trial] = []
    for step in range(40):
        actor = draw.choice([study, other])
        action = draw.choice(["enqueue", "ask", "ask", "ask", "report", "tell", "back", "create"])
        if action == "enqueue":
            enqueue_many(actor, [{"x": 0.5}] * draw.randint(1, 8), None)
        elif action == "ask":
            running.append(actor.ask())
            running[-1].suggest_float("x", 0, 1)
        elif action == "create":
            running.append(optuna.Trial(actor, actor._storage.create_new_trial(actor._study_id)))
        elif running:
            trial = running[draw.randrange(len(running))]
            if action == "report":
                trial.report(draw.random(), step)
            elif action == "tell":
                running.remove(trial)
                actor.tell(trial.number, draw.random())
            else:
                running.remove(trial)
                assert requeue(actor, trial._trial_id, user_attrs={"step": step})
        if draw.random() < 0.6:  # not after every step: several changes are seen at one look
            assert _facts(study.get_trials(deepcopy=False)) == _facts(truth.get_trials(deepcopy=False)), (step, action)


def test_waiting_trials_are_read_once(new_storage: Callable[[str], str]) -> None:
    study = new_study(new_storage("sqlite"))
    enqueue_many(study, [{}] * 200, None)
    assert len(study.get_trials(deepcopy=False)) == 200
    read: list[int] = []
    backend = study._storage._backend
    original = backend._get_trials
    backend._get_trials = lambda *arguments: [read.append(1) or trial for trial in original(*arguments)]
    for _ in range(5):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, 1.0)
    assert len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) == 5
    assert len(read) <= 15


def test_a_deleted_study_leaves_nothing_in_the_cache(new_storage: Callable[[str], str]) -> None:
    address = new_storage("sqlite")
    study = new_study(address)
    enqueue_many(study, [{}] * 3, None)
    study.ask()
    assert len(study.trials) == 3
    optuna.delete_study(study_name="sweep", storage=study._storage)
    assert optuna.create_study(study_name="sweep", storage=study._storage).trials == []


def test_readers_do_not_wait_for_a_writer(new_storage: Callable[[str], str]) -> None:
    address = new_storage("sqlite")
    study = new_study(address)
    trial = study.ask()
    writer = sqlite3.connect(address.removeprefix("sqlite:///"), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    assert study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING
    assert len(study.get_trials()) == 1
    assert time.monotonic() - start < 2
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(study._storage.set_trial_user_attr, trial._trial_id, "a", 1)
        time.sleep(0.2)
        assert not written.done()
        writer.execute("COMMIT")
        written.result(timeout=20)
    writer.close()


# --------------------------------------------------------------------------- what is wrong


def _refused(address: str, *said: str, **options: Any) -> str:
    with pytest.raises(StorageError) as raised:
        open_storage(address, **options)
    message = str(raised.value)
    for part in said:
        assert part in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _refused(f"{scheme}{tmp_path}/missing/a.db", "there is no directory", "missing")
    _refused(f"{scheme}{tmp_path}", "is a directory")
    (tmp_path / "text").write_text("this is a text, and a long one\n" * 100)
    _refused(f"{scheme}{tmp_path}/text", "is not an SQLite file" if scheme == "sqlite:///" else "is no journal")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(module.os, "access", lambda path, mode: "closed" not in str(path))  # root may write anywhere
    _refused(f"{scheme}{tmp_path}/closed/a.db", "its directory is not writable")
    (tmp_path / "closed" / "a.db").touch()
    _refused(f"{scheme}{tmp_path}/closed/a.db", "cannot be written: no permission")
    assert not (tmp_path / "missing").exists()


def test_a_broken_file_is_an_error_in_words(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "a.db"))
    content = bytearray((tmp_path / "a.db").read_bytes() or b"")
    content[100:4000] = b"x" * 3900
    for name in ("a.db-wal", "a.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "b.db").write_bytes(b"SQLite format 3\x00" + bytes(content[16:]))
    _refused(str(tmp_path / "b.db"), "cannot be used")


@pytest.mark.parametrize(("version", "said"), [("v2.4.0.a", "optuna storage upgrade --storage sqlite:///"), ("v99.0.0", "made by a newer Optuna")])
def test_another_version_of_the_tables_says_what_to_do(tmp_path: Path, version: str, said: str) -> None:
    storage = open_storage(str(tmp_path / "a.db"))
    storage._backend.engine.dispose()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    _refused(str(tmp_path / "a.db"), "another version of Optuna's tables", said)


def test_the_store_of_another_program_stays_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("CREATE TABLE experiments (name TEXT)")
    before = (tmp_path / "mlflow.db").read_bytes()
    _refused(str(tmp_path / "mlflow.db"), "belongs to another program", "a database of their own")
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(("address", "driver", "extra"), [("postgresql://host/db", "psycopg", "postgres"), ("mysql://host/db", "pymysql", "mysql")])
def test_a_missing_driver_is_named(address: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    _refused(address, f"pip install 'losskit[{extra}]'")


def test_an_unknown_driver_is_named() -> None:
    _refused("postgresql+psycop://host/db", "unknown driver 'psycop'")


def test_a_missing_grpc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    _refused("grpc://host:1", "losskit[grpc]")
    with pytest.raises(StorageError, match=r"losskit\[grpc\]"):
        start_server(port=0)


def test_a_database_says_what_is_wrong_and_never_the_password(postgres_server: PostgresServer) -> None:
    wrong = postgres_server.url("postgres", password="wrong%20w%40rd")
    assert "w@rd" not in _refused(wrong, "refuses the login", "postgresql+psycopg://127.0.0.1")
    assert "w@rd" not in _refused(wrong.replace("%40", "@"), "postgresql+psycopg://127.0.0.1")
    assert "secret-word" not in _refused(postgres_server.url("nothing_there"), "no such database", "createdb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        start = time.monotonic()
        message = _refused(f"postgresql://me:secret-word@127.0.0.1:{free.getsockname()[1]}/db", "cannot be reached")
        assert "secret-word" not in message
        assert time.monotonic() - start < 10


def test_a_database_in_use_by_another_program_stays_as_it_is(postgres_server: PostgresServer) -> None:
    import psycopg

    address = postgres_server.new_database()
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    _refused(address, "belongs to another program")
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)


# --------------------------------------------------------------------------- serving


def test_no_server_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    _refused("grpc://127.0.0.1:9", "no storage answers at grpc://127.0.0.1:9", "losskit storage serve")


def test_a_port_that_is_taken_is_an_error_in_words(new_storage: Callable[[str], str], tmp_path: Path) -> None:
    port = int(new_storage("grpc").rpartition(":")[2])
    with pytest.raises(StorageError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use; take another --port"):
        start_server(str(tmp_path / "a.db"), port=port)
    with pytest.raises(StorageError, match="a number from 0 to 65535, but got 70000"):
        start_server(str(tmp_path / "a.db"), port=70000)


def test_optunas_own_server_is_served_too(tmp_path: Path) -> None:
    from optuna.storages._grpc.server import make_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(open_storage(str(tmp_path / "a.db")), "127.0.0.1", port)
    server.start()
    try:
        study = new_study(f"grpc://127.0.0.1:{port}")
        enqueue_many(study, [{"x": 1.0}, {}], [{"ticket": 0}, {"ticket": 1}])
        trial = study.ask()
        assert trial.user_attrs == {"ticket": 0}
        assert requeue(study, trial._trial_id, user_attrs={"lost": 1})
        assert not requeue(study, trial._trial_id)
        assert study.ask().user_attrs == {"ticket": 0, "lost": 1}
    finally:
        server.stop(0).wait()


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    arguments = losskit_command("storage", "serve", "--storage", "journal:mine", "--port", "0")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    address = next(word for word in process.stdout.readline().split() if word.startswith("grpc://"))
    assert address.startswith("grpc://127.0.0.1:")
    study = new_study(address)
    study.enqueue_trial({})
    assert len(same_study(address).trials) == 1
    process.send_signal(2)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert [study.study_name for study in open_storage(f"journal:{tmp_path / 'mine'}").get_all_studies()] == ["sweep"]


def test_the_command_says_what_is_wrong(losskit: Callable[..., Result], new_storage: Callable[[str], str]) -> None:
    port = new_storage("grpc").rpartition(":")[2]
    assert_error(losskit("storage", "serve", "--port", port), "cannot listen on 127.0.0.1")
    assert_error(losskit("storage", "serve", "--storage", "postgrsql://a:secret@b/c"), "did you mean 'postgresql'?")


def assert_error(result: Result, said: str) -> None:
    assert result.code == 2
    assert result.err.startswith("Error: ")
    assert said in result.err
    assert "secret" not in result.err
    assert Counter(result.err)["\n"] == 1


def test_opening_a_file_again_leaves_the_first_ones_locks_alone(new_storage: Callable[[str], str]) -> None:
    """The kernel drops all of a process's locks on a file when that process closes it once; then others may take the log away."""
    address = new_storage("sqlite")
    first = open_storage(address)
    optuna.create_study(study_name="s", storage=first, direction="minimize")
    open_storage(address)
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
    taken = subprocess.run([sys.executable, "-c", code, address.removeprefix("sqlite:///")], capture_output=True, text=True, check=False)
    assert "database is locked" in taken.stderr
    assert [study.study_name for study in first.get_all_studies()] == ["s"]

"""The pool, with real processes: those that die are replaced and reported, those that end are not, and none is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps import pool as module
from sweeps.pool import Pool, WorkersDie
from tests.conftest import REPOSITORY

SECONDS = 60.0  # within which whatever is waited for happens, on any machine

TARGETS = '''
"""What the workers of these tests do. Each says what it has to say in one small write, so that several can share a pipe."""

import os
import signal
import subprocess
import sys
import time

from sweeps.pool import starter_lives


def stay(said, device):
    """Until it is interrupted; then it "saves" and ends."""
    try:
        said.send(("begun", os.getpid(), device, {name: os.environ.get(name) for name in ("LOSSKIT_TEST", "LOSSKIT_LATER")}))
        while True:
            time.sleep(0.05)  # not signal.pause(): a signal that comes just before it would be lost
    except KeyboardInterrupt:
        said.send(("saved", os.getpid(), device, {}))


def watch(said, device):
    """Until whoever started it is gone."""
    said.send(("begun", os.getpid(), device, {}))
    while starter_lives():
        time.sleep(0.05)


def stubborn(said, device):
    """Leads a group of its own, with a child, and does not listen."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(2, signal.SIG_IGN); print(flush=True); signal.pause()"], stdout=-1)
    child.stdout.readline()
    said.send(("begun", os.getpid(), device, {"child": child.pid}))
    while True:
        signal.pause()


def end(said, device):
    said.send(("begun", os.getpid(), device, {}))


def leave(said, code, device):
    said.send(("begun", os.getpid(), device, {}))
    os._exit(code)
'''


class Talk:
    """What workers say, in the order in which they say it."""

    def __init__(self) -> None:
        self.mine, self.theirs = multiprocessing.get_context("forkserver").Pipe(duplex=False)

    def hear(self, word: str, times: int = 1) -> list[Any]:
        """The next ``times`` sayings, all of which are to begin with ``word``."""
        heard = []
        for _ in range(times):
            assert self.mine.poll(SECONDS), f"nobody said {word!r}"
            heard.append(self.mine.recv())
        assert [said[0] for said in heard] == [word] * times
        return heard

    @property
    def silent(self) -> bool:
        return not self.mine.poll()


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Talk) -> Iterator[Callable[..., Pool]]:
    """Make a pool whose workers run a function of ``TARGETS``; whatever it leaves is killed."""
    (tmp_path / "pool_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pools: list[Pool] = []

    def made(function: str, workers: int, *arguments: Any, **options: Any) -> Pool:
        pools.append(Pool(f"pool_targets:{function}", (talk.theirs, *arguments), workers, **options))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close(calmly=False)


def wait_for_death(pool: Pool) -> None:
    """Until one of the pool's workers has ended."""
    assert wait([process.sentinel for process in pool._processes if process is not None], timeout=SECONDS)


def assert_gone(*pids: int) -> None:
    left = [process for process in psutil.process_iter() if process.pid in pids and process.status() != psutil.STATUS_ZOMBIE]
    assert not psutil.wait_procs(left, timeout=SECONDS)[1]


def pids_of(sayings: list[Any]) -> list[int]:
    return [said[1] for said in sayings]


# --------------------------------------------------------------------------- tending


def test_a_killed_worker_is_reported_and_replaced(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("stay", 2, lost=lost.append)
    pool.start()
    first = pids_of(talk.hear("begun", 2))
    assert len(set(first)) == 2
    assert sorted(pool.alive) == sorted(first)
    assert pool.tend(more=True) == 2
    assert lost == []
    victim, survivor = first
    os.kill(victim, signal.SIGKILL)
    wait_for_death(pool)
    assert pool.tend(more=True) == 2
    assert lost == [victim]
    (replacement,) = pids_of(talk.hear("begun"))
    assert sorted(pool.alive) == sorted([survivor, replacement])
    assert pool.tend(more=True) == 2
    assert lost == [victim]
    os.kill(replacement, signal.SIGKILL)
    wait_for_death(pool)
    assert pool.tend(more=False) == 1  # nothing is left to do: reported, but not replaced
    assert pool.tend(more=True) == 1
    assert (lost, pool.alive) == ([victim, replacement], [survivor])


def test_a_worker_that_has_ended_is_neither_lost_nor_replaced(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("end", 1, lost=lost.append)
    pool.start()
    talk.hear("begun")
    wait_for_death(pool)
    assert pool.tend(more=True) == 0
    assert pool.tend(more=True) == 0
    assert (lost, pool.alive) == ([], [])
    assert talk.silent


def test_workers_that_die_at_once_one_after_the_other_are_given_up(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("leave", 1, 3, lost=lost.append)
    pool.start()
    for _ in range(module.HASTY - 1):
        wait_for_death(pool)
        assert pool.tend(more=True) == 1
    wait_for_death(pool)
    with pytest.raises(WorkersDie, match="exit code 3 as soon as they are started"):
        pool.tend(more=True)
    assert lost == pids_of(talk.hear("begun", module.HASTY))
    assert pool.alive == []


@pytest.mark.parametrize("why", ["they had worked", "they were killed"])
def test_other_deaths_are_no_reason_to_give_up(make: Callable[..., Pool], talk: Talk, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASTY", 2)
    if why == "they had worked":
        monkeypatch.setattr(module, "HASTY_SECONDS", 0.0)
    pool = make("leave", 1, 3) if why == "they had worked" else make("stay", 1)
    pool.start()
    for _ in range(3):
        (pid,) = pids_of(talk.hear("begun"))
        if why == "they were killed":
            os.kill(pid, signal.SIGKILL)
        wait_for_death(pool)
        assert pool.tend(more=True) == 1
    talk.hear("begun")


def test_devices_are_handed_out_in_turn(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("stay", 3, devices=["4", "GPU-7"], lost=lost.append)
    pool.start()
    begun = talk.hear("begun", 3)
    assert sorted(said[2] for said in begun) == ["4", "4", "GPU-7"]
    victim = next(said[1] for said in begun if said[2] == "GPU-7")
    os.kill(victim, signal.SIGKILL)
    wait_for_death(pool)
    pool.tend(more=True)
    assert talk.hear("begun")[0][2] == "GPU-7"  # the replacement has the device of the one it replaces
    pool.close()
    talk.hear("saved", 3)
    make("end", 1).start()
    assert talk.hear("begun")[0][2] is None


def test_workers_have_the_environment_of_now(make: Callable[..., Pool], talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSKIT_LATER", "early")
    monkeypatch.delenv("LOSSKIT_TEST", raising=False)
    pool = make("stay", 1, environment={"LOSSKIT_TEST": "given"})
    pool.prepare()
    assert "LOSSKIT_TEST" not in os.environ  # it is the workers', not this process's
    monkeypatch.setenv("LOSSKIT_LATER", "late")
    pool.start()
    assert talk.hear("begun")[0][3] == {"LOSSKIT_TEST": "given", "LOSSKIT_LATER": "late"}
    assert (os.environ["LOSSKIT_LATER"], "LOSSKIT_TEST" in os.environ) == ("late", False)


# --------------------------------------------------------------------------- the end


def test_closing_calmly_lets_workers_save(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("stay", 2, lost=lost.append)
    pool.start()
    begun = pids_of(talk.hear("begun", 2))
    pool.close()
    assert sorted(pids_of(talk.hear("saved", 2))) == sorted(begun)
    assert lost == []  # they have put back what they had themselves
    assert_gone(*begun)
    pool.close()  # once more does nothing
    assert lost == []


def test_stubborn_workers_are_killed_with_their_children(make: Callable[..., Pool], talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALM_SECONDS", 0.3)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    lost: list[int] = []
    pool = make("stubborn", 2, lost=lost.append)
    pool.start()
    begun = talk.hear("begun", 2)
    pool.close()
    assert sorted(lost) == sorted(pids_of(begun))
    assert pool.alive == []
    assert_gone(*pids_of(begun), *(said[3]["child"] for said in begun))


def test_closing_at_once_asks_nobody(make: Callable[..., Pool], talk: Talk) -> None:
    lost: list[int] = []
    pool = make("stay", 1, lost=lost.append)
    pool.start()
    (pid,) = pids_of(talk.hear("begun"))
    pool.close(calmly=False)
    assert lost == [pid]
    assert_gone(pid)
    assert talk.silent


def test_a_second_ctrl_c_ends_the_waiting(make: Callable[..., Pool], talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []
    pool = make("stubborn", 1, lost=lost.append)
    pool.start()
    (begun,) = talk.hear("begun")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.close()
    assert lost == [begun[1]]
    assert_gone(begun[1], begun[3]["child"])


DRIVER = '''
import json, multiprocessing, os, sys

def main(how):
    from multiprocessing import forkserver
    from sweeps.pool import Pool

    mine, theirs = multiprocessing.get_context("forkserver").Pipe(duplex=False)
    target = "stay" if how == "close" else "watch"
    pool = Pool(f"pool_targets:{target}", (theirs,), 2, preload=["pool_heavy"], environment={"LOSSKIT_HEAVY": "counts"})
    pool.start()
    begun = [mine.recv()[1] for _ in range(2)]
    os.kill(begun[0], 9)
    while len(begun) < 3:
        pool.tend(more=True)
        if mine.poll(0.05):
            begun.append(mine.recv()[1])
    parents = [int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]) for pid in begun[1:]]
    print(json.dumps({"workers": begun, "parents": parents, "server": forkserver._forkserver._forkserver_pid}), flush=True)
    if how == "close":
        pool.close()
    else:
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    main(*sys.argv[1:])
'''


@pytest.mark.parametrize(("how", "code"), [("close", 0), ("kill", -signal.SIGKILL)])
def test_workers_share_one_process_that_has_imported_what_is_heavy(tmp_path: Path, how: str, code: int) -> None:
    (tmp_path / "pool_targets.py").write_text(f"import pool_heavy\n{TARGETS}")
    (tmp_path / "pool_heavy.py").write_text(
        f"import os\nwith open({str(tmp_path / 'imports')!r}, 'a') as file:\n    file.write(f\"{{os.getpid()}} {{os.environ.get('LOSSKIT_HEAVY')}}\\n\")\n"
    )
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])}
    with (tmp_path / "said").open("w") as said, (tmp_path / "errors").open("w") as errors:  # not pipes: those would stay open as long as a worker is left
        done = subprocess.run(
            [sys.executable, str(tmp_path / "driver.py"), how], env=environment, stdout=said, stderr=errors, timeout=SECONDS, check=False
        )
    assert done.returncode == code, (tmp_path / "errors").read_text()
    found = json.loads((tmp_path / "said").read_text())
    assert len(set(found["workers"])) == 3
    assert found["parents"] == [found["server"]] * 2
    assert (tmp_path / "imports").read_text() == f"{found['server']} counts\n"  # once, in the process that all are forked from
    assert_gone(*found["workers"], found["server"])  # also where the one who started them was killed

"""Local worker processes: as many as wanted, each replaced when it dies, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

POLL_SECONDS = 0.2
CALM_SECONDS = 60.0  # how long workers have to save what they do and end, after Ctrl-C, before they are killed
HASTY = 5  # workers in a row that died within HASTY_SECONDS of their start: something is wrong with all of them
HASTY_SECONDS = 10.0


class WorkersDie(Exception):
    """One worker after the other dies before it has done anything."""


class Pool:
    """Processes that all run the same function, forked from one process that has imported the heavy libraries once.

    Args:
        target: ``module:function``; called with ``arguments`` and, as the last one, its device or ``None``.
        arguments: of the function; picklable.
        workers: how many.
        preload: modules that are imported once, for all.
        environment: set before that.
        devices: one for each worker (in turn), as ``CUDA_VISIBLE_DEVICES`` takes them; empty: the CPU.
        lost: told the process id of a worker that has died (whatever it was doing is to be put back).
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[Any],
        workers: int,
        *,
        preload: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        devices: Sequence[str] = (),
        lost: Callable[[int], object] = lambda pid: None,
    ) -> None:
        self.target, self.arguments, self.workers, self.devices, self.lost = target, tuple(arguments), workers, list(devices), lost
        self.preload, self._environment = tuple(preload), dict(environment or {})
        self._processes: list[BaseProcess | None] = [None] * workers
        self._started = [0.0] * workers
        self._hasty = 0

    def prepare(self) -> None:
        """Begin importing, in the process that the workers will be forked from; returns at once."""
        warm(self.preload, self._environment)

    def start(self) -> None:
        """Start the workers."""
        self.prepare()
        for index in range(self.workers):
            self._start(index)

    def _start(self, index: int) -> None:
        device = self.devices[index % len(self.devices)] if self.devices else None
        environment = {**os.environ, **self._environment}  # of now: the process that is forked has that of its own start
        process = _context().Process(target=call, args=(environment, self.target, *self.arguments, device), name=f"losskit-worker-{index}")
        process.start()
        self._processes[index], self._started[index] = process, time.monotonic()

    def tend(self, more: bool) -> int:
        """Look after the workers once: those that died are reported as lost and, if there is ``more`` to do, replaced; how many run.

        Raises:
            WorkersDie: one after the other dies at once.
        """
        for index, process in enumerate(self._processes):
            if process is None or process.is_alive():
                continue
            code = process.exitcode
            process.join()
            self._processes[index] = None
            if code == 0:
                self._hasty = 0
                continue
            self.lost(process.pid or 0)
            hasty = time.monotonic() - self._started[index] < HASTY_SECONDS
            self._hasty = self._hasty + 1 if hasty and code is not None and code > 0 else 0
            if self._hasty >= HASTY:
                raise WorkersDie(f"workers end with exit code {code} as soon as they are started")
            if more:
                self._start(index)
        return len(self.alive)

    @property
    def alive(self) -> list[int]:
        """Process ids of the workers that run."""
        return [process.pid for process in self._processes if process is not None and process.is_alive() and process.pid]

    def interrupt(self) -> None:
        """Ask all workers to save what they do and end."""
        for pid in self.alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    def close(self, calmly: bool = True) -> None:
        """End all workers: calmly, with a checkpoint of what they do, or at once. Ctrl-C while waiting means at once."""
        try:
            if calmly:
                self.interrupt()
                deadline = time.monotonic() + CALM_SECONDS
                while self.alive and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
        finally:
            for process in self._processes:
                if process is not None and process.is_alive() and process.pid:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL) if os.getpgid(process.pid) == process.pid else process.kill()
                    self.lost(process.pid)
            for process in self._processes:
                if process is not None:
                    process.join()


def warm(preload: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Start the process that others are forked from, which imports ``preload``; returns at once. ``False``: there is one already."""
    context = _context()
    context.set_forkserver_preload(["sweeps.pool", *preload])
    if _server() is not None:
        return False
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # some of it counts only if it is there when a library is imported
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return True


def cool() -> None:
    """End the process that :func:`warm` has started, also amid its imports."""
    pid = _server()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it has no public way to be ended before this process


def _server() -> int | None:
    """The process id of the one that others are forked from, if it runs."""
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def _context() -> ForkServerContext:
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    return context


def once(target: str, arguments: Sequence[Any], *, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Any:
    """What ``module:function`` returns, called in a process like a worker's.

    Raises:
        ChildProcessError: it has died, or raised.
    """
    warm(preload, environment or {})
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, {**os.environ, **(environment or {})}, target, *arguments), name="losskit-once")
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        process.join()
        raise ChildProcessError(f"the process ended with exit code {process.exitcode}") from error
    finally:
        receiver.close()
        process.join()


def _answer(sender: Connection, environment: dict[str, str], target: str, *arguments: Any) -> None:
    sender.send(call(environment, target, *arguments))


def call(environment: dict[str, str], target: str, *arguments: Any) -> Any:
    """Run ``module:function`` with ``environment``."""
    os.environ.clear()
    os.environ.update(environment)
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)(*arguments)


def starter_lives() -> bool:
    """In a worker: whether the process that has the pool is still there. The parent tells nothing: that one stays as long as there are workers."""
    starter = multiprocessing.parent_process()
    return starter is None or starter.is_alive()


__all__ = ["Pool", "WorkersDie", "call", "cool", "once", "starter_lives", "warm"]

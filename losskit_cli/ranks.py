"""Several processes on one machine: further ranks start from the run's written config, never from ``sys.argv``.

Rank 0 is the process that the user started; it alone tracks. It starts the others (``python -m losskit_cli.ranks RUN_DIR``) before it
imports torch, so that all of them import at the same time, and tells each, through its standard input, where to meet.
That pipe is also their lifeline: however rank 0 ends, the pipe closes, and they end. The other way round, rank 0 watches them:
a rank that dies fails the run, and does not leave it waiting.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from losskit_cli.errors import LosskitError, RunError, UsageError

POLL_SECONDS = 0.05
NOTICE_SECONDS = 20.0  # that rank 0 has to notice by itself that a rank is gone (its collectives fail), before it is stopped
BLAME_SECONDS = 5.0  # that a rank has to end with its own account, after rank 0 has noticed that something is wrong
END_SECONDS = 60.0  # that the ranks have to end after rank 0 has finished
LOCAL_ADDRESS = "127.0.0.1"
OWN_LAUNCHERS = ("spawn", "fork", "notebook")
LOSS_OF_A_PEER = ("gloo", "nccl", "peer", "socket", "connection", "another rank")


class LostRankError(RunError):
    """A further rank has ended before its time."""


class Ranks:
    """Rank 0's hold on the other ranks of its run; with none of them, everything here does nothing. Use it as a context.

    Args:
        run_dir: the run's directory; each rank logs to ``rank1.log`` … in it.
        processes: ranks 1, 2, …
        grouped: there is a process group, if of this process alone (a strategy for several, on one device).
        shares_cpu: the ranks compute on the same processor cores.
    """

    def __init__(self, run_dir: Path, processes: list[subprocess.Popen[bytes]] | None = None, *, grouped: bool = False, shares_cpu: bool = False) -> None:
        self.run_dir, self.processes, self.grouped, self.shares_cpu = run_dir, processes or [], grouped, shares_cpu
        self._store: Any = None
        self._environment: dict[str, str | None] = {}  # what was there before
        self._threads: int | None = None

    @classmethod
    def start(cls, trainer: Mapping[str, Any], run_dir: Path, *, resume: bool = False) -> Ranks:
        """Start ranks 1, 2, … of a run on several devices of this machine; one device: none.

        Raises:
            UsageError: several machines, a strategy that would start processes itself, or a launcher that has started several of this one.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
            raise UsageError("a launcher has started several of these (LOCAL_RANK is set), but losskit starts its ranks itself: set trainer.devices=…")
        count = device_count(trainer)
        nodes = trainer.get("num_nodes", 1)
        if isinstance(nodes, int) and nodes > 1:
            raise UsageError(f"trainer.num_nodes={nodes}: losskit trains on one machine; use its devices with trainer.devices=…")
        strategy = str(trainer.get("strategy", "auto"))
        plain = "_".join(part for part in strategy.split("_") if part not in OWN_LAUNCHERS)
        if plain != strategy:
            raise UsageError(f"trainer.strategy={strategy}: losskit starts the processes itself, in another way; use trainer.strategy={plain}")
        if count <= 1:
            return cls(run_dir, grouped=strategy != "auto")
        shares_cpu = trainer.get("accelerator", "auto") in ("cpu", "auto")
        environment = {**os.environ, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
        # modules are found as here; -P: the working directory is among them only if it is here
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(sys.path))
        if shares_cpu:
            environment.setdefault("OMP_NUM_THREADS", str(threads_each(count)))
        command = [sys.executable, "-P", "-m", "losskit_cli.ranks", str(run_dir), *(["--resume"] if resume else [])]
        processes = []
        for rank in range(1, count):
            own = {"LOCAL_RANK": str(rank), "LOSSKIT_RANK": str(rank)}
            with log_path(run_dir, rank).open("wb") as log:  # a session of its own: Ctrl-C in the terminal is for rank 0, which tells the others
                processes.append(subprocess.Popen(command, env=environment | own, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True))
        return cls(run_dir, processes, grouped=True, shares_cpu=shares_cpu)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        return len(self.processes) + 1

    def join(self) -> None:
        """Become rank 0: open the place where the ranks meet and tell them. Before the trainer is built, which looks at the environment."""
        if not self.grouped:
            return
        import torch
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # bound here and handed over open: nobody can take the port in between, and nobody outside this machine can reach it
        listening = socket.create_server((LOCAL_ADDRESS, 0))
        port = listening.getsockname()[1]
        self._store = TCPStore(LOCAL_ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
        shared = {"MASTER_ADDR": LOCAL_ADDRESS, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", **_loopback()}
        own = {"WORLD_SIZE": str(self.count), "NODE_RANK": "0", "LOCAL_RANK": "0"}
        self._environment = {name: os.environ.get(name) for name in (*shared, *own)}
        os.environ.update(shared | own)
        if self.shares_cpu and "OMP_NUM_THREADS" not in os.environ:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(threads_each(self.count))
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it is gone, which meet() sees
                process.stdin.write(json.dumps(shared).encode() + b"\n")
                process.stdin.flush()

    def meet(self) -> None:
        """Wait until every rank has built its experiment. From there on they wait for each other in torch, where Ctrl-C is not heard.

        Raises:
            LostRankError: one of them ended.
        """
        waiting = {_ready(rank) for rank in range(1, self.count)}
        while waiting:
            waiting = {key for key in waiting if not self._store.check([key])}
            failure = self.failure()
            if failure is not None:
                raise LostRankError(failure)
            time.sleep(POLL_SECONDS)

    @contextmanager
    def watched(self, give_up: Callable[[str], None]) -> Iterator[None]:
        """While this lasts, a rank that dies does not leave rank 0 waiting.

        As a rule rank 0 notices at its next collective, which fails. Where it does not (a backend that waits), ``give_up`` is
        called from another thread, with what happened, and then this process ends.
        """
        if not self.processes:
            yield
            return
        done = threading.Event()

        def watch() -> None:
            while not done.wait(POLL_SECONDS * 10):
                failure = self.failure()
                if failure is not None and not done.wait(NOTICE_SECONDS):
                    try:
                        give_up(failure)
                    finally:
                        self._kill()
                        os._exit(1)

        watcher = threading.Thread(target=watch, name="losskit-ranks", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def failure(self, within: float = 0.0) -> str | None:
        """What a rank died of, if one has died, or does within so many seconds."""
        deadline = time.monotonic() + within
        while True:
            ended = [(rank, process.poll()) for rank, process in enumerate(self.processes, start=1)]
            failed = [(rank, code) for rank, code in ended if code]
            if failed:
                rank, code = min(failed, key=lambda pair: (pair[1] > 0, pair[0]))  # one that was killed comes before those that only lost it
                return self._account(rank, code)
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS)

    def wait(self) -> str | None:
        """Wait until all ranks have ended, after rank 0 has; one that does not is stopped, and the note says so.

        Raises:
            LostRankError: one of them failed.
        """
        deadline, note = time.monotonic() + END_SECONDS, None
        for rank, process in enumerate(self.processes, start=1):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                note = f"rank {rank} did not end within {END_SECONDS:.0f} s of rank 0 and was stopped"
        if note is None and (failure := self.failure()):
            raise LostRankError(failure)
        return note

    def close(self) -> None:
        """Stop the ranks that are left and be a process of its own again."""
        self._kill()
        if not self._environment:
            return
        leave()
        self._store = None
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._environment = {}
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)

    def _kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its data-loader processes, too
                process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()

    def _account(self, rank: int, code: int) -> str:
        if code < 0:
            out_of_memory = " (perhaps by the system, for want of memory)" if -code == signal.SIGKILL else ""
            return f"rank {rank} was killed by {signal.Signals(-code).name}{out_of_memory}"
        lines = log_path(self.run_dir, rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        told = next((number for number, line in enumerate(lines) if line.startswith("Error: ")), None)
        text = "it wrote nothing" if not lines else lines[-1] if told is None else "\n".join(lines[told:]).removeprefix("Error: ")
        return f"rank {rank} ended with exit code {code}: {text}"


class FurtherRank(Ranks):
    """Rank 1, 2, …: the same from the other side. Made first of all, so that this process ends when rank 0 does."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self._told, self._place = threading.Event(), b""
        threading.Thread(target=self._hold_on, name="losskit-lifeline", daemon=True).start()

    def join(self) -> None:
        self._told.wait()
        os.environ.update(json.loads(self._place))

    def meet(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        store = TCPStore(LOCAL_ADDRESS, int(os.environ["MASTER_PORT"]), is_master=False)
        store.set(_ready(own_rank()), "")

    def close(self) -> None:
        leave()

    def _hold_on(self) -> None:
        """Read where to meet from the pipe to rank 0, then wait for its end."""
        while data := os.read(0, 4096):
            self._place += data
            if b"\n" in self._place:
                self._told.set()
        os._exit(1)


def is_about_ranks(failure: BaseException) -> bool:
    """Whether rank 0 failed because another rank did."""
    import torch

    told = isinstance(failure, RuntimeError) and any(word in str(failure).lower() for word in LOSS_OF_A_PEER)
    return told or isinstance(failure, LostRankError | torch.distributed.DistError)


def own_rank() -> int:
    """0, or the number of this process, if it is one that rank 0 has started."""
    return int(os.environ.get("LOSSKIT_RANK", "0"))


def device_count(trainer: Mapping[str, Any]) -> int:
    """Processes on this machine that ``trainer.devices`` and ``trainer.accelerator`` ask for; what makes no sense, the trainer refuses later."""
    devices, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        return 1
    if isinstance(devices, str) and devices.strip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([name for name in devices.split(",") if name.strip()])
    if isinstance(devices, int) and devices >= 0:
        return int(devices)
    if accelerator == "cpu" or devices not in ("auto", -1):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def one_device(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """A run's trainer for what this process does alone afterwards, perhaps on another machine: on what there is here."""
    import torch

    devices, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
    chosen = devices[:1] if isinstance(devices, list) and torch.cuda.is_available() else 1
    return {**trainer, "devices": chosen, "accelerator": "cpu" if accelerator == "cpu" else "auto", "strategy": "auto", "num_nodes": 1}


def threads_each(count: int) -> int:
    """Threads for each of ``count`` processes that share this machine's cores."""
    return max(1, usable_cores() // count)


def usable_cores() -> int:
    """Cores that this process may compute on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave() -> None:
    """Leave the process group, if there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def log_path(run_dir: Path, rank: int) -> Path:
    return run_dir / f"rank{rank}.log"


def _ready(rank: int) -> str:
    return f"losskit/ready/{rank}"


def _loopback() -> dict[str, str]:
    """Ranks on one machine talk over its loopback device, whatever its name is set to resolve to."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    names = [name for _, name in socket.if_nameindex()]
    return next(({"GLOO_SOCKET_IFNAME": name} for name in ("lo", "lo0") if name in names), {})


def main() -> None:
    """One further rank: ``python -m losskit_cli.ranks RUN_DIR [--resume]``."""
    rank = FurtherRank(Path(sys.argv[1]))
    from rich.console import Console

    from losskit_cli.importing import import_heavy

    import_heavy("losskit_cli.run")
    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import execute
    from losskit_cli.rundir import RunSpec
    from losskit_cli.session import Tracking

    spec, resume = RunSpec.load(rank.run_dir), "--resume" in sys.argv[2:]
    try:
        execute(spec, rank.run_dir, Tracking.off(), resume=resume, console=Console(quiet=True, stderr=True), load_model=load_model_of_run, ranks=rank)
    except LosskitError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

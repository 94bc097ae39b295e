"""Several processes on one machine: further ranks start from the run's composed config, never from ``sys.argv``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from losskit_cli.errors import RunError

GRACE_SECONDS = 20.0


class Ranks:
    """The further ranks of this process's run."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], run_dir: Path) -> None:
        self.processes, self.run_dir = processes, run_dir

    def wait(self) -> None:
        """Wait for them to end after rank 0 has.

        Raises:
            RunError: one of them failed; with the end of its log.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        for rank, process in enumerate(self.processes, start=1):
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise RunError(f"rank {rank} did not end within {GRACE_SECONDS:.0f} s of rank 0") from error
            if code:
                raise RunError(f"rank {rank} ended with exit code {code}: {self._tail(rank)}")

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _tail(self, rank: int) -> str:
        lines = log_path(self.run_dir, rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


def launch(trainer: Mapping[str, Any], run_dir: Path, resume: bool) -> Ranks:
    """Start ranks 1, 2, … of a run on several devices and make this process rank 0. One device, a cluster that starts its own processes, or a rank itself: none."""
    count = device_count(trainer)
    if count <= 1 or "LOCAL_RANK" in os.environ or trainer.get("num_nodes", 1) != 1:
        return Ranks([], run_dir)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    processes = []
    for rank in range(1, count):
        environment = {**os.environ, **shared, "LOCAL_RANK": str(rank), "LOSSKIT_RANK": str(rank)}
        command = [sys.executable, "-m", "losskit_cli.ranks", str(run_dir), *(["--resume"] if resume else [])]
        with log_path(run_dir, rank).open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))
    os.environ |= {**shared, "LOCAL_RANK": "0"}
    return Ranks(processes, run_dir)


def device_count(trainer: Mapping[str, Any]) -> int:
    """Processes on this machine that ``trainer.devices`` and ``trainer.accelerator`` ask for."""
    devices, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int) and devices >= 0:
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def log_path(run_dir: Path, rank: int) -> Path:
    return run_dir / f"rank{rank}.log"


def main() -> None:
    """One further rank: ``python -m losskit_cli.ranks RUN_DIR [--resume]``."""
    from rich.console import Console

    from losskit_cli.models import load_model_of_run
    from losskit_cli.run import execute
    from losskit_cli.rundir import RunSpec
    from losskit_cli.session import Tracking

    run_dir = Path(sys.argv[1])
    execute(
        RunSpec.load(run_dir), run_dir, Tracking.off(), resume="--resume" in sys.argv[2:], console=Console(quiet=True, stderr=True), load_model=load_model_of_run
    )


if __name__ == "__main__":
    main()

"""Who works on a sweep: processes of this machine, or those that a Hydra launcher starts; looked after until there is nothing left to do."""

from __future__ import annotations

import math
import os
import shlex
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from losskit_cli.live import LiveTable
from losskit_cli.ranks import usable_cores
from losskit_cli.report_figures import import_libraries
from losskit_cli.sweep_run import SweepRun
from losskit_cli.workers import PRELOAD, environment_of
from sweeps.launchers import LOCAL, LauncherError, Launching, launcher_of
from sweeps.pool import CALM_SECONDS, Pool, WorkersDie
from sweeps.settings import SweepSettings, auto_workers
from sweeps.study import Sweep

TICK_SECONDS = 0.2
SETTLE_SECONDS = 10.0  # for launched workers to end when there is nothing more to do, before those are given up that never came to start
WORKER = "losskit_cli.trial_runs:main"
LAUNCHED = "losskit_cli.trial_runs:launched"


def work(sweep: Sweep, run: SweepRun, out: Console) -> None:
    plan, settings = sweep.plan, sweep.settings
    if settings.launcher:
        _launch(sweep, run, out)
        return
    devices = devices_of(plan.config["trainer"])
    count = workers_for(settings, plan.total - sweep.status().finished, devices)
    environment = environment_of(count)
    pool = Pool(WORKER, (plan.name, sweep.address, plan.cwd), count, preload=PRELOAD, environment=environment, devices=devices, lost=sweep.lost)
    pool.prepare()
    run.wait_for_id(sweep)
    pool.start()
    calmly, ahead = False, None
    try:
        with LiveTable(sweep, out) as table:
            while True:
                now = sweep.status()
                running = pool.tend(more=not now.stop and now.finished < now.total)
                table.update(now)
                run.show(now)
                if now.done or not running:
                    break
                if ahead is None and now.waiting <= 2 * count and plan.kind == "sweep":
                    ahead = threading.Thread(target=import_libraries, daemon=True)
                    ahead.start()  # the report is made when the last trials have ended
                time.sleep(TICK_SECONDS)
        calmly = True
    except KeyboardInterrupt:
        calmly = True
        raise
    finally:
        pool.close(calmly)


def workers_for(settings: SweepSettings, left: int, devices: Sequence[str]) -> int:
    """How many local workers there are for the trials that are left."""
    return auto_workers(usable_cores(), len(devices), left) if settings.workers == "auto" else min(int(settings.workers), max(1, left))


def devices_of(trainer: Mapping[str, Any]) -> list[str]:
    """The GPUs that workers take in turn, one each; none where trials run on the CPU or need several themselves."""
    if trainer.get("accelerator") == "cpu" or trainer.get("devices", 1) not in (1, "auto", "1"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def _launch(sweep: Sweep, run: SweepRun, out: Console) -> None:
    """Workers through a Hydra launcher plugin, looked after until all of them have ended."""
    settings, plan = sweep.settings, sweep.plan
    overrides, local = shlex.split(settings.launcher or ""), launcher_of(shlex.split(settings.launcher or "")) in LOCAL
    left = max(1, plan.total - sweep.status().finished)
    jobs = workers_for(settings, left, []) if local or settings.workers != "auto" else 1
    own = run.directory / "launcher"
    own.mkdir(mode=0o700, exist_ok=True)  # submitit writes there what a worker is told: the storage's address
    run.wait_for_id(sweep)
    launching = Launching(
        overrides,
        jobs,
        LAUNCHED,
        {"name": plan.name, "address": sweep.address, "cwd": plan.cwd},
        directory=Path(plan.cwd),
        own=own,
        name=plan.name,
        paths=[plan.cwd],
        config_dirs=[Path(d) for d in plan.config_dirs],
        log=own / "launcher.log",
        environment=environment_of(jobs) if local else {},
    )
    try:
        _tend(launching, sweep, run, out)
        problems = [f"worker {outcome.worker}: {outcome.error}" for outcome in launching.outcomes() if outcome.error]
    except KeyboardInterrupt:
        sweep.stop("interrupted")  # each worker sees it at its next sign of life, and saves what it does
        _tend(launching, sweep, run, out, until=time.monotonic() + CALM_SECONDS)
        raise
    except LauncherError as error:
        problems = [str(error)]
    finally:
        launching.end()
    for pid in _dead_here(sweep):
        sweep.lost(pid)
    now = sweep.status()
    if not now.done and not now.stop:
        why = "; ".join(problems[:3]) or "they may have come to the end of their time"
        raise WorkersDie(f"all launched workers have ended with {now.finished} of {now.total} trials done: {why}")
    for problem in problems:
        out.print(f"note: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _tend(launching: Launching, sweep: Sweep, run: SweepRun, out: Console, until: float = math.inf) -> None:
    """While launched workers work: put back what dead ones had, and show how far the sweep is."""
    idle: float | None = None
    with LiveTable(sweep, out) as table:
        while launching.running and time.monotonic() < until:
            sweep.reap()
            now = sweep.status()
            table.update(now)
            run.show(now)
            idle = (idle or time.monotonic()) if (now.done or now.stop) and not now.running else None
            if idle is not None and time.monotonic() - idle > SETTLE_SECONDS:
                return  # the rest waits in a cluster's queue, and will find nothing to do
            time.sleep(TICK_SECONDS)
        run.show(sweep.status())


def _dead_here(sweep: Sweep) -> list[int]:
    """Workers of this machine that have a trial and are no more: their trials need not wait until their silence is noticed."""
    pids = [int(name.rpartition("-")[0].rpartition("-")[2]) for name in sweep.status().workers if name.startswith(f"{socket.gethostname()}-")]
    return [pid for pid in pids if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists()]


__all__ = ["devices_of", "work", "workers_for"]

"""How fast sweeps are, beside the same search written the way people write it today. ``make bench`` prints one table.

    python tests/benchmarks/sweep_runs.py [orchestration growth search compose memory] [--repeats 3] [--wait 60] [--optuna-sweeper PYTHON] [--json FILE]

orchestration   200 trials of an objective that returns at once, beside ``study.optimize`` of Optuna on its own database storage
growth          the same in studies of 10 to 5,000 trials: what one of the last trials costs, beside what the sampler alone takes for it in memory
search          16 trials of baseline.py's experiment on 2 workers, beside ``baseline.py --multirun`` (Hydra's basic launcher), and beside
                hydra-optuna-sweeper where ``--optuna-sweeper`` names a Python that has it (it takes optuna < 3 and SQLAlchemy < 2: an environment of its own)
compose         the configuration of one trial, beside composing it in full
memory          what a sweep of 1, 2 and 4 workers holds (PSS: pages that processes share are counted once)

Everything that is compared was measured in this run, in turns, in fresh directories, on the same machine; a figure is the median of the
repetitions with their range.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from train import BASELINE, EXPERIMENT, HERE, LOSSKIT, Bench, Row, Sample, machine, table, walls

sys.path.remove(str(HERE))  # `import sweeps` is to find the package, not this file
SIZES = (10, 100, 1000, 5000)
RATES = "0.01,0.02,0.03,0.05,0.07,0.1,0.15,0.2"
SEEDS = "0,1"
TRIALS = 16
WORKERS = (1, 2, 4)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def orchestration_rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """A trial that does nothing, with one worker."""
    for sampler in ("tpe", "random"):
        ours, theirs = (parsed(samples) for samples in bench.in_turns(trials(bench, "losskit", sampler, 200), trials(bench, "optuna", sampler, 200)))
        mine, their = [o["ms"] for o in ours], [t["ms"] for t in theirs]
        row = Row(f"a trial that does nothing, of 200, {sampler} / Optuna's study.optimize", mine, their, "ms", median(mine) / median(their))
        if sampler == "tpe":
            row.goal, row.met = "≤ 30 ms", median(mine) <= 30
        yield row
        sent = [o["statements"] for o in ours], [t["statements"] for t in theirs]
        yield Row("… statements that the database is sent", *sent, "", median(sent[0]) / median(sent[1]))


def growth_rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """How that grows with the study."""
    for sampler in ("tpe", "random"):
        for size in SIZES:
            contestants = [trials(bench, "losskit", sampler, size), trials(bench, "memory", sampler, max(size, 20))]
            ours, alone = (parsed(samples) for samples in bench.in_turns(*contestants, repeats=bench.repeats if size < 5000 else 1))
            mine, their = [o["last_ms"] for o in ours], [a["ms"] for a in alone]
            yield Row(f"one of the last trials of {size:,}, {sampler} / the sampler alone", mine, their, "ms", median(mine) / median(their))
            yield Row("… mean of all", [o["ms"] for o in ours], [], "ms")


def search_rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """16 runs of the baseline's experiment, from the shell's prompt to the next one."""
    space = [f"optimizer.lr={RATES}", f"seed={SEEDS}"]

    def losskit() -> Sample:
        command = [*LOSSKIT, "sweep", *EXPERIMENT, *space, "sweep/sampler=grid", "sweep.workers=2", "sweep.objectives=[val/loss]", "sweep.name=bench", "--json"]
        sample = bench.run(command, bench.fresh("sweep"))
        status = json.loads(sample.output)
        if (status["complete"], status["total"]) != (TRIALS, TRIALS):
            raise SystemExit(f"losskit sweep did not do what it is compared for: {status}")
        return sample

    def baseline() -> Sample:
        return whole(bench.run([*BASELINE, "--multirun", f"lr={RATES}", f"seed={SEEDS}"], bench.fresh("multirun")))

    def optuna_sweeper() -> Sample:
        command = [arguments.optuna_sweeper, BASELINE[1], "--multirun", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.n_jobs=1"]
        return whole(bench.run([*command, "lr=tag(log,interval(0.01,0.2))", f"seed={SEEDS}"], bench.fresh("optuna")))

    def whole(sample: Sample) -> Sample:
        finished = sum('"test/acc"' in line for line in sample.output.splitlines())
        if finished != TRIALS:
            raise SystemExit(f"the baseline finished {finished} of {TRIALS} runs:\n{sample.output[-2000:]}")
        return sample

    contestants: list[Callable[[], Sample]] = [losskit, baseline, *([optuna_sweeper] if arguments.optuna_sweeper else [])]
    ours, *others = bench.in_turns(*contestants)
    for what, theirs in zip(("Hydra's multirun", "hydra-optuna-sweeper"), others, strict=False):
        ratio = median(walls(ours)) / median(walls(theirs))
        row = Row(f"{TRIALS} trials, 2 workers / {what}", walls(ours), walls(theirs), "s", ratio)
        if theirs is others[0]:
            row.goal, row.met = "≤ 0.5 ×", ratio <= 0.5
        yield row


def compose_rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """The configuration of a trial: its group choices are those of trials before it."""
    from losskit_cli.compose import Composer
    from losskit_cli.trials import TrialComposer

    composer = Composer()
    quick = TrialComposer(composer, EXPERIMENT)
    quick.compose(["optimizer.lr=0.1", "seed=0"])
    ours, theirs = [], []
    for number in range(20 * bench.repeats):
        overrides = [f"optimizer.lr={0.001 * (number + 1):.6g}", f"seed={number}"]
        ours.append(milliseconds(lambda o=overrides: quick.compose(o)))
        if number % 5 == 0:
            theirs.append(milliseconds(lambda o=overrides: composer.compose([*EXPERIMENT, *o])))
    yield Row("composing a trial's configuration / in full", ours, theirs, "ms", median(ours) / median(theirs), "≤ 5 ms", median(ours) <= 5)


def memory_rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """A sweep whose workers all train; the first row's comparison is the baseline, each further row's the one before."""
    folder = bench.fresh("memory-of-baseline")
    process = subprocess.Popen([*BASELINE, "epochs=100000"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.rglob("*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    before = sum(held(process.pid).values())
    process.kill()
    process.wait()
    for workers in WORKERS:
        parts = memory_of_sweep(bench.fresh(f"memory-{workers}"), workers)
        total = sum(parts.values())
        what = "memory of a sweep with 1 worker / of the baseline's process" if workers == 1 else f"… {workers} workers / the row before"
        yield Row(what, [total], [before], "MiB", total / before)
        yield Row("… of it the workers, each", [parts["worker"] / workers], [], "MiB")
        before = total


def memory_of_sweep(folder: Path, workers: int) -> dict[str, float]:
    """MiB held by each kind of process of a sweep that trains in all its workers."""
    space = ["optimizer.lr=0.01,0.02,0.03,0.05", "trainer.max_epochs=100000", "sweep.name=bench", f"sweep.workers={workers}"]
    process = subprocess.Popen([*LOSSKIT, "sweep", *EXPERIMENT, *space, "-q"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len({path.parent for path in folder.rglob("*.ckpt")}) < workers:  # each has saved a checkpoint: all of it is loaded
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the sweep with {workers} workers never trained in all of them")
            time.sleep(0.5)
        return held(process.pid)
    finally:
        subprocess.run([*LOSSKIT, "sweep", "--stop", "bench"], cwd=folder, capture_output=True, check=False)
        process.wait(timeout=120)


def held(pid: int) -> dict[str, float]:
    """MiB of proportional set size of a process and all below it: ``worker`` for those that the fork server has made, ``other``."""
    sizes = {"worker": 0.0, "other": 0.0}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            pss = process.memory_full_info().pss
            parent = process.parent()
            made = parent is not None and any("forkserver" in word for word in parent.cmdline())
        except psutil.NoSuchProcess:
            continue
        sizes["worker" if made and parent.pid != pid else "other"] += pss / 2**20
    return sizes


PARTS = {"orchestration": orchestration_rows, "growth": growth_rows, "search": search_rows, "compose": compose_rows, "memory": memory_rows}


# -- pieces -------------------------------------------------------------------------------------------------------------------
def trials(bench: Bench, way: str, sampler: str, number: int) -> Callable[[], Sample]:
    command = [sys.executable, "-P", str(HERE / "orchestration.py"), way, sampler, str(number)]
    return lambda: bench.run(command, bench.fresh("orchestration"), **ONE_THREAD)


def parsed(samples: list[Sample]) -> list[dict[str, float]]:
    return [json.loads(sample.output.strip().splitlines()[-1]) for sample in samples]


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait at most, before each repetition, for the machine to be idle")
    parser.add_argument("--optuna-sweeper", metavar="PYTHON", help="a Python with hydra-optuna-sweeper and what baseline.py imports")
    parser.add_argument("--json", type=Path, help="write the samples to this file as well")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.repeats, arguments.wait, Path(folder))
        rows: list[Row] = []
        for name in arguments.parts:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            rows += PARTS[name](bench, arguments)
    print(table(rows))
    print(f"\n{machine(bench)}")
    if arguments.json:
        content: dict[str, Any] = {"machine": machine(bench), "rows": [vars(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

"""How fast losskit is, beside the same experiment written the way people write it today. ``make bench`` prints one table.

    python tests/benchmarks/train.py [--repeats 5] [--rows process,commands,…] [--wait 60] [--json FILE]

Every row compares two things that were measured in this run, in turns, in fresh directories, on the same machine; a figure is the median
of the repetitions with their range. The experiment is digits, an MLP 64-128-128-10, SGD with momentum, batch 64, 20 epochs of 20 steps, a
validation after each, a test at the end, everything tracked in MLflow: baseline.py on one side, ``losskit train`` on the other. Both carry
the same stopwatch. losskit computes more than the baseline by default (macro F1 and calibration beside the accuracy, all three in training
as well); the rows marked "accuracy only" leave that out.

What else the machine did meanwhile is measured and printed, because it decides what the figures are worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
LOSSKIT = [str(Path(sys.executable).with_name("losskit"))]
BASELINE = [sys.executable, str(HERE / "baseline.py")]
EXPERIMENT = ["data=digits", "model=mlp", "model.hidden=[128,128]", "data.batch_size=64", "optimizer=sgd", "schedule=cosine", "trainer.max_epochs=20"]
ACCURACY_ONLY = ["~metrics.f1", "~metrics.ece"]
WATCH = ["+callbacks.watch={_target_:stopwatch.Stopwatch,to:watch.json}", "allow_targets=[stopwatch]"]
IMPORTS = [sys.executable, "-c", "import torch, lightning, mlflow"]
COMMANDS = {
    "losskit --help": ["--help"],
    "losskit list": ["list"],
    "completion: losskit train loss=<TAB>": ["__complete", "bash", "19", "losskit train loss=", " \t\n\"'><=;|&(:"],
    "losskit show loss=focal": ["show", "loss=focal"],
    "losskit config": ["config"],
}
TICKS = os.sysconf("SC_CLK_TCK")
VOCABULARY = ("2048", "256", "65536")  # tokens, features, classes


@dataclass
class Sample:
    """One process: seconds on the clock and on the processor, what it printed, what its stopwatch says."""

    wall: float
    cpu: float
    output: str
    watch: dict[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """One line of the table."""

    what: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


class Bench:
    """Runs commands and keeps account of the machine.

    Args:
        repeats: repetitions of each measurement.
        wait: seconds to wait at most, before each repetition, for other processes to leave the machine alone.
    """

    def __init__(self, repeats: int, wait: float, folder: Path) -> None:
        self.repeats, self.wait, self.folder = repeats, wait, folder
        self.others: list[float] = []
        self.modules = folder / "modules"  # what measured processes may import; not all of this folder: its sweeps.py would stand before the package sweeps
        self.modules.mkdir()
        shutil.copy(HERE / "stopwatch.py", self.modules)

    def run(self, command: Sequence[str], cwd: Path, **environment: str) -> Sample:
        """Run ``command`` in ``cwd``; its children that it waits for are counted in."""
        watch = cwd / "watch.json"
        watch.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(self.modules), **environment}
        busy, began = busy_seconds(), time.perf_counter()
        with (cwd / "stdout.txt").open("w+") as out, (cwd / "stderr.txt").open("w") as err:
            process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            wall = time.perf_counter() - began
            out.seek(0)
            output = out.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{(cwd / 'stderr.txt').read_text()[-2000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        if busy is not None and (after := busy_seconds()) is not None:
            self.others.append(max(0.0, after - busy - cpu) / (wall * (os.cpu_count() or 1)))
        return Sample(wall, cpu, output, json.loads(watch.read_text()) if watch.exists() else {})

    def in_turns(self, *contestants: Callable[[], Sample], repeats: int | None = None) -> list[list[Sample]]:
        """Each of them in turn, again and again, beginning with another one each time."""
        samples: list[list[Sample]] = [[] for _ in contestants]
        for repetition in range(repeats or self.repeats):
            self.settle()
            for position in range(len(contestants)):
                which = (repetition + position) % len(contestants)
                samples[which].append(contestants[which]())
        return samples

    def settle(self) -> None:
        """Wait until nothing else is going on, but not for ever."""
        until = time.monotonic() + self.wait
        while time.monotonic() < until and (load_of_others() or 0.0) > 0.1:
            time.sleep(0.5)

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


# -- rows ---------------------------------------------------------------------------------------------------------------------
def process_rows(bench: Bench) -> Iterator[Row]:
    """The experiment from the shell's prompt to the next one, and its training steps per second."""

    def baseline(folder: str, new: bool = False) -> Sample:
        sample = bench.run(BASELINE, bench.fresh(folder) if new else bench.folder / folder)
        sample.watch = json.loads(sample.output.strip().splitlines()[-1])
        return sample

    def losskit(folder: str, *overrides: str, new: bool = False) -> Sample:
        sample = bench.run([*LOSSKIT, "train", *EXPERIMENT, *WATCH, *overrides, "--json"], bench.fresh(folder) if new else bench.folder / folder)
        require_finished(sample)
        return sample

    first = bench.in_turns(lambda: losskit("ours", new=True), lambda: baseline("theirs", new=True))
    shutil.copytree(bench.folder / "ours", bench.folder / "lean")
    again = bench.in_turns(lambda: losskit("ours"), lambda: baseline("theirs"), lambda: losskit("lean", *ACCURACY_ONLY))
    yield whole("whole run, store exists", again[0], again[1], 0.9)
    yield whole("… accuracy only", again[2], again[1], 0.9)
    yield whole("whole run, empty directory (store created)", first[0], first[1], 0.9)
    yield Row("… losskit's first against its second", walls(first[0]), walls(again[0]), "s", median(walls(first[0])) / median(walls(again[0])))
    yield processor("processor time of the whole run, all processes", again[0], again[1])
    for what, samples in (("training steps a second", again[0]), ("… accuracy only", again[2])):
        ours, theirs = rates(samples), rates(again[1])
        yield Row(what, ours, theirs, "/s", ratio := median(ours) / median(theirs), "≥ 1.5 ×", ratio >= 1.5)


def thread_rows(bench: Bench) -> Iterator[Row]:
    """The same with one thread on both sides, so that only what is computed differs."""
    ours, theirs = bench.fresh("ours1"), bench.fresh("theirs1")

    def baseline() -> Sample:
        sample = bench.run(BASELINE, theirs, OMP_NUM_THREADS="1")
        sample.watch = json.loads(sample.output.strip().splitlines()[-1])
        return sample

    samples = bench.in_turns(lambda: bench.run([*LOSSKIT, "train", *EXPERIMENT, *WATCH, *ACCURACY_ONLY, "--json"], ours, OMP_NUM_THREADS="1"), baseline)
    fast, slow = rates(samples[0]), rates(samples[1])
    yield Row("training steps a second, one thread for both, accuracy only", fast, slow, "/s", median(fast) / median(slow))


def command_rows(bench: Bench) -> Iterator[Row]:
    """What must not import torch, against importing what it must not."""
    folder = bench.fresh("commands")
    contestants = [lambda a=arguments: bench.run([*LOSSKIT, *a], folder) for arguments in COMMANDS.values()]
    *ours, imports = bench.in_turns(*contestants, lambda: bench.run(IMPORTS, folder))
    for (what, arguments), samples in zip(COMMANDS.items(), ours, strict=True):
        ratio = median(walls(samples)) / median(walls(imports))
        require_light(arguments, folder)
        row = Row(f"{what} / import torch, lightning, mlflow", walls(samples), walls(imports), "s", ratio)
        if arguments[0] in ("--help", "list", "__complete"):
            row.goal, row.met = "≤ 0.1 ×", ratio <= 0.1
        yield row


def tracking_rows(bench: Bench) -> Iterator[Row]:
    """Tracking every 10 steps against none: 100 epochs, validations and checkpoints included."""
    folder = bench.fresh("tracking")
    bench.run([*LOSSKIT, "train", *EXPERIMENT, "trainer.max_epochs=1", "-q"], folder)  # the store exists

    def train(*overrides: str) -> Callable[[], Sample]:
        return lambda: bench.run([*LOSSKIT, "train", *EXPERIMENT, "trainer.max_epochs=100", *WATCH, *overrides, "-q"], folder)

    with_it, without = bench.in_turns(train(), train("tracking=none"))
    for what, key, goal in (("training steps, tracked every 10 / not tracked", "seconds", True), ("… with validations and checkpoints", "fit_seconds", False)):
        ours, theirs = [s.watch[key] for s in with_it], [s.watch[key] for s in without]
        ratio = median(ours) / median(theirs)
        yield Row(what, ours, theirs, "s", ratio, "≤ 1.05 ×" if goal else "", ratio <= 1.05 if goal else None)


def memory_rows(bench: Bench) -> Iterator[Row]:
    """Cross-entropy over 65,536 classes without making the logits, against making them."""
    folder = bench.fresh("memory")

    def step(way: str) -> Callable[[], Sample]:
        return lambda: bench.run([sys.executable, str(HERE / "memory.py"), way, *VOCABULARY], folder)

    ours, theirs = ([json.loads(s.output) for s in samples] for samples in bench.in_turns(step("linear"), step("logits"), repeats=min(3, bench.repeats)))
    for what, key, scale, unit in (("peak memory", "bytes", 2**-20, "MiB"), ("… its time", "seconds", 1, "s")):
        mine, their = [o[key] * scale for o in ours], [t[key] * scale for t in theirs]
        yield Row(f"{what}: linear_cross_entropy / logits, 65,536 classes" if key == "bytes" else what, mine, their, unit, median(mine) / median(their))


def step_rows(bench: Bench) -> Iterator[Row]:
    """One training step, layer by layer, in one thread."""
    folder = bench.fresh("steps")
    (samples,) = bench.in_turns(lambda: bench.run([sys.executable, str(HERE / "per_step.py")], folder, OMP_NUM_THREADS="1"))
    times = [json.loads(s.output.strip().splitlines()[-1]) for s in samples]
    of = {name: [t[name] for t in times] for name in times[0]}
    for what, name, against in (
        ("one step: LightningModule that only returns the loss / hand-written loop", "lightning", "plain"),
        ("one step: losskit's task without metrics / that LightningModule", "task", "lightning"),
        ("one step: losskit's task with its metrics / hand-written loop", "metrics", "plain"),
        ("one step: losskit's task with its metrics / the baseline's module and loader", "metrics", "baseline"),
    ):
        yield Row(what, of[name], of[against], "ms", median(of[name]) / median(of[against]))


ROWS = {"process": process_rows, "threads": thread_rows, "commands": command_rows, "tracking": tracking_rows, "memory": memory_rows, "steps": step_rows}


# -- pieces -------------------------------------------------------------------------------------------------------------------
def whole(what: str, ours: list[Sample], theirs: list[Sample], goal: float) -> Row:
    ratio = median(walls(ours)) / median(walls(theirs))
    return Row(what, walls(ours), walls(theirs), "s", ratio, f"≤ {goal} ×", ratio <= goal)


def processor(what: str, ours: list[Sample], theirs: list[Sample]) -> Row:
    mine, their = [s.cpu for s in ours], [s.cpu for s in theirs]
    return Row(what, mine, their, "s", median(mine) / median(their))


def walls(samples: Sequence[Sample]) -> list[float]:
    return [s.wall for s in samples]


def rates(samples: Sequence[Sample]) -> list[float]:
    return [s.watch["steps_per_s"] for s in samples]


def require_finished(sample: Sample) -> None:
    """A fast run that did not do its work proves nothing."""
    summary = json.loads(sample.output)
    if summary["status"] != "FINISHED" or summary["steps"] != 400 or summary["metrics"]["test/acc"] < 0.94 or not summary["run_id"]:
        raise SystemExit(f"losskit train did not do what it is compared for: {summary}")


def require_light(arguments: Sequence[str], folder: Path) -> None:
    """The command must not import torch or MLflow."""
    command = [sys.executable, "-X", "importtime", "-m", "losskit_cli", *arguments]
    imported = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    heavy = sorted(set(re.findall(r"\|\s+(torch|lightning|mlflow|optuna)$", imported, re.MULTILINE)))
    if heavy:
        raise SystemExit(f"losskit {' '.join(arguments)} imports {', '.join(heavy)}")


def busy_seconds() -> float | None:
    """Processor time that the whole machine has spent on anything; ``None`` where /proc/stat is not there."""
    try:
        fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return None
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def load_of_others(seconds: float = 0.5) -> float | None:
    before = busy_seconds()
    time.sleep(seconds)
    after = busy_seconds()
    return None if before is None or after is None else (after - before) / (seconds * (os.cpu_count() or 1))


def figure(values: Sequence[float]) -> str:
    """``6.21 (6.10–6.40)``: median and range."""
    if not values:
        return ""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 20 else 2
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(rows: Sequence[Row]) -> str:
    lines = [["", "losskit", "comparison", "", "ratio", "goal", "met"]]
    for r in rows:
        ratio, met = "" if r.ratio is None else f"{r.ratio:.2f} ×", "" if r.met is None else "yes" if r.met else "NO"
        lines.append([r.what, figure(r.ours), figure(r.theirs), r.unit, ratio, r.goal, met])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def machine(bench: Bench) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "mlflow"))
    others = f"; other processes took {100 * median(bench.others):.0f} % of the machine (at most {100 * max(bench.others):.0f} %)" if bench.others else ""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}; {bench.repeats} repetitions{others}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait at most, before each repetition, for the machine to be idle")
    parser.add_argument("--json", type=Path, help="write the samples to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.repeats, arguments.wait, Path(folder))
        rows: list[Row] = []
        for name in arguments.rows.split(","):
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            rows += ROWS[name](bench)
    print(table(rows))
    print(f"\n{machine(bench)}")
    if arguments.json:
        content: dict[str, Any] = {"machine": machine(bench), "rows": [vars(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

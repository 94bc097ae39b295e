"""What a searched schedule is worth: AutoLRS beside schedules tuned over six peak rates, a TPE search of equal cost, and Schedule-Free.

    python tests/benchmarks/autolrs.py --results results.jsonl --processes 2      # goes on where it was broken off; prints the table at the end
    python tests/benchmarks/autolrs.py --results results.jsonl --table            # only the table of what is there

Four tasks with two budgets each. Baselines are tuned on a seed of their own; all figures are of five other seeds, and of the validation loss after
the last step. A method's cost is all of its training steps, probes and tuning included, in units of one run.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning

TUNED_ON = (100,)
SEEDS = (0, 1, 2, 3, 4)
SGD, ADAM = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SHAPES = ("constant", "step", "cosine", "linear", "wsd")
METHODS = ("cooldown", "law", "paper", "paper_reference")
POINTS = 20
TASKS: dict[str, dict[str, Any]] = {
    "digits": {"overrides": ["data=digits", "data.val_fraction=0.3"], "rates": SGD, "steps": (400, 1200), "free": "schedule_free_sgd"},
    "faces": {"overrides": ["data=faces", "data.label_noise=0.2", "data.val_fraction=0.3"], "rates": SGD, "steps": (200, 600), "free": "schedule_free_sgd"},
    "co2": {
        "overrides": ["data=co2", "model.width=32", "model.depth=1", "model.dropout=0.0", "data.batch_size=32"],
        "rates": ADAM, "steps": (400, 1200), "free": "schedule_free_adamw",
    },
    "bytes": {
        "overrides": [
            "experiment=byte_lm", "data.sequence_length=64", "data.max_bytes=2000000", "data.val_fraction=0.01", "data.batch_size=8",
            "model.width=64", "model.num_heads=2",
        ],
        "rates": ADAM, "steps": (300, 800), "free": "schedule_free_adamw",
    },
}  # fmt: skip
PAPER = ["schedule.stage=0.1", "schedule.longest=0.4"]  # the paper's 1,000 and 8,000 steps are of runs of 100,000 and more


class Watch(lightning.Callback):
    """The validation loss at twenty steps of the run; ends it early where ``stop`` says so."""

    def __init__(self, total: int, stop: Any = None) -> None:
        self.every, self.stop = max(1, total // POINTS), stop
        self.curve: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every == 0:
            self.curve.append((trainer.global_step, validation_loss(trainer)))
            if self.stop is not None and self.stop(*self.curve[-1]):
                trainer.should_stop = True


def validation_loss(trainer: lightning.Trainer) -> float:
    """The main loss over the whole validation split, on the weights that would be deployed."""
    from components.callbacks.probes import Prober, Snapshot

    snapshot = Snapshot(trainer)
    value = Prober(trainer, held_out=10**9)._measure(0)
    snapshot.restore()
    return value


def run(task: str, steps: int, seed: int, overrides: list[str], stop: Any = None) -> dict[str, Any]:
    """One training: its curve of validation losses, the last of them, and the steps that it took in all."""
    from components.tasks.base import NonFiniteLossError
    from losskit_cli.build import Builder
    from losskit_cli.compose import Composer
    from losskit_cli.run import quiet_libraries
    from sweeps.autolrs import AutoLRS

    quiet_libraries()
    length = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1000000"]
    composed = Composer().compose([*TASKS[task]["overrides"], *length, f"seed={seed}", "callbacks=[]", *overrides])
    experiment = Builder(composed.resolved(), composed.choices).experiment()
    trainer, watch = experiment.trainer, Watch(steps, stop)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    search = next((c for c in trainer.callbacks if isinstance(c, AutoLRS)), None)  # type: ignore[attr-defined]
    if search is not None:
        search.say = lambda line: None
    began = time.perf_counter()
    try:
        trainer.fit(experiment.task, datamodule=experiment.data)
        loss = watch.curve[-1][1]
    except NonFiniteLossError:
        loss = math.inf
    explored = search.explored_steps if search is not None else 0
    return {"loss": loss, "curve": watch.curve, "spent": trainer.global_step + explored, "seconds": round(time.perf_counter() - began, 2)}


def halving(task: str, steps: int, seed: int) -> dict[str, Any]:
    """Optuna's TPE over rate and shape, pruned by successive halving, until one run's steps are spent; then the best, whole: two runs in all."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, steps // 10), reduction_factor=2)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4), pruner=pruner)
    rates = TASKS[task]["rates"]
    spent = 0
    while spent < steps:
        trial = study.ask()
        settings = {"lr": trial.suggest_float("lr", rates[0], rates[-1], log=True), "shape": trial.suggest_categorical("shape", SHAPES)}
        left = steps - spent

        def stop(step: int, loss: float, trial: Any = trial, left: int = left) -> bool:
            trial.report(loss if math.isfinite(loss) else 1e6, step)
            return bool(trial.should_prune()) or step >= left

        done = run(task, steps, seed, scheduled(settings["shape"], settings["lr"]), stop)
        spent += max(done["spent"], 1)
        state = optuna.trial.TrialState.COMPLETE if done["spent"] >= steps else optuna.trial.TrialState.PRUNED
        study.tell(trial, done["loss"] if math.isfinite(done["loss"]) else 1e6, state=state)
    # the one that came farthest, and of these the best: what halving would promote
    reported = [t for t in study.trials if t.intermediate_values]
    best = max(reported, key=lambda t: (max(t.intermediate_values), -t.intermediate_values[max(t.intermediate_values)]))
    last = run(task, steps, seed, scheduled(best.params["shape"], best.params["lr"]))
    return {**last, "spent": last["spent"] + spent}


def scheduled(shape: str, lr: float) -> list[str]:
    return [f"schedule={shape}", "schedule.warmup=0.05", f"optimizer.lr={lr}"]


def freely(task: str, lr: float) -> list[str]:
    return [f"optimizer={TASKS[task]['free']}", "schedule=constant", f"optimizer.lr={lr}"]


def work(job: dict[str, Any]) -> dict[str, Any]:
    task, steps, seed, kind = job["task"], job["steps"], job["seed"], job["kind"]
    if kind == "halving":
        return {**job, **halving(task, steps, seed)}
    if kind in METHODS:
        return {**job, **run(task, steps, seed, ["schedule=autolrs", f"schedule.method={kind}", *(PAPER if kind.startswith("paper") else [])])}
    return {**job, **run(task, steps, seed, freely(task, job["lr"]) if kind == "schedule_free" else scheduled(kind, job["lr"]))}


def jobs(done: dict[str, dict[str, Any]], budgets: list[int], tasks: list[str]) -> Iterator[dict[str, Any]]:
    """What is still to be run and can be: first the tuning, then what it decides on."""
    for budget in budgets:
        for task in tasks:
            steps = TASKS[task]["steps"][budget]
            tuned = all(key(job) in done for job in tuning(task, steps))
            wanted = measured(task, steps, done) if tuned else tuning(task, steps)
            yield from (job for job in wanted if key(job) not in done)


def tuning(task: str, steps: int) -> list[dict[str, Any]]:
    kinds = [*SHAPES, "schedule_free"]
    return [{"task": task, "steps": steps, "seed": s, "kind": k, "lr": lr} for s in TUNED_ON for k in kinds for lr in TASKS[task]["rates"]]


def measured(task: str, steps: int, done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = [(kind, best_rate(task, steps, kind, done)) for kind in (*SHAPES, "schedule_free")]
    kinds += [(kind, 0.0) for kind in (*METHODS, "halving")]
    return [{"task": task, "steps": steps, "seed": s, "kind": kind, "lr": lr} for s in SEEDS for kind, lr in kinds]


def best_rate(task: str, steps: int, kind: str, done: dict[str, dict[str, Any]]) -> float:
    found: dict[float, list[float]] = {}
    for job in tuning(task, steps):
        if job["kind"] == kind:
            found.setdefault(job["lr"], []).append(done[key(job)]["loss"])
    losses = {lr: statistics.fmean(values) for lr, values in found.items()}
    return min(losses, key=lambda lr: losses[lr])


def key(job: dict[str, Any]) -> str:
    return json.dumps([job[name] for name in ("task", "steps", "seed", "kind", "lr")])


def table(done: dict[str, dict[str, Any]]) -> str:
    """Markdown: for each task and budget the mean loss, its ratio to the best tuned schedule's, the cost, and the steps to that one's loss."""
    titles = ["task, steps", "method", "final validation loss (mean, sd)", "to the best tuned", "cost in runs", "training steps to the best tuned one's loss"]
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---|---|---|"]
    for task, of in TASKS.items():
        for steps in of["steps"]:
            if not all(key(job) in done for job in tuning(task, steps)):
                continue
            rows: dict[str, list[dict[str, Any]]] = {}
            for job in measured(task, steps, done):
                if key(job) in done:
                    rows.setdefault(job["kind"], []).append(done[key(job)])
            means = {kind: statistics.fmean(r["loss"] for r in found) for kind, found in rows.items()}
            best = min((means[kind] for kind in SHAPES if kind in means), default=math.nan)
            for kind, found in rows.items():
                losses = [r["loss"] for r in found]
                cost = 6.0 if kind in (*SHAPES, "schedule_free") else statistics.fmean(r["spent"] for r in found) / steps
                reached = [next((step for step, loss in r["curve"] if loss <= best), None) for r in found]
                count = sum(step is not None for step in reached)
                first = f"{statistics.median(step for step in reached if step is not None):.0f} ({count} of {len(found)})" if count else "not reached"
                spread = statistics.stdev(losses) if len(losses) > 1 else math.nan
                cells = [f"{task}, {steps}", kind, f"{means[kind]:.4g} ± {spread:.2g} (n = {len(found)})", f"{means[kind] / best:.3f}", f"{cost:.2f}", first]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("autolrs.jsonl"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--budgets", type=int, nargs="*", default=[0, 1], help="0: the smaller budget of each task, 1: the larger")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    done: dict[str, dict[str, Any]] = {}
    if options.results.is_file():
        done = {key(job): job for job in map(json.loads, options.results.read_text().splitlines())}
    while not options.table and (waiting := list(jobs(done, options.budgets, options.tasks))):
        with options.results.open("a") as file, multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            for number, result in enumerate(pool.imap_unordered(work, waiting), start=1):
                done[key(result)] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                sys.stderr.write(f"\r{number} of {len(waiting)} runs: {result['task']} {result['kind']} {result['loss']:.4g}      ")
    print(table(done))


if __name__ == "__main__":
    main()

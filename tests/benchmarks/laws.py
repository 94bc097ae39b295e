"""Whether a law of the loss foresees a run under another schedule: fitted on a cosine and a constant run, asked about a WSD run that it has not seen.

    python tests/benchmarks/laws.py --results laws.json       # five seeds; curves that are in the file already are not trained again

A small language model of bytes, small enough for 1,600 steps to bring it where the rate matters more than the time; rate, warm-up, length, initial
weights and batches are the same under all three schedules. What is fitted and foreseen is the training loss, averaged over groups of steps, warm-up and
the first tenth of the run left out. The Huber loss of the fit is wide (0.02, where the default is the papers' 0.001): points are noisy by 1 %. Settings
were chosen on seed 100.

With runs of one's own:

    losskit train experiment=byte_lm name=cos schedule=cosine
    losskit train experiment=byte_lm name=flat schedule=constant schedule.warmup=0.05
    losskit predict-loss cos flat schedule=wsd --law multi_power --metric train/loss --skip 0.1

R²              of the WSD run's curve; 1 is perfect, 0 as good as its mean
mean error      mean relative error of its points
worst error     the largest relative error of any of them, decay included
final error     relative error of its last point, the mean of the last steps; with its sign: + foresees too high a loss
WSD too         the law fitted on all three runs: what these curves allow it, their noise included
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # another benchmark here is called like a package

import lightning  # noqa: E402
import numpy as np  # noqa: E402

if TYPE_CHECKING:
    from components.schedules.laws import Curve, RateLaw

SEEDS = (0, 1, 2, 3, 4)
FITTED, FORESEEN = ("cosine", "constant"), "wsd"
STEPS, GROUP, SKIP, DELTA = 1600, 40, 0.1, 0.02
OVERRIDES = [
    "experiment=byte_lm", "data.sequence_length=64", "data.max_bytes=2000000", "data.val_fraction=0.01", "data.batch_size=16", "model.width=32",
    "model.depth=1", "model.num_heads=2", "optimizer.lr=1e-2", "schedule.warmup=0.05", "callbacks=[]", "trainer.max_epochs=-1",
    f"trainer.max_steps={STEPS}", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1000000",
]  # fmt: skip


class Watch(lightning.Callback):
    """The rate and the loss of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[Any] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())


def run(schedule: str, seed: int, overrides: list[str]) -> dict[str, list[float]]:
    """One training: rate and loss of its steps."""
    from losskit_cli.build import Builder
    from losskit_cli.compose import Composer
    from losskit_cli.run import quiet_libraries

    quiet_libraries()
    composed = Composer().compose([*OVERRIDES, f"schedule={schedule}", f"seed={seed}", *overrides])
    experiment = Builder(composed.resolved(), composed.choices).experiment()
    watch = Watch()
    experiment.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    experiment.trainer.fit(experiment.task, datamodule=experiment.data)
    return {"rates": watch.rates, "losses": [float(loss) for loss in watch.losses]}


def curve_of(trained: dict[str, list[float]], group: int, skip: float) -> Curve:
    """The run as a law takes it: losses averaged over ``group`` steps, at their middle. The loss of the i-th step (from 0) is that after i steps."""
    from components.schedules.laws import Curve

    total = len(trained["losses"])
    starts = [start for start in range(total % group, total, group) if start >= skip * total]
    means = [statistics.fmean(trained["losses"][start : start + group]) for start in starts]
    return Curve(np.asarray(trained["rates"]), np.asarray([start + group // 2 for start in starts]), np.asarray(means))


def laws() -> dict[str, Callable[[], RateLaw]]:
    from components.schedules.laws import AnnealingLaw, MultiPowerLaw, PowerLaw

    return {"multi-power": MultiPowerLaw, "annealing": lambda: AnnealingLaw(decay=None), "power": PowerLaw}


def judged(law: RateLaw, curve: Curve) -> dict[str, float]:
    """How well a law that was fitted meets a curve."""
    score = law.score(curve)
    last = float(law.predict(curve.rates, curve.steps[-1:]).loss[0])
    return {"R²": score.r2, "mean error": score.relative, "worst error": score.worst, "final error": last / float(curve.losses[-1]) - 1}


def table(trained: dict[str, dict[str, list[float]]], seeds: list[int], group: int, skip: float, delta: float) -> str:
    """Markdown: for each law and what it was fitted on, means over the seeds of what :func:`judged` says."""
    from components.schedules.laws import FitError

    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        *fitted, foreseen = (curve_of(trained[key(schedule, seed)], group, skip) for schedule in (*FITTED, FORESEEN))
        for on, curves in ((", ".join(FITTED), fitted), ("WSD too", [*fitted, foreseen])):
            for name, law in laws().items():
                row = rows.setdefault((on, name), [])
                try:
                    row.append(judged(law().fit(curves, delta=delta), foreseen))
                except FitError as error:
                    sys.stderr.write(f"seed {seed}: {error}\n")
    titles = ["fitted on", "law", "R² (mean, sd, least)", "mean error", "worst error (mean, largest)", "final error (mean, sd)", "its size (mean)", "fits"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for (on, name), found in sorted(rows.items(), key=lambda item: item[0][0] == "WSD too"):
        cells = ["", "", "", "", ""]
        if found:
            r2, mean, worst, final = ([row[measure] for row in found] for measure in ("R²", "mean error", "worst error", "final error"))
            cells = [
                f"{statistics.fmean(r2):.3f} ± {deviation(r2):.3f}, {min(r2):.3f}", f"{statistics.fmean(mean):.2%}",
                f"{statistics.fmean(worst):.1%}, {max(worst):.1%}", f"{statistics.fmean(final):+.2%} ± {deviation(final):.2%}",
                f"{statistics.fmean(abs(f) for f in final):.2%}",
            ]  # fmt: skip
        lines.append(f"| {' | '.join([on, name, *cells, f'{len(found)} of {len(seeds)}'])} |")
    return "\n".join(lines)


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def key(schedule: str, seed: int) -> str:
    return f"{schedule} {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the experiment, for all runs")
    parser.add_argument("--results", type=Path, help="where curves are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--group", type=int, default=GROUP, help="steps whose losses are averaged to a point")
    parser.add_argument("--skip", type=float, default=SKIP, help="share of each run's beginning that is left out, warm-up included")
    parser.add_argument("--delta", type=float, default=DELTA, help="of the fit's Huber loss")
    options = parser.parse_args()
    trained: dict[str, dict[str, list[float]]] = {}
    if options.results is not None and options.results.is_file():
        trained = json.loads(options.results.read_text())
    for seed in options.seeds:
        for schedule in (*FITTED, FORESEEN):
            if key(schedule, seed) not in trained:
                trained[key(schedule, seed)] = run(schedule, seed, options.overrides)
                sys.stderr.write(f"\r{schedule}, seed {seed}      ")
                if options.results is not None:
                    options.results.write_text(json.dumps(trained))
    sys.stderr.write("\n")
    print(table(trained, options.seeds, options.group, options.skip, options.delta))


if __name__ == "__main__":
    main()

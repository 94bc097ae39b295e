"""How flat the weights are that training ends with: Switch EMA beside EMA and no averaging, on five seeds of ``experiment=switch_ema``.

    python tests/benchmarks/flatness.py                                     # one markdown table
    python tests/benchmarks/flatness.py data.label_noise=0.4 --schedule constant --seeds 5 6

All is of the weights that would be deployed (the average, where there is one), after the last step:

train loss      over the whole training split, with the wrong labels that it was trained on
test loss       over the test split, whose labels are right
rise at r       of the training loss, its mean over random directions in which every filter moves by r times its norm
                (Li et al. 2018, arXiv:1712.09913: biases and norms stay; the same directions for every averaging)
top eigenvalue  of the training loss's Hessian over the whole training split, by power iteration

Where labels are wrong, weights that fit them less are flatter, however that came about; so there is also a shorter training without averaging, which
ends near Switch EMA's training loss. A paired difference is between two averagings with the same seed: the same data, wrong labels, initial weights and
batches. Settings were chosen on seed 100.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # another benchmark here is called like a package

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)
SHORTER = "none, 18 epochs"
AVERAGINGS: dict[str, list[str]] = {
    "none": ["averaging=none"],
    "ema": ["averaging=ema"],
    "switch_ema": ["averaging=switch_ema"],
    SHORTER: ["averaging=none", "trainer.max_epochs=18"],  # near the training loss that Switch EMA has after 20
}
PAIRS = (("ema", "none"), ("switch_ema", "none"), ("switch_ema", "ema"), ("switch_ema", SHORTER))
RADII = (0.1, 0.2)
DIRECTIONS = 16


def run(averaging: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """One training, and what its last weights are like."""
    from losskit_cli.build import Builder
    from losskit_cli.compose import Composer
    from losskit_cli.run import quiet_libraries

    quiet_libraries()
    rarely = ["trainer.check_val_every_n_epoch=1000000", "callbacks=[]"]
    composed = Composer().compose(["experiment=switch_ema", *rarely, *AVERAGINGS[averaging], f"seed={seed}", *overrides])
    experiment = Builder(composed.resolved(), composed.choices).experiment()
    experiment.trainer.fit(experiment.task, datamodule=experiment.data)
    task = experiment.task.eval()
    weights = [p for p in task.model.parameters() if p.requires_grad]
    losses = {split: loss_over(experiment, split) for split in ("train", "test")}
    found = {f"{split} loss": float(loss().detach()) for split, loss in losses.items()}
    found |= {f"rise at {radius}": rise(losses["train"], weights, radius) for radius in RADII}
    return found | {"top eigenvalue": top_eigenvalue(losses["train"], weights)}


def loss_over(experiment: Any, split: str) -> Callable[[], Tensor]:
    """The main loss over a whole split, as a function of the weights that the model has then."""
    data, task = experiment.data, experiment.task
    batch = data.fetch(split, torch.arange(data.size(data.splits[split])))
    return lambda: task.objective.main_loss(task.quantities(batch))


@torch.no_grad()
def rise(loss: Callable[[], Tensor], weights: Sequence[Tensor], radius: float) -> float:
    """Mean rise of the loss over random directions, filter by filter of length ``radius`` times the filter's norm."""
    generator = torch.Generator().manual_seed(0)
    kept, before = [w.clone() for w in weights], float(loss())
    rises = []
    for _ in range(DIRECTIONS):
        for weight, old in zip(weights, kept, strict=True):
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * (radius * norms(old) / norms(noise)))
        rises.append(float(loss()) - before)
        torch._foreach_copy_(list(weights), kept)
    return statistics.fmean(rises)


def norms(weight: Tensor) -> Tensor:
    """Of each filter (convolution) or row (matrix)."""
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))


def top_eigenvalue(loss: Callable[[], Tensor], weights: Sequence[Tensor], iterations: int = 100, tolerance: float = 1e-3) -> float:
    """The Hessian's eigenvalue of largest size, by power iteration from a fixed start, until it changes by less than ``tolerance`` of itself."""
    gradients = torch.autograd.grad(loss(), weights, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(w.shape, generator=generator) for w in weights]
    value = 0.0
    for _ in range(iterations):
        length = torch.stack([v.square().sum() for v in vector]).sum().sqrt()
        vector = [v / length for v in vector]
        product = torch.autograd.grad(gradients, weights, vector, retain_graph=True)
        previous, value = value, float(torch.stack([(v * p).sum() for v, p in zip(vector, product, strict=True)]).sum())
        vector = list(product)
        if abs(value - previous) <= tolerance * abs(value):
            break
    return value


def table(found: dict[tuple[str, int], dict[str, float]], averagings: tuple[str, ...], seeds: list[int]) -> str:
    """Markdown: mean and standard deviation over the seeds, then of the paired differences, with how many of them are below 0."""
    measures = list(next(iter(found.values())))
    lines = [f"| averaging | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    for averaging in averagings:
        values = [[found[averaging, seed][measure] for seed in seeds] for measure in measures]
        lines.append(f"| {averaging} | {' | '.join(spread(column, 4) for column in values)} |")
    for one, other in PAIRS:
        if one in averagings and other in averagings:
            values = [[found[one, seed][measure] - found[other, seed][measure] for seed in seeds] for measure in measures]
            cells = [f"{spread(column, 2, '+')} ({sum(v < 0 for v in column)} of {len(column)} lower)" for column in values]
            lines.append(f"| {one} − {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int, sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}g}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the experiment, for every averaging")
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--averagings", nargs="+", choices=AVERAGINGS, default=list(AVERAGINGS))
    options = parser.parse_args()
    found: dict[tuple[str, int], dict[str, float]] = {}
    for seed in options.seeds:
        for averaging in options.averagings:
            found[averaging, seed] = run(averaging, seed, [f"schedule={options.schedule}", *options.overrides])
            sys.stderr.write(f"\r{len(found)} of {len(options.seeds) * len(options.averagings)} runs      ")
    sys.stderr.write("\n")
    print(table(found, tuple(options.averagings), options.seeds))


if __name__ == "__main__":
    main()

"""What a training step of the output layer costs, from a thousand classes to a million: the spherical update beside log-softmax.

>>> python tests/benchmarks/spherical.py                     # a table; --classes 1000 10000, --dim 128, --batch 32, --steps 10, --device cuda

A step is: loss, gradient by the hidden layer, and gradient descent on the weight. Three ways:

- ``spherical``: :class:`components.losses.SphericalOutput` with the Z-loss, exact, without touching every class;
- ``log-softmax``: cross-entropy, and the dense gradient of the whole weight;
- ``sparse``: cross-entropy with a sparse gradient, of the targets' rows alone: not exact, but what leaving out the dense update would save by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from components.losses import SphericalOutput, ZLoss


def spherical(classes: int, dim: int, device: str) -> Callable[[Tensor, Tensor], None]:
    layer = SphericalOutput(dim, classes, ZLoss(), check_every=1_000_000).to(device)

    def step(hidden: Tensor, target: Tensor) -> None:
        layer.step(hidden, target, lr=0.01)

    return step


def log_softmax(classes: int, dim: int, device: str) -> Callable[[Tensor, Tensor], None]:
    weight = (torch.randn(classes, dim, device=device) / dim**0.5).requires_grad_()

    def step(hidden: Tensor, target: Tensor) -> None:
        hidden = hidden.detach().requires_grad_()
        loss = F.cross_entropy(hidden @ weight.mT, target)
        _, of_weight = torch.autograd.grad(loss, (hidden, weight))
        with torch.no_grad():
            weight.sub_(of_weight, alpha=0.01)

    return step


def sparse(classes: int, dim: int, device: str) -> Callable[[Tensor, Tensor], None]:
    weight = torch.randn(classes, dim, device=device) / dim**0.5

    def step(hidden: Tensor, target: Tensor) -> None:
        logits = (hidden @ weight.mT).requires_grad_()
        loss = F.cross_entropy(logits, target)
        (of_logits,) = torch.autograd.grad(loss, logits)
        of_hidden = of_logits @ weight  # noqa: F841  (part of the step's work)
        rows = of_logits.gather(1, target.unsqueeze(1)) * hidden
        weight.index_add_(0, target, rows, alpha=-0.01)

    return step


WAYS = {"spherical": spherical, "log-softmax": log_softmax, "sparse": sparse}


def measure(way: str, classes: int, dim: int, batch: int, steps: int, device: str) -> float:
    """Median seconds of a step, after two that are not counted."""
    step = WAYS[way](classes, dim, device)
    generator = torch.Generator().manual_seed(0)
    times = []
    for i in range(steps + 2):
        hidden = torch.randn(batch, dim, generator=generator).to(device)
        target = torch.randint(classes, (batch,), generator=generator).to(device)
        start = time.perf_counter()
        step(hidden, target)
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"ms a step; hidden {arguments.dim}, batch {arguments.batch}, {torch.get_num_threads()} threads, {arguments.device}")
    print(f"{'classes':>10} " + " ".join(f"{way:>12}" for way in WAYS) + f" {'times faster':>13}")
    for classes in arguments.classes:
        times = {way: 1000 * measure(way, classes, arguments.dim, arguments.batch, arguments.steps, arguments.device) for way in WAYS}
        print(f"{classes:>10,} " + " ".join(f"{t:>12.2f}" for t in times.values()) + f" {times['log-softmax'] / times['spherical']:>13.1f}", flush=True)


if __name__ == "__main__":
    main()

"""Peak memory of a cross-entropy over a large vocabulary, value and gradient: ``python memory.py logits|linear TOKENS FEATURES CLASSES``

``logits`` makes all logits and hands them to the cross-entropy; ``linear`` is ``loss=linear_cross_entropy``. Prints JSON: the peak of
the process beyond what it held before the step (bytes, the process's high-water mark), the seconds of the step, and the loss.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator

import torch

from components.losses import LinearCrossEntropyLoss, NextTokenCrossEntropyLoss


def step(way: str, tokens: int, features: int, classes: int) -> Iterator[float]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, features, generator=generator, requires_grad=True)
    weight = torch.randn(classes, features, generator=generator).mul_(features**-0.5).requires_grad_()
    target = torch.randint(classes, (tokens,), generator=generator)
    yield 0.0
    loss = LinearCrossEntropyLoss()(states, weight, target) if way == "linear" else NextTokenCrossEntropyLoss()(states @ weight.T, target)
    loss.backward()
    yield float(loss.detach())


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(way: str, *sizes: str) -> None:
    list(step(way, 64, 8, 16))  # what torch loads at the first call is not counted
    run = step(way, *(int(size) for size in sizes))
    next(run)
    before, began = peak(), time.perf_counter()
    loss = next(run)
    print(json.dumps({"bytes": peak() - before, "seconds": time.perf_counter() - began, "loss": loss}))


if __name__ == "__main__":
    main(*sys.argv[1:])

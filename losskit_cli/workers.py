"""The process that a sweep's workers are forked from. It imports for longer than a sweep is planned, so it is begun before."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from losskit_cli.ranks import threads_each, usable_cores
from sweeps.pool import cool, warm

PRELOAD = ("losskit_cli.preload",)


def environment_of(workers: int) -> dict[str, str]:
    """The cores are shared out among the workers, unless the user has shared them out."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(workers)))}


@contextmanager
def importing_ahead(overrides: Sequence[str]) -> Iterator[None]:
    """Begin importing for local workers; what fails in here ends that again."""
    if any(text.startswith(("hydra/launcher=", "sweep.launcher=")) for text in overrides):
        yield
        return
    asked = next((int(found[1]) for text in overrides if (found := re.fullmatch(r"sweep\.workers=(\d+)", text))), 0)
    began = warm(PRELOAD, environment_of(asked or usable_cores()))  # for libraries that look at it when imported; torch is told again, by each worker
    try:
        yield
    except BaseException:
        if began:
            cool()
        raise


__all__ = ["PRELOAD", "environment_of", "importing_ahead"]

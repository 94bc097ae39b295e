"""How many CPU threads torch works with: one where a step is too little work to be shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from losskit_cli.errors import UsageError

SMALL = 200_000_000
"""Floating-point operations of one batch's forward pass below which sharing costs more than it saves.

Waking a thread takes about as long as a small operation itself, and a step is hundreds of operations. Measured on two idle cores, two
threads against one: 4 times slower at 3 million, 2 times at 20 and 1.3 times at 80, but 1.5 times faster at 290.
"""


def check_threads(setting: Any) -> None:
    """Raises UsageError unless ``trainer.threads`` is ``auto`` or a number."""
    if setting != "auto" and (isinstance(setting, bool) or not isinstance(setting, int) or setting < 1):
        raise UsageError(f"trainer.threads must be auto or a number >= 1, but got {setting!r}")


@contextmanager
def cpu_threads(setting: int | str, operations: int | None) -> Iterator[None]:
    """Run what is inside with as many threads as ``trainer.threads`` says.

    ``auto`` follows from what is trained alone, never from how busy the machine is, because the number of threads can change the last
    bits of a result: one thread below :data:`SMALL` operations, else what torch has chosen (all cores, or ``OMP_NUM_THREADS``).

    Args:
        setting: ``auto`` or a number.
        operations: floating-point operations of a batch's forward pass on the CPU; ``None``: unknown, or elsewhere.
    """
    before = torch.get_num_threads()
    wanted = setting if isinstance(setting, int) else 1 if operations is not None and operations < SMALL else before
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


__all__ = ["SMALL", "check_threads", "cpu_threads"]

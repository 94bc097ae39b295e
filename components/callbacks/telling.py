"""Callbacks that have something to say to whoever watches the run."""

from __future__ import annotations

from collections.abc import Callable

import lightning
from lightning.pytorch.utilities import rank_zero_info


class Telling(lightning.Callback):
    """Base of callbacks that tell what they do while they do it: through Lightning's log, or whatever :attr:`say` is set to.

    Attributes:
        say: is given one line of text at a time.
        show: is given what is being done, how many steps of it are done and how many there are, at every one of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.say: Callable[[str], object] = rank_zero_info
        self.show: Callable[[str, int, int], object] = lambda what, done, total: None

    def notes(self) -> list[str]:
        """What is to be told when the run is over, one line each."""
        return []

"""Being told to end: raised as an interrupt, and not in the middle of making what must be ended."""

from __future__ import annotations

import os
import signal

import pytest

from losskit_cli.signals import as_interrupts, held


def interrupted_while_making(number: int) -> bool:
    """Whether what was being made when the signal came was known to the one who has to end it."""
    made = False
    with as_interrupts():
        try:
            with held():
                os.kill(os.getpid(), number)
                made = True
        except KeyboardInterrupt:
            return made
    raise AssertionError("the signal was lost")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_held_comes_at_the_end(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert interrupted_while_making(number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupts(), held():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

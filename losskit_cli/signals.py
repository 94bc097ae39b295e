"""Being told to end from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGTERM and a closed terminal are like Ctrl-C in here; what is ignored already (``nohup``) stays so."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """An interrupt that comes in here is raised at its end: what is being made in here is known to who must end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


__all__ = ["as_interrupts", "held"]

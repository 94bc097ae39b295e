"""Being told to end from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGTERM and a closed terminal are like Ctrl-C in here; what is ignored already (``nohup``) stays so."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    with handled(numbers, interrupt):
        yield


@contextmanager
def held() -> Iterator[None]:
    """An interrupt that comes in here is raised at its end: what is being made in here is known to who must end it."""
    came = False

    def remember(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    with handled([number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))], remember):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """These signals go to ``handler`` in here, if this is the main thread: no other may handle signals."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if main else {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


__all__ = ["as_interrupts", "held"]

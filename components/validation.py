"""One way to refuse wrong input: a ``ValueError`` that names the argument, what it got and what it takes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_UNSET = object()


def require(condition: bool, message: str, got: Any = _UNSET) -> None:
    """Raise ``ValueError(message + got)`` unless ``condition`` holds.

    >>> require(0.3 <= 1, "label_smoothing must be in [0, 1)", 0.3)
    """
    if not condition:
        raise ValueError(message if got is _UNSET else f"{message}, but got {got!r}")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ``ValueError`` with the choices and the nearest one unless ``value`` is among ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but got {value!r}{did_you_mean(value, choices)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'focal'?"`` when something in ``known`` is near ``word``, else an empty string."""
    near = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""

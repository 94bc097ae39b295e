"""Errors written for the person who reads them. The exit code says whose turn it is: 2 wrong usage, 1 a failed run, 130 Ctrl-C."""

from __future__ import annotations


class LosskitError(Exception):
    """Base: shown as one message without a traceback."""

    exit_code = 1


class UsageError(LosskitError):
    """What was asked for cannot be: an unknown name, a wrong type, a loss that the task cannot feed."""

    exit_code = 2


class RunError(LosskitError):
    """The run was started and failed."""


def said_by(error: BaseException, hint: str = " (--traceback shows where)") -> str:
    """An exception of somebody else's code in one line, and how to see where it came from."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}{': ' if text else ''}{text}{hint}"

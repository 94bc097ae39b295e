"""A small filter language over runs: comparisons joined by ``and``, the same for every store.

``params.loss = 'focal' and metrics.val/loss < 0.5 and status != FAILED and name like 'digits-%'``

====================  ===============================================================================================
``params.KEY``        a chosen option (``params.loss``) or a parameter (``params.loss.gamma``); text, or number where the
                      right side is one
``metrics.KEY``       the latest value; never true for NaN, or for a run without that metric
``tags.KEY``          a tag; ``losskit.`` may be left out
``status name id``    and ``experiment``, ``duration`` (seconds), bare
operators             ``= != < <= > >=``, ``like`` (``%`` any text, ``_`` any character), ``ilike``, ``in (a, b)``
====================  ===============================================================================================

Keys with spaces are put in backticks or double quotes; text in single or double quotes, which a plain word may do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.validation import did_you_mean
from losskit_cli.errors import UsageError
from losskit_cli.tracking.store import RunInfo

KINDS = ("params", "metrics", "tags")
ALIASES = {"param": "params", "parameters": "params", "metric": "metrics", "tag": "tags"}
ATTRIBUTES: dict[str, Callable[[RunInfo], Any]] = {
    "status": lambda run: run.status,
    "name": lambda run: run.name,
    "run_name": lambda run: run.name,
    "id": lambda run: run.run_id,
    "run_id": lambda run: run.run_id,
    "experiment": lambda run: run.experiment,
    "duration": lambda run: run.duration,
}
NUMERIC_ATTRIBUTES = ("duration",)
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
TOKEN = re.compile(
    r"""\s*(?:
        (?P<op><=|>=|!=|<>|==|=|<|>)
      | (?P<punct>[(),])
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<word>(?:[^\s<>=!(),'"`]|`[^`]*`|(?<=\.)"[^"]*")+)
    )""",
    re.VERBOSE,
)
EXAMPLE = "params.loss = 'focal' and metrics.val/loss < 0.5"


@dataclass(frozen=True)
class Condition:
    """``kind.key operator operand``."""

    kind: str
    key: str
    operator: str
    operand: Any

    def holds(self, run: RunInfo) -> bool:
        value = self._value(run)
        if value is None:
            return False
        if self.operator == "in":
            return any(_equal(value, one) for one in self.operand)
        if self.operator in ("like", "ilike"):
            pattern = "".join(".*" if c == "%" else "." if c == "_" else re.escape(c) for c in str(self.operand))
            return re.fullmatch(pattern, str(value), re.DOTALL | (re.IGNORECASE if self.operator == "ilike" else 0)) is not None
        if self.operator == "=":
            return _equal(value, self.operand)
        if self.operator == "!=":
            return not _equal(value, self.operand)
        left, right = _number(value), _number(self.operand)
        return left is not None and right is not None and ORDER[self.operator](left, right)

    def _value(self, run: RunInfo) -> Any:
        if self.kind == "metrics":
            return run.metrics.get(self.key)
        if self.kind == "params":
            return run.option(self.key) if self.key not in run.params else run.params[self.key]
        if self.kind == "tags":
            return run.tags.get(self.key, run.tags.get(f"losskit.{self.key}"))
        return ATTRIBUTES[self.key](run)


def parse_filter(text: str) -> list[Condition]:
    """Conditions that must all hold.

    Raises:
        UsageError: what cannot be read, and what was expected there.
    """
    tokens = _tokens(text)
    if not tokens:
        raise UsageError(f"--filter is empty: write something like {EXAMPLE}")
    conditions = []
    position = 0
    while True:
        condition, position = _condition(text, tokens, position)
        conditions.append(condition)
        if position == len(tokens):
            return conditions
        kind, word = tokens[position]
        if kind != "word" or word.lower() != "and":
            hint = " (only `and` joins comparisons)" if word.lower() == "or" else ""
            raise _error(text, f"expected `and`, but got {word!r}{hint}")
        position += 1


def keep(runs: Sequence[RunInfo], text: str | None) -> list[RunInfo]:
    """The runs that the filter lets through; all of them without one. A metric that no run has is an error, with the nearest name."""
    if text is None:
        return list(runs)
    conditions = parse_filter(text)
    for condition in conditions:
        if condition.kind == "metrics" and runs:
            known = sorted({key for run in runs for key in run.metrics})
            if condition.key not in known:
                near = did_you_mean(condition.key, known)
                raise UsageError(f"--filter: no run has a metric {condition.key!r}{near} (there is: {', '.join(known) or 'none'})")
    return [run for run in runs if all(condition.holds(run) for condition in conditions)]


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while text[position:].strip():
        match = TOKEN.match(text, position)
        if match is None:
            raise _error(text, f"cannot read {text[position:].strip()[:20]!r}")
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
    return tokens


def _condition(text: str, tokens: list[tuple[str, str]], position: int) -> tuple[Condition, int]:
    def take(what: str) -> tuple[str, str]:
        nonlocal position
        if position >= len(tokens):
            raise _error(text, f"expected {what} at the end")
        position += 1
        return tokens[position - 1]

    token, left = take("a name such as metrics.val/loss")
    if token != "word":
        raise _error(text, f"expected a name such as metrics.val/loss, but got {left!r}")
    kind, key = _name(text, left)
    token, operator = take(f"a comparison after {left}")
    operator = {"==": "=", "<>": "!="}.get(operator, operator.lower())
    if token != "op" and operator not in ("like", "ilike", "in"):
        raise _error(text, f"expected a comparison (= != < <= > >= like ilike in) after {left}, but got {operator!r}")
    if operator == "in":
        operand: Any = _list(text, take)
    else:
        operand = _operand(text, take(f"a value after {left} {operator}"))
    numeric = kind == "metrics" or (kind == "attributes" and key in NUMERIC_ATTRIBUTES)
    if (operator in ORDER or (numeric and operator in ("=", "!="))) and _number(operand) is None:
        raise _error(text, f"{left} {operator} needs a number, but got {operand!r}")
    return Condition(kind, key, operator, operand), position


def _name(text: str, word: str) -> tuple[str, str]:
    head, dot, key = word.partition(".")
    kind = ALIASES.get(head.lower(), head.lower())
    if kind in KINDS and dot:
        return kind, re.sub(r"[`\"]", "", key)
    attribute = key if kind in ("attributes", "attribute") and dot else word
    if attribute.lower() in ATTRIBUTES:
        return "attributes", attribute.lower()
    known = [*KINDS, *ATTRIBUTES]
    raise _error(text, f"there is no {word!r}{did_you_mean(head.lower(), known)} (write params.…, metrics.…, tags.…, or one of {', '.join(ATTRIBUTES)})")


def _list(text: str, take: Callable[[str], tuple[str, str]]) -> list[Any]:
    if take("( after in")[1] != "(":
        raise _error(text, "expected ( after in")
    values = []
    while True:
        values.append(_operand(text, take("a value")))
        closing = take(", or )")[1]
        if closing == ")":
            return values
        if closing != ",":
            raise _error(text, f"expected , or ) in a list, but got {closing!r}")


def _operand(text: str, token: tuple[str, str]) -> Any:
    kind, value = token
    if kind == "text":
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    if kind == "word":
        return value
    raise _error(text, f"expected a value, but got {value!r}")


def _equal(value: Any, operand: Any) -> bool:
    left, right = _number(value), _number(operand)
    return left == right if left is not None and right is not None else str(value) == str(operand)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _error(text: str, message: str) -> UsageError:
    return UsageError(f"--filter {text!r}: {message}. Example: {EXAMPLE}")


__all__ = ["Condition", "keep", "parse_filter"]

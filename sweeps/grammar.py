"""Hydra's sweep grammar, one override at a time: which values it stands for, and what is wrong with it.

==============================================  ======================================================================
``loss=poly1,focal``                            choices: of a config group, of lists (``regularizer=[l1],[]``), of null
``loss=glob(*)``                                every option of a group
``seed=range(5)``, ``range(1,0,-0.1)``          evenly spaced numbers; the stop is exclusive
``optimizer.momentum=interval(0,1)``            any number from 0 to 1, both ends included
``model.depth=int(interval(1,8))``              any whole number from 1 to 8
``optimizer.lr=tag(log,interval(1e-4,1))``      evenly in the logarithm; also ``tag(log,int(interval(…)))``
``model.dropout=tag('step=0.1',interval(0,1))`` 0, 0.1, … 1; whole numbers: ``tag('step=2',int(interval(1,9)))``
``loss.epsilon=tag('loss=poly1',interval(…))``  only in trials that chose ``loss=poly1``
``loss=tag('zip=a',choice(focal,poly1))``       goes through its choices together with the others of the same zip name
==============================================  ======================================================================

"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, Quote, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from components.validation import did_you_mean

TAGS = "log, 'step=…', 'zip=…' or a condition such as 'loss=poly1'"
HOW_TO_WRITE = {
    "interval": "interval(low,high)",
    "range": "range(start,stop,step)",
    "choice": "choice(a,b)",
    "tag": "tag(log,interval(low,high))",
    "int": "int(interval(low,high))",
    "glob": "glob(*)",
}


class SpaceError(ValueError):
    """A search space that cannot be: which override, what is wrong with it, what would be right."""


@dataclass(frozen=True)
class Parameter:
    """One override's sweep.

    Args:
        key: as in the override: ``optimizer.lr``, ``loss``, ``+x.y``.
        distribution: what it is drawn from. Choices that are no finite numbers are kept as override text (``[a,b]``, ``null``, ``true``).
        condition: the choice, as ``("loss", "poly1")``, without which it is not sampled; ``None``: whenever its key is there.
        zip: the name that it shares with the parameters which go through their choices together with it.
        descending: whether its numbers are listed from the highest down (``range(5,0,-1)``); a sampler does not care.
    """

    key: str
    distribution: BaseDistribution
    condition: tuple[str, str] | None = None
    zip: str | None = None
    descending: bool = False

    @property
    def name(self) -> str:
        """The key without ``+``: what Optuna knows it by."""
        return self.key.lstrip("+")

    @property
    def group(self) -> str:
        """The key without ``+`` and package (``loss@auxiliary.kd`` -> ``loss``): the config group, if it is one."""
        return self.name.partition("@")[0]

    @property
    def size(self) -> int | None:
        """How many values it has; ``None`` where they cannot be listed."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return len(d.choices)
        if isinstance(d, IntDistribution):
            return (d.high - d.low) // d.step + 1
        assert isinstance(d, FloatDistribution)
        if d.low == d.high:
            return 1
        return None if d.step is None else int(_steps(d)) + 1

    def value(self, index: int) -> Any:
        """The ``index``-th value, as Optuna stores it; of an interval without steps the low end."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return d.choices[index]
        index = (self.size or 1) - 1 - index if self.descending else index
        if isinstance(d, IntDistribution):
            return d.low + index * d.step
        assert isinstance(d, FloatDistribution)
        return d.low if d.step is None else float(_exact(d.low) + index * _exact(d.step))

    def text(self, value: Any) -> str:
        """A value as an override's right-hand side; a number off the grid by a rounding error is put back on it."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return value if isinstance(value, str) else _number(value)
        if isinstance(d, IntDistribution):
            return str(int(value))
        assert isinstance(d, FloatDistribution)
        if d.step is not None:
            value = _exact(d.low) + round((_exact(value) - _exact(d.low)) / _exact(d.step)) * _exact(d.step)
        return _number(float(value))

    def choice(self, text: str) -> str | None:
        """The value that ``text`` means, as :meth:`text` writes it; ``None`` if it is not among the values."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return next((t for t in map(self.text, d.choices) if t in (text, _canonical(text))), None)
        try:
            number = float(text)
        except ValueError:
            return None
        assert isinstance(d, FloatDistribution | IntDistribution)
        steps = (_exact(number) - _exact(d.low)) / _exact(d.step or 1) if math.isfinite(number) else Decimal(-1)
        return self.text(number) if 0 <= steps < (self.size or 0) and steps == int(steps) else None

    def sweep(self) -> str:
        """The right-hand side of an override that parses to this parameter (``null`` among tagged choices aside)."""
        d = self.distribution
        tags = [f"'zip={self.zip}'"] if self.zip else []
        tags += [f"'{'='.join(self.condition)}'"] if self.condition else []
        if isinstance(d, CategoricalDistribution):
            texts = ",".join(map(self.text, d.choices))
            sweep = texts if len(d.choices) > 1 and not tags else f"choice({texts})"
        elif self.descending or self.zip:  # an interval has no order and cannot be zipped
            first, last = self.value(0), self.value((self.size or 1) - 1)
            step = _exact(d.step) * (-1 if self.descending else 1)  # type: ignore[attr-defined]
            stop = _exact(last) + step
            sweep = f"range({_number(first)},{_number(int(stop) if isinstance(d, IntDistribution) else float(stop))},{step})"
        else:
            assert isinstance(d, FloatDistribution | IntDistribution)
            whole = isinstance(d, IntDistribution)
            sweep = f"int(interval({d.low},{d.high}))" if whole else f"interval({_number(d.low)},{_number(d.high)})"
            tags += ["log"] if d.log else []
            tags += [f"'step={_number(d.step)}'"] if d.step != (1 if whole else None) else []
        return f"tag({','.join([*tags, sweep])})" if tags else sweep

    def __str__(self) -> str:
        return f"{self.key}={self.sweep()}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "key": self.key,
            "distribution": json.loads(distribution_to_json(self.distribution)),
            "condition": list(self.condition) if self.condition else None,
            "zip": self.zip,
            "descending": self.descending,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Parameter:
        """The parameter that :meth:`to_dict` saved."""
        condition = saved["condition"]
        distribution = json_to_distribution(json.dumps(saved["distribution"]))
        return cls(saved["key"], distribution, (condition[0], condition[1]) if condition else None, saved["zip"], saved["descending"])


# -- one override --------------------------------------------------------------------------------------------------------------
def parse(text: str, config_loader: ConfigLoader | None) -> Override:
    """An override, parsed.

    Raises:
        SpaceError: it does not parse, or holds a sweep where none can be.
    """
    try:
        override = OverridesParser.create(config_loader=config_loader).parse_overrides([text])[0]
    except HydraException as error:
        raise SpaceError(f"cannot read {text!r}: {_why_unreadable(text, error)}") from error
    except Exception as error:  # whatever one of Hydra's functions raises on arguments that it did not foresee
        raise SpaceError(f"cannot read {text!r}: {error}") from error
    root = re.split(r"[./@]", override.key_or_group)[0]
    if override.is_sweep_override():
        if root in ("sweep", "hydra"):
            raise SpaceError(f"{text}: {root}.… is not a trial's to choose, it takes one value")
        if override.is_delete():
            raise SpaceError(f"{text}: a deletion takes no choices; {override.key_or_group}=a,b chooses values")
    else:
        inner = next(_sweeps_in(override._value), None)
        if inner is not None:
            raise SpaceError(f"{text}: a sweep cannot stand inside a list or mapping; write whole values: {override.key_or_group}=[1,2],[1,3]")
    return override


def read_parameter(text: str, override: Override) -> Parameter:
    """The parameter that an override with a sweep stands for."""
    value = override._value
    key = override.get_key_element()
    tags = _Tags.read(text, value.tags if isinstance(value, Sweep) else ())
    outside_quotes = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "''", text)
    if outside_quotes.count("tag(") > (1 if isinstance(value, Sweep) and value.tags else 0):
        raise SpaceError(f"{text}: write one tag() around everything, with all tags in it: {key}=tag(log,'loss=poly1',int(interval(1,8)))")
    if getattr(value, "shuffle", False):
        raise SpaceError(f"{text}: shuffle() has no seed, so that the sweep could not be repeated; sweep/sampler=brute_force takes all in random order")
    descending = False
    if isinstance(value, IntervalSweep):
        distribution = _interval(text, value, tags)
    else:
        if tags.log or tags.step:
            tag, instead = ("log", "") if tags.log else (f"step={tags.step}", "; range(start,stop,step) has a step of its own")
            raise SpaceError(f"{text}: the tag {tag} goes with interval(low,high) only{instead}")
        if isinstance(value, RangeSweep):
            distribution, descending = _range(text, value)
        else:
            distribution = _choices(text, override, tags)
    if tags.zip is not None and isinstance(value, IntervalSweep):
        raise SpaceError(f"{text}: zip goes through choices one by one, so it needs choice(…) or range(…), not an interval")
    return Parameter(key, distribution, tags.condition, tags.zip, descending)


@dataclass
class _Tags:
    """What an override's tags say."""

    log: bool = False
    step: str | None = None
    zip: str | None = None
    condition: tuple[str, str] | None = None

    @classmethod
    def read(cls, text: str, tags: Iterable[str]) -> _Tags:
        found = cls()
        for tag in sorted(tags):
            name, equals, value = (part.strip() for part in tag.partition("="))
            if tag == "log":
                found.log = True
            elif not equals or not name or not value:
                raise SpaceError(f"{text}: there is no tag {tag!r}{did_you_mean(tag, ['log', 'step=', 'zip='])} (tags: {TAGS})")
            elif name == "step" and found.step is None:
                found.step = value
            elif name == "zip" and found.zip is None:
                found.zip = value
            elif name not in ("step", "zip") and found.condition is None:
                found.condition = (name, value)
            else:
                kind = name if name in ("step", "zip") else "condition"
                raise SpaceError(f"{text}: it takes one {kind}, but has two")
        return found


def _interval(text: str, sweep: IntervalSweep, tags: _Tags) -> BaseDistribution:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    whole = isinstance(low, int) and isinstance(high, int)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SpaceError(f"{text}: the ends of an interval are finite numbers")
    if low > high:
        raise SpaceError(f"{text}: its ends are the wrong way round: interval({_number(high)},{_number(low)})")
    if tags.log and tags.step:
        raise SpaceError(f"{text}: log and step do not go together: tag(log,…) or tag('step={tags.step}',…)")
    if tags.log and low <= 0:
        raise SpaceError(f"{text}: a log interval begins above 0, for example interval({'1' if whole else _number(high / 1000 if high > 0 else 1e-4)},…)")
    if tags.step is None:
        return IntDistribution(int(low), int(high), log=tags.log) if whole else FloatDistribution(low, high, log=tags.log)
    step = _step(text, tags.step, whole)
    if step > _exact(high) - _exact(low):
        raise SpaceError(f"{text}: the step {tags.step} is longer than the interval")
    # Optuna would shorten an interval that is no multiple of the step itself, but not without a warning
    last = _exact(low) + (_exact(high) - _exact(low)) // step * step
    return IntDistribution(int(low), int(last), step=int(step)) if whole else FloatDistribution(low, float(last), step=float(step))


def _step(text: str, given: str, whole: bool) -> Decimal:
    try:
        step = float(given)
    except ValueError as error:
        raise SpaceError(f"{text}: a step is a number, for example 'step={2 if whole else 0.1}', but got {given!r}") from error
    if not math.isfinite(step) or step <= 0:
        raise SpaceError(f"{text}: a step is a number above 0, but got {given}")
    if whole and step != int(step):
        raise SpaceError(f"{text}: a step between whole numbers is one, but got {given}")
    return _exact(int(step) if whole else step)


def _range(text: str, sweep: RangeSweep) -> tuple[BaseDistribution, bool]:
    """The numbers of a range: as Hydra's, but reckoned in decimals, so that ``range(0,2.1,0.7)`` has the three numbers that it says."""
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None and stop is not None
    if not all(math.isfinite(number) for number in (start, stop, step)):
        raise SpaceError(f"{text}: start, stop and step of a range are finite numbers")
    if step == 0:
        raise SpaceError(f"{text}: the step of a range is not 0")
    first, width = _exact(start), _exact(step)
    count = math.ceil((_exact(stop) - first) / width)
    if count < 1:
        other = f"range({_number(stop)},{_number(start)},{_number(step)})" if start != stop else f"range({_number(start)},{_number(start + abs(step))})"
        raise SpaceError(f"{text}: there is nothing in this range (the stop is exclusive): {other} has something")
    last = first + (count - 1) * width
    low, high = min(first, last), max(first, last)
    if all(isinstance(number, int) for number in (start, stop, step)):
        return IntDistribution(int(low), int(high), step=abs(int(width))), step < 0
    return FloatDistribution(float(low), float(high), step=abs(float(width))), step < 0


def _choices(text: str, override: Override, tags: _Tags) -> CategoricalDistribution:
    value = override._value
    if isinstance(value, Glob):
        if override.config_loader is None:
            raise SpaceError(f"{text}: glob() goes over the options of a config group, and no configuration is at hand")
        elements: list[Any] = list(override.sweep_iterator())
        if not elements:
            raise SpaceError(f"{text}: no option of a group {override.key_or_group!r} fits (losskit list {override.key_or_group})")
    else:
        assert isinstance(value, ChoiceSweep)
        elements = list(value.list)
    key = override.key_or_group
    if any(isinstance(element, Sweep | Glob) for element in elements):
        raise SpaceError(f"{text}: a sweep is no choice: either choices ({key}=1,2,3) or an interval ({key}=interval(1,3))")
    if next((s for element in elements for s in _sweeps_in(element)), None) is not None:
        raise SpaceError(f"{text}: a sweep cannot stand inside a list or mapping; write whole values: {key}=[1,2],[1,3]")
    plain = [Override._convert_value(element) for element in elements]
    for i, one in enumerate(plain if tags.zip is None else ()):  # of a zip only whole rows differ
        same = next((j for j in range(i) if plain[j] == one), None)
        if same is not None:
            texts = as_override(elements[same]), as_override(elements[i])
            says = f"{texts[0]} and {texts[1]} are equal choices" if texts[0] != texts[1] else f"{texts[0]} is there twice"
            raise SpaceError(f"{text}: {says}; each value once")
    stored = []
    for element in elements:
        number = isinstance(element, int | float) and not isinstance(element, bool)
        if number and math.isnan(element):
            raise SpaceError(f"{text}: nan is no choice")
        stored.append(element if number and math.isfinite(element) else as_override(element, text))
    return CategoricalDistribution(stored)


def refuse_twice(parsed: Sequence[tuple[str, Override]]) -> None:
    """A key that is swept may be given only once; of several fixed values the last counts, as everywhere."""
    by_key: dict[str, list[tuple[str, Override]]] = {}
    for text, override in parsed:
        by_key.setdefault(override.get_key_element().lstrip("+~"), []).append((text, override))
    for key, given in by_key.items():
        if len(given) > 1 and any(override.is_sweep_override() for _, override in given):
            raise SpaceError(f"{key} is given twice: {' and '.join(text for text, _ in given)}")


def _sweeps_in(value: Any) -> Iterator[Any]:
    """Sweeps inside a parsed list or mapping (Hydra's grammar takes them there, and nothing ever expands them)."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, Sweep | Glob):
            yield inner
        yield from _sweeps_in(inner)


def _why_unreadable(text: str, error: HydraException) -> str:
    """What is wrong with an override, and how one would write it."""
    message = str(error).splitlines()
    said = next((line for line in message if " while evaluating '" in line), "")
    function = re.search(r"while evaluating '(\w+)\s*\(", said)
    if function:
        name, why = function.group(1), said.partition("': ")[2] or said
        if "Unknown function" in why:
            names = list(HOW_TO_WRITE)
            return f"there is no {name}(){did_you_mean(name, names)} (there is: {', '.join(names)})"
        if name == "choice" and "NoneType" in why:
            return "choice() takes no null; without it: key=null,1"
        if name == "choice" and "empty" in why:
            return "choice() needs at least one choice: choice(a,b)"
        if "infinity" in why:
            return "the ends of an interval are finite numbers"
        return f"{why}; it is written {HOW_TO_WRITE.get(name, f'{name}(…)')}"
    value = text.partition("=")[2]
    if "=" not in text and not text.startswith("~"):
        return "write key=value (or ~key to delete, +key=value to add)"
    unknown = re.match(r"\+{0,2}[^=]+=\s*(\w+)\(", text)
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "{}", "()")):
        return "a bracket is not closed"
    if value.count("'") % 2 or value.count('"') % 2:
        return "a quote is not closed"
    if unknown and unknown.group(1) in HOW_TO_WRITE:
        return f"{unknown.group(1)} is written {HOW_TO_WRITE[unknown.group(1)]}; a text with special characters goes into quotes"
    return "a text with special characters goes into quotes: key='a=b'"


# -- values as text --------------------------------------------------------------------------------------------------------------
def as_override(value: Any, where: str = "") -> str:
    """A parsed value as the right-hand side of an override that gives the same value again.

    >>> as_override(["l1", None, True, 1e-5, "1"])
    "[l1,null,true,1e-05,'1']"

    Raises:
        SpaceError: a value that the grammar cannot say.
    """
    text = _written(value)
    if not _reads_as(text, value):
        raise SpaceError(f"{where or text}: the choice {Override._convert_value(value)!r} cannot be written as an override")
    return text


def same_value(one: str, other: str) -> bool:
    """Whether two right-hand sides of overrides mean the same value."""
    return _canonical(one) == _canonical(other)


def _written(value: Any) -> str:
    if isinstance(value, QuotedString):
        value = value.text
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k if isinstance(k, str) else _written(k)}:{_written(v)}" for k, v in value.items()) + "}"
    plain = re.fullmatch(r"[\w./\\+-]+|\$\{[^}]*\}", value)
    return value if plain and _reads_as(value, value) else QuotedString(value, Quote.single).with_quotes()


def _reads_as(text: str, value: Any) -> bool:
    try:
        read = OverridesParser.create().parse_overrides([f"k={text}"])[0]
    except HydraException:
        return False
    return not read.is_sweep_override() and _same(Override._convert_value(read._value), Override._convert_value(value))  # type: ignore[arg-type]


def _same(one: Any, other: Any) -> bool:
    """Equal in value and type, all the way down."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other)))


def _canonical(text: str) -> str:
    """An override's right-hand side as this module writes it; unreadable ones as they are."""
    try:
        read = OverridesParser.create().parse_overrides([f"k={text}"])[0]
        return text if read.is_sweep_override() else as_override(read._value)
    except (HydraException, SpaceError):
        return text


def _number(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)


def _exact(number: Any) -> Decimal:
    """The decimal number that a float is written as: 0.1, not 0.1000000000000000055."""
    return number if isinstance(number, Decimal) else Decimal(str(number))


def _steps(distribution: FloatDistribution) -> Decimal:
    return ((_exact(distribution.high) - _exact(distribution.low)) / _exact(distribution.step)).to_integral_value()


__all__ = ["TAGS", "Parameter", "SpaceError", "as_override", "parse", "read_parameter", "refuse_twice", "same_value"]

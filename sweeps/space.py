"""Search spaces in Hydra's override grammar: parsed, checked, sampled through an Optuna trial, or listed point by point.

An override that holds a sweep is a parameter of the space, every other one is fixed (the grammar: :mod:`sweeps.grammar`).
A parameter of an option that is not chosen (``loss=poly1,focal loss.epsilon=interval(-1,5)``) is not sampled, without a tag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from hydra.core.config_loader import ConfigLoader
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from components.validation import did_you_mean
from sweeps.grammar import TAGS, Parameter, SpaceError, parse, read_parameter, refuse_twice, same_value

MOST_POINTS = 100_000
"""An exhaustive search over more points than these is refused."""
MOST_COMBINATIONS_TRIED = 64
"""So many combinations of group options are composed, at most, in search of one that has a key which none had so far."""


class Resolver(Protocol):
    """What a space has to know of the configuration that it is a space over."""

    def is_group(self, key: str) -> bool:
        """Whether ``key`` names a config group, so that its values are options."""
        ...

    def has(self, key: str, chosen: Mapping[str, str]) -> bool:
        """Whether ``key`` can be set when these options are chosen (group, as in the override, -> option, as in the override)."""
        ...

    def nearest(self, key: str) -> str:
        """What to say after "there is no …": the key that was perhaps meant, or an empty string."""
        ...


@dataclass(frozen=True)
class Unit:
    """What Optuna sees as one parameter: an override's sweep, or all those of one zip name.

    A zip is one categorical parameter; its choices are the rows of overrides: ``loss=poly1 optimizer.lr=0.2``.
    """

    name: str
    members: tuple[Parameter, ...]

    @property
    def condition(self) -> tuple[str, str] | None:
        return self.members[0].condition

    @cached_property
    def distribution(self) -> BaseDistribution:
        if self.members[0].zip is None:
            return self.members[0].distribution
        return CategoricalDistribution([" ".join(row) for row in self._rows])

    @cached_property
    def _rows(self) -> list[list[str]]:
        return [[f"{m.key}={m.text(m.value(i))}" for m in self.members] for i in range(self.size or 0)]

    @property
    def size(self) -> int | None:
        return self.members[0].size

    def value(self, index: int) -> Any:
        """The ``index``-th value, as Optuna stores it."""
        return self.members[0].value(index) if self.members[0].zip is None else self.distribution.to_external_repr(index)

    def texts(self, value: Any) -> list[str]:
        """The members' values, as override text."""
        if self.members[0].zip is None:
            return [self.members[0].text(value)]
        index = int(self.distribution.to_internal_repr(value))
        return [m.text(m.value(index)) for m in self.members]

    def suggest(self, trial: BaseTrial) -> Any:
        """A value from Optuna."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.name, d.choices)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, FloatDistribution)
        return trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)


@dataclass
class _Walk:
    """A trial in the making: what has been chosen so far."""

    params: dict[str, Any] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)  # parameter's name -> its value as text
    chosen: dict[str, str] = field(default_factory=dict)  # group, as in the override -> option
    overrides: list[str] = field(default_factory=list)

    def take(self, unit: Unit, value: Any, resolver: Resolver) -> None:
        self.params[unit.name] = value
        for member, text in zip(unit.members, unit.texts(value), strict=True):
            self.given[member.name] = text
            self.overrides.append(f"{member.key}={text}")
            if resolver.is_group(member.group):
                self.chosen[member.key] = text

    def copy(self) -> _Walk:
        return _Walk(dict(self.params), dict(self.given), dict(self.chosen), list(self.overrides))


@dataclass(frozen=True)
class SearchSpace:
    """A space of overrides.

    Args:
        parameters: in the order in which they were given, which is that of an exhaustive search: the first changes slowest.
    """

    parameters: tuple[Parameter, ...] = ()

    @classmethod
    def parse(cls, overrides: Sequence[str], config_loader: ConfigLoader | None = None) -> tuple[SearchSpace, list[str]]:
        """The space that ``overrides`` span, and the fixed ones among them, as they were given.

        Args:
            overrides: in Hydra's grammar.
            config_loader: knows the options of groups; needed for ``glob()`` only.

        Raises:
            SpaceError: an override that does not parse, a sweep that makes no sense, a key given twice, a condition on what is no choice.
        """
        parsed = [(text, parse(text, config_loader)) for text in overrides]
        refuse_twice(parsed)
        fixed = [text for text, override in parsed if not override.is_sweep_override()]
        space = cls(tuple(read_parameter(text, override) for text, override in parsed if override.is_sweep_override()))
        space = cls(tuple(space._with_condition_checked(p, fixed) for p in space.parameters))
        space._check_zips()
        space._check_circles()
        return space, fixed

    # -- what it is ------------------------------------------------------------------------------------------------------
    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What Optuna sees: one for each parameter, or each zip name, in the order in which they were given."""
        members: dict[tuple[bool, str], list[Parameter]] = {}
        for p in self.parameters:
            members.setdefault((p.zip is not None, p.zip or p.name), []).append(p)
        return tuple(Unit(name, tuple(group)) for (_, name), group in members.items())

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's name of a parameter -> what it is drawn from."""
        return {unit.name: unit.distribution for unit in self.units}

    @property
    def finite(self) -> bool:
        """Whether all its points can be listed."""
        return all(p.size is not None for p in self.parameters)

    @property
    def size(self) -> int | None:
        """How many combinations there are, those counted apart that differ only in what does not apply; ``None``: no end of them."""
        return math.prod(unit.size or 0 for unit in self.units) if self.finite else None

    def __len__(self) -> int:
        return len(self.parameters)

    def __str__(self) -> str:
        return " ".join(map(str, self.parameters))

    # -- checking ----------------------------------------------------------------------------------------------------------
    def check(self, resolver: Resolver) -> None:
        """Hold the space against the configuration. Every option of every group is composed once.

        Raises:
            SpaceError: a key that is there under none of the choices, numbers for a group.
        """
        order = self._order(resolver)
        for p in self.parameters:
            if resolver.is_group(p.group) and not isinstance(p.distribution, CategoricalDistribution):
                raise SpaceError(f"{p}: {p.group} is a group, whose options have names: {p.key}=a,b (losskit list {p.group})")
        reached: set[str] = set()
        for picks in self._tours(order, resolver):
            reached |= self._visit(order, resolver, picks).params.keys()
        for unit in order:
            if unit.name not in reached and not self._found_elsewhere(unit, order, resolver):
                self._refuse_unknown(unit, order, resolver)

    def _tours(self, order: Sequence[Unit], resolver: Resolver) -> Iterator[dict[str, int]]:
        """Picks (unit -> index of its value; the first where none is named) that bring every option and every condition about once."""
        seen: list[dict[str, int]] = []
        for unit in order:
            groups = any(resolver.is_group(m.group) for m in unit.members)
            for index in range(unit.size or 1) if groups else (0,):
                picks = {**self._required(unit), unit.name: index} if groups else self._required(unit)
                if picks not in seen:
                    seen.append(picks)
                    yield picks
        if not seen:
            yield {}

    def _required(self, unit: Unit) -> dict[str, int]:
        """The picks under which ``unit``'s explicit condition holds."""
        if unit.condition is None:
            return {}
        key, wanted = unit.condition
        owner = self._owner(key)
        position = [m.name for m in owner.members].index(key)
        index = next(i for i in range(owner.size or 0) if owner.texts(owner.value(i))[position] == wanted)
        return {**self._required(owner), owner.name: index}

    def _visit(self, order: Sequence[Unit], resolver: Resolver, picks: Mapping[str, int]) -> _Walk:
        """The trial that ``picks`` makes, composed; a zipped key that is not there under its own row's options is an error."""
        walk = self._walk(order, resolver, lambda unit: unit.value(picks.get(unit.name, 0)))
        for unit in order:
            if unit.name not in walk.params:
                continue
            for member in unit.members:
                group = resolver.is_group(member.group)  # then has() is true, or the composition says why it cannot be
                there = (member.key != member.name and not group) or resolver.has(member.name, walk.chosen)
                if not there and member.zip is not None:
                    row = " ".join(f"{m.key}={walk.given[m.name]}" for m in unit.members)
                    raise SpaceError(f"{member}: in the row {row!r} of zip={member.zip} there is no {member.name!r}{resolver.nearest(member.name)}")
        return walk

    def _found_elsewhere(self, unit: Unit, order: Sequence[Unit], resolver: Resolver) -> bool:
        """Whether some combination of options that is no first choice has the unit's keys."""
        groups = [u for u in order if any(resolver.is_group(m.group) for m in u.members)]
        if math.prod(u.size or 1 for u in groups) > MOST_COMBINATIONS_TRIED:
            return False
        for indices in product(*(range(u.size or 1) for u in groups)):
            picks = {**dict(zip((u.name for u in groups), indices, strict=True)), **self._required(unit)}
            if unit.name in self._walk(order, resolver, lambda u, p=picks: u.value(p.get(u.name, 0))).params:  # type: ignore[misc]
                return True
        return False

    def _refuse_unknown(self, unit: Unit, order: Sequence[Unit], resolver: Resolver) -> None:
        picks = self._required(unit)
        chosen = self._walk(order, resolver, lambda u: u.value(picks.get(u.name, 0))).chosen
        groups = [p.name for p in self.parameters if resolver.is_group(p.group)]
        for member in unit.members:
            if member.key == member.name and not resolver.is_group(member.group) and not resolver.has(member.name, chosen):
                under = f" with {'='.join(member.condition)}" if member.condition else f", whichever {' and '.join(groups)} is chosen" if groups else ""
                raise SpaceError(f"{member}: there is no {member.name!r}{under}{resolver.nearest(member.name)}")
        raise SpaceError(f"{unit.members[0]}: its condition is never met")

    # -- trials ------------------------------------------------------------------------------------------------------------
    def suggest(self, trial: BaseTrial, resolver: Resolver) -> list[str]:
        """One trial's overrides: groups first, then what applies under the options that they chose; the rest is not sampled.

        Args:
            trial: asks the sampler, or holds the parameters already (an enqueued or a fixed trial).
        """
        return self._walk(self._order(resolver), resolver, lambda unit: unit.suggest(trial)).overrides

    def points(self, resolver: Resolver) -> list[dict[str, Any]]:
        """Every combination of a finite space, in the order of Hydra's multirun, each as ``study.enqueue_trial`` takes it.

        Combinations that differ only in parameters which do not apply are one point.

        Raises:
            SpaceError: no end of values, or more than ``MOST_POINTS`` points.
        """
        endless = next((p for p in self.parameters if p.size is None), None)
        if endless is not None:
            raise SpaceError(
                f"{endless} has no end of values, and trying all of them needs one: choices, range(start,stop,step), "
                f"or tag('step=…',interval(low,high)); or a sampler that draws, such as sweep/sampler=tpe"
            )
        order = self._order(resolver)
        rank = {unit.name: i for i, unit in enumerate(self.units)}
        found: list[tuple[tuple[int, ...], dict[str, Any]]] = []

        def extend(walk: _Walk, depth: int, indices: dict[str, int]) -> None:
            while depth < len(order) and not self._applies(order[depth], walk, resolver):
                depth += 1
            if depth < len(order):
                unit = order[depth]
                for index in range(unit.size or 0):
                    further = walk.copy()
                    further.take(unit, unit.value(index), resolver)
                    extend(further, depth + 1, {**indices, unit.name: index})
                return
            if len(found) == MOST_POINTS:
                raise SpaceError(f"{self}: that is more than {MOST_POINTS:,} points, too many to try all: fewer choices, or a sampler that draws")
            # what does not apply stands at its first value: the place of the first of the combinations that are this point
            found.append((tuple(indices.get(u.name, 0) for u in self.units), dict(sorted(walk.params.items(), key=lambda item: rank[item[0]]))))

        extend(_Walk(), 0, {})
        return [params for _, params in sorted(found, key=lambda point: point[0])]

    def overrides_of(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of a trial's parameters (``trial.params``, or a point), in the order in which they were given.

        Raises:
            SpaceError: a parameter that the space does not have, or a choice that it does not offer.
        """
        units = {unit.name: unit for unit in self.units}
        for name in params:
            if name not in units:
                raise SpaceError(f"the space has no parameter {name!r}{did_you_mean(name, units)} (it has: {', '.join(units) or 'none'})")
        overrides = []
        for unit in self.units:
            if unit.name in params:
                try:
                    unit.distribution.to_internal_repr(params[unit.name])
                except ValueError as error:
                    raise SpaceError(f"{unit.name}={params[unit.name]!r} is none of its choices: {unit.distribution}") from error
                overrides += [f"{m.key}={text}" for m, text in zip(unit.members, unit.texts(params[unit.name]), strict=True)]
        return overrides

    def _order(self, resolver: Resolver) -> list[Unit]:
        """Units so that each comes after what decides whether it applies: groups first, conditions before what hangs on them."""
        order: dict[str, Unit] = {}

        def put(unit: Unit) -> None:
            if unit.condition is not None:
                put(self._owner(unit.condition[0]))
            order.setdefault(unit.name, unit)

        for groups in (True, False):
            for unit in self.units:
                if any(resolver.is_group(m.group) for m in unit.members) is groups:
                    put(unit)
        return list(order.values())

    def _walk(self, order: Sequence[Unit], resolver: Resolver, pick: Callable[[Unit], Any]) -> _Walk:
        walk = _Walk()
        for unit in order:
            if self._applies(unit, walk, resolver):
                walk.take(unit, pick(unit), resolver)
        return walk

    def _applies(self, unit: Unit, walk: _Walk, resolver: Resolver) -> bool:
        if unit.condition is not None and walk.given.get(unit.condition[0]) != unit.condition[1]:
            return False
        if any(resolver.is_group(m.group) for m in unit.members):  # what a zip with a group sets beside it is there under the row's own option
            return True
        return all(m.key != m.name or resolver.has(m.name, walk.chosen) for m in unit.members)

    def _owner(self, key: str) -> Unit:
        return next(unit for unit in self.units if any(m.name == key for m in unit.members))

    # -- saving and comparing ------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"parameters": [p.to_dict() for p in self.parameters]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> SearchSpace:
        """The space that :meth:`to_dict` saved."""
        return cls(tuple(Parameter.from_dict(p) for p in saved["parameters"]))

    def differences(self, other: SearchSpace) -> list[str]:
        """How ``other`` differs from this space, one line each; the order of the parameters is no difference, that of choices is one.

        >>> old, new = SearchSpace.parse(["loss=mse,l1", "seed=1,2"])[0], SearchSpace.parse(["loss=mse,huber"])[0]
        >>> old.differences(new)
        ['loss: mse,l1 → mse,huber', 'seed: 1,2 (gone)']
        """
        mine, theirs = ({p.name: p for p in space.parameters} for space in (self, other))
        lines = []
        for name in dict.fromkeys([*mine, *theirs]):
            old, new = mine.get(name), theirs.get(name)
            if old is None or new is None:
                lines.append(f"{name}: {new.sweep()} (new)" if new else f"{name}: {old.sweep()} (gone)" if old else name)
            elif old != new:
                lines.append(f"{name}: {old if old.key != new.key else old.sweep()} → {new if old.key != new.key else new.sweep()}")
        return lines

    # -- parsing ---------------------------------------------------------------------------------------------------------------
    def _with_condition_checked(self, p: Parameter, fixed: Sequence[str]) -> Parameter:
        """The parameter with its condition written as the choice that it means is; without it where a fixed override meets it."""
        if p.condition is None:
            return p
        key, wanted = p.condition
        others = {other.name: other for other in self.parameters if other.name != p.name}
        settled = next((text.partition("=")[2] for text in reversed(fixed) if text.partition("=")[0].lstrip("+") == key), None)
        if settled is not None and key not in others:
            if same_value(settled, wanted):
                return Parameter(p.key, p.distribution, None, p.zip, p.descending)
            raise SpaceError(f"{p}: its condition is never met, as {key}={settled} is fixed")
        if key not in others:
            raise SpaceError(f"{p}: '{key}={wanted}' is no tag, nor a condition on a parameter of this space{did_you_mean(key, others)} (tags: {TAGS})")
        other = others[key]
        if other.size is None:
            raise SpaceError(f"{p}: its condition '{key}={wanted}' needs choices, but {other} has no end of values")
        found = other.choice(wanted)
        if found is None:
            texts = [str(choice) for choice in getattr(other.distribution, "choices", ())]
            raise SpaceError(f"{p}: its condition '{key}={wanted}' is none of the choices of {other}{did_you_mean(wanted, texts)}")
        return Parameter(p.key, p.distribution, (key, found), p.zip, p.descending)

    def _check_zips(self) -> None:
        zips = [unit for unit in self.units if unit.members[0].zip is not None]
        for unit in zips:
            first = unit.members[0]
            if len(unit.members) == 1:
                near = did_you_mean(unit.name, [other.name for other in zips if other is not unit])
                raise SpaceError(f"{first}: no other override has 'zip={unit.name}'{near}: give those that go together the same name")
            if len({m.size for m in unit.members}) > 1:
                raise SpaceError(f"zip={unit.name} needs equally many choices, but " + ", ".join(f"{m.name} has {m.size}" for m in unit.members))
            if len({m.condition for m in unit.members}) > 1:
                raise SpaceError(f"zip={unit.name}: its overrides apply together, so give all of them the same condition, not only {first}")
            if any(p.name == unit.name for p in self.parameters):
                raise SpaceError(f"zip={unit.name} has the name of a parameter: another one, such as 'zip=a'")
            rows = [unit.value(i) for i in range(unit.size or 0)]
            twice = next((row for row in rows if rows.count(row) > 1), None)
            if twice is not None:
                raise SpaceError(f"zip={unit.name} has the row {twice!r} twice: each only once")

    def _check_circles(self) -> None:
        for unit in self.units:
            seen, current = [unit.name], unit
            while current.condition is not None:
                current = self._owner(current.condition[0])
                if current.name in seen:
                    raise SpaceError(f"{unit.members[0]}: its condition hangs on itself ({' → '.join([*seen, current.name])})")
                seen.append(current.name)


__all__ = ["Parameter", "Resolver", "SearchSpace", "SpaceError", "Unit"]

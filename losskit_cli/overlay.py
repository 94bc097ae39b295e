"""A saved run with new overrides on top: what ``rerun``, ``resume`` and ``eval`` build on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from losskit_cli.compose import Composed, Composer, of_one_run
from losskit_cli.errors import UsageError
from losskit_cli.merging import delete_at, flat, put_at, three_way, value_at
from losskit_cli.rundir import RunSpec

TRANSFERABLE = ("data", "trainer", "task")  # another option of these takes the values of the old one that it has a place for


@dataclass(frozen=True)
class Overlay:
    """A saved run with new overrides on top.

    Attributes:
        spec: config, choices and overrides of the outcome; the saved run's name.
        drift: the saved config and what the config tree makes of the same overrides today.
        left_out: (override of the saved run, group choice) that the new choices left no place for.
    """

    spec: RunSpec
    drift: tuple[Mapping[str, Any], Mapping[str, Any]] = field(default_factory=lambda: ({}, {}))
    left_out: tuple[tuple[str, str], ...] = ()


def overlay(saved: RunSpec, overrides: Sequence[str]) -> Overlay:
    """``saved`` with ``overrides`` on top: what they change is changed, all else is as it was saved, whatever the config tree says today.

    Raises:
        UsageError: the overrides do not compose with those that the run was started with.
    """
    try:
        composer = Composer(relocated(saved.config_dirs), saved.config_name)
        base = composer.compose(saved.overrides)
    except UsageError as error:
        if not overrides:
            return Overlay(saved)  # all that is needed is in the run's directory
        message = f"{saved.name} cannot be changed: what it was started with does not compose any more ({error})"
        raise UsageError(f"{message}. Without new overrides it can be run again as it was saved") from error
    was = of_one_run(base.resolved())
    if not overrides:
        return Overlay(saved, (saved.config, was))
    kept, left_out = _carried_over(composer, saved, overrides)
    now = composer.compose([*kept, *overrides])
    will = of_one_run(now.resolved())
    config, choices = dict(three_way(saved.config, was, will)), dict(three_way(saved.choices, base.choices, now.choices))
    for override in _parsed(overrides):  # what is asked for counts, also where today's tree says the same by itself
        key = _key(override)
        if not composer.catalogue.is_group(override.key_or_group):
            _ask(config, will, key)
        elif choices.get(key) != now.choices.get(key):
            _ask(config, will, _package(key))
            choices[key] = now.choices.get(key)
    spec = replace(saved, config=config, choices=choices, overrides=now.overrides, config_dirs=[str(d) for d in now.config_dirs])
    return Overlay(spec, (saved.config, was), tuple(left_out))


def relocated(config_dirs: Iterable[str], cwd: Path | None = None) -> list[Path]:
    """A run's config directories, also after the folder that holds them and the runs has moved: then below the working directory."""
    here = (cwd or Path.cwd()).absolute()
    found = []
    for directory in map(Path, config_dirs):
        tails = (Path(*directory.parts[i:]) for i in range(1, len(directory.parts)))
        moved = None if directory.is_dir() else next((here / tail for tail in tails if (here / tail).is_dir()), None)
        found.append(moved or directory)
    return found


def _carried_over(composer: Composer, saved: RunSpec, overrides: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The saved run's overrides that still say something, and those that were for an option which is not chosen any more."""
    new = _parsed(overrides)
    anew = {_key(override) for override in new}
    old = [(text, parsed) for text, parsed in zip(saved.overrides, _parsed(saved.overrides), strict=True) if _key(parsed) not in anew]
    groups = composer.catalogue.groups()
    choosing = [text for text, parsed in [*old, *zip(overrides, new, strict=True)] if parsed.key_or_group in groups]
    chosen = composer.compose(choosing)
    kept, left_out = [], []
    for text, parsed in old:
        homeless = None if parsed.key_or_group in groups else _lost_home(parsed.key_or_group, saved.choices, chosen)
        if homeless is None:
            kept.append(text)
        else:
            left_out.append((text, homeless))
    return kept, left_out


def _lost_home(key: str, before: Mapping[str, Any], after: Composed) -> str | None:
    """The choice, as ``loss=focal``, that ``key`` was set for, if it is not made any more."""
    there = flat(OmegaConf.to_container(after.config, resolve=False))  # type: ignore[arg-type]
    for group, option in before.items():
        package = _package(group)
        now = after.choices.get(group)
        if option == now or not key.startswith(f"{package}."):
            continue
        if isinstance(option, list):
            name = key.removeprefix(f"{package}.").split(".")[0]
            if name in option and name not in (now or []):
                return f"{group}=[{name}]"
        elif group not in TRANSFERABLE or not any(k == key or k.startswith(f"{key}.") for k in there):
            return f"{group}={option}"
    return None


def _ask(config: dict[str, Any], wanted: Mapping[str, Any], key: str) -> None:
    """Make ``config`` at ``key`` what ``wanted`` has there."""
    try:
        value = value_at(wanted, key)
    except KeyError:
        delete_at(config, key)
    else:
        put_at(config, key, value)


def _key(override: Override) -> str:
    """``loss``, ``loss.gamma``, ``loss@auxiliary.kd``: as a composed config's choices name groups."""
    return f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group


def _package(group: str) -> str:
    """Where a group's option goes: ``loss@auxiliary.kd`` -> ``auxiliary.kd``."""
    return group.partition("@")[2] or group.replace("/", ".")


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UsageError(f"cannot read the override {error.override!r}: write key=value (or ~key to delete, +key=value to add)") from error

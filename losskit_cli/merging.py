"""Configs compared and merged, as plain containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

_ABSENT = object()


def three_way(saved: Any, base: Any, changed: Any) -> Any:
    """``saved``, with the changes that lead from ``base`` to ``changed`` made to it.

    >>> three_way({"lr": 1, "seed": 7}, {"lr": 2, "seed": 7}, {"lr": 2, "seed": 8})
    {'lr': 1, 'seed': 8}
    """
    if changed == base:
        return saved
    nodes = isinstance(saved, Mapping) and isinstance(base, Mapping) and isinstance(changed, Mapping)
    # another component replaces the whole node; but where only the default has become another one, the saved component takes the change
    if nodes and changed.get("_target_") in (saved.get("_target_"), base.get("_target_")):
        keys = dict.fromkeys([*changed, *saved])
        merged = {k: three_way(saved.get(k, _ABSENT), base.get(k, _ABSENT), changed.get(k, _ABSENT)) for k in keys}
        return {k: v for k, v in merged.items() if v is not _ABSENT}
    return changed


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value after) of every leaf that differs; ``None`` where it is absent.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    {'a.b': (1, 2), 'c': (None, 3)}
    """
    old, new = flat(before), flat(after)
    return {k: (old.get(k), new.get(k)) for k in dict.fromkeys([*old, *new]) if old.get(k, _ABSENT) != new.get(k, _ABSENT)}


def described(before: Mapping[str, Any], after: Mapping[str, Any], show: Any = repr) -> Iterator[tuple[str, str]]:
    """(dotted key, ``old → new``) of every leaf that differs; what is only on one side is said to be new or gone.

    >>> dict(described({"a": 1, "b": 2}, {"a": 5, "c": 3}))
    {'a': '1 → 5', 'b': '2 (gone)', 'c': '3 (new)'}
    """
    old, new = flat(before), flat(after)
    for key in differences(before, after):
        if key not in old:
            yield key, f"{show(new[key])} (new)"
        elif key not in new:
            yield key, f"{show(old[key])} (gone)"
        else:
            yield key, f"{show(old[key])} → {show(new[key])}"


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key.

    Raises:
        KeyError: there is none.
    """
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[part]
    return value


def put_at(config: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; mappings on the way are copied, so that nobody else's change."""
    first, _, rest = key.partition(".")
    if not rest:
        config[first] = value
        return
    inner = config.get(first)
    config[first] = dict(inner) if isinstance(inner, Mapping) else {}
    put_at(config[first], rest, value)


def delete_at(config: MutableMapping[str, Any], key: str) -> None:
    """Take a dotted key away, if it is there; mappings on the way are copied."""
    first, _, rest = key.partition(".")
    if not rest:
        config.pop(first, None)
    elif isinstance(config.get(first), Mapping):
        config[first] = dict(config[first])
        delete_at(config[first], rest)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; an empty mapping is a leaf.

    >>> flat({"a": {"b": 1}, "c": {}})
    {'a.b': 1, 'c': {}}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, name)
        else:
            leaves[name] = value
    return leaves

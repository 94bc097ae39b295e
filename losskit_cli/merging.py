"""Configs compared and merged, as plain containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def three_way(saved: Any, base: Any, changed: Any) -> Any:
    """``saved``, with the changes that lead from ``base`` to ``changed`` made to it.

    >>> three_way({"lr": 1, "seed": 7}, {"lr": 2, "seed": 7}, {"lr": 2, "seed": 8})
    {'lr': 1, 'seed': 8}
    """
    if changed == base:
        return saved
    if isinstance(saved, Mapping) and isinstance(base, Mapping) and isinstance(changed, Mapping) and saved.get("_target_") == changed.get("_target_"):
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

"""What a config names, checked before anything is built: allowed targets, known parameters, right types, nothing missing."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from components.validation import did_you_mean
from losskit_cli.errors import UsageError, said_by

OWN_PACKAGES = ("components", "sweeps", "losskit_cli")
TRUSTED_PACKAGES = ("torch", "lightning", "torchmetrics")
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_convert_", "_recursive_"})
SETTINGS: Mapping[str, Any] = {
    "task_name": str,
    "name": str | None,
    "tags": list,
    "seed": int,
    "train": bool,
    "test": bool,
    "ckpt_path": str | None,
    "optimized_metric": str,
    "optimized_direction": typing.Literal["auto", "minimize", "maximize"],
    "allow_targets": list[str],
    "output_dir": str,
}
"""The experiment's own values, beside the groups."""
LARGEST_SEED = 2**32 - 1
COMPONENTS = ("data", "model", "task", "loss", "optimizer")
OPTIONAL_COMPONENTS = ("schedule", "averaging", "reweighting")
COMPONENT_LISTS = ("regularizer", "transform", "callbacks", "auxiliary", "metrics")


class Targets:
    """Resolves ``_target_`` names, refusing what the user has not allowed.

    Allowed are losskit's own packages, classes of torch, lightning and torchmetrics (a class defined there: ``torch.os.system``
    or ``torch.load`` will not do), installed ``losskit.config`` plug-ins, and the packages named in ``allow_targets``.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        plugins = {entry.value.partition(":")[0].partition(".")[0] for entry in entry_points(group="losskit.config")}
        self.user_packages = tuple(sorted({*allowed, *plugins}))

    def resolve(self, target: str, key: str) -> Callable[..., Any]:
        """The class or function that ``target`` names.

        Raises:
            UsageError: not allowed, or not there (with the nearest name in that module).
        """
        self._check_allowed(target, key)
        found = _import_path(target, key)
        module = getattr(found, "__module__", None) or ""
        own = _within(module, OWN_PACKAGES) or _within(module, self.user_packages)
        if not callable(found) or not (own or (inspect.isclass(found) and _within(module, TRUSTED_PACKAGES))):
            raise UsageError(
                f"{key}._target_={target} is refused: it is no class of {', '.join(TRUSTED_PACKAGES)}, nor defined by losskit or an allowed package"
            )
        return typing.cast(Callable[..., Any], found)

    def _check_allowed(self, target: str, key: str) -> None:
        if not _within(target, (*OWN_PACKAGES, *TRUSTED_PACKAGES, *self.user_packages)):
            package = target.partition(".")[0]
            raise UsageError(
                f"{key}._target_={target} is refused: only losskit, torch, lightning and torchmetrics may be named"
                + (f", and {', '.join(self.user_packages)}" if self.user_packages else "")
                + f". If you trust it, allow it by name: allow_targets=[{package}]"
            )


def target_nodes(config: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a plain config that has a ``_target_``, with its dotted key; outer ones first."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield key, config
        for name, value in config.items():
            yield from target_nodes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from target_nodes(value, f"{key}[{i}]")


def checked_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose own values have the right type and whose groups hold components, or nothing where they may.

    Raises:
        UsageError: a value that is still ``???``, one of the wrong type, or one that was deleted (``~seed``, ``~loss``) and is needed.
    """
    missing = missing_values(config)
    if missing:
        raise UsageError(f"{missing[0]} is required: set {missing[0]}=…" + (f" (also: {', '.join(missing[1:])})" if missing[1:] else ""))
    for name in [*SETTINGS, *COMPONENTS, "trainer", "tracking"]:
        if name not in config:
            raise UsageError(f"the config has no {name!r}: it was deleted, or the primary config lacks it")
    checked = {**config, **{name: _coerced(name, config[name], hint) for name, hint in SETTINGS.items()}}
    if checked["seed"] is None or not 0 <= checked["seed"] <= LARGEST_SEED:
        raise UsageError(f"seed={config['seed']!r}: it takes a whole number from 0 to {LARGEST_SEED}")
    for name in ("train", "test"):
        if checked[name] is None:
            raise UsageError(f"{name}=null: it takes true or false")
    if not checked["train"] and not checked["test"]:
        raise UsageError("train=false test=false: there is nothing to do")
    if "/" in (checked["name"] or ""):
        raise UsageError(f"name={checked['name']!r}: it takes a text without '/'")
    for name in ("trainer", "tracking"):
        if not isinstance(config[name], dict):
            raise UsageError(f"{name}={config[name]!r}: it takes keys and values, such as {name}.{'max_epochs=5' if name == 'trainer' else 'enabled=false'}")
    for name in COMPONENTS:
        _check_component(name, config[name])
    for name in OPTIONAL_COMPONENTS:
        if config.get(name):
            _check_component(name, config[name])
    for group in COMPONENT_LISTS:
        members = config.get(group) or {}
        if not isinstance(members, dict):
            raise UsageError(f"{group}={members!r}: it takes options by name, such as {group}=[…]")
        for name, node in members.items():
            _check_component(f"{group}.{name}", node)
    return checked


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise UsageError(f"{key} names no class: it needs {key}._target_=…, but it is {node!r}")


def missing_values(config: Any, key: str = "") -> list[str]:
    """Dotted keys whose value is still ``???``."""
    if isinstance(config, dict):
        return [k for name, value in config.items() for k in missing_values(value, f"{key}.{name}" if key else str(name))]
    if isinstance(config, list):
        return [k for i, value in enumerate(config) for k in missing_values(value, f"{key}[{i}]")]
    return [key] if config == "???" else []


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters of a class or function by name, ``**kwargs`` followed into base classes; and whether any other name is taken as well."""
    if not inspect.isclass(target):
        return _named(inspect.signature(target))
    found, open_ended = _named(inspect.signature(target))
    for base in target.__mro__[1:]:
        if not open_ended:
            break
        if "__init__" in vars(base) and base is not object:
            more, open_ended = _named(inspect.signature(vars(base)["__init__"]), skip_self=True)
            # the subclass may hand over a base's required parameter itself, so none of them is required of the user
            found = {**{n: p.replace(default=None) if p.default is p.empty else p for n, p in more.items()}, **found}
    return found, open_ended


def checked_arguments(key: str, target: Callable[..., Any], values: Mapping[str, Any], given_later: Iterable[str] = ()) -> dict[str, Any]:
    """``values`` for ``target``'s parameters, coerced to their annotated types where that loses nothing (``1e3`` for an int).

    Args:
        key: the config key, for errors.
        given_later: parameters that the builder supplies itself.

    Raises:
        UsageError: an unknown parameter, a wrong type, or a required one missing.
    """
    parameters, open_ended = parameters_of(target)
    names = [name for name in parameters if name not in given_later]
    for name in values:
        if name not in parameters and not open_ended:
            raise UsageError(f"{key} has no parameter {name!r}{did_you_mean(name, names)} (it has: {', '.join(names) or 'none'})")
    hints = _type_hints(target)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values and name not in given_later:
            raise UsageError(f"{key}.{name} is required: set {key}.{name}=…")
    return {name: _coerced(f"{key}.{name}", value, hints.get(name, Any)) for name, value in values.items()}


def _coerced(key: str, value: Any, hint: Any) -> Any:
    if not _is_plain(hint) and isinstance(value, str | int | float):
        hint = _without_tensors(hint)
    if value is None or hint is Any or isinstance(value, dict) or not _is_plain(hint):
        return value
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        takes = list(dict.fromkeys(_takes(hint)))
        takes = [t for t in takes if t != WORDS[int] or WORDS[float] not in takes]
        near = did_you_mean(value, [t.strip("'") for t in takes if t.startswith("'")]) if isinstance(value, str) else ""
        raise UsageError(f"{key}={value!r}: it takes {' or '.join([', '.join(takes[:-1]), takes[-1]] if len(takes) > 1 else takes)}{near}") from error
    except PydanticUserError:
        return value


PLAIN_TYPES = {int, float, str, bool, type(None), list, tuple, dict}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null", list: "a list", tuple: "a list"}
MANY = {int: "whole numbers", float: "numbers", bool: "true/false values", str: "texts"}


def _is_plain(hint: Any) -> bool:
    """Whether a type hint is made of plain values only: those can be checked; a Tensor or a Module given as a list can't."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    if origin is None:
        return not isinstance(hint, list) and hint in PLAIN_TYPES  # a list: of a function's arguments
    return all(_is_plain(part) for part in typing.get_args(hint) if part is not Ellipsis)


def _without_tensors(hint: Any) -> Any:
    """What a hint such as ``float | Tensor`` says about a single number or text, which no config makes a tensor of."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return Any
    plain = [part for part in typing.get_args(hint) if _is_plain(part)]
    others = [part for part in typing.get_args(hint) if not _is_plain(part)]
    if set(plain) <= {type(None)} or not all(inspect.isclass(part) and _within(part.__module__, ("torch",)) for part in others):
        return Any
    return typing.Union[tuple(plain)]  # noqa: UP007  the parts are known at run time only


def _takes(hint: Any) -> list[str]:
    """A plain type hint in words, one for each alternative."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return [repr(value) for value in parts]
    if origin in (typing.Union, types.UnionType):
        return [words for part in parts for words in _takes(part)]
    if origin is None or (inspect.isclass(origin) and issubclass(origin, Mapping)):
        return [WORDS.get(hint, "keys and values")]
    kinds = {part for part in parts if part is not Ellipsis}
    count = f"{len(parts)} " if origin is tuple and Ellipsis not in parts else ""
    many = MANY.get(next(iter(kinds))) if len(kinds) == 1 else None
    return [f"a list of {count}{many or 'values'}"]


def _type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    functions = [vars(base)["__init__"] for base in reversed(target.__mro__) if "__init__" in vars(base)] if inspect.isclass(target) else [target]
    for function in functions:
        try:
            hints |= typing.get_type_hints(function)
        except (NameError, TypeError, AttributeError):  # an annotation that cannot be evaluated at run time says nothing
            continue
    return hints


def _named(signature: inspect.Signature, skip_self: bool = False) -> tuple[dict[str, inspect.Parameter], bool]:
    parameters = list(signature.parameters.values())[1 if skip_self else 0 :]
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def _import_path(target: str, key: str) -> Any:
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                continue
            raise UsageError(f"{key}._target_={target} cannot be imported: {error}") from error
        except Exception as error:  # whatever the user's own module raises
            raise UsageError(f"{key}._target_={target} cannot be imported: {said_by(error)}") from error
        for name in parts[length:]:
            if not hasattr(found, name):
                raise UsageError(f"{key}._target_={target}: there is no {name!r} in {found.__name__}{did_you_mean(name, dir(found))}")
            found = getattr(found, name)
        return found
    raise UsageError(f"{key}._target_={target}: there is no module {parts[0]!r} (is your package installed, or its folder on PYTHONPATH?)")

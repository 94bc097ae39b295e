"""The sampler and the pruner that a config chooses: read, checked, made into Optuna's. Optuna is imported when one is made, not before."""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.validation import did_you_mean
from sweeps.constraints import METRICS, AlgorithmError, Constraint, parse_constraints, record_constraints
from sweeps.pruners import Hyperband, Median, NoPruning, Patient, Percentile, Pruner, SuccessiveHalving, Wilcoxon
from sweeps.samplers import BruteForce, Cmaes, Gp, Grid, Nsga2, Qmc, Random, Sampler, Tpe, Wanted, mixed_seed

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from sweeps.space import SearchSpace

Resolve = Callable[[str, str], Callable[..., Any]]
"""From a ``_target_`` and the config key that it stands at to what it names; raises where it is not allowed."""


def read_sampler(config: Mapping[str, Any], resolve: Resolve | None = None) -> Sampler:
    """The config's ``sweep.sampler``, checked but not yet made for a trial.

    Args:
        config: with a ``_target_``, as the files of ``conf/sweep/sampler`` have it.
        resolve: finds the class; by default those of this module only.

    Raises:
        AlgorithmError: no sampler, an unknown parameter (with the nearest), or a value that it does not take.
    """
    made = _made("sweep.sampler", config, resolve or _own)
    if not isinstance(made, Sampler):
        raise AlgorithmError(f"sweep.sampler._target_={config['_target_']} is no sampler (losskit list sweep/sampler)")
    return made


def read_pruner(config: Mapping[str, Any] | None, resolve: Resolve | None = None) -> Pruner:
    """The config's ``sweep.pruner``; ``None`` or an empty one prunes nothing. Arguments and errors as for :func:`read_sampler`."""
    if not config:
        return NoPruning()
    made = _made("sweep.pruner", config, resolve or _own)
    if not isinstance(made, Pruner):
        raise AlgorithmError(f"sweep.pruner._target_={config['_target_']} is no pruner (losskit list sweep/pruner)")
    return made


def build_sampler(
    config: Mapping[str, Any] | Sampler,
    *,
    seed: int,
    trial_number: int,
    space: SearchSpace,
    directions: Sequence[str],
    constraints: Sequence[Constraint | str] = (),
    resolve: Resolve | None = None,
) -> BaseSampler:
    """The sampler that proposes one trial's parameters.

    Args:
        config: ``sweep.sampler``, or what :func:`read_sampler` made of it.
        seed: the sweep's.
        trial_number: the trial's; with the seed it decides what is drawn.
        space: the search space.
        directions: of the objectives.
        constraints: ``sweep.constraints``; what Optuna's samplers heed is what :func:`record_constraints` keeps with the trials.

    Raises:
        AlgorithmError: the sampler cannot search this (:meth:`Sampler.check`), or the config is wrong.
    """
    sampler = config if isinstance(config, Sampler) else read_sampler(config, resolve)
    parsed = tuple(c if isinstance(c, Constraint) else Constraint.parse(c) for c in constraints)
    sampler.check(space, directions, parsed)
    with _without_experimental_warnings():
        return sampler.build(Wanted(seed, trial_number, space, tuple(directions), parsed))


def build_pruner(config: Mapping[str, Any] | Pruner | None, *, directions: Sequence[str] = ("minimize",), resolve: Resolve | None = None) -> BasePruner:
    """The sweep's pruner.

    Args:
        config: ``sweep.pruner``, or what :func:`read_pruner` made of it.
        directions: of the objectives.

    Raises:
        AlgorithmError: several objectives, or the config is wrong.
    """
    pruner = config if isinstance(config, Pruner) else read_pruner(config, resolve)
    if pruner.prunes and len(directions) > 1:
        raise AlgorithmError(f"a pruner needs one objective to compare trials by, but there are {len(directions)}: sweep/pruner=none")
    with _without_experimental_warnings():
        return pruner.build()


def _made(key: str, config: Mapping[str, Any], resolve: Resolve) -> Any:
    """The object that a node with a ``_target_`` describes, nodes inside it first."""
    target = config.get("_target_")
    if not isinstance(target, str):
        raise AlgorithmError(f"{key} names no class: it needs {key}._target_=…, but it is {dict(config)!r}")
    cls = resolve(target, f"{key}")
    names = list(inspect.signature(cls).parameters)
    values = {}
    for name, value in config.items():
        if name == "_target_":
            continue
        if name not in names:
            raise AlgorithmError(f"there is no {key}.{name}{did_you_mean(name, names)} (it has: {', '.join(names) or 'none'})")
        nested = isinstance(value, Mapping) and "_target_" in value
        values[name] = _made(f"{key}.{name}", value, resolve) if nested else _coerced(f"{key}.{name}", value, cls, name)
    try:
        return cls(**values)
    except ValueError as error:
        raise error if isinstance(error, AlgorithmError) else AlgorithmError(f"{key}: {error}") from error
    except TypeError as error:
        raise AlgorithmError(f"{key}: {error}") from error


def _coerced(key: str, value: Any, cls: Callable[..., Any], name: str) -> Any:
    """``value`` as the annotated type of a parameter, where that loses nothing (``1e1`` for a whole number)."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        hints = typing.get_type_hints(cls if is_dataclass(cls) or not inspect.isclass(cls) else cls.__init__)
    except (NameError, TypeError):  # a class of the user's whose annotations cannot be evaluated at run time
        hints = {}
    hint = hints.get(name, Any)
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise AlgorithmError(f"{key}={value!r}: it takes {_in_words(hint)}") from error


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_args(hint):
        return " or ".join(map(_in_words, typing.get_args(hint)))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null", str: "a text", Pruner: "a pruner's node"}
    return words.get(hint, str(hint))


def _own(target: str, key: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    classes = [n for n, c in globals().items() if inspect.isclass(c) and issubclass(c, Sampler | Pruner) and c not in (Sampler, Pruner)]
    if module != __name__ or name not in classes:
        raise AlgorithmError(f"{key}._target_={target} is refused{did_you_mean(name, classes)} (there is, in {__name__}: {', '.join(classes)})")
    return typing.cast(Callable[..., Any], globals()[name])


def _without_experimental_warnings() -> warnings.catch_warnings[None]:
    """Optuna warns of what it may yet change; which of that is used here is pinned by tests."""
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)


__all__ = [
    "METRICS",
    "AlgorithmError",
    "BruteForce",
    "Cmaes",
    "Constraint",
    "Gp",
    "Grid",
    "Hyperband",
    "Median",
    "NoPruning",
    "Nsga2",
    "Patient",
    "Percentile",
    "Pruner",
    "Qmc",
    "Random",
    "Sampler",
    "SuccessiveHalving",
    "Tpe",
    "Wanted",
    "Wilcoxon",
    "build_pruner",
    "build_sampler",
    "mixed_seed",
    "parse_constraints",
    "read_pruner",
    "read_sampler",
    "record_constraints",
]

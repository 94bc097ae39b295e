"""What can be selected: the options of all config trees and the components behind them, read from files alone.

No torch, Hydra or OmegaConf here, and YAML only where a file's body is asked for: ``losskit list`` and shell completion live on this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.validation import did_you_mean
from losskit_cli.errors import UsageError
from losskit_cli.paths import search_path

if TYPE_CHECKING:
    from losskit_cli.signatures import ClassInfo, Parameter

METHODS = {"loss": "forward", "regularizer": "forward", "reweighting": "forward", "metrics": "update"}
"""Groups whose components are bound to quantities, and the method whose parameters say what they need."""

LIST_GROUPS = ("regularizer", "transform", "callbacks")
"""Groups of which any number of options is chosen: ``regularizer=[l1,l2]``."""

MOST_NAMED = 60
"""Options that an error lists; of more it says where they are listed."""

RESERVED = ("inputs", "weight")
"""Keys of an option that are the builder's, not the constructor's."""


class Option:
    """One option file: ``conf/<group>/<name>.yaml``."""

    def __init__(self, group: str, name: str, path: Path) -> None:
        self.group, self.name, self.path = group, name, path

    def __repr__(self) -> str:
        return f"Option({self.group}={self.name})"

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def header(self) -> list[str]:
        """The leading comment lines, without their ``#``; only the file's beginning is read."""
        lines: list[str] = []
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip() and not line.startswith("#"):
                    break
                if line.strip():
                    lines.append(line.lstrip("#").strip())
        return lines

    @property
    def description(self) -> str:
        """What it is, in one line."""
        return split_source(next((line for line in self.header if not line.startswith("@package")), ""))[0]

    @property
    def source(self) -> str:
        """Where it comes from: the parenthesis at the end of the first line."""
        return split_source(next((line for line in self.header if not line.startswith("@package")), ""))[1]

    @property
    def package(self) -> str:
        """Where its keys land in the config: ``loss``, ``regularizer.l1``, or an empty string for the top."""
        line = next((line for line in self.header if line.startswith("@package")), "")
        package = line.removeprefix("@package").strip() or self.group.replace("/", ".")
        package = package.replace("_group_", self.group.replace("/", ".")).replace("_name_", self.name)
        return "" if package == "_global_" else package

    @cached_property
    def body(self) -> dict[str, Any]:
        """The file as plain containers, interpolations as they stand."""
        return load_yaml(self.path)

    @property
    def defaults(self) -> list[Any]:
        defaults = self.body.get("defaults", [])
        return defaults if isinstance(defaults, list) else []

    @cached_property
    def values(self) -> dict[str, Any]:
        """What a user can set: the body without ``defaults`` and ``_target_``."""
        return {str(k): v for k, v in self.body.items() if k not in ("defaults", "_target_")}

    @cached_property
    def target(self) -> str | None:
        """The ``_target_`` of the option itself."""
        match = re.search(r"^_target_:\s*['\"]?([\w.]+)", self.text, re.MULTILINE)
        return match.group(1) if match else None

    @cached_property
    def remarks(self) -> dict[str, str]:
        """Key -> the comment behind it."""
        return {m.group(1): m.group(2).strip() for m in re.finditer(r"^(\w+):[^#\n]*?\s#\s*(.+)$", self.text, re.MULTILINE)}

    @property
    def info(self) -> ClassInfo | None:
        from losskit_cli.signatures import signature_of

        return signature_of(self.target) if self.target else None

    @property
    def parameters(self) -> list[Parameter]:
        """The component's parameters; those that the file lists come first, with the file's defaults."""
        from losskit_cli.signatures import Parameter

        known = {p.name: p for p in self.info.parameters} if self.info else {}
        listed = [known.pop(k, Parameter(k))._replace(default=as_text(v)) for k, v in self.values.items()]
        listed = [p if p.description else p._replace(description=self.remarks.get(p.name, "")) for p in listed]
        return listed + list(known.values())

    def nodes(self) -> Iterator[tuple[str, ClassInfo | None, dict[str, Any]]]:
        """(key, class, node) of the components in the file: the file itself, or each entry of a file of several (metrics)."""
        from losskit_cli.signatures import signature_of

        if self.target:
            yield "", self.info, self.body
            return
        for key, node in self.values.items():
            if isinstance(node, dict) and "_target_" in node:
                yield key, signature_of(str(node["_target_"])), node

    def needs(self, *, optional: bool = False) -> list[str]:
        """Quantities that it must be given (or, with ``optional``, makes use of where they are offered)."""
        method = METHODS.get(self.group)
        names: list[str] = []
        for _, info, node in self.nodes() if method else ():
            parameters = (info.method(method) or info.method("__call__") or []) if info and method else []
            inputs = node.get("inputs")
            inputs = inputs if isinstance(inputs, dict) else {}
            names += [str(inputs.get(p.name, p.name)) for p in parameters if p.required != optional]
        return list(dict.fromkeys(names))


class Catalogue:
    """The options of several config trees; of two files of one name the one in the earlier tree counts.

    Args:
        config_dirs: the trees, first to last; :func:`losskit_cli.paths.search_path` gives the usual ones.
    """

    def __init__(self, config_dirs: Iterable[Path | str]) -> None:
        self.config_dirs = list(dict.fromkeys(Path(d) for d in config_dirs))
        self._options: dict[str, dict[str, Option]] = {}

    @classmethod
    def default(cls, config_dirs: Iterable[Path | str] = ()) -> Catalogue:
        """The user's directories, what losskit ships, and what installed packages contribute."""
        return cls(search_path(config_dirs))

    # -- groups and options ----------------------------------------------------------------------------------------------
    @cached_property
    def _groups(self) -> dict[str, None]:
        found: set[str] = set()
        for root in self.config_dirs:
            for directory, folders, files in os.walk(root):
                folders[:] = [f for f in folders if not f.startswith((".", "_"))]
                if directory != str(root) and any(f.endswith(".yaml") for f in files):
                    found.add(os.path.relpath(directory, root).replace(os.sep, "/"))
        return dict.fromkeys(sorted(found))

    def groups(self) -> list[str]:
        return list(self._groups)

    def is_group(self, name: str) -> bool:
        return any((root / name).is_dir() for root in self.config_dirs) and name in self._groups

    def options(self, group: str) -> list[Option]:
        """The options of a group, by name."""
        if group not in self._options:
            found: dict[str, Option] = {}
            for root in self.config_dirs:
                try:
                    files = sorted(f.name for f in os.scandir(root / group) if f.name.endswith(".yaml"))
                except OSError:
                    continue
                for file in files:
                    name = file.removesuffix(".yaml")
                    found.setdefault(name, Option(group, name, root / group / file))
            self._options[group] = dict(sorted(found.items()))
        return list(self._options[group].values())

    def option_names(self, group: str) -> list[str]:
        return [option.name for option in self.options(group)]

    def check_group(self, group: str) -> None:
        """Raises UsageError with the nearest name and all groups where there is no such group."""
        if not self.is_group(group):
            raise UsageError(f"there is no group {group!r}{did_you_mean(group, self.groups())} (groups: {', '.join(self.groups())})")

    def option(self, group: str, name: str) -> Option:
        """One option; UsageError with the nearest name where there is none."""
        self.check_group(group)
        names = self.option_names(group)
        if name not in names:
            raise UsageError(f"there is no {group}={name}{did_you_mean(name, names)} ({there_is(group, names)})")
        return self._options[group][name]

    def primary(self, name: str = "train") -> Option | None:
        """The primary config."""
        return next((Option("", name, root / f"{name}.yaml") for root in self.config_dirs if (root / f"{name}.yaml").is_file()), None)

    # -- components ------------------------------------------------------------------------------------------------------
    def signature_of(self, target: str) -> ClassInfo | None:
        from losskit_cli.signatures import signature_of

        return signature_of(target)

    def parameter_names(self, target: str) -> list[str]:
        """Parameters that a ``_target_`` takes, as far as its source tells."""
        info = self.signature_of(target)
        return info.parameter_names if info else []

    @cached_property
    def task_offers(self) -> dict[str, frozenset[str]]:
        """Task option -> names of the quantities that it offers."""
        from losskit_cli.signatures import constant_names

        offers: dict[str, frozenset[str]] = {}
        for option in self.options("task"):
            if option.info is not None:
                common = (constant_names(info.module, "COMMON_OFFERS") for info in option.info.mro)
                offers[option.name] = option.info.names("offers").union(*common)
        return offers

    @cached_property
    def dense_tasks(self) -> frozenset[str]:
        """Task options whose logits are of pixels or tokens."""
        return frozenset(option.name for option in self.options("task") if option.info is not None and option.info.flag("dense"))

    def tasks_for(self, option: Option) -> list[str]:
        """Task options that can feed a loss, a regularizer … of conf."""
        return [task for task in self.task_offers if self.suits_task(option, task)]

    def suits_task(self, option: Option, task: str) -> bool:
        """Whether ``task`` can feed ``option``; a data option suits the task that it names itself."""
        if option.group in METHODS:
            fed = set(option.needs()) <= self.task_offers[task]
            return fed and not (task in self.dense_tasks and option.info is not None and option.info.flag("dense") is False)
        named = override_of(option, "task")
        return named is None or named == task

    def default_choice(self, group: str) -> str | None:
        """The option of a group that the primary config chooses, its data option's own choices counted."""
        primary = self.primary()
        chosen = {k: v for d in (primary.defaults if primary else []) if isinstance(d, dict) for k, v in d.items()}
        if group != "data" and chosen.get("data") in self.option_names("data"):
            named = override_of(self.option("data", str(chosen["data"])), group)
            if named:
                return named
        return chosen.get(group)


def there_is(group: str, names: Sequence[str]) -> str:
    """What can be chosen, for the end of an error: all of it, or where to look."""
    return f"there is: {', '.join(names)}" if len(names) <= MOST_NAMED else f"there are {len(names)}: losskit list {group}"


def override_of(option: Option, group: str) -> str | None:
    """What an option's defaults list chooses for another group (``- override /task@_global_.task: regression``)."""
    if "override" not in option.text:
        return None
    for entry in option.defaults:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if default_group(str(key)) == group:
                return None if value is None else str(value)
    return None


def default_group(key: str) -> str:
    """The group of a defaults list's key: ``optional local``, ``override /task@_global_.task`` …"""
    return re.sub(r"^(?:optional|override)\s+", "", key.strip()).lstrip("/").partition("@")[0]


def split_source(line: str) -> tuple[str, str]:
    """``"Focal loss (Lin et al., 2017)"`` -> ``("Focal loss", "Lin et al., 2017")``."""
    if not line.endswith(")"):
        return line, ""
    depth = 0
    for position in range(len(line) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(line[position], 0)
        if depth == 0:
            return line[:position].rstrip(), line[position + 1 : -1]
    return line, ""


def as_text(value: Any) -> str:
    """A config value the way an override writes it: ``null``, ``true``, ``[1,2]``, ``{a:1}``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{as_text(v)}" for k, v in value.items()) + "}"
    return str(value)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain containers, numbers such as ``3e-4`` read as OmegaConf reads them."""
    import yaml

    loader = _loader()
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: an option file holds keys and values, but this one holds a {type(loaded).__name__}")
    return loaded


def _loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("Loader", (base,), {})
    pattern = re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?(?:[eE][-+]?\d+)$|^[-+]?\.\d[\d_]*(?:[eE][-+]?\d+)?$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))
    return loader

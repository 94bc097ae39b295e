"""Where config trees and packages lie, found without importing any package.

Shell completion runs this at every TAB, so it reads installed packages' ``entry_points.txt`` itself: importing
``importlib.metadata`` alone takes longer than all of completion.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

ENTRY_POINT_GROUP = "losskit.config"


def shipped_config_dir() -> Path:
    """The config tree that losskit ships: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def plugin_config_dirs() -> list[Path]:
    """The ``conf`` directories of installed packages that name themselves under the entry-point group ``losskit.config``."""
    directories = ((package_dir(name) or Path(os.devnull)) / "conf" for name in plugin_packages())
    return [directory for directory in directories if directory.is_dir()]


def plugin_packages() -> list[str]:
    """Installed packages that contribute a config tree, by import name; their classes may be named by a ``_target_``."""
    return list(dict.fromkeys(value.split(":")[0].strip() for _, value in entry_points(ENTRY_POINT_GROUP)))


def search_path(config_dirs: Iterable[Path | str] = ()) -> list[Path]:
    """Config trees in the order in which they are looked through: the user's, the shipped one, plug-ins'."""
    return [*(Path(d) for d in config_dirs), shipped_config_dir(), *plugin_config_dirs()]


def package_dir(name: str) -> Path | None:
    """The directory of a top-level package, or the file of a top-level module; looks in the working directory last."""
    if "." in name or not name:
        return None
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # ValueError: an imported module without a spec, such as __main__
        spec = None
    spec = spec or PathFinder.find_spec(name, [str(Path.cwd())])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def entry_points(group: str) -> Iterator[tuple[str, str]]:
    """(name, value) of every installed package's entry points of ``group``; the first of two installations of one package counts."""
    seen: set[str] = set()
    for directory in dict.fromkeys(sys.path):
        try:
            entries = sorted(e.name for e in os.scandir(directory or ".") if e.name.endswith((".dist-info", ".egg-info")))
        except OSError:
            continue
        for entry in entries:
            package = entry.split("-")[0].lower()
            if package in seen:
                continue
            seen.add(package)
            try:
                with open(os.path.join(directory, entry, "entry_points.txt"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
                    text = file.read()
            except OSError:
                continue
            if group in text:
                yield from _section(text, group)


def _section(text: str, group: str) -> Iterator[tuple[str, str]]:
    current = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            current = line.strip("[] ")
        elif current == group and "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            yield name.strip(), value.strip()

"""``losskit init``: a small project of one's own: a loss, its option file, a test, how to run it."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from losskit_cli.errors import UsageError
from losskit_cli.paths import package_dir

TEMPLATE = Path(__file__).parent / "templates" / "project"
NAME = "PROJECT"
"""Stands for the project's name, in the templates' text and in their paths."""

RESERVED = ("components", "sweeps", "losskit", "losskit_cli", "test", "tests", "conf")


def run_init(name: str, *, directory: Path | None = None) -> Path:
    """Make the project ``name`` in ``directory`` (default: the working directory) and say what to do next.

    Raises:
        UsageError: not a name that Python can import (with one that it can), a name that is taken, or a folder that is there already.
    """
    path = Path(name)
    root = (directory or Path.cwd()) / path
    check_name(path.name)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is there already and is not empty; nothing was changed")
    try:
        for file, text in project_files(path.name):
            place = root / file
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("x", encoding="utf-8") as out:
                out.write(text)
    except OSError as error:
        raise UsageError(f"cannot make {root}: {error.strerror or error}") from error
    steps = f"cd {path}\npip install -e .                  # once: every losskit command then knows your options\nlosskit train loss=my_loss\npytest\n"
    sys.stdout.write(f"made {root}\n\n{steps}")
    return root


def check_name(name: str) -> None:
    """Refuse what cannot be imported, or would hide something that is needed."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        better = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
        better = f"my_{better}" if not better or better[0].isdigit() or keyword.iskeyword(better) else better
        raise UsageError(f"a project's name must be one that Python can import, but got {name!r}; {better!r} is one")
    if name in RESERVED or name in sys.stdlib_module_names:
        raise UsageError(f"{name!r} is the name of a package that losskit or Python itself needs; my_{name} is free")
    taken = package_dir(name)
    if taken is not None and (taken / "__init__.py").is_file():
        raise UsageError(f"there is already an installed package {name!r} ({taken}); choose another name")


def project_files(name: str) -> Iterator[tuple[str, str]]:
    """(path in the project, text) of every file, the name filled in. Templates end in ``.txt``, so that no tool takes them for code of ours."""
    title = "".join(part.capitalize() for part in name.split("_"))
    for file in sorted(TEMPLATE.rglob("*.txt")):
        path = file.relative_to(TEMPLATE).as_posix().removesuffix(".txt").replace(NAME, name).replace("DOT", ".")
        yield path, file.read_text(encoding="utf-8").replace(NAME, name).replace("TITLE", title)

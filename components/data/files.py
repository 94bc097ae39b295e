"""Finding and checking files: errors name what is near, what is there and on which line something is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from components.validation import did_you_mean, require


def existing_path(path: str | Path, argument: str = "path") -> Path:
    """``path`` if there is something at it.

    Raises:
        ValueError: with the nearest name in the deepest folder that exists.
    """
    require(str(path) != "", f"{argument} must name a file or a folder", str(path))
    found = Path(path).expanduser()
    if found.exists():
        return found
    child = found
    while not child.parent.is_dir():
        child = child.parent
    folder = child.parent
    names = sorted(p.name for p in folder.iterdir())
    raise ValueError(f"{argument}: there is no {child.name!r} in {folder.resolve()}{did_you_mean(child.name, names)}")


def existing_file(path: str | Path, argument: str = "path") -> Path:
    """``path`` if it is a file with something in it."""
    found = existing_path(path, argument)
    require(found.is_file(), f"{argument} must be a file, but {str(found)!r} is a folder")
    require(found.stat().st_size > 0, f"{argument}: the file {str(found)!r} is empty")
    return found


def bundled(package: str, relative: str) -> Path:
    """A data file inside an installed package, found without importing the package (scikit-learn's import takes over a second)."""
    spec = find_spec(package)
    require(spec is not None and spec.origin is not None, f"the package {package!r} is not installed")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / relative
    require(path.is_file(), f"the installed {package!r} has no {relative}: another version may keep it elsewhere")
    return path


def require_columns(wanted: Sequence[str], there: Sequence[str], what: str) -> None:
    """Raise unless all ``wanted`` columns are ``there``; the error names the missing, the nearest and all columns."""
    missing = [c for c in wanted if c not in there]
    if missing:
        shown = ", ".join(there[:40]) + (f", … ({len(there)} in all)" if len(there) > 40 else "")
        raise ValueError(f"{what}: no column {', '.join(map(repr, missing))}{did_you_mean(missing[0], there)}; the columns are {shown}")


def check_rows(path: Path, separator: str) -> list[str]:
    """The header of a delimited text file, after a look at every row.

    pandas would fill a row that is too short with missing values in silence.

    Raises:
        ValueError: a row with another number of fields than the header (with its line), a name twice in the header, bytes
            that are not UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=separator)
            header = next(rows, [])
            for row in rows:
                if len(row) != len(header) and row:
                    raise ValueError(f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}: {separator.join(row)[:80]!r}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8, or use parquet") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no delimited text: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    require(not twice, f"{path}: column names must differ, but the header has {', '.join(map(repr, twice))} more than once")
    return header

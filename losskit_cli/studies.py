"""Finding a sweep's study to look at: nothing is made that was not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from components.validation import did_you_mean
from losskit_cli.errors import UsageError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage


def existing_storage(address: str | None = None) -> tuple[str, BaseStorage]:
    """The storage at ``address`` and its whole address, with credentials.

    Args:
        address: see :func:`sweeps.storage.open_storage`; ``None``: ``sweeps.db`` in the working directory.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from sweeps.storage import StorageError, address_of, open_storage

    try:
        whole = address_of(address)
        if (file := _file_of(whole)) is not None and not file.is_file():
            raise UsageError(
                f"there is no storage of sweeps {file} yet: run `losskit sweep` here first, go to the directory that it was run in, or name it with --storage"
            )
        return whole, open_storage(whole)
    except StorageError as error:
        raise UsageError(str(error)) from error


def existing_study(name: str, storage: BaseStorage) -> optuna.Study:
    """The study of the sweep ``name``.

    Raises:
        UsageError: there is none, with the nearest name.
    """
    import optuna

    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = sorted(optuna.get_all_study_names(storage))
        there = f"there is: {', '.join(names)}" if names else "the storage has none"
        raise UsageError(f"there is no sweep {name!r}{did_you_mean(name, names)} ({there})") from error


def _file_of(address: str) -> Path | None:
    """The file that an address with a whole path names, if it is a file's."""
    for scheme in ("sqlite:///", "journal:"):
        if address.startswith(scheme):
            return Path(unquote(address.removeprefix(scheme)) if scheme.startswith("sqlite") else address.removeprefix(scheme))
    return None


__all__ = ["existing_storage", "existing_study"]

"""A sweep's study, found without making anything that was not there, and the command that trains one of its trials again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from components.validation import did_you_mean
from losskit_cli.errors import UsageError

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

NOT_TRAINING = re.compile(r"[+~]*(sweep|hydra)([./@=]|$)")  # overrides that say how the sweep is run


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


def train_command(plan: Mapping[str, Any], trial: FrozenTrial) -> str:
    """The command line, quoted for a POSIX shell, that trains again what a trial trained: its own overrides on top of those that all trials share."""
    own = [str(o) for o in trial.user_attrs.get("losskit:overrides") or [f"{key}={value}" for key, value in trial.params.items()]]
    shared = [str(o) for o in trial.user_attrs.get("losskit:fixed", plan.get("fixed") or []) if not NOT_TRAINING.match(str(o)) and o not in own]
    seeds = [str(s) for s in plan.get("seeds") or []]
    if seeds:
        shared, own = ([o for o in overrides if not o.startswith("seed=")] for overrides in (shared, own))
        own = [*own, f"seed={','.join(seeds)}"]
    words = ["losskit", "train", *(["--multirun"] if len(seeds) > 1 else [])]
    for folder in plan.get("config_dirs") or []:
        words += ["--config-dir", str(folder)]
    if plan.get("config_name", "train") != "train":
        words += ["--config-name", str(plan["config_name"])]
    return shlex.join([*words, *shared, *own])


def _file_of(address: str) -> Path | None:
    """The file that an address with a whole path names, if it is a file's."""
    for scheme in ("sqlite:///", "journal:"):
        if address.startswith(scheme):
            return Path(unquote(address.removeprefix(scheme)) if scheme.startswith("sqlite") else address.removeprefix(scheme))
    return None


__all__ = ["existing_storage", "existing_study", "train_command"]

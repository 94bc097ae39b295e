"""A run's directory: everything needed to go on with it or to run it again, as plain files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from components.files import replace_text
from losskit_cli.errors import UsageError

SPEC = "run_spec.json"
CHECKPOINTS = "checkpoints"
LOCK = "run.lock"
HOLD_SECONDS = 3.0
STAMP = len("14-05-09-")  # what a run directory's name begins with, before the run's


@dataclass(frozen=True)
class RunSpec:
    """What a run is: its composed config and how it was asked for.

    Attributes:
        name: the run's readable name.
        config: the whole config, interpolations resolved, as plain containers.
        choices: group -> chosen option.
        overrides: as the user gave them.
        config_dirs: the user's config directories.
        config_name: the primary config.
    """

    name: str
    config: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]
    config_dirs: list[str]
    config_name: str = "train"

    def save(self, run_dir: Path) -> None:
        from losskit_cli.compose import to_yaml

        replace_text(run_dir / SPEC, json.dumps(asdict(self), indent=1))
        replace_text(run_dir / "config.yaml", to_yaml(self.config))
        replace_text(run_dir / "overrides.txt", "".join(f"{o}\n" for o in self.overrides))

    @classmethod
    def load(cls, run_dir: Path) -> RunSpec:
        try:
            return cls(**json.loads((run_dir / SPEC).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{run_dir} is no run directory: it has no {SPEC}") from error

    def with_config(self, config: Mapping[str, Any]) -> RunSpec:
        return RunSpec(**{**asdict(self), "config": dict(config)})


def make_run_dir(root: Path, name: str) -> Path:
    """A new directory ``root/2026-01-31/14-05-09-name``; two runs of one second get different ones."""
    stamp = time.localtime()
    parent = root / time.strftime("%Y-%m-%d", stamp)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = parent / f"{time.strftime('%H-%M-%S', stamp)}-{name}{suffix}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            except FileNotFoundError:  # another run, which never began, has just taken the day's empty directory away with its own
                path.mkdir(parents=True)
            (path / CHECKPOINTS).mkdir()
            return path.absolute()
    except OSError as error:
        raise UsageError(f"cannot make a run directory below {root}: {error.strerror or error} (set output_dir=…)") from error
    raise UsageError(f"cannot make a run directory below {parent}: there are too many of this name")


class HeldError(UsageError):
    """Another process trains in the run's directory."""


def hold(run_dir: Path, name: str) -> BaseFileLock:
    """The right to train in a run's directory, for this process alone; the kernel takes it back when the process ends, however it ends.

    Raises:
        HeldError: another process has it. It is waited for a little: data-loader processes outlive a killed training by some moments.
    """
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=HOLD_SECONDS)
    except Timeout as error:
        raise HeldError(f"{name} is still running: another process trains in {run_dir}") from error
    except OSError as error:
        raise UsageError(f"cannot write in the directory of {name}, {run_dir}: {error.strerror or error}") from error
    return lock


def remove_run_dir(run_dir: Path) -> None:
    """Take away the directory of a run that never began, and those above it that were made for it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    with suppress(OSError):  # other runs of the day, or of other days, are there
        run_dir.parent.rmdir()
        run_dir.parent.parent.rmdir()

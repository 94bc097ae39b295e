"""``losskit doctor``: versions, devices, store, disk, names in the way; what is wrong and how to mend it.

Every import that could fail is made here, inside a check, and its failure is a line of the report. Nothing of ``components`` is imported
at the top: another package of that name is one of the things to be found out.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from losskit_cli.errors import LosskitError
from losskit_cli.paths import ENTRY_POINT_GROUP, package_dir, plugin_packages, shipped_config_dir
from losskit_cli.ranks import usable_cores

if TYPE_CHECKING:
    from losskit_cli.catalogue import Catalogue

OK, WARN, FAIL = "ok", "warn", "fail"
IMPORTED = {"torch": "torch", "lightning": "lightning", "torchmetrics": "torchmetrics", "mlflow": "mlflow", "optuna": "optuna", "hydra": "hydra-core"}
ONLY_VERSION = ("omegaconf", "typer", "numpy", "pandas", "scikit-learn", "matplotlib")
VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "CUBLAS_WORKSPACE_CONFIG",
    "HYDRA_FULL_ERROR",
    "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_JOB_ID",
    "PYTHONPATH",
)
MB = 1024**2
GB = 1024**3
# What can go wrong in importing or asking a broken installation.
TROUBLE = (ImportError, OSError, RuntimeError, ValueError, AttributeError, TypeError, LookupError, SyntaxError, LosskitError)


class Finding(NamedTuple):
    """One line of the report; ``mend`` says what to do about it."""

    name: str
    status: str
    value: str
    mend: str = ""


def run_doctor(*, json: bool = False) -> None:
    """Print the report.

    Raises:
        LosskitError: something is wrong (warnings are not), so the command's exit code is 1.
    """
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    failed = [finding.name for finding in findings if finding.status == FAIL]
    if json:
        report = {"ok": not failed, "findings": [finding._asdict() for finding in findings]}
        sys.stdout.write(dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(findings)
    if failed:
        raise LosskitError(f"losskit doctor found something wrong with: {', '.join(failed)}")


def _print(findings: list[Finding]) -> None:
    colours = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"} if sys.stdout.isatty() else {}
    end = "\033[0m" if colours else ""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        sys.stdout.write(f"{colours.get(finding.status, '')}{finding.status:<4}{end}  {finding.name:<{width}}  {finding.value}\n")
        if finding.mend:
            sys.stdout.write(f"{'':<4}  {'':<{width}}  → {finding.mend}\n")
    counts = {status: sum(f.status == status for f in findings) for status in (WARN, FAIL)}
    sys.stdout.write(f"\n{counts[FAIL]} wrong, {counts[WARN]} to look at\n" if any(counts.values()) else "\nall is well\n")


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that breaks is a finding too."""
    try:
        yield from check()
    except TROUBLE as error:
        what = check.__name__.removeprefix("check_")
        yield Finding(what, FAIL, f"could not be looked at: {_one_line(error)}", "reinstall losskit, if the message does not tell")


# -- checks ----------------------------------------------------------------------------------------------------------------------
def check_python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding("python", OK if good else FAIL, f"{platform.python_version()}, {platform.platform()}", "" if good else "losskit needs Python 3.11 or newer")


def check_packages() -> Iterator[Finding]:
    wanted = _requirements()
    yield _version("losskit", "losskit", wanted, f"from {Path(__file__).parent.parent}")
    for module, distribution in IMPORTED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = error.name if error.name and error.name != module else ""
            text = f"installed, but it needs {missing}, which is not" if missing else "not installed"
            yield Finding(distribution, FAIL, text, f"pip install {missing or distribution}")
        except TROUBLE as error:
            yield Finding(distribution, FAIL, f"cannot be imported: {_one_line(error)}", f"pip install --force-reinstall {distribution}")
        else:
            yield _version(distribution, distribution, wanted)
    for distribution in ONLY_VERSION:
        yield _version(distribution, distribution, wanted)


def check_devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", OK, f"{usable_cores()} cores of {os.cpu_count()}, {torch.get_num_threads()} torch threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Finding(f"cuda:{number}", OK, f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        value = f"there is an NVIDIA driver, but torch {torch.__version__} does not use it"
        yield Finding("cuda", WARN, value, "install torch's CUDA build (pytorch.org, Get started)")
    else:
        yield Finding("cuda", OK, "none")
    if torch.backends.mps.is_available():
        yield Finding("mps", OK, "Apple GPU: trainer.accelerator=auto uses it")


def check_memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < 1 * GB
    mend = "close something, or train with a smaller batch" if low else ""
    yield Finding("memory", WARN if low else OK, f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free", mend)


def check_disk() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    status = FAIL if free < 100 * MB else WARN if free < 2 * GB else OK
    mend = "" if status == OK else "free some space, or set output_dir= and tracking.uri= to another disk"
    yield Finding("disk", status, f"{free / GB:.1f} GB free in {here}", mend)
    if not os.access(here, os.W_OK):
        yield Finding("directory", FAIL, f"{here} is not writable", "run losskit in a directory of your own")


def check_store() -> Iterator[Finding]:
    from losskit_cli.tracking.settings import resolve_uri, sqlite_path, unreachable, without_credentials

    uri = resolve_uri()
    shown = without_credentials(uri)
    problem = unreachable(uri)
    path = sqlite_path(uri)
    if problem:
        yield Finding("store", FAIL, problem, "check MLFLOW_TRACKING_URI, or start the server; tracking.on_error=buffer trains without it")
    elif path is None:
        yield Finding("store", OK, f"{shown} answers" if "://" in shown else shown)
    elif not path.exists():
        yield Finding("store", OK, f"{path}: none yet, the first run makes it")
    else:
        yield _sqlite_store(path)
    if Path("mlruns").is_dir() and path is not None and not path.exists():
        yield Finding("mlruns", WARN, "an MLflow file store is here, which MLflow 3 no longer reads by default", "its runs are not shown by losskit")


def check_names() -> Iterator[Finding]:
    """``components`` and ``sweeps`` are common words: is it ours that Python finds?"""
    root = Path(__file__).parent.parent
    for name in ("components", "sweeps"):
        found = package_dir(name)
        if found is None:
            yield Finding(name, FAIL, "not found", "reinstall losskit")
        elif found.resolve() != (root / name).resolve():
            mend = f"rename {found.name} there, uninstall that package, or take it off PYTHONPATH"
            yield Finding(name, FAIL, f"Python finds {found} instead of losskit's {root / name}", mend)
        else:
            yield Finding(name, OK, str(found))
    if root.resolve() != Path.cwd().resolve():
        for name in ("components", "sweeps"):
            beside = Path(name)
            if beside.is_dir() and list(beside.glob("*.py")) and beside.resolve() != (root / name).resolve():
                mend = "python -m losskit_cli would import that one here: rename it, or use the losskit command"
                yield Finding(name, WARN, f"{beside.absolute()} has the name of a package of losskit", mend)


def check_configs() -> Iterator[Finding]:
    shipped = shipped_config_dir()
    if not (shipped / "train.yaml").is_file():
        yield Finding("config", FAIL, f"{shipped} has no train.yaml", "reinstall losskit")
        return
    from losskit_cli.catalogue import Catalogue

    catalogue = Catalogue([shipped])
    yield Finding("config", OK, f"{shipped}: {_size(catalogue)}")
    for name in plugin_packages():
        place = package_dir(name)
        config = place / "conf" if place else None
        if place is None:
            yield Finding(f"plug-in {name}", FAIL, f"an entry point {ENTRY_POINT_GROUP} names it, but it cannot be found", "reinstall or uninstall it")
        elif config is None or not config.is_dir():
            yield Finding(f"plug-in {name}", WARN, f"{place} has no directory conf", "its options are not in the package: see docs/extending.md")
        else:
            plugin = Catalogue([config])
            hidden = [f"{g}={n}" for g in plugin.groups() for n in plugin.option_names(g) if n in catalogue.option_names(g)]
            text = f"{config}: {_size(plugin)}" + (f"; hidden by losskit's own: {', '.join(hidden)}" if hidden else "")
            yield Finding(f"plug-in {name}", WARN if hidden else OK, text, "give them other names" if hidden else "")


def check_environment() -> Iterator[Finding]:
    from losskit_cli.tracking.settings import without_credentials

    for name in VARIABLES:
        if name not in os.environ:
            continue
        value = os.environ[name]
        if name == "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE":
            yield Finding(name, WARN, value, "it widens what a _target_ may name: unset it unless you mean that")
        elif name == "CUDA_VISIBLE_DEVICES" and value in ("", "-1"):
            yield Finding(name, WARN, f"{value!r} hides all GPUs", "unset it to train on them")
        elif name in ("WORLD_SIZE", "LOCAL_RANK"):
            yield Finding(name, WARN, value, "this looks like a process of a distributed job: a new run started here would join it")
        else:
            yield Finding(name, OK, without_credentials(value) if "://" in value else value)


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    check_python,
    check_packages,
    check_devices,
    check_memory,
    check_disk,
    check_store,
    check_names,
    check_configs,
    check_environment,
]


# -- steps ------------------------------------------------------------------------------------------------------------------------
def _requirements() -> dict[str, Any]:
    """Distribution -> the versions that losskit asks for; empty where losskit itself is not installed."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("losskit") or []]
    except PackageNotFoundError:
        return {}
    return {r.name: r.specifier for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}


def _size(catalogue: Catalogue) -> str:
    groups = catalogue.groups()
    return f"{sum(len(catalogue.options(group)) for group in groups)} options in {len(groups)} groups"


def _version(name: str, distribution: str, wanted: dict[str, Any], more: str = "") -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version(distribution)
    except PackageNotFoundError:
        return Finding(name, FAIL, "not installed", f"pip install {distribution}")
    specifier = wanted.get(distribution)
    if specifier is not None and not specifier.contains(found, prereleases=True):
        return Finding(name, FAIL, f"{found}, but losskit needs {specifier}", f'pip install "{distribution}{specifier}"')
    return Finding(name, OK, f"{found} {more}".strip())


def _sqlite_store(path: Path) -> Finding:
    import sqlite3
    from urllib.parse import quote

    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=5)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"runs", "alembic_version"} <= tables:
                return Finding("store", FAIL, f"{path} is an SQLite file, but no MLflow store", "move it away, or name another with tracking.uri=sqlite:///…")
            (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()
            (broken,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("store", FAIL, f"{path} cannot be read: {error}", "restore it from a copy; the runs' own directories hold all that they logged")
    if broken != "ok":
        return Finding("store", FAIL, f"{path} is damaged: {broken}", f"sqlite3 {path.name} .recover | sqlite3 mended.db")
    return Finding("store", OK, f"{path}: {count} runs, schema {schema}, {path.stat().st_size / MB:.1f} MB")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

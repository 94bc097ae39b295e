"""Workers of a sweep through a Hydra launcher plugin: joblib, submitit (this machine or Slurm), ray, or any other that is installed.

A launcher starts jobs; here a job is a worker, which pulls trials from the sweep's storage until none is left. So it does not matter whether the launcher
runs all of them at once, how long each lives, or whether one is lost on the way: what one leaves, another takes. Launchers block, and end their workers at
once on Ctrl-C; ``Launching`` therefore has one in a process of its own, beside which the sweep is looked after and ended in good order.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.validation import did_you_mean

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import DictConfig

GROUP = "hydra/launcher"
LOCAL = ("basic", "joblib", "submitit_local", "ray")  # their workers share this machine
END_SECONDS = 10.0  # for a launcher to close what it has opened, before it is killed with all that it has started here
KEY = "hydra.launcher"
PACKAGES = {  # launcher: the package of its plugin, and the extra of losskit that brings it
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "ray": ("hydra-ray-launcher", "ray"),
    "ray_aws": ("hydra-ray-launcher", "ray"),
    "rq": ("hydra-rq-launcher", ""),
}
MINUTES = 30 * 24 * 60  # a local worker's time: submitit would end it after an hour

_log = logging.getLogger(__name__)


class LauncherError(Exception):
    """Workers that cannot be launched, or that were lost; the message says why and what to do."""


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Args:
        worker: its number, from 0.
        host: the machine that it ran on; empty where it was lost.
        result: what the entry point returned.
        error: what it raised, or how it was lost, in one line; ``None`` where it ended well.
        traceback: the traceback of ``error``, where there is one.
    """

    worker: int
    host: str = ""
    result: Any = None
    error: str | None = None
    traceback: str = ""


def launcher_of(overrides: Sequence[str]) -> str | None:
    """The launcher that the overrides choose (``hydra/launcher=joblib``: ``"joblib"``); ``None``: they choose none."""
    chosen = [text.partition("=")[2].strip() for text in overrides if text.lstrip("+").startswith(f"{GROUP}=")]
    return chosen[-1] if chosen else None


def is_launcher_override(override: str) -> bool:
    """Whether an override is about the launcher: ``hydra/launcher=…``, ``hydra.launcher.…=…``."""
    return override.lstrip("+~").startswith((f"{GROUP}=", f"{KEY}.", f"{KEY}="))


def check(overrides: Sequence[str], jobs: int = 1, *, config_dirs: Sequence[Path] = ()) -> str:
    """Check, before anything is started, that the workers could be launched.

    Args:
        overrides: see ``launch``.
        jobs: how many workers.
        config_dirs: config directories of the user's own, which may hold ``hydra/launcher/*.yaml``.

    Returns:
        The launcher's name.

    Raises:
        LauncherError: an unknown launcher or setting, or a plugin that is not installed.
    """
    _compose(overrides, jobs, "losskit", Path("launcher"), config_dirs)
    return str(launcher_of(overrides))


def launch(
    overrides: Sequence[str],
    jobs: int,
    entry: str,
    argument: Mapping[str, Any],
    *,
    directory: Path,
    own: Path | None = None,
    name: str = "losskit",
    paths: Sequence[str | Path] = (),
    config_dirs: Sequence[Path] = (),
) -> list[Outcome]:
    """Run workers through a Hydra launcher, and wait until all of them have ended.

    Args:
        overrides: ``hydra/launcher=NAME`` and its settings, ``hydra.launcher.KEY=VALUE``, in Hydra's grammar. Unless they say otherwise, as many workers
            run at once as ``jobs``, and a local one is not ended after an hour.
        jobs: how many workers, at least 1.
        entry: the worker, as ``"module:function"``. It is called in the worker's process with one dict: ``argument`` and ``worker``, its number from 0.
        argument: what each worker is told; small and picklable.
        directory: the working directory of the workers.
        own: where the launcher writes what it keeps of its own (submitit: the jobs and their logs); ``directory/launcher`` by default.
        name: the jobs' name, as a cluster shows it.
        paths: folders that a worker puts first on ``sys.path``.
        config_dirs: config directories of the user's own, which may hold ``hydra/launcher/*.yaml``.

    Returns:
        How each worker ended, in the order of their numbers. A worker that raised is an outcome with an ``error``; so is, with submitit, one that was killed.

    Raises:
        LauncherError: see ``check``; or the launcher itself failed, as joblib does when one of its workers is killed.
        KeyboardInterrupt: on Ctrl-C, at once. Workers on other machines and submitit's run on until they are told through the storage to stop.
            See ``Launching`` for a gentler way.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    directory = directory.absolute()
    loader, config = _compose(overrides, jobs, name, own.absolute() if own else directory / "launcher", config_dirs)
    chosen = str(launcher_of(overrides))
    from hydra._internal.callbacks import Callbacks

    task = partial(work, entry, dict(argument), str(directory), [str(path) for path in paths])
    before = HydraConfig.instance().cfg
    try:
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        with _submitted() as submitted, _own_ray(), _quiet():
            try:
                returned: Sequence[Any] = launcher.launch([[f"+worker={index}"] for index in range(jobs)], initial_job_idx=0)
            except Exception as error:
                if not submitted:
                    raise LauncherError(_lost(chosen, error)) from error
                returned = [_result_of(job, error) for job in submitted]  # the others go on: wait for them
    except LauncherError:
        raise
    except ImportError as error:
        raise LauncherError(f"hydra/launcher={chosen} cannot be used: {_one_line(error)}{_hint(chosen)}") from error
    except Exception as error:
        raise LauncherError(f"hydra/launcher={chosen} failed: {_one_line(error)}") from error
    finally:
        HydraConfig.instance().cfg = before
    return [_outcome(index, answer) for index, answer in enumerate(returned)]


class Launching:
    """``launch`` in a process of its own: whoever starts it can look after the sweep, and show it, until the workers have ended.

    The process leads a session of its own, so that Ctrl-C in the terminal ends neither the launcher nor the workers that it has started here before they
    have saved what they do: they are told through the storage to stop. It outlives whoever started it: what it launched goes on to the sweep's end.

    Args:
        arguments, options: of ``launch``; picklable.
        log: the file for what the launcher and its workers print.
        environment: set in the launcher's process, and so in the workers' that it starts from there.
    """

    def __init__(self, *arguments: Any, log: Path, environment: Mapping[str, str], **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.log = log
        self._answers, theirs = context.Pipe(duplex=False)
        told = (theirs, str(log), dict(environment), arguments, options)
        self._process = context.Process(target=_launch_apart, args=told, name="losskit-launcher")
        self._process.start()
        theirs.close()
        self._said: list[Outcome] | LauncherError | None = None

    @property
    def running(self) -> bool:
        """Whether workers may still be there."""
        self._listen()
        return self._said is None and self._process.is_alive()

    def outcomes(self) -> list[Outcome]:
        """How the workers ended, once nothing runs any more; none where ``end`` has ended the launcher.

        Raises:
            LauncherError: see ``launch``; or the launcher's process died.
        """
        self._listen()
        if isinstance(self._said, LauncherError):
            raise self._said
        if self._said is None and self._process.exitcode:
            code = self._process.exitcode
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
            raise LauncherError(f"the launcher's process {how} (see {self.log})")
        return self._said or []

    def end(self) -> None:
        """End the launcher and what it has started on this machine, where that still runs. Jobs that a cluster has in its queue stay there."""
        if self._process.is_alive() and self._process.pid:
            if self._said is None:
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGINT)
                connection.wait([self._process.sentinel], END_SECONDS)
            with suppress(ProcessLookupError, PermissionError):  # not reaped yet, so its number is nobody else's. joblib keeps its processes for later
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()
        self._answers.close()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            if self._said is None and self._answers.poll():
                self._said = self._answers.recv()


def _launch_apart(answers: connection.Connection, log: str, environment: dict[str, str], arguments: Sequence[Any], options: dict[str, Any]) -> None:
    os.setsid()
    with Path(log).open("ab", 0) as file:
        os.dup2(file.fileno(), 1)  # what workers print is not the sweep's output
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    try:
        answers.send(launch(*arguments, **options))
    except LauncherError as error:
        answers.send(LauncherError(str(error)))
    except KeyboardInterrupt:
        return


def work(entry: str, argument: dict[str, Any], directory: str, paths: Sequence[str], config: DictConfig) -> dict[str, Any]:
    """What a launcher runs: one worker, in whichever process and on whichever machine.

    Whatever the worker raises is returned: one raise would make some launchers end all the others.
    """
    told: dict[str, Any] = {"worker": int(config.worker), "host": socket.gethostname(), "result": None, "error": None, "traceback": ""}
    try:
        for path in reversed([*paths]):
            if path not in sys.path:
                sys.path.insert(0, path)
        os.chdir(directory)
        told["result"] = _function(entry)({**argument, "worker": told["worker"]})
    except (Exception, SystemExit) as error:  # noqa: BLE001  the sweep shows it beside the worker's number
        told["error"] = _one_line(error)
        told["traceback"] = traceback.format_exc()
    return told


def _function(entry: str) -> Any:
    module, colon, function = entry.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"an entry point is written module:function, but got {entry!r}")
    return getattr(importlib.import_module(module), function)


# --------------------------------------------------------------------------- the launcher's config


def _compose(overrides: Sequence[str], jobs: int, name: str, own: Path, config_dirs: Sequence[Path]) -> tuple[ConfigLoaderImpl, DictConfig]:
    """Hydra's own config with the launcher, nothing of the experiment: workers compose that themselves."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise LauncherError(f"at least one worker must be launched, but got {jobs!r}")
    for override in overrides:
        if not is_launcher_override(override):
            raise LauncherError(f"{override!r} is not about the launcher: hydra/launcher=NAME or hydra.launcher.KEY=VALUE")
    chosen = launcher_of(overrides)
    if chosen is None:
        raise LauncherError(f"{overrides[0] if overrides else 'no override'!r} chooses no launcher: add hydra/launcher=NAME")
    with _quiet():
        Plugins.instance()  # finds the launchers that are installed
        search_path = create_config_search_path(None)
        for folder in config_dirs:
            search_path.prepend("losskit", f"file://{folder.absolute()}", anchor="schema")  # Hydra wants the schemas last
        loader = ConfigLoaderImpl(config_search_path=search_path)
    installed = loader.get_group_options(GROUP)
    if chosen not in installed:
        if chosen in PACKAGES:
            raise LauncherError(f"hydra/launcher={chosen} is not installed{_hint(chosen)}")
        names = sorted({*installed, *PACKAGES})
        near = did_you_mean(chosen, names) or next((f"; did you mean {name!r}?" for name in names if chosen and chosen in name), "")
        raise LauncherError(f"there is no hydra/launcher={chosen}{near} (installed: {', '.join(sorted(installed))})")
    settings = [
        "hydra/hydra_logging=none",  # the sweep has its own log
        "hydra/job_logging=none",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        f"hydra.job.name={_quoted(name)}",
        f"hydra.sweep.dir={_quoted(str(own))}",
        *[text for text in overrides if text.lstrip("+").startswith(f"{GROUP}=")],
        *_defaults(chosen, overrides, jobs),
        *[text for text in overrides if not text.lstrip("+").startswith(f"{GROUP}=")],
    ]
    try:
        return loader, loader.load_configuration(None, settings, RunMode.MULTIRUN, from_shell=False)
    except (HydraException, OmegaConfBaseException) as error:
        known = loader.load_configuration(None, [f"{GROUP}={chosen}"], RunMode.MULTIRUN, from_shell=False).hydra.launcher
        raise LauncherError(_setting_problem(chosen, error, [str(key) for key in known if key != "_target_"])) from error


def _defaults(chosen: str, overrides: Sequence[str], jobs: int) -> list[str]:
    """What a sweep wants of each launcher, unless the user says otherwise."""

    def given(key: str) -> bool:
        return any(text.lstrip("+~").startswith((f"{KEY}.{key}=", f"{KEY}.{key}.")) for text in overrides)

    if chosen == "joblib" and not given("n_jobs"):
        return [f"{KEY}.n_jobs={jobs}"]
    if chosen == "submitit_local" and not given("timeout_min"):
        return [f"{KEY}.timeout_min={MINUTES}"]
    if chosen == "submitit_slurm" and not given("timeout_min"):
        _log.warning("hydra.launcher.timeout_min is not set: Slurm ends each worker after 60 minutes; what it had begun, another goes on with")
    if chosen == "ray" and not given("ray.init") and not os.environ.get("RAY_ADDRESS"):
        return [f"+{KEY}.ray.init.num_cpus={jobs}", f"+{KEY}.ray.init.include_dashboard=false"]  # a cluster of its own on this machine
    return []


def _quoted(text: str) -> str:
    """A text as Hydra's grammar takes it for what it is."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def _setting_problem(chosen: str, error: Exception, known: Sequence[str]) -> str:
    text = str(error)
    key = next((part.partition("=")[0].strip(" '+.") for part in text.replace(f"{KEY}.", "\n").splitlines()[1:]), "")
    cause = error.__cause__
    if "Could not override" in text and key:
        key = key.split("'")[0]
        return f"hydra/launcher={chosen} has no setting {key!r}{did_you_mean(key, known)} (it has: {', '.join(known)})"
    return f"hydra/launcher={chosen}: {_one_line(error)}{f': {str(cause).splitlines()[0]}' if cause and str(cause) else ''}"


def _hint(chosen: str) -> str:
    package, extra = PACKAGES.get(chosen, ("", ""))
    if not package:
        return ""
    return f": pip install 'losskit[{extra}]', or the package {package}" if extra else f": pip install {package}"


def _one_line(error: BaseException) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}{': ' if text else ''}{text}"


# --------------------------------------------------------------------------- what launchers do of their own


@contextmanager
def _submitted() -> Iterator[list[Any]]:
    """Keep the jobs that submitit starts in here. Its launcher stops waiting at the first one that was lost, while the others go on."""
    jobs: list[Any] = []
    try:
        import submitit
    except ImportError:
        yield jobs
        return
    start = submitit.AutoExecutor.map_array

    def keep(*arguments: Any, **options: Any) -> Any:
        started = start(*arguments, **options)
        jobs.extend(started)
        return started

    submitit.AutoExecutor.map_array = keep
    try:
        yield jobs
    finally:
        submitit.AutoExecutor.map_array = start


@contextmanager
def _own_ray() -> Iterator[None]:
    """End the ray cluster that the launcher starts in this process; one that was there before stays."""
    before = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    try:
        yield
    finally:
        ray = sys.modules.get("ray")
        if ray is not None and not before and ray.is_initialized():
            ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hydra's launchers log each job with its overrides, and warn about their plugins; a sweep says that better."""
    loggers = [logging.getLogger(name) for name in ("hydra", "hydra_plugins")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _result_of(job: Any, error: Exception) -> Any:
    """What submitit's job gave, when it has ended; ``error`` is what its launcher had already waited for."""
    try:
        lost = job.done() and not job.paths.result_pickle.exists()  # asked again, submitit would wait again for a file that does not come
        return error if lost and str(job.job_id) in str(error) else job.results()[0]
    except Exception as raised:  # noqa: BLE001  submitit raises what became of it
        return raised


def _lost(chosen: str, error: Exception) -> str:
    why = f"hydra/launcher={chosen} failed: {_one_line(error)}"
    if chosen == "joblib" and "Terminated" in type(error).__name__:
        return "hydra/launcher=joblib ended all its workers because one of them was killed; the sweep can be resumed"
    return why


def _outcome(index: int, answer: Any) -> Outcome:
    if isinstance(answer, Exception):
        return Outcome(index, error=_one_line(answer).partition(" No error stream produced")[0])  # submitit has its whole log follow
    try:
        return Outcome(**answer.return_value)
    except Exception as error:  # noqa: BLE001  Hydra gives back, by raising it, what went wrong before the worker began
        return Outcome(index, error=_one_line(error), traceback="".join(traceback.format_exception(error)))

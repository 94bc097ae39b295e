"""Run one experiment: build, fit, test, keep what is needed to do it again. Whatever happens, the run ends with a status and nothing is lost."""

from __future__ import annotations

import errno
import logging
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from torch import nn

from components.callbacks import Telling, TrainingInterrupted, is_intact, newest_intact
from components.callbacks.checkpoints import BEST, LAST, DamagedCheckpointError, checkpoints_of
from components.tasks.base import NonFiniteLossError
from losskit_cli.build import Builder, Experiment, user_errors
from losskit_cli.errors import LosskitError, RunError, UsageError, said_by
from losskit_cli.first_batch import component_at_fault, first_batch, leaving_no_trace
from losskit_cli.progress import ProgressBar
from losskit_cli.ranks import BLAME_SECONDS, Ranks, is_about_ranks, leave, one_device, own_rank
from losskit_cli.rundir import CHECKPOINTS, RunSpec
from losskit_cli.session import Tracking
from losskit_cli.threads import cpu_threads


@dataclass
class Summary:
    """How a run ended; what ``--json`` prints."""

    run_id: str | None
    run_name: str
    status: str
    steps: int
    duration_s: float
    metrics: dict[str, float]
    best_checkpoint: str | None
    last_checkpoint: str | None
    run_dir: str | None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "notes"}


class EndedEarly(LosskitError):
    """A callback ended the run on purpose (a pruned trial); the run is KILLED."""


class Interrupted(LosskitError):
    """Ctrl-C or SIGTERM; the run is KILLED, with a checkpoint to go on from."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def execute(
    spec: RunSpec,
    run_dir: Path,
    tracking: Tracking,
    *,
    resume: bool = False,
    console: Console,
    load_model: Callable[[str], nn.Module] | None = None,
    ranks: Ranks | None = None,
    callbacks: Sequence[lightning.Callback] = (),
) -> Summary:
    """Run ``spec`` in ``run_dir``.

    Args:
        spec: what to run.
        run_dir: its directory, which exists.
        tracking: the run's journal and writer, started already so that the store opens while torch is imported.
        resume: go on from the newest intact checkpoint of ``run_dir``.
        console: where progress and notes go.
        load_model: see :class:`~losskit_cli.build.Builder`.
        ranks: the run's further processes, started already so that they import torch at the same time; ``None``: start them here.
        callbacks: further callbacks of this process's trainer; one that raises :class:`EndedEarly` ends the run.

    Raises:
        UsageError: the experiment cannot be built; nothing was recorded.
        RunError: it failed; the run is FAILED.
        Interrupted: it was stopped by a signal; the run is KILLED and can be resumed.
        EndedEarly: a callback ended it.
    """
    quiet_libraries()
    began = time.monotonic()
    ranks = ranks or Ranks.start(spec.config["trainer"], run_dir, resume=resume)
    try:
        ranks.join()
        notes = _nothing_trained(spec.config)
        checkpoint = _checkpoint_to_resume(run_dir, notes) if resume else None
        experiment = _built(spec, run_dir, checkpoint, tracking, console, load_model, notes)
        experiment.trainer.callbacks[:0] = callbacks  # type: ignore[attr-defined]  # their state goes into the checkpoint of the same moment
    except BaseException:
        ranks.close()
        tracking.abandon()
        raise
    status = "FINISHED"
    error: LosskitError | None = None
    metrics: dict[str, float] = {}

    def give_up(reason: str) -> None:
        """The last resort, in another thread: the training thread waits for a rank that is gone, and will not wake up."""
        error = _lost(reason, run_dir, spec.name)
        tracking.end("FAILED", error=str(error))
        sys.stderr.write(f"Error: {error}\n")

    try:
        tracking.begin(spec, experiment.data.fingerprint(), experiment.facts, resumed=resume)
        with ranks.watched(give_up):
            ranks.meet()
            with own_exits(), cpu_threads(spec.config["trainer"].get("threads", "auto"), experiment.operations):
                metrics = _fit_and_test(experiment, run_dir, checkpoint)
        notes += [note for callback in experiment.trainer.callbacks if isinstance(callback, Telling) for note in callback.notes()]  # type: ignore[attr-defined]
        leave()
        notes += filter(None, [ranks.wait()])
    except TrainingInterrupted as interruption:
        status = "KILLED"
        saved = "a checkpoint is saved" if (run_dir / CHECKPOINTS / LAST).exists() else "what was searched is kept"
        error = Interrupted(f"{interruption}; {saved}. Go on with: losskit resume {spec.name}", interruption.signum)
    except KeyboardInterrupt:
        status, error = "KILLED", Interrupted(f"stopped. Go on with: losskit resume {spec.name}", 2)
    except EndedEarly as ended:
        status, error = "KILLED", ended
    except Exception as failure:  # noqa: BLE001  whatever a component raises, the run must end as FAILED with its reason
        status, error = "FAILED", _explained(failure, run_dir, spec.name, ranks)
    finally:
        ranks.close()
    steps = experiment.trainer.global_step
    outcome = tracking.end(status, error=str(error) if error else None, pruned=isinstance(error, EndedEarly))
    notes += outcome.notes
    summary = Summary(
        outcome.run_id, spec.name, status, steps, round(time.monotonic() - began, 3), metrics,
        _existing(run_dir / CHECKPOINTS / BEST), _existing(run_dir / CHECKPOINTS / LAST), str(run_dir), notes,
    )  # fmt: skip
    if error is not None:
        raise error
    return summary


def dry_run(spec: RunSpec, load_model: Callable[[str], nn.Module] | None = None) -> dict[str, Any]:
    """Compose, check, build, one batch forward and backward; nothing is recorded."""
    quiet_libraries()
    experiment = Builder(spec.config, spec.choices, load_model).experiment(train_teacher=False)
    task = experiment.task
    tried = first_batch(experiment, spec.choices)
    batch, total, parts = tried.batch, tried.total, tried.parts
    with user_errors(f"{task.objective.loss.name}: the backward pass of the first batch fails"):
        total.backward()
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    return {
        "loss": float(total.detach()),
        "parts": {name: float(value.detach()) for name, value in parts.items()},
        "finite": bool(torch.isfinite(total)) and all(bool(torch.isfinite(g).all()) for g in gradients),
        "parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "batch": {name: list(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)},
        "total_steps": experiment.facts["total_steps"],
        "offers": sorted(task.offered),
        "bindings": {bound.name: bound.arguments for bound in task.objective.bounds()},
    }


def restored(spec: RunSpec, checkpoint: Path, *, load_data: bool, load_model: Callable[[str], nn.Module] | None = None) -> Experiment:
    """The experiment of ``spec`` with the weights and the fitted data state of ``checkpoint``, in this process alone, on what this machine has."""
    quiet_libraries()
    state = read_checkpoint(checkpoint)
    config = {**spec.config, "trainer": one_device(spec.config["trainer"])}
    experiment = Builder(config, spec.choices, load_model).experiment(checkpoint=state, load_data=load_data)
    check_fits(experiment, state, checkpoint)
    experiment.task.load_state_dict(state["state_dict"])
    return experiment


def test(experiment: Experiment) -> dict[str, float]:
    """The test metrics of the experiment's weights."""
    experiment.trainer.test(experiment.task, datamodule=experiment.data, verbose=False)
    return {k: v for k, v in _values(experiment.trainer.callback_metrics).items() if k.startswith("test/")}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        UsageError: it is not there, damaged, or no checkpoint.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}")
    if not is_intact(path):
        raise UsageError(f"{path} is damaged or no checkpoint")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UsageError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise UsageError(f"{path} is no checkpoint of a run: it has no state_dict")
    return state


def load_weights(experiment: Experiment, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the experiment's task; UsageError where they do not fit."""
    state = read_checkpoint(checkpoint)
    check_fits(experiment, state, checkpoint)
    experiment.task.load_state_dict(state["state_dict"])


def check_fits(experiment: Experiment, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another model, saying where they differ."""
    own, saved = experiment.task.state_dict(), state.get("state_dict", {})
    differences = [f"{k}: {tuple(saved[k].shape)} in the checkpoint, {tuple(own[k].shape)} here" for k in own if k in saved and saved[k].shape != own[k].shape]
    differences += [f"{k}: not in the checkpoint" for k in own if k not in saved] + [f"{k}: only in the checkpoint" for k in saved if k not in own]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UsageError(f"{checkpoint} is of another model: {'; '.join(differences[:3])}{more}")


def quiet_libraries() -> None:
    """Lightning's notices are about things that losskit decides; what a user must know, losskit says."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec, LeafSpec\)|does not have many workers|No negative samples|No positive samples).*")


# -- steps ------------------------------------------------------------------------------------------------------------------
def _built(
    spec: RunSpec,
    run_dir: Path,
    checkpoint: Path | None,
    tracking: Tracking,
    console: Console,
    load_model: Callable[[str], nn.Module] | None,
    notes: list[str],
) -> Experiment:
    builder = Builder(spec.config, spec.choices, load_model)
    state = read_checkpoint(checkpoint) if checkpoint else None
    experiment = builder.experiment(run_dir=str(run_dir), loggers=tracking.loggers(), checkpoint=state)
    if state is not None and checkpoint is not None:
        check_fits(experiment, state, checkpoint)
        notes += _other_devices(experiment, state)
        done, total = state.get("global_step", 0), experiment.facts["total_steps"]
        if done > total:
            raise UsageError(f"{spec.name} has done {done} steps already, and trainer.max_epochs and trainer.max_steps now allow {total}: allow more")
    if spec.config["train"]:
        with leaving_no_trace(experiment.task):
            experiment.operations = first_batch(experiment, spec.choices).operations
    experiment.trainer.callbacks.extend(tracking.callbacks())  # type: ignore[attr-defined]
    bar = ProgressBar(experiment.facts["total_steps"], console, spec.config["optimized_metric"])
    if console.is_terminal and not console.quiet:
        experiment.trainer.callbacks.insert(0, bar)  # type: ignore[attr-defined]
    for callback in experiment.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Telling):
            callback.say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
            callback.show = bar.aside
    if spec.config.get("ckpt_path"):
        load_weights(experiment, Path(spec.config["ckpt_path"]))
    return experiment


def _checkpoint_to_resume(run_dir: Path, notes: list[str]) -> Path | None:
    try:
        path, damaged = newest_intact(run_dir / CHECKPOINTS)
    except DamagedCheckpointError as error:
        if any((run_dir / CHECKPOINTS).glob("*.ckpt")):
            raise RunError(str(error)) from error
        notes.append("the run was stopped before its first checkpoint: it starts anew")
        return None
    notes += [f"{bad.name} is damaged: resumed from {path.name}, the one before" for bad in damaged]
    return path


def _other_devices(experiment: Experiment, state: Mapping[str, Any]) -> list[str]:
    before, now = len(state.get("losskit", {}).get("ranks", [None])), experiment.trainer.world_size
    if before == now:
        return []
    samples = experiment.facts["batch_size"]
    return [f"trainer.devices={now} after {before}: a step now sees {samples} samples, an epoch has other steps, and schedules run over another length"]


def _fit_and_test(experiment: Experiment, run_dir: Path, checkpoint: Path | None) -> dict[str, float]:
    config, trainer, task, data = experiment.config, experiment.trainer, experiment.task, experiment.data
    metrics: dict[str, float] = {}
    if config["train"]:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        metrics |= _values(trainer.callback_metrics)
    if config["test"]:
        best = run_dir / CHECKPOINTS / BEST
        if config["train"] and checkpoints_of(trainer.callbacks) is not None and best.exists():  # type: ignore[attr-defined]
            load_weights(experiment, best)
        metrics |= test(experiment)
    return metrics


@contextmanager
def own_exits() -> Iterator[None]:
    """Lightning answers Ctrl-C by leaving the process with SIGINT ignored; here it is a ``KeyboardInterrupt`` again, and the run gets its end."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from leaving
        raise RuntimeError(f"a component ended the process: sys.exit({leaving.code!r})") from leaving
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _nothing_trained(config: Mapping[str, Any]) -> list[str]:
    untrained = not config["train"] and not config.get("ckpt_path")
    return ["train=false without ckpt_path=…: these are the figures of the model as it was made"] if untrained else []


def _values(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in sorted(metrics.items())}


def _with_causes(failure: BaseException) -> Iterator[BaseException]:
    """An exception and those in whose handling it arose: torch's writer tells of a full disk only so."""
    error: BaseException | None = failure
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full_disk(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or (isinstance(error, RuntimeError) and "No space left on device" in str(error))


def _explained(failure: Exception, run_dir: Path, name: str, ranks: Ranks) -> RunError:
    """A failure as one message; the traceback goes to ``error.txt``."""
    file = run_dir / (f"error-rank{own_rank()}.txt" if own_rank() else "error.txt")
    with suppress(OSError):  # the disk may be what failed
        file.write_text("".join(traceback.format_exception(failure)), encoding="utf-8")
    lost = ranks.failure(BLAME_SECONDS) if is_about_ranks(failure) else None
    if lost is not None:
        return _lost(lost, run_dir, name)
    if any(is_full_disk(error) for error in _with_causes(failure)):
        error = RunError(f"the disk is full ({run_dir}); the last whole checkpoint is kept. Make room, then: losskit resume {name}")
    else:
        told = isinstance(failure, NonFiniteLossError | LosskitError | ValueError)
        at_fault = component_at_fault(failure)
        message = f"{at_fault}: " if at_fault else ""
        message += str(failure) if told else said_by(failure, hint="")
        error = RunError(f"{message} (the traceback is in {file})")
    error.__cause__ = failure
    return error


def _lost(reason: str, run_dir: Path, name: str) -> RunError:
    return RunError(f"{reason}. Go on with: losskit resume {name}" if (run_dir / CHECKPOINTS / LAST).exists() else reason)


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None

"""A sweep's own run in MLflow: the parent of its trials' runs, with the space, the best values as they come and the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from losskit_cli.errors import UsageError
from losskit_cli.rundir import CHECKPOINTS, HeldError, hold, make_run_dir
from losskit_cli.tracking.contents import PREFIX, config_hash
from losskit_cli.tracking.journal import Journal
from losskit_cli.tracking.process import Outcome, Writer, start_writer
from losskit_cli.tracking.settings import TrackingSettings, require_reachable
from losskit_cli.tracking.state import RunFile
from sweeps.settings import Plan
from sweeps.storage import shown
from sweeps.study import DIRECTORY, PARENT, Status, Sweep

WAIT_SECONDS = 30.0  # for MLflow to make the parent run; its children need its id


def make_directory(plan: Plan) -> Path:
    """The sweep's own directory, beside those of its trials."""
    directory = make_run_dir(Path(plan.config["output_dir"]), plan.name)
    (directory / CHECKPOINTS).rmdir()
    return directory


@contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """Only one process at a time looks after a sweep.

    Raises:
        UsageError: another one does.
    """
    known = Path(sweep.study.user_attrs.get(DIRECTORY, ""))
    if DIRECTORY not in sweep.study.user_attrs or not known.is_dir():  # gone on with on another machine
        known = make_directory(sweep.plan)
        sweep.study.set_user_attr(DIRECTORY, str(known))
    try:
        lock = hold(known, sweep.plan.name)
    except HeldError as error:
        raise UsageError(f"{sweep.plan.name} is running already. One more worker for it: losskit worker {sweep.plan.name}") from error
    try:
        yield
    finally:
        lock.release()


class SweepRun:
    """The parent run, or, without tracking, nothing but the sweep's directory. Made by :meth:`begin`.

    Args:
        directory: of the sweep, where its report and log go.
        journal: what is sent to MLflow; ``None``: nothing is.
        writer: who sends it.
    """

    def __init__(self, directory: Path, journal: Journal | None, writer: Writer | None, notes: list[str]) -> None:
        self.directory, self.journal, self.writer, self.notes = directory, journal, writer, notes
        self._best: Any = None

    @classmethod
    def begin(cls, sweep: Sweep) -> SweepRun:
        """Make the parent run, or go on with it.

        Raises:
            RunError: the tracking server is away and ``tracking.on_error`` is ``stop``.
        """
        plan, directory = sweep.plan, Path(sweep.study.user_attrs[DIRECTORY])
        settings = TrackingSettings.from_config(plan.config["tracking"])
        away = require_reachable(settings) if settings.enabled else None
        notes = [f"{away}; values are kept and sent when it is back (losskit sync)"] if away else []
        if not settings.enabled:
            return cls(directory, None, None, notes)
        writer = start_writer(directory, settings)
        journal = Journal(directory, flush_seconds=settings.flush_seconds)
        journal.start(described(plan, directory))
        return cls(directory, journal, writer, notes)

    def wait_for_id(self, sweep: Sweep) -> None:
        """Wait until MLflow has made the run, and tell the workers its id; where MLflow is away, trials have no parent."""
        if self.writer is None or (self.writer.run_id is None and self.notes):
            return
        deadline = time.monotonic() + WAIT_SECONDS
        while self.writer.run_id is None and self.writer.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.writer.run_id is not None:
            sweep.study.set_user_attr(PARENT, self.writer.run_id)

    @property
    def run_id(self) -> str | None:
        return RunFile.load(self.directory).run_id if self.writer is not None else None

    def show(self, status: Status) -> None:
        """Keep the best value as it comes, against the number of finished trials."""
        if self.journal is None or status.best_value is None or isinstance(status.best_value, list) or status.best_value == self._best:
            return
        self._best = status.best_value
        self.journal.metrics({"best": status.best_value}, step=status.finished)

    def keep(self, path: Path) -> None:
        """Keep a file among the run's artifacts."""
        if self.journal is not None:
            self.journal.artifact(path)

    def end(self, status: Status, how: str, error: str | None = None) -> Outcome | None:
        """End the run: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        if self.journal is None or self.writer is None:
            return None
        counts = {"trials": status.finished, "trials_complete": status.complete, "trials_pruned": status.pruned, "trials_failed": status.failed}
        self.journal.metrics({name: float(count) for name, count in counts.items()}, step=status.finished)
        self.journal.end(how, error)
        return self.writer.wait(last_word=self.journal.unwritten_end)


def described(plan: Plan, directory: Path) -> dict[str, Any]:
    """The metadata of the parent run."""
    settings: Mapping[str, Any] = plan.settings
    tags = {
        f"{PREFIX}sweep": plan.name,
        f"{PREFIX}kind": "sweep",
        f"{PREFIX}config_hash": config_hash(plan.config),
        f"{PREFIX}run_dir": str(directory),
        f"{PREFIX}optimized_metric": ",".join(plan.objectives),
        f"{PREFIX}optimized_direction": ",".join(plan.directions),
    }
    params = {"sweep.total": plan.total, "sweep.objectives": ",".join(plan.objectives), "sweep.seeds": ",".join(map(str, plan.seeds)) or "1"}
    params |= {f"sweep.{part}": str((settings.get(part) or {}).get("_target_", "none")).rpartition(".")[2] for part in ("sampler", "pruner")}
    params |= {f"space.{key}": text for key, text in space_texts(plan).items()}
    told = without_credentials(plan)
    return {"name": plan.name, "tags": tags, "params": params, "texts": {"plan.json": told.to_json(), "overrides.txt": "".join(f"{o}\n" for o in told.given)}}


def without_credentials(plan: Plan) -> Plan:
    """The plan as others may read it: the storage's address without its user name and password."""
    address = plan.settings.get("storage")
    if not address:
        return plan
    given = [f"sweep.storage={shown(address)}" if text.lstrip("+").startswith("sweep.storage=") else text for text in plan.given]
    return replace(plan, given=given, settings={**plan.settings, "storage": shown(address)})


def space_texts(plan: Plan) -> dict[str, str]:
    """Parameter -> its choices as they were written."""
    return {text.partition("=")[0]: text.partition("=")[2] for text in plan.space_given}


__all__ = ["SweepRun", "alone", "described", "make_directory", "space_texts", "without_credentials"]

"""Starting a run: the store is opened and further ranks are begun while torch is imported; what never began leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from losskit_cli.importing import import_heavy
from losskit_cli.ranks import Ranks
from losskit_cli.rundir import RunSpec, hold, make_run_dir, remove_run_dir
from losskit_cli.session import Tracking

if TYPE_CHECKING:
    from losskit_cli.run import Summary


def start(
    spec: RunSpec,
    *,
    quiet: bool,
    json: bool = False,
    tags: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    made: Callable[[Path], None] = lambda run_dir: None,
) -> Summary:
    """Run ``spec`` in a new directory.

    Args:
        spec: what to run.
        quiet: no progress.
        json: stdout is kept for a JSON object.
        tags: further tags of the MLflow run.
        callbacks: further callbacks of this process's trainer.
        made: told the run's directory before anything is in it.
    """
    if spec.config["trainer"].get("fast_dev_run"):
        spec = spec.with_config({**spec.config, "tracking": {"enabled": False}})
    run_dir = make_run_dir(Path(spec.config["output_dir"]), spec.name)
    made(run_dir)
    alone = hold(run_dir, spec.name)
    try:
        spec.save(run_dir)
        summary = go(spec, run_dir, resume=False, quiet=quiet, json=json, tags=tags, callbacks=callbacks, undo=lambda: remove_run_dir(run_dir))
        if spec.config["trainer"].get("fast_dev_run"):  # it saves nothing
            remove_run_dir(run_dir)
            summary.run_dir = None
        return summary
    finally:
        alone.release()


def go(
    spec: RunSpec,
    run_dir: Path,
    *,
    resume: bool,
    quiet: bool,
    json: bool = False,
    tags: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    undo: Callable[[], None] = lambda: None,
) -> Summary:
    """Run ``spec`` in ``run_dir``, which this process holds. ``undo`` is called if the run never began."""
    tracking = Tracking.off()
    try:
        tracking = Tracking.start(run_dir, spec.config["tracking"], tags or {})
        ranks = Ranks.start(spec.config["trainer"], run_dir, resume=resume)
        import_heavy("losskit_cli.run")
        from losskit_cli.models import load_model_of_run
        from losskit_cli.run import execute

        with own_stdout(json):
            console = Console(stderr=True, quiet=quiet)
            return execute(spec, run_dir, tracking, resume=resume, console=console, load_model=load_model_of_run, ranks=ranks, callbacks=callbacks)
    except BaseException:
        if not tracking.begun:
            tracking.abandon()
            undo()
        raise


@contextmanager
def own_stdout(json: bool) -> Iterator[None]:
    """With ``--json`` nothing but the object goes to stdout, whatever a component of the user's prints."""
    if not json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


__all__ = ["go", "own_stdout", "start"]

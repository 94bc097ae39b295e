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
    summary = go(spec, run_dir, saved=None, quiet=quiet, json=json, tags=tags, callbacks=callbacks)
    if spec.config["trainer"].get("fast_dev_run"):  # it saves nothing
        remove_run_dir(run_dir)
        summary.run_dir = None
    return summary


def go(
    spec: RunSpec,
    run_dir: Path,
    *,
    saved: RunSpec | None,
    quiet: bool,
    json: bool = False,
    tags: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> Summary:
    """Run ``spec`` in ``run_dir``, alone.

    Args:
        saved: what the directory holds already, to be resumed; ``None``: a new run. Where what is asked for cannot be, and so the run
            never begins, the directory stays what it was, or is taken away.

    Raises:
        HeldError: another process runs there.
    """
    alone, tracking = hold(run_dir, spec.name), Tracking.off()
    try:
        if spec is not saved:
            spec.save(run_dir)  # further ranks read it
        tracking = Tracking.start(run_dir, spec.config["tracking"], tags or {})
        ranks = Ranks.start(spec.config["trainer"], run_dir, resume=saved is not None)
        import_heavy("losskit_cli.run")
        from losskit_cli.models import load_model_of_run
        from losskit_cli.run import execute

        with own_stdout(json):
            return execute(
                spec, run_dir, tracking, resume=saved is not None, console=Console(stderr=True, quiet=quiet),
                load_model=load_model_of_run, ranks=ranks, callbacks=callbacks,
            )  # fmt: skip
    except BaseException:
        if not tracking.begun:
            tracking.abandon()
            if saved is None:
                remove_run_dir(run_dir)
            elif spec is not saved:
                saved.save(run_dir)
        raise
    finally:
        alone.release()


@contextmanager
def own_stdout(json: bool) -> Iterator[None]:
    """With ``--json`` nothing but the object goes to stdout, whatever a component of the user's prints."""
    if not json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


__all__ = ["go", "own_stdout", "start"]

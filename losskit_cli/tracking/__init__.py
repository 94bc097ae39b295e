"""Tracking: training appends to a journal, a process beside it sends the journal to MLflow, and stores are read back.

Nothing here imports torch or MLflow; only :mod:`losskit_cli.tracking.writer` (the process beside the training) and
stores other than SQLite do.
"""

from losskit_cli.tracking.contents import config_hash, describe_run, flatten
from losskit_cli.tracking.environment import capture_environment
from losskit_cli.tracking.journal import Journal
from losskit_cli.tracking.process import Outcome, Writer, run_sync, start_writer, sync, unsent_runs
from losskit_cli.tracking.settings import TrackingSettings, require_reachable, resolve_uri
from losskit_cli.tracking.store import RunInfo, Store
from losskit_cli.tracking.ui import run_ui

__all__ = [
    "Journal",
    "Outcome",
    "RunInfo",
    "Store",
    "TrackingSettings",
    "Writer",
    "capture_environment",
    "config_hash",
    "describe_run",
    "flatten",
    "require_reachable",
    "resolve_uri",
    "run_sync",
    "run_ui",
    "start_writer",
    "sync",
    "unsent_runs",
]

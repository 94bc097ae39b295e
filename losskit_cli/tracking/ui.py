"""``losskit ui``: MLflow's own UI on this project's store, on this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from losskit_cli.errors import RunError, UsageError
from losskit_cli.tracking.settings import ARTIFACTS_DIR, is_server, resolve_uri, sqlite_path, unreachable, without_credentials
from losskit_cli.tracking.store import mend_moved

HOST = "127.0.0.1"
DEFAULT_PORT = 5000


def run_ui(*, uri: str | None = None, port: int | None = None, cwd: Path | None = None, say: Callable[[str], object] | None = None) -> int:
    """The command ``losskit ui [--port N]``: serve until Ctrl-C; the exit status.

    Args:
        uri: the store; ``None``: what training in ``cwd`` writes to. A tracking server has a UI of its own: its address is said, nothing is started.
        port: port on 127.0.0.1; ``None`` or 5000: the first free one from 5000 on.
        say: is given each line to show; ``None``: standard error.

    Raises:
        UsageError: no store yet, or the port is taken. RunError: the server is away, or MLflow's UI ended by itself.
    """
    say = say or (lambda line: sys.stderr.write(f"{line}\n"))
    address = resolve_uri(uri, cwd)
    if is_server(address):
        if problem := unreachable(address):
            raise RunError(problem)
        say(f"this project's runs are on a tracking server: {without_credentials(address)}")
        return 0
    path = sqlite_path(address)
    if path is not None:
        if not path.is_file():
            raise UsageError(f"there is no store {path} yet: run `losskit train` here first, or go to the directory that it was run in")
        if moved := mend_moved(path):
            say(f"the store has moved: mended the artifact paths of {', '.join(moved)}")
    chosen = free_port(port)
    process = subprocess.Popen(ui_command(address, chosen), env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true")})
    say(f"MLflow's UI: http://{HOST}:{chosen} (Ctrl-C ends it)")
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to MLflow's processes too
        try:
            process.wait(10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.terminate()
            process.wait()
        return 0
    if code > 0:
        raise RunError(f"MLflow's UI ended with exit status {code}: see above")
    return 0


def ui_command(uri: str, port: int) -> list[str]:
    """The command line that serves ``uri``."""
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    path = sqlite_path(uri)
    return [*command, "--artifacts-destination", str(path.parent / ARTIFACTS_DIR)] if path else command


def free_port(wanted: int | None = None) -> int:
    """``wanted`` if it is free; with ``None`` or 5000 the first free port from 5000 on.

    Raises:
        UsageError: ``wanted`` is taken.
    """
    if wanted not in (None, DEFAULT_PORT):
        if not 1 <= wanted <= 65535:
            raise UsageError(f"--port must be between 1 and 65535, but got {wanted}")
        if not _free(wanted):
            raise UsageError(f"port {wanted} of {HOST} is taken: choose another, or leave --port out")
        return wanted
    found = next((port for port in range(DEFAULT_PORT, DEFAULT_PORT + 100) if _free(port)), None)
    if found is None:
        raise UsageError(f"no free port between {DEFAULT_PORT} and {DEFAULT_PORT + 99}: name one with --port")
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


__all__ = ["free_port", "run_ui", "ui_command"]

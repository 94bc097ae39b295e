"""``losskit ui``: MLflow's own UI on this project's store, on this machine only; and how any such page is served until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from losskit_cli.errors import RunError, UsageError
from losskit_cli.signals import as_interrupts, held
from losskit_cli.tracking.settings import ARTIFACTS_DIR, is_server, resolve_uri, sqlite_path, unreachable, without_credentials
from losskit_cli.tracking.store import mend_moved

HOST = "127.0.0.1"
DEFAULT_PORT = 5000
END_SECONDS = 5.0
# one person looks at it: no workers for scheduled jobs, which take as long to start as the server itself
SERVER_DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def run_ui(*, uri: str | None = None, port: int | None = None, cwd: Path | None = None, say: Callable[[str], object] | None = None) -> int:
    """The command ``losskit ui [--port N]``: serve until Ctrl-C (or SIGTERM); the exit status.

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
    return serve("MLflow's UI", ui_command(address, chosen), chosen, page="", health="/health", environment={**SERVER_DEFAULTS, **os.environ}, say=say)


def serve(
    what: str,
    command: Sequence[str],
    port: int,
    *,
    page: str,
    health: str,
    environment: Mapping[str, str],
    say: Callable[[str], object],
) -> int:
    """Run a server of web pages on this machine until Ctrl-C, SIGTERM or the terminal's end; then end it with all that it has started. The exit status: 0.

    Args:
        what: how it is called: ``MLflow's UI``.
        command: its command line; it listens on ``port`` of 127.0.0.1.
        page: the path to look at.
        health: a path that answers as soon as it is ready.
        environment: all of its variables.
        say: is given each line to show.

    Raises:
        RunError: it ended by itself.
    """
    where = f"http://{HOST}:{port}"
    say(f"starting {what} on {where} …")
    try:
        with as_interrupts():
            server = None
            try:
                # a process group of its own: a server starts further processes, and all of them must end with this one, however it is ended
                with held():
                    server = subprocess.Popen(command, env=environment, start_new_session=True)
                if _answers(f"{where}{health}", server):
                    say(f"{what}: {where}{page} (Ctrl-C ends it)")
                code = server.wait()
            finally:
                if server is not None:
                    _end(server)
    except KeyboardInterrupt:
        return 0
    raise RunError(f"{what} ended with exit status {code}: see above")


def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; ``False`` if it ends before."""
    opener = build_opener(ProxyHandler({}))  # a proxy knows nothing of this machine's own ports
    while server.poll() is None:
        try:
            opener.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # the group is gone (macOS says so with the latter)
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)


def ui_command(uri: str, port: int) -> list[str]:
    """The command line that serves ``uri``."""
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port), "--workers", "1"]
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


__all__ = ["HOST", "free_port", "run_ui", "serve", "ui_command"]

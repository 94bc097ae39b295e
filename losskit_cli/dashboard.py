"""``losskit ui --sweep NAME``: optuna-dashboard on the storage of a sweep, on this machine only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from losskit_cli.errors import RunError
from losskit_cli.studies import existing_storage, existing_study
from losskit_cli.tracking.ui import HOST, free_port, serve

ADDRESS = "LOSSKIT_DASHBOARD_STORAGE"  # in the environment: a command line, and so a password in it, can be read by everybody on the machine


def run_dashboard(name: str, *, storage: str | None = None, port: int | None = None, say: Callable[[str], object] | None = None) -> int:
    """The command ``losskit ui --sweep NAME [--port N] [--storage ADDRESS]``: serve until Ctrl-C (or SIGTERM); the exit status.

    Args:
        name: of the sweep.
        storage: where it is kept; ``None``: ``sweeps.db`` in the working directory.
        port: port on 127.0.0.1; ``None`` or 5000: the first free one from 5000 on.
        say: is given each line to show; ``None``: standard error.

    Raises:
        UsageError: no such storage or sweep, or the port is taken. RunError: optuna-dashboard is not installed or ended by itself.
    """
    from importlib.util import find_spec

    if find_spec("optuna_dashboard") is None:
        raise RunError("losskit ui --sweep needs the package optuna-dashboard: pip install optuna-dashboard")
    address, opened = existing_storage(storage)
    study = existing_study(name, opened)
    number = opened.get_study_id_from_name(study.study_name)
    chosen = free_port(port)
    return serve(
        "optuna-dashboard",
        dashboard_command(chosen),
        chosen,
        page=f"/dashboard/studies/{number}",
        health="/dashboard",
        environment={**os.environ, ADDRESS: address},
        say=say or (lambda line: sys.stderr.write(f"{line}\n")),
    )


def dashboard_command(port: int) -> list[str]:
    """The command line that serves the storage named in the environment."""
    return [sys.executable, "-P", "-m", "losskit_cli.dashboard", str(port)]


def main(port: int) -> None:
    """Serve the storage in the variable :data:`ADDRESS`. It is opened as workers open it, so looking on never holds them up or meets a half-made state."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    import optuna
    from optuna_dashboard import wsgi

    from sweeps.storage import open_storage

    class Server(ThreadingMixIn, WSGIServer):
        """A browser asks for several things at once, and some take long."""

        daemon_threads = True

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads a line for every request."""

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_server(HOST, port, wsgi(open_storage(os.environ[ADDRESS])), server_class=Server, handler_class=Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))


__all__ = ["dashboard_command", "main", "run_dashboard"]

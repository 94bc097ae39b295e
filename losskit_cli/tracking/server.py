"""Writers for many runs: one process imports MLflow once and is forked for every run of a sweep, instead of an import for each.

    with WriterServer.start():                 # from here on writers of this process and of its children are forked by the server
        ...

Where no server runs, or it is gone, a writer is a process of its own, as it is for a single run.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Self

ADDRESS = "LOSSKIT_WRITERS"
"""Environment variable that names the server's socket."""
READ_SECONDS = 5.0


class ServedProcess:
    """A writer that the server has forked: as much of :class:`subprocess.Popen` as is needed of a writer.

    Args:
        connection: to the server, which says on it how the writer ended.
        stdin: the writer's standard input.
    """

    def __init__(self, connection: socket.socket, stdin: IO[bytes]) -> None:
        self.stdin: IO[bytes] | None = stdin
        self.returncode: int | None = None
        self._connection, self._said = connection, b""

    def poll(self) -> int | None:
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The writer's exit code; as killed if the server is gone and cannot tell.

        Raises:
            subprocess.TimeoutExpired: it has not ended within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                raise subprocess.TimeoutExpired("writer", timeout or 0.0)
            data = self._connection.recv(64)
            self._said += data
            if not data:
                self._connection.close()
                self.returncode = int(self._said) if self._said else -signal.SIGKILL
        return self.returncode


def fork_writer(run_dir: Path, log: IO[bytes]) -> ServedProcess | None:
    """Have the server fork a writer for ``run_dir``; ``None``: there is no server, or it does not answer."""
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        theirs, ours = os.pipe()
        try:
            socket.send_fds(connection, [str(run_dir).encode()], [theirs, log.fileno()])
        finally:
            os.close(theirs)
    except OSError:
        connection.close()
        return None  # the pipe's other end is closed with it: nobody holds it
    return ServedProcess(connection, os.fdopen(ours, "wb"))


class WriterServer:
    """The server's process, as the one who started it holds it. It ends when this one does, after the writers that are at work."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder
        self._before = os.environ.get(ADDRESS)

    @classmethod
    def start(cls) -> Self:
        """Start it; importing MLflow passes in the background, and writers asked for meanwhile wait for it."""
        folder = Path(tempfile.mkdtemp(prefix="losskit-"))  # a socket's path must be short
        address = str(folder / "writers")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen(64)
        from losskit_cli.tracking.process import own_command

        words, environment = own_command("losskit_cli.tracking", str(listening.fileno()))
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, pass_fds=[listening.fileno()], start_new_session=True
        )
        listening.close()
        return cls(process, folder)

    def __enter__(self) -> Self:
        os.environ[ADDRESS] = str(self.folder / "writers")
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.pop(ADDRESS, None)
        if self._before is not None:
            os.environ[ADDRESS] = self._before
        assert self.process.stdin is not None
        self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)


# -- the server's side -------------------------------------------------------------------------------------------------------
def serve(listening: socket.socket) -> None:
    """Fork a writer for every connection, and tell each how its writer ended, until standard input closes and the last writer has ended."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.set_wakeup_fd(wake_write)
    writers: dict[int, socket.socket] = {}
    watched: list[int | socket.socket] = [listening, sys.stdin.fileno(), wake_read]
    while writers or listening in watched:
        ready = select.select(watched, [], [])[0]
        if sys.stdin.fileno() in ready:
            watched = [wake_read]
            listening.close()
        elif listening in ready:
            connection = listening.accept()[0]
            child = _fork(connection, [listening, *writers.values()], [wake_read, wake_write])
            if child is not None:
                writers[child] = connection
        if wake_read in ready:
            os.read(wake_read, 4096)
        for child in list(writers):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                with contextlib.suppress(OSError):  # nobody asks any more
                    writers[child].sendall(str(os.waitstatus_to_exitcode(status)).encode())
                writers.pop(child).close()


def _fork(connection: socket.socket, others: list[socket.socket], pipes: list[int]) -> int | None:
    connection.settimeout(READ_SECONDS)
    try:
        text, descriptors, _, _ = socket.recv_fds(connection, 65536, 2)
    except OSError:
        connection.close()
        return None
    if len(descriptors) != 2:
        connection.close()
        return None
    child = os.fork()
    if child:
        for descriptor in descriptors:
            os.close(descriptor)
        return child
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        stdin, log = descriptors
        for source, target in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for descriptor in [stdin, log, *pipes]:
            os.close(descriptor)
        for other in [connection, *others]:
            other.close()
        from losskit_cli.tracking.writer import main as write

        code = write([text.decode()])
    finally:
        os._exit(code)


def main(descriptor: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from losskit_cli.tracking import plots
    from losskit_cli.tracking.environment import installed_packages
    from losskit_cli.tracking.mlflow_run import preload
    from losskit_cli.tracking.writer import set_defaults

    set_defaults()
    gc.disable()
    preload()
    plots.preload()
    installed_packages()
    gc.freeze()
    gc.enable()
    serve(socket.socket(fileno=descriptor))


__all__ = ["ADDRESS", "ServedProcess", "WriterServer", "fork_writer", "main"]

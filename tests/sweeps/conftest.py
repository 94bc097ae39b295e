"""Storages to test with: one of every kind, PostgreSQL among them, each in a place of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KINDS = ("sqlite", "postgresql", "journal", "grpc", "grpc-journal")
NO_POSTGRESQL = "PostgreSQL is not installed here (Debian: apt-get install postgresql), so the storage was not tested with it"


def find_postgresql() -> Path | None:
    """The directory of PostgreSQL's programs; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0)
    return debian[-1].parent if debian else None


class PostgresServer:
    """A private server on a free port of 127.0.0.1, with its data in a temporary directory."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.programs, self.directory = programs, directory
        # PostgreSQL refuses to run as root
        self.user = next((name for name in ("postgres", "nobody") if _exists(name)), None) if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(directory, self.user)
        secret = directory / "password"
        secret.write_text("secret-word\n")
        if self.user:
            shutil.chown(secret, self.user)
        self._run("initdb", "-D", str(directory / "data"), "-U", "losskit", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "-N", "--no-locale")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = ["-p", str(self.port), "-k", str(directory), "-h", "127.0.0.1", "-c", "fsync=off", "-c", "max_connections=60"]
        with (directory / "log").open("wb") as log:
            command = [str(programs / "postgres"), "-D", str(directory / "data"), *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self.user, group=self._group(), extra_groups=[] if self.user else None)
        self._wait()

    def url(self, database: str, password: str = "secret-word") -> str:
        return f"postgresql://losskit:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of an empty database of its own."""
        import psycopg

        name = f"sweep_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # its "fast" shutdown: connections are closed
        self.process.wait(timeout=20)

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text()}") from None
                time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        as_user: dict[str, Any] = {"user": self.user, "group": self._group(), "extra_groups": []} if self.user else {}
        done = subprocess.run([str(self.programs / program), *arguments], **as_user, cwd=self.directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _group(self) -> int | None:
        return pwd.getpwnam(self.user).pw_gid if self.user else None


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this session; where it is not installed, the test says so instead of running."""
    programs = find_postgresql()
    if programs is None:
        pytest.skip(NO_POSTGRESQL)
    # not pytest's own directory: it is closed to the user that PostgreSQL runs as; and a socket's path must be short
    directory = Path(tempfile.mkdtemp(prefix="losskit-pg-", dir="/tmp" if Path("/tmp").is_dir() else None))
    directory.chmod(0o755)
    server = PostgresServer(programs, directory)
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def new_storage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Make an empty storage of a kind of ``KINDS`` and give its address."""
    from sweeps.storage import start_server

    servers = []

    def make(kind: str) -> str:
        if kind == "postgresql":
            return request.getfixturevalue("postgres_server").new_database()
        if kind.startswith("grpc"):
            behind = f"journal:{tmp_path / 'behind.journal'}" if kind == "grpc-journal" else f"sqlite:///{tmp_path / 'behind.db'}"
            server, address = start_server(behind, port=0)
            servers.append(server)
            return address
        return f"journal:{tmp_path / 'sweeps.journal'}" if kind == "journal" else f"sqlite:///{tmp_path / 'sweeps.db'}"

    yield make
    for server in servers:
        server.stop(grace=0.5).wait()


@pytest.fixture(params=KINDS)
def address(request: pytest.FixtureRequest, new_storage: Callable[[str], str]) -> str:
    """The address of an empty storage, of every kind in turn."""
    return new_storage(request.param)

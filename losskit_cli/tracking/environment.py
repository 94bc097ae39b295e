"""What a run was made with: Python, platform, packages, and the code as git knows it. Quick, and never in a run's way."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from losskit_cli.tracking.settings import without_credentials

DIFF_LIMIT = 1_000_000
UNTRACKED_SUFFIXES = (".py", ".yaml", ".yml", ".toml")
GIT_SECONDS = 5.0


def capture_environment(cwd: Path | None = None, *, code: bool = True) -> dict[str, Any]:
    """Python, platform, package versions and, if ``cwd`` is in a git repository, its revision and uncommitted changes.

    Returns:
        ``python``, ``executable``, ``platform``, ``cpus``, ``packages`` (name -> version) and ``git``: ``None``, or
        ``commit branch remote dirty diff diff_cut`` where ``diff`` also holds small untracked Python and config files.
    """
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(installed_packages()),
        "git": capture_code(cwd or Path.cwd()) if code else None,
    }


@cache
def installed_packages() -> dict[str, str]:
    """Name -> version of what is installed, by name. Read once by a process, which what is installed outlives."""
    described = [d.metadata for d in metadata.distributions()]
    packages = {str(m["Name"]): str(m["Version"]) for m in described if m["Name"]}
    return dict(sorted(packages.items(), key=lambda item: item[0].lower()))


def capture_code(cwd: Path) -> dict[str, Any] | None:
    """The git state of ``cwd``; ``None`` outside a repository, or where git is missing or too slow."""
    top = _git(cwd, "rev-parse", "--show-toplevel").strip()
    if not top:
        return None
    root = Path(top)
    commit = _git(root, "rev-parse", "--verify", "-q", "HEAD").strip()
    diff = _git(root, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD") if commit else ""
    for name in _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0"):
        if len(diff) >= DIFF_LIMIT:
            break
        if name.endswith(UNTRACKED_SUFFIXES):
            diff += _as_new_file(root / name, name)
    return {
        "commit": commit or None,
        "branch": _git(root, "symbolic-ref", "--short", "-q", "HEAD").strip() or None,
        "remote": without_credentials(_git(root, "config", "--get", "remote.origin.url").strip()) or None,
        "dirty": bool(diff),
        "diff": diff[:DIFF_LIMIT],
        "diff_cut": len(diff) >= DIFF_LIMIT,
    }


def _as_new_file(path: Path, name: str) -> str:
    """A patch that makes the file, as ``git diff`` would print it."""
    try:
        if path.stat().st_size > DIFF_LIMIT:
            return f"# {name}: untracked, too large to keep here\n"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        return f"# {name}: untracked, cannot be read: {error}\n"
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
    if not lines:
        return head
    tail = "" if lines[-1].endswith("\n") else "\n\\ No newline at end of file\n"
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{''.join('+' + line for line in lines)}{tail}"


def _git(cwd: Path, *arguments: str) -> str:
    """What git prints, up to the limit; an empty string if it fails or takes too long."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", *arguments]
    try:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    assert process.stdout is not None
    timer = threading.Timer(GIT_SECONDS, process.kill)
    timer.start()
    with process.stdout as pipe:
        output = pipe.read(DIFF_LIMIT)
    if len(output) == DIFF_LIMIT:
        process.kill()
    code = process.wait()
    timer.cancel()
    return output.decode("utf-8", "replace") if code == 0 or len(output) == DIFF_LIMIT else ""


def packages_text(environment: dict[str, Any]) -> str:
    """Package versions as a requirements file."""
    return "".join(f"{name}=={version}\n" for name, version in environment["packages"].items())


__all__ = ["capture_code", "capture_environment", "packages_text"]

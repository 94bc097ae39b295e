"""The console script: decides what must be imported at all, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Threads that wait for work must sleep, not spin: on a machine that does anything else beside training, spinning makes steps of
# small models several times slower (measured: 55 s against 8 s for the default run on two busy cores).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    """Entry point of ``losskit`` and ``python -m losskit_cli``."""
    if sys.argv[1:2] == ["__complete"]:  # shell completion must answer before Typer could even be imported
        from losskit_cli.completion import main as complete

        complete(sys.argv[2:])
        return
    from losskit_cli.app import run

    sys.path.append(str(Path.cwd()))  # a package of the user's beside their config; last, so that it stands in for nothing else
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

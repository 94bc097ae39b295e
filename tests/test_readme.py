"""What the README and the docs tell people to type works. Training commands and sweeps are dry-run, the others are run as they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

PAGES = ("README.md", "docs/tasks.md", "docs/sweeps.md", "docs/reproduce.md", "docs/losses.md")
NEEDS_A_RUN_OR_STORE = ("resume", "rerun", "diff", "eval", "predict", "compare", "sync", "ui", "init", "completion", "doctor", "worker", "report", "storage")
NEEDS_A_RUN_OR_STORE += ("predict-loss",)
NEEDS_A_SWEEP = ("--resume", "--status", "--stop")


def commands() -> Iterator[str]:
    """Every ``losskit …`` line of the pages' bash blocks, and every one in a table's backticks, once."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            found |= dict.fromkeys(line.split(" #")[0].strip() for line in block.splitlines() if line.startswith("losskit "))
        found |= dict.fromkeys(re.findall(r"^\|.*?`(losskit [^`]+)`", text, re.MULTILINE))
    yield from found


def needs_nothing(text: str) -> bool:
    """Whether a command runs in an empty directory: it is about no run and no sweep. (Those of docs/schedules.md are run in their order, elsewhere.)"""
    return text.split()[1] not in NEEDS_A_RUN_OR_STORE and not set(NEEDS_A_SWEEP) & set(text.split()) and "=RUN" not in text


@pytest.mark.parametrize("text", [c for c in commands() if needs_nothing(c)])
def test_a_command_of_the_readme(losskit: Callable[..., Any], workdir: Path, text: str) -> None:
    arguments = shlex.split(text)[1:]
    if arguments[0] == "train" and not {"--multirun", "-m"} & set(arguments):
        arguments = [*arguments, *(["--dry-run"] if "--dry-run" not in arguments else []), "tracking=none"]
    elif arguments[0] == "train":
        arguments = [*arguments, "trainer.fast_dev_run=true"]
    elif arguments[0] in ("sweep", "reproduce") and "--list" not in arguments:
        arguments = [*arguments, *(["--dry-run"] if "--dry-run" not in arguments else [])]
    result = losskit(*arguments)
    assert result.code == 0, result.err
    assert result.out.strip() or "--multirun" in arguments


def test_the_two_commands_that_ci_runs_are_marked() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in ("train", "test"):
        assert re.search(rf"^<!-- ci: {name} -->\n```bash\n.+\n```$", text, re.MULTILINE)


def test_every_command_has_help_with_an_example_or_an_argument(losskit: Callable[..., Any]) -> None:
    from losskit_cli.app import app

    names = [command.name or command.callback.__name__.rstrip("_") for command in app.registered_commands if command.callback and not command.hidden]
    for name in names:
        result = losskit(name, "--help")
        assert result.code == 0, name
        assert len(result.out.splitlines()) > 5, name

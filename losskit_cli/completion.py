"""Shell completion from files alone: commands, flags, groups, options, keys, values and run names.

The shells' scripts call ``losskit __complete SHELL …``, which ends up in :func:`main` before Typer could be imported: a TAB
costs the interpreter's start and a few small files. :func:`complete` knows nothing of shells; :func:`main` speaks their dialects.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from losskit_cli.catalogue import LIST_GROUPS, Catalogue, Option, as_text, override_of
from losskit_cli.errors import LosskitError, UsageError
from losskit_cli.paths import search_path

SHELLS = ("bash", "zsh", "fish")
FIXED = {
    "cfg": ("job", "hydra", "all"),
    "checkpoint": ("best", "last"),
    "split": ("test", "val", "train", "all"),
    "law": ("multi_power", "annealing", "power"),
    "shell": SHELLS,
}


class Candidate(NamedTuple):
    """A word that could stand at the cursor; ``open_ended``: it goes on (``loss=``), so no blank follows."""

    value: str
    help: str = ""
    open_ended: bool = False


class Command(NamedTuple):
    """What completion must know of a command: its help, its words (what each positional argument is) and its flags.

    A flag's value is what kind of word follows it: nothing for a switch.
    """

    help: str
    words: tuple[str, ...]
    flags: Mapping[str, str]


CONFIG = {"--config-dir": "dir", "-cd": "dir"}
PRIMARY = {**CONFIG, "--config-name": "primary", "-cn": "primary"}
JSON = {"--json": ""}
QUIET = {"--quiet": "", "-q": ""}
TRAIN = Command(
    "train, test and track one experiment",
    ("override...",),
    {**PRIMARY, "--dry-run": "", "--multirun": "", "-m": "", "--cfg": "cfg", "--resolve": "", **JSON, **QUIET},
)
COMMANDS = {
    "train": TRAIN,
    "fit": TRAIN,
    "config": Command("print the composed config", ("override...",), {**PRIMARY, "--origins": "", "--resolve": "", **JSON}),
    "list": Command("list what can be selected", ("group",), {"--task": "task", "--search": "text", **CONFIG, **JSON}),
    "show": Command("explain one option", ("option...",), {**CONFIG, **JSON}),
    "plot": Command("draw a schedule, or a loss and its gradient", ("drawn...",), {"--output": "file", "-o": "file", "--steps": "text", **CONFIG, **JSON}),
    "lr-range": Command(
        "which learning rates an experiment bears",
        ("override...",),
        {**PRIMARY, "--steps": "text", "--min": "text", "--max": "text", "--output": "file", "-o": "file", **JSON, **QUIET},
    ),
    "predict-loss": Command(
        "the loss that a schedule would give, from runs with others",
        ("run or override...",),
        {"--law": "law", "--metric": "metric", "--steps": "text", "--skip": "text", "--level": "text", "--optimise": "", "--save-schedule": "file",
         "--save": "file", "--load": "file", "--output": "file", "-o": "file", **CONFIG, **JSON},
    ),
    "resume": Command("go on with a stopped run", ("run", "override..."), {"--last": "", **JSON, **QUIET}),
    "rerun": Command("run again from what a run saved", ("run", "override..."), {"--dry-run": "", **JSON, **QUIET}),
    "diff": Command("what differs between two runs", ("run", "run"), JSON),
    "eval": Command("test a finished run's weights", ("run", "override..."), {"--checkpoint": "checkpoint", "--split": "split", **JSON}),
    "predict": Command(
        "predict new data with a finished run's weights",
        ("run",),
        {"--input": "file", "-i": "file", "--output": "file", "-o": "file", "--checkpoint": "checkpoint", **JSON},
    ),
    "compare": Command(
        "the runs of the store as a table",
        (),
        {"--metric": "metric", "--group-by": "groups", "--over": "groups", "--reference": "text", "--sweep": "text", "--filter": "text", "--limit": "text",
         "--plot": "file", **JSON, "--csv": "", "--markdown": ""},
    ),
    "sweep": Command(
        "search, or run a grid: overrides with choices are the space",
        ("override...",),
        {**PRIMARY, "--resume": "text", "--status": "text", "--stop": "text", "--watch": "", "--force": "", "--storage": "text", "--dry-run": "",
         **JSON, **QUIET},
    ),
    "reproduce": Command(
        "run what a paper claims, and see whether it holds here",
        ("claim or override...",),
        {**PRIMARY, "--all": "", "--list": "", "--seeds": "text", "--again": "", "--output": "file", "-o": "file", "--dry-run": "", **JSON, **QUIET},
    ),
    "worker": Command("one more worker for a sweep", ("text",), {"--storage": "text"}),
    "report": Command("one page about a sweep", ("text",), {"--output": "file", "-o": "file", "--storage": "text"}),
    "storage": Command("where sweeps are kept, for machines that share one", (), {}),
    "ui": Command("MLflow's UI on this directory's store", (), {"--port": "text", "--sweep": "text", "--storage": "text"}),
    "sync": Command("send what runs kept while the tracking server was away", ("run...",), {"--uri": "text"}),
    "doctor": Command("versions, devices, store, what is wrong and how to mend it", (), JSON),
    "init": Command("start a project of your own", ("text",), {}),
    "completion": Command("print the completion script", ("shell",), {}),
    "version": Command("losskit's version", (), JSON),
}
SUBCOMMANDS = {
    "storage": {
        "serve": Command("serve a storage to workers that cannot reach it themselves", (), {"--storage": "text", "--host": "text", "--port": "text"}),
    },
}
HIDDEN = ("fit",)
COMMON_FLAGS = {"--help": "", "-h": "", "--traceback": ""}


def run_completion(shell: str) -> None:
    """Print the script that teaches ``shell`` to complete losskit: ``eval "$(losskit completion bash)"``.

    Raises:
        UsageError: another shell than bash, zsh and fish.
    """
    if shell not in SHELLS:
        raise UsageError(f"completion knows {', '.join(SHELLS)}, but got {shell!r}")
    sys.stdout.write(_script(shell))


def main(arguments: list[str]) -> None:
    """The shells' entry: print candidates for ``SHELL …``. A broken file or store completes nothing; it never disturbs the command line."""
    shell, *rest = arguments or [""]
    try:
        if shell == "bash":
            words, kept, quoted = split_line(*rest[:3])
            candidates = [f"{c.value[kept:]}{'' if c.open_ended or quoted else ' '}" for c in complete(words)]
        else:
            found = complete([*rest[:-1], rest[-1].lstrip("'\"")] if rest else [""])
            candidates = [_with_help(c, shell) for c in (_closed(found) if shell == "fish" else found)]
    except (LosskitError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return
    sys.stdout.write("".join(f"{c}\n" for c in candidates))


def complete(words: list[str]) -> list[Candidate]:
    """Candidates for the last of ``words``, which are the command line without the program's name."""
    *earlier, current = words or [""]
    names = [w for w in earlier if not w.startswith("-")]
    if not names:
        shown = [Candidate(name, c.help) for name, c in COMMANDS.items() if name.startswith(current) and name not in HIDDEN]
        return shown or [Candidate(flag) for flag in COMMON_FLAGS if flag.startswith(current) and current]
    command, last = COMMANDS.get(names[0]), names[0]
    if names[0] in SUBCOMMANDS:
        below = SUBCOMMANDS[names[0]]
        if not names[1:] and not current.startswith("-"):
            return [Candidate(name, c.help) for name, c in below.items() if name.startswith(current)]
        command, last = (below.get(names[1]), names[1]) if names[1:] else (command, last)
    if command is None:
        return []
    line = Line(command, earlier[earlier.index(last) + 1 :])
    return [c for c in line.candidates(current) if c.value.startswith(current)]


class Line:
    """A command line up to the word at the cursor: flags taken apart from positional words."""

    def __init__(self, command: Command, words: list[str]) -> None:
        self.command = command
        self.flags = {**command.flags, **COMMON_FLAGS}
        self.positional: list[str] = []
        self.config_dirs: list[str] = []
        self.primary_name = "train"
        self.waiting = ""  # the flag whose value the cursor is at
        self.given: set[str] = set()
        for word in words:
            if self.waiting:
                self._take(self.waiting, word)
                self.waiting = ""
            elif word.startswith("-") and (flag := word.partition("=")[0]) in self.flags:
                self.given.add(flag)
                if self.flags[flag] and "=" in word:
                    self._take(flag, word.partition("=")[2])
                elif self.flags[flag]:
                    self.waiting = flag
            else:
                self.positional.append(word)

    def _take(self, flag: str, value: str) -> None:
        if self.flags[flag] == "dir":
            self.config_dirs.append(os.path.expanduser(value))  # noqa: PTH111
        elif self.flags[flag] == "primary":
            self.primary_name = value

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(search_path(self.config_dirs))

    def candidates(self, current: str) -> Iterable[Candidate]:
        if self.waiting:
            return self.of_kind(self.flags[self.waiting], current)
        if current.startswith("-"):
            flag, equals, value = current.partition("=")
            if equals and self.flags.get(flag):
                return [c._replace(value=f"{flag}={c.value}") for c in self.of_kind(self.flags[flag], value)]
            repeatable = ("--config-dir", "--metric")
            shortest = 2 if current == "-" else 1
            return [Candidate(f) for f in self.flags if (f not in self.given or f in repeatable) and len(f) > shortest]
        kinds = self.command.words
        position = len(self.positional)
        kind = kinds[position] if position < len(kinds) else kinds[-1] if kinds and kinds[-1].endswith("...") else ""
        return self.of_kind(kind.removesuffix("..."), current)

    def of_kind(self, kind: str, current: str) -> Iterable[Candidate]:
        """Candidates for a kind of word: an override, a run, a file …"""
        if kind == "override":
            return Overrides(self.catalogue, self.positional, self.primary_name).candidates(current)
        if kind in ("drawn", "run or override"):
            overrides = self.of_kind("override", current)
            at = "schedule=" if kind == "drawn" else ""
            named = runs(current.removeprefix(at)) if current.startswith(at) and (at or "=" not in current) else []
            return [*overrides, *(c._replace(value=at + c.value) for c in named)]
        if kind == "claim or override":
            named = [] if "=" in current else [Candidate(o.name, o.description) for o in self.catalogue.options("experiment") if "\nclaim:" in o.text]
            return [*named, *self.of_kind("override", current)]
        if kind == "option":
            return self._options(current)
        if kind == "group":
            return [Candidate(group) for group in self.catalogue.groups()]
        if kind == "groups":
            before = current[: current.rfind(",") + 1]
            return [Candidate(before + group) for group in self.catalogue.groups() if group not in before.split(",")]
        if kind == "task":
            return [Candidate(o.name, o.description) for o in self.catalogue.options("task")]
        if kind == "run":
            return runs(current)
        if kind == "metric":
            return [Candidate(name) for (name,) in _store_rows("SELECT DISTINCT key FROM latest_metrics ORDER BY key")]
        if kind in ("file", "dir"):
            return files(current, directories_only=kind == "dir")
        if kind == "primary":
            return [Candidate(name) for name in self._primaries()]
        fixed = FIXED.get(kind, ())
        return [*map(Candidate, fixed), *(files(current) if kind == "checkpoint" and current else [])]

    def _options(self, current: str) -> Iterator[Candidate]:
        if len(self.positional) == 1 and self.catalogue.is_group(self.positional[0]):
            yield from (Candidate(o.name, o.description) for o in self.catalogue.options(self.positional[0]))
        if self.positional:
            return
        group, equals, _ = current.partition("=")
        if equals:
            yield from (Candidate(f"{group}={o.name}", o.description) for o in self.catalogue.options(group))
        else:
            yield from (Candidate(f"{g}=", "", True) for g in self.catalogue.groups())

    def _primaries(self) -> list[str]:
        names = {f.removesuffix(".yaml") for root in self.catalogue.config_dirs if root.is_dir() for f in os.listdir(root) if f.endswith(".yaml")}  # noqa: PTH208
        return sorted(names)


class Overrides:
    """Completes one override, knowing the config tree and the overrides before it.

    Args:
        catalogue: the config trees.
        earlier: the overrides already on the line; they decide which option's keys are there.
        primary: the primary config.
    """

    def __init__(self, catalogue: Catalogue, earlier: Iterable[str], primary: str = "train") -> None:
        self.catalogue = catalogue
        self.primary = catalogue.primary(primary)
        self.earlier = [override for word in earlier if (override := parse_override(word))]

    def candidates(self, current: str) -> Iterable[Candidate]:
        match = re.match(r"(\+\+|\+|~)?([^=]*)(=)?(.*)$", current, re.DOTALL)
        assert match is not None
        prefix, key, equals, value = match.group(1) or "", match.group(2), match.group(3), match.group(4)
        found = self.values(key, value) if equals else self.keys(key, prefix)
        head = f"{prefix}{key}=" if equals else prefix
        return [c._replace(value=f"{head}{c.value}") for c in found]

    # -- left of the equals sign ----------------------------------------------------------------------------------------
    def keys(self, key: str, prefix: str = "") -> Iterator[Candidate]:
        end, goes_on = ("", False) if prefix == "~" else ("=", True)
        group, at, package = key.partition("@")
        if at:
            yield from self.packages(group, package) if self.catalogue.is_group(group) else ()
            return
        if ".." in key:
            return
        if "." not in key:
            for name in self.catalogue.groups():
                if prefix != "~" or name not in ("experiment", "debug", "local"):
                    yield Candidate(f"{name}{end}", "", goes_on)
                if name == key and prefix != "~":  # the whole name is typed: now its keys, and placing it elsewhere, come into question
                    if any(self.tree_below(name)):
                        yield Candidate(f"{name}.", "keys", True)
                    if prefix == "+":
                        yield Candidate(f"{name}@", "another one, placed elsewhere: +loss@auxiliary.kd=kd", True)
            root = self.primary.values if self.primary else {}
            for name, default in root.items():
                if not self.catalogue.is_group(name):
                    container = isinstance(default, dict)
                    yield Candidate(name + ("." if container and prefix != "~" else end), _shown(default), goes_on)
            return
        parent = key.rpartition(".")[0]
        node = self.tree_below(parent)
        shown = [(name, value) for name, value in node.items() if name != "_target_"]
        if prefix != "+":
            for name, value in shown:
                nested = isinstance(value, dict) and value and prefix != "~"
                yield Candidate(f"{parent}.{name}{'.' if nested else end}", _shown(value), goes_on)
            if prefix == "~" or any(f"{parent}.{name}".startswith(key) for name, _ in shown):
                return
        for parameter in self.parameters(parent):  # what the class takes and its file does not list
            if parameter.name not in node:
                yield Candidate(f"{parent}.{parameter.name}=", parameter.default or "", True)

    def packages(self, group: str, package: str) -> Iterator[Candidate]:
        """``loss@auxiliary.kd=``: an option of a group placed elsewhere in the config."""
        if "." not in package:
            places = [name for name, value in (self.primary.values if self.primary else {}).items() if isinstance(value, dict)]
            yield from (Candidate(f"{group}@{place}.", "", True) for place in places if place not in LIST_GROUPS or place == group)
            return
        place = package.rpartition(".")[0]
        yield from (Candidate(f"{group}@{place}.{o.name}=", o.description, True) for o in self.catalogue.options(group))

    # -- right of it ------------------------------------------------------------------------------------------------------
    def values(self, key: str, value: str) -> Iterator[Candidate]:
        group, _, package = key.partition("@")
        quote = value[:1] if value[:1] in ("'", '"') else ""
        value = value.removeprefix(quote)
        if self.catalogue.is_group(group):
            yield from (c._replace(value=quote + c.value) for c in self.options(group, value, preferred=package.rpartition(".")[2]))
            return
        default = self.value_of(key)
        before = value[: value.rfind(",") + 1]
        parent, _, name = key.rpartition(".")
        parameter = next((p for p in self.parameters(parent) if p.name == name), None)
        choices = list(parameter.choices) if parameter else []
        if isinstance(default, bool) or (parameter and parameter.default in ("True", "False")):
            choices = ["true", "false"]
        if choices:
            yield from (Candidate(f"{quote}{before}{choice}") for choice in choices if choice not in before.split(","))
        elif key in ("schedule.run", "task.teacher_run", "task.predictor_run"):
            yield from (c._replace(value=quote + c.value) for c in runs(value))
        elif name in ("path", "ckpt_path", "dir", "directory", "root", "output_dir") or "/" in value:
            yield from (c._replace(value=quote + c.value) for c in files(value))
        elif default is not None and not isinstance(default, dict) and "${" not in str(default):
            yield Candidate(f"{quote}{as_text(default)}", "as it is", True)

    def options(self, group: str, value: str, preferred: str = "") -> Iterator[Candidate]:
        """Options of a group; of a list (``[l1,``) and of a sweep's choices (``ce,``) the next one."""
        options = sorted(self.catalogue.options(group), key=lambda o: (o.name != preferred, o.name))
        inside = value.startswith("[")
        if group in LIST_GROUPS and not value:
            yield from (Candidate(f"[{o.name}", o.description, True) for o in options)
            return
        before = value[: value.rfind(",") + 1] or ("[" if inside else "")
        taken = set(before.lstrip("[").split(","))
        last = value[len(before) :]
        for option in options:
            if option.name in taken:
                continue
            if inside and option.name == last:
                yield Candidate(f"{before}{last}]")
                yield Candidate(f"{before}{last},", "and another one", True)
            else:
                yield Candidate(f"{before}{option.name}", option.description, inside)

    # -- what is in the config -----------------------------------------------------------------------------------------------
    @cached_property
    def chosen(self) -> dict[str, list[str]]:
        """Group (or ``group@package``) -> options, as the defaults lists and the line's overrides choose them."""
        chosen: dict[str, list[str]] = {}
        for entry in self.primary.defaults if self.primary else []:
            for key, value in entry.items() if isinstance(entry, dict) else ():
                chosen[str(key).removeprefix("optional ").strip().lstrip("/")] = _names(value)
        explicit = {key: _names(value) for _, key, value in self.earlier if self.catalogue.is_group(key.partition("@")[0])}
        for group in ("experiment", "data", "task"):  # the order in which one chooses for the others
            for name in explicit.get(group, chosen.get(group, [])):
                option = self._option(group, name)
                for other in self.catalogue.groups() if option else ():
                    named = override_of(option, other) if option else None
                    if named is not None and other not in explicit:
                        explicit[other] = _names(named)
        return chosen | explicit

    def places(self) -> Iterator[tuple[str, Option]]:
        """(where its keys land, option) of all that is chosen."""
        for key, names in self.chosen.items():
            group, _, package = key.partition("@")
            for name in names:
                option = self._option(group, name)
                if option is not None:
                    yield package or option.package, option

    def tree_below(self, path: str) -> dict[str, Any]:
        """The mapping at ``path`` of the composed config, from the files that land there."""
        merged: dict[str, Any] = dict(_dig(self.primary.values if self.primary else {}, path) or {})
        for place, option in self.places():
            if path == place or path.startswith(f"{place}."):
                merged.update(_dig(option.body, path[len(place) :].lstrip(".")) or {})
            elif place.startswith(f"{path}."):
                merged.setdefault(place[len(path) + 1 :].partition(".")[0], {"": None})
            elif not place:
                merged.update(_dig(option.values, path) or {})
        merged.pop("defaults", None)
        kind = path.partition(".")[0]
        if kind in ("auxiliary", "regularizer") and path.count(".") == 1:
            merged.setdefault("weight", 1.0)
        return merged

    def value_of(self, key: str) -> Any:
        parent, _, name = key.rpartition(".")
        return (self.tree_below(parent) if parent else self.primary.values if self.primary else {}).get(name)

    def parameters(self, path: str) -> list[Any]:
        """Parameters of the class whose ``_target_`` stands at ``path``."""
        target = self.tree_below(path).get("_target_") if path else None
        info = self.catalogue.signature_of(str(target)) if target else None
        return info.parameters if info else []

    def _option(self, group: str, name: str) -> Option | None:
        return next((o for o in self.catalogue.options(group) if o.name == name), None)


# -- runs and files ----------------------------------------------------------------------------------------------------------
def runs(current: str = "") -> list[Candidate]:
    """The store's runs, the latest first, by name; by id too where the word could be one."""
    rows = _store_rows("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time DESC LIMIT 500")
    names = [Candidate(name, f"{status} {identity[:8]}") for identity, name, status in rows if name]
    by_id = [Candidate(identity, f"{status} {name}") for identity, name, status in rows if current and identity.startswith(current)]
    return list(dict.fromkeys(names)) + by_id


def _store_rows(query: str) -> list[tuple[Any, ...]]:
    """Rows of the embedded store, read only; none where there is no store, or it is another kind or busy."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not os.path.isfile(path):  # noqa: PTH113
        return []
    import sqlite3
    from urllib.parse import quote

    try:
        connection = sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True, timeout=0.2)  # noqa: PTH100
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error:
        return []


def files(current: str, *, directories_only: bool = False) -> list[Candidate]:
    """Files and directories that begin with ``current``; hidden ones only if asked for by their dot."""
    folder, _, start = current.rpartition("/")
    place = os.path.expanduser(folder) if folder else "/" if current.startswith("/") else "."  # noqa: PTH111
    try:
        entries = sorted(os.scandir(place), key=lambda e: e.name)
    except OSError:
        return []
    before = current[: len(current) - len(start)]
    shown = (e for e in entries if e.name.startswith(start) and (start.startswith(".") or not e.name.startswith(".")))
    return [Candidate(before + e.name + ("/" if e.is_dir() else ""), "", e.is_dir()) for e in shown if e.is_dir() or not directories_only]


# -- overrides as text -------------------------------------------------------------------------------------------------------
def parse_override(word: str) -> tuple[str, str, str] | None:
    """``"+loss@auxiliary.kd=kd"`` -> ``("+", "loss@auxiliary.kd", "kd")``."""
    match = re.match(r"(\+\+|\+|~)?([^=]+)=(.*)$", word.strip("'\""), re.DOTALL)
    return (match.group(1) or "", match.group(2), match.group(3)) if match else None


def _names(value: Any) -> list[str]:
    """The options that a defaults entry or an override's value names."""
    if value is None:
        return []
    if isinstance(value, list):
        return [str(v) for v in value]
    return [name.strip(" '\"") for name in str(value).strip("[]").split(",") if name.strip(" '\"") not in ("", "null")]


def _dig(node: Any, path: str) -> dict[str, Any] | None:
    for part in path.split(".") if path else ():
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def _shown(value: Any) -> str:
    return "" if isinstance(value, dict) else as_text(value)


# -- shells ------------------------------------------------------------------------------------------------------------------
def split_line(point: str, line: str, wordbreaks: str) -> tuple[list[str], int, bool]:
    """Bash's line up to the cursor as words without the program's name, how much of the last one bash keeps in front of a reply,
    and whether a quote is open (bash closes it itself, so no blank may follow the word).

    Bash also splits words at the characters of ``COMP_WORDBREAKS`` (``=``, ``:``, ``@``) and replaces only what follows the last.

    >>> split_line("21", "losskit train loss=fo", "=:@ ")
    (['train', 'loss=fo'], 5, False)
    """
    text = line.encode()[: int(point)].decode(errors="ignore")
    words, current, quote, started, kept = [], "", "", False, 0
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if quote:
            if char == quote:
                quote = ""
            else:
                current += char
        elif char in "'\"":
            quote, started, kept = char, True, len(current)
        elif char == "\\" and position < len(text):
            current, started = current + text[position], True
            position += 1
        elif char.isspace():
            if started:
                words.append(current)
            current, started, kept = "", False, 0
        else:
            current, started = current + char, True
            if char in wordbreaks:
                kept = len(current) - (char in "@$")  # these two belong to the word that bash replaces
    return [*words[1:], current] if words else [current], kept, bool(quote)


def _with_help(candidate: Candidate, shell: str) -> str:
    """``value<TAB>help``; for zsh a blank after the value says that the word is complete (fish decides that by the last character)."""
    end = " " if shell == "zsh" and not candidate.open_ended else ""
    return f"{candidate.value}{end}\t{candidate.help}"


def _closed(candidates: list[Candidate]) -> Iterator[Candidate]:
    """For fish, which puts a blank after every word that ends in a letter: a list's entries with what may follow them."""
    for candidate in candidates:
        if candidate.open_ended and "=[" in candidate.value and candidate.value[-1] not in "=.,":
            yield candidate._replace(value=f"{candidate.value}]", open_ended=False)
            yield candidate._replace(value=f"{candidate.value},")
        else:
            yield candidate


def _script(shell: str) -> str:
    with open(os.path.join(os.path.dirname(__file__), "shell", f"losskit.{shell}"), encoding="utf-8") as file:  # noqa: PTH118, PTH120, PTH123
        return file.read()

"""``losskit list`` and ``losskit show``: what can be selected, read from option files and sources without importing torch."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.quantities import FACTS, QUANTITIES
from components.validation import did_you_mean
from losskit_cli.catalogue import LIST_GROUPS, METHODS, RESERVED, Catalogue, Option, as_text, default_group, override_of, there_is
from losskit_cli.errors import UsageError

if TYPE_CHECKING:
    from losskit_cli.signatures import Parameter

GROUPS = {
    "data": "what is learned from",
    "model": "the network",
    "task": "the kind of learning problem: what is computed from a batch and offered to losses",
    "loss": "what training minimises",
    "regularizer": "terms added to the loss, any number: regularizer=[l1,l2]",
    "transform": "changes to training batches, any number: transform=[mixup]",
    "reweighting": "a weight for each sample",
    "schedule": "the learning rate's course, a factor for each step",
    "optimizer": "how parameters are updated",
    "averaging": "an average of the weights, used for evaluation",
    "metrics": "what is measured",
    "callbacks": "what else happens around training, any number",
    "trainer": "how long, on what, how precisely",
    "tracking": "where runs are recorded",
    "sweep": "how a search is run",
    "sweep/sampler": "how a search picks its next point",
    "sweep/pruner": "which of its trials are not worth finishing",
    "experiment": "complete named experiments",
    "debug": "short and strict runs for finding mistakes",
    "local": "settings of this machine, not shared",
}
OFTEN_CHANGED = {"optimizer": "lr", "schedule": "warmup", "trainer": "max_epochs", "data": "batch_size"}


# -- losskit list --------------------------------------------------------------------------------------------------------------
def run_list(
    group: str | None = None,
    *,
    task: str | None = None,
    search: str | None = None,
    json: bool = False,
    config_dirs: Sequence[Path | str] = (),
) -> None:
    """Print the groups, or a group's options: those that ``task`` can feed, those whose name and file hold every word of ``search``.

    Raises:
        UsageError: no such group or task (with the nearest name).
    """
    catalogue = Catalogue.default(config_dirs)
    if group is None and task is None and search is None:
        rows = group_rows(catalogue)
        if json:
            _write(dumps(rows, ensure_ascii=False, indent=2))
        else:
            _table(("group", "options", "what it is"), [(r["group"], str(r["options"]), r["description"]) for r in rows], right=(1,))
        return
    options = option_rows(catalogue, group, task=task, search=search)
    if json:
        _write(dumps(options, ensure_ascii=False, indent=2))
    elif not options:
        wanted = [f"--task {task}" if task else "", f"--search {search}" if search else ""]
        sys.stderr.write(f"no {group or 'option'} fits {' '.join(filter(None, wanted))}\n")
    elif group is None:
        _table(("option", "what it is", "source"), [(f"{r['group']}={r['name']}", r["description"], r["source"]) for r in options])
    else:
        _table((group, "what it is", "source"), [(r["name"], r["description"], r["source"]) for r in options])


def group_rows(catalogue: Catalogue) -> list[dict[str, Any]]:
    """The groups in the order in which an experiment is thought of, the user's own last, with the number of options."""
    order = list(GROUPS)
    names = sorted(catalogue.groups(), key=lambda g: (order.index(g) if g in order else len(order), g))
    return [{"group": g, "options": len(catalogue.options(g)), "description": GROUPS.get(g, "")} for g in names]


def option_rows(catalogue: Catalogue, group: str | None, *, task: str | None = None, search: str | None = None) -> list[dict[str, str]]:
    if group is not None:
        catalogue.check_group(group)
    if task is not None and task not in catalogue.task_offers:
        tasks = catalogue.option_names("task")
        raise UsageError(f"there is no task={task}{did_you_mean(task, tasks)} (there is: {', '.join(tasks)})")
    rows = []
    for option in catalogue.options(group) if group else (o for g in catalogue.groups() for o in catalogue.options(g)):
        if search is not None and not all(word in f"{option.name}\n{option.text}".lower() for word in search.lower().split()):
            continue
        if task is not None and not catalogue.suits_task(option, task):
            continue
        rows.append({"group": option.group, "name": option.name, "description": option.description, "source": option.source})
    if search is not None:  # those that are called so before those that mention it
        rows.sort(key=lambda row: not all(word in row["name"] for word in search.lower().split()))
    return rows


# -- losskit show --------------------------------------------------------------------------------------------------------------
def run_show(selection: Sequence[str], *, json: bool = False, config_dirs: Sequence[Path | str] = ()) -> None:
    """Print all about one option, given as ``loss=focal``, ``loss/focal`` or ``loss focal``.

    Raises:
        UsageError: not one option, or none of that name.
    """
    catalogue = Catalogue.default(config_dirs)
    option = selected(catalogue, selection)
    description = describe(catalogue, option)
    if json:
        _write(dumps(description, ensure_ascii=False, indent=2))
    else:
        _write(render(description, option, min(shutil.get_terminal_size((100, 24)).columns, 120)))


def selected(catalogue: Catalogue, selection: Iterable[str]) -> Option:
    """The option that the words name."""
    words = list(selection)
    text = "=".join(words).replace("[", "").replace("]", "")
    group, separator, name = text.partition("=")
    if not separator and "/" in text:
        group, _, name = text.rpartition("/")
    if not name and catalogue.is_group(group):
        options = catalogue.option_names(group)
        raise UsageError(f"which one? losskit show {group}={options[0]} ({there_is(group, options)})")
    if not name:
        found = [option for g in catalogue.groups() for option in catalogue.options(g) if option.name == group]
        if len(found) == 1:
            return found[0]
        names = {option.name for g in catalogue.groups() for option in catalogue.options(g)} | set(catalogue.groups())
        several = f" (is it {' or '.join(f'{o.group}={o.name}' for o in found)}?)" if found else did_you_mean(group, names)
        raise UsageError(f"name one option as group=name, for example loss=focal, but got {' '.join(words)!r}{several}")
    return catalogue.option(group, name)


def describe(catalogue: Catalogue, option: Option) -> dict[str, Any]:
    """All that is known of an option, as plain values."""
    from losskit_cli.mathtext import formulas_of, plain, readable
    from losskit_cli.signatures import sections_of

    info = option.info
    sections = sections_of(info.docstring) if info else {}
    formulas = formulas_of(info.docstring) if info else []
    bound = option.group in METHODS
    needs = option.needs()
    return {
        "group": option.group,
        "name": option.name,
        "description": option.description,
        "source": " ".join(plain(sections.get("Source", "")).split()) or option.source,
        "target": option.target,
        "path": str(option.path),
        "formula": formulas,
        "formula_text": [readable(formula) for formula in formulas],
        "parameters": [_parameter_row(option, p) for p in option.parameters if not _hidden(p, option)],
        "components": {key: node["_target_"] for key, _, node in option.nodes() if key},
        "filled_in": {p.name: FACTS[p.name] for p in option.parameters if p.name in FACTS and p.name not in option.values},
        "chooses": _choices_of(option),
        "needs": {name: QUANTITIES.get(name, "") for name in needs},
        "uses_if_offered": {name: QUANTITIES.get(name, "") for name in option.needs(optional=True)},
        "offers": {name: QUANTITIES.get(name, "") for name in sorted(catalogue.task_offers.get(option.name, ()))} if option.group == "task" else {},
        "tasks": catalogue.tasks_for(option) if bound else [],
        "claim": option.values.get("claim") if option.group == "experiment" else None,
        "example": example(catalogue, option),
    }


def example(catalogue: Catalogue, option: Option) -> str:
    """A command that tries the option: with data that suit it, and one parameter spelled out."""
    words = [f"{option.group}=[{option.name}]" if option.group in LIST_GROUPS else f"{option.group}={option.name}"]
    if option.group == "experiment" and option.values.get("claim"):
        return f"losskit reproduce {option.name}"
    if option.group in METHODS:
        tasks = catalogue.tasks_for(option)
        if tasks and catalogue.default_choice("task") not in tasks:
            data = next((d.name for d in catalogue.options("data") if override_of(d, "task") in tasks), None)
            words.insert(0, f"data={data}" if data else f"task={tasks[0]}")
    numbers = [k for k, v in option.values.items() if isinstance(v, int | float) and not isinstance(v, bool) and k not in ("seed", *RESERVED)]
    wanted = OFTEN_CHANGED.get(option.group)
    key = wanted if wanted in numbers else next(iter(numbers), None)
    if key and option.package:
        words.append(f"{option.package}.{key}={as_text(option.values[key])}")
    if option.group.split("/")[0] == "sweep":
        words.append("'optimizer.lr=tag(log,interval(1e-4,1))'" if option.name not in ("grid", "brute_force") else "loss=cross_entropy,focal 'seed=range(5)'")
        return " ".join(["losskit sweep", *words])
    return " ".join(["losskit train", *words])


def render(description: dict[str, Any], option: Option, width: int) -> str:
    """The description as text, ``width`` columns wide."""
    from losskit_cli.mathtext import plain, prose
    from losskit_cli.signatures import sections_of

    bold, dim, reset = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
    info = option.info
    sections = sections_of(info.docstring) if info else {}
    parts = [f"{bold}{option.group}={option.name}{reset}  {option.description}"]
    body = prose(sections.get("", ""), width)
    if body:
        parts.append(body)

    def block(title: str, rows: list[tuple[str, str]]) -> None:
        if rows:
            parts.append(f"{bold}{title}{reset}\n" + _columns(rows, width))

    shown = description["parameters"]
    if description["claim"]:
        block("Claims", _claim_rows(option.name, description["claim"]))
    block("Parameters", [(_shown_default(p), p["description"]) for p in shown])
    block("Holds", list(description["components"].items()))
    block("Filled in from the data and the trainer", list(description["filled_in"].items()))
    block("Chooses, unless you do", list(description["chooses"].items()))
    block("Needs", list(description["needs"].items()))
    block("Uses where offered", list(description["uses_if_offered"].items()))
    block("Offers", list(description["offers"].items()))
    if description["needs"]:
        tasks = ", ".join(description["tasks"]) or "no task offers all that it needs"
        parts.append(f"{bold}Tasks that offer it{reset}\n" + textwrap.fill(tasks, width, initial_indent="  ", subsequent_indent="  "))
    if sections.get("Shapes"):
        text = plain(" ".join(sections["Shapes"].split()))
        parts.append(f"{bold}Shapes{reset}\n" + textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  "))
    if description["source"]:
        parts.append(f"{bold}Source{reset}\n" + textwrap.fill(description["source"], width, initial_indent="  ", subsequent_indent="  "))
    where = f"{description['target']}  ({option.path})" if description["target"] else str(option.path)
    parts.append(f"{bold}Try{reset}\n  {description['example']}\n\n{dim}{where}{reset}")
    return "\n\n".join(parts)


# -- steps ---------------------------------------------------------------------------------------------------------------------
def _claim_rows(name: str, node: Any) -> list[tuple[str, str]]:
    from losskit_cli.claims import ARM, Claim

    claim = Claim.read(name, node)
    rows = [("what", claim.says), ("paper", claim.paper), *([("shown by", claim.shown_by)] if claim.shown_by else [])]
    rows += [(f"{ARM}={name}", " ".join(overrides) or "as it is") for name, overrides in claim.arms.items()]
    judged = f"{claim.metric}, {'higher' if claim.higher_is_better else 'lower'} is better, over {len(claim.seeds)} seeds"
    return [*rows, ("judged by", judged), *([("tuned", " ".join(claim.tune))] if claim.tune else [])]


def _hidden(parameter: Parameter, option: Option) -> bool:
    """Facts are filled in, and what the builder hands over (the parameters to optimise, the model …) is not the user's."""
    if parameter.name in option.values:
        return option.group == "experiment" and parameter.name == "claim"  # shown by itself
    handed_over = {"params", "model", "objective", "optimizer", "schedule", "metrics", "transforms"} if option.group in ("task", "optimizer") else set()
    return parameter.name in FACTS or parameter.name in handed_over


def _parameter_row(option: Option, parameter: Parameter) -> dict[str, Any]:
    from losskit_cli.mathtext import plain

    known = option.info.parameter(parameter.name) if option.info else None
    reserved = {"inputs": "which quantity feeds which parameter", "weight": "factor of this term in the objective: a number or a schedule"}
    description = parameter.description or (known.description if known else "")
    if not description and not known and parameter.name in reserved:
        description = reserved[parameter.name]
    return {
        "name": parameter.name,
        "default": _unquoted(parameter.default),
        "required": parameter.required,
        "type": parameter.annotation or None,
        "choices": list(parameter.choices),
        "description": plain(description),
        "in_option_file": parameter.name in option.values,
    }


def _unquoted(default: str | None) -> str | None:
    """A default from source the way an override writes it."""
    words = {"None": "null", "True": "true", "False": "false"}
    if default is None or default in words:
        return words.get(default or "")
    quoted = len(default) >= 2 and default[0] == default[-1] and default[0] in "'\""
    return default[1:-1] if quoted else default


def _shown_default(row: dict[str, Any]) -> str:
    return f"{row['name']} (required)" if row["required"] else f"{row['name']}={row['default']}"


def _choices_of(option: Option) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for entry in option.defaults:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            chosen[default_group(str(key))] = as_text(value)
    return chosen


def _columns(rows: list[tuple[str, str]], width: int) -> str:
    """Two columns: names to the left, wrapped text to the right; below each other where the terminal is narrow."""
    left = min(max(len(name) for name, _ in rows), 32, width // 2)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(width - left - 4, 20)) or [""]
        if len(name) > left:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{left}}  {wrapped[0]}".rstrip())
        lines += [f"  {'':<{left}}  {line}" for line in wrapped[1:]]
    return "\n".join(lines)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """A table that fits the terminal; in a pipe, aligned plain text whose lines are never cut."""
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in rows) for i in range(len(headings))]
        for row in rows:
            cells = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
            _write("  ".join(cells).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, highlight=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i in right else "left", no_wrap=i == 0, style="bold" if i == 0 else "dim" if heading == "source" else "")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    Console().print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")

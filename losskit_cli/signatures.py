"""Reads classes and functions from their source, without importing anything: parameters, docstring, what ``forward`` takes.

``_target_: components.losses.FocalLoss`` is followed through packages and ``from … import …`` lines to the class, its bases likewise.
Nothing is executed, so the command line can list, complete and check what needs torch to run, and code that it does not trust.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from losskit_cli.paths import package_dir

SECTION = re.compile(r"(Args|Arguments|Shapes?|Raises|Returns|Sources?|References|Examples?|Notes?|Attributes|Class facts[^:]*):\s*$")
SAME_SECTION = {"Arguments": "Args", "Shape": "Shapes", "Sources": "Source", "References": "Source"}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# Bases whose constructor takes nothing that a config could set; not reading their files saves most of the time.
PLAIN_BASES = frozenset(
    {
        "object",
        "torch.nn.Module",
        "torch.nn.modules.Module",
        "torch.nn.modules.module.Module",
        "lightning.LightningModule",
        "lightning.LightningDataModule",
        "lightning.Callback",
        "lightning.pytorch.LightningModule",
        "lightning.pytorch.LightningDataModule",
        "lightning.pytorch.Callback",
        "lightning.pytorch.callbacks.Callback",
        "lightning.pytorch.callbacks.callback.Callback",
        "abc.ABC",
        "typing.Generic",
        "typing.Protocol",
    }
)


class Parameter(NamedTuple):
    """One parameter: ``default`` is source text, None where it must be given; ``choices`` are a Literal's values."""

    name: str
    annotation: str = ""
    default: str | None = None
    description: str = ""
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is None


class Module:
    """A parsed source file and its names."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, ast.ClassDef | FunctionNode] = {}
        self.imports: dict[str, str] = {}  # local name -> dotted name
        self.stars: list[str] = []
        self.values: dict[str, ast.expr] = {}
        for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                for alias in node.names:
                    if alias.name == "*":
                        self.stars.append(source)
                    else:
                        self.imports[alias.asname or alias.name] = f"{source}.{alias.name}"
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.values[node.target.id] = node.value

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def qualified(self, node: ast.expr) -> str | None:
        """The dotted name that an expression such as ``Loss`` or ``nn.Module`` stands for in this file."""
        if isinstance(node, ast.Subscript):
            return self.qualified(node.value)
        if isinstance(node, ast.Attribute):
            left = self.qualified(node.value)
            return f"{left}.{node.attr}" if left else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.definitions or node.id in self.values:
            return f"{self.name}.{node.id}"
        return self.imports.get(node.id, node.id if not self.stars else f"{self.name}.{node.id}")


class ClassInfo:
    """A class or function as its source describes it."""

    def __init__(self, target: str, module: Module, node: ast.ClassDef | FunctionNode) -> None:
        self.target, self.module, self.node = target, module, node
        self.name = node.name
        self.is_class = isinstance(node, ast.ClassDef)
        self.docstring = ast.get_docstring(node) or ""

    @cached_property
    def mro(self) -> list[ClassInfo]:
        """The class and its bases as far as their source is found, nearest first."""
        found = {id(self.node): self}
        if isinstance(self.node, ast.ClassDef):
            for base in self.node.bases:
                name = self.module.qualified(base)
                info = None if name is None or name in PLAIN_BASES else signature_of(name)
                for ancestor in info.mro if info and info.node is not self.node else []:
                    found.setdefault(id(ancestor.node), ancestor)
        return list(found.values())

    @cached_property
    def bases_known(self) -> bool:
        """Whether every base's source was found (or is known to add no parameter)."""
        return all(
            (name := info.module.qualified(base)) is not None and (name in PLAIN_BASES or signature_of(name) is not None)
            for info in self.mro
            if isinstance(info.node, ast.ClassDef)
            for base in info.node.bases
        )

    @cached_property
    def parameters(self) -> list[Parameter]:
        """What a config can set: the constructor's parameters, ``**kwargs`` followed into the bases."""
        return [p for p in self._collected[0] if not p.name.startswith("_")]

    @property
    def open_ended(self) -> bool:
        """Whether it takes keywords whose names its source does not tell."""
        return self._collected[1]

    @property
    def parameter_names(self) -> list[str]:
        return [p.name for p in self.parameters]

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    def method(self, name: str) -> list[Parameter] | None:
        """Parameters of a method, own or inherited, without ``self``; None where no source has it."""
        for info in self.mro:
            node = info._function(name)
            if node is not None:
                return _without_self(_parameters(node, info), node)
        return None

    @cached_property
    def descriptions(self) -> dict[str, str]:
        """Parameter -> meaning, from the ``Args`` of the docstring (the constructor's where the class has none)."""
        own = arguments_of(self.docstring)
        constructor = self._function("__init__")
        return own or (arguments_of(ast.get_docstring(constructor) or "") if constructor else {})

    def names(self, attribute: str) -> frozenset[str]:
        """The strings of a class attribute written as a literal, ``frozenset({"logits", …})``, or as a union of such."""
        for info in self.mro:
            value = info._attribute(attribute)
            if value is not None:
                return _strings(value, info)
        return frozenset()

    def flag(self, attribute: str) -> bool | None:
        """A class attribute written as ``True`` or ``False``; None without one."""
        for info in self.mro:
            value = info._attribute(attribute)
            if isinstance(value, ast.Constant) and isinstance(value.value, bool):
                return value.value
        return None

    # -- steps -------------------------------------------------------------------------------------------------------------
    @cached_property
    def _collected(self) -> tuple[list[Parameter], bool]:
        if not isinstance(self.node, ast.ClassDef):
            own = _parameters(self.node, self)
            return own, self.node.args.kwarg is not None
        return self._constructor(self.mro)

    def _constructor(self, mro: list[ClassInfo]) -> tuple[list[Parameter], bool]:
        for position, info in enumerate(mro):
            if _is_dataclass(info.node):
                return _fields(mro[position:]), False
            node = info._function("__init__") or info._function("__new__")
            if node is None:
                continue
            own = _without_self(_parameters(node, info), node)
            if node.args.kwarg is None:
                return own, False
            inherited, open_ended = self._constructor(mro[position + 1 :])
            positional, keywords = _passed_to_super(node)
            taken = {p.name for p in own} | keywords | {p.name for p in inherited[:positional]}
            return own + [p for p in inherited if p.name not in taken], open_ended
        return [], not self.bases_known or len(mro) < len(self.mro)  # **kwargs that no base takes is used by the class itself

    def _function(self, name: str) -> FunctionNode | None:
        if not isinstance(self.node, ast.ClassDef):
            return None
        return next((n for n in self.node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == name), None)

    def _attribute(self, name: str) -> ast.expr | None:
        for node in self.node.body if isinstance(self.node, ast.ClassDef) else []:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return node.value
        return None


# -- finding -----------------------------------------------------------------------------------------------------------------
@cache
def signature_of(target: str) -> ClassInfo | None:
    """The class or function that a ``_target_`` names; None where its source cannot be found (compiled, made at run time)."""
    return _resolve(target, frozenset())


def _resolve(target: str, visited: frozenset[str]) -> ClassInfo | None:
    if target in visited:
        return None
    found = _module_of(target)
    if found is None:
        return None
    module, rest = found
    return _lookup(module, rest, target, visited | {target}) if rest else None


def _lookup(module: Module, names: list[str], target: str, visited: frozenset[str]) -> ClassInfo | None:
    first, *rest = names
    node = module.definitions.get(first)
    if node is not None:
        for name in rest:
            body = node.body if isinstance(node, ast.ClassDef) else []
            inner = next((n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)
            if inner is None:
                return None
            node = inner
        return ClassInfo(target, module, node)
    if first in module.imports:
        return _resolve(".".join([module.imports[first], *rest]), visited)
    if first in module.values:
        other = module.qualified(module.values[first])
        return _resolve(".".join([other, *rest]), visited) if other else None
    for star in module.stars:
        info = _resolve(".".join([star, *names]), visited)
        if info is not None:
            return info
    return None


def _module_of(target: str) -> tuple[Module, list[str]] | None:
    """The file that holds the longest leading part of a dotted name, and what is left of the name."""
    parts = target.split(".")
    place = package_dir(parts[0])
    if place is None:
        return None
    used = 1
    while used < len(parts) and place.is_dir():
        inner = place / parts[used]
        if (inner / "__init__.py").is_file() or (inner.is_dir() and not inner.with_suffix(".py").is_file()):
            place = inner
        elif inner.with_suffix(".py").is_file():
            place = inner.with_suffix(".py")
        else:
            break
        used += 1
    file = place / "__init__.py" if place.is_dir() else place
    module = _parsed(file, ".".join(parts[:used]))
    return (module, parts[used:]) if module else None


@cache
def _parsed(path: Path, name: str) -> Module | None:
    try:
        return Module(path, name)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


# -- reading -----------------------------------------------------------------------------------------------------------------
def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under ``if`` and ``try`` included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield node


def _parameters(node: FunctionNode, info: ClassInfo) -> list[Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [_parameter(a.arg, a.annotation, default, info) for a, default in pairs]


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None, info: ClassInfo) -> Parameter:
    return Parameter(
        name,
        "" if annotation is None else ast.unparse(annotation),
        None if default is None else _default_text(default, info.module),
        info.descriptions.get(name, ""),
        () if annotation is None else _choices(annotation, info.module),
    )


def _default_text(default: ast.expr, module: Module) -> str:
    """Source text of a default; a name such as ``IGNORE_INDEX`` is replaced by its value where that is a literal of the same file."""
    value = module.values.get(default.id) if isinstance(default, ast.Name) else None
    return ast.unparse(value if isinstance(value, ast.Constant | ast.UnaryOp) else default)


def _choices(annotation: ast.expr, module: Module, depth: int = 0) -> tuple[str, ...]:
    """The values of a ``Literal[…]``, named directly, through an alias or in a union."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return tuple(str(item.value) for item in items if isinstance(item, ast.Constant))
    if isinstance(annotation, ast.BinOp):
        return _choices(annotation.left, module, depth) + _choices(annotation.right, module, depth)
    if isinstance(annotation, ast.Name | ast.Attribute) and depth < 4:
        name = module.qualified(annotation)
        found = _module_of(name) if name and "." in name else None
        if found and len(found[1]) == 1:
            home, (last,) = found
            if last in home.values:
                return _choices(home.values[last], home, depth + 1)
            if last in home.imports:
                return _choices(ast.Name(last), home, depth + 1)
    return ()


def _without_self(parameters: list[Parameter], node: FunctionNode) -> list[Parameter]:
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    return parameters if static else parameters[1:]


def _passed_to_super(node: FunctionNode) -> tuple[int, set[str]]:
    """How many positional arguments, and which keywords, a constructor itself passes to its base's."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
            explicit = not isinstance(call.func.value, ast.Call)  # Base.__init__(self, …)
            positional = sum(not isinstance(a, ast.Starred) for a in call.args) - explicit
            return max(positional, 0), {k.arg for k in call.keywords if k.arg}
    return 0, set()


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(re.search(r"\bdataclass\b", ast.unparse(d)) for d in node.decorator_list)


def _fields(mro: list[ClassInfo]) -> list[Parameter]:
    fields: dict[str, Parameter] = {}
    for info in reversed(mro):
        for node in info.node.body if _is_dataclass(info.node) else []:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if "ClassVar" in ast.unparse(node.annotation) or "KW_ONLY" in ast.unparse(node.annotation):
                continue
            default, name = node.value, node.target.id
            if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
                options = {k.arg: k.value for k in default.keywords}
                if isinstance(init := options.get("init"), ast.Constant) and init.value is False:
                    continue
                factory = options.get("default_factory")
                default = options.get("default") or (ast.Call(factory, [], []) if factory else None)
            fields[name] = _parameter(name, node.annotation, default, info)
    return list(fields.values())


def _strings(value: ast.expr, info: ClassInfo) -> frozenset[str]:
    if isinstance(value, ast.Constant):
        return frozenset({value.value}) if isinstance(value.value, str) else frozenset()
    if isinstance(value, ast.Set | ast.List | ast.Tuple):
        return frozenset().union(*(_strings(item, info) for item in value.elts))
    if isinstance(value, ast.Call):
        return frozenset().union(*(_strings(item, info) for item in value.args))
    if isinstance(value, ast.BinOp):
        left, right = _strings(value.left, info), _strings(value.right, info)
        return left - right if isinstance(value.op, ast.Sub) else left | right
    if isinstance(value, ast.Attribute):  # ClassificationTask.offers | {…}
        owner = info.module.qualified(value.value)
        other = signature_of(owner) if owner else None
        return other.names(value.attr) if other else frozenset()
    if isinstance(value, ast.Name):
        return constant_names(info.module, value.id)
    return frozenset()


def constant_names(module: Module, name: str) -> frozenset[str]:
    """The strings of a module's constant, imported ones included."""
    if name in module.values:
        return _strings(module.values[name], ClassInfo(name, module, ast.ClassDef(name, [], [], [], [])))
    found = _module_of(module.imports[name]) if name in module.imports else None
    return constant_names(found[0], found[1][0]) if found and len(found[1]) == 1 and found[0] is not module else frozenset()


def arguments_of(docstring: str) -> dict[str, str]:
    """Parameter -> meaning, from an ``Args:`` section (also ``Class facts`` and the like do not count)."""
    meanings: dict[str, str] = {}
    current, depth = "", -1
    for line in sections_of(docstring).get("Args", "").splitlines():
        indent = len(line) - len(line.lstrip())
        depth = indent if depth < 0 and line.strip() else depth
        match = re.match(r"\s*\*{0,2}(\w[\w, ]*?)\s*(?:\([^)]*\))?:\s*(.*)$", line) if indent <= depth else None
        if match:
            current = match.group(1)
            for name in current.split(","):
                meanings[name.strip()] = match.group(2).strip()
        elif line.strip() and current:
            for name in current.split(","):
                meanings[name.strip()] = f"{meanings[name.strip()]} {line.strip()}".strip()
    return meanings


def sections_of(docstring: str) -> dict[str, str]:
    """A docstring's parts: ``""`` (before any heading), ``Args``, ``Shapes``, ``Raises``, ``Source`` …, each with its indentation."""
    parts: dict[str, list[str]] = {"": []}
    current = ""
    for line in docstring.splitlines():
        heading = SECTION.match(line)
        if heading:
            current = SAME_SECTION.get(heading.group(1), heading.group(1))
            parts.setdefault(current, [])
        else:
            parts[current].append(line)
    return {name: "\n".join(lines).strip("\n") for name, lines in parts.items()}

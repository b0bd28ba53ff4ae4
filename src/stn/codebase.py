"""Which code decides a result: a digest of it, and its commit. Imports nothing that it reads, so it is quick.

The digest covers the definitions that training can reach: it starts at the data source, the network and the training
loop, and follows the names that each definition uses, through imports, also those inside functions. It is taken over
syntax trees: formatting, comments, docstrings and the annotations of functions do not count, nor does the module in
which a definition stands. A changed function voids the results of what uses it; a new one voids nothing.

What cannot be followed by name is taken whole rather than left out: statements of an imported module that do more than
define a name (calls, `if`, `try`), definitions under a decorator that might register them, and every definition of a
module that is used as an object. `tests/test_codebase.py` holds this against what real training runs execute.
"""

import ast
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from stn.errors import UserError

TRAINING = "stn.training.run:train"
EXPERIMENTS = "stn.experiments"
# What training reaches and no number depends on: modules, or definitions in them.
APART = {
    "stn.config",  # the schema; the values are in conf/, and resolved in every record
    "stn.errors",  # how errors are told
    "stn.codebase",  # names the code
    "stn.training.record:provenance",  # says where a seed was trained
    "stn.training.callbacks",  # watches training; the reference curves are computed with it
}
# Decorators that register nothing. A definition under another one counts wherever its module is imported.
PLAIN_DECORATORS = {
    *("dataclass", "contextmanager", "cache", "lru_cache", "rank_zero_only"),
    *("inference_mode", "no_grad", "once_differentiable", "jit"),
}

# The source of a module by its full name, and whether it is a package; None if there is no such module.
Reader = Callable[[str], tuple[str, bool] | None]
Key = tuple[str, int]  # a statement: its module, and its place there


def training_digest(kind: str, read: Reader | None = None) -> str:
    """The digest of the code that trains an experiment, such as "mnist": sixteen hexadecimal digits.

    `read` reads the modules; the installed ones if None.
    """
    return digest_of(*roots(kind), read=read)


def roots(kind: str) -> tuple[str, str, str]:
    """Where the training of an experiment starts: its data source, its network, and the training loop."""
    return f"{EXPERIMENTS}.{kind}.data:source", f"{EXPERIMENTS}.{kind}.networks:network", TRAINING


def digest_of(*roots: str, read: Reader | None = None) -> str:
    """The digest of all that the definitions `roots`, each "module:name", can reach: sixteen hexadecimal digits.

    A root that is not defined is a ValueError; a module that is installed without its source a UserError.
    """
    return _installed_digest(roots) if read is None else _digest(_Graph(read).reach(roots))


def reached(*roots: str) -> set[tuple[str, int, int]]:
    """The module, the first and the last line of every statement that the digest of these roots covers."""
    graph = _Graph(installed)
    graph.reach(roots)
    statements = [(name, graph.present(name).statements[place]) for name, place in graph.numbers]
    return {(name, statement.first, statement.last) for name, statement in statements}


def installed(name: str) -> tuple[str, bool] | None:
    """The `Reader` of what `import` would load, from folders or a zip file. Nothing is imported."""
    spec = _spec(name)
    if spec is None:
        return None
    package = spec.submodule_search_locations is not None
    if spec.loader is None or spec.origin is None:  # a folder without __init__.py
        return "", package
    source = cast(InspectLoader, spec.loader).get_source(name)  # those of files and of zip files have it
    if source is None:
        raise UserError(f"{spec.origin}: its source is not there, by which results are named; install stn with sources")
    return source, package


@cache
def commit() -> str | None:
    """The commit that is checked out where this code lies, with "+changes" if files of src/ or conf/ differ from it.

    None where that is not known: without git, in a folder that was copied, or installed apart from its repository.
    """
    here = Path(__file__).resolve()
    if not here.is_file() or _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    head, root = _git(here.parent, "rev-parse", "HEAD"), _git(here.parent, "rev-parse", "--show-toplevel")
    if head is None or root is None:
        return None
    changes = _git(Path(root), "status", "--porcelain", "--", "src", "conf")
    return head if changes == "" else f"{head}+changes"


def fault(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the `code` and `adopted` of a record; None if nothing is, or it is older than these keys."""
    code, adopted = record.get("code", _UNKNOWN), record.get("adopted", [])
    if not isinstance(adopted, list):
        return "whose adopted is no list"
    for name, entry in (("code", code), *(("adopted", entry) for entry in adopted)):
        if not isinstance(entry, Mapping):
            return f"whose {name} is {json.dumps(entry, default=str)}"
        for key, form in _FORMS[name].items():
            value = entry.get(key, "")
            unknown = name == "code" and value is None and (key == "commit" or isinstance(entry.get("note"), str))
            if not unknown and not (isinstance(value, str) and re.fullmatch(form, value)):
                return f"whose {name} has {key} {json.dumps(value, default=str)}"
    return None


def is_shown(record: Mapping[str, Any], digest: str) -> bool:
    """Whether code of this digest is shown to give the numbers of a record: it trained it, or the record adopted it."""
    return digest in {entry.get("digest") for entry in (record.get("code", {}), *record.get("adopted", []))}


_UNKNOWN = {"digest": None, "commit": None, "note": "older than this key"}
_FORMS = {"code": {"digest": "[0-9a-f]{16}", "commit": r"[0-9a-f]{40}(\+changes)?"}}
_FORMS["adopted"] = _FORMS["code"] | {"evidence": ".+"}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers in a folder, whatever repository the environment names; None if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=20)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


@cache
def _spec(name: str) -> ModuleSpec | None:
    package, _, _ = name.rpartition(".")
    if not package:
        return find_spec(name)
    parent = _spec(package)
    folders = list((parent and parent.submodule_search_locations) or ())
    if package == EXPERIMENTS:  # as that package searches them
        folders += filter(None, os.environ.get("STN_EXPERIMENTS", "").split(os.pathsep))
    return PathFinder.find_spec(name, folders) if folders else None


@cache
def _installed_digest(roots: tuple[str, ...]) -> str:
    return _digest(_Graph(installed).reach(roots))


def _digest(parts: list[str]) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(f"{len(part)}\n{part}\n".encode())
    return hashed.hexdigest()


# ------------------------------------------------------------------------------------------------- from name to name


class _Graph:
    """The statements that roots reach, numbered in the order in which they are met. `reach` is called once."""

    def __init__(self, read: Reader):
        self.read = read
        self.packages = {"stn"}
        self.modules: dict[str, _Module | None] = {}
        self.numbers: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.loaded: set[str] = set()

    def reach(self, roots: tuple[str, ...]) -> list[str]:
        """A text for the roots and for each statement that they reach: its tree, and what its names stand for."""
        self.packages |= {root.split(":")[0].split(".")[0] for root in roots}
        parts = []
        for root in roots:
            name, _, symbol = root.partition(":")
            module = self.module(name)
            if module is None or not module.binds(symbol):
                raise ValueError(f"{root}: there is no such definition")
            places = module.defined.get(symbol, ())  # also of what stands apart, if it is asked for
            parts.append(" ".join(self._number((name, place)) for place in places) or self._symbol(name, symbol))
        done = 0
        while True:
            while done < len(self.keys):
                parts.append(self._part(*self.keys[done]))
                done += 1
            acting = [
                (_dump(statement.tree), (name, place))
                for name in self.loaded
                for place, statement in enumerate(self.present(name).statements)
                if statement.acts and (name, place) not in self.numbers
            ]
            if not acting:
                return parts
            for _, key in sorted(acting):  # in an order that does not depend on where they stand
                self._number(key)

    def module(self, name: str) -> "_Module | None":
        """A module of the project by its full name; None if it is none, or stands apart."""
        if name not in self.modules:
            ours = name.split(".")[0] in self.packages and name not in APART
            source = self.read(name) if ours else None
            self.modules[name] = source and _parsed(name, *source)
        return self.modules[name]

    def present(self, name: str) -> "_Module":
        """A module of the project that is known to be there."""
        module = self.module(name)
        assert module is not None, name
        return module

    def _part(self, name: str, place: int) -> str:
        statement = self.present(name).statements[place]
        meanings = [
            f"{'.'.join(chain)}: {meaning}"
            for chain in dict.fromkeys(_chains(statement.tree))
            if (meaning := self._meaning(name, statement, chain))
        ]
        return "\n".join([_dump(statement.tree), *meanings])

    def _meaning(self, name: str, statement: "_Statement", chain: tuple[str, ...]) -> str:
        """What a name with its attributes stands for in a statement; nothing for builtins and local variables."""
        head, *rest = chain
        if head in statement.imported:
            return self._full(statement.imported[head], rest)
        module = self.present(name)
        if head in module.imported and head not in module.defined:
            return self._full(module.imported[head], rest)
        return self._symbol(name, head) if module.binds(head) or module.stars else ""

    def _full(self, name: str, rest: list[str]) -> str:
        """What the full name of an import stands for, followed by attributes."""
        path = [*name.split("."), *rest]
        if path[0] not in self.packages:
            return name
        prefixes = [".".join(path[:end]) for end in range(1, len(path) + 1)]
        if not APART.isdisjoint(prefixes):
            return "apart"
        depth = next((i for i, prefix in enumerate(prefixes) if self.module(prefix) is None), len(path))
        if depth == 0:
            return name
        self._load(prefixes[depth - 1])
        return self._whole(prefixes[-1]) if depth == len(path) else self._symbol(prefixes[depth - 1], path[depth])

    def _symbol(self, name: str, symbol: str, seen: tuple[str, ...] = ()) -> str:
        """What a name stands for in a module: the numbers of its statements, or what it is imported from."""
        if f"{name}:{symbol}" in APART or name in seen:
            return "apart"
        self._load(name)
        module = self.present(name)
        meanings = [self._number((name, place)) for place in module.defined.get(symbol, ())]
        if symbol in module.imported:
            meanings.append(self._full(module.imported[symbol], []))
        if not meanings:
            stars = [star for star in module.stars if self.module(star) is not None]
            meanings = [self._symbol(star, symbol, (*seen, name)) for star in stars if self._has(star, symbol)]
        if not meanings and not seen and not module.stars:  # made when it is asked for
            return self._whole(name)
        return " ".join(meanings)

    def _has(self, name: str, symbol: str) -> bool:
        return self.present(name).binds(symbol) or bool(self.present(name).stars)

    def _whole(self, name: str) -> str:
        """Every statement of a module."""
        self._load(name)
        return " ".join(self._number((name, place)) for place in range(len(self.present(name).statements)))

    def _number(self, key: Key) -> str:
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            self.keys.append(key)
            for full in self.present(key[0]).statements[key[1]].imported.values():
                self._load(full)
                self._load(full.rpartition(".")[0])
        return f"#{self.numbers[key]}"

    def _load(self, name: str) -> None:
        """Note that a module is imported, with its packages and all that it imports itself."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            module = self.module(name) if name and name not in self.loaded else None
            if module is None:
                continue
            self.loaded.add(name)
            for full in (name, *module.imported.values(), *module.stars):
                waiting += [full, full.rpartition(".")[0]]


# ------------------------------------------------------------------------------------------------- syntax trees


@dataclass
class _Statement:
    """One statement at the top of a module, but an import. `imported` are full names by those bound inside it."""

    tree: ast.stmt
    first: int  # line
    last: int
    acts: bool  # does more than define names
    imported: dict[str, str]


@dataclass
class _Module:
    statements: list[_Statement] = field(default_factory=list)
    defined: dict[str, list[int]] = field(default_factory=dict)  # by name: the places of the statements that bind it
    imported: dict[str, str] = field(default_factory=dict)  # by name: "torch.nn", "stn.geometry.sampling.bilinear"
    stars: list[str] = field(default_factory=list)  # modules all of whose names are imported

    def binds(self, name: str) -> bool:
        return name in self.defined or name in self.imported


Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Import = ast.Import | ast.ImportFrom


@cache
def _parsed(name: str, source: str, is_package: bool) -> _Module:
    package = name if is_package else name.rpartition(".")[0]
    module = _Module()
    for tree in _body(ast.parse(source)):
        if isinstance(tree, Import):
            imported, stars = _imports(tree, package)
            module.imported |= imported
            module.stars += stars
        elif not _is_left_out(tree):
            first = min([tree.lineno, *(decorator.lineno for decorator in getattr(tree, "decorator_list", ()))])
            imported, acts = {}, _acts(tree)
            for inner in ast.walk(tree):
                if isinstance(inner, Import):
                    names, stars = _imports(inner, package)
                    imported |= names
                    module.stars += stars
            if not isinstance(tree, Definition):  # at the top, if under `try` or `if`
                module.imported |= imported
            for bound in _bound(tree):
                module.defined.setdefault(bound, []).append(len(module.statements))
            _clean(tree)
            module.statements.append(_Statement(tree, first, tree.end_lineno or first, acts, imported))
    return module


def _imports(tree: Import, package: str) -> tuple[dict[str, str], list[str]]:
    """The full names that an import binds, by the names that they get, and the modules of which it takes all."""
    if isinstance(tree, ast.Import):
        return {alias.asname or alias.name.split(".")[0]: _imported(alias) for alias in tree.names}, []
    origin = tree.module or ""
    if tree.level:
        parents = package.split(".")
        origin = ".".join([*parents[: len(parents) - tree.level + 1], *filter(None, [origin])])
    stars = [origin for alias in tree.names if alias.name == "*"]
    return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in tree.names if alias.name != "*"}, stars


def _imported(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.split(".")[0]


def _is_left_out(tree: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    return isinstance(tree, ast.If) and _names(tree.test) == {"__name__"}


def _is_for_types(tree: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` without an `else`, which is never run: also in a class, whose attributes it declares."""
    return isinstance(tree, ast.If) and _names(tree.test) == {"TYPE_CHECKING"} and not tree.orelse


def _names(tree: ast.AST) -> set[str]:
    return {chain[-1] for chain in _chains(tree)}


def _bound(tree: ast.AST) -> Iterator[str]:
    """The names that a statement at the top of a module binds, but for its imports."""
    if isinstance(tree, Definition):
        yield tree.name
        return
    for inner in ast.iter_child_nodes(tree):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif not isinstance(inner, ast.Lambda):
            yield from _bound(inner)


def _acts(tree: ast.stmt) -> bool:
    """Whether a statement does more than define names: then it counts wherever its module is imported."""
    if isinstance(tree, Definition):
        names = [chain[-1] for one in tree.decorator_list for chain in list(_chains(one))[:1]]
        return len(names) < len(tree.decorator_list) or not PLAIN_DECORATORS.issuperset(names)
    if not isinstance(tree, ast.Assign | ast.AnnAssign):
        return True
    targets = tree.targets if isinstance(tree, ast.Assign) else [tree.target]
    plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    return not plain or (tree.value is not None and _calls(tree.value))


def _calls(tree: ast.AST) -> bool:
    """Whether an expression calls something now, not in a function that it makes."""
    if isinstance(tree, ast.Lambda):
        return False
    return isinstance(tree, ast.Call) or any(_calls(inner) for inner in ast.iter_child_nodes(tree))


def _body(tree: ast.Module | Definition) -> list[ast.stmt]:
    """The statements of a module, class or function, without its docstring, `pass` and `if TYPE_CHECKING:`."""
    first = tree.body[:1]
    if first and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant):
        first = [] if isinstance(first[0].value.value, str) else first
    return [one for one in [*first, *tree.body[1:]] if not isinstance(one, ast.Pass) and not _is_for_types(one)]


def _clean(tree: ast.AST, local: bool = False) -> None:
    """Take out of a tree what does not count; `local` within a function.

    Imports in functions go because the meaning of their names is written beside the tree. The annotations of classes
    stay, since they make the fields of dataclasses, and those of decorated functions, which the decorator may read.
    """
    if isinstance(tree, Definition):
        tree.body = _body(tree)
    if isinstance(tree, Function):
        if not tree.decorator_list:
            tree.returns = None
            spec = tree.args
            for argument in (*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg):
                if argument is not None:
                    argument.annotation = None
        local = True
    elif isinstance(tree, ast.ClassDef):
        local = False
    if local and hasattr(tree, "body") and isinstance(tree.body, list):
        tree.body = [one for one in tree.body if not isinstance(one, Import)]
    if local and isinstance(tree, ast.AnnAssign):
        tree.annotation = None  # type: ignore[assignment]  # no more a tree that Python takes
    for inner in ast.iter_child_nodes(tree):
        _clean(inner, local)


def _fields(tree: ast.AST) -> Iterator[tuple[str, object]]:
    """The fields that count. Empty ones do not, so that those that newer Pythons add change nothing."""
    for name in tree._fields:
        value = getattr(tree, name, None)
        if name not in ("ctx", "kind", "type_comment", "simple") and value is not None and value != []:
            yield name, value


def _dump(tree: object) -> str:
    """A tree as text: the same for each version of Python that can parse it."""
    if isinstance(tree, ast.Constant):
        return f"{type(tree.value).__name__} {tree.value!r}"
    if isinstance(tree, ast.AST):
        if isinstance(tree, ast.AnnAssign) and tree.value is not None and tree.annotation is None:
            tree = ast.Assign([tree.target], tree.value)
        if isinstance(tree, ast.JoinedStr):  # Python 3.12 cuts their text otherwise than 3.11
            return f"JoinedStr({_dump(_merged(tree.values))})"
        return f"{type(tree).__name__}({','.join(f'{name}={_dump(value)}' for name, value in _fields(tree))})"
    if isinstance(tree, list):
        return f"[{','.join(map(_dump, tree))}]"
    return repr(tree)


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, each stretch of text as one."""
    merged: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(cast(str, merged[-1].value) + cast(str, value.value))
        elif not isinstance(value, ast.Constant) or value.value:
            merged.append(value)
    return merged


def _chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name that a tree uses, with the attributes asked of it: `F.relu` is ("F", "relu")."""
    attributes, root = [], tree
    while isinstance(root, ast.Attribute):
        attributes.append(root.attr)
        root = root.value
    if isinstance(root, ast.Name):
        yield (root.id, *reversed(attributes))
        return
    for _, value in _fields(root):
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, ast.AST):
                yield from _chains(inner)

"""Identifies the code that decides a result, by a digest and a commit. Reads modules without importing them.

The digest covers the definitions that training can reach. It starts at the data source, the network and the training
loop, and follows the names that each definition uses through imports, including those inside functions. It is computed
from syntax trees: formatting, comments, docstrings and annotations of functions do not change it, nor does the module
that holds a definition. A changed function voids the results of all code that uses it; a new function voids none.

Code that cannot be followed by name is always included: statements of an imported module that do more than define a
name (calls, `if`, `try`), definitions under a decorator that might register them, and every definition of a module
that is used as an object. `tests/test_codebase.py` compares this with the code that real training runs execute.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from stn.errors import UserError
from stn.syntax import Module, Statement, dump, name_chains, parse

TRAINING = "stn.training.run:train"
EXPERIMENTS = "stn.experiments"
# Modules and definitions that training reaches but that change no number.
APART = {
    "stn.schema",  # defines the keys; every record holds the resolved values
    "stn.config",  # reads the configs
    "stn.errors",  # is raised where a user is to be told, and
    "stn.front_door",  # prints it
    "stn.files:digest",  # names folders
    "stn.codebase",  # identifies the code
    "stn.syntax",  # parses the code
    "stn.training.record:provenance",  # describes the machine
    "stn.training.callbacks",  # observes training; the reference curves are computed with it
    "stn.tracking",  # logs to wandb
}
# Takes a module's full name. Returns its source and whether it is a package; None if there is no such module.
Reader = Callable[[str], tuple[str, bool] | None]
Key = tuple[str, int]  # a statement: the name of its module, and its index there


def training_digest(kind: str, read: Reader | None = None) -> str:
    """The digest of the code that trains an experiment, such as "mnist": sixteen hexadecimal digits.

    `read` gives the sources of modules; None reads the installed ones.
    """
    return digest_of(*roots(kind), read=read)


def roots(kind: str) -> tuple[str, str, str]:
    """Where the training of an experiment starts: its data source, its network, and the training loop."""
    return f"{EXPERIMENTS}.{kind}.data:source", f"{EXPERIMENTS}.{kind}.networks:network", TRAINING


def digest_of(*roots: str, read: Reader | None = None) -> str:
    """The digest of all code that the definitions `roots`, each "module:name", can reach: sixteen hexadecimal digits.

    Raises ValueError for an undefined root and UserError for a module that is installed without its source.
    """
    return _installed_digest(roots) if read is None else _digest(_Graph(read).reach(roots))


def reached(*roots: str) -> set[tuple[str, int, int]]:
    """The module, the first and the last line of every statement that the digest of these roots covers."""
    graph = _Graph(installed)
    graph.reach(roots)
    statements = [(name, graph.present(name).statements[place]) for name, place in graph.numbers]
    return {(name, statement.first, statement.last) for name, statement in statements}


def installed(name: str) -> tuple[str, bool] | None:
    """A `Reader` of the modules that `import` would load, from folders or a zip file. It imports nothing."""
    spec = _spec(name)
    if spec is None:
        return None
    package = spec.submodule_search_locations is not None
    if spec.loader is None or spec.origin is None:  # a folder without __init__.py
        return "", package
    source = cast(InspectLoader, spec.loader).get_source(name)  # loaders of files and zip files have get_source
    if source is None:
        raise UserError(
            f"{spec.origin}: its source file is missing, which records name the code by; install stn with its sources"
        )
    return source, package


@cache
def commit() -> str | None:
    """The checked-out commit of this code, with "+changes" if files of src/ or conf/ differ from it.

    None if it is unknown: without git, in a copied folder, or if the code is installed outside its repository.
    """
    file = Path(__file__).resolve()
    if not file.is_file() or _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    head, root = _git(file.parent, "rev-parse", "HEAD"), _git(file.parent, "rev-parse", "--show-toplevel")
    if head is None or root is None:
        return None
    changes = _git(Path(root), "status", "--porcelain", "--", "src", "conf")
    return head if changes == "" else f"{head}+changes"


def fault(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the `code` and `adopted` of a record; None if they are valid or the record predates them."""
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
    """Whether code of this digest is shown to give a record's numbers: it trained the record, or was adopted by it."""
    return digest in {entry.get("digest") for entry in (record.get("code", {}), *record.get("adopted", []))}


_UNKNOWN = {"digest": None, "commit": None, "note": "older than this key"}
_FORMS = {"code": {"digest": "[0-9a-f]{16}", "commit": r"[0-9a-f]{40}(\+changes)?"}}
_FORMS["adopted"] = _FORMS["code"] | {"evidence": ".+"}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in a folder, without the environment's GIT_ variables; None if git fails."""
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
    if package == EXPERIMENTS:  # the folders that stn.experiments searches
        folders += filter(None, os.environ.get("STN_EXPERIMENTS", "").split(os.pathsep))
    return PathFinder.find_spec(name, folders) if folders else None


@cache
def _installed_digest(roots: tuple[str, ...]) -> str:
    return _digest(_Graph(installed).reach(roots))


def _digest(parts: list[str]) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        hasher.update(f"{len(part)}\n{part}\n".encode())
    return hasher.hexdigest()


# ------------------------------------------------------------------------------------------------- from name to name


class _Graph:
    """The statements that roots reach, numbered in the order of discovery. Call `reach` once only."""

    def __init__(self, read: Reader):
        self.read = read
        self.packages = {"stn"}
        self.modules: dict[str, Module | None] = {}
        self.numbers: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.loaded: set[str] = set()

    def reach(self, roots: tuple[str, ...]) -> list[str]:
        """A text for each root, and one for each reached statement: its tree and what its names stand for."""
        self.packages |= {root.split(":")[0].split(".")[0] for root in roots}
        parts = []
        for root in roots:
            name, _, symbol = root.partition(":")
            module = self.module(name)
            if module is None or not module.binds(symbol):
                raise ValueError(f"{root}: no such definition")
            places = module.defined.get(symbol, ())  # a root counts even if it is in APART
            parts.append(" ".join(self._number((name, place)) for place in places) or self._symbol(name, symbol))
        position = 0
        while True:
            while position < len(self.keys):
                parts.append(self._part(*self.keys[position]))
                position += 1
            effects = [
                (dump(statement.tree), (name, place))
                for name in self.loaded
                for place, statement in enumerate(self.present(name).statements)
                if statement.acts and (name, place) not in self.numbers
            ]
            if not effects:
                return parts
            for _, key in sorted(effects):  # sorted by their trees, so that moving them changes nothing
                self._number(key)

    def module(self, name: str) -> "Module | None":
        """A module of the project by its full name; None for other modules and those in APART."""
        if name not in self.modules:
            internal = name.split(".")[0] in self.packages and name not in APART
            source = self.read(name) if internal else None
            self.modules[name] = source and parse(name, *source)
        return self.modules[name]

    def present(self, name: str) -> "Module":
        """A module of the project that must exist."""
        module = self.module(name)
        assert module is not None, name
        return module

    def _part(self, name: str, place: int) -> str:
        statement = self.present(name).statements[place]
        meanings = [
            f"{'.'.join(chain)}: {meaning}"
            for chain in dict.fromkeys(name_chains(statement.tree))
            if (meaning := self._meaning(name, statement, chain))
        ]
        return "\n".join([dump(statement.tree), *meanings])

    def _meaning(self, name: str, statement: "Statement", chain: tuple[str, ...]) -> str:
        """What a name with its attributes stands for in a statement; "" for builtins and local variables."""
        head, *rest = chain
        if head in statement.imported:
            return self._full(statement.imported[head], rest)
        module = self.present(name)
        if head in module.imported and head not in module.defined:
            return self._full(module.imported[head], rest)
        return self._symbol(name, head) if module.binds(head) or module.stars else ""

    def _full(self, name: str, rest: list[str]) -> str:
        """What the full name of an import, followed by the attributes `rest`, stands for."""
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

    def _symbol(self, name: str, symbol: str, trail: tuple[str, ...] = ()) -> str:
        """What a name stands for in a module: the numbers of its statements, or what it is imported from."""
        if f"{name}:{symbol}" in APART or name in trail:
            return "apart"
        self._load(name)
        module = self.present(name)
        meanings = [self._number((name, place)) for place in module.defined.get(symbol, ())]
        if symbol in module.imported:
            meanings.append(self._full(module.imported[symbol], []))
        if not meanings:
            stars = [star for star in module.stars if self.module(star) is not None]
            meanings = [self._symbol(star, symbol, (*trail, name)) for star in stars if self._has(star, symbol)]
        if not meanings and not trail and not module.stars:  # the module creates it at run time
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
        """Record that a module is imported, with its packages and its own imports."""
        queue = [name]
        while queue:
            name = queue.pop()
            module = self.module(name) if name and name not in self.loaded else None
            if module is None:
                continue
            self.loaded.add(name)
            for full in (name, *module.imported.values(), *module.stars):
                queue += [full, full.rpartition(".")[0]]

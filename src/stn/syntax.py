"""Modules as syntax trees, without what changes no result: formatting, comments, docstrings, annotations."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import cast

# Decorators that register nothing. A definition under any other counts wherever its module is imported.
PLAIN_DECORATORS = {
    *("dataclass", "contextmanager", "cache", "lru_cache", "rank_zero_only"),
    *("inference_mode", "no_grad", "once_differentiable", "jit"),
}


@dataclass
class Statement:
    """A statement at the top of a module, other than an import. `imported` are the full names of its inner imports."""

    tree: ast.stmt
    first: int  # line
    last: int
    acts: bool  # does more than define names
    imported: dict[str, str]


@dataclass
class Module:
    statements: list[Statement] = field(default_factory=list)
    defined: dict[str, list[int]] = field(default_factory=dict)  # by name: indices of the statements that bind it
    imported: dict[str, str] = field(default_factory=dict)  # by name: "torch.nn", "stn.geometry.sampling.bilinear"
    stars: list[str] = field(default_factory=list)  # modules all of whose names are imported

    def binds(self, name: str) -> bool:
        return name in self.defined or name in self.imported


Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Import = ast.Import | ast.ImportFrom


@cache
def parse(name: str, source: str, is_package: bool) -> Module:
    package = name if is_package else name.rpartition(".")[0]
    module = Module()
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
            if not isinstance(tree, Definition):  # under `try` or `if` they bind names of the module
                module.imported |= imported
            for identifier in _bound(tree):
                module.defined.setdefault(identifier, []).append(len(module.statements))
            _clean(tree)
            module.statements.append(Statement(tree, first, tree.end_lineno or first, acts, imported))
    return module


def _imports(tree: Import, package: str) -> tuple[dict[str, str], list[str]]:
    """The full names that an import binds, by their local names, and the modules of star imports."""
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
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(tree, ast.If) and _names(tree.test) == {"__name__"}


def _is_for_types(tree: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:` without an `else`, which never runs, in a module or a class."""
    return isinstance(tree, ast.If) and _names(tree.test) == {"TYPE_CHECKING"} and not tree.orelse


def _names(tree: ast.AST) -> set[str]:
    return {chain[-1] for chain in name_chains(tree)}


def _bound(tree: ast.AST) -> Iterator[str]:
    """The names that a statement at the top of a module binds, without imports."""
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
        names = [chain[-1] for node in tree.decorator_list for chain in list(name_chains(node))[:1]]
        return len(names) < len(tree.decorator_list) or not PLAIN_DECORATORS.issuperset(names)
    if not isinstance(tree, ast.Assign | ast.AnnAssign):
        return True
    targets = tree.targets if isinstance(tree, ast.Assign) else [tree.target]
    plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    return not plain or (tree.value is not None and _calls(tree.value))


def _calls(tree: ast.AST) -> bool:
    """Whether evaluating an expression calls something; a lambda calls nothing yet."""
    if isinstance(tree, ast.Lambda):
        return False
    return isinstance(tree, ast.Call) or any(_calls(inner) for inner in ast.iter_child_nodes(tree))


def _body(tree: ast.Module | Definition) -> list[ast.stmt]:
    """The statements of a module, class or function, without its docstring, `pass` and `if TYPE_CHECKING:`."""
    first = tree.body[:1]
    if first and isinstance(first[0], ast.Expr) and isinstance(first[0].value, ast.Constant):
        first = [] if isinstance(first[0].value.value, str) else first
    return [node for node in [*first, *tree.body[1:]] if not isinstance(node, ast.Pass) and not _is_for_types(node)]


def _clean(tree: ast.AST, local: bool = False) -> None:
    """Remove from a tree what does not count; `local` is true within a function.

    Imports in functions go because the digest holds the meanings of their names. Annotations in classes stay because
    they define the fields of dataclasses, those of decorated functions because the decorator may read them.
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
        tree.body = [node for node in tree.body if not isinstance(node, Import)]
    if local and isinstance(tree, ast.AnnAssign):
        tree.annotation = None  # type: ignore[assignment]  # Python would not accept this tree
    for inner in ast.iter_child_nodes(tree):
        _clean(inner, local)


def _fields(tree: ast.AST) -> Iterator[tuple[str, object]]:
    """The fields that count. Empty fields do not, so that fields that newer Pythons add change nothing."""
    for name in tree._fields:
        value = getattr(tree, name, None)
        if name not in ("ctx", "kind", "type_comment", "simple") and value is not None and value != []:
            yield name, value


def dump(tree: object) -> str:
    """A tree as text: the same for each version of Python that can parse it."""
    if isinstance(tree, ast.Constant):
        return f"{type(tree.value).__name__} {tree.value!r}"
    if isinstance(tree, ast.AST):
        if isinstance(tree, ast.AnnAssign) and tree.value is not None and tree.annotation is None:
            tree = ast.Assign([tree.target], tree.value)
        if isinstance(tree, ast.JoinedStr):  # Python 3.12 and 3.11 split their text differently
            return f"JoinedStr({dump(_merged(tree.values))})"
        return f"{type(tree).__name__}({','.join(f'{name}={dump(value)}' for name, value in _fields(tree))})"
    if isinstance(tree, list):
        return f"[{','.join(map(dump, tree))}]"
    return repr(tree)


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, with adjacent texts merged."""
    parts: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], ast.Constant):
            parts[-1] = ast.Constant(cast(str, parts[-1].value) + cast(str, value.value))
        elif not isinstance(value, ast.Constant) or value.value:
            parts.append(value)
    return parts


def name_chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name that a tree uses, with the attributes read from it: `F.relu` is ("F", "relu")."""
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
                yield from name_chains(inner)

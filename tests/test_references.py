"""What the project's texts name is in the repository: a reader is sent to no file that only its authors have."""

import ast
import re
import subprocess
import tokenize
from fnmatch import fnmatch
from pathlib import Path

import pytest

from conftest import ROOT

TEXTS = (".md", ".yaml", ".toml", ".cff", ".ipynb", "Makefile", "run", "config")
# Words that name a file of the kinds that are written by hand or by `python -m stn.table`; `<name>` and `*` are any.
NAMED = re.compile(r"(?<![\w{}$./<>*-])([\w.<>*/-]*[\w>*]\.(?:md|py|yaml|csv|toml|lock|cff|tex))\b(?![\w(/:])")
LINKS = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
PACKAGES = {"ruamel.yaml"}
MADE = ("data/", "outputs/", ".venv/")  # by running the project
AUTHORS = re.compile(rb"(?<![\w.$)])/(work|root|home|mnt|Users)/|(DESIGN|PAPER|REVIEW|STYLE)\.md")


def tracked() -> list[Path]:
    """The repository's files; in a downloaded archive of it, all but what running it makes."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {
        "data",
        "outputs",
        ".venv",
        ".git",
        "wandb",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".mypy_cache",
    }
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


FILES = tracked()
NAMES = [f"/{path.relative_to(ROOT).as_posix()}" for path in FILES]


def words(path: Path) -> str:
    """What a file says to its reader: of Python the comments and docstrings, else all."""
    if path.suffix != ".py":
        return path.read_text(encoding="utf-8")
    with tokenize.open(path) as source:
        said = [token.string for token in tokenize.generate_tokens(source.readline) if token.type == tokenize.COMMENT]
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]
    return "\n".join([*said, *(ast.get_docstring(node) or "" for node in nodes)])


def is_there(name: str) -> bool:
    """Whether a file of the repository is called so, from its root or from any folder in it."""
    pattern = re.sub(r"<[^>]*>", "*", re.sub(r"^(\.\.?/)+", "", name))
    return any(fnmatch(path, f"*/{pattern}") for path in NAMES)


def absent(text: str) -> list[str]:
    """The files that a text names and the repository has not."""
    names = set(NAMED.findall(re.sub(r"https?://\S+", "", text))) - PACKAGES
    return sorted(name for name in names if not name.startswith(MADE) and not is_there(name))


def test_every_file_that_a_text_names_is_in_the_repository():
    speaking = [path for path in FILES if path.suffix == ".py" or path.name.endswith(TEXTS)]
    assert len(speaking) > 100
    told = {path.relative_to(ROOT).as_posix(): absent(words(path)) for path in speaking}
    assert {path: names for path, names in told.items() if names} == {}


@pytest.mark.parametrize(
    "text, names",
    [
        ("the columns that DESIGN.md fixes", ["DESIGN.md"]),
        ("see `docs/lost/notes.md`, and README.md.", ["docs/lost/notes.md"]),
        ("`mnist/networks.py`, `conf/model/<name>.yaml`, conf/budget/*.yaml, hashlib.md5", []),
        ("`conf/model/no_such_<name>.yaml` and stn/train.py", ["conf/model/no_such_<name>.yaml"]),
    ],
)
def test_a_file_that_is_not_there_is_noticed(text, names):
    assert absent(text) == names


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".md"], ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(path):
    for target in LINKS.findall(path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):  # another site
            continue
        name, _, place = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        assert not place or place in headings(page), target


def headings(page: Path) -> set[str]:
    """The places of a page that GitHub gives its headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_no_text_names_a_place_that_only_its_authors_have():
    this = Path(__file__).name
    texts = {path: path.read_bytes() for path in FILES if path.name != this}
    told = [path.relative_to(ROOT) for path, text in texts.items() if AUTHORS.search(text)]
    assert told == []

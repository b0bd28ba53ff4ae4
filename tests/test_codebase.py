"""The digest that names the code of a result, and the commit beside it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT
from stn.codebase import digest_of, fault, installed, training_digest
from stn.errors import UserError
from stn.experiments import find_experiments
from stn.report import tables
from test_tables import write_cell

EXPERIMENTS = find_experiments()
TOY = {
    "toy": "",
    "toy.run": '''
"""The loop."""
import math
from toy.parts import step as make, LIMIT
from toy import tools

class Loop:
    limit: int = LIMIT

    def go(self, x):
        return [make(x) + tools.shift(x) + math.floor(x) for _ in range(self.limit)]

def train(x):
    from toy.late import last

    return last(Loop().go(x))
''',
    "toy.parts": "LIMIT = 3\nOTHER = 4\ndef step(x):\n    return helper(x) * 2\ndef helper(x):\n    return x\n"
    "def unused(x):\n    return x\n",
    "toy.tools": "def shift(x):\n    return x + 1\ndef turn(x):\n    return -x\n",
    "toy.late": "def last(x):\n    return x[-1]\n",
    "toy.apart": "print('nobody imports this')\n",
}


def toy(**changes: tuple[str, str]) -> str:
    """The digest of the toy; `parts=(old, new)` changes the text of a module."""
    sources = dict(TOY)
    for name, (old, new) in changes.items():
        assert old in sources[f"toy.{name}"]
        sources[f"toy.{name}"] = sources[f"toy.{name}"].replace(old, new)
    return of(sources)


def of(sources: dict[str, str], root: str = "toy.run:train") -> str:
    return digest_of(root, read=lambda name: (sources[name], name == "toy") if name in sources else None)


def project(name: str, old: str, new: str) -> dict[str, str]:
    """The digests of all experiments if a text of one module of the project is another."""

    def read(asked: str):
        found = installed(asked)
        if asked != name:
            return found
        assert old in found[0]
        return found[0].replace(old, new), found[1]

    return {kind: training_digest(kind, read=read) for kind in EXPERIMENTS}


def plain() -> dict[str, str]:
    return {kind: training_digest(kind) for kind in EXPERIMENTS}


@pytest.mark.parametrize(
    "change",
    [
        {"run": ('"""The loop."""', '"""Another docstring."""')},
        {"parts": ("return helper(x) * 2", "# a comment\n    return (helper(\n        x) * 2)")},
        {"parts": ("def step(x):", "def step(x: float) -> float:")},
        {
            "parts": (
                "def step(x):\n    return helper(x) * 2",
                'def step(x):\n    "Twice."\n    pass\n    return helper(x) * 2',
            )
        },
        {"parts": ("LIMIT = 3", "LIMIT = 0x3")},
        {"parts": ("    return x\n", "    return x\ndef new(x):\n    return 5\n")},
        {"parts": ("OTHER = 4", "OTHER = 5")},
        {"parts": ("def unused(x):\n    return x", "def unused(x):\n    return -x")},
        {"tools": ("return -x", "return x")},
        {"apart": ("nobody", "somebody")},
        {"run": ("import math\n", "import os\nimport math\n")},
        {"run": ("def train(x):", "if __name__ == '__main__':\n    train(1)\ndef train(x):")},
        {"run": ("import math\n", "import math\nif TYPE_CHECKING:\n    from toy.apart import Anything\n")},
        {"run": ("    limit: int", "    if TYPE_CHECKING:\n        size: int\n    limit: int")},
    ],
    ids=lambda change: str(next(iter(change.values()))[1])[:30],
)
def test_what_changes_no_result_changes_no_digest(change):
    assert toy(**change) == toy()


@pytest.mark.parametrize(
    "change",
    [
        {"parts": ("return helper(x) * 2", "return helper(x) * 3")},
        {"parts": ("return x\ndef unused", "return x + 0\ndef unused")},  # two calls away
        {"parts": ("LIMIT = 3", "LIMIT = 3.0")},
        {"run": ("    limit: int", "    if DEBUG:\n        size: int\n    limit: int")},
        {
            "run": (
                "    limit: int",
                "    if TYPE_CHECKING:\n        size = 1\n    else:\n        size = 2\n    limit: int",
            )
        },
        {"run": ("limit: int", "limit: float")},  # of a class: the field of a dataclass
        {"run": ("step as make", "unused as make")},
        {"run": ("import math", "import cmath as math")},
        {"tools": ("x + 1", "x + 2")},  # used through its module
        {"late": ("x[-1]", "x[0]")},  # imported in a function
        {"late": ("def last", "print('hello')\ndef last")},  # done when the module is imported
        {"parts": ("OTHER = 4", "OTHER = make()")},
        {"tools": ("def turn", "@register\ndef turn")},  # may be found otherwise than by its name
    ],
    ids=lambda change: str(next(iter(change.values()))[1])[:30],
)
def test_what_can_change_a_result_changes_the_digest(change):
    assert toy(**change) != toy()


def test_a_definition_may_move_to_another_module():
    moved = TOY | {
        "toy.parts": "from toy.parts2 import helper\nLIMIT = 3\ndef step(x):\n    return helper(x) * 2\n",
        "toy.parts2": "def helper(x):\n    return x\n",
    }
    assert of(moved) == toy()


def test_two_definitions_that_change_places_change_the_digest():
    both = {"toy": "", "toy.run": "from toy.a import f\nfrom toy.b import g\ndef train(): return f(1), g(2)\n"}
    both |= {"toy.a": "def f(x): return x\ndef g(x): return -x\n", "toy.b": "def f(x): return -x\ndef g(x): return x\n"}
    swapped = both | {"toy.run": both["toy.run"].replace("toy.a import f", "toy.b import f")}
    assert of(both) != of(swapped)
    one = both | {"toy.run": "from toy.a import f as one, g as two\ndef train(): return one(two(one(1)))\n"}
    other = both | {"toy.run": "from toy.a import g as one, f as two\ndef train(): return one(two(one(1)))\n"}
    assert of(one) != of(other)


@pytest.mark.parametrize(
    "imports",
    [
        "from toy.parts import *",
        "from toy.reexport import step, LIMIT",
        "from .parts import step, LIMIT",
        "from . import parts\nstep, LIMIT = parts.step, parts.LIMIT",
        "import toy.parts\nstep, LIMIT = toy.parts.step, toy.parts.LIMIT",
        "try:\n    from toy.parts import step, LIMIT\nexcept ImportError:\n    step = LIMIT = None",
        "from toy import parts\nstep, LIMIT = (getattr(parts, name) for name in ('step', 'LIMIT'))",
    ],
)
def test_every_kind_of_import_is_followed(imports):
    sources = {
        "toy": "",
        "toy.run": f"{imports}\ndef train(x):\n    return step(x) * LIMIT\n",
        "toy.reexport": "from toy.parts import step, LIMIT\n",
        "toy.parts": TOY["toy.parts"],
    }
    before = of(sources)
    for old, new in (("helper(x) * 2", "helper(x) * 3"), ("LIMIT = 3", "LIMIT = 4")):
        assert of(sources | {"toy.parts": TOY["toy.parts"].replace(old, new)}) != before


def test_the_digest_is_the_same_on_every_python():
    """Held against a constant, which Python 3.11, 3.12 and 3.13 give: their trees have different fields."""
    source = """
import functools
from dataclasses import dataclass, field
@dataclass(frozen=True)
class A:
    x: int = 0
    y: list = field(default_factory=list)
    async def f(self, /, a, *b, c=1.5e-3, **d):
        async with a as z:
            yield f"{z!r:>{a}} {'x' 'y'} text {{}}"
@functools.lru_cache
def train(a=b"bytes", *, b=1j, c=...):
    global G
    match a:
        case {"k": [1, *rest], **more} if (n := len(rest)) > 1: return A(n)
        case A(x=None) | str() as s: del s
        case _: raise ValueError from None
    try:
        return [lambda q, *, r=True: q for p in (*a, 1) if p] if not a else {**a, "k": {1, 2}}
    except* (OSError, KeyError) as error: assert error, "no"
    else: x: int = 3
    finally: a[1:2, ::3] = yield
    while True: break
    else: continue_ = -1 ** ~2 @ 3 // 4 <= 5 is not 6
    return x
G = 1
"""
    assert of({"toy": "", "toy.run": source}) == "be62c5b40f2df3e2"


@pytest.mark.parametrize(
    "name, old, new, kinds",
    [
        (
            "stn.training.learner",
            "betas = (budget.momentum, 0.999)",
            "betas = (budget.momentum, 0.99)",
            set(EXPERIMENTS),
        ),
        ("stn.geometry.transforms", "- 1", "- 1.0", set(EXPERIMENTS)),
        ("stn.experiments.mnist.distortions", "REDRAWS = 16", "REDRAWS = 17", {"mnist", "addition"}),
        ("stn.experiments.svhn.data", "CHUNK = 500", "CHUNK = 501", {"svhn"}),
        ("stn.experiments.cub.data", "mirrored < 0.5", "mirrored < 0.4", {"cub"}),
        ("stn.experiments.addition.networks", "import Tensor, nn", "import Tensor, nn\n\nNEW = 1", set()),
        ("stn.nn.convolutions", "TAPS = 32", "TAPS = 16", {"mnist", "addition", "colocalisation", "volumes"}),
        ("stn.config", "LARGEST_SEED = 2**32 - 1", "LARGEST_SEED = 1", set()),
        ("stn.training.callbacks", "rate = ", "rate = 2 *", set()),
    ],
)
def test_a_change_voids_the_experiments_that_it_can_change(name, old, new, kinds):
    before, after = plain(), project(name, old, new)
    assert {kind for kind in EXPERIMENTS if before[kind] != after[kind]} == kinds


def test_a_room_without_its_source_or_network_is_an_error():
    with pytest.raises(ValueError, match=r"toy\.run:absent: no such definition"):
        of(TOY, "toy.run:absent")
    with pytest.raises(ValueError, match=r"toy\.none:train: no such definition"):
        of(TOY, "toy.none:train")


def front_door(*path: Path, cwd: Path) -> str:
    """What a process says of the digest of distorted MNIST that has not loaded torch or Hydra."""
    code = (
        "import sys, time; begun = time.process_time()\n"
        "from stn.codebase import training_digest\n"
        "print(training_digest('mnist'), time.process_time() - begun)\n"
        "assert not {'torch', 'hydra', 'numpy', 'stn.nn'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_front_door_has_it_at_once_without_torch(tmp_path):
    digest, seconds = front_door(ROOT / "src", cwd=tmp_path).split()
    assert digest == plain()["mnist"]
    assert float(seconds) < 0.8  # 0.2 on an idle machine


def test_it_is_the_same_in_a_zip_file_and_in_a_copied_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "stn.zip", "w") as archive:
        for path in (ROOT / "src/stn").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT / "src"))
    shutil.copytree(ROOT / "src/stn", tmp_path / "a folder/stn")
    for place in ("stn.zip", "a folder"):
        assert front_door(tmp_path / place, cwd=tmp_path).split()[0] == plain()["mnist"]


# ------------------------------------------------------------------------------------------------- the commit


@pytest.fixture
def repository(tmp_path):
    """A git repository with the package, one commit."""
    folder = tmp_path / "repository"
    (folder / "conf").mkdir(parents=True)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / "conf/train.yaml").write_text("a: 1\n")
    (folder / "README.md").write_text("read\n")
    (folder / ".gitignore").write_text("__pycache__\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit_of(source: Path, cwd: Path, **environment: str) -> str:
    command = [sys.executable, "-c", "from stn.codebase import commit; print(commit())"]
    environment = {**os.environ, "PYTHONPATH": str(source), **environment}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_commit_is_that_of_the_code_and_says_if_files_differ_from_it(repository, tmp_path):
    head = git(repository, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert commit_of(repository / "src", tmp_path) == head
    (repository / "README.md").write_text("changed\n")
    assert commit_of(repository / "src", tmp_path, GIT_DIR="/nowhere/.git") == head
    for path in ("src/stn/new.py", "conf/train.yaml"):
        before = (repository / path).read_text() if (repository / path).exists() else None
        (repository / path).write_text("b = 2\n")
        assert commit_of(repository / "src", repository) == f"{head}+changes"
        (repository / path).unlink() if before is None else (repository / path).write_text(before)
    assert commit_of(repository / "src", tmp_path) == head


def test_without_git_or_outside_its_repository_the_commit_is_none(repository, tmp_path):
    assert commit_of(repository / "src", tmp_path, PATH="/nowhere") == "None"
    shutil.copytree(repository / "src", tmp_path / "copied")
    assert commit_of(tmp_path / "copied", repository) == "None"
    (repository / ".gitignore").write_text("/venv\n")
    shutil.copytree(repository / "src", repository / "venv")  # installed in an environment inside some repository
    assert commit_of(repository / "venv", repository) == "None"
    shutil.rmtree(repository / ".git")
    assert commit_of(repository / "src", tmp_path) == "None"


def test_a_repository_without_a_commit_has_none(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    assert commit_of(tmp_path / "src", tmp_path) == "None"


# ------------------------------------------------------------------------------------------------- records


DIGEST, COMMIT = "0123456789abcdef", "0" * 40
ENTRY = {"commit": COMMIT, "digest": DIGEST, "evidence": "13 reference curves"}


@pytest.mark.parametrize(
    "record",
    [
        {},  # older than these keys
        {"code": {"digest": DIGEST, "commit": COMMIT}, "adopted": []},
        {"code": {"digest": DIGEST, "commit": f"{COMMIT}+changes"}, "adopted": [ENTRY, ENTRY]},
        {"code": {"digest": DIGEST, "commit": None}},
        {"code": {"digest": None, "commit": None, "note": "not known"}, "adopted": [ENTRY]},
    ],
)
def test_a_record_may_say_what_is_known_of_its_code(record):
    assert fault(record) is None


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"code": None}, "whose code is null"),
        ({"code": {"digest": DIGEST}}, 'whose code has commit ""'),
        ({"code": {"digest": DIGEST[1:], "commit": COMMIT}}, f'whose code has digest "{DIGEST[1:]}"'),
        ({"code": {"digest": 5, "commit": COMMIT}}, "whose code has digest 5"),
        ({"code": {"digest": DIGEST, "commit": "main"}}, 'whose code has commit "main"'),
        ({"code": {"digest": None, "commit": None}}, "whose code has digest null"),  # and no word why
        ({"adopted": {}}, "whose adopted is no list"),
        ({"adopted": [COMMIT]}, f'whose adopted is "{COMMIT}"'),
        ({"adopted": [{**ENTRY, "digest": None}]}, "whose adopted has digest null"),
        ({"adopted": [{**ENTRY, "evidence": ""}]}, 'whose adopted has evidence ""'),
        ({"adopted": [{"commit": COMMIT, "digest": DIGEST}]}, 'whose adopted has evidence ""'),
    ],
)
def test_a_record_whose_code_is_malformed_is_refused_in_one_line(record, reason, tmp_path):
    assert fault(record) == reason
    path = write_cell(tmp_path, "CNN", "R", [120])
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: damaged record, {re.escape(reason)}; delete it"):
        tables.load(1, [path])


def test_a_caption_tells_of_cells_whose_code_is_not_shown_to_give_the_same_numbers(tmp_path):
    here = training_digest("mnist")
    cells = {
        "CNN": {"code": {"digest": here, "commit": COMMIT}, "adopted": []},
        "FCN": {"code": {"digest": DIGEST, "commit": COMMIT}, "adopted": [{**ENTRY, "digest": here}]},
        "ST-FCN Aff": {"code": {"digest": None, "commit": None, "note": "not known"}, "adopted": [{**ENTRY}]},
        "ST-CNN Aff": {},
    }
    paths = [write_cell(tmp_path, row, "R", [120], n=20, **code) for row, code in cells.items()]
    text = tables.to_markdown(tables.load(1, paths), 1)
    assert "2 of 4 cells were trained by earlier code, which is not shown to give the same numbers" in text
    assert "earlier code" not in tables.to_markdown(tables.load(1, paths[:2]), 1)
    assert "The cell was trained by earlier code" in tables.to_markdown(tables.load(1, paths[2:3]), 1)
    assert tables.to_csv(tables.load(1, paths[:1])) == tables.to_csv(
        tables.load(1, [write_cell(tmp_path, "CNN", "R", [120])])
    )

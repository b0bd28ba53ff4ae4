"""README.md and docs/: their commands, links, code and generated blocks are what they claim."""

import importlib.util
import os
import re
import shlex
import subprocess
import textwrap
from itertools import product
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import stn
from conftest import ROOT
from stn.config import CONF, checked
from stn.params import TABLES
from stn.report.blocks import find_pages
from stn.report.index import find_experiments
from stn.report.pages import MARK

PAGES = [ROOT / page for page in [*find_pages(ROOT), Path("CONTRIBUTING.md")]]
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)")
WITHOUT_MODEL = {"stn.fetch", "stn.distort", "stn.crop"}
RUNS = {"stn.train", "stn.evaluate", "stn.export", "stn.pretrain"} | WITHOUT_MODEL
LAUNCHERS = {"joblib", "submitit_slurm", "submitit_local"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[str]:
    """What a page tells readers to type: lines of code blocks without a language, and such code within a line."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCE.finditer(text) if not block["language"] for line in block["code"].splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines = [re.split(r"\s+#\s|\s&&\s", line.removeprefix("$ "))[0].strip() for line in lines]
    lines = [line for line in lines if "<" not in line]  # a name for the reader to choose
    return [line for line in lines if re.match(r"([A-Z_]+=\S+ )*(make|python -m|dvc)( |$)", line)]


def typed() -> list:
    return [pytest.param(line, id=f"{name(page)}: {line}") for page in PAGES for line in dict.fromkeys(commands(page))]


def test_the_readme_is_short_and_begins_with_what_to_type():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert {"make demo", "make table"} <= {re.split(r"\s+#", line)[0] for line in lines[:22]}


@pytest.mark.parametrize("line", typed())
def test_a_command_names_what_exists(line):
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word) or line.startswith("make")]
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "dvc":
        check_dvc(words[1:])
    else:
        module, *arguments = words[2:]
        assert importlib.util.find_spec(module), module
        if module in RUNS:
            check_overrides(module, arguments)


def check_make(words: list[str]) -> None:
    """Make itself takes the targets and variables; nothing is run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    result = subprocess.run(["make", "-n", *words], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def check_dvc(words: list[str]) -> None:
    assert words[0] in {"status", "repro", "remote", "push", "pull", "commit", "metrics", "plots", "exp"}
    if words[0] == "repro":
        stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
        assert set(words[1:]) <= set(stages)


def check_overrides(module: str, arguments: list[str]) -> None:
    """Every choice of a sweep composes; launchers exist."""
    if "--help" in arguments:
        return
    sweep = "-m" in arguments or "--multirun" in arguments
    for argument in arguments:
        if argument.startswith("hydra/launcher="):
            assert argument.partition("=")[2] in LAUNCHERS
    overrides = [a for a in arguments if not a.startswith(("-", "hydra/", "hydra.", "search="))]
    for argument in arguments:
        assert not argument.startswith("search=") or ((CONF / "search" / f"{argument[7:]}.yaml").is_file() and sweep)
    choices = []
    for override in overrides:
        key, _, value = override.partition("=")
        values = value.split(",") if sweep and not value.startswith("[") else [value]
        choices.append([f"{key}={choice}" for choice in values])
    for choice in product(*choices):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            checked(hydra.compose("train", overrides=list(choice)), list(choice), module not in WITHOUT_MODEL)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and MkDocs make them of its headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in found]
    return {re.sub(r"[\s-]+", "-", text) for text in words}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for match in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, anchor = match["target"], match["anchor"]
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.is_file() and path.is_relative_to(ROOT), f"{name(page)}: {match[0]}"
        if anchor:
            assert anchor in headings(path), f"{name(page)}: {match[0]}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for path in re.findall(r"`((?:conf|src|docs|tests|reports|benchmarks)/[\w/.*-]*)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), f"{name(page)}: {path}"


PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """The Python code of a page, each block with as many lines before it as there are on the page."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text.count("\n", 0, block.start(2)) + textwrap.dedent(block[2]) for block in PYTHON.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name)
def test_python_code_runs_from_the_top_of_a_page_to_its_end(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what a block writes
    torch.manual_seed(0)
    variables = {"__name__": "page"}
    for code in python_blocks(page):
        if "torch.onnx" in code and not importlib.util.find_spec("onnxscript"):
            continue  # an optional package; CI's other tests of ONNX need it too
        if "import timm" in code and not importlib.util.find_spec("timm"):
            continue  # an optional package too
        if "stn.load" in code and not stn.list_weights():
            continue  # none are published yet
        exec(compile(code, page, "exec"), variables)


def test_every_table_has_a_page_and_every_experiments_page_a_line_in_the_index():
    marks = {page: set(MARK.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert {f"table{number}" for number in TABLES} <= set().union(*marks.values())
    described = find_experiments(ROOT)
    assert {page for _, page in described} == {
        page.relative_to(ROOT) for page in (ROOT / "docs/experiments").glob("*.md") if page.name != "index.md"
    }
    for experiment, page in described:
        assert f"table{experiment.table}" in marks[ROOT / page]
        assert not experiment.anchor or experiment.anchor in headings(ROOT / page)
    assert {experiment.table for experiment, _ in described} == set(TABLES)


def test_every_figure_is_on_a_page_with_words_for_those_who_cannot_see_it():
    shown = {}
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            shown[(page.parent / target).resolve()] = words
    assert set(shown) >= set((ROOT / "reports/figures").iterdir()) and all(shown.values())


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """mkdocs.yml may hold tags of its own."""

    def paths(nav) -> list[str]:
        parts = nav.values() if isinstance(nav, dict) else nav
        return [nav] if isinstance(nav, str) else [path for part in parts for path in paths(part)]

    listed = paths(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    files = [path.relative_to(ROOT / "docs") for kind in ("*.md", "*.ipynb") for path in (ROOT / "docs").rglob(kind)]
    pages = {path.with_suffix(".md").as_posix() for path in files}  # a notebook becomes a page
    assert pages | {"CONTRIBUTING.md"} == set(listed) and len(listed) == len(set(listed))


def test_errors_that_the_documentation_explains_are_errors_of_the_project():
    sources = [ROOT / "Makefile", *(ROOT / "src").rglob("*.py")]
    code = " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sources)
    code += " Could not find 'data/ Key ' is not in struct"  # Hydra's
    text = (ROOT / "docs/usage/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for part in filter(None, (part.strip(" ':") for part in message.split("..."))):
            assert part in code, message


@pytest.mark.parametrize(
    "line",
    [
        "make tabel",
        "make table TABEL=1",
        "python -m stn.trian",
        "python -m stn.train model=cnnn",
        "python -m stn.train -m model=cnn,fcnn",
        "python -m stn.train model.widht=3",
        "python -m stn.train -m hydra/launcher=jobslib",
        "dvc repro table99",
    ],
)
def test_a_command_that_names_nothing_is_found(line):
    with pytest.raises((AssertionError, HydraException, OmegaConfBaseException)):
        test_a_command_names_what_exists(line)

"""Promises of tables as objects: what a new table, row or column takes, and what report/ does not know."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from conftest import ROOT, one_error, run, spawn
from stn.errors import UserError
from stn.experiments import find_tables
from stn.experiments.mnist.table import CNN, DISTORTED, R
from stn.report.markdown import render_markdown
from stn.report.records import load_records
from stn.report.table import Column, Row, Table
from synthetic import write_cell, write_table

TOY = {
    "__init__.py": "",
    "config.py": '''
"""The schema of toys: vectors of which the largest number is to be found."""

from dataclasses import dataclass

from stn.schema import DataConfig, ModelConfig


@dataclass(kw_only=True)
class ToyDataConfig(DataConfig):
    images: int


@dataclass(kw_only=True)
class ToyModelConfig(ModelConfig):
    units: int
    twice: bool


DATA, MODEL = ToyDataConfig, ToyModelConfig
SMALLEST = {"model.units": 1}
''',
    "data.py": '''
"""Toys: drawn once, and stored."""

from pathlib import Path

import numpy as np
import torch

from stn.data.stored import read_set, sha256, writing_sets

DOOR = "distort"


def fetch(data):
    raw = Path(data.raw)
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "toys.txt").write_text("made here")
    return [raw / "toys.txt"]


def stored_folder(data):
    return Path(data.stored)


def store(data, scratch):
    about = {"distortion": "numbers", "seed": data.seed, "sets": {}}
    draws = np.random.RandomState(data.seed)
    with writing_sets(Path(data.stored), scratch, about) as work:
        for split in ("train", "validation", "test"):
            numbers = draws.rand(data.images, data.canvas).astype(np.float32)
            np.save(work / f"{split}.npy", numbers)
            about["sets"][split] = {"images": data.images, "sha256": sha256(numbers)}
    return about


class Toys:
    images_per_pick, chunk = 1, 50

    def __init__(self, data):
        self.data, self.shape, self.sets = data, (data.canvas,), {}

    def load(self, split):
        folder = Path(self.data.stored)
        self.sets[split] = torch.from_numpy(
            read_set(
                folder,
                split,
                {"seed": self.data.seed},
                f"python -m stn.distort data={self.data.name}",
                lambda about, facts: np.load(folder / f"{split}.npy"),
                lambda numbers, facts: sha256(numbers) == facts["sha256"],
            )
        )

    def count(self, split):
        return len(self.sets[split])

    def batch(self, split, index, device):
        numbers = self.sets[split][index].to(device)
        return numbers, numbers.argmax(1)

    def train_batch(self, index, draws, size, part, device):
        return self.batch("train", index, device)

    def evidence(self, network, arrays):
        return {}


source = Toys
''',
    "networks.py": '''
"""A network of one hidden layer."""

from torch import nn

from stn.experiments.base import group_parameters


class ToyNetwork(nn.Module):
    def __init__(self, numbers, units):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(numbers, units), nn.ReLU(), nn.Linear(units, numbers))

    def forward(self, numbers):
        return self.layers(numbers)

    def thetas(self, numbers):
        return {}

    def parameter_groups(self):
        return group_parameters(self)


def network(model, data):
    return ToyNetwork(data.canvas, model.units * (2 if model.twice else 1))
''',
    "table.py": '''
"""Table 90: toys."""

from stn.report.comparisons import WITH_AND_WITHOUT
from stn.report.table import Column, Figure, Grid, Row, Section, Table

TOYS = Column("toys", "toys")
SMALL = Row("small", "toy", paper={TOYS: 5.0})
LARGE = Row("large", "toy", ("model.twice=true",), baseline=SMALL)


def describe_seeds(table, records):
    body = [[record.row.label, str(len(record.seeds))] for record in records]
    return Section("Seeds of the toys", ["How many.", Grid(["model", "seeds"], body, "lr")]) if body else None


TABLES = (
    Table(
        number=90,
        folder="toys",
        title="toys",
        measure="Test error in %",
        columns=(TOYS,),
        blocks=((SMALL, LARGE),),
        contests=(WITH_AND_WITHOUT,),
        sections=(describe_seeds,),
        figures=(Figure("table90.png", "stn.experiments.toys.figures:draw_errors"),),
    ),
)
''',
    "figures.py": '''
"""The figure of toys."""

from stn.experiments.toys.table import TABLES
from stn.report.drawing import assign_colours, open_sheet, select


def draw_errors(records):
    shown, colours = select(TABLES[0], records, lambda row: True), assign_colours(TABLES[0].rows)
    with open_sheet(4, 3) as sheet:
        axes = sheet.axes(1, 0.5, 2.5, 2)
        for (row, _), record in shown.records.items():
            axes.bar([row.name], [record.error], color=colours[row])
    return sheet
''',
    "conf/data/toys.yaml": """
name: toys
kind: toys
part: null
raw: data/raw/toys
stored: data/stored/toys
canvas: 5
validation: 1
seed: 1
images: 200
""",
    "conf/model/toy.yaml": "name: toy\nunits: 8\ntwice: false\n",
}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A workspace, and an experiment in a folder of its own, which the environment names."""
    folder = tmp_path / "experiments"
    for name, text in TOY.items():
        path = folder / "toys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("STN_EXPERIMENTS", str(folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    work = tmp_path / "work"
    work.mkdir()
    (work / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return work


def test_an_experiment_runs_from_its_config_to_its_table_without_a_change_of_the_project(toys):
    for door in ("stn.fetch", "stn.distort"):
        assert spawn(door, "data=toys", cwd=toys).returncode == 0
    settings = ["data=toys", "model=toy", "budget=smoke", "budget.steps=20", "budget.validate_every=10", "logger=none"]
    for cell, key in (([], "toys-toy"), (["model.twice=true"], "toys-toy-twice_true")):
        result = spawn("stn.train", *settings, *cell, f"record=reports/results/smoke/toys/{key}", cwd=toys)
        assert result.returncode == 0, result.stderr
    record = json.loads((toys / "reports/results/smoke/toys/toys-toy.json").read_text())
    assert record["parameters"] == 5 * 8 + 8 + 8 * 5 + 5 and re.fullmatch("[0-9a-f]{16}", record["code"]["digest"])
    text = (toys / "params.yaml").read_text()
    (toys / "params.yaml").write_text(re.sub(r"(?m)^budget: \w+", "budget: smoke", text))
    result = spawn("stn.table", "--table", "90", cwd=toys)
    assert result.returncode == 0 and "Table 90: toys" in result.stdout, result.stderr


def test_the_cells_of_an_experiment_are_trained_by_the_pipeline(toys):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, toys)
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, toys / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=toys, check=True)
    result = spawn("stn.pipeline", "table", "--table", "90", "--budget", "smoke", "--jobs", "1", cwd=toys)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Table 90: toys" in result.stdout and "2 of 2 cells trained here" in result.stdout
    text = (toys / "reports/table90.md").read_text()
    assert "## Seeds of the toys" in text and "| large" in text
    assert (toys / "reports/table90.csv").read_text().count("\n") == 3 and (toys / "reports/table90.tex").exists()
    assert (toys / "reports/figures/table90.png").stat().st_size > 1000


def test_an_experiment_may_fetch_and_store_nothing(toys):
    data = toys.parent / "experiments/toys/data.py"
    text = data.read_text()
    data.write_text(re.sub(r"(?ms)^def (fetch|store)\(.*?(?=^\w)", "", text))
    for door in ("stn.fetch", "stn.distort", "stn.crop"):
        assert "train it without this step" in one_error(spawn(door, "data=toys", cwd=toys))
    cells = json.loads(spawn("stn.cells", "--print", cwd=toys).stdout)
    assert "toys" not in cells["stored"] and "toys" not in cells["raw"]
    assert cells["cells"]["quick-toys-toy"]["stored"] == "params.yaml"


def test_two_tables_of_one_number_are_refused(toys):
    experiments = toys.parent / "experiments"
    shutil.copytree(experiments / "toys", experiments / "toys_again")
    assert "toys_again: Table 90 exists already, toys" in spawn("stn.table", "--table", "90", cwd=toys).stderr


def test_a_new_row_is_one_line(tmp_path):
    row = Row("ST-CNN Sim", "st_cnn_similarity", paper={R: 0.7}, baseline=CNN, transformer=True)
    table = replace(DISTORTED, blocks=(*DISTORTED.blocks, (row,)))
    paths = write_table(tmp_path, ["R"])
    path = write_cell(tmp_path, "ST-CNN Aff", "R", [90], model="st_cnn_similarity")
    for suffix in (".json", ".npz"):
        path.with_suffix(suffix).rename(tmp_path / f"mnist_r-st_cnn_similarity{suffix}")
    paths = [path for path in paths if path.exists()]
    text = render_markdown(table, load_records(table, [*paths, tmp_path / "mnist_r-st_cnn_similarity.json"]))
    assert re.search(r"\| ST-CNN Sim +\| +\*\*0\.90\*\* \(0\.7\) ≈ +\|", text)
    assert re.search(r"\| ST-CNN Sim +\| R +\| +2\.00 \| +0\.90 \|", text)


def test_a_label_can_change_without_a_new_record(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    table = replace(DISTORTED, blocks=((replace(CNN, label="ConvNet", baseline=None),),), sections=())
    assert "| ConvNet | **1.20** (1.2) ≈ |" in render_markdown(table, load_records(table, [path])).replace("  ", "")


def test_one_record_may_stand_in_two_tables(tmp_path):
    path = write_cell(tmp_path, "CNN", "R", [120])
    other = replace(DISTORTED, number=91, blocks=((Row("the CNN", "cnn"),),), sections=())
    for table, label in ((DISTORTED, "CNN"), (other, "the CNN")):
        (record,) = load_records(table, [path])
        assert record.row.label == label


COLUMN = Column("R", "mnist_r")
OTHER = Row("other", "cnn")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ((Row("CNN", "cnn"), Row("CNN", "fcn")), "row 'CNN' appears twice"),
        ((Row("CNN", "cnn", baseline=OTHER),), "'other' is no row of it"),
        ((Row("CNN", "cnn", paper={R: 1.0}),), "row 'CNN' names a column 'R', which is not in the table"),
        ((Row("CNN"),), "row 'CNN' needs either a model or a source to cite"),
        ((Row("CNN", "cnn", cited="a paper"),), "row 'CNN' needs either a model or a source"),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(rows, reason):
    with pytest.raises(ValueError, match=f"Table 92: {reason}"):
        Table(92, "toys", "a table", "Test error in %", (COLUMN,), (rows,))


def test_every_cell_of_every_table_has_its_configs_and_stands_at_one_place_for_each_of_its_rows():
    for table in find_tables().values():
        for cell in table.cells():
            files = ROOT / f"conf/data/{cell.data}.yaml", ROOT / f"conf/model/{cell.model}.yaml"
            assert all(file.is_file() for file in files)
        for places in table.places.values():
            assert len(places) == len(set(places))


def test_every_figure_names_a_function_that_draws_it():
    for table in find_tables().values():
        for figure in table.figures:
            with pytest.raises(UserError, match=f"no record to draw .*`{table.make}`"):
                figure.write([], ROOT / "nowhere")


# What report/ does not know


def test_the_report_has_no_word_of_an_experiment():
    words = re.compile(
        r"mnist|svhn|house.?number|\bcub\b|bird|addition|\bsums\b|co.?locali|volume|voxel|digit|species|clutter|strips"
        r"|kernel|FCN|CNN|2x|\bAff\b|\bProj\b|\bTPS\b|ST-|\"(pair|window|phi|cloud|part|pose|example)_|positions",
        re.IGNORECASE,
    )
    for path in (ROOT / "src/stn/report").glob("*.py"):
        lines = [f"{path.name}:{i}: {line}" for i, line in enumerate(path.read_text().splitlines(), 1)]
        assert not [line for line in lines if words.search(line.partition(": ")[2])]


def test_the_report_imports_no_experiment():
    for path in (ROOT / "src/stn/report").glob("*.py"):
        if path.name != "tables.py":  # which finds a table by its number
            assert "stn.experiments" not in path.read_text(), path


def test_tables_are_light_to_import(tmp_path):
    """The pipeline reads its cells from them, and `make table` of a table without records should not load torch."""
    code = "import sys; from stn.experiments import find_tables; find_tables(); print(*sys.modules)"
    (tmp_path / "probe.py").write_text(f"def main():\n    pass\n{code}\n")
    result = spawn("probe", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not {"torch", "matplotlib", "scipy", "lightning", "omegaconf"} & set(result.stdout.split())


def test_no_module_is_too_long_to_read():
    for path in (ROOT / "src/stn").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path


def test_an_unknown_table_is_one_line_that_lists_all(tmp_path):
    assert "--table 90 is not one of 1, 2, 3" in one_error(run("stn.table", "--table", "90", cwd=tmp_path))

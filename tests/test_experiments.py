"""Promises of tables as objects: what a new table, row or column takes, and what report/ does not know."""

import importlib
import re
import sys
from dataclasses import replace

import pytest

import stn.experiments
from conftest import ROOT, one_error, run, spawn
from stn.errors import UserError
from stn.experiments import find_tables
from stn.experiments.mnist.table import CNN, DISTORTED, R
from stn.report.markdown import render_markdown
from stn.report.records import load_records
from stn.report.table import Column, Row, Table
from synthetic import write_cell, write_table

TABLE = '''
"""Table 90: a toy."""

from stn.report.comparisons import WITH_AND_WITHOUT
from stn.report.table import Column, Figure, Grid, Row, Section, Table

TOYS = Column("toys", "toys")
CNN = Row("CNN", "toy_cnn", paper={TOYS: 5.0})


def describe_seeds(table, records):
    body = [[record.row.label, str(len(record.seeds))] for record in records]
    return Section("Seeds of the toy", ["How many.", Grid(["model", "seeds"], body, "lr")]) if body else None


TABLES = (
    Table(
        number=90,
        folder="toys",
        title="toys",
        measure="Test error in %",
        columns=(TOYS,),
        blocks=((CNN, Row("ST-CNN", "toy_st", baseline=CNN, transformer=True)),),
        arrays=("theta",),
        contests=(WITH_AND_WITHOUT,),
        sections=(describe_seeds,),
        figures=(Figure("table90.png", "stn.experiments.toys.figures:draw_errors"),),
    ),
)
'''
FIGURES = """
from stn.experiments.toys.table import TABLES
from stn.report.drawing import assign_colours, open_sheet, select


def draw_errors(records):
    shown, colours = select(TABLES[0], records, lambda row: True), assign_colours(TABLES[0].rows)
    with open_sheet(4, 3) as sheet:
        axes = sheet.axes(1, 0.5, 2.5, 2)
        for (row, _), record in shown.records.items():
            axes.bar([row.name], [record.error], color=colours[row])
    return sheet
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """An experiment in a folder of its own, with records of both of its cells."""
    folder = tmp_path / "experiments" / "toys"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "table.py").write_text(TABLE)
    (folder / "figures.py").write_text(FIGURES)
    monkeypatch.setattr(stn.experiments, "__path__", [*stn.experiments.__path__, str(folder.parent)])
    importlib.invalidate_caches()
    known = set(sys.modules)
    records = tmp_path / "reports/results/quick/table90"
    write_cell(records, "CNN", "toys", [200, 210])
    write_cell(records, "ST-CNN", "toys", [100, 90])
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("stn.experiments."):
            del sys.modules[name]


def test_a_new_experiment_is_a_folder_with_its_table(toys, monkeypatch):
    (toys / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr("stn.table.config", lambda *cell: None)  # its configs are not the report's matter
    monkeypatch.setattr(
        "stn.table.experiment",
        lambda cfg: {"data": {"kind": "toys"}, "model": {"filters": 64, "localisation": {"filters": 20}}, "seeds": [0]},
    )
    monkeypatch.setattr("stn.table.filled", dict)
    result = run("stn.table", "--table", "90", cwd=toys)
    assert result.returncode == 0 and "Table 90: toys" in result.stdout, result.stderr
    text = (toys / "reports/table90.md").read_text()
    assert "An ST network beats its baseline in 1 of 1 cells." in text
    assert "## Seeds of the toy" in text and re.search(r"\| CNN +\| \*\*2\.05\*\* \(5\.0\) ↓ \|", text)
    assert (toys / "reports/table90.csv").read_text().count("\n") == 3 and (toys / "reports/table90.tex").exists()
    result = run("stn.figures", "--table", "90", cwd=toys)
    assert result.returncode == 0 and (toys / "reports/figures/table90.png").stat().st_size > 1000, result.stderr


def test_two_tables_of_one_number_are_refused(toys):
    again = toys / "experiments/toys_again"
    again.mkdir()
    for name in ("__init__.py", "table.py"):
        (again / name).write_text((toys / "experiments/toys" / name).read_text())
    with pytest.raises(ValueError, match="toys_again: there is a Table 90 already, toys"):
        find_tables()


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
        ((Row("CNN", "cnn"), Row("CNN", "fcn")), "row 'CNN' is there twice"),
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


def test_no_module_of_the_report_is_too_long_to_read():
    for folder in ("report", "experiments"):
        for path in (ROOT / "src/stn" / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 450, path


def test_an_unknown_table_is_one_line_that_lists_all(tmp_path):
    assert "--table 9: there is 1, 2, 3" in one_error(run("stn.table", "--table", "9", cwd=tmp_path))

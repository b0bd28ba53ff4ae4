"""Generated blocks of README.md and docs/ say what the records say."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import stn.table
from conftest import ROOT, one_error, run
from stn.codebase import training_digest
from stn.errors import UserError
from stn.report import tables
from stn.report.blocks import Report, Sources, find_pages
from stn.report.index import Experiment, find_experiments
from stn.report.pages import ABSENT, fill, make_block
from stn.report.table import Column, Row
from test_tables import write_cell

TITLE = '<!-- index: {"title": "Digits", "table": 1, "columns": ["R", "P"], "without": ["CNN, true pose"]} -->\n'
CELLS = {("CNN", "R"): 180, ("ST-CNN Aff", "R"): 120, ("CNN", "P"): 300, ("ST-CNN Aff", "P"): 320}
PAGE = Path("docs/experiments/digits.md")


def lines(block: str) -> list[list[str]]:
    """The cells of a Markdown table, its head first."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"]
    return [found[0], *found[2:]]


@pytest.fixture
def project(tmp_path):
    """A folder with a README and a page, and records of Table 1 at two budgets, the longer one in part."""
    (tmp_path / PAGE.parent).mkdir(parents=True)
    (tmp_path / PAGE).write_text(f"# Digits\n\n{TITLE}")
    (tmp_path / "README.md").write_text("# Project\n")
    budgets = []
    for budget, cells, steps in (("quick", CELLS, 2000), ("medium", dict(list(CELLS.items())[:3]), 9000)):
        folder = tmp_path / "results" / budget
        folder.mkdir(parents=True)
        paths = [write_cell(folder, *cell, [n], budget=budget) for cell, n in cells.items()]
        records = tables.load(1, paths)
        budgets.append(
            [replace(r, seeds=(replace(r.seeds[0], steps=steps, images_seen=256 * steps),)) for r in records]
        )
    return tmp_path, Sources(lambda number: Report(budgets, f"table{number}"), {}, tmp_path), budgets


def test_the_index_has_the_best_of_each_whole_column_at_the_longest_budget_that_has_half_of_the_cells(project):
    _, sources, budgets = project
    head, line = lines(make_block("index", Path("README.md"), sources))
    assert head == ["experiment", "best of ours", "the paper", "data", "budget"]
    assert line[0] == "[Digits](docs/experiments/digits.md), error %"
    best = min(record.error for record in budgets[1] if record.column.label == "R")
    assert line[1:3] == [f"R **{best:.2f}** ST-CNN Aff", "0.7"]  # of P this budget lacks a cell
    assert line[3:] == ["whole, 3 of 4 cells", "`medium`, 1 seed"]
    assert "](digits.md)" in make_block("index", PAGE, sources)  # a link is relative to its page
    budgets[1][1:] = []  # 1 of 4 cells
    line = lines(make_block("index", Path("README.md"), sources))[1]
    assert line[3:] == ["whole", "`quick`, 1 seed"]
    best = [min(r.error for r in budgets[0] if r.column.label == name) for name in ("R", "P")]
    assert [f"{error:.2f}" for error in best] == re.findall(r"\*\*([\d.]+)\*\*", line[1]) and line[2] == "0.7<br>0.8"


def test_a_row_on_demand_is_not_the_best_of_ours(project):
    """The best row of medium becomes one that is told what the others have to find."""
    _, sources, budgets = project
    best = min(budgets[1], key=lambda record: record.error)
    told = replace(best, row=replace(best.row, on_demand=True))
    budgets[1][:] = [told if record is best else record for record in budgets[1]]
    line = lines(make_block("index", Path("README.md"), sources))[1]
    assert f"{best.error:.2f}" not in line[1]


def test_the_best_of_a_column_is_chosen_on_the_seeds_that_all_of_its_cells_have(project, tmp_path):
    """With the seed that both have, the CNN is better; the mean of its three seeds is worse than the ST-CNN's one."""
    _, sources, budgets = project
    paths = [write_cell(tmp_path, "CNN", "R", [110, 140, 140]), write_cell(tmp_path, "ST-CNN Aff", "R", [120])]
    budgets[:] = [tables.load(1, [], paths)]
    (line,) = lines(make_block("index", PAGE, sources))[1:]
    assert line[1] == "R **1.30** CNN"
    seeds = budgets[0][0].seeds
    budgets[0][0] = replace(budgets[0][0], seeds=seeds[1:])  # none in common
    assert lines(make_block("index", PAGE, sources))[1][1] == "R **1.20** ST-CNN Aff"


def test_one_cell_is_not_called_cells(project):
    _, sources, budgets = project
    budgets[1][1:] = []
    costs = [line[2] for line in lines(make_block("costs", PAGE, sources))[1:]]
    assert [cost.partition(",")[0] for cost in costs] == ["4 cells", "1 cell"]


def test_every_page_says_which_cells_were_trained_by_other_code(project):
    """The front page, and each budget's line in the list of budgets."""
    _, sources, budgets = project
    now = {"digest": training_digest("mnist"), "commit": None}
    sentence = "trained by earlier code, which is not shown to give the same numbers as the code here."
    for records in budgets:
        records[:] = [replace(record, code=now) for record in records]
    front, aside = (make_block(name, PAGE, sources) for name in ("results", "table1"))
    assert sentence not in front + aside
    budgets[0][:2] = [replace(record, code={}) for record in budgets[0][:2]]
    budgets[1][:1] = [replace(record, code={}) for record in budgets[1][:1]]
    front, aside = (make_block(name, PAGE, sources) for name in ("results", "table1"))
    assert f"2 of 4 cells were {sentence}" in front.partition("\n\n")[0]
    items = [line for line in aside.splitlines() if line.startswith("- ")]
    assert [f"{n} cells were {sentence}" in line for n, line in zip(("2 of 4", "1 of 3"), items, strict=True)] == [
        True,
        True,
    ]


def test_a_stand_in_for_the_papers_data_is_not_held_against_the_paper(project):
    folder, sources, budgets = project
    for records in budgets:
        records[:] = [replace(record, part="a part") for record in records]
    with pytest.raises(UserError, match="Digits: not on the paper's data"):
        make_block("index", PAGE, sources)
    (folder / PAGE).write_text(TITLE.replace("{", '{"stand_in": "part of the data", '))
    (line,) = lines(make_block("index", PAGE, sources))[1:]
    assert line[2:4] == ["–", "part of the data, 3 of 4 cells"]
    budgets[0][:] = [replace(record, part=None) for record in budgets[0]]
    budgets[1].clear()
    (line,) = lines(make_block("index", PAGE, sources))[1:]
    assert line[2:4] == ["0.7<br>0.8", "whole"]


def test_an_experiment_that_nobody_ran_says_so(project):
    folder, _, _ = project
    sources = Sources(lambda number: Report([[]], f"table{number}"), {}, folder)
    (line,) = lines(make_block("index", PAGE, sources))[1:]
    assert line == ["[Digits](digits.md)", "not run", "–", "–", "–"]


@pytest.mark.parametrize(
    "about", ["{nonsense}", '{"title": "x"}', '{"title": "x", "table": 1, "columns": [], "colour": 1}']
)
def test_a_line_of_the_index_that_cannot_be_read_is_named(project, about):
    folder, _, _ = project
    (folder / PAGE).write_text(f"<!-- index: {about} -->\n")
    with pytest.raises(UserError, match=r"docs/experiments/digits.md: <!-- index: "):
        find_experiments(folder)


def test_the_front_table_leaves_out_what_nobody_ran_and_explains_its_marks(project):
    _, sources, _ = project
    text = make_block("results", Path("README.md"), sources)
    caption, *rest = text.split("\n\n")
    assert "\n" not in caption and "budget `quick`. Each cell: 2,000 steps" in caption and "Trained on" not in caption
    head, *body = lines(text)
    assert head == ["model", "R", "P"] and [line[0] for line in body] == ["CNN", "ST-CNN Aff"] and len(rest) == 1
    for mark in set(re.findall(r"[↓≈↑†‡]", rest[0])):
        assert mark in caption


def test_the_front_table_without_marks_or_without_records_has_no_legend(project):
    """Nothing to compare with the paper, no baseline beaten or not: then the table has marks of no kind."""
    _, sources, budgets = project
    unmarked = [replace(record, part="a part") for record in budgets[0] if record.row.label == "CNN"]
    reports = {"marks": [unmarked], "records": [[]]}
    for lacking, shown in reports.items():
        text = make_block("results", PAGE, replace(sources, report=lambda number: Report(shown, "table1")))  # noqa: B023
        assert not re.search(r"[↓≈↑†‡]", text)
        assert ("No cell is trained yet" in text) == (lacking == "records") != ("\n| CNN" in text)


def test_a_block_whose_records_are_not_here_says_so_and_stops_no_page(project):
    """As where `params.yaml` declares a few rows, or nobody ran a budget here that the page cites."""
    folder, sources, budgets = project
    names = ("table1", "table1@quick", "table1@paper", "table1/with-and-without-a-transformer", "results", "index")
    marks = "\n".join(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->" for name in names)
    (folder / PAGE).write_text(f"{TITLE}{marks}\n")
    for records in ([], [record for record in budgets[0] if record.row.label == "CNN"]):
        text = fill(PAGE, replace(sources, report=lambda number: Report([records], "table1")), [1])  # noqa: B023
        assert "old" not in text
        assert text.count(ABSENT) == (2 if records else 3)
    (folder / PAGE).write_text("<!-- table1@papr:begin -->\n<!-- table1@papr:end -->\n")
    with pytest.raises(UserError, match="no record at budget papr"):
        fill(PAGE, sources, [1])


def test_every_block_of_the_committed_pages_has_its_records():
    assert [page for page in find_pages(ROOT) if ABSENT in (ROOT / page).read_text(encoding="utf-8")] == []


def test_a_page_asks_for_a_table_or_a_section_of_its_report(project):
    _, sources, budgets = project
    head = make_block("table1", PAGE, sources)
    assert tables.readme_block(tables.to_markdown(budgets[0], 1, budgets[1:])) in head
    assert "[report](../../reports/table1.md)" in head
    section = make_block("table1/with-and-without-a-transformer", PAGE, sources)
    assert section in tables.to_markdown(budgets[0], 1) and "#" not in section and "McNemar" in section
    medium = make_block("table1@medium/every-cell", PAGE, sources)
    assert len(lines(medium)) == 1 + 3
    for name, reason in (
        ("table1/nonsense", "no section nonsense; the sections are with-and-without"),
        ("table1@paper", "no record at budget paper"),
        ("nonsense", "no such block; the blocks are index"),
        ("trials/nonsense", "nonsense.csv: No such file"),
    ):
        with pytest.raises(UserError, match=reason):
            make_block(name, PAGE, sources)


def test_blocks_of_other_tables_and_all_else_stay_as_they_are(project):
    folder, sources, _ = project
    kept = "<!-- table2:begin -->\nkept\n<!-- table2:end -->\nafter\n"
    text = f"before\n<!-- table1:begin -->\nold\n<!-- table1:end -->\n{kept}"
    (folder / PAGE).write_text(text)
    filled = fill(PAGE, sources, [1])
    assert "old" not in filled and "ST-CNN Aff" in filled
    assert filled.endswith(kept) and filled.startswith("before\n")
    assert fill(PAGE, sources, [3]) == text


@pytest.mark.parametrize("lost", ["begin", "end"])
def test_half_a_pair_of_marks_is_an_error_that_names_the_page_and_the_block(project, lost):
    folder, sources, _ = project
    text = "<!-- index:begin -->\n<!-- index:end -->\n".replace(f"<!-- index:{lost} -->\n", "")
    (folder / PAGE).write_text(text)
    with pytest.raises(UserError, match=r"docs/experiments/digits.md, block index: .*<!-- index:begin -->"):
        fill(PAGE, sources, [1])


def test_check_finds_a_stale_page_of_the_documentation(project, monkeypatch):
    folder, _, budgets = project
    (folder / PAGE).write_text(f"# Digits\n\n{TITLE}<!-- table1:begin -->\n<!-- table1:end -->\n")
    monkeypatch.setattr(stn.table, "records", {1: budgets[0]}.get)
    monkeypatch.setattr(stn.table, "others", lambda number: [])
    assert run("stn.table", cwd=folder).returncode == 0
    assert run("stn.table", "--check", "--table", "1", cwd=folder).returncode == 0
    text = (folder / PAGE).read_text()
    assert "**1.20** (0.7)" in text
    (folder / PAGE).write_text(text.replace("**1.20** (0.7)", "**0.20** (0.7)"))
    assert f"not what the records say: {PAGE};" in one_error(run("stn.table", "--check", "--table", "1", cwd=folder))
    assert run("stn.table", cwd=folder).returncode == 0 and (folder / PAGE).read_text() == text


def test_trials_show_what_they_have_in_common_once(project):
    folder, sources, _ = project
    (folder / "reports/trials").mkdir(parents=True)
    (folder / "reports/trials/rates.csv").write_text("model,learning_rate,seed,error\ncnn,0.1,0,3\nfcn,0.1,0,\n")
    text = make_block("trials/rates", PAGE, sources)
    assert text.startswith("In all of them: learning rate 0.1, seed 0.\n\n")
    assert lines(text) == [["model", "error"], ["cnn", "3"], ["fcn", "–"]]


def test_figures_of_speed_are_those_of_the_records():
    sources = Sources(lambda number: Report([[]], ""), {}, ROOT)
    text = make_block("speed", Path("README.md"), sources)
    for name, rival in (("training-cpu", "plain PyTorch loop"), ("training-cuda", "plain PyTorch loop")):
        about = json.loads((ROOT / f"reports/bench/{name}.json").read_text())
        ratios = [row["contestants"][rival]["ours_is_times_as_fast"]["median"] for row in about["rows"]]
        assert f"{min(ratios):.2f} to {max(ratios):.2f} times as fast" in text
    about = json.loads((ROOT / "reports/bench/together-cuda.json").read_text())
    seconds = sum(3 * row["of_steps"] / row["contestants"]["ours"]["rate"]["median"] for row in about["rows"])
    assert f"three seeds: {seconds / about['rows'][0]['cells_at_once'] / 60:.0f} minutes" in text
    assert text.count("\n- ") == 2


def test_a_record_of_bench_is_shown_as_its_page_shows_it():
    sources = Sources(lambda number: Report([[]], ""), {}, ROOT)
    whole = (ROOT / "reports/bench/README.md").read_text()
    for path in (ROOT / "reports/bench").glob("*.json"):
        text = make_block(f"bench/{path.stem}", Path("docs/performance.md"), sources)
        assert text in whole and "\n## " not in text and text.count("\n| --") + text.count("\n|--") == 1, path


def test_what_an_experiment_includes():
    experiment = Experiment("x", 5, ("T",), rows=("mean",), without=("1",))
    places = {
        (row, column): SimpleNamespace(row=Row(row, "m"), column=Column(column))
        for row in ("mean", "0")
        for column in ("T", "TC")
    }
    assert [place for place, record in places.items() if experiment.includes(record)] == [("mean", "T")]

"""Promises of the tables in all formats, of the pages that show them, and of `python -m stn.table`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import stn.table
from conftest import one_error, run
from stn.cells import declared, record_path
from stn.config import CONF, compose, experiment
from stn.errors import UserError
from stn.experiments import find_tables
from stn.params import read_params
from stn.report import tables
from stn.report.metrics import render_curves, render_metrics
from synthetic import DERIVED, PHOTOGRAPHS, check_tex, write_cell, write_table


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table1"))


@pytest.fixture(scope="module")
def records(whole):
    return tables.load(1, whole)


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """Table 2 on two columns of stand-ins, each with its own."""
    folder = tmp_path_factory.mktemp("table2")
    parts = [("64 px strips", "256 strips"), (PHOTOGRAPHS, "256 strips on a canvas")]
    return [
        path
        for column, part in parts
        for path in write_table(folder, [column], part=part, n_test=256, knows=0.5, parameters=8300000)
    ]


@pytest.fixture(scope="module")
def numbers(strips):
    return tables.load(2, [], strips)


# Budgets side by side


def test_budgets_stand_side_by_side_and_what_is_not_run_is_a_dash(records, tmp_path):
    longer = tables.load(1, [write_cell(tmp_path, "ST-CNN Aff", "R", [66], budget="medium")])
    longer = [
        replace(record, seeds=(replace(record.seeds[0], steps=20000, images_seen=20000 * 128),)) for record in longer
    ]
    text = tables.readme_block(tables.to_markdown(records, 1, [[], longer]))
    head, _, aside = text.partition("The same at several budgets; – is not run yet, of Jaderberg et al. not given.")
    assert "\n- `medium`: 1 of 32 cells, 20,000 steps of 128 images, seed 0. Trained on AMD EPYC" in aside
    assert aside.count("Against the paper, 1 cell: 0 better, 1 within, 0 worse.") == 1  # quick's stands in the head
    lines = [[place.strip() for place in line.split("|")[1:-1]] for line in aside.splitlines() if line.startswith("| ")]
    assert lines[0] == ["model", "budget", "R", "RTS", "P", "E"]
    assert [line[0] for line in lines[1:] if line[0]] == [
        row.label for row in find_tables()[1].rows if not row.shown_where_run
    ]
    at = next(i for i, line in enumerate(lines) if line[0] == "ST-CNN Aff")
    assert lines[at][1] == "quick" and re.fullmatch(r"\*\*\d\.\d\d\*\* [↓≈↑]‡?", lines[at][2])
    assert lines[at + 1] == ["", "medium", "**0.66** ≈", "–", "–", "–"]
    assert lines[at + 2] == ["", "Jaderberg et al.", "0.7", "0.5", "0.8", "1.2"]
    assert [line[1] for line in lines if "medium" in line] == ["medium"]  # no line where nothing is run
    console = Console(width=100, record=True)
    console.print(tables.to_terminal(records, 1, [[], longer]))
    shown = console.export_text().splitlines()
    assert max(map(len, shown)) <= 100 and ["medium", "0.66", "≈", "–", "–", "–"] in [line.split() for line in shown]
    assert tables.readme_block(tables.to_markdown(records, 1, [[]])) == head.strip()


def test_a_record_of_another_budget_must_have_its_own_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((CONF.parent / "params.yaml").read_text())
    folder = tmp_path / "reports/results/medium/mnist"
    folder.mkdir(parents=True)
    config = experiment(compose("data=mnist_r", "model=st_cnn_affine", "budget=medium"))
    write_cell(folder, "ST-CNN Aff", "R", [66], budget="medium", config=config)
    assert [[record.budget for record in records] for records in stn.table.others(1)] == [["medium"], []]
    config["budget"]["steps"] = 7
    write_cell(folder, "ST-CNN Aff", "R", [66], budget="medium", config=config)
    with pytest.raises(UserError, match=r"mnist_r-st_cnn_affine.json: made with another config \(budget.steps: 7, not"):
        stn.table.others(1)


def test_the_readme_leads_with_the_longest_budget_that_is_whole(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((CONF.parent / "params.yaml").read_text())
    (tmp_path / "README.md").write_text("<!-- table1:begin -->\n<!-- table1:end -->\n")
    longer = {name: [replace(record, budget=name) for record in records] for name in ("medium", "paper")}
    budgets = [records, *longer.values()]

    def leading() -> str:
        page = stn.table.pages({1: budgets})[Path("README.md")]
        (name,) = re.findall(r"the paper's\), budget `(\w+)`", page)
        assert page.count("The same at several budgets") == 1 and f"- `{name}`: 32 of 32 cells" in page
        return name

    assert leading() == "quick"  # none of its records is where the pipeline has them
    for budget in longer:
        for path in [record_path(budget, cell) for cell in declared(read_params(), 1)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert leading() == budget
    path.unlink()
    assert leading() == "medium"
    files = stn.table.written(1, budgets)
    assert {path.name for path in files} == {
        f"table1{of}.{kind}" for of in ("", "-medium") for kind in ("md", "csv", "tex")
    } | {"table1.json"}
    assert (
        "budget `quick`" in files[Path("reports/table1.md")]
        and "budget `medium`" in files[Path("reports/table1-medium.md")]
    )
    page = stn.table.pages({1: budgets})[Path("README.md")]
    assert "paired tests: [report](reports/table1-medium.md)" in page
    smoke = [[replace(record, budget="smoke") for record in records], *budgets]
    assert stn.table.pages({1: smoke})[Path("README.md")] == page  # a smoke run changes nothing of it
    assert "smoke" in stn.table.pages({1: smoke[:1]})[Path("README.md")]  # but where there is nothing else


# Writers


def test_csv_header_is_the_promised_one(records):
    lines = tables.to_csv(records).splitlines()
    assert lines[0] == "table,budget,row,column,metric,paper,ours,ci_low,ci_high,n_seeds,n_test,n_params,seconds"
    assert lines[1] == "1,quick,FCN,R,error %,2.1,4.0000,3.6333,4.4021,1,10000,208586,77.5" and len(lines) == 33


def test_markdown_says_what_was_run_and_what_was_not(records):
    text = tables.to_markdown(records, 1)
    block = tables.readme_block(text)
    assert "2,000 steps of 256 images, seed 0, 10,000 test images" in block
    assert "AMD EPYC 9V74 with 2 cores (bf16-mixed); Python 3.11.7, torch 2.13.0" in block
    assert "not run (13.2)" in block and "**4.20** (2.4) ↑†" in block
    assert "parameters (R, P, E)" in block and "parameters (RTS)" in block
    assert block in text and "## Every cell" in text and "## Every cell" not in block
    assert re.search(r"\| ST-FCN TPS +\| E +\| +4\.00 \| +4\.20 \| +\+0\.20 .*\*\*no\*\* +\|", text)
    tables_in_text = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables_in_text) == 3
    assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables_in_text)


def test_several_machines_and_seeds_are_told(tmp_path):
    paths = [write_cell(tmp_path, "CNN", "R", [120, 130, 125]), write_cell(tmp_path, "CNN", "E", [120, 130, 125])]
    record = json.loads(paths[1].read_text())
    record["seeds"][0]["provenance"].update(gpu="NVIDIA H200", precision="32-true")
    paths[1].write_text(json.dumps(record))
    text = tables.to_markdown(tables.load(1, paths), 1)
    assert "seeds 0, 1, 2" in text and "Student's over seeds" in text and "Wilson" not in text
    assert "AMD EPYC 9V74 with 2 cores (bf16-mixed) (5 runs) and NVIDIA H200 (32-true) (1 run)" in text


def test_table_without_a_record_can_be_written(tmp_path):
    text = tables.to_markdown([], 2)
    assert "No cell is trained yet: `make table TABLE=2` trains them." in text and "##" not in text
    assert text.count("not run (") == 6 and text.count(" not run |") == 6 and text.count("cited (") == 3
    assert tables.to_csv([]).count("\n") == 1
    assert "-- (3.6) & -- (3.9)" in tables.to_tex([], 2)
    tables.to_terminal([], 2)


def test_beside_stand_ins_for_the_papers_data_no_format_shows_its_numbers(tmp_path):
    found = tables.load(1, write_table(tmp_path, ["R", "RTS"], part="embedded digits"))
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables.to_terminal(found, 1))
    terminal = console.export_text()
    assert re.search(r"^ST-FCN TPS +2\.00 +2\.00 *$", terminal, re.MULTILINE), terminal
    assert "Table 1: distorted MNIST, on stand-in data" in terminal
    markdown, tex = tables.to_markdown(found, 1), tables.to_tex(found, 1)
    assert re.search(r"^\| ST-FCN TPS +\| +\*\*2\.00\*\* +\| +\*\*2\.00\*\* +\|", markdown, re.MULTILINE), markdown
    assert r"ST-FCN TPS & \textbf{2.00} & \textbf{2.00} &" in tex, tex
    for text in (terminal, markdown, tex):
        assert "not comparable with the paper" in " ".join(text.split())
        assert "the paper's" not in text and "paper |" not in text and "(2.1)" not in text


def test_a_stand_in_for_the_papers_data_hides_what_nobody_ran(tmp_path):
    demo = tables.to_markdown(tables.load(1, [write_cell(tmp_path, "CNN", "R", [120], part="embedded digits")]), 1)
    assert "TC" not in demo and "FCN" not in demo and "not run" not in demo


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("R", "RTS", "P", "E"), r" ST-FCN TPS .*2\.4 \| 4\.20 ↑†"),
        (("R", "RTS", "P", "E", "TC"), r" ST-FCN TPS .*2\.4 \| 4\.20 ↑†"),
        (("64 px", "128 px", *DERIVED), r" ST-CNN Multi +3\.6 \| 39\.06 ↑ +3\.9 \| 39\.06 ↑ +39\.06 +39\.06 "),
        (DERIVED, r" DRAM \(Ba 2015\) +3\.9 \| cited +4\.5 \| cited +– +– "),
    ],
)
def test_terminal_fits_a_hundred_columns(tmp_path, columns, expected):
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    number = 1 if columns[0] == "R" else 2
    paths = write_table(tmp_path, columns, **({"n_test": 256} if number == 2 else {}))
    found = tables.load(number, paths)
    longer = [replace(record, budget="medium") for record in found]
    console.print(tables.to_terminal(found, number, [longer] if number == 1 else []))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    assert any(re.match(expected, f" {line.strip()} ") for line in lines)


def test_tex_is_balanced_and_escaped(records, numbers):
    for number, of in ((1, records), (2, numbers), (2, [])):
        check_tex(tables.to_tex(of, number), sum(not row.shown_where_run for row in find_tables()[number].rows))


def test_same_records_give_the_same_text(whole, strips):
    for number, paths in ((1, whole), (2, strips)):
        first, second = (stn.table.written(number, [tables.load(number, order)]) for order in (paths, paths[::-1]))
        assert first == second


# README


def test_stale_readme_is_found(records, tmp_path):
    block = tables.readme_block(tables.to_markdown(records, 1))
    readme = tmp_path / "README.md"
    readme.write_text("# STN\n<!-- table1:begin -->\nold\n<!-- table1:end -->\nmore\n")
    fresh = tables.replace_block(readme.read_text(), "table1", block)
    assert tables.stale({readme: fresh, tmp_path / "absent.md": ""}) == [readme, tmp_path / "absent.md"]
    assert fresh.startswith("# STN\n") and fresh.endswith("\nmore\n") and "old" not in fresh
    readme.write_text(fresh)
    assert tables.stale({readme: tables.replace_block(fresh, "table1", block)}) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- table1:end -->",
        "<!-- table1:begin --> <!-- table1:begin --> <!-- table1:end -->",
        "<!-- table1:begin -->",
        "<!-- table1:end --> <!-- table1:begin -->",
        "<!-- table2:begin --><!-- table2:end -->",
    ],
)
def test_readme_without_markers_is_refused(text):
    with pytest.raises(UserError, match=r"<!-- table1:begin -->"):
        tables.replace_block(text, "table1", "block")


# Front door


@pytest.fixture
def workplace(tmp_path, monkeypatch, records, numbers):
    """A folder with a README for Table 1; `found` are the records that the front door finds."""
    (tmp_path / "README.md").write_text("<!-- table1:begin -->\n<!-- table1:end -->\n")
    found = {number: records if number == 1 else [] for number in find_tables()}
    monkeypatch.setattr(stn.table, "records", found.get)
    monkeypatch.setattr(stn.table, "others", lambda number: [])
    return tmp_path, found


def of_rows(tmp_path, *rows):
    """Records of these rows of Table 1, at R."""
    return tables.load(1, [write_cell(tmp_path, row, "R", [100], n=20) for row in rows])


@pytest.mark.parametrize("rows", [("CNN",), ("FCN", "CNN", "ST-FCN Aff")])
def test_a_table_without_anything_to_draw_is_written_with_blank_figures(workplace, tmp_path_factory, rows):
    folder, found = workplace
    found[1] = of_rows(tmp_path_factory.mktemp("rows"), *rows)
    result = run("stn.table", "--figures", cwd=folder)
    assert result.returncode == 0, result.stderr
    for name in ("table1.png", "table1_pose.png"):
        path = folder / "reports/figures" / name
        assert f"reports/figures/{name}: left blank, no record to draw of" in result.stdout
        assert 500 < path.stat().st_size < 50_000  # DVC needs it
    assert "Table 1" in result.stdout and (folder / "reports/table1.md").exists()


@pytest.mark.parametrize("number", [number for number, table in find_tables().items() if table.figures and number > 1])
def test_no_table_needs_a_record_for_its_figures(workplace, number):
    folder, found = workplace
    found[number] = []
    result = run("stn.table", "--table", str(number), "--figures", cwd=folder)
    assert result.returncode == 0, result.stderr
    for figure in find_tables()[number].figures:
        assert f"{figure.name}: left blank" in result.stdout
        assert (folder / "reports/figures" / figure.name).stat().st_size > 500


def test_figures_that_are_asked_for_and_cannot_be_drawn_are_one_line_and_stay(workplace, monkeypatch, tmp_path_factory):
    folder, found = workplace
    monkeypatch.setattr("stn.figures.records", found.get)
    found[1] = of_rows(tmp_path_factory.mktemp("rows"), "CNN")
    path = folder / "reports/figures/table1.png"
    path.parent.mkdir(parents=True)
    path.write_text("older")
    assert "no record to draw of" in one_error(run("stn.figures", cwd=folder))
    assert path.read_text() == "older" and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_table_that_has_no_figure_says_so(workplace):
    assert "Table 9 has no figure" in one_error(run("stn.figures", "--table", "9", cwd=workplace[0]))


def test_files_of_a_budget_that_the_readme_led_with_go(workplace):
    folder, _ = workplace
    (folder / "reports").mkdir()
    for name in ("table1-paper.md", "table10-paper.md", "table1-notes.md"):
        (folder / "reports" / name).touch()
    assert run("stn.table", cwd=folder).returncode == 0
    kept = {"table1.md", "table10-paper.md", "table1-notes.md"}  # a user's own file is the user's
    assert {path.name for path in (folder / "reports").glob("*.md")} == kept


def test_check_without_a_number_checks_every_table(workplace, numbers):
    folder, found = workplace
    assert run("stn.table", cwd=folder).returncode == 0
    assert run("stn.table", "--check", cwd=folder).returncode == 0  # nobody began Table 2
    found[2] = numbers
    assert "table2.md" in one_error(run("stn.table", "--check", cwd=folder))
    assert run("stn.table", "--check", "--table", "1", cwd=folder).returncode == 0
    with (folder / "README.md").open("a") as readme:
        readme.write("<!-- table2:begin -->\n<!-- table2:end -->\n")
    result = run("stn.table", "--table", "2", cwd=folder)
    assert result.returncode == 0 and "Table 2: house numbers (SVHN)" in result.stdout
    assert run("stn.table", "--check", cwd=folder).returncode == 0
    page = (folder / "README.md").read_text()
    assert "# Table" not in page and page.count("ST-CNN Multi") == 1 and page.count("ST-FCN TPS") == 2
    (folder / "README.md").write_text(page.replace("<!-- table2:end -->", ""))
    assert "<!-- table2:begin -->" in one_error(run("stn.table", "--check", cwd=folder))


def test_print_writes_nothing_and_an_unknown_table_is_one_line(workplace):
    folder, _ = workplace
    result = run("stn.table", "--table", "2", "--print", cwd=folder)
    assert "not run" in result.stdout and not (folder / "reports").exists()
    assert "--table 70 is not one of 1, 2" in one_error(run("stn.table", "--table", "70", cwd=folder))


# For DVC


def test_dvc_shows_the_values_of_every_budget_and_the_curves_of_every_cell(records):
    table = find_tables()[1]
    values = json.loads(render_metrics(table, [records, [replace(record, budget="medium") for record in records[:1]]]))
    assert values["quick"]["CNN"] == {"R": 2.0, "RTS": 2.0, "P": 2.0, "E": 2.0}
    assert values["medium"] == {"FCN": {"R": 4.0}}
    lines = render_curves(records).splitlines()
    assert lines[:2] == ["cell,step,error", "mnist_r-fcn,1000,3.0"] and len(lines) == 1 + 2 * len(records)
    assert list(json.loads(render_metrics(find_tables()[3], [])).items()) == []


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_gets_every_number_whole(tmp_path, width):
    """Columns that do not fit stand below the others, with the rows named again."""
    columns = ("R", "RTS", "P", "E", "TC")
    found = tables.load(1, write_table(tmp_path, columns))
    texts = {}
    for each in (120, width):
        console = Console(width=each, record=True, file=(tmp_path / "out").open("w"))
        console.print(tables.to_terminal(found, 1, [[replace(record, budget="medium") for record in found]]))
        texts[each] = console.export_text()
    assert max(map(len, texts[width].splitlines())) <= width and "…" not in texts[width]
    numbers = r"\d\.\d \| +\d+\.\d\d"
    assert sorted(re.findall(numbers, texts[width])) == sorted(re.findall(numbers, texts[120]))
    assert len(re.findall(r"^ST-FCN TPS", texts[width], re.MULTILINE)) > len(
        re.findall(r"^ST-FCN TPS", texts[120], re.MULTILINE)
    )

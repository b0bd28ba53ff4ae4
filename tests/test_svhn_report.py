"""Promises of Table 2: errors by position, last windows, cited rows and derived sets, on synthetic records."""

import re

import numpy as np
import pytest

from stn.errors import UserError
from stn.experiments.svhn.reading import measure_last_windows, measure_positions
from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.csv import render_csv
from stn.report.markdown import render_markdown
from stn.report.records import load_records
from synthetic import STRIPS, write_cell, write_table


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Table 2 on two columns of stand-ins, each with its own."""
    folder = tmp_path_factory.mktemp("table2")
    parts = [("64 px strips", "256 strips"), ("128 px strips", "256 strips on a canvas")]
    paths = [
        path
        for column, part in parts
        for path in write_table(folder, [column], part=part, n_test=256, knows=0.5, parameters=8300000)
    ]
    return load_records(HOUSE_NUMBERS, [], paths)


def test_positions_and_whole_numbers_are_told_apart(records):
    cell = next(cell for cell in measure_positions(records) if cell.record.row.label == "CNN")
    assert cell.places == pytest.approx([100 * 200 / 256, 0, 0, 0, 100 * 100 / 256])
    assert cell.whole == pytest.approx(100 * 200 / 256)


def test_the_last_window_is_measured_against_the_number(records):
    cells = measure_last_windows(records)
    assert {(cell.record.row.label, cell.record.column.label) for cell in cells} == {
        (f"ST-CNN {kind}", column) for kind in ("Single", "Multi") for column in STRIPS
    }
    for cell in cells:  # a number of 1 x 0.5 in a window half way between it and the image: 1.5 x 1.25
        shares = [cell.image, cell.window, cell.zoom, cell.inside]
        assert shares == pytest.approx([12.5, 100 * 0.5 / 1.875, 4 / 1.875, 100], rel=0.01)


def test_the_table_says_what_is_cited_what_is_ours_and_on_what(records):
    text = render_markdown(HOUSE_NUMBERS, records)
    assert "`quick`; 64 px strips on 256 strips; 128 px strips on 256 strips on a canvas: not comparable with" in text
    assert not set("↓≈↑") & set(text)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert [cell.strip() for cell in rows["DRAM (Ba 2015)"][1:5]] == ["cited (3.9)", "cited (4.5)", "–", "–"]
    multi = next(line for line in text.splitlines() if line.startswith("| ST-CNN Multi"))
    assert [cell.strip(" |") for cell in multi.split(" | ")[1:]] == [
        *("not run (3.6)", "not run (3.9)", "**39.06**", "**39.06**", "8,300,000")
    ]
    assert "Maxout CNN (Goodfellow 2013), arXiv:1312.6082" in text
    values = render_csv(HOUSE_NUMBERS, records)
    assert "arXiv" not in values and len(values.splitlines()) == 1 + 6
    assert "## By position" in text and "## Where the last window looks" in text
    assert re.search(r"\| ST-CNN Multi +\| 64 px strips +\| +12\.5 \| +26\.7 \| 2\.13× \| +100\.0 \|", text)


@pytest.mark.parametrize(("row", "lost"), [("CNN", "positions"), ("ST-CNN Single", "window_all")])
def test_a_record_without_its_evidence_is_refused(tmp_path, row, lost):
    path = write_cell(tmp_path, row, "64 px", [9], n_test=64)
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files if name != lost}
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(UserError, match=f"without {lost}"):
        load_records(HOUSE_NUMBERS, [path])

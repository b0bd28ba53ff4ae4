"""Promises of Table 2: errors by position, last windows, cited rows and derived sets, on synthetic records."""

import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from stn.errors import UserError
from stn.experiments.svhn.figures import draw_windows
from stn.experiments.svhn.reading import (
    describe_moved,
    describe_positions,
    describe_windows,
    measure_last_windows,
    measure_moved,
    measure_positions,
)
from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.csv import render_csv
from stn.report.markdown import render_grid, render_markdown
from stn.report.records import load_records
from synthetic import DERIVED, PHOTOGRAPHS, write_cell, write_table


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Table 2 on two columns of stand-ins, each with its own."""
    folder = tmp_path_factory.mktemp("table2")
    parts = [("64 px strips", "256 strips"), (PHOTOGRAPHS, "256 strips on a canvas")]
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
        (f"ST-CNN {kind}", column) for kind in ("Single", "Multi") for column in DERIVED
    }
    for cell in cells:  # a number of 1 x 0.5 in a window half way between it and the image: 1.5 x 1.25
        shares = [cell.image, cell.window, cell.zoom, cell.inside]
        assert shares == pytest.approx([12.5, 100 * 0.5 / 1.875, 4 / 1.875, 100], rel=0.01)


def windows_of(path, windows, boxes):
    """Gives the record at a path these windows (n, 4, 2) and boxes (n, 4)."""
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["window_all"][:, -1], arrays["box"][:] = windows, boxes
    np.savez(path.with_suffix(".npz"), **arrays)


def rectangles(low, high):
    """Corners (n, 4, 2) of the rectangles from `low` to `high`, each (n, 2)."""
    (a, b), (c, d) = low.T, high.T
    return np.stack([np.stack(corner, -1) for corner in ((a, b), (c, b), (c, d), (a, d))], 1)


def test_whether_the_last_window_follows_the_number_is_measured(tmp_path):
    draws = np.random.default_rng(0)
    middle, noise = draws.uniform(-0.5, 0.5, (2, 64, 2))
    boxes = np.concatenate([middle - 0.2, middle + 0.2], 1)
    centre = np.column_stack([middle[:, 0], noise[:, 1]])  # it knows x, not y
    half = np.array([0.4, 0.6])
    windows = rectangles(centre - half, centre + half)
    windows[3] = np.nan  # lost: it holds nothing, and has no place
    path = write_cell(tmp_path, "ST-CNN Single", PHOTOGRAPHS, [9], n_test=64)
    windows_of(path, windows, boxes)
    (cell,) = measure_last_windows(load_records(HOUSE_NUMBERS, [path]))
    known = np.arange(64) != 3
    expected = [np.corrcoef(centre[known, k], middle[known, k])[0, 1] for k in (0, 1)]
    assert cell.follows == pytest.approx(expected, abs=0.01) and expected[0] == pytest.approx(1)
    assert cell.spread == pytest.approx(50 * centre[known].std(0), rel=0.01)
    assert cell.area == pytest.approx(100 * 0.8 * 1.2 / 4, rel=0.01)
    # 0.4 high, and to be seen at nine tenths: the centres differ by at most 0.6 - 0.2 + a tenth of 0.4
    away = np.abs(noise - middle)[known, 1]
    assert np.abs(away - 0.44).min() > 1e-3
    assert cell.held == pytest.approx(100 * (away < 0.44).sum() / 64)


def moved_of(path, correct, windows=None, boxes=None):
    """Gives the record at a path what its network does with moved images."""
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["moved_correct"] = correct
    if windows is not None:
        arrays |= {"moved_window_all": windows[:, None], "moved_box": boxes, "moved_said": arrays["example_said"]}
        arrays |= {"moved_input": arrays["example_input"], "moved_seen": arrays["example_seen"]}
    np.savez(path.with_suffix(".npz"), **arrays)


@pytest.fixture
def moved(tmp_path):
    """The CNN, right in 16 of 64 moved images, and Single, right in 48, whose window knows the number's x alone."""
    draws = np.random.default_rng(0)
    middle = np.column_stack([np.linspace(-0.9, 0.9, 64), np.zeros(64)])
    boxes = np.concatenate([middle - 0.1, middle + 0.1], 1)
    centre = np.column_stack([middle[:, 0], draws.uniform(-0.05, 0.05, 64)])
    paths = [write_cell(tmp_path, row, PHOTOGRAPHS, [9], n_test=64) for row in ("CNN", "ST-CNN Single")]
    moved_of(paths[0], np.arange(64) < 16)
    moved_of(paths[1], np.arange(64) >= 16, rectangles(centre - 0.2, centre + 0.2), boxes)
    facts = json.loads(paths[1].read_text())
    facts["config"]["model"]["start"] = [0.5, 0.8]
    paths[1].write_text(json.dumps(facts))
    return load_records(HOUSE_NUMBERS, paths)


def test_what_networks_do_with_moved_photographs_is_measured(moved):
    cnn, single = measure_moved(moved)
    assert (cnn.still, cnn.moved, cnn.p) == (pytest.approx(100 * 9 / 64), 75, None)
    assert single.moved == 25 and single.p == pytest.approx(stats.binomtest(16, 64).pvalue)
    assert single.follows[0] == pytest.approx(1, abs=1e-3) and np.isnan(single.follows[1])
    assert single.held == 100
    # The first window is 1 wide: nine tenths of a number 0.2 wide lie inside up to 0.42 from the middle.
    assert single.held_by_start == pytest.approx(100 * (np.abs(np.linspace(-0.9, 0.9, 64)) <= 0.42).mean(), abs=1)


def test_the_section_of_moved_photographs_says_so(moved):
    section = describe_moved(HOUSE_NUMBERS, moved)
    lines = render_grid(section.blocks[-1]).splitlines()
    assert max(map(len, lines)) <= 100
    assert [cell.strip() for cell in lines[-2].split("|")][1:-1] == ["CNN", "14.06", "75.00", *"––––"]
    assert "## When the photographs are moved" in render_markdown(HOUSE_NUMBERS, moved)


def test_records_without_moved_photographs_have_no_such_section(records):
    assert describe_moved(HOUSE_NUMBERS, records) is None


def test_the_figure_shows_the_moved_photographs_too(moved, tmp_path):
    draw_windows(moved).save(tmp_path / "moved.png")
    still = [replace(record, arrays=dict(record.arrays)) for record in moved]
    for record in still:
        del record.arrays["moved_correct"]
        record.arrays.pop("moved_input", None)
    draw_windows(still).save(tmp_path / "still.png")
    heights = [plt.imread(tmp_path / f"{name}.png").shape[0] for name in ("moved", "still")]
    assert heights[0] > 1.5 * heights[1]


def test_a_window_that_stands_still_follows_nothing(tmp_path):
    path = write_cell(tmp_path, "ST-CNN Single", PHOTOGRAPHS, [9], n_test=64, knows=0)
    records = load_records(HOUSE_NUMBERS, [path])
    assert np.isnan(measure_last_windows(records)[0].follows).all()
    lines = render_grid(describe_windows(HOUSE_NUMBERS, records).blocks[-1]).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")][3:-1] == ["–, –", "100", "100.0", "0.0, 0.0"]


def test_the_grids_fit_a_hundred_columns(tmp_path):
    records = load_records(HOUSE_NUMBERS, [], write_table(tmp_path, DERIVED, n_test=256))
    sections = describe_windows(HOUSE_NUMBERS, records), describe_positions(HOUSE_NUMBERS, records)
    for grid in (sections[0].blocks[1], sections[0].blocks[3], sections[1].blocks[1]):
        assert max(map(len, render_grid(grid).splitlines())) <= 100


def test_the_column_of_photographs_says_what_it_is(tmp_path):
    records = load_records(HOUSE_NUMBERS, [], write_table(tmp_path, [PHOTOGRAPHS], n_test=256))
    text = render_markdown(HOUSE_NUMBERS, records)
    assert "256 originals with official labels to test on; not the paper's data." in text
    assert render_csv(HOUSE_NUMBERS, records).count(PHOTOGRAPHS) == 3


def test_the_table_says_what_is_cited_what_is_ours_and_on_what(records):
    text = render_markdown(HOUSE_NUMBERS, records)
    parts = "64 px strips on 256 strips; photographs, 128 px on 256 strips on a canvas"
    assert f"`quick`; {parts}: not comparable with" in text
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

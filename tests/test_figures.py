"""Promises of the figures, on the synthetic records of the tables' tests."""

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from stn.errors import UserError
from stn.report import figures, tables
from stn.report.paper import KERNELS, SUMS
from test_tables import STRIPS, write_cell, write_sizes

FAMILIES = ("Aff", "Proj", "TPS")
DRAWN = {
    figures.pictures: "records",
    figures.poses: "records",
    figures.windows: "numbers",
    figures.birds: "birds",
    figures.parts: "birds",
    figures.sums: "sums",
    figures.kernels: "kernels",
    figures.sizes: "sizes",
}
EVERY = pytest.mark.parametrize("draw", DRAWN)
BOTH = pytest.mark.parametrize("draw", [figures.pictures, figures.poses])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    cells = [(f"ST-CNN {family}", column) for family in FAMILIES for column in ("R", "RTS", "P", "E")]
    paths = [write_cell(folder, row, column, [100], n=20, knows=0.8, turn=170.0) for row, column in cells]
    return tables.load(1, [*paths, write_cell(folder, "CNN", "R", [200])])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    cells = [(row, column) for row in ("CNN", "ST-CNN Single", "ST-CNN Multi") for column in STRIPS]
    return tables.load(2, [write_cell(folder, *cell, [9], n_test=64, part=f"{cell[1]} of 64") for cell in cells])


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    rows = ("2xST-CNN 224 px", "4xST-CNN 448 px", "2xST-CNN 448 px, fixed")
    cells = [write_cell(folder, row, "50 classes", [9], n_test=80, part="50 of 200") for row in rows]
    return tables.load(3, cells)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    rows = [row for row in SUMS.rows if row.startswith("2x")]
    return tables.load(4, [write_cell(folder, row, "RTS + RTS", [100]) for row in rows])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    cells = [(row, column) for row in KERNELS.rows for column in KERNELS.columns]
    return tables.load(7, [write_cell(folder, *cell, [100]) for cell in cells])


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return tables.load(8, write_sizes(folder))


def words(figure):
    """Every string that a figure shows."""
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


@pytest.fixture
def drawn(monkeypatch):
    """Hands over the figure instead of writing a file."""
    caught = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: caught.append(figure))
    return caught


@EVERY
def test_same_records_give_the_same_bytes_whatever_the_users_style(request, tmp_path, draw):
    records = request.getfixturevalue(DRAWN[draw])
    draw(records, tmp_path / "new" / "a.png")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.bbox": "tight", "lines.linewidth": 9}):
        draw(records, tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 20
    first = (tmp_path / "new" / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert b"tEXt" not in first and b"tIME" not in first and len(first) < 1e6
    image = matplotlib.image.imread(tmp_path / "b.png")
    assert min(image.shape[:2]) > 800 and 0.02 < (image[..., :3].min(-1) < 0.9).mean() < 0.75


@BOTH
def test_one_family_on_one_data_set_is_enough(tmp_path, draw):
    cell = tables.load(1, [write_cell(tmp_path, "ST-CNN Aff", "E", [100], n=20, part="embedded digits, not MNIST")])
    draw(cell, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


@EVERY
def test_without_a_transformer_there_is_one_clear_line(request, tmp_path, draw):
    records = request.getfixturevalue(DRAWN[draw])
    for left in ([], [record for record in records if "ST-" not in record["row"]]):
        with pytest.raises(UserError, match=r"no (ST-CNN|2xST) record to draw: `make table"):
            draw(left, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@EVERY
def test_a_path_that_cannot_be_written_is_one_clear_line(request, tmp_path, draw):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        draw(request.getfixturevalue(DRAWN[draw]), tmp_path / "file" / "a.png")


def test_pictures_lay_the_records_grid_on_the_records_canvas(records, drawn):
    figures.pictures(records, None)
    grids = [axes for axes in drawn[0].axes if axes.collections]
    assert len(grids) == len(FAMILIES) * 4 * len(figures.DIGITS)
    cell = next(record for record in records if record["row"] == "ST-CNN Aff" and record["column"] == "R")
    corner = cell["arrays"]["example_grid"][figures.DIGITS[0], 0, 0].astype(float)
    outline = grids[0].collections[1].get_segments()[0]
    # The outline is the target's edge: half a pixel's diagonal outside the first pixel centre of 28.
    assert np.linalg.norm(outline[0] - corner) == pytest.approx(np.sqrt(2) / 28, rel=0.1)
    np.testing.assert_array_equal(grids[0].images[0].get_extent(), (-1, 1, 1, -1))


def test_poses_say_how_much_is_undone(records, drawn):
    figures.poses(records, None)
    said = words(drawn[0])
    assert "R: rotation" in said and "RTS: scale" in said and "P: rotation" not in said
    # A transformer that finds 0.8 of every rotation leaves 0.2 of it: R^2 = 1 - 0.04, and a turn of 170 is no error.
    assert sum("R² 0.960" in line for line in said) >= 3
    shares = [int(line.split()[0].replace("−", "-")) for line in said if line.endswith("% undone")]
    assert len(shares) == 12 and all(85 < share < 100 for share in shares)


def test_a_transformer_that_does_nothing_is_shown_as_such(tmp_path, drawn):
    figures.poses(tables.load(1, [write_cell(tmp_path, "ST-CNN TPS", "P", [100], n=20, knows=0.0)]), None)
    shares = [int(line.split()[0].replace("−", "-")) for line in words(drawn[0]) if line.endswith("% undone")]
    assert len(shares) == 1 and -12 < shares[0] < 12


def test_windows_are_laid_on_the_image_where_the_record_has_them(numbers, drawn):
    figures.windows(numbers, None)
    laid = [axes for axes in drawn[0].axes if axes.images and len(axes.patches) > 1]
    assert len(laid) == 2 * 2 * figures.SHOWN
    for first, row, column in ((0, "ST-CNN Single", 0), (figures.SHOWN, "ST-CNN Multi", 0)):
        record = next(record for record in numbers if (record["row"], record["column"]) == (row, STRIPS[column]))
        outlines = [patch for patch in laid[first].patches if isinstance(patch, mpl.patches.Polygon)]
        for outline, window in zip(outlines, record["arrays"]["example_windows"][0], strict=True):
            np.testing.assert_allclose(outline.get_xy()[:4], window, atol=1e-3)
        np.testing.assert_array_equal(laid[first].images[0].get_array(), record["arrays"]["example_input"][0])
        widths = [outline.get_linewidth() for outline in outlines]
        assert widths == sorted(widths) and mpl.colors.to_hex(outlines[-1].get_edgecolor()) == "#d55e00"


def test_readings_are_told_and_wrong_ones_stand_out(numbers, drawn):
    figures.windows(numbers, None)
    said = {text.get_text(): text.get_color() for text in drawn[0].findobj(mpl.text.Text)}
    arrays = next(record["arrays"] for record in numbers if record["row"] == "ST-CNN Single")
    first, second = (" ".join(map(str, label[label < 10])) for label in arrays["example_label"][:2])
    assert said[first] != figures.WRONG
    assert said[f"read {second[0]}"] == said["read nothing"] == figures.WRONG
    assert {"64 px strips of 64", "128 px strips of 64", "Single", "Multi"} <= set(said)
    assert sum(text.startswith("read ") for text in words(drawn[0])) == 3 * 4


def test_a_gap_in_a_reading_is_seen():
    assert figures._number(np.array([1, 10, 4, 10, 10])) == "1 – 4"
    assert figures._number(np.array([0, 10, 10, 10, 10])) == "0"


def test_birds_show_the_windows_and_what_is_inside_them(birds, drawn):
    figures.birds(birds, None)
    tiles = [axes for axes in drawn[0].axes if axes.images]
    n = figures.BIRDS
    assert len(tiles) == n * (1 + 2) + n * (1 + 4)  # the control is not drawn
    record = next(record for record in birds if record["row"] == "4xST-CNN 448 px")
    laid, *crops = tiles[-5:]
    window = record["arrays"]["example_windows"][-1].astype(float)  # the last test bird is the last one shown
    np.testing.assert_array_equal(laid.images[0].get_array(), record["arrays"]["example_input"][-1])
    outlines = [patch for patch in laid.patches if isinstance(patch, mpl.patches.Polygon)]
    for outline, crop, corners in zip(outlines, crops, window, strict=True):
        np.testing.assert_allclose(outline.get_xy()[:4], corners, atol=1e-3)
        (left, right), (bottom, top) = crop.get_xlim(), crop.get_ylim()
        np.testing.assert_allclose([[left, top], [right, bottom]], corners[[0, 2]], atol=1e-3)
        assert crop.patches[-1].get_edgecolor() == outline.get_edgecolor()


def test_birds_are_named_once_and_mistakes_stand_out(birds, drawn):
    figures.birds(birds, None)
    texts = drawn[0].findobj(mpl.text.Text)
    wrong = [text.get_text() for text in texts if text.get_color() == figures.WRONG]
    shown = np.linspace(0, 7, figures.BIRDS).round().astype(int)
    arrays = birds[0]["arrays"]
    mistakes = [at for at in shown if arrays["example_said"][at] != arrays["example_label"][at]]
    assert len([text for text in wrong if text.startswith("said ")]) == 2 * len(mistakes) > 0
    assert " ".join(wrong).startswith(f"said {arrays['example_said_name'][mistakes[0]]}")
    named = [text for text in texts if text.get_text().startswith("Laysan") and text.get_color() != figures.WRONG]
    assert len(named) == sum(arrays["example_name"][at].startswith("Laysan") for at in shown)
    assert "50 classes: 50 of 200" in words(drawn[0])


def test_parts_show_the_shares_that_the_table_tells(birds, drawn):
    figures.parts(birds, None)
    said = words(drawn[0])
    for cell in tables.parts_held(birds):
        for share in (cell["head"], cell["body"], *cell["parts"].values()):
            assert f"{share:.0f}" in said
    numbers = [text for text in said if text.isdigit()]
    assert len(numbers) == 4 + 8 + 8 * (2 + 15)  # the key, the heads of the columns, the map
    assert {"448 px, fixed", "beak", "tail", "head", "body"} <= set(said)


def test_windows_that_came_apart_are_left_out(birds, tmp_path):
    arrays = {name: np.array(value) for name, value in birds[0]["arrays"].items()}
    arrays["example_windows"][0, 0] = arrays["window_all"][:5, 0] = np.nan
    for draw in (figures.birds, figures.parts):
        draw([{**birds[0], "arrays": arrays}], tmp_path / "a.png")
    assert all(np.isfinite(cell["moves"]) for cell in tables.parts_held([{**birds[0], "arrays": arrays}]))


def test_a_grid_is_drawn_in_full_and_a_frame_in_colour_on_the_digit_that_is_undone(sums, drawn):
    figures.sums(sums, None)
    tiles = [axes for axes in drawn[0].axes if axes.images]
    assert len(tiles) == 6 * figures.PAIRS * (2 + 4)
    record = next(record for record in sums if record["row"] == "2xST-FCN Aff")
    left, seen, hidden, right, *_ = tiles  # the left digit, what both transformers show of it, then the right one
    np.testing.assert_array_equal(seen.images[0].get_array(), 255 - record["arrays"]["example_output"][0, 0])
    np.testing.assert_array_equal(hidden.images[0].get_array(), 255 - record["arrays"]["example_output"][0, 2])
    inner = [[len(lines.get_segments()) for lines in axes.collections[::2]] for axes in (left, right)]
    assert inner == [[12, 0], [0, 12]]
    frames = [mpl.colors.to_hex(axes.patches[0].get_edgecolor()).upper() for axes in (seen, hidden)]
    assert frames == [figures.PARALLEL[0], figures.PALE]
    said = words(drawn[0])
    assert said.count("7 + 2") == said.count("4 + 9") == 6 and said.count("said 14") == 6 and "said 9" not in said
    assert sum(line.startswith("first undoes 9") for line in said) == 6

"""Promises of the figures, on the synthetic records of the tables' tests."""

import itertools
from dataclasses import replace

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from stn.errors import UserError
from stn.experiments import find_tables
from stn.experiments.addition.figures import PAIRS, draw_pairs
from stn.experiments.addition.table import ADDITION, TWO_ST_CNN, TWO_ST_FCN
from stn.experiments.cub.figures import SHOWN as BIRDS_SHOWN
from stn.experiments.cub.figures import draw_birds, draw_parts, draw_training
from stn.experiments.cub.parts import measure_parts
from stn.experiments.cub.table import BIRDS
from stn.experiments.mnist.figures import DIGITS, draw_pictures, draw_poses
from stn.experiments.mnist.table import DISTORTED, KERNELS, SIZES
from stn.experiments.svhn.figures import SHOWN, draw_windows
from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.drawing import PALE, STRONG, WRONG, assign_colours
from stn.report.records import load_records
from stn.report.table import Row
from synthetic import DERIVED, write_cell, write_sizes

FAMILIES = ("Aff", "Proj", "TPS")
# The figures of the tables whose records are made up here; tests of co-localisation and volumes draw their own.
FIGURES = [figure for number in (1, 2, 3, 4, 7, 8) for figure in find_tables()[number].figures]
EVERY = pytest.mark.parametrize("figure", FIGURES, ids=[figure.name for figure in FIGURES])
STILL = [figure for figure in FIGURES if figure.name.endswith(".png")]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    cells = [(f"ST-CNN {family}", column) for family in FAMILIES for column in ("R", "RTS", "P", "E")]
    paths = [write_cell(folder, row, column, [100], n=20, knows=0.8, turn=170.0) for row, column in cells]
    return load_records(DISTORTED, [*paths, write_cell(folder, "CNN", "R", [200])])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    cells = [(row, column) for row in ("CNN", "ST-CNN Single", "ST-CNN Multi") for column in DERIVED]
    paths = [write_cell(folder, *cell, [9], n_test=64, part=f"{cell[1]} of 64") for cell in cells]
    return load_records(HOUSE_NUMBERS, paths)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    rows = ("2xST-CNN 224 px", "4xST-CNN 448 px", "2xST-CNN 448 px, fixed")
    paths = [write_cell(folder, row, "50 classes", [9], n_test=80, part="50 of 200") for row in rows]
    return load_records(BIRDS, paths)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    rows = (*TWO_ST_FCN, *TWO_ST_CNN)
    return load_records(ADDITION, [write_cell(folder, row.label, "RTS + RTS", [100]) for row in rows])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    cells = [(row.label, column.label) for row in KERNELS.rows for column in KERNELS.columns]
    return load_records(KERNELS, [write_cell(folder, *cell, [100]) for cell in cells])


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return load_records(SIZES, write_sizes(folder))


@pytest.fixture
def shown(figure, request):
    """The records of a figure's table."""
    names = {1: "records", 2: "numbers", 3: "birds", 4: "sums", 7: "kernels", 8: "sizes"}
    (number,) = (number for number, table in find_tables().items() if figure in table.figures)
    return request.getfixturevalue(names[number])


def words(figure):
    """Every string that a figure shows."""
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


@pytest.mark.parametrize("figure", STILL, ids=[figure.name for figure in STILL])
def test_same_records_give_the_same_bytes_whatever_the_users_style(figure, shown, tmp_path):
    figure.write(shown, tmp_path / "new" / "a.png")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.bbox": "tight", "lines.linewidth": 9}):
        figure.write(shown, tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 20
    first = (tmp_path / "new" / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert b"tEXt" not in first and b"tIME" not in first and len(first) < 1e6
    image = matplotlib.image.imread(tmp_path / "b.png")
    assert min(image.shape[:2]) > 800 and 0.02 < (image[..., :3].min(-1) < 0.9).mean() < 0.75


@pytest.mark.parametrize("draw", [draw_pictures, draw_poses])
def test_one_family_on_one_data_set_is_enough(tmp_path, draw):
    path = write_cell(tmp_path, "ST-CNN Aff", "E", [100], n=20, part="embedded digits, not MNIST")
    draw(load_records(DISTORTED, [path])).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize("draw", [draw_pictures, draw_poses])
def test_no_words_are_cut_at_the_edge_of_a_figure(tmp_path, draw):
    """As a long source was, that of the demo's figure, which is not as wide as Table 1's."""
    part = "the 1,797 embedded 8x8 digits of scikit-learn, not MNIST"
    paths = [write_cell(tmp_path, "ST-CNN Aff", column, [100], n=20, part=part) for column in ("R", "RTS", "P", "E")]
    figure = draw(load_records(DISTORTED, paths)).figure
    FigureCanvasAgg(figure).draw()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text.get_text()


@EVERY
def test_without_a_transformer_there_is_one_clear_line(figure, shown, tmp_path):
    for left in ([], [record for record in shown if not record.row.transformer]):
        with pytest.raises(UserError, match=r"no record to draw .*: `make table"):
            figure.write(left, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@EVERY
def test_a_path_that_cannot_be_written_is_one_clear_line(figure, shown, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        figure.write(shown, tmp_path / "file" / "a.png")


def test_every_row_has_a_colour_its_own_or_the_next_of_the_palette():
    rows = [Row(str(i), "model") for i in range(12)]
    own = Row("own", "model", colour="#0072B2")
    colours = assign_colours([*rows, own])
    assert colours[own] == own.colour and len(colours) == 13
    assert own.colour not in {colours[row] for row in rows} and len({colours[row] for row in rows[:6]}) == 6


def test_pictures_lay_the_records_grid_on_the_records_canvas(records):
    grids = [axes for axes in draw_pictures(records).figure.axes if axes.collections]
    assert len(grids) == len(FAMILIES) * 4 * len(DIGITS)
    cell = next(record for record in records if (record.row.label, record.column.label) == ("ST-CNN Aff", "R"))
    corner = cell.arrays["example_grid"][DIGITS[0], 0, 0].astype(float)
    outline = grids[0].collections[1].get_segments()[0]
    # The outline is the target's edge: half a pixel's diagonal outside the first pixel centre of 28.
    assert np.linalg.norm(outline[0] - corner) == pytest.approx(np.sqrt(2) / 28, rel=0.1)
    np.testing.assert_array_equal(grids[0].images[0].get_extent(), (-1, 1, 1, -1))


def test_poses_say_how_much_is_undone(records):
    said = words(draw_poses(records).figure)
    assert "R: rotation" in said and "RTS: scale" in said and "P: rotation" not in said
    # A transformer that finds 0.8 of every rotation leaves 0.2 of it: R^2 = 1 - 0.04, and a turn of 170 is no error.
    assert sum("R² 0.960" in line for line in said) >= 3
    shares = [int(line.split()[0].replace("−", "-")) for line in said if line.endswith("% undone")]
    assert len(shares) == 12 and all(85 < share < 100 for share in shares)


def test_a_transformer_that_does_nothing_is_shown_as_such(tmp_path):
    path = write_cell(tmp_path, "ST-CNN TPS", "P", [100], n=20, knows=0.0)
    said = words(draw_poses(load_records(DISTORTED, [path])).figure)
    shares = [int(line.split()[0].replace("−", "-")) for line in said if line.endswith("% undone")]
    assert len(shares) == 1 and -12 < shares[0] < 12


def test_windows_are_laid_on_the_image_where_the_record_has_them(numbers):
    laid = [axes for axes in draw_windows(numbers).figure.axes if axes.images and len(axes.patches) > 1]
    assert len(laid) == 2 * 2 * SHOWN
    for first, row, column in ((0, "ST-CNN Single", 0), (SHOWN, "ST-CNN Multi", 0)):
        record = next(r for r in numbers if (r.row.label, r.column.label) == (row, DERIVED[column]))
        outlines = [patch for patch in laid[first].patches if isinstance(patch, mpl.patches.Polygon)]
        for outline, window in zip(outlines, record.arrays["example_windows"][0], strict=True):
            np.testing.assert_allclose(outline.get_xy()[:4], window, atol=1e-3)
        np.testing.assert_array_equal(laid[first].images[0].get_array(), record.arrays["example_input"][0])
        widths = [outline.get_linewidth() for outline in outlines]
        assert widths == sorted(widths) and mpl.colors.to_hex(outlines[-1].get_edgecolor()) == "#d55e00"


def test_readings_are_told_and_wrong_ones_stand_out(numbers):
    texts = draw_windows(numbers).figure.findobj(mpl.text.Text)
    said = {text.get_text(): text.get_color() for text in texts}
    arrays = next(record.arrays for record in numbers if record.row.label == "ST-CNN Single")
    first, second = (" ".join(map(str, label[label < 10])) for label in arrays["example_label"][:2])
    assert said[first] != WRONG
    assert said[f"read {second[0]}"] == said["read nothing"] == WRONG
    assert {"64 px strips of 64", "photographs, 128 px of 64", "Single", "Multi"} <= set(said)
    assert sum(text.get_text().startswith("read ") for text in texts) == 3 * 4


def test_a_gap_in_a_reading_is_seen(numbers):
    record = next(record for record in numbers if record.row.label == "ST-CNN Single")
    answers = np.full((8, 5), 10)
    answers[0, [0, 2]], answers[1, 0] = (1, 4), 0
    said = words(draw_windows([replace(record, arrays={**record.arrays, "example_said": answers})]).figure)
    assert {"read 1 – 4", "read 0", "read nothing"} <= set(said)


def test_birds_show_the_windows_and_what_is_inside_them(birds):
    tiles = [axes for axes in draw_birds(birds).figure.axes if axes.images]
    n = BIRDS_SHOWN
    assert len(tiles) == n * (1 + 2) + n * (1 + 4)  # the control is not drawn
    record = next(record for record in birds if record.row.label == "4xST-CNN 448 px")
    laid, *crops = tiles[-5:]
    window = record.arrays["example_windows"][-1].astype(float)  # the last test bird is the last one shown
    np.testing.assert_array_equal(laid.images[0].get_array(), record.arrays["example_input"][-1])
    outlines = [patch for patch in laid.patches if isinstance(patch, mpl.patches.Polygon)]
    for outline, crop, corners in zip(outlines, crops, window, strict=True):
        np.testing.assert_allclose(outline.get_xy()[:4], corners, atol=1e-3)
        (left, right), (bottom, top) = crop.get_xlim(), crop.get_ylim()
        np.testing.assert_allclose([[left, top], [right, bottom]], corners[[0, 2]], atol=1e-3)
        assert crop.patches[-1].get_edgecolor() == outline.get_edgecolor()


def test_birds_are_named_once_and_mistakes_stand_out(birds):
    texts = draw_birds(birds).figure.findobj(mpl.text.Text)
    wrong = [text.get_text() for text in texts if text.get_color() == WRONG]
    shown = np.linspace(0, 7, BIRDS_SHOWN).round().astype(int)
    arrays = birds[0].arrays
    mistakes = [at for at in shown if arrays["example_said"][at] != arrays["example_label"][at]]
    assert len([text for text in wrong if text.startswith("said ")]) == 2 * len(mistakes) > 0
    assert " ".join(wrong).startswith(f"said {arrays['example_said_name'][mistakes[0]]}")
    named = [text for text in texts if text.get_text().startswith("Laysan") and text.get_color() != WRONG]
    assert len(named) == sum(arrays["example_name"][at].startswith("Laysan") for at in shown)
    assert "50 classes: 50 of 200" in [text.get_text() for text in texts]


def test_parts_show_the_shares_that_the_table_tells(birds):
    figure = draw_parts(birds).figure
    cells = measure_parts(birds)
    assert len(cells) == 2 + 4 + 2
    for cell in cells:
        for share in (*cell.regions.values(), *cell.parts.values()):
            assert f"{share:.0f}" in words(figure)
    said = words(figure)
    assert {"448 px, fixed", "beak", "tail", "head", "body"} <= set(said)


def test_an_animation_shows_windows_from_their_tiles_to_where_training_left_them(birds, tmp_path):
    budget = {"random_share": 0.4, "explore_share": 0.5}
    record = next(record for record in birds if record.row.label == "2xST-CNN 224 px")
    frames = draw_training([replace(record, config={**record.config, "budget": budget})]).frames
    assert len(frames) == 4 and len({frame.size for frame in frames}) == 1
    pixels = [np.asarray(frame.convert("RGB")).astype(int) for frame in frames]
    assert all((one != two).any() for one, two in itertools.pairwise(pixels))
    draw_training([record]).save(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").stat().st_size < 2e6


def test_windows_that_came_apart_are_left_out(birds, tmp_path):
    arrays = {name: np.array(value) for name, value in birds[0].arrays.items()}
    arrays["example_windows"][0, 0] = arrays["window_all"][:5, 0] = np.nan
    broken = [replace(birds[0], arrays=arrays)]
    for draw in (draw_birds, draw_parts):
        draw(broken).save(tmp_path / "a.png")
    assert all(np.isfinite(cell.moves) for cell in measure_parts(broken))


def test_a_grid_is_drawn_in_full_and_a_frame_in_colour_on_the_digit_that_is_undone(sums):
    figure = draw_pairs(sums).figure
    tiles = [axes for axes in figure.axes if axes.images]
    assert len(tiles) == 6 * PAIRS * (2 + 4)
    record = next(record for record in sums if record.row.label == "2xST-FCN Aff")
    left, seen, hidden, right, *_ = tiles  # the left digit, what both transformers show of it, then the right one
    np.testing.assert_array_equal(seen.images[0].get_array(), 255 - record.arrays["example_output"][0, 0])
    np.testing.assert_array_equal(hidden.images[0].get_array(), 255 - record.arrays["example_output"][0, 2])
    inner = [[len(lines.get_segments()) for lines in axes.collections[::2]] for axes in (left, right)]
    assert inner == [[12, 0], [0, 12]]
    frames = [mpl.colors.to_hex(axes.patches[0].get_edgecolor()).upper() for axes in (seen, hidden)]
    assert frames == [STRONG[0], PALE]
    said = words(figure)
    assert said.count("7 + 2") == said.count("4 + 9") == 6 and said.count("said 14") == 6 and "said 9" not in said
    assert sum(line.startswith("first undoes 9") for line in said) == 6

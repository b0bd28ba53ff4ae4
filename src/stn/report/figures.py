"""Pictures from records: what a transformer looks at, and how much of a distortion it undoes.

All take what `stn.report.tables.load` returns and draw the ST-CNN rows of it. Same records, same bytes: the style is
set here, whatever the user's matplotlib is told, and the PNG carries no metadata.
"""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator
from matplotlib.transforms import Bbox, TransformedBbox
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from stn.errors import UserError
from stn.report.paper import BIRD, TABLES
from stn.report.statistics import (
    at_size_of,
    interval,
    pose_left,
    scatter,
    share_explained,
    variance_undone,
    without_constant,
)
from stn.report.tables import digits_undone, parts_held

COLOURS = {"Aff": "#0072B2", "Proj": "#D55E00", "TPS": "#009E73"}  # Okabe and Ito: told apart by colour-blind readers
SIZES = {"CNN": "#767676", "ST-CNN": "#0072B2"}
KERNELS = {"integer": "#767676", "bilinear": "#0072B2", "bicubic": "#009E73", "learned": "#D55E00"}
DISTORTIONS = {
    "R": "rotation",
    "RTS": "rotation, translation, scale",
    "P": "projective",
    "E": "elastic",
    "TC": "translation, clutter",
}
DIGITS = (2, 4, 7)  # no symmetry, so that their pose is seen
WINDOWS = ("#F0E442", "#56B4E9", "#CC79A7", "#D55E00")  # the transformers of a network in order; the last one is strong
SOLIDS = (2, 3, 4, 5, 6, 7)  # digits shown as volumes
# Right, down and away from a camera to the left of a volume and above it, in the volume's frame.
CAMERA = Rotation.from_euler("yx", [26, -20], degrees=True).as_matrix()
SHOWN, NONE = 8, 10  # test images in a row; the answer "no digit here"
PARALLEL = ("#F0442E", "#35B8FF", "#FFD500", "#E27BD0")  # windows side by side, all of them strong
OUTSIDE = "#7C7468"  # ImageNet's mean colour: zero, once an image is normalised
BIRDS = 6  # test images in a row
PAIRS = 3  # test pairs in a row
CLASSES = 10
WINDOW, TRUE, DASH = "#D55E00", "#0072B2", (0, (3, 1.6))  # the window found, the true box and its line
SHADES, FRAME, PAUSE = 32, 160, 3000  # of an animation: its colours; how long frames and the last one stay, in ms
HEAT = LinearSegmentedColormap.from_list("heat", ["#FFFFFF", "#DCEBF2", "#7FB6CF", "#1F6F94", "#0B3550"])
INK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
WRONG = "#B0125B"
LETTER, LINE = 0.066, 0.18  # inches: a letter of a text, and from one line to the next
STYLE = {
    "font.family": "DejaVu Sans",  # ships inside matplotlib
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelsize": 8.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def pictures(records: Sequence[dict], path: Path) -> None:
    """Writes, per data set, three test digits: the canvas under each family's sampling grid, and what is made of it."""
    cells, columns, families = _st_cnn(records, 1)
    unit = 0.30  # inches for half a canvas
    across, low, high = 2 * 1.4 * unit, 2 * 1.08 * unit, 2 * 1.42 * unit  # a tile's width; its height, with a grid
    gap, left, top, block_gap, bottom = 0.24, 1.12, 0.72, 0.14, 0.42
    block = high + low + block_gap
    width = left + len(columns) * (3 * across + gap) - gap + 0.1
    height = top + low + block_gap + len(families) * block - block_gap + bottom
    with _sheet(width, height, path) as sheet:

        def tile(x: float, y: float, tall: float) -> mpl.axes.Axes:
            return sheet.tile(x, y, across, tall, unit)

        for i, column in enumerate(columns):
            x0 = left + i * (3 * across + gap)
            sheet.text(x0 + 0.36 * unit, 0.32, column, size=13, weight="bold", va="baseline")
            sheet.text(x0 + 0.36 * unit, 0.54, DISTORTIONS[column], color=GREY, va="baseline")
            present = [family for family in families if (family, column) in cells]
            for j, digit in enumerate(DIGITS):
                x = x0 + j * across
                for family in present:
                    arrays = cells[family, column]["arrays"]
                    at = int(np.flatnonzero(arrays["example_label"] == digit)[0])
                    if family == present[0]:
                        _picture(tile(x, top, low), arrays["example_input"][at], PALE)
                    y = top + low + block_gap + families.index(family) * block
                    laid = tile(x, y, high)
                    _picture(laid, arrays["example_input"][at], PALE, strength=0.62)
                    _grid(laid, arrays["example_grid"][at], COLOURS[family])
                    _picture(tile(x, y + high, low), arrays["example_output"][at], COLOURS[family])
        sheet.text(left - 0.05, top + low / 2, "input", ha="right", va="center")
        for k, family in enumerate(families):
            y = top + low + block_gap + k * block
            sheet.text(0.12, y + high / 2, family, size=11, weight="bold", color=COLOURS[family], va="center")
            sheet.text(left - 0.05, y + high / 2, "grid", ha="right", va="center")
            sheet.text(left - 0.05, y + high + low / 2, "output", ha="right", va="center")
        words = "a 2, a 4 and a 7 of each test set; the output is what the classifier sees"
        source = _source(cells, words + _stand_in(cells))
        sheet.text(left + 0.36 * unit, height - 0.15, source, size=7.5, color=GREY)


def poses(records: Sequence[dict], path: Path) -> None:
    """Writes found against true pose of the first test images, and where nine points of the canvas land in them."""
    cells, columns, families = _st_cnn(records, 1)
    panels = [
        (column, name)
        for column in columns
        for name in next(cells[family, column] for family in families if (family, column) in cells)["pose_names"]
    ]
    n = max(len(record["arrays"]["cloud_before"]) for record in cells.values())
    side, gap, left, cloud_gap = 1.72, 0.62, 0.95, 0.34
    step = side + gap
    width = left + max(len(panels), len(columns) + 1) * step - gap + 0.25
    title = 1.40
    top_height = title + side + 0.62 if panels else 0.0
    cloud_top = top_height + 1.28
    height = cloud_top + len(families) * (side + cloud_gap) + 0.20
    with _sheet(width, height, path) as sheet:

        def axes(x: float, y: float) -> mpl.axes.Axes:
            return sheet.axes(x, y, side, side)

        if panels:
            sheet.text(
                0.2, 0.32, "What the transformer finds, against what was done to the image", size=12, weight="bold"
            )
            words = "a network may choose the pose that it brings digits to: that one constant is removed"
            sheet.text(0.2, 0.56, f"Dots: {families[0]}; {words}. RMS is of what remains.", color=GREY)
        for i, (column, name) in enumerate(panels):
            of = {family: cells[family, column] for family in families if (family, column) in cells}
            _pose(axes(left + i * step, title), of, column, name)

        sheet.text(0.2, top_height + 0.32, "How much of the pose is undone", size=12, weight="bold")
        words = "Where nine points of the canvas fall on the undistorted digit, image by image."
        sheet.text(0.2, top_height + 0.56, words, color=GREY)
        for i, column in enumerate(columns):
            x = left + i * step
            sheet.text(x, cloud_top - 0.34, column, size=11, weight="bold")
            for k, family in enumerate(families):
                if (family, column) in cells:
                    _cloud(axes(x, cloud_top + k * (side + cloud_gap)), cells[family, column], COLOURS[family])
        x = left + len(columns) * step
        sheet.text(x, cloud_top, "grey: without transformer", color=GREY, va="top")
        sheet.text(x, cloud_top + 0.20, "colour: with it", color=COLOURS[families[0]], va="top")
        words = (
            "Undone: the share of the\npoints' variance over images\nthat is gone, once a constant\n"
            "zoom is taken out, without\nthe 5 % of images that lie\nfarthest. At 100 % every image\n"
            "is seen in one pose."
        )
        sheet.text(x, cloud_top + 0.56, words, size=8, color=GREY, va="top", linespacing=1.45)
        for k, family in enumerate(families):
            y = cloud_top + k * (side + cloud_gap) + side / 2
            sheet.text(0.2, y, family, size=11, weight="bold", color=COLOURS[family], va="center")
        source = _source(cells, f"the first {n:,} test images of each set{_stand_in(cells)}")
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)


def windows(records: Sequence[dict], path: Path) -> None:
    """Writes, per column and network, the first test images: windows on them, what the last hands on, what is read."""
    cells, columns, networks = _st_cnn(records, 2)
    n = min(SHOWN, *(len(record["arrays"]["example_input"]) for record in cells.values()))
    unit = 0.47  # inches for half an image
    across, high, low = 2 * 1.18 * unit, 2 * 1.16 * unit, 2 * 1.06 * unit  # a tile's width; its height with windows
    left, top, title, words, gap, bottom = 1.50, 0.86, 0.44, 0.46, 0.16, 0.40
    width = left + max(n, 5) * across + 0.1
    edge = left + 0.18 * unit
    parts, tops, height = {}, {}, top  # what each column's images are; where the block of each cell begins
    for column in columns:
        present = [network for network in networks if (network, column) in cells]
        part = cells[present[0], column]["part"] or ""
        parts[column] = textwrap.wrap(part, int((width - edge) / LETTER))
        height += title + LINE * len(parts[column])
        for network in present:
            tops[network, column] = height
            height += high + low + words
        height += gap
    height += bottom
    with _sheet(width, height, path, photos=True) as sheet:
        sheet.text(0.2, 0.32, "Where the transformers look", size=12, weight="bold")
        _key(sheet, 0.2, 0.56, max(record["arrays"]["example_windows"].shape[1] for record in cells.values()))
        for column, lines in parts.items():
            y = min(tops[key] for key in tops if key[1] == column) - 0.11 - LINE * len(lines)
            sheet.text(edge, y, column, size=13, weight="bold", va="baseline")
            for i, line in enumerate(lines):
                sheet.text(edge, y + 0.03 + LINE * (i + 1), line, color=GREY, va="baseline")
        for (network, column), y in tops.items():
            arrays = cells[network, column]["arrays"]
            sheet.text(0.2, y + high / 2, network, size=11, weight="bold", va="center")
            sheet.text(left - 0.05, y + high / 2, "windows", ha="right", va="center")
            sheet.text(left - 0.05, y + high + low / 2, "handed on", ha="right", va="center")
            sheet.text(left - 0.05, y + high + low + 0.13, "label", ha="right", va="center")
            for i in range(n):
                x = left + i * across
                laid = sheet.tile(x, y, across, high, unit)
                _picture(laid, arrays["example_input"][i], PALE)
                _outlines(laid, arrays["example_windows"][i].astype(float))
                _picture(sheet.tile(x, y + high, across, low, unit), arrays["example_seen"][i], WINDOWS[-1])
                label, said = (_number(arrays[name][i]) for name in ("example_label", "example_said"))
                middle = {"ha": "center", "va": "center"}
                sheet.text(x + across / 2, y + high + low + 0.13, label, **middle)
                if said != label:
                    sheet.text(x + across / 2, y + high + low + 0.30, f"read {said}", color=WRONG, **middle)
        sheet.text(edge, height - 0.15, _source(cells, f"the first {n} test images of each set"), size=7.5, color=GREY)


def birds(records: Sequence[dict], path: Path) -> None:
    """Writes, per column and network, test birds with their windows, what each window shows, and what is said wrong."""
    cells, columns, networks = _st_cnn(records, 3)
    n = min(BIRDS, *(len(record["arrays"]["example_input"]) for record in cells.values()))
    side, across = 1.30, 1.46  # inches: an image, from one bird to the next
    left, top, title, line, foot, bottom = 1.22, 0.80, 0.62, 0.15, 0.20, 0.40
    width = left + max(n, 4) * across

    def wrapped(name: str) -> list[str]:
        return textwrap.wrap(name, int(across / 0.062))

    titles, blocks, height = {}, [], top
    for column in columns:
        titles[column] = height
        height += title
        for network in [network for network in networks if (network, column) in cells]:
            arrays = cells[network, column]["arrays"]
            picked = np.linspace(0, len(arrays["example_input"]) - 1, n).round().astype(int)
            wrong = arrays["example_said"] != arrays["example_label"]
            said = [wrapped(f"said {arrays['example_said_name'][at]}") if wrong[at] else [] for at in picked]
            tall = _bird_height(arrays["example_windows"].shape[1], side)
            blocks.append((column, network, arrays, height, tall, list(zip(picked, said, strict=True))))
            height += tall + foot + line * max(map(len, said))
    height += bottom
    with _sheet(width, height, path, photos=True, step=5) as sheet:
        sheet.text(0.2, 0.32, "Where the transformers look", size=12, weight="bold")
        _windows_key(sheet, 0.2, 0.56, max(block[2]["example_windows"].shape[1] for block in blocks))
        for column, y in titles.items():
            part = next(cells[key]["part"] for key in cells if key[1] == column)
            sheet.text(left, y + 0.14, f"{column}: {part}" if part else column, color=GREY, va="center")
        for column, network, arrays, y, tall, shown in blocks:
            model, _, pixels = network.partition(" ")
            sheet.text(0.2, y + side / 2 - 0.1, model, size=11, weight="bold", va="center")
            sheet.text(0.2, y + side / 2 + 0.1, pixels, color=GREY, va="center")
            for i, (at, said) in enumerate(shown):
                x, middle = left + i * across, {"size": 8, "ha": "center", "va": "center"}
                if y == titles[column] + title:  # the networks below show the same birds
                    for k, words in enumerate(reversed(wrapped(arrays["example_name"][at]))):
                        sheet.text(x + side / 2, y - 0.11 - line * k, words, **middle)
                _bird(sheet, x, y, side, arrays["example_input"][at], arrays["example_windows"][at].astype(float))
                for k, words in enumerate(said):
                    sheet.text(x + side / 2, y + tall + 0.13 + line * k, words, color=WRONG, **middle)
        source = _source(cells, f"{n} test images, spread evenly over the test set")
        sheet.text(left, height - 0.15, source, size=7.5, color=GREY)


def parts(records: Sequence[dict], path: Path) -> None:
    """Writes, per column and network, where the windows stand on all test images and how often they hold each part."""
    cells, columns, networks = _st_cnn(records, 3, on_demand=True)
    held = {(found["row"], found["column"], found["window"]): found for found in parts_held(records)}
    count = {key: record["arrays"]["window_all"].shape[1] for key, record in cells.items()}
    wide, tall, gap, left, right = 0.47, 0.255, 0.26, 1.12, 0.15  # a place of the map, from one network to the next
    frame, top, head, between, bottom = 1.0, 0.80, 0.62, 0.14, 0.40
    begin = head + frame + 0.36  # of the map, below the top of its block
    places, down = [], begin  # (region, part, or None for all of them) and how far down it stands
    for region, names in BIRD.items():
        for name in (None, *names):
            places.append((region, name, down))
            down += tall
        down += between
    block = down + 0.16
    span = {key: max(frame, wide * n) for key, n in count.items()}
    wides = [sum(span[key] + gap for key in span if key[1] == column) for column in columns]
    width = max(left + max(wides) - gap + right, 4.2)  # the title needs so much
    n = max(record["n_test"] for record in cells.values())
    words = f"% of the test images ({n:,}) that show the part; above, mean windows, and their centres on every image"
    source = textwrap.wrap(_source(cells, words), int(width / 0.06))
    height = top + len(columns) * block + bottom + LINE * (len(source) - 1)
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "Which part of the bird each window holds", size=12, weight="bold")
        _windows_key(sheet, 0.2, 0.56, max(count.values()))
        for c, column in enumerate(columns):
            x, y = left, top + c * block
            if len(columns) > 1:
                sheet.text(0.2, y + 0.2, column, size=11, weight="bold", va="center")
            for region, name, down in places:
                weight = "normal" if name else "bold"
                sheet.text(
                    x - 0.1, y + down + tall / 2, name or region, size=8.5, weight=weight, ha="right", va="center"
                )
            for key in [(network, column) for network in networks if (network, column) in cells]:
                model, _, rest = key[0].partition(" ")
                middle = {"ha": "center", "va": "center"}
                sheet.text(x + span[key] / 2, y + head - 0.34, model, weight="bold", **middle)
                sheet.text(x + span[key] / 2, y + head - 0.16, rest, color=GREY, size=8, **middle)
                _stands(sheet.tile(x + (span[key] - frame) / 2, y + head, frame, frame, frame / 2), cells[key])
                first = x + (span[key] - wide * count[key]) / 2
                for k in range(count[key]):
                    at, found = first + k * wide, held[cells[key]["row"], column, k + 1]
                    sheet.text(at + wide / 2, y + begin - 0.18, str(k + 1), size=8, color=GREY, **middle)
                    strip = sheet.axes(at + 0.03, y + begin - 0.10, wide - 0.06, 0.05)
                    strip.set_axis_off()
                    strip.add_patch(Rectangle((0, 0), 1, 1, color=PARALLEL[k % len(PARALLEL)]))
                    for region, name, down in places:
                        share = found["parts"].get(name, np.nan) if name else found[region]
                        _heat(sheet.axes(at, y + down, wide, tall), share, bold=name is None)
                x += span[key] + gap
        for i, line in enumerate(reversed(source)):
            sheet.text(0.2, height - 0.15 - LINE * i, line, size=7.5, color=GREY)


def sums(records: Sequence[dict], path: Path) -> None:
    """Writes, per network with two transformers, test pairs under both grids, and what each transformer makes of them.

    A transformer's grid is drawn in full, and what it shows is framed in its colour, where it undoes more of a digit
    than of the other: see `stn.report.tables.digits_undone`.
    """
    table = TABLES[4]
    cells = {record["row"]: record for record in records if record["row"].startswith("2xST")}
    if not cells:
        raise UserError(f"no 2xST record to draw: `{table.make}` trains the cells")
    undone: dict[str, list[tuple[float, float]]] = {}
    for found in digits_undone(list(cells.values())):
        undone.setdefault(found["row"], []).append(found["undone"])
    kinds = [kind for kind in ("FCN", "CNN") if any(f"2xST-{kind} " in row for row in cells)]
    families = [family for family in COLOURS if any(row.endswith(f" {family}") for row in cells)]
    n = min(PAIRS, *(len(record["arrays"]["example_input"]) for record in cells.values()))
    unit = 0.30  # inches for half a canvas
    across, high, low = 2 * 1.36 * unit, 2 * 1.42 * unit, 2 * 1.10 * unit  # a tile's width; its height, with a grid
    left, top, gap, between, told, foot, bottom = 1.34, 0.92, 0.16, 0.50, 0.48, 0.50, 0.36
    wide, tall = n * (2 * across + gap) - gap, told + high + 2 * low + foot
    width = max(left + len(kinds) * (wide + between) - between + 0.1, 7.2)
    height = top + len(families) * tall + bottom
    names = ("first", "second")
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "Which digit each of two transformers attends to", size=12, weight="bold")
        words = "transformer: a grid in full, and a coloured frame, on the digit that it undoes more"
        for text, colour, x in (("First", PARALLEL[0], 0.2), ("second", PARALLEL[1], 0.62), (words, GREY, 1.18)):
            sheet.text(x, 0.56, text, color=colour, weight="normal" if colour == GREY else "bold", va="center")
        sheet.text(0.50, 0.56, ",", color=GREY, va="center")
        for f, family in enumerate(families):
            y = top + f * tall
            sheet.text(0.2, y + told + high / 2, family, size=11, weight="bold", va="center")
            sheet.text(left - 0.06, y + told + high / 2, "grids", ha="right", va="center")
            for k, name in enumerate(names):
                place = (left - 0.06, y + told + high + (k + 0.5) * low)
                sheet.text(*place, f"{name} sees", color=PARALLEL[k], ha="right", va="center")
            for c, kind in enumerate(kinds):
                row = f"2xST-{kind} {family}"
                if row not in cells:
                    continue
                x, arrays = left + c * (wide + between), cells[row]["arrays"]
                edge = x + 0.36 * unit
                sheet.text(edge, y + 0.08, row, weight="bold", va="center")
                for k, shares in enumerate(undone[row]):
                    words = " and ".join(f"{share:z.0f} %".replace("-", "−") for share in shares)
                    place = edge + 1.22 + k * 2.05
                    sheet.text(place, y + 0.08, f"{names[k]} undoes {words}", size=8, color=PARALLEL[k], va="center")
                sizes = (across, high, low, unit)
                for i in range(n):
                    _pair(sheet, x + i * (2 * across + gap), y + told - 0.12, sizes, arrays, i, undone[row])
        source = f"{_source(cells, f'the first {n} test pairs').removeprefix('ST-CNN, ')}"
        words = "undone is the share of a pose's variance that is gone, for the left and for the right digit"
        sheet.text(0.2, height - 0.14, f"{source[0].upper()}{source[1:]}; {words}", size=7.5, color=GREY)


def found(records: Sequence[dict], path: Path) -> None:
    """Writes, per column, an image of each class with the digit's true box and the window found, and what it shows."""
    cells, columns = _colocalised(records)
    across, side, left, top, bottom = 1.02, 0.94, 0.62, 1.06, 0.42  # inches: from image to image, an image, margins
    block = 2 * across + 0.62
    width, height = left + CLASSES * across + 0.1, top + len(columns) * block - 0.36 + bottom
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "Co-localisation: what is common to images without labels", size=12, weight="bold")
        _boxes_key(sheet, 0.2, 0.58)
        for i, column in enumerate(columns):
            y, arrays = top + i * block, cells[column]["arrays"]
            sheet.text(0.2, y + side / 2, column, size=13, weight="bold", va="center")
            for k in range(CLASSES):
                x, theta = left + k * across, arrays["theta"][k].astype(float)
                hit = bool(arrays[f"correct_s{cells[column]['seeds'][0]['seed']}"][k])
                middle = {"ha": "center", "va": "center"}
                if i == 0:
                    sheet.text(x + side / 2, y - 0.16, f"class {k}", color=GREY, size=8, **middle)
                laid = sheet.tile(x, y, side, side, side / 2.04)
                _picture(laid, arrays["example_input"][k], PALE)
                _found(laid, arrays["box"][k], theta)
                crop = sheet.tile(x, y + across, side, side, side / 2.04)
                _picture(crop, arrays["example_crop"][k], WINDOW if hit else WRONG)
                share = 100 * _of_class(cells[column], k).mean()
                words = f"{share:.0f} %" if hit else f"{share:.0f} %, not this"
                sheet.text(x + side / 2, y + 2 * across + 0.06, words, size=8, color=INK if hit else WRONG, **middle)
        record = cells[columns[0]]
        words = f"the first image of each class; below it, how many of its {_of_class(record, 0).size} images are found"
        sheet.text(left, height - 0.16, f"Budget {record['budget']}, {_seed(record)}; {words}", size=7.5, color=GREY)


def search(records: Sequence[dict], path: Path) -> None:
    """Writes an animated GIF: the windows on an image of each class as training goes on."""
    cells, columns = _colocalised(records)
    across, side, left, top = 0.92, 0.86, 0.52, 0.62  # inches
    block = side + 0.38
    width, height = left + CLASSES * across + 0.06, top + len(columns) * block - 0.24
    frames = []
    for t in range(min(len(cells[column]["arrays"]["trace_steps"]) for column in columns)):
        with _drawing(width, height) as sheet:
            step = int(cells[columns[0]]["arrays"]["trace_steps"][t])
            _boxes_key(sheet, left, 0.22)
            sheet.text(width - 0.14, 0.22, f"step {step:,}", size=10, weight="bold", ha="right", va="center")
            for i, column in enumerate(columns):
                record, y = cells[column], top + i * block
                arrays = record["arrays"]
                curve = {seen[0]: 100 - seen[1] for seen in record["seeds"][0]["validation"]}
                sheet.text(0.12, y + side / 2, column, size=11, weight="bold", va="center")
                share = curve.get(int(arrays["trace_steps"][t]))
                words = "at the start" if share is None else f"{share:.0f} % of {record['n_test']:,} images found"
                sheet.text(left, y - 0.11, words, size=8, color=GREY, va="center")
                for k in range(CLASSES):
                    laid = sheet.tile(left + k * across, y, side, side, side / 2.1)
                    _picture(laid, arrays["example_input"][k], PALE)
                    _found(laid, arrays["box"][k], arrays["trace"][t, k].astype(float))
            drawn = io.BytesIO()
            sheet.figure.savefig(drawn, dpi=96, format="png")
            frames.append(Image.open(drawn).convert("RGB"))
    colours = frames[-1].quantize(SHADES, dither=Image.Dither.NONE)  # of all frames: small, and nothing flickers
    frames = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    lasts = [FRAME] * (len(frames) - 1) + [PAUSE]
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=lasts, loop=0, optimize=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def solids(records: Sequence[dict], path: Path) -> None:
    """Writes, per column, test volumes with the box that the transformer samples, their projections, and the poses."""
    cells, columns, families = _st_cnn(records, 6)
    side, across, tall, small = 1.80, 1.84, 1.80, 1.16  # inches: a volume, from one to the next; a projection
    left, top, title, gap, panel, bottom = 1.22, 0.78, 0.34 * (len(cells) > 1), 0.12, 2.05, 0.34
    block = title + tall + 2 * (small + gap) + 0.18
    edge = left + len(SOLIDS) * across  # of the volumes; beyond it stand the poses
    width, height = edge + 0.62 + panel + 0.22, top + len(cells) * block + bottom
    colour = COLOURS["Aff"]
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "A digit in a volume, and the box that the transformer samples", size=12, weight="bold")
        words = "The transformer looks through the tinted face, along the arrow; what lies behind it is summed."
        sheet.text(0.2, 0.56, words, color=GREY)
        for i, (column, family) in enumerate((c, f) for c in columns for f in families if (f, c) in cells):
            arrays, y = cells[family, column]["arrays"], top + i * block
            if len(cells) > 1:
                sheet.text(0.2, y + 0.14, f"{family}, {column}", size=11, weight="bold", va="center")
            y += title
            for words, down in (
                ("volume\nand box", tall / 2),
                ("projection\nwithout", tall + small / 2),
                ("projection\nwith", tall + gap + small * 1.5),
            ):
                shade = colour if words.endswith("\nwith") else INK
                sheet.text(left - 0.12, y + down, words, ha="right", va="center", color=shade, linespacing=1.3)
            brightest = max(float(arrays[name].max()) for name in ("example_before", "example_after"))
            for k, digit in enumerate(SOLIDS):
                x, at = left + k * across, int(np.flatnonzero(arrays["example_label"] == digit)[0])
                laid = sheet.tile(x, y, side, tall, side / 2 / 1.66)
                _solid(laid, arrays["example_volume"][at], arrays["example_theta"][at].astype(float), colour)
                for j, name, frame in ((0, "example_before", PALE), (1, "example_after", colour)):
                    shown = (arrays[name][at].astype(float) / brightest).clip(0, 1) ** 0.7 * 255
                    below = y + tall + j * (small + gap)
                    _picture(sheet.tile(x + (side - small) / 2, below, small, small, small / 2.06), shown, frame)
            left_over = pose_left(arrays["theta"][: len(arrays["pose_true"])], arrays["pose_true"][:, :3])
            high = (block - title - 1.26) / 2
            for j, (name, words) in enumerate((("tilt", "tilt"), ("turn", "turn in the picture"))):
                axes = sheet.axes(edge + 0.62, y + 0.28 + j * (high + 0.76), panel, high)
                _angles(axes, left_over[f"{name}_before"], left_over[f"{name}_after"], words, colour)
        n = max(len(record["arrays"]["pose_true"]) for record in cells.values())
        source = _source(cells, f"the first test digit of each class shown; poses of the first {n:,} test volumes")
        sheet.text(0.2, height - 0.15, source, size=7.5, color=GREY)


def kernels(records: Sequence[dict], path: Path) -> None:
    """Writes, per column, the learned kernels beside those that are fixed, and the error with each."""
    table = TABLES[7]
    cells = {(record["row"].rpartition(", ")[2], record["column"]): record for record in records}
    columns = [column for column in table.columns if any(key[1] == column for key in cells)]
    if not cells:
        raise UserError(f"no ST-CNN record to draw: `{table.make}` trains the cells")
    wide, tall, left, gap, top, between = 3.3, 2.1, 0.75, 0.75, 1.05, 0.75
    width = max(left + len(columns) * (wide + gap), 5.6)
    height = top + tall + between + 1.25 + 0.75
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "Sampling kernels: fixed and learned", size=12, weight="bold")
        sheet.text(0.2, 0.56, "Above: weight by distance. Below: test error with its 95 % interval.", color=GREY)
        d = np.linspace(-2, 2, 401)
        near, a = np.abs(d), -0.75
        fixed = {
            "integer": np.where(near < 0.5, 1.0, 0.0),
            "bilinear": np.clip(1 - near, 0, None),
            "bicubic": np.where(
                near <= 1, (a + 2) * near**3 - (a + 3) * near**2 + 1, a * (near**3 - 5 * near**2 + 8 * near - 4)
            ),
        }
        for i, column in enumerate(columns):
            x = left + i * (wide + gap)
            axes = sheet.axes(x, top, wide, tall)
            axes.axhline(0, color=PALE, linewidth=0.8)
            for kernel, weights in fixed.items():
                axes.plot(d, weights, color=KERNELS[kernel], linewidth=1.2, label=kernel, alpha=0.8)
            learned = cells.get(("learned", column))
            for axis, style in (("x", "-"), ("y", "--")) if learned else ():
                phi = np.pad(learned["arrays"][f"phi_{axis}"].astype(float), 1)
                knots = np.linspace(-2, 2, len(phi))
                style = {"linestyle": style, "marker": "o", "markersize": 3}
                axes.plot(knots, phi, color=KERNELS["learned"], linewidth=1.7, label=f"learned, {axis}", **style)
            axes.set(xlabel="distance (pixels)", xlim=(-2, 2), xticks=[-2, -1, 0, 1, 2])
            axes.set_ylabel("weight", labelpad=1)
            axes.set_title(column, size=11, loc="left", weight="bold")
            if i == 0:
                axes.legend(frameon=False, fontsize=7.5, loc="upper left", handlelength=1.6, borderaxespad=0)
            errors = sheet.axes(x, top + tall + between, wide, 1.25)
            present = [kernel for kernel in KERNELS if (kernel, column) in cells]
            for k, kernel in enumerate(present):
                record = cells[kernel, column]
                low, high = interval(record["seeds"])
                mean = np.mean([seed["error"] for seed in record["seeds"]])
                errors.plot([low, high], [k, k], color=KERNELS[kernel], linewidth=2.2, solid_capstyle="butt")
                errors.plot([mean], [k], "o", color=KERNELS[kernel], markersize=4.5)
                errors.annotate(
                    f"{mean:.2f}",
                    (high, k),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    size=8,
                    annotation_clip=False,
                )
            errors.set(yticks=range(len(present)), yticklabels=present, ylim=(len(present) - 0.5, -0.5))
            errors.set_xlabel("test error (%)")
            errors.margins(x=0.12)
        budget, n = records[0]["budget"], max(record["n_test"] for record in records)
        seeds = ", ".join(map(str, sorted({seed["seed"] for record in records for seed in record["seeds"]})))
        source = f"ST-CNN Aff, budget {budget}, seeds {seeds} (kernels of the first); {n:,} test images"
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)


def sizes(records: Sequence[dict], path: Path) -> None:
    """Writes, per column, the error of small and large networks: by parameters, and by multiply-adds of one image."""
    table = TABLES[8]
    if not any(table.transforms(record["row"]) for record in records):
        raise UserError(f"no ST-CNN record to draw: `{table.make}` trains the cells")
    columns = [column for column in table.columns if any(record["column"] == column for record in records)]
    axes_of = (("parameters", "parameters"), ("multiply_adds", "multiply-adds of one image"))
    wide, tall, left, gap, top, between = 3.5, 2.5, 0.80, 0.35, 1.30, 0.78
    width = left + len(axes_of) * (wide + gap) + 0.05
    height = top + len(columns) * (tall + between) + 0.12
    errors = [100 * run["errors"] / run["n"] for record in records for run in _runs(record)]
    limits = (max(min(errors) / 1.35, 0.01), min(max(errors) * 1.35, 100))
    exported = any(record["export"] for record in records)
    with _sheet(width, height, path) as sheet:
        sheet.text(0.2, 0.32, "Is a small ST-CNN better than a large CNN?", size=12, weight="bold")
        words = "Test error by size, both on logarithmic scales. Bars are 95 % intervals; labels name the sizes."
        sheet.text(0.2, 0.56, words, color=GREY)
        x = 0.2
        for kind, colour in SIZES.items():
            for name, face in ((kind, colour), (f"{kind} in int8", "none"))[: 1 + exported]:
                key = sheet.tile(x, 0.72, 0.2, 0.2, 0.1)
                key.plot([0], [0], "o", color=colour, markerfacecolor=face, markersize=4.2 if face == colour else 6.5)
                sheet.text(x + 0.24, 0.82, name, color=colour, va="center")
                x += 0.24 + len(name) * LETTER + 0.30
        for c, column in enumerate(columns):
            for k, (key, label) in enumerate(axes_of):
                axes = sheet.axes(left + k * (wide + gap), top + c * (tall + between), wide, tall)
                axes.set(xscale="log", yscale="log", ylim=limits)
                axes.grid(color="#EEEEEE", linewidth=0.6)
                axes.set_axisbelow(True)
                for kind, colour in SIZES.items():
                    of = [r for r in records if r["column"] == column and r["row"].rpartition(" ")[0] == kind]
                    of.sort(key=lambda record: table.rows.index(record["row"]))
                    _sized(axes, of, key, colour, numbered=k == 1)
                axes.margins(x=0.13)
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(_short))
                axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.set_xlabel(label)
                if k:
                    axes.tick_params(labelleft=False)
                else:
                    axes.set_ylabel("test error (%)", labelpad=1)
                    axes.set_title(f"{column}: {DISTORTIONS[column]}", size=9.5, loc="left", weight="bold", pad=5)
        budget, n = records[0]["budget"], max(record["n_test"] for record in records)
        seeds = ", ".join(map(str, sorted({seed["seed"] for record in records for seed in record["seeds"]})))
        several = f"seeds {seeds}{' (int8 of the first)' if exported else ''}" if "," in seeds else f"seed {seeds}"
        source = f"budget {budget}, {several}; {n:,} test images"
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)


def _sized(axes: mpl.axes.Axes, records: Sequence[dict], key: str, colour: str, numbered: bool) -> None:
    """Errors of networks of one kind, by `key`: a line through the means, intervals, int8 as open markers."""
    x = [record[key] for record in records]
    means = [np.mean([seed["error"] for seed in record["seeds"]]) for record in records]
    axes.plot(x, means, "-o", color=colour, linewidth=1.3, markersize=4.2, zorder=3)
    st = colour == SIZES["ST-CNN"]
    for record, at, mean in zip(records, x, means, strict=True):
        axes.plot([at, at], np.maximum(interval(record["seeds"]), 0.01), color=colour, linewidth=1.3, zorder=2)
        if record["export"]:
            style = {"color": colour, "markerfacecolor": "none", "markersize": 6.5, "markeredgewidth": 0.9}
            axes.plot([at], [record["export"]["runs"]["int8"]["error"]], "o", **style, zorder=4)
        if numbered:
            # The better kind lies below: its labels point away from the other's.
            place = {"xytext": (-4, -4), "ha": "right", "va": "top"} if st else {"xytext": (4, 3)}
            place |= {"textcoords": "offset points", "size": 7, "color": colour}
            axes.annotate(record["row"].rpartition(" ")[2], (at, mean), **place)


def _runs(record: dict) -> list[dict]:
    """Counts of errors, of n test images: each seed's, and int8's where there is an export."""
    found = [{"errors": seed["errors"], "n": seed["n_test"]} for seed in record["seeds"]]
    if record["export"]:
        found.append({"errors": record["export"]["runs"]["int8"]["errors"], "n": record["export"]["n_test"]})
    return found


def _short(value: float, _: int = 0) -> str:
    """A number of parameters or multiply-adds as one says it: 10k, 3M."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"


def _st_cnn(
    records: Sequence[dict], number: int, on_demand: bool = False
) -> tuple[dict[tuple[str, str], dict], list[str], list[str]]:
    """The ST-CNN records by (kind of network, column), and the columns and kinds there are, in the paper's order.

    Rows on demand, such as controls whose windows are fixed, are left out unless asked for.
    """
    table = TABLES[number]
    out = () if on_demand else table.on_demand
    cells = {
        (record["row"].removeprefix("ST-CNN "), record["column"]): record
        for record in records
        if "ST-CNN " in record["row"] and record["row"] not in out
    }
    if not cells:
        raise UserError(f"no ST-CNN record to draw: `{table.make}` trains the cells")
    columns = [column for column in table.columns if any(key[1] == column for key in cells)]
    kinds = [row.removeprefix("ST-CNN ") for row in table.rows if "ST-CNN " in row]
    return cells, columns, [kind for kind in kinds if any(key[0] == kind for key in cells)]


def _colocalised(records: Sequence[dict]) -> tuple[dict[str, dict], list[str]]:
    """The whole records of Table 5 by column, and the columns there are."""
    table = TABLES[5]
    cells = {record["column"]: record for record in records if record["row"] == table.rows[-1]}
    if not cells:
        raise UserError(f"no record of windows to draw: `{table.make}` trains the cells")
    return cells, [column for column in table.columns if column in cells]


def _of_class(record: dict, k: int) -> np.ndarray:
    """Which images of class k the first seed found."""
    arrays = record["arrays"]
    return arrays[f"correct_s{record['seeds'][0]['seed']}"][arrays["classes"] == k]


def _seed(record: dict) -> str:
    return f"seed {record['seeds'][0]['seed']}"


def _source(cells: dict, images: str) -> str:
    record = next(iter(cells.values()))
    seeds = sorted({cell["seeds"][0]["seed"] for cell in cells.values()})
    return f"ST-CNN, budget {record['budget']}, seed {', '.join(map(str, seeds))}; {images}"


def _stand_in(cells: dict) -> str:
    part = next(iter(cells.values()))["part"]
    return f"; {part}" if part else ""


# ------------------------------------------------------------------------------------------------- sheets


class _Sheet:
    """A white figure laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure((width, height), facecolor="white")

    def text(self, x: float, y: float, words: str, **style) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def axes(self, x: float, y: float, wide: float, tall: float) -> mpl.axes.Axes:
        """Axes whose upper left corner is (x, y)."""
        return self.figure.add_axes(
            (x / self.width, 1 - (y + tall) / self.height, wide / self.width, tall / self.height)
        )

    def tile(self, x: float, y: float, wide: float, tall: float, unit: float) -> mpl.axes.Axes:
        """Such axes for an image, unseen, in whose middle the frame [-1, 1] measures two units."""
        made = self.axes(x, y, wide, tall)
        made.set_axis_off()
        made.set(xlim=(-wide / 2 / unit, wide / 2 / unit), ylim=(tall / 2 / unit, -tall / 2 / unit))
        return made


@contextmanager
def _drawing(width: float, height: float) -> Iterator[_Sheet]:
    """A sheet to draw on, in this module's style."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield _Sheet(width, height)


@contextmanager
def _sheet(width: float, height: float, path: Path, photos: bool = False, step: int = 1) -> Iterator[_Sheet]:
    """Such a sheet, written to `path` at the end."""
    with _drawing(width, height) as sheet:
        yield sheet
        _save(sheet.figure, path, photos, step)


def _save(figure: Figure, path: Path, photos: bool, step: int) -> None:
    """A PNG small enough for git: with photos of fewer dots, else of 256 colours, which nobody tells from all.

    Where photos are many, only every `step`-th of a channel's 256 values is used, with 5 a third less to store.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120 if photos else 160, format="png")
    image = Image.open(drawn).convert("RGB")
    image = image.point([round(value / step) * step for value in range(256)] * 3)
    if not photos:
        image = image.quantize(256, dither=Image.Dither.NONE)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


# ------------------------------------------------------------------------------------------------- pictures


def _picture(axes: mpl.axes.Axes, image: np.ndarray, frame: str, strength: float = 1.0) -> None:
    """A grey image (H, W) as ink on paper, a colour photo (H, W, 3) as it is."""
    limits = axes.get_xlim(), axes.get_ylim()
    shown = 255 - image.astype(float) * strength if image.ndim == 2 else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(-1, 1, 1, -1))
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=frame, linewidth=0.8 if frame == PALE else 1.1))
    axes.set(xlim=limits[0], ylim=limits[1], aspect="auto")


def _grid(axes: mpl.axes.Axes, grid: np.ndarray, colour: str, cells: int = 7) -> None:
    """The grid (h, w, 2) as `cells` cells each way, its outline stronger; the grid's points are pixel centres."""
    grid = grid.astype(float)
    for axis in (0, 1):  # half a pixel outwards, to the target's outer edge
        ends = [np.take(grid, [i, j], axis) for i, j in ((0, 1), (-1, -2))]
        first, last = (np.take(e, [0], axis) * 1.5 - np.take(e, [1], axis) * 0.5 for e in ends)
        grid = np.concatenate([first, grid, last], axis)
    lines, outline = [], []
    for axis in (0, 1):
        n = grid.shape[axis] - 2
        at = np.clip(np.linspace(-0.5, n - 0.5, cells + 1), -0.5, n - 0.5)
        knots = np.concatenate([[-0.5], np.arange(n), [n - 0.5]])
        rows = np.moveaxis(grid, axis, 0).reshape(n + 2, -1)
        picked = np.stack([np.interp(at, knots, value) for value in rows.T], -1).reshape(cells + 1, -1, 2)
        lines += list(picked[1:-1])
        outline += [picked[0], picked[-1]]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.55, alpha=0.85))
    axes.add_collection(LineCollection(outline, colors=colour, linewidths=1.3, capstyle="round"))


def _pair(
    sheet: _Sheet,
    x: float,
    y: float,
    sizes: tuple[float, float, float, float],
    arrays: dict[str, np.ndarray],
    i: int,
    undone: Sequence[tuple[float, float]],
) -> None:
    """The i-th example pair: its digits side by side under both grids, below them what each transformer shows of both.

    `sizes` are a tile's width, its height with a grid and without, and half a canvas.
    """
    across, high, low, unit = sizes
    grids, seen = arrays["example_grid"][i], arrays["example_output"][i]
    for digit in (0, 1):
        laid = sheet.tile(x + digit * across, y, across, high, unit)
        _picture(laid, arrays["example_input"][i, digit], PALE, strength=0.62)
        for k, (grid, shares) in enumerate(zip(grids, undone, strict=True)):
            attends = np.argmax(shares) == digit
            _grid(laid, grid, PARALLEL[k], cells=7 if attends else 1)
            shown = sheet.tile(x + digit * across, y + high + k * low, across, low, unit)
            _picture(shown, seen[2 * k + digit], PARALLEL[k] if attends else PALE)
    left, right = arrays["example_digits"][i].tolist()
    said, below = int(arrays["example_said"][i]), y + high + 2 * low
    middle = {"ha": "center", "va": "center"}
    sheet.text(x + across, below + 0.12, f"{left} + {right}", **middle)
    if said != left + right:
        sheet.text(x + across, below + 0.29, f"said {said}", color=WRONG, **middle)


def _outlines(axes: mpl.axes.Axes, windows: np.ndarray) -> None:
    """The windows (K, 4 corners, 2) of K transformers one after the other, the last one strong."""
    for window, colour in zip(windows, WINDOWS[-len(windows) :], strict=True):
        axes.add_patch(Polygon(window, **_line(colour)))


def _line(colour: str, strong: bool = False) -> dict:
    """A line that is seen on any photo: on a dark edge."""
    width = 1.9 if strong or colour == WINDOWS[-1] else 1.1
    edge = [Stroke(linewidth=width + 1.1, foreground=INK, alpha=0.75), Normal()]
    return {"fill": False, "edgecolor": colour, "linewidth": width, "joinstyle": "miter", "path_effects": edge}


def _key(sheet: _Sheet, x: float, y: float, count: int) -> None:
    """Says which colour is which of up to `count` windows."""
    words = "windows of the transformers, in order:" if count > 1 else "window of the transformer:"
    sheet.text(x, y, words, color=GREY, va="center")
    x += len(words) * LETTER + 0.1
    for colour, name in zip(WINDOWS[-count:], [*("first", "second", "third")[: count - 1], "last"], strict=True):
        sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06).add_patch(Rectangle((-1, -1), 2, 2, **_line(colour)))
        if count > 1:
            sheet.text(x + 0.24, y, name, color=GREY, va="center")
        x += 0.24 + len(name) * LETTER + 0.18


def _found(axes: mpl.axes.Axes, box: np.ndarray, theta: np.ndarray) -> None:
    """The true box (x0, y0, x1, y1) and the window of theta = s, tx, ty."""
    side, x, y = theta
    axes.add_patch(Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, edgecolor=TRUE, linewidth=1.0, linestyle=DASH))
    axes.add_patch(Rectangle((x - side, y - side), 2 * side, 2 * side, fill=False, edgecolor=WINDOW, linewidth=1.6))


def _boxes_key(sheet: _Sheet, x: float, y: float) -> None:
    """Says which line is the true box and which the window."""
    for colour, words, line in ((TRUE, "the digit's box", DASH), (WINDOW, "the window found", "-")):
        mark = sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06)
        mark.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=colour, linewidth=1.4, linestyle=line))
        sheet.text(x + 0.26, y, words, color=GREY, va="center")
        x += 0.26 + len(words) * LETTER + 0.26


def _bird(sheet: _Sheet, x: float, y: float, side: float, image: np.ndarray, windows: np.ndarray) -> None:
    """The image (H, W, 3) with its windows (N, 4 corners, 2), and below it what each of them shows, two in a line."""
    small, gap = _crop(side)
    laid = sheet.tile(x, y, side, side, side / 2)
    _photo(laid, image)
    for k, window in enumerate(windows):
        if not np.isfinite(window).all():  # of a training that came apart
            continue
        colour, low, high = PARALLEL[k % len(PARALLEL)], window.min(0), window.max(0)
        laid.add_patch(Polygon(window, **_line(colour, strong=True)))
        crop = sheet.tile(x + k % 2 * (small + gap), y + side + gap + k // 2 * (small + gap), small, small, small / 2)
        _photo(crop, image)
        crop.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
        crop.add_patch(Rectangle(low, *(high - low), fill=False, edgecolor=colour, linewidth=3.2))


def _bird_height(windows: int, side: float) -> float:
    """How tall `_bird` is."""
    return side + -(-windows // 2) * sum(_crop(side))


def _crop(side: float) -> tuple[float, float]:
    """How wide a crop is, and the gap to the next one."""
    return side / 2 - 0.03, 0.06


def _photo(axes: mpl.axes.Axes, image: np.ndarray) -> None:
    """A photo (H, W, 3) on the frame [-1, 1], enlarged smoothly; beside it the grey that a network sees there."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(image, extent=(-1, 1, 1, -1), interpolation="bicubic")
    axes.add_patch(Rectangle((-9, -9), 18, 18, color=OUTSIDE, zorder=-1))
    axes.set(xlim=limits[0], ylim=limits[1], aspect="auto")


def _windows_key(sheet: _Sheet, x: float, y: float, count: int) -> None:
    """Says which colour is which of up to `count` windows side by side."""
    sheet.text(x, y, "windows:", color=GREY, va="center")
    x += 0.66
    for k, colour in enumerate(PARALLEL[:count]):
        sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06).add_patch(Rectangle((-1, -1), 2, 2, **_line(colour, strong=True)))
        sheet.text(x + 0.24, y, str(k + 1), color=GREY, va="center")
        x += 0.50


def _stands(axes: mpl.axes.Axes, record: dict) -> None:
    """The image's frame with the centres of the windows on all test images, and each window's mean outline."""
    axes.add_patch(Rectangle((-1, -1), 2, 2, facecolor="#F7F7F7", edgecolor=GREY, linewidth=0.8, zorder=0))
    for k, windows in enumerate(np.moveaxis(record["arrays"]["window_all"].astype(float), 1, 0)):
        colour, windows = PARALLEL[k % len(PARALLEL)], windows[np.isfinite(windows).all((1, 2))]
        axes.add_patch(Polygon(windows.mean(0), fill=False, edgecolor=colour, linewidth=1.3, zorder=3))
        axes.scatter(*windows.mean(1).T, s=1.6, color=colour, alpha=0.25, linewidths=0, zorder=2, rasterized=True)
    axes.set(xlim=(-1.02, 1.02), ylim=(1.02, -1.02))


def _heat(axes: mpl.axes.Axes, share: float, bold: bool) -> None:
    """One place of the map: the share (%) as colour and number."""
    axes.set(
        xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), facecolor="white" if np.isnan(share) else HEAT(share / 100)
    )
    for spine in axes.spines.values():
        spine.set(visible=True, color="white", linewidth=1.0)
    style = {"ha": "center", "va": "center", "size": 8, "weight": "bold" if bold else "normal"}
    text = "–" if np.isnan(share) else f"{share:.0f}"
    axes.text(0.5, 0.46, text, color="white" if share > 55 else INK, **style)


def _number(answers: np.ndarray) -> str:
    """Five answers as one reads them: "1 9 4"; a gap inside is a dash."""
    digits = [f"{answer}" if answer != NONE else "–" for answer in answers.tolist()]
    return " ".join(digits).rstrip("– ") or "nothing"


# ------------------------------------------------------------------------------------------------- volumes

SURFACE = 0.35  # of a solid: where the volume passes this
CORNERS = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
EDGES = [(i, j) for i in range(8) for j in range(i) if bin(i ^ j).count("1") == 1]
FACE = (0, 1, 3, 2)  # the corners of the front face in turn


def _solid(axes: mpl.axes.Axes, volume: np.ndarray, theta: np.ndarray, colour: str) -> None:
    """The volume (D, H, W) as a shaded solid in its cube, with the box that theta (12,) lays in it."""
    _box(axes, CORNERS, "#B5B5B5", 0.8)
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    image, extent = _shaded(volume.astype(float) / 255)
    axes.imshow(image, extent=extent, zorder=2)
    axes.set(**limits, aspect="auto")
    matrix = theta.reshape(3, 4)
    if not np.isfinite(matrix).all():  # of a training that came apart
        return
    corners = CORNERS @ matrix[:, :3].T + matrix[:, 3]
    _box(axes, corners, colour, 1.3)
    face = corners[list(FACE)] @ CAMERA.T
    front = axes.add_patch(Polygon(face[:, :2], facecolor=colour, edgecolor="none", alpha=0.16, zorder=3))
    front.set_clip_box(_room(axes))
    centre, sight = face.mean(0), CAMERA @ matrix[:, 2]
    start = centre - 0.5 * sight / max(float(np.linalg.norm(sight)), 1e-9)
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=centre[:2], xytext=start[:2], arrowprops=arrow, zorder=5, annotation_clip=True)


def _box(axes: mpl.axes.Axes, corners: np.ndarray, colour: str, width: float) -> None:
    """The edges of a box; the three at its farthest corner, which it hides itself, are thin and behind the digit."""
    seen = corners @ CAMERA.T
    farthest = int(seen[:, 2].argmax())
    for hidden in (True, False):
        lines = [seen[list(edge), :2] for edge in EDGES if (farthest in edge) == hidden]
        style = {"linewidths": 0.55 if hidden else width, "alpha": 0.75 if hidden else 1, "zorder": 1 if hidden else 4}
        dashes = (0, (3, 2)) if hidden else "-"
        edges = axes.add_collection(LineCollection(lines, colors=colour, linestyles=dashes, capstyle="round", **style))
        edges.set_clip_box(_room(axes))


def _room(axes: mpl.axes.Axes) -> TransformedBbox:
    """Where a box may be drawn: a little beyond the axes, as far as the neighbours allow."""
    return TransformedBbox(Bbox([[-0.09, -0.09], [1.09, 1.09]]), axes.transAxes)


def _shaded(volume: np.ndarray, dots: int = 120) -> tuple[np.ndarray, tuple[float, ...]]:
    """What a camera sees of the surface in a volume (D, H, W): (dots, dots, 4), transparent beside it, and its extent.

    The extent (left, right, bottom, top) is that of the solid in the camera's frame.
    """
    smooth = ndimage.gaussian_filter(np.pad(volume, 2), 0.7)
    size = np.array(volume.shape)
    ink = np.argwhere(smooth > SURFACE)
    if not len(ink):
        return np.zeros((1, 1, 4)), (-1, 1, 1, -1)
    seen = ((2 * (ink - 2) + 1) / size - 1)[:, ::-1] @ CAMERA.T
    low, high = seen.min(0) - 4 / size.min(), seen.max(0) + 4 / size.min()
    right, down, away = (np.linspace(*ends, dots) for ends in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(away, down, right, indexing="ij")[::-1]).reshape(3, -1)
    voxels = ((CAMERA.T @ points)[::-1] + 1) * size[:, None] / 2 - 0.5 + 2
    solid = ndimage.map_coordinates(smooth, voxels, order=1).reshape((dots,) * 3) > SURFACE
    hit = solid.any(0)
    at = (solid.argmax(0) * dots**2 + np.arange(dots**2).reshape(dots, dots))[hit]  # the first on each line of sight
    slope = np.stack([ndimage.map_coordinates(part, voxels[:, at], order=1) for part in np.gradient(smooth)[::-1]])
    normal = -CAMERA @ slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-9)
    light = np.array([-0.45, -0.65, -0.61]) @ normal
    image = np.zeros((dots, dots, 4))
    image[hit, :3] = (0.28 + 0.55 * light.clip(0, 1))[:, None]
    image[..., 3] = hit
    return image, (low[0], high[0], high[1], low[1])


def _angles(
    axes: mpl.axes.Axes, before: np.ndarray, after: np.ndarray, name: str, colour: str, reach: float = 90
) -> None:
    """How large an angle is over the images without the transformer, in grey, and with it, in colour."""
    bins = np.linspace(0, reach, 31)
    for angle, shade, how, y in ((before, GREY, "without", 2), (after, colour, "with", 1)):
        angle = angle[np.isfinite(angle)]
        if not len(angle):
            continue
        share, _ = np.histogram(angle.clip(0, reach), bins)
        axes.stairs(share / len(angle) * 100, bins, fill=True, color=shade, alpha=0.25)
        axes.stairs(share / len(angle) * 100, bins, color=shade, linewidth=1.2)
        words = f"{how}: median {np.median(angle):.0f}°"
        axes.text(0.98, 0.60 + 0.16 * y, words, color=shade, size=8, ha="right", va="center", transform=axes.transAxes)
    axes.set(xlim=(0, reach), ylim=(0, 1.25 * axes.get_ylim()[1]))
    beyond = np.nanmax(np.append(before, after), initial=0) > reach
    axes.set_xticks(np.linspace(0, reach, 4), ["0", "30", "60", "90 and more" if beyond else "90"])
    axes.set_title(name, size=9.5, loc="left", weight="bold", pad=6)
    axes.set_xlabel("degrees")
    axes.set_ylabel("% of volumes", labelpad=2)


# ------------------------------------------------------------------------------------------------- poses

NAMES = {"angle": ("rotation", "°"), "scale": ("scale", "%"), "x": ("x", "px"), "y": ("y", "px")}


def _pose(axes: mpl.axes.Axes, of: dict[str, dict], column: str, name: str) -> None:
    label, unit = NAMES[name]
    lines = []
    for i, (family, record) in enumerate(of.items()):
        at = record["pose_names"].index(name)
        true, found = (record["arrays"][key][:, at].astype(float) for key in ("pose_true", "pose_found"))
        usable = np.isfinite(found) & ((found > 0) | (name != "scale"))  # a collapsed transformer has no scale
        true, found = true[usable], found[usable]
        shown, residual = without_constant(true, found, name)
        rms = np.sqrt(np.mean(np.square(residual))) * (100 if name == "scale" else 1)
        lost = "" if usable.all() else f", {(~usable).sum()} lost"
        space = "" if unit == "°" else " "
        lines.append((family, f"R² {share_explained(true, residual, name):.3f}  RMS {rms:.1f}{space}{unit}{lost}"))
        if i == 0:
            low, high = min(true.min(), np.quantile(shown, 0.005)), max(true.max(), np.quantile(shown, 0.995))
            pad = 0.06 * (high - low)
            axes.plot([low - pad, high + pad], [low - pad, high + pad], color=GREY, linewidth=0.7, zorder=1)
            axes.scatter(true, shown, s=3.2, color=COLOURS[family], alpha=0.45, linewidths=0, zorder=2)
            axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes.set_box_aspect(1)
    axes.set_xlabel(f"true {label}" if name == "scale" else f"true {label} ({'degrees' if unit == '°' else unit})")
    axes.set_ylabel("found ÷ constant" if name == "scale" else "found − constant", labelpad=1)
    angles = [-90, 0, 90] if np.ptp(axes.get_xlim()) > 150 else [-45, 0, 45]
    far = np.abs(axes.get_xlim()).max()
    ticks = {"angle": angles, "scale": [0.8, 1.0, 1.2]}.get(name)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks) if ticks else MultipleLocator(10 if far > 10 else 5))
    axes.set_title(f"{column}: {label}", size=9.5, loc="left", weight="bold", pad=11 + 10.5 * len(lines))
    for i, (family, words) in enumerate(reversed(lines)):
        place = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 7 + 10.5 * i), "textcoords": "offset points"}
        axes.annotate(f"{family}  {words}", **place, color=COLOURS[family], size=7)


def _cloud(axes: mpl.axes.Axes, record: dict, colour: str) -> None:
    before, after = (record["arrays"][key].astype(float) for key in ("cloud_before", "cloud_after"))
    share = variance_undone(before, after)
    after = at_size_of(before, after)
    kept = scatter(after)[1]
    before = before[np.isfinite(before).all((1, 2))]
    # The canonical pose is the network's own choice: turn its mean upright and centre it.
    reference, mean = np.median(before, 0), after[kept].mean(0)
    x, y = (mean - mean.mean(0)).T
    u, v = (reference - reference.mean(0)).T
    turn = np.arctan2((x * v - y * u).sum(), (x * u + y * v).sum())
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    after = (after - mean.mean(0)) @ rotation + reference.mean(0)
    axes.scatter(*before.reshape(-1, 2).T, s=1.2, color="#BDBDBD", alpha=0.35, linewidths=0)
    axes.scatter(*after.reshape(-1, 2).T, s=1.4, color=colour, alpha=0.3, linewidths=0)
    reach = 1.25 * np.quantile(np.abs(before - reference.mean(0)), 0.96)
    x, y = reference.mean(0)
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    axes.set_title(f"{100 * share:.0f} % undone".replace("-", "−"), size=8.5, color=colour, loc="left", pad=4)

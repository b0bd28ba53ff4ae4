"""Figures of Table 5: the windows of the trained networks, and the windows during training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stn.experiments.colocalisation.table import COLOCALISATION, MEAN
from stn.report.drawing import GREY, INK, LETTER, PALE, WRONG, Animation, Sheet, draw_image, open_sheet, select
from stn.report.records import Record
from stn.report.table import Column

CLASSES = 10
WINDOW, TRUE, DASH = "#D55E00", "#0072B2", (0, (3, 1.6))  # colours of window and true box; the box's line style


def draw_classes(records: Sequence[Record]) -> Sheet:
    """For each column, an image of each class with the digit's true box and the window, and the window's crop."""
    columns = _select(records)
    across, side, left, top, bottom = 1.02, 0.94, 0.62, 1.06, 0.42  # inches: the pitch of images, an image, margins
    block = 2 * across + 0.62
    width, height = left + CLASSES * across + 0.1, top + len(columns) * block - 0.36 + bottom
    with open_sheet(width, height) as sheet:
        sheet.text(0.2, 0.32, "Co-localisation: what is common to images without labels", size=12, weight="bold")
        _draw_key(sheet, 0.2, 0.58)
        for i, (column, record) in enumerate(columns.items()):
            y, arrays, correct = top + i * block, record.arrays, record.correct
            sheet.text(0.2, y + side / 2, column.label, size=13, weight="bold", va="center")
            for k in range(CLASSES):
                x, hit = left + k * across, bool(correct[k])
                middle = {"ha": "center", "va": "center"}
                if i == 0:
                    sheet.text(x + side / 2, y - 0.16, f"class {k}", color=GREY, size=8, **middle)
                image = sheet.tile(x, y, side, side, side / 2.04)
                draw_image(image, arrays["example_input"][k], PALE)
                _draw_boxes(image, arrays["box"][k], arrays["theta"][k].astype(float))
                crop = sheet.tile(x, y + across, side, side, side / 2.04)
                draw_image(crop, arrays["example_crop"][k], WINDOW if hit else WRONG)
                share = 100 * correct[arrays["classes"] == k].mean()
                words = f"{share:.0f} %" if hit else f"{share:.0f} %, not this"
                sheet.text(x + side / 2, y + 2 * across + 0.06, words, size=8, color=INK if hit else WRONG, **middle)
        first_record = next(iter(columns.values()))
        n = int((first_record.arrays["classes"] == 0).sum())
        words = f"the first image of each class; below it, how many of its {n} images are found"
        source = f"Budget {first_record.budget}, seed {first_record.seeds[0].seed}; {words}"
        sheet.text(left, height - 0.16, source, size=7.5, color=GREY)
    return sheet


def draw_search(records: Sequence[Record]) -> Animation:
    """An animation of the windows on an image of each class during training."""
    columns = _select(records)
    across, side, left, top = 0.92, 0.86, 0.52, 0.62  # inches
    block = side + 0.38
    width, height = left + CLASSES * across + 0.06, top + len(columns) * block - 0.24
    first_record = next(iter(columns.values()))
    frames = []
    for t in range(min(len(record.arrays["trace_steps"]) for record in columns.values())):
        with open_sheet(width, height) as sheet:
            step = int(first_record.arrays["trace_steps"][t])
            _draw_key(sheet, left, 0.22)
            sheet.text(width - 0.14, 0.22, f"step {step:,}", size=10, weight="bold", ha="right", va="center")
            for i, (column, record) in enumerate(columns.items()):
                y, arrays = top + i * block, record.arrays
                curve = {point[0]: 100 - point[1] for point in record.seeds[0].validation}
                sheet.text(0.12, y + side / 2, column.label, size=11, weight="bold", va="center")
                share = curve.get(int(arrays["trace_steps"][t]))
                words = "at the start" if share is None else f"{share:.0f} % of {record.n_test:,} images found"
                sheet.text(left, y - 0.11, words, size=8, color=GREY, va="center")
                for k in range(CLASSES):
                    image = sheet.tile(left + k * across, y, side, side, side / 2.1)
                    draw_image(image, arrays["example_input"][k], PALE)
                    _draw_boxes(image, arrays["box"][k], arrays["trace"][t, k].astype(float))
        frames.append(sheet.render(96))
    return Animation(frames)


def _select(records: Sequence[Record]) -> dict[Column, Record]:
    """The records of all classes together (the row `MEAN`) by column."""
    selection = select(COLOCALISATION, records, lambda row: row is MEAN)
    return {column: selection.records[MEAN, column] for column in selection.columns}


def _draw_boxes(axes: Axes, box: np.ndarray, theta: np.ndarray) -> None:
    """Draw the true box (x0, y0, x1, y1) and the window of theta = s, tx, ty."""
    side, x, y = theta
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=TRUE, linewidth=1.0, linestyle=DASH))
    axes.add_patch(Rectangle((x - side, y - side), 2 * side, 2 * side, fill=False, edgecolor=WINDOW, linewidth=1.6))


def _draw_key(sheet: Sheet, x: float, y: float) -> None:
    """Draw the key of the two lines: the true box and the window."""
    for colour, words, line in ((TRUE, "the digit's box", DASH), (WINDOW, "the window found", "-")):
        mark = sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06)
        mark.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=colour, linewidth=1.4, linestyle=line))
        sheet.text(x + 0.26, y, words, color=GREY, va="center")
        x += 0.26 + len(words) * LETTER + 0.26

"""The figure of Table 2: where the transformers look."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from stn.experiments.svhn.table import HOUSE_NUMBERS
from stn.report.drawing import (
    GREY,
    LETTER,
    LINE,
    PALE,
    WRONG,
    Sheet,
    describe_source,
    draw_image,
    line_style,
    open_sheet,
    select,
)
from stn.report.records import Record

SHOWN, NONE = 8, 10  # test images in a row; the answer "no digit here"
WINDOWS = ("#F0E442", "#56B4E9", "#CC79A7", "#D55E00")  # the transformers of a network in order; the last one is strong


def draw_windows(records: Sequence[Record]) -> Sheet:
    """Per column and network the first test images: windows on them, what the last hands on, what is read."""
    shown = select(HOUSE_NUMBERS, records, lambda row: row.transformer)
    n = min(SHOWN, *(len(record.arrays["example_input"]) for record in shown.records.values()))
    unit = 0.47  # inches for half an image
    across, high, low = 2 * 1.18 * unit, 2 * 1.16 * unit, 2 * 1.06 * unit  # a tile's width; its height with windows
    left, top, title, words, gap, bottom = 1.50, 0.86, 0.44, 0.46, 0.16, 0.40
    width = left + max(n, 5) * across + 0.1
    edge = left + 0.18 * unit
    parts, tops, height = {}, {}, top  # what each column's images are; where the block of each cell begins
    for column in shown.columns:
        present = [row for row in shown.rows if (row, column) in shown.records]
        part = shown.records[present[0], column].part or ""
        parts[column] = textwrap.wrap(part, int((width - edge) / LETTER))
        height += title + LINE * len(parts[column])
        for row in present:
            tops[row, column] = height
            height += high + low + words
        height += gap
    height += bottom
    with open_sheet(width, height, photos=True, step=5) as sheet:
        sheet.text(0.2, 0.32, "Where the transformers look", size=12, weight="bold")
        count = max(record.arrays["example_windows"].shape[1] for record in shown.records.values())
        _draw_key(sheet, 0.2, 0.56, count)
        for column, lines in parts.items():
            y = min(tops[place] for place in tops if place[1] is column) - 0.11 - LINE * len(lines)
            sheet.text(edge, y, column.label, size=13, weight="bold", va="baseline")
            for i, line in enumerate(lines):
                sheet.text(edge, y + 0.03 + LINE * (i + 1), line, color=GREY, va="baseline")
        for (row, column), y in tops.items():
            arrays = shown.records[row, column].arrays
            sheet.text(0.2, y + high / 2, row.name, size=11, weight="bold", va="center")
            sheet.text(left - 0.05, y + high / 2, "windows", ha="right", va="center")
            sheet.text(left - 0.05, y + high + low / 2, "handed on", ha="right", va="center")
            sheet.text(left - 0.05, y + high + low + 0.13, "label", ha="right", va="center")
            for i in range(n):
                x = left + i * across
                image = sheet.tile(x, y, across, high, unit)
                draw_image(image, arrays["example_input"][i], PALE)
                _draw_outlines(image, arrays["example_windows"][i].astype(float))
                draw_image(sheet.tile(x, y + high, across, low, unit), arrays["example_seen"][i], WINDOWS[-1])
                label, answer = (_format_number(arrays[name][i]) for name in ("example_label", "example_said"))
                middle = {"ha": "center", "va": "center"}
                sheet.text(x + across / 2, y + high + low + 0.13, label, **middle)
                if answer != label:
                    sheet.text(x + across / 2, y + high + low + 0.30, f"read {answer}", color=WRONG, **middle)
        source = describe_source(shown.records.values(), "ST-CNN, ", f"the first {n} test images of each set")
        sheet.text(edge, height - 0.15, source, size=7.5, color=GREY)
    return sheet


def _draw_outlines(axes: Axes, windows: np.ndarray) -> None:
    """The windows (K, 4 corners, 2) of K transformers one after the other, the last one strong."""
    for window, colour in zip(windows, WINDOWS[-len(windows) :], strict=True):
        axes.add_patch(Polygon(window, **_outline(colour)))


def _outline(colour: str) -> dict:
    return line_style(colour, strong=colour == WINDOWS[-1])


def _draw_key(sheet: Sheet, x: float, y: float, count: int) -> None:
    """Says which colour is which of up to `count` windows."""
    words = "windows of the transformers, in order:" if count > 1 else "window of the transformer:"
    sheet.text(x, y, words, color=GREY, va="center")
    x += len(words) * LETTER + 0.1
    for colour, name in zip(WINDOWS[-count:], [*("first", "second", "third")[: count - 1], "last"], strict=True):
        sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06).add_patch(Rectangle((-1, -1), 2, 2, **_outline(colour)))
        if count > 1:
            sheet.text(x + 0.24, y, name, color=GREY, va="center")
        x += 0.24 + len(name) * LETTER + 0.18


def _format_number(answers: np.ndarray) -> str:
    """Five answers as one reads them: "1 9 4"; a gap inside is a dash."""
    digits = [f"{answer}" if answer != NONE else "–" for answer in answers.tolist()]
    return " ".join(digits).rstrip("– ") or "nothing"

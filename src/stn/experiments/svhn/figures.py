"""The figure of Table 2: the windows of the transformers on test images."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

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

SHOWN, NONE = 8, 10  # test images in a row; the class of a position without a digit
WINDOWS = ("#F0E442", "#56B4E9", "#CC79A7", "#D55E00")  # of the transformers in order; the last is drawn strong


@dataclass(frozen=True)
class Strip:
    """One network on test images: images, windows, samples of the last transformer, predictions and labels."""

    name: str
    inputs: np.ndarray
    windows: np.ndarray
    seen: np.ndarray
    said: np.ndarray
    labels: np.ndarray


def draw_windows(records: Sequence[Record]) -> Sheet:
    """For each column and network, the first test images: windows, sample of the last transformer, prediction.

    Below a column of whole images stand the moved images from the records' evidence.
    """
    selection = select(HOUSE_NUMBERS, records, lambda row: row.transformer)
    blocks = []  # title, description of the images, the strip of each network
    for column in selection.columns:
        present = [selection.records[row, column] for row in selection.rows if (row, column) in selection.records]
        blocks.append((column.label, present[0].part or "", [_strip(record) for record in present]))
        moved = [_moved_strip(record) for record in present if "moved_input" in record.arrays]
        if moved:
            blocks.append((f"{column.label}, moved", "each moved at random, as far as its number stays inside", moved))
    strips = [strip for _, _, strips in blocks for strip in strips]
    n = min(SHOWN, *(len(strip.inputs) for strip in strips))
    unit = 0.47  # inches for half an image
    across, high, low = 2 * 1.18 * unit, 2 * 1.16 * unit, 2 * 1.06 * unit  # a tile's width; its heights
    left, top, title, words, gap, bottom = 1.50, 1.06, 0.44, 0.46, 0.16, 0.40
    width = left + max(n, 5) * across + 0.1
    edge = left + 0.18 * unit
    parts = [textwrap.wrap(part, int((width - edge) / LETTER)) for _, part, _ in blocks]
    heights = [title + LINE * len(lines) for lines in parts]  # of the lines above each block
    height = top + sum(heights) + len(strips) * (high + low + words) + gap * len(blocks) + bottom
    with open_sheet(width, height, photos=True, step=5) as sheet:
        sheet.text(0.2, 0.32, "Where the transformers look", size=12, weight="bold")
        _draw_key(sheet, 0.2, 0.56, max(strip.windows.shape[1] for strip in strips))
        sheet.text(0.2, 0.78, "where no reading stands below a label, it was read right", color=GREY, va="center")
        y = top
        for (label, _, members), lines, heading_height in zip(blocks, parts, heights, strict=True):
            y += heading_height
            label_y = y - 0.11 - LINE * len(lines)
            sheet.text(edge, label_y, label, size=13, weight="bold", va="baseline")
            for i, line in enumerate(lines):
                sheet.text(edge, label_y + 0.03 + LINE * (i + 1), line, color=GREY, va="baseline")
            for strip in members:
                sheet.text(0.2, y + high / 2, strip.name, size=11, weight="bold", va="center")
                sheet.text(left - 0.05, y + high / 2, "windows", ha="right", va="center")
                sheet.text(left - 0.05, y + high + low / 2, "handed on", ha="right", va="center")
                sheet.text(left - 0.05, y + high + low + 0.13, "label", ha="right", va="center")
                for i in range(n):
                    x = left + i * across
                    image = sheet.tile(x, y, across, high, unit)
                    draw_image(image, strip.inputs[i], PALE)
                    _draw_outlines(image, strip.windows[i].astype(float))
                    draw_image(sheet.tile(x, y + high, across, low, unit), strip.seen[i], WINDOWS[-1])
                    number, answer = _format_number(strip.labels[i]), _format_number(strip.said[i])
                    middle = {"ha": "center", "va": "center"}
                    sheet.text(x + across / 2, y + high + low + 0.13, number, **middle)
                    if answer != number:
                        sheet.text(x + across / 2, y + high + low + 0.30, f"read {answer}", color=WRONG, **middle)
                y += high + low + words
            y += gap
        source = describe_source(selection.records.values(), "ST-CNN, ", f"the first {n} test images of each set")
        sheet.text(edge, height - 0.15, source, size=7.5, color=GREY)
    return sheet


def _strip(record: Record) -> Strip:
    names = ("example_input", "example_windows", "example_seen", "example_said", "example_label")
    return Strip(record.row.name, *(record.arrays[name] for name in names))


def _moved_strip(record: Record) -> Strip:
    names = ("moved_input", "moved_window_all", "moved_seen", "moved_said", "example_label")
    return Strip(record.row.name, *(record.arrays[name] for name in names))


def _draw_outlines(axes: Axes, windows: np.ndarray) -> None:
    """Draw the windows (K, 4 corners, 2) of K transformers in order, an earlier one thinner and on top."""
    colours = WINDOWS[-len(windows) :]
    for i, (window, colour) in enumerate(zip(windows, colours, strict=True)):
        axes.add_patch(Polygon(window, **_outline(colour, len(windows)), zorder=3 - i / len(windows)))


def _outline(colour: str, count: int) -> dict:
    """The style of one of `count` windows: the last is strong; an earlier one is thinner, without an edge."""
    if colour != WINDOWS[-1]:
        width = 0.8 * (WINDOWS.index(colour) - len(WINDOWS) + 1 + count)
        return {"fill": False, "edgecolor": colour, "linewidth": width, "joinstyle": "miter"}
    return line_style(colour, strong=True) if count == 1 else line_style(colour, width=0.8 * count)


def _draw_key(sheet: Sheet, x: float, y: float, count: int) -> None:
    """Draw the key of the colours of up to `count` windows."""
    words = "windows of the transformers, in order:" if count > 1 else "window of the transformer:"
    sheet.text(x, y, words, color=GREY, va="center")
    x += len(words) * LETTER + 0.1
    for colour, name in zip(WINDOWS[-count:], [*("first", "second", "third")[: count - 1], "last"], strict=True):
        sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06).add_patch(Rectangle((-1, -1), 2, 2, **_outline(colour, count)))
        if count > 1:
            sheet.text(x + 0.24, y, name, color=GREY, va="center")
        x += 0.24 + len(name) * LETTER + 0.18


def _format_number(answers: np.ndarray) -> str:
    """Five classes as text, such as "1 9 4"; a gap between digits is a dash."""
    digits = [f"{answer}" if answer != NONE else "–" for answer in answers.tolist()]
    return " ".join(digits).rstrip("– ") or "nothing"

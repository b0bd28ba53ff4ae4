"""The figure of Table 4: which digit each of two transformers attends to."""

from collections.abc import Mapping, Sequence

import numpy as np

from stn.experiments.addition.attention import measure_attention
from stn.experiments.addition.table import ADDITION, FAMILIES, TWO_ST_CNN, TWO_ST_FCN
from stn.report.drawing import (
    GREY,
    PALE,
    STRONG,
    WRONG,
    Sheet,
    describe_source,
    draw_grid,
    draw_image,
    open_sheet,
    select,
)
from stn.report.records import Record
from stn.report.table import Row

PAIRS = 3  # test pairs in a row
NAMES = ("first", "second")


def draw_pairs(records: Sequence[Record]) -> Sheet:
    """For each network with two transformers, test pairs under both grids, and the output of each transformer.

    Where a transformer undoes more of a digit than of the other (`measure_attention`), its grid is drawn in full and
    its output is framed in its colour.
    """
    selection = select(ADDITION, records, lambda row: row in (*TWO_ST_FCN, *TWO_ST_CNN))
    networks = {row: record for (row, _), record in selection.records.items()}
    undone: dict[Row, list[tuple[float, float]]] = {}
    for cell in measure_attention(list(networks.values())):
        undone.setdefault(cell.record.row, []).append(cell.undone)
    blocks = [rows for rows in (TWO_ST_FCN, TWO_ST_CNN) if any(row in networks for row in rows)]
    families = [family for family in FAMILIES if any(row.name == family for row in networks)]
    n = min(PAIRS, *(len(record.arrays["example_input"]) for record in networks.values()))
    unit = 0.30  # inches for half a canvas
    across, high, low = 2 * 1.36 * unit, 2 * 1.42 * unit, 2 * 1.10 * unit  # a tile's width; its height, with a grid
    left, top, gap, between, title, foot, bottom = 1.34, 0.92, 0.16, 0.50, 0.48, 0.50, 0.36
    wide, tall = n * (2 * across + gap) - gap, title + high + 2 * low + foot
    width = max(left + len(blocks) * (wide + between) - between + 0.1, 7.2)
    height = top + len(families) * tall + bottom
    with open_sheet(width, height) as sheet:
        title_words = f"Which digit each of two transformers attends to: budget {records[0].budget}"
        sheet.text(0.2, 0.32, title_words, size=12, weight="bold")
        words = "transformer: a grid in full, and a coloured frame, on the digit that it undoes more"
        for text, colour, x in (("First", STRONG[0], 0.2), ("second", STRONG[1], 0.62), (words, GREY, 1.18)):
            sheet.text(x, 0.56, text, color=colour, weight="normal" if colour == GREY else "bold", va="center")
        sheet.text(0.50, 0.56, ",", color=GREY, va="center")
        for f, family in enumerate(families):
            y = top + f * tall
            sheet.text(0.2, y + title + high / 2, family, size=11, weight="bold", va="center")
            sheet.text(left - 0.06, y + title + high / 2, "grids", ha="right", va="center")
            for k, name in enumerate(NAMES):
                place = (left - 0.06, y + title + high + (k + 0.5) * low)
                sheet.text(*place, f"{name} sees", color=STRONG[k], ha="right", va="center")
            for c, rows in enumerate(blocks):
                row = next(row for row in rows if row.name == family)
                if row not in networks:
                    continue
                x, arrays = left + c * (wide + between), networks[row].arrays
                edge = x + 0.36 * unit
                sheet.text(edge, y + 0.08, row.label, weight="bold", va="center")
                for k, shares in enumerate(undone[row]):
                    words = " and ".join(f"{share:z.0f} %".replace("-", "−") for share in shares)
                    start = edge + 1.22 + k * 2.05
                    sheet.text(start, y + 0.08, f"{NAMES[k]} undoes {words}", size=8, color=STRONG[k], va="center")
                sizes = (across, high, low, unit)
                for i in range(n):
                    _draw_pair(sheet, x + i * (2 * across + gap), y + title - 0.12, sizes, arrays, i, undone[row])
        source = describe_source(networks.values(), "", f"the first {n} test pairs")
        words = "undone is the share of a pose's variance that is gone, for the left and for the right digit"
        sheet.text(0.2, height - 0.14, f"{source[0].upper()}{source[1:]}; {words}", size=7.5, color=GREY)
    return sheet


def _draw_pair(
    sheet: Sheet,
    x: float,
    y: float,
    sizes: tuple[float, float, float, float],
    arrays: Mapping[str, np.ndarray],
    i: int,
    undone: Sequence[tuple[float, float]],
) -> None:
    """Draw the i-th example pair: the digits under both grids, and below them both outputs of each transformer.

    `sizes` in inches: a tile's width, its height with a grid, its height without, and half a canvas.
    """
    across, high, low, unit = sizes
    grids, outputs = arrays["example_grid"][i], arrays["example_output"][i]
    for digit in (0, 1):
        canvas = sheet.tile(x + digit * across, y, across, high, unit)
        draw_image(canvas, arrays["example_input"][i, digit], PALE, strength=0.62)
        for k, (grid, shares) in enumerate(zip(grids, undone, strict=True)):
            attends = np.argmax(shares) == digit
            draw_grid(canvas, grid, STRONG[k], cells=7 if attends else 1)
            output = sheet.tile(x + digit * across, y + high + k * low, across, low, unit)
            draw_image(output, outputs[2 * k + digit], STRONG[k] if attends else PALE)
    left, right = arrays["example_digits"][i].tolist()
    answer, answer_y = int(arrays["example_said"][i]), y + high + 2 * low
    middle = {"ha": "center", "va": "center"}
    sheet.text(x + across, answer_y + 0.12, f"{left} + {right}", **middle)
    if answer != left + right:
        sheet.text(x + across, answer_y + 0.29, f"said {answer}", color=WRONG, **middle)

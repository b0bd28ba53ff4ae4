"""Figures of Tables 7 and 8: test errors by sampling kernel and by network size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from stn.experiments.mnist.table import KERNELS, LEARNED, SIZES
from stn.report.captions import name_seeds
from stn.report.drawing import GREY, LETTER, PALE, Sheet, assign_colours, open_sheet, select
from stn.report.records import Record
from stn.report.statistics import interval

KINDS = {False: ("CNN", "#767676"), True: ("ST-CNN", "#0072B2")}  # without and with a transformer


def draw_kernels(records: Sequence[Record]) -> Sheet:
    """For each column, the learned and the fixed kernels, and the error with each."""
    selection, colours = select(KERNELS, records, lambda row: True), assign_colours(KERNELS.rows)
    wide, tall, left, gap, top, between = 3.3, 2.1, 0.75, 0.75, 1.05, 0.75
    width = max(left + len(selection.columns) * (wide + gap), 5.6)
    height = top + tall + between + 1.25 + 0.75
    with open_sheet(width, height) as sheet:
        sheet.text(0.2, 0.32, "Sampling kernels: fixed and learned", size=12, weight="bold")
        sheet.text(0.2, 0.56, "Above: weight by distance. Below: test error with its 95 % interval.", color=GREY)
        d = np.linspace(-2, 2, 401)
        for i, column in enumerate(selection.columns):
            x = left + i * (wide + gap)
            axes = sheet.axes(x, top, wide, tall)
            axes.axhline(0, color=PALE, linewidth=0.8)
            for row in KERNELS.rows:
                if row.name in FIXED:
                    weights = FIXED[row.name](np.abs(d))
                    axes.plot(d, weights, color=colours[row], linewidth=1.2, label=row.name, alpha=0.8)
            learned = selection.records.get((LEARNED, column))
            for axis, dash in (("x", "-"), ("y", "--")):
                if learned is None:
                    break
                phi = np.pad(learned.arrays[f"phi_{axis}"].astype(float), 1)
                knots = np.linspace(-2, 2, len(phi))
                style: dict[str, Any] = {"linestyle": dash, "marker": "o", "markersize": 3}
                axes.plot(knots, phi, color=colours[LEARNED], linewidth=1.7, label=f"learned, {axis}", **style)
            axes.set(xlabel="distance (pixels)", xlim=(-2, 2), xticks=[-2, -1, 0, 1, 2])
            axes.set_ylabel("weight", labelpad=1)
            axes.set_title(column.label, size=11, loc="left", weight="bold")
            if i == 0:
                axes.legend(frameon=False, fontsize=7.5, loc="upper left", handlelength=1.6, borderaxespad=0)
            errors = sheet.axes(x, top + tall + between, wide, 1.25)
            present = [row for row in selection.rows if (row, column) in selection.records]
            for k, row in enumerate(present):
                record = selection.records[row, column]
                low, high = interval(record.seeds)
                errors.plot([low, high], [k, k], color=colours[row], linewidth=2.2, solid_capstyle="butt")
                errors.plot([record.error], [k], "o", color=colours[row], markersize=4.5)
                name, end, offset = f"{record.error:.2f}", (high, k), (4, 0)
                errors.annotate(name, end, offset, "data", "offset points", annotation_clip=False, va="center", size=8)
            names = [row.name for row in present]
            errors.set(yticks=range(len(present)), yticklabels=names, ylim=(len(present) - 0.5, -0.5))
            errors.set_xlabel("test error (%)")
            errors.margins(x=0.12)
        budget, n = records[0].budget, max(record.n_test for record in records)
        seeds = name_seeds(records)
        source = f"ST-CNN Aff, budget {budget}, {seeds} (kernels of the first); {n:,} test images"
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)
    return sheet


def _bicubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution, with torch's value of a."""
    inner = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return np.where(distance <= 1, inner, a * (distance**3 - 5 * distance**2 + 8 * distance - 4))


# The fixed kernels by their rows' names: functions from distances to weights.
FIXED = {
    "integer": lambda distance: np.where(distance < 0.5, 1.0, 0.0),
    "bilinear": lambda distance: np.clip(1 - distance, 0, None),
    "bicubic": _bicubic,
}


def draw_sizes(records: Sequence[Record]) -> Sheet:
    """For each column, the error of small and large networks by parameters, and by multiply-adds of one image."""
    select(SIZES, records, lambda row: row.transformer)
    columns = [column for column in SIZES.columns if any(record.column is column for record in records)]
    scales = (("parameters", "parameters"), ("multiply_adds", "multiply-adds of one image"))
    wide, tall, left, gap, top, between = 3.5, 2.5, 0.80, 0.35, 1.30, 0.78
    width = left + len(scales) * (wide + gap) + 0.05
    height = top + len(columns) * (tall + between) + 0.12
    errors = [error for record in records for error in _errors(record)]
    limits = (max(min(errors) / 1.35, 0.01), min(max(errors) * 1.35, 100))
    exported = any(record.export for record in records)
    with open_sheet(width, height) as sheet:
        sheet.text(0.2, 0.32, "Is a small ST-CNN better than a large CNN?", size=12, weight="bold")
        words = "Test error by size, both on logarithmic scales. Bars are 95 % intervals; labels name the sizes."
        sheet.text(0.2, 0.56, words, color=GREY)
        x = 0.2
        for kind, colour in KINDS.values():
            for name, face in ((kind, colour), (f"{kind} in int8", "none"))[: 1 + exported]:
                marker = sheet.tile(x, 0.72, 0.2, 0.2, 0.1)
                size = 4.2 if face == colour else 6.5
                marker.plot([0], [0], "o", color=colour, markerfacecolor=face, markersize=size)
                sheet.text(x + 0.24, 0.82, name, color=colour, va="center")
                x += 0.24 + len(name) * LETTER + 0.30
        for c, column in enumerate(columns):
            for k, (key, label) in enumerate(scales):
                axes = sheet.axes(left + k * (wide + gap), top + c * (tall + between), wide, tall)
                axes.set(xscale="log", yscale="log", ylim=limits)
                axes.grid(color="#EEEEEE", linewidth=0.6)
                axes.set_axisbelow(True)
                for transformer in KINDS:
                    line = [r for r in records if r.column is column and r.row.transformer == transformer]
                    line.sort(key=lambda record: SIZES.rows.index(record.row))
                    _draw_line(axes, line, key, transformer, labelled=k == 1)
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
                    title = f"{column.label}: {column.description}"
                    axes.set_title(title, size=9.5, loc="left", weight="bold", pad=5)
        budget, n = records[0].budget, max(record.n_test for record in records)
        seeds = name_seeds(records)
        several = f"{seeds}{' (int8 of the first)' if exported and ',' in seeds else ''}"
        source = f"budget {budget}, {several}; {n:,} test images"
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)
    return sheet


def _draw_line(axes: Axes, records: Sequence[Record], key: str, transformer: bool, labelled: bool) -> None:
    """Draw the errors of networks of one kind by `key`: a line through the means, intervals, open markers for int8."""
    _, colour = KINDS[transformer]
    x = [getattr(record, key) for record in records]
    axes.plot(x, [record.error for record in records], "-o", color=colour, linewidth=1.3, markersize=4.2, zorder=3)
    for record, size in zip(records, x, strict=True):
        axes.plot([size, size], np.maximum(interval(record.seeds), 0.01), color=colour, linewidth=1.3, zorder=2)
        if record.export:
            marker: dict[str, Any] = {"markerfacecolor": "none", "markersize": 6.5, "markeredgewidth": 0.9}
            axes.plot([size], [record.export.runs["int8"].error], "o", color=colour, zorder=4, **marker)
        if labelled:
            # The line of the ST-CNNs is below the other: its labels are on the other side.
            sides: dict[str, Any] = {"ha": "right", "va": "top"} if transformer else {}
            point, offset = (size, record.error), (-4, -4) if transformer else (4, 3)
            axes.annotate(record.row.name, point, offset, "data", "offset points", size=7, color=colour, **sides)


def _errors(record: Record) -> list[float]:
    """The error (%) of each seed, and of int8 if the record has an export."""
    errors = [100 * seed.errors / seed.n_test for seed in record.seeds]
    if record.export:
        errors.append(100 * record.export.runs["int8"].errors / record.export.n_test)
    return errors


def _short(value: float, _: int = 0) -> str:
    """A number of parameters or multiply-adds in short form: 10k, 3M."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"

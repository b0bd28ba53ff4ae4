"""Figures of Table 1: the sampling grids of the ST-CNNs, and how much of a distortion they undo."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MultipleLocator

from stn.experiments.mnist.table import CNN, DISTORTED, E_EDGE
from stn.report.drawing import (
    GREY,
    LETTER,
    LINE,
    PALE,
    STYLE,
    Selection,
    Sheet,
    assign_colours,
    describe_part,
    describe_source,
    draw_grid,
    draw_image,
    open_sheet,
    select,
)
from stn.report.records import Record
from stn.report.statistics import at_size_of, scatter, share_explained, variance_undone, without_constant
from stn.report.table import Column, Row

DIGITS = (2, 7)  # digits without symmetry, so that their pose is visible
LARGE = 11  # the size of type that is read on a page of 900 pixels
# The label and the unit of each component of a pose.
POSES = {"angle": ("rotation", "°"), "scale": ("scale", "%"), "x": ("x", "px"), "y": ("y", "px")}


def draw_pictures(records: Sequence[Record]) -> Sheet:
    """For each data set, two test digits: the canvas under each family's sampling grid, and the output.

    The other reading of E looks much as E does. It is left out where there are other data sets.
    """
    selection, colours = _select(records)
    columns = [column for column in selection.columns if column is not E_EDGE] or selection.columns
    unit = 0.30  # inches for half a canvas
    across, low, high = 2 * 1.45 * unit, 2 * 1.08 * unit, 2 * 1.45 * unit  # a tile's width; its height, with a grid
    gap, left, top, block_gap = 0.28, 1.22, 0.92, 0.14
    block, digits = high + low + block_gap, len(DIGITS) * across
    beyond = 0.30 * unit  # a grid may reach into the space between tiles
    width = max(left + len(columns) * (digits + gap) - gap + 0.1, 5.2)
    words = " and ".join(f"a {digit}" for digit in DIGITS) + " of each test set"
    source = _describe_source(selection, f"{words}; the output is what the classifier sees")
    source_lines = textwrap.wrap(source, int((width - left) / LETTER))
    bottom = 0.24 + LINE * len(source_lines)
    height = top + low + block_gap + len(selection.rows) * block - block_gap + bottom
    with open_sheet(width, height) as sheet:

        def tile(x: float, y: float, tall: float) -> Axes:
            return sheet.tile(x, y, across, tall, unit)

        for i, column in enumerate(columns):
            x0 = left + i * (digits + gap)
            edge = x0 + 0.45 * unit
            sheet.text(edge, 0.32, column.label, size=16, weight="bold", va="baseline")
            lines = textwrap.wrap(column.description, int(digits / (LETTER * LARGE / STYLE["font.size"])))
            for k, line in enumerate(lines):
                sheet.text(edge, 0.56 + 0.19 * k, line, color=GREY, size=LARGE, va="baseline")
            present = [row for row in selection.rows if (row, column) in selection.records]
            for j, digit in enumerate(DIGITS):
                x = x0 + j * across
                for row in present:
                    arrays = selection.records[row, column].arrays
                    example = int(np.flatnonzero(arrays["example_label"] == digit)[0])
                    if row is present[0]:
                        draw_image(tile(x, top, low), arrays["example_input"][example], PALE)
                    y = top + low + block_gap + selection.rows.index(row) * block
                    draw_image(tile(x, y + high, low), arrays["example_output"][example], colours[row])
                    under_grid = sheet.tile(x - beyond, y - beyond, across + 2 * beyond, high + 2 * beyond, unit)
                    draw_image(under_grid, arrays["example_input"][example], PALE, strength=0.62)
                    draw_grid(under_grid, arrays["example_grid"][example], colours[row])
        sheet.text(left - 0.02, top + low / 2, "input", size=LARGE, ha="right", va="center")
        for k, row in enumerate(selection.rows):
            y = top + low + block_gap + k * block
            sheet.text(0.12, y + high / 2, row.name, size=14, weight="bold", color=colours[row], va="center")
            sheet.text(left - 0.02, y + high / 2, "grid", size=LARGE, ha="right", va="center")
            sheet.text(left - 0.02, y + high + low / 2, "output", size=LARGE, ha="right", va="center")
        for k, line in enumerate(source_lines):
            sheet.text(left + 0.45 * unit, height - bottom + 0.27 + LINE * k, line, color=GREY)
    return sheet


def draw_poses(records: Sequence[Record]) -> Sheet:
    """The found against the true pose of the first test images, and the digit points at nine points of the canvas."""
    selection, colours = _select(records)
    rows, columns = selection.rows, selection.columns
    panels = [
        (column, name) for column in columns for name in next(iter(_of_column(selection, column).values())).pose_names
    ]
    n = max(len(record.arrays["cloud_before"]) for record in selection.records.values())
    side, gap, left, cloud_gap = 1.72, 0.62, 0.95, 0.34
    step = side + gap
    width = left + max(len(panels), len(columns) + 1) * step - gap + 0.25
    title = 1.40
    top_height = title + side + 0.62 if panels else 0.0
    cloud_top = top_height + 1.28
    height = cloud_top + len(rows) * (side + cloud_gap) + 0.20
    with open_sheet(width, height) as sheet:
        if panels:
            words = "What the transformer finds, against what was done to the image"
            sheet.text(0.2, 0.32, words, size=12, weight="bold")
            words = "less one constant, the pose that the network prefers. RMS: what remains."
            sheet.text(0.2, 0.56, f"Dots: {rows[0].name}, {words}", color=GREY)
        for i, (column, name) in enumerate(panels):
            axes = sheet.axes(left + i * step, title, side, side)
            _draw_pose(axes, _of_column(selection, column), colours, column, name)

        sheet.text(0.2, top_height + 0.32, "How much of the pose is undone", size=12, weight="bold")
        words = "Where nine points of the canvas fall on the undistorted digit, image by image."
        sheet.text(0.2, top_height + 0.56, words, color=GREY)
        for i, column in enumerate(columns):
            x = left + i * step
            sheet.text(x, cloud_top - 0.34, column.label, size=11, weight="bold")
            for k, row in enumerate(rows):
                if (row, column) in selection.records:
                    axes = sheet.axes(x, cloud_top + k * (side + cloud_gap), side, side)
                    _draw_cloud(axes, selection.records[row, column], colours[row])
        x = left + len(columns) * step
        sheet.text(x, cloud_top, "grey: without transformer", color=GREY, va="top")
        sheet.text(x, cloud_top + 0.20, "colour: with it", color=colours[rows[0]], va="top")
        words = (
            "Undone: the share of the\npoints' variance that is gone,\nless one constant zoom and\n"
            "the farthest 5 % of images.\n100 %: all seen in one pose."
        )
        sheet.text(x, cloud_top + 0.56, words, size=8, color=GREY, va="top", linespacing=1.45)
        for k, row in enumerate(rows):
            y = cloud_top + k * (side + cloud_gap) + side / 2
            sheet.text(0.2, y, row.name, size=11, weight="bold", color=colours[row], va="center")
        source = _describe_source(selection, f"the first {n:,} test images of each set")
        sheet.text(0.2, height - 0.14, source, size=7.5, color=GREY)
    return sheet


def _select(records: Sequence[Record]) -> tuple[Selection, Mapping[Row, str]]:
    """The records of the ST-CNNs, and a colour for each family."""
    rows = [row for row in DISTORTED.rows if row.transformer and row.baseline is CNN]
    return select(DISTORTED, records, lambda row: row in rows), assign_colours(rows)


def _of_column(selection: Selection, column: Column) -> dict[Row, Record]:
    return {row: selection.records[row, column] for row in selection.rows if (row, column) in selection.records}


def _describe_source(selection: Selection, images: str) -> str:
    return describe_source(selection.records.values(), "ST-CNN, ", images + describe_part(selection.first))


def _draw_pose(
    axes: Axes, records: Mapping[Row, Record], colours: Mapping[Row, str], column: Column, name: str
) -> None:
    """Draw one component of the pose: as dots for the first row, and with R² and RMS for each row."""
    label, unit = POSES[name]
    lines = []
    for i, (row, record) in enumerate(records.items()):
        column_index = record.pose_names.index(name)
        true, estimate = (record.arrays[key][:, column_index].astype(float) for key in ("pose_true", "pose_found"))
        usable = np.isfinite(estimate) & ((estimate > 0) | (name != "scale"))  # a collapsed transformer has no scale
        true, estimate = true[usable], estimate[usable]
        aligned, residual = without_constant(true, estimate, name)
        rms = np.sqrt(np.mean(np.square(residual))) * (100 if name == "scale" else 1)
        remark = "" if usable.all() else f", {(~usable).sum()} lost"
        space = "" if unit == "°" else " "
        explained = share_explained(true, residual, name)
        lines.append((row, f"R² {explained:.3f}  RMS {rms:.1f}{space}{unit}{remark}"))
        if i == 0:
            low, high = min(true.min(), np.quantile(aligned, 0.005)), max(true.max(), np.quantile(aligned, 0.995))
            pad = 0.06 * (high - low)
            axes.plot([low - pad, high + pad], [low - pad, high + pad], color=GREY, linewidth=0.7, zorder=1)
            axes.scatter(true, aligned, s=3.2, color=colours[row], alpha=0.45, linewidths=0, zorder=2)
            axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes.set_box_aspect(1)
    axes.set_xlabel(f"true {label}" if name == "scale" else f"true {label} ({'degrees' if unit == '°' else unit})")
    axes.set_ylabel("found ÷ constant" if name == "scale" else "found − constant", labelpad=1)
    angles: list[float] = [-90, 0, 90] if np.ptp(axes.get_xlim()) > 150 else [-45, 0, 45]
    largest = np.abs(axes.get_xlim()).max()
    ticks: list[float] | None = {"angle": angles, "scale": [0.8, 1.0, 1.2]}.get(name)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks) if ticks else MultipleLocator(10 if largest > 10 else 5))
    axes.set_title(f"{column.label}: {label}", size=9.5, loc="left", weight="bold", pad=11 + 10.5 * len(lines))
    for i, (row, words) in enumerate(reversed(lines)):
        name, colour, offset = f"{row.name}  {words}", colours[row], (0, 7 + 10.5 * i)
        axes.annotate(name, (0, 1), offset, "axes fraction", "offset points", color=colour, size=7)


def _draw_cloud(axes: Axes, record: Record, colour: str) -> None:
    """Draw the digit points at the nine points: without the transformer in grey, with it in colour."""
    before, after = (record.arrays[key].astype(float) for key in ("cloud_before", "cloud_after"))
    share = variance_undone(before, after)
    after = at_size_of(before, after)
    inliers = scatter(after)[1]
    before = before[np.isfinite(before).all((1, 2))]
    # A network may choose the pose in which it shows all digits: rotate and shift the mean pose to the upright one.
    reference, mean = np.median(before, 0), after[inliers].mean(0)
    x, y = (mean - mean.mean(0)).T
    u, v = (reference - reference.mean(0)).T
    turn = np.arctan2((x * v - y * u).sum(), (x * u + y * v).sum())
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    after = (after - mean.mean(0)) @ rotation + reference.mean(0)
    axes.scatter(before[..., 0], before[..., 1], s=1.2, color="#BDBDBD", alpha=0.35, linewidths=0)
    axes.scatter(after[..., 0], after[..., 1], s=1.4, color=colour, alpha=0.3, linewidths=0)
    reach = 1.25 * np.quantile(np.abs(before - reference.mean(0)), 0.96)
    x, y = reference.mean(0)
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    axes.set_title(f"{100 * share:.0f} % undone".replace("-", "−"), size=8.5, color=colour, loc="left", pad=4)

"""The errors at each position of a house number, and how much of the number the last window contains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stn.report.comparisons import format_p
from stn.report.matrix import format_correlation
from stn.report.records import Record
from stn.report.statistics import follow, mcnemar, seen
from stn.report.table import Grid, Section, Table

HELD = 0.9  # a window holds a number if it contains at least this share of the number
IMAGE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # the window that is the whole image


@dataclass(frozen=True)
class PositionErrors:
    """The error (%) at each position of the number, from the left, and of the whole number; first seed.

    The correct class behind the last digit is "none".
    """

    record: Record
    places: Sequence[float]
    whole: float


@dataclass(frozen=True)
class LastWindow:
    """How much of the number the last window contains, and how well it follows the number; test images, first seed.

    Medians: `image` and `window`, the number's share (%) of the image's and of the window's area; `zoom`, the ratio of
    the two; `inside`, the share (%) of the number in the window; `area`, the window's area in % of the image's. A
    window is its bounding box.

    `follows` (x, y) are the correlations of the window's centre with the number's, nan if one of the two does not move;
    `spread` (x, y) is the standard deviation of the window's centre in % of the image's side; `held` is the share (%)
    of images in which at least `HELD` of the number is in the window.
    """

    record: Record
    image: float
    window: float
    zoom: float
    inside: float
    area: float
    held: float
    follows: tuple[float, float]
    spread: tuple[float, float]


@dataclass(frozen=True)
class Moved:
    """A network on test images that are moved at random with the number inside; first seed.

    `still` and `moved` are the errors (%) on the original and on the moved images. `p` is from the paired test of the
    errors on moved images against the baseline's, None if the row has no baseline or the baseline was not run.
    `follows` of the last window is as in `LastWindow`. `held` and `held_by_start` are the shares (%) of images in which
    the last window, and the window at its start, contain at least `HELD` of the number; nan without a transformer.
    """

    record: Record
    still: float
    moved: float
    p: float | None
    follows: tuple[float, float] = (math.nan, math.nan)
    held: float = math.nan
    held_by_start: float = math.nan


def check_positions(record: Record) -> str | None:
    """What is wrong with the array `positions`: bool (n_test, K), which positions the first seed has right."""
    if "positions" not in record.arrays:
        return "without positions"
    if not np.array_equal(record.arrays["positions"].all(1), record.correct):
        return "whose positions are not those of its predictions"
    return None


def measure_positions(records: Sequence[Record]) -> list[PositionErrors]:
    """The errors of each record by position."""
    return [
        PositionErrors(
            record,
            [100 * float(share) for share in 1 - record.arrays["positions"].mean(0)],
            record.seeds[0].error,
        )
        for record in records
    ]


def measure_last_windows(records: Sequence[Record]) -> list[LastWindow]:
    """The measures of the last window of each record with a transformer."""
    cells = []
    for record in records:
        if record.row.transformer:
            boxes, windows = record.arrays["box"].astype(float), record.arrays["window_all"][:, -1].astype(float)
            inside, window = seen(windows, boxes)
            _, image = seen(np.broadcast_to(IMAGE, windows.shape), boxes)
            finite = windows[np.isfinite(windows).all((1, 2))]
            area = np.ptp(finite, axis=1).prod(1) / np.ptp(IMAGE, axis=0).prod()
            x, y = 50 * finite.mean(1).std(0) if len(finite) else (math.nan, math.nan)  # the side is 2 in the frame
            cells.append(
                LastWindow(
                    record,
                    image=100 * _median(image),
                    window=100 * _median(window),
                    zoom=_median(window / image),
                    inside=100 * _median(inside),
                    area=100 * _median(area),
                    held=100 * float((inside >= HELD).mean()),
                    follows=follow(windows, boxes.reshape(-1, 2, 2).mean(1)),
                    spread=(float(x), float(y)),
                )
            )
    return cells


def measure_moved(records: Sequence[Record]) -> list[Moved]:
    """The results on moved images of each record on whole images."""
    moved_records = [record for record in records if "moved_correct" in record.arrays]
    by_place = {(record.row, record.column): record for record in moved_records}
    cells = []
    for record in moved_records:
        arrays, baseline = record.arrays, record.row.baseline
        correct = arrays["moved_correct"].astype(bool)
        rival = by_place.get((baseline, record.column)) if baseline else None
        p = mcnemar(rival.arrays["moved_correct"], correct)[0] if rival else None
        cell = Moved(record, record.seeds[0].error, 100 * float((~correct).mean()), p)
        if record.row.transformer:
            boxes, windows = arrays["moved_box"].astype(float), arrays["moved_window_all"][:, -1].astype(float)
            start = IMAGE * np.array(record.config["model"]["start"] or [1, 1])
            inside, at_start = (seen(window, boxes)[0] for window in (windows, np.broadcast_to(start, windows.shape)))
            cell = replace(
                cell,
                follows=follow(windows, boxes.reshape(-1, 2, 2).mean(1)),
                held=100 * float((inside >= HELD).mean()),
                held_by_start=100 * float((at_start >= HELD).mean()),
            )
        cells.append(cell)
    return cells


def describe_moved(table: Table, records: Sequence[Record]) -> Section | None:
    """The section on moved images; None without records on whole images."""
    cells = measure_moved(records)
    if not cells:
        return None
    body = []
    for cell in cells:
        row, (x, y) = cell.record.row, cell.follows
        windows = [f"{format_correlation(x)}, {format_correlation(y)}", f"{cell.held:.0f}", f"{cell.held_by_start:.0f}"]
        p = "–" if cell.p is None else format_p(cell.p)
        body.append([row.label, f"{cell.still:.2f}", f"{cell.moved:.2f}", p, *(windows if row.transformer else "–––")])
    head = ["model", "as they are, %", "moved, %", "p", "follows", "holds it, %", "start, %"]
    text = (
        "Numbers stand near the middle of a photograph. Here each test image is moved at random, as far as its number "
        "stays inside; beyond its edges the outermost pixels go on. The networks are the same, not trained again. "
        "Errors on the images as they are and on the moved ones; p of the paired test of the latter against the row's "
        "baseline; how the window's centre correlates with the number's, in x and in y; in which share of the images "
        f"at least {100 * HELD:.0f} % of the number lie inside the window, and inside the window in which it starts. "
        "First seed."
    )
    return Section("When the photographs are moved", [text, Grid(head, body, "l" + "r" * (len(head) - 1))])


def describe_positions(table: Table, records: Sequence[Record]) -> Section | None:
    """The section on the errors by position; None without records."""
    cells = measure_positions(records)
    if not cells:
        return None
    places = range(1, 1 + max(len(cell.places) for cell in cells))
    head = ["model", "column", *(f"place {place}" for place in places), "whole"]
    body = [
        [cell.record.row.label, cell.record.column.label, *(f"{error:.2f}" for error in (*cell.places, cell.whole))]
        for cell in cells
    ]
    text = (
        "Error in % at each place of the number, counted from the left, first seed. Behind the last digit the right "
        "answer is “none”."
    )
    return Section("By position", [text, Grid(head, body, "ll" + "r" * (len(head) - 2))])


def describe_windows(table: Table, records: Sequence[Record]) -> Section | None:
    """The section on the last windows; None if no network has a transformer."""
    cells = measure_last_windows(records)
    if not cells:
        return None
    body = [
        [
            *(cell.record.row.label, cell.record.column.label),
            *(f"{cell.image:.1f}", f"{cell.window:.1f}", f"{cell.zoom:.2f}×", f"{cell.inside:.1f}"),
        ]
        for cell in cells
    ]
    head = ["model", "column", "of image, %", "of window, %", "zoom", "inside, %"]
    text = (
        "How much of the image's area, and of the last window's, the number takes up; the ratio of the two, the zoom "
        "(1 for a transformer that does nothing); and how much of the number lies inside the window (less than 100 "
        "where something is cut off). The number is its box, the window its bounding box; medians over the test "
        "images, first seed."
    )
    motion_body = [
        [
            *(cell.record.row.label, cell.record.column.label, ", ".join(map(format_correlation, cell.follows))),
            *(f"{cell.held:.0f}", f"{cell.area:.1f}", ", ".join(f"{spread:.1f}" for spread in cell.spread)),
        ]
        for cell in cells
    ]
    motion_head = ["model", "column", "follows", "holds it, %", "area, %", "spread, %"]
    motion_text = (
        "Whether it follows the number: how its centre correlates with the number's over the test images, in x and in "
        f"y (– where one of the two does not move); in which share of the images at least {100 * HELD:.0f} % of the "
        "number lie inside it; its share of the image's area, the median; and the standard deviation of its centre in "
        "% of the image's side, in x and in y. First seed."
    )
    blocks: list[str | Grid] = [text, Grid(head, body, "ll" + "r" * (len(head) - 2))]
    blocks += [motion_text, Grid(motion_head, motion_body, "ll" + "r" * (len(motion_head) - 2))]
    return Section("Where the last window looks", blocks)


def _median(values: np.ndarray) -> float:
    """The median, or nan without values."""
    return float(np.median(values)) if len(values) else math.nan

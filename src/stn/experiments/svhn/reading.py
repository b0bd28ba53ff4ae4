"""Where in a house number errors are made, and what the last window shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stn.report.records import Record
from stn.report.statistics import seen
from stn.report.table import Grid, Section, Table

IMAGE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # the window that shows all of it


@dataclass(frozen=True)
class PositionErrors:
    """The error (%) at each place of the number, from the left, and of the whole number, of the first seed.

    Behind the last digit the right answer is "none".
    """

    record: Record
    places: Sequence[float]
    whole: float


@dataclass(frozen=True)
class LastWindow:
    """What the last window shows of the number: medians over the test images, of the first seed.

    `image` and `window` are the number's shares (%) of their areas, `zoom` is the ratio of the two, `inside` the share
    (%) of the number that the window shows. A window is its bounding box.
    """

    record: Record
    image: float
    window: float
    zoom: float
    inside: float


def check_positions(record: Record) -> str | None:
    """Why the array `positions`, bool (n_test, K), is not which places of each number the first seed has right."""
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
    """What the last window of each record with a transformer shows."""
    shown = []
    for record in records:
        if record.row.transformer:
            boxes = record.arrays["box"]
            inside, window = seen(record.arrays["window_all"][:, -1], boxes)
            _, image = seen(np.broadcast_to(IMAGE, (len(window), 4, 2)), boxes)
            values = (100 * image, 100 * window, window / image, 100 * inside)
            shown.append(LastWindow(record, *(float(np.median(value)) for value in values)))
    return shown


def describe_positions(table: Table, records: Sequence[Record]) -> Section | None:
    """The section of the errors by position; None without records."""
    cells = measure_positions(records)
    if not cells:
        return None
    places = range(1, 1 + max(len(cell.places) for cell in cells))
    head = ["model", "column", *(f"place {place}" for place in places), "whole number"]
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
    """The section of the last windows; None without a network that has any."""
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
    head = ["model", "column", "number in image, %", "number in window, %", "zoom", "inside, %"]
    text = (
        "How much of the image's area, and of the last window's, the number takes up; the ratio of the two, the zoom "
        "(1 for a transformer that does nothing); and how much of the number lies inside the window (less than 100 "
        "where something is cut off). The number is its box, the window its bounding box; medians over the test "
        "images, first seed."
    )
    return Section("Where the last window looks", [text, Grid(head, body, "ll" + "r" * (len(head) - 2))])

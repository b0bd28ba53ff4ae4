"""The trunks of the networks of birds, and which parts of a bird each window contains."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stn.experiments.cub.regions import REGIONS
from stn.report.captions import format_counts
from stn.report.matrix import format_correlation
from stn.report.records import Record
from stn.report.statistics import centres, follow, holds
from stn.report.table import Aside, Grid, Section, Table

STILL = 1.0  # a window whose centre moves less, in % of the side, does not choose what it contains


@dataclass(frozen=True)
class WindowParts:
    """The parts of the birds in a window, counted from 1, over all test images; first seed.

    `parts`, by name, is the share (%) of the images that show the part in which the window contains it; `regions` is
    the same over all parts of the head and of the body. `centre` (x, y) is the window's mean centre, from the upper
    left corner, and `moves` the root mean square distance from it; both in % of the image's side. `follows` (x, y) are
    the correlations of the window's centre with the bird's, the mean of its visible parts; nan if one does not move.
    """

    record: Record
    window: int
    regions: Mapping[str, float]
    parts: Mapping[str, float]
    centre: Sequence[float]
    moves: float
    follows: Sequence[float]


def describe_trunks(table: Table, records: Sequence[Record]) -> str:
    """A sentence on the networks' trunks and the origin of their weights."""
    trunks: Counter[str] = Counter()
    for record in records:
        model = record.config.get("model", {})
        if "trunk" in model:
            weights = record.seeds[0].provenance.get("weights")
            start = f"pretrained on ImageNet{f': {weights}' if weights else ''}" if model["pretrained"] else "untrained"
            trunks[f"`{model['trunk']}`, {start}"] += 1
    return f"Trunk: {format_counts(trunks)}." if trunks else ""


def measure_parts(records: Sequence[Record]) -> list[WindowParts]:
    """The measures of each window of each record with transformers."""
    cells = []
    for record in records:
        if not record.row.transformer:
            continue
        names = record.arrays["part_names"].tolist()
        for i, windows in enumerate(np.moveaxis(record.arrays["window_all"], 1, 0)):
            inside = dict(zip(names, holds(windows, record.arrays["parts"]).T, strict=True))
            centre, moves = centres(windows)
            regions = {
                region: _share(*(inside[name] for name in parts if name in inside)) for region, parts in REGIONS.items()
            }
            parts = {name: _share(images) for name, images in inside.items()}
            follows = follow(windows, find_birds(record.arrays["parts"]))
            cells.append(WindowParts(record, i + 1, regions, parts, tuple(50 * (1 + centre)), 50 * moves, follows))
    return cells


def find_birds(parts: np.ndarray) -> np.ndarray:
    """The birds' centres (n, 2): the mean of the visible parts (n, K, 2), or nan."""
    parts = parts.astype(float)
    visible = ~np.isnan(parts).any(2)
    count = visible.sum(1, keepdims=True)
    total = np.where(visible[..., None], parts, 0).sum(1)
    return np.divide(total, count, np.full_like(total, np.nan), where=count > 0)


def describe_parts(table: Table, records: Sequence[Record]) -> Section | None:
    """The section on the parts in the windows; None if no network has windows."""
    cells = measure_parts(records)
    if not cells:
        return None
    body = []
    for cell in cells:
        shares = {name: share for name, share in cell.parts.items() if not math.isnan(share)}
        top_parts = sorted(shares, key=shares.__getitem__, reverse=True)[:3]
        body.append(
            [
                *(cell.record.row.label, cell.record.column.label, str(cell.window)),
                *(f"{cell.regions[region]:.1f}" for region in REGIONS),
                ", ".join(f"{share:.0f}" for share in cell.centre),
                f"{cell.moves:.1f}",
                ", ".join(map(format_correlation, cell.follows)),
                ", ".join(f"{name} {shares[name]:.0f}" for name in top_parts),
            ]
        )
    head = ["model", "column", "window", *(f"{region}, %" for region in REGIONS)]
    head += ["centre, %", "moves, %", "follows", "held most, %"]
    regions = "; ".join(f"{region}: {', '.join(parts)}" for region, parts in REGIONS.items())
    return Section(
        "Which part each window holds",
        [
            "Of the test images that show a part, the share in which the window holds it: over the parts of the head, "
            f"over those of the body (as the data set marks them; {regions}), and the three parts held most often. "
            "Where the window's centre is on average, x and y from the upper left corner, and how far it moves from "
            "image to image (root mean square), both in % of the image's side. Follows: how its centre correlates with "
            "the bird's (the mean of the visible parts), in x and in y, over the test images. First seed.",
            Grid(head, body, "llrrrrrrl"),
            "The paper saw one window become a detector of heads, another of bodies. Here:",
            "\n".join(f"- {line}" for line in describe_division(table, cells)),
        ],
    )


def describe_follows(table: Table, records: Sequence[Record]) -> Aside | None:
    """How well the windows of each record follow the bird; None without a record."""
    networks: dict[Record, list[WindowParts]] = {}
    for cell in measure_parts(records):
        networks.setdefault(cell.record, []).append(cell)
    if not networks:
        return None
    body = [
        [
            record.row.label,
            "; ".join(", ".join(map(format_correlation, window.follows)) for window in windows),
            "; ".join(f"{window.moves:.1f}" for window in windows),
            "; ".join(f"{window.regions['body']:.0f}" for window in windows),
        ]
        for record, windows in networks.items()
    ]
    head = [table.entries, "follows", "moves, %", "body, %"]
    return Aside(
        "Of each window, over the test images, first seed: how its centre correlates with the bird's (the mean of the "
        "visible parts), in x and in y (– where it does not move); how far it moves from image to image, root mean "
        "square, in % of the image's side; and in which share of the images that show a part of the body it holds it.",
        Grid(head, body, "l" + "r" * (len(head) - 1)),
    )


def describe_division(table: Table, cells: Sequence[WindowParts]) -> list[str]:
    """A sentence for each record whose windows may move: which window contains the head, and which the body."""
    controls = {row.control for row in table.rows}
    networks: dict[Record, list[WindowParts]] = {}
    for cell in cells:
        if cell.record.row not in controls:
            networks.setdefault(cell.record, []).append(cell)
    lines = []
    for record, windows in networks.items():
        place = f"{record.row.label} on {record.column.label}"
        if all(window.moves < STILL for window in windows):
            largest_move = max(window.moves for window in windows)
            text = f"{place}: the windows hardly move from image to image (at most {largest_move:.1f} % of the side)"
            lines.append(f"{text}: they hold what the tiles hold at which they start.")
            continue
        head, body = (_find_fullest(windows, region) for region in REGIONS)
        text = f"{place}: window {head.window} holds more of the head than any other "
        text += f"({head.regions['head']:.0f} %, and {head.regions['body']:.0f} % of the body)"
        if head is body:
            lines.append(f"{text}, and more of the body too: no division of labour.")
        else:
            text += f", window {body.window} more of the body "
            lines.append(f"{text}({body.regions['body']:.0f} %, and {body.regions['head']:.0f} % of the head).")
    return lines


def _find_fullest(windows: Sequence[WindowParts], region: str) -> WindowParts:
    """The window that contains a region most often."""
    return max(windows, key=lambda window: window.regions[region])


def _share(*flags: np.ndarray) -> float:
    """The share (%) of ones among the values that are not nan; nan if there are none."""
    values = np.concatenate(flags)
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if len(values) else math.nan

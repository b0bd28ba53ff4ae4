"""Which networks the birds' networks are built on, and which part of a bird each window holds."""

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

STILL = 1.0  # a window whose centre moves less, in % of the side, has no say in what it holds


@dataclass(frozen=True)
class WindowParts:
    """What a window, counted from 1, holds of the birds on all test images, of the first seed.

    `parts` is the share (%) of the images that show a part in which the window holds it, by name; `regions` the same
    over all parts of head and of body. `centre` (x, y) and `moves` are in % of the image's side, from its upper left
    corner: the mean centre, and the root mean square of its way from there. `follows` (x, y) are the correlations of
    its centre with the bird's, which is the mean of the visible parts; nan where one of the two does not move.
    """

    record: Record
    window: int
    regions: Mapping[str, float]
    parts: Mapping[str, float]
    centre: Sequence[float]
    moves: float
    follows: Sequence[float]


def describe_trunks(table: Table, records: Sequence[Record]) -> str:
    """On what the networks are built, and where its weights come from."""
    trunks: Counter[str] = Counter()
    for record in records:
        model = record.config.get("model", {})
        if "trunk" in model:
            weights = record.seeds[0].provenance.get("weights")
            start = f"pretrained on ImageNet{f': {weights}' if weights else ''}" if model["pretrained"] else "untrained"
            trunks[f"`{model['trunk']}`, {start}"] += 1
    return f"Trunk: {format_counts(trunks)}." if trunks else ""


def measure_parts(records: Sequence[Record]) -> list[WindowParts]:
    """What each window of each record with transformers holds."""
    cells = []
    for record in records:
        if not record.row.transformer:
            continue
        names = record.arrays["part_names"].tolist()
        for i, windows in enumerate(np.moveaxis(record.arrays["window_all"], 1, 0)):
            held = dict(zip(names, holds(windows, record.arrays["parts"]).T, strict=True))
            centre, moves = centres(windows)
            regions = {
                region: _share(*(held[name] for name in parts if name in held)) for region, parts in REGIONS.items()
            }
            parts = {name: _share(images) for name, images in held.items()}
            follows = follow(windows, find_birds(record.arrays["parts"]))
            cells.append(WindowParts(record, i + 1, regions, parts, tuple(50 * (1 + centre)), 50 * moves, follows))
    return cells


def find_birds(parts: np.ndarray) -> np.ndarray:
    """(n, 2): the mean of the visible of parts (n, K, 2); nan where none is."""
    parts = parts.astype(float)
    visible = ~np.isnan(parts).any(2)
    count = visible.sum(1, keepdims=True)
    total = np.where(visible[..., None], parts, 0).sum(1)
    return np.divide(total, count, np.full_like(total, np.nan), where=count > 0)


def describe_parts(table: Table, records: Sequence[Record]) -> Section | None:
    """The section of what the windows hold; None without a network that has any."""
    cells = measure_parts(records)
    if not cells:
        return None
    body = []
    for cell in cells:
        held = {name: share for name, share in cell.parts.items() if not math.isnan(share)}
        most = sorted(held, key=held.__getitem__, reverse=True)[:3]
        body.append(
            [
                *(cell.record.row.label, cell.record.column.label, str(cell.window)),
                *(f"{cell.regions[region]:.1f}" for region in REGIONS),
                ", ".join(f"{share:.0f}" for share in cell.centre),
                f"{cell.moves:.1f}",
                ", ".join(map(format_correlation, cell.follows)),
                ", ".join(f"{name} {held[name]:.0f}" for name in most),
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
    """A sentence for each record whose windows may move: which holds the head, which the body."""
    controls = {row.control for row in table.rows}
    networks: dict[Record, list[WindowParts]] = {}
    for cell in cells:
        if cell.record.row not in controls:
            networks.setdefault(cell.record, []).append(cell)
    lines = []
    for record, windows in networks.items():
        place = f"{record.row.label} on {record.column.label}"
        if all(window.moves < STILL for window in windows):
            most = max(window.moves for window in windows)
            text = f"{place}: the windows hardly move from image to image (at most {most:.1f} % of the side)"
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
    """The window that holds a region most often."""
    return max(windows, key=lambda window: window.regions[region])


def _share(*held: np.ndarray) -> float:
    """The share (%) of ones among all that are not nan; nan if there are none."""
    known = np.concatenate(held)
    known = known[~np.isnan(known)]
    return 100 * float(known.mean()) if len(known) else math.nan

"""Figures of Table 3: the windows of the transformers, and which parts of the bird each window contains."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Polygon, Rectangle

from stn.experiments.cub.parts import measure_parts
from stn.experiments.cub.regions import REGIONS, SCALE
from stn.experiments.cub.table import BIRDS, TWO_448
from stn.report.drawing import (
    GREY,
    INK,
    LINE,
    STRONG,
    WRONG,
    Animation,
    Sheet,
    describe_source,
    line_style,
    open_sheet,
    select,
)
from stn.report.records import Record

SHOWN = 6  # test images in a row
OUTSIDE = "#7C7468"  # ImageNet's mean colour, which is zero in a normalised image
HEAT = LinearSegmentedColormap.from_list("heat", ["#FFFFFF", "#DCEBF2", "#7FB6CF", "#1F6F94", "#0B3550"])


def draw_birds(records: Sequence[Record]) -> Sheet:
    """For each column and network, test images with windows, the windows' crops, and wrong predictions."""
    selection = select(BIRDS, records, lambda row: row.transformer and not row.shown_where_run)
    n = min(SHOWN, *(len(record.arrays["example_input"]) for record in selection.records.values()))
    side, across = 1.30, 1.46  # inches: an image, the pitch of images
    left, top, title, line, foot, bottom = 1.22, 0.80, 0.62, 0.15, 0.20, 0.40
    width = left + max(n, 4) * across

    def wrapped(name: str) -> list[str]:
        return textwrap.wrap(name, int(across / 0.062))

    titles, blocks, height = {}, [], top
    for column in selection.columns:
        titles[column] = height
        height += title
        for row in [row for row in selection.rows if (row, column) in selection.records]:
            arrays = selection.records[row, column].arrays
            examples = np.linspace(0, len(arrays["example_input"]) - 1, n).round().astype(int)
            wrong = arrays["example_said"] != arrays["example_label"]
            answers = [
                wrapped(f"said {arrays['example_said_name'][example]}") if wrong[example] else []
                for example in examples
            ]
            tall = _bird_height(arrays["example_windows"].shape[1], side)
            blocks.append((column, row, arrays, height, tall, list(zip(examples, answers, strict=True))))
            height += tall + foot + line * max(map(len, answers))
    height += bottom
    with open_sheet(width, height, photos=True, step=5) as sheet:
        sheet.text(0.2, 0.32, "Where the transformers look", size=12, weight="bold")
        _draw_key(sheet, 0.2, 0.56, max(arrays["example_windows"].shape[1] for _, _, arrays, *_ in blocks))
        for column, y in titles.items():
            part = next(record.part for place, record in selection.records.items() if place[1] is column)
            sheet.text(left, y + 0.14, f"{column.label}: {part}" if part else column.label, color=GREY, va="center")
        for column, row, arrays, y, tall, birds in blocks:
            model, _, pixels = row.label.partition(" ")
            sheet.text(0.2, y + side / 2 - 0.1, model, size=11, weight="bold", va="center")
            sheet.text(0.2, y + side / 2 + 0.1, pixels, color=GREY, va="center")
            for i, (example, answer) in enumerate(birds):
                x, middle = left + i * across, {"size": 8, "ha": "center", "va": "center"}
                if y == titles[column] + title:  # the networks below show the same birds
                    for k, words in enumerate(reversed(wrapped(arrays["example_name"][example]))):
                        sheet.text(x + side / 2, y - 0.11 - line * k, words, **middle)
                windows = arrays["example_windows"][example].astype(float)
                _draw_bird(sheet, x, y, side, arrays["example_input"][example], windows)
                for k, words in enumerate(answer):
                    sheet.text(x + side / 2, y + tall + 0.13 + line * k, words, color=WRONG, **middle)
        images = f"{n} test images, spread evenly over the test set"
        source = describe_source(selection.records.values(), "ST-CNN, ", images)
        sheet.text(left, height - 0.15, source, size=7.5, color=GREY)
    return sheet


def draw_parts(records: Sequence[Record]) -> Sheet:
    """For each column and network, the windows' places on all test images and how often they contain each part."""
    selection = select(BIRDS, records, lambda row: row.transformer)
    cells = {
        (cell.record.row, cell.record.column, cell.window): cell
        for cell in measure_parts(list(selection.records.values()))
    }
    count = {place: record.arrays["window_all"].shape[1] for place, record in selection.records.items()}
    wide, tall, gap, left, right = 0.47, 0.255, 0.26, 1.12, 0.15  # inches: a cell of the map, gap, margins
    frame, top, head, between, bottom = 1.0, 0.80, 0.62, 0.14, 0.40
    begin = head + frame + 0.36  # the top of the map, below the top of its block
    lines, line_y = [], begin  # (region, part or None for all parts, top of the line)
    for region, names in REGIONS.items():
        for name in (None, *names):
            lines.append((region, name, line_y))
            line_y += tall
        line_y += between
    block = line_y + 0.16
    span = {place: max(frame, wide * n) for place, n in count.items()}
    column_widths = [sum(span[place] + gap for place in span if place[1] is column) for column in selection.columns]
    width = max(left + max(column_widths) - gap + right, 4.2)  # at least the width of the title
    n = max(record.n_test for record in selection.records.values())
    words = f"% of the test images ({n:,}) that show the part; above, mean windows, and their centres on every image"
    source = textwrap.wrap(describe_source(selection.records.values(), "ST-CNN, ", words), int(width / 0.06))
    height = top + len(selection.columns) * block + bottom + LINE * (len(source) - 1)
    with open_sheet(width, height) as sheet:
        sheet.text(0.2, 0.32, "Which part of the bird each window holds", size=12, weight="bold")
        _draw_key(sheet, 0.2, 0.56, max(count.values()))
        for c, column in enumerate(selection.columns):
            x, y = left, top + c * block
            if len(selection.columns) > 1:
                sheet.text(0.2, y + 0.2, column.label, size=11, weight="bold", va="center")
            for region, name, line_y in lines:
                style = {"size": 8.5, "weight": "normal" if name else "bold", "ha": "right", "va": "center"}
                sheet.text(x - 0.1, y + line_y + tall / 2, name or region, **style)
            for place in [(row, column) for row in selection.rows if (row, column) in selection.records]:
                model, _, rest = place[0].label.partition(" ")
                middle = {"ha": "center", "va": "center"}
                sheet.text(x + span[place] / 2, y + head - 0.34, model, weight="bold", **middle)
                sheet.text(x + span[place] / 2, y + head - 0.16, rest, color=GREY, size=8, **middle)
                axes = sheet.tile(x + (span[place] - frame) / 2, y + head, frame, frame, frame / 2)
                _draw_stands(axes, selection.records[place])
                first_x = x + (span[place] - wide * count[place]) / 2
                for k in range(count[place]):
                    cell_x, cell = first_x + k * wide, cells[(*place, k + 1)]
                    sheet.text(cell_x + wide / 2, y + begin - 0.18, str(k + 1), size=8, color=GREY, **middle)
                    strip = sheet.axes(cell_x + 0.03, y + begin - 0.10, wide - 0.06, 0.05)
                    strip.set_axis_off()
                    strip.add_patch(Rectangle((0, 0), 1, 1, color=STRONG[k % len(STRONG)]))
                    for region, name, line_y in lines:
                        share = cell.parts.get(name, np.nan) if name else cell.regions[region]
                        _draw_heat(sheet.axes(cell_x, y + line_y, wide, tall), share, bold=name is None)
                x += span[place] + gap
        for i, line in enumerate(reversed(source)):
            sheet.text(0.2, height - 0.15 - LINE * i, line, size=7.5, color=GREY)
    return sheet


def draw_training(records: Sequence[Record]) -> Animation:
    """An animation of the windows on validation images during the training of one network, if possible `TWO_448`."""
    selection = select(BIRDS, records, lambda row: row.transformer and not row.shown_where_run)
    places = [place for place in selection.records if place[0] is TWO_448] or list(selection.records)
    record = selection.records[places[0]]
    arrays, budget = record.arrays, record.config.get("budget", {})
    images, trace, steps = arrays["trace_input"], arrays["trace"].astype(float), arrays["trace_steps"]
    centres = trace.reshape(len(steps), len(images), -1, 2)
    side, gap, left, top, across = 1.35, 0.1, 0.2, 0.98, 3
    rows = -(-len(images) // across)
    width, height = 2 * left + across * (side + gap) - gap, top + rows * (side + gap) + 0.3
    scattered = budget.get("random_share", 0)
    explored = scattered + budget.get("explore_share", 0)
    errors = {step: error for step, error, _ in record.seeds[0].validation}
    frames = []
    for t, step in enumerate(steps):
        share = step / max(steps[-1], 1)
        if share < scattered:
            phase = "the trunk learns from windows at random places"
        elif share < explored:
            phase = "the windows explore"
        else:
            phase = "the rest learns, the windows stay as they are" if explored else "all learns"
        with open_sheet(width, height, photos=True) as sheet:
            sheet.text(left, 0.32, f"{record.row.label}: windows find birds", size=12, weight="bold")
            sheet.text(left, 0.56, f"step {step} of {steps[-1]}: {phase}", va="center")
            error = f"validation error {errors[step]:.0f} %" if step in errors else "before training"
            sheet.text(left, 0.76, error, color=GREY, va="center")
            for i, image in enumerate(images):
                x, y = left + i % across * (side + gap), top + i // across * (side + gap)
                tile = sheet.tile(x, y, side, side, side / 2)
                _draw_photo(tile, image)
                for k, centre in enumerate(centres[t, i]):
                    style = line_style(STRONG[k % len(STRONG)], strong=True)
                    tile.add_patch(Rectangle(centre - SCALE, 2 * SCALE, 2 * SCALE, **style))
            words = describe_source([record], "", f"{len(images)} validation images")
            sheet.text(left, height - 0.15, words, size=7.5, color=GREY)
            frames.append(sheet.render(100))
    return Animation(frames, shades=128)


def _draw_bird(sheet: Sheet, x: float, y: float, side: float, image: np.ndarray, windows: np.ndarray) -> None:
    """Draw the image (H, W, 3) with its windows (N, 4 corners, 2), and below it the windows' crops, two in a line."""
    small, gap = _crop(side)
    photo = sheet.tile(x, y, side, side, side / 2)
    _draw_photo(photo, image)
    for k, window in enumerate(windows):
        if not np.isfinite(window).all():  # from a training that diverged
            continue
        colour, low, high = STRONG[k % len(STRONG)], window.min(0), window.max(0)
        photo.add_patch(Polygon(window, **line_style(colour, strong=True)))
        crop = sheet.tile(x + k % 2 * (small + gap), y + side + gap + k // 2 * (small + gap), small, small, small / 2)
        _draw_photo(crop, image)
        crop.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
        crop.add_patch(Rectangle(low, *(high - low), fill=False, edgecolor=colour, linewidth=3.2))


def _bird_height(windows: int, side: float) -> float:
    """The height of an image with the crops below it."""
    return side + -(-windows // 2) * sum(_crop(side))


def _crop(side: float) -> tuple[float, float]:
    """The side of a crop, and the gap to the next one."""
    return side / 2 - 0.03, 0.06


def _draw_photo(axes: Axes, image: np.ndarray) -> None:
    """Draw a photo (H, W, 3) on the frame [-1, 1], smoothly enlarged, and around it the colour that a network sees."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(image, extent=(-1, 1, 1, -1), interpolation="bicubic")
    axes.add_patch(Rectangle((-9, -9), 18, 18, color=OUTSIDE, zorder=-1))
    axes.set(xlim=limits[0], ylim=limits[1], aspect="auto")


def _draw_key(sheet: Sheet, x: float, y: float, count: int) -> None:
    """Draw the key of the colours of up to `count` parallel windows."""
    sheet.text(x, y, "windows:", color=GREY, va="center")
    x += 0.66
    for k, colour in enumerate(STRONG[:count]):
        mark = sheet.tile(x, y - 0.1, 0.2, 0.2, 0.06)
        mark.add_patch(Rectangle((-1, -1), 2, 2, **line_style(colour, strong=True)))
        sheet.text(x + 0.24, y, str(k + 1), color=GREY, va="center")
        x += 0.50


def _draw_stands(axes: Axes, record: Record) -> None:
    """Draw the image's frame, the windows' centres on all test images, and each window's mean outline."""
    axes.add_patch(Rectangle((-1, -1), 2, 2, facecolor="#F7F7F7", edgecolor=GREY, linewidth=0.8, zorder=0))
    for k, windows in enumerate(np.moveaxis(record.arrays["window_all"].astype(float), 1, 0)):
        colour, windows = STRONG[k % len(STRONG)], windows[np.isfinite(windows).all((1, 2))]
        axes.add_patch(Polygon(windows.mean(0), fill=False, edgecolor=colour, linewidth=1.3, zorder=3))
        x, y = windows.mean(1).T
        axes.scatter(x, y, s=1.6, color=colour, alpha=0.25, linewidths=0, zorder=2, rasterized=True)
    axes.set(xlim=(-1.02, 1.02), ylim=(1.02, -1.02))


def _draw_heat(axes: Axes, share: float, bold: bool) -> None:
    """Draw one cell of the map: the share (%) as colour and number."""
    colour = "white" if np.isnan(share) else HEAT(share / 100)
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), facecolor=colour)
    for spine in axes.spines.values():
        spine.set(visible=True, color="white", linewidth=1.0)
    style: dict[str, Any] = {"ha": "center", "va": "center", "size": 8, "weight": "bold" if bold else "normal"}
    text = "–" if np.isnan(share) else f"{share:.0f}"
    axes.text(0.5, 0.46, text, color="white" if share > 55 else INK, **style)

"""Tools for figures: sheets laid out in inches, images, sampling grids, colours.

The same records give the same bytes: the user's settings of matplotlib do not count, and PNGs carry no metadata.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from PIL import Image

from stn.errors import UserError
from stn.report.records import Record
from stn.report.table import Column, Row, Table

INK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
WRONG = "#B0125B"
# Okabe and Ito's colours, which colour-blind readers can distinguish. For rows, see `assign_colours`.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STRONG = ("#F0442E", "#35B8FF", "#FFD500", "#E27BD0")  # visible on any photo
LETTER, LINE = 0.066, 0.18  # inches: the width of a letter, the distance of lines
SHADES, FRAME, PAUSE = 32, 160, 3000  # of an animation: number of colours; ms of a frame and of the last frame
WHITE = 240  # of an animation: a colour whose channels are all above this becomes white
STYLE: dict[Any, Any] = {  # matplotlib types its keys one by one
    "font.family": "DejaVu Sans",  # ships inside matplotlib
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.labelsize": 8.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Sheet:
    """A white figure laid out in inches from its upper left corner; `open_sheet` makes one.

    With `photos` it is written at a lower resolution and in all colours, otherwise in 256 colours. Channels are rounded
    to multiples of `step`: with 5, a sheet of many photos takes a third less space.
    """

    def __init__(self, width: float, height: float, photos: bool = False, step: int = 1) -> None:
        self.width, self.height, self.photos, self.step = width, height, photos, step
        self.figure = Figure((width, height), facecolor="white")

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """A text at (x, y)."""
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def axes(self, x: float, y: float, wide: float, tall: float) -> Axes:
        """Axes whose upper left corner is (x, y)."""
        return self.figure.add_axes(
            (x / self.width, 1 - (y + tall) / self.height, wide / self.width, tall / self.height)
        )

    def tile(self, x: float, y: float, wide: float, tall: float, unit: float) -> Axes:
        """Invisible axes for an image, with the frame [-1, 1] in the middle, two `unit` inches wide."""
        axes = self.axes(x, y, wide, tall)
        axes.set_axis_off()
        axes.set(xlim=(-wide / 2 / unit, wide / 2 / unit), ylim=(tall / 2 / unit, -tall / 2 / unit))
        return axes

    def render(self, dpi: int) -> Image.Image:
        """The sheet as an RGB image."""
        buffer = io.BytesIO()
        with _style():
            self.figure.savefig(buffer, dpi=dpi, format="png")
        return Image.open(buffer).convert("RGB")

    def save(self, path: Path) -> None:
        """Writes a PNG small enough for git; UserError if it cannot be written."""
        image = self.render(120 if self.photos else 160)
        image = image.point([round(value / self.step) * self.step for value in range(256)] * 3)
        if not self.photos:
            image = image.quantize(256, dither=Image.Dither.NONE)  # looks like all colours
        _write(path, lambda: image.save(path, optimize=True))


class Animation:
    """Frames, all of one size, that are written as an animated GIF."""

    def __init__(self, frames: Sequence[Image.Image], shades: int = SHADES) -> None:
        # One palette for all frames makes a small file without flicker.
        colours = frames[-1].quantize(shades, dither=Image.Dither.NONE)
        palette = np.array(colours.getpalette() or []).reshape(-1, 3)
        palette[palette.min(1) > WHITE] = 255  # white paper, not a mean of near-whites
        colours.putpalette(palette.ravel().tolist())
        self.frames = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]

    def save(self, path: Path) -> None:
        """Writes the GIF; UserError if it cannot be written."""
        durations = [FRAME] * (len(self.frames) - 1) + [PAUSE]
        first, *rest = self.frames
        _write(
            path,
            lambda: first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True),
        )


@contextmanager
def open_sheet(width: float, height: float, photos: bool = False, step: int = 1) -> Iterator[Sheet]:
    """A sheet to draw on, in the style of this module."""
    with _style():
        yield Sheet(width, height, photos, step)


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


# ------------------------------------------------------------------------------------------------- what to draw


@dataclass(frozen=True)
class Selection:
    """The records to draw by row and column, in the table's order, and the rows and columns there are."""

    records: Mapping[tuple[Row, Column], Record]
    rows: Sequence[Row]
    columns: Sequence[Column]

    @property
    def first(self) -> Record:
        return next(iter(self.records.values()))


def select(table: Table, records: Sequence[Record], predicate: Callable[[Row], bool]) -> Selection:
    """The records of the rows that `predicate` selects; UserError if there is none."""
    places = {(record.row, record.column): record for record in records if predicate(record.row)}
    if not places:
        raise UserError(f"no record to draw of a network with a transformer: `{table.make}` trains the cells")
    rows = [row for row in table.rows if any(place[0] is row for place in places)]
    return Selection(places, rows, [column for column in table.columns if any(place[1] is column for place in places)])


def assign_colours(rows: Iterable[Row]) -> dict[Row, str]:
    """A colour for each row: its own if it has one, else the next of the palette, which repeats."""
    rows = list(rows)
    fixed_colours = {row.colour for row in rows}
    colours = cycle([colour for colour in PALETTE if colour not in fixed_colours] or PALETTE)
    return {row: row.colour or next(colours) for row in rows}


def describe_source(records: Iterable[Record], subject: str, images: str) -> str:
    """The source of a figure: the networks (`subject`), the budget, the first seeds and the `images`."""
    records = list(records)
    seeds = sorted({record.seeds[0].seed for record in records})
    return f"{subject}budget {records[0].budget}, seed {', '.join(map(str, seeds))}; {images}"


def describe_part(record: Record) -> str:
    """What replaces the paper's data, to be added to a source; "" if nothing does."""
    return f"; {record.part}" if record.part else ""


def draw_image(axes: Axes, image: np.ndarray, frame: str, strength: float = 1.0) -> None:
    """Draw a grey image (H, W) as ink on paper, or a colour photo (H, W, 3) as it is, on the frame [-1, 1]."""
    limits = axes.get_xlim(), axes.get_ylim()
    pixels = 255 - image.astype(float) * strength if image.ndim == 2 else image
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(-1, 1, 1, -1))
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=frame, linewidth=0.8 if frame == PALE else 1.1))
    axes.set(xlim=limits[0], ylim=limits[1], aspect="auto")


def draw_grid(axes: Axes, grid: np.ndarray, colour: str, cells: int = 7) -> None:
    """Draw a grid (h, w, 2) of pixel centres as `cells` x `cells` cells with a stronger outline."""
    grid = grid.astype(float)
    for axis in (0, 1):  # half a pixel outwards, to the target's outer edge
        ends = [np.take(grid, [i, j], axis) for i, j in ((0, 1), (-1, -2))]
        first, last = (np.take(end, [0], axis) * 1.5 - np.take(end, [1], axis) * 0.5 for end in ends)
        grid = np.concatenate([first, grid, last], axis)
    lines, outline = [], []
    for axis in (0, 1):
        n = grid.shape[axis] - 2
        places = np.clip(np.linspace(-0.5, n - 0.5, cells + 1), -0.5, n - 0.5)
        knots = np.concatenate([[-0.5], np.arange(n), [n - 0.5]])
        rows = np.moveaxis(grid, axis, 0).reshape(n + 2, -1)
        points = np.stack([np.interp(places, knots, value) for value in rows.T], -1).reshape(cells + 1, -1, 2)
        lines += list(points[1:-1])
        outline += [points[0], points[-1]]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.55, alpha=0.85))
    axes.add_collection(LineCollection(outline, colors=colour, linewidths=1.3, capstyle="round"))


def line_style(colour: str, strong: bool = False, width: float | None = None) -> dict[str, Any]:
    """The style of an outline with a dark edge, visible on any photo."""
    width = width or (1.9 if strong else 1.1)
    edge = [Stroke(linewidth=width + 1.1, foreground=INK, alpha=0.75), Normal()]
    return {"fill": False, "edgecolor": colour, "linewidth": width, "joinstyle": "miter", "path_effects": edge}

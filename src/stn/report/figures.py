"""Two pictures from records: what a transformer looks at, and how much of the distortion it undoes.

Both take what `stn.report.tables.load` returns and draw the ST-CNN rows of it. Same records, same bytes: the style is
set here, whatever the user's matplotlib is told, and the PNG carries no metadata.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from stn.errors import UserError
from stn.report.statistics import at_size_of, scatter, share_explained, variance_undone, without_constant
from stn.report.tables import COLUMNS

COLOURS = {"Aff": "#0072B2", "Proj": "#D55E00", "TPS": "#009E73"}  # Okabe and Ito: told apart by colour-blind readers
DISTORTIONS = {
    "R": "rotation",
    "RTS": "rotation, translation, scale",
    "P": "projective",
    "E": "elastic",
    "TC": "translation, clutter",
}
DIGITS = (2, 4, 7)  # no symmetry, so that their pose is seen
INK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
PLATE = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.2}  # keeps numbers legible over dots
STYLE = {
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


def pictures(records: Sequence[dict], path: Path) -> None:
    """Writes, per data set, three test digits: the canvas under each family's sampling grid, and what is made of it."""
    cells, columns, families = _st_cnn(records)
    unit = 0.30  # inches for half a canvas
    across, low, high = 2 * 1.4 * unit, 2 * 1.08 * unit, 2 * 1.42 * unit  # a tile's width; its height, with a grid
    gap, left, top, block_gap, bottom = 0.24, 1.12, 0.72, 0.14, 0.42
    block = high + low + block_gap
    width = left + len(columns) * (3 * across + gap) - gap + 0.1
    height = top + low + block_gap + len(families) * block - block_gap + bottom
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure((width, height), facecolor="white")

        def tile(x: float, y: float, tall: float) -> mpl.axes.Axes:
            """Axes whose upper left corner is (x, y) inches from the figure's; the canvas spans [-1, 1] in them."""
            made = figure.add_axes((x / width, 1 - (y + tall) / height, across / width, tall / height))
            made.set_axis_off()
            made.set(xlim=(-across / 2 / unit, across / 2 / unit), ylim=(tall / 2 / unit, -tall / 2 / unit))
            return made

        def text(x: float, y: float, words: str, **style) -> None:
            figure.text(x / width, 1 - y / height, words, **style)

        for i, column in enumerate(columns):
            x0 = left + i * (3 * across + gap)
            text(x0 + 0.36 * unit, 0.32, column, size=13, weight="bold", va="baseline")
            text(x0 + 0.36 * unit, 0.54, DISTORTIONS[column], color=GREY, va="baseline")
            present = [family for family in families if (family, column) in cells]
            for j, digit in enumerate(DIGITS):
                x = x0 + j * across
                for family in present:
                    arrays = cells[family, column]["arrays"]
                    at = int(np.flatnonzero(arrays["example_label"] == digit)[0])
                    if family == present[0]:
                        _picture(tile(x, top, low), arrays["example_input"][at], PALE)
                    y = top + low + block_gap + families.index(family) * block
                    laid = tile(x, y, high)
                    _picture(laid, arrays["example_input"][at], PALE, strength=0.62)
                    _grid(laid, arrays["example_grid"][at], COLOURS[family])
                    _picture(tile(x, y + high, low), arrays["example_output"][at], COLOURS[family])
        text(left - 0.05, top + low / 2, "input", ha="right", va="center")
        for k, family in enumerate(families):
            y = top + low + block_gap + k * block
            text(0.12, y + high / 2, family, size=11, weight="bold", color=COLOURS[family], va="center")
            text(left - 0.05, y + high / 2, "grid", ha="right", va="center")
            text(left - 0.05, y + high + low / 2, "output", ha="right", va="center")
        source = _source(cells, "a 2, a 4 and a 7 of each test set; the output is what the classifier sees")
        text(left + 0.36 * unit, height - 0.15, source, size=7.5, color=GREY)
        _save(figure, path)


def poses(records: Sequence[dict], path: Path) -> None:
    """Writes found against true pose of the first test images, and where nine points of the canvas land in them."""
    cells, columns, families = _st_cnn(records)
    panels = [
        (column, name)
        for column in columns
        for name in next(cells[family, column] for family in families if (family, column) in cells)["pose_names"]
    ]
    n = max(len(record["arrays"]["cloud_before"]) for record in cells.values())
    side, gap, left, cloud_gap = 1.72, 0.62, 0.95, 0.34
    step = side + gap
    width = left + max(len(panels), len(columns) + 1) * step - gap + 0.25
    title = 0.92
    top_height = title + side + 0.62 if panels else 0.0
    cloud_top = top_height + 1.28
    height = cloud_top + len(families) * (side + cloud_gap) + 0.20
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure((width, height), facecolor="white")

        def axes(x: float, y: float) -> mpl.axes.Axes:
            return figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))

        def text(x: float, y: float, words: str, **style) -> None:
            figure.text(x / width, 1 - y / height, words, **style)

        if panels:
            text(0.2, 0.32, "What the transformer finds, against what was done to the image", size=12, weight="bold")
            words = "a network may choose the pose that it brings digits to: that one constant is removed"
            text(0.2, 0.56, f"Dots: {families[0]}; {words}. RMS is of what remains.", color=GREY)
        for i, (column, name) in enumerate(panels):
            of = {family: cells[family, column] for family in families if (family, column) in cells}
            _pose(axes(left + i * step, title), of, column, name)

        text(0.2, top_height + 0.32, "How much of the pose is undone", size=12, weight="bold")
        words = "Where nine points of the canvas fall on the undistorted digit, image by image."
        text(0.2, top_height + 0.56, words, color=GREY)
        for i, column in enumerate(columns):
            x = left + i * step
            text(x, cloud_top - 0.34, column, size=11, weight="bold")
            for k, family in enumerate(families):
                if (family, column) in cells:
                    _cloud(axes(x, cloud_top + k * (side + cloud_gap)), cells[family, column], COLOURS[family])
        x = left + len(columns) * step
        text(x, cloud_top, "grey: without transformer", color=GREY, va="top")
        text(x, cloud_top + 0.20, "colour: with it", color=COLOURS[families[0]], va="top")
        words = (
            "Undone: the share of the\npoints' variance over images\nthat is gone, once a constant\n"
            "zoom is taken out, without\nthe 5 % of images that lie\nfarthest. At 100 % every image\n"
            "is seen in one pose."
        )
        text(x, cloud_top + 0.56, words, size=8, color=GREY, va="top", linespacing=1.45)
        for k, family in enumerate(families):
            y = cloud_top + k * (side + cloud_gap) + side / 2
            text(0.2, y, family, size=11, weight="bold", color=COLOURS[family], va="center")
        text(0.2, height - 0.14, _source(cells, f"the first {n:,} test images of each set"), size=7.5, color=GREY)
        _save(figure, path)


def _st_cnn(records: Sequence[dict]) -> tuple[dict[tuple[str, str], dict], list[str], list[str]]:
    cells = {
        (record["row"].split()[1], record["column"]): record
        for record in records
        if record["row"].startswith("ST-CNN ")
    }
    if not cells:
        raise UserError("no ST-CNN record to draw: `make table` trains the cells")
    columns = [column for column in COLUMNS if any(key[1] == column for key in cells)]
    return cells, columns, [family for family in COLOURS if any(key[0] == family for key in cells)]


def _source(cells: dict, images: str) -> str:
    record = next(iter(cells.values()))
    seeds = sorted({cell["seeds"][0]["seed"] for cell in cells.values()})
    part = f"; {record['part']}" if record["part"] else ""
    return f"ST-CNN, budget {record['budget']}, seed {', '.join(map(str, seeds))}; {images}{part}"


# ------------------------------------------------------------------------------------------------- pictures


def _picture(axes: mpl.axes.Axes, image: np.ndarray, frame: str, strength: float = 1.0) -> None:
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(255 - image.astype(float) * strength, cmap="gray", vmin=0, vmax=255, extent=(-1, 1, 1, -1))
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor=frame, linewidth=0.8 if frame == PALE else 1.1))
    axes.set(xlim=limits[0], ylim=limits[1], aspect="auto")


def _grid(axes: mpl.axes.Axes, grid: np.ndarray, colour: str, cells: int = 7) -> None:
    """The grid (h, w, 2) as `cells` cells each way, its outline stronger; the grid's points are pixel centres."""
    grid = grid.astype(float)
    for axis in (0, 1):  # half a pixel outwards, to the target's outer edge
        ends = [np.take(grid, [i, j], axis) for i, j in ((0, 1), (-1, -2))]
        first, last = (np.take(e, [0], axis) * 1.5 - np.take(e, [1], axis) * 0.5 for e in ends)
        grid = np.concatenate([first, grid, last], axis)
    lines, outline = [], []
    for axis in (0, 1):
        n = grid.shape[axis] - 2
        at = np.clip(np.linspace(-0.5, n - 0.5, cells + 1), -0.5, n - 0.5)
        knots = np.concatenate([[-0.5], np.arange(n), [n - 0.5]])
        rows = np.moveaxis(grid, axis, 0).reshape(n + 2, -1)
        picked = np.stack([np.interp(at, knots, value) for value in rows.T], -1).reshape(cells + 1, -1, 2)
        lines += list(picked[1:-1])
        outline += [picked[0], picked[-1]]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.55, alpha=0.85))
    axes.add_collection(LineCollection(outline, colors=colour, linewidths=1.3, capstyle="round"))


# ------------------------------------------------------------------------------------------------- poses

NAMES = {"angle": ("rotation", "°"), "scale": ("scale", "%"), "x": ("x", "px"), "y": ("y", "px")}


def _pose(axes: mpl.axes.Axes, of: dict[str, dict], column: str, name: str) -> None:
    label, unit = NAMES[name]
    lines = []
    for i, (family, record) in enumerate(of.items()):
        at = record["pose_names"].index(name)
        true, found = (record["arrays"][key][:, at].astype(float) for key in ("pose_true", "pose_found"))
        usable = np.isfinite(found) & ((found > 0) | (name != "scale"))  # a collapsed transformer has no scale
        true, found = true[usable], found[usable]
        shown, residual = without_constant(true, found, name)
        rms = np.sqrt(np.mean(np.square(residual))) * (100 if name == "scale" else 1)
        lost = "" if usable.all() else f", {(~usable).sum()} lost"
        space = "" if unit == "°" else " "
        lines.append((family, f"R² {share_explained(true, residual, name):.3f}  RMS {rms:.1f}{space}{unit}{lost}"))
        if i == 0:
            low, high = true.min(), true.max()
            pad = 0.12 * (high - low)
            axes.plot([low - pad, high + pad], [low - pad, high + pad], color=GREY, linewidth=0.7, zorder=1)
            axes.scatter(true, shown, s=3.2, color=COLOURS[family], alpha=0.45, linewidths=0, zorder=2)
            axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes.set_box_aspect(1)
    axes.set_xlabel(f"true {label}" if name == "scale" else f"true {label} ({'degrees' if unit == '°' else unit})")
    axes.set_ylabel("found ÷ constant" if name == "scale" else "found − constant", labelpad=1)
    angles = [-90, 0, 90] if np.ptp(axes.get_xlim()) > 150 else [-45, 0, 45]
    far = np.abs(axes.get_xlim()).max()
    ticks = {"angle": angles, "scale": [0.8, 1.0, 1.2]}.get(name, [-10, 0, 10] if far > 12 else [-5, 0, 5])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
    axes.set_title(f"{column}: {label}", size=9.5, loc="left", weight="bold", pad=5)
    for i, (family, words) in enumerate(reversed(lines)):
        style = {"color": COLOURS[family], "size": 6.8, "ha": "right", "transform": axes.transAxes, "bbox": PLATE}
        axes.text(0.985, 0.035 + 0.088 * i, f"{family}  {words}", **style)


def _cloud(axes: mpl.axes.Axes, record: dict, colour: str) -> None:
    before, after = (record["arrays"][key].astype(float) for key in ("cloud_before", "cloud_after"))
    share = variance_undone(before, after)
    after = at_size_of(before, after)
    kept = scatter(after)[1]
    before = before[np.isfinite(before).all((1, 2))]
    # The canonical pose is the network's own choice: turn its mean upright and centre it.
    reference, mean = np.median(before, 0), after[kept].mean(0)
    x, y = (mean - mean.mean(0)).T
    u, v = (reference - reference.mean(0)).T
    turn = np.arctan2((x * v - y * u).sum(), (x * u + y * v).sum())
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    after = (after - mean.mean(0)) @ rotation + reference.mean(0)
    axes.scatter(*before.reshape(-1, 2).T, s=1.2, color="#BDBDBD", alpha=0.35, linewidths=0)
    axes.scatter(*after.reshape(-1, 2).T, s=1.4, color=colour, alpha=0.3, linewidths=0)
    reach = 1.25 * np.quantile(np.abs(before - reference.mean(0)), 0.96)
    x, y = reference.mean(0)
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    axes.set_title(f"{100 * share:.0f} % undone", size=8.5, color=colour, loc="left", pad=4)


def _save(figure: Figure, path: Path) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

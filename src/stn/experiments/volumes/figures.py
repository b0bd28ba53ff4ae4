"""The figure of Table 6: digits in volumes, the boxes that the transformer samples, and the remaining poses."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Polygon
from matplotlib.transforms import Bbox, TransformedBbox
from scipy import ndimage
from scipy.spatial.transform import Rotation

from stn.experiments.volumes.poses import pose_left
from stn.experiments.volumes.table import VOLUMES
from stn.report.drawing import (
    GREY,
    INK,
    PALE,
    Sheet,
    assign_colours,
    describe_source,
    draw_image,
    open_sheet,
    select,
)
from stn.report.records import Record

DIGITS = (2, 3, 4, 5, 6, 7)  # the digits whose volumes are shown
# The axes right, down and away (rows) of a camera to the left of and above a volume, in the volume's frame.
CAMERA = Rotation.from_euler("yx", [26, -20], degrees=True).as_matrix()
SURFACE = 0.35  # the value of the volume at the surface of a drawn solid
CORNERS = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
EDGES = [(i, j) for i in range(8) for j in range(i) if bin(i ^ j).count("1") == 1]
FACE = (0, 1, 3, 2)  # the corners of the front face, in order around it


def draw_volumes(records: Sequence[Record]) -> Sheet:
    """For each column, test volumes with the box that the transformer samples, their projections, and the poses."""
    selection = select(VOLUMES, records, lambda row: row.transformer)
    colours = assign_colours(row for row in VOLUMES.rows if row.transformer)
    cells = [
        (row, column) for column in selection.columns for row in selection.rows if (row, column) in selection.records
    ]
    side, column_width, tall, small = 1.80, 1.84, 1.80, 1.16  # inches: a volume, its column, its row; a projection
    left, top, title, gap, panel, bottom = 1.22, 0.78, 0.34 * (len(cells) > 1), 0.12, 2.05, 0.34
    block = title + tall + 2 * (small + gap) + 0.18
    edge = left + len(DIGITS) * column_width  # the right edge of the volumes; the poses are drawn beyond it
    width, height = edge + 0.62 + panel + 0.22, top + len(cells) * block + bottom
    with open_sheet(width, height) as sheet:
        sheet.text(0.2, 0.32, "A digit in a volume, and the box that the transformer samples", size=12, weight="bold")
        words = "The transformer looks through the tinted face, along the arrow; what lies behind it is summed."
        sheet.text(0.2, 0.56, words, color=GREY)
        for i, (row, column) in enumerate(cells):
            arrays, y, colour = selection.records[row, column].arrays, top + i * block, colours[row]
            if len(cells) > 1:
                sheet.text(0.2, y + 0.14, f"{row.name}, {column.label}", size=11, weight="bold", va="center")
            y += title
            for words, down in (
                ("volume\nand box", tall / 2),
                ("projection\nwithout", tall + small / 2),
                ("projection\nwith", tall + gap + small * 1.5),
            ):
                shade = colour if words.endswith("\nwith") else INK
                sheet.text(left - 0.12, y + down, words, ha="right", va="center", color=shade, linespacing=1.3)
            brightest = max(float(arrays[name].max()) for name in ("example_before", "example_after"))
            for k, digit in enumerate(DIGITS):
                x, index = left + k * column_width, int(np.flatnonzero(arrays["example_label"] == digit)[0])
                solid = sheet.tile(x, y, side, tall, side / 2 / 1.66)
                _draw_solid(
                    solid, arrays["example_volume"][index], arrays["example_theta"][index].astype(float), colour
                )
                for j, name, frame in ((0, "example_before", PALE), (1, "example_after", colour)):
                    projection = (arrays[name][index].astype(float) / brightest).clip(0, 1) ** 0.7 * 255
                    tile_y = y + tall + j * (small + gap)
                    tile = sheet.tile(x + (side - small) / 2, tile_y, small, small, small / 2.06)
                    draw_image(tile, projection, frame)
            residuals = pose_left(arrays["theta"][: len(arrays["pose_true"])], arrays["pose_true"][:, :3])
            high = (block - title - 1.26) / 2
            for j, (name, words) in enumerate((("tilt", "tilt"), ("turn", "turn in the picture"))):
                axes = sheet.axes(edge + 0.62, y + 0.28 + j * (high + 0.76), panel, high)
                _draw_angles(axes, residuals[f"{name}_before"], residuals[f"{name}_after"], words, colour)
        n = max(len(record.arrays["pose_true"]) for record in selection.records.values())
        images = f"the first test digit of each class shown; poses of the first {n:,} test volumes"
        sheet.text(
            0.2, height - 0.15, describe_source(selection.records.values(), "ST-CNN, ", images), size=7.5, color=GREY
        )
    return sheet


def _draw_solid(axes: Axes, volume: np.ndarray, theta: np.ndarray, colour: str) -> None:
    """Draw the volume (D, H, W) as a shaded solid in its cube, with the box that theta (12,) places in it."""
    _draw_box(axes, CORNERS, "#B5B5B5", 0.8)
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    image, extent = _shade(volume.astype(float) / 255)
    axes.imshow(image, extent=extent, zorder=2)
    axes.set(**limits, aspect="auto")
    matrix = theta.reshape(3, 4)
    if not np.isfinite(matrix).all():  # from a training that diverged
        return
    corners = CORNERS @ matrix[:, :3].T + matrix[:, 3]
    _draw_box(axes, corners, colour, 1.3)
    face = corners[list(FACE)] @ CAMERA.T
    front = axes.add_patch(Polygon(face[:, :2], facecolor=colour, edgecolor="none", alpha=0.16, zorder=3))
    front.set_clip_box(_room(axes))
    centre, sight = face.mean(0), CAMERA @ matrix[:, 2]
    start = centre - 0.5 * sight / max(float(np.linalg.norm(sight)), 1e-9)
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=centre[:2], xytext=start[:2], arrowprops=arrow, zorder=5, annotation_clip=True)


def _draw_box(axes: Axes, corners: np.ndarray, colour: str, width: float) -> None:
    """Draw the edges of a box. The three at its farthest corner, which it hides, are thin and behind the digit."""
    points = corners @ CAMERA.T
    farthest = int(points[:, 2].argmax())
    for hidden in (True, False):
        lines = [points[list(edge), :2] for edge in EDGES if (farthest in edge) == hidden]
        style = {"linewidths": 0.55 if hidden else width, "alpha": 0.75 if hidden else 1, "zorder": 1 if hidden else 4}
        dashes = (0, (3, 2)) if hidden else "-"
        edges = axes.add_collection(LineCollection(lines, colors=colour, linestyles=dashes, capstyle="round", **style))
        edges.set_clip_box(_room(axes))


def _room(axes: Axes) -> TransformedBbox:
    """The clip region of a box: slightly larger than the axes, as far as the neighbouring axes allow."""
    return TransformedBbox(Bbox([[-0.09, -0.09], [1.09, 1.09]]), axes.transAxes)


def _shade(volume: np.ndarray, dots: int = 120) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The camera's RGBA image (dots, dots, 4) of the surface in a volume (D, H, W), and its extent.

    The image is transparent outside the solid. The extent (left, right, bottom, top) is in the camera's frame.
    """
    smooth = ndimage.gaussian_filter(np.pad(volume, 2), 0.7)
    size = np.array(volume.shape)
    ink = np.argwhere(smooth > SURFACE)
    if not len(ink):
        return np.zeros((1, 1, 4)), (-1, 1, 1, -1)
    projection = ((2 * (ink - 2) + 1) / size - 1)[:, ::-1] @ CAMERA.T
    low, high = projection.min(0) - 4 / size.min(), projection.max(0) + 4 / size.min()
    right, down, away = (np.linspace(*ends, dots) for ends in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(away, down, right, indexing="ij")[::-1]).reshape(3, -1)
    voxels = ((CAMERA.T @ points)[::-1] + 1) * size[:, None] / 2 - 0.5 + 2
    solid = ndimage.map_coordinates(smooth, voxels, order=1).reshape((dots,) * 3) > SURFACE
    visible = solid.any(0)
    # The index of the first point of the solid on each line of sight.
    surface = (solid.argmax(0) * dots**2 + np.arange(dots**2).reshape(dots, dots))[visible]
    slope = np.stack([ndimage.map_coordinates(part, voxels[:, surface], order=1) for part in np.gradient(smooth)[::-1]])
    normal = -CAMERA @ slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-9)
    light = np.array([-0.45, -0.65, -0.61]) @ normal
    image = np.zeros((dots, dots, 4))
    image[visible, :3] = (0.28 + 0.55 * light.clip(0, 1))[:, None]
    image[..., 3] = visible
    return image, (low[0], high[0], high[1], low[1])


def _draw_angles(axes: Axes, before: np.ndarray, after: np.ndarray, name: str, colour: str, reach: float = 90) -> None:
    """Draw the histogram of an angle without the transformer, in grey, and with it, in colour."""
    bins = np.linspace(0, reach, 31)
    for angle, shade, label, y in ((before, GREY, "without", 2), (after, colour, "with", 1)):
        angle = angle[np.isfinite(angle)]
        if not len(angle):
            continue
        share, _ = np.histogram(angle.clip(0, reach), bins)
        axes.stairs(share / len(angle) * 100, bins, fill=True, color=shade, alpha=0.25)
        axes.stairs(share / len(angle) * 100, bins, color=shade, linewidth=1.2)
        words = f"{label}: median {np.median(angle):.0f}°"
        axes.text(0.98, 0.60 + 0.16 * y, words, color=shade, size=8, ha="right", va="center", transform=axes.transAxes)
    axes.set(xlim=(0, reach), ylim=(0, 1.25 * axes.get_ylim()[1]))
    clipped = np.nanmax(np.append(before, after), initial=0) > reach
    axes.set_xticks(np.linspace(0, reach, 4), ["0", "30", "60", "90 and more" if clipped else "90"])
    axes.set_title(name, size=9.5, loc="left", weight="bold", pad=6)
    axes.set_xlabel("degrees")
    axes.set_ylabel("% of volumes", labelpad=2)

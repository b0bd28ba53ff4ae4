"""How tilted and turned a thin digit is in its projection, without and with the transformer."""

from collections.abc import Sequence

import numpy as np

from stn.report.records import Record
from stn.report.statistics import without_constant
from stn.report.table import Grid, Section, Table


def solid_pose(theta: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tilt and turn (n,), in degrees, of a thin digit in the projection behind the transformer.

    `theta` (n, 12) maps the transformer's output to the volume; `turns` (n, 3) are the digit's rotation vectors in
    degrees. The tilt, 0 to 180, is the angle between the line of sight and the digit's normal: at 0 the digit faces the
    viewer, at 90 only its edge is visible. The turn, -180 to 180, is the rotation of its image in the projection. Both
    are nan if theta is not finite or has no inverse.
    """
    from scipy.spatial.transform import Rotation  # imported here because it loads slowly

    linear = np.asarray(theta, float).reshape(-1, 3, 4)[..., :3]
    usable = np.isfinite(linear).all((1, 2))
    usable[usable] = np.abs(np.linalg.det(linear[usable])) > 1e-9
    linear = np.where(usable[:, None, None], linear, np.eye(3))
    digit = Rotation.from_rotvec(np.asarray(turns, float), degrees=True).as_matrix()
    sight = linear[..., 2] / np.linalg.norm(linear[..., 2], axis=1, keepdims=True)
    tilt = np.degrees(np.arccos((sight * digit[..., 2]).sum(1).clip(-1, 1)))
    plane = np.linalg.solve(linear, digit)[:, :2, :2]  # from the digit's plane to the projection's
    turn = np.degrees(np.arctan2(plane[:, 1, 0] - plane[:, 0, 1], plane[:, 0, 0] + plane[:, 1, 1]))
    return np.where(usable, tilt, np.nan), np.where(usable, turn, np.nan)


def pose_left(theta: np.ndarray, turns: np.ndarray) -> dict[str, np.ndarray]:
    """The tilt and turn (n,) of digits "before" (without) and "after" (with) the transformer, as in `solid_pose`.

    A turn is given as the distance from the turn to which the network brings all digits, which the network may choose.
    """
    residuals: dict[str, np.ndarray] = {}
    for when, thetas in (("before", np.broadcast_to(np.eye(3, 4).ravel(), (len(turns), 12))), ("after", theta)):
        tilt, turn = solid_pose(thetas, turns)
        finite = np.isfinite(turn)
        if finite.any():
            turn[finite] = np.abs(without_constant(np.zeros(finite.sum()), turn[finite], "angle")[1])
        residuals |= {f"tilt_{when}": tilt, f"turn_{when}": turn}
    return residuals


def describe_poses(table: Table, records: Sequence[Record]) -> Section | None:
    """The section of the poses without and with the transformer; None if no network has a transformer."""
    body, n = [], 0
    for record in records:
        if record.row.transformer:
            true = record.arrays["pose_true"]
            n = max(n, len(true))
            residuals = pose_left(record.arrays["theta"][: len(true)], true[:, :3])
            angles = [residuals[f"{name}_{when}"] for name in ("tilt", "turn") for when in ("before", "after")]
            medians = (f"{np.nanmedian(angle):.1f}" for angle in angles)
            body.append([record.row.label, record.column.label, *medians])
    if not body:
        return None
    text = (
        "The tilt is the angle between the line of sight and the digit's normal: at 0 degrees it faces the viewer, at "
        "90 only its edge is seen. The turn is how far its image is rotated in the projection, from the pose "
        "to which the network turns its digits. Medians in degrees, without and with the transformer, of the first "
        f"{n:,} test volumes and the first seed."
    )
    head = ["model", "column", "tilt without", "with", "turn without", "with"]
    return Section("How much of the pose is undone", [text, Grid(head, body, "llrrrr")])

"""Distorted MNIST test digits made by scipy and OpenCV alone: no code of the project takes part.

The laws are those of the paper (section 4.1, appendix A.4) in the readings that `docs/experiments/mnist.md` gives.
Images are float32 in [0, 1], (n, 1, side, side).
"""

import gzip
from pathlib import Path

import cv2
import numpy as np
from scipy import interpolate, ndimage

SIDE = 28
CENTRE = (SIDE - 1) / 2
CORNERS = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]]) - 0.5  # of the frame, in pixel indices: clockwise


def read_digits(folder: Path, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Every `step`-th test digit, (n, 28, 28) in [0, 1], and its label."""
    images = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    digits = np.frombuffer(images, np.uint8).reshape(-1, SIDE, SIDE)
    return (digits[::step] / 255).astype(np.float32), np.frombuffer(labels, np.uint8)[::step].astype(np.int64)


def rotate(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """R: rotation by U(-90, 90) degrees."""
    return ndimage.rotate(digit, rng.uniform(-90, 90), reshape=False, order=1)


def place(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RTS: rotation by U(-45, 45) degrees, scale U(0.7, 1.2), the scaled frame anywhere within 42 x 42."""
    side, scale = 42, rng.uniform(0.7, 1.2)
    matrix = cv2.getRotationMatrix2D((CENTRE, CENTRE), rng.uniform(-45, 45), scale)
    room = (side - scale * SIDE) / 2
    matrix[:, 2] += (side - SIDE) / 2 + rng.uniform(-room, room, 2)
    return cv2.warpAffine(digit, matrix, (side, side), flags=cv2.INTER_LINEAR)


def project(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """P: scale U(0.75, 1), the corners of the frame moved by N(0, 5 px), until they are those of a convex shape."""
    scale, moved = rng.uniform(0.75, 1), CORNERS
    while moved is CORNERS or not (cv2.isContourConvex(moved) and cv2.contourArea(moved, oriented=True) > 0):
        moved = (CORNERS + rng.normal(0, 5, (4, 2))).astype(np.float32)
    back = cv2.getPerspectiveTransform(moved, zoomed(CORNERS, scale).astype(np.float32))  # from image to digit
    return cv2.warpPerspective(digit, back, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def bend(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """E: scale U(0.75, 1), the 16 control points of a thin plate spline moved by N(0, 1.5 px)."""
    points = zoomed(KNOTS + rng.normal(0, 1.5, (16, 2)), rng.uniform(0.75, 1))
    x, y = (SPLINE @ points).T.reshape(2, SIDE, SIDE)
    return ndimage.map_coordinates(digit, [y, x], order=1)


def zoomed(points: np.ndarray, scale: float) -> np.ndarray:
    """Where points (n, 2) of the image, in pixel indices, are in the digit that is shown `scale` times as large."""
    return (points - CENTRE) / scale + CENTRE


def _axes(values: np.ndarray) -> np.ndarray:
    """(n n, 2): x and y of a square lattice."""
    return np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)


KNOTS = _axes((np.arange(4) + 0.5) * SIDE / 4 - 0.5)  # the centres of 4 x 4 tiles of the image
SPLINE = interpolate.RBFInterpolator(KNOTS, np.eye(16), kernel="thin_plate_spline", degree=1)(_axes(np.arange(SIDE)))
MAKERS = {"mnist_r": rotate, "mnist_rts": place, "mnist_p": project, "mnist_e": bend}


def distorted(data: str, digits: np.ndarray, seed: int) -> np.ndarray:
    """Each digit, distorted anew: (n, 1, side, side)."""
    rng = np.random.default_rng(seed)
    return np.stack([MAKERS[data](digit, rng) for digit in digits])[:, None].clip(0, 1).astype(np.float32)

"""Transformations T_theta and the sampling grids they lay on an image (paper, section 3.2, equation 1).

One frame everywhere: normalised coordinates (x, y), x to the right and y down, in which [-1, 1] spans the image from
outer edge to outer edge (`align_corners=False` in torch's words), so the centre of pixel j of W lies at
(2j + 1) / W - 1. A transformation maps a point of the *target* (output) to the point of the *source* (input) that is
sampled there.

In volumes there is a third coordinate, (x, y, z), z away from the viewer: [-1, 1] spans the depth from the front face
to the back, and the centre of layer k of D lies at (2k + 1) / D - 1.

Shapes: B batch, P parameters of theta, N points, H W target size (of volumes D H W), K control points; a trailing 2 is
(x, y), a trailing 3 (x, y, z).
Half precision is raised to float32 before any of this arithmetic, also under autocast; float32 and float64 are kept.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor

HORIZON = 1e-6  # a projective denominator nearer to zero than this is moved out to it


class Transformation:
    """A family T_theta, one theta of shape (P,) for each image of a batch.

    Attributes:
        n_parameters: P, the length of theta.
    """

    n_parameters: int

    def identity(self) -> Tensor:
        """The theta of shape (P,), float32, for which target and source points agree."""
        raise NotImplementedError

    def points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Source points (B, N, 2) of the target points (N, 2) or (B, N, 2) under theta (B, P)."""
        theta = self._checked(theta)
        with full_precision(theta):
            return self._points(theta, points.to(theta))

    def grid(self, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        """The sampling grid T_theta(G), shape (B, H, W, 2), for a target of `size` (H, W) pixels; theta is (B, P).

        Of a family for volumes: (B, D, H, W, 3) for a target of (D, H, W) voxels.
        """
        theta = self._checked(theta)
        with full_precision(theta):
            return self._grid(theta, size).view(-1, *size, len(size))

    def _grid(self, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        return self._points(theta, pixel_centres(size, theta.dtype, theta.device))

    def _points(self, theta: Tensor, points: Tensor) -> Tensor:
        raise NotImplementedError

    def _checked(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[1] != self.n_parameters:
            raise ValueError(
                f"{type(self).__name__} takes theta of shape (B, {self.n_parameters}), not {tuple(theta.shape)}"
            )
        return theta.float() if theta.dtype in (torch.float16, torch.bfloat16) else theta

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MatrixTransformation(Transformation):
    """A family whose maps are matrices on homogeneous points: 3x3 on (x, y, 1), of volumes 4x4 on (x, y, z, 1)."""

    def matrix(self, theta: Tensor) -> Tensor:
        """Theta (B, P) as matrices (B, 3, 3), of volumes (B, 4, 4)."""
        rows = self._rows(theta)
        last = rows.new_tensor([0.0] * (rows.shape[2] - 1) + [1.0]).expand(len(rows), 1, -1)
        return torch.cat([rows, last], 1)

    def _rows(self, theta: Tensor) -> Tensor:
        """The rows of A, (B, 2, 3), of volumes (B, 3, 4)."""
        raise NotImplementedError

    def _points(self, theta: Tensor, points: Tensor) -> Tensor:
        return _mapped(self._rows(theta), points)


class Translation(MatrixTransformation):
    """theta = (tx, ty): a window of fixed size that moves, A = [[scale, 0, tx], [0, scale, ty]].

    The transformation of the paper's birds (section 4.3) with `scale=0.5`. `scale` is the window's side as a fraction
    of the image's.
    """

    n_parameters = 2

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def identity(self) -> Tensor:
        return torch.zeros(2)

    def _rows(self, theta: Tensor) -> Tensor:
        tx, ty = theta.unbind(1)
        scale = torch.full_like(tx, self.scale)
        return _matrix((scale, 0, tx), (0, scale, ty))

    def __repr__(self) -> str:
        return f"Translation(scale={self.scale})"


class Attention(MatrixTransformation):
    """theta = (s, tx, ty): isotropic scale and translation, A = [[s, 0, tx], [0, s, ty]] (equation 2)."""

    n_parameters = 3

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0])

    def _rows(self, theta: Tensor) -> Tensor:
        s, tx, ty = theta.unbind(1)
        return _matrix((s, 0, tx), (0, s, ty))


class Similarity(MatrixTransformation):
    """theta = (a, b, tx, ty): rotation and isotropic scale, A = [[a, -b, tx], [b, a, ty]], scale = hypot(a, b)."""

    n_parameters = 4

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])

    def _rows(self, theta: Tensor) -> Tensor:
        a, b, tx, ty = theta.unbind(1)
        return _matrix((a, -b, tx), (b, a, ty))


class Affine(MatrixTransformation):
    """theta = the rows of the 2x3 matrix A (equation 1)."""

    n_parameters = 6

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def _rows(self, theta: Tensor) -> Tensor:
        return theta.view(-1, 2, 3)


class Affine3D(MatrixTransformation):
    """theta = the rows of the 3x4 matrix A, for volumes (paper, appendix A.3): points are (x, y, z)."""

    n_parameters = 12

    def identity(self) -> Tensor:
        return torch.eye(3, 4).flatten()

    def _rows(self, theta: Tensor) -> Tensor:
        return theta.view(-1, 3, 4)


class Projective(MatrixTransformation):
    """theta = the first eight entries, row by row, of a homography whose ninth is 1.

    A denominator closer to zero than `HORIZON` is moved out to it, so that no point is infinite and no gradient NaN.
    """

    n_parameters = 8

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])

    def matrix(self, theta: Tensor) -> Tensor:
        return torch.cat([theta, torch.ones_like(theta[:, :1])], 1).view(-1, 3, 3)

    def _points(self, theta: Tensor, points: Tensor) -> Tensor:
        matrix = self.matrix(theta)
        w = _mapped(matrix[:, 2:], points)  # by itself: its gradient need not be woven into that of x and y
        w = torch.where(w.abs() < HORIZON, torch.full_like(w, HORIZON).copysign(w), w)
        return _mapped(matrix[:, :2], points) / w


class ThinPlateSpline(Transformation):
    """theta = the source positions (x, y) of a regular k x k grid of target control points, row by row: P = 2 k^2.

    The control points span [-1, 1] from edge to edge. Between them the map is the interpolating thin plate spline,
    f(p) = a0 + ax x + ay y + sum_i w_i |p - c_i|^2 log |p - c_i|, that bends least. The linear system is the same for
    every theta, so it is solved once, in float64, and a grid is one matrix product.
    """

    def __init__(self, k: int = 4):
        if k < 2:
            raise ValueError(f"a thin plate spline needs k >= 2 control points a side, not {k}")
        self.k = k
        self.n_parameters = 2 * k * k

    def identity(self) -> Tensor:
        return control_points(self.k).float().flatten()

    def _points(self, theta: Tensor, points: Tensor) -> Tensor:
        return _combined(_spline_weights(self.k, points), theta.view(-1, self.k**2, 2))

    def _grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        weights = _spline_weights_of_pixels(self.k, size, theta.dtype, theta.device)
        return _combined(weights, theta.view(-1, self.k**2, 2))

    def __repr__(self) -> str:
        return f"ThinPlateSpline(k={self.k})"


def homography_through(source: Tensor, target: Tensor) -> Tensor:
    """The projective theta (B, 8) that maps four target points (B, 4, 2) to four source points (B, 4, 2).

    Solves the 8x8 linear system in the points' own precision; no three of the points may lie on a line.
    """
    x, y = target.unbind(-1)
    u, v = source.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    return torch.linalg.solve(torch.cat([rows_u, rows_v], 1), torch.cat([u, v], 1))


def full_precision(like: Tensor) -> AbstractContextManager:
    """No autocast on the tensor's device. Entering that costs as much as a small grid, so only where there is any."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@lru_cache(maxsize=64)
def pixel_centres(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The regular grid G: centres of an H x W image's pixels, (H W, 2), row by row. Cached: do not write to it.

    Of a D x H x W volume: (D H W, 3), layer by layer.
    """
    with torch.inference_mode(False):  # a tensor made under inference mode could not take part in training later
        axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).view(-1, len(size))
        return grid.to(device, dtype)


def control_points(k: int) -> Tensor:
    """The k x k target control points of a thin plate spline, (k k, 2), row by row, float64, on [-1, 1]."""
    axis = torch.linspace(-1, 1, k, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)


def _radial(points: Tensor, centres: Tensor) -> Tensor:
    """|p - c|^2 log |p - c|^2 for all pairs, (..., N, K). The kernel's limit at distance 0 is 0, not 0 log 0."""
    squared = (points[..., :, None, :] - centres).square().sum(-1)
    return torch.special.xlogy(squared, squared.clamp_min(torch.finfo(squared.dtype).tiny))


@lru_cache(maxsize=16)
def _spline_solution(k: int) -> Tensor:
    """What the K control values contribute to the K + 3 spline coefficients, (K + 3, K), float64."""
    with torch.inference_mode(False):
        centres = control_points(k)
        n = k * k
        system = torch.zeros(n + 3, n + 3, dtype=torch.float64)
        system[:n, :n] = _radial(centres, centres)
        system[:n, n] = system[n, :n] = 1
        system[:n, n + 1 :] = centres
        system[n + 1 :, :n] = centres.T
        return torch.linalg.inv(system)[:, :n].contiguous()


def _spline_weights(k: int, points: Tensor) -> Tensor:
    """How much each control point weighs at each target point, (..., N, K), in the points' precision.

    The weights are worked out in float64: float32 would cost one digit of the source points at k = 5, two at k = 8.
    """
    p = points.double()
    basis = torch.cat([_radial(p, control_points(k).to(p)), torch.ones_like(p[..., :1]), p], -1)
    return (basis @ _spline_solution(k).to(p)).to(points.dtype)


@lru_cache(maxsize=64)
def _spline_weights_of_pixels(k: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _spline_weights(k, pixel_centres(size, torch.float64, torch.device("cpu"))).to(device, dtype)


def _combined(weights: Tensor, values: Tensor) -> Tensor:
    """weights (N, K) or (B, N, K) @ values (B, K, D): shape (B, N, D).

    Weights that all images share take one product for the whole batch; a batch of thin ones is slow.
    """
    if weights.ndim == 3:
        return weights @ values
    return (values.mT.flatten(0, 1) @ weights.mT).unflatten(0, (len(values), values.shape[2])).mT


def _mapped(rows: Tensor, points: Tensor) -> Tensor:
    """rows (B, R, 3) on homogeneous points (N, 2) or (B, N, 2): shape (B, N, R). One product, as in `_combined`.

    In volumes rows are (B, R, 4) and points have three coordinates.
    """
    linear, offset = rows[..., :-1], rows[..., -1:]
    if points.ndim == 3:
        return points @ linear.mT + offset.mT
    return torch.addmm(offset.flatten(0, 1), linear.flatten(0, 1), points.mT).unflatten(0, rows.shape[:2]).mT


def _matrix(*rows: tuple) -> Tensor:
    """Rows of tensors (B,) or zeros as (B, R, 3)."""
    like = next(entry for entry in rows[0] if isinstance(entry, Tensor))
    zero = torch.zeros_like(like)
    entries = [entry if isinstance(entry, Tensor) else zero for row in rows for entry in row]
    return torch.stack(entries, 1).view(-1, len(rows), 3)

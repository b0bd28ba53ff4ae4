"""Transformations T_theta and the sampling grids they lay on an image (paper, section 3.2, equation 1).

One frame everywhere: normalised coordinates (x, y), x to the right and y down, in which [-1, 1] spans the image from
outer edge to outer edge (torch's `align_corners=False`), so the centre of pixel j of W lies at (2j + 1) / W - 1. A
transformation maps each point of the *target* (output) to the point of the *source* (input) that is sampled there.

In volumes there is a third coordinate, (x, y, z), z away from the viewer: [-1, 1] spans the depth from the front face
to the back, and the centre of layer k of D lies at (2k + 1) / D - 1.

Angles are measured in pixels. Normalised coordinates stretch an image that is not square, so the families that rotate
(`Rotation`, `Similarity`) do so in pixels of the source; translations stay in normalised coordinates. There the matrix
[[a, -b], [b, a]] becomes [[a, -b H / W], [b W / H, a]], with H and W of the *source*, given as `source_size`. Without
it, `grid` assumes that the source has the target's size, and `matrix` and `points` assume a square source. The other
families do not depend on it. [-1, 1] spans both images, so a target of another aspect ratio than the source's stretches
the image even at the identity: a scale is isotropic in pixels only if the aspect ratios agree.

Shapes: B batch, P parameters of theta, N points, H W target size (of volumes D H W), K control points; a trailing 2 is
(x, y), a trailing 3 (x, y, z). A size is (H, W), of volumes (D, H, W), or one integer for all sides.
Half precision is raised to float32 before any of this arithmetic, also under autocast; float32 and float64 are kept.

All device types of torch are meant to work. CPU and CUDA are tested; meta and fake tensors are tested for shapes and
types. For a device without float64 (MPS) the CPU computes a spline's weights. Nothing was ever run on MPS, XLA, XPU or
another type of device.
"""

import math
import operator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from stn.geometry.constants import constant
from stn.geometry.inverses import invert_matrices, rounding, times
from stn.geometry.splines import control_points, invert_spline, spline_constants, spline_weights

CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))  # of the frame, clockwise from the top left
HORIZON = 1e-6  # a projective denominator nearer to zero than this is moved out to it

Size = int | tuple[int, ...]


class Transformation:
    """A family T_theta, one theta of shape (P,) for each image of a batch.

    A new family defines the attributes, `identity`, `_points`, and `_inverse_points` if there is an inverse. The latter
    two get arguments that are checked and of one type, float32 or float64; `aspect` is the source's H / W.

    Attributes:
        n_parameters: P, the length of theta.
        dimensions: of the points: 2, or 3 for volumes.
    """

    n_parameters: int
    dimensions: int = 2

    def identity(self) -> Tensor:
        """The theta of shape (P,), float32, for which target and source points agree."""
        raise NotImplementedError

    def points(self, theta: Tensor, points: Tensor, source_size: Size | None = None) -> Tensor:
        """Source points (B, N, 2) of the target points (N, 2) or (B, N, 2) under theta (B, P)."""
        theta, points, aspect = self._checked(theta), self._checked_points(points), self._aspect(source_size)
        with full_precision(theta):
            return self._points(theta, points.to(theta), aspect)

    def grid(self, theta: Tensor, size: Size, source_size: Size | None = None) -> Tensor:
        """The sampling grid T_theta(G), shape (B, H, W, 2), for a target of `size` (H, W) pixels; theta is (B, P).

        Of a family for volumes: (B, D, H, W, 3) for a target of (D, H, W) voxels.
        """
        theta, size = self._checked(theta), check_size(size, self.dimensions)
        aspect = size[-2] / size[-1] if source_size is None else self._aspect(source_size)
        with full_precision(theta):
            return self._grid(theta, size, aspect).view(-1, *size, self.dimensions)

    def inverse_points(self, theta: Tensor, points: Tensor, source_size: Size | None = None) -> Tensor:
        """Target points (B, N, 2) that show the source points (N, 2) or (B, N, 2): the inverse of `points`.

        NaN where there is no inverse (see each family); gradients through such a point are zero.
        """
        theta, points, aspect = self._checked(theta), self._checked_points(points), self._aspect(source_size)
        with full_precision(theta):
            return self._inverse_points(theta, points.to(theta), aspect)

    def inverse_grid(self, theta: Tensor, size: Size, source_size: Size | None = None) -> Tensor:
        """The grid (B, H, W, 2) that brings the target back into the source's frame, of `size` (H, W) pixels.

        `sampler(V, inverse_grid(theta, U.shape[2:]))` has V at the part of U that V shows. `source_size` is the size of
        the image that theta was predicted for, if it is not `size`. NaN where `inverse_points` is.
        """
        theta, size = self._checked(theta), check_size(size, self.dimensions)
        centres = pixel_centres(size, theta.dtype, theta.device)
        points = self.inverse_points(theta, centres, size if source_size is None else source_size)
        return points.reshape(-1, *size, self.dimensions)

    def _grid(self, theta: Tensor, size: tuple[int, ...], aspect: float) -> Tensor:
        return self._points(theta, pixel_centres(size, theta.dtype, theta.device), aspect)

    def _points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        raise NotImplementedError

    def _inverse_points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def _checked(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or (not torch.jit.is_tracing() and theta.shape[1] != self.n_parameters):  # traced sizes warn
            shape = f"(B, {self.n_parameters})"
            raise ValueError(f"{type(self).__name__} takes theta of shape {shape}, not {tuple(theta.shape)}")
        if not theta.is_floating_point():
            raise ValueError(f"{type(self).__name__} takes theta in floating point, not {theta.dtype}")
        return theta.float() if theta.dtype in (torch.float16, torch.bfloat16) else theta

    def _checked_points(self, points: Tensor) -> Tensor:
        if points.ndim not in (2, 3) or points.shape[-1] != self.dimensions:
            shapes = f"(N, {self.dimensions}) or (B, N, {self.dimensions})"
            raise ValueError(f"{type(self).__name__} takes points of shape {shapes}, not {tuple(points.shape)}")
        return points

    def _aspect(self, source_size: Size | None) -> float:
        """H / W of the source; 1 if it is not known."""
        if source_size is None:
            return 1.0
        height, width = check_size(source_size, self.dimensions)[-2:]
        return height / width

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MatrixTransformation(Transformation):
    """A family whose maps are matrices on homogeneous points: 3x3 on (x, y, 1), of volumes 4x4 on (x, y, z, 1).

    The inverse is exact. It is NaN where the matrix is singular: where its determinant is 0 but for rounding.
    """

    def matrix(self, theta: Tensor, source_size: Size | None = None) -> Tensor:
        """Theta (B, P) as matrices (B, 3, 3), of volumes (B, 4, 4)."""
        rows = self._rows(self._checked(theta), self._aspect(source_size))
        last = rows.new_tensor([0.0] * (rows.shape[2] - 1) + [1.0]).expand(rows.shape[0], 1, -1)
        return torch.cat([rows, last], 1)

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        """The rows of A, (B, 2, 3), of volumes (B, 3, 4)."""
        raise NotImplementedError

    def _grid(self, theta: Tensor, size: tuple[int, ...], aspect: float) -> Tensor:
        single = _single(theta)
        return _mapped_centres(self._rows(theta, aspect), size) if single else super()._grid(theta, size, aspect)

    def _points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        return _mapped(self._rows(theta, aspect), points)

    def _inverse_points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        rows = self._rows(theta, aspect)
        inverse, determinant = invert_matrices(rows[..., :-1])
        target = _mapped(torch.cat([inverse, -inverse @ rows[..., -1:]], 2), points)
        return target.masked_fill((determinant == 0)[:, None, None], torch.nan)


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

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
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

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        s, tx, ty = theta.unbind(1)
        return _matrix((s, 0, tx), (0, s, ty))


class Crop(MatrixTransformation):
    """theta = (sx, sy, tx, ty): an axis-aligned rectangle, A = [[sx, 0, tx], [0, sy, ty]].

    sx and sy are its sides as fractions of the image's width and height.
    """

    n_parameters = 4

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 1.0, 0.0, 0.0])

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        sx, sy, tx, ty = theta.unbind(1)
        return _matrix((sx, 0, tx), (0, sy, ty))


class Rotation(MatrixTransformation):
    """theta = (angle,), in radians, about the centre of the image: a rotation in pixels, and nothing else.

    A positive angle turns the sampling grid clockwise on the screen, so the content of the target turns
    counter-clockwise, as with `cv2.getRotationMatrix2D`.
    """

    n_parameters = 1

    def identity(self) -> Tensor:
        return torch.zeros(1)

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        cos, sin = torch.cos(theta[:, 0]), torch.sin(theta[:, 0])
        return _matrix((cos, -sin * aspect, 0), (sin / aspect, cos, 0))


class Similarity(MatrixTransformation):
    """theta = (a, b, tx, ty): rotation and isotropic scale hypot(a, b) in pixels, and translation.

    A = [[a, -b H / W, tx], [b W / H, a, ty]], with H and W of the source. The grid turns by atan2(b, a) clockwise on
    the screen, so the content of the target turns counter-clockwise.
    """

    n_parameters = 4

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        a, b, tx, ty = theta.unbind(1)
        return _matrix((a, -b * aspect, tx), (b / aspect, a, ty))


class Affine(MatrixTransformation):
    """theta = the rows of the 2x3 matrix A (equation 1)."""

    n_parameters = 6

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        return theta.view(-1, 2, 3)


class Affine3D(MatrixTransformation):
    """theta = the rows of the 3x4 matrix A, for volumes (paper, appendix A.3): points are (x, y, z)."""

    n_parameters = 12
    dimensions = 3

    def identity(self) -> Tensor:
        return torch.eye(3, 4).flatten()

    def _rows(self, theta: Tensor, aspect: float) -> Tensor:
        return theta.view(-1, 3, 4)


class Projective(MatrixTransformation):
    """theta = the first eight entries, row by row, of a homography whose ninth is 1.

    A denominator closer to zero than `HORIZON` is moved out to it, so that no point is infinite and no gradient NaN.
    The inverse of a point is also NaN if it lies at infinity.
    """

    n_parameters = 8

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])

    def matrix(self, theta: Tensor, source_size: Size | None = None) -> Tensor:
        theta = self._checked(theta)
        return torch.cat([theta, torch.ones_like(theta[:, :1])], 1).view(-1, 3, 3)

    def _grid(self, theta: Tensor, size: tuple[int, ...], aspect: float) -> Tensor:
        if not _single(theta):
            return super()._grid(theta, size, aspect)
        points, w = _mapped_centres(self.matrix(theta), size).split((2, 1), -1)
        return points / _away_from_zero(w)  # type: ignore[no-any-return]

    def _points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        matrix = self.matrix(theta)
        w = _mapped(matrix[:, 2:], points)  # apart from x and y, so that no gradients are interleaved
        return _mapped(matrix[:, :2], points) / _away_from_zero(w)

    def _inverse_points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        inverse, _ = invert_matrices(self.matrix(theta))
        w = _mapped(inverse[:, 2:], points)
        lost = w.abs() <= rounding(_mapped(inverse[:, 2:].abs(), points.abs()))  # all of them, if it is singular
        return (_mapped(inverse[:, :2], points) / w.masked_fill(lost, 1)).masked_fill(lost, torch.nan)


class ThinPlateSpline(Transformation):
    """theta = the source positions (x, y) of a regular k x k grid of target control points, row by row: P = 2 k^2.

    The control points span [-1, 1] from edge to edge. Between them the map is the interpolating thin plate spline,
    f(p) = a0 + ax x + ay y + sum_i w_i |p - c_i|^2 log |p - c_i|, that bends least. The linear system is the same for
    every theta, so it is solved once, in float64, and a grid is one matrix product.

    Its inverse is computed by Newton's method, to the precision of theta, and has first derivatives only. It is NaN if
    the iteration does not converge, or converges where the spline is folded over (where its Jacobian's determinant has
    another sign than that of its affine part). If several target points show one source point: one of them, or NaN.
    """

    def __init__(self, k: int = 4):
        if not hasattr(k, "__index__") or k < 2:
            raise ValueError(f"a thin plate spline needs k >= 2 control points a side, not {k}")
        self.k = k
        self.n_parameters = 2 * k * k

    def identity(self) -> Tensor:
        return control_points(self.k).float().flatten()

    def _points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        return _combined(spline_weights(self.k, points), theta.view(-1, self.k**2, 2))

    def _grid(self, theta: Tensor, size: tuple[int, ...], aspect: float) -> Tensor:
        shape = math.prod(size), self.k**2
        weights = constant(_pixel_weights, (self.k, tuple(size)), shape, theta.dtype, theta.device)
        return _combined(weights, theta.view(-1, self.k**2, 2))

    def _inverse_points(self, theta: Tensor, points: Tensor, aspect: float) -> Tensor:
        with torch.no_grad():
            controls = theta.view(-1, self.k**2, 2)
            target, inverse, lost = invert_spline(controls, points, *spline_constants(self.k, theta.device))
        # One step more, which autograd sees: the derivative of the inverse is the inverse of the derivative.
        residual = points - self._points(theta, target, aspect)
        return (target + times(inverse, residual)).masked_fill(lost, torch.nan)

    def __repr__(self) -> str:
        return f"ThinPlateSpline(k={self.k})"


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Turns autocast off on the tensor's device. That costs as much as a small grid, so only where autocast is on."""
    kind = like.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # meta, for one, has none
    return torch.autocast(kind, enabled=False) if autocast else nullcontext()


def pixel_centres(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The regular grid G: centres of an H x W image's pixels, (H W, 2), row by row. Cached: do not write to it.

    Of a D x H x W volume: (D H W, 3), layer by layer.
    """
    return constant(_pixel_centres, (tuple(size),), (math.prod(size), len(size)), dtype, device)


def _pixel_centres(size: tuple[int, ...], device: torch.device) -> Tensor:
    axes = [(2 * torch.arange(n, dtype=torch.float64, device=device) + 1) / n - 1 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).view(-1, len(size))


def _pixel_weights(k: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """The weights of all pixel centres, (H W, K), float64."""
    return spline_weights(k, _pixel_centres(size, device))


def _combined(weights: Tensor, values: Tensor) -> Tensor:
    """weights (N, K) or (B, N, K) @ values (B, K, D): shape (B, N, D).

    Weights that all images share take one product for the whole batch; a batch of thin products is slow.
    """
    if weights.ndim == 3:
        return weights @ values
    return (values.mT.flatten(0, 1) @ weights.mT).unflatten(0, (values.shape[0], values.shape[2])).mT  # type: ignore[no-any-return]


def _homogeneous_centres(size: tuple[int, ...], device: torch.device) -> Tensor:
    centres = _pixel_centres(size, device)
    return torch.cat([centres, torch.ones_like(centres[:, :1])], 1).mT.contiguous()


def _single(theta: Tensor) -> bool:
    return not torch.jit.is_tracing() and theta.shape[0] == 1


def _mapped_centres(rows: Tensor, size: tuple[int, ...]) -> Tensor:
    """`_mapped` of pixel centres, (B, H W, R), in fewer operations: for one image these cost more than the arithmetic.

    Values and gradients may be rounded differently.
    """
    shape = len(size) + 1, math.prod(size)
    centres = constant(_homogeneous_centres, (tuple(size),), shape, rows.dtype, rows.device)
    return (rows.flatten(0, 1) @ centres).unflatten(0, rows.shape[:2]).mT  # type: ignore[no-any-return]


def _away_from_zero(w: Tensor) -> Tensor:
    """Denominators, moved out to `HORIZON` where they are closer to zero; there they have no gradient."""
    d = w.detach()  # not copysign, which ONNX does not have
    return torch.where(d.abs() < HORIZON, torch.where(d < 0, d.new_full((), -HORIZON), HORIZON), w)


def _mapped(rows: Tensor, points: Tensor) -> Tensor:
    """rows (B, R, 3) on homogeneous points (N, 2) or (B, N, 2): shape (B, N, R). One product, as in `_combined`.

    In volumes rows are (B, R, 4) and points have three coordinates.
    """
    linear, offset = rows[..., :-1], rows[..., -1:]
    if points.ndim == 3:
        return points @ linear.mT + offset.mT
    return torch.addmm(offset.flatten(0, 1), linear.flatten(0, 1), points.mT).unflatten(0, rows.shape[:2]).mT  # type: ignore[no-any-return]


def check_size(size: Size, dimensions: int = 2) -> tuple[int, ...]:
    """`size` as (H, W), of volumes (D, H, W); one integer stands for all sides. A ValueError if it is no size."""
    try:
        sides: tuple[Any, ...] = tuple(size)  # type: ignore[arg-type]  # of an integer: a TypeError
    except TypeError:
        sides = (size,) * dimensions
    sides = tuple(_side(side) for side in sides)
    if len(sides) != dimensions or any(side is None for side in sides):
        names = "(D, H, W)" if dimensions == 3 else "(H, W)"
        raise ValueError(f"a size is a positive integer or {dimensions} of them, {names}, not {size!r}")
    return sides


def _side(side: Any) -> int | None:
    """A positive integer, or None. A symbolic one, in a graph that is being recorded, is returned as it is."""
    if isinstance(side, torch.SymInt) or (isinstance(side, Tensor) and torch.jit.is_tracing()):
        return side  # type: ignore[return-value]  # an int to whoever counts with it
    if not isinstance(side, int):
        try:
            side = operator.index(side)
        except TypeError:
            return None
    return None if isinstance(side, bool) or side < 1 else side


def _matrix(*rows: tuple[Tensor | float, ...]) -> Tensor:
    """Rows of tensors (B,) or zeros as (B, R, 3)."""
    like = next(entry for entry in rows[0] if isinstance(entry, Tensor))
    zero = torch.zeros_like(like)
    entries = [entry if isinstance(entry, Tensor) else zero for row in rows for entry in row]
    return torch.stack(entries, 1).view(-1, len(rows), 3)

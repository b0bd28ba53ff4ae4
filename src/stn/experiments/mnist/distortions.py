"""The distortions of the paper's digits: R, RTS, P, E and TC (section 4.1 and appendix A.4).

A distortion is a sampling grid with a random theta, from the same families as a transformer's: the grid maps each pixel
of the canvas to a point of the digit. Frames and shapes as in `stn.geometry.transforms`. "Canvas" points are in the
frame of the distorted image, "digit" points in that of the undistorted one. Lengths in pixels are of the canvas.

Parameters are rounded to float32 before they are used, so the stored parameters are exactly those of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from stn.experiments.mnist.config import POSE
from stn.geometry.constants import constant
from stn.geometry.inverses import homography_through
from stn.geometry.sampling import bilinear
from stn.geometry.splines import control_points, spline_weights
from stn.geometry.transforms import CORNERS, Affine, Projective, ThinPlateSpline, pixel_centres

INVERSIONS = 20  # iterations for the inverse of a spline; the tests bound the remaining error
REDRAWS = 16  # candidates for each projective image; all of them fail about once in 1e20 draws


@dataclass(frozen=True)
class Distortion:
    """A random family of warps of a square digit onto a square canvas.

    Attributes:
        canvas: side of the distorted image in pixels.
        digit: side of the undistorted one.
    """

    canvas: int
    digit: int

    @property
    def names(self) -> list[str]:
        """The names of the parameters' columns."""
        raise NotImplementedError

    @property
    def pose_names(self) -> list[str]:
        """The columns that vary and that a rotation, scale and location can undo; see `found_pose`."""
        return []

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw parameters (n, D), float32, on the generator's device; random numbers are drawn in `dtype`."""
        return self.parameters(*self.chances(n, generator, dtype))

    def chances(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The random numbers of n draws: tensors (n, ...) in `dtype`. Those of several draws may be concatenated."""
        raise NotImplementedError

    def parameters(self, *chances: Tensor) -> Tensor:
        """The parameters (n, D), float32, as a function of the random numbers `chances`."""
        raise NotImplementedError

    def digit_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        """Digit points (n, N, 2) that appear at the canvas points (N, 2) or (n, N, 2)."""
        raise NotImplementedError

    def grid(self, parameters: Tensor) -> Tensor:
        """The digit points of all canvas pixels, (n, canvas, canvas, 2), in the parameters' precision."""
        raise NotImplementedError

    def inverse_grid(self, parameters: Tensor) -> Tensor:
        """The canvas points at which all digit pixels appear, (n, digit, digit, 2)."""
        raise NotImplementedError

    def undone(self, parameters: Tensor, images: Tensor) -> Tensor:
        """The digits (n, 1, digit, digit), sampled from distorted `images` (n, 1, canvas, canvas); bilinear."""
        return bilinear(images, self.inverse_grid(parameters.to(images)))

    def render(self, parameters: Tensor, digits: Tensor, pool: Tensor | None = None) -> Tensor:
        """Distorted images (n, 1, canvas, canvas) in [0, 1] of `digits` (n, digit, digit), uint8.

        Sampling is bilinear, in the parameters' precision; the background is 0. Clutter is cut from `pool` (m, digit,
        digit), uint8; only TC uses it.
        """
        return bilinear(digits[:, None].to(parameters) / 255, self.grid(parameters))


@dataclass(frozen=True)
class Pose(Distortion):
    """Rotation, scale and location: R and RTS.

    Attributes:
        rotation: the angle is U(-rotation, rotation) degrees; counter-clockwise is positive.
        scale: (low, high) of the uniform scale factor.
        roam: True places the digit's scaled, unrotated frame uniformly inside the canvas, False at its centre. Paper:
            "placing the digit in a random location", without saying what must lie inside.
    """

    rotation: float
    scale: tuple[float, float]
    roam: bool

    @property
    def names(self) -> list[str]:
        return list(POSE)

    @property
    def pose_names(self) -> list[str]:
        varied = {"angle": self.rotation > 0, "scale": self.scale[0] < self.scale[1], "x": self.roam, "y": self.roam}
        return [name for name in POSE if varied[name]]

    def chances(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        return (torch.rand(n, 4, generator=generator, dtype=dtype, device=generator.device),)

    def parameters(self, u: Tensor) -> Tensor:  # type: ignore[override]  # one tensor, as `chances` returns
        angle = (2 * u[:, 0] - 1) * self.rotation
        scale = _between(u[:, 1], self.scale)
        room = (self.canvas - scale * self.digit).clamp_min(0) / 2 * self.roam
        return torch.stack([angle, scale, (2 * u[:, 2] - 1) * room, (2 * u[:, 3] - 1) * room], 1).float()

    def theta(self, parameters: Tensor) -> Tensor:
        """The affine theta (n, 6) from canvas to digit: it undoes the location, then the rotation, then the scale."""
        angle, scale, x, y = parameters.unbind(1)
        zoom = self.canvas / self.digit / scale
        cos, sin = zoom * torch.cos(angle.deg2rad()), zoom * torch.sin(angle.deg2rad())
        x, y = 2 * x / self.canvas, 2 * y / self.canvas
        return torch.stack([cos, -sin, sin * y - cos * x, sin, cos, -sin * x - cos * y], 1)

    def digit_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        return Affine().points(self.theta(parameters), points)

    def grid(self, parameters: Tensor) -> Tensor:
        return Affine().grid(self.theta(parameters), (self.canvas, self.canvas))

    def inverse_grid(self, parameters: Tensor) -> Tensor:
        inverse = torch.linalg.inv(Affine().matrix(self.theta(parameters)))
        return Affine().grid(inverse[:, :2].flatten(1), (self.digit, self.digit))

    def partly_undone(self, parameters: Tensor, images: Tensor, names: Sequence[str]) -> Tensor:
        """Distorted `images` (n, 1, canvas, canvas) as if the parameters `names` of `POSE` had been at rest.

        At rest the angle is 0, the scale 1, and the digit in the middle. Bilinear; each image is resampled once.
        """
        at_rest = dict(zip(POSE, (0.0, 1.0, 0.0, 0.0), strict=True))
        remaining = torch.stack(
            [
                torch.full_like(column, at_rest[name]) if name in names else column
                for name, column in zip(POSE, parameters.unbind(1), strict=True)
            ],
            1,
        )
        matrices = [Affine().matrix(self.theta(pose.to(images))) for pose in (parameters, remaining)]
        theta = (torch.linalg.inv(matrices[0]) @ matrices[1])[:, :2].flatten(1)
        return bilinear(images, Affine().grid(theta, (self.canvas, self.canvas)))


@dataclass(frozen=True)
class Projection(Distortion):
    """Scale, then each corner of the digit's frame moved by N(0, sigma) pixels in x and y: P.

    If the moved corners, in their order, do not form a convex quadrilateral, no homography shows the digit. Paper:
    silent. We: draw again. The last column counts the redraws.
    """

    scale: tuple[float, float]
    sigma: float

    @property
    def names(self) -> list[str]:
        return ["scale", *(f"{axis}{corner}" for corner in range(4) for axis in ("x", "y")), "redraws"]

    def chances(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": generator.device}
        return torch.rand(n, **options), torch.randn(n, REDRAWS, 4, 2, **options)

    def parameters(self, u: Tensor, normal: Tensor) -> Tensor:  # type: ignore[override]
        scale, moves = _between(u, self.scale), normal * self.sigma
        sides = self._moved(moves).roll(-1, 2) - self._moved(moves)
        following = sides.roll(-1, 2)
        turns = sides[..., 0] * following[..., 1] - sides[..., 1] * following[..., 0]
        first = (turns > 0).all(-1).int().argmax(1)  # the first convex candidate; 0 if none is convex
        move = moves[torch.arange(len(u), device=u.device), first].flatten(1)
        return torch.cat([scale[:, None], move, first[:, None].to(u.dtype)], 1).float()

    def _moved(self, moves: Tensor) -> Tensor:
        return self._at_rest(moves) + 2 * moves / self.canvas

    def _at_rest(self, like: Tensor) -> Tensor:
        """The corners of the digit's frame in the middle of the canvas, (4, 2)."""
        return _corners(like.dtype, like.device) * (self.digit / self.canvas)

    def _theta(self, parameters: Tensor) -> Tensor:
        moved_corners = self._moved(parameters[:, 1:9].view(-1, 4, 2))
        return homography_through(source=self._at_rest(moved_corners).expand_as(moved_corners), target=moved_corners)

    def digit_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        zoom = self.canvas / self.digit / parameters[:, 0]
        return Projective().points(self._theta(parameters), points) * zoom[:, None, None]

    def grid(self, parameters: Tensor) -> Tensor:
        zoom = self.canvas / self.digit / parameters[:, 0]
        return Projective().grid(self._theta(parameters), (self.canvas, self.canvas)) * zoom[:, None, None, None]

    def inverse_grid(self, parameters: Tensor) -> Tensor:
        zoom = self.canvas / self.digit / parameters[:, 0]
        moved_corners = self._moved(parameters[:, 1:9].view(-1, 4, 2))
        theta = homography_through(source=moved_corners, target=self._at_rest(moved_corners).expand_as(moved_corners))
        digit = pixel_centres((self.digit, self.digit), theta.dtype, theta.device)
        return Projective().points(theta, digit / zoom[:, None, None]).unflatten(1, (self.digit, self.digit))


@dataclass(frozen=True)
class Elastic(Distortion):
    """Scale, then the k x k control points of a thin plate spline moved by N(0, sigma) pixels in x and y: E.

    The spline maps canvas to digit: the canvas shows at a control point what would otherwise appear at the moved one.
    The other direction would have moves of the same distribution, but need a system solved for each image.

    Attributes:
        tiled: True puts the control points at the centres of a tiling of the canvas with k x k squares, False from edge
            to edge. Paper: silent.
    """

    scale: tuple[float, float]
    sigma: float
    k: int
    tiled: bool

    @property
    def reach(self) -> float:
        """The largest coordinate of a control point."""
        return 1 - 1 / self.k if self.tiled else 1.0

    @cached_property
    def spline(self) -> ThinPlateSpline:
        return ThinPlateSpline(self.k)

    @property
    def names(self) -> list[str]:
        return ["scale", *(f"{axis}{point}" for point in range(self.k**2) for axis in ("x", "y"))]

    def chances(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": generator.device}
        return torch.rand(n, 1, **options), torch.randn(n, 2 * self.k**2, **options)

    def parameters(self, u: Tensor, normal: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([_between(u, self.scale), normal * self.sigma], 1).float()

    def _theta(self, parameters: Tensor) -> Tensor:
        """The moved and scaled control points (n, 2 k k): the spline is linear in them, so it is scaled with them."""
        centres = self.reach * _centres(self.k, parameters.dtype, parameters.device)
        zoom = self.canvas / self.digit / parameters[:, :1]
        return (centres + 2 * parameters[:, 1:] / self.canvas) * zoom

    def digit_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        # A thin plate spline is the same at every scale: moving the control points in from the edge by a factor, at
        # unchanged values, is looking up points that are further out by that factor.
        return self.spline.points(self._theta(parameters), points / self.reach)

    def grid(self, parameters: Tensor) -> Tensor:
        theta, size = self._theta(parameters), (self.canvas, self.canvas)
        if not self.tiled:
            return self.spline.grid(theta, size)
        shape = self.canvas**2, self.k**2
        weights = constant(_tiled_weights, (self.k, self.reach, self.canvas), shape, theta.dtype, theta.device)
        rows = theta.view(-1, self.k**2, 2).mT.flatten(0, 1)  # one product for all images
        return (rows @ weights.mT).view(-1, 2, *size).movedim(1, 3)

    def inverse_grid(self, parameters: Tensor) -> Tensor:
        """The inverse by iteration: a spline has no inverse in closed form, and none at all where it folds.

        With f(p) = zoom p + d(p) from canvas to digit, the iteration is p <- (q - d(p)) / zoom. d is computed at the
        canvas's pixels and interpolated between them. The error is about 0.01 pixels, and the cost is low enough for
        training batches. `ThinPlateSpline.inverse_grid` is exact, but expensive.
        """
        zoom = (self.canvas / self.digit / parameters[:, 0])[:, None, None, None]
        size = (self.canvas, self.canvas)
        canvas = pixel_centres(size, parameters.dtype, parameters.device).view(1, *size, 2)
        d = (self.grid(parameters) - zoom * canvas).movedim(3, 1)
        size = (self.digit, self.digit)
        q = pixel_centres(size, parameters.dtype, parameters.device).view(1, *size, 2)
        p = q / zoom
        for _ in range(INVERSIONS):
            p = (q - grid_sample(d, p, padding_mode="border", align_corners=False).movedim(1, 3)) / zoom
        return p


@dataclass(frozen=True)
class Clutter(Distortion):
    """The digit at a random place of the canvas, plus patches of random digits, the sum clamped to 1: TC.

    Attributes:
        patches: their number. Each has five parameters: the digit of the pool (as a fraction of its size), the corner
            at which it is cut, and the corner at which it is added.
        side: of a patch in pixels.
    """

    patches: int
    side: int

    @property
    def names(self) -> list[str]:
        patch = ("from", "cut_x", "cut_y", "put_x", "put_y")
        return ["x", "y", *(f"{name}{i}" for i in range(self.patches) for name in patch)]

    @property
    def pose_names(self) -> list[str]:
        return ["x", "y"]

    def chances(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        return (torch.rand(n, 2 + 5 * self.patches, generator=generator, dtype=dtype, device=generator.device),)

    def parameters(self, u: Tensor) -> Tensor:  # type: ignore[override]  # one tensor, as `chances` returns
        u = u.float()
        cuts, puts = self.digit - self.side + 1, self.canvas - self.side + 1
        counts = (self.canvas - self.digit + 1,) * 2 + (0, cuts, cuts, puts, puts) * self.patches
        counts = _constant(counts, u.dtype, u.device)
        integers = (u * counts).floor().minimum(counts - 1)  # float32 may round u up to 1
        return torch.where(counts > 0, integers, u)

    def digit_points(self, parameters: Tensor, points: Tensor) -> Tensor:
        corner = 2 * parameters[:, None, :2] / self.canvas - 1  # upper left corner of the digit's frame on the canvas
        return (points - corner) * (self.canvas / self.digit) - 1

    def grid(self, parameters: Tensor) -> Tensor:
        size = (self.canvas, self.canvas)
        return self.digit_points(parameters, pixel_centres(size, parameters.dtype, parameters.device)).unflatten(
            1, size
        )

    def inverse_grid(self, parameters: Tensor) -> Tensor:
        corner = 2 * parameters[:, None, :2] / self.canvas - 1
        size = (self.digit, self.digit)
        digit = pixel_centres(size, parameters.dtype, parameters.device)
        return ((digit + 1) * (self.digit / self.canvas) + corner).unflatten(1, size)

    def render(self, parameters: Tensor, digits: Tensor, pool: Tensor | None = None) -> Tensor:
        n = len(parameters)
        canvas = torch.zeros(n, self.canvas**2, dtype=parameters.dtype, device=parameters.device)
        x, y = parameters[:, :2].long().unbind(1)
        canvas.scatter_add_(1, self._places(x, y, self.digit), digits.to(parameters).flatten(1) / 255)
        pixels = pool.flatten(1)  # type: ignore[union-attr]  # TC always has a pool
        for patch in parameters[:, 2:].unflatten(1, (self.patches, 5)).unbind(1):
            source = (patch[:, 0] * len(pool)).long().clamp_max(len(pool) - 1)  # type: ignore[arg-type]
            cut_x, cut_y, put_x, put_y = patch[:, 1:].long().unbind(1)
            content = pixels[source[:, None], self._places(cut_x, cut_y, self.side, self.digit)].to(parameters) / 255
            canvas.scatter_add_(1, self._places(put_x, put_y, self.side), content)
        return canvas.clamp_max_(1).view(n, 1, self.canvas, self.canvas)

    def _places(self, x: Tensor, y: Tensor, side: int, width: int | None = None) -> Tensor:
        """Flat indices (n, side side) of the pixels of squares with corners (x, y) in images `width` pixels wide."""
        steps = torch.arange(side, device=x.device)
        rows = (y[:, None, None] + steps[:, None]) * (width or self.canvas)
        return (rows + x[:, None, None] + steps).flatten(1)


def found_pose(canvas_points: Tensor, points: Tensor, canvas: int) -> Tensor:
    """The pose (n, 4) = angle, scale, x, y that a transformer undoes.

    It is read, in the convention of `Pose`, from the least-squares affine map of the output points `points` (N, 2) to
    the `canvas_points` (n, N, 2) that the transformer samples there. A network may choose the pose in which it shows
    all digits. So angle, x and y are determined up to an added constant, and scale up to a factor.
    """
    design = torch.cat([points, torch.ones_like(points[:, :1])], 1).to(canvas_points)
    a, c, b, d, x, y = (torch.linalg.pinv(design) @ canvas_points).flatten(1).unbind(1)
    # canvas = [[a, b], [c, d]] target + (x, y); Pose's forward map is scale [[cos, sin], [-sin, cos]].
    angle = torch.atan2(b - c, a + d).rad2deg()
    scale = (a * d - b * c).abs().sqrt()
    return torch.stack([angle, scale, x * canvas / 2, y * canvas / 2], 1)


def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A cached tensor, which must not be written to. Without the cache each copy to a GPU would block the host."""
    return constant(_tensor, (values,), (len(values),), dtype, device)


def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _corners(dtype: torch.dtype, device: torch.device) -> Tensor:
    return _constant(sum(CORNERS, ()), dtype, device).view(4, 2)


def _centres(k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The control points, (2 k k,)."""
    return constant(control_points, (k,), (k * k, 2), dtype, device).flatten()


def _tiled_weights(k: int, reach: float, canvas: int, device: torch.device) -> Tensor:
    """The weights of the control points at all pixels of the canvas, (canvas^2, k k)."""
    return spline_weights(k, pixel_centres((canvas, canvas), torch.float64, device) / reach)


def _between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return low + (high - low) * u

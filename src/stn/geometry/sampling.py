"""Differentiable image sampling (paper, section 3.3, equations 3 to 7).

A sampler takes an image U (B, C, H, W) and a grid of source points (B, h, w, 2) in the frame of `transforms`, and
gives V (B, C, h, w):

    V_i = sum_n sum_m U_nm k(x_i - m; Phi_x) k(y_i - n; Phi_y)

with x_i, y_i in pixels and k the sampling kernel. `integer`, `bilinear` and `trilinear` take volumes (B, C, D, H, W)
too, with a grid (B, d, h, w, 3). Half-precision images are sampled in float32 and returned in their own type; the grid
decides between float32 and float64.

What lies outside of the image is decided by `padding_mode`, as in `torch.nn.functional.grid_sample`: "zeros", "border"
(the value of the nearest pixel of the image) or "reflection" (the image mirrored at its outer edges, again and again).
Another name, or shapes that do not fit together, raise a ValueError.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.geometry.transforms import full_precision

PADDING_MODES = ("zeros", "border", "reflection")
FAR = 2**31  # pixels: float32 has no fractions there, and an integer holds it
TIE = {torch.float32: 2**-20, torch.float64: 2**-40}  # how far below a tie a point of a grid still counts as on it


def integer(U: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """The nearest pixel, floor(x + 0.5) (equation 4): of two that are equally near, the one to the right or below.

    Its gradient with respect to U goes to the pixels that were taken; with respect to the grid it is zero.

    Many grids have points exactly half-way between two pixels: those that halve an image or move it by half a pixel.
    Rounding may put such a point a little too low. In float32, where floats just above 1 are eps = 1.2e-7 apart, a grid
    is off by up to 0.5 eps where a matrix maps pixel centres and by 4 eps where a spline sums 8 x 8 control points; its
    conversion to pixels adds up to 2 eps. So points up to `TIE` = 8 eps below a tie count as on it. In float64 `TIE` is
    9e-13, twice what the linear system of a spline loses. The border between two pixels of W moves by TIE W / 2 pixels,
    in float32 3e-5 for W = 64: about the precision of a point.
    """
    grid = _at_least_float32(grid)
    # torch rounds ties to even, so points are moved above their ties.
    return _grid_sample(U, grid + TIE.get(grid.dtype, 0), "nearest", padding_mode)


def bilinear(U: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """k(d) = max(0, 1 - |d|) (equation 5), with the sub-gradients of equations 6 and 7."""
    return _grid_sample(U, grid, "bilinear", padding_mode)


def trilinear(U: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Equation 5 with a third factor, for volumes: U (B, C, D, H, W) and a grid (B, d, h, w, 3) to (B, C, d, h, w)."""
    return bilinear(U, grid, padding_mode)  # torch's word for it, whatever the number of dimensions


def bicubic(U: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Keys' cubic convolution kernel with a = -0.75, four pixels wide. For images only."""
    return _grid_sample(U, grid, "bicubic", padding_mode)


def general(
    U: Tensor,
    grid: Tensor,
    kernel_x: Callable[[Tensor], Tensor],
    kernel_y: Callable[[Tensor], Tensor],
    radius: int,
    padding_mode: str = "zeros",
) -> Tensor:
    """Equation 3 for any kernel: `kernel_x` and `kernel_y` map distances in pixels to weights, elementwise.

    For images only. With a padding mode other than zeros the sum runs over the image continued without end.

    Args:
        radius: half the kernels' width in pixels; they must vanish at distances of `radius` and beyond.
    """
    _check_padding(padding_mode)
    if not torch.jit.is_tracing():  # where sizes are tensors, and comparing them warns
        _check_shapes(U, grid, volumes=False)
    with full_precision(U):
        grid = _at_least_float32(grid)
        image = U.to(grid.dtype)
        batch, channels, height, width = image.shape
        m, k_x = _taps(grid[..., 0], width, kernel_x, radius, padding_mode)
        n, k_y = _taps(grid[..., 1], height, kernel_y, radius, padding_mode)
        flat = image.flatten(2)
        V = image.new_zeros(batch, channels, *grid.shape[1:3])
        for i in range(2 * radius):
            row = torch.zeros_like(V)
            for j in range(2 * radius):
                index = (n[..., i] * width + m[..., j]).reshape(batch, 1, -1).expand(-1, channels, -1)
                row = row + k_x[:, None, ..., j] * flat.gather(2, index).view_as(V)
            V = V + k_y[:, None, ..., i] * row
        return V.to(U.dtype)


def _taps(
    points: Tensor, size: int, kernel: Callable[[Tensor], Tensor], radius: int, padding_mode: str
) -> tuple[Tensor, Tensor]:
    """Along one axis of `size` pixels: the pixels that each point (B, h, w) is a sum of, and their weights.

    Both are (B, h, w, 2 radius).
    """
    position = ((points + 1) * size - 1) / 2  # in pixels; 0 is the centre of the first one
    taps = torch.arange(1 - radius, radius + 1, device=points.device)
    if padding_mode == "zeros":
        # Beyond the kernel's reach all is zero; the clamp keeps a wild theta from overflowing an integer.
        position = position.clamp(-radius - 1, size + radius)
        index = position.detach().nan_to_num().floor().long()[..., None] + taps  # NaN stays in `position`, reaches V
        return index.clamp(0, size - 1), kernel(position[..., None] - index) * ((index >= 0) & (index < size))
    position = position.clamp(-FAR, FAR)
    if padding_mode == "reflection":
        position = _modulo(position + 0.5, 2 * size) - 0.5  # the image and its mirror image repeat
    first = position.detach().floor()
    index = first.nan_to_num()[..., None] + taps
    if padding_mode == "reflection":
        index = _modulo(index, 2 * size)
        index = torch.minimum(index, 2 * size - 1 - index)
    return index.clamp(0, size - 1).long(), kernel((position - first)[..., None] - taps)


def _modulo(x: Tensor, period: int) -> Tensor:
    """`torch.remainder`, which cannot be exported to ONNX with a dynamic period."""
    return x - period * (x / period).floor()


class LearnableKernel(nn.Module):
    """A kernel k(d; Phi) that is linear between learnable knots, and starts as the bilinear one.

    Phi holds the kernel's value at evenly spaced distances -radius ... radius; the two outermost are held at zero, so
    that the sampled image stays continuous. Nothing forces the kernel to be symmetric or to sum to one.

    Args:
        radius: half its width in pixels.
        knots_per_pixel: knots per pixel of distance.
    """

    def __init__(self, radius: int = 2, knots_per_pixel: int = 2):
        super().__init__()
        self.radius, self.knots_per_pixel = radius, knots_per_pixel
        distance = torch.arange(1 - radius * knots_per_pixel, radius * knots_per_pixel) / knots_per_pixel
        self.phi = nn.Parameter((1 - distance.abs()).clamp_min(0))

    def forward(self, distance: Tensor) -> Tensor:
        """Weights k(d; Phi), shaped like `distance` (pixels)."""
        knots = F.pad(self.phi.to(distance.dtype), (1, 1))
        place = ((distance + self.radius) * self.knots_per_pixel).clamp(0, knots.shape[0] - 1)
        left = place.detach().nan_to_num().floor().long().clamp_max(knots.shape[0] - 2)
        return torch.lerp(knots[left], knots[left + 1], place - left)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, knots_per_pixel={self.knots_per_pixel}"


class LearnableSampler(nn.Module):
    """The paper's general sampler with its own learnable Phi_x and Phi_y; equals `bilinear` until it has learned.

    For images only.

    Args:
        radius: half the width of both kernels in pixels.
        knots_per_pixel: of both kernels, see `LearnableKernel`.
        padding_mode: what lies outside of the image, unless a call says otherwise.
    """

    def __init__(self, radius: int = 2, knots_per_pixel: int = 2, padding_mode: str = "zeros"):
        super().__init__()
        _check_padding(padding_mode)
        self.padding_mode = padding_mode
        self.kernel_x = LearnableKernel(radius, knots_per_pixel)
        self.kernel_y = LearnableKernel(radius, knots_per_pixel)

    def forward(self, U: Tensor, grid: Tensor, padding_mode: str | None = None) -> Tensor:
        padding_mode = self.padding_mode if padding_mode is None else padding_mode
        return general(U, grid, self.kernel_x, self.kernel_y, self.kernel_x.radius, padding_mode)

    def extra_repr(self) -> str:
        return f"padding_mode={self.padding_mode!r}"


def _grid_sample(U: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    if padding_mode != "zeros":
        _check_padding(padding_mode)
    try:
        with full_precision(U):
            grid = _at_least_float32(grid)
            V = F.grid_sample(U.to(grid.dtype), grid, mode=mode, padding_mode=padding_mode, align_corners=False)
            return V.to(U.dtype)
    except (RuntimeError, IndexError):  # torch refuses shapes that do not fit; asking before would cost time
        _check_shapes(U, grid, volumes=mode != "bicubic")
        raise


def _check_shapes(U: Tensor, grid: Tensor, volumes: bool) -> None:
    n = U.ndim - 2  # coordinates of a point
    kind = n == 2 or (n == 3 and volumes)
    if not (kind and grid.ndim == U.ndim and grid.shape[-1] == n and grid.shape[0] == U.shape[0]):
        shapes = "an image (B, C, H, W) with a grid (B, h, w, 2)"
        if volumes:
            shapes += ", or a volume (B, C, D, H, W) with a grid (B, d, h, w, 3)"
        raise ValueError(f"this sampler takes {shapes}, not {tuple(U.shape)} with {tuple(grid.shape)}") from None


def _check_padding(padding_mode: str) -> None:
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode is one of {', '.join(PADDING_MODES)}, not {padding_mode!r}")


def _at_least_float32(grid: Tensor) -> Tensor:
    return grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid

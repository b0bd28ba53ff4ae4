"""Differentiable image sampling (paper, section 3.3, equations 3 to 7).

A sampler takes an image U (B, C, H, W) and a grid of source points (B, h, w, 2) in the frame of `transforms`, and
gives V (B, C, h, w):

    V_i = sum_n sum_m U_nm k(x_i - m; Phi_x) k(y_i - n; Phi_y)

with x_i, y_i in pixels and k the sampling kernel. What lies outside the image is zero. Half-precision images are
sampled in float32 and handed back in their own type; the grid decides between float32 and float64.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.geometry.transforms import full_precision


def integer(U: Tensor, grid: Tensor) -> Tensor:
    """The nearest pixel (equation 4). Its gradient with respect to the grid is zero."""
    return _grid_sample(U, grid, "nearest")


def bilinear(U: Tensor, grid: Tensor) -> Tensor:
    """k(d) = max(0, 1 - |d|) (equation 5), with the sub-gradients of equations 6 and 7."""
    return _grid_sample(U, grid, "bilinear")


def trilinear(U: Tensor, grid: Tensor) -> Tensor:
    """Equation 5 with a factor more, for volumes: U (B, C, D, H, W) and a grid (B, d, h, w, 3) give (B, C, d, h, w)."""
    return _grid_sample(U, grid, "bilinear")  # torch's word for it, whatever the number of dimensions


def bicubic(U: Tensor, grid: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.75, four pixels wide."""
    return _grid_sample(U, grid, "bicubic")


def general(U: Tensor, grid: Tensor, kernel_x, kernel_y, radius: int) -> Tensor:
    """Equation 3 for any kernel: `kernel_x` and `kernel_y` map distances in pixels to weights, elementwise.

    Args:
        radius: half the kernels' width in pixels; they must vanish at distances of `radius` and beyond.
    """
    with full_precision(U):
        grid = _at_least_float32(grid)
        image = U.to(grid.dtype)
        batch, channels, height, width = image.shape
        size = _pixels(width, height, grid.dtype, grid.device)
        position = ((grid + 1) * size - 1) / 2  # in pixels; 0 is the centre of the first one
        # Beyond the kernel's reach all is zero; the clamp keeps a wild theta from overflowing an integer.
        position = torch.minimum(position.clamp_min(-radius - 1), size + radius)
        nearest = position.detach().nan_to_num().floor().long()  # NaN stays in `position`, and so reaches V
        taps = torch.arange(1 - radius, radius + 1, device=grid.device)
        m, n = nearest[..., 0, None] + taps, nearest[..., 1, None] + taps  # (B, h, w, 2 radius)
        k_x = kernel_x(position[..., 0, None] - m) * ((m >= 0) & (m < width))
        k_y = kernel_y(position[..., 1, None] - n) * ((n >= 0) & (n < height))
        m, n = m.clamp(0, width - 1), n.clamp(0, height - 1)
        flat = image.flatten(2)
        V = image.new_zeros(batch, channels, *grid.shape[1:3])
        for i in range(2 * radius):
            row = torch.zeros_like(V)
            for j in range(2 * radius):
                index = (n[..., i] * width + m[..., j]).reshape(batch, 1, -1).expand(-1, channels, -1)
                row = row + k_x[:, None, ..., j] * flat.gather(2, index).view_as(V)
            V = V + k_y[:, None, ..., i] * row
        return V.to(U.dtype)


class LearnableKernel(nn.Module):
    """A kernel k(d; Phi) that is linear between learnable knots, and starts as the bilinear one.

    Phi holds the kernel's value at evenly spaced distances -radius ... radius; the two outermost are held at zero, so
    that the sampled image stays continuous. Nothing forces symmetry or a sum of one: what it learns is the data's say.

    Args:
        radius: half its width in pixels.
        knots_per_pixel: knots to each pixel of distance.
    """

    def __init__(self, radius: int = 2, knots_per_pixel: int = 2):
        super().__init__()
        self.radius, self.knots_per_pixel = radius, knots_per_pixel
        distance = torch.arange(1 - radius * knots_per_pixel, radius * knots_per_pixel) / knots_per_pixel
        self.phi = nn.Parameter((1 - distance.abs()).clamp_min(0))

    def forward(self, distance: Tensor) -> Tensor:
        """Weights k(d; Phi), shaped like `distance` (pixels)."""
        knots = F.pad(self.phi.to(distance.dtype), (1, 1))
        place = ((distance + self.radius) * self.knots_per_pixel).clamp(0, len(knots) - 1)
        left = place.detach().nan_to_num().floor().long().clamp_max(len(knots) - 2)
        return torch.lerp(knots[left], knots[left + 1], place - left)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, knots_per_pixel={self.knots_per_pixel}"


class LearnableSampler(nn.Module):
    """The paper's general sampler with its own learnable Phi_x and Phi_y; equals `bilinear` until it has learned."""

    def __init__(self, radius: int = 2, knots_per_pixel: int = 2):
        super().__init__()
        self.kernel_x = LearnableKernel(radius, knots_per_pixel)
        self.kernel_y = LearnableKernel(radius, knots_per_pixel)

    def forward(self, U: Tensor, grid: Tensor) -> Tensor:
        return general(U, grid, self.kernel_x, self.kernel_y, self.kernel_x.radius)


def _grid_sample(U: Tensor, grid: Tensor, mode: str) -> Tensor:
    with full_precision(U):
        grid = _at_least_float32(grid)
        V = F.grid_sample(U.to(grid.dtype), grid, mode=mode, padding_mode="zeros", align_corners=False)
        return V.to(U.dtype)


@lru_cache(maxsize=64)
def _pixels(width: int, height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(width, height) on the device. Cached, because a step captured on a GPU may take nothing from the host."""
    with torch.inference_mode(False):
        return torch.tensor([width, height], dtype=dtype, device=device)


def _at_least_float32(grid: Tensor) -> Tensor:
    return grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid

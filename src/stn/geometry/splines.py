"""Thin plate splines: their control points, the weights of these at any point, and the inverse.

Shapes as in `stn.geometry.transforms`: N points, and K = k x k control points on a regular grid.
"""

import torch
from torch import Tensor

from stn.geometry.constants import constant, float64_device
from stn.geometry.inverses import ROUNDINGS, invert_matrices, times

INVERSIONS = 20  # Newton steps to a spline's inverse; the tests bound the error that is left
BENDS = 8  # the first of these steps, in which the nearest affine map is bent into the spline


def control_points(k: int, device: torch.device | None = None) -> Tensor:
    """The k x k target control points of a thin plate spline, (k k, 2), row by row, float64, on [-1, 1]."""
    device = float64_device(torch.get_default_device()) if device is None else device
    axis = torch.linspace(-1, 1, k, dtype=torch.float64, device=device)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)


def _radial(points: Tensor, centres: Tensor) -> Tensor:
    """|p - c|^2 log |p - c|^2 for all pairs, (..., N, K). The kernel's limit at distance 0 is 0, not 0 log 0."""
    squared = (points[..., :, None, :] - centres).square().sum(-1)
    return torch.special.xlogy(squared, squared.clamp_min(torch.finfo(squared.dtype).tiny))  # type: ignore[no-any-return]


def _spline_solution(k: int, device: torch.device) -> Tensor:
    """The matrix (K + 3, K) from the K control values to the K + 3 spline coefficients, float64."""
    centres = control_points(k, device)
    n = k * k
    system = torch.zeros(n + 3, n + 3, dtype=torch.float64, device=device)
    system[:n, :n] = _radial(centres, centres)
    system[:n, n] = system[n, :n] = 1
    system[:n, n + 1 :] = centres
    system[n + 1 :, :n] = centres.T
    return torch.linalg.inv(system)[:, :n].contiguous()  # type: ignore[no-any-return]


def spline_constants(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The control points (K, 2) and `_spline_solution`, float64, on the device or, where that has none, the CPU."""
    place, n = float64_device(device), k * k
    centres = constant(control_points, (k,), (n, 2), torch.float64, place)
    return centres, constant(_spline_solution, (k,), (n + 3, n), torch.float64, place)


def spline_weights(k: int, points: Tensor) -> Tensor:
    """The weight of each control point at each target point, (..., N, K), in the points' precision.

    The weights are computed in float64: float32 would cost one digit of the source points at k = 5, two at k = 8.
    For a device without float64 the CPU computes them.
    """
    centres, solution = spline_constants(k, points.device)
    p = points.to(centres.device).double()
    basis = torch.cat([_radial(p, centres), torch.ones_like(p[..., :1]), p], -1)
    return (basis @ solution).to(points.dtype).to(points.device)


def invert_spline(controls: Tensor, points: Tensor, centres: Tensor, solution: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target points (B, N, 2) at which thin plate splines have the values `points` (N, 2) or (B, N, 2).

    By Newton's method. The first steps take splines that are bent more and more, from the nearest affine map to the
    spline itself, so that every step starts near its solution.

    Args:
        controls: the values (B, K, 2) at the `centres` (K, 2), a regular grid around 0.
        solution: the matrix (K + 3, K) from those values to the coefficients.

    The computation runs on the device and in the precision of `centres` and `solution`; the results have those of
    `controls`.

    Returns:
        The target points, the inverse Jacobians there (B, N, 2, 2), and a mask (B, N, 1) of lost points: those where
        the iteration does not converge, or where the spline is folded over or flat. There the other two are zero.
    """
    device, dtype = controls.device, controls.dtype
    controls, points = (part.to(centres.device).to(centres.dtype) for part in (controls, points))
    middle = controls.mean(1, keepdim=True)
    slope = controls.mT @ centres / centres[:, 0].square().sum()  # least squares; the two columns are orthogonal
    bend = controls - middle - centres @ slope.mT
    inverse, whole = invert_matrices(slope)
    target = (points - middle) @ inverse.mT
    for step in range(1, INVERSIONS + 2):
        bent = controls - max(0, 1 - step / BENDS) * bend
        values, jacobians = _spline(solution @ bent, centres, target)
        inverse, here = invert_matrices(jacobians)
        residual = points - values
        if step <= INVERSIONS:
            target = target + times(inverse, residual)
    # A determinant is known to the precision of the controls, however far from 0 they lie: below that a map is flat.
    known = ROUNDINGS * torch.finfo(dtype).eps * controls.abs().amax((1, 2))
    whole = whole.sign() * (whole.abs() > known * slope.abs().amax((1, 2)))
    here = here.sign() * (here.abs() > known[:, None] * jacobians.abs().amax((2, 3)))
    close = residual.abs() <= torch.finfo(points.dtype).eps ** 0.5 * points.abs().clamp_min(1)
    lost = ~(close.all(-1) & (here * whole[:, None] > 0))[..., None]
    target, inverse = target.masked_fill(lost, 0), inverse.masked_fill(lost[..., None], 0)
    return target.to(dtype).to(device), inverse.to(dtype).to(device), lost.to(device)


def _spline(coefficients: Tensor, centres: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, N, 2) and Jacobians (B, N, 2, 2) of splines at `points` (B, N, 2); coefficients are (B, K + 3, 2)."""
    bends, ramp = coefficients[:, :-3], coefficients[:, -2:]
    x, y = (points[..., i, None] - centres[:, i] for i in range(2))
    squared = x * x + y * y
    log = squared.clamp_min(torch.finfo(squared.dtype).tiny).log()  # its factors vanish faster than it grows
    values = torch.cat([squared * log, torch.ones_like(points[..., :1]), points], -1) @ coefficients
    # The derivative of r^2 log r^2 is 2 (log r^2 + 1) times the distance. The 1 adds up to nothing: bends sum to 0, and
    # so do their products with the centres.
    slopes = [2 * log * distance @ bends + ramp[:, i, None] for i, distance in enumerate((x, y))]
    return values, torch.stack(slopes, -1)

"""The way back through a transformation: from source points to the target points that show them.

Everything is as large as its inputs say and takes no decision on the host, so it runs on any device without waiting
for it. Shapes as in `stn.geometry.transforms`.
"""

import torch
from torch import Tensor

INVERSIONS = 20  # Newton steps to a spline's inverse; what is then left: see the tests
BENDS = 8  # the first of them, in which the spline is bent from the affine map nearest to it to what it is
ROUNDINGS = 4  # a number of this many units in the last place of what it was computed from is taken for zero


def invert_matrices(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses (..., n, n) of matrices, n = 2 or 3, by cofactors, and determinants (...).

    Where a determinant drowns in the rounding of the products that it is the sum of, it is given as 0, as are the
    inverse and all gradients.
    """
    rows = matrices.unbind(-2)
    if len(rows) == 2:
        (a, b), (c, d) = (row.unbind(-1) for row in rows)
        cofactors = torch.stack([d, -c, -b, a], -1).unflatten(-1, (2, 2))
        products = (a * d).abs() + (b * c).abs()
    else:
        cofactors = torch.stack([_cross(rows[i - 2], rows[i - 1], -1) for i in range(3)], -2)
        products = (rows[0].abs() * _cross(rows[1].abs(), rows[2].abs(), 1)).sum(-1)
    determinants = (rows[0] * cofactors[..., 0, :]).sum(-1)
    singular = determinants.abs() <= rounding(products)
    determinants = determinants.masked_fill(singular, 0)
    scale = determinants.masked_fill(singular, torch.inf)
    return cofactors.mT / scale[..., None, None], determinants


def invert_spline(controls: Tensor, points: Tensor, centres: Tensor, solution: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target points (B, N, 2) at which thin plate splines have the values `points` (N, 2) or (B, N, 2).

    By Newton's method, on splines that are bent more and more, from the affine map nearest to each to the spline
    itself: so every step starts near where it leads.

    Args:
        controls: the values (B, K, 2) at the `centres` (K, 2), a regular grid around 0.
        solution: the matrix (K + 3, K) from those values to the coefficients.

    All is worked out on the device and in the precision of `centres` and `solution`; what is returned is of the
    controls' own.

    Returns:
        The target points, the inverse Jacobians there (B, N, 2, 2), and which (B, N, 1) points are lost: not arrived
        at, or where the spline is folded over or flat. Where lost, the others are zero.
    """
    device, dtype = controls.device, controls.dtype
    controls, points = controls.to(centres), points.to(centres)
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
    # A determinant is known to the precision of the controls, however far from 0 they lie: what is below is flat.
    known = ROUNDINGS * torch.finfo(dtype).eps * controls.abs().amax((1, 2))
    whole = whole.sign() * (whole.abs() > known * slope.abs().amax((1, 2)))
    here = here.sign() * (here.abs() > known[:, None] * jacobians.abs().amax((2, 3)))
    close = residual.abs() <= torch.finfo(points.dtype).eps ** 0.5 * points.abs().clamp_min(1)
    lost = ~(close.all(-1) & (here * whole[:, None] > 0))[..., None]
    target, inverse = target.masked_fill(lost, 0), inverse.masked_fill(lost[..., None], 0)
    return target.to(device, dtype), inverse.to(device, dtype), lost.to(device)


def rounding(size: Tensor) -> Tensor:
    """What may be left by rounding of a sum that is zero and whose terms' absolute values sum to `size`."""
    return ROUNDINGS * torch.finfo(size.dtype).eps * size


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """matrices (..., n, n) @ vectors (..., n), one by one: far faster than products of many small matrices."""
    return (matrices * vectors[..., None, :]).sum(-1)


def _cross(a: Tensor, b: Tensor, sign: int) -> Tensor:
    """a x b of vectors (..., 3) for a sign of -1; with 1, the sum of the products that it is a difference of."""
    return a.roll(-1, -1) * b.roll(-2, -1) + sign * a.roll(-2, -1) * b.roll(-1, -1)


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

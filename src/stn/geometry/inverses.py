"""Inverses of batches of small matrices. They decide nothing on the host, so they never wait for a device.

Also the homography through four points, which does wait: it solves a linear system.
"""

import torch
from torch import Tensor

ROUNDINGS = 4  # a sum counts as zero within this many roundings (eps) of the absolute values of its terms


def invert_matrices(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses (..., n, n) of matrices, n = 2 or 3, by cofactors, and determinants (...).

    Where a determinant is no larger than the rounding error of the products that it sums, the determinant, the inverse
    and all gradients are 0.
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


def rounding(size: Tensor) -> Tensor:
    """What rounding may leave of a sum that is zero, if the absolute values of its terms sum to `size`."""
    return ROUNDINGS * torch.finfo(size.dtype).eps * size


def homography_through(source: Tensor, target: Tensor) -> Tensor:
    """The projective theta (B, 8) that maps four target points (B, 4, 2) to four source points (B, 4, 2).

    Solves the 8x8 linear system in the points' own precision; no three of the points may lie on a line.
    """
    x, y = target.unbind(-1)
    u, v = source.unbind(-1)
    unit, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, unit, zero, zero, zero, -u * x, -u * y], -1)
    rows_v = torch.stack([zero, zero, zero, x, y, unit, -v * x, -v * y], -1)
    return torch.linalg.solve(torch.cat([rows_u, rows_v], 1), torch.cat([u, v], 1))  # type: ignore[no-any-return]


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """matrices (..., n, n) @ vectors (..., n), one by one: far faster than products of many small matrices."""
    return (matrices * vectors[..., None, :]).sum(-1)


def _cross(a: Tensor, b: Tensor, sign: int) -> Tensor:
    """a x b of vectors (..., 3) for a sign of -1; with 1, the sum of the products that it is a difference of."""
    return a.roll(-1, -1) * b.roll(-2, -1) + sign * a.roll(-2, -1) * b.roll(-1, -1)

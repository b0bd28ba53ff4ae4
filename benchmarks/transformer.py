"""The transformer alone: from U and theta to V and back, against PyTorch's functions, kornia and the textbook's spline.

All get the same U and theta in this project's frame and sample bilinearly with zeros outside. With "backward" they
also return the gradients of both. The results and gradients of a rival are compared with ours before it is timed.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distortion import installed
from benchmarks.timing import OURS, Bench, Work
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Affine, Projective, ThinPlateSpline, Transformation
from stn.nn.transformer import SpatialTransformer

TOLERANCE = 0.01  # relative, of V and both gradients; a gradient jumps where a point crosses a pixel
Warp = Callable[[Tensor, Tensor], Tensor]  # U (B, C, H, W), theta (B, P) -> V (B, C, H, W)


def families(bench: Bench) -> Iterator[dict]:
    """Images per second of each family, forward, and forward and backward, on batches of Table 1."""
    batch, side = (4 if bench.quick else 128), 28
    for name, family in (("affine", Affine()), ("projective", Projective()), ("tps", ThinPlateSpline(4))):
        for backward in (False, True):
            title = f"{name}, {'forward and backward' if backward else 'forward'}"
            yield _compared(bench, title, family, (batch, 1, side, side), backward)


def growth(bench: Bench) -> Iterator[dict]:
    """How the cost grows, forward and backward, with batch, image, control points and parallel transformers."""
    selection = slice(0, 2) if bench.quick else slice(None)
    for batch in (1, 8, 64, 512, 2048)[selection]:
        yield _compared(bench, f"affine, batch {batch:,}", Affine(), (batch, 1, 28, 28))
    for side in (28, 56, 112, 224)[selection]:
        yield _compared(bench, f"affine, {side} x {side} pixels", Affine(), (16, 1, side, side))
    for k in (2, 4, 6, 8)[selection]:
        yield _compared(bench, f"tps, {k * k} control points", ThinPlateSpline(k), (64, 1, 28, 28))
    for n in (1, 2, 4, 8)[selection]:
        yield _parallel(bench, n)


def _compared(
    bench: Bench, title: str, family: Transformation, shape: tuple[int, int, int, int], backward: bool = True
) -> dict:
    draws = torch.Generator().manual_seed(0)
    U = torch.rand(shape, generator=draws)
    theta = family.identity() + 0.05 * torch.randn(shape[0], family.n_parameters, generator=draws)
    upstream = torch.randn(shape, generator=draws) / (shape[2] * shape[3]) ** 0.5
    U, theta, upstream = (tensor.to(bench.device) for tensor in (U, theta, upstream))

    def work(warp: Warp) -> Work:
        def forward() -> Tensor:
            with torch.no_grad():
                return warp(U, theta)

        def forward_and_backward() -> tuple[Tensor, ...]:
            leaves = U.detach().requires_grad_(), theta.detach().requires_grad_()
            V = warp(*leaves)
            return V, *torch.autograd.grad(V, leaves, upstream)

        return Work(forward_and_backward if backward else forward, shape[0])

    contest = {OURS: work(lambda U, theta: bilinear(U, family.grid(theta, U.shape[2:])))}
    contest |= {name: work(warp) for name, warp in rivals(bench, family).items()}
    for name in contest:
        contest[name].other = name.endswith("(another spline)")
    facts = {"shape": list(shape), "backward": backward, "precision": "float32", "threads": torch.get_num_threads()}
    return bench.compare(title, "images/s", contest, TOLERANCE, **facts)


def rivals(bench: Bench, family: Transformation) -> dict[str, Warp]:
    """The other implementations that warp by such a theta."""
    if isinstance(family, Affine):
        entries = {"affine_grid, grid_sample": affine_by_pytorch}
    elif isinstance(family, Projective):
        entries = {"homogeneous grid, grid_sample": projective_by_hand}
    else:
        spline = Spline(family.k)
        entries = {"spline solved each call": spline_solved, "spline, inverse kept": spline.warp}
    if installed(bench, "kornia"):
        entries |= _kornia(family)
    return entries


def affine_by_pytorch(U: Tensor, theta: Tensor) -> Tensor:
    """The warp of PyTorch's own tutorial."""
    grid = F.affine_grid(theta.view(-1, 2, 3), list(U.shape), align_corners=False)
    return F.grid_sample(U, grid, align_corners=False)


def projective_by_hand(U: Tensor, theta: Tensor) -> Tensor:
    """The warp as a batched product of the homogeneous grid, and a division."""
    matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], 1).view(-1, 3, 3)
    points = _pixels(U)
    points = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    source = points.expand(len(U), -1, -1) @ matrix.transpose(1, 2)
    grid = (source[..., :2] / source[..., 2:]).view(len(U), *U.shape[2:], 2)
    return F.grid_sample(U, grid, align_corners=False)


def spline_solved(U: Tensor, theta: Tensor) -> Tensor:
    """The textbook's thin plate spline: each call sets up the system and solves it for each image."""
    k = round((theta.shape[1] // 2) ** 0.5)
    system = _system(k, U.device)
    values = torch.cat([theta.view(len(theta), -1, 2), theta.new_zeros(len(theta), 3, 2)], 1)
    coefficients = torch.linalg.solve(system.expand(len(theta), -1, -1), values)
    grid = _basis(_pixels(U), k) @ coefficients
    return F.grid_sample(U, grid.view(len(U), *U.shape[2:], 2), align_corners=False)


class Spline:
    """The same spline with cached constants, as in the better repositories: a call makes two batched products."""

    def __init__(self, k: int):
        self.k = k
        self.inverse = self.basis = None

    def warp(self, U: Tensor, theta: Tensor) -> Tensor:
        if self.inverse is None:
            self.inverse = torch.linalg.inv(_system(self.k, U.device))
            self.basis = _basis(_pixels(U), self.k)
        values = torch.cat([theta.view(len(theta), -1, 2), theta.new_zeros(len(theta), 3, 2)], 1)
        grid = torch.matmul(self.basis, torch.matmul(self.inverse, values))
        return F.grid_sample(U, grid.view(len(U), *U.shape[2:], 2), align_corners=False)


def _pixels(U: Tensor) -> Tensor:
    """Normalised centres (H W, 2) of the pixels."""
    y, x = ((2 * torch.arange(side, device=U.device) + 1) / side - 1 for side in U.shape[2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)


def _fixed(k: int, device: torch.device) -> Tensor:
    axis = torch.linspace(-1, 1, k, device=device)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)


def _basis(points: Tensor, k: int) -> Tensor:
    """(N, K + 3): the kernel r^2 log r^2 at every control point, 1, x, y."""
    squared = (points[:, None] - _fixed(k, points.device)).square().sum(-1)
    return torch.cat([squared * torch.log(squared + 1e-12), torch.ones_like(points[:, :1]), points], 1)


def _system(k: int, device: torch.device) -> Tensor:
    fixed = _fixed(k, device)
    rows = _basis(fixed, k)
    return torch.cat([rows, torch.cat([rows[:, -3:].T, rows.new_zeros(3, 3)], 1)])


def _kornia(family: Transformation) -> dict[str, Warp]:
    import kornia.geometry.transform as K

    def matrix(U: Tensor, theta: Tensor) -> Tensor:
        last = theta.new_tensor([0.0, 0.0, 1.0]).expand(len(theta), -1)
        homography = torch.cat([theta, last if theta.shape[1] == 6 else last[:, 2:]], 1).view(-1, 3, 3)
        return K.homography_warp(U, homography, tuple(U.shape[2:]))

    def spline(U: Tensor, theta: Tensor) -> Tensor:
        moved = theta.view(len(theta), -1, 2)
        fixed = _fixed(round(moved.shape[1] ** 0.5), U.device).expand_as(moved)
        return K.warp_image_tps(U, moved, *K.get_tps_transform(fixed, moved))

    if isinstance(family, ThinPlateSpline):
        return {"kornia (another spline)": spline}  # its kernels are centred on the moved points, not on the fixed ones
    return {"kornia": matrix}


def _parallel(bench: Bench, n: int) -> dict:
    """N transformers on one image in one module, against an image repeated N times."""
    batch, side, size = (2 if bench.quick else 32), 64, (32, 32)
    places = torch.linspace(-0.5, 0.5, n) if n > 1 else torch.zeros(1)
    zero, half = torch.zeros(n), torch.full((n,), 0.5)
    starts = torch.stack([half, zero, places, zero, half, places.flip(0)], 1)
    localisation = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    module = SpatialTransformer(localisation, 3 * 16, Affine(), size=size, starts=starts).to(bench.device)
    U = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(bench.device)

    def repeated(U: Tensor) -> Tensor:
        theta = module.theta(U).flatten(0, 1)
        grid = F.affine_grid(theta.view(-1, 2, 3), [batch * n, 3, *size], align_corners=False)
        return F.grid_sample(U.repeat_interleave(n, 0), grid, align_corners=False).unflatten(0, (batch, n))

    def work(forward: Callable[[Tensor], Tensor]) -> Work:
        def forward_and_backward() -> tuple[Tensor, ...]:
            leaf = U.detach().requires_grad_()
            V = forward(leaf)
            # The mean over windows keeps the size of results independent of N.
            return V, *torch.autograd.grad(V.mean((1, 3, 4)).sum(), [leaf, *module.regression.parameters()])

        return Work(forward_and_backward, batch)

    return bench.compare(
        f"affine, {n} in parallel",
        "images/s",
        {OURS: work(module), "image repeated, affine_grid, grid_sample": work(repeated)},
        TOLERANCE,
        shape=[batch, 3, side, side],
        windows=n,
        size=list(size),
        backward=True,
        precision="float32",
        threads=torch.get_num_threads(),
    )

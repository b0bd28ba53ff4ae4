"""Distorting digits: R, RTS, P and E from drawn parameters, against what other libraries offer.

The work is the same for all: from digits (n, 28, 28) uint8 and their parameters, drawn beforehand, to images (n, 1,
canvas, canvas) float32 in [0, 1], bilinear, with a background of zero. Each library makes its own matrices, maps or
splines from the parameters. Ours is `Distortion.render` on batches of 128, as a training step calls it.

Libraries that take one image at a time run on the CPU, with a process for each core, which write into one shared
tensor. They get the first quarter of the images, because their time per image does not depend on their number.
"""

import importlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import OURS, Bench, Work
from stn.config import compose
from stn.data.draws import generator
from stn.environment import cores
from stn.experiments.mnist.data import distortion, undistorted
from stn.experiments.mnist.distortions import CORNERS, Distortion, Elastic, Pose
from stn.geometry.transforms import control_points

TOLERANCE = 0.02  # relative; OpenCV's rounding to 1/32 pixel and 1/255 causes a tenth of that
BATCH = 128


def measure(bench: Bench, data: str, *overrides: str) -> Iterator[dict]:
    """Images per second of each distortion, for each setting of threads (CPU) or batch (GPU)."""
    n = 64 if bench.quick else 4096
    threads = torch.get_num_threads()
    if bench.device.type == "cpu":
        settings = [("one core", 1, BATCH)]
        if cores() > 1:
            settings.append((f"all {cores()} cores", cores(), BATCH))
    else:
        settings = [(f"batches of {size:,}", threads, size) for size in (BATCH, 4096)]
    for kind in ("r", "rts", "p", "e"):
        cfg = compose(f"data={data}_{kind}", "model=cnn", *overrides)
        warp = distortion(cfg.data)
        digits = undistorted(cfg.data)["train"].images
        digits = digits[torch.arange(n) % len(digits)].contiguous()
        parameters = warp.draw(n, generator(0, "bench"))
        for title, n_threads, batch in settings:
            torch.set_num_threads(n_threads)
            try:
                with ExitStack() as stack:
                    contest = contestants(bench, warp, parameters, digits, batch, n_threads, stack)
                    yield bench.compare(
                        f"{kind.upper()}, {title}",
                        "images/s",
                        contest,
                        TOLERANCE,
                        data=f"{data}_{kind}",
                        canvas=warp.canvas,
                        batch=batch,
                        threads=n_threads,
                        precision="float32",
                    )
            finally:
                torch.set_num_threads(threads)


def contestants(
    bench: Bench, warp: Distortion, parameters: Tensor, digits: Tensor, batch: int, threads: int, stack: ExitStack
) -> dict[str, Work]:
    """Ours and every rival that is installed and has this distortion; `stack` ends their processes."""
    n = len(digits)
    here_parameters, here_digits = parameters.to(bench.device), digits.to(bench.device)
    entries = {OURS: _batched(warp.render, here_parameters, here_digits, batch)}
    if isinstance(warp, Pose):
        entries[f"affine_grid, grid_sample: {batch:,}"] = _batched(plain(warp), here_parameters, here_digits, batch)
        if batch < n:
            entries[f"affine_grid, grid_sample: {n:,}"] = _batched(plain(warp), here_parameters, here_digits, n)
    if installed(bench, "kornia"):
        part = slice(0, max(batch, n // 8) if isinstance(warp, Elastic) else n)  # its spline is slow
        rival = _batched(kornia(warp), here_parameters[part], here_digits[part], batch)
        rival.other = isinstance(warp, Elastic)  # its kernels are centred on the moved points, not on the fixed ones
        entries["kornia (another spline)" if rival.other else "kornia"] = rival
    quarter = n // 4
    suffix = " (CPU)" if bench.device.type == "cuda" else ""
    for name, module, loop in (("OpenCV", "cv2", opencv), ("torchvision v2", "torchvision", torchvision)):
        if installed(bench, module):
            rows = loop(warp, parameters[:quarter], digits[:quarter])
            entries[f"{name}{suffix}"] = spread(rows, quarter, warp.canvas, threads, stack)
    return entries


def installed(bench: Bench, module: str) -> bool:
    """Whether a rival can be imported; prints a line if not."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        bench.skip(f"{module}, not installed here ({error}): `make bench` installs all rivals")
        return False
    return True


def _batched(render: Callable, parameters: Tensor, digits: Tensor, batch: int) -> Work:
    parts = list(zip(parameters.split(batch), digits.split(batch), strict=True))

    def call() -> None:
        for p, d in parts:
            render(p, d)  # without keeping the result, as in a training step

    return Work(call, len(digits), result=lambda: torch.cat([render(p, d) for p, d in parts]))


def plain(warp: Pose) -> Callable[[Tensor, Tensor], Tensor]:
    """PyTorch's `affine_grid` and `grid_sample`, on the whole batch."""

    def render(parameters: Tensor, digits: Tensor) -> Tensor:
        theta = warp.theta(parameters).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(digits), 1, warp.canvas, warp.canvas], align_corners=False)
        return F.grid_sample(digits[:, None].float() / 255, grid, align_corners=False)

    return render


def kornia(warp: Distortion) -> Callable[[Tensor, Tensor], Tensor]:
    """kornia's batched warps, each in kornia's own convention."""
    import kornia.geometry.transform as K

    size = (warp.canvas, warp.canvas)

    def pose(parameters: Tensor, digits: Tensor) -> Tensor:
        images = digits[:, None].float() / 255
        angle, scale, x, y = parameters.unbind(1)
        if not warp.roam and warp.canvas == warp.digit and warp.scale == (1, 1):
            return K.rotate(images, angle)
        centre = torch.full_like(parameters[:, :2], (warp.digit - 1) / 2)
        matrix = K.get_rotation_matrix2d(centre, angle, scale[:, None].expand(-1, 2))
        matrix[:, :, 2] += (warp.canvas - warp.digit) / 2 + torch.stack([x, y], 1)
        return K.warp_affine(images, matrix, size)

    def projective(parameters: Tensor, digits: Tensor) -> Tensor:
        source, target = _corner_pixels(warp, parameters)
        return K.warp_perspective(digits[:, None].float() / 255, K.get_perspective_transform(source, target), size)

    def elastic(parameters: Tensor, digits: Tensor) -> Tensor:
        source, target = _control_points(warp, parameters)
        spline = K.get_tps_transform(target, source)
        return K.warp_image_tps(digits[:, None].float() / 255, source, *spline)

    return {"Pose": pose, "Projection": projective, "Elastic": elastic}[type(warp).__name__]


def opencv(warp: Distortion, parameters: Tensor, digits: Tensor) -> Callable[[int, int, Tensor], None]:
    """OpenCV in a loop over uint8 images, its fastest type; a batch of results is then converted to float32."""
    import cv2

    cv2.setNumThreads(1)  # a digit is too small for several threads
    size, images = (warp.canvas, warp.canvas), digits.numpy()
    shift = (warp.canvas - warp.digit) / 2
    centre = ((warp.digit - 1) / 2,) * 2

    def pose(i: int, angle: float, scale: float, x: float, y: float) -> np.ndarray:
        matrix = cv2.getRotationMatrix2D(centre, angle, scale)
        matrix[0, 2] += shift + x
        matrix[1, 2] += shift + y
        return cv2.warpAffine(images[i], matrix, size, flags=cv2.INTER_LINEAR)

    def rows(first: int, last: int, out: Tensor) -> None:
        for begin in range(first, last, BATCH):
            part = slice(begin, min(begin + BATCH, last))
            where = range(part.start, part.stop)
            if isinstance(warp, Pose):
                pictures = [pose(i, *p) for i, p in zip(where, parameters[part].tolist(), strict=True)]
            elif isinstance(warp, Elastic):
                maps = _spline_maps(warp, parameters[part])
                pictures = [cv2.remap(images[i], m, None, cv2.INTER_LINEAR) for i, m in zip(where, maps, strict=True)]
            else:
                source, target = (points.numpy() for points in _corner_pixels(warp, parameters[part]))
                matrices = map(cv2.getPerspectiveTransform, source, target)
                pictures = [
                    cv2.warpPerspective(images[i], m, size, flags=cv2.INTER_LINEAR)
                    for i, m in zip(where, matrices, strict=True)
                ]
            torch.div(torch.from_numpy(np.stack(pictures))[:, None], 255, out=out[part])

    return rows


def torchvision(warp: Distortion, parameters: Tensor, digits: Tensor) -> Callable[[int, int, Tensor], None]:
    """torchvision's v2 functions on one image at a time, as a data set's transform calls them."""
    import torchvision.transforms.v2.functional as V
    from torchvision.transforms import InterpolationMode

    options = {"interpolation": InterpolationMode.BILINEAR}
    pad = (warp.canvas - warp.digit) // 2
    identity = _identity(warp)

    def pose(image: Tensor, angle: float, scale: float, x: float, y: float) -> Tensor:
        if scale == 1 and not warp.roam:
            return V.rotate(image, angle, **options)
        return V.affine(V.pad(image, [pad]), -angle, [x, y], scale, [0.0, 0.0], **options)

    def rows(first: int, last: int, out: Tensor) -> None:
        for i in range(first, last):
            image = V.to_dtype(digits[i, None], torch.float32, scale=True)
            if isinstance(warp, Pose):
                out[i] = pose(image, *parameters[i].tolist())
            elif isinstance(warp, Elastic):
                maps = torch.from_numpy(_spline_maps(warp, parameters[i, None]))
                out[i] = V.elastic(image, (2 * maps + 1) / warp.digit - 1 - identity, **options)
            else:
                source, target = _corner_pixels(warp, parameters[i, None])
                out[i] = V.perspective(image, (source[0] + 0.5).tolist(), (target[0] + 0.5).tolist(), **options)

    return rows


def _corner_pixels(warp: Distortion, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (n, 4, 2) of the image in the digit, and where they go on the canvas; 0 is the first pixel's centre."""
    corners = parameters.new_tensor(CORNERS)
    zoom = warp.canvas / warp.digit / parameters[:, 0]
    source = ((corners * zoom[:, None, None] + 1) * warp.digit - 1) / 2
    target = ((corners + 1) * warp.canvas - 1) / 2 + parameters[:, 1:9].view(-1, 4, 2)
    return source.contiguous(), target.contiguous()


def _control_points(warp: Elastic, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Where the control points (n, K, 2) of the canvas lie in the digit, and where on the canvas, both normalised."""
    fixed = (warp.reach * control_points(warp.k)).to(parameters)
    moved = fixed + 2 * parameters[:, 1:].view(-1, warp.k**2, 2) / warp.canvas
    zoom = warp.canvas / warp.digit / parameters[:, 0]
    return moved * zoom[:, None, None], fixed.expand_as(moved)


def _spline_maps(warp: Elastic, parameters: Tensor) -> np.ndarray:
    """Digit pixels (n, canvas, canvas, 2) of every canvas pixel: SciPy's spline, solved once, times the points."""
    source, _ = _control_points(warp, parameters)
    points = (_spline_weights(warp) @ source.transpose(0, 1).flatten(1)).unflatten(1, source.shape[::2]).transpose(0, 1)
    return (((points + 1) * warp.digit - 1) / 2).reshape(-1, warp.canvas, warp.canvas, 2).numpy()


_solved: dict[Elastic, Tensor] = {}


def _spline_weights(warp: Elastic) -> Tensor:
    if warp not in _solved:
        from scipy.interpolate import RBFInterpolator

        fixed = (warp.reach * control_points(warp.k)).numpy()
        spline = RBFInterpolator(fixed, np.eye(len(fixed)), kernel="thin_plate_spline", degree=1)
        _solved[warp] = torch.from_numpy(spline(_identity(warp).view(-1, 2).numpy())).float()
    return _solved[warp]


def _identity(warp: Distortion) -> Tensor:
    """Normalised centres (1, canvas, canvas, 2) of the canvas's pixels."""
    axis = (2 * torch.arange(warp.canvas) + 1) / warp.canvas - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]


def spread(rows: Callable[[int, int, Tensor], None], n: int, canvas: int, processes: int, stack: ExitStack) -> Work:
    """Runs `rows(first, last, out)` over n images, divided among `processes` processes."""
    out = torch.zeros(n, 1, canvas, canvas).share_memory_()

    def together() -> Tensor:
        if processes == 1:
            rows(0, n, out)
        else:
            pool.starmap(_share, shares)
        return out

    if processes > 1:
        global _rows, _out
        _rows, _out = rows, out  # forked processes inherit these
        pool = multiprocessing.get_context("fork").Pool(processes, torch.set_num_threads, (1,))
        stack.callback(pool.terminate)
        edges = [n * i // processes for i in range(processes + 1)]
        shares = list(pairwise(edges))
    return Work(together, n)


def _share(first: int, last: int) -> None:
    _rows(first, last, _out)

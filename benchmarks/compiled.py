"""Ours against what a user would try first: `torch.compile` of PyTorch's own transformer and of a plain loop.

Ours is the module of the README, called from Python and not compiled. Both modules have the same localisation network
and weights; results and gradients are compared with ours before anything is timed. Compiling is timed separately.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor, nn

from benchmarks.timing import OURS, Bench, Work
from benchmarks.training import cells, compared
from benchmarks.transformer import TOLERANCE, affine_by_pytorch
from stn.geometry.transforms import Affine
from stn.nn.transformer import SpatialTransformer
from stn.training.run import keep_memory, quieten

SIDES, CHANNELS = (28, 64, 224), (1, 3, 64, 256)
VALUES = 2**22  # the most values in a batch, which has up to 128 images
PLAIN = "affine_grid, grid_sample"
MODES = {"compiled": None, "compiled, max-autotune": "max-autotune"}


class Tutorial(nn.Module):
    """A spatial transformer made of PyTorch's functions, with the localisation network of one of ours."""

    def __init__(self, ours: SpatialTransformer):
        super().__init__()
        self.localisation, self.regression = ours.localisation, ours.regression

    def forward(self, U: Tensor) -> Tensor:
        return affine_by_pytorch(U, self.regression(self.localisation(U)))


def modules(bench: Bench) -> Iterator[dict]:
    """Images per second of the module, forward and backward, at sizes people use."""
    kinds = itertools.product((torch.float32, torch.bfloat16), (torch.contiguous_format, torch.channels_last))
    for dtype, layout in list(kinds)[: 1 if bench.quick else None]:
        for side, channels in list(itertools.product(SIDES, CHANNELS))[: 1 if bench.quick else None]:
            if channels > 1 or layout == torch.contiguous_format:  # one channel has only one layout
                yield _compared(bench, side, channels, dtype, layout)


def _compared(bench: Bench, side: int, channels: int, dtype: torch.dtype, layout: torch.memory_format) -> dict:
    batch = 2 if bench.quick else max(1, min(128, VALUES // (channels * side**2)))
    torch.manual_seed(0)
    localisation = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    ours = SpatialTransformer(localisation, 16 * channels, Affine()).to(bench.device)
    nn.init.normal_(ours.regression.weight, std=0.1 / channels**0.5)  # thetas near the identity, one for each image
    U = torch.rand(batch, channels, side, side, device=bench.device).to(dtype).contiguous(memory_format=layout)
    upstream = torch.randn_like(U) / side
    parameters = list(ours.regression.parameters())

    def work(module: Callable[[Tensor], Tensor]) -> Work:
        def forward_and_backward() -> tuple[Tensor, ...]:
            leaf = U.detach().requires_grad_()
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                V = module(leaf)
            return V, *torch.autograd.grad(V, [leaf, *parameters], upstream.to(V.dtype))

        return Work(forward_and_backward, batch)

    plain = Tutorial(ours)
    contest = {OURS: work(ours), PLAIN: work(plain)}
    compiling = {}
    for name, mode in MODES.items():
        torch._dynamo.reset()  # each compiles from scratch
        contest[f"{PLAIN}, {name}"] = work(torch.compile(plain, mode=mode, fullgraph=True, dynamic=False))
        compiling[name] = _seconds(contest[f"{PLAIN}, {name}"].call)
    precision = str(dtype).removeprefix("torch.")
    title = f"{side} x {side}, {channels} channel{'s' * (channels > 1)}, {precision}"
    return bench.compare(
        title + ", channels last" * (layout == torch.channels_last),
        "images/s",
        contest,
        TOLERANCE,
        shape=list(U.shape),
        compiling=compiling,
        backward=True,
        precision=precision,
        threads=torch.get_num_threads(),
    )


def loops(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[dict]:
    """Steps per second of Table 1's networks on R, budget quick: our learner against plain loops, also compiled."""
    quieten()
    keep_memory()
    for cfg, digits, steps in cells(bench, data, scratch, *overrides):
        torch._dynamo.reset()
        yield compared(bench, cfg, digits, steps, MODES)


def describe_compiling(rows: list[dict]) -> str:
    """How long compiling took, in the order of `MODES`."""
    spans = []
    for mode in MODES:
        seconds = sorted(row["compiling"][mode] for row in rows)
        spans.append(f"{mode} {seconds[0]:.0f} to {seconds[-1]:.0f} s")
    return f"The first call, in which a rival is compiled, is not in these rates: {', '.join(spans)}\n"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""Convolutions of small images as Triton kernels of our own, for a GPU in single precision.

On digits cuDNN loses most of its time because it cannot know that the first layer has one channel, that a max-pool and
a ReLU follow it, and that six of seven taps of a window of the input's gradient lie outside a 4 x 4 map. Here the first
layer is one kernel, whose full-size map never reaches memory. A later convolution computes, pixel by pixel, only the
taps inside the map, as products over the batch. Its weight gradient is cuDNN's, which is faster at that, and is in TF32
also under autocast.

The sums are those of `torch.nn.functional`, with which the tests compare them; only their order differs, and it is the
same in every run. Precision is that of PyTorch's own convolutions: TF32 products if `torch.backends.cudnn.allow_tf32`,
bfloat16 ones under autocast; all is summed and stored in float32.

Layouts: images (B, H, H) and maps (B, H, H, C) are square and dense, channels last; so is a weight (O, K, K, C).
Channels are padded with zeros to a multiple of 16, for loads of 16 bytes, so between layers a map has `wide` channels,
more than the `filters` of the layer. `code` says for each pooled value which of its four inputs came through: 0 to 3,
row by row, or 4 if none did.
"""

import warnings
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TAPS = 32  # taps of a first convolution that a product takes at a time
WIDEST = 128  # channels: a product takes all at once, and more would not fit into shared memory
PROCESSORS = 132  # of an H100: programs are cut so that each has something to do
# Rows of a program, warps, stages of loads ahead; measured on an H100.
LAUNCH = {
    "first_forward": (32, 4, 3),
    "first_weights": (32, 4, 3),
    "first_taps": (128, 4, 3),
    "forward": (64, 8, 4),
    "maps": (32, 4, 3),
}


@lru_cache
def usable(device: torch.device) -> bool:
    """Whether the device is a GPU of NVIDIA's that has TF32 and bfloat16 products, and kernels can be built for it."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        tensor = torch.zeros(1, device=device)
        _first_images[(1,)](tensor, torch.empty_like(tensor), 1, 1, 1, KERNEL=1, BLOCK=16)
    except Exception as error:  # Triton takes a C compiler and Python's headers, and misses them in many ways
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        warnings.warn(f"cuDNN's convolutions, since Triton cannot build ours here ({reason})", stacklevel=2)
        return False
    return True


def run(layers: nn.Sequential, images: Tensor) -> Tensor:
    """What `layers` make of images (B, C, H, H), float32: each layer by a kernel from here if there is one."""
    x, todo, filters = images, list(layers), None  # of the last kernel: its channels without the padding
    while todo:
        layer = todo.pop(0)
        if isinstance(layer, nn.Conv2d) and _plain(layer, x):
            filters = layer.out_channels
            if x.shape[1] == 1 and _pools(todo):
                x = first_layer(x, layer.weight, layer.bias, todo[0].ceil_mode)  # type: ignore[arg-type]  # _plain, _pools
                del todo[:2]
            else:
                x = convolution(x, layer.weight, layer.bias)  # type: ignore[arg-type]
        else:
            if filters and isinstance(layer, nn.Flatten | nn.Conv2d):
                x, filters = x[:, :filters], None
            x = layer(x)
    return x[:, :filters] if filters else x


def first_layer(images: Tensor, weight: Tensor, bias: Tensor, ceil: bool) -> Tensor:
    """relu(max_pool2d(conv2d(images, weight, bias), 2)) of images (B, 1, H, H): (B, F padded, h, h)."""
    return _FirstLayer.apply(images, weight, bias, ceil)  # type: ignore[no-any-return, no-untyped-call]


def convolution(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(maps, weight, bias) of maps (B, C padded, H, H): (B, O padded, h, h)."""
    channels = maps.shape[1] - weight.shape[1]
    if maps.shape[2] == weight.shape[2]:  # one place: a product
        weight = _nhwc(F.pad(weight, (0, 0, 0, 0, 0, channels)))
        return F.linear(_nhwc(maps).flatten(1), weight.flatten(1), bias)[..., None, None]
    maps = F.pad(maps, (0, 0, 0, 0, 0, -maps.shape[1] % 16))
    padding = -len(weight) % 16
    weight = F.pad(weight, (0, 0, 0, 0, 0, maps.shape[1] - weight.shape[1], 0, padding))
    return _Convolution.apply(maps, weight, F.pad(bias, (0, padding)))  # type: ignore[no-any-return, no-untyped-call]


def _plain(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is a convolution that the kernels know: square, without stride, padding, dilation or groups."""
    simple = layer.stride == layer.dilation == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
    square = layer.kernel_size[0] == layer.kernel_size[1] and x.shape[2] == x.shape[3]
    narrow = max(layer.in_channels, layer.out_channels) <= WIDEST
    return simple and square and narrow and layer.bias is not None and x.dtype == torch.float32


def _pools(todo: list[nn.Module]) -> bool:
    """Whether a max-pool by 2 and a ReLU follow."""
    pool, relu = [*todo, None, None][:2]
    by_two = isinstance(pool, nn.MaxPool2d) and pool.kernel_size == pool.stride == 2 and pool.padding == 0
    return by_two and isinstance(relu, nn.ReLU)


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor, ceil: bool) -> Tensor:
        batch, _, side, _ = images.shape
        filters, kernel = weight.shape[0], weight.shape[2]
        full = side - kernel + 1
        pooled = (full + 1) // 2 if ceil else full // 2
        wide = triton.cdiv(filters, 16) * 16
        images, weight = images.contiguous(), weight.contiguous()
        out = _maps_like(images, batch, wide, pooled)
        code = torch.empty(out.numel(), dtype=torch.uint8, device=out.device)
        ctx.how, ctx.facts = _precision(images), (side, full, pooled, wide)
        n = batch * pooled**2
        rows, how = _launch("first_forward", images, ctx.how, wide)
        _first_forward[(triton.cdiv(n, rows),)](
            images, weight, bias, out, code, n, side, full, pooled, filters, wide,
            KERNEL=kernel, CHUNK=TAPS, BM=rows, BF=_block(wide), **how,
        )  # fmt: skip
        ctx.save_for_backward(images, weight, code)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        images, weight, code = ctx.saved_tensors
        side, full, pooled, wide = ctx.facts
        batch, filters, kernel = len(images), weight.shape[0], weight.shape[2]
        gradient = _nhwc(gradient)
        n, chunks = batch * pooled**2, triton.cdiv(kernel**2, TAPS)
        rows, how = _launch("first_weights", images, ctx.how, wide)
        tiles = triton.cdiv(triton.cdiv(n, rows), PROCESSORS)  # of rows, for each program
        splits = triton.cdiv(n, rows * tiles)
        parts = images.new_empty(splits, kernel**2 + 1, wide)
        _first_weights[(splits, chunks)](
            images, gradient, code, parts, n, side, pooled, wide, tiles,
            KERNEL=kernel, CHUNK=TAPS, BM=rows, BF=_block(wide), **how,
        )  # fmt: skip
        to_weight, to_bias = torch.empty_like(weight), images.new_empty(filters)
        _first_sums[(kernel**2 + 1,)](
            parts, to_weight, to_bias, splits, filters, wide, KERNEL=kernel, BS=32, BF=_block(wide)
        )
        to_images = None
        if ctx.needs_input_grad[0]:
            taps = images.new_empty(batch, kernel**2, full**2)
            rows, how = _launch("first_taps", images, ctx.how, wide)
            _first_taps[(batch, triton.cdiv(full**2, rows), chunks)](
                gradient, code, weight, taps, full, pooled, filters, wide,
                KERNEL=kernel, CHUNK=TAPS, BN=rows, BF=_block(wide), **how,
            )  # fmt: skip
            to_images = torch.empty_like(images)
            _first_images[(triton.cdiv(images.numel(), 256),)](
                taps, to_images, images.numel(), side, full, KERNEL=kernel, BLOCK=256
            )
        return to_images, to_weight, to_bias, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps, weight = _nhwc(maps), _nhwc(weight)
        batch, side, _, channels = maps.shape
        filters, kernel = weight.shape[:2]
        ctx.how, ctx.out_side = _precision(maps), side - kernel + 1
        out = _maps_like(maps, batch, filters, ctx.out_side)
        rows, how = _launch("forward", maps, ctx.how, channels, filters, positions=ctx.out_side**2)
        _forward[(ctx.out_side**2, triton.cdiv(batch, rows))](
            maps, weight, bias, out, batch, side, ctx.out_side, channels, filters,
            KERNEL=kernel, BM=rows, BC=_block(channels), BO=_block(filters), **how,
        )  # fmt: skip
        ctx.save_for_backward(maps, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        maps, weight = ctx.saved_tensors
        batch, side, _, channels = maps.shape
        filters, kernel, out_side = *weight.shape[:2], ctx.out_side  # type: ignore[misc]
        gradient = _nhwc(gradient)
        to_maps = None
        if ctx.needs_input_grad[0]:
            to_maps = torch.empty_like(maps)
            rows, how = _launch("maps", maps, ctx.how, channels, filters, positions=side**2)
            _maps[(side**2, triton.cdiv(batch, rows))](
                gradient, weight, to_maps, batch, side, out_side, channels, filters,
                KERNEL=kernel, BM=rows, BC=_block(channels), BO=_block(filters), **how,
            )  # fmt: skip
            to_maps = to_maps.permute(0, 3, 1, 2)
        maps, weight, gradient = (part.permute(0, 3, 1, 2) for part in (maps, weight, gradient))
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient, maps, weight, [filters], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]
        )
        return to_maps, to_weight, to_bias


def _nhwc(tensor: Tensor) -> Tensor:
    """(A, C, H, W) as a dense (A, H, W, C); no copy where it is channels last."""
    return tensor.permute(0, 2, 3, 1).contiguous()


def _maps_like(tensor: Tensor, batch: int, channels: int, side: int) -> Tensor:
    """Room for maps (B, C, side, side), channels last."""
    shape = (batch, channels, side, side)
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last)


def _block(channels: int) -> int:
    return triton.next_power_of_2(channels)  # type: ignore[no-any-return]


def _launch(
    kernel: str, like: Tensor, precision: str, *channels: int, positions: int = 0
) -> tuple[int, dict[str, Any]]:
    """Rows of a program of a kernel on the device of `like`, and how it is launched.

    Wide blocks take more warps, and fewer stages to fit into shared memory. A kernel with one program for each of
    `positions` takes fewer rows where multiprocessors would otherwise be idle.
    """
    rows, warps, stages = LAUNCH[kernel]
    wide = max(map(_block, channels))
    if wide > 64:
        warps, stages = 8, min(stages, 2)
    if positions:
        while rows > 16 and positions * len(like) // rows < PROCESSORS // 2:
            rows //= 2
        while stages > 1 and 4 * stages * wide * (rows + wide) > _shared_memory(like.device):
            stages -= 1
    return rows, {"HOW": precision, "num_warps": warps, "num_stages": stages}


@lru_cache
def _shared_memory(device: torch.device) -> float:
    """Bytes of shared memory that a program may use: 227 KiB on an H100, 99 KiB on most desktop cards."""
    if device.type != "cuda":  # in Triton's interpreter
        return float("inf")
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined, no-any-return]


def _precision(images: Tensor) -> str:
    """The precision of products."""
    if torch.is_autocast_enabled(images.device.type):
        return "bf16"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


@triton.jit
def _dot(a, b, total, HOW: tl.constexpr):
    if HOW == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        return tl.dot(a, b, total, input_precision=HOW)


@triton.jit
def _first_forward(
    images, weight, bias, out, code, n, side, full, pooled, filters, wide,
    KERNEL: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """BM pooled values of all filters: the largest of four sums over the taps, plus the bias, if that is positive."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    x, y, b = m % pooled, m // pooled % pooled, m // (pooled * pooled)
    corner = images + (b * side + 2 * y) * side + 2 * x
    f = tl.arange(0, BF)
    best = tl.full((BM, BF), float("-inf"), tl.float32)
    which = tl.zeros((BM, BF), tl.int32)
    for s in tl.static_range(4):
        there = (m < n) & (2 * y + s // 2 < full) & (2 * x + s % 2 < full)
        total = tl.zeros((BM, BF), tl.float32)
        for first in tl.static_range(0, KERNEL * KERNEL, CHUNK):
            k = first + tl.arange(0, CHUNK)
            place = (k // KERNEL + s // 2) * side + k % KERNEL + s % 2
            mask = k < KERNEL * KERNEL
            a = tl.load(corner[:, None] + place[None, :], mask=there[:, None] & mask[None, :], other=0.0)
            w = tl.load(
                weight + f[None, :] * (KERNEL * KERNEL) + k[:, None],
                mask=(f < filters)[None, :] & mask[:, None],
                other=0.0,
            )
            total = _dot(a, w, total, HOW)
        total = tl.where(there[:, None], total, float("-inf"))
        better = (total > best) | (total != total)  # NaN goes through, as through torch's max-pool
        best = tl.where(better, total, best)
        which = tl.where(better, s, which)
    best += tl.load(bias + f, mask=f < filters, other=0.0)[None, :]
    place = m[:, None] * wide + f[None, :]
    mask = (m < n)[:, None] & (f < wide)[None, :]
    tl.store(out + place, tl.where(best < 0, 0.0, best), mask=mask)
    tl.store(code + place, tl.where(best > 0, which, 4).to(tl.uint8), mask=mask)


@triton.jit
def _first_weights(
    images, gradient, code, parts, n, side, pooled, wide, tiles,
    KERNEL: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """A split's part of the gradients of CHUNK taps of all filters, and as a row after the last tap, of the biases."""
    split, chunk = tl.program_id(0), tl.program_id(1)
    k = chunk * CHUNK + tl.arange(0, CHUNK)
    ky, kx = k // KERNEL, k % KERNEL
    f = tl.arange(0, BF)
    total = tl.zeros((CHUNK, BF), tl.float32)
    of_bias = tl.zeros((BF,), tl.float32)
    for tile in range(tiles):
        m = (split * tiles + tile) * BM + tl.arange(0, BM)
        x, y, b = m % pooled, m // pooled % pooled, m // (pooled * pooled)
        mask = (m < n)[:, None] & (f < wide)[None, :]
        g = tl.load(gradient + m[:, None] * wide + f[None, :], mask=mask, other=0.0)
        c = tl.load(code + m[:, None] * wide + f[None, :], mask=mask, other=4)
        of_bias += tl.sum(tl.where(c < 4, g, 0.0), 0)
        for s in tl.static_range(4):
            row, column = 2 * y[None, :] + ky[:, None] + s // 2, 2 * x[None, :] + kx[:, None] + s % 2
            there = (m < n)[None, :] & (k < KERNEL * KERNEL)[:, None] & (row < side) & (column < side)
            a = tl.load(images + (b[None, :] * side + row) * side + column, mask=there, other=0.0)
            total = _dot(a, tl.where(c == s, g, 0.0), total, HOW)
    part = parts + split * ((KERNEL * KERNEL + 1) * wide) + f
    tl.store(part[None, :] + k[:, None] * wide, total, mask=(k < KERNEL * KERNEL)[:, None] & (f < wide)[None, :])
    if chunk == 0:
        tl.store(part + KERNEL * KERNEL * wide, of_bias, mask=f < wide)


@triton.jit
def _first_sums(
    parts, to_weight, to_bias, splits, filters, wide,
    KERNEL: tl.constexpr, BS: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """The sum of all splits' parts of one tap of all filters, or of the biases, BS splits at a time."""
    tap = tl.program_id(0)
    f = tl.arange(0, BF)
    total = tl.zeros((BS, BF), tl.float32)
    for first in range(0, splits, BS):
        split = first + tl.arange(0, BS)
        mask = (split < splits)[:, None] & (f < wide)[None, :]
        place = (split[:, None] * (KERNEL * KERNEL + 1) + tap) * wide + f[None, :]
        total += tl.load(parts + place, mask=mask, other=0.0)
    total = tl.sum(total, 0)
    if tap == KERNEL * KERNEL:
        tl.store(to_bias + f, total, mask=f < filters)
    else:
        tl.store(to_weight + f * (KERNEL * KERNEL) + tap, total, mask=f < filters)


@triton.jit
def _first_taps(
    gradient, code, weight, taps, full, pooled, filters, wide,
    KERNEL: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """What BN places of an image's full-size map hand back through CHUNK taps, summed over filters: (CHUNK, BN)."""
    b = tl.program_id(0)
    place = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    f = tl.arange(0, BF)
    y, x = place // full, place % full
    there = (place < full * full) & (y // 2 < pooled) & (x // 2 < pooled)
    source = ((b * pooled + y // 2) * pooled + x // 2) * wide
    mask = (f < wide)[:, None] & there[None, :]
    g = tl.load(gradient + source[None, :] + f[:, None], mask=mask, other=0.0)
    c = tl.load(code + source[None, :] + f[:, None], mask=mask, other=4)
    g = tl.where(c == (y % 2 * 2 + x % 2)[None, :], g, 0.0)
    w = tl.load(
        weight + f[None, :] * (KERNEL * KERNEL) + k[:, None],
        mask=(f < filters)[None, :] & (k < KERNEL * KERNEL)[:, None],
        other=0.0,
    )
    total = _dot(w, g, tl.zeros((CHUNK, BN), tl.float32), HOW)
    target = (b * (KERNEL * KERNEL) + k[:, None]) * (full * full) + place[None, :]
    tl.store(taps + target, total, mask=(k < KERNEL * KERNEL)[:, None] & (place < full * full)[None, :])


@triton.jit
def _first_images(taps, to_images, n, side, full, KERNEL: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of what came back to each pixel."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y, b = i % side, i // side % side, i // (side * side)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(KERNEL * KERNEL):
        row, column = y - k // KERNEL, x - k % KERNEL
        there = (i < n) & (row >= 0) & (row < full) & (column >= 0) & (column < full)
        total += tl.load(taps + ((b * KERNEL * KERNEL + k) * full + row) * full + column, mask=there, other=0.0)
    tl.store(to_images + i, total, mask=i < n)


@triton.jit
def _forward(
    maps, weight, bias, out, batch, side, out_side, channels, filters,
    KERNEL: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """All filters at one place of BM images."""
    place = tl.program_id(0)
    y, x = place // out_side, place % out_side
    b = tl.program_id(1) * BM + tl.arange(0, BM)
    c, o = tl.arange(0, BC), tl.arange(0, BO)
    mask_a = (b < batch)[:, None] & (c < channels)[None, :]
    mask_w = (c < channels)[:, None] & (o < filters)[None, :]
    a_at = maps + b[:, None] * (side * side * channels) + c[None, :]
    w_at = weight + o[None, :] * (KERNEL * KERNEL * channels) + c[:, None]
    total = tl.zeros((BM, BO), tl.float32)
    for k in range(KERNEL * KERNEL):
        a = tl.load(a_at + ((y + k // KERNEL) * side + x + k % KERNEL) * channels, mask=mask_a, other=0.0)
        w = tl.load(w_at + k * channels, mask=mask_w, other=0.0)
        total = _dot(a, w, total, HOW)
    total += tl.load(bias + o, mask=o < filters, other=0.0)[None, :]
    target = out + (b[:, None] * (out_side * out_side) + place) * filters + o[None, :]
    tl.store(target, total, mask=(b < batch)[:, None] & (o < filters)[None, :])


@triton.jit
def _maps(
    gradient, weight, to_maps, batch, side, out_side, channels, filters,
    KERNEL: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """The gradient of all channels at one pixel of BM images: over the taps that reach it from within the output."""
    pixel = tl.program_id(0)
    y, x = pixel // side, pixel % side
    b = tl.program_id(1) * BM + tl.arange(0, BM)
    c, o = tl.arange(0, BC), tl.arange(0, BO)
    mask_g = (b < batch)[:, None] & (o < filters)[None, :]
    mask_w = (o < filters)[:, None] & (c < channels)[None, :]
    g_at = gradient + b[:, None] * (out_side * out_side * filters) + o[None, :]
    w_at = weight + o[:, None] * (KERNEL * KERNEL * channels) + c[None, :]
    total = tl.zeros((BM, BC), tl.float32)
    top, bottom = tl.maximum(0, y - out_side + 1), tl.minimum(KERNEL, y + 1)
    start, end = tl.maximum(0, x - out_side + 1), tl.minimum(KERNEL, x + 1)
    across = end - start
    for i in range((bottom - top) * across):
        ky, kx = top + i // across, start + i % across
        g = tl.load(g_at + ((y - ky) * out_side + x - kx) * filters, mask=mask_g, other=0.0)
        w = tl.load(w_at + (ky * KERNEL + kx) * channels, mask=mask_w, other=0.0)
        total = _dot(g, w, total, HOW)
    target = to_maps + (b[:, None] * (side * side) + pixel) * channels + c[None, :]
    tl.store(target, total, mask=(b < batch)[:, None] & (c < channels)[None, :])

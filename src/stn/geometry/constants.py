"""Tensors that depend on numbers alone, such as pixel centres and spline weights: computed once, in any mode of torch.

They are kept because computing them takes longer than using them, and because a step that is captured as a CUDA graph
must not copy anything from the host. One store holds them for the whole process and for all threads. It is bounded by
`BOUND` bytes, and the least recently used leave first.

A kept tensor is always a plain one with values and belongs to no mode of torch: it is computed outside of inference
mode, fake tensors, tracing and functorch, even if one of them asks for it. A trace receives it as a constant of its
graph. If a size is dynamic, or the constant would exceed the bound, the trace records the arithmetic instead.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

BOUND = 64 * 2**20  # bytes kept in all; a program that alternates between larger constants may raise it
ENTRY = 1024  # bytes that an entry takes besides its values: bounds the number of small ones
CPU = torch.device("cpu")
FLOAT64 = ("cpu", "cuda", "meta")  # devices that have float64; MPS and others have none, or were never tried


def constant(
    make: Callable[..., Tensor],
    numbers: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """`make(*numbers, device)` as `dtype` on `device`. Shared by all callers: do not write to it.

    If a caller writes to it all the same, the next caller receives a new tensor, provided that torch can see the write
    (it cannot see those through `.data` or NumPy).

    Args:
        make: a module-level function that returns a float64 tensor on the device that it is given. It is run on the
            CPU, so that the values are the same for all devices; a trace runs it on `device`.
        numbers: ints and floats, or tuples of them. With `make`, dtype and device they are the key of the tensor.
        shape: of the result of `make`.
    """
    if torch.compiler.is_dynamo_compiling():
        if device.type == "meta" or not _known_to_dynamo(numbers) or _bytes(shape, dtype) > BOUND:
            return _recorded(make, numbers, dtype, device)
        return _literal(make, numbers, shape, dtype, device)[0]
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return _under_a_mode(make, numbers, shape, dtype, device)
    value = _store.get((make, numbers, dtype, device))
    return _kept(make, numbers, shape, dtype, device) if value is None else value


def float64_device(device: torch.device) -> torch.device:
    """The device itself if it has float64, else the CPU."""
    return device if device.type in FLOAT64 else CPU


def clear() -> None:
    """Forget all constants; those that a CUDA graph reads stay in memory."""
    _store.clear()


def _under_a_mode(
    make: Callable[..., Tensor],
    numbers: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    graph = get_proxy_mode() is not None
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    if _symbolic(numbers):
        return _recorded(make, numbers, dtype, device)
    if graph and _bytes(shape, dtype) <= BOUND and _present(device):
        # What `torch.tensor` does with a literal: every mode knows this operation as the entry of a constant.
        return torch.ops.aten.lift_fresh(_kept(make, numbers, shape, dtype, device))  # type: ignore[no-any-return]
    if graph or fake:
        return _recorded(make, numbers, dtype, device)
    return _kept(make, numbers, shape, dtype, device)


def _recorded(
    make: Callable[..., Tensor], numbers: tuple[Any, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The arithmetic itself, as operations of the mode."""
    return make(*numbers, float64_device(device)).to(dtype).to(device)


def _kept(
    make: Callable[..., Tensor],
    numbers: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    key = (make, numbers, dtype, device)
    value = _store.get(key)
    if value is None:
        if device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=device)
        with _outside_of_modes():
            value = make(*numbers, CPU).to(dtype).to(device)
        if not _symbolic(numbers):
            _store.put(key, value)
    return value


def _literal(
    make: Callable[..., Tensor],
    numbers: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor]:
    return (
        _kept(make, numbers, shape, dtype, device),
    )  # bare tensors of one function would all have the same name in a graph


# What `torch.compiler.assume_constant_result` sets: Dynamo calls the function and takes the result as a constant of the
# graph. The decorator itself would import the compiler, which takes as long as the rest of torch.
_literal._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def _outside_of_modes() -> Iterator[None]:
    """Within this context operations work on plain tensors with values and are not recorded, whatever the mode."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # torch's stubs lack it
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))  # else they could not take part in training later
            if torch._C._len_torch_dispatch_stack() or torch._ops._len_torch_dispatch_stack_pre_dispatch():
                from torch.utils._python_dispatch import _disable_current_modes

                stack.enter_context(_disable_current_modes())
            if torch._C._functorch.peek_interpreter_stack() is not None:
                from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

                stack.enter_context(temporarily_clear_interpreter_stack())
            yield
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def _symbolic(numbers: tuple[Any, ...]) -> bool:
    """Whether a trace leaves one of the numbers open. `torch.jit.trace` writes sizes as tensors."""
    return any(
        _symbolic(number) if isinstance(number, tuple) else isinstance(number, (torch.SymInt, torch.SymFloat, Tensor))
        for number in numbers
    )


def _known_to_dynamo(numbers: tuple[Any, ...]) -> bool:
    """`not _symbolic` for Dynamo, to which a number that is left open is an ordinary int."""
    for number in numbers:
        if isinstance(number, tuple):
            if not _known_to_dynamo(number):
                return False
        elif not torch.fx.experimental.symbolic_shapes.has_static_value(number):
            return False
    return True


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _present(device: torch.device) -> bool:
    """Whether a tensor with values can lie on the device; fake ones lie on any."""
    if device.type in ("cpu", "meta"):
        return device.type == "cpu"
    try:
        return torch.get_device_module(device).is_available()  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError):  # torch has no module for it
        return False


class _Entry(NamedTuple):
    value: Tensor
    version: int  # of the value, which torch counts up at each write
    bytes: int
    on_gpu: bool


class _Store:
    """Tensors by key, `BOUND` bytes in all; the least recently used leaves.

    A tensor that is read while a CUDA graph is captured stays in memory for good, and is not counted: the graph knows
    its address, but does not keep it alive.
    """

    def __init__(self) -> None:
        self.pinned: dict[int, Tensor] = {}
        self.renew()
        self.clear()

    def renew(self) -> None:
        """After a fork: a lock that another thread held would stay locked in the child."""
        self.lock = threading.Lock()

    def clear(self) -> None:
        with self.lock:
            self.entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
            self.bytes = 0

    def get(self, key: tuple[Any, ...]) -> Tensor | None:
        with self.lock:
            entry = self.entries.get(key)
            if entry is None:
                return None
            value, version, _, on_gpu = entry
            if value._version != version:  # somebody wrote to it
                self._drop(key)
                return None
            self.entries.move_to_end(key)
            if on_gpu and torch.cuda.is_current_stream_capturing():
                self.pinned[id(value)] = value
            return value

    def put(self, key: tuple[Any, ...], value: Tensor) -> None:
        size = value.untyped_storage().nbytes() + ENTRY
        if size > BOUND or type(value) is not Tensor:
            return
        with self.lock:
            if key in self.entries:  # put by another thread in the meantime
                self._drop(key)
            self.entries[key] = _Entry(value, value._version, size, value.is_cuda)
            self.bytes += size
            while self.bytes > BOUND:
                self._drop(next(iter(self.entries)))

    def _drop(self, key: tuple[Any, ...]) -> None:
        self.bytes -= self.entries.pop(key).bytes


_store = _Store()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_store.renew)

"""Promises of the geometry in every mode of torch: what it keeps, devices, and what exporters and tracers receive."""

import contextlib
import gc
import os
import signal
import threading
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stn import SpatialTransformer
from stn.experiments.mnist.distortions import Elastic, Projection
from stn.geometry import constants
from stn.geometry.sampling import LearnableSampler, bicubic, bilinear, integer, trilinear
from stn.geometry.transforms import (
    Affine,
    Affine3D,
    Attention,
    Crop,
    Projective,
    Similarity,
    ThinPlateSpline,
    Translation,
    pixel_centres,
)
from stn.nn.localisation import convolutional

CPU = torch.device("cpu")
FAMILIES = [Translation(0.5), Attention(), Similarity(), Crop(), Affine(), Projective(), ThinPlateSpline(4), Affine3D()]
SAMPLERS = {"integer": integer, "bilinear": bilinear, "bicubic": bicubic, "learnable": LearnableSampler()}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)


@pytest.fixture(autouse=True)
def fresh():
    """As in a process of its own."""
    torch.manual_seed(0)
    constants.clear()
    yield
    constants.clear()


def volumetric(family) -> bool:
    return isinstance(family, Affine3D)


def size_for(family) -> tuple[int, ...]:
    return (3, 4, 5) if volumetric(family) else (4, 5)


def theta_for(family, n=3):
    return family.identity() + 0.1 * torch.randn(n, family.n_parameters)


class Mean(nn.Module):
    """A localisation network for images and volumes of any size."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 6)

    def forward(self, U):
        return torch.tanh(self.layer(U.flatten(2).mean(2)))


def transformer(family, sampler=bilinear, **how):
    net = SpatialTransformer(Mean(), 6, family, sampler, **how)
    nn.init.normal_(net.regression.weight, std=0.05)
    return net.eval()


def images(family, n=2, larger=False):
    size = ((9, 8, 7) if larger else (5, 6, 4)) if volumetric(family) else ((9, 11) if larger else (6, 7))
    return torch.rand(n, 2, *size)


def kept() -> list[torch.Tensor]:
    return [entry.value for entry in constants._store.entries.values()]


def assert_plain(tensors) -> None:
    """Tensors with values that belong to no mode."""
    for tensor in tensors:
        assert type(tensor) is torch.Tensor and tensor.device.type != "meta" and not tensor.is_inference()
        assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and not torch._is_functional_tensor(tensor)
        assert tensor.isfinite().all()


# What the modes see. Each runs a family's grid and points and says nothing of their values.


def export(family):
    torch.export.export(transformer(family), (images(family),))


def export_strictly(family):
    torch.export.export(transformer(family), (images(family),), strict=True)


def fake(family):
    with FakeTensorMode():
        use(family)


def meta(family):
    with torch.device("meta"):
        use(family)


def inference(family):
    with torch.inference_mode():
        use(family)


def proxies(family):
    make_fx(lambda theta: family.grid(theta, size_for(family)))(theta_for(family))


def fake_proxies(family):
    make_fx(lambda theta: family.grid(theta, size_for(family)), tracing_mode="fake")(theta_for(family))


def functorch(family):
    size = size_for(family)
    torch.func.vmap(lambda theta: family.grid(theta[None], size))(theta_for(family))
    constants.clear()
    torch.func.grad(lambda theta: family.grid(theta, size).sum())(theta_for(family))
    constants.clear()
    torch.func.functionalize(lambda theta: family.grid(theta, size))(theta_for(family))


def trace(family):
    with quiet():
        torch.jit.trace(transformer(family), (images(family),))


def compiled(family):
    torch._dynamo.reset()
    torch.compile(lambda theta: family.grid(theta, size_for(family)), backend="eager")(theta_for(family))


def autocast(family):
    with torch.autocast("cpu", torch.bfloat16):
        use(family)


def use(family):
    theta, size = theta_for(family), size_for(family)
    family.grid(theta, size)
    family.points(theta, torch.rand(7, len(size)))
    U = torch.rand(3, 1, *size)
    for sampler in [integer, bilinear] if volumetric(family) else [integer, bilinear, bicubic, LearnableSampler()]:
        sampler(U, family.grid(theta, size))


MODES = [export, export_strictly, fake, meta, inference, proxies, fake_proxies, functorch, trace, compiled, autocast]


@contextlib.contextmanager
def quiet():
    """Without the warnings of `torch.jit`, which is deprecated, and of every comparison of sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# What is kept


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
@each_family
def test_no_mode_leaves_anything_behind_that_a_later_network_would_receive(family, mode):
    theta, size, U = theta_for(family), size_for(family), images(family)
    net = transformer(family)
    expected = family.grid(theta, size), family.points(theta, torch.zeros(2, len(size))), net(U)
    constants.clear()
    mode(family)
    assert_plain(kept())
    given = family.grid(theta, size), family.points(theta, torch.zeros(2, len(size))), net(U)
    for one, other in zip(given, expected, strict=True):
        assert type(one) is torch.Tensor and torch.equal(one, other)
    theta.requires_grad_()
    family.grid(theta, size).square().sum().backward()
    assert theta.grad.any()


def test_distortions_keep_nothing_of_a_mode_either():
    warps = [Projection(28, 28, (1, 1), 1.0), *(Elastic(28, 28, (1, 1), 1.0, 4, tiled) for tiled in (False, True))]
    for warp in warps:
        with FakeTensorMode():
            warp.grid(torch.rand(2, len(warp.names)))
        assert_plain(kept())
        assert_plain([warp.grid(torch.rand(2, len(warp.names)))])


def memory() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_what_is_kept_is_bounded_in_bytes_and_the_latest_stay(monkeypatch):
    monkeypatch.setattr(constants, "BOUND", 2**20)
    before, family = memory(), ThinPlateSpline(8)
    for side in range(20, 60):  # 100 to 900 KiB each, 17 MiB in all
        family.grid(family.identity()[None], (side, side))
        Affine().grid(Affine().identity()[None], (side, side))
    assert memory() - before <= 2**20
    latest = pixel_centres((59, 59), torch.float32, CPU)
    assert latest is pixel_centres((59, 59), torch.float32, CPU)
    family.grid(family.identity()[None], (100, 100))  # 2.5 MB: larger than all that may be kept
    assert memory() - before <= 2**20
    assert latest is pixel_centres((59, 59), torch.float32, CPU)  # and nothing left for it


def test_many_small_constants_are_bounded_too(monkeypatch):
    monkeypatch.setattr(constants, "BOUND", 2**16)
    for n in range(1, 500):
        pixel_centres((1, n % 7 + 1), torch.float32, CPU)
        pixel_centres((n, 1), torch.float32, CPU)
    assert len(kept()) <= 64


def test_writing_to_a_constant_reaches_no_other_caller():
    written = pixel_centres((3, 4), torch.float32, CPU)
    expected = written.clone()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            pixel_centres((3, 4), torch.float32, CPU).zero_()
        assert torch.equal(pixel_centres((3, 4), torch.float32, CPU), expected)


def test_what_a_captured_step_reads_stays_in_memory(monkeypatch):
    """A CUDA graph knows addresses only. Without a GPU a constant of the CPU stands for one of the GPU."""
    first = pixel_centres((5, 5), torch.float32, CPU)
    key, entry = next(iter(constants._store.entries.items()))
    constants._store.entries[key] = entry._replace(on_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(constants._store, "pinned", {})
    assert pixel_centres((5, 5), torch.float32, CPU) is first
    constants.clear()
    assert any(tensor is first for tensor in constants._store.pinned.values())


def test_threads_in_different_modes_do_not_meet():
    family, size, failures = ThinPlateSpline(4), (9, 9), []
    theta = theta_for(family)
    expected = family.grid(theta, size)

    def work(mode, check):
        try:
            for _ in range(30):
                constants.clear()
                with mode():
                    check(family.grid(theta_for(family) if mode is FakeTensorMode else theta, size))
        except BaseException as error:
            failures.append(error)

    def equal(grid):
        assert type(grid) is torch.Tensor and torch.equal(grid, expected)

    def unreal(grid):
        assert isinstance(grid, FakeTensor)

    roles = [(FakeTensorMode, unreal), (contextlib.nullcontext, equal), (torch.inference_mode, equal)] * 2
    threads = [threading.Thread(target=work, args=role) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_may_use_what_another_thread_had_locked():
    pixel_centres((3, 3), torch.float32, CPU)
    with constants._store.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if pixel_centres((3, 3), torch.float32, CPU).shape == (9, 2) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Devices


@pytest.mark.parametrize("around", [contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
@each_family
def test_meta_tensors_give_meta_tensors_without_memory(family, around):
    size = tuple(10**5 for _ in size_for(family))  # the grid of a real one would not fit into any memory
    with around():
        grid = family.grid(torch.zeros(2, family.n_parameters, device="meta"), size)
    assert grid.device.type == "meta" and grid.shape == (2, *size, len(size)) and grid.dtype == torch.float32
    points = family.points(torch.zeros(2, family.n_parameters, device="meta"), torch.zeros(7, len(size), device="meta"))
    assert points.device.type == "meta" and points.shape == (2, 7, len(size))
    V = bilinear(torch.zeros(2, 3, *size, device="meta"), grid)
    assert V.device.type == "meta" and V.shape == (2, 3, *size)
    with torch.device("meta"):
        assert transformer(family)(images(family)).shape == images(family).shape


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@each_family
def test_fake_tensors_of_any_device_stay_there_without_memory(family, device):
    size = tuple(10**5 for _ in size_for(family))
    with FakeTensorMode():
        grid = family.grid(torch.zeros(2, family.n_parameters, device=device), size)
        points = family.points(
            torch.zeros(2, family.n_parameters, device=device), torch.zeros(7, len(size), device=device)
        )
    for made in (grid, points):
        assert isinstance(made, FakeTensor) and made.device.type == device and made.dtype == torch.float32


class NoFloat64(TorchDispatchMode):
    """CUDA stands for a device without float64, such as MPS, which refuses it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "cpu" or tensor.dtype != torch.float64, func
        return results


@each_family
def test_a_device_without_float64_is_never_asked_for_it(family, monkeypatch):
    monkeypatch.setattr(constants, "FLOAT64", ("cpu",))
    size = size_for(family)
    with FakeTensorMode(), NoFloat64():
        theta = torch.zeros(2, family.n_parameters, device="cuda")
        points = family.points(theta, torch.zeros(7, len(size), device="cuda"))
        assert family.grid(theta, size).device.type == points.device.type == "cuda"


def test_splines_are_the_same_where_the_cpu_works_out_their_weights(monkeypatch):
    family, theta = ThinPlateSpline(5), theta_for(ThinPlateSpline(5))
    points = torch.rand(7, 2, requires_grad=True)
    expected = family.points(theta, points)
    (slope,) = torch.autograd.grad(expected.sum(), points)
    monkeypatch.setattr(constants, "FLOAT64", ())
    given = family.points(theta, points)
    assert torch.equal(given, expected) and torch.equal(torch.autograd.grad(given.sum(), points)[0], slope)


def test_fake_images_of_a_gpu_run_through_the_plain_layers():
    with FakeTensorMode(), torch.device("cuda"):
        assert convolutional(28, 4, 4)(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


# Export


def assert_open(net, example, others, dims, strict=False):
    """The exported network gives the network's own images, for the example and for others."""
    program = torch.export.export(net, (example,), dynamic_shapes=(dims,), strict=strict).module()
    for U in (example, *others):
        with torch.no_grad():
            torch.testing.assert_close(program(U), net(U), rtol=0, atol=1e-5)


@each_family
def test_each_family_is_exported_for_any_batch_and_any_size(family):
    dims = {0: Dim("b"), **{axis: Dim(f"s{axis}") for axis in range(2, 5 if volumetric(family) else 4)}}
    others = [images(family, 5), images(family, 1, larger=True), images(family, 3, larger=True)]
    assert_open(transformer(family), images(family), others, dims)


@pytest.mark.parametrize("axis", [0, 2, 3])
@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_one_size_may_be_open_and_the_others_fixed(axis, strict):
    family = ThinPlateSpline(4)
    other = list(images(family).shape)
    other[axis] += 3
    assert_open(transformer(family), images(family), [torch.rand(other)], {axis: Dim("n")}, strict)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_is_exported_for_any_batch_and_any_size(sampler):
    family, dims = Affine(), {0: Dim("b"), 2: Dim("h"), 3: Dim("w")}
    net = transformer(family, SAMPLERS[sampler])
    assert_open(net, images(family), [images(family, 3, larger=True)], dims)


@pytest.mark.parametrize("sampler", [integer, trilinear], ids=lambda sampler: sampler.__name__)
def test_samplers_of_volumes_are_exported_for_any_batch_and_any_size(sampler):
    dims = {0: Dim("b"), 2: Dim("d"), 3: Dim("h"), 4: Dim("w")}
    assert_open(transformer(Affine3D(), sampler), images(Affine3D()), [images(Affine3D(), 3, larger=True)], dims)


@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_paddings_are_exported_for_any_batch_and_any_size(padding_mode):
    net = transformer(Affine(), LearnableSampler(1, padding_mode=padding_mode))
    dims = {0: Dim("b"), 2: Dim("h"), 3: Dim("w")}
    assert_open(net, images(Affine()), [images(Affine(), 3, larger=True)], dims)


def test_strict_export_and_parallel_transformers():
    starts, dims = torch.tensor([[-0.5, -0.5], [0.5, 0.5]]), {0: Dim("b"), 2: Dim("h"), 3: Dim("w")}
    net = transformer(Translation(0.5), starts=starts, size=(4, 5))
    for strict in (False, True):
        assert_open(net, images(Affine()), [images(Affine(), 3, larger=True)], dims, strict)


def test_an_exported_spline_of_one_size_carries_its_weights_and_a_large_one_its_arithmetic(monkeypatch):
    family = ThinPlateSpline(4)
    shapes = [
        tuple(value.shape)
        for value in torch.export.export(transformer(family), (images(family),)).constants.values()
        if isinstance(value, torch.Tensor)
    ]
    assert shapes == [(6 * 7, 16)]
    monkeypatch.setattr(constants, "BOUND", 2600)
    large = torch.export.export(transformer(family), (images(family),))
    assert all(value.numel() <= 19 * 16 for value in large.constants.values())
    torch.testing.assert_close(large.module()(images(family)).shape, images(family).shape)


@each_family
def test_a_trace_holds_for_another_batch_and_another_size(family):
    net = transformer(family, bilinear if volumetric(family) else LearnableSampler(1))
    with quiet():
        traced = torch.jit.trace(net, (images(family),))
    for U in (images(family, 5), images(family, 1, larger=True)):
        torch.testing.assert_close(traced(U), net(U), rtol=0, atol=1e-5)


def test_a_compiled_network_follows_its_sizes():
    torch._dynamo.reset()
    family = ThinPlateSpline(3)
    net = transformer(family)
    fast = torch.compile(net, backend="aot_eager", fullgraph=True)
    for U in (images(family), images(family, 3), images(family, larger=True), images(family, 4, larger=True)):
        torch.testing.assert_close(fast(U), net(U), rtol=0, atol=1e-5)
    fast(U).sum().backward()
    assert_plain(kept())

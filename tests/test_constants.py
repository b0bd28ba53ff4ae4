"""Promises of `stn.geometry.constants`: what is kept is safe in every mode of torch, and bounded in bytes."""

import gc
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from stn.geometry import constants
from stn.geometry.sampling import LearnableSampler, bicubic, bilinear, integer, trilinear
from stn.geometry.transforms import (
    Affine,
    Affine3D,
    Attention,
    Crop,
    Projective,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Translation,
    pixel_centres,
)

FAMILIES = [Translation(0.5), Attention(), Rotation(), Similarity(), Crop(), Affine(), Projective(), ThinPlateSpline(4)]
SAMPLERS = [integer, bilinear, bicubic, LearnableSampler()]
SIZES = {"batch": {0}, "height": {2}, "width": {3}, "all": {0, 2, 3}}


class Warp(torch.nn.Module):
    """Samples images where theta says, both read from the images; no size is written into it."""

    def __init__(self, family, sampler, size=None):
        super().__init__()
        self.family, self.sampler, self.size = family, sampler, size

    def forward(self, U):
        shift = 0.1 * torch.tanh(U.flatten(1).mean(1, keepdim=True))
        theta = self.family.identity() + shift
        size = self.size or tuple(U.shape[2:])
        return self.sampler(U, self.family.grid(theta, size, tuple(U.shape[2:])))


@pytest.fixture(autouse=True)
def empty():
    constants.clear()


def export(family, sampler, open_axes, example):
    names = {axis: torch.export.Dim(f"d{axis}", min=2, max=64) for axis in open_axes}
    return torch.export.export(Warp(family, sampler), (example,), dynamic_shapes=(names,)).module()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_after_an_export_networks_give_real_numbers(family):
    U = torch.rand(2, 1, 6, 5)
    export(family, bilinear, {0}, U)
    V = Warp(family, bilinear)(U)
    assert type(V) is torch.Tensor and not isinstance(V, FakeTensor) and V.isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: getattr(sampler, "__name__", "learnable"))
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_after_fake_tensors_networks_give_real_numbers(family, sampler):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        Warp(family, sampler)(mode.from_tensor(torch.rand(2, 1, 6, 5)))
    V = Warp(family, sampler)(torch.rand(2, 1, 6, 5))
    assert not isinstance(V, FakeTensor) and V.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_inference_made_first_can_be_trained_later(family):
    with torch.inference_mode():
        family.grid(family.identity()[None], (3, 7))
    theta = family.identity()[None].clone().requires_grad_()
    family.grid(theta, (3, 7)).sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("family", [*FAMILIES, Affine3D()], ids=str)
def test_grids_of_meta_tensors_have_a_shape(family):
    size = (4, 5) if family.dimensions == 2 else (3, 4, 5)
    grid = family.grid(torch.zeros(2, family.n_parameters, device="meta"), size)
    assert grid.is_meta and grid.shape == (2, *size, family.dimensions)
    real = family.grid(family.identity()[None], size)
    assert real.device.type == "cpu" and real.isfinite().all()


@pytest.mark.parametrize("axes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_families_export_with_open_sizes(family, axes):
    torch.manual_seed(0)
    program = export(family, bilinear, axes, torch.rand(2, 1, 6, 7))
    other = torch.rand(*(n + 3 * (axis in axes) for axis, n in enumerate((2, 1, 6, 7))))
    torch.testing.assert_close(program(other), Warp(family, bilinear)(other))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: getattr(sampler, "__name__", "learnable"))
def test_samplers_export_with_open_sizes(sampler):
    torch.manual_seed(0)
    program = export(Affine(), sampler, {0, 2, 3}, torch.rand(2, 1, 6, 7))
    other = torch.rand(5, 1, 9, 4)
    torch.testing.assert_close(program(other), Warp(Affine(), sampler)(other))


def test_volumes_export_with_open_sizes():
    torch.manual_seed(0)
    names = {axis: torch.export.Dim(f"d{axis}", min=2, max=64) for axis in (0, 2, 3, 4)}
    warp = Warp(Affine3D(), trilinear)
    program = torch.export.export(warp, (torch.rand(2, 1, 4, 5, 6),), dynamic_shapes=(names,)).module()
    other = torch.rand(3, 1, 6, 4, 5)
    torch.testing.assert_close(program(other), warp(other))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_trace_runs_at_another_batch_size(family):
    torch.manual_seed(0)
    warp = Warp(family, bilinear)
    traced = torch.jit.trace(warp, torch.rand(2, 1, 6, 5), check_trace=False)
    other = torch.rand(5, 1, 6, 5)
    torch.testing.assert_close(traced(other), warp(other))


def storages() -> dict[int, int]:
    """The bytes of all tensors in memory, by address: each storage counts once."""
    gc.collect()
    tensors = [tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def test_many_sizes_keep_no_more_than_the_bound():
    constants.clear()
    before = storages()
    family = ThinPlateSpline(8)
    for side in range(150, 214):
        family.grid(family.identity()[None], (side, side))
    del family
    size = sum(size for address, size in storages().items() if address not in before)
    assert 0.5 * constants.BOUND < size <= constants.BOUND


def test_a_constant_is_kept_until_others_need_the_room():
    one = pixel_centres((30, 40), torch.float32, torch.device("cpu"))
    assert pixel_centres((30, 40), torch.float32, torch.device("cpu")) is one


def test_threads_get_the_same_numbers():
    family, grids = ThinPlateSpline(5), {}

    def work(name):
        grids[name] = [family.grid(family.identity()[None], (side, 20)) for side in range(20, 40)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grid in grids.values():
        assert all(torch.equal(a, b) for a, b in zip(grid, grids[0], strict=True))


def test_an_export_in_a_fresh_process_leaves_the_network_as_it_was():
    code = """
import torch
from torch import nn
from stn import LearnableSampler, SpatialTransformer
x = torch.rand(2, 1, 8, 8)
for sampler in ({}, {"sampler": LearnableSampler()}):
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), 8, **sampler)
    torch.export.export(net, (x,))
    print(float(net(x).sum()) > 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.split() == ["True", "True"], result.stderr

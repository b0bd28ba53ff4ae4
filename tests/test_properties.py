"""Promises of the geometry that hold for every theta, point and size: tried on examples that hypothesis draws."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from stn.geometry.sampling import PADDING_MODES, LearnableSampler, bicubic, bilinear, general, integer, trilinear
from stn.geometry.transforms import (
    Affine,
    Affine3D,
    Attention,
    Crop,
    MatrixTransformation,
    Projective,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Translation,
)

torch.set_num_threads(1)
settings.register_profile(
    "stn",
    deadline=None,
    derandomize=True,  # the same examples in every run
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],  # of a loaded machine
)
settings.load_profile("stn")

SPLINES = [ThinPlateSpline(k) for k in (2, 3, 4, 5)]
WINDOWS = [Translation(), Translation(0.5), Attention(), Crop()]
PLANE = [*WINDOWS, Rotation(), Similarity(), Affine(), Projective(), *SPLINES]
FAMILIES = [*PLANE, Affine3D()]
LINEAR = [family for family in PLANE if isinstance(family, MatrixTransformation)]
SPREAD = 0.2  # of theta round the identity: what is far from singular there, and no projective horizon in the image

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def sizes(dimensions: int):
    return st.tuples(*[sides] * dimensions)


@st.composite
def thetas(draw, family, batch: int = 2):
    """Thetas (batch, P), float64, near the identity; drawn entry by entry, so that a failure shrinks to few."""
    reach = SPREAD / family.k if isinstance(family, ThinPlateSpline) else SPREAD
    entries = st.floats(-1, 1, width=32)
    moves = draw(st.lists(entries, min_size=batch * family.n_parameters, max_size=batch * family.n_parameters))
    if isinstance(family, Rotation):
        reach = math.pi
    return family.identity().double() + reach * torch.tensor(moves, dtype=torch.float64).view(batch, -1)


def points(dimensions: int, n: int = 8):
    """Points (n, dimensions), float64, of the frame and a little beyond."""
    one = st.floats(-1.5, 1.5, width=32)
    return st.lists(one, min_size=n * dimensions, max_size=n * dimensions).map(
        lambda values: torch.tensor(values, dtype=torch.float64).view(n, dimensions)
    )


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("family", [family for family in FAMILIES if getattr(family, "scale", 1) == 1], ids=repr)
@given(data=st.data())
def test_the_identity_is_the_identity_on_any_size_and_for_any_source(family, data):
    size, source = data.draw(sizes(family.dimensions)), data.draw(sizes(family.dimensions))
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in size]
    centres = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)
    grid = family.grid(family.identity().double()[None], size, source)
    assert grid.shape == (1, *size, family.dimensions)
    np.testing.assert_allclose(grid[0], centres, rtol=0, atol=1e-7)  # the identity itself is float32


@each_family
@given(data=st.data())
def test_inverse_points_bring_points_back(family, data):
    size = data.draw(sizes(family.dimensions))
    theta, target = data.draw(thetas(family)), data.draw(points(family.dimensions))
    source = family.points(theta, target, size)
    back = family.inverse_points(theta, source, size)
    # Newton's method on a spline goes to the square root of float64's precision, and one step more.
    torch.testing.assert_close(back, target.expand_as(back), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", [*LINEAR[:-1], Affine3D()], ids=repr)
@given(data=st.data())
def test_an_inverse_point_of_any_theta_is_one_or_nan(family, data):
    """Also near to singular: there is NaN, or a point that the transformation takes back."""
    entry = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-3, 3, width=32))
    n = family.n_parameters
    theta = torch.tensor(data.draw(st.lists(entry, min_size=n, max_size=n)), dtype=torch.float64)[None]
    source = data.draw(points(family.dimensions))
    back = family.inverse_points(theta, source)
    there = back.isfinite().all(-1)
    size = 1 + family.matrix(theta).abs().amax() * back[there].abs().amax(-1, keepdim=True)
    residual = (family.points(theta, back.nan_to_num()) - source)[there]
    assert (residual.abs() <= 1e-13 * size * size.clamp_min(1)).all()


@pytest.mark.parametrize("second", LINEAR, ids=repr)
@pytest.mark.parametrize("first", LINEAR, ids=repr)
@settings(max_examples=5)
@given(data=st.data())
def test_transformations_compose_as_their_matrices_do(first, second, data):
    size = data.draw(sizes(2))
    a, b, target = data.draw(thetas(first)), data.draw(thetas(second)), data.draw(points(2))
    composed = first.points(a, second.points(b, target, size), size)
    homogeneous = np.concatenate([target.numpy(), np.ones((len(target), 1))], 1)
    for m, n, got in zip(first.matrix(a, size).numpy(), second.matrix(b, size).numpy(), composed, strict=True):
        expected = homogeneous @ (m @ n).T
        np.testing.assert_allclose(got, expected[:, :2] / expected[:, 2:], rtol=1e-9, atol=1e-9)


@given(angle=st.floats(-10, 10, width=32), size=sizes(2), target=points(2))
def test_a_rotation_keeps_distances_in_pixels_on_any_aspect(angle, size, target):
    pixels = torch.tensor([size[1], size[0]]) / 2
    source = Rotation().points(torch.tensor([[angle]], dtype=torch.float64), target, size)[0]
    torch.testing.assert_close(torch.pdist(source * pixels), torch.pdist(target * pixels), rtol=1e-9, atol=1e-9)


@given(a=st.floats(-2, 2, width=32), b=st.floats(-2, 2, width=32), size=sizes(2), target=points(2))
def test_a_similarity_scales_all_distances_in_pixels_alike(a, b, size, target):
    pixels = torch.tensor([size[1], size[0]]) / 2
    source = Similarity().points(torch.tensor([[a, b, 0.3, -0.2]], dtype=torch.float64), target, size)[0]
    expected = math.hypot(a, b) * torch.pdist(target * pixels)
    torch.testing.assert_close(torch.pdist(source * pixels), expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------- export


class Grids(nn.Module):
    """The grids of families on an image or a volume, each by its own theta."""

    def __init__(self, families):
        super().__init__()
        self.families = families

    def forward(self, U: torch.Tensor, theta: torch.Tensor) -> list[torch.Tensor]:
        parts = theta.split([family.n_parameters for family in self.families], 1)
        return [family.grid(part, U.shape[2:]) for family, part in zip(self.families, parts, strict=True)]


@cache
def exported(dimensions: int) -> tuple[Grids, nn.Module]:
    """The grids of all families of images or volumes, and the same exported with open sizes: once for all examples."""
    net = Grids([family for family in FAMILIES if family.dimensions == dimensions])
    U = torch.zeros(2, 1, *range(5, 5 + dimensions))
    theta = torch.zeros(2, sum(family.n_parameters for family in net.families))
    open_sides = {2 + axis: Dim.AUTO for axis in range(dimensions)}
    program = torch.export.export(net, (U, theta), dynamic_shapes=({0: Dim.AUTO, **open_sides}, {0: Dim.AUTO}))
    return net, program.module()


@pytest.mark.parametrize("dimensions", [2, 3])
@settings(max_examples=6)
@given(data=st.data())
def test_exported_grids_of_any_size_are_those_of_eager(dimensions, data):
    net, program = exported(dimensions)
    size, batch = data.draw(st.tuples(*[st.integers(2, 20)] * dimensions)), data.draw(st.integers(2, 4))
    theta = torch.cat([data.draw(thetas(family, batch)) for family in net.families], 1).float()
    U = torch.zeros(batch, 1, *size)
    for family, eager, got in zip(net.families, net(U, theta), program(U, theta), strict=True):
        torch.testing.assert_close(got, eager, rtol=0, atol=1e-5, msg=lambda text, family=family: f"{family}: {text}")


# ------------------------------------------------------------------------------------------------- samplers

SAMPLERS = {"integer": integer, "bilinear": bilinear, "bicubic": bicubic, "learnable": LearnableSampler().double()}


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=15)
@given(size=sizes(2), channels=st.integers(1, 5), seed=seeds)
def test_sampling_at_the_identity_gives_the_image(sampler, padding_mode, size, channels, seed):
    U = images(seed, 2, channels, *size)
    grid = Affine().grid(Affine().identity().double().expand(2, -1), size)
    torch.testing.assert_close(SAMPLERS[sampler](U, grid, padding_mode=padding_mode), U, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sampler", [integer, trilinear])
@settings(max_examples=15)
@given(size=st.tuples(*[st.integers(1, 9)] * 3), channels=st.integers(1, 3), seed=seeds)
def test_sampling_at_the_identity_gives_the_volume(sampler, size, channels, seed):
    U = images(seed, 2, channels, *size)
    grid = Affine3D().grid(Affine3D().identity().double().expand(2, -1), size)
    torch.testing.assert_close(sampler(U, grid), U, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@given(size=sizes(2), channels=st.integers(1, 3), target=sizes(2), reach=st.floats(0.1, 9), seed=seeds)
def test_padding_modes_are_those_of_torch(padding_mode, size, channels, target, reach, seed):
    """`bilinear`, and equation 3 summed by hand with the bilinear kernel, far beyond the image too."""
    U, grid = images(seed, 2, channels, *size), reach * (2 * images(seed + 1, 2, *target, 2) - 1)
    expected = F.grid_sample(U, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)

    def kernel(distance):
        return (1 - distance.abs()).clamp_min(0)

    torch.testing.assert_close(bilinear(U, grid, padding_mode), expected, rtol=0, atol=0)
    torch.testing.assert_close(general(U, grid, kernel, kernel, 1, padding_mode), expected, rtol=0, atol=1e-10)

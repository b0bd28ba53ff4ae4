"""Promises of the samplers: values, gradients, and the warps they make together with the transformations."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from stn.geometry.inverses import homography_through
from stn.geometry.sampling import LearnableKernel, LearnableSampler, bicubic, bilinear, general, integer, trilinear
from stn.geometry.transforms import (
    Affine,
    Affine3D,
    Attention,
    Crop,
    Projective,
    Similarity,
    ThinPlateSpline,
    Translation,
    control_points,
)

torch.set_num_threads(1)


def hat(d):
    return (1 - d.abs()).clamp_min(0)


def keys(d, a=-0.75):
    d = d.abs()
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d <= 1, inner, torch.where(d < 2, outer, torch.zeros_like(d)))


def general_bilinear(U, grid, **how):
    return general(U, grid, hat, hat, 1, **how)


def general_bicubic(U, grid, **how):
    return general(U, grid, keys, keys, 2, **how)


def learnable(U, grid, **how):
    return LearnableSampler().requires_grad_(False)(U, grid, **how)


FAMILIES = [
    *(Translation(), Attention(), Similarity(), Crop(), Affine(), Projective()),
    *(ThinPlateSpline(k) for k in (2, 3, 4, 5)),
]
SAMPLERS = [integer, bilinear, bicubic, general_bilinear, general_bicubic, learnable]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normalised(pixels, size):
    """Positions (..., 2) in pixels as points of the frame: pixel j of W has its centre at (2 j + 1) / W - 1."""
    return (2 * pixels + 1) / torch.tensor([size[1], size[0]], dtype=pixels.dtype) - 1


def random_pixels(shape, size, margin=2.5):
    """Random positions (*shape, 2) in pixels, up to `margin` outside the image."""
    span = torch.tensor([size[1], size[0]], dtype=torch.float64) - 1 + 2 * margin
    return torch.rand(*shape, 2, dtype=torch.float64) * span - margin


def smooth_positions(shape, size):
    """Positions a tenth of a pixel or more away from every kink: whole pixels, and halves, where knots and ties are."""
    whole = random_pixels(shape, size).floor()
    return whole + 0.1 + 0.3 * torch.rand_like(whole) + 0.5 * torch.randint(2, whole.shape)


def blob(height, width, sigma=6.0):
    """A smooth image (1, 1, H, W), float64, that fades to nothing before the edge: no symmetry, height about 1."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    cy, cx = (height - 1) / 2, (width - 1) / 2
    first = torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    second = torch.exp(-((x - cx - sigma) ** 2 + (y - cy + sigma / 2) ** 2) / (2 * sigma**2))
    return (first + 0.5 * second)[None, None]


def exact_identity(family, dtype):
    """Theta of the identity. `identity()` is float32, in which a third, where a control point may be, is rounded."""
    theta = control_points(family.k).flatten() if isinstance(family, ThinPlateSpline) else family.identity()
    return theta.to(dtype)


def pixel_matrix(matrix, source, target):
    """A 3x3 matrix on normalised points as one that maps pixels of `target` to pixels of `source`, sizes (H, W)."""
    to_pixels = [np.array([[W / 2, 0, (W - 1) / 2], [0, H / 2, (H - 1) / 2], [0, 0, 1]]) for H, W in (source, target)]
    return to_pixels[0] @ matrix.double().numpy() @ np.linalg.inv(to_pixels[1])


# Values


@pytest.mark.parametrize("size", [(8, 8), (5, 9)], ids=str)
@each_sampler
@each_family
def test_identity_theta_returns_the_input(family, sampler, size):
    U = torch.randn(2, 3, *size)
    V = sampler(U, family.grid(family.identity().expand(2, -1), size))
    torch.testing.assert_close(V, U, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sampler", "order"), [(integer, 0), (bilinear, 1), (general_bilinear, 1), (learnable, 1)])
def test_values_match_scipy_inside_and_outside_the_image(sampler, order):
    size = (6, 9)
    U, pixels = torch.randn(2, 3, *size, dtype=torch.float64), random_pixels((2, 7, 11), size)
    V = sampler(U, normalised(pixels, size))
    assert V.shape == (2, 3, 7, 11)
    for b in range(2):
        for c in range(3):
            places = pixels[b].flip(-1).permute(2, 0, 1).numpy()
            expected = map_coordinates(U[b, c].numpy(), places, order=order, mode="grid-constant", cval=0)
            np.testing.assert_allclose(V[b, c], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "flag"),
    [(bilinear, cv2.INTER_LINEAR), (bicubic, cv2.INTER_CUBIC), (general_bicubic, cv2.INTER_CUBIC)],
)
def test_values_match_opencv_remap(sampler, flag):
    size = (6, 9)
    U = torch.randn(1, 1, *size)
    pixels = ((random_pixels((20, 30), size) * 32).round() / 32).float()  # opencv knows 32 positions to a pixel
    x, y = (pixels[..., i].contiguous().numpy() for i in (0, 1))
    expected = cv2.remap(U[0, 0].numpy(), x, y, flag, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    V = sampler(U, normalised(pixels, size)[None])
    np.testing.assert_allclose(V[0, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [bilinear, general_bilinear, learnable])
@pytest.mark.parametrize("target", [(4, 5), (17, 13), (8, 20)], ids=str)
def test_identity_theta_resizes_like_opencv(sampler, target):
    U = torch.randn(1, 1, 8, 10)
    grid = Affine().grid(Affine().identity()[None], target)
    expected = cv2.resize(U[0, 0].numpy(), target[::-1], interpolation=cv2.INTER_LINEAR)
    V = sampler(U, grid)[0, 0]
    assert V.shape == target
    inside = (grid[0].abs() <= 1 - torch.tensor([1 / 10, 1 / 8])).all(-1)  # at the edge opencv repeats, we fade
    assert inside.sum() > target[0] * target[1] / 2
    np.testing.assert_allclose(V[inside], expected[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [(60, 84), (40, 112)], ids=str)
@pytest.mark.parametrize("family", [Translation(0.5), *FAMILIES[1:6]], ids=repr)
def test_warps_match_opencv(family, target):
    source = (60, 84)
    U = blob(*source).float()
    theta = family.identity() + 0.15 * torch.randn(4, family.n_parameters)
    V = bilinear(U.expand(4, -1, -1, -1), family.grid(theta, target, source))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for matrix, got in zip(family.matrix(theta, source), V, strict=True):
        M = pixel_matrix(matrix, source, target)
        expected = cv2.warpPerspective(U[0, 0].numpy(), M, target[::-1], flags=flags)
        assert expected.max() > 0.9
        # Steepest slope about 0.15 a pixel, positions rounded to 1/32 pixel: 0.15 sqrt(2) / 64 = 0.0033 at most.
        np.testing.assert_allclose(got[0], expected, rtol=0, atol=4e-3)
        if not isinstance(family, Projective):
            expected = cv2.warpAffine(U[0, 0].numpy(), M[:2], target[::-1], flags=flags)
            np.testing.assert_allclose(got[0], expected, rtol=0, atol=4e-3)


def test_homography_through_corners_straightens_a_quadrilateral_like_opencv():
    source, target = (60, 84), (40, 50)
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    quad = corners * 0.8 + 0.1 * torch.randn(4, 2)
    U = blob(*source).float()
    V = bilinear(U, Projective().grid(homography_through(quad[None], corners[None]), target))
    in_pixels = [
        ((points + 1) * torch.tensor([W, H]) - 1) / 2 for points, (H, W) in ((quad, source), (corners, target))
    ]
    M = cv2.getPerspectiveTransform(in_pixels[0].numpy(), in_pixels[1].numpy())
    expected = cv2.warpPerspective(U[0, 0].numpy(), M, target[::-1], flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(V[0, 0], expected, rtol=0, atol=4e-3)


# Ties: equation 4 takes the pixel floor(x + 0.5)


def test_half_way_between_two_pixels_is_the_one_to_the_right_or_below():
    row, half = torch.arange(8.0), Translation().identity()[None] + torch.tensor([1 / 8, 0])
    V = integer(row.view(1, 1, 1, 8), Translation().grid(half, (1, 8)))
    assert V.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    V = integer(row.view(1, 1, 8, 1), Translation().grid(half.flip(1), (8, 1)))
    assert V.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    image = torch.arange(64.0).view(1, 1, 8, 8)
    V = integer(image, Affine().grid(Affine().identity()[None], (4, 4)))
    assert V[0, 0].tolist() == image[0, 0, 1::2, 1::2].tolist()
    assert V[0, 0, 0].tolist() == [9, 11, 13, 15]
    volume = torch.arange(6.0**3).view(1, 1, 6, 6, 6)
    V = integer(volume, Affine3D().grid(Affine3D().identity()[None], (3, 3, 3)))
    assert torch.equal(V, volume[..., 1::2, 1::2, 1::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", [Attention(), Affine(), Projective(), *map(ThinPlateSpline, (2, 4, 8))], ids=repr)
def test_ties_are_exact_for_all_sizes_though_grids_are_rounded(family, dtype):
    rows = [torch.arange(float(n)).view(1, 1, 1, n) for n in range(1, 65)]
    for w in range(1, 65):
        grid = family.grid(exact_identity(family, dtype)[None], (1, w))
        taken = torch.cat([integer(row, grid).flatten() for row in rows]).tolist()
        # The centre of target pixel i is at (2 i + 1) W / (2 w) - 1/2 in source pixels.
        assert taken == [(2 * i + 1) * W // (2 * w) for W in range(1, 65) for i in range(w)], w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", [Translation(), *FAMILIES[2:6], ThinPlateSpline(4)], ids=repr)
def test_translations_by_half_pixels_are_exact_for_all_sizes(family, dtype):
    shifts = torch.arange(-7, 8)  # in half pixels
    for n in range(1, 65):
        move = shifts.to(dtype) / n
        theta = exact_identity(family, dtype).repeat(len(shifts), 1)
        along_x = {"Translation": [0], "ThinPlateSpline": range(0, theta.shape[1], 2)}
        theta[:, along_x.get(type(family).__name__, [2])] += move[:, None]
        V = integer(torch.arange(1.0, n + 1).expand(len(shifts), 1, 1, n), family.grid(theta, (1, n)))
        source = torch.arange(n) + (shifts[:, None] + 1) // 2
        assert torch.equal(V[:, 0, 0], torch.where((source >= 0) & (source < n), source + 1.0, 0)), n


def test_a_point_beside_a_tie_is_none():
    pixels = torch.arange(63) + 0.5
    for n, beside in ((64, 1e-4), (1000, 1e-3)):
        for step in (-beside, beside):
            grid = normalised(torch.stack([pixels + step, torch.zeros_like(pixels)], -1)[None, None], (1, n))
            V = integer(torch.arange(float(n)).view(1, 1, 1, n), grid)
            assert V.flatten().tolist() == [i + (step > 0) for i in range(63)]


# Outside of the image

EXTENSIONS = {"zeros": "grid-constant", "border": "nearest", "reflection": "reflect"}  # scipy's words
each_padding = pytest.mark.parametrize("padding_mode", EXTENSIONS)


@each_padding
@pytest.mark.parametrize(("sampler", "order"), [(integer, 0), (bilinear, 1), (general_bilinear, 1), (learnable, 1)])
def test_padding_matches_scipy(sampler, order, padding_mode):
    for size in ((6, 9), (1, 1), (3, 2)):
        U, pixels = torch.randn(1, 1, *size, dtype=torch.float64), random_pixels((1, 20, 20), size, margin=30)
        V = sampler(U, normalised(pixels, size), padding_mode=padding_mode)
        places = pixels[0].flip(-1).permute(2, 0, 1).numpy()
        expected = map_coordinates(U[0, 0].numpy(), places, order=order, mode=EXTENSIONS[padding_mode])
        np.testing.assert_allclose(V[0, 0], expected, rtol=0, atol=1e-10)


@each_padding
@pytest.mark.parametrize(("sampler", "order"), [(integer, 0), (bilinear, 1), (trilinear, 1)])
def test_padding_of_volumes_matches_scipy(sampler, order, padding_mode):
    size = (3, 5, 4)
    U = torch.randn(1, 1, *size, dtype=torch.float64)
    pixels = torch.rand(1, 6, 7, 8, 3, dtype=torch.float64) * 40 - 20
    grid = (2 * pixels + 1) / torch.tensor(size[::-1]) - 1
    V = sampler(U, grid, padding_mode=padding_mode)
    places = pixels[0].flip(-1).permute(3, 0, 1, 2).numpy()
    expected = map_coordinates(U[0, 0].numpy(), places, order=order, mode=EXTENSIONS[padding_mode])
    np.testing.assert_allclose(V[0, 0], expected, rtol=0, atol=1e-10)


@each_padding
@pytest.mark.parametrize(
    ("sampler", "mode"), [(general_bilinear, "bilinear"), (general_bicubic, "bicubic"), (bicubic, "bicubic")]
)
def test_padding_is_torchs(sampler, mode, padding_mode):
    """Values and both gradients, also where a tap is several images away."""
    for size in ((6, 9), (1, 1), (2, 3)):
        U = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        grid = normalised(random_pixels((2, 20, 20), size, margin=30), size).requires_grad_()
        upstream = torch.randn(2, 3, 20, 20, dtype=torch.float64)
        reference = F.grid_sample(U, grid, mode=mode, padding_mode=padding_mode, align_corners=False)
        V = sampler(U, grid, padding_mode=padding_mode)
        torch.testing.assert_close(V, reference, rtol=0, atol=1e-10)
        for own, theirs in zip(
            torch.autograd.grad(V, (U, grid), upstream),
            torch.autograd.grad(reference, (U, grid), upstream),
            strict=True,
        ):
            torch.testing.assert_close(own, theirs, rtol=0, atol=1e-9)


@each_padding
def test_a_learned_kernel_sums_over_the_continued_image(padding_mode):
    size, radius = (4, 5), 3
    sampler = LearnableSampler(radius, padding_mode=padding_mode).double().requires_grad_(False)
    for kernel in (sampler.kernel_x, sampler.kernel_y):
        torch.nn.init.normal_(kernel.phi)
    U, pixels = torch.randn(1, 1, *size, dtype=torch.float64), random_pixels((1, 6, 7), size, margin=20)
    mode = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}[padding_mode]
    image = torch.from_numpy(np.pad(U[0, 0].numpy(), 40, mode=mode))
    n, m = torch.arange(-40, size[0] + 40), torch.arange(-40, size[1] + 40)
    x, y = pixels[0, ..., None].unbind(2)
    expected = torch.einsum("nm,hwm,hwn->hw", image, sampler.kernel_x(x - m), sampler.kernel_y(y - n))
    torch.testing.assert_close(sampler(U, normalised(pixels, size))[0, 0], expected, rtol=0, atol=1e-10)
    zeros = sampler(U, normalised(pixels, size), padding_mode="zeros")
    assert torch.equal(zeros, sampler(U, normalised(pixels, size))) == (padding_mode == "zeros")


@each_padding
@each_sampler
def test_wild_points_give_finite_values_and_gradients_whatever_the_padding(sampler, padding_mode):
    for far in (1e6, -1e6, 1e18, 1e30, -1e30):
        U, grid = torch.rand(1, 2, 5, 6, requires_grad=True), torch.full((1, 3, 3, 2), far, requires_grad=True)
        V = sampler(U, grid, padding_mode=padding_mode)
        V.sum().backward()
        assert V.isfinite().all() and U.grad.isfinite().all() and grid.grad.isfinite().all()
        assert V.any() == (padding_mode != "zeros")


@each_sampler
def test_an_unknown_padding_is_refused_with_the_three_there_are(sampler):
    for name in ("zero", "reflect", ""):
        with pytest.raises(ValueError, match=r"zeros, border, reflection, not '"):
            sampler(torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 2, 2), padding_mode=name)
    with pytest.raises(ValueError, match="zeros, border, reflection"):
        LearnableSampler(padding_mode="circular")


# Shapes

IMAGE, GRID, VOLUME, POINTS = (2, 3, 5, 6), (2, 7, 8, 2), (2, 3, 4, 5, 6), (2, 7, 8, 9, 3)
MISFITS = [
    *((IMAGE, POINTS), (VOLUME, GRID), (IMAGE[1:], GRID), (IMAGE, GRID[1:]), (IMAGE, (2, 7, 8, 3)), (IMAGE, (2, 7, 8))),
    *((VOLUME, (2, 7, 8, 9, 2)), (IMAGE, (3, 7, 8, 2)), ((1, 3, 5, 6), GRID), (VOLUME, (1, 7, 8, 9, 3)), ((), ())),
]


@pytest.mark.parametrize(("U", "grid"), MISFITS, ids=str)
@each_sampler
def test_shapes_that_do_not_fit_are_refused_with_both(sampler, U, grid):
    with pytest.raises(ValueError, match="this sampler takes") as refused:
        sampler(torch.zeros(U), torch.zeros(grid))
    assert f"{U} with {grid}" in str(refused.value)


@pytest.mark.parametrize("sampler", [bicubic, general_bilinear, learnable])
def test_samplers_of_images_refuse_volumes(sampler):
    with pytest.raises(ValueError, match=r"an image \(B, C, H, W\) with a grid \(B, h, w, 2\), not"):
        sampler(torch.zeros(VOLUME), torch.zeros(POINTS))


# Gradients


def _gradcheck(sampler, size=(4, 5)):
    U = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    grid = normalised(smooth_positions((2, 2, 3), size), size).requires_grad_()
    assert torch.autograd.gradcheck(sampler, (U, grid))


@each_sampler
def test_gradcheck_of_samplers(sampler):
    _gradcheck(sampler)


@pytest.mark.parametrize(("radius", "knots_per_pixel"), [(1, 2), (2, 1), (2, 2)])
def test_gradcheck_of_learnable_kernels(radius, knots_per_pixel):
    sampler = LearnableSampler(radius, knots_per_pixel).double()
    for kernel in (sampler.kernel_x, sampler.kernel_y):
        torch.nn.init.normal_(kernel.phi)
    _gradcheck(sampler)
    U = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    grid = normalised(random_pixels((2, 3, 4), (4, 5)), (4, 5))

    def of_phi(phi_x, phi_y):
        return torch.func.functional_call(sampler, {"kernel_x.phi": phi_x, "kernel_y.phi": phi_y}, (U, grid))

    phis = [torch.randn_like(sampler.kernel_x.phi, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(of_phi, phis)


@pytest.mark.parametrize("sampler", [bilinear, general_bilinear, learnable])
def test_gradients_are_those_of_the_paper(sampler):
    """Equations 6 and 7, summed over every pixel (n, m) as they stand."""
    height, width = size = (4, 5)
    U = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    pixels = smooth_positions((1, 3, 4), size).requires_grad_()
    upstream = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    sampler(U, normalised(pixels, size)).backward(upstream)

    image, dU = U.detach().numpy()[0, 0], np.zeros(size)
    dx, dy = np.zeros((3, 4)), np.zeros((3, 4))
    for i, (x, y) in np.ndenumerate(pixels.detach().numpy()[0].view([("x", float), ("y", float)])[..., 0]):
        for n in range(height):
            for m in range(width):
                k_x, k_y = max(0, 1 - abs(x - m)), max(0, 1 - abs(y - n))
                slope_x = 0 if abs(m - x) >= 1 else 1 if m >= x else -1
                slope_y = 0 if abs(n - y) >= 1 else 1 if n >= y else -1
                dU[n, m] += upstream[0, 0][i] * k_x * k_y
                dx[i] += upstream[0, 0][i] * image[n, m] * k_y * slope_x
                dy[i] += upstream[0, 0][i] * image[n, m] * k_x * slope_y
    assert np.abs(dx).max() > 0.1
    np.testing.assert_allclose(U.grad[0, 0], dU, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pixels.grad[0, ..., 0], dx, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pixels.grad[0, ..., 1], dy, rtol=0, atol=1e-12)


def test_integer_sampler_gives_the_grid_no_gradient():
    U = torch.randn(1, 1, 4, 5, requires_grad=True)
    grid = normalised(random_pixels((1, 3, 4), (4, 5)), (4, 5)).requires_grad_()
    integer(U, grid).sum().backward()
    assert not grid.grad.any()
    assert U.grad.any()


def test_integer_sampler_gives_each_pixel_the_gradients_of_where_it_was_taken():
    U = torch.zeros(1, 1, 1, 4, requires_grad=True)
    grid = normalised(torch.tensor([[0.0, 0.5, 1.4, 2.5, 3.5, -0.5]])[..., None] * torch.tensor([1.0, 0]), (1, 4))
    upstream = torch.tensor([1.0, 10, 100, 1000, 1e4, 1e5])
    integer(U, grid[None]).backward(upstream.view(1, 1, 1, 6))
    assert U.grad.flatten().tolist() == [1 + 1e5, 110, 0, 1000]


# The general sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("sampler", "reference"), [(general_bilinear, bilinear), (learnable, bilinear), (general_bicubic, bicubic)]
)
def test_general_sampler_contains_the_fixed_ones(sampler, reference, dtype):
    size = (5, 8)
    U = torch.randn(2, 3, *size, dtype=dtype)
    grid = normalised(random_pixels((2, 40, 40), size, margin=6), size).to(dtype)
    torch.testing.assert_close(
        sampler(U, grid), reference(U, grid), rtol=0, atol=2e-5 if dtype.itemsize == 4 else 1e-12
    )


def test_kernels_along_x_and_y_are_their_own():
    size = (5, 8)
    U, pixels = torch.randn(1, 1, *size, dtype=torch.float64), random_pixels((1, 6, 7), size)
    V = general(U, normalised(pixels, size), hat, keys, 2)
    x, y = pixels.unbind(-1)
    k_x, k_y = hat(x[..., None] - torch.arange(8)), keys(y[..., None] - torch.arange(5))
    expected = torch.einsum("bcnm,bhwm,bhwn->bchw", U, k_x, k_y)
    torch.testing.assert_close(V, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("radius", "knots_per_pixel"), [(1, 1), (1, 4), (2, 2), (3, 3)])
def test_learnable_kernel_starts_as_the_hat_and_vanishes_at_its_radius(radius, knots_per_pixel):
    kernel = LearnableKernel(radius, knots_per_pixel)
    d = torch.linspace(-radius - 1, radius + 1, 501)
    torch.testing.assert_close(kernel(d), hat(d), rtol=0, atol=1e-6)
    torch.nn.init.normal_(kernel.phi)
    assert not kernel(d[d.abs() >= radius]).any()
    knots = torch.arange(1 - radius * knots_per_pixel, radius * knots_per_pixel) / knots_per_pixel
    torch.testing.assert_close(kernel(knots), kernel.phi, rtol=0, atol=1e-5)


def test_learnable_sampler_learns_a_half_pixel_shift():
    size = (12, 12)
    sampler, U = LearnableSampler(), torch.randn(4, 1, *size)
    grid = normalised(random_pixels((4, 16, 16), size, margin=-1).float(), size)
    shifted = bilinear(U, grid + torch.tensor([1 / 12, 0]))
    before = [kernel.phi.detach().clone() for kernel in (sampler.kernel_x, sampler.kernel_y)]
    losses = []
    for _ in range(40):
        loss = (sampler(U, grid) - shifted).square().mean()
        losses.append(loss.item())
        with torch.no_grad():  # SGD at a rate of one
            for phi, slope in zip(
                sampler.parameters(), torch.autograd.grad(loss, [*sampler.parameters()]), strict=True
            ):
                phi -= slope
    assert losses[-1] < 0.1 * losses[0]
    # k_x has moved by half a pixel, one knot; k_y, which was right, is right again
    torch.testing.assert_close(sampler.kernel_x.phi, before[0].roll(-1), rtol=0, atol=0.2)
    torch.testing.assert_close(sampler.kernel_y.phi, before[1], rtol=0, atol=0.2)


# Round trips and wild thetas


@pytest.mark.parametrize("sampler", [bilinear, bicubic, learnable])
@pytest.mark.parametrize("family", [Attention(), Similarity(), Crop(), Affine(), Projective()], ids=repr)
def test_inverse_warp_returns_the_image(family, sampler):
    U = blob(120, 130, sigma=10.0)
    theta = (
        family.identity().double()
        + torch.tensor([0.12, -0.1, 0.08, 0.1, -0.12, 0.1, 0.1, -0.1])[: family.n_parameters].double()
    )
    inverse = torch.linalg.inv(family.matrix(theta[None], (120, 130)))
    inverse = (inverse / inverse[:, 2:, 2:]).flatten(1)[:, :8]
    there = sampler(U, family.grid(theta[None], (120, 130)))
    back = sampler(there, Projective().grid(inverse, (120, 130)))
    assert (there - U).abs().max() > 0.2
    # Two bilinear samplings of a curvature of at most 2 * 1.5 / sigma^2 lose 2 * (1/8) * 0.03 = 0.0075 at most.
    torch.testing.assert_close(back, U, rtol=0, atol=7.5e-3)


def _values_and_gradients(sampler, family, theta, U):
    theta, U = theta.clone().requires_grad_(), U.clone().requires_grad_()
    V = sampler(U, family.grid(theta, (4, 4)))
    V.square().sum().backward()
    # The nearest pixel does not depend on theta, and autograd may say so by a missing gradient.
    return V.detach(), U.grad, torch.zeros_like(theta) if theta.grad is None else theta.grad


@each_sampler
@each_family
def test_theta_far_outside_gives_zeros_and_no_gradient(family, sampler):
    theta = family.identity()[None].clone()
    theta[:, {"Projective": 2}.get(type(family).__name__, -1)] = 1e6  # a translation
    if isinstance(family, ThinPlateSpline):
        theta = theta + 1e6
    for sign in (1, -1):
        for result in _values_and_gradients(sampler, family, sign * theta, torch.randn(1, 2, 5, 6)):
            assert not result.any()


@each_sampler
@each_family
def test_huge_theta_gives_finite_values_and_gradients(family, sampler):
    theta = 1e6 * torch.randn(64, family.n_parameters).sign()
    for result in _values_and_gradients(sampler, family, theta, torch.randn(64, 2, 5, 6)):
        assert result.isfinite().all()


@pytest.mark.parametrize("far", [1e6, -1e6, 1e18, 1e30, -1e30])
@each_sampler
def test_grid_out_of_all_bounds_gives_zeros_and_no_gradient(sampler, far):
    U, grid = torch.randn(1, 2, 5, 6, requires_grad=True), torch.full((1, 3, 3, 2), far, requires_grad=True)
    V = sampler(U, grid)
    V.sum().backward()
    assert not V.any() and not U.grad.any() and not grid.grad.any()


@pytest.mark.parametrize("tilt", [4.0, 2.0, 4.0 + 1e-6], ids=["on a pixel", "between pixels", "beside a pixel"])
@each_sampler
def test_horizon_in_the_image_gives_finite_values_and_gradients(sampler, tilt):
    theta = Projective().identity()[None].clone()
    theta[0, 6] = tilt
    V, dU, dtheta = _values_and_gradients(sampler, Projective(), theta, torch.randn(1, 2, 5, 6))
    assert V.isfinite().all() and dU.isfinite().all() and dtheta.isfinite().all()
    assert V.any()


@pytest.mark.parametrize("sampler", [bilinear, bicubic, general_bilinear, learnable])
def test_nan_in_the_grid_is_not_hidden(sampler):
    grid = torch.zeros(1, 2, 2, 2)
    grid[0, 0, 1, 0] = torch.nan
    V = sampler(torch.ones(1, 1, 4, 4), grid)
    assert V.isnan().flatten().tolist() == [False, True, False, False]


# Types and layouts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_sampler
def test_half_precision_images_are_sampled_in_single(sampler, dtype):
    U = torch.rand(1, 2, 5, 6).to(dtype)
    grid = normalised(random_pixels((1, 7, 7), (5, 6)), (5, 6)).float()
    in_single = sampler(U.float(), grid)
    V = sampler(U, grid)
    assert V.dtype == dtype
    assert torch.equal(V, in_single.to(dtype))
    assert torch.equal(sampler(U.float(), grid.to(dtype)), sampler(U.float(), grid.to(dtype).float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampler(U, grid), V)
        assert torch.equal(sampler(U.float(), grid), in_single)


@each_sampler
def test_images_keep_their_type_and_the_grid_decides_the_precision(sampler):
    U, grid = torch.randn(1, 2, 5, 6), normalised(random_pixels((1, 7, 7), (5, 6)), (5, 6))
    double = sampler(U.double(), grid)
    assert double.dtype == torch.float64
    assert torch.equal(sampler(U, grid), double.float())
    assert torch.equal(sampler(U.double(), grid.float()), sampler(U, grid.float()).double())


@each_sampler
def test_layout_in_memory_does_not_matter(sampler):
    size = (5, 6)
    U = torch.randn(2, 3, *size, dtype=torch.float64)
    grid = normalised(random_pixels((2, 4, 7), size), size)
    V = sampler(U, grid)
    torch.testing.assert_close(sampler(U.to(memory_format=torch.channels_last), grid), V, rtol=0, atol=1e-12)
    transposed = grid.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(sampler(U, transposed), V, rtol=0, atol=1e-12)
    planes = grid.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    torch.testing.assert_close(sampler(U.mT.contiguous().mT, planes), V, rtol=0, atol=1e-12)

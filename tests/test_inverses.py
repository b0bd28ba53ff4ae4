"""Promises of the way back: source points to target points, exactly, or NaN."""

import cv2
import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.optimize import root

from stn.geometry.inverses import invert_matrices
from stn.geometry.sampling import bilinear, trilinear
from stn.geometry.transforms import (
    Affine,
    Affine3D,
    Attention,
    Crop,
    Projective,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Transformation,
    Translation,
    control_points,
    pixel_centres,
)

torch.set_num_threads(1)

MATRIX_FAMILIES = [Translation(0.5), Attention(), Rotation(), Similarity(), Crop(), Affine(), Projective(), Affine3D()]
SPLINES = [ThinPlateSpline(k) for k in (2, 3, 4, 5)]
SIZES = {2: (20, 41), 3: (5, 20, 41)}  # of the source, by dimensions
CPU = torch.device("cpu")

each_matrix_family = pytest.mark.parametrize("family", MATRIX_FAMILIES, ids=repr)
each_spline = pytest.mark.parametrize("family", SPLINES, ids=repr)
each_family = pytest.mark.parametrize("family", MATRIX_FAMILIES + SPLINES, ids=repr)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def near_identity(family, batch=3, spread=0.1, dtype=torch.float64):
    return family.identity().to(dtype) + spread * torch.randn(batch, family.n_parameters, dtype=dtype)


def some_points(family, *shape, dtype=torch.float64):
    return torch.rand(*shape, family.dimensions, dtype=dtype) * 2 - 1


@each_matrix_family
def test_inverse_points_are_what_numpys_inverse_matrix_makes_of_them(family):
    size = SIZES[family.dimensions]
    theta, points = near_identity(family, spread=0.2), some_points(family, 9)
    matrices = family.matrix(theta, size).numpy()
    homogeneous = np.concatenate([points.numpy(), np.ones((9, 1))], 1)
    for matrix, got in zip(matrices, family.inverse_points(theta, points, size), strict=True):
        expected = homogeneous @ np.linalg.inv(matrix).T
        np.testing.assert_allclose(got, expected[:, :-1] / expected[:, -1:], rtol=1e-11, atol=1e-11)


@each_spline
def test_inverse_points_of_a_spline_are_the_roots_that_scipy_finds(family):
    axis = np.linspace(-1, 1, family.k)
    controls = np.array([(x, y) for y in axis for x in axis])
    theta, points = near_identity(family, spread=0.25 / family.k), some_points(family, 6)
    for t, got in zip(theta.numpy(), family.inverse_points(theta, points).numpy(), strict=True):
        spline = RBFInterpolator(controls, t.reshape(-1, 2), kernel="thin_plate_spline", degree=1)
        for source, target in zip(points.numpy(), got, strict=True):
            solved = root(lambda p, spline=spline, source=source: spline(p[None])[0] - source, source)
            np.testing.assert_allclose(spline(solved.x[None])[0], source, rtol=0, atol=1e-9)
            np.testing.assert_allclose(target, solved.x, rtol=0, atol=1e-8)


@each_family
def test_there_and_back_in_double_and_in_single_precision(family):
    size = SIZES[family.dimensions]
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        theta, target = near_identity(family, 20, 0.06, dtype), some_points(family, 20, 50, dtype=dtype)
        source = family.points(theta, target, size)
        back = family.inverse_points(theta, source, size)
        assert back.dtype == dtype
        torch.testing.assert_close(back, target, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", [*SPLINES, ThinPlateSpline(8)], ids=repr)
def test_every_point_of_a_spline_without_a_fold_comes_back(family):
    """Wild ones too, turned, stretched, mirrored: all that keep one side up wherever the frame is looked at."""
    k = family.k
    lattice = torch.cartesian_prod(*(torch.linspace(-1, 1, 41, dtype=torch.float64),) * 2)
    theta = near_identity(family, 60, 0.5 / k)
    maps = torch.eye(2, dtype=torch.float64) + 0.4 * torch.randn(60, 2, 2, dtype=torch.float64)
    theta = (theta.view(-1, k * k, 2) @ maps).flatten(1)
    step = 1e-4
    x, y = (family.points(theta, lattice + step * axis) for axis in torch.eye(2, dtype=torch.float64))
    x, y = x - family.points(theta, lattice), y - family.points(theta, lattice)
    sides = (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).sign().sum(1).abs()
    theta = theta[sides == len(lattice)]
    assert len(theta) > 10
    target = some_points(family, len(theta), 100)
    back = family.inverse_points(theta, family.points(theta, target))
    assert (back - target).abs().max() < 1e-9


@each_spline
def test_a_spline_comes_back_from_far_outside_too(family):
    theta, target = near_identity(family, spread=0.05), 20 * some_points(family, 3, 30)
    torch.testing.assert_close(family.inverse_points(theta, family.points(theta, target)), target, rtol=1e-9, atol=1e-9)


@each_family
def test_what_does_not_come_back_exactly_is_nan(family):
    """Whatever theta is: folded, flat, or mapped to where float ends."""
    theta = torch.cat([near_identity(family, 40, spread) for spread in (0.5, 2, 1e3)])
    source = some_points(family, len(theta), 40)
    back = family.inverse_points(theta, source)
    lost = back.isnan()
    assert torch.equal(lost.any(-1), lost.all(-1))
    there = family.points(theta, back.nan_to_num())
    error = ((there - source).abs() / theta.abs().amax(1)[:, None, None]).masked_fill(lost, 0)
    assert error.max() < 1e-8
    if not isinstance(family, ThinPlateSpline):
        assert not lost.any()


def test_what_a_fold_shows_from_behind_is_never_given():
    """Of all target points that show a source point, one that shows it from the front, or NaN."""
    family = ThinPlateSpline(5)
    theta = near_identity(family, 60, 0.3)
    slopes = theta.view(-1, 25, 2).mT @ control_points(5)
    assert (torch.linalg.det(slopes) > 0).all()  # as a whole none is mirrored
    target = some_points(family, 60, 50).requires_grad_()

    def sides(target):
        x, y = (torch.autograd.grad(family.points(theta, target)[..., i].sum(), target)[0] for i in range(2))
        return x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]

    behind = sides(target) < 0
    assert 0.01 < behind.double().mean() < 0.5
    back = family.inverse_points(theta, family.points(theta, target)).detach()
    lost = back.isnan().any(-1)
    assert (lost | (sides(back.nan_to_num().requires_grad_()) > 0)).all()
    assert not lost.all()


SINGULAR = {  # no inverse: a line or a point is all that the target shows
    "Translation(scale=0.0)": (Translation(0.0), [0.1, 0.2]),
    "Attention()": (Attention(), [0.0, 0.3, 0.1]),
    "Similarity()": (Similarity(), [0.0, 0.0, 0.3, 0.1]),
    "Crop()": (Crop(), [0.7, 0.0, 0.3, 0.1]),
    "Affine()": (Affine(), [0.1, 0.2, 0.0, 0.3, 0.6, 0.0]),
    "Affine3D()": (Affine3D(), [0.1, 0.2, 0.3, 0, 0.7, 0.1, 0.9, 0, 0.8, 0.3, 1.2, 0]),  # the third row: their sum
    "Projective()": (Projective(), [0.1, 0.2, 0.0, 0.3, 0.6, 0.0, 0.1, 0.3]),
    "a spline in one point": (ThinPlateSpline(3), [0.3] * 18),
    "a spline on a line": (ThinPlateSpline(4), [v for x in np.linspace(-1, 1, 16) for v in (x, 0.3 * x)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SINGULAR)
def test_without_an_inverse_all_is_nan_and_harms_no_other_image(name, dtype):
    family, flat = SINGULAR[name]
    theta = torch.stack([torch.tensor(flat, dtype=dtype), near_identity(family, 1, dtype=dtype)[0]]).requires_grad_()
    points = some_points(family, 7, dtype=dtype).requires_grad_()
    target = family.inverse_points(theta, points)
    assert target[0].isnan().all()
    if "scale" not in name:
        torch.testing.assert_close(family.points(theta, target)[1], points, rtol=0, atol=1e-5)
    target[1].nan_to_num().sum().backward()
    assert theta.grad.isfinite().all() and points.grad.isfinite().all()
    assert not theta.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", [Affine(), Affine3D(), *SPLINES], ids=repr)
def test_what_is_flat_but_for_rounding_is_flat(family, dtype):
    """The plane, or space, onto one line: no theta of finite precision says so exactly."""
    n, d = 200, family.dimensions
    onto, along, where = torch.randn(3, n, d, dtype=torch.float64)
    if isinstance(family, ThinPlateSpline):
        heights = torch.randn(n, family.k**2, 1, dtype=torch.float64)
        heights[::2] = control_points(family.k) @ along[::2, :, None]  # every other one is straight
        theta = (heights * onto[:, None] + where[:, None]).flatten(1)
    else:
        theta = torch.cat([onto[:, :, None] * along[:, None], where[:, :, None]], 2).flatten(1)
    theta = theta.to(dtype)
    points = torch.cat([some_points(family, n, 5), family.points(theta, some_points(family, n, 5)).double()], 1)
    assert family.inverse_points(theta, points).isnan().all()


def test_a_flat_theta_as_a_loss_hides_it_gives_no_gradient():
    theta = torch.tensor([[0.0, 0.1, 0.2], [0.5, 0.0, 0.0]], requires_grad=True)
    target = Attention().inverse_points(theta, torch.ones(1, 2))
    torch.where(target.isnan(), 0, target).sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([[0.0, 0, 0], [-8.0, -2, -2]]))  # of 2 (1 - t) / s


def test_a_point_that_lies_at_infinity_is_nan():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0.5, 0]], dtype=torch.float64)  # x / (1 + x / 2): 2 is reached nowhere
    target = Projective().inverse_points(theta, torch.tensor([[2.0, 0.3], [1.0, 0.0]]))[0]
    assert target[0].isnan().all()
    torch.testing.assert_close(target[1], torch.tensor([2.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("n", [2, 3])
def test_inverse_matrices_match_numpy_however_they_are_scaled(n):
    matrices = torch.randn(50, n, n, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (50, n, 1))
    inverse, determinant = invert_matrices(matrices)
    np.testing.assert_allclose(determinant, np.linalg.det(matrices.numpy()), rtol=1e-9)
    for got, expected in zip(inverse.numpy(), np.linalg.inv(matrices.numpy()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_sizes_of_matrices_do_not_make_them_singular():
    tiny = torch.diag(torch.tensor([1e-6, 1.0]))[None]
    inverse, determinant = invert_matrices(tiny)
    torch.testing.assert_close(inverse[0], torch.diag(torch.tensor([1e6, 1.0])))
    assert determinant[0] > 0


@each_family
def test_each_image_has_its_own_theta_and_its_own_points(family):
    theta, source = near_identity(family, spread=0.05), some_points(family, 3, 5)
    together = family.inverse_points(theta, source)
    one_by_one = [family.inverse_points(theta[i : i + 1], source[i]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=0, atol=1e-12)
    assert family.inverse_points(theta[:0], source[0]).shape == (0, 5, family.dimensions)
    assert family.inverse_points(theta, source[:, :0]).shape == (3, 0, family.dimensions)


@each_family
def test_gradcheck_of_the_inverse(family):
    size = SIZES[family.dimensions]
    theta = near_identity(family, 2, 0.05).requires_grad_()
    source = (0.5 * some_points(family, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, p: family.inverse_points(t, p, size), (theta, source))


@each_family
def test_half_precision_is_raised_and_autocast_changes_no_bit(family):
    theta, source = near_identity(family, spread=0.05, dtype=torch.float32), some_points(family, 5, dtype=torch.float32)
    target = family.inverse_points(theta, source)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(family.inverse_points(theta, source), target)
    half = theta.bfloat16()
    assert torch.equal(family.inverse_points(half, source), family.inverse_points(half.float(), source))


@each_family
def test_the_inverse_grid_is_the_inverse_of_the_pixel_centres(family):
    size, frame = SIZES[family.dimensions], (4, 6, 5)[-family.dimensions :]
    theta = near_identity(family, spread=0.05)
    grid = family.inverse_grid(theta, frame, size)
    assert grid.shape == (3, *frame, family.dimensions)
    centres = pixel_centres(frame, torch.float64, CPU)
    torch.testing.assert_close(grid.flatten(1, -2), family.inverse_points(theta, centres, size), rtol=0, atol=1e-12)
    torch.testing.assert_close(family.inverse_grid(theta, size), family.inverse_grid(theta, size, size), rtol=0, atol=0)


def smooth(*size):
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in size]
    return torch.exp(-6 * sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij")))[None, None]


@each_family
def test_what_is_pasted_back_lies_where_it_was_taken(family):
    size, sampler = ((60, 80), bilinear) if family.dimensions == 2 else ((24, 30, 28), trilinear)
    U = smooth(*size)
    theta = near_identity(family, 1, 0.05)
    V = sampler(U, family.grid(theta, 90, size))
    back = family.inverse_grid(theta, size)
    shown = back.abs().amax(-1) < 0.95
    assert shown.double().mean() > 0.2
    pasted = sampler(V, back)
    assert pasted.shape == U.shape
    torch.testing.assert_close(pasted[0, 0][shown[0]], U[0, 0][shown[0]], rtol=0, atol=0.02)


def test_pasting_back_is_what_opencv_does_with_the_same_matrix():
    size, target = (40, 60), (30, 30)
    V = torch.from_numpy(cv2.GaussianBlur(np.random.default_rng(0).random(target), (0, 0), 3))
    theta = torch.tensor([[0.5, 0.3, 0.2, -0.1]], dtype=torch.float64)
    pasted = bilinear(V[None, None], Similarity().inverse_grid(theta, size))[0, 0]
    to_pixels = [np.array([[w / 2, 0, (w - 1) / 2], [0, h / 2, (h - 1) / 2], [0, 0, 1]]) for h, w in (size, target)]
    matrix = to_pixels[0] @ Similarity().matrix(theta, size)[0].numpy() @ np.linalg.inv(to_pixels[1])
    expected = cv2.warpAffine(V.numpy(), matrix[:2], size[::-1], flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(pasted, expected, rtol=0, atol=0.03)  # at V's edge OpenCV rounds to 1/32 pixel
    assert 0.2 < (expected > 0).mean() < 0.9


@pytest.mark.parametrize(
    ("family", "strict"), [(Similarity(), True), *((family, False) for family in MATRIX_FAMILIES)], ids=repr
)
def test_an_exported_map_there_and_back_takes_any_batch_and_any_size_of_the_source(family, strict):
    class ThereAndBack(torch.nn.Module):
        def forward(self, U, theta, points):
            source = family.points(theta, points, U.shape[2:])
            return source, family.inverse_points(theta, source, U.shape[2:])

    def example(batch, *size):
        return torch.rand(batch, 1, *size), near_identity(family, batch, dtype=torch.float32), some_points(family, 7)

    batch = torch.export.Dim("batch", min=2, max=99)
    sizes = {0: batch} | {2 + i: torch.export.Dim(f"side{i}", min=2, max=99) for i in range(family.dimensions)}
    exported = torch.export.export(
        ThereAndBack(), example(2, *SIZES[family.dimensions]), dynamic_shapes=(sizes, {0: batch}, None), strict=strict
    )
    inputs = example(5, *(9, 12, 8)[: family.dimensions])
    for got, expected in zip(exported.module()(*inputs), ThereAndBack()(*inputs), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_family_without_an_inverse_says_so():
    class Own(Transformation):
        n_parameters = 2

        def _points(self, theta, points, aspect):
            return points + theta[:, None]

    theta = torch.tensor([[0.1, 0.2]])
    torch.testing.assert_close(Own().grid(theta, (4, 6)), Translation().grid(theta, (4, 6)))
    with pytest.raises(NotImplementedError, match="Own has no inverse"):
        Own().inverse_points(theta, control_points(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_family
def test_on_a_gpu_points_come_back_as_on_a_cpu(family):
    size = SIZES[family.dimensions]
    theta, target = near_identity(family, 3, 0.06), some_points(family, 20)
    source = family.points(theta, target, size)
    back = family.inverse_points(theta.cuda(), source.cuda(), size)
    torch.testing.assert_close(back.cpu(), family.inverse_points(theta, source, size), rtol=0, atol=1e-12)

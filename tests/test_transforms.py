"""Promises of the transformations: the frame, the families, the spline, and what a wild theta does."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from stn.geometry import constants, transforms
from stn.geometry.inverses import homography_through
from stn.geometry.sampling import bilinear
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

SPLINES = [ThinPlateSpline(k) for k in (2, 3, 4, 5)]
WINDOWS = [Translation(), Translation(0.5), Attention(), Crop()]
FAMILIES = [*WINDOWS, Rotation(), Similarity(), Affine(), Projective(), *SPLINES]
MATRIX_FAMILIES = [family for family in FAMILIES if isinstance(family, MatrixTransformation)]
MATRICES = {  # the paper's A_theta, written out once more
    "Translation(scale=1.0)": lambda t: [[1, 0, t[0]], [0, 1, t[1]], [0, 0, 1]],
    "Translation(scale=0.5)": lambda t: [[0.5, 0, t[0]], [0, 0.5, t[1]], [0, 0, 1]],
    "Attention()": lambda t: [[t[0], 0, t[1]], [0, t[0], t[2]], [0, 0, 1]],
    "Rotation()": lambda t: [[np.cos(t[0]), -np.sin(t[0]), 0], [np.sin(t[0]), np.cos(t[0]), 0], [0, 0, 1]],
    "Similarity()": lambda t: [[t[0], -t[1], t[2]], [t[1], t[0], t[3]], [0, 0, 1]],
    "Crop()": lambda t: [[t[0], 0, t[2]], [0, t[1], t[3]], [0, 0, 1]],
    "Affine()": lambda t: [t[:3], t[3:], [0, 0, 1]],
    "Projective()": lambda t: [t[:3], t[3:6], [t[6], t[7], 1]],
}
SIZES = [(6, 6), (5, 8), (1, 3)]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
each_matrix_family = pytest.mark.parametrize("family", MATRIX_FAMILIES, ids=repr)
each_spline = pytest.mark.parametrize("family", SPLINES, ids=repr)
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def near_identity(family, batch=3, spread=0.1, dtype=torch.float64):
    return family.identity().to(dtype) + spread * torch.randn(batch, family.n_parameters, dtype=dtype)


def regular_grid(size):
    """Pixel centres (H, W, 2), from the definition: [-1, 1] is the image from outer edge to outer edge."""
    height, width = size
    return np.array(
        [[((2 * j + 1) / width - 1, (2 * i + 1) / height - 1) for j in range(width)] for i in range(height)]
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    list(zip(FAMILIES, [2, 2, 3, 4, 1, 4, 6, 8, 8, 18, 32, 50], strict=True)),
    ids=repr,
)
def test_theta_has_the_length_of_its_family(family, expected):
    assert family.n_parameters == expected
    assert family.identity().shape == (expected,)
    assert family.identity().dtype == torch.float32


@each_size
@each_family
def test_identity_theta_gives_the_regular_grid(family, size):
    grid = family.grid(family.identity().expand(2, -1), size)
    assert grid.shape == (2, *size, 2)
    expected = regular_grid(size) * getattr(family, "scale", 1)
    np.testing.assert_allclose(grid, np.stack([expected, expected]), rtol=0, atol=1e-6)


@each_matrix_family
def test_matrix_families_match_opencv(family):
    theta = near_identity(family)
    points = torch.rand(7, 2, dtype=torch.float64) * 3 - 1.5
    source = family.points(theta, points)
    for t, got in zip(theta.numpy(), source, strict=True):
        expected = cv2.perspectiveTransform(points.numpy()[None], np.array(MATRICES[repr(family)](t)))[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@each_size
@each_family
def test_grid_is_the_transformation_of_the_pixel_centres(family, size):
    theta = near_identity(family)
    centres = torch.tensor(regular_grid(size)).view(-1, 2)
    grid = family.grid(theta, size).flatten(1, 2)
    for points in (centres, centres.expand(3, -1, -1)):
        torch.testing.assert_close(family.points(theta, points, size), grid, rtol=0, atol=1e-12)


@each_family
def test_each_image_has_its_own_theta_and_its_own_points(family):
    theta, points = near_identity(family), torch.rand(3, 5, 2, dtype=torch.float64)
    together = family.points(theta, points)
    one_by_one = [family.points(theta[i : i + 1], points[i]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 1])
@each_family
def test_small_batches_are_batches(family, batch):
    assert family.grid(near_identity(family, batch), (4, 5)).shape == (batch, 4, 5, 2)


@each_family
def test_theta_of_wrong_shape_is_refused_by_name(family):
    P = family.n_parameters
    message = rf"{type(family).__name__} takes theta of shape \(B, {P}\), not \("
    for shape in [(P,), (2, P + 1), (2, P - 1), (1, 1, P)]:
        with pytest.raises(ValueError, match=message):
            family.grid(torch.zeros(shape), (4, 4))
        with pytest.raises(ValueError, match=message):
            family.points(torch.zeros(shape), torch.zeros(5, 2))


@pytest.mark.parametrize("k", [-1, 0, 1])
def test_spline_of_fewer_than_four_points_is_refused(k):
    with pytest.raises(ValueError, match="k >= 2"):
        ThinPlateSpline(k)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
@each_family
def test_single_and_double_are_kept_and_half_is_raised(family, given, used):
    theta = near_identity(family).to(given)
    points = torch.rand(5, 2).to(given)
    assert family.grid(theta, (4, 5)).dtype == family.points(theta, points).dtype == used
    assert torch.equal(family.grid(theta, (4, 5)), family.grid(theta.to(used), (4, 5)))  # raised before the arithmetic


@each_size
@pytest.mark.parametrize("family", [*MATRIX_FAMILIES, Affine3D()], ids=repr)
def test_the_grid_of_one_image_is_that_of_a_batch(family, size):
    """Up to rounding: it is made in fewer steps, and how a product is rounded depends on the processor."""
    size = (2, *size) if family.dimensions == 3 else size
    thetas = [near_identity(family, 1, 0.3, torch.float32).requires_grad_()]
    thetas.append(thetas[0].detach().clone().requires_grad_())
    grids = family.grid(thetas[0], size), family.grid(thetas[1].expand(2, -1), size)[:1]
    torch.testing.assert_close(*grids, rtol=0, atol=1e-6)
    upstream = torch.randn_like(grids[0])
    gradients = [torch.autograd.grad(grid, theta, upstream)[0] for grid, theta in zip(grids, thetas, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@each_family
def test_autocast_changes_no_bit_of_a_grid(family):
    theta, points = near_identity(family, dtype=torch.float32), torch.rand(5, 2)
    grid, source = family.grid(theta, (6, 5)), family.points(theta, points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(family.grid(theta, (6, 5)), grid)
        assert torch.equal(family.points(theta, points), source)


@each_family
def test_single_precision_grids_are_good_to_a_thousandth_of_a_pixel(family):
    theta, size = near_identity(family), (6, 224)
    error = family.grid(theta.float(), size) - family.grid(theta, size)
    assert error.abs().max() * 224 / 2 < 1e-3
    points = torch.rand(500, 2) * 2 - 1
    error = family.points(theta.float(), points) - family.points(theta, points)
    assert error.abs().max() * 224 / 2 < 1e-3


@each_spline
def test_tps_matches_scipy(family):
    axis = np.linspace(-1, 1, family.k)
    controls = np.array([(x, y) for y in axis for x in axis])
    theta = near_identity(family, spread=0.5)
    points = np.concatenate([np.random.default_rng(0).uniform(-1.5, 1.5, (40, 2)), controls])
    source = family.points(theta, torch.tensor(points)).numpy()
    for t, got in zip(theta.numpy(), source, strict=True):
        spline = RBFInterpolator(controls, t.reshape(-1, 2), kernel="thin_plate_spline", degree=1)
        np.testing.assert_allclose(got, spline(points), rtol=0, atol=1e-10)
        np.testing.assert_allclose(got[40:], t.reshape(-1, 2), rtol=0, atol=1e-10)  # it interpolates


@each_spline
def test_tps_reproduces_affine_maps(family):
    affine = near_identity(Affine(), spread=0.5)
    theta = Affine().points(affine, transforms.control_points(family.k)).flatten(1)
    torch.testing.assert_close(family.grid(theta, (9, 6)), Affine().grid(affine, (9, 6)), rtol=0, atol=1e-12)


def test_tps_in_single_precision_loses_no_digit_to_its_linear_system():
    family, points = ThinPlateSpline(8), torch.rand(500, 2) * 2 - 1
    theta = near_identity(family)
    error = family.points(theta.float(), points) - family.points(theta, points)
    assert error.abs().max() < 4e-6  # weights worked out in float32 would be off by 4e-5


@each_spline
def test_tps_gradient_is_finite_at_control_points(family):
    points = transforms.control_points(family.k).float().requires_grad_()
    theta = near_identity(family, dtype=torch.float32).requires_grad_()
    family.points(theta, points).sum().backward()
    assert points.grad.isfinite().all()
    assert theta.grad.isfinite().all()


def test_homography_through_four_points_matches_opencv():
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    source, target = (corners + 0.3 * torch.randn(5, 4, 2, dtype=torch.float64) for _ in range(2))
    # opencv takes single precision and multiplies in it: with 8 bits a coordinate its products are exact
    source, target = ((points * 256).round() / 256 for points in (source, target))
    theta = homography_through(source, target)
    torch.testing.assert_close(Projective().points(theta, target), source, rtol=0, atol=1e-10)
    for s, t, got in zip(source, target, Projective().matrix(theta), strict=True):
        expected = cv2.getPerspectiveTransform(t.float().numpy(), s.float().numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


@each_family
def test_gradcheck_of_grids_and_points(family):
    theta = near_identity(family, batch=2).requires_grad_()
    points = (torch.rand(3, 2, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda theta: family.grid(theta, (2, 3)), theta)
    assert torch.autograd.gradcheck(family.points, (theta, points))


@each_matrix_family
def test_inverse_matrix_undoes_the_transformation(family):
    points = torch.rand(20, 2, dtype=torch.float64) * 2 - 1
    theta = near_identity(family)
    inverse = torch.linalg.inv(family.matrix(theta))
    inverse = (inverse / inverse[:, 2:, 2:]).flatten(1)[:, :8]
    back = Projective().points(inverse, family.points(theta, points))
    torch.testing.assert_close(back, points.expand_as(back), rtol=0, atol=1e-10)
    back = Projective().points(inverse.float(), family.points(theta.float(), points.float()))
    torch.testing.assert_close(back, points.float().expand_as(back), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tilt", [4.0, 2.0, 4.0 + 1e-6], ids=["on a pixel", "between pixels", "beside a pixel"])
def test_horizon_in_the_image_leaves_grid_and_gradient_finite(tilt):
    theta = Projective().identity()[None].clone()
    theta[0, 6] = tilt  # the denominator 1 + tilt x vanishes at x = -0.25, where the pixel 1 of 4 is, or at x = -0.5
    theta.requires_grad_()
    grid = Projective().grid(theta, (4, 4))
    assert grid.isfinite().all()
    grid.sum().backward()
    assert theta.grad.isfinite().all()


def test_points_beside_the_horizon_stay_on_their_side():
    theta = Projective().identity()[None].double()
    theta[0, 6] = 4
    points = torch.tensor([[-0.25 + 1e-9, 0.5], [-0.25 - 1e-9, 0.5]], dtype=torch.float64)
    expected = points / (transforms.HORIZON * torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    torch.testing.assert_close(Projective().points(theta, points)[0], expected)


@each_family
def test_huge_theta_leaves_grid_and_gradient_finite(family):
    theta = (1e6 * torch.randn(64, family.n_parameters).sign()).requires_grad_()
    grid = family.grid(theta, (5, 4))
    assert grid.isfinite().all()
    grid.sum().backward()
    assert theta.grad.isfinite().all()


@each_family
def test_grid_made_in_inference_first_can_be_trained_later(family):
    constants.clear()
    with torch.inference_mode():
        family.points(family.identity()[None], torch.zeros(1, 2))
        family.grid(family.identity()[None], (3, 7))
    theta = family.identity()[None].clone().requires_grad_()
    points = torch.ones(1, 2, requires_grad=True)
    grid = family.grid(theta, (3, 7))
    ((grid * torch.rand_like(grid)).sum() + family.points(theta, points).sum()).backward()
    for gradient in (theta.grad, points.grad):
        assert gradient.isfinite().all() and gradient.any()


@each_family
def test_writing_to_a_grid_leaves_the_next_one_alone(family):
    theta = family.identity()[None]
    first = family.grid(theta, (4, 6))
    kept = first.clone()
    first.fill_(7)
    assert torch.equal(family.grid(theta, (4, 6)), kept)


# Sizes


@pytest.mark.parametrize(
    ("size", "meant"),
    [
        (5, (5, 5)),
        (np.int64(5), (5, 5)),
        (torch.tensor(5), (5, 5)),
        ([4, 5], (4, 5)),
        (torch.Size([4, 5]), (4, 5)),
        (np.array([4, 5]), (4, 5)),
        (torch.rand(1, 1, 4, 5).shape[2:], (4, 5)),
        ((np.int32(4), torch.tensor(5)), (4, 5)),
    ],
    ids=repr,
)
def test_a_size_is_one_integer_or_one_a_side(size, meant):
    for family in (Similarity(), ThinPlateSpline(3)):
        theta = near_identity(family)
        assert torch.equal(family.grid(theta, size), family.grid(theta, meant))
        assert torch.equal(family.grid(theta, 7, size), family.grid(theta, (7, 7), meant))
        assert torch.equal(family.points(theta, theta[:, :2], size), family.points(theta, theta[:, :2], meant))
        assert torch.equal(family.inverse_grid(theta, size), family.inverse_grid(theta, meant))
    assert Affine3D().grid(torch.zeros(2, 12), np.int64(3)).shape == (2, 3, 3, 3, 3)


@pytest.mark.parametrize(
    "size",
    [
        *(0, -1, 2.0, "16", True, None, np.float32(4), torch.tensor(4.0), torch.tensor([[4, 5]]), {"h": 4, "w": 5}),
        *((), (4,), (4, 0), (4, -5), (4, 5.0), (4, None), (4, 5, 6), (4, "5"), ((4, 5),), (4, np.nan), (4, True)),
    ],
    ids=repr,
)
def test_what_is_no_size_is_one_clear_error(size):
    theta = torch.zeros(1, 4)
    calls = [lambda: Similarity().grid(theta, size), lambda: Similarity().inverse_grid(theta, size)]
    if size is not None:  # of a source: it is not known
        calls += [
            lambda: Similarity().grid(theta, 4, size),
            lambda: Similarity().points(theta, torch.zeros(1, 2), size),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=r"a size is a positive integer or 2 of them, \(H, W\), not"):
            call()


def test_a_volume_has_three_sides():
    with pytest.raises(ValueError, match=r"3 of them, \(D, H, W\), not \(4, 5\)"):
        Affine3D().grid(torch.zeros(1, 12), (4, 5))


@each_family
def test_points_of_wrong_shape_are_refused_by_name(family):
    theta = family.identity()[None]
    for shape in [(2,), (5, 3), (1, 5, 1), (1, 1, 5, 2)]:
        for call in (family.points, family.inverse_points):
            with pytest.raises(ValueError, match=rf"{type(family).__name__} takes points of shape \(N, 2\) or"):
                call(theta, torch.zeros(shape))


# Angles, in pixels


def opencv_turn(size, angle, scale=1.0, move=(0.0, 0.0)):
    """OpenCV's matrix from source to target, both of `size`: content turned counter-clockwise, scaled, and moved back
    by `move` (normalised coordinates of the source) before that."""
    height, width = size
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), np.degrees(angle), scale)
    matrix[:, 2] -= matrix[:, :2] @ (np.array(move) * (width / 2, height / 2))
    return matrix


@pytest.mark.parametrize("size", [(20, 40), (21, 40), (20, 41), (37, 15), (23, 23)], ids=str)
def test_a_rotation_and_scale_is_what_opencv_makes_of_it_on_an_image_of_any_aspect(size):
    draws = np.random.default_rng(0)
    image = cv2.GaussianBlur(draws.random((80, 80)).astype(np.float32), (0, 0), 4)[: size[0], : size[1]].copy()
    U = torch.from_numpy(image)[None, None].double()
    for angle, scale, x, y in draws.uniform((-np.pi, 0.6, -0.3, -0.3), (np.pi, 1.6, 0.3, 0.3), (12, 4)):
        a, b = np.cos(angle) / scale, np.sin(angle) / scale
        theta = torch.tensor([[a, b, x, y]], dtype=torch.float64)
        matrix = opencv_turn(size, angle, scale, (x, y))
        expected = cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR)
        got = bilinear(U, Similarity().grid(theta, size))[0, 0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.015)  # OpenCV rounds positions to 1/32 pixel
        backwards = cv2.invertAffineTransform(matrix)
        in_pixels = np.array([[2 / size[1], 0, 1 / size[1] - 1], [0, 2 / size[0], 1 / size[0] - 1], [0, 0, 1]])
        expected = in_pixels @ np.vstack([backwards, (0, 0, 1)]) @ np.linalg.inv(in_pixels)
        np.testing.assert_allclose(Similarity().matrix(theta, size)[0], expected, rtol=0, atol=1e-9)
        turn = Rotation().grid(torch.tensor([[angle]]), size)
        expected = cv2.warpAffine(image, opencv_turn(size, angle), size[::-1], flags=cv2.INTER_LINEAR)
        np.testing.assert_allclose(bilinear(U, turn)[0, 0], expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("family", [Similarity(), Rotation()], ids=repr)
def test_a_bar_that_is_turned_by_a_right_angle_stays_as_long_and_as_thick(family):
    U = torch.zeros(1, 1, 20, 40, dtype=torch.float64)
    U[..., 8:12, 10:30] = 1
    theta = {1: [np.pi / 2], 4: [0.0, 1.0, 0.0, 0.0]}[family.n_parameters]
    V = bilinear(U, family.grid(torch.tensor([theta], dtype=torch.float64), (20, 40)))
    expected = torch.zeros_like(V)
    expected[..., 0:20, 18:22] = 1
    torch.testing.assert_close(V, expected, rtol=0, atol=1e-9)


def test_a_positive_angle_turns_what_is_seen_counter_clockwise():
    U = torch.rand(1, 1, 7, 7, dtype=torch.float64)
    for quarters in range(4):
        angle = torch.tensor([[quarters * np.pi / 2]], dtype=torch.float64)
        torch.testing.assert_close(bilinear(U, Rotation().grid(angle, 7)), torch.rot90(U, quarters, (2, 3)))


def test_a_rotation_is_a_similarity_of_scale_one():
    angle, size = torch.randn(5, 1, dtype=torch.float64), (6, 11)
    theta = torch.cat([torch.cos(angle), torch.sin(angle), torch.zeros(5, 2, dtype=torch.float64)], 1)
    torch.testing.assert_close(Rotation().grid(angle, size), Similarity().grid(theta, size), rtol=0, atol=1e-15)


@pytest.mark.parametrize("target", [(20, 40), (10, 20), (40, 80)], ids=str)
@pytest.mark.parametrize("family", [Translation(0.5), Attention(), Rotation(), Similarity()], ids=repr)
def test_where_the_aspects_agree_shapes_are_kept(family, target):
    """The matrix on pixels is a rotation times a scale: its singular values agree."""
    (H, W), (h, w) = source, _ = (20, 40), target
    linear = family.matrix(near_identity(family, spread=0.5), source)[:, :2, :2]
    linear = torch.tensor([W / 2, H / 2])[:, None] * linear * torch.tensor([2 / w, 2 / h])
    values = torch.linalg.svdvals(linear)
    torch.testing.assert_close(values[:, 0], values[:, 1], rtol=1e-12, atol=0)
    assert (values > 0.1).all()


@each_family
def test_a_target_of_another_aspect_is_the_stretched_one(family):
    """The map is the source's; the target only says where it is looked at."""
    theta, source, target = near_identity(family), (20, 40), (9, 5)
    points = torch.tensor(regular_grid(target)).view(-1, 2)
    torch.testing.assert_close(family.grid(theta, target, source).flatten(1, 2), family.points(theta, points, source))
    if isinstance(family, (Similarity, Rotation)):
        assert not torch.allclose(family.grid(theta, target, source), family.grid(theta, target))


@each_family
def test_a_square_source_is_what_is_meant_where_none_is_given(family):
    theta, points = near_identity(family, dtype=torch.float32), torch.rand(5, 2)
    assert torch.equal(family.points(theta, points), family.points(theta, points, 17))
    assert torch.equal(family.grid(theta, 9), family.grid(theta, (9, 9), 31))
    if isinstance(family, Similarity):  # no bit of the plain equation changes
        a, b, x, y = theta.unbind(1)
        assert torch.equal(family.grid(theta, 9), Affine().grid(torch.stack([a, -b, x, b, a, y], 1), 9))


def test_geometry_imports_torch_and_nothing_else():
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import stn.geometry.sampling, stn.geometry.transforms\n"
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(roots - set(sys.stdlib_module_names)))\n"
        "heavy = 'lightning hydra wandb scipy sklearn torchvision matplotlib cv2 rich'.split()\n"
        "print(*(name for name in heavy if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["stn", ""]


@pytest.mark.parametrize("family", [Affine(), Projective(), ThinPlateSpline(2)])
def test_theta_of_integers_is_refused(family):
    """Pixel centres would be rounded to integers."""
    with pytest.raises(ValueError, match=r"in floating point, not torch\.int64"):
        family.grid(family.identity().long()[None], 4)


def test_a_spline_takes_a_whole_number_of_control_points():
    with pytest.raises(ValueError, match=r"needs k >= 2 control points a side, not 4\.0"):
        ThinPlateSpline(4.0)

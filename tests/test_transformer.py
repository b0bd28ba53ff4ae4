import copy
import math
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from stn import SpatialTransformer
from stn.experiments.mnist.networks import DigitNetwork
from stn.geometry.sampling import LearnableSampler, bicubic, bilinear, trilinear
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
)
from stn.nn.localisation import FirstConvolution

FAMILIES = [Translation(), Attention(), Rotation(), Similarity(), Crop(), Affine(), Projective(), ThinPlateSpline(3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def localisation(channels=1, features=8):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, features), nn.ReLU())


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
@pytest.mark.parametrize("sampler", [bicubic, LearnableSampler()], ids=["bicubic", "learnable"])
def test_an_untrained_transformer_hands_its_input_on(family, sampler):
    U = torch.rand(2, 3, 9, 12)
    V = SpatialTransformer(localisation(3), 8, family, sampler)(U)
    torch.testing.assert_close(V, U, atol=1e-5, rtol=0)


def test_it_hands_back_theta():
    V, theta = SpatialTransformer(localisation(), 8, ThinPlateSpline(4))(torch.rand(5, 1, 8, 8), return_theta=True)
    assert V.shape == (5, 1, 8, 8) and theta.shape == (5, 32)


def test_a_target_size_downsamples():
    assert SpatialTransformer(localisation(), 8, size=[4, 6])(torch.rand(2, 1, 8, 8)).shape == (2, 1, 4, 6)


def test_parallel_transformers_share_the_localisation_and_start_apart():
    starts = torch.tensor([[-0.5, -0.5], [0.5, 0.5]])
    transformer = SpatialTransformer(localisation(), 8, Translation(0.5), size=(4, 4), starts=starts)
    U = torch.rand(3, 1, 8, 8)
    V, theta = transformer(U, return_theta=True)
    assert V.shape == (3, 2, 1, 4, 4) and theta.shape == (3, 2, 2)
    torch.testing.assert_close(V[:, 0], U[:, :, :4, :4])
    torch.testing.assert_close(V[:, 1], U[:, :, 4:, 4:])


def test_parallel_transformers_each_sample_where_their_own_theta_says():
    starts = torch.tensor([[-0.5, -0.4], [0.5, 0.3], [0.1, 0.7]])
    transformer = SpatialTransformer(localisation(2), 8, Translation(0.5), size=(4, 6), starts=starts)
    nn.init.normal_(transformer.regression.weight)
    U = torch.rand(3, 2, 8, 8)
    V, theta = transformer(U, return_theta=True)
    assert V.shape == (3, 3, 2, 4, 6)
    for i in range(3):
        torch.testing.assert_close(V[:, i], bilinear(U, Translation(0.5).grid(theta[:, i], (4, 6))))


def test_parallel_transformers_that_start_alike_are_refused():
    with pytest.raises(ValueError, match="different"):
        SpatialTransformer(localisation(), 8, Translation(), starts=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        SpatialTransformer(localisation(), 8, Translation(), starts=torch.zeros(2, 3))


def test_a_size_is_one_integer_or_one_a_side():
    U, volumes = torch.rand(2, 1, 8, 10), torch.rand(2, 1, 4, 5, 6)
    for size in (6, np.int64(6), [6, 6], torch.Size([6, 6]), np.array([6, 6])):
        transformer = SpatialTransformer(localisation(), 8, size=size)
        assert transformer.size == (6, 6) and transformer(U).shape == (2, 1, 6, 6)
    body = nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten())
    assert SpatialTransformer(body, 8, Affine3D(), trilinear, size=3)(volumes).shape == (2, 1, 3, 3, 3)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8", (), (8,), (8, 0), (8, 8.0), (8, 8, 8), (8, None)], ids=repr)
def test_what_is_no_size_is_refused_when_the_transformer_is_made(size):
    with pytest.raises(ValueError, match=r"a size is a positive integer or 2 of them, \(H, W\), not"):
        SpatialTransformer(localisation(), 8, size=size)


def test_an_input_of_other_dimensions_is_one_clear_error():
    for shape in [(1, 8, 8), (2, 1, 4, 8, 8), (8, 8)]:
        with pytest.raises(ValueError, match=r"Affine transforms U of shape \(B, C, H, W\), not \("):
            SpatialTransformer(localisation(), 8)(torch.rand(shape))
    with pytest.raises(ValueError, match=r"Affine3D transforms U of shape \(B, C, D, H, W\), not \(2, 1, 8, 8\)"):
        SpatialTransformer(localisation(), 8, Affine3D())(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("size", [None, (40, 80), (10, 20)])
def test_a_rotation_of_an_image_that_is_not_square_is_one_in_pixels(size):
    image = cv2.GaussianBlur(np.random.default_rng(0).random((20, 40)).astype(np.float32), (0, 0), 3)
    transformer = SpatialTransformer(localisation(), 8, Rotation(), size=size)
    nn.init.constant_(transformer.regression.bias, 0.5)
    V = transformer(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    matrix = cv2.getRotationMatrix2D((19.5, 9.5), np.degrees(0.5), 1.0)
    h, w = size or (20, 40)
    zoom = np.array([[w / 40, 0, (w / 40 - 1) / 2], [0, h / 20, (h / 20 - 1) / 2]])  # pixel centres to pixel centres
    matrix = zoom @ np.vstack([matrix, (0, 0, 1)])
    expected = cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(V, expected, rtol=0, atol=0.02)


def test_the_source_decides_what_a_right_angle_is_not_the_target():
    U = torch.rand(1, 1, 20, 40)
    transformer = SpatialTransformer(localisation(), 8, Similarity(), size=16)
    transformer.regression.bias.data = torch.tensor([0.3, 0.4, 0.1, 0.0])
    theta = transformer.regression.bias[None]
    rows = torch.tensor([[0.3, -0.4 * 20 / 40, 0.1, 0.4 * 40 / 20, 0.3, 0.0]])
    torch.testing.assert_close(transformer(U), bilinear(U, Affine().grid(rows, 16)))
    torch.testing.assert_close(transformer(U), bilinear(U, Similarity().grid(theta, 16, U.shape[2:])))


# Bounds


def shaken(transformer, spread=1.0):
    nn.init.normal_(transformer.regression.weight, std=spread)
    return transformer


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_a_bounded_theta_starts_and_first_moves_as_a_free_one(family):
    U = torch.rand(4, 1, 8, 8)
    body, gradients = localisation(), []
    for reach in (None, 0.3, [0.1 + i for i in range(family.n_parameters)], float("inf")):
        transformer = SpatialTransformer(body, 8, family, reach=reach)
        V, theta = transformer(U, return_theta=True)
        assert torch.equal(theta, family.identity().expand(4, -1))
        V.square().sum().backward()
        gradients.append([parameter.grad for parameter in transformer.regression.parameters()])
    for others in gradients[1:]:
        for gradient, free in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(gradient, free)


@pytest.mark.parametrize("spread", [0.1, 10, 1e6])
@pytest.mark.parametrize("reach", [0.2, torch.tensor([0.1, 0.2, 3.0]), np.array([1e-3, 1, 1]), (1, 2, 3)], ids=str)
def test_theta_never_leaves_its_bounds(reach, spread):
    transformer = shaken(SpatialTransformer(localisation(), 8, Attention(), reach=reach), spread)
    transformer.localisation = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    theta = transformer.theta(torch.randn(500, 1, 8, 8))
    limits = torch.as_tensor(reach, dtype=torch.float32).expand(3)
    start = Attention().identity()
    assert (theta <= start + limits).all() and (theta >= start - limits).all()
    assert theta.isfinite().all() and theta.std() > 0
    if spread > 1:
        assert ((theta - start).abs() > 0.9 * limits).float().mean() > 0.5
    theta.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in transformer.parameters())


def test_bounded_theta_is_the_equation_of_the_page():
    free = shaken(SpatialTransformer(localisation(), 8, Similarity()))
    reach = torch.tensor([0.5, 0.1, torch.inf, 0.7])
    bounded = SpatialTransformer(free.localisation, 8, Similarity(), reach=reach)
    bounded.load_state_dict(free.state_dict())
    U = torch.rand(5, 1, 8, 8)
    raw, start = free.theta(U).detach().numpy(), np.array([1.0, 0, 0, 0])
    expected = raw.copy()
    for i in (0, 1, 3):
        expected[:, i] = start[i] + reach[i].item() * np.tanh((raw[:, i] - start[i]) / reach[i].item())
    np.testing.assert_allclose(bounded.theta(U).detach(), expected, rtol=0, atol=1e-6)
    assert np.array_equal(bounded.theta(U).detach()[:, 2], raw[:, 2])
    assert torch.equal(bounded(U), bounded(U, return_theta=True)[0])
    torch.testing.assert_close(bounded(U), bilinear(U, Similarity().grid(bounded.theta(U), 8)))


def test_parallel_transformers_are_bounded_each_around_its_own_start():
    starts = torch.tensor([[-0.5, -0.5], [0.5, 0.5], [0.0, 0.9]])
    transformer = shaken(SpatialTransformer(localisation(), 8, Translation(0.5), starts=starts, reach=(0.1, 0.2)), 1e3)
    transformer.localisation = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    theta = transformer.theta(torch.randn(50, 1, 8, 8))
    assert theta.shape == (50, 3, 2)
    assert (theta <= starts + torch.tensor([0.1, 0.2])).all() and (theta >= starts - torch.tensor([0.1, 0.2])).all()
    assert len(theta.round(decimals=2).flatten(0, 1).unique(dim=0)) > 3


@pytest.mark.parametrize("spread", [0.0, 0.1, 100.0])
def test_gradients_of_a_bounded_theta_are_right_where_some_parameters_are_free(spread):
    transformer = SpatialTransformer(nn.Flatten(), 4, Attention(), reach=[0.5, float("inf"), 2.0]).double()
    nn.init.normal_(transformer.regression.weight, std=spread)
    assert torch.autograd.gradcheck(transformer.theta, torch.rand(2, 1, 2, 2, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize(
    "reach",
    [
        *(0, -1, float("nan"), "far", torch.tensor(0.0), {"tx": 1}, {0.1}, 1e-50),
        *([], [0.1, 0.2], [0.1, 0.2, 0.0], [0.1, 0.2, -0.1], [0.1, 0.2, float("nan")], [1, 2, "3x"]),
        *(torch.ones(4), torch.ones(1, 3)),
    ],
    ids=repr,
)
def test_a_reach_that_is_none_is_refused(reach):
    with pytest.raises(ValueError, match="reach must be a positive number, or 3 of them, one a parameter, not"):
        SpatialTransformer(localisation(), 8, Attention(), reach=reach)


def test_checkpoints_do_not_depend_on_bounds(tmp_path):
    free = shaken(SpatialTransformer(localisation(), 8))
    names = {"regression.weight", "regression.bias", "localisation.2.weight", "localisation.2.bias"}
    torch.save(free.state_dict(), tmp_path / "free.pt")
    for parts in ({}, {"reach": 0.5}, {"reach": [1.0] * 6, "padding_mode": "border", "size": 4}):
        other = SpatialTransformer(localisation(), 8, **parts)
        assert set(other.state_dict()) == names
        other.load_state_dict(torch.load(tmp_path / "free.pt", weights_only=True), strict=True)
        free.load_state_dict(other.state_dict(), strict=True)


def test_bounds_move_with_the_module_and_are_kept_by_a_copy():
    transformer = shaken(SpatialTransformer(localisation(), 8, reach=0.1), 100).double()
    theta = copy.deepcopy(transformer).theta(torch.rand(9, 1, 8, 8, dtype=torch.float64))
    assert theta.dtype == torch.float64 and (theta - Affine().identity()).abs().max() <= 0.1 + 1e-8
    with torch.device("meta"):
        transformer = SpatialTransformer(localisation(), 8, reach=0.1, size=4)
        V, theta = transformer(torch.rand(9, 1, 8, 8), return_theta=True)
    assert theta.is_meta and theta.shape == (9, 6) and V.shape == (9, 1, 4, 4)
    assert transformer.reach.is_meta and "reach=0.1" in repr(transformer)


# Padding


def test_the_padding_mode_is_handed_to_the_sampler_only_where_it_is_not_zeros():
    heard = []

    def sampler(U, grid, **options):
        heard.append(options)
        return bilinear(U, grid)

    def plain(U, grid):
        return bilinear(U, grid)

    U, starts = torch.rand(2, 1, 8, 8), torch.eye(6)[:2]
    assert torch.equal(SpatialTransformer(localisation(), 8, None, plain)(U), SpatialTransformer(localisation(), 8)(U))
    for mode in ("zeros", "border", "reflection"):
        SpatialTransformer(localisation(), 8, None, sampler, padding_mode=mode)(U)
        SpatialTransformer(localisation(), 8, None, sampler, padding_mode=mode, starts=starts)(U)
    border, reflection = {"padding_mode": "border"}, {"padding_mode": "reflection"}
    assert heard == [{}, {}, border, border, reflection, reflection]


@pytest.mark.parametrize("mode", ["zero", "replicate", "", None, 0, "Border"], ids=repr)
def test_an_unknown_padding_mode_is_refused(mode):
    with pytest.raises(ValueError, match="padding_mode must be one of zeros, border, reflection, not"):
        SpatialTransformer(localisation(), 8, padding_mode=mode)


# Graphs


@pytest.mark.parametrize(
    "parts",
    [
        {"transformation": Rotation(), "reach": 0.3, "padding_mode": "border"},
        {"transformation": Similarity(), "size": 16, "reach": [0.5, 0.5, float("inf"), 0.2]},
        {"transformation": ThinPlateSpline(3), "size": 16, "padding_mode": "reflection"},
        {"transformation": Translation(0.5), "starts": torch.tensor([[-0.5, 0], [0.5, 0]]), "reach": 0.2},
    ],
    ids=lambda parts: repr(parts["transformation"]),
)
def test_a_graph_takes_any_number_of_images_of_any_size(parts):
    transformer = shaken(SpatialTransformer(localisation(), 8, **parts), 0.1).eval()
    example, other = torch.rand(2, 1, 20, 40), torch.rand(3, 1, 30, 25)
    open_sizes = {0: torch.export.Dim("batch")} | {i: torch.export.Dim(f"side{i}", min=8, max=99) for i in (2, 3)}
    exported = torch.export.export(transformer, (example,), dynamic_shapes=(open_sizes,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        traced = torch.jit.trace(transformer, (example,))
    for graph in (exported, traced):
        torch.testing.assert_close(graph(other), transformer(other))


# What it says of itself


def test_its_repr_tells_what_decides_the_warp():
    shown = repr(SpatialTransformer(localisation(), 8, ThinPlateSpline(3), bicubic, 16, reach=0.25))
    for part in ("ThinPlateSpline(k=3)", "size=(16, 16)", "padding_mode=zeros", "sampler=bicubic", "reach=0.25"):
        assert part in shown
    free = repr(SpatialTransformer(localisation(), 8, Attention(), LearnableSampler(), padding_mode="border"))
    for part in ("Attention()", "size=None", "padding_mode=border", "(sampler): LearnableSampler("):
        assert part in free
    assert "reach=None" in free
    starts = torch.tensor([[0.0, 0.1], [0.2, 0.3]])
    many = repr(
        SpatialTransformer(localisation(), 8, Translation(), starts=starts, reach=torch.tensor([0.5, torch.inf]))
    )
    assert "parallel=2" in many and "reach=[0.5, inf]" in many


def test_everything_is_imported_from_stn_when_asked_for():
    program = (
        "import sys, stn\n"
        "print('torch' in sys.modules)\n"
        "from stn import *\n"
        "print(*(name for name in stn.__all__ if name not in globals()))\n"
        "print(*(name for name in ('lightning', 'hydra', 'wandb', 'scipy', 'torchvision') if name in sys.modules))\n"
        "print(SpatialTransformer.__module__, ThinPlateSpline(4), bilinear.__name__)\n"
        "print(set(stn.__all__) <= set(dir(stn)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = ["False", "", "", "stn.nn.transformer ThinPlateSpline(k=4) bilinear", "True"]
    assert done.stdout.splitlines() == expected


def test_it_stands_in_depth_and_every_parameter_learns():
    net = nn.Sequential(
        SpatialTransformer(localisation(), 8, Affine(), LearnableSampler()),
        nn.Conv2d(1, 4, 3),
        SpatialTransformer(localisation(4), 8, ThinPlateSpline(3), size=(5, 5)),
        nn.Flatten(),
        nn.Linear(100, 10),
    )
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):  # the localisation learns from the second step on, once the regression is off zero
        optimiser.zero_grad()
        net(torch.rand(4, 1, 12, 12)).square().mean().backward()
        optimiser.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_theta_stays_float32_under_autocast():
    transformer = SpatialTransformer(localisation(), 8)
    with torch.autocast("cpu", torch.bfloat16):
        V, theta = transformer(torch.rand(2, 1, 8, 8).bfloat16(), return_theta=True)
    assert theta.dtype == torch.float32 and V.dtype == torch.bfloat16


def test_the_classifier_sees_the_warped_image():
    net = DigitNetwork(28, "cnn", 4, "affine", localisation={"filters": 4, "features": 4})
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        before = net(images)
        net.transformer.regression.bias[2] = 0.5
        assert not torch.allclose(net(images), before)
        torch.testing.assert_close(net(images), net.classifier(net.seen(images)))


@pytest.mark.parametrize("classifier", ["cnn", "fcn"])
@pytest.mark.parametrize("canvas, pool", [(28, 1), (42, 2), (60, 2)])
def test_every_canvas_fits_every_classifier(classifier, canvas, pool):
    parts = {"filters": 4, "features": 4, "hidden": 8, "layers": 3}
    net = DigitNetwork(canvas, classifier, 8, "tps", pool=pool, localisation=parts)
    assert net(torch.rand(2, 1, canvas, canvas)).shape == (2, 10)
    assert net.seen(torch.rand(2, 1, canvas, canvas)).shape[2] == canvas // pool


def test_the_fast_first_convolution_is_the_plain_one():
    fast, images = FirstConvolution(5, 9).double(), torch.rand(3, 1, 14, 17, dtype=torch.float64, requires_grad=True)
    plain = nn.functional.conv2d(images, fast.weight, fast.bias)
    torch.testing.assert_close(fast(images), plain)
    weights = torch.rand_like(plain)
    wanted = torch.autograd.grad((plain * weights).sum(), [images, fast.weight, fast.bias])
    found = torch.autograd.grad((fast(images) * weights).sum(), [images, fast.weight, fast.bias])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transformation": Affine}, r"transformation must be an object of a family, such as Affine\(\)"),
        ({"transformation": "affine"}, "transformation must be an object of a family"),
        ({"sampler": "bilinear"}, "sampler must be a function or a module"),
        ({"features": 16.0}, "features must be a positive integer, not 16.0"),
        ({"features": 0}, "features must be a positive integer, not 0"),
        ({"reach": True}, "reach must be a positive number"),
        ({"starts": torch.zeros(0, 6)}, r"starts must have shape \(6,\) or \(N, 6\)"),
        ({"starts": [math.nan] * 6}, "starts must be finite"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_when_the_transformer_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(**{"localisation": nn.Flatten(), "features": 16, **arguments})

import pytest
import torch
from torch import nn

from stn import SpatialTransformer
from stn.geometry.sampling import LearnableSampler, bicubic, bilinear
from stn.geometry.transforms import Affine, Attention, Projective, Similarity, ThinPlateSpline, Translation
from stn.models.digits import DigitNetwork
from stn.models.localisation import FirstConvolution

FAMILIES = [Translation(), Attention(), Similarity(), Affine(), Projective(), ThinPlateSpline(3)]


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

"""The kernels that a GPU trains digits with, against PyTorch's own; without a GPU in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton", reason="torch came without Triton: then all goes the plain way")
from stn.config import compose
from stn.nn import convolutions
from stn.nn.localisation import FirstConvolution, Layers
from stn.training.learner import build_network

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NEAR = 3e-6  # of the norm, in float32


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= NEAR * theirs.norm()


def assert_same_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    gradient = torch.randn_like(theirs)
    for mine, reference in zip(
        torch.autograd.grad(ours, leaves, gradient), torch.autograd.grad(theirs, leaves, gradient), strict=True
    ):
        assert_near(mine, reference)


@pytest.mark.parametrize(
    "batch, side, kernel, filters, ceil",
    [
        pytest.param(1, 28, 9, 18, True, id="R"),
        pytest.param(2, 21, 9, 65, True, id="RTS: a pool over the edge, a wide block"),
        pytest.param(3, 14, 5, 20, False, id="localisation"),
        pytest.param(2, 21, 5, 20, False, id="localisation of RTS: a row and a column unused"),
        pytest.param(2, 11, 4, 3, True, id="even kernel, few filters"),
        pytest.param(48, 12, 3, 3, True, id="more parts than are summed at a time"),
    ],
)
def test_the_first_layer_is_convolution_pool_and_relu(batch, side, kernel, filters, ceil):
    images = torch.randn(batch, 1, side, side, device=DEVICE, requires_grad=True)
    layer = FirstConvolution(filters, kernel).to(DEVICE)
    ours = convolutions.first_layer(images, layer.weight, layer.bias, ceil)
    assert ours.shape[1] % 16 == 0 and not ours[:, filters:].any()
    theirs = F.relu(F.max_pool2d(F.conv2d(images, layer.weight, layer.bias), 2, ceil_mode=ceil))
    assert_near(ours[:, :filters], theirs)
    assert_same_gradients(ours[:, :filters], theirs, [images, layer.weight, layer.bias])


@pytest.mark.parametrize(
    "batch, side, kernel, channels, filters",
    [
        pytest.param(2, 10, 7, 18, 18, id="R"),
        pytest.param(2, 8, 7, 65, 65, id="a wide block"),
        pytest.param(2, 7, 7, 65, 65, id="one position"),
        pytest.param(70, 6, 5, 20, 20, id="localisation, more images than a program takes"),
        pytest.param(2, 6, 3, 16, 40, id="more filters than channels"),
    ],
)
def test_a_later_convolution_is_torchs(batch, side, kernel, channels, filters):
    layer = nn.Conv2d(channels, filters, kernel).to(DEVICE)
    maps = torch.randn(batch, channels, side, side, device=DEVICE, requires_grad=True)
    filled = F.pad(maps, (0, 0, 0, 0, 0, -channels % 16))
    ours, theirs = convolutions.convolution(filled, layer.weight, layer.bias)[:, :filters], layer(maps)
    assert_near(ours, theirs)
    assert_same_gradients(ours, theirs, [maps, layer.weight, layer.bias])


@pytest.mark.parametrize("data, model", [("mnist_rts", "st_cnn_tps"), ("mnist_r", "cnn")])
def test_networks_of_the_table_are_the_same_with_kernels(data, model, monkeypatch):
    network = build_network(compose(f"data={data}", f"model={model}", "model.width=7")).to(DEVICE)
    for name, weight in network.named_parameters():
        if "regression.weight" in name:  # zero at the start: nothing would reach the localisation network
            nn.init.normal_(weight, std=0.05)
    side = 42 if data == "mnist_rts" else 28
    images = torch.rand(2, 1, side, side, device=DEVICE)
    monkeypatch.setattr(Layers, "forward", nn.Sequential.forward)
    theirs = network(images)
    monkeypatch.setattr(Layers, "forward", convolutions.run)
    ours = network(images)
    assert_near(ours, theirs)
    assert_same_gradients(ours, theirs, list(network.parameters()))


def test_what_no_kernel_is_for_goes_the_plain_way():
    """Two channels, a stride, padding, many filters, an odd shape, no pool. No filled-up channel comes out."""
    two = Layers(FirstConvolution(6, 3, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 200, 3), nn.Conv2d(200, 7, 2))
    odd = Layers(nn.Conv2d(1, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 4, (3, 2)))
    bare = Layers(FirstConvolution(6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 3))
    slow = Layers(FirstConvolution(6, 3), nn.MaxPool2d(2, stride=1), nn.ReLU(), nn.Conv2d(6, 5, 3))
    last = Layers(FirstConvolution(6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 5, 2))
    for layers, channels, side in ((two, 2, 10), (odd, 1, 8), (bare, 1, 8), (slow, 1, 8), (last, 1, 8)):
        layers.to(DEVICE)
        images = torch.randn(2, channels, side, side, device=DEVICE)
        ours, theirs = convolutions.run(layers, images), nn.Sequential.forward(layers, images)
        assert_near(ours, theirs)
        assert_same_gradients(ours, theirs, list(layers.parameters()))


def test_nan_goes_through_the_first_layer_as_through_torchs():
    """Else a run that has diverged would go on as if nothing were."""
    layer = FirstConvolution(4, 3).to(DEVICE)
    images = torch.randn(2, 1, 8, 8, device=DEVICE)
    images[0, 0, 4, 4] = torch.nan
    ours = convolutions.first_layer(images, layer.weight, layer.bias, True)[:, :4]
    theirs = F.relu(F.max_pool2d(layer(images), 2))
    assert ours.isnan().any() and torch.equal(ours.isnan(), theirs.isnan())


def test_a_value_of_zero_hands_no_gradient_back():
    """A ReLU's gradient at zero is zero, and a map of nothing but the bias is at zero where that is."""
    images = torch.zeros(1, 1, 6, 6, device=DEVICE, requires_grad=True)
    weight = torch.ones(2, 1, 3, 3, device=DEVICE, requires_grad=True)
    bias = torch.tensor([0.0, 1.0], device=DEVICE, requires_grad=True)
    out = convolutions.first_layer(images, weight, bias, True)[:, :2]
    assert_same_gradients(out, F.relu(F.max_pool2d(F.conv2d(images, weight, bias), 2)), [images, weight, bias])
    out = convolutions.first_layer(images, weight, bias, True)[:, :2]
    assert torch.autograd.grad(out.sum(), bias)[0].tolist() == [0.0, 4.0]


@pytest.mark.parametrize("room", [99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize("channels", [16, 64, 80])
@pytest.mark.parametrize("kernel, positions", [("forward", 16), ("forward", 121), ("maps", 100), ("maps", 289)])
def test_tiles_fit_into_the_shared_memory_of_smaller_cards(kernel, positions, channels, room, monkeypatch):
    monkeypatch.setattr(convolutions, "_shared_memory", lambda device: room)
    rows, how = convolutions._launch(kernel, torch.empty(256, 1), "tf32", channels, channels, positions=positions)
    wide = 2 ** (channels - 1).bit_length()
    assert 16 <= rows <= 64 and how["num_stages"] >= 1
    assert 4 * how["num_stages"] * (rows * wide + wide * wide) <= room


def test_a_cpu_and_double_precision_go_the_plain_way(monkeypatch):
    monkeypatch.setattr(convolutions, "run", lambda *_: pytest.fail("went to the kernels"))
    layers = Layers(FirstConvolution(3, 3), nn.MaxPool2d(2), nn.ReLU())
    assert layers(torch.rand(1, 1, 8, 8)).shape == (1, 3, 3, 3)
    if GPU:
        assert layers.double().to(DEVICE)(torch.rand(1, 1, 8, 8, device=DEVICE).double()).shape == (1, 3, 3, 3)
    assert not convolutions.usable(torch.device("cpu"))


def test_where_triton_cannot_build_kernels_it_is_said_once_and_cudnns_serve(monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find C compiler.\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    monkeypatch.setattr(convolutions, "_first_images", Broken())
    convolutions.usable.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"cannot build ours here \(Failed to find C compiler.\)") as told:
            assert not convolutions.usable(torch.device("cuda")) and not convolutions.usable(torch.device("cuda"))
        assert len(told) == 1
    finally:
        convolutions.usable.cache_clear()


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("how", ["tf32", "bf16"])
@pytest.mark.parametrize("data, model", [("mnist_r", "st_cnn_affine"), ("mnist_rts", "cnn")])
def test_products_of_less_precision_err_no_more_than_cudnns(how, data, model, monkeypatch):
    network = build_network(compose(f"data={data}", f"model={model}")).to(DEVICE)
    images = torch.rand(256, 1, 42 if data == "mnist_rts" else 28, 42 if data == "mnist_rts" else 28, device=DEVICE)

    def scores(forward) -> Tensor:
        monkeypatch.setattr(Layers, "forward", forward)
        return network(images).float()

    with torch.no_grad():
        exact = scores(nn.Sequential.forward)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        with torch.autocast("cuda", torch.bfloat16, enabled=how == "bf16"):
            ours, theirs = scores(convolutions.run), scores(nn.Sequential.forward)
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + 1e-3 * exact.norm()

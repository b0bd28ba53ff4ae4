import importlib.util
import itertools
import os
import subprocess
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from stn.config import compose
from stn.errors import UserError
from stn.experiments.cub import trunks
from stn.experiments.cub.networks import CubNetwork, tiles
from stn.experiments.cub.trunks import Trunk, fold_norms
from stn.geometry.transforms import CORNERS, Translation
from stn.training import run as runs
from stn.training.data_module import DataModule
from stn.training.learner import Learner, build_network, new_learner

LOCALISATION = {"filters": 4, "features": 6}
MODELS = [
    *(("cub_cnn",), ("cub_bilinear",), ("cub_2st", "model.windows=1")),
    *((name, *settings) for name in ("cub_2st", "cub_4st") for settings in ((), ("model.fixed=true",))),
    ("cub_2st", "model.shared=true"),
]
MIRROR = os.environ.get("STN_DATA_MIRROR", "")
with_mirror = pytest.mark.skipif(
    not (Path(MIRROR) / "weights").is_dir() or not MIRROR, reason="STN_DATA_MIRROR names no folder with weights"
)


with_timm = pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is optional: `sh setup.sh trunks`")


def small(windows: int | None = 2, canvas: int = 64, size: int = 32, **other) -> CubNetwork:
    torch.manual_seed(0)
    made = {"classes": 5, "trunk": "squeezenet1_1", "localisation": LOCALISATION, **other}
    return CubNetwork(canvas=canvas, size=size, windows=windows, **made).eval()


def moved(network: CubNetwork, *centres: tuple[float, float]) -> CubNetwork:
    """Its windows at constant places."""
    with torch.no_grad():
        network.transformer.regression.bias.copy_(torch.tensor(centres).flatten())
    return network


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No mirror, no network, and an empty cache of torchvision; returns the cache's folder."""

    def refuse(request):
        if request.full_url.startswith("file:"):
            return urllib.request.urlopen(request)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.delenv("STN_DATA_MIRROR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    folder = tmp_path / "home/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("model", MODELS, ids="-".join)
@pytest.mark.parametrize("data", ["cub_224", "cub50_448"])
def test_scores_are_for_the_classes_of_the_data(model, data):
    name, *settings = model
    cfg = compose(f"data={data}", f"model={name}", *settings, "budget=smoke")
    network = build_network(cfg)
    images = torch.rand(1, 3, cfg.data.canvas, cfg.data.canvas)
    assert network(images).shape == (1, cfg.data.classes)
    windows = cfg.model.windows
    assert {name: tuple(theta.shape) for name, theta in network.thetas(images).items()} == (
        {"theta": (1, 2 * windows)} if windows else {}
    )
    assert network.seen(images).shape == (1, 3, cfg.model.size, cfg.model.size)


def test_the_network_is_the_papers():
    network = CubNetwork(200, 448, 224, "googlenet", windows=2, localisation={"filters": 128, "features": 128})
    assert network.trunks[0].map_shape(224) == (1024, 7, 7)
    shrink, trunk, convolution, _, _, linear, _ = network.transformer.localisation
    assert shrink.output_size == 224 and isinstance(trunk, Trunk)
    assert (convolution.in_channels, convolution.out_channels, convolution.kernel_size) == (1024, 128, (1, 1))
    assert (linear.in_features, linear.out_features) == (128 * 7 * 7, 128)
    assert network.transformer.regression.out_features == 4
    assert network.classifier[-1].in_features == 2 * 1024 and len(network.trunks) == 2
    corner = network.transformation.points(torch.zeros(1, 2), torch.tensor(CORNERS))[0, 0]
    assert corner.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_tiles_are_the_middle_the_halves_and_the_quarters(n):
    wanted = {1: [(0, 0)], 2: [(-0.5, 0), (0.5, 0)], 4: [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]}
    assert tiles(n).tolist() == [list(place) for place in wanted[n]]


@pytest.mark.parametrize("n", range(1, 13))
def test_any_number_of_tiles_differ_and_stay_inside(n):
    places = tiles(n)
    assert places.shape == (n, 2) and len(places.unique(dim=0)) == n and places.abs().max() <= 0.5
    assert small(n).windows(torch.rand(1, 3, 64, 64)).shape == (1, n, 4, 2)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_untrained_windows_are_those_of_the_control(n):
    free, fixed = small(n), small(n, fixed=True)
    free.load_state_dict(fixed.state_dict(), strict=False)
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(free(images), fixed(images))
    torch.testing.assert_close(free.windows(images), fixed.windows(images))
    torch.testing.assert_close(free.thetas(images)["theta"], fixed.thetas(images)["theta"])


def test_a_control_has_no_localisation():
    fixed = small(2, fixed=True)
    assert fixed.transformer is None
    assert sum(p.numel() for p in fixed.parameters()) == sum(
        p.numel() for part in (fixed.trunks, fixed.classifier) for p in part.parameters()
    )


def test_windows_lie_where_the_geometry_says():
    centres = [(-0.3, 0.1), (0.2, 0.6)]
    found = moved(small(2), *centres).windows(torch.rand(2, 3, 64, 64))
    for k, (x, y) in enumerate(centres):
        wanted = torch.tensor([[x + 0.5 * dx, y + 0.5 * dy] for dx, dy in CORNERS])
        torch.testing.assert_close(found[0, k], wanted)
        torch.testing.assert_close(found[1, k], wanted)
    points = Translation(0.5).points(torch.tensor(centres), torch.tensor(CORNERS))
    torch.testing.assert_close(found[0], points)


@pytest.mark.parametrize("fixed", [True, False])
def test_at_twice_the_size_a_tile_is_a_quarter_of_the_images_pixels(fixed):
    images = torch.rand(2, 3, 64, 64)
    network = small(4, fixed=fixed)
    torch.testing.assert_close(network.seen(images), images[:, :, :32, :32], atol=1e-5, rtol=0)
    seen = moved(small(1), (0.5, -0.5)).seen(images)
    torch.testing.assert_close(seen, images[:, :, :32, 32:], atol=1e-5, rtol=0)


def test_beyond_the_edge_lies_the_mean_colour():
    seen = moved(small(1), (1.0, 0.0)).seen(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(seen[0, :, :, 20], torch.tensor(trunks.MEAN)[:, None].expand(3, 32))


def test_without_windows_a_larger_image_is_averaged_down():
    images = torch.rand(1, 3, 64, 64)
    wanted = images.unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(small(None).seen(images), wanted, atol=1e-5, rtol=1e-5)


def test_a_trunk_sees_the_image_normalised():
    network, images = small(None, canvas=32), torch.rand(2, 3, 32, 32)
    colours = (torch.tensor(colour).view(3, 1, 1) for colour in (trunks.MEAN, trunks.STD))
    maps = network.trunks[0](torch.sub(images, next(colours)) / next(colours))
    torch.testing.assert_close(network(images), network.classifier(maps.mean((2, 3))))


def test_each_stream_has_its_own_trunk_or_all_share_one():
    own, shared = small(4), small(4, shared=True)
    assert len(own.trunks) == 4 and len(shared.trunks) == 1
    shared.load_state_dict(own.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(own(images), shared(images))  # all start alike
    with torch.no_grad():
        next(own.trunks[3].parameters()).zero_()
    assert not torch.allclose(own(images), shared(images))


def test_gradients_reach_the_localisation_and_every_trunk():
    network = small(2)
    with torch.no_grad():
        network.transformer.regression.weight.normal_(std=0.01)  # at zero only the regression layer learns
    network(torch.rand(2, 3, 64, 64)).logsumexp(1).sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_all_of_the_localisation_has_its_own_rate():
    cfg = compose("data=cub_224", "model=cub_2st", "budget=smoke", "budget.localisation_rate=0.0001")
    groups = new_learner(cfg).configure_optimizers()["optimizer"].param_groups
    assert groups[1]["max_lr"] == pytest.approx(1e-4 * groups[0]["max_lr"])
    assert len(groups[1]["params"]) == 50 + 3 * 2 and len(groups[0]["params"]) == 2 * 50 + 2


def test_the_classifier_has_its_own_rate():
    cfg = compose("data=cub_224", "model=cub_cnn", "budget=smoke", "model.head_rate=30")
    groups = new_learner(cfg).configure_optimizers()["optimizer"].param_groups
    assert [group["max_lr"] for group in groups] == pytest.approx([0.0003, 0.009])
    assert [len(group["params"]) for group in groups] == [50, 2]


class Fixed(torch.nn.Module):
    """A trunk with the same maps for all images."""

    def __init__(self, maps: torch.Tensor):
        super().__init__()
        self.maps = maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps


def test_bilinear_pooling_is_lins():
    network = small(None, head="bilinear")
    maps = torch.randn(2, 7, 3, 4).double()
    network.trunks[0], network.classifier = Fixed(maps), torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64).double()
    expected = []
    for features in maps.numpy():
        outer = sum(np.outer(features[:, y, x], features[:, y, x]) for y in range(3) for x in range(4)) / 12
        root = (np.sign(outer) * np.sqrt(np.abs(outer))).ravel()
        expected.append(root / np.linalg.norm(root))
    np.testing.assert_allclose(network.double()(images).numpy(), np.stack(expected), atol=2e-3)
    maps[:, 3:] = 0  # features that are silent
    maps.requires_grad_()
    network(images).square().mul(torch.rand(49)).sum().backward()
    assert maps.grad.isfinite().all()


def test_dropout_is_on_the_descriptors_alone():
    network = small(2, dropout=0.5)
    assert [(n, m.p) for n, m in network.named_modules() if isinstance(m, nn.Dropout)] == [("classifier.0", 0.5)]


@pytest.mark.parametrize(
    ("name", "side", "shape"),
    [
        ("resnet18", 32, (512, 1, 1)),
        ("squeezenet1_1", 64, (512, 3, 3)),
        ("mobilenet_v3_small", 64, (576, 2, 2)),
        ("googlenet", 64, (1024, 2, 2)),
    ],
)
def test_a_trunk_ends_at_its_last_map_of_features(name, side, shape):
    trunk = Trunk(name)
    assert trunk.map_shape(side) == shape
    assert trunk(torch.rand(2, 3, side, side)).shape == (2, *shape)


def test_a_trunk_is_cut_at_any_node():
    assert Trunk("resnet18", "layer2").map_shape(64) == (128, 8, 8)
    assert Trunk("googlenet", "inception4e").map_shape(64) == (832, 4, 4)
    assert not any("fc" in name or "layer3" in name for name in Trunk("resnet18", "layer2").state_dict())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("tf_efficientnet_lite0", marks=with_timm),
        *("resnet18", "densenet121", "googlenet", "mobilenet_v3_small"),
    ],
)
def test_folded_normalisation_is_the_same_function(name):
    trunk, draws = Trunk(name).double(), torch.Generator().manual_seed(1)
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # statistics and factors of a trained network, not those of a fresh one, which do nothing
        for value, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight.data, 0.5)):
            value.copy_(torch.rand(value.shape, generator=draws) + low)
    images = torch.rand(1, 3, 64, 64, generator=draws).double()
    before = trunk.eval()(images)
    fold_norms(trunk.float().body)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    assert left == (62 if name == "densenet121" else 0) < len(norms)  # those before a convolution stay
    torch.testing.assert_close(trunk.double()(images), before, rtol=1e-4, atol=1e-5 * before.abs().max().item())


def test_normalisation_learns_its_statistics_unless_it_is_frozen():
    network = small(2, trunk="resnet18", node="layer1").train()
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    network(torch.rand(4, 3, 64, 64))
    assert not any(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    frozen = small(2, trunk="resnet18", node="layer1", frozen_norm=True).train()
    assert not any("running" in name for name in frozen.state_dict())
    frozen(torch.rand(4, 3, 64, 64)).sum().backward()
    assert frozen.trunks[1].body.conv1.bias.grad is not None and frozen.training


@pytest.mark.parametrize(
    "name, part", [pytest.param("tf_efficientnet_lite0", "blocks.2", marks=with_timm), ("resnet18", "layer1")]
)
def test_a_frozen_part_and_all_before_it_does_not_learn(name, part):
    network = small(2, trunk=name, frozen=part, dropout=0.0).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for group in network.parameter_groups().values() for p in group], 0.1)
    network(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimiser.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    trunk = {key.removeprefix("trunks.0.body.") for key in changed if key.startswith("trunks.0")}
    assert trunk and not any(key.startswith((part, "conv_stem", "bn1", "blocks.0", "conv1")) for key in trunk)
    assert any(key.startswith("classifier") for key in changed)


def test_windows_at_random_places_are_within_the_image_and_the_same_for_all_streams(monkeypatch):
    seen = []
    view = CubNetwork._view
    monkeypatch.setattr(
        CubNetwork, "_view", lambda self, images, theta: (seen.append(theta), view(self, images, theta))[1]
    )
    images = torch.rand(64, 3, 64, 64)
    shared, own = small(2, shared=True), small(2)
    for network in (shared, own):
        assert network.at_random_places(images, torch.Generator().manual_seed(0)).shape == (64, 5)
    assert len(seen) == 2 and torch.equal(*seen)  # one look for both windows; places are the generator's
    assert seen[0].abs().max() <= 0.5 and seen[0].std(0).min() > 0.2
    # A window that stands there sees the same: one image, whose windows are moved to its place.
    moved(shared, seen[0][0].tolist(), seen[0][0].tolist())
    expected = shared(images[:1])
    torch.testing.assert_close(shared.at_random_places(images, torch.Generator().manual_seed(0))[:1], expected)


def test_reach_and_spread_say_where_windows_may_stand():
    network = small(2, spread=0.5, reach=0.25)
    images = torch.rand(2, 3, 64, 64)
    assert network.thetas(images)["theta"][0].tolist() == [-0.25, 0, 0.25, 0]
    theta = moved(network, (-9.0, 9.0), (9.0, -9.0)).thetas(images)["theta"][0]
    torch.testing.assert_close(theta, torch.tensor([-0.5, 0.25, 0.5, -0.25]), atol=1e-3, rtol=0)
    fixed = small(2, spread=0.5, fixed=True)
    assert fixed.thetas(images)["theta"][0].tolist() == [-0.25, 0, 0.25, 0]


def test_given_windows_are_classified_as_they_are():
    given, fixed = small(2, given=True), small(2, fixed=True)
    given.load_state_dict(fixed.state_dict())
    images = torch.rand(2, 3, 64, 64)
    views = torch.stack([images[..., 16:48, :32], images[..., 16:48, 32:]], 1)  # the tiles of two windows
    torch.testing.assert_close(given(views), fixed(images))
    assert given.thetas(views) == {} and torch.equal(given.seen(views), views[:, 0])


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Trunk("squeezenet1_2"), "model.trunk=squeezenet1_2 .* squeezenet1_1"),
        (lambda: Trunk("zzz"), "model.trunk=zzz .* googlenet"),
        (lambda: Trunk("resnet18", frozen="layer9"), "model.frozen=layer9 is not a part of resnet18 .*layer"),
        (lambda: Trunk("resnet18", "layer5"), "model.node=layer5 is not a node of resnet18: .*layer4"),
        (lambda: Trunk("resnet18", "flatten").map_shape(64), "node=flatten of resnet18 is not a map"),
        (lambda: Trunk("squeezenet1_1").map_shape(8), "cannot take images of 8 x 8"),
    ],
)
def test_a_trunk_that_cannot_be_is_one_line(made, told):
    with pytest.raises(UserError, match=told) as error:
        made()
    assert "\n" not in str(error.value)


@with_timm
@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Trunk("tf_efficientnet_lite9"), "model.trunk=tf_efficientnet_lite9 .* tf_efficientnet_lite"),
        (lambda: Trunk("tf_efficientnet_lite0", "blocks.3"), "model.node=blocks.3: .* drop it"),
    ],
)
def test_a_trunk_of_timm_that_cannot_be_is_one_line(made, told):
    with pytest.raises(UserError, match=told) as error:
        made()
    assert "\n" not in str(error.value)


def test_a_trunk_of_timm_without_timm_is_one_line(monkeypatch):
    monkeypatch.setattr(trunks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"timm, which may have it, is not installed: `sh setup.sh trunks`"):
        Trunk("tf_efficientnet_lite0")


def test_a_trunk_without_a_map_is_one_line(monkeypatch):
    monkeypatch.setattr(trunks, "list_models", lambda module: ["tiny"])
    monkeypatch.setattr(trunks, "_model", lambda name: torchvision.models.VisionTransformer(224, 32, 1, 1, 8, 8))
    with pytest.raises(UserError, match="tiny ends in tokens"):
        Trunk("tiny")


def test_weights_that_nobody_has_are_one_line(offline):
    cfg = compose("data=cub_224", "model=cub_cnn", "budget=smoke", "model.pretrained=true")
    with pytest.raises(
        UserError, match=r"Name or service.*STN_DATA_MIRROR.*weights/squeezenet1_1-.*model\.pretrained=false"
    ):
        new_learner(cfg)


def test_torchvisions_own_weights_come_with_its_normalisation(offline):
    for name, mean in (("squeezenet1_1", trunks.MEAN), ("googlenet", (0.5, 0.5, 0.5))):
        official = trunks.get_model_weights(name).DEFAULT
        kwargs = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
        state = trunks.get_model(name, weights=None, **kwargs).state_dict()
        torch.save(state, offline / official.url.rpartition("/")[2])
        network = CubNetwork(5, 64, 64, name)
        assert network.load_pretrained() == str(official)
        assert network.mean.flatten().tolist() == pytest.approx(mean)
        for key, value in network.trunks[0].body.state_dict().items():
            assert torch.equal(value, state[key])
    # torchvision's googlenet normalises as ImageNet, and then turns that into (x - 0.5) / 0.5: the same.
    images = torch.rand(1, 3, 64, 64)
    colours = (torch.tensor(c).view(3, 1, 1) for c in (trunks.MEAN, trunks.STD))
    model = trunks.get_model("googlenet", weights=None, init_weights=False, transform_input=True)
    expected = model._transform_input(torch.sub(images, next(colours)) / next(colours))
    inputs = []
    network.trunks[0].register_forward_pre_hook(lambda trunk, arguments: inputs.append(*arguments))
    network.eval()(images)
    torch.testing.assert_close(inputs, [expected])


def test_a_mirrors_file_is_loaded_into_every_trunk_when_it_has_all_that_is_needed(offline, tmp_path, monkeypatch):
    folder = tmp_path / "mirror/weights"
    folder.mkdir(parents=True)
    state = trunks.get_model("resnet18", weights=None).state_dict()
    held = {key: value.half() for key, value in state.items() if "layer3" not in key and "num_batches" not in key}
    torch.save(held, folder / "resnet18_to_layer2.pth")
    network = small(2, trunk="resnet18", node="layer2")
    for mirror in (str(tmp_path / "mirror"), (tmp_path / "mirror").as_uri()):
        monkeypatch.setenv("STN_DATA_MIRROR", mirror)
        assert network.load_pretrained().startswith("resnet18_to_layer2.pth (sha256 ")
    for trunk in (*network.trunks, network.transformer.localisation[1]):
        value = trunk.body.get_parameter("layer2.0.conv1.weight")
        assert value.dtype == torch.float32 and torch.equal(value, state["layer2.0.conv1.weight"].half().float())
    with pytest.raises(UserError, match=r"resnet18_to_layer2\.pth has no layer3.*model\.node=layer3"):
        Trunk("resnet18", "layer3").load_pretrained()
    with pytest.raises(UserError, match="no pretrained weights of resnet34"):
        Trunk("resnet34").load_pretrained()
    (folder / "resnet18_to_layer2.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"resnet18_to_layer2\.pth holds no weights"):
        Trunk("resnet18", "layer2").load_pretrained()
    (folder / "resnet18-f37072fd.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth: invalid hash.*STN_DATA_MIRROR"):
        Trunk("resnet18", "layer2").load_pretrained()


def test_a_file_of_another_trunk_is_not_taken(tmp_path):
    for name in ("vgg11_bn_x.pth", "vgg11_x.pth", "vgg11-8a719046.pth"):
        (tmp_path / name).touch()
    assert [path.name for path in trunks._files(tmp_path, "vgg11")] == ["vgg11-8a719046.pth", "vgg11_x.pth"]


@with_mirror
@with_timm
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_the_mirrors_efficientnet_loads_with_timms_normalisation(frozen_norm):
    network = small(2, trunk="tf_efficientnet_lite0", frozen_norm=frozen_norm, canvas=64, size=64)
    assert network.load_pretrained().startswith("tf_efficientnet_lite0_trunk.pth (sha256 ")
    assert network.mean.flatten().tolist() == [0.5] * 3 == network.std.flatten().tolist()
    weights = torch.load(Path(MIRROR) / "weights/tf_efficientnet_lite0_trunk.pth", weights_only=True)
    other = small(2, trunk="tf_efficientnet_lite0", canvas=64, size=64)
    other.trunks[0].body.load_state_dict(weights)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network.trunks[0](images), other.trunks[0](images), rtol=1e-3, atol=1e-3)


@with_mirror
def test_the_mirrors_squeezenet_and_inception_load():
    network = small(2)
    assert "squeezenet1_1" in network.load_pretrained()
    inception = Trunk("inception_v3", "Mixed_7a", frozen_norm=True)
    assert inception.map_shape(299)[0] == 1280
    weights = inception.load_pretrained()
    assert "inception_v3" in weights.name and inception.body.Mixed_7a.branch3x3_1.conv.weight.abs().sum() > 0


def test_a_checkpoint_needs_no_pretrained_weights(offline, tmp_path, monkeypatch):
    cfg = compose("data=cub_224", "model=cub_2st", "budget=smoke", "model.pretrained=true")
    monkeypatch.setattr(CubNetwork, "load_pretrained", lambda self: "the best")
    learner = new_learner(cfg)
    assert learner.weights == "the best"
    monkeypatch.undo()
    learner.network.mean.fill_(0.5)
    state = {"state_dict": learner.state_dict(), "hyper_parameters": dict(learner.hparams)}
    state |= {"pytorch-lightning_version": "2.6.0", "validation": [], "seconds": 0.0, "weights": "the best"}
    torch.save(state, tmp_path / "last.ckpt")
    loaded = runs.load(tmp_path / "last.ckpt")
    assert loaded.weights == "the best" and loaded.network.mean.flatten().tolist() == [0.5] * 3


class Noise:
    """A source of coloured noise in the form of `stn.experiments.cub.data`."""

    shape, chunk = (3, 32, 32), 4

    def __init__(self, data):
        self.images = torch.rand(40, *self.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.labels = torch.arange(40) % 5

    def load(self, split):
        pass

    def count(self, split):
        return 24 if split == "train" else 6

    def batch(self, split, index, device):
        return self.images[index], self.labels[index]

    def train_batch(self, index, draws, size, part, device):
        light = torch.rand(size, 1, 1, 1, generator=draws)[part]
        assert len(light) == len(index)
        return self.images[index] * light, self.labels[index]


def ends(monkeypatch, folder: Path, *overrides: str, stop: int | None = None) -> tuple[dict, list]:
    """Weights and validation after six steps of eight images on a small trunk; with `stop` resumed after so many.

    In float64: a max-pool whose two largest are within a rounding of each other would send its gradient elsewhere.
    """
    monkeypatch.setitem(sys.modules, "stn.experiments.cub.data", types.SimpleNamespace(source=Noise))
    small = ["data.classes=5", "data.canvas=32", "model.size=32", "model.node=features.5", "budget.batch_size=8"]
    small += ["budget.steps=6", "budget.validate_every=2", "budget.precision=float32", "logger=none"]
    cfg = compose("data=cub_224", "model=cub_2st", "budget=smoke", *small, *overrides)
    for steps in (stop, 6):
        if steps is None:
            continue
        runs.quieten()
        runs.L.seed_everything(0, verbose=False)
        learner = Learner(runs.experiment(cfg)).double()
        trainer = runs.make_trainer(cfg, 0, folder, False)
        trainer.fit_loop.epoch_loop.max_steps = steps
        last = folder / "last.ckpt"
        feed = DataModule(cfg.data, cfg.budget, 0, cfg.trainer.accumulate)
        trainer.fit(learner, feed, ckpt_path=last if last.exists() else None, weights_only=True)
    assert trainer.global_step == 6
    return learner.network.state_dict(), learner.validation


@pytest.mark.parametrize("stop", [None, 2, 4])
def test_a_batch_in_parts_has_the_result_of_one_batch(stop, monkeypatch, tmp_path):
    exact = ["budget.optimiser=sgd", "budget.schedule=step", "budget.learning_rate=0.05", "model.dropout=0"]
    whole, curve = ends(monkeypatch, tmp_path / "whole", *exact)
    parts, again = ends(monkeypatch, tmp_path / "parts", *exact, "trainer.accumulate=4", stop=stop)
    assert [step for step, _, _ in again] == [2, 4, 6] and curve[0][2] > curve[2][2] + 1e-3  # it does learn
    np.testing.assert_allclose(again, curve, rtol=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-9, rtol=1e-7)


def test_with_dropout_too_a_resumed_run_ends_where_an_uninterrupted_one_ends(monkeypatch, tmp_path):
    whole, curve = ends(monkeypatch, tmp_path / "whole", "model.dropout=0.5")
    resumed, again = ends(monkeypatch, tmp_path / "resumed", "model.dropout=0.5", stop=4)
    assert again == curve and all(torch.equal(resumed[name], value) for name, value in whole.items())


EXPLORING = ["budget.random_share=0.34", "budget.explore_share=0.34", "budget.noise=[0.3,0.1]", "budget.pull=0.1"]


@pytest.mark.parametrize("stop", [2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_an_exploring_run_ends_where_an_uninterrupted_one_ends_in_parts_too(parts, stop, monkeypatch, tmp_path):
    settings = [*EXPLORING, "model.dropout=0.5", "model.reach=0.5", f"trainer.accumulate={parts}"]
    whole, curve = ends(monkeypatch, tmp_path / "whole", *settings)
    resumed, again = ends(monkeypatch, tmp_path / "resumed", *settings, stop=stop)
    assert again == curve and all(torch.equal(resumed[name], value) for name, value in whole.items())
    plain, _ = ends(monkeypatch, tmp_path / "plain", *settings[4:])
    assert not torch.equal(plain["transformer.regression.bias"], whole["transformer.regression.bias"])


def test_the_pathwise_gradient_with_noise_too_ends_where_an_uninterrupted_run_ends(monkeypatch, tmp_path):
    settings = [*EXPLORING[:3], "budget.gradient=pathwise", "model.reach=0.5"]
    whole, curve = ends(monkeypatch, tmp_path / "whole", *settings)
    resumed, again = ends(monkeypatch, tmp_path / "resumed", *settings, stop=3)
    assert again == curve and all(torch.equal(resumed[name], value) for name, value in whole.items())
    still, _ = ends(monkeypatch, tmp_path / "still", *settings[:1], "budget.explore_share=0", "model.reach=0.5")
    assert not torch.equal(still["transformer.regression.bias"], whole["transformer.regression.bias"])


def test_localisation_networks_learn_in_steps_that_explore_alone(monkeypatch, tmp_path):
    seen = []

    def watch(learner, outputs, batch, batch_idx):
        network = learner.network
        seen.append([network.transformer.regression.bias.clone(), network.classifier[-1].bias.clone()])

    monkeypatch.setattr(Learner, "on_train_batch_end", watch, raising=False)
    ends(monkeypatch, tmp_path, *EXPLORING, "model.reach=0.5")
    moves = [[not torch.equal(*pair) for pair in zip(*two, strict=True)] for two in itertools.pairwise(seen)]
    assert [localises for localises, _ in moves] == [False, True, True, False, False]  # two at random, two explore
    assert all(classifies for _, classifies in moves)


def test_parts_that_do_not_divide_a_batch_are_one_line():
    cfg = compose("data=cub_224", "model=cub_2st", "budget=smoke", "trainer.accumulate=3")
    with pytest.raises(UserError, match=r"budget\.batch_size=4 is no multiple of 3.*trainer\.accumulate=3"):
        runs.train(cfg)


def test_the_papers_rate_falls_at_ten_twenty_and_twenty_five_thousand():
    small = ["model.trunk=squeezenet1_1", "model.pretrained=false", "model.size=32", "data.classes=2"]
    made = new_learner(compose("data=cub_224", "model=cub_cnn", "budget=paper", *small)).configure_optimizers()
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = {}
    for step in range(30000):
        rates.setdefault(round(optimiser.param_groups[0]["lr"], 9), step)
        schedule._step_count += 1  # no optimiser steps here, and none are to be missed
        schedule.step()
    assert rates == {0.1: 0, 0.01: 10000, 0.001: 20000, 0.0001: 25000}


def test_first_weights_do_not_depend_on_what_was_built_before():
    one, other = small(2), small(2)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    fresh = (
        "import torch; from test_cub_networks import small; print(sum(p.sum().item() for p in small(2).parameters()))"
    )
    command = [sys.executable, "-c", fresh]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    weights = sum(p.sum().item() for p in other.parameters())  # summed by another number of threads there
    assert float(result.stdout) == pytest.approx(weights, rel=1e-6), result.stderr

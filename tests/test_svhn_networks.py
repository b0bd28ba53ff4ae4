import numpy as np
import pytest
import torch
from torch import nn

from stn.config import compose
from stn.experiments.svhn.networks import SvhnNetwork
from stn.geometry.transforms import CORNERS
from stn.training.learner import Learner, build_network, new_learner

LOCALISATION = {"filters": 4, "features": 6}
MODELS = ["svhn_cnn", "svhn_st_single", "svhn_st_multi"]


def small(transformers: int, side: int = 32, **settings) -> SvhnNetwork:
    torch.manual_seed(0)
    settings = {"localisation": LOCALISATION} | settings
    return SvhnNetwork(side, transformers, width=0.1, dropout=0.0, **settings)


def cropped(network: SvhnNetwork) -> list[np.ndarray]:
    """Gives each transformer another constant rectangle and returns them as 3x3 matrices."""
    matrices = []
    for i, transformer in enumerate(network.transformers):
        sx, sy, tx, ty = theta = torch.tensor([0.7, 0.6 + 0.1 * i, 0.2, -0.1 * i])
        with torch.no_grad():
            transformer.regression.bias.copy_(theta)
        matrices.append(np.array([[sx, 0, tx], [0, sy, ty], [0, 0, 1]], float))
    return matrices


def turned(network: SvhnNetwork) -> list[np.ndarray]:
    """Gives each transformer another constant theta and returns them as 3x3 matrices."""
    matrices = []
    for i, transformer in enumerate(network.transformers):
        theta = torch.tensor([0.7, 0.1 * i, 0.2, -0.1, 0.6 + 0.1 * i, -0.1 * i])
        with torch.no_grad():
            transformer.regression.bias.copy_(theta)
        matrices.append(np.vstack([theta.view(2, 3).double().numpy(), [0, 0, 1]]))
    return matrices


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", ["svhn_64", "svhn_128"])
def test_scores_are_for_five_positions_of_eleven_classes(model, data):
    cfg = compose(f"data={data}", f"model={model}", "budget=smoke")
    assert build_network(cfg)(torch.rand(2, 3, cfg.data.canvas, cfg.data.canvas)).shape == (2, 5, 11)


def test_the_layers_are_the_papers():
    with torch.device("meta"):
        network = SvhnNetwork(64, 4, localisation={"filters": 32, "features": 32})
        single = SvhnNetwork(64, 1, localisation={"filters": 32, "features": 32})
    convolutions = [block[0] for block in network.convolutions]
    assert [c.out_channels for c in convolutions] == [48, 64, 128, 160, 192, 192, 192, 192]
    assert all(c.kernel_size == (5, 5) and c.stride == (1, 1) and c.padding == (2, 2) for c in convolutions)
    pooled = [any(isinstance(layer, nn.MaxPool2d) for layer in block) for block in network.convolutions]
    assert pooled == [True, False, True, False, True, False, True, False]
    linear = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [3072, 3072, 3072, 55]
    assert [transformer.localisation[1].in_features for transformer in network.transformers] == [
        3 * 64**2,
        48 * 32**2,
        64 * 32**2,
        128 * 16**2,
    ]
    assert [layer.out_channels for layer in single.transformers[0].localisation if isinstance(layer, nn.Conv2d)] == [
        32,
        32,
    ]


def test_dropout_spares_the_first_convolution_and_the_localisation():
    network = SvhnNetwork(32, 1, width=0.1, dropout=0.5, localisation=LOCALISATION)
    with_dropout = [any(isinstance(layer, nn.Dropout) for layer in block) for block in network.convolutions]
    assert with_dropout == [False] + [True] * 7
    assert sum(isinstance(layer, nn.Dropout) and layer.p == 0.5 for layer in network.classifier) == 3
    assert not any(isinstance(layer, nn.Dropout) for layer in network.transformers.modules())


@pytest.mark.parametrize("transformers", [1, 4])
def test_untrained_transformers_change_nothing(transformers):
    plain, network = small(0), small(transformers)
    network.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(images), plain(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.seen(images), images, atol=1e-5, rtol=0)
    expected = torch.tensor(CORNERS).expand(3, transformers, 4, 2)
    torch.testing.assert_close(network.windows(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "turn"), [({}, turned), ({"family": "crop"}, cropped), ({"family": "crop", "size": 16}, cropped)]
)
def test_windows_lie_on_the_image_through_all_transformers_before(settings, turn):
    network = small(4, **settings)
    product, corners = np.eye(3), np.hstack([np.array(CORNERS), np.ones((4, 1))])
    found = network.windows(torch.rand(2, 3, 32, 32))
    for k, matrix in enumerate(turn(network)):
        product = product @ matrix
        wanted = torch.from_numpy((corners @ product.T)[:, :2]).float()
        again = network.windows(torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(again[0, k], wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(again, found)


@pytest.mark.parametrize(
    ("settings", "turn"), [({}, turned), ({"family": "crop"}, cropped), ({"family": "crop", "size": 16}, cropped)]
)
def test_what_is_seen_is_the_image_at_the_last_window(settings, turn):
    network = small(1, **settings)
    turn(network)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.seen(images), network.transformers[0](images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("transformers", [0, 1, 4])
def test_all_networks_read_as_many_pixels_where_a_size_is_given(transformers):
    """So their layers but those of the transformers are as large as those of a network of that side."""
    network, plain = small(transformers, size=16), small(0, side=16)
    layers = {name: value.shape for name, value in network.state_dict().items() if "transformers" not in name}
    assert layers == {name: value.shape for name, value in plain.state_dict().items()}
    plain.load_state_dict(network.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 32)
    pooled = torch.nn.functional.avg_pool2d(images, 2)  # what bilinear sampling at half the size is, too
    torch.testing.assert_close(network(images), plain(pooled), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.seen(images), pooled, atol=1e-5, rtol=0)
    assert len(network.thetas(images)) == transformers


def test_a_size_that_the_image_has_changes_nothing():
    images = torch.rand(2, 3, 32, 32)
    for transformers in (0, 4):
        assert torch.equal(small(transformers, size=32)(images), small(transformers)(images))


@pytest.mark.parametrize(("family", "n"), [("affine", 6), ("crop", 4)])
@pytest.mark.parametrize("transformers", [1, 4])
def test_thetas_are_of_the_family_and_within_reach(transformers, family, n):
    network, images = small(transformers, family=family, reach=0.3), torch.rand(2, 3, 32, 32)
    for transformer in network.transformers:
        nn.init.normal_(transformer.regression.weight, std=100)
    for theta, transformer in zip(network.thetas(images).values(), network.transformers, strict=True):
        away = (theta - transformer.transformation.identity()).abs()
        assert theta.shape == (2, n) and 0.2 < away.max() <= 0.3 + 1e-6


@pytest.mark.parametrize("transformers", [1, 4])
def test_only_the_first_localisation_network_sees_the_image_at_its_own_side(transformers):
    with_side, without = (small(transformers, localisation=LOCALISATION | {"side": side}) for side in (4, None))
    seen = []
    for network in (with_side, without):
        sides = []
        for transformer in network.transformers:
            first = next(m for m in transformer.localisation.modules() if isinstance(m, nn.Conv2d | nn.Linear))
            first.register_forward_pre_hook(lambda module, inputs, sides=sides: sides.append(inputs[0][0].numel()))
        network(torch.rand(2, 3, 32, 32))
        seen.append(sides)
    assert seen[0][0] == 3 * 4**2 and seen[1][0] == 3 * 32**2 and seen[0][1:] == seen[1][1:]


def test_he_makes_the_features_of_the_localisation_differ_and_leaves_the_rest_as_it_was():
    images = torch.rand(8, 3, 32, 32)
    for transformers in (1, 4):
        plain, he = (small(transformers, localisation=LOCALISATION | {"he": value}) for value in (False, True))
        layers = [m for m in he.transformers[0].localisation if isinstance(m, nn.Conv2d | nn.Linear)]
        assert all(not layer.bias.any() for layer in layers)
        for layer in layers:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.5)
        theta = he.transformers[0].regression
        assert not theta.weight.any() and torch.equal(theta.bias, torch.tensor([1.0, 0, 0, 0, 1, 0]))
        spread = [net.transformers[0].localisation(images).std(0).mean() for net in (he, plain)]
        assert spread[0] > 3 * spread[1]


@pytest.mark.parametrize("transformers", [0, 1, 4])
def test_steps_at_random_places_leave_the_transformers_out(transformers):
    network, images = small(transformers, family="crop", size=16), torch.rand(4, 3, 32, 32)
    matrices = cropped(network)
    scores = network.at_random_places(images, torch.Generator())
    scores.square().sum().backward()
    grads = {name: value.grad is not None for name, value in network.named_parameters()}
    assert all(has != name.startswith("transformers.") for name, has in grads.items())
    assert [transformer is network.transformers[0] for transformer in network.explored] == [True] * bool(matrices)
    if transformers:
        assert not torch.allclose(scores, network(images), atol=1e-3)
        with torch.no_grad():  # all at the identity
            for transformer in network.transformers:
                transformer.regression.weight.zero_()
                transformer.regression.bias.copy_(torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(scores, network(images), atol=1e-5, rtol=1e-5)


def test_the_first_window_starts_with_the_sides_that_are_asked_for():
    network = small(4, family="crop", size=16, start=(0.5, 0.8), reach=0.7, reach_sides=0.1)
    thetas = network.thetas(torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(thetas["theta1"], torch.tensor([[0.5, 0.8, 0, 0]]).expand(3, 4))
    torch.testing.assert_close(thetas["theta2"], torch.tensor([[1.0, 1, 0, 0]]).expand(3, 4))
    for transformer in network.transformers:
        assert transformer.limits == [0.1, 0.1, 0.7, 0.7]
        with torch.no_grad():
            transformer.regression.bias += 100
    last = network.thetas(torch.rand(3, 3, 32, 32))
    torch.testing.assert_close(last["theta1"], torch.tensor([[0.6, 0.9, 0.7, 0.7]]).expand(3, 4))


def test_standardised_localisation_networks_do_not_see_brightness_or_contrast():
    network = small(4, family="crop", localisation=LOCALISATION | {"standardised": True, "he": True})
    images = torch.rand(3, 3, 32, 32)
    shapes = (3, 32, 32), (5, 16, 16), (6, 16, 16), (13, 8, 8)
    for transformer, shape in zip(network.transformers, shapes, strict=True):
        maps = torch.rand(3, *shape)
        features = transformer.localisation(maps)
        torch.testing.assert_close(transformer.localisation(0.2 * maps + 0.5), features, atol=1e-2, rtol=1e-2)
    plain = small(1, family="crop", localisation=LOCALISATION | {"he": True})
    first = plain.transformers[0].localisation
    assert not torch.allclose(first(0.2 * images + 0.5), first(images), atol=1e-2)


@pytest.mark.parametrize("model", ["svhn_st_single", "svhn_st_multi"])
def test_the_recipe_of_photographs_reaches_the_network(model):
    cfg = compose("data=svhn_photos_128", f"model={model}", "budget=quick", "model.width=0.05")
    network = build_network(cfg)
    first, model = network.transformers[0], cfg.model
    assert type(first.transformation).__name__ == "Crop" and first.size == (64, 64)
    assert first.limits == [model.reach_sides] * 2 + [model.reach] * 2
    assert first.regression.bias.tolist() == pytest.approx([*model.start, 0, 0])
    assert isinstance(first.localisation[0], nn.GroupNorm) and first.localisation[1].output_size == 64
    assert all(not layer.bias.any() for layer in first.localisation if isinstance(layer, nn.Linear))


def test_an_image_is_right_when_all_five_positions_are():
    learner = new_learner(compose("data=svhn_64", "model=svhn_cnn", "budget=smoke"))
    labels = torch.tensor([[1, 9, 10, 10, 10], [3, 10, 10, 10, 10]])
    said = labels.clone()
    said[1, 4] = 0
    learner.network = type("Said", (nn.Module,), {})()
    learner.network.forward = lambda images: nn.functional.one_hot(said, 11).float()
    learner.network.thetas = lambda images: {}
    learner.on_test_epoch_start()
    learner.test_step((torch.zeros(2, 3, 64, 64), labels), 0)
    result = learner.test_result()
    assert result["correct"].tolist() == [True, False]
    assert result["positions"].tolist() == [[True] * 5, [True] * 4 + [False]]


def test_localisation_networks_learn_at_a_tenth_of_the_rate():
    cfg = compose("data=svhn_64", "model=svhn_st_multi", "budget=paper", "model.width=0.05")
    groups = new_learner(cfg).configure_optimizers()["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.001] and groups[0]["weight_decay"] == 5e-4
    assert len(groups[1]["params"]) == 4 * 6


def test_a_checkpoint_explains_itself(tmp_path):
    learner = new_learner(compose("data=svhn_strips_64", "model=svhn_st_single", "budget=smoke"))
    assert Learner(learner.hparams.experiment).network.transformers[0].transformation.n_parameters == 6

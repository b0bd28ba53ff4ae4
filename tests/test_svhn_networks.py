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


def small(transformers: int, side: int = 32) -> SvhnNetwork:
    torch.manual_seed(0)
    return SvhnNetwork(side, transformers, width=0.1, dropout=0.0, localisation=LOCALISATION)


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


def test_windows_lie_on_the_image_through_all_transformers_before():
    network = small(4)
    product, corners = np.eye(3), np.hstack([np.array(CORNERS), np.ones((4, 1))])
    found = network.windows(torch.rand(2, 3, 32, 32))
    for k, matrix in enumerate(turned(network)):
        product = product @ matrix
        wanted = torch.from_numpy((corners @ product.T)[:, :2]).float()
        again = network.windows(torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(again[0, k], wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(again, found)


def test_what_is_seen_is_the_image_at_the_last_window():
    network = small(1)
    turned(network)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.seen(images), network.transformers[0](images), atol=1e-5, rtol=1e-5)


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

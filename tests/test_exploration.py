"""Promises of `stn.nn.exploration`: an unbiased gradient of the smoothed loss, and nothing left behind."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Affine, Projective, ThinPlateSpline, Translation
from stn.nn.exploration import Exploration
from stn.nn.transformer import SpatialTransformer

VIEWS = 40_000  # pairs that an estimate is averaged over


class Told(nn.Module):
    """Stands for a transformer of which only theta matters: theta = regression(images)."""

    def __init__(self, n_parameters: int, inputs: int = 1):
        super().__init__()
        self.regression = nn.Linear(inputs, n_parameters).double()

    def forward(self, x):
        return self.regression(x)


def estimates(module, exploration, sigma, loss_of, images, seed=0):
    """Mean of the estimated gradient by each parameter of `module`, and its standard error, over batches."""
    draws, batches = torch.Generator().manual_seed(seed), []
    for part in images.chunk(100):
        with exploration.pairs(part, sigma, draws) as pairs:
            losses = loss_of(pairs.images)
        gradients = torch.autograd.grad(pairs.loss(losses), list(module.parameters()))
        batches.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    batches = torch.stack(batches)
    return batches.mean(0).numpy(), (batches.std(0) / math.sqrt(len(batches))).numpy()


def test_estimate_is_the_gradient_of_a_smoothed_quadratic():
    torch.manual_seed(0)
    told, sigma = Told(3), 0.3
    Q, b = torch.randn(3, 3).double(), torch.randn(3).double()
    told.regression.bias.data = torch.tensor([0.5, -1.0, 2.0]).double()
    told.regression.weight.data.zero_()

    def loss_of(x):
        theta = told(x).double()
        return (theta @ Q * theta).sum(1) + theta @ b

    mean, error = estimates(told, Exploration(told), sigma, loss_of, torch.ones(VIEWS, 1).double())
    exact = ((Q + Q.T) @ told.regression.bias + b).detach().numpy()  # smoothing adds a constant to a quadratic
    np.testing.assert_array_less(np.abs(mean[3:] - exact), 4.5 * error[3:])
    assert (error[3:] < 0.05 * np.abs(exact).max()).all()


def test_estimate_is_the_gradient_of_the_smoothed_loss_not_of_the_loss():
    told, sigma = Told(1), 1.0
    told.regression.weight.data.zero_()
    told.regression.bias.data.fill_(0.4)
    mean, error = estimates(
        told, Exploration(told), sigma, lambda x: torch.sin(told(x))[:, 0], torch.ones(VIEWS, 1).double()
    )
    smoothed = math.cos(0.4) * math.exp(-(sigma**2) / 2)
    assert abs(mean[1] - smoothed) < 4.5 * error[1]
    assert abs(mean[1] - math.cos(0.4)) > 20 * error[1]


def test_each_parameter_has_its_own_sigma():
    told = Told(4)  # two transformers in parallel, of two parameters each
    told.regression.weight.data.zero_()
    told.regression.bias.data = torch.tensor([0.4, 0.4, -0.7, -0.7]).double()
    mean, error = estimates(
        told, Exploration(told), [0.2, 1.0], lambda x: torch.sin(told(x)).sum(1), torch.ones(VIEWS, 1).double()
    )
    damped = np.exp(-(np.array([0.2, 1.0, 0.2, 1.0]) ** 2) / 2)
    exact = np.cos([0.4, 0.4, -0.7, -0.7]) * damped
    np.testing.assert_array_less(np.abs(mean[4:] - exact), 4.5 * error[4:])


def test_estimate_is_unbiased_in_depth():
    """The second localisation network reads what the first hands on; exact by Gauss-Hermite quadrature."""
    first, second, sigma = Told(1), Told(1), 0.7
    both = nn.ModuleList([first, second])
    for layer, weight, bias in ((first, 0.8, 0.1), (second, -1.3, 0.2)):
        layer.regression.weight.data.fill_(weight)
        layer.regression.bias.data.fill_(bias)

    def loss_of(x):
        warped = x + first(x) ** 2  # not linear: then the noise before the second does not cancel
        return (torch.sin(warped + 2 * second(warped)) + warped * second(warped))[:, 0]

    def loss_of_noise(x, e1, e2):
        theta1 = first.regression(x) + e1
        warped = x + theta1**2
        theta2 = second.regression(warped) + e2
        return torch.sin(warped + 2 * theta2) + warped * theta2

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    e1, e2 = (torch.from_numpy(sigma * e).reshape(-1, 1) for e in np.meshgrid(nodes, nodes))
    weight = torch.from_numpy(np.outer(weights, weights) / weights.sum() ** 2).reshape(-1, 1)
    J = (weight * loss_of_noise(torch.full_like(e1, 0.6), e1, e2)).sum()
    # The pathwise gradient of the smoothed loss is exact too; that of theta2 by way of `warped` stops at the first.
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(J, list(both.parameters()))]).numpy()
    mean, error = estimates(both, Exploration(first, second), sigma, loss_of, torch.full((10 * VIEWS, 1), 0.6).double())
    np.testing.assert_array_less(np.abs(mean - exact), 4.5 * error)
    assert (error < 0.1 * np.abs(exact).max()).all()


def test_parallel_modules_are_explored_at_once():
    torch.manual_seed(0)
    left, right = Told(1), Told(1)
    for told, bias in ((left, 0.4), (right, -0.9)):
        told.regression.weight.data.zero_()
        told.regression.bias.data.fill_(bias)
    both = nn.ModuleList([left, right])
    mean, error = estimates(
        both,
        Exploration([left, right]),
        0.5,
        lambda x: torch.sin(left(x) + 2 * right(x))[:, 0],
        torch.ones(VIEWS, 1).double(),
    )
    slope = math.cos(0.4 - 1.8) * math.exp(-(0.5**2) * (1 + 4) / 2)
    np.testing.assert_array_less(np.abs(mean[[1, 3]] - [slope, 2 * slope]), 4.5 * error[[1, 3]])


@pytest.mark.parametrize("family", [Translation(0.5), Affine(), Projective(), ThinPlateSpline(4)], ids=str)
def test_any_family_and_any_number_in_parallel(family):
    torch.manual_seed(0)
    starts = torch.stack([family.identity(), family.identity() + 0.1])
    net = nn.Sequential(
        SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5, family, size=(8, 8), starts=starts),
        nn.Flatten(),
        nn.Linear(128, 3),
    )
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    with Exploration(net[0]).pairs(images, 0.1, torch.Generator().manual_seed(0)) as pairs:
        losses = nn.functional.cross_entropy(net(pairs.images), labels.repeat(2), reduction="none")
    loss = pairs.loss(losses)
    loss.backward()
    assert loss.item() == pytest.approx(losses.mean().item())
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert net[0].regression.weight.grad.abs().max() > 0


def test_other_parameters_learn_from_the_mean_of_both_views():
    torch.manual_seed(0)
    net = nn.Sequential(
        SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5), nn.Flatten(), nn.Linear(64, 3)
    )
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    with Exploration(net[0]).pairs(images, 0.1, torch.Generator().manual_seed(0)) as pairs:
        losses = nn.functional.cross_entropy(net(pairs.images), labels.repeat(2), reduction="none")
    (expected,) = torch.autograd.grad(losses.mean(), net[2].weight, retain_graph=True)
    pairs.loss(losses).backward()
    torch.testing.assert_close(net[2].weight.grad, expected)


def test_pull_is_the_gradient_of_the_squared_distance_from_the_start():
    torch.manual_seed(0)
    net = SpatialTransformer(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5, Translation(0.5), starts=[[-0.5, 0], [0.5, 0]], reach=0.5
    )
    start = net.regression.bias.detach().clone()
    with torch.no_grad():
        net.regression.bias += torch.tensor([0.1, -0.3, 2.0, 0.4])
    images = torch.rand(6, 1, 8, 8)
    with Exploration(net).pairs(images, 0.1, pull=0.7) as pairs:
        net(pairs.images)
    loss = pairs.loss(torch.ones(12))  # equal losses: nothing but the pull has a gradient
    (gradient,) = torch.autograd.grad(loss, net.regression.bias)
    distance = net.regression.bias.detach() - start
    assert loss.item() == pytest.approx(1 + 0.7 * distance.square().sum().item())
    torch.testing.assert_close(gradient, 2 * 0.7 * distance)


@pytest.mark.parametrize("kind, shape", [(nn.Dropout, (64,)), (nn.Dropout2d, (64, 1, 1))])
def test_both_views_drop_the_same_units(kind, shape):
    torch.manual_seed(0)
    dropout = kind(0.5)
    net = nn.Sequential(
        SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5),
        nn.Flatten(),
        nn.Unflatten(1, shape),
        dropout,
    )
    images = torch.rand(6, 1, 8, 8) + 1
    with Exploration(net[0], network=net).pairs(images, 1e-4) as pairs:
        first, second = net(pairs.images).flatten(1).chunk(2)
        assert torch.equal(first == 0, second == 0) and 0.3 < (first == 0).float().mean() < 0.7
        assert len((first == 0).unique(dim=0)) == 6  # each image has a mask of its own
        dropout.eval()
        assert (net(pairs.images) != 0).all()
    dropout.train()
    first, second = net(torch.cat([images, images])).flatten(1).chunk(2)
    assert not torch.equal(first == 0, second == 0)  # nothing is left behind


def test_held_localisation_networks_do_not_learn_and_the_rest_does():
    torch.manual_seed(0)
    net = nn.Sequential(
        SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5), nn.Flatten(), nn.Linear(64, 3)
    )
    images = torch.rand(6, 1, 8, 8)
    before = net(images)
    with Exploration(net[0]).held():
        scores = net(images)
        scores.square().sum().backward()
    assert torch.equal(scores, before) and net[2].weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in net[0].parameters())
    net(images).square().sum().backward()
    assert net[0].regression.bias.grad.abs().max() > 0  # nothing is left behind


def test_a_transformer_that_does_not_explore_waits_at_its_bias():
    torch.manual_seed(0)
    first, second = (SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5) for _ in range(2))
    nn.init.normal_(second.regression.weight)
    net, images = nn.Sequential(first, second, nn.Flatten(), nn.Linear(64, 3)), torch.rand(6, 1, 8, 8)
    free = second(images, return_theta=True)[1]
    seen = []
    watch = second.register_forward_hook(lambda module, inputs, V: seen.append((inputs[0].detach(), V.detach())))
    with Exploration(first, network=net).pairs(images, 0.1, torch.Generator().manual_seed(0)) as pairs:
        losses = net(pairs.images).square().sum(1)
    pairs.loss(losses).backward()
    watch.remove()
    ((U, V),) = seen
    bias = second.regression.bias.detach()
    assert torch.equal(V, second.sampler(U, second.transformation.grid(bias.expand(len(U), -1), (8, 8), (8, 8))))
    assert all(parameter.grad is None for parameter in second.parameters())
    assert first.regression.bias.grad.abs().max() > 0 and net[3].weight.grad.abs().max() > 0
    assert torch.equal(second(images, return_theta=True)[1], free)  # nothing is left behind


def test_jitter_is_noise_before_the_bound_and_its_gradient_goes_through_the_sampler():
    torch.manual_seed(0)
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5, Translation(0.5), reach=0.5)
    images = torch.rand(6, 1, 8, 8)
    with Exploration(net).jitter(0.3, torch.Generator().manual_seed(1)):
        V, theta = net(images, return_theta=True)
    noise = 0.3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    raw = net.regression.bias + noise
    torch.testing.assert_close(theta, net.start + 0.5 * torch.tanh((raw - net.start) / 0.5))
    (gradient,) = torch.autograd.grad(V.square().sum(), net.regression.bias)
    shown = bilinear(images, net.transformation.grid(net.start + 0.5 * torch.tanh((raw - net.start) / 0.5), (8, 8)))
    (expected,) = torch.autograd.grad(shown.square().sum(), net.regression.bias)
    torch.testing.assert_close(gradient, expected)
    before = net(images)
    with Exploration(net).jitter(0.0):
        assert torch.equal(net(images), before)
    assert torch.equal(net(images), before)  # nothing is left behind


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_a_jitter_that_is_no_noise_is_one_line(sigma):
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    with pytest.raises(ValueError, match="sigma must be zero or positive"), Exploration(net).jitter(sigma):
        pass


def test_a_pull_without_a_reach_is_one_line():
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    pairs = Exploration(net).pairs(torch.rand(2, 1, 8, 8), 0.1, pull=0.1)
    with pytest.raises(ValueError, match="give the transformers one"), pairs:
        pass


@pytest.mark.parametrize("pull", [-0.1, math.nan, math.inf])
def test_a_pull_that_pushes_is_one_line(pull):
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    with pytest.raises(ValueError, match="pull must be"), Exploration(net).pairs(torch.rand(2, 1, 8, 8), 1, pull=pull):
        pass


def test_nothing_is_left_behind():
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    images = torch.rand(2, 1, 8, 8)
    before = net(images)
    with pytest.raises(KeyboardInterrupt), Exploration(net).pairs(images, 0.5) as pairs:
        assert not torch.equal(net(pairs.images)[:2], before)
        raise KeyboardInterrupt
    assert torch.equal(net(images), before)


def test_same_generator_same_noise():
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    images, views = torch.rand(2, 1, 8, 8), []
    for _ in range(2):
        with Exploration(net).pairs(images, 0.5, torch.Generator().manual_seed(7)) as pairs:
            views.append(net(pairs.images))
    assert torch.equal(*views)


@pytest.mark.parametrize("sigma", [0, -0.1, math.nan, math.inf, [0.1, 0.0]])
def test_a_sigma_that_is_not_positive_is_one_line(sigma):
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    with (
        pytest.raises(ValueError, match="sigma must be positive"),
        Exploration(net).pairs(torch.rand(2, 1, 8, 8), sigma),
    ):
        pass


def test_a_sigma_of_another_length_is_one_line():
    net = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    images = torch.rand(2, 1, 8, 8)
    with (
        pytest.raises(ValueError, match="sigma has 4 values, theta 6"),
        Exploration(net).pairs(images, [0.1] * 4) as pairs,
    ):
        net(pairs.images)


def test_exploration_without_a_transformer_is_one_line():
    with pytest.raises(ValueError, match="no transformer"):
        Exploration()


def test_a_context_in_which_no_transformer_was_called_is_an_error():
    """So is a network that was compiled before: it would go on as if there were no context."""
    net = nn.Sequential(SpatialTransformer(nn.Flatten(), 16), nn.Flatten())
    exploration = Exploration(net[0])
    for context in (exploration.held(), exploration.jitter(0.1)):
        with pytest.raises(ValueError, match="no transformer was called"), context:
            pass
    with exploration.held():
        assert not net(torch.rand(2, 1, 4, 4)).requires_grad


def test_what_exploration_cannot_explore_is_one_line():
    net = nn.Sequential(SpatialTransformer(nn.Flatten(), 16), nn.Flatten())
    with pytest.raises(ValueError, match="takes SpatialTransformers, not an object of Sequential"):
        Exploration(net)
    images = torch.rand(4, 1, 4, 4)
    with pytest.raises(ValueError, match="8 views, not 4"), Exploration(net[0]).pairs(images, 0.1):
        net(images)

"""Exploration: localisation networks learn from a smoothed loss, not from the gradient through pixels.

The paper's gradient of the loss with respect to theta goes through the sampler: it compares neighbouring pixels, and
far from the object that is noise. Exploration takes the gradient of the smoothed loss instead,

    J(theta) = E_e[L(theta + e)],  e ~ N(0, sigma^2),     grad J(theta) = E_e[L(theta + e) e] / sigma^2,

which needs only losses. Each image is seen twice, with the noise e and with its mirror image -e (antithetic pairs, as
in evolution strategies), and the difference of the two losses gives an unbiased estimate of the gradient:

    grad J(theta) = E_e[(L(theta + e) - L(theta - e)) e] / (2 sigma^2).

All other parameters learn from the mean of both losses. A step costs as much as a step with a batch of twice the size.

With exploration theta is often near the limit of its `reach`, where the bound has no slope and nothing is learned.
`pull` adds the squared distance from the start to the loss, so that theta moves far only where that lowers the loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stn.nn.transformer import SpatialTransformer

UNCALLED = "no transformer was called: run the network there, as it was before torch.compile"


class Exploration:
    """Adds noise to the output of transformers' regression layers, and estimates their gradient with it.

    The noise is added before `SpatialTransformer` bounds theta, so an explored theta stays within reach too. Outside of
    the contexts below the transformers are unchanged.

    A transformer in depth reads the output of those before it. If both were mirrored at once, its two views would
    differ in their input as well as in its noise. So for each image one level is drawn at random and mirrored; the
    noise of the other levels is the same in both views.

    The estimate is unbiased if, up to the mirrored level, both views of an image differ in the noise alone. Another
    difference, after that level, only raises the variance. Dropout is such a difference: pass the `network` to avoid
    it.

    Args:
        levels: the transformers in the order in which an image meets them. Those that stand in parallel are one level,
            given as a sequence. (N transformers made with `starts` are one module, and one level, anyway.)
        network: its dropout layers drop the same units in both views of an image. Its transformers that do not explore
            keep the theta of their bias in `pairs`, and learn nothing.

    Example:
        with Exploration(net[0]).pairs(images, sigma=0.2, generator=generator) as pairs:
            losses = F.cross_entropy(net(pairs.images), labels.repeat(2), reduction="none")
        pairs.loss(losses).backward()
    """

    def __init__(
        self, *levels: SpatialTransformer | Sequence[SpatialTransformer], network: nn.Module | None = None
    ) -> None:
        modules = [] if network is None else list(network.modules())
        self.dropouts = [module for module in modules if isinstance(module, nn.modules.dropout._DropoutNd)]
        self.levels = [[level] if isinstance(level, nn.Module) else list(level) for level in levels]
        if not any(self.levels):
            raise ValueError("there is no transformer to explore with")
        for module in (module for level in self.levels for module in level):
            if not hasattr(module, "regression"):
                raise ValueError(f"Exploration takes SpatialTransformers, not an object of {type(module).__name__}")
        transformers = [module for module in modules if isinstance(module, SpatialTransformer)]
        self.others = [module for module in transformers if not any(module in level for level in self.levels)]

    @contextmanager
    def pairs(
        self,
        images: Tensor,
        sigma: float | Sequence[float],
        generator: torch.Generator | None = None,
        pull: float = 0.0,
    ) -> Iterator["Pairs"]:
        """In this context, run the network on `pairs.images` (2B, ...): two views of each of `images` (B, ...).

        Args:
            sigma: standard deviation of the noise in the units of theta; one for all parameters, or one for each of P.
            generator: of the noise, on the device of `images`.
            pull: weight of |theta - start|^2 in the loss, for theta as the regression layer gives it, before its bound;
                summed over the transformers, averaged over the images. The transformers must have a `reach`.
        """
        deviation = torch.as_tensor(sigma, dtype=torch.float32, device=images.device)
        if not ((deviation > 0) & deviation.isfinite()).all():
            raise ValueError(f"sigma must be positive, not {sigma}: without noise there is no estimate")
        if not 0 <= pull < float("inf"):
            raise ValueError(f"pull must be zero or positive, not {pull}")
        if pull and any(getattr(transformer, "reach", None) is None for level in self.levels for transformer in level):
            raise ValueError("pull holds theta within its reach: give the transformers one")
        how: dict[str, Any] = {"generator": generator, "device": images.device}
        mirrored = torch.randint(len(self.levels), (len(images),), **how)
        pairs = Pairs(torch.cat([images, images]), len(self.levels), pull)
        with ExitStack() as stack:
            for i, level in enumerate(self.levels):
                for transformer in level:
                    start = transformer.start if pull else None
                    perturb = pairs.perturb(mirrored == i, deviation, generator, start)
                    stack.callback(transformer.regression.register_forward_hook(perturb).remove)
            for transformer in self.others:
                stack.callback(transformer.regression.register_forward_hook(_still).remove)
            for dropout in self.dropouts:
                dropout.forward = _in_both_views(dropout.forward)
                stack.callback(delattr, dropout, "forward")  # which restores that of its class
            yield pairs

    @contextmanager
    def jitter(self, sigma: float, generator: torch.Generator | None = None) -> Iterator[None]:
        """While this context is open, every theta has noise N(0, sigma^2) on it, before its bound.

        The gradient goes through the sampler, as without exploration: a control for the smoothed loss.
        """
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be zero or positive, not {sigma}")

        with self._changed(
            lambda theta: (
                theta + sigma * torch.randn(theta.shape, generator=generator, device=theta.device).to(theta.dtype)
            )
        ):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this context is open, theta is detached: no gradient reaches the localisation networks.

        For the steps after exploration, in which the gradient through pixels would undo what was learned.
        """
        with self._changed(Tensor.detach):
            yield

    @contextmanager
    def _changed(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While this context is open, `change` is applied to what the regression layers return. It must be used."""
        called = False

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], theta: Tensor) -> Tensor:
            nonlocal called
            called = True
            return change(theta)

        with ExitStack() as stack:
            for transformer in (transformer for level in self.levels for transformer in level):
                stack.callback(transformer.regression.register_forward_hook(hook).remove)
            yield
        if not called:  # torch.compile ignores hooks that were not there when it compiled
            raise ValueError(f"in this context {UNCALLED}")


def _in_both_views(dropout: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A dropout layer's forward that drops the same units in both halves of a batch."""

    def forward(features: Tensor) -> Tensor:
        kept = dropout(torch.ones_like(features[: len(features) // 2]))
        return features * torch.cat([kept, kept])

    return forward


def _still(layer: nn.Module, inputs: tuple[Tensor, ...], theta: Tensor) -> Tensor:
    return layer.bias.detach().to(theta.dtype).expand_as(theta)  # type: ignore[operator]


class Pairs:
    """Two views of each image of a batch: the first B of `images` (2B, ...) and the second B are the same images."""

    def __init__(self, images: Tensor, levels: int, pull: float = 0.0):
        self.images = images
        self.n_levels, self.pull = levels, pull
        self.distances: list[Tensor] = []  # |theta - start|^2 of each transformer, averaged over the images
        self.directions: list[Tensor] = []  # for each transformer (B,): d theta along which its gradient is measured

    def perturb(
        self, mirrored: Tensor, deviation: Tensor, generator: torch.Generator | None, start: Tensor | None = None
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """A forward hook of a regression layer: noise on theta, mirrored where `mirrored` (B,) says so.

        The result is detached from the layer, whose gradient comes from `loss` alone. `start` is where `pull` pulls.
        """

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], theta: Tensor) -> Tensor:
            mean = theta.float()
            half = len(mirrored)
            if len(mean) != 2 * half:
                raise ValueError(f"within `pairs` the network takes `pairs.images`, {2 * half} views, not {len(mean)}")
            if deviation.ndim and mean.shape[1] % len(deviation):
                raise ValueError(
                    f"sigma has {len(deviation)} values, theta {mean.shape[1]}: give one for each of theta"
                )
            scale = deviation.repeat(mean.shape[1] // len(deviation)) if deviation.ndim else deviation
            unit = torch.randn(half, mean.shape[1], generator=generator, device=mean.device)
            sign = torch.where(mirrored, -1.0, 1.0)[:, None]
            # sum of (e / sigma^2) theta over both views: its gradient by theta is e / sigma^2 in each
            along = (unit / scale * (mean[:half] + mean[half:])).sum(1)
            self.directions.append(torch.where(mirrored, along, torch.zeros_like(along)))
            if start is not None:
                self.distances.append((mean - start).square().sum(1).mean())
            noise = unit * scale
            return (mean.detach() + torch.cat([noise, sign * noise])).to(theta.dtype)

        return hook

    def loss(self, losses: Tensor) -> Tensor:
        """The loss of the step, from the loss of each view, `losses` (2B,).

        Its gradient is, for the localisation networks, an unbiased estimate of the gradient of the smoothed loss; for
        all other parameters, the gradient of the mean loss. Its value is the mean loss plus the term of `pull`.
        """
        if not self.directions:
            raise ValueError(f"within `pairs` {UNCALLED}")
        if losses.ndim != 1 or len(losses) != len(self.images):
            raise ValueError(
                f"one loss for each view is needed, shape ({len(self.images)},), not {tuple(losses.shape)}"
            )
        first, second = losses.float().chunk(2)
        slope = self.n_levels * (first - second).detach() / 4
        estimate = (slope * sum(self.directions)).mean()
        return losses.float().mean() + estimate - estimate.detach() + self.pull * sum(self.distances)

"""The networks of Table 4 (paper, appendix A.1): what is the sum of two digits, each in a channel of its own?"""

import math

import torch
from torch import Tensor, nn

from stn.experiments.base import group_parameters
from stn.experiments.mnist.networks import cnn, described, fcn, n_parameters, transformer, width_for

CHANNELS = 2  # the digits of a sum
CLASSES = 19  # 0 to 18


class AdditionNetwork(nn.Module):
    """A classifier of the sum of two digits, with N parallel transformers at its input or without.

    A call maps pairs of images (B, 2, canvas, canvas) in [0, 1] to class scores (B, 19). Each transformer reads both
    channels with a localisation network of its own and warps both alike; the classifier sees the 2N channels of all of
    them side by side. Two transformers start at the same place, the identity, and part all the same: their localisation
    networks start with different random weights.

    Args:
        canvas, classifier, width, transformation, sampler, pool, localisation: of the networks of distorted MNIST
            (`stn.experiments.mnist.networks.DigitNetwork`). Paper: pools what the classifier sees of the canvas of RTS,
            42 pixels; of the sums it says nothing. We: the same here.
        parallel: N, if there is a transformation.
    """

    def __init__(
        self,
        canvas: int,
        classifier: str,
        width: int,
        transformation: str | None = None,
        parallel: int = 1,
        sampler: str = "bilinear",
        pool: int = 1,
        localisation: dict | None = None,
    ):
        super().__init__()
        n = 0 if transformation is None else parallel
        self.transformers = nn.ModuleList(
            transformer(canvas, classifier, transformation, sampler, localisation, CHANNELS)  # type: ignore[arg-type]
            for _ in range(n)
        )
        side, channels = (math.ceil(canvas / pool), n * CHANNELS) if n else (canvas, CHANNELS)
        self.pool = nn.AvgPool2d(pool, ceil_mode=True) if n and pool > 1 else nn.Identity()
        self.classifier = {"cnn": cnn, "fcn": fcn}[classifier](side, width, CLASSES, channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.seen(images))

    def seen(self, images: Tensor) -> Tensor:
        """What the classifier sees: (B, 2N, side, side), both channels of the first transformer before the next's."""
        warped = torch.cat([warp(images) for warp in self.transformers], 1) if len(self.transformers) else images
        return self.pool(warped)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformers)

    def thetas(self, images: Tensor) -> dict[str, Tensor]:
        """`theta` (B, N, P) of the N transformers, if there are any."""
        if not len(self.transformers):
            return {}
        return {"theta": torch.stack([transformer.theta(images) for transformer in self.transformers], 1)}  # type: ignore[operator]


def network(model, data) -> AdditionNetwork:
    """The network that a model config describes on the canvas of a data config."""
    parts = {"canvas": data.canvas, "parallel": model.parallel, **described(model, data)}
    if model.width:
        return AdditionNetwork(width=model.width, **parts)
    reference = AdditionNetwork(data.canvas, "cnn", model.match_filters)
    return AdditionNetwork(width=width_for(n_parameters(reference), AdditionNetwork, **parts), **parts)

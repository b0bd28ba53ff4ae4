"""The networks of Table 4 (paper, appendix A.1): they classify the sum of two digits in two channels."""

import math

import torch
from torch import Tensor, nn

from stn.experiments.base import group_parameters
from stn.experiments.mnist.networks import cnn, described, fcn, n_parameters, transformer, width_for

CHANNELS = 2  # the digits of a sum
CLASSES = 19  # 0 to 18


class AdditionNetwork(nn.Module):
    """A classifier of the sum of two digits, with or without N parallel transformers at its input.

    A call maps pairs of images (B, 2, canvas, canvas) in [0, 1] to class scores (B, 19). Each transformer has its own
    localisation network, which reads both channels, and warps both by the same theta. The classifier sees the outputs
    of all transformers, 2N channels. All transformers start at the identity. They diverge in training because their
    localisation networks start with different random weights.

    Args:
        canvas, classifier, width, transformation, sampler, pool, localisation: as for
            `stn.experiments.mnist.networks.DigitNetwork`. Paper: pools behind the transformer on RTS, whose canvas is
            42 pixels too, and is silent on addition. We: pool here as well.
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
        """The classifier's input (B, 2N, side, side): both channels of the first transformer, then the next's."""
        warped = torch.cat([warp(images) for warp in self.transformers], 1) if len(self.transformers) else images
        return self.pool(warped)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformers)

    def thetas(self, images: Tensor) -> dict[str, Tensor]:
        """`theta` (B, N, P) of the N transformers; empty without transformers."""
        if not len(self.transformers):
            return {}
        return {"theta": torch.stack([transformer.theta(images) for transformer in self.transformers], 1)}  # type: ignore[operator]


def network(model, data) -> AdditionNetwork:
    """The network of a model config for the canvas of a data config."""
    parts = {"canvas": data.canvas, "parallel": model.parallel, **described(model, data)}
    if model.width:
        return AdditionNetwork(width=model.width, **parts)
    reference = AdditionNetwork(data.canvas, "cnn", model.match_filters)
    return AdditionNetwork(width=width_for(n_parameters(reference), AdditionNetwork, **parts), **parts)

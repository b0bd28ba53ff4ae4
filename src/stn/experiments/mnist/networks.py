"""The networks of Table 1 (paper, section 4.1 and appendix A.4): FCN and CNN, each with or without a transformer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stn.errors import UserError
from stn.experiments.base import group_parameters, name_of
from stn.geometry.sampling import LearnableSampler, bicubic, bilinear, integer
from stn.geometry.transforms import Affine, Projective, ThinPlateSpline, Transformation
from stn.nn.localisation import FirstConvolution, Layers, convolutional, fully_connected
from stn.nn.transformer import SpatialTransformer

TRANSFORMATIONS: dict[str, Callable[[], Transformation]] = {
    "affine": Affine,
    "projective": Projective,
    "tps": lambda: ThinPlateSpline(4),
}
SAMPLERS = {
    "integer": lambda: integer,
    "bilinear": lambda: bilinear,
    "bicubic": lambda: bicubic,
    "learned": LearnableSampler,
}


class DigitNetwork(nn.Module):
    """A classifier of digits, with or without a spatial transformer at its input.

    A call maps images (B, 1, canvas, canvas) in [0, 1] to class scores (B, classes).

    Args:
        canvas: side of the images in pixels.
        classifier: `"fcn"` or `"cnn"`.
        width: filters of the CNN, hidden units of the FCN.
        transformation: `"affine"`, `"projective"`, `"tps"`, or None for no transformer.
        sampler: `"integer"`, `"bilinear"`, `"bicubic"` or `"learned"`.
        pool: average pooling between the transformer and the classifier (paper: 2 on RTS and TC, else none).
        localisation: of the localisation network, `filters` and `features` for a CNN, `hidden` and `layers` for an FCN.
        classes: number of classes.
    """

    def __init__(
        self,
        canvas: int,
        classifier: str,
        width: int,
        transformation: str | None = None,
        sampler: str = "bilinear",
        pool: int = 1,
        localisation: dict | None = None,
        classes: int = 10,
    ):
        super().__init__()
        self.transformer = None
        side = canvas
        if transformation is not None:
            self.transformer = transformer(canvas, classifier, transformation, sampler, localisation)  # type: ignore[arg-type]
            side = math.ceil(canvas / pool)
        self.pool = nn.AvgPool2d(pool) if transformation is not None and pool > 1 else nn.Identity()
        self.classifier = {"cnn": cnn, "fcn": fcn}[classifier](side, width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.seen(images))

    def seen(self, images: Tensor) -> Tensor:
        """The classifier's input (B, 1, side, side) for the images."""
        return self.pool(images if self.transformer is None else self.transformer(images))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformer)

    def thetas(self, images: Tensor) -> dict[str, Tensor]:
        """`theta` (B, P) of the transformer; empty without one."""
        return {} if self.transformer is None else {"theta": self.transformer.theta(images)}


def transformer(
    canvas: int, classifier: str, transformation: str, sampler: str, localisation: dict, channels: int = 1
) -> SpatialTransformer:
    """The transformer before a classifier: the localisation network is of the same kind as the classifier."""
    if classifier == "cnn":
        features = localisation["features"]
        network = convolutional(canvas, localisation["filters"], features, channels)
    else:
        features = localisation["hidden"]
        network = fully_connected(canvas, features, localisation["layers"], channels)
    return SpatialTransformer(network, features, TRANSFORMATIONS[transformation](), SAMPLERS[sampler]())


def cnn(side: int, filters: int, classes: int, channels: int = 1) -> Layers:
    """conv 9x9 - max-pool 2 - conv 7x7 - max-pool 2 - fully connected, without padding.

    Pooling rounds up: on the 21 pixels of RTS, rounding down would reduce 13 to 6, too few for a 7x7 kernel. Pooling is
    before the ReLU: the two commute, and the ReLU has a quarter of the values.
    """
    for kernel in (9, 7):
        side = math.ceil((side - kernel + 1) / 2)
    return Layers(
        FirstConvolution(filters, 9, channels),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 7),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(filters * side**2, classes),
    )


def fcn(side: int, hidden: int, classes: int, channels: int = 1) -> nn.Sequential:
    """Three fully connected layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * side**2, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )


def width_for(total: int, make: Callable[..., nn.Module] = DigitNetwork, **network) -> int:
    """The width with which the number of parameters of `make(width=..., **network)` is closest to `total`.

    Paper, section 4.1: all networks of an experiment have the same number of parameters. So a classifier behind a
    transformer is slightly narrower.
    """

    def parameters(width: int) -> int:
        with torch.device("meta"):  # shapes only: uses neither memory nor random numbers
            return n_parameters(make(width=width, **network))

    low, high = 1, 2048
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) <= total else (low, middle)
    return min((low, high), key=lambda width: abs(parameters(width) - total))


def n_parameters(network: nn.Module) -> int:
    """The number of learnable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def network(model, data) -> DigitNetwork:
    """The network of a model config for the canvas of a data config."""
    # Images whose distortion is wholly undone have the size of the digits.
    parts = {"canvas": 28 if data.undo is True else data.canvas, **described(model, data)}
    if model.width:
        return DigitNetwork(width=model.width, **parts)
    total = model.parameters or n_parameters(DigitNetwork(parts["canvas"], "cnn", model.match_filters))
    built = DigitNetwork(width=width_for(total, **parts), **parts)
    if model.parameters and not 0.75 < n_parameters(built) / model.parameters < 1.25:
        raise UserError(
            f"model.parameters={model.parameters}: the nearest that this network can have is {n_parameters(built):,}"
        )
    return built


def described(model, data) -> dict:
    """The arguments of a network from a model config and a data config, except its canvas and its width."""
    return {
        "classifier": name_of(model.classifier),
        "transformation": name_of(model.transformation),
        "sampler": name_of(model.sampler),
        "pool": data.pool,
        "localisation": dict(model.localisation),
    }

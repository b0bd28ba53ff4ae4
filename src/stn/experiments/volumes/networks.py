"""The networks of Table 6 (paper, appendix A.3): an optional 3-D transformer, a projection and a CNN."""

import torch
from torch import Tensor, nn

from stn.errors import UserError
from stn.experiments.base import group_parameters
from stn.experiments.mnist.networks import cnn, n_parameters, width_for
from stn.geometry.sampling import trilinear
from stn.geometry.transforms import Affine3D
from stn.nn.transformer import SpatialTransformer

SMALLEST = {"projection": 21, "localisation": 14}  # below these sides a convolution would have no input left


class VolumeNetwork(nn.Module):
    """A classifier of the projection of a volume along its depth, with or without a 3-D transformer before it.

    A call maps volumes (B, 1, canvas, canvas, canvas) in [0, 1] to class scores (B, 10).

    Args:
        canvas: side of the volumes in voxels.
        projection: side in pixels of the classifier's input. A transformer samples that many voxels a side; without
            one the projection of the volume is average-pooled to that side.
        gain: the factor of the mean over the depth.
        width: filters of the CNN.
        localisation: `downsample`, `filters` and `features` of the localisation network; None for no transformer.
    """

    def __init__(self, canvas: int, projection: int, gain: float, width: int, localisation: dict | None = None):
        super().__init__()
        self.gain = gain
        self.pool = nn.AvgPool2d(canvas // projection)
        self.transformer = None
        if localisation is not None:
            self.transformer = SpatialTransformer(
                volumetric(canvas, **localisation),
                localisation["features"],
                Affine3D(),
                trilinear,
                size=(projection,) * 3,
            )
        self.classifier = cnn(projection, width, 10)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.classifier(self.seen(volumes))

    def seen(self, volumes: Tensor) -> Tensor:
        """The classifier's input (B, 1, projection, projection) for the volumes."""
        if self.transformer is None:
            return self.projected(volumes)
        return self.gain * self.transformer(volumes).mean(2)

    def projected(self, volumes: Tensor) -> Tensor:
        """The projection of the volumes without the transformer, in the same size and unit as `seen`."""
        return self.pool(self.gain * volumes.mean(2))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformer)

    def thetas(self, volumes: Tensor) -> dict[str, Tensor]:
        """`theta` (B, 12) of the transformer; empty without one."""
        return {} if self.transformer is None else {"theta": self.transformer.theta(volumes)}


def volumetric(canvas: int, downsample: int, filters: int, features: int) -> nn.Sequential:
    """The localisation network of Table 1's ST-CNNs in three dimensions: (B, 1, canvas, ...) to features (B, features).

    Paper: silent. We: downsample, two 5x5x5 convolutions with a max-pool between, a fully connected layer.
    """
    side = (canvas // downsample - 4) // 2 - 4
    return nn.Sequential(
        nn.AvgPool3d(downsample),
        nn.Conv3d(1, filters, 5),
        nn.MaxPool3d(2),
        nn.ReLU(inplace=True),
        nn.Conv3d(filters, filters, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(filters * side**3, features),
        nn.ReLU(inplace=True),
    )


def network(model, data) -> VolumeNetwork:
    """The network of a model config for the volumes of a data config. Raises UserError if the two do not fit.

    Widths as in Table 1: without `model.width`, the network has as many parameters as the CNN with
    `model.match_filters` filters.
    """
    if data.canvas % data.projection or data.projection < SMALLEST["projection"]:
        raise UserError(
            f"data.projection={data.projection} does not fit data.canvas={data.canvas}: give a divisor of it that is "
            f"{SMALLEST['projection']} or more"
        )
    localisation = dict(model.localisation) if model.transformer else None
    if localisation and data.canvas // localisation["downsample"] < SMALLEST["localisation"]:
        raise UserError(
            f"model.localisation.downsample={localisation['downsample']} leaves less than {SMALLEST['localisation']} "
            f"voxels a side of data.canvas={data.canvas}: choose a smaller one"
        )
    canvas = data.projection if data.undo else data.canvas  # undone volumes have the side of the projection
    # The projection is a mean over the depth, not a sum, so that its brightness depends neither on the canvas nor on
    # `projection`. With this gain the ink of a digit at scale 1 that faces the viewer has value 1.
    parts = {"canvas": canvas, "projection": data.projection, "gain": data.canvas / data.thickness}
    if model.width:
        return VolumeNetwork(width=model.width, localisation=localisation, **parts)
    with torch.device("meta"):
        spent = n_parameters(VolumeNetwork(width=1, localisation=localisation, **parts).transformer or nn.Module())
        total = n_parameters(cnn(data.projection, model.match_filters, 10)) - spent
    width = width_for(total, canvas=data.projection, classifier="cnn")
    return VolumeNetwork(width=width, localisation=localisation, **parts)

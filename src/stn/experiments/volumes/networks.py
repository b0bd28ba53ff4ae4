"""The networks of Table 6 (paper, appendix A.3): a volume, a 3-D transformer or none, its projection, a CNN."""

import torch
from torch import Tensor, nn

from stn.errors import UserError
from stn.experiments.base import group_parameters
from stn.experiments.mnist.networks import cnn, n_parameters, width_for
from stn.geometry.sampling import trilinear
from stn.geometry.transforms import Affine3D
from stn.nn.transformer import SpatialTransformer

SMALLEST = {"projection": 21, "localisation": 14}  # below, one of their convolutions would have nothing left to see


class VolumeNetwork(nn.Module):
    """A classifier of the projection of a volume along its depth, with a 3-D transformer before it or without.

    A call maps volumes (B, 1, canvas, canvas, canvas) in [0, 1] to class scores (B, 10).

    Args:
        canvas: side of the volumes in voxels.
        projection: side in pixels of what the classifier sees. A transformer samples as many voxels a side; without
            one the projection of the volume is average-pooled to it.
        gain: what a mean over the depth is multiplied by.
        width: filters of the CNN.
        localisation: its `downsample`, `filters` and `features`; None for no transformer.
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
        """What the classifier sees of the volumes: (B, 1, projection, projection)."""
        if self.transformer is None:
            return self.projected(volumes)
        return self.gain * self.transformer(volumes).mean(2)

    def projected(self, volumes: Tensor) -> Tensor:
        """The projection of the volumes themselves, in the same size and unit."""
        return self.pool(self.gain * volumes.mean(2))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformer)

    def thetas(self, volumes: Tensor) -> dict[str, Tensor]:
        """`theta` (B, 12) of the transformer, if there is one."""
        return {} if self.transformer is None else {"theta": self.transformer.theta(volumes)}


def volumetric(canvas: int, downsample: int, filters: int, features: int) -> nn.Sequential:
    """The localisation network of Table 1's ST-CNNs in three dimensions: (B, 1, canvas, ...) to features (B, features).

    Paper: does not give one. We: downsample, two 5x5x5 convolutions with a max-pool between, a fully connected layer.
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
    """The network that a model config describes for the volumes of a data config; a UserError if they do not fit.

    Widths as in Table 1: without `model.width`, as many parameters in all as the CNN of `model.match_filters` has.
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
    canvas = data.projection if data.undo else data.canvas  # undone volumes are as large as what is seen of them
    # Depth is averaged and not summed, so that neither side decides how bright a projection is; in this unit a digit
    # that faces the viewer in a volume of its own is 1 where its ink is.
    parts = {"canvas": canvas, "projection": data.projection, "gain": data.canvas / data.thickness}
    if model.width:
        return VolumeNetwork(width=model.width, localisation=localisation, **parts)
    with torch.device("meta"):
        spent = n_parameters(VolumeNetwork(width=1, localisation=localisation, **parts).transformer or nn.Module())
        total = n_parameters(cnn(data.projection, model.match_filters, 10)) - spent
    width = width_for(total, canvas=data.projection, classifier="cnn")
    return VolumeNetwork(width=width, localisation=localisation, **parts)

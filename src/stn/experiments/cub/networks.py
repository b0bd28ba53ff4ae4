"""The networks of Table 3 (paper, section 4.3): trunks, parallel windows, bilinear pooling."""

import copy
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.experiments.base import group_parameters
from stn.experiments.cub.regions import SCALE
from stn.experiments.cub.trunks import MEAN, STD, Trunk
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import CORNERS, Translation
from stn.nn.transformer import SpatialTransformer

HEAD = 0.01  # std of the classifier's initial weights: small, so that first gradients do not harm trunks and windows
SMALL = 1e-5  # epsilon of the signed square root: keeps its gradient finite at zero


class CubNetwork(nn.Module):
    """A trunk on the image, or N transformers in parallel, each with a trunk on its window.

    A call maps images (B, 3, canvas, canvas) in [0, 1] to class scores (B, classes). Frames as in
    `stn.geometry.transforms`. Images are normalised for the trunk's weights before they are sampled, so a window that
    exceeds the image sees zero there, the mean colour. The descriptors of all streams are concatenated for one linear
    layer. All trunks start with the same weights.

    Args:
        windows: N; None: no transformer.
        fixed: the windows stay at their start; there is no localisation network.
        given: the input already is the N windows (B, N, 3, size, size); there is no localisation network.
        spread: position of the windows at the start, between the middle of the image (0) and `tiles(N)` (1).
        reach: the largest distance of a window's centre from its start; None: unbounded.
        size: side in pixels of a trunk's input. Without windows, and for the localisation network, a larger canvas is
            average-pooled to it.
        trunk, node, frozen_norm, frozen: as for `stn.experiments.cub.trunks.Trunk`.
        shared: one trunk for all streams. The localisation network always has its own.
        head: "linear": a descriptor is the mean of a trunk's map over its positions. "bilinear" (Lin et al. 2015, with
            equal trunks): it is the mean outer product of the features, with signed square root and unit length.
        dropout: the rate on the descriptors.
        localisation: `filters` and `features` of the localisation network, and the `side` in pixels of its input (None:
            `size`).
    """

    if TYPE_CHECKING:  # buffers
        mean: Tensor
        std: Tensor
        starts: Tensor

    def __init__(
        self,
        classes: int,
        canvas: int,
        size: int,
        trunk: str,
        node: str | None = None,
        windows: int | None = None,
        fixed: bool = False,
        given: bool = False,
        spread: float = 1.0,
        reach: float | None = None,
        shared: bool = False,
        frozen_norm: bool = False,
        frozen: str | None = None,
        head: str = "linear",
        dropout: float = 0.0,
        localisation: dict | None = None,
    ):
        super().__init__()
        self.size, self.head = size, head
        self.windowed, self.given = windows is not None, given
        whole_side = min(canvas, size)  # the side at which a trunk sees the whole image
        self.shrink = nn.AdaptiveAvgPool2d(whole_side) if whole_side < canvas else nn.Identity()
        first_trunk = Trunk(trunk, node, frozen_norm, frozen)
        self.trunks = nn.ModuleList([first_trunk])
        self.trunks += [copy.deepcopy(first_trunk) for _ in range(0 if shared else (windows or 1) - 1)]
        # Mean and std are part of the state, because they belong to the trunks' weights.
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.transformation = Translation(SCALE)
        self.transformer = None
        if self.windowed:
            self.register_buffer("starts", spread * tiles(windows), persistent=False)  # type: ignore[arg-type]
        if self.windowed and not fixed and not given:
            filters, features = localisation["filters"], localisation["features"]  # type: ignore[index]
            side = min(localisation.get("side") or size, canvas)  # type: ignore[union-attr]
            channels, height, width = first_trunk.map_shape(side)
            # Paper: 1x1 convolution, FC, FC; silent on ReLUs. We: a ReLU between layers, as in the other networks.
            body = nn.Sequential(
                nn.AdaptiveAvgPool2d(side) if side < canvas else nn.Identity(),
                copy.deepcopy(first_trunk),
                nn.Conv2d(channels, filters, 1),
                nn.ReLU(inplace=True),
                nn.Flatten(),
                nn.Linear(filters * height * width, features),
                nn.ReLU(inplace=True),
            )
            self.transformer = SpatialTransformer(
                body, features, self.transformation, bilinear, (size, size), self.starts, reach
            )
        channels = first_trunk.map_shape(size if self.windowed else whole_side)[0]
        descriptor = channels**2 if head == "bilinear" else channels
        layers = [nn.Dropout(dropout)] if dropout else []
        linear = nn.Linear((windows or 1) * descriptor, classes)
        nn.init.normal_(linear.weight, std=HEAD)
        nn.init.zeros_(linear.bias)
        self.classifier = nn.Sequential(*layers, linear)

    def forward(self, images: Tensor) -> Tensor:
        images = self._normalised(images)
        if self.given:
            return self._scores(images.unbind(1))
        theta = self._theta(images)
        return self._scores(self._view(images, theta[:, i]) for i in range(theta.shape[1]))

    def at_random_places(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The scores (B, classes) with all windows of an image at one random place within it.

        A shared trunk processes that window only once.
        """
        if self.given:
            return self(images)
        images = self._normalised(images)
        places = torch.rand(len(images), 2, generator=generator, device=images.device)
        view = self._view(images, (1 - SCALE) * (2 * places - 1))
        if len(self.trunks) > 1:
            return self._scores([view] * len(self.trunks))
        descriptor = self._descriptor(self.trunks[0](view))
        return self.classifier(torch.cat([descriptor] * len(self.starts), 1))

    def _scores(self, views: Iterable[Tensor]) -> Tensor:
        """The scores (B, classes) from the inputs (B, 3, side, side) of the streams."""
        descriptors = [self._descriptor(self.trunks[i % len(self.trunks)](view)) for i, view in enumerate(views)]
        return self.classifier(torch.cat(descriptors, 1))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformer, head=self.classifier)

    def thetas(self, images: Tensor) -> dict[str, Tensor]:
        """`theta` (B, 2N): the centres x, y of the N windows in sequence; empty without windows."""
        if not self.windowed or self.given:
            return {}
        return {"theta": self._theta(self._normalised(images)).flatten(1)}

    def windows(self, images: Tensor) -> Tensor:
        """The corners (B, N, 4, 2) of the windows in the images' frame, clockwise from the top left."""
        theta = self._theta(self._normalised(images))
        corners = self.transformation.points(theta.flatten(0, 1), images.new_tensor(CORNERS))
        return corners.unflatten(0, theta.shape[:2])

    def seen(self, images: Tensor) -> Tensor:
        """The first stream's input (B, 3, size, size), in the colours of the images."""
        if self.given:
            return images[:, 0]
        images = self._normalised(images)
        return self._view(images, self._theta(images)[:, 0]) * self.std + self.mean

    def load_pretrained(self) -> str:
        """Load ImageNet weights into all trunks, and set the matching normalisation. Returns the weights' name."""
        first_trunk, *other_trunks = [module for module in self.modules() if isinstance(module, Trunk)]
        weights = first_trunk.load_pretrained()
        for trunk in other_trunks:
            trunk.load_state_dict(first_trunk.state_dict())
        for buffer, value in ((self.mean, weights.mean), (self.std, weights.std)):
            buffer.copy_(torch.tensor(value).view(3, 1, 1))
        return weights.name

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _theta(self, images: Tensor) -> Tensor:
        """The centres (B, N, 2) for normalised images. Without windows (B, 1, 0): one stream on the whole image."""
        if self.transformer is not None:
            return self.transformer.theta(images)
        return self.starts.expand(images.shape[0], -1, 2) if self.windowed else images.new_empty(images.shape[0], 1, 0)

    def _view(self, images: Tensor, theta: Tensor) -> Tensor:
        """A trunk's input (B, 3, size, size): the window at theta (B, 2) of normalised images, or the pooled images.

        Windows are sampled one at a time, so that not all of them are in memory at once.
        """
        if not self.windowed:
            return self.shrink(images)
        view = bilinear(images, self.transformation.grid(theta, (self.size, self.size)))
        return view.contiguous(memory_format=torch.channels_last)

    def _descriptor(self, maps: Tensor) -> Tensor:
        """The descriptor (B, C), or (B, C C) for the bilinear head, of maps (B, C, h, w)."""
        if self.head == "linear":
            return maps.mean((2, 3))
        features = maps.flatten(2) / (maps.shape[2] * maps.shape[3]) ** 0.5
        products = (features @ features.mT).flatten(1).to(self.std.dtype)  # half precision is too coarse for the rest
        # The signed square root, smoothed at zero, where its slope would be infinite.
        return F.normalize(products * (products.abs() + SMALL).rsqrt())


def tiles(n: int) -> Tensor:
    """The centres (n, 2) = x, y of n windows of half the side that tile the image in rows; the last row is centred.

    1: the middle; 2: left and right; 4: the quarters. More than four overlap.
    """
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    lengths = [columns] * (rows - 1) + [n - columns * (rows - 1)]
    return torch.tensor([(x, y) for y, k in zip(_spread(rows), lengths, strict=True) for x in _spread(k)])


def _spread(k: int) -> list[float]:
    """The centres of k windows in a row from edge to edge."""
    return [0.0] if k == 1 else [(1 - SCALE) * (2 * i / (k - 1) - 1) for i in range(k)]


def network(model, data) -> CubNetwork:
    """The network of a model config for the images of a data config, before `load_pretrained`."""
    return CubNetwork(
        classes=data.classes,
        canvas=data.canvas,
        size=model.size,
        trunk=model.trunk,
        node=model.node,
        windows=model.windows,
        fixed=model.fixed,
        given=data.annotated,
        spread=model.spread,
        reach=model.reach,
        shared=model.shared,
        frozen_norm=model.frozen_norm,
        frozen=model.frozen,
        head=getattr(model.head, "name", model.head),
        dropout=model.dropout,
        localisation=dict(model.localisation),
    )

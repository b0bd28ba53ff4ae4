"""The networks of Table 2 (paper, section 4.2, appendix A.5): the CNN for house numbers, ST-CNN Single and Multi."""

import torch
from torch import Tensor, nn

from stn.experiments.base import group_parameters, name_of
from stn.geometry.sampling import bicubic, bilinear, integer
from stn.geometry.transforms import CORNERS, Affine, Crop, pixel_centres
from stn.nn.transformer import SpatialTransformer

FILTERS = (48, 64, 128, 160, 192, 192, 192, 192)
POOLED = (0, 2, 4, 6)  # the indices of the convolutions with a max-pool behind them
UNITS = 3072
POSITIONS, CLASSES = 5, 11  # ten digits and "none"
FAMILIES = {"affine": Affine, "crop": Crop}
SAMPLERS = {"integer": integer, "bilinear": bilinear, "bicubic": bicubic}
BEFORE = {"none": 0, "single": 1, "multi": 4}  # the number of transformers: one before each of the first convolutions


class SvhnNetwork(nn.Module):
    """Eight convolutions and three fully connected layers, then a softmax for each of five positions.

    A call maps images (B, 3, side, side) to class scores (B, 5, 11). Frames as in `stn.geometry.transforms`: pooling
    and padded convolutions keep the frame, so every map spans [-1, 1] of the output of the transformer before it.

    Args:
        side: of the images in pixels.
        transformers: how many of the first convolutions have a transformer before them (paper: 0, 1 or 4).
        width: factor of the paper's numbers of filters and units.
        dropout: rate in all layers except the first convolution and the localisation networks (paper: 0.5).
        localisation: settings of the localisation networks. `filters`: of their convolutions, with one transformer.
            `features`: the size of their output. `side`: the first one's image is pooled to this side in pixels (None:
            not pooled). `he`: start with weights of He et al. (2015). `standardised`: inputs have mean 0 and variance 1
            over an image; without it the features of an untrained network depend on little but the brightness.
        size: side in pixels of the first convolution's input: of the first transformer's output, or of the
            average-pooled image. None: `side`.
        family: of all transformers, "affine" (paper) or "crop".
        reach: the largest distance of each parameter of theta from its start; None: unbounded.
        reach_sides: the same for the sides of "crop"; None: `reach`.
        start: of "crop", the initial sides of the first transformer's window as fractions of the image's; None: 1.
    """

    def __init__(
        self,
        side: int,
        transformers: int = 0,
        width: float = 1.0,
        dropout: float = 0.5,
        sampler: str = "bilinear",
        localisation: dict | None = None,
        size: int | None = None,
        family: str = "affine",
        reach: float | None = None,
        reach_sides: float | None = None,
        start: tuple[float, float] | None = None,
    ):
        super().__init__()
        localisation = {"side": None, "he": False, "standardised": False, **(localisation or {})}
        self.size = size if size is not None and size < side else None
        self.sampler = SAMPLERS[sampler]
        self.shrink = nn.AdaptiveAvgPool2d(self.size) if self.size and not transformers else nn.Identity()
        filters = [max(1, round(width * n)) for n in FILTERS]
        units = max(1, round(width * UNITS))
        self.transformers, self.convolutions = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for i, n in enumerate(filters):
            if i < transformers:
                body = _localisation(
                    channels,
                    side,
                    localisation["filters"],
                    localisation["features"],
                    convolve=transformers == 1,
                    pooled=localisation["side"] if i == 0 else None,
                    standardised=localisation["standardised"],
                )
                limits = None if reach is None else [reach_sides or reach] * 2 + [reach] * 2
                transformer = SpatialTransformer(
                    body,
                    localisation["features"],
                    FAMILIES[family](),
                    self.sampler,
                    self.size if i == 0 else None,
                    starts=None if start is None or i else [*start, 0.0, 0.0],
                    reach=limits if family == "crop" else reach,
                )
                self.transformers.append(transformer)
            if i == 0:
                side = self.size or side
            layers: list[nn.Module] = [nn.Conv2d(channels, n, 5, padding=2)]
            if i in POOLED:
                layers.append(nn.MaxPool2d(2))  # before the ReLU: the two commute, and the ReLU has fewer values
                side //= 2
            layers.append(nn.ReLU(inplace=True))
            if i > 0 and dropout:
                layers.append(nn.Dropout(dropout))
            self.convolutions.append(nn.Sequential(*layers))
            channels = n
        layers, features = [nn.Flatten()], channels * side**2
        for _ in range(3):
            layers += [nn.Linear(features, units), nn.ReLU(inplace=True)] + [nn.Dropout(dropout)] * bool(dropout)
            features = units
        self.classifier = nn.Sequential(*layers, nn.Linear(features, POSITIONS * CLASSES))
        for name, module in self.named_modules():
            # Eleven layers without normalisation: PyTorch's default would shrink the signal at each (He et al., 2015).
            he_start = not name.startswith("transformers") or (localisation["he"] and ".localisation." in name)
            if isinstance(module, nn.Conv2d | nn.Linear) and he_start:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # each has one

    def forward(self, images: Tensor) -> Tensor:
        maps = self.shrink(images)
        for i, convolution in enumerate(self.convolutions):
            if i < len(self.transformers):
                maps = self.transformers[i](maps)
            maps = convolution(maps)
        return self._scores(maps)

    def at_random_places(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The scores (B, 5, 11) of `images` without the transformers.

        The images already are random windows, from `SvhnSource.random_batch`, so `generator` is not used.
        """
        maps = self.shrink(images)
        if self.transformers and self.size:
            maps = bilinear(maps, Crop().grid(Crop().identity().to(maps).expand(len(maps), 4), (self.size, self.size)))
        for convolution in self.convolutions:
            maps = convolution(maps)
        return self._scores(maps)

    @property
    def explored(self) -> nn.ModuleList:
        """The transformers that explore: the first one. The others learn from the gradient through the maps."""
        return self.transformers[:1]

    def _scores(self, maps: Tensor) -> Tensor:
        return self.classifier(maps).unflatten(1, (POSITIONS, CLASSES))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformers)

    def thetas(self, images: Tensor) -> dict[str, Tensor]:
        """`theta1`, `theta2`, ... (B, P) of the transformers from the input on; P is 6 for `affine`, 4 for `crop`."""
        thetas, maps = {}, self.shrink(images)
        for i, (transformer, convolution) in enumerate(zip(self.transformers, self.convolutions, strict=False), 1):
            maps, thetas[f"theta{i}"] = transformer(maps, return_theta=True)
            maps = convolution(maps)
        return thetas

    def windows(self, images: Tensor) -> Tensor:
        """The corners (B, K, 4, 2) of each transformer's window in the images' frame."""
        corners = images.new_tensor(CORNERS).expand(images.shape[0], 4, 2)
        thetas = list(self.thetas(images).values())
        return torch.stack([self._traced(thetas[: i + 1], corners) for i in range(len(thetas))], 1)

    def seen(self, images: Tensor) -> Tensor:
        """The images sampled in the last transformer's window, (B, 3, size, size)."""
        size = (self.size, self.size) if self.size else tuple(images.shape[2:])
        centres = pixel_centres(size, torch.float32, images.device).expand(images.shape[0], -1, 2)
        return bilinear(images, self._traced(list(self.thetas(images).values()), centres).unflatten(1, size))

    def _traced(self, thetas: list[Tensor], points: Tensor) -> Tensor:
        """Points (B, N, 2) of the last transformer's output, mapped back to the images."""
        for theta, transformer in reversed(list(zip(thetas, self.transformers, strict=False))):
            points = transformer.transformation.points(theta, points)  # type: ignore[operator, union-attr]
        return points


def _localisation(
    channels: int, side: int, filters: int, features: int, convolve: bool, pooled: int | None, standardised: bool
) -> nn.Sequential:
    """Single: two 5x5 convolutions with a max-pool between; Multi: none. Then two fully connected layers.

    Before them, maps of `side` pixels are `standardised`, and average-pooled to `pooled` pixels if that is less.
    """
    layers: list[nn.Module] = [nn.GroupNorm(1, channels, affine=False)] if standardised else []
    if pooled is not None and pooled < side:
        layers.append(nn.AdaptiveAvgPool2d(pooled))
        side = pooled
    if convolve:
        layers += [nn.Conv2d(channels, filters, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(filters, filters, 5, padding=2), nn.ReLU(inplace=True)]
        channels, side = filters, side // 2
    layers += [nn.Flatten(), nn.Linear(channels * side**2, features), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(features, features), nn.ReLU(inplace=True))


def network(model, data) -> SvhnNetwork:
    """The network of a model config for the images of a data config."""
    return SvhnNetwork(
        side=data.window or data.canvas,
        transformers=BEFORE[name_of(model.transformers)],
        width=model.width,
        dropout=model.dropout,
        sampler=name_of(model.sampler),
        localisation=dict(model.localisation),
        size=model.size,
        family=name_of(model.family),
        reach=model.reach,
        reach_sides=model.reach_sides,
        start=model.start,
    )

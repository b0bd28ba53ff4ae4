"""Co-localisation (paper, appendix A.2): windows learned only from the fact that images show the same class.

For two images n and m of one class, the loss is the hinge

    max(0, |e(I_n^T) - e(I_m^T)|^2 - |e(I_n^T) - e(I_n^rand)|^2 + margin)

where I^T is the crop in an image's window, I_n^rand is a patch of image n of the window's size at a random place, and
e(.) are activations of a trained and frozen classifier of digits. Frames as in `stn.geometry.transforms`.
"""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.errors import UserError
from stn.experiments.base import group_parameters
from stn.experiments.colocalisation.data import CLASSES, DIGIT, Views
from stn.experiments.mnist.networks import cnn
from stn.files import DAMAGED
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Attention, full_precision

FOUND = 0.5  # a window is right if its IoU with the digit's box is greater (paper)
LAYERS = (2, 5, 7)  # the last module of each layer in `cnn`: two convolutions with pooling and ReLU, then the scores


class Localisation(NamedTuple):
    """The output for B images: `theta` (B, 3) of the windows, and the mean `hinge` (B,) over each image's partners.

    In training, with S starts, it is that of S B windows: those of the first image come first.
    """

    theta: Tensor
    hinge: Tensor


class TripletHinge:
    """The objective: the triplet hinge is the loss, IoU decides what is right. The loss does not use the true boxes."""

    @staticmethod
    def loss(result: Localisation, boxes: Tensor) -> Tensor:
        """The hinge, summed over images and starts."""
        return result.hinge.sum()

    @staticmethod
    def right(result: Localisation, boxes: Tensor) -> Tensor:
        """(B, 1) bool: whether each window has an IoU greater than 0.5 with the digit's box."""
        return (overlap(windows(result.theta), boxes) > FOUND)[:, None]


def windows(theta: Tensor) -> Tensor:
    """The windows (B, 4) = x0, y0, x1, y1 of theta (B, 3) = s, tx, ty."""
    side, centre = theta[:, :1], theta[:, 1:]
    return torch.cat([centre - side, centre + side], 1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) of each box of a (B, 4) with the same row of b (B, 4)."""
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    return common / (sum(areas) - common)


class Localiser(nn.Module):
    """f_loc of one class: conv 9x9, stride 4 - max-pool 2 - FC - FC - regression of 3; images (B, 1, H, W) to (B, 3).

    Paper: silent on initial weights. We: He et al.'s, and zero for the regression. Paper: no normalisation. We:
    normalise the features over the batch, and give the regression of the window's place no bias. So the windows of a
    batch stand in the middle on average, and only its image moves a window. Otherwise many windows end in a corner that
    the digit seldom reaches: the crops there are all alike, so the loss has a minimum there too.
    """

    def __init__(self, canvas: int, filters: int, features: int):
        super().__init__()
        side = ((canvas - 9) // 4 + 1) // 2
        self.body = nn.Sequential(
            nn.Conv2d(1, filters, 9, stride=4),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(filters * side**2, features),
            nn.ReLU(inplace=True),
            nn.Linear(features, features),
            nn.ReLU(inplace=True),
        )
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.side = nn.Linear(features, 1)
        self.place = nn.Linear(features, 2, bias=False)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # each has one
        for parameter in (self.side.weight, self.side.bias, self.place.weight):
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.body(images))
        return torch.cat([self.side(features), self.place(features)], 1)


class Colocaliser(nn.Module):
    """Attention transformers, `starts` for the images of each class, before one frozen classifier.

    The classes are separate problems: an image is seen by the localisation networks of its class only and paired with
    images of its class only, and the losses are summed. So each class is trained as it would be alone.

    So are the starts of a class: localisation networks with other initial weights, for the same images and the same
    places of random patches. After the first `race` batches only the start with the least loss goes on: the mean hinge
    of the last hundred batches or so chooses, not the true boxes. Before that, evaluation uses the best until then.

    Args:
        canvas: side of the images in pixels.
        crop: side of a window's crop in pixels.
        margin: of the hinge.
        start: side of the window at the start, as a fraction of the image's side.
        smallest: side of the smallest window, in the same unit. Windows of size zero would show the same everywhere.
        starts: localisation networks of each class.
        race: training batches after which only the localisation network with the least loss of each class goes on.
        layers: which of the classifier's layers, counted from 1, make up e(.).
        filters: of the classifier.
        localisation: `filters` and `features` of the localisation networks.
        pretrained: the file with the classifier's weights.
    """

    objective = TripletHinge

    def __init__(
        self,
        canvas: int,
        crop: int,
        margin: float,
        start: float,
        smallest: float,
        starts: int,
        race: int,
        layers: list[int],
        filters: int,
        localisation: dict,
        pretrained: str,
    ):
        super().__init__()
        if not 0 < smallest < start < 1:
            raise UserError(
                f"model.smallest={smallest} and model.start={start}: the sides of windows as shares of the image's "
                "side must be between 0 and 1, the first smaller than the second"
            )
        if not layers or not set(layers) <= set(range(1, len(LAYERS) + 1)):
            raise UserError(f"model.layers={list(layers)}: e(.) takes some of the layers 1 to {len(LAYERS)}")
        if crop != DIGIT:
            raise UserError(f"model.crop={crop}: the classifier sees {DIGIT} pixels a side")
        self.crop, self.margin, self.smallest, self.race = crop, margin, smallest, race
        self.layers = [LAYERS[layer - 1] for layer in layers]
        self.pretrained = pretrained
        share = (start - smallest) / (1 - smallest)
        self.start = math.log(share / (1 - share))
        self.attention = Attention()
        self.transformers = nn.ModuleList(
            Localiser(canvas, localisation["filters"], localisation["features"]) for _ in range(CLASSES * starts)
        )
        is_race = starts > 1  # else there is nothing to choose, nor to keep in checkpoints
        self.hinges: Tensor  # each localisation network's running hinge in training: (CLASSES, starts)
        self.register_buffer("hinges", torch.zeros(CLASSES, starts), persistent=is_race)
        self.batches: Tensor  # of training, until now
        self.register_buffer("batches", torch.zeros((), dtype=torch.long), persistent=is_race)
        self.classifier = cnn(DIGIT, filters, CLASSES).requires_grad_(False)

    def load_pretrained(self) -> str:
        """Read the classifier's weights. Returns the file's name and digest. Raises UserError if there are none."""
        path = Path(self.pretrained)
        remedy = "run `python -m stn.pretrain data=mnist_ts model=cnn budget=quick`"
        try:
            raw = path.read_bytes()
            with np.load(path) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            self.classifier.load_state_dict(weights)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {remedy}") from None
        except (*DAMAGED, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} does not hold a classifier with this model.filters ({reason}): {remedy}") from None
        return f"{path.name} (sha256 {hashlib.sha256(raw).hexdigest()[:8]})"

    def forward(self, views: Views | Tensor) -> Localisation:
        if isinstance(views, Tensor):  # images alone: for the count of multiply-adds
            views = Views(views, torch.zeros(views.shape[0], dtype=torch.long), torch.zeros(views.shape[0], 2))
        if self.training:
            networks = self.trained[views.classes]
            views = Views(*(part.repeat_interleave(networks.shape[1], 0) for part in views))
            networks = networks.flatten()
        else:
            networks = self.kept[views.classes]
        theta = self.theta(views, networks)
        crops = self.embedded(bilinear(views.images, self.attention.grid(theta, (self.crop, self.crop))))
        patches = self.embedded(self.patches(views, theta))
        hinge = self.hinge(crops, patches, networks)
        if self.training:
            self._compare(hinge.detach(), networks)
        return Localisation(theta, hinge)

    @property
    def kept(self) -> Tensor:
        """Each class's localisation network with the least running hinge: (CLASSES,) indices of `transformers`."""
        return self._networks().gather(1, self.hinges.argmin(1, keepdim=True))[:, 0]

    @property
    def trained(self) -> Tensor:
        """Each class's localisation networks that are trained: (CLASSES, S) indices; after the race (CLASSES, 1)."""
        return self.kept[:, None] if self.batches >= self.race else self._networks()

    def _networks(self) -> Tensor:
        return torch.arange(self.hinges.numel(), device=self.hinges.device).view_as(self.hinges)

    def _compare(self, hinge: Tensor, networks: Tensor) -> None:
        """Move each running hinge a hundredth of the way to that of this batch.

        At the end of the race those of the losers become infinite, so that the choice is final.
        """
        sums, counts = hinge.new_zeros(2, self.hinges.numel())
        sums.index_add_(0, networks, hinge)
        counts.index_add_(0, networks, torch.ones_like(hinge))
        means = (sums / counts.clamp_min(1)).view_as(self.hinges)
        seen = counts.view_as(self.hinges) > 0
        self.hinges.copy_(torch.where(seen, self.hinges.lerp(means, 0.01), self.hinges))
        self.batches += 1
        if self.batches == self.race:
            self.hinges.masked_fill_(self._networks() != self.kept[:, None], torch.inf)

    def theta(self, views: Views, networks: Tensor | None = None) -> Tensor:
        """The windows' theta (B, 3) = s, tx, ty, float32, from each image's localisation network.

        `networks` (B,) are indices of `transformers`; None takes those kept for the images' classes.

        Paper: the regression gives theta. We: a sigmoid bounds the size, and a tanh keeps the window inside the image.
        Windows outside the image would show black: their crops are all alike, which minimises the loss.
        """
        images = views.images
        networks = self.kept[views.classes] if networks is None else networks
        with full_precision(images):
            raw = images.new_zeros(images.shape[0], 3)
            for k, localiser in enumerate(self.transformers):
                indices = (networks == k).nonzero()[:, 0]
                if len(indices):
                    raw = raw.index_copy(0, indices, localiser(images[indices]))
            side = self.smallest + (1 - self.smallest) * torch.sigmoid(self.start + raw[:, :1])
            return torch.cat([side, (1 - side) * torch.tanh(raw[:, 1:])], 1)

    def patches(self, views: Views, theta: Tensor) -> Tensor:
        """I^rand (B, 1, crop, crop): a patch of each image, as large as its window, at a random place in the image.

        The gradient passes through the patch's size too. Without that gradient the windows grow, because large windows
        and large patches both contain the digit.
        """
        side = theta[:, :1]
        theta = torch.cat([side, (1 - side) * views.places], 1)
        return bilinear(views.images, self.attention.grid(theta, (self.crop, self.crop)))

    def embedded(self, crops: Tensor) -> Tensor:
        """e(.), (B, D): each layer's activations normalised, so that the layers have equal weight and |e|^2 = 1.

        Paper: concatenates the activations; margin 1. We: normalise first. The squared distances of our raw activations
        are in the thousands, where a margin of 1 has no effect, and a crop with little ink would be close to all
        others.
        """
        parts = []
        for i, layer in enumerate(self.classifier):
            crops = F.relu(crops) if isinstance(layer, nn.ReLU) else layer(crops)
            if i in self.layers:
                parts.append(F.normalize(crops.flatten(1).float(), dim=1))
        return torch.cat(parts, 1) / math.sqrt(len(parts))

    def hinge(self, crops: Tensor, patches: Tensor, groups: Tensor) -> Tensor:
        """The mean hinge (B,) of each crop over all others of its group in the batch; 0 if there are none."""
        with full_precision(crops):
            patch_distances = (crops - patches).square().sum(1, keepdim=True)
            order = groups.argsort(stable=True)
            sizes = groups.unique(return_counts=True)[1].tolist()
            hinges = []
            for alike, different in zip(crops[order].split(sizes), patch_distances[order].split(sizes), strict=True):
                gram = alike @ alike.T
                norms = gram.diagonal()
                pair_distances = (norms[:, None] + norms - 2 * gram).clamp_min(0)
                others = 1 - torch.eye(len(alike), device=gram.device)
                of_pairs = F.relu(pair_distances - different + self.margin) * others
                hinges.append(of_pairs.sum(1) / max(len(alike) - 1, 1))
            return torch.cat(hinges)[order.argsort()]

    def seen(self, views: Views) -> Tensor:
        """The windows' crops (B, 1, crop, crop)."""
        return bilinear(views.images, self.attention.grid(self.theta(views), (self.crop, self.crop)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformers)

    def thetas(self, views: Views) -> dict[str, Tensor]:
        """`theta` (B, 3) of each image's window."""
        return {"theta": self.theta(views)}


def network(model, data) -> Colocaliser:
    """The network of a model config for the canvas of a data config."""
    return Colocaliser(
        canvas=data.canvas,
        localisation=dict(model.localisation),
        layers=list(model.layers),
        **{
            name: model[name]
            for name in ("crop", "margin", "start", "smallest", "starts", "race", "filters", "pretrained")
        },
    )

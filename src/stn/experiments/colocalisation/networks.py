"""Co-localisation (paper, appendix A.2): windows learned from nothing but that images show the same kind of thing.

For two images n and m of one kind, the crop I^T that the transformer takes of each, and a patch I^rand of n as large as
its window at a random place, the loss is the hinge

    max(0, |e(I_n^T) - e(I_m^T)|^2 - |e(I_n^T) - e(I_n^rand)|^2 + margin)

with e(.) the activations of the layers of a trained and frozen classifier of digits. Frames as in
`stn.geometry.transforms`.
"""

import hashlib
import math
import zipfile
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
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Attention, full_precision

FOUND = 0.5  # a window has found the digit when their IoU is greater (paper)
LAYERS = (2, 5, 7)  # where in `cnn` the layers end: the two convolutions after pooling and ReLU, and the scores


class Found(NamedTuple):
    """What a co-localiser says of B images: `theta` (B, 3) of the windows, and the mean `hinge` (B,) over partners."""

    theta: Tensor
    hinge: Tensor


class Colocalisation:
    """The objective: the triplet hinge to learn by, and IoU to be right by. The true boxes take no part in the loss."""

    @staticmethod
    def loss(result: Found, boxes: Tensor) -> Tensor:
        """The hinge, summed over images."""
        return result.hinge.sum()

    @staticmethod
    def right(result: Found, boxes: Tensor) -> Tensor:
        """(B, 1) bool: whose window has an IoU greater than 0.5 with the digit's box."""
        return (overlap(windows(result.theta), boxes) > FOUND)[:, None]


def windows(theta: Tensor) -> Tensor:
    """The windows (B, 4) = x0, y0, x1, y1 of theta (B, 3) = s, tx, ty."""
    side, centre = theta[:, :1], theta[:, 1:]
    return torch.cat([centre - side, centre + side], 1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) of boxes (B, 4) with boxes (B, 4)."""
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    return common / (sum(areas) - common)


class Localiser(nn.Module):
    """f_loc of one class: conv 9x9, stride 4 - max-pool 2 - FC - FC - regression of 3; images (B, 1, H, W) to (B, 3).

    He et al.'s weights, and the regression starts at zero (paper: silent on both). Features are normalised over the
    batch, and what places a window has no bias (paper: neither). So windows stand in the middle on average and can
    only go where their image sends them: without it many end in one corner, which the digit seldom reaches, and that
    crops without any digit are all alike is where the loss has a minimum too.
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
    """Ten attention transformers, one for the images of each class, before one frozen classifier.

    The classes are problems of their own: an image reaches its own class's localisation network only, is paired with
    images of its class only, and losses add up. So ten are trained at once as each would be alone.

    Args:
        canvas: side of the images in pixels.
        crop: side of what a window shows, in pixels.
        margin: of the hinge.
        start: side of the window at the start, in sides of the image.
        smallest: side of the smallest window, likewise. A window of no size would show the same everywhere.
        layers: which of the classifier's layers, counted from 1, make up e(.).
        filters: of the classifier.
        localisation: its `filters` and `features`.
        pretrained: the file that holds the classifier's weights.
    """

    objective = Colocalisation

    def __init__(
        self,
        canvas: int,
        crop: int,
        margin: float,
        start: float,
        smallest: float,
        layers: list[int],
        filters: int,
        localisation: dict,
        pretrained: str,
    ):
        super().__init__()
        if not 0 < smallest < start < 1:
            raise UserError(
                f"model.smallest={smallest} and model.start={start}: sides of windows in sides of the image, the first "
                "the smaller, both between 0 and 1"
            )
        if not layers or not set(layers) <= set(range(1, len(LAYERS) + 1)):
            raise UserError(f"model.layers={list(layers)}: e(.) takes some of the layers 1 to {len(LAYERS)}")
        if crop != DIGIT:
            raise UserError(f"model.crop={crop}: the classifier sees {DIGIT} pixels a side")
        self.crop, self.margin, self.smallest = crop, margin, smallest
        self.layers = [LAYERS[layer - 1] for layer in layers]
        self.pretrained = pretrained
        share = (start - smallest) / (1 - smallest)
        self.start = math.log(share / (1 - share))
        self.attention = Attention()
        self.transformers = nn.ModuleList(
            Localiser(canvas, localisation["filters"], localisation["features"]) for _ in range(CLASSES)
        )
        self.classifier = cnn(DIGIT, filters, CLASSES).requires_grad_(False)

    def load_pretrained(self) -> str:
        """Read the classifier's weights. Returns what the record says of them; UserError if they are not there."""
        path = Path(self.pretrained)
        mend = "run `python -m stn.pretrain data=mnist_ts model=cnn budget=quick`"
        try:
            raw = path.read_bytes()
            with np.load(path) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            self.classifier.load_state_dict(weights)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {mend}") from None
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} holds no classifier of model.filters here ({reason}): {mend}") from None
        return f"{path.name} (sha256 {hashlib.sha256(raw).hexdigest()[:8]})"

    def forward(self, views: Views | Tensor) -> Found:
        if isinstance(views, Tensor):  # bare images, on which multiply-adds are counted
            views = Views(views, torch.zeros(views.shape[0], dtype=torch.long), torch.zeros(views.shape[0], 2))
        theta = self.theta(views)
        crops = self.embedded(bilinear(views.images, self.attention.grid(theta, (self.crop, self.crop))))
        patches = self.embedded(self.patches(views, theta))
        return Found(theta, self.hinge(crops, patches, views.classes))

    def theta(self, views: Views) -> Tensor:
        """The windows' theta (B, 3) = s, tx, ty, by each class's own localisation network; float32.

        Paper: the regression gives theta. We: through a sigmoid for the size, and a tanh that keeps the window inside
        the image. One that leaves it sees black, all black crops are alike, and the loss would call that found.
        """
        images, classes = views.images, views.classes
        with full_precision(images):
            raw = images.new_zeros(images.shape[0], 3)
            for k, localiser in enumerate(self.transformers):
                indices = (classes == k).nonzero()[:, 0]
                if len(indices):
                    raw = raw.index_copy(0, indices, localiser(images[indices]))
            side = self.smallest + (1 - self.smallest) * torch.sigmoid(self.start + raw[:, :1])
            return torch.cat([side, (1 - side) * torch.tanh(raw[:, 1:])], 1)

    def patches(self, views: Views, theta: Tensor) -> Tensor:
        """I^rand (B, 1, crop, crop): of each image a patch as large as its window, at a random place inside it.

        Its size is the window's and learns with it: of two large patches both show the digit, so that a window grows
        when this gradient is left out.
        """
        side = theta[:, :1]
        theta = torch.cat([side, (1 - side) * views.places], 1)
        return bilinear(views.images, self.attention.grid(theta, (self.crop, self.crop)))

    def embedded(self, crops: Tensor) -> Tensor:
        """e(.), (B, D): each layer's activations at unit length, so that layers weigh alike and |e|^2 = 1.

        Paper: the activations concatenated, margin 1. Ours have squared distances in the thousands as they come, where
        a margin of 1 is none, and a faint crop of next to nothing would be near to every other.
        """
        parts = []
        for i, layer in enumerate(self.classifier):
            crops = F.relu(crops) if isinstance(layer, nn.ReLU) else layer(crops)
            if i in self.layers:
                parts.append(F.normalize(crops.flatten(1).float(), dim=1))
        return torch.cat(parts, 1) / math.sqrt(len(parts))

    def hinge(self, crops: Tensor, patches: Tensor, classes: Tensor) -> Tensor:
        """The mean hinge (B,) of each image over all others of its class in the batch; 0 without any."""
        with full_precision(crops):
            gram = crops @ crops.T
            norms = gram.diagonal()
            apart = (norms[:, None] + norms - 2 * gram).clamp_min(0)
            random = (crops - patches).square().sum(1, keepdim=True)
            partners = (classes[:, None] == classes).fill_diagonal_(False)
            hinge = F.relu(apart - random + self.margin) * partners
            return hinge.sum(1) / partners.sum(1).clamp_min(1)

    def seen(self, views: Views) -> Tensor:
        """What the windows show: (B, 1, crop, crop)."""
        return bilinear(views.images, self.attention.grid(self.theta(views), (self.crop, self.crop)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return group_parameters(self, localisation=self.transformers)

    def thetas(self, views: Views) -> dict[str, Tensor]:
        """`theta` (B, 3) of each image's window."""
        return {"theta": self.theta(views)}


def network(model, data) -> Colocaliser:
    """The network that a model config describes on the canvas of a data config."""
    return Colocaliser(
        canvas=data.canvas,
        localisation=dict(model.localisation),
        layers=list(model.layers),
        **{name: model[name] for name in ("crop", "margin", "start", "smallest", "filters", "pretrained")},
    )

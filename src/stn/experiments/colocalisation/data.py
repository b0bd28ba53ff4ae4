"""Images for co-localisation (paper, appendix A.2): each has one digit at a random place, and labels are not used.

There is one stored set, with `data.images` images of each class. A run learns and is tested on this set, as in the
paper. The classes alternate: image i is of class i mod 10. The digits are MNIST's test digits, on which no classifier
of the project is trained. With `data.digits=validation` they are validation digits, on which settings are chosen.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.draws import generator
from stn.data.stored import read_set, sha256, writing_sets
from stn.errors import UserError
from stn.experiments.mnist.data import fetch, undistorted
from stn.experiments.mnist.distortions import Clutter

__all__ = ["DOOR", "fetch", "source", "store", "stored_folder"]
DOOR = "distort"  # `python -m stn.distort` stores its sets

CLASSES = 10
DIGIT = 28  # side of an MNIST image in pixels
SHOWN = 2  # images of each class that the report shows


class Views(NamedTuple):
    """The input of a co-localiser: B images, their classes, and the places of their random patches.

    Attributes:
        images: (B, 1, canvas, canvas) in [0, 1].
        classes: (B,) int64. They tell which images show the same class and choose the localisation network. The network
            does not learn which digit a class is.
        places: (B, 2) in [-1, 1], the centre of each image's random patch: at -1 and 1 the patch touches the edges.
    """

    images: Tensor
    classes: Tensor
    places: Tensor


def distortion(data: DictConfig) -> Clutter:
    """The digit at a random place; in TC also clutter."""
    return Clutter(data.canvas, DIGIT, data.patches, data.patch_side)


def boxes(parameters: Tensor, canvas: int) -> Tensor:
    """The digits' boxes (n, 4) = x0, y0, x1, y1 in the frame [-1, 1] of the image, from `Clutter`'s parameters.

    Paper: "the digit's bounding box". We: MNIST's 28 x 28 frame, not the ink. Windows are square, so the best window on
    the ink of an upright 1, 4 x 20 pixels, has an IoU of only 0.2, but the paper finds every 1 of T.
    """
    corner = parameters[:, :2].float()
    return 2 * torch.cat([corner, corner + DIGIT], 1) / canvas - 1


def store(data: DictConfig, scratch: Path) -> dict:
    """Draw the images and store them. Returns the contents of `sets.json`.

    Drawn in float64 on the CPU and rounded to uint8, so the bytes are the same on every machine. The set is written to
    `scratch` and moved when complete.
    """
    split, warp = data.digits.name, distortion(data)
    digits = undistorted(data)[split]
    order = torch.randperm(len(digits.labels), generator=generator(data.seed, f"{split} digits"))
    of_class = [order[digits.labels[order] == k][: data.images] for k in range(CLASSES)]
    fewest = min(map(len, of_class))
    if fewest < data.images:
        raise UserError(f"data.images={data.images}: one class has only {fewest} {split} digits; choose fewer")
    indices = torch.stack(of_class, 1).flatten()
    parameters = warp.draw(len(indices), generator(data.seed, f"{split} places"), torch.float64)
    images = warp.render(parameters.double(), digits.images[indices], digits.images)
    images = (images[:, 0] * 255).round().to(torch.uint8).numpy()
    about = {
        "distortion": repr(warp),
        "columns": warp.names,
        "seed": data.seed,
        "part": data.part,
        "sets": {split: {"images": len(images), "sha256": sha256(images, parameters.numpy())}},
    }
    with writing_sets(stored_folder(data), scratch, about) as work:
        np.save(work / f"{split}_images.npy", images)
        np.save(work / f"{split}_parameters.npy", parameters.numpy())
    return about


def stored_folder(data: DictConfig) -> Path:
    """The folder of the images. Validation digits have their own folder, so that DVC's output is not changed."""
    return Path(data.stored if data.digits.name == "test" else f"{data.stored}_{data.digits.name}")


def load_stored(data: DictConfig) -> tuple[Tensor, Tensor]:
    """The stored images (n, canvas, canvas) uint8 and parameters (n, D). Raises UserError if missing or damaged."""
    folder, split = stored_folder(data), data.digits.name
    option = "" if split == "test" else f" data.digits={split}"
    count = CLASSES * data.images

    def load(about: dict, facts: dict) -> list[np.ndarray]:
        if facts["images"] != count:
            raise ValueError(f"it holds {facts['images']} images, not {count}")
        return [np.load(folder / f"{split}_{name}.npy") for name in ("images", "parameters")]

    images, parameters = read_set(
        folder,
        split,
        {"distortion": repr(distortion(data)), "seed": data.seed},
        f"python -m stn.distort data={data.name}{option}",
        load,
        lambda stored, facts: sha256(*stored) == facts["sha256"],
    )
    return torch.from_numpy(images), torch.from_numpy(parameters)


class ColocalisationSource:
    """The data source. Batches are (`Views`, true boxes (B, 4)); the boxes only measure which windows are right.

    The training, validation and test split are the same images: within a run nothing is chosen by their results. All
    classes are learned at once, so a training batch of size B holds B images of each class, 10 B in all.
    """

    chunk = 1000  # images of a validation or test batch: the paper's whole set, so that the loss has all pairs
    images_per_pick = CLASSES  # one image of each class
    traced = CLASSES * SHOWN  # the first images, whose theta is recorded during training

    if TYPE_CHECKING:  # set by `load`
        images: Tensor
        boxes: Tensor
        places: Tensor

    def __init__(self, data: DictConfig):
        self.data = data
        self.shape = (1, data.canvas, data.canvas)  # of the network's input
        self.images = None  # type: ignore[assignment]

    def load(self, split: str) -> None:
        """Read the set. Raises UserError if it is missing or damaged."""
        if self.images is None:
            self.images, parameters = load_stored(self.data)
            self.boxes = boxes(parameters, self.data.canvas)
            self.places = _places(len(self.images), generator(self.data.seed, "patches"))

    def count(self, split: str) -> int:
        return self.data.images if split == "train" else len(self.images)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Views, Tensor]:
        """The images `index` (B,). The random patch of an image is at the same place in every call."""
        return self._views(index, self.places[index].to(device), device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Views, Tensor]:
        """The images `index` (B,) of every class; they are `part` of the global batch of `size`."""
        if len(index) < 2:
            raise UserError(f"budget.batch_size={size} leaves a single image of one class, but pairs are needed")
        places = _places(CLASSES * size, draws).unflatten(0, (size, CLASSES))[part]
        all_classes = CLASSES * index[:, None] + torch.arange(CLASSES)
        return self._views(all_classes.flatten(), places.flatten(0, 1), device)

    def _views(self, index: Tensor, places: Tensor, device: torch.device) -> tuple[Views, Tensor]:
        if self.images.device != device:
            self.images, self.boxes = self.images.to(device), self.boxes.to(device)
        images = self.images[index, None].float() / 255
        return Views(images, index.to(device) % CLASSES, places), self.boxes[index]

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report: classes (n,) and box (n, 4) of all images, and two images of each class.

        example_input (20, canvas, canvas) and example_crop (20, 28, 28) uint8: these images and their windows' crops.
        """
        device = next(network.parameters()).device
        views, _ = self.batch("test", torch.arange(self.traced), device)
        crops = network.seen(views).float()[:, 0].clamp(0, 1)  # type: ignore[operator]  # a `Colocaliser`
        return {
            "classes": (torch.arange(len(self.images)) % CLASSES).to(torch.uint8).numpy(),
            "box": self.boxes.cpu().numpy(),
            "example_input": self.images[: self.traced].cpu().numpy(),
            "example_crop": (crops * 255).round().to(torch.uint8).cpu().numpy(),
        }


def source(data: DictConfig) -> ColocalisationSource:
    """The data source of Table 5."""
    return ColocalisationSource(data)


def _places(n: int, draws: torch.Generator) -> Tensor:
    return 2 * torch.rand(n, 2, generator=draws, device=draws.device) - 1

"""Birds as a run feeds on them: the stored images, and batches of crops of them (paper, section 4.3)."""

import hashlib
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.download import fetch_birds
from stn.data.stored import read_set
from stn.experiments.cub.archive import StoredCub, check, fault, open_set, recipe, store
from stn.experiments.cub.regions import REGIONS, SCALE
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Translation

DOOR = "crop"  # `python -m stn.crop` stores its sets

EXAMPLES, SHOWN = 8, 128  # test images in a record, and their side in pixels
__all__ = ["DOOR", "CubSource", "fetch", "source", "store"]


def fetch(data: DictConfig) -> list[Path]:
    """Bring the archive of birds, or a mirror's folder, to `data.raw`. Returns it."""
    return fetch_birds(Path(data.raw), partial(fault, classes=data.classes))


def load_stored(data: DictConfig, split: str) -> tuple[StoredCub, list[str], list[str]]:
    """One of the stored sets, the names of the classes and those of the parts, both in words.

    A missing or damaged one is a UserError that names the command that makes it.
    """
    folder = Path(data.stored)

    def load(about: dict, facts: dict) -> tuple[StoredCub, list[str], list[str]]:
        classes = [name.partition(".")[2].replace("_", " ") for name in about["classes"]]
        return open_set(folder, split), classes, list(about["part_names"])

    def is_whole(stored: tuple[StoredCub, list[str], list[str]], facts: dict) -> bool:
        birds = stored[0]
        return (
            len(birds.pixels) == facts["bytes"] == birds.sizes.prod(1).sum() * 3
            and hashlib.sha256((folder / f"{split}.npz").read_bytes()).hexdigest() == facts["facts"]
            and birds.spot() == facts["spot"]
        )

    return read_set(folder, split, recipe(data), f"python -m stn.crop data={data.name}", load, is_whole)


class CubSource:
    """What a run feeds on. Batches are (images (B, 3, canvas, canvas) float in [0, 1], labels (B,)), on the device.

    Training crops stand anywhere in the stored image, and half of them are mirrored; the others are central.

    With `data.annotated` an image is two windows of half its side, (B, 2, 3, half, half): one at the mean of the parts
    of the head, one at that of the body's, both within the image. That is an oracle: what places of windows can gain.
    """

    chunk = 64  # images of a validation or test batch: small enough for four trunks at 448 pixels
    images_per_pick = 1  # of a training batch
    traced = 6  # validation images whose windows are recorded as training goes on

    def __init__(self, data: DictConfig):
        check(data)
        self.data = data
        self.shape = (2, 3, data.canvas // 2, data.canvas // 2) if data.annotated else (3, data.canvas, data.canvas)
        self.sets: dict[str, StoredCub] = {}
        self.classes: list[str] = []
        self.part_names: list[str] = []

    def load(self, split: str) -> None:
        """Open `train`, `validation` or `test`; a UserError if it is missing or damaged."""
        if split not in self.sets:
            self.sets[split], self.classes, self.part_names = load_stored(self.data, split)

    def count(self, split: str) -> int:
        return len(self.sets[split].labels)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The central crops of the images `index` (B,) of a split."""
        index = index.cpu().numpy()
        return self._crops(split, index, self._centres(split, index), device, None), self._labels(split, index, device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training images `index` (B,): random crops, mirrored or not; `part` says which B of the `size` they are.

        Paper: random crops and horizontal flips, without their odds. We: every place alike, and one half.
        """
        index = index.cpu().numpy()
        drawn = torch.rand(3, size, generator=draws, device=draws.device)[:, part]
        down, right, mirrored = drawn.cpu().double().numpy()
        places = self.sets["train"].sizes[index] - self.data.canvas + 1
        corners = (np.stack([down, right], 1) * places).astype(int)
        return self._crops("train", index, corners, device, mirrored < 0.5), self._labels("train", index, device)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the report shows of the windows on the test set of n images; nothing for a network without any.

        example_input (E, 128, 128, 3), example_label, example_said (E,), example_name, example_said_name (E,): test
        images spread evenly, their class, and what the network says. example_windows (E, N, 4, 2), window_all (n, N,
        4, 2): the corners of the N windows. parts (n, 15, 2), part_names (15,): where a bird's parts are, NaN where
        not visible. Windows and parts are in the frame of the central crop. trace_input (T, 128, 128, 3): the
        validation images whose windows are recorded as training goes on.
        """
        if not any(name.startswith("theta") for name in arrays):
            return {}
        device, n = next(network.parameters()).device, self.count("test")
        everything = torch.arange(n).split(self.chunk)
        windows = [network.windows(self.batch("test", some, device)[0]).half().cpu() for some in everything]  # type: ignore[operator]
        windows = torch.cat(windows).numpy()
        chosen = torch.linspace(0, n - 1, min(EXAMPLES, n)).round().long()
        images, labels = self.batch("test", chosen, device)
        self.load("validation")
        traced, _ = self.batch("validation", torch.arange(min(self.traced, self.count("validation"))), device)
        label, said = labels.cpu().numpy(), network(images).argmax(-1).cpu().numpy()
        names = np.array(self.classes)
        return {
            "trace_input": _small(traced),
            "example_input": _small(images),
            "example_label": label,
            "example_said": said,
            "example_name": names[label],
            "example_said_name": names[said],
            "example_windows": windows[chosen.numpy()],
            "window_all": windows,
            "parts": self._parts_in_crop("test").astype(np.float16),
            "part_names": np.array(self.part_names),
        }

    def _parts_in_crop(self, split: str) -> np.ndarray:
        """(n, 15, 2): x and y of the parts in the frame of the central crop, NaN where not visible there."""
        everything = np.arange(self.count(split))
        return self._parts(split, everything, self._centres(split, everything))

    def _parts(self, split: str, index: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """(B, 15, 2): x and y of the parts of the images `index` in the frame of their crops at `corners` (y, x)."""
        stored, sizes = self.sets[split], self.sets[split].sizes[index]
        parts = stored.parts[index]
        pixels = (parts[..., :2] + 1) / 2 * sizes[:, None, ::-1] - corners[:, None, ::-1]
        placed = 2 * pixels / self.data.canvas - 1
        visible = (parts[..., 2] > 0) & (np.abs(placed) <= 1).all(-1)
        return np.where(visible[..., None], placed, np.nan)

    def _centres(self, split: str, index: np.ndarray) -> np.ndarray:
        """(B, 2) (y, x): the upper left corners of the central crops."""
        return (self.sets[split].sizes[index] - self.data.canvas) // 2

    def _crops(
        self, split: str, index: np.ndarray, corners: np.ndarray, device: torch.device, mirrored: np.ndarray | None
    ) -> Tensor:
        """(B, 3, canvas, canvas) float in [0, 1], channels last: of the stored images only the crops are read."""
        stored, side = self.sets[split], self.data.canvas
        crops = torch.empty(len(index), side, side, 3, dtype=torch.uint8)
        for row, (i, (y, x)) in enumerate(zip(index, corners, strict=True)):
            crop = stored.image(i)[y : y + side, x : x + side]
            crops.numpy()[row] = crop[:, ::-1] if mirrored is not None and mirrored[row] else crop
        images = crops.to(device).permute(0, 3, 1, 2).div(255)
        return self._annotated(images, split, index, corners, mirrored) if self.data.annotated else images

    def _annotated(
        self, images: Tensor, split: str, index: np.ndarray, corners: np.ndarray, mirrored: np.ndarray | None
    ) -> Tensor:
        """(B, 2, 3, canvas / 2, canvas / 2): the windows at head and body of crops (B, 3, canvas, canvas)."""
        parts = self._parts(split, index, corners)
        if mirrored is not None:
            parts[mirrored, :, 0] *= -1
        named = [np.isin(self.part_names, names) for names in REGIONS.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing, where no part of a region is visible
            everything = np.nanmean(parts, 1, keepdims=True)
            centres = np.stack([np.nanmean(parts[:, region], 1) for region in named], 1)
        centres = np.where(np.isnan(centres), everything, centres)  # the bird's, then the middle of the image
        theta = torch.from_numpy(np.nan_to_num(centres).clip(SCALE - 1, 1 - SCALE)).to(images)
        size = images.shape[2] // 2, images.shape[3] // 2
        windows = [bilinear(images, Translation(SCALE).grid(theta[:, i], size)) for i in range(theta.shape[1])]
        return torch.stack(windows, 1)

    def _labels(self, split: str, index: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(self.sets[split].labels[index]).to(device)


def _small(images: Tensor) -> np.ndarray:
    """Images (n, 3, H, W) in [0, 1] as (n, 128, 128, 3) uint8."""
    small = F.interpolate(images, (SHOWN, SHOWN), mode="bilinear", antialias=True)
    return (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def source(data: DictConfig) -> CubSource:
    """What the learner of Table 3 feeds on."""
    return CubSource(data)

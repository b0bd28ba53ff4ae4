"""The data source of birds: batches of crops of the stored images (paper, section 4.3)."""

import hashlib
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.download import RemoteFile, copy_folder, download, find_in_mirror
from stn.data.stored import read_set
from stn.experiments.cub.archive import CUB, StoredCub, check, fault, open_set, recipe, store
from stn.experiments.cub.regions import REGIONS, SCALE
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Translation

DOOR = "crop"  # `python -m stn.crop` stores its sets

CUB_URLS = (
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",  # the same file, hosted by fast.ai
)
CUB_MD5, CUB_BYTES = "97eceeb196236b17998738112f37df78", 1_150_585_339

EXAMPLES, SHOWN = 8, 128  # test images in a record, and their side in pixels
__all__ = ["DOOR", "CubSource", "fetch", "source", "store"]


def fetch(data: DictConfig) -> list[Path]:
    """Download CUB-200-2011 to `data.raw`, or copy the folder of a mirror that holds it unpacked. Returns its path."""
    folder = Path(data.raw)
    packed, unpacked, mirror_folder = folder / f"{CUB}.tgz", folder / CUB, find_in_mirror("cub", CUB)
    if not packed.exists():
        if mirror_folder and mirror_folder.with_suffix(".tgz").exists():
            mirror_folder = None  # the archive is preferred: its checksum is known
        find_fault = partial(fault, classes=data.classes)
        copied = copy_folder(unpacked, mirror_folder, find_fault, ("*.txt", "parts/*.txt", "images/*/*"))
        if copied:
            return [copied]
    return [download(RemoteFile(packed.name, CUB_URLS, CUB_MD5, CUB_BYTES), folder, "cub")]


def load_stored(data: DictConfig, split: str) -> tuple[StoredCub, list[str], list[str]]:
    """A stored set, and the names of the classes and of the parts in words.

    Raises UserError, with the command that makes the set, if it is missing or damaged.
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
    """The data source. Batches are (images (B, 3, canvas, canvas) float in [0, 1], labels (B,)), on the device.

    Training crops are at random places in the stored image, and half of them are mirrored. Other crops are central.

    With `data.annotated` an image is two windows of half the side, (B, 2, 3, canvas / 2, canvas / 2): one at the mean
    of the head's parts, one at that of the body's, both within the image. This oracle shows what good places can gain.
    """

    chunk = 64  # images of a validation or test batch: small enough for four trunks at 448 pixels
    images_per_pick = 1  # of a training batch
    traced = 6  # validation images whose windows are recorded during training

    def __init__(self, data: DictConfig):
        check(data)
        self.data = data
        self.shape = (2, 3, data.canvas // 2, data.canvas // 2) if data.annotated else (3, data.canvas, data.canvas)
        self.sets: dict[str, StoredCub] = {}
        self.classes: list[str] = []
        self.part_names: list[str] = []

    def load(self, split: str) -> None:
        """Open `train`, `validation` or `test`. Raises UserError if it is missing or damaged."""
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
        """Random crops, half of them mirrored, of the training images `index` (B,), `part` of the batch of `size`.

        Paper: random crops and horizontal flips, without probabilities. We: uniform places, and flips with
        probability 0.5.
        """
        index = index.cpu().numpy()
        uniform = torch.rand(3, size, generator=draws, device=draws.device)[:, part]
        down, right, mirrored = uniform.cpu().double().numpy()
        places = self.sets["train"].sizes[index] - self.data.canvas + 1
        corners = (np.stack([down, right], 1) * places).astype(int)
        return self._crops("train", index, corners, device, mirrored < 0.5), self._labels("train", index, device)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report on N windows, from the test set of n images; empty without windows.

        Of E evenly spaced test images: example_input (E, 128, 128, 3), example_label and example_name (E,),
        example_said and example_said_name (E,) (the prediction), example_windows (E, N, 4, 2) (the corners of the
        windows). Of all images: window_all (n, N, 4, 2), and parts (n, 15, 2), NaN where not visible. Windows and parts
        are in the frame of the central crop. part_names (15,). trace_input (T, 128, 128, 3): the validation images
        whose windows are recorded during training.
        """
        if not any(name.startswith("theta") for name in arrays):
            return {}
        device, n = next(network.parameters()).device, self.count("test")
        chunks = torch.arange(n).split(self.chunk)
        windows = [network.windows(self.batch("test", chunk, device)[0]).half().cpu() for chunk in chunks]  # type: ignore[operator]
        windows = torch.cat(windows).numpy()
        examples = torch.linspace(0, n - 1, min(EXAMPLES, n)).round().long()
        images, labels = self.batch("test", examples, device)
        self.load("validation")
        traced, _ = self.batch("validation", torch.arange(min(self.traced, self.count("validation"))), device)
        label, predicted = labels.cpu().numpy(), network(images).argmax(-1).cpu().numpy()
        names = np.array(self.classes)
        return {
            "trace_input": _small(traced),
            "example_input": _small(images),
            "example_label": label,
            "example_said": predicted,
            "example_name": names[label],
            "example_said_name": names[predicted],
            "example_windows": windows[examples.numpy()],
            "window_all": windows,
            "parts": self._parts_in_crop("test").astype(np.float16),
            "part_names": np.array(self.part_names),
        }

    def _parts_in_crop(self, split: str) -> np.ndarray:
        """The parts (n, 15, 2) = x, y in the frame of the central crop, NaN where not visible in the crop."""
        all_images = np.arange(self.count(split))
        return self._parts(split, all_images, self._centres(split, all_images))

    def _parts(self, split: str, index: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """The parts (B, 15, 2) = x, y of the images `index` in the frame of their crops at `corners` (B, 2) = y, x."""
        stored, sizes = self.sets[split], self.sets[split].sizes[index]
        parts = stored.parts[index]
        pixels = (parts[..., :2] + 1) / 2 * sizes[:, None, ::-1] - corners[:, None, ::-1]
        in_crop = 2 * pixels / self.data.canvas - 1
        visible = (parts[..., 2] > 0) & (np.abs(in_crop) <= 1).all(-1)
        return np.where(visible[..., None], in_crop, np.nan)

    def _centres(self, split: str, index: np.ndarray) -> np.ndarray:
        """The upper left corners (B, 2) = y, x of the central crops."""
        return (self.sets[split].sizes[index] - self.data.canvas) // 2

    def _crops(
        self, split: str, index: np.ndarray, corners: np.ndarray, device: torch.device, mirrored: np.ndarray | None
    ) -> Tensor:
        """The crops (B, 3, canvas, canvas) float in [0, 1], channels last. Only the crops are read from the disk."""
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
        """The windows (B, 2, 3, canvas / 2, canvas / 2) at head and body of crops (B, 3, canvas, canvas)."""
        parts = self._parts(split, index, corners)
        if mirrored is not None:
            parts[mirrored, :, 0] *= -1
        region_masks = [np.isin(self.part_names, names) for names in REGIONS.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a region without visible parts
            bird_centres = np.nanmean(parts, 1, keepdims=True)
            centres = np.stack([np.nanmean(parts[:, mask], 1) for mask in region_masks], 1)
        centres = np.where(np.isnan(centres), bird_centres, centres)  # else the mean of all parts
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
    """The data source of Table 3."""
    return CubSource(data)

"""The data source of house numbers: batches of the stored crops."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.download import RemoteFile, copy_folder, download, find_in_mirror
from stn.data.stored import read_set
from stn.errors import UserError
from stn.experiments.svhn.archive import DIGITS, LABELS
from stn.experiments.svhn.crops import KINDS, in_frame, recipe, spot, store
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import pixel_centres

DOOR = "crop"  # `python -m stn.crop` stores its sets

SVHN = "http://ufldl.stanford.edu/housenumbers/"
SVHN_IMAGES = {"train": 33_402, "test": 13_068, "extra": 202_353}
SVHN_BYTES = {"train": 404_141_560, "test": 276_555_967, "extra": 1_955_489_752}  # no checksum is published
ELSEWHERE = {  # parts of a source of house numbers that a mirror keeps in another folder
    ("svhn_photos", "extra"): ("svhn_strips", "train"),
    ("svhn_photos", "test"): ("svhn_strips", "test"),
}
LABELLED = {("svhn_photos", "train")}  # folders of a mirror that hold LABELS instead of DIGITS

CHUNK = 500  # batch size for passes over a whole set
EXAMPLES = 8  # test images in figures
__all__ = ["DOOR", "SvhnSource", "fetch", "source", "store"]


def fetch(data: DictConfig) -> list[Path]:
    """Fetch house numbers: `<part>.tar.gz`, or its unpacked folder, of `train`, `test` and, if asked for, `extra`.

    They come to `data.raw`. `data.source` is `svhn` (format 1, whole images), which has an official URL, or a folder of
    the mirror with the same layout, of which some parts lie `ELSEWHERE`. Returns the paths.
    """
    parts = ("train", "test", *(["extra"] if data.extra else []))
    return [_fetch_part(Path(data.raw), data.source.name, part) for part in parts]


def _fetch_part(folder: Path, source: str, part: str) -> Path:
    packed, unpacked, location = folder / f"{part}.tar.gz", folder / part, ELSEWHERE.get((source, part), (source, part))
    if not packed.exists():
        table = LABELS if location in LABELLED else DIGITS
        images = SVHN_IMAGES[part] if source == "svhn" else None
        copied = copy_folder(unpacked, find_in_mirror(*location), partial(_fault, table, images), (table, "*.png"))
        if copied:
            return copied
    if source == "svhn":
        file = RemoteFile(packed.name, (SVHN + packed.name,), None, SVHN_BYTES[part], holds=DIGITS)
        return download(file, folder, source)
    raise UserError(f"{source} has no official URL: set STN_DATA_MIRROR to a folder that holds {'/'.join(location)}")


def _fault(table: str, expected: int | None, folder: Path) -> str | None:
    """What is wrong with a folder of `expected` images (None: any number) and their `table`; None if nothing is."""
    if not (folder / table).is_file():
        return f"holds no {table}"
    n = sum(1 for _ in folder.glob("*.png"))
    if not n:
        return "holds no PNG image"
    return None if expected in (None, n) else f"holds {n} PNG images, not {expected}"


@dataclass
class StoredSvhn:
    """A stored set: images (n, canvas, canvas, 3) uint8, which stay on the disk, labels (n, 5) int64, boxes (n, 4)."""

    images: np.ndarray
    labels: Tensor
    boxes: np.ndarray


def load_stored(data: DictConfig, split: str) -> StoredSvhn:
    """A stored set. Raises UserError, with the command that makes it, if it is missing or damaged."""
    folder = Path(data.stored)
    images, labels, boxes = read_set(
        folder,
        split,
        {"whole": None, **recipe(data)},  # refuses a set of whole images for a recipe without `whole`
        f"python -m stn.crop data={data.name}",
        # Mapped copy-on-write, because torch warns of read-only arrays. Nothing is written.
        lambda about, facts: [np.load(folder / f"{split}_{kind}.npy", mmap_mode="c") for kind in KINDS],
        lambda stored, facts: len(stored[0]) == facts["images"] and spot(*stored) == facts["spot"],
    )
    return StoredSvhn(images, torch.from_numpy(labels.astype(np.int64)), np.asarray(boxes))


class SvhnSource:
    """The data source. Batches are (images (B, 3, side, side) float in [0, 1], labels (B, 5)), on the device.

    Labels are 0 to 9, or 10 for a position without a digit. With `data.centred` each image's mean is subtracted.
    """

    chunk = 1000  # images of a validation or test batch
    images_per_pick = 1  # of a training batch

    def __init__(self, data: DictConfig):
        if data.window is not None and not 0 < data.window <= data.canvas:
            raise UserError(f"data.window={data.window} is not a part of a crop of {data.canvas} pixels")
        self.data = data
        self.side = data.window or data.canvas
        self.shape = (3, self.side, self.side)
        self.sets: dict[str, StoredSvhn] = {}

    def load(self, split: str) -> None:
        """Open `train`, `validation` or `test`. Raises UserError if it is missing or damaged."""
        if split not in self.sets:
            self.sets[split] = load_stored(self.data, split)

    def count(self, split: str) -> int:
        return len(self.sets[split].labels)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stored images `index` (B,) of a split, or their central windows with `data.window`."""
        return self._finished(self._pixels(split, index, device)), self._labels(split, index, device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Augmented random windows of the training images `index` (B,), which are `part` of the batch of `size`."""
        return self._augmented(index, draws, size, part, device, whole_image=True)

    def random_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """As `train_batch`, but with a random window of each image that contains its number: see `data.held`."""
        return self._augmented(index, draws, size, part, device, whole_image=False)

    def _augmented(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device, whole_image: bool
    ) -> tuple[Tensor, Tensor]:
        augment = self.data.augment
        zoom, right, down, contrast, blur = (
            2 * torch.rand(5, size, 1, generator=draws, device=draws.device)[:, part] - 1
        )
        corners = torch.rand(size, 2, generator=draws, device=draws.device)[part]
        corners = (corners * (self.data.canvas - self.side + 1)).long()
        images = self._pixels("train", index, device, corners)
        if augment.scale or augment.shift or not whole_image:
            sides, centres = 1 + augment.scale * zoom, 2 * augment.shift * torch.cat([right, down], 1)  # the side is 2
            if not whole_image:
                uniform = torch.rand(size, 4, generator=draws, device=draws.device)[part]
                window_sides, window_centres = self._held(index, uniform)
                sides, centres = window_sides * sides, window_centres + window_sides * centres
            images = bilinear(images, self._grid(sides.expand(len(index), 2), centres).to(device))
        if augment.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            factor = (1 + augment.contrast * contrast).view(-1, 1, 1, 1).to(device)
            images = torch.lerp(mean, images, factor).clamp(0, 1)
        if augment.blur:
            amount = (augment.blur * (blur + 1) / 2).view(-1, 1, 1, 1).to(device)
            images = torch.lerp(images, _blurred(images), amount)
        return self._finished(images), self._labels("train", index, device)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report, from the test set of n images.

        With K transformers, of N examples (the first eight test images and up to four errors): example_input,
        example_label, example_said (the prediction), example_windows (N, K, 4, 2) (the corners of the windows) and
        example_seen (the last transformer's sample). Of all images: window_all (n, K, 4, 2) and box (n, 4).

        In a set of whole images the numbers stand near the middle. For such a set there are also results on test images
        that are moved at random with the number inside: moved_correct (n,), and moved_said of the first eight. With
        transformers: moved_window_all, moved_box, and moved_input and moved_seen of the first eight.
        """
        transforms = any(name.startswith("theta") for name in arrays)
        moved_arrays = self._moved_evidence(network, transforms) if self.data.whole else {}
        if not transforms:
            return moved_arrays
        test_set, device = self.sets["test"], next(network.parameters()).device
        all_images = torch.arange(self.count("test"))
        windows = [network.windows(self.batch("test", chunk, device)[0]) for chunk in all_images.split(CHUNK)]  # type: ignore[operator]
        windows = torch.cat(windows).half().cpu().numpy()
        wrong = np.flatnonzero(~arrays["correct"])
        first_images = all_images[:EXAMPLES]
        examples = torch.cat([first_images, torch.from_numpy(wrong[wrong >= len(first_images)][:4])])
        pixels = self._pixels("test", examples, device)
        images = self._finished(pixels)
        samples = self._coloured(network.seen(images).float(), pixels)  # type: ignore[operator]
        window = (self.data.canvas - self.side) // 2
        window = np.array([window, window, window + self.side, window + self.side])
        tensors = {
            "example_input": _shown(pixels),
            "example_label": test_set.labels[examples].to(torch.uint8),
            "example_said": network(images).argmax(-1).to(torch.uint8),
            "example_seen": _shown(samples),
        }
        return {
            **{name: value.cpu().numpy() for name, value in tensors.items()},
            "example_windows": windows[examples.numpy()],
            "window_all": windows,
            "box": in_frame((test_set.boxes + 1) / 2 * self.data.canvas, window).astype(np.float16),
            **moved_arrays,
        }

    def _moved_evidence(self, network: nn.Module, transforms: bool) -> dict[str, np.ndarray]:
        """The arrays of `evidence` on moved test images. The random moves are the same for every network."""
        boxes, device = torch.from_numpy(np.array(self.sets["test"].boxes)).float(), next(network.parameters()).device
        draws = torch.rand(len(boxes), 2, generator=torch.Generator().manual_seed(0))
        # The largest moves of each number: left and up, and right and down. A number larger than the image stays.
        lowest, highest = (-1 - boxes[:, :2]).clamp(max=0), (1 - boxes[:, 2:]).clamp(min=0)
        distances = lowest + (highest - lowest) * draws
        correct, windows = [], []
        examples: dict[str, Tensor] = {}
        for chunk in torch.arange(len(boxes)).split(CHUNK):
            pixels = self._pixels("test", chunk, device)
            pixels = bilinear(pixels, self._grid(torch.ones(len(chunk), 2), -distances[chunk]).to(device))
            images = self._finished(pixels)
            answers = network(images).argmax(-1)
            correct.append((answers == self._labels("test", chunk, device)).all(1))
            if transforms:
                windows.append(network.windows(images).half())  # type: ignore[operator]
            if not examples:
                examples["moved_said"] = answers[:EXAMPLES].to(torch.uint8)
                if transforms:
                    samples = network.seen(images[:EXAMPLES]).float()  # type: ignore[operator]
                    examples["moved_input"] = _shown(pixels[:EXAMPLES])
                    examples["moved_seen"] = _shown(self._coloured(samples, pixels[:EXAMPLES]))
        arrays = {"moved_correct": torch.cat(correct), **examples}
        if transforms:
            arrays |= {"moved_window_all": torch.cat(windows), "moved_box": (boxes + distances.repeat(1, 2)).half()}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    def _held(self, index: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Random windows of training images that contain their numbers: sides and centres, (B, 2) each.

        `uniform` (B, 4) are draws of U(0, 1). Sides are fractions of the canvas's side. The number fills a share
        U(data.held) of each side, or more where the window would exceed the image. A photograph without a known box is
        shown whole.
        """
        boxes = torch.from_numpy(self.sets["train"].boxes[index.cpu().numpy()]).to(uniform.device, uniform.dtype)
        low, high = self.data.held
        shares = (boxes[:, 2:] - boxes[:, :2]) / 2
        sides = (shares / (low + (high - low) * uniform[:, :2])).clamp(max=1)
        # The range of centres with the box inside the window and the window inside the image.
        lowest = torch.maximum(boxes[:, 2:] - sides, sides - 1)
        highest = torch.minimum(boxes[:, :2] + sides, 1 - sides)
        return sides, lowest + (highest - lowest) * uniform[:, 2:]

    def _grid(self, sides: Tensor, centres: Tensor) -> Tensor:
        """The grid (B, side, side, 2) of windows, as `Crop().grid`, but clamped to the edge pixels of the image.

        It is computed axis by axis for speed.
        """
        axis = pixel_centres((1, self.side), sides.dtype, sides.device)[:, 0]
        x, y = ((sides[:, i, None] * axis + centres[:, i, None]).clamp(axis[0], axis[-1]) for i in (0, 1))
        shape = len(sides), self.side, self.side
        return torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)

    def _pixels(self, split: str, index: Tensor, device: torch.device, corners: Tensor | None = None) -> Tensor:
        """Windows (B, 3, side, side) in [0, 1], channels last, at `corners` (B, 2) (y, x); None: the central ones."""
        stored, side = self.sets[split].images, self.side
        if side == self.data.canvas:
            rows = torch.from_numpy(stored).index_select(0, index.cpu())
        else:
            corners = torch.full((len(index), 2), (self.data.canvas - side) // 2) if corners is None else corners
            rows = torch.empty(len(index), side, side, 3, dtype=torch.uint8)
            for row, i, (y, x) in zip(rows.numpy(), index.tolist(), corners.tolist(), strict=True):
                row[:] = stored[i, y : y + side, x : x + side]
        return rows.to(device).permute(0, 3, 1, 2).div(255)

    def _finished(self, images: Tensor) -> Tensor:
        if self.data.centred:
            images = images - images.mean((1, 2, 3), keepdim=True)
        return images.contiguous(memory_format=torch.channels_last)

    def _coloured(self, seen: Tensor, pixels: Tensor) -> Tensor:
        """The images that a network sees, plus the mean of the pixels that `_finished` subtracts."""
        return seen + pixels.mean((1, 2, 3), keepdim=True) if self.data.centred else seen

    def _labels(self, split: str, index: Tensor, device: torch.device) -> Tensor:
        return self.sets[split].labels[index.cpu()].to(device)


def _blurred(images: Tensor) -> Tensor:
    """Images in which each pixel is the mean of the 5 x 5 pixels around it that lie in the image."""
    for kernel, padding in (((5, 1), (2, 0)), ((1, 5), (0, 2))):
        images = F.avg_pool2d(images, kernel, 1, padding, count_include_pad=False)
    return images


def source(data: DictConfig) -> SvhnSource:
    """The data source of Table 2."""
    return SvhnSource(data)


def _shown(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as (N, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

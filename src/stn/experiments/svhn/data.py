"""House numbers as a run feeds on them: the stored crops, and batches of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.download import fetch_numbers
from stn.data.stored import read_set
from stn.errors import UserError
from stn.experiments.svhn.crops import KINDS, in_frame, recipe, spot, store
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import pixel_centres

DOOR = "crop"  # `python -m stn.crop` stores its sets

CHUNK = 500  # images at a time where all of a set pass
EXAMPLES = 8  # test images that figures show
__all__ = ["DOOR", "SvhnSource", "fetch", "source", "store"]


def fetch(data: DictConfig) -> list[Path]:
    """Bring the archives of house numbers, or a mirror's folders, to `data.raw`. Returns them."""
    return fetch_numbers(Path(data.raw), data.source.name, data.extra)


@dataclass
class StoredSvhn:
    """A cropped set. The images (n, canvas, canvas, 3) uint8 stay on the disk; labels (n, 5) int64, boxes (n, 4)."""

    images: np.ndarray
    labels: Tensor
    boxes: np.ndarray


def load_stored(data: DictConfig, split: str) -> StoredSvhn:
    """One of the stored sets; a missing or damaged one is a UserError that names the command that makes it."""
    folder = Path(data.stored)
    images, labels, boxes = read_set(
        folder,
        split,
        {"whole": None, **recipe(data)},  # a set of whole images is none of a recipe that does not say so
        f"python -m stn.crop data={data.name}",
        # Copy on write, because torch warns of what it must not write to; nothing is written.
        lambda about, facts: [np.load(folder / f"{split}_{kind}.npy", mmap_mode="c") for kind in KINDS],
        lambda stored, facts: len(stored[0]) == facts["images"] and spot(*stored) == facts["spot"],
    )
    return StoredSvhn(images, torch.from_numpy(labels.astype(np.int64)), np.asarray(boxes))


class SvhnSource:
    """What a run feeds on. Batches are (images (B, 3, side, side) float in [0, 1], labels (B, 5)), on the device.

    Labels are 0 to 9, or 10 for a position without a digit. With `data.centred` each image's mean is subtracted.
    """

    chunk = 1000  # images of a validation or test batch
    images_per_pick = 1  # of a training batch

    def __init__(self, data: DictConfig):
        if data.window is not None and not 0 < data.window <= data.canvas:
            raise UserError(f"data.window={data.window} is no part of a crop of {data.canvas} pixels")
        self.data = data
        self.side = data.window or data.canvas
        self.shape = (3, self.side, self.side)
        self.sets: dict[str, StoredSvhn] = {}

    def load(self, split: str) -> None:
        """Open `train`, `validation` or `test`; a UserError if it is missing or damaged."""
        if split not in self.sets:
            self.sets[split] = load_stored(self.data, split)

    def count(self, split: str) -> int:
        return len(self.sets[split].labels)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stored images `index` (B,) of a split; with `data.window` their central windows."""
        return self._finished(self._pixels(split, index, device)), self._labels(split, index, device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training images `index` (B,): random windows, augmented; `part` says which B of the `size` they are."""
        return self._augmented(index, draws, size, part, device, whole=True)

    def random_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """As `train_batch`, but of each image a random window is shown that holds its number: `data.held`."""
        return self._augmented(index, draws, size, part, device, whole=False)

    def _augmented(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device, whole: bool
    ) -> tuple[Tensor, Tensor]:
        augment = self.data.augment
        zoom, right, down, contrast, blur = (
            2 * torch.rand(5, size, 1, generator=draws, device=draws.device)[:, part] - 1
        )
        corners = torch.rand(size, 2, generator=draws, device=draws.device)[part]
        corners = (corners * (self.data.canvas - self.side + 1)).long()
        images = self._pixels("train", index, device, corners)
        if augment.scale or augment.shift or not whole:
            sides, centres = 1 + augment.scale * zoom, 2 * augment.shift * torch.cat([right, down], 1)  # the side is 2
            if not whole:
                uniform = torch.rand(size, 4, generator=draws, device=draws.device)[part]
                held, middles = self._held(index, uniform)
                sides, centres = held * sides, middles + held * centres
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
        """What the report shows of the networks on the test set.

        With a transformer. example_input, example_label, example_said: the first eight test images, and four that are
        read wrongly. example_windows (N, K, 4, 2): the corners of the window of each of K transformers; example_seen:
        what the last one hands on. window_all (n, K, 4, 2) and box (n, 4): the windows and the number's box of every
        test image.

        Of a set of whole images, whose numbers stand near the middle, the same where each test image is moved at
        random, as far as its number stays inside: moved_correct (n,), which are read rightly, and moved_said, what is
        read in the first eight; with a transformer moved_window_all and moved_box, moved_input and moved_seen too.
        """
        transforms = any(name.startswith("theta") for name in arrays)
        moved = self._moved_evidence(network, transforms) if self.data.whole else {}
        if not transforms:
            return moved
        made, device = self.sets["test"], next(network.parameters()).device
        everything = torch.arange(self.count("test"))
        windows = [network.windows(self.batch("test", some, device)[0]) for some in everything.split(CHUNK)]  # type: ignore[operator]
        windows = torch.cat(windows).half().cpu().numpy()
        wrong = np.flatnonzero(~arrays["correct"])
        first = everything[:EXAMPLES]
        chosen = torch.cat([first, torch.from_numpy(wrong[wrong >= len(first)][:4])])
        pixels = self._pixels("test", chosen, device)
        images = self._finished(pixels)
        seen = self._coloured(network.seen(images).float(), pixels)  # type: ignore[operator]
        window = (self.data.canvas - self.side) // 2
        window = np.array([window, window, window + self.side, window + self.side])
        found = {
            "example_input": _shown(pixels),
            "example_label": made.labels[chosen].to(torch.uint8),
            "example_said": network(images).argmax(-1).to(torch.uint8),
            "example_seen": _shown(seen),
        }
        return {
            **{name: value.cpu().numpy() for name, value in found.items()},
            "example_windows": windows[chosen.numpy()],
            "window_all": windows,
            "box": in_frame((made.boxes + 1) / 2 * self.data.canvas, window).astype(np.float16),
            **moved,
        }

    def _moved_evidence(self, network: nn.Module, transforms: bool) -> dict[str, np.ndarray]:
        """What `evidence` says of test images that are moved; the same random places for every network."""
        boxes, device = torch.from_numpy(np.array(self.sets["test"].boxes)).float(), next(network.parameters()).device
        draws = torch.rand(len(boxes), 2, generator=torch.Generator().manual_seed(0))
        # How far each number may go left and up, and right and down; a number larger than the image stays.
        first, last = (-1 - boxes[:, :2]).clamp(max=0), (1 - boxes[:, 2:]).clamp(min=0)
        distances = first + (last - first) * draws
        correct, windows = [], []
        examples: dict[str, Tensor] = {}
        for some in torch.arange(len(boxes)).split(CHUNK):
            pixels = self._pixels("test", some, device)
            pixels = bilinear(pixels, self._grid(torch.ones(len(some), 2), -distances[some]).to(device))
            images = self._finished(pixels)
            answers = network(images).argmax(-1)
            correct.append((answers == self._labels("test", some, device)).all(1))
            if transforms:
                windows.append(network.windows(images).half())  # type: ignore[operator]
            if not examples:
                examples["moved_said"] = answers[:EXAMPLES].to(torch.uint8)
                if transforms:
                    seen = network.seen(images[:EXAMPLES]).float()  # type: ignore[operator]
                    examples["moved_input"] = _shown(pixels[:EXAMPLES])
                    examples["moved_seen"] = _shown(self._coloured(seen, pixels[:EXAMPLES]))
        moved = {"moved_correct": torch.cat(correct), **examples}
        if transforms:
            moved |= {"moved_window_all": torch.cat(windows), "moved_box": (boxes + distances.repeat(1, 2)).half()}
        return {name: value.cpu().numpy() for name, value in moved.items()}

    def _held(self, index: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Random windows of training images that hold their numbers: sides, as shares of the canvas's, and centres.

        (B, 2) each, from draws (B, 4) of U(0, 1). The number takes a share U(data.held) of each side, or more where the
        window would be larger than the image. A photograph, whose box is not known, is shown whole.
        """
        boxes = torch.from_numpy(self.sets["train"].boxes[index.cpu().numpy()]).to(uniform.device, uniform.dtype)
        low, high = self.data.held
        shares = (boxes[:, 2:] - boxes[:, :2]) / 2
        sides = (shares / (low + (high - low) * uniform[:, :2])).clamp(max=1)
        # The box inside the window, the window inside the image.
        first = torch.maximum(boxes[:, 2:] - sides, sides - 1)
        last = torch.minimum(boxes[:, :2] + sides, 1 - sides)
        return sides, first + (last - first) * uniform[:, 2:]

    def _grid(self, sides: Tensor, centres: Tensor) -> Tensor:
        """(B, side, side, 2): `Crop().grid` of windows (B, 2) each, axis by axis because that is faster.

        Beyond the edges the outermost pixels go on.
        """
        axis = pixel_centres((1, self.side), sides.dtype, sides.device)[:, 0]
        x, y = ((sides[:, i, None] * axis + centres[:, i, None]).clamp(axis[0], axis[-1]) for i in (0, 1))
        shape = len(sides), self.side, self.side
        return torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)

    def _pixels(self, split: str, index: Tensor, device: torch.device, corners: Tensor | None = None) -> Tensor:
        """(B, 3, side, side) float in [0, 1], channels last: the windows at `corners` (B, 2) (y, x), or the central."""
        made, side = self.sets[split].images, self.side
        if side == self.data.canvas:
            rows = torch.from_numpy(made).index_select(0, index.cpu())
        else:
            corners = torch.full((len(index), 2), (self.data.canvas - side) // 2) if corners is None else corners
            rows = torch.empty(len(index), side, side, 3, dtype=torch.uint8)
            for row, i, (y, x) in zip(rows.numpy(), index.tolist(), corners.tolist(), strict=True):
                row[:] = made[i, y : y + side, x : x + side]
        return rows.to(device).permute(0, 3, 1, 2).div(255)

    def _finished(self, images: Tensor) -> Tensor:
        if self.data.centred:
            images = images - images.mean((1, 2, 3), keepdim=True)
        return images.contiguous(memory_format=torch.channels_last)

    def _coloured(self, seen: Tensor, pixels: Tensor) -> Tensor:
        """What a network sees, with the mean of the image's pixels that `_finished` takes away."""
        return seen + pixels.mean((1, 2, 3), keepdim=True) if self.data.centred else seen

    def _labels(self, split: str, index: Tensor, device: torch.device) -> Tensor:
        return self.sets[split].labels[index.cpu()].to(device)


def _blurred(images: Tensor) -> Tensor:
    """Each pixel the mean of the 5 x 5 round it, as far as they are in the image."""
    for kernel, padding in (((5, 1), (2, 0)), ((1, 5), (0, 2))):
        images = F.avg_pool2d(images, kernel, 1, padding, count_include_pad=False)
    return images


def source(data: DictConfig) -> SvhnSource:
    """What the learner of Table 2 feeds on."""
    return SvhnSource(data)


def _shown(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as (N, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

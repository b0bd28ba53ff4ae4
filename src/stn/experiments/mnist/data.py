"""Distorted digits: stored validation and test sets, and training batches that are drawn on the model's device.

With `data.source=mnist` the digits are those of MNIST, with `data.source=digits` the 1,797 digits inside scikit-learn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.draws import generator
from stn.data.stored import read_set, sha256, writing_sets
from stn.errors import UserError
from stn.experiments.mnist.distortions import POSE, Clutter, Distortion, Elastic, Pose, Projection, found_pose
from stn.geometry.sampling import LearnableSampler

DOOR = "distort"  # `python -m stn.distort` stores its sets

POSES = 1000  # test images whose poses the record contains
CHUNK = 250  # images distorted at a time, so that the working set fits the processor's cache
IN_BLOCKS = True  # `DistortedDigits.train_block`; the networks of digits draw no random numbers


@dataclass
class Digits:
    """Undistorted digits, (n, 28, 28) uint8, and their labels, (n,) int64."""

    images: Tensor
    labels: Tensor


@dataclass
class StoredSet:
    """A distorted set as it is stored: images (n, canvas, canvas) uint8, labels (n,), parameters (n, D)."""

    images: Tensor
    labels: Tensor
    parameters: Tensor


def distortion(data: DictConfig) -> Distortion:  # type: ignore[return]  # the schema knows no other kind
    """The distortion of a data config."""
    settings = data.distortion
    common = {"canvas": data.canvas, "digit": 28}
    scale = tuple(settings.scale)
    match settings.kind.name:
        case "pose":
            return Pose(**common, rotation=settings.rotation, scale=scale, roam=settings.roam)
        case "projective":
            return Projection(**common, scale=scale, sigma=settings.sigma)
        case "elastic":
            return Elastic(**common, scale=scale, sigma=settings.sigma, k=settings.control_points, tiled=settings.tiled)
        case "clutter":
            return Clutter(**common, patches=settings.patches, side=settings.patch_side)


def undistorted(data: DictConfig) -> dict[str, Digits]:
    """The undistorted digits of the splits `train`, `validation` and `test`."""
    images, labels, n_test = _embedded(Path(data.raw)) if data.source.name == "digits" else _mnist(Path(data.raw))
    n_train = len(images) - n_test
    if data.validation >= n_train:
        raise UserError(f"data.validation={data.validation} leaves none of the {n_train} training digits to train on")
    if data.source.name == "mnist":
        # numpy guarantees that the streams of its legacy generator never change, so the split does not either.
        order = np.random.RandomState(data.seed).permutation(n_train)
    else:
        order = np.arange(n_train)  # ordered by writer: no writer of test digits is trained on
    cut = n_train - data.validation
    parts = {"train": order[:cut], "validation": order[cut:], "test": np.arange(n_train, len(images))}
    return {name: Digits(torch.from_numpy(images[i]), torch.from_numpy(labels[i])) for name, i in parts.items()}


def _mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    from stn.data.reading import read_idx

    parts = [
        read_idx(folder / f"{split}-{content}-idx{rank}-ubyte.gz")
        for split in ("train", "t10k")
        for content, rank in (("images", 3), ("labels", 1))
    ]
    return np.concatenate(parts[::2]), np.concatenate(parts[1::2]).astype(np.int64), len(parts[2])


def _embedded(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Scikit-learn's 8x8 digits, enlarged to 20x20 and padded by 4 pixels of background, as MNIST's are."""
    try:
        images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: no digits there ({error}); run `python -m stn.fetch data=digits_r`") from None
    small = torch.from_numpy(images)[:, None].double() / 16
    large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    framed = torch.nn.functional.pad(large[:, 0], (4, 4, 4, 4))
    return (framed * 255).round().to(torch.uint8).numpy(), labels, 500


def fetch(data: DictConfig) -> list[Path]:
    """Write the digits to `data.raw`: MNIST's four files, or the digits inside scikit-learn. Returns the files."""
    from stn.data.download import export_embedded, fetch_mnist

    return {"digits": export_embedded, "mnist": fetch_mnist}[data.source.name](Path(data.raw))


def store(data: DictConfig, scratch: Path) -> dict:
    """Distort the validation and test digits, with `train=frozen` also the training digits, and store the sets.

    Drawn in float64 on the CPU and rounded to uint8, so the bytes are the same on every machine. Written to `scratch`
    and moved to `data.stored` when complete. Returns the contents of `sets.json`.
    """
    warp, splits = distortion(data), undistorted(data)
    sets = (
        (split, distorted(warp, splits[split], copies, generator(data.seed, split)))
        for split, copies in stored_splits(data)
    )
    return write_sets(data, repr(warp), warp.names, sets, scratch)


def stored_splits(data: DictConfig) -> list[tuple[str, int]]:
    """The splits that are stored, each with the number of distorted copies of each digit."""
    frozen = [("train", 1)] if data.train.name == "frozen" else []
    return [("validation", data.draws), ("test", data.draws), *frozen]


def write_sets(
    data: DictConfig, recipe: str, columns: list[str], sets: Iterable[tuple[str, StoredSet]], scratch: Path
) -> dict:
    """Write `sets`, pairs of split and set, to `scratch`, and move them to `data.stored` when all are complete.

    `recipe` describes the distortion, and `read_set` compares it; `columns` names the parameters. Returns the contents
    of `sets.json`. Raises UserError if the sets cannot be written.
    """
    about = {"distortion": recipe, "columns": columns, "seed": data.seed, "part": data.part, "sets": {}}
    with writing_sets(stored_folder(data), scratch, about) as work:
        for split, stored in sets:
            for name in ("images", "labels", "parameters"):
                np.save(work / f"{split}_{name}.npy", getattr(stored, name).numpy())
            about["sets"][split] = {"images": len(stored.images), "sha256": sha256(stored.images.numpy())}
            if "redraws" in columns:
                redraws = stored.parameters[..., columns.index("redraws")]
                about["sets"][split]["redrawn"] = int((redraws > 0).sum())
    return about


def distorted(warp: Distortion, digits: Digits, copies: int, draws: torch.Generator) -> StoredSet:
    """`copies` distorted images of each digit, in sequence; drawn in float64 and rounded to uint8."""
    images = digits.images.repeat_interleave(copies, 0)
    parameters = warp.draw(len(images), draws, torch.float64)
    rendered = [
        (warp.render(p.double(), d, digits.images) * 255).round().to(torch.uint8)[:, 0]
        for p, d in zip(parameters.split(CHUNK), images.split(CHUNK), strict=True)
    ]
    return StoredSet(torch.cat(rendered), digits.labels.repeat_interleave(copies, 0), parameters)


def stored_folder(data: DictConfig) -> Path:
    """The folder of the sets. A frozen training set has its own folder, so that DVC's output is not changed."""
    return Path(data.stored if data.train.name == "stream" else f"{data.stored}_frozen")


def read_distorted(data: DictConfig, recipe: str, split: str) -> StoredSet:
    """A set that `write_sets` wrote.

    Raises UserError, with the command that makes the set, if it is missing, damaged or of another recipe.
    """
    frozen = " data.train=frozen" if data.train.name == "frozen" else ""
    folder = stored_folder(data)

    def load(about: dict, facts: dict) -> StoredSet:
        arrays = (np.load(folder / f"{split}_{name}.npy") for name in ("images", "labels", "parameters"))
        return StoredSet(*map(torch.from_numpy, arrays))

    return read_set(
        folder,
        split,
        {"distortion": recipe, "seed": data.seed},
        f"python -m stn.distort data={data.name}{frozen}",
        load,
        lambda stored, facts: (
            len(stored.images) == len(stored.labels) == len(stored.parameters) == facts["images"]
            and sha256(stored.images.numpy()) == facts["sha256"]
        ),
    )


class DigitSets:
    """What the data sources of distorted digits share: the sets, each moved to the device once, as uint8.

    `recipe` describes the distortion of the stored sets.
    """

    def __init__(self, data: DictConfig, recipe: str):
        self.data = data
        self.recipe = recipe
        self.warp = distortion(data)
        self.sets: dict[str, StoredSet | Digits] = {}

    def load(self, split: str) -> None:
        """Read `train`, `validation` or `test`. Raises UserError if it is missing or damaged."""
        if split not in self.sets:
            stored = split != "train" or self.data.train.name == "frozen"
            self.sets[split] = (
                read_distorted(self.data, self.recipe, split) if stored else undistorted(self.data)["train"]
            )

    def count(self, split: str) -> int:
        return len(self.sets[split].labels)

    def _resident(self, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels of a split, moved to the device once."""
        stored = self.sets[split]
        if stored.images.device != device:
            stored.images, stored.labels = stored.images.to(device), stored.labels.to(device)
        return stored.images, stored.labels


class DistortedDigits(DigitSets):
    """The data source. Batches are (images (B, 1, side, side) float in [0, 1], labels (B,)), on the device."""

    chunk = 1000  # images of a validation or test batch
    images_per_pick = 1  # of a training batch

    def __init__(self, data: DictConfig):
        super().__init__(data, repr(distortion(data)))
        self.shape = (1, *[28 if data.undo is True else data.canvas] * 2)  # of the network's input

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stored images `index` (B,) of a split."""
        images, labels = self._resident(split, device)
        images = images[index, None].float() / 255
        if self.data.undo:
            images = self._undone(self.sets[split].parameters[index.cpu()].to(device), images)  # type: ignore[union-attr]
        return images, labels[index]

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training digits `index` (B,), distorted; they are `part` of the global batch of `size`."""
        if self.data.train.name == "frozen":
            return self.batch("train", index, device)
        digits, labels = self._resident("train", device)
        parameters = self.warp.draw(size, draws)[part]
        images = self.warp.render(parameters, digits[index], digits)
        return self._undone(parameters, images), labels[index]

    def train_block(self, index: Tensor, draws: list[torch.Generator], device: torch.device) -> tuple[Tensor, Tensor]:
        """Distorted images (K, B, 1, side, side) and labels (K, B) of the training digits `index` (K, B).

        Batch k equals that of `train_batch(index[k], draws[k], ...)`.
        """
        shape, index = index.shape, index.flatten()
        if self.data.train.name == "frozen":
            images, labels = self.batch("train", index, device)
        else:
            digits, labels = self._resident("train", device)
            chances = zip(*(self.warp.chances(shape[1], draw) for draw in draws), strict=True)
            parameters = self.warp.parameters(*map(torch.cat, chances))
            images, labels = self.warp.render(parameters, digits[index], digits), labels[index]
            images = self._undone(parameters, images)
        return images.unflatten(0, shape), labels.view(shape)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report, from the test set; empty without a transformer.

        Of the first test image of each class: example_input, example_grid (the sampling grid), example_output (the
        classifier's input), example_label. Of the first POSES images: cloud_before, cloud_after (POSES, 9, 2), the
        digit points that appear at nine fixed points of the canvas and of the transformer's output; pose_true,
        pose_found (POSES, D), pose_names: see `stn.experiments.mnist.distortions.found_pose`. phi_x, phi_y: the learned
        kernel.
        """
        if "theta" not in arrays:
            return {}
        sampler = network.transformer.sampler  # type: ignore[union-attr]  # the network is a `DigitNetwork`
        phi = {}
        if isinstance(sampler, LearnableSampler):
            phi = {"phi_x": sampler.kernel_x.phi.cpu().numpy(), "phi_y": sampler.kernel_y.phi.cpu().numpy()}
        test_set, transformation = self.sets["test"], network.transformer.transformation  # type: ignore[union-attr]
        device = next(network.parameters()).device
        theta = torch.from_numpy(arrays["theta"]).to(device)
        examples = torch.stack([(test_set.labels == digit).nonzero()[0, 0] for digit in range(10)]).to(
            test_set.images.device
        )
        images = test_set.images[examples, None].float() / 255
        size = (self.data.canvas, self.data.canvas)
        points = nine_points(device)
        parameters = test_set.parameters[:POSES].to(device)  # type: ignore[union-attr]
        sampled_points = transformation.points(theta[:POSES], points)  # type: ignore[operator, union-attr]
        tensors = {
            "example_input": test_set.images[examples],
            "example_grid": transformation.grid(theta[examples.to(device)], size).half(),  # type: ignore[operator, union-attr]
            "example_output": (network.seen(images).float()[:, 0].clamp(0, 1) * 255).round().to(torch.uint8),  # type: ignore[operator]
            "example_label": test_set.labels[examples],
            "cloud_before": self.warp.digit_points(parameters, points).half(),
            "cloud_after": self.warp.digit_points(parameters, sampled_points).half(),
        }
        names = self.warp.pose_names
        poses = found_pose(sampled_points, points, self.data.canvas)
        tensors["pose_true"] = parameters[:, [self.warp.names.index(name) for name in names]]
        tensors["pose_found"] = poses[:, [POSE.index(name) for name in names]]
        return {
            **{name: value.cpu().numpy() for name, value in tensors.items()},
            **phi,
            "pose_names": np.array(names, dtype=str),
        }

    def _undone(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Images with all or some of their distortion undone by its true `parameters`, as `data.undo` says."""
        if self.data.undo is True:
            return self.warp.undone(parameters, images)
        return self.warp.partly_undone(parameters, images, self.data.undo) if self.data.undo else images  # type: ignore[attr-defined]


def nine_points(device: torch.device) -> Tensor:
    """The points (9, 2) of a frame, row by row, at which records hold what a transformer does."""
    axis = torch.tensor([-0.6, 0.0, 0.6], device=device)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)


def source(data: DictConfig) -> DistortedDigits:
    """The data source of Table 1."""
    return DistortedDigits(data)

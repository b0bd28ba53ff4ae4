"""Distorted digits: the stored validation and test sets, and the training batches drawn on the model's device.

`data.source=mnist` takes the four original files, `data.source=digits` the 1,797 digits inside scikit-learn; the
rest is the same code.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stn.data.distortions import POSE, Clutter, Distortion, Elastic, Pose, Projection, found_pose
from stn.errors import UserError

POSES = 1000  # test images whose poses are kept for the report
CHUNK = 250  # images distorted at a time: what they touch stays in the processor's cache


@dataclass
class Digits:
    """Undistorted digits, (n, 28, 28) uint8, and their labels, (n,) int64."""

    images: Tensor
    labels: Tensor


@dataclass
class StoredSet:
    """A distorted set as it lies on the disk: images (n, canvas, canvas) uint8, labels (n,), parameters (n, D)."""

    images: Tensor
    labels: Tensor
    parameters: Tensor


def distortion(data: DictConfig) -> Distortion:
    """The distortion that a data config describes."""
    d = data.distortion
    common = {"canvas": data.canvas, "digit": 28}
    scale = tuple(d.scale)
    match d.kind.name:
        case "pose":
            return Pose(**common, rotation=d.rotation, scale=scale, roam=d.roam)
        case "projective":
            return Projection(**common, scale=scale, sigma=d.sigma)
        case "elastic":
            return Elastic(**common, scale=scale, sigma=d.sigma, k=d.control_points)
        case "clutter":
            return Clutter(**common, patches=d.patches, side=d.patch_side)


def undistorted(data: DictConfig) -> dict[str, Digits]:
    """The splits `train`, `validation` and `test`, before distortion."""
    images, labels, n_test = _embedded(Path(data.raw)) if data.source.name == "digits" else _mnist(Path(data.raw))
    n_train = len(images) - n_test
    if data.validation >= n_train:
        raise UserError(f"data.validation={data.validation} leaves nothing of {n_train} training digits to train on")
    if data.source.name == "mnist":
        # The legacy generator's streams are frozen for good, so the split is too.
        order = np.random.RandomState(data.seed).permutation(n_train)
    else:
        order = np.arange(n_train)  # in order of writers: no writer of the test digits is trained on
    cut = n_train - data.validation
    parts = {"train": order[:cut], "validation": order[cut:], "test": np.arange(n_train, len(images))}
    return {name: Digits(torch.from_numpy(images[i]), torch.from_numpy(labels[i])) for name, i in parts.items()}


def _mnist(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    from stn.data.download import read_idx

    parts = [
        read_idx(folder / f"{split}-{what}-idx{rank}-ubyte.gz")
        for split in ("train", "t10k")
        for what, rank in (("images", 3), ("labels", 1))
    ]
    return np.concatenate(parts[::2]), np.concatenate(parts[1::2]).astype(np.int64), len(parts[2])


def export_embedded(folder: Path) -> list[Path]:
    """Write the 8x8 digits inside scikit-learn as `images.npy` and `labels.npy`: what fetching is to MNIST."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", bunch.images.astype(np.uint8))
        np.save(folder / "labels.npy", bunch.target.astype(np.int64))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}; set data.raw elsewhere") from error
    return [folder / "images.npy", folder / "labels.npy"]


def _embedded(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """The 8x8 digits, enlarged to 20x20 and framed by 4 pixels of background as MNIST's are."""
    try:
        images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: no digits there ({error}); run `python -m stn.fetch data=digits_r`") from None
    small = torch.from_numpy(images)[:, None].double() / 16
    large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    framed = torch.nn.functional.pad(large[:, 0], (4, 4, 4, 4))
    return (framed * 255).round().to(torch.uint8).numpy(), labels, 500


def store(data: DictConfig, scratch: Path) -> dict:
    """Distort the validation and test digits (with `train=frozen` the training digits too), and write the sets.

    Drawn in float64 on the CPU and rounded to uint8, so the bytes are the same on every machine. Written to `scratch`
    and moved to `data.stored` when whole. Returns what `sets.json` says of them.
    """
    splits = undistorted(data)
    warp = distortion(data)
    target, work = stored_folder(data), scratch / f"{stored_folder(data).name}.part"
    about = {"distortion": repr(warp), "columns": warp.names, "seed": data.seed, "part": data.part, "sets": {}}
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for split in ("validation", "test", *(["train"] if data.train.name == "frozen" else [])):
            copies = 1 if split == "train" else data.draws
            made = _distorted(warp, splits[split], copies, generator(data.seed, split))
            for name in ("images", "labels", "parameters"):
                np.save(work / f"{split}_{name}.npy", getattr(made, name).numpy())
            about["sets"][split] = {"images": len(made.images), "sha256": _sha256(made.images.numpy())}
            if "redraws" in warp.names:
                redraws = made.parameters[:, warp.names.index("redraws")]
                about["sets"][split]["redrawn"] = int((redraws > 0).sum())
        (work / "sets.json").write_text(json.dumps(about, indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or target}: {error.strerror}; free it or set data.stored"
        ) from error
    return about


def _distorted(warp: Distortion, digits: Digits, copies: int, draws: torch.Generator) -> StoredSet:
    images = digits.images.repeat_interleave(copies, 0)
    parameters = warp.draw(len(images), draws, torch.float64)
    rendered = [
        (warp.render(p.double(), d, digits.images) * 255).round().to(torch.uint8)[:, 0]
        for p, d in zip(parameters.split(CHUNK), images.split(CHUNK), strict=True)
    ]
    return StoredSet(torch.cat(rendered), digits.labels.repeat_interleave(copies, 0), parameters)


def stored_folder(data: DictConfig) -> Path:
    """Where the distorted sets lie. A frozen training set has a folder of its own, so that DVC's stays as it is."""
    return Path(data.stored if data.train.name == "stream" else f"{data.stored}_frozen")


def load_stored(data: DictConfig, split: str) -> StoredSet:
    """One of the stored sets; a missing or damaged one is a UserError that names the command that makes it."""
    folder = stored_folder(data)
    frozen = " data.train=frozen" if data.train.name == "frozen" else ""
    mend = f"run `python -m stn.distort data={data.name}{frozen}`"
    try:
        about = json.loads((folder / "sets.json").read_text())
        parts = [np.load(folder / f"{split}_{name}.npy") for name in ("images", "labels", "parameters")]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {mend}") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{folder} is damaged ({error}): {mend}") from None
    if about["distortion"] != repr(distortion(data)) or about["seed"] != data.seed:
        raise UserError(f"{folder} holds {about['distortion']}, seed {about['seed']}, which the config is not: {mend}")
    if _sha256(parts[0]) != about["sets"][split]["sha256"]:
        raise UserError(f"{folder / f'{split}_images.npy'} is not what was written there: {mend}")
    return StoredSet(*map(torch.from_numpy, parts))


class DigitsData(L.LightningDataModule):
    """Feeds one run. A batch leaves the loader as indices and becomes images on the model's device.

    The training batch of step t is a function of (seed, t) alone: which digits, and how they are distorted. So a
    resumed run sees what an uninterrupted one would have seen. With several processes each takes its slice of the
    global batch. Batches are (images (B, 1, canvas, canvas) float in [0, 1], labels (B,)).
    """

    def __init__(self, data: DictConfig, budget: DictConfig, seed: int):
        super().__init__()
        self.data, self.budget, self.seed = data, budget, seed
        self.warp = distortion(data)
        self.sets: dict[str, StoredSet | Digits] = {}

    def setup(self, stage: str | None = None) -> None:
        if stage in ("fit", None) and "train" not in self.sets:
            frozen = self.data.train.name == "frozen"
            self.sets["train"] = load_stored(self.data, "train") if frozen else undistorted(self.data)["train"]
            self.sets["validation"] = load_stored(self.data, "validation")
        if stage in ("test", None) and "test" not in self.sets:
            self.sets["test"] = load_stored(self.data, "test")

    def train_dataloader(self) -> DataLoader:
        """The batches up to the next validation; the trainer asks again for each such stretch."""
        step, stretch = self.trainer.global_step, self.budget.validate_every
        last = min(step - step % stretch + stretch, self.budget.steps)
        return DataLoader(_Steps(self, step, last), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(_Chunks(split, len(self.sets[split].labels), 4 * CHUNK), batch_size=None)

    def picks(self, step: int) -> Tensor:
        """Which training digits make up the global batch of a step: epochs in a fresh order, the rest left over."""
        n, size = len(self.sets["train"].labels), self.budget.batch_size
        if size > n:
            return torch.randint(n, (size,), generator=generator(self.seed, "picks", step))
        epoch, place = divmod(step, n // size)
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, torch.randperm(n, generator=generator(self.seed, "order", epoch))
        return self._order[place * size : (place + 1) * size]

    def on_after_batch_transfer(self, batch: tuple, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        split, step, index = batch
        images, labels = self._resident(split)
        if split != "train" or self.data.train.name == "frozen":
            return images[index, None].float() / 255, labels[index]
        world, rank = self.trainer.world_size, self.trainer.global_rank
        draws = generator(self.seed, "distortion", step, device=images.device)
        parameters = self.warp.draw(self.budget.batch_size, draws)[rank::world]
        return self.warp.render(parameters, images[index], images), labels[index]

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n validation images and labels, as the model gets them."""
        return self.on_after_batch_transfer(("validation", 0, torch.arange(n)), 0)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, theta: np.ndarray | None) -> dict[str, np.ndarray]:
        """What the report shows of a transformer on the test set; nothing for a network without one.

        example_input, example_grid, example_output, example_label: the first test image of each class, the grid laid
        on it, and what the classifier sees. cloud_before, cloud_after (POSES, 9, 2): the digit points at nine fixed
        points of the canvas, and at those of the transformer's output. pose_true, pose_found (POSES, D), pose_names:
        see `stn.data.distortions.found_pose`.
        """
        if theta is None:
            return {}
        made, transformation = self.sets["test"], network.transformer.transformation
        device = next(network.parameters()).device
        theta = torch.from_numpy(theta).to(device)
        first = torch.stack([(made.labels == digit).nonzero()[0, 0] for digit in range(10)]).to(made.images.device)
        images = made.images[first, None].float() / 255
        size = (self.data.canvas, self.data.canvas)
        axis = torch.tensor([-0.6, 0.0, 0.6], device=device)
        points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)
        parameters = made.parameters[:POSES].to(device)
        sampled = transformation.points(theta[:POSES], points)
        found = {
            "example_input": made.images[first],
            "example_grid": transformation.grid(theta[first.to(device)], size).half(),
            "example_output": (network.seen(images).float()[:, 0].clamp(0, 1) * 255).round().to(torch.uint8),
            "example_label": made.labels[first],
            "cloud_before": self.warp.digit_points(parameters, points).half(),
            "cloud_after": self.warp.digit_points(parameters, sampled).half(),
        }
        names = self.warp.pose_names
        poses = found_pose(sampled, points, self.data.canvas)
        found["pose_true"] = parameters[:, [self.warp.names.index(name) for name in names]]
        found["pose_found"] = poses[:, [POSE.index(name) for name in names]]
        return {
            **{name: value.cpu().numpy() for name, value in found.items()},
            "pose_names": np.array(names, dtype=str),
        }

    def _resident(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and labels of a split, moved to the device once."""
        made, device = self.sets[split], self.trainer.strategy.root_device
        if made.images.device != device:
            made.images, made.labels = made.images.to(device), made.labels.to(device)
        return made.images, made.labels


@dataclass
class _Steps:
    """The picks of steps first ... last - 1, as a data set whose items are whole batches."""

    module: DigitsData
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, i: int) -> tuple[str, int, Tensor]:
        if i >= len(self):
            raise IndexError(i)
        trainer = self.module.trainer
        return "train", self.first + i, self.module.picks(self.first + i)[trainer.global_rank :: trainer.world_size]


@dataclass
class _Chunks:
    """A stored set in its order, as a data set whose items are whole batches."""

    split: str
    n: int
    size: int

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, i: int) -> tuple[str, int, slice]:
        if i >= len(self):
            raise IndexError(i)
        return self.split, i, torch.arange(i * self.size, min((i + 1) * self.size, self.n))


def data_module(data: DictConfig, budget: DictConfig, seed: int) -> DigitsData:
    """What the learner of Table 1 feeds on."""
    return DigitsData(data, budget, seed)


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that are a function of (seed, purpose, step), whatever was drawn before."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()

"""Digits in three dimensions: extruded to a volume, in a random pose (paper, appendix A.3; Table 6, ours).

The paper shows a figure of the experiment without numbers, and gives neither the thickness nor the rotation of a digit.
Only the poses of a set are stored: 10,000 volumes of 60 voxels a side are 2 GB, their poses 300 kB, and a digit and its
pose determine the volume. Frames as in `stn.geometry.transforms`; lengths are in voxels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.draws import generator
from stn.data.stored import read_set, sha256, writing_sets
from stn.errors import UserError
from stn.experiments.mnist.data import fetch, undistorted
from stn.geometry.sampling import bilinear, trilinear
from stn.geometry.transforms import Affine3D

__all__ = ["DOOR", "fetch", "source", "store", "stored_folder"]
DOOR = "distort"  # `python -m stn.distort` stores its sets

DIGIT = 28  # side of a digit: pixels, and voxels at scale 1
SPLITS = ("validation", "test")
POSES = 1000  # test volumes whose poses the record contains
CHUNK = 4  # volumes rendered at a time, so that the working set fits the processor's cache


@dataclass(frozen=True)
class SolidPose:
    """Rotation, scale and location of a digit that is extruded along the depth.

    Attributes:
        canvas: side of the volume.
        thickness: of the extruded digit at scale 1; even, because the digit's own volume has 28 layers.
        rotation: the largest angle in degrees. The angle is U(0, rotation), the axis uniform over all directions.
        scale: (low, high) of the uniform scale factor.
        roam: True places the digit's scaled, unrotated cube uniformly inside the volume, False at its centre.
    """

    canvas: int
    thickness: int
    rotation: float
    scale: tuple[float, float]
    roam: bool

    # turn_* is a rotation vector: its length is the angle in degrees, right-handed. x, y, z is the digit's centre.
    names = ("turn_x", "turn_y", "turn_z", "scale", "x", "y", "z")

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Parameters (n, 7), float32, on the generator's device; drawn in `dtype`."""
        u = torch.rand(n, 7, generator=generator, dtype=dtype, device=generator.device)
        height, azimuth = 2 * u[:, :1] - 1, 2 * torch.pi * u[:, 1:2]  # a uniform point of the sphere (Archimedes)
        axis = torch.cat([(1 - height**2).sqrt() * torch.cat([azimuth.cos(), azimuth.sin()], 1), height], 1)
        low, high = self.scale
        scale = low + (high - low) * u[:, 3:4]
        room = (self.canvas - scale * DIGIT).clamp_min(0) / 2 * self.roam
        return torch.cat([self.rotation * u[:, 2:3] * axis, scale, (2 * u[:, 4:] - 1) * room], 1).float()

    def theta(self, parameters: Tensor) -> Tensor:
        """The affine theta (n, 12) from the volume to the digit's cube, with which a transformer renders the volume."""
        linear = rotation(parameters[:, :3]).mT * (self.canvas / DIGIT / parameters[:, 3, None, None])
        return self._rows(linear, -linear @ self._centre(parameters))

    def inverse_theta(self, parameters: Tensor) -> Tensor:
        """The affine theta (n, 12) from the digit's cube to the volume, which undoes the pose."""
        linear = rotation(parameters[:, :3]) * (DIGIT / self.canvas * parameters[:, 3, None, None])
        return self._rows(linear, self._centre(parameters))

    def render(self, parameters: Tensor, digits: Tensor) -> Tensor:
        """Volumes (n, 1, canvas, canvas, canvas) in [0, 1] of `digits` (n, 28, 28), uint8; 0 outside the digit.

        The result is the trilinear sample of a volume whose middle layers are the digit and whose other layers are 0.
        That volume is an image times a profile along the depth, so the two are sampled apart and multiplied.
        """
        size = (self.canvas,) * 3
        volumes = parameters.new_empty(len(parameters), 1, *size)
        parts = (parameters.split(CHUNK), digits.split(CHUNK), volumes.split(CHUNK))
        for chunk, images, target in zip(*parts, strict=True):
            points = Affine3D().grid(self.theta(chunk), size)
            flat = bilinear(images[:, None].to(chunk) / 255, points[..., :2].flatten(1, 2)).view_as(target)
            depth = points[:, None, ..., 2].abs() * (DIGIT / 2)
            torch.mul(flat, (self.thickness / 2 + 0.5 - depth).clamp_(0, 1), out=target)
        return volumes

    def undone(self, parameters: Tensor, volumes: Tensor, side: int) -> Tensor:
        """The digits' cubes (n, 1, side, side, side), sampled from `volumes` by the true pose (trilinear)."""
        return trilinear(volumes, Affine3D().grid(self.inverse_theta(parameters.to(volumes)), (side,) * 3))

    def _centre(self, parameters: Tensor) -> Tensor:
        return parameters[:, 4:, None] * (2 / self.canvas)

    @staticmethod
    def _rows(linear: Tensor, offset: Tensor) -> Tensor:
        return torch.cat([linear, offset], 2).flatten(1)


def rotation(turns: Tensor) -> Tensor:
    """Rotation matrices (n, 3, 3) of rotation vectors (n, 3) in degrees; right-handed: about z from x to y."""
    x, y, z = turns.deg2rad().unbind(1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3))


def pose(data: DictConfig) -> SolidPose:
    """The pose distribution of a data config. Raises UserError for impossible values."""
    low, high = data.scale
    if not 0 < low <= high:
        raise UserError(f"data.scale=[{low},{high}] is not a range of scale factors: give, for example, [0.7,1.2]")
    if not 0 <= data.rotation <= 180:
        raise UserError(f"data.rotation={data.rotation} is not an angle in degrees from 0 to 180")
    if data.thickness % 2 or not 0 < data.thickness <= DIGIT:
        raise UserError(f"data.thickness={data.thickness} must be an even number up to {DIGIT}")
    return SolidPose(data.canvas, data.thickness, data.rotation, (low, high), data.roam)


def store(data: DictConfig, scratch: Path) -> dict:
    """Draw the poses of the validation and test digits and store them. Returns the contents of `sets.json`.

    Drawn in float64 on the CPU and rounded to float32. Written to `scratch` and moved to `data.stored` when complete.
    """
    splits, poses = undistorted(data), pose(data)
    about = {"distortion": repr(poses), "columns": poses.names, "seed": data.seed, "part": data.part, "sets": {}}
    with writing_sets(stored_folder(data), scratch, about) as work:
        for split in SPLITS:
            count = len(splits[split].labels)
            parameters = poses.draw(count, generator(data.seed, split), torch.float64).numpy()
            np.save(work / f"{split}_parameters.npy", parameters)
            about["sets"][split] = {"images": count, "sha256": sha256(parameters)}
    return about


def stored_folder(data: DictConfig) -> Path:
    """The folder of the stored poses."""
    return Path(data.stored)


def load_poses(data: DictConfig, split: str) -> Tensor:
    """The stored poses (n, 7) of a split. Raises UserError, with the command to run, if missing or damaged."""
    folder = stored_folder(data)
    parameters = read_set(
        folder,
        split,
        {"distortion": repr(pose(data)), "seed": data.seed},
        f"python -m stn.distort data={data.name}",
        lambda about, facts: np.load(folder / f"{split}_parameters.npy"),
        lambda stored, facts: sha256(stored) == facts["sha256"],
    )
    return torch.from_numpy(parameters)


class Volumes:
    """The data source. Batches are (volumes (B, 1, side, side, side) float in [0, 1], labels (B,)), on the device.

    With `data.undo` the pose of each volume is undone, and its side is that of the classifier's projection.
    """

    chunk = 100  # volumes of a validation or test batch
    images_per_pick = 1  # of a training batch

    def __init__(self, data: DictConfig):
        self.data = data
        self.poses = pose(data)
        self.shape = (1, *[data.projection if data.undo else data.canvas] * 3)  # of the network's input
        self.images: dict[str, Tensor] = {}
        self.labels: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}

    def load(self, split: str) -> None:
        """Read `train`, `validation` or `test`. Raises UserError if it is missing or damaged."""
        if split in self.labels:
            return
        if split != "train":
            self.parameters[split] = load_poses(self.data, split)
        digits = undistorted(self.data)[split]
        if split != "train" and len(self.parameters[split]) != len(digits.labels):
            raise UserError(
                f"{self.data.stored} has poses for {len(self.parameters[split])} {split} digits, "
                f"{self.data.raw} has {len(digits.labels)}: run `python -m stn.distort data={self.data.name}`"
            )
        self.images[split], self.labels[split] = digits.images, digits.labels

    def count(self, split: str) -> int:
        return len(self.labels[split])

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The volumes of the digits `index` (B,) of a split, in their stored poses."""
        return self._posed(split, index, self.parameters[split][index].to(device), device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training digits `index` (B,) in new poses; they are `part` of the global batch of `size`."""
        return self._posed("train", index, self.poses.draw(size, draws)[part], device)

    def _posed(self, split: str, index: Tensor, parameters: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        for tensors in (self.images, self.labels):  # moved to the device once
            tensors[split] = tensors[split].to(device)
        volumes = self.poses.render(parameters, self.images[split][index])
        if self.data.undo:
            volumes = self.poses.undone(parameters, volumes, self.data.projection)
        return volumes, self.labels[split][index]

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report, from the test set; empty without a transformer.

        Of the first test volume of each class: example_volume (10, canvas, canvas, canvas) uint8; example_before and
        example_after (10, side, side) float16, its projection without and with the transformer; example_label and
        example_theta (10, 12). pose_true (POSES, 7), pose_names: the first poses.
        """
        if "theta" not in arrays:
            return {}
        device = next(network.parameters()).device
        labels = self.labels["test"].cpu()
        examples = torch.stack([(labels == digit).nonzero()[0, 0] for digit in range(10)])
        volumes, labels = self.batch("test", examples, device)
        tensors = {
            "example_volume": (volumes[:, 0] * 255).round().to(torch.uint8),
            "example_before": network.projected(volumes)[:, 0].half(),  # type: ignore[operator]  # a `VolumeNetwork`
            "example_after": network.seen(volumes)[:, 0].half(),  # type: ignore[operator]
            "example_label": labels,
            "pose_true": self.parameters["test"][:POSES],
        }
        return {
            **{name: value.cpu().numpy() for name, value in tensors.items()},
            "example_theta": arrays["theta"][examples.numpy()].astype("float32"),
            "pose_names": np.array(self.poses.names, dtype=str),
        }


def source(data: DictConfig) -> Volumes:
    """The data source of Table 6."""
    return Volumes(data)

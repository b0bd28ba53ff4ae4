"""The schema of distorted MNIST: `data.kind=mnist`."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stn.errors import UserError
from stn.schema import DataConfig, LocalisationConfig, ModelConfig


class Distortion(Enum):
    pose = "pose"
    projective = "projective"
    elastic = "elastic"
    clutter = "clutter"


class Source(Enum):
    mnist = "mnist"
    digits = "digits"


class Train(Enum):
    stream = "stream"
    frozen = "frozen"


class Classifier(Enum):
    fcn = "fcn"
    cnn = "cnn"


class Family(Enum):
    affine = "affine"
    projective = "projective"
    tps = "tps"


class Sampler(Enum):
    integer = "integer"
    bilinear = "bilinear"
    bicubic = "bicubic"
    learned = "learned"


@dataclass
class DistortionConfig:
    kind: Distortion
    rotation: float
    scale: tuple[float, float]
    roam: bool
    sigma: float
    control_points: int
    patches: int
    patch_side: int
    tiled: bool = False


@dataclass(kw_only=True)
class MnistDataConfig(DataConfig):
    source: Source
    pool: int
    train: Train
    draws: int
    undo: Any = False  # True, or the names in `POSE` that are undone
    distortion: DistortionConfig


@dataclass(kw_only=True)
class MnistLocalisationConfig(LocalisationConfig):
    hidden: int
    layers: int


@dataclass(kw_only=True)
class MnistModelConfig(ModelConfig):
    classifier: Classifier
    width: int | None
    match_filters: int
    parameters: int | None = None
    parallel: int = 1
    transformation: Family | None
    sampler: Sampler
    localisation: MnistLocalisationConfig


DIGIT = 28  # pixels: the side of an undistorted digit
CNN_SIDE = 21  # pixels: the least that the CNN's two convolutions and poolings take
ST_CNN_SIDE = 28  # pixels: the least that the localisation network of the ST-CNNs takes
POSE = ("angle", "scale", "x", "y")  # of a digit: degrees counter-clockwise, a factor, pixels
DATA, MODEL = MnistDataConfig, MnistModelConfig
SMALLEST = {
    "data.pool": 1,
    "data.draws": 1,
    "data.distortion.sigma": 0,
    "data.distortion.control_points": 2,
    "data.distortion.patches": 0,
    "data.distortion.patch_side": 1,
    "model.width": 1,
    "model.match_filters": 1,
    "model.parameters": 1,
    "model.parallel": 1,
    "model.localisation.hidden": 1,
    "model.localisation.layers": 1,
}


def check(cfg: DictConfig) -> None:
    """Raise UserError for bad settings of a distortion, and for a network that they, or `data.kind`, do not fit."""
    check_distortion(cfg.data)
    undo = OmegaConf.to_container(cfg.data.undo) if OmegaConf.is_list(cfg.data.undo) else cfg.data.undo
    if isinstance(undo, list):
        if not undo or not all(name in POSE for name in undo) or len(set(undo)) < len(undo):
            raise UserError(f"data.undo={undo} is not part of a pose: give some of {', '.join(POSE)}, each once")
        if cfg.data.distortion.kind != Distortion.pose:
            raise UserError(
                f"data.undo={undo}: the distortion of data={cfg.data.name} is not a pose; give true or false"
            )
    elif not isinstance(undo, bool):
        raise UserError(f"data.undo={undo}: give true, false, or some of {', '.join(POSE)}, such as [angle,scale]")
    if cfg.model is not None and cfg.model.parallel > 1:
        raise UserError(f"model.parallel={cfg.model.parallel}: data={cfg.data.name} takes one transformer; drop it")
    if cfg.model is not None and cfg.model.transformation is None and cfg.model.sampler != Sampler.bilinear:
        raise UserError(
            f"model.sampler={cfg.model.sampler.name}: model={cfg.model.name} has no transformer that samples; drop it"
        )
    if is_built(cfg):
        side = DIGIT if cfg.data.undo is True else cfg.data.canvas
        if cfg.model.transformation is not None and side % cfg.data.pool:
            raise UserError(
                f"data.pool={cfg.data.pool} does not divide the {side} pixels of the images: give 1, or another divisor"
            )
        check_side(cfg, side)


def is_built(cfg: DictConfig) -> bool:
    """Whether a command builds the network of `cfg.model`: it may do without, or take that of a checkpoint."""
    return cfg.model is not None and not cfg.checkpoint and not cfg.weights


def check_distortion(data: DictConfig) -> None:
    """Raise UserError for settings of a distortion that give no images."""
    low, high = data.distortion.scale
    if not 0 < low <= high:
        raise UserError(
            f"data.distortion.scale={list(data.distortion.scale)} must be the least and the largest scale, above 0: "
            "give, for example, [0.7,1.2]"
        )
    if data.distortion.kind != Distortion.clutter:
        return
    if data.canvas < DIGIT:
        raise UserError(f"data.canvas={data.canvas} is too small: clutter is added to a digit of {DIGIT} pixels")
    if data.distortion.patch_side > DIGIT:
        raise UserError(
            f"data.distortion.patch_side={data.distortion.patch_side} is too large: patches are cut from digits of "
            f"{DIGIT} pixels"
        )


def check_side(cfg: DictConfig, side: int) -> None:
    """Raise UserError if images of `side` pixels, pooled behind a transformer, are too small for a network's CNNs."""
    if cfg.model.classifier != Classifier.cnn:
        return
    pool = 1 if cfg.model.transformation is None else cfg.data.pool
    if pool > 1 and math.ceil(side / pool) < CNN_SIDE:
        raise UserError(
            f"data.pool={pool} leaves {math.ceil(side / pool)} of {side} pixels to model={cfg.model.name}, which takes "
            f"{CNN_SIDE} at least: lower it"
        )
    least = CNN_SIDE if cfg.model.transformation is None else ST_CNN_SIDE
    if side < least:
        raise UserError(f"data.canvas={side} is too small: model={cfg.model.name} takes {least} pixels at least")


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, and so may be trained with exploration."""
    return model.transformation is not None

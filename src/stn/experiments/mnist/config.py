"""The schema of distorted MNIST: `data.kind=mnist`."""

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


POSE = ("angle", "scale", "x", "y")  # of a digit: degrees counter-clockwise, a factor, pixels
DATA, MODEL = MnistDataConfig, MnistModelConfig
SMALLEST = {
    "data.pool": 1,
    "data.draws": 1,
    "model.width": 1,
    "model.match_filters": 1,
    "model.parameters": 1,
    "model.parallel": 1,
    "model.localisation.hidden": 1,
    "model.localisation.layers": 1,
}


def check(cfg: DictConfig) -> None:
    """Raise UserError for a bad `data.undo`, and for parallel transformers, which need `data.kind=addition`."""
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


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, and so may be trained with exploration."""
    return model.transformation is not None

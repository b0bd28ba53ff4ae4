"""The schema of house numbers: `data.kind=svhn`."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import DictConfig

from stn.config import DataConfig, LocalisationConfig, ModelConfig


class Archive(Enum):
    svhn = "svhn"
    svhn_strips = "svhn_strips"


class Transformers(Enum):
    none = "none"
    single = "single"
    multi = "multi"


class Sampler(Enum):
    integer = "integer"
    bilinear = "bilinear"
    bicubic = "bicubic"


@dataclass
class AugmentConfig:
    scale: float
    shift: float
    contrast: float
    blur: float


@dataclass(kw_only=True)
class SvhnDataConfig(DataConfig):
    source: Archive
    extra: bool
    expand: float
    place: tuple[float, float] | None
    window: int | None
    centred: bool
    augment: AugmentConfig


@dataclass(kw_only=True)
class SvhnModelConfig(ModelConfig):
    transformers: Transformers
    width: float
    dropout: float
    sampler: Sampler
    localisation: LocalisationConfig


DATA, MODEL = SvhnDataConfig, SvhnModelConfig
SMALLEST = {
    "data.expand": 0,
    "data.window": 16,
    "model.width": 0.01,
}


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, with which it may explore."""
    return getattr(model.transformers, "name", model.transformers) != "none"

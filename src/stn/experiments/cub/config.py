"""The schema of birds: `data.kind=cub`."""

from dataclasses import dataclass
from enum import Enum

from stn.config import DataConfig, LocalisationConfig, ModelConfig


class Archive(Enum):
    cub = "cub"


class Head(Enum):
    linear = "linear"
    bilinear = "bilinear"


@dataclass(kw_only=True)
class CubDataConfig(DataConfig):
    """`canvas` is the side of the images that a network gets, `side` the shorter one of the stored images."""

    source: Archive
    classes: int
    side: int


@dataclass(kw_only=True)
class CubModelConfig(ModelConfig):
    windows: int | None
    fixed: bool
    size: int
    trunk: str
    node: str | None
    pretrained: bool
    frozen_norm: bool
    shared: bool
    head: Head
    head_rate: float
    dropout: float
    localisation: LocalisationConfig


DATA, MODEL = CubDataConfig, CubModelConfig
SMALLEST = {
    "data.classes": 2,
    "data.side": 1,
    "model.windows": 1,
    "model.size": 1,
    "model.head_rate": 0,
}

"""The schema of digits in three dimensions: `data.kind=volumes`."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import DictConfig

from stn.schema import DataConfig, LocalisationConfig, ModelConfig


class Source(Enum):
    mnist = "mnist"
    digits = "digits"


@dataclass(kw_only=True)
class VolumesDataConfig(DataConfig):
    """`canvas` is the side of the volumes."""

    source: Source
    thickness: int
    rotation: float
    scale: tuple[float, float]
    roam: bool
    projection: int
    undo: bool = False


@dataclass(kw_only=True)
class VolumesLocalisationConfig(LocalisationConfig):
    downsample: int


@dataclass(kw_only=True)
class VolumesModelConfig(ModelConfig):
    transformer: bool
    width: int | None
    match_filters: int
    localisation: VolumesLocalisationConfig


DATA, MODEL = VolumesDataConfig, VolumesModelConfig
SMALLEST = {
    "data.projection": 1,
    "model.width": 1,
    "model.match_filters": 1,
    "model.localisation.downsample": 1,
}


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, and so may be trained with exploration."""
    return bool(model.transformer)

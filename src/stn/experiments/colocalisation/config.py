"""The schema of co-localisation: `data.kind=colocalisation`."""

from dataclasses import dataclass
from enum import Enum

from stn.schema import DataConfig, LocalisationConfig, ModelConfig


class Source(Enum):
    mnist = "mnist"
    digits = "digits"


class HeldOut(Enum):
    validation = "validation"
    test = "test"


@dataclass(kw_only=True)
class ColocalisationDataConfig(DataConfig):
    source: Source
    digits: HeldOut
    images: int
    patches: int
    patch_side: int


@dataclass(kw_only=True)
class ColocalisationModelConfig(ModelConfig):
    crop: int
    margin: float
    start: float
    smallest: float
    layers: list[int]
    filters: int
    pretrained: str
    localisation: LocalisationConfig
    starts: int = 1
    race: int = 2000


DATA, MODEL = ColocalisationDataConfig, ColocalisationModelConfig
SMALLEST = {
    "data.images": 2,
    "data.patches": 0,
    "data.patch_side": 1,
    "model.margin": 0,
    "model.filters": 1,
    "model.starts": 1,
    "model.race": 1,
}

"""The schema of house numbers: `data.kind=svhn`."""

from dataclasses import dataclass

from stn.config import DataConfig, ModelConfig, choice

Archive = choice("Archive", "svhn", "svhn_strips")
Transformers = choice("Transformers", "none", "single", "multi")
Sampler = choice("Sampler", "integer", "bilinear", "bicubic")


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


@dataclass
class LocalisationConfig:
    filters: int
    features: int


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
    "model.localisation.filters": 1,
    "model.localisation.features": 1,
}

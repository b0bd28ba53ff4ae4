"""The schema of birds: `data.kind=cub`."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import DictConfig

from stn.errors import UserError
from stn.schema import DataConfig, LocalisationConfig, ModelConfig


class Archive(Enum):
    cub = "cub"


class Head(Enum):
    linear = "linear"
    bilinear = "bilinear"


@dataclass(kw_only=True)
class CubDataConfig(DataConfig):
    """`canvas` is the side of a network's input images, `side` the shorter side of the stored images."""

    source: Archive
    classes: int
    side: int
    annotated: bool = False


@dataclass(kw_only=True)
class CubLocalisationConfig(LocalisationConfig):
    side: int | None = None


@dataclass(kw_only=True)
class CubModelConfig(ModelConfig):
    windows: int | None
    fixed: bool
    size: int
    trunk: str
    node: str | None
    pretrained: bool
    frozen_norm: bool
    frozen: str | None = None
    spread: float = 1.0
    reach: float | None = None
    shared: bool
    head: Head
    head_rate: float
    dropout: float
    localisation: CubLocalisationConfig


DATA, MODEL = CubDataConfig, CubModelConfig
SMALLEST = {
    "data.classes": 2,
    "data.side": 1,
    "model.windows": 1,
    "model.size": 1,
    "model.head_rate": 0,
    "model.spread": 0,
    "model.localisation.side": 1,
}


def check(cfg: DictConfig) -> None:
    """Raise UserError for an invalid reach, windows with equal starts, or annotations without two windows."""
    model = cfg.model
    if model is not None and model.reach is not None and not model.reach > 0:
        raise UserError(f"model.reach={model.reach} must be positive, or null for no bound")
    if model is not None and model.spread == 0 and (model.windows or 1) > 1:
        raise UserError("model.spread=0 starts all windows in the middle, where they stay alike: give 0.5, for example")
    if model is not None and cfg.data.annotated and model.windows != 2:
        raise UserError(f"data.annotated=true gives two windows, at head and body: model={model.name} does not have 2")


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, and so may be trained with exploration."""
    return model.windows is not None


has_random_places = has_transformer  # every network with windows may be trained with them at random places

"""The schema of house numbers: `data.kind=svhn`."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stn.errors import UserError
from stn.schema import DataConfig, LocalisationConfig, ModelConfig


class Archive(Enum):
    svhn = "svhn"
    svhn_strips = "svhn_strips"
    svhn_photos = "svhn_photos"


class Transformers(Enum):
    none = "none"
    single = "single"
    multi = "multi"


class Family(StrEnum):  # so that a default is what a config of primitives says
    affine = "affine"
    crop = "crop"


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
    window: float = 0.0


@dataclass(kw_only=True)
class SvhnDataConfig(DataConfig):
    source: Archive
    extra: bool
    expand: float
    place: Any  # None, a pair of numbers, or a pair of such pairs
    window: int | None
    centred: bool
    augment: AugmentConfig
    whole: bool = False


@dataclass(kw_only=True)
class SvhnLocalisationConfig(LocalisationConfig):
    side: int | None = None
    he: bool = False


@dataclass(kw_only=True)
class SvhnModelConfig(ModelConfig):
    transformers: Transformers
    width: float
    dropout: float
    sampler: Sampler
    size: int | None = None
    family: Family = Family.affine
    reach: float | None = None
    smallest: float = 0.5
    localisation: SvhnLocalisationConfig


DATA, MODEL = SvhnDataConfig, SvhnModelConfig
RANDOM_PLACES = True  # its windows may stand at random places: `budget.random_share`
SMALLEST = {
    "data.expand": 0,
    "data.window": 16,
    "model.width": 0.01,
    "model.size": 16,
    "model.localisation.side": 2,
}


def check(cfg: DictConfig) -> None:
    """A UserError for shares of the canvas that are none, and for what no transformer can do."""
    _check_place(cfg.data.place)
    share = cfg.data.augment.window
    if not 0 <= share <= 1:
        raise UserError(f"data.augment.window={share} is no share of the images: give one from 0 to 1")
    if share and cfg.data.window is not None:
        raise UserError("data.augment.window and data.window both choose what is shown: drop one of them")
    model, side = cfg.model, cfg.data.window or cfg.data.canvas
    if model is None:
        return
    if model.size is not None and model.size > side:
        raise UserError(f"model.size={model.size} is larger than the images of {side} pixels: give at most {side}")
    if model.reach is not None and not model.reach > 0:
        raise UserError(f"model.reach={model.reach} is no way to go: give a positive number, or null for no bound")
    if not 0 < model.smallest <= 1:
        raise UserError(f"model.smallest={model.smallest} is no share of a side: give one above 0, up to 1")


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, with which it may explore."""
    return getattr(model.transformers, "name", model.transformers) != "none"


def _check_place(place: Any) -> None:
    """A UserError for a `data.place` that is neither a range of shares nor two of them."""
    if place is None:
        return
    ranges = OmegaConf.to_container(place) if OmegaConf.is_list(place) else place
    if not _is_range(ranges) and not (isinstance(ranges, list) and len(ranges) == 2 and all(map(_is_range, ranges))):
        raise UserError(
            f"data.place={place} is no place: give the least and the largest share of the canvas that a number takes, "
            "such as [0.3,1.0], or such a pair for x and one for y"
        )


def _is_range(value: Any) -> bool:
    """Whether a value is [low, high], two shares of a side."""
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(share, int | float) for share in value)
    return numbers and 0 < value[0] <= value[1] <= 1

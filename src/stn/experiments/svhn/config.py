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


class Family(StrEnum):  # a string, so that a default equals the value in a config of primitives
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
    held: tuple[float, float] = (0.4, 0.9)


@dataclass(kw_only=True)
class SvhnLocalisationConfig(LocalisationConfig):
    side: int | None = None
    he: bool = False
    standardised: bool = False


@dataclass(kw_only=True)
class SvhnModelConfig(ModelConfig):
    transformers: Transformers
    width: float
    dropout: float
    sampler: Sampler
    size: int | None = None
    family: Family = Family.affine
    reach: float | None = None
    reach_sides: float | None = None
    start: tuple[float, float] | None = None
    localisation: SvhnLocalisationConfig


DATA, MODEL = SvhnDataConfig, SvhnModelConfig
SMALLEST = {
    "data.expand": 0,
    "data.window": 16,
    "model.width": 0.01,
    "model.size": 16,
    "model.localisation.side": 2,
}


def check(cfg: DictConfig) -> None:
    """Raise UserError for shares of the canvas outside (0, 1], and for settings that no transformer supports."""
    data, model, side = cfg.data, cfg.model, cfg.data.window or cfg.data.canvas
    _check_place(data.place)
    if not _is_range(list(data.held)):
        raise UserError(f"data.held={data.held} must be two shares of the side, above 0 and up to 1, such as [0.4,0.9]")
    if cfg.budget.random_share and data.window is not None:
        raise UserError(
            f"budget.random_share={cfg.budget.random_share}: data.window already chooses what is shown; set it to null"
        )
    if model is None:
        return
    if model.size is not None and model.size > side:
        raise UserError(f"model.size={model.size} is larger than the images of {side} pixels: give at most {side}")
    for key in ("reach", "reach_sides"):
        if model[key] is not None and not model[key] > 0:
            raise UserError(f"model.{key}={model[key]} must be positive, or null for no bound")
    if model.family != Family.crop and (model.start is not None or model.reach_sides is not None):
        raise UserError(f"model.start and model.reach_sides belong to model.family=crop, not to {model.family}")
    if model.start is not None and not all(0 < share <= 1 for share in model.start):
        raise UserError(f"model.start={model.start} must be the two sides of a window, as shares above 0 and up to 1")


def has_random_places(model: DictConfig) -> bool:
    """Whether a network may be trained on random windows (`budget.random_share`): every network may."""
    return True


def has_transformer(model: DictConfig) -> bool:
    """Whether a network has a transformer, and so may be trained with exploration."""
    return getattr(model.transformers, "name", model.transformers) != "none"


def _check_place(place: Any) -> None:
    """Raise UserError unless `data.place` is None, a range of shares, or two such ranges."""
    if place is None:
        return
    ranges = OmegaConf.to_container(place) if OmegaConf.is_list(place) else place
    if not _is_range(ranges) and not (isinstance(ranges, list) and len(ranges) == 2 and all(map(_is_range, ranges))):
        raise UserError(
            f"data.place={place} must be the least and the largest share of the canvas that a number takes, "
            "such as [0.3,1.0], or one such pair for x and one for y"
        )


def _is_range(value: Any) -> bool:
    """Whether a value is a list [low, high] with 0 < low <= high <= 1."""
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(share, int | float) for share in value)
    return numbers and 0 < value[0] <= value[1] <= 1

"""The schema of MNIST addition: `data.kind=addition`. Networks have the schema of distorted MNIST."""

from dataclasses import dataclass

from omegaconf import DictConfig

from stn.errors import UserError
from stn.experiments.mnist.config import (
    SMALLEST,
    MnistDataConfig,
    MnistModelConfig,
    check_distortion,
    check_side,
    has_transformer,
    is_built,
)

__all__ = ["DATA", "MODEL", "SMALLEST", "check", "has_transformer"]


@dataclass(kw_only=True)
class AdditionDataConfig(MnistDataConfig):
    """Pairs of digits, distorted as in a set of distorted MNIST."""


DATA, MODEL = AdditionDataConfig, MnistModelConfig


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings that pairs of digits do not support."""
    check_distortion(cfg.data)
    if cfg.data.undo:
        raise UserError(f"data.undo=true: the digits of data={cfg.data.name} have a pose each; drop it")
    if cfg.model is not None and cfg.model.parallel > 1 and cfg.model.transformation is None:
        raise UserError(f"model.parallel={cfg.model.parallel}: model={cfg.model.name} has no transformer; drop it")
    if is_built(cfg):
        check_side(cfg, cfg.data.canvas)

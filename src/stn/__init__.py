"""Spatial Transformer Networks (Jaderberg et al., 2015): the module, the experiments, the numbers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn.geometry.sampling import LearnableSampler, bicubic, bilinear, integer, trilinear
    from stn.geometry.transforms import (
        Affine,
        Affine3D,
        Attention,
        Crop,
        Projective,
        Rotation,
        Similarity,
        ThinPlateSpline,
        Translation,
    )
    from stn.nn.transformer import SpatialTransformer
    from stn.weights import list_weights, load

__all__ = [
    "Affine",
    "Affine3D",
    "Attention",
    "Crop",
    "LearnableSampler",
    "Projective",
    "Rotation",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Translation",
    "bicubic",
    "bilinear",
    "integer",
    "list_weights",
    "load",
    "trilinear",
]
_WEIGHTS = {"list_weights", "load"}
_SAMPLERS = {"LearnableSampler", "bicubic", "bilinear", "integer", "trilinear"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on demand: the front doors report a misspelt key before torch is loaded.
    if name == "SpatialTransformer":
        return import_module("stn.nn.transformer").SpatialTransformer
    if name in _WEIGHTS:
        return getattr(import_module("stn.weights"), name)
    return getattr(import_module("stn.geometry.sampling" if name in _SAMPLERS else "stn.geometry.transforms"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

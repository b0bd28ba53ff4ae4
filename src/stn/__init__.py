"""Spatial Transformer Networks (Jaderberg et al., 2015): the module, the experiments, the numbers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn.models.transformer import SpatialTransformer

__all__ = ["SpatialTransformer"]


def __getattr__(name: str):
    if name == "SpatialTransformer":  # when asked for: the front doors tell a misspelt key before torch is loaded
        from stn.models.transformer import SpatialTransformer

        return SpatialTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

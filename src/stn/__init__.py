"""Spatial Transformer Networks (Jaderberg et al., 2015): the module, the experiments, the numbers."""

from stn.models.transformer import SpatialTransformer

__all__ = ["SpatialTransformer"]

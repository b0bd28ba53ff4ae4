"""The spatial transformer (paper, section 3): localisation network, sampling grid and sampler in one module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stn.geometry.sampling import bilinear
from stn.geometry.transforms import Affine, Transformation, full_precision


class SpatialTransformer(nn.Module):
    """Warps its input U (B, C, H, W) by the theta that its localisation network reads from U.

    It can stand anywhere in a network: at the input, between convolutions (C is free), in depth, or several in
    parallel. With `Affine3D` and `trilinear` U and V are volumes (B, C, D, H, W). The regression layer that ends the
    localisation starts with zero weights and the identity as its bias, so an untrained transformer hands its input on
    unchanged.

    Args:
        localisation: any module that maps U to features (B, F).
        features: F.
        transformation: the family T_theta (`stn.geometry.transforms`).
        sampler: called as `sampler(U, grid)`; a function of `stn.geometry.sampling`, or a module with parameters.
        size: the target size (h, w) in pixels, or (d, h, w); the size of U if not given. A smaller one downsamples.
        starts: (N, P), the thetas at which N parallel transformers start. They share the localisation network, and
            must start at different places: with equal starts they would receive equal gradients and never part.

    Returns (from a call):
        V (B, C, h, w), or (B, N, C, h, w) if `starts` are given. With `return_theta=True` the pair (V, theta), where
        theta is (B, P), or (B, N, P).
    """

    def __init__(
        self,
        localisation: nn.Module,
        features: int,
        transformation: Transformation | None = None,
        sampler: Callable[[Tensor, Tensor], Tensor] = bilinear,
        size: tuple[int, ...] | None = None,
        starts: Tensor | None = None,
    ):
        super().__init__()
        self.localisation = localisation
        self.transformation = transformation or Affine()
        self.sampler = sampler
        self.size = None if size is None else tuple(size)
        n_parameters = self.transformation.n_parameters
        if starts is not None:
            if starts.ndim != 2 or starts.shape[1] != n_parameters:
                raise ValueError(f"starts must have shape (N, {n_parameters}), not {tuple(starts.shape)}")
            if len(starts.unique(dim=0)) < len(starts):
                raise ValueError("parallel transformers must start at different thetas, or they never part")
        self.parallel = None if starts is None else len(starts)
        bias = self.transformation.identity() if starts is None else starts.flatten()
        self.regression = nn.Linear(features, len(bias))
        nn.init.zeros_(self.regression.weight)
        with torch.no_grad():
            self.regression.bias.copy_(bias)

    def theta(self, U: Tensor) -> Tensor:
        """f_loc(U): theta (B, P), or (B, N, P) for N parallel transformers; float32 also under autocast."""
        features = self.localisation(U)
        with full_precision(U):
            theta = self.regression(features.to(self.regression.weight.dtype))
        return theta if self.parallel is None else theta.unflatten(1, (self.parallel, -1))

    def forward(self, U: Tensor, return_theta: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        theta = self.theta(U)
        size = self.size or tuple(U.shape[2:])
        if self.parallel is None:
            V = self.sampler(U, self.transformation.grid(theta, size))
        else:
            grids = self.transformation.grid(theta.flatten(0, 1), size).unflatten(0, (-1, self.parallel))
            V = self.sampler(U, grids.flatten(1, 2))  # one tall target, so that U need not be repeated
            V = V.unflatten(2, (self.parallel, -1)).transpose(1, 2)
        return (V, theta) if return_theta else V

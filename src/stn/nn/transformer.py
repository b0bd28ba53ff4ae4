"""The spatial transformer (paper, section 3): localisation network, sampling grid and sampler in one module."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stn.geometry.sampling import PADDING_MODES, bilinear
from stn.geometry.transforms import Affine, Size, Transformation, check_size, full_precision


class SpatialTransformer(nn.Module):
    """Warps its input U (B, C, H, W) by the theta that its localisation network reads from U.

    It can stand anywhere in a network: at the input, between convolutions (C is free), in depth, or several in
    parallel. With `Affine3D` and `trilinear` U and V are volumes (B, C, D, H, W). The regression layer that ends the
    localisation starts with zero weights and the identity as its bias, so an untrained transformer returns its input
    unchanged.

    Args:
        localisation: any module that maps U to features (B, F).
        features: F.
        transformation: the family T_theta (`stn.geometry.transforms`).
        sampler: called as `sampler(U, grid)`; a function of `stn.geometry.sampling`, or a module with parameters.
        size: the target size (h, w) in pixels, or (d, h, w), or one integer for all sides; the size of U if not
            given. A smaller one downsamples.
        starts: (P,), the initial theta, in place of the identity; or (N, P), the initial thetas of N parallel
            transformers. These share the localisation network, and must start at different places: with equal starts
            they would receive equal gradients, and stay equal, if the layers behind treat their outputs alike.
        reach: how far each parameter may move from its start: a positive number, or P of them (`inf`: unbounded).
            theta = start + reach * tanh((raw - start) / reach), with `raw` from the regression layer, has slope 1 at
            the start and never leaves start ± reach. Without `reach`, theta is the output of the regression layer.
        padding_mode: what the sampler reads outside of U: "zeros", "border" or "reflection". It is passed to the
            sampler as a keyword argument, but only if it is not "zeros".

    Returns (from a call):
        V (B, C, h, w), or (B, N, C, h, w) for N parallel transformers. With `return_theta=True` the pair (V, theta),
        where theta is (B, P), or (B, N, P).

    Raises:
        ValueError: from invalid arguments, and from a call with U of other dimensions than the family's.
    """

    if TYPE_CHECKING:  # buffers
        start: Tensor  # None where `reach` is
        reach: Tensor | None

    def __init__(
        self,
        localisation: nn.Module,
        features: int,
        transformation: Transformation | None = None,
        sampler: Callable[..., Tensor] = bilinear,
        size: Size | None = None,
        starts: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        reach: float | Sequence[float] | Tensor | None = None,
        padding_mode: str = "zeros",
    ):
        super().__init__()
        self.localisation = localisation
        self.transformation = Affine() if transformation is None else transformation
        if not isinstance(self.transformation, Transformation):
            raise ValueError(f"transformation must be an object of a family, such as Affine(), not {transformation!r}")
        if not callable(sampler):
            raise ValueError(f"sampler must be a function or a module, such as stn.bilinear, not {sampler!r}")
        if not hasattr(features, "__index__") or features < 1:
            raise ValueError(f"features must be a positive integer, not {features!r}")
        self.sampler = sampler
        self.size = None if size is None else check_size(size, self.transformation.dimensions)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, not {padding_mode!r}")
        self.padding_mode = padding_mode
        n_parameters = self.transformation.n_parameters
        if starts is not None:
            starts = torch.as_tensor(starts)
            if starts.ndim not in (1, 2) or starts.shape[-1] != n_parameters or not starts.numel():
                shapes = f"({n_parameters},) or (N, {n_parameters})"
                raise ValueError(f"starts must have shape {shapes}, not {tuple(starts.shape)}")
            if not starts.is_meta and not starts.isfinite().all():
                raise ValueError("starts must be finite numbers")
            if starts.ndim == 2 and len(starts.unique(dim=0)) < len(starts):
                raise ValueError("parallel transformers must start at different thetas, or they never part")
        self.parallel = None if starts is None or starts.ndim == 1 else len(starts)
        bias = self.transformation.identity() if starts is None else starts.flatten()
        self.regression = nn.Linear(features, len(bias))
        nn.init.zeros_(self.regression.weight)
        with torch.no_grad():
            self.regression.bias.copy_(bias)
        # Not persistent: checkpoints do not depend on whether theta is bounded.
        self.limits = start = limits = None
        if reach is not None:
            self.limits = _limits(reach, n_parameters)
            start = bias.to(self.regression.bias)
            limits = torch.tensor(self.limits * (self.parallel or 1), dtype=torch.float64).to(self.regression.bias)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("reach", limits, persistent=False)

    def theta(self, U: Tensor) -> Tensor:
        """f_loc(U): theta (B, P), or (B, N, P) for N parallel transformers; float32 also under autocast."""
        features = self.localisation(U)
        with full_precision(U):
            theta = self.regression(features.to(self.regression.weight.dtype))
            if self.reach is not None:
                theta = _bounded(theta, self.start, self.reach)
        return theta if self.parallel is None else theta.unflatten(1, (self.parallel, -1))

    def forward(self, U: Tensor, return_theta: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        family = self.transformation
        if U.ndim != 2 + family.dimensions:
            shape = "(B, C, D, H, W)" if family.dimensions == 3 else "(B, C, H, W)"
            raise ValueError(f"{type(family).__name__} transforms U of shape {shape}, not {tuple(U.shape)}")
        theta, source_size = self.theta(U), tuple(U.shape[2:])
        size = self.size or source_size
        padding = {} if self.padding_mode == "zeros" else {"padding_mode": self.padding_mode}
        if self.parallel is None:
            V = self.sampler(U, family.grid(theta, size, source_size), **padding)
        else:
            grids = family.grid(theta.flatten(0, 1), size, source_size).unflatten(0, theta.shape[:2])
            V = self.sampler(U, grids.flatten(1, 2), **padding)  # one tall target, so that U need not be repeated
            V = V.unflatten(2, (self.parallel, -1)).transpose(1, 2)
        return (V, theta) if return_theta else V

    def extra_repr(self) -> str:
        parts: dict[str, object] = {
            "transformation": self.transformation,
            "size": self.size,
            "padding_mode": self.padding_mode,
        }
        if not isinstance(self.sampler, nn.Module):  # which torch shows by itself
            parts["sampler"] = getattr(self.sampler, "__name__", self.sampler)
        if self.parallel is not None:
            parts["parallel"] = self.parallel
        parts["reach"] = self.limits if self.limits is None or len(set(self.limits)) > 1 else self.limits[0]
        return ", ".join(f"{name}={value}" for name, value in parts.items())


def _limits(reach: float | Sequence[float] | Tensor, n: int) -> list[float]:
    """`reach` as n Python floats, which can be checked even while modules are made without data (device "meta")."""
    if isinstance(reach, bool):
        raise ValueError(f"reach must be a positive number, or {n} of them, one a parameter, not {reach!r}")
    values = reach.tolist() if hasattr(reach, "tolist") else reach
    try:
        values = [float(value) for value in (values if isinstance(values, Iterable) else [values] * n)]
    except (TypeError, ValueError):
        values = []
    if len(values) != n or not all(value >= torch.finfo(torch.float32).tiny for value in values):
        raise ValueError(f"reach must be a positive number, or {n} of them, one a parameter, not {reach!r}")
    return values


def _bounded(raw: Tensor, start: Tensor, reach: Tensor) -> Tensor:
    """start + reach * tanh((raw - start) / reach), and `raw` where the reach is infinite."""
    free = reach.isinf()
    limit = reach.masked_fill(free, 1)
    return torch.where(free, raw, start + limit * torch.tanh((raw - start) / limit))

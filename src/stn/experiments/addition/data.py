"""Pairs of distorted digits, each in a channel of its own, whose label is their sum (paper, appendix A.1)."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from stn.data.draws import generator
from stn.experiments.mnist.data import (
    POSES,
    Digits,
    DigitSets,
    StoredSet,
    distorted,
    distortion,
    fetch,
    nine_points,
    stored_folder,
    stored_splits,
    undistorted,
    write_sets,
)

DOOR = "distort"  # `python -m stn.distort` stores its sets

__all__ = ["AdditionSource", "fetch", "source", "store", "stored_folder"]
EXAMPLES = 4  # test pairs that the figure shows


def store(data: DictConfig, scratch: Path) -> dict:
    """Write the stored sets, as `stn.experiments.mnist.data.store` does: images (n, 2, canvas, canvas), labels (n, 2).

    Each digit of a split is the first digit of `data.draws` pairs, or of one in a frozen training set. The second digit
    is drawn from the same split. The two are distorted independently.
    """
    warp, splits = distortion(data), undistorted(data)
    sets = (
        (split, _pairs(warp, splits[split], copies, generator(data.seed, f"{split} pairs")))
        for split, copies in stored_splits(data)
    )
    return write_sets(data, _recipe(data), warp.names, sets, scratch)


def _pairs(warp, digits: Digits, copies: int, draws: torch.Generator) -> StoredSet:
    n = len(digits.labels)
    partners = torch.randint(n, (copies * n,), generator=draws)
    first = distorted(warp, digits, copies, draws)
    second = distorted(warp, Digits(digits.images[partners], digits.labels[partners]), 1, draws)
    names = ("images", "labels", "parameters")
    return StoredSet(*(torch.stack([getattr(first, name), getattr(second, name)], 1) for name in names))


def _recipe(data: DictConfig) -> str:
    return f"pairs of {distortion(data)!r}"


class AdditionSource(DigitSets):
    """The data source. Batches are (pairs (B, 2, canvas, canvas) float in [0, 1], sums (B,)), on the device."""

    chunk = 500  # pairs of a validation or test batch
    images_per_pick = 1  # of a training batch; a pair is one image with two channels

    def __init__(self, data: DictConfig):
        super().__init__(data, _recipe(data))
        self.shape = (2, data.canvas, data.canvas)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stored pairs `index` (B,) of a split."""
        images, labels = self._resident(split, device)
        return images[index].float() / 255, labels[index].sum(1)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training digits `index` (B,), each with a random second digit, both distorted.

        They are `part` of the global batch of `size`. In an epoch every digit is the first of one pair, and the second
        digits are drawn again in each epoch.
        """
        if self.data.train.name == "frozen":
            return self.batch("train", index, device)
        digits, labels = self._resident("train", device)
        partners = torch.randint(len(labels), (size,), generator=draws, device=draws.device)[part]
        parameters = self.warp.draw(2 * size, draws).view(size, 2, -1)[part]
        pairs = torch.stack([index.to(device), partners.to(device)], 1)
        images = self.warp.render(parameters.flatten(0, 1), digits[pairs.flatten()], digits)
        return images.view(len(pairs), 2, *images.shape[2:]), labels[pairs].sum(1)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays for the report, from the test set; empty without transformers, of which there are N.

        Of the first E test pairs: example_input (E, 2, canvas, canvas), example_digits (E, 2), example_said (E,) the
        predicted sums, example_grid (E, N, canvas, canvas, 2) and example_output (E, 2N, side, side), the classifier's
        input. Of the first POSES pairs: pair_before (POSES, 2, 9, 2) and pair_after (POSES, N, 2, 9, 2), the points of
        each undistorted digit that appear at nine fixed points of the canvas, and at nine of each transformer's output;
        theta (POSES, N, P), which replaces that of all pairs to keep the record small.
        """
        if "theta" not in arrays:
            return {}
        test_set, device = self.sets["test"], next(network.parameters()).device
        transformation = network.transformers[0].transformation  # type: ignore[index, union-attr]  # an `AdditionNetwork`
        theta = torch.from_numpy(arrays["theta"]).to(device)  # (n, N, P)
        examples = torch.arange(min(EXAMPLES, len(test_set.labels)))
        images, _ = self.batch("test", examples, device)
        points = nine_points(device)
        parameters = test_set.parameters[:POSES].to(device)  # type: ignore[union-attr]  # (POSES, 2, D)
        before = torch.stack([self.warp.digit_points(digit, points) for digit in parameters.unbind(1)], 1)
        sampled_points = [transformation.points(matrix, points) for matrix in theta[:POSES].unbind(1)]
        after = [
            torch.stack([self.warp.digit_points(digit, canvas_points) for digit in parameters.unbind(1)], 1)
            for canvas_points in sampled_points
        ]
        size = (self.data.canvas, self.data.canvas)
        tensors = {
            "example_input": test_set.images[examples],
            "example_digits": test_set.labels[examples],
            "example_said": network(images).argmax(1),
            "example_grid": torch.stack(
                [transformation.grid(matrix, size) for matrix in theta[examples].unbind(1)], 1
            ).half(),
            "example_output": (network.seen(images).float().clamp(0, 1) * 255).round().to(torch.uint8),  # type: ignore[operator]
            "pair_before": before.half(),
            "pair_after": torch.stack(after, 1).half(),
            "theta": theta[:POSES],
        }
        return {name: value.cpu().numpy() for name, value in tensors.items()}


def source(data: DictConfig) -> AdditionSource:
    """The data source of Table 4."""
    return AdditionSource(data)

"""What an experiment offers: the contracts between its data, its networks, the training loop and the reports.

Its `data.py` has `source(data)`, which returns a `DataSource`. Three more are optional: `fetch(data)` brings the raw
data to `data.raw` and returns the files; `store(data, scratch)` writes sets to `data.stored` (`stn.data.stored`) and
returns what `sets.json` says of them; and `DOOR`, "distort" or "crop", is the front door that calls `store`. "distort"
asks for `stored_folder(data)` too, where the sets lie. Its `networks.py` has `network(model, data)`, which returns a
`Network`. Its `config.py` has the schemas `DATA` and `MODEL`, and optionally `SMALLEST` values of keys, `check(cfg)`,
`has_transformer(model)`, whether a network may be trained with exploration (`stn.schema.BudgetConfig`), and
`has_random_places(model)`, whether it has `at_random_places`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class DataSource(Protocol):
    """What `source(data)` of an experiment's `data.py` returns: its images, split by split.

    The splits are "train", "validation" and "test". An image is what the network takes at once: in addition a pair of
    digits, in three dimensions a volume; B is a number of images.

    Three more are optional. `random_batch`, with the arguments of `train_batch`, is what a training batch is in the
    steps of `budget.random_share`, where it is another. `traced` is a number n: the theta of the first n validation
    images is recorded along the training, for figures. `train_block(index, draws, device)`, for picks (K, B) and a
    generator for each of K steps, returns the batches of K steps at once, (K, B, ...); a module that has it says so by
    `IN_BLOCKS = True`, and its networks must draw no random numbers.

    Attributes:
        shape: of one image, without B.
        images_per_pick: images of a training batch that each pick stands for.
        chunk: images that validation and test take at once.
    """

    shape: tuple[int, ...]
    images_per_pick: int
    chunk: int

    def load(self, split: str) -> None:
        """Read a split. UserError, one line that names the command that makes it, if it is missing or damaged."""

    def count(self, split: str) -> int:
        """How many images a split has; of "train", how many picks."""

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels `index` (B,) of a stored split, on the device."""

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Training images and labels, on the device.

        Args:
            index: the picks of this process.
            draws: for what is random; the same in all processes, which draw for the whole batch.
            size: of the whole batch, in picks.
            part: which of the whole batch's picks these are.
        """

    def evidence(self, network: nn.Module, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the record of a tested network holds besides `arrays`, its test results: examples, poses, boxes."""


class Network(Protocol):
    """What `network(model, data)` of an experiment's `networks.py` returns: an `nn.Module`.

    A call maps images to scores (B, classes) for labels (B,), or to (B, positions, classes) for labels (B, positions).
    A network that answers something else has an `objective`, with `loss` and `right` of
    `stn.training.learner.Classification`. One whose model config has `pretrained` has `load_pretrained()`, which loads
    its first weights and returns what they are. Where `budget.random_share` asks for it, `at_random_places(images,
    generator)` are the scores with its windows at random places. `explored` are the transformers that explore, where
    that is not all of them. For pictures in wandb, `seen(images)` is what the
    classifier sees (n, C, H, W), and `projected(images)` what it would see without a transformer, where images are
    volumes.
    """

    def __call__(self, images: Any) -> Tensor: ...

    def thetas(self, images: Any) -> dict[str, Tensor]:
        """What its transformers do, by the names of arrays in the record; nothing without transformers."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All its parameters that learn, by what their learning rate follows.

        "localisation" learns at `budget.localisation_rate` times the rate, "head" at `model.head_rate` times, "body" at
        the rate itself.
        """


if TYPE_CHECKING:

    class NetworkModule(nn.Module):
        """A `Network` as the `nn.Module` that it is, with what is optional: a type, of which there are no objects."""

        objective: Any

        def __call__(self, images: Any) -> Tensor: ...
        def thetas(self, images: Any) -> dict[str, Tensor]: ...
        def parameter_groups(self) -> dict[str, list[nn.Parameter]]: ...
        def load_pretrained(self) -> str: ...
        def at_random_places(self, images: Any, generator: torch.Generator) -> Tensor: ...
        def seen(self, images: Any) -> Tensor: ...
        def projected(self, images: Any) -> Tensor: ...


def group_parameters(network: nn.Module, **parts: nn.Module | None) -> dict[str, list[nn.Parameter]]:
    """The parameters of each of these parts of a network, and under "body" all others; those that learn."""
    groups = {name: _learning(part) if part is not None else [] for name, part in parts.items()}
    named = {id(parameter) for parameters in groups.values() for parameter in parameters}
    return {"body": [parameter for parameter in _learning(network) if id(parameter) not in named], **groups}


def _learning(part: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in part.parameters() if parameter.requires_grad]

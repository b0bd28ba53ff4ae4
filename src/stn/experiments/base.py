"""The interfaces between the data and networks of an experiment, the training loop and the reports.

`data.py` has `source(data)`, which returns a `DataSource`. The following are optional:
- `fetch(data)` downloads the raw data to `data.raw` and returns the files.
- `store(data, scratch)` writes sets to `data.stored` (`stn.data.stored`) and returns the contents of `sets.json`, with
  the number of `images` of each set.
- `DOOR`, "distort" or "crop", is the front door that calls `store`. "distort" also needs `stored_folder(data)`, the
  folder of the sets.

`networks.py` has `network(model, data)`, which returns a `Network`.

`config.py` has the schemas `DATA` and `MODEL`. Optional are `SMALLEST`, the smallest values of keys; `check(cfg)`;
`has_transformer(model)`, whether a network may be trained with exploration (`stn.schema.BudgetConfig`); and
`has_random_places(model)`, whether a network has `at_random_places`.

`table.py`, optional, has `TABLES`, the tables of the experiment (`stn.report.table.Table`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class DataSource(Protocol):
    """What `source(data)` of an experiment's `data.py` returns: the images and labels of each split.

    The splits are "train", "validation" and "test". An image is one input of the network, such as a pair of digits or a
    volume. B is a number of images. A pick is an index into the training split.

    The following are optional:
    - `random_batch`, with the arguments of `train_batch`, replaces it in the steps of `budget.random_share`.
    - `traced`, a number n: the theta of the first n validation images is recorded during training, for figures.
    - `train_block(index, draws, device)` takes picks (K, B) and a generator for each of K steps, and returns the
      batches of K steps at once, (K, B, ...). A module with it sets `IN_BLOCKS = True`, and its networks must not draw
      random numbers.

    Attributes:
        shape: of one image, without B.
        images_per_pick: number of images of a training batch for each pick.
        chunk: batch size of validation and test, in images.
    """

    shape: tuple[int, ...]
    images_per_pick: int
    chunk: int

    def load(self, split: str) -> None:
        """Read a split. Raises UserError, with the command that makes it, if it is missing or damaged."""

    def count(self, split: str) -> int:
        """The number of images of a split, or of picks for "train"."""

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels `index` (B,) of a stored split, on the device."""

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Training images and labels, on the device.

        Args:
            index: the picks of this process.
            draws: the same in all processes; each draws for the whole batch.
            size: of the whole batch, in picks.
            part: positions of this process's picks in the whole batch.
        """

    def evidence(self, network: nn.Module, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Further arrays for the record of a tested network, such as examples and poses; `arrays`: its test results."""


class Network(Protocol):
    """What `network(model, data)` of an experiment's `networks.py` returns: an `nn.Module`.

    A call maps images to scores (B, classes) for labels (B,), or to (B, positions, classes) for labels (B, positions).

    The following are optional:
    - `objective`, for a network with other outputs: `loss`, `right` and, for exploration, `losses`, as in
      `stn.training.learner.Classification`.
    - `load_pretrained()`, if the model config has `pretrained`: loads the initial weights and returns their name.
    - `at_random_places(images, generator)`, for `budget.random_share`: the scores with all windows at random places.
    - `explored`: the transformers that explore, if not all of them do.
    - `seen(images)` (n, C, H, W), for pictures in wandb: the input of the classifier.
    - `projected(images)`, if images are volumes: the classifier's input without the transformer.
    """

    def __call__(self, images: Any) -> Tensor: ...

    def thetas(self, images: Any) -> dict[str, Tensor]:
        """The theta of each transformer by its array name in the record; empty without transformers."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All learnable parameters, grouped by learning rate.

        The rate of "localisation" is multiplied by `budget.localisation_rate`, that of "head" by `model.head_rate`.
        "body" has the unchanged rate.
        """


if TYPE_CHECKING:

    class NetworkModule(nn.Module):
        """The type of a `Network` with all optional members, as an `nn.Module`; only for type checkers."""

        objective: Any

        def __call__(self, images: Any) -> Tensor: ...
        def thetas(self, images: Any) -> dict[str, Tensor]: ...
        def parameter_groups(self) -> dict[str, list[nn.Parameter]]: ...
        def load_pretrained(self) -> str: ...
        def at_random_places(self, images: Any, generator: torch.Generator) -> Tensor: ...
        def seen(self, images: Any) -> Tensor: ...
        def projected(self, images: Any) -> Tensor: ...


def group_parameters(network: nn.Module, **parts: nn.Module | None) -> dict[str, list[nn.Parameter]]:
    """The learnable parameters of each of these parts of a network, and all others under "body"."""
    groups = {name: _learning(part) if part is not None else [] for name, part in parts.items()}
    in_parts = {id(parameter) for parameters in groups.values() for parameter in parameters}
    return {"body": [parameter for parameter in _learning(network) if id(parameter) not in in_parts], **groups}


def _learning(part: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in part.parameters() if parameter.requires_grad]


def name_of(choice: Any) -> Any:
    """The name of a choice, which is an enum in a checked config and a string in a checkpoint; None stays None."""
    return getattr(choice, "name", choice)

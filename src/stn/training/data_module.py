"""The LightningDataModule of all data sets of the project."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from stn.data.draws import generator
from stn.experiments import load


def phase_ends(budget: DictConfig) -> tuple[int, int]:
    """The step at which the windows are no longer at random places, and that at which transformers stop exploring."""
    random_end = round(budget.random_share * budget.steps)
    return random_end, random_end + round(budget.explore_share * budget.steps)


class DataModule(L.LightningDataModule):
    """Batches of a source, for one seed. A batch leaves the loader as indices and becomes images on the device.

    The training batch of step t is a function of (seed, t) alone: its images and how they are distorted or augmented.
    So a resumed run sees the batches of an uninterrupted one. With several processes each takes its slice of the global
    batch, and may take it in successive `parts` before it makes its step. If `block` is greater than 1, a training
    batch holds that many steps, or those that are left to the next validation.

    Attributes:
        source: the experiment's `source(data)`, see `stn.experiments.base.DataSource`.
    """

    if TYPE_CHECKING:
        trainer: L.Trainer

    def __init__(self, data: DictConfig, budget: DictConfig, seed: int, parts: int = 1, block: int = 1):
        super().__init__()
        self.source = load(data.kind, "data").source(data)
        self.budget, self.seed, self.parts, self.block = budget, seed, parts, block

    @property
    def images_per_step(self) -> int:
        """Images of one step, over all processes and parts: those of `batch_size` picks of the source.

        An image is one input of the network: a pair of digits in addition, a volume in three dimensions.
        """
        return self.budget.batch_size * self.source.images_per_pick

    def setup(self, stage: str | None = None) -> None:
        for split in {"fit": ("train", "validation"), "test": ("test",)}.get(stage, ("train", "validation", "test")):  # type: ignore[arg-type]
            self.source.load(split)

    def train_dataloader(self) -> DataLoader:
        """The batches up to the next validation; the trainer asks again after each validation."""
        step, stretch = self.trainer.global_step, self.budget.validate_every
        last = min(step - step % stretch + stretch, self.budget.steps)
        if self.block > 1:  # pinned, so that the host need not wait for copies to a GPU
            pinned = self.trainer.strategy.root_device.type == "cuda"
            return DataLoader(_Blocks(self, step, last), batch_size=None, pin_memory=pinned)  # type: ignore[arg-type]  # see `_Steps`
        return DataLoader(_Steps(self, step, last), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(_Chunks(split, self.source.count(split), self.source.chunk), batch_size=None)  # type: ignore[arg-type]

    def picks(self, step: int) -> Tensor:
        """The indices (B,) of a step's global batch. Each epoch has a new order and drops its incomplete batch."""
        n, size = self.source.count("train"), self.budget.batch_size
        if size > n:
            return torch.randint(n, (size,), generator=generator(self.seed, "picks", step))
        epoch, place = divmod(step, n // size)
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, torch.randperm(n, generator=generator(self.seed, "order", epoch))
        return self._order[place * size : (place + 1) * size]

    def on_after_batch_transfer(self, batch: tuple, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        split, step, index, *k = batch
        device = self.trainer.strategy.root_device
        if split != "train":
            return self.source.batch(split, index, device)
        if index.ndim == 2:  # a block
            draws = [generator(self.seed, "distortion", step + i, device=device) for i in range(len(index))]
            return self.source.train_block(index, draws, device)
        draws = generator(self.seed, "distortion", step, device=device)
        if step < phase_ends(self.budget)[0] and hasattr(self.source, "random_batch"):
            return self.source.random_batch(index, draws, self.budget.batch_size, self.part(*k), device)
        return self.source.train_batch(index, draws, self.budget.batch_size, self.part(*k), device)

    def draws(self, purpose: str, step: int, k: int = 0) -> torch.Generator:
        """Random numbers for the k-th part of a step's batch on this process, on its device.

        They depend on the part's place in the whole batch alone, so two processes draw what one with two parts draws.
        """
        # The 0 stays: without it all explored records would have had other numbers.
        place = f"{purpose}/0/{self.trainer.global_rank + k * self.trainer.world_size}"
        return generator(self.seed, place, step, device=self.trainer.strategy.root_device)

    def part(self, k: int = 0) -> slice:
        """The slice of a global batch that is the k-th part of this process."""
        trainer = self.trainer
        return slice(trainer.global_rank + k * trainer.world_size, None, trainer.world_size * self.parts)

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """The first n validation images and labels, or all if there are fewer, as the network gets them."""
        n = min(n, self.source.count("validation"))
        return self.on_after_batch_transfer(("validation", 0, torch.arange(n)), 0)


@dataclass
class _Steps:
    """The picks of steps first ... last - 1, as a data set whose items are whole batches, or their parts in turn."""

    data: DataModule
    first: int
    last: int

    def __len__(self) -> int:
        return (self.last - self.first) * self.data.parts

    def __getitem__(self, i: int) -> tuple[str, int, Tensor, int]:
        if i >= len(self):
            raise IndexError(i)
        step, k = divmod(i, self.data.parts)
        return "train", self.first + step, self.data.picks(self.first + step)[self.data.part(k)], k


@dataclass
class _Blocks:
    """The picks (K, B) of steps first ... last - 1, as a data set whose items are blocks, K at most `data.block`."""

    data: DataModule
    first: int
    last: int

    def __len__(self) -> int:
        return -(-(self.last - self.first) // self.data.block)

    def __getitem__(self, i: int) -> tuple[str, int, Tensor]:
        if i >= len(self):
            raise IndexError(i)
        first = self.first + i * self.data.block
        steps = range(first, min(first + self.data.block, self.last))
        return "train", first, torch.stack([self.data.picks(step) for step in steps])


@dataclass
class _Chunks:
    """A stored set in its order, as a data set whose items are whole batches."""

    split: str
    n: int
    size: int

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __getitem__(self, i: int) -> tuple[str, int, Tensor]:
        if i >= len(self):
            raise IndexError(i)
        return self.split, i, torch.arange(i * self.size, min((i + 1) * self.size, self.n))

"""Blocks of steps: Lightning calls once for many steps, and on a GPU each step is the replay of a captured one.

The training is that of the plain `Learner`, the reference: the same batches, rates and arithmetic, and each resumes
the other's checkpoints. On a small network Lightning's overhead and the kernel launches take the host longer than the
arithmetic takes the GPU. Blocks pay the overhead once a block, and the launches once a run. On a CPU nothing is
captured, and the weights equal those of the plain learner bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stn.errors import UserError
from stn.training.learner import Learner

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

WARM_UP = 3  # steps made and undone before the capture, so that objects created at first use exist


class BlockLearner(Learner):
    """A `Learner` whose batch is a block: images (K, B, ...) and labels (K, B) of K successive steps.

    A block ends at a validation at the latest, so validations and checkpoints fall between blocks. The losses of block
    n are read during block n + 1, so the host never waits for the GPU.
    """

    def __init__(self, experiment: dict, log_every: int = 50):
        super().__init__(experiment, log_every)
        self.automatic_optimization = False
        self._captured: Captured | None = None
        self._unread: BlockLosses | None = None  # the block whose losses are not read yet

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        optimiser, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        first, rates = self.global_step, []
        for _ in range(len(labels)):
            rates.append([group["lr"] for group in optimiser.param_groups])
            schedule.step()
        with torch.autocast(self.device.type, enabled=False):  # ends Lightning's autocast; see `_step`
            if self.device.type == "cuda":
                self._captured = self._captured or self._capture(optimiser, images, labels)
                losses = self._captured(images, labels, rates)
            else:
                losses = torch.stack([self._step(*step) for step in zip(images, labels, rates, strict=True)])
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self._count(len(labels))
        previous, self._unread = self._unread, BlockLosses(first, rates, losses)
        self._log_losses(previous)

    def _step(self, images: Tensor, labels: Tensor, rates: Sequence[float | Tensor]) -> Tensor:
        """One step at the `rates` of the optimiser's groups. Returns its loss."""
        optimiser = self.optimizers(use_pl_optimizer=False)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        with self.trainer.precision_plugin.forward_context():  # no autocast in the backward pass, as in Lightning
            loss = self.objective.loss(self.network(images), labels) / len(labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    def _capture(self, optimiser: Optimizer, images: Tensor, labels: Tensor) -> "Captured":
        try:
            return Captured(self._step, self.network, optimiser, self.trainer.datamodule.block, images, labels)  # type: ignore[attr-defined]
        except RuntimeError as error:
            raise UserError(
                f"a step of {self.cfg.model.name} cannot be captured ({str(error).splitlines()[0]}): "
                "train it with trainer.block=1"
            ) from error

    def _count(self, steps: int) -> None:
        """Add the steps of a block to Lightning's counters."""
        loop = self.trainer.fit_loop.epoch_loop
        progress = loop.manual_optimization.optim_step_progress
        for counter in (progress.total, progress.current):
            counter.ready += steps
            counter.completed += steps
        loop._batches_that_stepped = self.global_step - 1  # the step of loggers; Lightning adds the last one

    def _log_losses(self, block: "BlockLosses | None") -> None:
        """Log the losses of a block that are due; UserError if a loss is not finite."""
        if block is None:
            return
        for step, (loss, rates) in enumerate(zip(block.losses(), block.rates, strict=True), block.first):
            if not math.isfinite(loss):
                raise self.diverged(loss, step)
            if step % self.log_every == 0:
                metrics = {"train/loss": loss, "train/learning_rate": rates[0], "epoch": self.current_epoch}
                for logger in self.trainer.loggers:
                    logger.log_metrics(metrics, step)

    def _log_last_block(self) -> None:
        block, self._unread = self._unread, None
        self._log_losses(block)

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        setup: Any = super().configure_optimizers()
        return {**setup, "lr_scheduler": setup["lr_scheduler"]["scheduler"]}  # type: ignore[return-value]  # stepped here, not by Lightning

    def on_train_start(self) -> None:
        super().on_train_start()
        self._captured = self._unread = None  # the weights of an earlier fit lay elsewhere

    def on_validation_epoch_start(self) -> None:
        self._log_last_block()
        super().on_validation_epoch_start()

    def on_train_end(self) -> None:
        self._log_last_block()
        self._captured = None
        super().on_train_end()


class BlockLosses:
    """The facts of a block: its first step, the learning rates by step and group, and its losses, once they arrive."""

    def __init__(self, first: int, rates: list[list[float]], losses: Tensor):
        self.first, self.rates = first, rates
        self._losses = losses.to("cpu", non_blocking=True)
        self._arrived = None
        if losses.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def losses(self) -> list[float]:
        """The loss of each step. Waits for this block, not for later ones."""
        if self._arrived:
            self._arrived.synchronize()
        return self._losses.tolist()


class Captured:
    """One step as a CUDA graph; each replay makes it on the next batch of a block.

    The block is copied into fixed buffers, and a counter on the GPU selects the next batch: so K steps are K replays,
    and the host has nothing else to do. Construction does not change weights and optimiser.

    Args:
        step: makes a step from images, labels and the rates of the optimiser's groups, and returns its loss.
        block: the largest number of steps of a block.
        images, labels: an example of a block; all blocks have batches of this shape and type.

    Raises:
        RuntimeError: the step cannot be captured, for example because it waits for the GPU.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor, list[Tensor]], Tensor],
        network: nn.Module,
        optimiser: Optimizer,
        block: int,
        images: Tensor,
        labels: Tensor,
    ):
        self.step = step
        self.images, self.labels = (part.new_zeros(block, *part.shape[1:]) for part in (images, labels))
        self.rates = torch.zeros(block, len(optimiser.param_groups), device=images.device)
        self.losses = torch.zeros(block, device=images.device)
        self.place = torch.zeros(1, dtype=torch.long, device=images.device)
        self.rate = torch.zeros(len(optimiser.param_groups), device=images.device)
        self.images[: len(images)], self.labels[: len(labels)] = images, labels
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with _Capturable(optimiser), torch.cuda.stream(stream):
            with _Restored(network, optimiser):
                for _ in range(WARM_UP):
                    self.place.zero_()
                    self._next()
            optimiser.zero_grad()  # new gradients will lie in the graph's memory
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self._next()
        torch.cuda.current_stream().wait_stream(stream)

    def _next(self) -> None:
        self.rate.copy_(self.rates.index_select(0, self.place)[0])
        images, labels = (part.index_select(0, self.place)[0] for part in (self.images, self.labels))
        loss = self.step(images, labels, list(self.rate.unbind()))
        self.losses.index_copy_(0, self.place, loss[None])
        self.place += 1

    def __call__(self, images: Tensor, labels: Tensor, rates: list[list[float]]) -> Tensor:
        """Make the steps of a block. Returns their losses, in memory that the next block overwrites."""
        n = len(labels)
        self.images[:n], self.labels[:n] = images, labels
        self.rates[:n].copy_(torch.tensor(rates).pin_memory(), non_blocking=True)
        self.place.zero_()
        for _ in range(n):
            self.graph.replay()
        return self.losses[:n]


@dataclass
class _Restored:
    """Restores weights, buffers and the optimiser's state at the end; state that is new becomes zero.

    Adam's state starts from zero, and with zero momentum SGD's first step is its gradient.
    """

    network: nn.Module
    optimiser: Optimizer

    def _tensors(self) -> list[Tensor]:
        state = [value for entry in self.optimiser.state.values() for value in entry.values()]
        return [*self.network.parameters(), *self.network.buffers(), *filter(torch.is_tensor, state)]

    def __enter__(self) -> None:
        self.copies = {id(tensor): tensor.detach().clone() for tensor in self._tensors()}

    @torch.no_grad()
    def __exit__(self, *_) -> None:
        for tensor in self._tensors():
            tensor.copy_(self.copies[id(tensor)]) if id(tensor) in self.copies else tensor.zero_()


@dataclass
class _Capturable:
    """Lets the optimiser be captured in this block, then restores its groups, including rates that are floats."""

    optimiser: Optimizer

    def __enter__(self) -> None:
        self.groups = [dict(group) for group in self.optimiser.param_groups]
        for group in self.optimiser.param_groups:
            group["capturable"] = True  # Adam needs this; SGD can always be captured

    def __exit__(self, *_) -> None:
        for group, saved in zip(self.optimiser.param_groups, self.groups, strict=True):
            group.clear()
            group.update(saved)

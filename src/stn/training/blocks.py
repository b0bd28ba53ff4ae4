"""Blocks of steps: many in one call from Lightning, and on a GPU each the replay of one captured step.

The same training as that of the plain `Learner`, which is the reference: the same batches, rates and sums, and either
goes on where the other stopped. On a small network Lightning's own work and the launch of each kernel take a GPU's host
longer than the GPU takes for the sums: here the first is done once a block, the second once a run. On a CPU nothing is
captured, and the weights are those of the plain learner bit for bit.
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

WARM_UP = 3  # steps made, and undone, before one is captured: what is made at first use is there by then


class BlockLearner(Learner):
    """A `Learner` whose batch is a block: images (K, B, ...) and labels (K, B) of K steps, one after the other.

    A block ends where a stretch ends, so validations and checkpoints find it between two. Losses are looked at when the
    next block is under way: then those of the last have come from the GPU while it went on.
    """

    def __init__(self, experiment: dict, log_every: int = 50):
        super().__init__(experiment, log_every)
        self.automatic_optimization = False
        self._captured: Captured | None = None
        self._made: Made | None = None  # the block whose losses are still to be looked at

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        optimiser, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        first, rates = self.global_step, []
        for _ in range(len(labels)):
            rates.append([group["lr"] for group in optimiser.param_groups])
            schedule.step()
        with torch.autocast(self.device.type, enabled=False):  # Lightning's is round all of this; see `_step`
            if self.device.type == "cuda":
                self._captured = self._captured or self._capture(optimiser, images, labels)
                losses = self._captured(images, labels, rates)
            else:
                losses = torch.stack([self._step(*one) for one in zip(images, labels, rates, strict=True)])
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self._count(len(labels))
        before, self._made = self._made, Made(first, rates, losses)
        self._look(before)

    def _step(self, images: Tensor, labels: Tensor, rates: Sequence[float | Tensor]) -> Tensor:
        """One step at the `rates` of the optimiser's groups. Returns its loss."""
        optimiser = self.optimizers(use_pl_optimizer=False)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        with self.trainer.precision_plugin.forward_context():  # backward in float32, as Lightning has it
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
        """Tell Lightning how many steps a block was."""
        loop = self.trainer.fit_loop.epoch_loop
        progress = loop.manual_optimization.optim_step_progress
        for counter in (progress.total, progress.current):
            counter.ready += steps
            counter.completed += steps
        loop._batches_that_stepped = self.global_step - 1  # where loggers are; it adds the last one itself

    def _look(self, made: "Made | None") -> None:
        """Log the losses of a block that are due; one that is not finite is a UserError."""
        if made is None:
            return
        for step, (loss, rates) in enumerate(zip(made.losses(), made.rates, strict=True), made.first):
            if not math.isfinite(loss):
                raise self.diverged(loss, step)
            if step % self.log_every == 0:
                found = {"train/loss": loss, "train/learning_rate": rates[0], "epoch": self.current_epoch}
                for logger in self.trainer.loggers:
                    logger.log_metrics(found, step)

    def _look_at_last(self) -> None:
        made, self._made = self._made, None
        self._look(made)

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        found: Any = super().configure_optimizers()
        return {**found, "lr_scheduler": found["lr_scheduler"]["scheduler"]}  # type: ignore[return-value]  # stepped here, so when is not Lightning's

    def on_train_start(self) -> None:
        super().on_train_start()
        self._captured = self._made = None  # of an earlier fit, whose weights lay elsewhere

    def on_validation_epoch_start(self) -> None:
        self._look_at_last()
        super().on_validation_epoch_start()

    def on_train_end(self) -> None:
        self._look_at_last()
        self._captured = None
        super().on_train_end()


class Made:
    """What is known of a block: its first step, the learning rates of its steps and groups, and soon its losses."""

    def __init__(self, first: int, rates: list[list[float]], losses: Tensor):
        self.first, self.rates = first, rates
        self._losses = losses.to("cpu", non_blocking=True)
        self._arrived = None
        if losses.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def losses(self) -> list[float]:
        """Of its steps; waits for this block, not for those after it."""
        if self._arrived:
            self._arrived.synchronize()
        return self._losses.tolist()


class Captured:
    """One step as a CUDA graph, which each replay makes on the next batch of a block.

    The block lies in buffers of its own, and a counter on the GPU says which batch is next: so K steps are K replays,
    and the host has nothing else to do. Making one leaves weights and optimiser as they were.

    Args:
        step: makes a step of images, labels and rates of the optimiser's groups, and returns its loss.
        block: the largest number of steps of a block.
        images, labels: a block; all have the shape and type of its batches.

    Raises:
        RuntimeError: the step does what cannot be captured, such as waiting for the GPU.
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
            optimiser.zero_grad()  # gradients are to lie in the graph's memory
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
        """Make the steps of a block. Returns their losses, in memory that the next block takes."""
        n = len(labels)
        self.images[:n], self.labels[:n] = images, labels
        self.rates[:n].copy_(torch.tensor(rates).pin_memory(), non_blocking=True)
        self.place.zero_()
        for _ in range(n):
            self.graph.replay()
        return self.losses[:n]


@dataclass
class _Restored:
    """Puts weights, buffers and the optimiser's state back as they were; state that was not there becomes zero.

    Zero is what Adam's state starts from, and with zero momentum SGD's first step is its gradient.
    """

    network: nn.Module
    optimiser: Optimizer

    def _tensors(self) -> list[Tensor]:
        state = [value for some in self.optimiser.state.values() for value in some.values()]
        return [*self.network.parameters(), *self.network.buffers(), *filter(torch.is_tensor, state)]

    def __enter__(self) -> None:
        self.kept = {id(tensor): tensor.detach().clone() for tensor in self._tensors()}

    @torch.no_grad()
    def __exit__(self, *_) -> None:
        for tensor in self._tensors():
            tensor.copy_(self.kept[id(tensor)]) if id(tensor) in self.kept else tensor.zero_()


@dataclass
class _Capturable:
    """Lets the optimiser be captured meanwhile. Its groups are as before afterwards, rates of the host's included."""

    optimiser: Optimizer

    def __enter__(self) -> None:
        self.groups = [dict(group) for group in self.optimiser.param_groups]
        for group in self.optimiser.param_groups:
            group["capturable"] = True  # of Adam; SGD always is

    def __exit__(self, *_) -> None:
        for group, before in zip(self.optimiser.param_groups, self.groups, strict=True):
            group.clear()
            group.update(before)

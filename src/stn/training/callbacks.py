"""Callbacks that show a run's progress, and pictures and traces of what the transformer does."""

import os
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stn.environment import SHARED

if TYPE_CHECKING:
    from stn.training.data_module import DataModule
    from stn.training.learner import Learner


class ProgressBar(Callback):
    """A bar in a terminal; elsewhere a plain line after each validation, with the remaining time.

    Cells that are trained side by side print lines, because their bars would overwrite each other.
    """

    def __init__(self, name: str):
        self.name = name
        self.bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        self.start, self.first = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and self.first:
            print(f"{self.name}: resumes at step {self.first} of {trainer.max_steps}", flush=True)
        if trainer.is_global_zero and sys.stdout.isatty() and SHARED not in os.environ:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self.task = self.bar.add_task(self.name, total=trainer.max_steps, completed=self.first, note="")
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, learner: L.LightningModule, *_) -> None:
        if self.bar:
            self.bar.update(self.task, completed=trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        validation = _ours(learner).validation
        if not trainer.is_global_zero or trainer.sanity_checking or not validation:
            return
        step, error, _ = validation[-1]
        if self.bar:
            self.bar.update(self.task, completed=step, note=f"validation {error:.2f} %")
            return
        rate = (step - self.first) / (time.monotonic() - self.start)
        remainder = (trainer.max_steps - step) / rate
        print(
            f"{self.name}: step {step}/{trainer.max_steps}, validation error {error:.2f} %, "
            f"{rate:.1f} steps/s, {remainder // 60:.0f}:{remainder % 60:02.0f} left",
            flush=True,
        )

    def teardown(self, trainer: L.Trainer, learner: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, learner: L.LightningModule, exception: BaseException) -> None:
        self._stop()  # or the bar would be drawn once more behind the line that reports the error or interrupt

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


class Pictures(Callback):
    """At each validation, sends wandb a strip of validation images above what the classifier sees of them.

    Images of three channels are shown in colour; the channels of others are stacked.
    """

    def __init__(self, n: int):
        self.n = n

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        network = _ours(learner).network
        if trainer.sanity_checking or not trainer.is_global_zero or not hasattr(network, "seen"):
            return
        import wandb

        images, _ = _data(trainer).examples(self.n)
        with torch.inference_mode():
            outputs = network.seen(images)
            images = getattr(images, "images", images)  # a batch may hold more than images
            if hasattr(network, "projected"):
                images = network.projected(images)
            elif images.ndim > 4:  # several windows an image: the first, as in `outputs`
                images = images[:, 0]
        outputs = torch.nn.functional.interpolate(outputs, size=images.shape[2:], mode="nearest")
        strip = torch.cat([self._strip(images), self._strip(outputs)]).cpu().numpy()
        strip = strip - min(strip.min(), 0)  # images without their mean have negative values
        image = wandb.Image((strip * 255).clip(0, 255).astype("uint8"), caption="above: input, below: seen")
        logger: Any = trainer.logger
        step = trainer.global_step  # numbers the row: see `stn.tracking.StepLogger`
        logger.experiment.log({"transformer": image, "trainer/global_step": step}, step=step)

    @staticmethod
    def _strip(images: torch.Tensor) -> torch.Tensor:
        """The images (n, C, H, W) side by side: (H, n W, 3) where C is 3, or (C H, n W)."""
        n, channels, height, width = images.shape
        if channels == 3:
            return images.permute(2, 0, 3, 1).reshape(height, n * width, 3)
        return images.permute(1, 2, 0, 3).reshape(channels * height, n * width)


class Trace(Callback):
    """Records theta of the first n validation images at the start and at each validation: how windows move.

    Records nothing for a network without a transformer. Its state is in the checkpoints, so the trace of a resumed run
    is complete.
    """

    def __init__(self, n: int):
        self.n = n
        self.steps: list[int] = []
        self.thetas: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if not trainer.global_step:
            self._record(trainer, learner)

    def on_validation_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, learner)

    def _record(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        images, _ = _data(trainer).examples(self.n)
        network = _ours(learner).network
        training = network.training
        network.eval()  # else batch normalisation would update its statistics
        with torch.no_grad():
            theta = network.thetas(images).get("theta")
        network.train(training)
        if theta is not None:
            self.thetas.append(theta.cpu())
            self.steps.append(trainer.global_step)

    def arrays(self) -> dict[str, np.ndarray]:
        """`trace` (T, n, P) and `trace_steps` (T,), for the record."""
        if not self.thetas:
            return {}
        return {"trace": torch.stack(self.thetas).numpy(), "trace_steps": np.array(self.steps)}

    def state_dict(self) -> dict:
        return {"steps": self.steps, "thetas": self.thetas}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.thetas = list(state["steps"]), list(state["thetas"])


def _ours(learner: L.LightningModule) -> "Learner":
    return cast("Learner", learner)


def _data(trainer: L.Trainer) -> "DataModule":
    """The data module of a trainer, which Lightning leaves untyped."""
    return cast("DataModule", trainer.datamodule)  # type: ignore[attr-defined]

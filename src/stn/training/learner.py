"""The LightningModule of all networks of the project: loss, optimiser, validation and test."""

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from stn.config import experiment, filled
from stn.errors import UserError
from stn.experiments import load
from stn.nn.exploration import Exploration
from stn.nn.transformer import SpatialTransformer
from stn.training.data_module import phase_ends

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.optim.lr_scheduler import LRScheduler

    from stn.experiments.base import NetworkModule


def build_network(cfg: DictConfig) -> "NetworkModule":
    """The network that the model and data configs describe, built by the experiment's `network(model, data)`."""
    return load(cfg.data.kind, "networks").network(cfg.model, cfg.data)


class Learner(L.LightningModule):
    """Trains and tests the network of one experiment.

    The network is a `stn.experiments.base.Network`. Where labels have several positions, the loss is the sum over them,
    and an image is right if all of them are.

    Args:
        experiment: the config groups data, model and budget as primitives (`stn.config.experiment`), so that a
            checkpoint explains itself and loads with `weights_only=True`.
    """

    if TYPE_CHECKING:
        _mean: Tensor  # loss of the current batch over its parts so far
        _wrong: float
        _loss: float

        def optimizers(self, use_pl_optimizer: bool = True) -> Any: ...  # the only one, plain or wrapped by Lightning
        def lr_schedulers(self) -> LRScheduler: ...  # the only one

    def __init__(self, experiment: dict, log_every: int = 50):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.cfg = OmegaConf.create(filled(experiment))
        self.log_every = log_every
        self.network = build_network(self.cfg)
        for parameter in self.network.parameters():
            if parameter.ndim == 4:  # of 2-D convolutions; `to(memory_format=...)` fails for 3-D ones
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.objective = getattr(self.network, "objective", Classification)
        all_transformers = [module for module in self.network.modules() if isinstance(module, SpatialTransformer)]
        transformers = list(getattr(self.network, "explored", all_transformers))
        explores = self.cfg.budget.explore_share and transformers  # a control with fixed windows has none
        self.exploration = Exploration(*transformers, network=self.network) if explores else None
        self.validation: list[list[float]] = []  # [step, error in percent, loss]
        self.seconds = 0.0  # of training, summed over interruptions
        self.tested: dict[str, list[Tensor]] = {}
        self.weights: str | None = None  # the pretrained weights that it started from
        self._generator: Tensor | None = None  # state of torch's generator at the last checkpoint

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        images, labels = batch
        step, parts = self.global_step, self.trainer.accumulate_grad_batches
        loss = self._loss_of(images, labels, step, batch_idx % parts)
        self._mean = loss.detach() / parts + (self._mean if batch_idx % parts else 0)  # over the parts of a batch
        # Reading the loss waits for the GPU, so there it is read only when it is logged. A NaN persists until then.
        if loss.device.type == "cpu" or step % self.log_every == 0:
            if not torch.isfinite(loss):
                raise self.diverged(loss.item(), step)
            if step % self.log_every == 0 and (batch_idx + 1) % parts == 0:
                self.log("train/loss", self._mean)
                self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])
        return loss

    def _loss_of(self, images: Tensor, labels: Tensor, step: int, part: int) -> Tensor:
        """The mean loss of a training batch, with the exploration of that step (`stn.schema.BudgetConfig`)."""
        budget, n = self.cfg.budget, len(labels)
        random_end, explore_end = phase_ends(budget)
        if step < random_end:
            draws = self.trainer.datamodule.draws("places", step, part)  # type: ignore[attr-defined]
            return self.objective.loss(self.network.at_random_places(images, draws), labels) / n
        if self.exploration is None:
            return self.objective.loss(self.network(images), labels) / n
        if step >= explore_end:
            with self.exploration.held():
                return self.objective.loss(self.network(images), labels) / n
        draws = self.trainer.datamodule.draws("exploration", step, part)  # type: ignore[attr-defined]
        first, last = budget.noise
        sigma = first + (last - first) * (step - random_end) / (explore_end - random_end)
        if budget.gradient == "pathwise":
            with self.exploration.jitter(sigma, draws):
                return self.objective.loss(self.network(images), labels) / n
        if n < 2:
            raise UserError("exploration shows each image twice, half as many: a batch, or part of one, needs two")
        images, labels = images[: n // 2], labels[: n // 2]
        with self.exploration.pairs(images, sigma, draws, budget.pull) as pairs:
            losses = self.objective.losses(self.network(pairs.images), torch.cat([labels, labels]))
        return pairs.loss(losses)

    def diverged(self, loss: float, step: int) -> UserError:
        """The error to raise when the loss of a step is not finite."""
        return UserError(
            f"the loss is {loss} at step {step} of {self.cfg.data.name}/{self.cfg.model.name}: "
            f"lower budget.learning_rate (now {self.cfg.budget.learning_rate}), "
            "or find the first NaN with debug=anomaly"
        )

    def on_validation_epoch_start(self) -> None:
        self._wrong, self._loss, self._seen = 0, 0.0, 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        scores = self.network(images)
        self._loss += self.objective.loss(scores, labels).item()
        self._wrong += (~self.objective.right(scores, labels).all(1)).sum().item()
        self._seen += len(labels)

    def on_validation_epoch_end(self) -> None:
        error, loss = 100 * self._wrong / self._seen, self._loss / self._seen
        if not math.isfinite(loss):
            raise self.diverged(loss, self.global_step)
        if not self.trainer.sanity_checking:
            self.validation.append([self.global_step, round(error, 4), round(loss, 6)])
        self.log_dict({"validation/error": error, "validation/loss": loss})

    def on_test_epoch_start(self) -> None:
        self.tested = {}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        right = self.objective.right(self.network(images), labels)
        outputs = {"correct": right.all(1), **self.network.thetas(images)}
        if right.shape[1] > 1:
            outputs["positions"] = right
        for name, value in outputs.items():
            self.tested.setdefault(name, []).append(value.cpu())

    def test_result(self) -> dict[str, np.ndarray]:
        """After a test: `correct` (n,) bool, `positions` (n, positions) bool if there are several, and every theta."""
        return {name: torch.cat(parts).numpy() for name, parts in self.tested.items()}

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        budget = self.cfg.budget
        factors = {"body": 1, "localisation": budget.localisation_rate, "head": self.cfg.model.get("head_rate", 1)}
        # Parameters by factor, then as torch takes them; factor 1 is first, because the first group's rate is logged.
        groups: Any = {1: []}
        for name, parameters in self.network.parameter_groups().items():
            groups.setdefault(factors[name], []).extend(parameters)
        groups = [{"params": group, "lr": factor * budget.learning_rate} for factor, group in groups.items() if group]
        if budget.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, momentum=budget.momentum, weight_decay=budget.weight_decay, fused=True)
        else:
            betas = (budget.momentum, 0.999)
            optimiser = torch.optim.AdamW(groups, betas=betas, weight_decay=budget.weight_decay, fused=True)
        if budget.schedule == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                max_lr=[group["lr"] for group in groups],
                total_steps=budget.steps + 1,  # Lightning steps it once more after the last step
                pct_start=budget.warm_up,
                cycle_momentum=False,
            )
        elif isinstance(budget.decay_every, ListConfig):  # at these steps
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(budget.decay_every), budget.decay_factor)
        else:
            schedule = torch.optim.lr_scheduler.StepLR(optimiser, budget.decay_every, budget.decay_factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self._mark = time.monotonic()
        self.on_train_epoch_start()  # before Lightning ends the epoch that a resumed run left, and saves it again

    def on_train_epoch_start(self) -> None:
        if self._generator is not None:  # loaders have drawn from it, and differently in a resumed run
            torch.set_rng_state(self._generator.cpu())

    def on_train_end(self) -> None:
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self._mark = self.seconds + now - self._mark, now

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self._tick()
        checkpoint |= {"validation": self.validation, "seconds": self.seconds, "weights": self.weights}
        self._generator = checkpoint["generator"] = torch.get_rng_state()  # dropout draws from it on a CPU

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.validation, self.seconds = checkpoint["validation"], checkpoint["seconds"]
        self.weights, self._generator = checkpoint.get("weights"), checkpoint.get("generator")
        if "loops" not in checkpoint:  # only weights, no training to resume
            return
        loops = checkpoint["loops"]["fit_loop"]  # Lightning counts its own steps and those of blocks separately
        plain = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        blocks = loops["epoch_loop.manual_optimization.optim_step_progress"]
        for counter in (plain, blocks):
            counter["total"] |= {"ready": checkpoint["global_step"], "completed": checkpoint["global_step"]}
        # The next stretch may have another length, so it must not start from the old count of batches.
        batches = loops["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)


class Classification:
    """The objective of a network that scores classes."""

    @staticmethod
    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, summed over images and positions."""
        return F.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), reduction="sum")

    @staticmethod
    def losses(scores: Tensor, labels: Tensor) -> Tensor:
        """(B,): cross entropy of each image, summed over positions."""
        losses = F.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(len(labels), -1).sum(1)

    @staticmethod
    def right(scores: Tensor, labels: Tensor) -> Tensor:
        """(B, positions) bool: which positions are right."""
        return (scores.argmax(-1) == labels).view(len(labels), -1)


def new_learner(cfg: DictConfig, kind: type[Learner] = Learner) -> Learner:
    """An untrained learner, with pretrained weights if the model starts from them. Seed the generators first.

    A `Learner` that loads a checkpoint needs no pretrained weights, because a checkpoint holds all weights.
    """
    learner = kind(experiment(cfg), cfg.logger.every)
    if cfg.model.get("pretrained"):
        learner.weights = learner.network.load_pretrained()
    return learner

"""Training steps of Table 1's networks: our learner and data module under Lightning, against a plain PyTorch loop.

The rival is a good loop of the usual kind: a data set of PIL images, torchvision's `RandomRotation` and `ToTensor`, a
`DataLoader` with a persistent worker for each core, and the textbook's network. Its weights, batch, optimiser,
schedule, precision and threads equal ours; its scores are compared with ours first.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from benchmarks.timing import OURS, Bench, Work, seconds, wait
from benchmarks.transformer import Spline, affine_by_pytorch, projective_by_hand
from stn.config import compose
from stn.environment import cores
from stn.errors import UserError
from stn.experiments.mnist.data import Digits, distortion, read_distorted, store, undistorted
from stn.experiments.mnist.networks import DigitNetwork
from stn.nn.localisation import Layers
from stn.training.blocks import BlockLearner
from stn.training.data_module import DataModule
from stn.training.learner import Learner, new_learner
from stn.training.record import multiply_adds
from stn.training.run import block, keep_memory, make_trainer, precision, quieten

MODELS = (
    "fcn",
    "cnn",
    *(f"st_{kind}_{family}" for kind in ("fcn", "cnn") for family in ("affine", "projective", "tps")),
)
PLAIN = "plain PyTorch loop"
SINGLY = "ours, step by step"  # `trainer.block=1`
CUDNN = "ours, with cuDNN's convolutions"
TOLERANCE = 0.01  # relative, of scores; a GPU convolves in TF32


def measure(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[dict]:
    """Steps per second of each network of Table 1 on R, budget quick, and how close ours come to the rate of a product.

    `matmul_rate` (multiply-adds per second) is that of one large matrix product in the same precision, and
    `of_matmul_rate` the share of it that our steps reach, if a step is three times the multiply-adds of a forward.
    """
    quieten()
    keep_memory()  # the rival benefits too
    peak = None
    for cfg, digits, steps in cells(bench, data, scratch, *overrides):
        peak = peak or _matmul_rate(bench, precision(cfg))
        row = compared(bench, cfg, digits, steps)
        flops = row["contestants"][OURS]["rate"]["median"] * row["batch"] * 3 * row["multiply_adds"]
        yield row | {"matmul_rate": peak, "of_matmul_rate": flops / peak}


def cells(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[tuple[DictConfig, Digits, int]]:
    """The config of each network of Table 1 on R at budget quick, its digits, and how many steps to time."""
    trainer = "gpu" if bench.device.type == "cuda" else "cpu"
    steps = 8 if bench.quick else 24 if trainer == "cpu" else 200
    keys = [f"data={data}_r", "budget=quick", f"trainer={trainer}", "logger=none", *overrides]
    keys += stored(keys, scratch)
    if bench.quick:
        keys += ["budget.batch_size=8"]
    digits = undistorted(compose("model=cnn", *keys).data)["train"]
    for model in MODELS[:3] if bench.quick else MODELS:
        yield compose(f"model={model}", *keys), digits, steps


def convolutions(bench: Bench, data: str, scratch: Path, *overrides: str) -> Iterator[dict]:
    """Steps per second of Table 1's networks on R at the paper's budget, with our convolutions and with cuDNN's."""
    quieten()
    trainer = "gpu" if bench.device.type == "cuda" else "cpu"
    steps = 8 if bench.quick else 750  # over 5,000 in all repeats
    keys = [f"data={data}_r", "budget=paper", f"trainer={trainer}", "logger=none", *overrides]
    keys += stored(keys, scratch)
    if bench.quick:
        keys += ["budget.batch_size=8"]
    for model in MODELS[1:2] if bench.quick else MODELS:
        cfg = compose(f"model={model}", *keys)
        images = torch.rand(16, 1, cfg.data.canvas, cfg.data.canvas)
        works = {OURS: _ours(cfg, images, bench.device, steps, block(cfg))}
        if cfg.model.classifier.name == "cnn":
            works[CUDNN] = _with_cudnn(_ours(cfg, images, bench.device, steps, block(cfg)))
        yield bench.compare(
            cfg.model.name,
            "steps/s",
            works,
            TOLERANCE,
            data=cfg.data.name,
            batch=cfg.budget.batch_size,
            steps=steps,
            precision=precision(cfg),
            threads=torch.get_num_threads(),
        )


def _with_cudnn(work: Work) -> Work:
    def plain(part):
        def call():
            with patch.object(Layers, "forward", nn.Sequential.forward):
                return part()

        return call

    return Work(plain(work.call), measure=plain(work.measure))


def compared(
    bench: Bench, cfg: DictConfig, digits: Digits, steps: int, modes: Mapping[str, str | None] | None = None
) -> dict:
    """Our learner against the plain loop and, for each of `modes` of `torch.compile`, a compiled loop.

    With `modes`, the row's `compiling` holds the seconds of each loop's first step, in which it is compiled.
    """
    torch.manual_seed(0)
    learner = new_learner(cfg)
    images = torch.rand(16, 1, cfg.data.canvas, cfg.data.canvas)
    works = {OURS: _ours(cfg, images, bench.device, steps, block(cfg))}
    plains = {PLAIN: PlainLoop(learner, cfg, digits, bench.device, cores())}
    compiling = {}
    try:
        for name, mode in (modes or {}).items():
            loop = plains[f"{PLAIN}, {name}"] = PlainLoop(learner, cfg, digits, bench.device, cores())
            loop.network = torch.compile(loop.network, mode=mode, dynamic=False)
        for name, loop in plains.items():
            scores, start = _scores(loop.network, images), wait(bench.device)  # before it learns anything
            loop.step()
            compiling[name.removeprefix(f"{PLAIN}, ")] = wait(bench.device) - start
            works[name] = Work(partial(torch.clone, scores), measure=partial(loop.seconds, steps))
        if not modes:
            works[SINGLY] = _ours(cfg, images, bench.device, steps, 1)
        return bench.compare(
            cfg.model.name,
            "steps/s",
            works,
            TOLERANCE,
            data=cfg.data.name,
            batch=cfg.budget.batch_size,
            steps=steps,
            multiply_adds=multiply_adds(learner.network, images.shape[1:]),
            workers=cores(),
            precision=precision(cfg),
            threads=torch.get_num_threads(),
            **({"compiling": compiling} if modes else {}),
        )
    finally:
        for loop in plains.values():
            loop.close()


def _ours(cfg: DictConfig, images: Tensor, device: torch.device, steps: int, block: int) -> Work:
    torch.manual_seed(0)
    learner = new_learner(cfg, BlockLearner if block > 1 else Learner)
    steps = -(-steps // block) * block  # whole blocks, because the clock stops only at the end of one
    loop = OurLoop(learner, cfg, device, steps, warm=max(3, block), block=block)
    return Work(lambda: _scores(learner, images), measure=loop)


def _matmul_rate(bench: Bench, precision_name: str) -> float:
    """Multiply-adds per second of a large matrix product, the best of five."""
    side = 256 if bench.quick else 4096 if bench.device.type == "cuda" else 2048
    kind = torch.bfloat16 if precision_name.startswith("bf16") else torch.float32
    a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
    return side**3 / min(seconds(lambda: a @ b, bench.device, 3) for _ in range(5))


def stored(keys: list[str], scratch: Path) -> list[str]:
    """The overrides that locate the stored sets, which are made in `scratch` if they are missing."""
    cfg = compose("model=cnn", *keys)
    try:
        read_distorted(cfg.data, repr(distortion(cfg.data)), "validation")
        return []
    except UserError:
        override = f"data.stored={scratch / 'distorted' / cfg.data.name}"
        store(compose("model=cnn", *keys, override).data, scratch)
        return [override]


@torch.no_grad()
def _scores(network: nn.Module, images: Tensor) -> Tensor:
    return network(images.to(next(network.parameters()).device))


class OurLoop:
    """Seconds of one of our training steps, input included, under the trainer that `stn.train` makes.

    The trainer's own start is not counted, nor are its first steps.
    """

    def __init__(self, learner: Learner, cfg: DictConfig, device: torch.device, steps: int, warm: int, block: int):
        self.learner, self.cfg, self.device, self.steps, self.warm = learner.to(device), cfg, device, steps, warm
        self.feed = DataModule(cfg.data, cfg.budget, 0, block=block)

    def __call__(self) -> float:
        trainer = make_trainer(self.cfg, 0, None, False)
        clock = _Clock(self.warm, self.warm + self.steps, self.device)
        trainer.callbacks, trainer.limit_val_batches = [clock], 0
        trainer.fit(self.learner, self.feed)
        self.learner.to(self.device)  # Lightning moves it back to the CPU
        return clock.seconds / self.steps


class _Clock(L.Callback):
    """Runs from the end of step `first` to the end of step `last`, and ends the run there."""

    def __init__(self, first: int, last: int, device: torch.device):
        self.first, self.last, self.device = first, last, device

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step == self.first:
            self.start = wait(self.device)
        elif trainer.global_step == self.last:
            self.seconds = wait(self.device) - self.start
            trainer.should_stop = True


class PlainLoop:
    """The rival: its network starts with the learner's weights."""

    def __init__(self, learner: Learner, cfg: DictConfig, digits: Digits, device: torch.device, workers: int):
        budget = cfg.budget
        self.device, self.workers, self.size = device, workers, budget.batch_size
        self.bf16 = precision(cfg) == "bf16-mixed"
        self.network = plain_network(learner.network, cfg).to(device)
        located = [p for name, p in self.network.named_parameters() if not name.startswith("classifier")]
        groups = [{"params": list(self.network.classifier.parameters()), "lr": budget.learning_rate}]
        if located:
            groups.append({"params": located, "lr": budget.learning_rate * budget.localisation_rate})
        self.optimiser = torch.optim.AdamW(
            groups, betas=(budget.momentum, 0.999), weight_decay=budget.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            max_lr=[group["lr"] for group in groups],
            total_steps=budget.steps + 1,
            pct_start=budget.warm_up,
            cycle_momentum=False,
        )
        self.loader = DataLoader(
            PlainDigits(digits, rotation(cfg.data.distortion.rotation)),
            batch_size=self.size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        images, labels = (part.to(self.device, non_blocking=True) for part in next(self.batches))
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()

    def seconds(self, steps: int) -> float:
        """The seconds of one step. Batches that the workers prefetched while others were timed are used up first."""
        for _ in range(self.loader.prefetch_factor * self.workers + 3):
            self.step()
        return seconds(self.step, self.device, steps)

    def close(self) -> None:
        """End the workers."""
        self.batches.close()
        self.loader._iterator = None


class PlainDigits(Dataset):
    """One image at a time, as from torchvision's own MNIST."""

    def __init__(self, digits: Digits, transform):
        self.images, self.labels, self.transform = digits.images, digits.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i].numpy())), int(self.labels[i])


def rotation(degrees: float | tuple[float, float]) -> transforms.Compose:
    """The distortion R by torchvision."""
    return transforms.Compose([transforms.RandomRotation(degrees, InterpolationMode.BILINEAR), transforms.ToTensor()])


def plain_network(network: DigitNetwork, cfg: DictConfig) -> nn.Module:
    """The textbook's network with the same sizes and the same weights."""
    classifier = cfg.model.classifier.name
    width = network.classifier[0 if classifier == "cnn" else 1].weight.shape[0]
    family = cfg.model.transformation.name if cfg.model.transformation else None
    plain = PlainNetwork(cfg.data.canvas, classifier, width, family, **cfg.model.localisation)
    with torch.no_grad():
        for parameter, source in zip(plain.parameters(), network.parameters(), strict=True):
            parameter.copy_(source)
    return plain


class PlainNetwork(nn.Module):
    """FCN or CNN for 28 x 28 pixels, with or without a transformer before it, written in the usual way."""

    def __init__(
        self,
        canvas: int,
        classifier: str,
        width: int,
        family: str | None,
        filters: int,
        features: int,
        hidden: int,
        layers: int,
    ):
        super().__init__()
        self.family = family
        if family:
            length = {"affine": 6, "projective": 8, "tps": 32}[family]
            self.warp = {"affine": affine_by_pytorch, "projective": projective_by_hand, "tps": Spline(4).warp}[family]
            if classifier == "cnn":
                self.localisation = nn.Sequential(
                    nn.AvgPool2d(2),
                    nn.Conv2d(1, filters, 5),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                    nn.Conv2d(filters, filters, 5),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(filters, features),
                    nn.ReLU(),
                )
                self.regression = nn.Linear(features, length)
            else:
                widths = [canvas**2] + [hidden] * layers
                body = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
                self.localisation = nn.Sequential(nn.Flatten(), *body)
                self.regression = nn.Linear(hidden, length)
        if classifier == "cnn":
            self.classifier = nn.Sequential(
                nn.Conv2d(1, width, 9),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(width, width, 7),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(width * 4, 10),
            )
        else:
            self.classifier = nn.Sequential(
                nn.Flatten(),
                nn.Linear(canvas**2, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, 10),
            )

    def forward(self, images: Tensor) -> Tensor:
        if self.family:
            theta = self.regression(self.localisation(images))
            with torch.autocast(images.device.type, enabled=False):  # a grid in bfloat16 would be off by pixels
                images = self.warp(images, theta.float())
        return self.classifier(images)

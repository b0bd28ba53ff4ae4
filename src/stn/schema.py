"""The schema of `conf/`: which keys a config has, and what each may hold.

The dataclasses turn a misspelt key or a value of the wrong kind, in a file as well as on the command line, into one
line that names it. Numbers live in `conf/`; a key that was added later has a default, so that older records stay valid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from stn.experiments import load


class Optimiser(Enum):
    sgd = "sgd"
    adamw = "adamw"


class Schedule(Enum):
    step = "step"
    one_cycle = "one_cycle"


class Precision(Enum):
    float32 = "float32"
    bf16 = "bf16"


class Gradient(StrEnum):  # so that a default is what a config of primitives says
    smoothed = "smoothed"
    pathwise = "pathwise"


@dataclass(kw_only=True)
class DataConfig:
    """What all data sets have; `stn.experiments.<kind>.config` says what those of a kind add to it."""

    name: str
    kind: str
    part: str | None
    raw: str
    stored: str
    canvas: int
    validation: int
    seed: int


@dataclass(kw_only=True)
class ModelConfig:
    """What all networks have; `stn.experiments.<kind>.config` says what those of a kind add to it."""

    name: str


@dataclass(kw_only=True)
class LocalisationConfig:
    """What most localisation networks have: `filters` of their convolutions, `features` of their last hidden layer."""

    filters: int
    features: int


@dataclass
class BudgetConfig:
    """`conf/budget`, and what networks with transformers may be trained by before the plain steps.

    In the first steps, `random_share` of all, windows stand at random places, so that what reads them learns to read
    any. In the next, `explore_share` of all, theta has noise on it, in the units of theta, whose deviation goes from
    the first value of `noise` to the second. With the gradient "smoothed" a batch is half as many images, each seen
    twice, the localisation networks learn from the smoothed loss (`stn.nn.exploration`), and `pull` holds theta near
    its start; with "pathwise" they learn through the pixels, as without exploration. After that they stay as they are.
    """

    name: str
    steps: int
    batch_size: int
    precision: Precision
    optimiser: Optimiser
    learning_rate: float
    momentum: float
    weight_decay: float
    localisation_rate: float
    schedule: Schedule
    warm_up: float
    decay_every: Any  # steps, or a list of the steps at which the rate falls
    decay_factor: float
    validate_every: int
    random_share: float = 0.0
    explore_share: float = 0.0
    gradient: Gradient = Gradient.smoothed
    noise: list[float] = field(default_factory=lambda: [0.0, 0.0])
    pull: float = 0.0


@dataclass
class TrainerConfig:
    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    accumulate: int
    block: int


@dataclass
class LoggerConfig:
    name: str
    project: str
    every: int
    pictures: int


@dataclass
class DebugConfig:
    detect_anomaly: bool
    profiler: str | None


@dataclass
class ExportConfig:
    folder: str | None
    opset: int
    calibration: int
    batch: int
    tolerance: float
    warm_up: int
    timed: int


@dataclass
class RunConfig:
    """What `stn.train` and the other front doors of a cell take. `name` is made of the command line."""

    name: str
    data: DataConfig
    model: ModelConfig | None
    budget: BudgetConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    debug: DebugConfig
    export: ExportConfig
    seeds: list[int]
    seed: int | None
    outputs: str
    record: str | None
    checkpoint: str | None
    weights: str | None
    fresh: bool


def typed(config: Mapping) -> dict[str, DictConfig]:
    """The groups of an `experiment` of any age under their schemas: with defaults of younger keys, choices as enums."""
    kind = load(config["data"]["kind"], "config")
    schemas = {"data": kind.DATA, "model": kind.MODEL, "budget": BudgetConfig}
    return {
        group: cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), config[group]))
        for group, schema in schemas.items()
    }


def filled(config: Mapping) -> dict:
    """An `experiment` of any age with the defaults of the keys that it does not have yet."""
    return {group: OmegaConf.to_container(values, enum_to_str=True) for group, values in typed(config).items()}

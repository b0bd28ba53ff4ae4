"""The schema of `conf/`: the keys of a config and their types.

With it a misspelt key or a value of the wrong type, in a file or on the command line, ends in one line that names it.
Values live in `conf/`; only keys that were added later have defaults here, so that older records stay valid.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Any, cast, get_type_hints

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


class Gradient(StrEnum):  # a StrEnum, so that a default equals the string in a config of primitives
    smoothed = "smoothed"
    pathwise = "pathwise"


@dataclass(kw_only=True)
class DataConfig:
    """The keys of all data sets; `stn.experiments.<kind>.config` adds those of a kind."""

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
    """The keys of all networks; `stn.experiments.<kind>.config` adds those of a kind."""

    name: str


@dataclass(kw_only=True)
class LocalisationConfig:
    """The keys of most localisation networks: `filters` of their convolutions, `features` of the last hidden layer."""

    filters: int
    features: int


@dataclass
class BudgetConfig:
    """The keys of `conf/budget`, and those of the exploration before the plain steps of networks with transformers.

    In the first steps, a share `random_share`, windows stand at random places, so that the classifier learns to read
    all places. In the next, a share `explore_share`, noise is added to theta; its standard deviation, in the units of
    theta, goes from the first value of `noise` to the second. With the gradient "smoothed" each batch has half as many
    images, each shown twice; the localisation networks learn from the smoothed loss (`stn.nn.exploration`), and `pull`
    holds theta near its start. With "pathwise" they learn through the pixels, as without exploration. In the remaining
    steps they do not learn.
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
    """The keys of `stn.train` and the other front doors of a cell. `name` is derived from the command line."""

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
    """The groups of an `experiment` of any age under their schemas: newer keys at their defaults, choices as enums."""
    kind = load(config["data"]["kind"], "config")
    schemas = {"data": kind.DATA, "model": kind.MODEL, "budget": BudgetConfig}
    return {
        group: cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), config[group]))
        for group, schema in schemas.items()
    }


def filled(config: Mapping) -> dict:
    """An `experiment` of any age, with keys that are newer than it at their defaults."""
    return {group: OmegaConf.to_container(values, enum_to_str=True) for group, values in typed(config).items()}


def deliberate(config: Mapping) -> dict:
    """An `experiment` without keys at their defaults, which a new key with a default does not change."""
    kind = load(config["data"]["kind"], "config")
    schemas = {"data": kind.DATA, "model": kind.MODEL, "budget": BudgetConfig}
    return {group: _without_defaults(config[group], schema) for group, schema in schemas.items()}


def _without_defaults(values: Mapping, schema: type) -> dict:
    """The values of a group that are not the defaults of their keys, also in nested groups."""
    hints, parts = get_type_hints(schema), {part.name: part for part in fields(schema)}
    deviations = {}
    for key, value in values.items():
        part = parts[key]
        default = part.default if part.default_factory is MISSING else part.default_factory()
        default = list(default) if isinstance(default, tuple) else default  # a config of primitives has lists
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            deviations[key] = _without_defaults(value, hints[key])
        elif default is MISSING or value != default:
            deviations[key] = value
    return deviations

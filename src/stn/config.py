"""The schema of `conf/`, and the way from the command line to a checked config.

Every number lives in `conf/`; the dataclasses here have no defaults. They turn a misspelt key or a value of the wrong
kind, in a file as well as on the command line, into one line that names it.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.environment import share_cores
from stn.errors import UserError, told

# Where the data and the networks of a table live: modules with `source(data)` and `network(model, data)`.
ROOMS = {
    1: ("stn.experiments.mnist.data", "stn.experiments.mnist.networks"),
    2: ("stn.experiments.svhn.data", "stn.experiments.svhn.networks"),
    3: ("stn.experiments.cub.data", "stn.experiments.cub.networks"),
    4: ("stn.experiments.addition.data", "stn.experiments.addition.networks"),
    5: ("stn.experiments.colocalisation.data", "stn.experiments.colocalisation.networks"),
    6: ("stn.experiments.volumes.data", "stn.experiments.volumes.networks"),
    7: ("stn.experiments.mnist.data", "stn.experiments.mnist.networks"),
    8: ("stn.experiments.mnist.data", "stn.experiments.mnist.networks"),
}
CONF = Path(__file__).parents[2] / "conf"
LARGEST_SEED = 2**32 - 1  # that Lightning takes


def _choice(name: str, *values: str) -> type[Enum]:
    return Enum(name, {value: value for value in values})


Kind = _choice("Kind", "pose", "projective", "elastic", "clutter")
Source = _choice("Source", "mnist", "digits")
Archive = _choice("Archive", "svhn", "svhn_strips")
Train = _choice("Train", "stream", "frozen")
Classifier = _choice("Classifier", "fcn", "cnn")
Family = _choice("Family", "affine", "projective", "tps")
Sampler = _choice("Sampler", "integer", "bilinear", "bicubic")
AnySampler = _choice("AnySampler", "integer", "bilinear", "bicubic", "learned")
Transformers = _choice("Transformers", "none", "single", "multi")
Birds = _choice("Birds", "cub")
HeldOut = _choice("HeldOut", "validation", "test")
Head = _choice("Head", "linear", "bilinear")
Optimiser = _choice("Optimiser", "sgd", "adam")
Schedule = _choice("Schedule", "step", "one_cycle")
Precision = _choice("Precision", "float32", "bf16")


@dataclass
class DistortionConfig:
    kind: Kind
    rotation: float
    scale: tuple[float, float]
    roam: bool
    sigma: float
    control_points: int
    patches: int
    patch_side: int


@dataclass
class DataConfig:
    """What data sets share; those of a table add to it."""

    name: str
    table: int
    column: str
    part: str | None
    raw: str
    stored: str
    canvas: int
    validation: int
    seed: int


@dataclass
class DigitsConfig(DataConfig):
    """A data set of Table 1."""

    source: Source
    pool: int
    train: Train
    draws: int
    distortion: DistortionConfig


@dataclass
class UndoneConfig(DigitsConfig):
    """One whose images are undone by the true parameters of their distortion."""

    undo: bool


@dataclass
class AugmentConfig:
    scale: float
    shift: float
    contrast: float
    blur: float


@dataclass
class NumbersConfig(DataConfig):
    """A data set of Table 2."""

    source: Archive
    extra: bool
    expand: float
    place: tuple[float, float] | None
    window: int | None
    centred: bool
    augment: AugmentConfig


@dataclass
class BirdsConfig(DataConfig):
    """A data set of Table 3. `canvas` is the side of the images that a network gets."""

    source: Birds
    classes: int
    side: int


@dataclass
class SumsConfig(DigitsConfig):
    """A data set of Table 4: pairs of what a data set of Table 1 has."""


@dataclass
class VolumesConfig(DataConfig):
    """A data set of Table 6. `canvas` is the side of the volumes."""

    source: Source
    thickness: int
    rotation: float
    scale: tuple[float, float]
    roam: bool
    projection: int
    undo: bool


@dataclass
class ColocalisationConfig(DataConfig):
    """A data set of Table 5."""

    source: Source
    digits: HeldOut
    images: int
    patches: int
    patch_side: int


@dataclass
class ModelConfig:
    """What networks share; those of a table add to it."""

    name: str
    row: str


@dataclass
class DigitsLocalisationConfig:
    filters: int
    features: int
    hidden: int
    layers: int


@dataclass
class DigitsModelConfig(ModelConfig):
    """A network of Table 1."""

    classifier: Classifier
    width: int | None
    match_filters: int
    transformation: Family | None
    sampler: AnySampler
    localisation: DigitsLocalisationConfig


@dataclass
class SizedModelConfig(DigitsModelConfig):
    """One with as many `parameters` as near as its width allows, whatever the canvas."""

    parameters: int


@dataclass
class NumbersLocalisationConfig:
    filters: int
    features: int


@dataclass
class NumbersModelConfig(ModelConfig):
    """A network of Table 2."""

    transformers: Transformers
    width: float
    dropout: float
    sampler: Sampler
    localisation: NumbersLocalisationConfig


@dataclass
class BirdsLocalisationConfig:
    filters: int
    features: int


@dataclass
class BirdsModelConfig(ModelConfig):
    """A network of Table 3."""

    windows: int | None
    fixed: bool
    size: int
    trunk: str
    node: str | None
    pretrained: bool
    frozen_norm: bool
    shared: bool
    head: Head
    head_rate: float
    dropout: float
    localisation: BirdsLocalisationConfig


@dataclass
class SumsModelConfig(DigitsModelConfig):
    """A network of Table 4."""

    parallel: int


@dataclass
class VolumesLocalisationConfig:
    downsample: int
    filters: int
    features: int


@dataclass
class VolumesModelConfig(ModelConfig):
    """A network of Table 6."""

    transformer: bool
    width: int | None
    match_filters: int
    localisation: VolumesLocalisationConfig


@dataclass
class ColocalisationLocalisationConfig:
    filters: int
    features: int


@dataclass
class ColocalisationModelConfig(ModelConfig):
    """A network of Table 5."""

    crop: int
    margin: float
    start: float
    smallest: float
    layers: list[int]
    filters: int
    pretrained: str
    localisation: ColocalisationLocalisationConfig


SCHEMAS = {
    1: (DigitsConfig, DigitsModelConfig),  # or UndoneConfig; or SizedModelConfig
    2: (NumbersConfig, NumbersModelConfig),
    3: (BirdsConfig, BirdsModelConfig),
    4: (SumsConfig, SumsModelConfig),
    5: (ColocalisationConfig, ColocalisationModelConfig),
    6: (VolumesConfig, VolumesModelConfig),
    7: (DigitsConfig, DigitsModelConfig),
    8: (DigitsConfig, DigitsModelConfig),
}


@dataclass
class BudgetConfig:
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
    """What `stn.train` and the other front doors of a cell take."""

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
    fresh: bool


def front_door(work: Callable[[DictConfig], Any], with_model: bool = True) -> Callable[[], None]:
    """A `main()` that composes `conf/train.yaml` with the command line, checks it and calls `work(cfg)`.

    What makes data needs no model: `with_model=False` leaves it out, so that it need not be one of the data's table.

    What the user can mend ends as one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows the traceback.
    """

    def main() -> None:
        patient = os.environ.get("HYDRA_FULL_ERROR") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own report is seven lines; we catch the error and write one

        @contextmanager
        def one_line_errors():
            with told():
                try:
                    yield
                except (HydraException, OmegaConfBaseException) as error:
                    if patient:
                        raise
                    raise UserError(one_line(error)) from error

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
        def run(cfg: DictConfig) -> None:
            with one_line_errors():  # inside, because Hydra would print the overrides before our line
                cfg = checked(cfg, with_model)
                if cfg.trainer.devices > 1:
                    share_cores(cfg.trainer.devices)
                work(cfg)

        with one_line_errors():
            run()

    return main


def compose(*overrides: str) -> DictConfig:
    """The checked config that `python -m stn.train <overrides>` would run."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return checked(hydra.compose("train", overrides=list(overrides)))


def checked(cfg: DictConfig, with_model: bool = True) -> DictConfig:
    """`cfg` held against the schema and resolved; raises omegaconf's errors and UserError."""
    if not with_model:
        cfg = OmegaConf.merge(cfg, {"model": None})
    schema = OmegaConf.structured(RunConfig)
    _table(cfg)
    data, model = schemas(cfg)
    schema.data, schema.model = OmegaConf.structured(data), OmegaConf.structured(model)
    cfg = OmegaConf.merge(schema, cfg)
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise UserError(f"no value for {', '.join(sorted(missing))}: set it in conf/ or on the command line")
    OmegaConf.resolve(cfg)
    if cfg.seed is not None:
        cfg.seeds, cfg.seed = [cfg.seed], None
    steps = cfg.budget.decay_every
    steps = list(steps) if OmegaConf.is_list(steps) else [steps]
    if not steps or not all(type(step) is int and step > 0 for step in steps) or steps != sorted(steps):
        raise UserError(
            f"budget.decay_every={cfg.budget.decay_every} is neither a number of steps nor a rising list of them: "
            "give such as 50000 or [10000,20000,25000]"
        )
    rising, steps = cfg.budget.warm_up, cfg.budget.steps
    if not 0 <= rising < 1:
        raise UserError(f"budget.warm_up={rising} is no fraction of the steps: give one from 0 to below 1, such as 0.2")
    if cfg.budget.schedule.name == "one_cycle" and math.isclose(rising * (steps + 1), 1):
        raise UserError(
            f"budget.warm_up={rising} of budget.steps={steps} is a single step, in which no rate can rise: "
            "take more steps, or budget.warm_up=0"
        )
    for key, smallest in _SMALLEST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < smallest:
            raise UserError(f"{key}={value} is too small: it must be at least {smallest}")
    if not cfg.seeds:
        raise UserError("seeds=[] names no seed: give a list of integers such as seeds=[0,1,2]")
    check_seeds(cfg.seeds)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def check_seeds(seeds: Sequence[int]) -> None:
    """A UserError if one is out of range, or there twice, which would count one run as two."""
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seeds: {seed} is no seed: give integers from 0 to {LARGEST_SEED}, such as 0,1,2")
        if list(seeds).count(seed) > 1:
            raise UserError(f"seeds: {seed} is there twice: give each seed once, such as 0,1,2")


def schemas(cfg: DictConfig) -> tuple[type, type]:
    """The schema classes of the data and the model of a config, or of a checkpoint's."""
    data, model = SCHEMAS[cfg.data.table]
    if data is DigitsConfig and "undo" in cfg.data:
        data = UndoneConfig
    if model is DigitsModelConfig and "parameters" in (cfg.model or ()):
        model = SizedModelConfig
    return data, model


def _table(cfg: DictConfig) -> int:
    """The table of the data set, once it is sure that the network is one of its."""
    table = cfg.data.get("table")
    if table not in SCHEMAS:
        raise UserError(f"data.table={table}: there is {', '.join(map(str, SCHEMAS))}")
    keys = {table: {field.name for field in fields(model)} for table, (_, model) in SCHEMAS.items()}
    whole = [other for other in SCHEMAS if cfg.model and keys[other] <= set(cfg.model)]
    own = max(whole, key=lambda other: len(keys[other]), default=table)  # a network of Table 4 has all keys of Table 1
    if keys[own] != keys[table]:
        raise UserError(
            f"model={cfg.model.name} is a network of Table {own}, data={cfg.data.name} is of Table {table}: "
            f"choose another of the two (`--help` lists them)"
        )
    return table


_SMALLEST = {
    "budget.steps": 1,
    "budget.batch_size": 1,
    "budget.validate_every": 1,
    "budget.learning_rate": 0,
    "budget.localisation_rate": 0,
    "model.head_rate": 0,
    "model.windows": 1,
    "model.size": 1,
    "model.margin": 0,
    "model.filters": 1,
    "data.classes": 2,
    "data.side": 1,
    "data.images": 2,
    "data.patches": 0,
    "data.patch_side": 1,
    "model.width": 0.01,  # filters and units of Table 1, a factor of them in Table 2
    "model.match_filters": 1,
    "model.parallel": 1,
    "model.parameters": 1,
    "model.localisation.filters": 1,
    "model.localisation.features": 1,
    "model.localisation.hidden": 1,
    "model.localisation.layers": 1,
    "model.localisation.downsample": 1,
    "data.canvas": 1,
    "data.pool": 1,
    "data.projection": 1,
    "data.draws": 1,
    "data.validation": 1,
    "data.expand": 0,
    "data.window": 16,
    "logger.every": 1,
    "export.opset": 16,
    "export.calibration": 1,
    "export.batch": 1,
    "export.tolerance": 0,
    "export.warm_up": 0,
    "export.timed": 1,
    "trainer.devices": 1,
    "trainer.accumulate": 1,
    "trainer.block": 1,
    "trainer.num_nodes": 1,
}


def experiment(cfg: DictConfig) -> dict:
    """The part of a config that decides what is learned: data, model and budget, as primitives."""
    whole = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return {group: whole[group] for group in ("data", "model", "budget")}


def digest(*parts: bytes | str) -> str:
    """Twelve hexadecimal digits that stand for the parts."""
    hashed = hashlib.blake2b(digest_size=6)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


def one_line(error: BaseException) -> str:
    """The message of Hydra, omegaconf or ours, without its line breaks and its class-name decoration."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text.splitlines()[0]} {cause}"
    key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    lines = [line.strip() for line in text.splitlines()]
    lines = lines[: next((i for i, line in enumerate(lines) if line.startswith("Config search path")), None)]
    lines = [line for line in lines if line and not re.match(r"(full_key|object_type|reference_type)[=:]", line)]
    line = re.sub(r"\s+", " ", "; ".join(lines[:2]) if not isinstance(error, HydraException) else " ".join(lines))
    return f"{key}: {line}" if key and key not in line else line

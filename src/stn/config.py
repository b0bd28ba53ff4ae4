"""From the command line to a checked config. The keys are defined in `stn.schema`."""

import json
import math
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast, get_type_hints
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.environment import share_cores, silence_reducer
from stn.errors import UserError
from stn.experiments import find_configs, find_experiments, load
from stn.front_door import HELP, guard
from stn.messages import YAMLError, one_line, unknown_option
from stn.report.table import Cell
from stn.schema import Gradient, RunConfig
from stn.schema import filled as filled  # other modules import it from here

CONF = Path(__file__).parents[2] / "conf"
LARGEST_SEED = 2**32 - 1  # the largest that Lightning accepts


def front_door(work: Callable[[DictConfig], Any], with_model: bool = True) -> Callable[[], None]:
    """A `main()` that composes `conf/train.yaml` with the command line, checks it and calls `work(cfg)`.

    Commands that make data drop the model by `with_model=False`, so that it need not fit the data set.

    Errors that the user can fix end in one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` shows the traceback.
    """

    def main() -> None:
        show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own report is seven lines; we catch the error and write one

        @contextmanager
        def one_line_errors():
            with guard():
                try:
                    with readable() if not show_traceback else nullcontext():
                        yield
                except (HydraException, OmegaConfBaseException) as error:
                    if show_traceback:
                        raise
                    raise UserError(one_line(error)) from error

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
        def run(cfg: DictConfig) -> Any:
            with one_line_errors():  # inside `run`: outside, Hydra would print the overrides before our line
                cfg = checked(cfg, HydraConfig.get().overrides.task, with_model)
                if cfg.trainer.devices > 1:
                    share_cores(cfg.trainer.devices)
                if cfg.trainer.strategy == "ddp" and leaves_parameters_out(cfg):
                    silence_reducer()
                return work(cfg)  # a sweeper minimises this value

        def refuse(parser: ArgumentParser, message: str) -> NoReturn:
            groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
            raise UserError(unknown_option(sys.argv[1:], message, [*groups, *get_type_hints(RunConfig)]))

        if HELP & set(sys.argv[1:]):
            print(str(sys.modules[work.__module__].__doc__).rstrip(), end="\n\n")
        arguments = [*sys.argv, *_search_path()]
        with one_line_errors(), patch.object(sys, "argv", arguments), patch.object(ArgumentParser, "error", refuse):
            run()

    return main


def compose(*overrides: str) -> DictConfig:
    """The checked config that `python -m stn.train <overrides>` would run."""
    return checked(read(*overrides), overrides)


def read(*overrides: str) -> DictConfig:
    """The config that Hydra composes from `conf/` and these overrides: unchecked, its schedule not applied."""
    with readable(), hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("train", overrides=[*_search_path(), *overrides])


@contextmanager
def readable() -> Iterator[None]:
    """Raises a UserError that names the file if one of the configs is not YAML in UTF-8."""
    try:
        yield
    except YAMLError as error:
        raise UserError(one_line(error)) from error
    except UnicodeDecodeError as error:  # it does not name the file
        for path in sorted(path for folder in (CONF, *find_configs()) for path in folder.rglob("*.yaml")):
            if not _is_text(path):
                raise UserError(f"{path}: not UTF-8: correct this file") from error
        raise


def _is_text(path: Path) -> bool:
    """Whether a file is UTF-8."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def checked(cfg: DictConfig, overrides: Sequence[str] = (), with_model: bool = True) -> DictConfig:
    """`cfg` with the schedule of its data set applied, validated against the schema and resolved.

    The command line's `overrides` are applied after the schedule. Raises omegaconf's errors and UserError.
    """
    if not with_model:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"model": None}))
    _refuse_bases(cfg, overrides)
    overrides = [*_of_experiment(overrides), *overrides]
    kind = _kind(cfg)
    cfg = _scheduled(cfg, overrides, kind)
    cfg = _resolved(cfg, _cell(cfg, overrides).key, kind)
    if cfg.seed is not None:
        cfg.seeds, cfg.seed = [cfg.seed], None
    if not cfg.seeds:
        raise UserError("seeds=[] is empty: give a list of integers such as seeds=[0,1,2]")
    check_seeds(cfg.seeds)
    _check_smallest(cfg, kind)
    _check_rate(cfg.budget)
    _check_exploration(cfg, kind)
    if hasattr(kind, "check"):
        kind.check(cfg)
    _check_finite(cfg)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def _resolved(cfg: DictConfig, name: str, kind: ModuleType) -> DictConfig:
    """`cfg` under the schema of its experiment, named and without interpolations; UserError for a key without value."""
    schema = OmegaConf.structured(RunConfig)
    schema.data, schema.model = OmegaConf.structured(kind.DATA), OmegaConf.structured(kind.MODEL)
    cfg = cast(DictConfig, OmegaConf.merge(schema, cfg, {"name": name}))
    missing_keys = OmegaConf.missing_keys(cfg)
    if missing_keys:
        raise UserError(f"no value for {', '.join(sorted(missing_keys))}: set it in conf/ or on the command line")
    OmegaConf.resolve(cfg)
    return cfg


def _check_smallest(cfg: DictConfig, kind: ModuleType) -> None:
    """Raise UserError if a value is below the smallest that its key can have."""
    for key, smallest in (_SMALLEST | getattr(kind, "SMALLEST", {})).items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < smallest:
            raise UserError(f"{key}={value} is too small: it must be at least {smallest}")


def _check_finite(cfg: DictConfig) -> None:
    """Raise UserError if a number is NaN or infinite."""
    groups = OmegaConf.to_container(cfg, enum_to_str=True)
    for key, value in _numbers(groups):
        if not math.isfinite(value):
            raise UserError(f"{key}={value} is not a finite number")


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """The dotted keys and values of all floats in nested mappings and lists."""
    if isinstance(values, float):
        yield key, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _numbers(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, key)


def _check_rate(budget: DictConfig) -> None:
    """Raise UserError if the learning rate cannot change as the budget says, or if the momentum is out of range."""
    steps = budget.decay_every
    steps = list(steps) if OmegaConf.is_list(steps) else [steps]
    if not steps or not all(type(step) is int and step > 0 for step in steps) or steps != sorted(steps):
        raise UserError(
            f"budget.decay_every={budget.decay_every} must be a number of steps or a rising list of steps: "
            "give, for example, 50000 or [10000,20000,25000]"
        )
    if not 0 <= budget.momentum < 1:
        raise UserError(f"budget.momentum={budget.momentum} must be from 0 to below 1: give, for example, 0.9")
    warm_up, steps = budget.warm_up, budget.steps
    if not 0 <= warm_up < 1:
        raise UserError(
            f"budget.warm_up={warm_up} is not a fraction of the steps: give a number from 0 to below 1, such as 0.2"
        )
    if budget.schedule.name == "one_cycle" and math.isclose(warm_up * (steps + 1), 1):
        raise UserError(
            f"budget.warm_up={warm_up} of budget.steps={steps} is a single step, too few to raise the rate: "
            "take more steps, or budget.warm_up=0"
        )


def _refuse_bases(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise UserError if data or model is a file that has no name, because others build on it."""
    for group in ("data", "model"):
        if cfg[group] is not None and OmegaConf.is_missing(cfg[group], "name"):
            chosen = [value for key, _, value in (override.partition("=") for override in overrides) if key == group]
            base = chosen[-1] if chosen else "???"
            raise UserError(
                f"{group}={base} only holds what other files share: choose one of {', '.join(_built_on(group, base))}"
            )


def _built_on(group: str, base: str) -> list[str]:
    """The files of a config group that build on the file `base`, directly or through others."""
    paths = [path for folder in (CONF, *find_configs()) for path in (folder / group).glob("*.yaml")]
    direct = [path.stem for path in paths if base in (cast(DictConfig, OmegaConf.load(path)).get("defaults") or ())]
    return sorted({*direct, *(name for other in direct for name in _built_on(group, other))})


def _check_exploration(cfg: DictConfig, kind: ModuleType) -> None:
    """Raise UserError if the settings of exploration cannot be run."""
    budget = cfg.budget
    if len(budget.noise) != 2 or not all(0 <= value < math.inf for value in budget.noise):
        raise UserError(
            f"budget.noise={list(budget.noise)} must be two standard deviations, the first and the last, "
            "zero or positive: give, for example, [0.25,0.1]"
        )
    if not 0 <= budget.pull < math.inf:
        raise UserError(f"budget.pull={budget.pull} must be zero or positive: give, for example, 0.1")
    if not budget.random_share and not budget.explore_share:
        return
    if budget.random_share and cfg.model is not None and not _has_random_places(kind, cfg.model):
        raise UserError(
            f"budget.random_share={budget.random_share}: model={cfg.model.name} of data.kind={cfg.data.kind} has no "
            "windows to put at random places; drop it"
        )
    if budget.explore_share and cfg.model is not None and not _has_transformer(kind, cfg.model):
        raise UserError(
            f"budget.explore_share={budget.explore_share}: model={cfg.model.name} has no transformer to explore with"
        )
    if not budget.random_share + budget.explore_share <= 1:
        raise UserError(
            f"budget.random_share={budget.random_share} and budget.explore_share={budget.explore_share} add up to more "
            "than 1: lower one of these fractions of the steps"
        )
    if budget.gradient == Gradient.pathwise:
        if budget.pull:
            raise UserError(f"budget.pull={budget.pull}: budget.gradient=pathwise has no pull; set it to 0")
        return
    if budget.explore_share and not budget.noise[0]:
        raise UserError("budget.noise starts at 0, so nothing is explored: give, for example, [0.25,0.1]")
    if budget.explore_share and budget.pull and cfg.model is not None and cfg.model.get("reach") is None:
        raise UserError(
            f"budget.pull={budget.pull}: model={cfg.model.name} has no model.reach; set it, or set budget.pull=0"
        )
    if budget.explore_share and budget.batch_size < 2:
        raise UserError(f"budget.batch_size={budget.batch_size}: exploration shows each image twice; give 2 at least")


def _has_transformer(kind: ModuleType, model: DictConfig) -> bool:
    """Whether a network has transformers that can explore, according to its experiment's `config` module."""
    return hasattr(kind, "has_transformer") and bool(kind.has_transformer(model))


def _has_random_places(kind: ModuleType, model: DictConfig) -> bool:
    """Whether a network's windows can stand at random places, according to its experiment's `config` module."""
    return hasattr(kind, "has_random_places") and bool(kind.has_random_places(model))


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UserError if a seed is out of range, or listed twice, which would count one run as two."""
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"seeds: {seed} is not a seed: give integers from 0 to {LARGEST_SEED}, such as 0,1,2")
        if list(seeds).count(seed) > 1:
            raise UserError(f"seeds: {seed} is given twice: give each seed once, such as 0,1,2")


def _kind(cfg: DictConfig) -> ModuleType:
    """The `config` module of the data set's experiment; UserError if the network is not of that experiment."""
    kinds = find_experiments()
    if cfg.data.get("kind") not in kinds:
        raise UserError(f"data.kind={cfg.data.get('kind')} is not one of {', '.join(kinds)}")
    module = load(cfg.data.kind, "config")
    if cfg.model is not None and not _fits(cfg.model, module.MODEL):
        fitting = [kind for kind in kinds if _fits(cfg.model, load(kind, "config").MODEL)]
        network = f"a network of data.kind={' or '.join(fitting)}" if fitting else "no network of the project"
        raise UserError(
            f"model={cfg.model.name} is {network}, data={cfg.data.name} is of data.kind={cfg.data.kind}: "
            "choose another of the two (`--help` lists them)"
        )
    return module


def _fits(model: DictConfig, schema: type) -> bool:
    """Whether a model config has every key of a schema that has no default."""
    required = {field.name for field in fields(schema) if field.default is MISSING and field.default_factory is MISSING}
    return required <= set(model)


def _scheduled(cfg: DictConfig, overrides: Sequence[str], kind: ModuleType) -> DictConfig:
    """The config with its schedule (`conf/schedule`) applied for its budget, and without the key `schedule`.

    A schedule has a section for each budget and one named `every` for all of them. A section sets keys of `budget`
    and `model`; under `transformers` it sets keys of `budget` for networks with a transformer only. Single keys of the
    command line are applied last.
    """
    schedule = cast(dict[str, Any], OmegaConf.to_container(cfg.schedule))
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "schedule"])
    for section in ("every", cfg.budget.name):
        groups = dict(schedule.get(section) or {})
        exploration = groups.pop("transformers", {})
        if cfg.model is not None and _has_transformer(kind, cfg.model):
            groups["budget"] = {**groups.get("budget", {}), **exploration}
        for group, values in groups.items():
            if cfg.get(group) is not None:
                cfg[group] = OmegaConf.merge(cfg[group], values)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group, _, key = override.key_or_group.partition(".")
        if key and group in ("data", "budget", "model") and cfg.get(group) is not None and not override.is_delete():
            OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
    return cfg


def _of_experiment(overrides: Sequence[str]) -> list[str]:
    """The keys of data, model and budget that the file of `experiment=<name>` sets, as command-line overrides.

    As overrides they apply after the schedule and are part of the run's name. Those of the command line come last.
    """
    values = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    paths = [folder / "experiment" / f"{values.get('experiment')}.yaml" for folder in (CONF, *find_configs())]
    contents = next((OmegaConf.to_container(OmegaConf.load(path)) for path in paths if path.is_file()), {})
    settings = cast(dict[str, Any], contents)
    leaves = _leaves({group: settings[group] for group in ("data", "model", "budget") if group in settings})
    return [f"{key}={value}" for key, value in leaves.items() if key not in values]


def _leaves(values: Mapping, prefix: str = "") -> dict[str, str]:
    """The values of nested mappings by dotted keys, as on Hydra's command line."""
    leaves: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
            leaves[f"{prefix}{key}"] = str(value) if plain else json.dumps(value)
    return leaves


def _cell(cfg: DictConfig, overrides: Sequence[str]) -> Cell:
    """The cell that a command line describes: data set, network, and the settings that deviate from their configs."""
    groups = ("data", "model", "schedule")
    settings = [override.lstrip("+~") for override in overrides]
    settings = [text for text in settings if text.split(".")[0] in groups[:2] or text.startswith("schedule=")]
    settings = [text for text in settings if "=" in text and text.split("=")[0] not in groups[:2]]
    return Cell(str(cfg.data.name), str(cfg.model.name if cfg.model else "none"), tuple(settings))


def _search_path() -> list[str]:
    """The override that makes Hydra search the configs of experiments outside the project, if there are any."""
    urls = [QuotedString(f"file://{folder.resolve()}", Quote.single).with_quotes() for folder in find_configs()]
    return [f"hydra.searchpath=[{','.join(urls)}]"] if urls else []


_SMALLEST = {
    "budget.steps": 1,
    "budget.batch_size": 1,
    "budget.validate_every": 1,
    "budget.learning_rate": 0,
    "budget.localisation_rate": 0,
    "budget.weight_decay": 0,
    "budget.decay_factor": 0,
    "budget.random_share": 0,
    "budget.explore_share": 0,
    "data.canvas": 1,
    "data.validation": 1,
    "model.localisation.filters": 1,
    "model.localisation.features": 1,
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


def leaves_parameters_out(cfg: DictConfig) -> bool:
    """Whether some steps of a run give some parameters no gradient: phases of exploration, or a race of starts."""
    return bool(cfg.budget.random_share or cfg.budget.explore_share or cfg.model.get("starts", 1) > 1)


def experiment(cfg: DictConfig) -> dict:
    """The part of a config that decides what is learned: data, model and budget, as primitives."""
    groups = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    return {group: groups[group] for group in ("data", "model", "budget")}

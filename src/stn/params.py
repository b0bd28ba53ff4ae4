"""`params.yaml`, the few knobs of the pipeline."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.config import CONF, check_seeds
from stn.errors import UserError
from stn.experiments import find_tables
from stn.files import write_texts
from stn.messages import YAMLError, one_line

PARAMS = Path("params.yaml")
KNOBS = ("budget", "seeds", "columns", "numbers", "birds")
BUDGETS = ("smoke", "quick", "medium", "paper")
DEMO = "demo"  # a budget for the embedded digits only
TABLES = tuple(find_tables())  # the numbers of all tables
# The columns of Table 1. One that `columns` does not choose is shown if all of its cells have records.
COLUMNS = tuple(column.data for column in find_tables()[1].columns)
NUMBERS = ("svhn", "svhn_strips")
BIRDS = ("cub", "cub50")


@dataclass
class Params:
    """The knobs: see the comments in `params.yaml`."""

    budget: str
    seeds: str
    source: str
    columns: list[str]
    rows: list[str]
    numbers: str
    birds: str


def read_params() -> Params:
    """`params.yaml`, checked."""
    try:
        params = OmegaConf.merge(OmegaConf.structured(Params), OmegaConf.load(PARAMS))
        return check(cast(Params, OmegaConf.to_object(params)))
    except OSError as error:
        reason = f"{error.strerror}; run this from the project's folder" if error.strerror else "not a list of knobs"
        raise UserError(f"{PARAMS}: {reason}") from None
    except YAMLError as error:
        raise UserError(one_line(error)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{PARAMS}: not UTF-8 ({error.reason} at byte {error.start}): correct this file") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{PARAMS}: {one_line(error)}") from None


def check(params: Params) -> Params:
    """Return `params` if every knob is valid; otherwise raise a UserError that lists the valid values."""
    if params.budget not in BUDGETS and (params.budget, params.source) != (DEMO, "digits"):
        raise UserError(f"budget: {params.budget!r} is not one of {', '.join(BUDGETS)}")
    columns = [name.replace("mnist", params.source) for name in COLUMNS]
    for knob, choices in (
        ("columns", columns),
        ("rows", sorted(path.stem for path in (CONF / "model").glob("*.yaml"))),
    ):
        values = getattr(params, knob)
        for value in values:
            if value not in choices:
                raise UserError(f"{knob}: {value!r} is not one of {', '.join(choices)}")
            if values.count(value) > 1:
                raise UserError(f"{knob}: {value} appears twice")
    for knob, choices in (("numbers", NUMBERS), ("birds", BIRDS)):
        if getattr(params, knob) not in choices:
            raise UserError(f"{knob}: {getattr(params, knob)!r} is not one of {', '.join(choices)}")
    if not re.fullmatch(r"\d+(,\d+)*", params.seeds):
        raise UserError(f"seeds: {params.seeds!r} is not a list of integers such as 0,1,2")
    check_seeds([int(seed) for seed in params.seeds.split(",")])
    return params


def write_params(**knobs: str) -> list[str]:
    """Set knobs in `params.yaml`, keeping its comments. Returns a line for each change."""
    params = read_params()
    for knob, value in knobs.items():
        if knob not in KNOBS:
            raise UserError(f"{knob!r} is not one of the knobs {', '.join(KNOBS)}")
        setattr(params, knob, value.split(",") if knob == "columns" else value)
    check(params)
    text, messages = PARAMS.read_text(encoding="utf-8"), []
    for knob, value in knobs.items():
        quoted = {"seeds": f'"{value}"', "columns": f"[{value.replace(',', ', ')}]"}.get(knob, value)
        line = re.search(rf'^{knob}: ("[^"]*"|\[[^]]*\]|\S+)', text, re.MULTILINE)
        if line is None:
            raise UserError(f"{PARAMS}: {knob} must be on a line of its own, such as `{knob}: {quoted}`")
        old = line.group(1)
        if old != quoted:
            text = text.replace(f"{knob}: {old}", f"{knob}: {quoted}")
            old, value = (setting.strip('"') for setting in (old, quoted))
            messages.append(f"{PARAMS}: {knob} {old} -> {value}")
    write_texts({PARAMS: text})
    return messages

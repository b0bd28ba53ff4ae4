"""The experiments, a folder each, and the index of them.

An experiment is a package with four modules: `config.py` (the schema of its data and networks), `data.py` (`source`,
`fetch`, `store` and `DOOR`), `networks.py` (`network`) and `table.py` (`TABLES`). `stn.experiments.base` says what they
offer. `data.kind` in a config is the name of the package.

The environment variable `STN_EXPERIMENTS` names more folders with such packages, separated as in `PATH`; an experiment
there may have a `conf/` of its own, which is searched after the project's. Neither torch nor matplotlib is imported
here.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stn.errors import UserError

if TYPE_CHECKING:
    from stn.report.table import Table

__path__ += list(filter(None, os.environ.get("STN_EXPERIMENTS", "").split(os.pathsep)))


def find_experiments() -> list[str]:
    """The names of all experiments, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def load(name: str, module: str) -> ModuleType:
    """A module of an experiment, such as `load("mnist", "data")`."""
    return import_module(f"{__name__}.{name}.{module}")


def load_store(kind: str, data: str, door: str) -> ModuleType:
    """The data module of an experiment whose sets the front door `door` stores; else a UserError that says what to do.

    `data` is the name of the data set.
    """
    module = load(kind, "data")
    if not hasattr(module, "store"):
        raise UserError(f"data={data} has no sets to store: train it right away")
    if door != module.DOOR:
        reasons = {"crop": "is cropped, not distorted", "distort": "is distorted, not cropped"}
        raise UserError(f"data={data} {reasons[module.DOOR]}: run `python -m stn.{module.DOOR} data={data}`")
    return module


def find_configs() -> list[Path]:
    """The `conf/` folders of experiments outside of the project."""
    here = Path(__file__).parent
    folders = [Path(place) / name / "conf" for place in __path__ for name in find_experiments()]
    return [folder for folder in folders if here not in folder.parents and folder.is_dir()]


def find_tables() -> dict[int, Table]:
    """The tables of all experiments by number, in ascending order; ValueError if two have the same number."""
    tables: dict[int, Table] = {}
    for name in find_experiments():
        for table in load(name, "table").TABLES:
            if tables.setdefault(table.number, table) is not table:
                raise ValueError(f"{name}: there is a Table {table.number} already, {tables[table.number].title}")
    return dict(sorted(tables.items()))

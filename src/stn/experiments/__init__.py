"""The experiments, one package each, and their index.

An experiment is a package with four modules: `config.py` (the schema of its data and networks), `data.py` (`source`,
`fetch`, `store` and `DOOR`), `networks.py` (`network`) and `table.py` (`TABLES`). `stn.experiments.base` describes what
each module contains. `data.kind` in a config is the name of the package.

The environment variable `STN_EXPERIMENTS` lists further folders with such packages, separated as in `PATH`. An
experiment there may have its own `conf/`, which is searched after the project's. This module imports neither torch nor
matplotlib.
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
    """Import a module of an experiment, such as `load("mnist", "data")`."""
    return import_module(f"{__name__}.{name}.{module}")


def load_store(kind: str, data: str, door: str) -> ModuleType:
    """The data module of an experiment. Raises UserError if the front door `door` does not store its sets.

    `data` is the name of the data set.
    """
    module = load(kind, "data")
    if not hasattr(module, "store"):
        raise UserError(f"data={data} has no sets to store: train it without this step")
    if door != module.DOOR:
        reasons = {"crop": "is cropped, not distorted", "distort": "is distorted, not cropped"}
        raise UserError(f"data={data} {reasons[module.DOOR]}: run `python -m stn.{module.DOOR} data={data}`")
    return module


def find_configs() -> list[Path]:
    """The `conf/` folders of experiments outside the project."""
    project = Path(__file__).parent
    folders = [Path(root) / name / "conf" for root in __path__ for name in find_experiments()]
    return [folder for folder in folders if project not in folder.parents and folder.is_dir()]


def find_tables() -> dict[int, Table]:
    """The tables of all experiments by number, in ascending order. Raises ValueError if two have the same number."""
    tables: dict[int, Table] = {}
    for name in find_experiments():
        for table in load(name, "table").TABLES:
            if tables.setdefault(table.number, table) is not table:
                raise ValueError(f"{name}: Table {table.number} exists already, {tables[table.number].title}")
    return dict(sorted(tables.items()))

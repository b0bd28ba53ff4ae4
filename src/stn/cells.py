"""The cells of the tables: what is trained, where its record lies, and what decides its result. `python -m stn.cells`.

The stage `cells` of `dvc.yaml` writes `cells.json`, of which the stages that store sets, train and export are made. For
each of them it holds the digest of the resolved config and that of the code that can change its result
(`stn.codebase`). So DVC runs a stage again when one of these digests changes, and for no other change of code.
"""

import copy
import json
import os
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from stn.codebase import digest_of, is_shown, training_digest
from stn.config import checked, compose, experiment, read
from stn.experiments import find_tables, load
from stn.files import digest, write_texts
from stn.front_door import guard
from stn.messages import Parser
from stn.params import COLUMNS, PARAMS, Params, read_params
from stn.report.table import Cell
from stn.schema import deliberate

CELLS = Path("cells.json")
RESULTS = Path("reports/results")
EXPORTED = tuple(number for number, table in find_tables().items() if table.exported)
CLASSIFIER = ("mnist_ts", "cnn", "quick")  # data, model and budget that co-localisation builds on, at every budget


def _folders() -> dict[Cell, str]:
    """The folder of each cell's record below a budget's folder: that of the first table that shows the cell."""
    folders: dict[Cell, str] = {}
    for table in find_tables().values():
        for row in table.rows:
            folder = f"{table.folder}_on_demand" if row.on_demand else table.folder
            for column in table.columns:
                folders |= {cell: folder for cell in row.cells(column) if cell not in folders}
    return folders


def record_path(budget: str, cell: Cell) -> Path:
    """The path of a cell's record, a JSON file."""
    return RESULTS / budget / _folders()[cell] / f"{cell.key}.json"


def declared(params: Params, table: int) -> list[Cell]:
    """The cells of a table that the pipeline keeps up to date, by column and row."""
    return [cell for cell in _all_cells(table, on_demand=False) if _is_chosen(params, table, cell)]


def on_demand(params: Params, table: int) -> list[Cell]:
    """The cells of a table that are trained only when asked for."""
    return [cell for cell in _all_cells(table, on_demand=True) if _is_chosen(params, table, cell)]


def shown(params: Params, table: int) -> tuple[list[Cell], list[Cell]]:
    """The cells that a table shows: those that must have a record, and those that may.

    Table 1 shows the columns that `params.yaml` chooses, and every other column whose cells all have a record.
    """
    if table != 1:
        return [], find_tables()[table].cells()
    required = declared(params, table)
    if params.source != "mnist":
        return required, []
    candidates = [cell for cell in find_tables()[1].cells(on_demand=False) if cell.model in params.rows]
    columns: dict[str, list[Cell]] = {}
    for cell in candidates:
        columns.setdefault(cell.data, []).append(cell)
    # One record does not make a column: another table may have trained that cell.
    complete = [cells for cells in columns.values() if all(record_path(params.budget, cell).exists() for cell in cells)]
    optional = [cell for cells in complete for cell in cells if cell not in required]
    return required, optional + find_tables()[1].cells(on_demand=True)


def _all_cells(table: int, on_demand: bool) -> list[Cell]:
    """The cells of a table, stand-ins included, by column and row."""
    layout = find_tables()[table]
    cells = (
        cell
        for column in layout.columns
        for row in layout.rows
        if row.on_demand == on_demand
        for cell in row.cells(column)
    )
    return list(dict.fromkeys(cells))


def _is_chosen(params: Params, table: int, cell: Cell) -> bool:
    """Whether `params.yaml` chooses the data set of a cell, and in Table 1 its row."""
    if table != 1 and params.source != "mnist":
        return False
    if table == 1:
        columns = [name.replace("mnist", params.source) for name in COLUMNS] if cell.settings else params.columns
        return cell.data in columns and cell.model in params.rows
    layout = find_tables()[table]
    if layout.chosen_by:
        name = cell.data.rpartition("_")[0]
        return layout.chosen_with.get(name, name) == getattr(params, layout.chosen_by)
    return cell in layout.cells()


def config(budget: str, cell: Cell) -> DictConfig:
    """The resolved config of a cell, as `stn.config.compose` gives it.

    Composing a config takes Hydra a tenth of a second, so each data set and each model is read only once.
    """
    schedules = [setting for setting in cell.settings if setting.startswith("schedule=")]
    cfg = copy.deepcopy(_read(f"data={cell.data}", f"budget={budget}", *schedules))
    cfg.model = _read(f"model={cell.model}").model
    return checked(cfg, arguments(budget, cell))


_read = cache(read)


def arguments(budget: str, cell: Cell) -> list[str]:
    """The command-line arguments that train a cell."""
    return [f"data={cell.data}", f"model={cell.model}", f"budget={budget}", *cell.settings]


def stage(budget: str, cell: Cell) -> str:
    """The key of a cell in `cells.json`; `cell@<key>` is its stage."""
    return f"{budget}-{cell.key}"


def offers(cfg: DictConfig, what: str) -> bool:
    """Whether the data module of an experiment has the optional function `what`: `fetch` or `store`."""
    return hasattr(load(cfg.data.kind, "data"), what)


def describe_cell(params: Params, cell: Cell) -> dict[str, str]:
    """The entry of a cell in `cells.json`; `params.yaml`, which always exists, fills in for an absent dependency."""
    cfg = config(params.budget, cell)
    weights = cfg.model.get("pretrained")
    record, code = record_path(params.budget, cell), training_digest(cfg.data.kind)
    return {
        "arguments": " ".join(arguments(params.budget, cell)),
        "record": str(record.with_suffix("")),
        "seeds": ",".join(map(str, _seeds(params, record, cfg, code))),
        "stored": cfg.data.stored if offers(cfg, "store") else str(PARAMS),
        "reads": weights if isinstance(weights, str) else cfg.data.raw if offers(cfg, "fetch") else str(PARAMS),
        "config": digest(json.dumps(deliberate(experiment(cfg)), sort_keys=True)),
        "code": code,
    }


def _seeds(params: Params, record: Path, cfg: DictConfig, code: str) -> list[int]:
    """The seeds of a cell: those of its record, if the record is up to date, and those that `params.yaml` asks for.

    So a record of three seeds stays one when one seed is asked for. `make table FRESH=1` (STN_FRESH) trains only what
    is asked for.
    """
    asked = [int(seed) for seed in params.seeds.split(",")]
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
        is_current = is_shown(facts, code) and deliberate(facts["config"]) == deliberate(experiment(cfg))
        recorded = [int(seed["seed"]) for seed in facts["seeds"]] if is_current and facts["complete"] else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no record, or one that the table refuses
        recorded = []
    if os.environ.get("STN_FRESH"):
        return asked
    return recorded + [seed for seed in asked if seed not in recorded]


def describe_stored(cfg: DictConfig) -> dict[str, str]:
    """The entry of a data set's stored sets in `cells.json`."""
    return {
        "door": load(cfg.data.kind, "data").DOOR,
        "raw": cfg.data.raw,
        "stored": cfg.data.stored,
        "config": digest(json.dumps(deliberate(experiment(cfg))["data"], sort_keys=True)),
        "code": digest_of(f"stn.experiments.{cfg.data.kind}.data:store"),
    }


def describe(params: Params) -> dict[str, dict]:
    """The contents of `cells.json`: the arguments and the dependencies of each stage."""
    tables = {table: [*declared(params, table), *on_demand(params, table)] for table in find_tables()}
    cells = list(dict.fromkeys(cell for group in tables.values() for cell in group))
    exported = [cell for table in EXPORTED for cell in declared(params, table)]
    first_cells: dict[str, Cell] = {}
    for cell in cells:
        first_cells.setdefault(cell.data, cell)
    configs = {name: config(params.budget, cell) for name, cell in first_cells.items()}
    data, model, budget = CLASSIFIER
    classifier = compose(f"data={data}", f"model={model}", f"budget={budget}")
    if params.source == "mnist":
        configs[data] = classifier
    raw = {cfg.data.raw: name for name, cfg in reversed(configs.items()) if offers(cfg, "fetch")}
    export = digest_of("stn.deployment:deploy")
    entries = {stage(params.budget, cell): describe_cell(params, cell) for cell in cells}
    return {
        "raw": {Path(folder).name: {"data": name, "folder": folder} for folder, name in sorted(raw.items())},
        "stored": {name: describe_stored(cfg) for name, cfg in configs.items() if offers(cfg, "store")},
        "classifier": {
            "config": digest(json.dumps(experiment(classifier), sort_keys=True)),
            "code": training_digest(classifier.data.kind),
        },
        "cells": entries,
        "exports": {
            key: {name: entries[key][name] for name in ("arguments", "record", "seeds")} | {"code": export}
            for key in (stage(params.budget, cell) for cell in exported)
        },
    }


def write() -> None:
    """Write `cells.json` for the knobs in `params.yaml`."""
    write_texts({CELLS: json.dumps(describe(read_params()), indent=1) + "\n"})


def main() -> None:
    parser = Parser(prog="python -m stn.cells", description=__doc__)
    parser.add_argument("--print", action="store_true", dest="show", help="write nothing; print what would be written")
    args = parser.parse_args()
    with guard():
        if args.show:
            print(json.dumps(describe(read_params())))
        else:
            write()


if __name__ == "__main__":
    main()

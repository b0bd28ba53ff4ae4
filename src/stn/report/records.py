"""Reads and checks the records of trained cells: `load_records`.

A cell leaves `<key>.json` (`stn.report.rows.Cell.key`), the arrays beside it in an NPZ (see `stn.training.record`),
and `<key>-export.json` if `stn.export` measured it. Records from `load_records` are complete, consistent and of their
cells, so comparisons and renderers need not check them.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import numpy as np

from stn.codebase import fault
from stn.errors import UserError
from stn.files import DAMAGED
from stn.report.rows import Column, Export, Record, Row, Run, Seed
from stn.report.table import Table

__all__ = ["Record", "config_differences", "load_records", "missing"]

SCHEMA = 1

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")


# The required and the optional keys of the JSON files. The table gives a cell's row and column, so those of older
# records are not read.
READ_ELSEWHERE = {"row", "column", "path", "arrays", "export"}
OPTIONAL = {"code", "adopted"}
KEYS = ("schema", "complete", *(part.name for part in fields(Record) if part.name not in READ_ELSEWHERE | OPTIONAL))
SEED_KEYS = tuple(part.name for part in fields(Seed) if part.name != "validation")
EXPORT_KEYS = ("schema", "data", "model", *(part.name for part in fields(Export)))
RUN_KEYS = ("error", "errors", "agreement", "latency")
LATENCY_KEYS = ("median", "low", "high", "n")
RUNS = ("torch", "float32", "int8")
# What is raised at values that the code here does not know, such as a key of a newer version. Those of omegaconf are
# of these kinds.
UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ImportError)


def missing(paths: Iterable[Path]) -> list[Path]:
    """The JSON paths of declared cells that have no record."""
    return [Path(path) for path in paths if not Path(path).is_file()]


def load_records(
    table: Table,
    required: Iterable[Path],
    optional: Iterable[Path] = (),
    configs: Mapping[Path, Mapping[str, Any]] | None = None,
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> list[Record]:
    """The records of the declared cells of one table, by row and column.

    Once one optional cell of a data set has a record, the data set's other optional cells are required. There are two
    exceptions: cells of rows that are `shown_where_run` may be absent one by one, and the record of a cell that an
    earlier table shows makes no other cell required. `configs` gives the declared, resolved configs of any of the
    paths, and `fill` adds to a record's config the defaults of newer keys. Raises UserError, one line that names the
    files, for a required cell without a record, a damaged or unfinished record, a record whose config is not its
    cell's, or records of several budgets.
    """
    paths, optional = [Path(path) for path in required], [Path(path) for path in optional]
    loose = {path for path in optional if _is_loose(table, path)}
    own_paths = [path for path in optional if path.parent.name == table.folder] or optional
    data_sets = {_data_set(path) for path in own_paths if path.is_file() and path not in loose}
    paths += [path for path in optional if (path.is_file() if path in loose else _data_set(path) in data_sets)]
    absent = missing(paths)
    if absent:
        cells = "1 cell has" if len(absent) == 1 else f"{len(absent)} cells have"
        raise UserError(f"{cells} no record: {', '.join(map(str, absent))}; `{table.make}` trains what is missing")
    records = [record for path in paths for record in _read(path, table)]
    for record in records:
        differences = []
        if configs and record.path in configs:
            try:
                differences = config_differences(fill(record.config), configs[record.path])
            except UNREADABLE as error:
                raise _damaged(record.path, table, _not_understood("its config", error)) from error
        if differences:
            suffix = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"{record.path}: made with another config ({'; '.join(differences[:3])}{suffix}); "
                f"`{table.make}` trains the cell again"
            )
    for record in records:
        if record.budget != records[0].budget:
            raise UserError(f"{record.path}: budget {record.budget}, not {records[0].budget} like the other cells")
    order = {place: i for i, place in enumerate((row, column) for row in table.rows for column in table.columns)}
    return sorted(records, key=lambda record: order[record.row, record.column])


def config_differences(config: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every key whose value is not the expected one, such as "model.filters: 32, not 64"; nested keys are dotted."""
    differences = []
    for key in [*expected, *(key for key in config if key not in expected)]:
        name = f"{prefix}{key}"
        if key not in config:
            differences.append(f"{name}: absent, not {json.dumps(expected[key], default=str)}")
        elif key not in expected:
            differences.append(f"{name}: {json.dumps(config[key], default=str)}, not absent")
        elif isinstance(config[key], Mapping) and isinstance(expected[key], Mapping):
            differences += config_differences(config[key], expected[key], f"{name}.")
        else:
            value, target = (json.dumps(tree[key], default=str) for tree in (config, expected))
            if value != target and ({value, target} & {"true", "false"} or config[key] != expected[key]):
                differences.append(f"{name}: {value}, not {target}")
    return differences


def _data_set(path: Path) -> str:
    """The data set of a cell's path, `<data>-<model>....json`."""
    return path.stem.partition("-")[0]


def _is_loose(table: Table, path: Path) -> bool:
    """Whether all rows that show a cell are `shown_where_run`."""
    places = table.places.get(path.stem, [])
    return bool(places) and all(row.shown_where_run for row, _ in places)


def _damaged(path: Path, table: Table, reason: str) -> UserError:
    return UserError(f"{path}: damaged record, {reason}; delete it and `{table.make}` trains the cell again")


def _not_understood(what: str, reason: object) -> str:
    """Why a record is damaged whose value, or config, the code here does not know."""
    line = str(reason).strip().partition("\n")[0]
    return f"{what} is not understood ({line}), perhaps it comes from a newer version of the project"


def _read(path: Path, table: Table) -> list[Record]:
    """The record of a cell at each of its places in the table."""
    try:
        return _read_whole(path, table)
    except UNREADABLE as error:
        raise _damaged(path, table, _not_understood("a value", error)) from error


def _read_whole(path: Path, table: Table) -> list[Record]:
    """As `_read`, but values that no check expects raise errors of their own."""

    def damaged(reason: str) -> UserError:
        return _damaged(path, table, reason)

    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged("not valid JSON") from error
    if not isinstance(facts, dict):
        raise damaged("no JSON object")
    gaps = [key for key in KEYS if key not in facts]
    if gaps:
        raise damaged(f"without {', '.join(gaps)}")
    if facts["schema"] != SCHEMA:
        raise damaged(f"schema {facts['schema']}, not {SCHEMA}")
    reason = fault(facts)
    if reason:
        raise damaged(reason)
    mistyped = _mistyped(Record, facts) if isinstance(facts["seeds"], list) else ["seeds"]
    if mistyped:
        raise damaged(f"{mistyped[0]}: {json.dumps(facts[mistyped[0]])[:40]}")
    if not facts["complete"]:
        raise UserError(f"{path}: an unfinished run, not a result; `{table.make}` trains the cell to its end")
    places = table.places.get(path.stem, [])
    if not places:
        raise damaged(f"no cell of Table {table.number}: {path.stem}")
    if not f"{path.stem}-".startswith(f"{facts['data']}-{facts['model']}-"):
        raise damaged(f"of another cell: {facts['data']}-{facts['model']}")
    if not facts["seeds"] or not facts["n_test"]:
        raise damaged("without any seed" if facts["n_test"] else "without any test image")
    seeds = []
    for seed in facts["seeds"]:
        gaps = [key for key in SEED_KEYS if not isinstance(seed, dict) or key not in seed]
        if gaps:
            raise damaged(f"a seed without {', '.join(gaps)}")
        mistyped = _mistyped(Seed, seed)
        if mistyped:
            raise damaged(f"a seed whose {mistyped[0]} is {json.dumps(seed[mistyped[0]])[:40]}")
        if not all(_is_point(point) for point in seed.get("validation", ())):
            raise damaged(f"a seed whose validation is {json.dumps(seed['validation'])[:40]}")
        batch = facts["config"].get("budget", {}).get("batch_size")
        if batch and seed["images_seen"] != seed["steps"] * batch * table.classes:
            suffix = f" of each of {table.classes} classes" if table.classes > 1 else ""
            raise damaged(f"{seed['images_seen']} {table.images} seen in {seed['steps']} steps of {batch}{suffix}")
        seeds.append(_pick(Seed, seed))
    numbers = [seed.seed for seed in seeds]
    twins = [number for number in numbers if numbers.count(number) > 1]
    if twins:
        raise damaged(f"with seed {twins[0]} more than once")

    archive = path.with_suffix(".npz")
    try:
        with np.load(archive, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
    except FileNotFoundError as error:
        raise damaged(f"without {archive.name} beside it") from error
    except (*DAMAGED, RuntimeError) as error:
        raise damaged(f"{archive.name} cannot be read") from error
    names = [seed.array for seed in seeds]
    if any(row.transformer for row, _ in places):
        names += table.arrays
    names += dict.fromkeys(row.images[0] for row, _ in places if row.images)
    gaps = [name for name in dict.fromkeys(names) if name not in arrays]
    if gaps:
        raise damaged(f"{archive.name} without {', '.join(gaps)}")
    for seed in seeds:
        correct = arrays[seed.array].astype(bool)
        counted = int((~correct).sum())
        percent = 100 * seed.errors / facts["n_test"]
        adds_up = counted == seed.errors and math.isclose(seed.error, percent, abs_tol=5e-3)
        if not adds_up or not seed.n_test == len(correct) == facts["n_test"]:
            raise damaged(
                f"seed {seed.seed} claims {seed.errors} errors ({seed.error} %) of {seed.n_test} images, "
                f"its predictions have {counted} of {len(correct)}"
            )
    row, column = places[0]
    parts = {"row": row, "column": column, "seeds": tuple(seeds), "path": path, "arrays": arrays}
    record = _pick(Record, facts | parts | {"export": None})
    reason = table.check(record)
    if reason:
        raise damaged(f"{archive.name} {reason}")
    record = replace(record, export=_read_export(record, table))
    return [part for row, column in places if (part := _at(record, row, column)).n_test]


def _mistyped(kind: "type[DataclassInstance]", values: Mapping[str, Any]) -> list[str]:
    """The fields of a dataclass whose values have the wrong type."""
    allowed: dict[Any, type | tuple[type, ...]] = {int: int, float: (int, float), str: str, Mapping: dict}
    allowed |= {Sequence: list, str | None: (str, type(None))}
    types: dict[str, Any] = {part.name: part.type for part in fields(kind) if part.name in values}
    types = {name: declared if declared in allowed else get_origin(declared) for name, declared in types.items()}
    return [
        name
        for name, expected in types.items()
        if expected in allowed and not isinstance(values[name], allowed[expected])
    ]


def _is_point(value: Any) -> bool:
    """Whether a value is a point of a validation curve: a step, an error, and further numbers."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(number, int | float) for number in value)


def _pick(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """An object of a dataclass from those of the values that are its fields."""
    return kind(**{part.name: values[part.name] for part in fields(kind) if part.name in values})


def _at(record: Record, row: Row, column: Column) -> Record:
    """The record at a place of its table, with only the test images of the row if the row selects some."""
    if row.images is None:
        return replace(record, row=row, column=column)
    name, value = row.images
    mask = record.arrays[name] == value
    n = int(mask.sum())
    arrays: dict[str, np.ndarray] = {}
    seeds = []
    for seed in record.seeds:
        correct = arrays[seed.array] = record.arrays[seed.array][mask]
        errors = int((~correct.astype(bool)).sum())
        seeds.append(replace(seed, error=100 * errors / max(n, 1), errors=errors, n_test=n))
    return replace(record, row=row, column=column, n_test=n, seeds=tuple(seeds), arrays=arrays)


def _read_export(record: Record, table: Table) -> Export | None:
    cell = record.path
    path = cell.with_name(f"{cell.stem}-export.json")
    if not path.is_file():
        return None

    def refused(reason: str) -> UserError:
        return UserError(f"{path}: {reason}; delete it and `{table.make}` exports the network again")

    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise refused("damaged record, not valid JSON") from error
    reason = _export_fault(facts)
    if reason:
        raise refused(f"damaged record, {reason}")
    export = _pick(Export, facts | {"runs": {name: _pick(Run, run) for name, run in facts["runs"].items()}})
    first = record.seeds[0]
    trained = {"seed": first.seed, "date": first.provenance.get("date"), "errors": first.errors}
    if export.trained != trained or export.config != record.config:
        raise refused(f"not from the training of {cell.name}")
    if export.tested != record.data or export.n_test != record.n_test:
        raise refused(f"tested on other images than {cell.name}")
    for name, run in export.runs.items():
        if not math.isclose(run.error, 100 * run.errors / export.n_test, abs_tol=5e-3):
            raise refused(
                f"damaged record, {name} claims {run.errors} errors ({run.error} %) of {export.n_test} images"
            )
    return export


def _export_fault(facts: Any) -> str | None:
    """What is absent from an export, or has the wrong type or an impossible value; None if nothing."""
    if not isinstance(facts, dict):
        return "no JSON object"
    gaps = [key for key in EXPORT_KEYS if key not in facts]
    if gaps:
        return f"without {gaps[0]}"
    if facts["schema"] != SCHEMA:
        return f"schema {facts['schema']}, not {SCHEMA}"
    faults = [(key, facts[key]) for key in _mistyped(Export, facts)]
    if faults:
        return f"{faults[0][0]}: {json.dumps(faults[0][1])[:40]}"
    for name in dict.fromkeys((*RUNS, *facts["runs"])):
        run = facts["runs"].get(name)
        if not isinstance(run, dict):
            return f"without runs.{name}"
        gaps = [key for key in RUN_KEYS if key not in run]
        if gaps:
            return f"without runs.{name}.{gaps[0]}"
        faults = [(key, run[key]) for key in _mistyped(Run, run)]
        if not faults:
            latency = {f"latency.{key}": run["latency"].get(key) for key in LATENCY_KEYS}
            sizes = {"bytes": run.get("bytes")} if name != "torch" else {}
            faults = [(key, value) for key, value in (latency | sizes).items() if not _is_positive(value)]
            faults += [("agreement", run["agreement"])] if not 0 <= run["agreement"] <= 100 else []
        if faults:
            return f"runs.{name}.{faults[0][0]}: {json.dumps(faults[0][1])[:40]}"
    return None


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf

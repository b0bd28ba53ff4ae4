"""Writes the weights of finished runs to `reports/weights` for others to use: `python -m stn.publish`.

A run's weights are written only if its record is of that run, and if they reproduce the record's error on the stored
test set within one image in a thousand: in float16 if that suffices, else in float32.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from stn.cells import record_path
from stn.config import filled
from stn.errors import UserError
from stn.experiments import find_tables
from stn.files import write_texts
from stn.params import BUDGETS, COLUMNS
from stn.report.blocks import Report, Sources
from stn.report.pages import fill
from stn.report.records import Record, load_records
from stn.report.table import Cell
from stn.report.weights import cards
from stn.runs import CHECKPOINT, find_runs, read_run
from stn.schema import typed
from stn.training.learner import Learner
from stn.training.run import answers, load, quieten
from stn.weights import CLONE, SCHEMA, SUFFIX, read_card, write

MODELS = ("cnn", "st_cnn_affine", "st_cnn_projective", "st_cnn_tps")  # rows of Table 1, for its first four columns
TOLERATED = 1000  # the errors of stored weights may differ from the record's by one in this many test images
PAGE = Path("docs/weights.md")
EXAMPLE = "reports/results/quick/mnist/mnist_r-cnn.json"
LICENCE = "MIT"
DATA_LICENCES = {  # by the folder of the raw data; weights learned from other data are not published
    "mnist": "MNIST: CC BY-SA 3.0",
    "digits": "Optical Recognition of Handwritten Digits, UCI: CC BY 4.0",
}


class Run(NamedTuple):
    """A finished run: its folder, what it measured, and its record."""

    folder: Path
    result: dict
    record: Record


def publish(paths: Sequence[Path], outputs: Path) -> None:
    """Write the weights of the runs of these records; without `paths`, those that the project publishes.

    Prints what was written and, without `paths`, what is missing and why. Raises UserError if the weights of one of
    `paths` cannot be written, or if there is nothing to write.
    """
    quieten()
    if paths:
        for run in [find_run(read_record(path), outputs) for path in paths]:
            print(_write(run))
    else:
        _write_all(outputs)
    texts = dict(cards(Path()))
    if PAGE.is_file():
        texts[PAGE] = fill(PAGE, Sources(lambda number: Report([[]], ""), {}), [])
    write_texts(texts)
    files = list(CLONE.glob(f"*/*{SUFFIX}"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} network{'s' * (len(files) != 1)} in {CLONE}, {size:.1f} MB")


def _write_all(outputs: Path) -> None:
    """Write the project's weights at the budget with the most runs here; on a tie, at the longest such budget."""
    cells = [Cell(data, model) for data in COLUMNS[:4] for model in MODELS]
    choices = [_find_all(budget, cells, outputs) for budget in reversed(BUDGETS[1:])]
    runs, missing = max(choices, key=lambda choice: len(choice[0]))  # on a tie the first
    if not runs:
        command = f"{find_tables()[1].make} FRESH=1"
        raise UserError(f"no run below {outputs}/runs whose record is in reports/results: `{command}` trains them")
    for run in runs:
        path = CLONE / f"{name_of(run.record)}{SUFFIX}"
        try:
            if path.is_file() and (card := _card(path))["steps"] > run.result["steps"]:
                print(f"{card['name']}: kept, of budget {card['budget']}, which is longer than {run.record.budget}")
            else:
                print(_write(run))
        except UserError as error:
            missing.append(str(error))
    budget = runs[0].record.budget
    if missing:
        print(f"{len(missing)} of {len(cells)} are missing at budget {budget}:")
        for reason in missing:
            print(f"  {reason}")
        command = f"{find_tables()[1].make} BUDGET={budget} FRESH=1"
        print(f"`{command}` trains the whole table again, and writes its records anew")


def _find_all(budget: str, cells: Sequence[Cell], outputs: Path) -> tuple[list[Run], list[str]]:
    """The runs of these cells at a budget, and why the other cells have none."""
    runs, missing = [], []
    for cell in cells:
        try:
            runs.append(find_run(read_record(record_path(budget, cell)), outputs))
        except UserError as error:
            missing.append(str(error))
    return runs, missing


def read_record(path: Path) -> Record:
    """The record of a table's cell; UserError if it is missing, damaged, of no table, or outside this folder."""
    path = Path(os.path.relpath(path))  # as in its card
    if ".." in path.parts:
        raise UserError(f"{path} is not in this folder: run this where the record is")
    tables = [table for table in find_tables().values() if path.stem in table.places]
    if path.suffix != ".json" or not path.is_file():
        raise UserError(f"{path}: no such record; a record is a JSON file such as {EXAMPLE}")
    if not tables:
        raise UserError(f"{path}: it is not the record of a cell of a table, and only their weights are published")
    return load_records(tables[0], [path])[0]


def find_run(record: Record, outputs: Path) -> Run:
    """The finished run of a record's first seed, with the record's config and its result on every test image.

    Raises UserError if there is no run of the record below `outputs`, or if all of them differ from it.
    """
    seed, name = record.seeds[0], f"{record.data}-{record.model}"
    named, others = (find_runs(outputs, record.budget, each, seed.seed) for each in (record.path.stem, f"{name}*"))
    config, reasons, foreign = filled(record.config), [], []
    for folder in dict.fromkeys([*named, *others]):
        try:
            if OmegaConf.to_container(load(folder / CHECKPOINT).cfg) != config:
                foreign.append(folder)
                continue
            result, arrays = read_run(folder)
        except UserError as error:
            reasons.append(str(error))
            continue
        differences = [key for key in ("errors", "n_test", "steps") if result[key] != getattr(seed, key)]
        if differences:
            key = differences[0]
            reasons.append(f"{folder} has {result[key]:,} {key}, the record {getattr(seed, key):,}")
        elif [list(point) for point in result["validation"]] != [list(point) for point in seed.validation]:
            reasons.append(f"{folder} has another validation curve")
        elif not np.array_equal(arrays["correct"], record.correct):
            reasons.append(f"{folder} has other test images right")
        else:
            return Run(folder, result, record)
    if not reasons:
        reasons.append(f"no finished run of it in {outputs / 'runs' / record.budget / record.path.stem}")
        reasons += [f"{folder} was trained with another config" for folder in foreign[:1]]
    raise UserError(f"{record.path}: {'; '.join(reasons)}")


def _write(run: Run) -> str:
    """Write the weights of a run and their card. Returns a line that reports it."""
    record, seed = run.record, run.record.seeds[0]
    raw = Path(record.config["data"]["raw"]).name
    if raw not in DATA_LICENCES:
        raise UserError(f"{record.path}: no licence is known that allows publishing weights learned from {raw}")
    learner = load(run.folder / CHECKPOINT)
    # Copied, because the network gets rounded weights.
    state = {key: value.numpy().copy() for key, value in learner.network.state_dict().items()}
    dtype, tensors, errors = _stored(state, learner, run)
    card = {
        "schema": SCHEMA,
        "name": name_of(record),
        "data": record.data,
        "model": record.model,
        "budget": record.budget,
        "seed": seed.seed,
        "steps": seed.steps,
        "error": seed.error,
        "errors": seed.errors,
        "n_test": seed.n_test,
        "validation": list(seed.validation[-1]),
        "stored": {"dtype": dtype, "error": 100 * errors / seed.n_test, "errors": errors},
        "parameters": record.parameters,
        "record": record.path.as_posix(),
        "code": run.result.get("code", dict(record.code)),
        "provenance": run.result["provenance"],
        "licence": {"weights": LICENCE, "data": DATA_LICENCES[raw]},
        "config": record.config,
    }
    path = CLONE / f"{card['name']}{SUFFIX}"
    try:
        write(path, card, tensors)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error.strerror}") from error
    return (
        f"{card['name']}: error {seed.error:.2f} % of {seed.n_test:,} images ({record.budget}), "
        f"{card['stored']['error']:.2f} % as {dtype}, {path.stat().st_size / 1000:.0f} KB"
    )


def _stored(state: dict[str, np.ndarray], learner: Learner, run: Run) -> tuple[str, dict[str, np.ndarray], int]:
    """The type in which to store weights, the tensors, and the errors that they make on the stored test set."""
    seed, groups = run.record.seeds[0], typed(run.record.config)
    trainer = OmegaConf.create({"accelerator": "cpu"})
    for dtype in ("float16", "float32"):
        tensors = {
            key: value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value
            for key, value in state.items()
        }
        learner.network.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        correct = answers(learner, groups["data"], groups["budget"], trainer)
        errors = int((~correct).sum())
        if len(correct) == seed.n_test and TOLERATED * abs(errors - seed.errors) <= seed.n_test:
            return dtype, tensors, errors
    raise UserError(
        f"{run.folder}: its weights make {errors} errors on {len(correct):,} test images here, those of "
        f"{run.record.path} {seed.errors} on {seed.n_test:,}: store the record's test set, or train the cell again"
    )


def name_of(record: Record) -> str:
    """The name of a record's network for `stn.load`: `<data>/<model>`, with its settings if it has any."""
    return f"{record.data}/{record.path.stem.removeprefix(f'{record.data}-')}"


def _card(path: Path) -> dict:
    try:
        return read_card(path)
    except ValueError as error:
        raise UserError(str(error)) from error

"""Tables from records: every number but the paper's is read from `reports/results/`, none is typed by hand.

A record is the dict of a cell's JSON plus `path` (of that JSON), `arrays` (of the NPZ beside it) and `export` (what
`stn.export` left beside it, or None). `load` is the gate: what passes it is whole, is its own cell's, and adds up, so
the writers below take its records as they are. All records of one call are of one table; where there may be none, the
table's number comes with them.
"""

import csv
import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stn.errors import UserError
from stn.report.paper import BIRD, TABLES, PaperTable
from stn.report.statistics import (
    centres,
    holds,
    interval,
    mcnemar,
    pose_left,
    seen,
    share_gained,
    variance_undone,
    verdict,
)

CSV_COLUMNS = (
    *("table", "budget", "row", "column", "metric", "paper", "ours", "ci_low", "ci_high"),
    *("n_seeds", "n_test", "n_params", "seconds"),
)
COLOURS = {"better": "green", "within": "cyan", "worse": "yellow", "not comparable": ""}
NOT_BEATEN, NOT_CLEARLY = "†", "‡"
SIGNIFICANT = 0.05
STILL = 1.0  # a window whose centre moves less, in % of the side, has no say in what it holds
PAIRED = (
    "Both networks on the same test images: McNemar's exact two-sided test on the images that only one of them "
    "has right, one test per seed, the largest p shown, not corrected for the number of tests."
)
IMAGE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # the window that shows all of it

SCHEMA = 1
KEYS = (
    *("schema", "table", "budget", "data", "model", "row", "column", "metric", "complete", "part", "parameters"),
    *("multiply_adds", "n_test", "config", "seeds", "pose_names"),
)
EXPORT_KEYS = ("schema", "data", "model", "tested", "config", "trained", "n_test", "runs", "provenance")
RUN_KEYS = ("error", "errors", "agreement", "latency")
SEED_KEYS = ("seed", "error", "errors", "n_test", "steps", "images_seen", "seconds", "provenance")


# ------------------------------------------------------------------------------------------------- records


def missing(paths: Iterable[Path]) -> list[Path]:
    """Those of the declared cells' JSON paths that have no record."""
    return [Path(path) for path in paths if not Path(path).is_file()]


def load(
    number: int,
    required: Iterable[Path],
    optional: Iterable[Path] = (),
    configs: Mapping[Path, Mapping] | None = None,
) -> list[dict]:
    """The records of the declared cells of one table, in the paper's order.

    Optional cells of one data set are all or nothing: absent as a whole they are skipped, and once one of them has a
    record the others are required; but cells of the table's optional models may be absent one by one. `configs` gives,
    for any of the paths, the resolved config that this cell is declared to have. Raises UserError, one line that names
    the files, for a required cell without record, a damaged or unfinished record, one whose config is not its cell's,
    or records of several budgets.
    """
    table = TABLES[number]
    paths, optional = [Path(path) for path in required], [Path(path) for path in optional]
    loose = {path for path in optional if _halves(path)[1] in table.optional}
    begun = {_halves(path)[0] for path in optional if path.is_file() and path not in loose}
    paths += [path for path in optional if (path.is_file() if path in loose else _halves(path)[0] in begun)]
    absent = missing(paths)
    if absent:
        cells = "1 cell has" if len(absent) == 1 else f"{len(absent)} cells have"
        raise UserError(f"{cells} no record: {', '.join(map(str, absent))}; `{table.make}` trains what is missing")
    records = [_read(path, table) for path in paths]
    for record in records:
        differences = config_differences(record["config"], (configs or {}).get(record["path"], record["config"]))
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"{record['path']}: made with another config ({'; '.join(differences[:3])}{more}); "
                f"`{table.make}` trains the cell again"
            )
    if len({record["budget"] for record in records}) > 1:
        other = next(record for record in records if record["budget"] != records[0]["budget"])
        raise UserError(f"{other['path']}: budget {other['budget']}, not {records[0]['budget']} like the other cells")
    if table.split:
        records = [part for record in records for part in (*_split(record, table.split), record)]
    return sorted(records, key=lambda record: (table.rows.index(record["row"]), table.columns.index(record["column"])))


def _split(record: dict, name: str) -> list[dict]:
    """A record for each value of the array `name` (n_test,), with the images of that row alone."""
    found = []
    for value in np.unique(record["arrays"][name]):
        mine = record["arrays"][name] == value
        n, arrays, seeds = int(mine.sum()), {}, []
        for seed in record["seeds"]:
            correct = arrays[f"correct_s{seed['seed']}"] = record["arrays"][f"correct_s{seed['seed']}"][mine]
            errors = int((~correct.astype(bool)).sum())
            seeds.append({**seed, "error": 100 * errors / n, "errors": errors, "n_test": n})
        found.append({**record, "row": str(value), "n_test": n, "seeds": seeds, "arrays": arrays})
    return found


def config_differences(config: Mapping, expected: Mapping, prefix: str = "") -> list[str]:
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
            ours, theirs = (json.dumps(tree[key], default=str) for tree in (config, expected))
            if ours != theirs and ({ours, theirs} & {"true", "false"} or config[key] != expected[key]):
                differences.append(f"{name}: {ours}, not {theirs}")
    return differences


def _halves(path: Path) -> tuple[str, str]:
    """The data set and the model of a cell's path, `<data>-<model>.json`."""
    data, _, model = path.stem.partition("-")
    return data, model


def _read(path: Path, table: PaperTable) -> dict:
    def damaged(reason: str) -> UserError:
        return UserError(f"{path}: damaged record, {reason}; delete it and `{table.make}` trains the cell again")

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged("no valid JSON") from error
    if not isinstance(record, dict):
        raise damaged("no JSON object")
    lacking = [key for key in KEYS if key not in record]
    if lacking:
        raise damaged(f"without {', '.join(lacking)}")
    if record["schema"] != SCHEMA:
        raise damaged(f"schema {record['schema']}, not {SCHEMA}")
    if not record["complete"]:
        raise UserError(f"{path}: an unfinished run, not a result; `{table.make}` trains the cell to its end")
    if record["table"] != table.number or record["row"] not in table.rows or record["column"] not in table.columns:
        told = f"table {record['table']}, row {record['row']}, column {record['column']}"
        raise damaged(f"no cell of Table {table.number}: {told}")
    if path.stem != f"{record['data']}-{record['model']}":
        raise damaged(f"of another cell: {record['data']}-{record['model']}")
    if not record["seeds"]:
        raise damaged("without any seed")
    for seed in record["seeds"]:
        lacking = [key for key in SEED_KEYS if key not in seed]
        if lacking:
            raise damaged(f"a seed without {', '.join(lacking)}")

    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise damaged(f"without {path.with_suffix('.npz').name} beside it") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise damaged(f"{path.with_suffix('.npz').name} cannot be read") from error
    wanted = [f"correct_s{seed['seed']}" for seed in record["seeds"]]
    if table.transforms(record["row"]):
        wanted += table.arrays
    lacking = [name for name in wanted if name not in arrays]
    if lacking:
        raise damaged(f"{path.with_suffix('.npz').name} without {', '.join(lacking)}")
    for seed in record["seeds"]:
        n, errors, correct = seed["n_test"], seed["errors"], arrays[f"correct_s{seed['seed']}"].astype(bool)
        counted = int((~correct).sum())
        adds_up = counted == errors and math.isclose(seed["error"], 100 * errors / n, abs_tol=5e-3)
        if not adds_up or not n == len(correct) == record["n_test"]:
            raise damaged(
                f"seed {seed['seed']} claims {errors} errors ({seed['error']} %) of {n} images, "
                f"its predictions have {counted} of {len(correct)}"
            )
    if "positions" in arrays and not np.array_equal(arrays["positions"].all(1), _first(record, arrays)):
        raise damaged(f"{path.with_suffix('.npz').name} whose positions are not those of its predictions")
    return {**record, "path": path, "arrays": arrays, "export": _read_export(record, path, table)}


def _read_export(record: Mapping, cell: Path, table: PaperTable) -> dict | None:
    path = cell.with_name(f"{cell.stem}-export.json")
    if not path.is_file():
        return None
    again = f"delete it and `{table.make}` exports the network again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lacking = [key for key in EXPORT_KEYS if key not in found]
        lacking += [f"runs.{run}" for run in ("torch", "float32", "int8") if run not in found.get("runs", ())]
        lacking += [key for run in found.get("runs", {}).values() for key in RUN_KEYS if key not in run]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged record, no valid JSON; {again}") from error
    if lacking or found["schema"] != SCHEMA:
        what = f"without {lacking[0]}" if lacking else f"schema {found['schema']}, not {SCHEMA}"
        raise UserError(f"{path}: damaged record, {what}; {again}")
    first = record["seeds"][0]
    trained = {"seed": first["seed"], "date": first["provenance"].get("date"), "errors": first["errors"]}
    if found["trained"] != trained or found["config"] != record["config"]:
        raise UserError(f"{path}: not of the training that {cell.name} tells of; {again}")
    if found["tested"] != record["data"] or found["n_test"] != record["n_test"]:
        raise UserError(f"{path}: tested on other images than {cell.name}; {again}")
    return found


def _first(record: Mapping, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which test image the first seed has right, bool (n_test,)."""
    return arrays[f"correct_s{record['seeds'][0]['seed']}"].astype(bool)


# ------------------------------------------------------------------------------------------------- numbers


def rows(records: Sequence[dict]) -> list[dict]:
    """One dict for each cell: the CSV's columns plus `verdict`. `ours` is the mean over seeds, `seconds` their sum."""
    cells = []
    for record in records:
        seeds, table = record["seeds"], TABLES[record["table"]]
        paper, bounds = table.paper[record["row"]].get(record["column"]), interval(seeds)
        lo, hi = sorted(map(table.turned, bounds))
        cells.append(
            {
                "table": record["table"],
                "budget": record["budget"],
                "row": record["row"],
                "column": record["column"],
                "metric": table.metric,
                "paper": paper,
                "ours": table.turned(_error(record)),
                "ci_low": lo,
                "ci_high": hi,
                "n_seeds": len(seeds),
                "n_test": record["n_test"],
                "n_params": record["parameters"],
                "multiply_adds": record["multiply_adds"],
                "seconds": sum(seed["seconds"] for seed in seeds),
                "verdict": verdict(*bounds, paper and table.turned(paper), comparable=record["part"] is None),
            }
        )
    return cells


def _error(record: Mapping) -> float:
    """The cell's error in %, the mean over seeds."""
    return float(np.mean([seed["error"] for seed in record["seeds"]]))


def paired(records: Sequence[dict], against: Mapping[str, str] | None = None) -> list[dict]:
    """Each cell against that of another row, the baseline if `against` names none: one exact McNemar test per seed.

    `ours` and `theirs` are the values that the table prints, `tests` lists (p, n01, n10), n01 images that only the cell
    has right, n10 only the other. `p` is the largest of them. `beats` compares the mean errors; `sure` says that every
    common seed agrees with p < 0.05, `clear` that both hold.
    """
    cells = {(record["row"], record["column"]): record for record in records}
    comparisons = []
    for (row, column), record in cells.items():
        table = TABLES[record["table"]]
        other = cells.get(((table.baseline if against is None else against).get(row), column))
        if other is None:
            continue
        names = [
            f"correct_s{seed['seed']}" for seed in record["seeds"] if f"correct_s{seed['seed']}" in other["arrays"]
        ]
        if record["n_test"] != other["n_test"]:
            raise UserError(f"{record['path']} and {other['path']}: not the same test images, train both again")
        tests = [mcnemar(other["arrays"][name], record["arrays"][name]) for name in names]
        p = max((test[0] for test in tests), default=math.nan)
        beats = _error(record) < _error(other)
        sure = p < SIGNIFICANT and all((n01 > n10) == beats for _, n01, n10 in tests)
        comparisons.append(
            {
                "row": row,
                "column": column,
                "other": other["row"],
                "theirs": table.turned(_error(other)),
                "ours": table.turned(_error(record)),
                "tests": tests,
                "p": p,
                "beats": beats,
                "sure": sure,
                "clear": beats and sure,
            }
        )
    return comparisons


def gains(records: Sequence[dict]) -> list[dict]:
    """For each cell with a baseline whose column has the ceiling: the share (%) of the possible gain that it takes.

    100 (baseline - cell) / (baseline - ceiling), of the errors on the test images, with the 95 % interval of
    `share_gained`, all of the first seed that the three have in common. Only for networks whose classifier is the
    ceiling's.
    """
    found = []
    cells = {(record["row"], record["column"]): record for record in records}
    for (row, column), record in cells.items():
        table = TABLES[record["table"]]
        trio = [cells.get((name, column)) for name in (table.baseline.get(row), row, table.ceiling)]
        if None in trio or not table.ceiling.startswith(table.baseline[row]):
            continue
        common = sorted(set.intersection(*({seed["seed"] for seed in one["seeds"]} for one in trio)))
        if common and len({one["n_test"] for one in trio}) == 1:
            share, low, high = share_gained(*(one["arrays"][f"correct_s{common[0]}"] for one in trio))
            errors = dict(zip(("baseline", "ours", "ceiling"), map(_error, trio), strict=True))
            found.append({"row": row, "column": column, "share": share, "low": low, "high": high, **errors})
    return found


def steps(records: Sequence[dict]) -> list[list[dict]]:
    """The steps of the paper's orders as `paired` has them, one list for each order and column with all of its rows."""
    if not records:
        return []
    table, wholes = TABLES[records[0]["table"]], []
    for order in table.orders:
        found = paired(records, dict(pairwise(reversed(order))))
        columns = ([step for step in found if step["column"] == column] for column in table.columns)
        wholes += [whole for whole in columns if whole and len(whole) == len(order) - 1]
    return wholes


def positions(records: Sequence[dict]) -> list[dict]:
    """For each cell with an array `positions` (n_test, K): the error (%) at each of K places, and of the whole number.

    All of the first seed. True is a place read right; behind the last digit the right answer is "none".
    """
    return [
        {
            "row": record["row"],
            "column": record["column"],
            "places": [100 * float(share) for share in 1 - record["arrays"]["positions"].mean(0)],
            "whole": record["seeds"][0]["error"],
        }
        for record in records
        if "positions" in record["arrays"]
    ]


def last_windows(records: Sequence[dict]) -> list[dict]:
    """For each cell that keeps windows and boxes of the test images: what the last window shows of the number.

    Medians over the test images, of the first seed. `image` and `window` are the number's shares (%) of their areas,
    `zoom` is the ratio of the two, `inside` the share (%) of the number that the window shows. A window is its bounding
    box.
    """
    found = []
    for record in records:
        arrays = record["arrays"]
        if "window_all" in arrays and "box" in arrays:
            inside, window = seen(arrays["window_all"][:, -1], arrays["box"])
            _, image = seen(np.broadcast_to(IMAGE, (len(window), 4, 2)), arrays["box"])
            shares = {"image": 100 * image, "window": 100 * window, "zoom": window / image, "inside": 100 * inside}
            medians = {name: float(np.median(values)) for name, values in shares.items()}
            found.append({"row": record["row"], "column": record["column"], **medians})
    return found


def parts_held(records: Sequence[dict]) -> list[dict]:
    """For each window of each cell that keeps windows and a bird's parts on all test images: what the window holds.

    `parts` is the share (%) of the images that show a part in which the window holds it, by name; `head` and `body` are
    the same over all their parts. `centre` (x, y) and `moves` are in % of the image's side, from its upper left corner:
    the mean centre, and the root mean square of its way from there. All of the first seed.
    """
    found = []
    for record in records:
        arrays = record["arrays"]
        if "window_all" not in arrays or "parts" not in arrays:
            continue
        names = arrays["part_names"].tolist()
        for i, windows in enumerate(np.moveaxis(arrays["window_all"], 1, 0)):
            held = dict(zip(names, holds(windows, arrays["parts"]).T, strict=True))
            centre, moves = centres(windows)
            found.append(
                {
                    "row": record["row"],
                    "column": record["column"],
                    "window": i + 1,
                    **{
                        region: _share(*(held[name] for name in parts if name in held))
                        for region, parts in BIRD.items()
                    },
                    "parts": {name: _share(images) for name, images in held.items()},
                    "centre": tuple(50 * (1 + centre)),
                    "moves": 50 * moves,
                }
            )
    return found


def digits_undone(records: Sequence[dict]) -> list[dict]:
    """For each transformer of each cell that reads pairs of digits: how much of each digit's pose it undoes.

    `undone` (first, second) is `stn.report.statistics.variance_undone` of that digit in %: 100 where the digit is
    always seen in one pose, 0 where nothing is gained, less where it is seen in more poses than before. Of the first
    test pairs and the first seed.
    """
    found = []
    for record in records:
        if "pair_after" not in record["arrays"]:
            continue
        before, after = (record["arrays"][name].astype(float) for name in ("pair_before", "pair_after"))
        for k in range(after.shape[1]):
            undone = tuple(100 * variance_undone(before[:, digit], after[:, k, digit]) for digit in range(2))
            about = {name: record[name] for name in ("row", "column")}
            found.append({**about, "transformer": k + 1, "undone": undone, "n": len(before)})
    return found


def _share(*held: np.ndarray) -> float:
    """The share (%) of ones among all that are not nan; nan if there are none."""
    known = np.concatenate(held)
    known = known[~np.isnan(known)]
    return 100 * float(known.mean()) if len(known) else math.nan


def larger(records: Sequence[dict]) -> list[dict]:
    """Each ST cell against each larger cell without a transformer on the same data, as `paired` compares.

    Beside its keys: `times` and `times_adds`, how many times the ST cell's parameters and multiply-adds the other has.
    """
    cells = {(record["row"], record["column"]): record for record in records}
    found = []
    for (row, column), record in cells.items():
        for (other, place), rival in cells.items():
            table = TABLES[record["table"]]
            if place != column or not table.transforms(row) or table.transforms(other):
                continue
            if table.rows.index(other) > table.rows.index(row):  # rows are in the order of their size
                (comparison,) = paired([record, rival], {row: other})
                times = {
                    name: rival[key] / record[key]
                    for name, key in (("times", "parameters"), ("times_adds", "multiply_adds"))
                }
                found.append(comparison | times)
    return found


def _small_against_large(records: Sequence[dict]) -> list[str]:
    """For each column the answer: is a small ST network better than a large one without?"""
    lines, found = [], larger(records)
    for column in TABLES[records[0]["table"]].columns:
        pairs = [pair for pair in found if pair["column"] == column]
        if not pairs:
            continue
        won = [pair for pair in pairs if pair["clear"]]
        lost = [pair for pair in pairs if pair["sure"] and not pair["beats"]]
        if won:
            best = max(won, key=lambda pair: pair["times"])
            line = f"On {column} a small ST-CNN is better than a large CNN: {best['row']} ({best['ours']:.2f} %) beats "
            line += f"{best['other']} ({best['theirs']:.2f} %) with {_ratio(best['times'], 'parameters')} and "
            line += f"{_ratio(best['times_adds'], 'multiply-adds')} (p = {_p(best['p'])})"
        else:
            line = f"On {column} no ST-CNN is significantly better than a larger CNN"
        lines.append(
            f"{line}. Pairs of an ST-CNN and a larger CNN: {len(pairs)}; the smaller is significantly better in "
            f"{len(won)}, worse in {len(lost)}."
        )
    return lines


def _ratio(times: float, name: str) -> str:
    """How few, such as "1/29 of the parameters"; where there are not fewer, how many times as many."""
    if times >= 1.5:
        return f"1/{times:.{0 if times >= 3 else 1}f} of the {name}"
    return f"{1 / times:.1f} times the {name}"


def summary(records: Sequence[dict]) -> list[str]:
    """Plain sentences: how many cells agree with the paper, where an ST does not beat what it should, the order."""
    counts = Counter(row["verdict"] for row in rows(records))
    compared = sum(counts[name] for name in ("better", "within", "worse"))
    lines = []
    if compared:
        lines.append(
            f"Against the paper, {compared} cell{'s' * (compared > 1)}: {counts['better']} better, "
            f"{counts['within']} within, {counts['worse']} worse."
        )
    if compared and counts["not comparable"]:
        lines.append(f"Without a number of the paper: {counts['not comparable']} cells.")
    if not records:
        return lines
    table = TABLES[records[0]["table"]]
    with_st = [cell for cell in paired(records) if table.transforms(cell["row"])]
    for subject, comparisons in (
        (table.contest, with_st),
        ("An ST network beats its control, whose windows do not move,", paired(records, table.controls)),
    ):
        if comparisons:
            places = [cell["row"] + f" on {cell['column']}" * (len(table.columns) > 1) for cell in comparisons]
            told = list(zip(places, comparisons, strict=True))
            lost = [place for place, cell in told if not cell["beats"]]
            unclear = [place for place, cell in told if cell["beats"] and not cell["clear"]]
            line = f"{subject} in {len(comparisons) - len(lost)} of {len(comparisons)} cells"
            line += f"; not in {', '.join(lost)}." if lost else "."
            if unclear:
                line += f" It does so without significance (p ≥ {SIGNIFICANT}) in {', '.join(unclear)}."
            lines.append(line)
    for cell in paired(records):
        if not table.transforms(cell["row"]):
            line = f"{cell['row']} {'beats' if cell['beats'] else 'does not beat'} {cell['other']} on {cell['column']}"
            weak = f", without significance (p ≥ {SIGNIFICANT})" if cell["beats"] and not cell["sure"] else ""
            lines.append(f"{line}{weak}.")
    if table.by_size:
        lines += _small_against_large(records)
    return lines + _orders(records)


def _orders(records: Sequence[dict]) -> list[str]:
    """Whether the paper's orders hold, as far as the records go."""
    wholes = steps(records)
    if wholes and len(TABLES[records[0]["table"]].orders) == 1:
        return [_order(whole) for whole in wholes]
    theirs, ours = [], []
    for whole in wholes:
        (theirs if TABLES[records[0]["table"]].has(_rows_of(whole)) else ours).append(whole)
    return [
        _several_orders(whose, some)
        for whose, some in (("The paper's order", theirs), ("The same order of rows that are ours", ours))
        if some
    ]


def _rows_of(whole: Sequence[dict]) -> tuple[str, ...]:
    return whole[0]["other"], *(step["row"] for step in whole)


def _order(whole: Sequence[dict]) -> str:
    """Whether the paper's order holds in one column, with the values, and which of its steps are significant."""
    kept = "holds" if all(step["beats"] for step in whole) else "does not hold"
    sure = [f"the step {'up' if step['beats'] else 'down'} to {step['row']}" for step in whole if step["sure"]]
    told = f"{', '.join(sure)} {'is' if len(sure) == 1 else 'are'}" if sure else "no step is"
    return (
        f"The paper's order {kept} on {whole[0]['column']}: {_chain(whole)}; {told} significant "
        f"(p < {SIGNIFICANT}, paired test)."
    )


def _several_orders(whose: str, wholes: Sequence[Sequence[dict]]) -> str:
    """In how many families an order holds, with the values of each, and which of the steps are not significant."""
    kept = sum(all(step["beats"] for step in whole) for whole in wholes)
    unsure = [f"to {step['row']}" for whole in wholes for step in whole if not step["sure"]]
    told = f"every step is significant, but those {', '.join(unsure)}" if unsure else "every step is significant"
    values = "; ".join(map(_chain, wholes))
    return f"{whose} holds in {kept} of {len(wholes)}: {values}; {told} (p < {SIGNIFICANT}, paired test)."


def _chain(whole: Sequence[dict]) -> str:
    """The rows of an order with their values."""
    text = f"{whole[0]['other']} {whole[0]['theirs']:.2f}"
    for step in whole:
        sign = "<" if step["ours"] > step["theirs"] else ">" if step["ours"] < step["theirs"] else "="
        text += f" {sign} {step['row']} {step['ours']:.2f}"
    return text


def caption(records: Sequence[dict], number: int) -> str:
    """What was measured, on what, for how long, where: one paragraph of markdown, all of it from the records."""
    table = TABLES[number]
    text = table.measure if table.is_all_ours else f"{table.measure}, **ours** (the paper's)"
    if not records:
        return f"{text}. No cell is trained yet: `{table.make}` trains them."
    text = [f"{text}, budget `{records[0]['budget']}`{_parts(records, table)}."]
    text += _trunks(records)
    text.append(f"Each cell: {_trained(records)}, {_span(record['n_test'] for record in records)} test images.")
    text.append(_trained_on(records))
    if any(len(record["seeds"]) > 1 for record in records):
        text.append("Intervals are at 95 %, Student's over seeds.")
    if any(len(record["seeds"]) == 1 for record in records):
        text.append("Intervals are at 95 %, Wilson's over test images: one seed cannot tell how far seeds differ.")
    return " ".join(text)


def _trained(records: Sequence[dict]) -> str:
    """Steps, images a step, seeds."""
    seeds = [seed for record in records for seed in record["seeds"]]
    batches = _span(round(seed["images_seen"] / seed["steps"]) for seed in seeds if seed["steps"])
    names = sorted({tuple(sorted(seed["seed"] for seed in record["seeds"])) for record in records})
    sets = " or ".join(", ".join(map(str, group)) for group in names)
    plural = "seed" if all(len(group) == 1 for group in names) else "seeds"
    return f"{_span(seed['steps'] for seed in seeds)} steps of {batches} images, {plural} {sets}"


def _trained_on(records: Sequence[dict]) -> str:
    """A sentence: machines, versions, and how long in all."""
    where, versions = Counter(), Counter()
    for record in records:
        provenance = record["seeds"][0]["provenance"]
        if provenance.get("gpu"):
            machine = provenance["gpu"]
        else:
            cores = provenance.get("cores")
            machine = f"{provenance.get('cpu') or 'unknown processor'}{f' with {cores} cores' if cores else ''}"
        where[f"{machine} ({provenance.get('precision', 'unknown precision')})"] += 1
        versions[
            ", ".join(
                f"{label} {provenance[key]}"
                for key, label in (("python", "Python"), ("torch", "torch"), ("stn", "stn"))
                if provenance.get(key)
            )
        ] += 1
    trained = {record["path"]: record for record in records}.values()  # rows of one record share its training
    seconds = sum(seed["seconds"] for record in trained for seed in record["seeds"])
    return f"Trained on {_several(where)}; {_several(versions)}; {_duration(seconds)} of training in all."


def _parts(records: Sequence[dict], table: PaperTable) -> str:
    """What stands in for the paper's data, column by column unless it is the same in all."""
    parts: dict[str, list[str]] = {}
    for column in table.columns:
        for part in sorted({record["part"] or "" for record in records if record["column"] == column}):
            parts.setdefault(part, []).append(column)
    if set(parts) == {""}:
        return ""
    if len(parts) == 1:
        return f", on {next(iter(parts))}: not comparable with the paper"
    named = [f"; {', '.join(columns)} on {part}" for part, columns in parts.items() if part]
    return f"{''.join(named)}: not comparable with the paper"


def _trunks(records: Sequence[dict]) -> list[str]:
    """On what networks are built, and where its weights come from; nothing where they are built from scratch."""
    trunks = Counter()
    for record in records:
        model = record["config"].get("model", {})
        if "trunk" in model:
            weights = record["seeds"][0]["provenance"].get("weights")
            start = f"pretrained on ImageNet{f': {weights}' if weights else ''}" if model["pretrained"] else "untrained"
            trunks[f"`{model['trunk']}`, {start}"] += 1
    return [f"Trunk: {_several(trunks)}."] if trunks else []


def _span(values: Iterable[float]) -> str:
    values = sorted(set(values)) or [0]
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _several(counts: Counter) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{name} ({n} cell{'s' * (n > 1)})" for name, n in sorted(counts.items()))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


def _matrix(
    records: Sequence[dict], table: PaperTable
) -> tuple[list[str], list[str], dict[tuple[str, str], dict], list[tuple[str, dict]]]:
    """Rows and columns to show, cells by (row, column), and the parameter counts by (columns that share them, row)."""
    cells = {(row["row"], row["column"]): row for row in rows(records)}
    marks = {(cell["row"], cell["column"]): cell for cell in paired(records)}
    for key, cell in cells.items():
        beaten = marks.get(key)
        better, worse = table.arrows
        cell["mark"] = {"better": better, "within": "≈", "worse": worse}.get(cell["verdict"], "")
        cell["against"] = "" if not beaten or beaten["clear"] else NOT_CLEARLY if beaten["beats"] else NOT_BEATEN
    # What nobody trained is still part of the table, unless all that is here are stand-ins in the paper's own columns.
    whole = not records or any(record["part"] is None or table.is_ours(record["column"]) for record in records)
    shown = [
        row
        for row in table.rows
        if row in table.cited or any(key[0] == row for key in cells) or (whole and row not in table.on_demand)
    ]
    columns = [column for column in table.columns if whole or any(key[1] == column for key in cells)]
    groups: list[tuple[list[str], dict[str, int]]] = []
    for column in () if table.split else columns:  # rows of one record share its network
        counts = {row: cells[row, column]["n_params"] for row in shown if (row, column) in cells}
        for names, known in groups:
            if counts and all(known.get(row, n) == n for row, n in counts.items()):
                names.append(column)
                known.update(counts)
                break
        else:
            if counts:
                groups.append(([column], counts))
    return shown, columns, cells, [(", ".join(names), counts) for names, counts in groups]


# ------------------------------------------------------------------------------------------------- writers


def to_markdown(records: Sequence[dict], number: int, others: Sequence[Sequence[dict]] = ()) -> str:
    """The whole report: caption and matrix (which the README takes over), then a section for each thing measured.

    `others` are the records of the same cells at other budgets, one sequence for each, as far as they are there.
    """
    table = TABLES[number]
    shown, columns, cells, parameters = _matrix(records, table)
    body = []
    for row in shown:
        line = [_entry(table, row, column, cells.get((row, column)), "**{}**") for column in columns]
        body.append([row, *line, *(f"{counts[row]:,}" if row in counts else "–" for _, counts in parameters)])
    head = [table.entries, *columns, *(f"parameters ({names})" for names, _ in parameters)]
    text = [
        f"# Table {number}: {table.title}",
        caption(records, number),
        _markdown_table(head, body, "l" + "r" * (len(head) - 1)),
        _legend(cells, shown, columns, table),
        " ".join(summary(records)),
        *_by_export(records, table),
        *_side_by_side([records, *others], table),
    ]

    text += (
        _by_pair(records, table)
        + _by_gain(records, table)
        + _by_position(records)
        + _by_window(records)
        + _by_part(records, table)
        + _by_digit(records)
        + _by_solid_pose(records)
    )

    body = [
        [
            cell["row"],
            cell["column"],
            "–" if cell["paper"] is None else f"{cell['paper']:.1f}",
            f"{cell['ours']:.2f}",
            f"{cell['ci_low']:.2f} to {cell['ci_high']:.2f}",
            str(cell["n_seeds"]),
            f"{cell['n_test']:,}",
            f"{cell['n_params']:,}",
            f"{cell['multiply_adds'] / 1e6:,.1f}",
            f"{cell['seconds'] / 60:.1f}",
            cell["verdict"],
        ]
        for cell in cells.values()
    ]
    head = ["row", "column", "paper", "ours", "95 % interval", "n seeds", "n test", "parameters"]
    head += ["multiply-adds, M", "minutes", "verdict"]
    align = "llrrrrrrrrl"
    if table.is_all_ours:  # nothing to hold them against
        ours = [i for i, name in enumerate(head) if name not in ("paper", "verdict")]
        head, align, *body = ([line[i] for i in ours] for line in (head, align, *body))
    if body:
        text += [
            "## Every cell",
            "Multiply-adds are those of one image in a test, in millions; minutes are of training, all seeds.",
            _markdown_table(head, body, align),
        ]
    return "\n\n".join(filter(None, text)) + "\n"


def _side_by_side(budgets: Sequence[Sequence[dict]], table: PaperTable) -> list[str]:
    """The cells at several budgets in one matrix, and how far each budget has come; nothing for a single one."""
    if len(list(filter(None, budgets))) < 2:
        return []
    (same, *each), head, body = _budgets(budgets, table, "**{}**", paper=True)
    return [same, "\n".join(f"- {line}" for line in each), _markdown_table(head, body, "ll" + "r" * (len(head) - 2))]


def _budgets(
    budgets: Sequence[Sequence[dict]], table: PaperTable, bold: str, paper: bool
) -> tuple[list[str], list[str], list[list[str]]]:
    """What is said of several budgets, of all and of each, and head and body of the matrix of them, ours in `bold`.

    It has a line for each row of the table and budget, as far as they are run, with `paper` one of the paper's numbers
    too. The first budget is the one that the rest of the table is about; of the others the summary stands here.
    """
    main, *_ = budgets
    budgets = sorted(filter(None, budgets), key=lambda found: max(seed["steps"] for seed in found[0]["seeds"]))
    names = [records[0]["budget"] for records in budgets]
    lines = [
        (name, {key: _ours(cell, bold) for key, cell in _matrix(records, table)[2].items()})
        for name, records in zip(names, budgets, strict=True)
    ]
    keys = {key for _, cells in lines for key in cells}
    if paper:
        theirs = {(row, column): f"{value:.1f}" for row in table.paper for column, value in table.paper[row].items()}
        lines.append(("Jaderberg et al.", theirs))
    columns = [column for column in table.columns if any(key[1] == column for key in keys)]
    body = []
    for row in (row for row in table.rows if any(key[0] == row for key in keys)):
        made = [(name, [cells.get((row, column), "–") for column in columns]) for name, cells in lines]
        made = [(name, entries) for name, entries in made if set(entries) != {"–"}]
        body += [[row if i == 0 else "", name, *entries] for i, (name, entries) in enumerate(made)]
    told = [f"The same at several budgets; – is not run yet{', of Jaderberg et al. not given' if paper else ''}."]
    for name, records in zip(names, budgets, strict=True):
        line = f"`{name}`: {len(records)} of {len(keys)} cells, {_trained(records)}. {_trained_on(records)}"
        told.append(" ".join([line, *(summary(records) if records is not main else [])]))
    return told, [table.entries, "budget", *columns], body


def _absent(table: PaperTable, row: str, column: str) -> str:
    """What stands where a cell has no record: it is cited, could have been run, or is no cell of the table."""
    if row in table.cited:
        return "cited" if column in table.paper[row] else "–"
    if row == table.ceiling:
        return "–"
    return "not run" if column in table.paper[row] or table.is_ours(column) or not table.paper[row] else "–"


def _entry(table: PaperTable, row: str, column: str, cell: Mapping | None, bold: str) -> str:
    """One place of the matrix: ours in `bold`, the paper's in brackets, marks."""
    paper = table.paper[row].get(column)
    theirs = "" if paper is None else f"({paper:.1f})"
    return _ours(cell, bold, theirs) if cell else " ".join(filter(None, (_absent(table, row, column), theirs)))


def _ours(cell: Mapping, bold: str, theirs: str = "") -> str:
    """A cell's number in `bold`, `theirs` after it, marks."""
    return " ".join(filter(None, (bold.format(f"{cell['ours']:.2f}"), theirs, f"{cell['mark']}{cell['against']}")))


def _by_pair(records: Sequence[dict], table: PaperTable) -> list[str]:
    """Who beats whom on the same images: a section each for the transformers, their variants, rivals and the order."""
    pairs = paired(records)
    sections = (
        (
            "With and without a transformer",
            "without ST,with ST,difference,only without right,only with right,p,beats its baseline",
            [cell for cell in pairs if table.transforms(cell["row"]) and not table.transforms(cell["other"])],
        ),
        (
            "Against the baseline",
            "baseline,this,difference,only baseline right,only this right,p,beats its baseline",
            [cell for cell in pairs if table.transforms(cell["other"])],
        ),
        (
            "Windows that move against windows that do not",
            "fixed,moving,difference,only fixed right,only moving right,p,beats its control",
            paired(records, table.controls),
        ),
        (
            "A rival without a transformer",
            "baseline,rival,difference,only baseline right,only rival right,p,beats its baseline",
            [cell for cell in pairs if not table.transforms(cell["row"])],
        ),
        (
            "One trunk for all streams",
            "own trunks,one trunk,difference,only own right,only one right,p,beats own trunks",
            paired(records, {row: own for own, row in table.sharing.items()}),
        ),
        (
            "A small ST-CNN against a larger CNN",
            "larger CNN,smaller ST-CNN,difference,only CNN right,only ST-CNN right,p,beats the larger",
            [pair | {"row": f"{pair['row']} : {pair['other']}"} for pair in (larger(records) if table.by_size else ())],
        ),
        (
            "The paper's order",
            "step before,this step,difference,only before right,only this right,p,is a step up",
            [step for whole in steps(records) for step in whole],
        ),
    )
    text = []
    for title, head, comparisons in sections:
        if not comparisons:
            continue
        body = [
            [
                cell["row"],
                cell["column"],
                f"{cell['theirs']:.2f}",
                f"{cell['ours']:.2f}",
                f"{cell['ours'] - cell['theirs']:+.2f}".replace("-", "−"),
                "; ".join(str(test[2]) for test in cell["tests"]) or "–",
                "; ".join(str(test[1]) for test in cell["tests"]) or "–",
                _p(cell["p"]),
                "yes" if cell["clear"] else "yes, not significantly" if cell["beats"] else "**no**",
            ]
            for cell in comparisons
        ]
        text += [
            f"## {title}",
            "" if text else PAIRED,
            _markdown_table(["model", "column", *head.split(",")], body, "llrrrrrrl"),
        ]
    return text


def _by_gain(records: Sequence[dict], table: PaperTable) -> list[str]:
    found = gains(records)
    if not found:
        return []
    body = [
        [
            *(cell["row"], cell["column"]),
            *(f"{cell[name]:.2f}" for name in ("baseline", "ours", "ceiling")),
            f"{cell['share']:.0f}",
            f"{cell['low']:.0f} to {cell['high']:.0f}".replace("-", "−"),
        ]
        for cell in found
    ]
    return [
        "## How much of the possible gain",
        f"The ceiling ({table.ceiling}) sees each digit as its distortion left it, undone by the true parameters and "
        "resampled into the digit's own frame: what a transformer could hope for that finds the pose without fail. The "
        "share is how far the error has come from the baseline's to the ceiling's; its interval is a bootstrap over "
        "the test images, which the three networks share.",
        _markdown_table(
            ["model", "column", "baseline", "with ST", "ceiling", "share of the gain, %", "95 % interval"],
            [[cell.replace("-", "−") if i > 4 else cell for i, cell in enumerate(line)] for line in body],
            "llrrrrr",
        ),
    ]


def _by_export(records: Sequence[dict], table: PaperTable) -> list[str]:
    if not table.by_size or not records:
        return []
    told, head, body = _exported(records, table)
    return [told, _markdown_table(list(head), body, "ll" + "r" * (len(head) - 2))]


def _exported(records: Sequence[dict], table: PaperTable) -> tuple[str, dict[str, str], list[list[str]]]:
    """What each cell costs and what its ONNX files are worth: what is said of it, head and body of its matrix.

    The head is each column's name, and the same in two short lines for the terminal.
    """
    head = {"model": "\nmodel", "data": "\ndata", "error, %": "error\n%", "95 % interval": "95 %\ninterval"}
    head |= {"int8 error, %": "int8\n%", "torch, ms": "torch\nms", "float32, ms": "ONNX\nms", "int8, ms": "int8\nms"}
    head |= {"multiply-adds, M": "mult.-\nadds, M", "parameters": "para-\nmeters"}
    head |= {"float32, KB": "ONNX\nKB", "int8, KB": "int8\nKB"}
    body, where = [], Counter()
    for record in sorted(records, key=lambda record: table.columns.index(record["column"])):
        low, high = interval(record["seeds"])
        line = [record["row"], record["column"], f"{_error(record):.2f}", f"{low:.2f}–{high:.2f}"]
        counts = [f"{record['multiply_adds'] / 1e6:.2f}", f"{record['parameters']:,}"]
        if record["export"] is None:
            body.append([*line, *["–"] * 4, *counts, *["–"] * 2])
            continue
        runs, about = record["export"]["runs"], record["export"]["provenance"]
        medians = [runs[name]["latency"]["median"] for name in ("torch", "float32", "int8")]
        times = [f"{median:.{3 if median < 1 else 2}f}" for median in medians]
        sizes = [f"{runs[name]['bytes'] / 1000:,.0f}" for name in ("float32", "int8")]
        body.append([*line, f"{runs['int8']['error']:.2f}", *times, *counts, *sizes])
        where[f"{about.get('cpu') or 'unknown processor'}, onnxruntime {about.get('onnxruntime', 'unknown')}"] += 1
    told = "Cost: multiply-adds of one image, in millions, sampling itself not counted."
    if where:
        exports = [record["export"] for record in records if record["export"]]
        lowest = min(export["runs"]["float32"]["agreement"] for export in exports)
        timed = _span(export["runs"]["int8"]["latency"]["n"] for export in exports)
        widest = max(
            run["latency"]["high"] / run["latency"]["median"] for export in exports for run in export["runs"].values()
        )
        told += (
            " The same network in ONNX, of the first seed: float32 gives torch's answer on "
            f"{'all' if lowest == 100 else f'at least {lowest:.2f} % of the'} test images; int8 has 8-bit weights and "
            "activations, but theta, grid and sampler in float32. Latency: one image, one thread, the median of "
            f"{timed} runs (the 95th percentile is at most {widest:.1f} times the median), {_several(where)}; torch "
            "runs eagerly."
        )
    absent = sum(record["export"] is None for record in records)
    if absent:
        told += f" {absent} cell{'s have' if absent > 1 else ' has'} no export record (–): `{table.make}` writes it."
    return told, head, body


def _by_position(records: Sequence[dict]) -> list[str]:
    found = positions(records)
    if not found:
        return []
    places = range(1, 1 + max(len(cell["places"]) for cell in found))
    head = ["model", "column", *(f"place {place}" for place in places), "whole number"]
    body = [
        [cell["row"], cell["column"], *(f"{error:.2f}" for error in (*cell["places"], cell["whole"]))] for cell in found
    ]
    return [
        "## By position",
        "Error in % at each place of the number, counted from the left, first seed. Behind the last digit the right "
        "answer is “none”.",
        _markdown_table(head, body, "ll" + "r" * (len(head) - 2)),
    ]


def _by_window(records: Sequence[dict]) -> list[str]:
    found = last_windows(records)
    if not found:
        return []
    body = [
        [
            *(cell["row"], cell["column"]),
            *(f"{cell[name]:.1f}" for name in ("image", "window")),
            *(f"{cell['zoom']:.2f}×", f"{cell['inside']:.1f}"),
        ]
        for cell in found
    ]
    head = ["model", "column", "number in image, %", "number in window, %", "zoom", "inside, %"]
    return [
        "## Where the last window looks",
        "How much of the image's area, and of the last window's, the number takes up; the ratio of the two, the zoom "
        "(1 for a transformer that does nothing); and how much of the number lies inside the window (less than 100 "
        "where something is cut off). The number is its box, the window its bounding box; medians over the test "
        "images, first seed.",
        _markdown_table(head, body, "ll" + "r" * (len(head) - 2)),
    ]


def _by_part(records: Sequence[dict], table: PaperTable) -> list[str]:
    found = parts_held(records)
    if not found:
        return []
    body = []
    for window in found:
        held = {name: share for name, share in window["parts"].items() if not math.isnan(share)}
        most = sorted(held, key=held.get, reverse=True)[:3]
        body.append(
            [
                *(window["row"], window["column"], str(window["window"])),
                *(f"{window[region]:.1f}" for region in BIRD),
                ", ".join(f"{share:.0f}" for share in window["centre"]),
                f"{window['moves']:.1f}",
                ", ".join(f"{name} {held[name]:.0f}" for name in most),
            ]
        )
    head = ["model", "column", "window", *(f"{region}, %" for region in BIRD), "centre, %", "moves, %", "held most, %"]
    regions = "; ".join(f"{region}: {', '.join(parts)}" for region, parts in BIRD.items())
    return [
        "## Which part each window holds",
        "Of the test images that show a part, the share in which the window holds it: over the parts of the head, over "
        f"those of the body (as the data set marks them; {regions}), and the three parts held most often. Where the "
        "window's centre is on average, x and y from the upper left corner, and how far it moves from image to image "
        "(root mean square), both in % of the image's side. First seed.",
        _markdown_table(head, body, "llrrrrrl"),
        "The paper saw one window become a detector of heads, another of bodies. Here:",
        "\n".join(f"- {line}" for line in divisions(found, table)),
    ]


def _by_digit(records: Sequence[dict]) -> list[str]:
    found = digits_undone(records)
    if not found:
        return []
    body = [
        [
            *(one["row"], one["column"], str(one["transformer"])),
            *(f"{share:z.0f}".replace("-", "−") for share in one["undone"]),
        ]
        for one in found
    ]
    n = max(one["n"] for one in found)
    return [
        "## Which digit each transformer undoes",
        "Where nine points of the canvas fall on a digit of a pair, pair by pair: the share (%) of their variance that "
        "is gone behind the transformer. At 100 the digit is always seen in one pose; below 0 it is seen in more poses "
        f"than without the transformer. First {n:,} test pairs, first seed.",
        _markdown_table(["model", "column", "transformer", "first digit, %", "second digit, %"], body, "llrrr"),
    ]


def _by_solid_pose(records: Sequence[dict]) -> list[str]:
    body, n = [], 0
    for record in records:
        if "example_volume" in record["arrays"]:
            true = record["arrays"]["pose_true"]
            n = max(n, len(true))
            left = pose_left(record["arrays"]["theta"][: len(true)], true[:, :3])
            angles = [left[f"{name}_{when}"] for name in ("tilt", "turn") for when in ("before", "after")]
            body.append([record["row"], record["column"], *(f"{np.nanmedian(angle):.1f}" for angle in angles)])
    if not body:
        return []
    return [
        "## How much of the pose is undone",
        "The tilt is the angle between the line of sight and the digit's normal: at 0 degrees it faces the viewer, at "
        "90 only its edge is seen. The turn is how far its image is rotated in the projection, from the pose "
        "to which the network turns its digits. Medians in degrees, without and with the transformer, of the first "
        f"{n:,} test volumes and the first seed.",
        _markdown_table(["model", "column", "tilt without", "with", "turn without", "with"], body, "llrrrr"),
    ]


def divisions(found: Sequence[dict], table: PaperTable) -> list[str]:
    """A sentence for each cell of `parts_held` whose windows may move: which holds the head, which the body."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for window in found:
        if window["row"] not in table.controls.values():
            cells.setdefault((window["row"], window["column"]), []).append(window)
    lines = []
    for (row, column), windows in cells.items():
        if all(window["moves"] < STILL for window in windows):
            most = max(window["moves"] for window in windows)
            text = f"{row} on {column}: the windows hardly move from image to image (at most {most:.1f} % of the side)"
            lines.append(f"{text}: they hold what the tiles hold at which they start.")
            continue
        head, body = (max(windows, key=lambda window, region=region: window[region]) for region in BIRD)
        text = f"{row} on {column}: window {head['window']} holds more of the head than any other "
        text += f"({head['head']:.0f} %, and {head['body']:.0f} % of the body)"
        if head is body:
            lines.append(f"{text}, and more of the body too: no division of labour.")
        else:
            text += f", window {body['window']} more of the body "
            lines.append(f"{text}({body['body']:.0f} %, and {body['head']:.0f} % of the head).")
    return lines


def _legend(cells: Mapping, shown: Sequence[str], columns: Sequence[str], table: PaperTable) -> str:
    """Explains the marks and words that are there, and no others."""
    used = {cell["verdict"] for cell in cells.values()} | {cell["against"] for cell in cells.values()}
    text = []
    if used & {"better", "within", "worse"}:
        better, worse = table.arrows
        text.append(
            f"{better} better than, ≈ within, {worse} worse than the paper's value ± 0.05, by our 95 % interval."
        )
    if NOT_BEATEN in used:
        kinds: dict[str, dict[str, None]] = {}
        for row, baseline in table.baseline.items():
            kinds.setdefault(baseline, {})[row.split()[0]] = None
        baselines = [f"{', '.join(names)}: {baseline}" for baseline, names in kinds.items()]
        text.append(f"{NOT_BEATEN} does not beat its baseline ({table.rival or '; '.join(baselines)}).")
    if NOT_CLEARLY in used:
        text.append(f"{NOT_CLEARLY} beats its baseline without significance (p ≥ {SIGNIFICANT}, paired test).")
    sources = [f"{row}, {source}" for row, source in table.cited.items() if row in shown]
    if sources:
        text.append(f"Cited by the paper, not run: {'; '.join(sources)}.")
    text += dict.fromkeys(note for name, note in table.notes.items() if name in columns or name in shown)
    return " ".join(text)


def _p(p: float) -> str:
    if math.isnan(p):
        return "no common seed"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 1e-300 else "< 1e-300"


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], align: str) -> str:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(cells, widths, align, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ("-" * (w + 1) + (":" if a == "r" else "-") for w, a in zip(widths, align, strict=True))
    return "\n".join([line(head), f"|{'|'.join(rule)}|", *map(line, body)])


def to_csv(records: Sequence[dict]) -> str:
    """One line for each cell that was run, under the columns that DESIGN.md fixes; `paper` is empty where it has none.

    Cited rows have no line: a line is a measurement.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows(records):
        numbers = {name: f"{row[name]:.4f}" for name in ("ours", "ci_low", "ci_high")}
        paper = "" if row["paper"] is None else f"{row['paper']:.1f}"
        writer.writerow({**row, **numbers, "paper": paper, "seconds": f"{row['seconds']:.1f}"})
    return out.getvalue()


def to_tex(records: Sequence[dict], number: int) -> str:
    r"""A floating table for `\input`; the document needs `\usepackage{booktabs}` and nothing else.

    A column that nobody trained is left out, unless it shows a cited row.
    """
    table = TABLES[number]
    shown, columns, cells, parameters = _matrix(records, table)
    wanted = {key[1] for key in cells} | {column for row in table.cited for column in table.paper[row]}
    columns = [column for column in columns if column in wanted]
    body, block = [], table.block(shown[0])
    for row in shown:
        if block != table.block(row):
            body.append(r"\addlinespace")
            block = table.block(row)
        line = [row]
        for column in columns:
            entry = _entry(table, row, column, cells.get((row, column)), r"\textbf{{{}}}")
            line.append(_tex_signs(entry.replace("not run", "–")))
        line += [_rounded(counts[row]) if row in counts else "--" for _, counts in parameters]
        body.append(" & ".join(line) + r" \\")
    legend = _legend(cells, shown, columns, table)
    head = [table.entries, *columns, *(rf"\shortstack[r]{{params\\({names})}}" for names, _ in parameters)]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}. Written by `python -m stn.table`: do not edit.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(' '.join(filter(None, (caption(records, number), legend))))}}}",
            rf"\label{{tab:{table.name}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _rounded(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def _tex(text: str) -> str:
    text = re.sub(r"([%&#_$])", r"\\\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return _tex_signs(re.sub(r"`(.+?)`", r"\\texttt{\1}", text))


def _tex_signs(text: str) -> str:
    signs = {"↓": "downarrow", "≈": "approx", "↑": "uparrow", "±": "pm", "≥": "geq", "†": "dagger", "‡": "ddagger"}
    for sign, name in signs.items():
        text = text.replace(sign, f"$^\\{name}$" if sign in "†‡" else f"$\\{name}$")
    return text.replace("–", "--")


def to_terminal(records: Sequence[dict], number: int, others: Sequence[Sequence[dict]] = ()) -> Group:
    """The matrix and its summary for a rich console, at most 100 columns wide; marks carry what colours repeat.

    Where there are `others`, the same cells at other budgets, a second matrix shows them side by side.
    """
    table = TABLES[number]
    shown, columns, cells, _ = _matrix(records, table)
    matrix = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    matrix.add_column(f"\n{table.entries}", no_wrap=True)
    lines = [[Text(row)] for row in shown]
    for column in columns:
        papers = {row: "–" if (paper := table.paper[row].get(column)) is None else f"{paper:.1f}" for row in shown}
        width = max(map(len, papers.values()))
        run = any(key[1] == column for key in cells)
        # Padded by hand, so that the bars stand in one line whatever marks follow.
        head = "ours" if table.is_ours(column) else "paper | ours" if run else "paper"
        matrix.add_column(Text(f"{column.center(width + 7)}\n{head}"), no_wrap=True)
        for line, row in zip(lines, shown, strict=True):
            cell, absent = cells.get((row, column)), _absent(table, row, column)
            text = Text()
            if not table.is_ours(column):
                text.append(papers[row].rjust(5 if width < 6 else width), "dim")
                if cell or absent != "–":
                    text.append(" | ")
            if cell:
                text.append(f"{cell['ours']:5.2f}".removeprefix(" "), "bold")
                text.append(f" {cell['mark']}{cell['against']}", COLOURS[cell["verdict"]])
            elif absent != "–" or table.is_ours(column):
                text.append(absent, "dim")
            line.append(text)
    for line, row, following in zip(lines, shown, [*shown[1:], shown[-1]], strict=True):
        matrix.add_row(*line)
        if table.block(row) != table.block(following):
            matrix.add_row()
    told = caption(records, number).replace("**ours** (the paper's)", "paper | ours").replace("`", "")
    notes = [Text(note, style="dim") for note in (told, _legend(cells, shown, columns, table)) if note]
    title = Text(f"Table {number}: {table.title}", style="bold")
    shown = [title, Text(), matrix, Text(), *notes, *map(Text, summary(records))]
    if table.by_size and records:
        told, head, body = _exported(records, table)
        aside = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for name, lines in head.items():
            aside.add_column(lines, justify="left" if name in ("model", "data") else "right", no_wrap=True)
        for line, following in zip(body, [*body[1:], body[-1]], strict=True):
            aside.add_row(*line)
            if line[1] != following[1]:
                aside.add_row()
        shown += [Text(), aside, Text(), Text(told.replace("`", ""), style="dim")]
    if len(list(filter(None, [records, *others]))) > 1:
        told, head, body = _budgets([records, *others], table, "{}", paper=False)  # it stands above
        aside = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        # Padded by hand, so that numbers stand below each other whatever marks follow.
        widths = [max(len(entry.partition(" ")[0]) for entry in column) for column in zip(head, *body, strict=True)]
        for name, width in zip(head, widths, strict=True):
            aside.add_column(name if name in head[:2] else name.rjust(width), no_wrap=True)
        for line, following in zip(body, [*body[1:], body[-1]], strict=True):
            numbers = (entry.partition(" ") for entry in line[2:])
            padded = [f"{ours:>{n}} {mark}" for (ours, _, mark), n in zip(numbers, widths[2:], strict=True)]
            aside.add_row(*line[:2], *padded, end_section=bool(following[0]))
        shown += [Text(), aside, Text(), *(Text(line.replace("`", ""), style="dim") for line in told)]
    return Group(*shown)


# -------------------------------------------------------------------------------------------------- README


def readme_block(markdown: str) -> str:
    """What the README shows of a table's markdown: caption, matrix and marks, without the title and the sections."""
    return markdown.partition("\n## ")[0].partition("\n")[2].strip()


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; UserError without one such pair."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"README.md: needs one {begin} and, below it, one {end}, for the table to stand between")
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{block.strip()}\n\n{end}{rest.split(end)[1]}"


def stale(expected: Mapping[Path, str]) -> list[Path]:
    """Those of the files whose text is not the expected one, or that are absent."""
    return [path for path, text in expected.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]

"""Write a table from the records of its cells, and the pages that show it: `python -m stn.table [--table 2]`.

`python -m stn.table --check` writes nothing, and fails if a table or a generated block of a page is stale.
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from stn.cells import config, declared, record_path, shown
from stn.config import CONF, experiment, filled, readable
from stn.errors import UserError
from stn.experiments import find_tables
from stn.files import openable, whole, write_texts
from stn.front_door import guard
from stn.messages import Parser
from stn.params import BUDGETS, COLUMNS, TABLES, Params, read_params
from stn.report import tables
from stn.report.blocks import Report, Sources, find_pages
from stn.report.metrics import render_curves, render_metrics
from stn.report.pages import fill
from stn.report.records import Record
from stn.report.weights import cards

if TYPE_CHECKING:
    from stn.report.drawing import Sheet

REPORTS = Path("reports")
COMPARED = tuple(budget for budget in BUDGETS if budget != "smoke")  # the budgets that a table compares


def numbered(text: str) -> int:
    """The number of a table, as typed; UserError if there is no such table."""
    tables = find_tables()
    if text not in map(str, tables):
        raise UserError(f"--table {text} is not one of {', '.join(map(str, tables))}")
    return int(text)


def records(number: int) -> list[Record]:
    """The records of the table's cells that `params.yaml` declares, and of those that are optional and present."""
    return _load(number, read_params())


def others(number: int) -> list[list[Record]]:
    """The existing records of the same cells at each other budget in `COMPARED`."""
    params = read_params()
    return [
        _load(number, replace(params, budget=budget), all_there=False) for budget in COMPARED if budget != params.budget
    ]


def _load(number: int, params: Params, all_there: bool = True, checked: bool = True) -> list[Record]:
    """The records of a table at a budget.

    If `all_there`, a missing required record is a UserError; otherwise only existing records are loaded. If `checked`,
    each record's config is compared with its cell's present config, which is slow.
    """
    required, optional = shown(params, number)
    paths = {record_path(params.budget, cell): cell for cell in (*required, *optional)}
    present_cells = {path: cell for path, cell in paths.items() if path.exists()}
    configs = {path: experiment(config(params.budget, cell)) for path, cell in present_cells.items()} if checked else {}
    if not all_there:
        return tables.load(number, present_cells, (), configs, filled)
    required = [record_path(params.budget, cell) for cell in required]
    return tables.load(number, required, [path for path in paths if path not in required], configs, filled)


def longest_first(number: int, budgets: Sequence[list[Record]]) -> Sequence[list[Record]]:
    """The budgets that pages show, the longest complete one first; `smoke` is shown only if there is no other.

    A budget is complete if all cells that the pipeline trains by default have records; in Table 1, those of R, RTS, P
    and one reading of E.
    """
    candidates = [results for results in budgets if results and results[0].budget in COMPARED]
    if len(candidates) > 1:
        params = read_params()
        r, rts, p, *readings = COLUMNS[:5]
        choices = [[r, rts, p, e] for e in readings] if params.source == "mnist" else [params.columns]
        for budget in reversed(COMPARED):
            for columns in choices:
                cells = declared(replace(params, budget=budget, columns=columns), number)
                if all(record_path(budget, cell).exists() for cell in cells):
                    return sorted(candidates, key=lambda results: results[0].budget != budget)
    return candidates or budgets


def written(number: int, budgets: list[list[Record]]) -> dict[Path, str]:
    """The expected text of each of the table's files: the first of `budgets`, with the others beside it.

    If the pages lead with another budget, that budget has files of its own.
    """
    first_records, *rest_records = budgets
    texts = _files(f"table{number}", number, first_records, rest_records if _means_something(first_records) else [])
    texts[REPORTS / "metrics" / f"table{number}.json"] = render_metrics(find_tables()[number], budgets)
    texts[REPORTS / "curves" / f"table{number}.csv"] = render_curves(first_records)
    first, *rest = longest_first(number, budgets)
    return texts | ({} if first is first_records else _files(_stem(number, first), number, first, rest))


def _files(stem: str, number: int, results: list[Record], rest: list[list[Record]]) -> dict[Path, str]:
    return {
        REPORTS / f"{stem}.md": tables.to_markdown(results, number, rest),
        REPORTS / f"{stem}.csv": tables.to_csv(results),
        REPORTS / f"{stem}.tex": tables.to_tex(results, number),
    }


def _stem(number: int, results: list[Record]) -> str:
    return f"table{number}-{results[0].budget}"


def _means_something(results: list[Record]) -> bool:
    return not results or results[0].budget in COMPARED


def pages(budgets: Mapping[int, Sequence[list[Record]]]) -> dict[Path, str]:
    """The expected texts of README.md, of the pages of docs/ and of the cards of trained networks.

    Renews the blocks of these tables, and those that do not belong to a single table. A folder without such pages, as
    that of the demo, gives none. The records of other tables are not checked against their configs.
    """

    @cache
    def report(number: int) -> Report:
        lists = budgets[number] if number in budgets else _unchecked(number)
        leading = longest_first(number, lists)
        stem = f"table{number}" if leading[0] is lists[0] else _stem(number, leading[0])
        return Report(leading, stem)

    sources = Sources(report, schedules(), Path())
    return cards(Path()) | {page: fill(page, sources, list(budgets)) for page in find_pages(Path())}


def _unchecked(number: int) -> list[list[Record]]:
    """The existing records of a table at each budget. Their configs are not checked, which would be slow."""
    params = read_params()
    budgets = dict.fromkeys((params.budget, *COMPARED))
    return [_load(number, replace(params, budget=budget), all_there=False, checked=False) for budget in budgets]


def schedules() -> dict[str, dict]:
    """The settings of each budget in `conf/budget`."""
    paths = sorted((CONF / "budget").glob("*.yaml"))
    with readable():
        settings = {path.stem: cast(DictConfig, OmegaConf.load(path)) for path in paths}
    configs = {}
    for name, values in settings.items():
        bases = [settings[base] for base in values.get("defaults", ()) if base in settings]
        configs[name] = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(*bases, values)))
    return configs


def draw(number: int, results: Sequence[Record], blank: bool = True) -> None:
    """Draw the figures of a table from its records.

    A figure without a record to draw is a blank one that says so: DVC needs each file of a stage, and an earlier figure
    shows other records. If not `blank`, that figure stays as it is, and is a UserError after the others are drawn.
    """
    missing: list[UserError] = []
    for figure in find_tables()[number].figures:
        path = REPORTS / "figures" / figure.name
        try:
            with whole(path) as part:
                figure.write(results, part)
            print(openable(path), flush=True)
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # it cannot be written
                raise
            missing.append(error)
            if blank:
                reason = str(error).partition(":")[0]
                with whole(path) as part:
                    _blank_figure(reason).save(part)
                print(f"{openable(path)}: left blank, {reason}", flush=True)
    if missing and not blank:
        raise missing[0]


def _blank_figure(words: str) -> "Sheet":
    """A small figure that holds one line."""
    from stn.report.drawing import open_sheet  # loads matplotlib

    with open_sheet(6, 0.6) as sheet:
        sheet.text(0.2, 0.3, f"Nothing is drawn here: {words}", va="center")
    return sheet


def send(number: int, budgets: Sequence[list[Record]]) -> None:
    """Send wandb the table at all these budgets: the lines of its CSV files."""
    from stn.tracking import log_table  # loads Lightning

    rows = [row for results in budgets if results for row in csv.DictReader(tables.to_csv(results).splitlines())]
    if not rows:
        raise UserError(f"table {number} has no records to send")
    numbers = ("paper", "ours", "ci_low", "ci_high", "n_seeds", "n_test", "n_params", "seconds")
    for row in rows:
        row |= {key: float(row[key]) if row[key] else None for key in numbers}
    log_table(f"table{number}", rows, Path("outputs"))


def check(numbers: tuple[int, ...]) -> None:
    """UserError that names the files of these tables that do not agree with the records.

    A table without records and without files is skipped.
    """
    texts: dict[Path, str] = {}
    displays: dict[int, Sequence[list[Record]]] = {}
    for number in numbers:
        budgets = [records(number), *others(number)]
        files = written(number, budgets)
        if budgets[0] or any(path.exists() for path in files):
            texts |= files
            if (REPORTS / f"table{number}.md").exists():
                displays[number] = budgets
    stale = tables.stale(texts | pages(displays))
    if stale:
        commands = " and ".join(f"`python -m stn.table --table {number}`" for number in numbers)
        raise UserError(f"not what the records say: {', '.join(map(str, stale))}; run {commands}")


def main() -> None:
    parser = Parser(prog="python -m stn.table", description=__doc__)
    parser.add_argument("--table", metavar="N", help="which: 1 if not given; with --check, all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it would be")
    parser.add_argument("--figures", action="store_true", help="draw its figures too")
    parser.add_argument("--print", action="store_true", dest="show", help="write nothing; print the table")
    parser.add_argument("--wandb", action="store_true", help="send it to wandb too, offline unless WANDB_MODE=online")
    args = parser.parse_args()
    with guard():
        number = numbered(args.table or "1")
        if args.check:
            check((number,) if args.table else TABLES)
            print("the tables, the README and the documentation say what the records say")
            return
        budgets = [records(number), *others(number)]
        if not args.show:
            texts = written(number, budgets)
            paths = {REPORTS / f"table{number}-{budget}{path.suffix}" for budget in COMPARED for path in texts}
            write_texts(texts | pages({number: budgets}))
            for path in paths - set(texts):  # of a budget that no longer leads
                path.unlink(missing_ok=True)
        if args.figures and not args.show:
            draw(number, budgets[0])
        if args.wandb:
            send(number, budgets)
        first, *rest = budgets
        Console(width=min(100, shutil.get_terminal_size((100, 24)).columns)).print(
            tables.to_terminal(first, number, rest if _means_something(first) else [])
        )


if __name__ == "__main__":
    main()

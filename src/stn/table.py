"""Write a table from the records of its cells: `python -m stn.table [--table 2]`, or `--check` that all are fresh."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stn.config import compose, experiment
from stn.errors import UserError, told
from stn.params import BUDGETS, COLUMNS, TABLES, cells, declared, read_params
from stn.report import tables

REPORTS = Path("reports")
README = Path("README.md")
COMPARED = tuple(budget for budget in BUDGETS if budget != "smoke")  # those that a table shows side by side


def numbered(text: str) -> int:
    """The number of a table, as typed; UserError if there is no such table."""
    if text not in map(str, TABLES):
        raise UserError(f"--table {text}: there is {', '.join(map(str, TABLES))}")
    return int(text)


def records(number: int) -> list[dict]:
    """The records of the table's cells that `params.yaml` declares, and of those that are optional and present."""
    params = read_params()
    required, optional = cells(params, number)
    return tables.load(number, required.values(), optional.values(), _configs(required | optional, params.budget))


def others(number: int) -> list[list[dict]]:
    """The records of the same cells at the other budgets whose numbers mean something, as far as they are there."""
    params, found = read_params(), []
    for budget in COMPARED:
        if budget != params.budget:
            required, optional = cells(replace(params, budget=budget), number)
            configs = _configs(required | optional, budget)
            found.append(tables.load(number, configs, (), configs))
    return found


def _configs(declared: dict[tuple[str, str], Path], budget: str) -> dict[Path, dict]:
    """The resolved config that each of the declared cells with a record should have."""
    return {
        path: experiment(compose(f"data={data}", f"model={model}", f"budget={budget}"))
        for (data, model), path in declared.items()
        if path.exists()
    }


def longest_first(number: int, budgets: list[list[dict]]) -> list[list[dict]]:
    """What the README shows: the budgets whose numbers mean something, if any, the longest that is whole first.

    A budget is whole if each cell is there that the pipeline trains unasked; of Table 1, those of R, RTS, P and E.
    """
    shown = [found for found in budgets if found and found[0]["budget"] in COMPARED]
    if len(shown) > 1:
        params = read_params()
        columns = list(COLUMNS[:4]) if params.source == "mnist" else params.columns
        for budget in reversed(COMPARED):
            paths = declared(replace(params, budget=budget, columns=columns), number).values()
            if all(path.exists() for path in paths):
                return sorted(shown, key=lambda found: found[0]["budget"] != budget)
    return shown or budgets


def written(number: int, budgets: list[list[dict]]) -> dict[Path, str]:
    """What each of the table's files should hold: the first of `budgets`, and beside it the others.

    If the README leads with another budget, that has files of its own.
    """
    found, *more = budgets
    texts = _files(f"table{number}", number, found, more if _means_something(found) else [])
    first, *rest = longest_first(number, budgets)
    return texts | ({} if first is found else _files(_stem(number, first), number, first, rest))


def _files(stem: str, number: int, found: list[dict], more: list[list[dict]]) -> dict[Path, str]:
    return {
        REPORTS / f"{stem}.md": tables.to_markdown(found, number, more),
        REPORTS / f"{stem}.csv": tables.to_csv(found),
        REPORTS / f"{stem}.tex": tables.to_tex(found, number),
    }


def _stem(number: int, found: list[dict]) -> str:
    return f"table{number}-{found[0]['budget']}"


def _means_something(found: list[dict]) -> bool:
    return not found or found[0]["budget"] in COMPARED


def readme(budgets: dict[int, list[list[dict]]]) -> dict[Path, str]:
    """The README with the block of each of these tables; nothing in a folder without one, such as the demo's."""
    if not README.exists():
        return {}
    page = README.read_text(encoding="utf-8")
    for number, found in budgets.items():
        first, *more = longest_first(number, found)
        block = tables.readme_block(tables.to_markdown(first, number, more))
        if first is not found[0]:
            stem = f"{REPORTS}/{_stem(number, first)}"
            block += f"\n\nBudget `{first[0]['budget']}`, every cell with its interval, and paired tests: "
            block += f"[`{stem}.md`]({stem}.md) ([CSV]({stem}.csv), [LaTeX]({stem}.tex))."
        page = tables.replace_block(page, f"table{number}", block)
    return {README: page}


def check(numbers: tuple[int, ...]) -> None:
    """UserError that names the files of these tables that are not what the records say.

    A table without records and without files, which nobody began, is left alone.
    """
    texts, shown = {}, {}
    for number in numbers:
        budgets = [records(number), *others(number)]
        files = written(number, budgets)
        if budgets[0] or any(path.exists() for path in files):
            texts |= files
            if (REPORTS / f"table{number}.md").exists():
                shown[number] = budgets
    stale = tables.stale(texts | readme(shown))
    if stale:
        again = " and ".join(f"`python -m stn.table --table {number}`" for number in numbers)
        raise UserError(f"not what the records say: {', '.join(map(str, stale))}; run {again}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stn.table", description=__doc__)
    parser.add_argument("--table", metavar="N", help="which: 1 if not given; with --check, all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it would be")
    parser.add_argument("--print", action="store_true", dest="show", help="write nothing; print the table")
    args = parser.parse_args()
    with told():
        number = numbered(args.table or "1")
        if args.check:
            check((number,) if args.table else TABLES)
            print("the tables and the README say what the records say")
            return
        budgets = [records(number), *others(number)]
        if not args.show:
            texts = written(number, budgets)
            ours = {REPORTS / f"table{number}-{budget}{path.suffix}" for budget in COMPARED for path in texts}
            for path in ours - set(texts):  # of a budget that the README led with
                path.unlink(missing_ok=True)
            for path, text in (texts | readme({number: budgets})).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        found, *more = budgets
        Console(width=min(100, shutil.get_terminal_size((100, 24)).columns)).print(
            tables.to_terminal(found, number, more if _means_something(found) else [])
        )


if __name__ == "__main__":
    main()

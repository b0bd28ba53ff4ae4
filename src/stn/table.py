"""Write a table from the records of its cells: `python -m stn.table [--table 2]`, or `--check` that all are fresh."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stn.config import compose, experiment
from stn.errors import UserError, told
from stn.params import TABLES, cells, read_params
from stn.report import tables

REPORTS = Path("reports")
README = Path("README.md")
BUDGETS = ("quick", "medium", "paper")  # those that a table shows side by side


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
    for budget in BUDGETS if params.budget in BUDGETS else ():
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
    """The same records by budget, first the longest at which every cell is there: what the README leads with."""
    if len(list(filter(None, budgets))) > 1:
        for budget in reversed(BUDGETS):
            if all(path.exists() for path in cells(replace(read_params(), budget=budget), number)[0].values()):
                return sorted(budgets, key=lambda found: not found or found[0]["budget"] != budget)
    return budgets


def written(number: int, budgets: list[list[dict]]) -> dict[Path, str]:
    """What each of the table's files should hold: those of the first of `budgets`, the others beside it."""
    stem, (found, *more) = REPORTS / f"table{number}", budgets
    return {
        stem.with_suffix(".md"): tables.to_markdown(found, number, more),
        stem.with_suffix(".csv"): tables.to_csv(found),
        stem.with_suffix(".tex"): tables.to_tex(found, number),
    }


def readme(budgets: dict[int, list[list[dict]]]) -> dict[Path, str]:
    """The README with the block of each of these tables; nothing in a folder without one, such as the demo's."""
    if not README.exists():
        return {}
    page = README.read_text(encoding="utf-8")
    for number, found in budgets.items():
        first, *more = longest_first(number, found)
        block = tables.readme_block(tables.to_markdown(first, number, more))
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
            for path, text in (written(number, budgets) | readme({number: budgets})).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        found, *more = budgets
        Console(width=min(100, shutil.get_terminal_size((100, 24)).columns)).print(
            tables.to_terminal(found, number, more)
        )


if __name__ == "__main__":
    main()

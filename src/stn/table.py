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


def written(number: int, found: list[dict]) -> dict[Path, str]:
    """What each of the table's files should hold."""
    stem = REPORTS / f"table{number}"
    return {
        stem.with_suffix(".md"): tables.to_markdown(found, number, others(number)),
        stem.with_suffix(".csv"): tables.to_csv(found),
        stem.with_suffix(".tex"): tables.to_tex(found, number),
    }


def readme(texts: dict[Path, str]) -> dict[Path, str]:
    """The README with the block of each table among `texts`; nothing in a folder without one, such as the demo's."""
    if not README.exists():
        return {}
    page = README.read_text(encoding="utf-8")
    for path, text in texts.items():
        if path.suffix == ".md":
            page = tables.replace_block(page, path.stem, tables.readme_block(text))
    return {README: page}


def check(numbers: tuple[int, ...]) -> None:
    """UserError that names the files of these tables that are not what the records say.

    A table without records and without files, which nobody began, is left alone.
    """
    texts = {}
    for number in numbers:
        found = records(number)
        files = written(number, found)
        if found or any(path.exists() for path in files):
            texts |= files
    stale = tables.stale(texts | readme({path: text for path, text in texts.items() if path.exists()}))
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
        found = records(number)
        if not args.show:
            texts = written(number, found)
            for path, text in (texts | readme(texts)).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        Console(width=min(100, shutil.get_terminal_size((100, 24)).columns)).print(
            tables.to_terminal(found, number, others(number))
        )


if __name__ == "__main__":
    main()

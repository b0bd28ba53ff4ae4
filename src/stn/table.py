"""Write Table 1 from the records of the declared cells: `python -m stn.table`, or `--check` that it is up to date."""

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from stn.config import compose, experiment
from stn.errors import UserError, told
from stn.params import cells, read_params
from stn.report import tables

REPORTS = Path("reports")
README = Path("README.md")


def records() -> list[dict]:
    """The records of the cells that `params.yaml` declares, and of those that are optional and present."""
    params = read_params()
    required, optional = cells(params)
    configs = {
        path: experiment(compose(f"data={data}", f"model={model}", f"budget={params.budget}"))
        for (data, model), path in (required | optional).items()
        if path.exists()
    }
    return tables.load(required.values(), optional.values(), configs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stn.table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it would be")
    parser.add_argument("--print", action="store_true", dest="show", help="write nothing; print the table")
    check, show = (getattr(parser.parse_args(), name) for name in ("check", "show"))
    with told():
        found = records()
        markdown = tables.to_markdown(found)
        texts = {
            REPORTS / "table1.md": markdown,
            REPORTS / "table1.csv": tables.to_csv(found),
            REPORTS / "table1.tex": tables.to_tex(found),
        }
        readme = {}
        if README.exists():  # `make demo` works in a folder that has none
            readme[README] = tables.replace_block(README.read_text(), "table1", tables.readme_block(markdown))
        if check:
            stale = tables.stale(texts | readme)
            if stale:
                raise UserError(f"not what the records say: {', '.join(map(str, stale))}; run `python -m stn.table`")
            print("the tables and the README say what the records say")
            return
        if not show:
            for path, text in (texts | readme).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        Console(width=min(100, shutil.get_terminal_size((100, 24)).columns)).print(tables.to_terminal(found))


if __name__ == "__main__":
    main()

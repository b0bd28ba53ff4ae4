"""Draw the figures of a table from its records: `python -m stn.figures [--table 2]`."""

import argparse

from stn.errors import told
from stn.experiments import find_tables
from stn.files import whole
from stn.table import REPORTS, numbered, records


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stn.figures", description=__doc__)
    parser.add_argument("--table", metavar="N", default="1", help="which: 1 if not given")
    args = parser.parse_args()
    with told():
        number = numbered(args.table)
        shown = records(number)
        for figure in find_tables()[number].figures:
            path = REPORTS / "figures" / figure.name
            with whole(path) as part:
                figure.write(shown, part)
            print(path)


if __name__ == "__main__":
    main()

"""Draw the figures of a table from its records: `python -m stn.figures [--table 2]`."""

import argparse

from stn.errors import told
from stn.report import figures
from stn.table import REPORTS, numbered, records

DRAWN = {
    1: {"table1": figures.pictures, "table1_pose": figures.poses},
    2: {"table2": figures.windows},
    3: {"table3": figures.birds, "table3_parts": figures.parts},
    4: {"table4": figures.sums},
    5: {"table5": figures.found, "table5.gif": figures.search},
    6: {"table6": figures.solids},
    7: {"table7": figures.kernels},
    8: {"table8": figures.sizes},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stn.figures", description=__doc__)
    parser.add_argument("--table", metavar="N", default="1", help="which: 1 if not given")
    args = parser.parse_args()
    with told():
        number = numbered(args.table)
        found = records(number)
        for name, draw in DRAWN[number].items():
            path = REPORTS / "figures" / (name if "." in name else f"{name}.png")
            draw(found, path)
            print(path)


if __name__ == "__main__":
    main()

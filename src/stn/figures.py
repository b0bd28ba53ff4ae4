"""Draw the figures of a table from its records: `python -m stn.figures [--table 2]`.

`python -m stn.table --figures`, the command of the stages of tables that have figures, writes the table and draws them.
"""

from stn.errors import UserError
from stn.experiments import find_tables
from stn.front_door import guard
from stn.messages import Parser
from stn.table import draw, numbered, records


def main() -> None:
    parser = Parser(prog="python -m stn.figures", description=__doc__)
    parser.add_argument("--table", metavar="N", default="1", help="which: 1 if not given")
    args = parser.parse_args()
    with guard():
        number = numbered(args.table)
        if not find_tables()[number].figures:
            raise UserError(f"Table {number} has no figure; `python -m stn.table --table {number}` writes the table")
        draw(number, records(number), blank=False)


if __name__ == "__main__":
    main()

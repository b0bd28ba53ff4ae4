"""What generated blocks of pages have in common: their sources, their marks, and tables and links as Markdown."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn.errors import UserError
from stn.report.records import Record

REPORTS = Path("reports")


class NoRecords(UserError):
    """The records of a block are not here: they are of another budget, or of cells that `params.yaml` leaves out."""


@dataclass(frozen=True)
class Report:
    """The records of a table.

    Attributes:
        budgets: the records at each budget that has any, the leading budget first. One empty list if there are none.
        stem: the name of the files of the leading budget, such as "table1-paper".
    """

    budgets: Sequence[Sequence[Record]]
    stem: str

    @property
    def leading(self) -> Sequence[Record]:
        return self.budgets[0]


@dataclass(frozen=True)
class Sources:
    """The sources of blocks.

    Attributes:
        report: the report of a table, by its number.
        schedules: the settings of each budget, by its name.
        root: the folder that holds README.md, docs and reports.
    """

    report: Callable[[int], Report]
    schedules: Mapping[str, Mapping[str, Any]]
    root: Path = Path()

    def read(self, path: Path) -> str:
        """The text of a file below the root; UserError if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None


def find_pages(root: Path) -> list[Path]:
    """The existing pages among README.md and those of docs/, relative to `root`."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path.relative_to(root) for path in paths if path.is_file()]


def link(target: str | Path, page: Path) -> str:
    """A path below the root as a link from a page."""
    return Path(os.path.relpath(target, page.parent)).as_posix()


def shorten(machine: str) -> str:
    """The name of a processor or GPU without the parts that carry no information."""
    return machine.replace("(R)", "").replace(" Processor", "")


def readme_block(markdown: str) -> str:
    """The part of a table's Markdown that the README shows: caption, grid and marks, without title and sections."""
    return markdown.partition("\n## ")[0].partition("\n")[2].strip()


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with `block` between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; UserError without one such pair."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"needs one {begin} and, below it, one {end}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{block.strip()}\n\n{end}{rest.split(end)[1]}"


def stale(expected: Mapping[Path, str]) -> list[Path]:
    """The files that are absent or do not have the expected text."""
    return [path for path, text in expected.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has an l or an r for each column. Columns are padded, unless one has long cells."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    if max(widths) > 60:
        widths = [0] * len(head)

    def line(cells: Sequence[str]) -> str:
        sides = [">" if side == "r" else "<" for side in align]
        filled = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)]
        return f"| {' | '.join(filled)} |"

    rule = ["-" * max(width - 1, 2) + (":" if side == "r" else "-") for side, width in zip(align, widths, strict=True)]
    return "\n".join(map(line, [head, rule, *body]))

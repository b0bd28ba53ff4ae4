"""A table for the terminal: 100 characters wide, or in parts if there are fewer. Colours only repeat what marks say."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from stn.report.budgets import build_budgets
from stn.report.captions import caption, legend
from stn.report.matrix import Matrix, build_matrix, describe_absence
from stn.report.records import Record
from stn.report.summary import summarise
from stn.report.table import Column, Grid, Row, Table

HEAD = 11  # characters beyond which the label of a column with a single value is wrapped
COLOURS = {"better": "green", "within": "cyan", "worse": "yellow", "not comparable": ""}


def render_terminal(table: Table, records: Sequence[Record], alternatives: Sequence[Sequence[Record]] = ()) -> Group:
    """The grid and its summary for a rich console.

    A second grid compares them with `alternatives`, the records of the same cells at other budgets.
    """
    matrix = build_matrix(table, records)
    text = matrix.entitle(caption(table, records)).replace("**ours** (the paper's)", "paper | ours").replace("`", "")
    notes = [Text(note, style="dim") for note in (text, legend(table, matrix)) if note]
    title = Text(f"Table {table.number}: {table.title}{'' if matrix.compared else ', on stand-in data'}", style="bold")
    parts: list[RenderableType] = [title, Text(), _main_grid(table, matrix), Text(), *notes]
    parts += map(Text, summarise(table, records))
    for build in table.asides:
        aside = build(table, records)
        if aside:
            parts += [Text(), _aside_grid(aside.grid), Text(), Text(aside.text.replace("`", ""), style="dim")]
    budgets = build_budgets([records, *alternatives], table, "{}", with_paper=False)  # the main grid has the paper's
    if budgets:
        lines, grid = budgets
        parts += [Text(), _budget_grid(grid), Text(), *(Text(line.replace("`", ""), style="dim") for line in lines)]
    return Group(*parts)


@dataclass
class FittedGrid:
    """A grid whose columns stand in several parts, one below the other, if they do not fit next to each other.

    Attributes:
        names: how many of the first columns name a line; they stand in each part.
        heads: the head of each column.
        right: whether each column is aligned to the right.
        lines: the texts of each line, and whether a gap follows it.
    """

    names: int = 1
    heads: list[Text | str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    lines: list[tuple[Sequence[Text | str], bool]] = field(default_factory=list)

    def add_column(self, head: Text | str, right: bool = False) -> None:
        self.heads.append(head)
        self.right.append(right)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=10_000)
        remaining = list(range(self.names, len(self.heads)))
        while True:
            count = len(remaining)
            while (
                count > 1
                and Measurement.get(console, unbounded, self._part(remaining[:count])).maximum > options.max_width
            ):
                count -= 1
            yield self._part(remaining[:count])
            remaining = remaining[count:]
            if not remaining:
                return
            yield Text()

    def _part(self, columns: Sequence[int]) -> RichTable:
        """The grid of the columns that name a line, and of these."""
        part = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        indices = [*range(self.names), *columns]
        for i in indices:
            part.add_column(self.heads[i], justify="right" if self.right[i] else "left", no_wrap=True)
        for line, gap in self.lines:
            part.add_row(*(line[i] for i in indices))
            if gap:
                part.add_row()
        return part


def _main_grid(table: Table, matrix: Matrix) -> FittedGrid:
    grid = FittedGrid()
    alone = {column for column in matrix.columns if table.is_ours(column) or not matrix.compared}  # without the paper's
    labels = {
        column: textwrap.wrap(column.label, HEAD, break_long_words=False) if column in alone else [column.label]
        for column in matrix.columns
    }
    height = max((len(label) for label in labels.values()), default=1)
    grid.add_column("\n" * height + table.entries)
    lines = [[Text(row.label)] for row in matrix.rows]
    for column, label in labels.items():
        papers = [table.cite(row, column) or "–" for row in matrix.rows]
        width = max(map(len, papers))
        run = any(place[1] is column for place in matrix.values)
        head = "ours" if column in alone else "paper | ours" if run else "paper"
        above = "\n".join(label) if len(label) > 1 or not matrix.compared else label[0].center(width + 7)
        grid.add_column(Text("\n" * (height - len(label)) + f"{above}\n{head}"))
        for line, row, paper in zip(lines, matrix.rows, papers, strict=True):
            # Padded by hand, so that the bars align whatever marks follow.
            line.append(_place(table, matrix, row, column, "" if column in alone else paper.rjust(max(5, width))))
    for line, row, below in zip(lines, matrix.rows, [*matrix.rows[1:], matrix.rows[-1]], strict=True):
        grid.lines.append((line, table.starts_block(row, below)))
    return grid


def _place(table: Table, matrix: Matrix, row: Row, column: Column, paper: str) -> Text:
    """The paper's value, a bar, and our value or why there is none. Our value alone if `paper` is empty."""
    value, absence = matrix.values.get((row, column)), describe_absence(table, row, column)
    text = Text()
    if paper:
        text.append(paper, "dim")
        if value or absence != "–":
            text.append(" | ")
    if value:
        text.append(f"{value.ours:5.2f}".removeprefix(" "), "bold")
        text.append(f" {value.mark}{value.against}", COLOURS[value.verdict])
    elif absence != "–" or not paper:
        text.append(absence, "dim")
    return text


def _aside_grid(aside: Grid) -> FittedGrid:
    grid = FittedGrid(names=min(2, len(aside.head) - 1))
    for head, side in zip(aside.short or aside.head, aside.align, strict=True):
        grid.add_column(head, right=side == "r")
    for line, below in zip(aside.body, [*aside.body[1:], *aside.body[-1:]], strict=True):
        grid.lines.append((line, aside.block is not None and line[aside.block] != below[aside.block]))
    return grid


def _budget_grid(budgets: Grid) -> FittedGrid:
    grid = FittedGrid(names=2)
    # Padded by hand, so that numbers align whatever marks follow.
    columns = list(zip(budgets.head, *budgets.body, strict=True))
    widths = [max(len(text.partition(" ")[0]) for text in column) for column in columns]
    for i, (head, width) in enumerate(zip(budgets.head, widths, strict=True)):
        grid.add_column(head if i < 2 else head.rjust(width))
    for line, below in zip(budgets.body, [*budgets.body[1:], budgets.body[-1]], strict=True):
        numbers = (text.partition(" ") for text in line[2:])
        padded = [f"{value:>{n}} {mark}" for (value, _, mark), n in zip(numbers, widths[2:], strict=True)]
        grid.lines.append(([*line[:2], *padded], bool(below[0])))
    return grid

"""Tables: their rows and columns, contests between rows, sections and figures.

An experiment builds its tables from these objects in its own `table.py`. This module reads no file and is quick to
import, because the pipeline reads the cells to train from the tables too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path

from stn.report.rows import Cell, Column, Record, Row

__all__ = ["Aside", "Cell", "Column", "Comparison", "Contest", "Figure", "Grid", "Row", "Section", "Table"]


@dataclass(frozen=True)
class Grid:
    """A small table of texts. `align` has an l or an r for each column.

    The terminal shows the `short` heads, of two lines each, if there are any, and a gap wherever the text in the column
    `block` changes.
    """

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    align: str
    short: Sequence[str] = ()
    block: int | None = None


@dataclass(frozen=True)
class Section:
    """A part of the Markdown report: its title, and paragraphs of Markdown and grids."""

    title: str
    blocks: Sequence[str | Grid]


@dataclass(frozen=True)
class Aside:
    """A grid that is shown with the main one, and its text."""

    text: str
    grid: Grid


@dataclass(frozen=True)
class Figure:
    """A figure of a table: the name of its file, and the function that draws it, as "module:function".

    The function takes the table's records and returns a `stn.report.drawing.Sheet` or `Animation`. It is named, not
    imported, because matplotlib takes long to load and only `python -m stn.figures` needs it.
    """

    name: str
    draw: str

    def write(self, records: Sequence[Record], path: Path) -> None:
        """Draws the figure and writes it to `path`. UserError if there is nothing to draw or nowhere to write."""
        module, _, function = self.draw.partition(":")
        getattr(import_module(module), function)(records).save(path)


@dataclass(frozen=True)
class Comparison:
    """A record compared with another of its column, by an exact McNemar test for each common seed.

    In an order of several rows, the common seeds are those that all of its rows have. `ours` and `theirs` are means
    over the common seeds, as the table prints values. Each of `tests` is (p, n01, n10): only the record has n01 images
    right, only the other has n10. `p` is the largest of the tests. `beats` compares `ours` and `theirs`; `sure` is true
    if all tests agree with it at p < 0.05.
    """

    record: Record
    other: Record
    ours: float
    theirs: float
    tests: Sequence[tuple[float, int, int]]
    p: float
    beats: bool
    sure: bool

    @property
    def row(self) -> Row:
        return self.record.row

    @property
    def column(self) -> Column:
        return self.record.column

    @property
    def differ(self) -> bool:
        """Whether one of the two has a seed that the comparison leaves out."""
        return any(len(self.tests) != len(record.seeds) for record in (self.record, self.other))

    @property
    def clear(self) -> bool:
        """Whether the record is significantly better."""
        return self.beats and self.sure


@dataclass(frozen=True)
class Contest:
    """Comparisons of rows with other rows: a section of the report, and sentences of the summary.

    `opponents` gives the rows with which a row is compared. `head` names five columns of the section: the opponent's
    value, the row's value, the images that only the opponent has right, those that only the row has right, and whether
    the row is better. With `names_both` the section names both rows. `tell` makes the sentences of the summary.
    """

    title: str
    head: tuple[str, str, str, str, str]
    opponents: Callable[[Row], Iterable[Row]]
    tell: Callable[[Table, Sequence[Comparison]], list[str]] = lambda table, comparisons: []
    names_both: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """A table of the paper, or one of ours in the same form.

    The records of cells that no earlier table shows lie in `folder`, those of rows on demand in `<folder>_on_demand`.

    `blocks` are the rows, from top to bottom, with a gap between blocks; `entries` is the word for them. Records hold
    errors in percent; a table that prints accuracies sets `accuracy`, on which only `metric`, `turned` and `arrows`
    depend. `decimals` are those of the values that the paper prints. `arrays` names the arrays that the record of a row
    with a transformer must hold; `check` returns why a record is damaged, if it is. `contests` compare rows. `orders`
    are rankings that the paper claims, each from worst to best; an order with rows that are ours tests the same claim
    on them. `rival` is the legend's word for the baselines if they are many, `images` the word for a network's inputs.
    `chosen_by` is the knob of `params.yaml` that chooses the data sets to train on, by their names without the last
    part; a choice also takes the data sets that `chosen_with` gives it. The networks of a table that is `exported` are
    also measured as ONNX files. `remarks` give sentences of the caption, `asides` grids beside the main one, `sections`
    further parts of the Markdown report: functions of the table and its records, which may return "" or None.
    """

    number: int
    folder: str
    title: str
    measure: str
    columns: tuple[Column, ...]
    blocks: tuple[tuple[Row, ...], ...]
    entries: str = "model"
    accuracy: bool = False
    decimals: int = 1
    arrays: tuple[str, ...] = ()
    check: Callable[[Record], str | None] = lambda record: None
    contests: tuple[Contest, ...] = ()
    orders: tuple[tuple[Row, ...], ...] = ()
    rival: str = ""
    images: str = "images"
    chosen_by: str = ""
    chosen_with: Mapping[str, str] = field(default_factory=dict)
    exported: bool = False
    remarks: tuple[Callable[[Table, Sequence[Record]], str], ...] = ()
    asides: tuple[Callable[[Table, Sequence[Record]], Aside | None], ...] = ()
    sections: tuple[Callable[[Table, Sequence[Record]], Section | None], ...] = ()
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        for kind, parts in (("column", self.columns), ("row", self.rows)):
            labels = [part.label for part in parts]
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"Table {self.number}: {kind} {label!r} appears twice")
        for row in self.rows:
            place = f"Table {self.number}: row {row.label!r}"
            references = [*filter(None, (row.baseline, row.control)), *chain.from_iterable(self.orders)]
            for reference in references:
                if reference not in self.rows:
                    raise ValueError(f"Table {self.number}: {reference.label!r} is no row of it")
            for column in (*row.paper, *(row.data or ())):
                if column not in self.columns:
                    raise ValueError(f"{place} names a column {column.label!r}, which is not in the table")
            if bool(row.model) == bool(row.cited):
                raise ValueError(f"{place} needs either a model or a source to cite")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(chain.from_iterable(self.blocks))

    @cached_property
    def places(self) -> dict[str, list[tuple[Row, Column]]]:
        """The places of each cell's record, by the cell's key, stand-ins included: by row, then by column."""
        places: dict[str, list[tuple[Row, Column]]] = {}
        for row in self.rows:
            for column in self.columns:
                for cell in row.cells(column):
                    places.setdefault(cell.key, []).append((row, column))
        return places

    def cells(self, on_demand: bool | None = None) -> list[Cell]:
        """The table's cells, without stand-ins, by column and row; `on_demand` selects those that are or are not."""
        return list(
            dict.fromkeys(
                cells[0]
                for column in self.columns
                for row in self.rows
                if (cells := row.cells(column)) and on_demand in (None, row.on_demand)
            )
        )

    def row(self, label: str) -> Row:
        """The row of this label; KeyError if there is none."""
        return {row.label: row for row in self.rows}[label]

    def column(self, label: str) -> Column:
        """The column of this label; KeyError if there is none."""
        return {column.label: column for column in self.columns}[label]

    @property
    def name(self) -> str:
        """The name of its files, of its README block and of its LaTeX label."""
        return f"table{self.number}"

    @property
    def make(self) -> str:
        """The command that trains its cells."""
        return "make table" if self.number == 1 else f"make table TABLE={self.number}"

    @property
    def is_all_ours(self) -> bool:
        """Whether the paper has no such table."""
        return not any(row.paper for row in self.rows)

    @property
    def shares_records(self) -> bool:
        """Whether rows select some of a record's test images each."""
        return any(row.images for row in self.rows)

    def is_mean(self, row: Row) -> bool:
        """Whether the row is the mean over the images of the other rows, and so no cell."""
        return self.shares_records and not row.images

    @property
    def classes(self) -> int:
        """How many classes a record trains in parallel: a batch of 20 then holds 20 images of each."""
        return max(1, sum(row.images is not None for row in self.rows))

    def is_ours(self, column: Column) -> bool:
        """Whether the paper has no value in this column."""
        return not any(column in row.paper for row in self.rows)

    def starts_block(self, above: Row, below: Row) -> bool:
        """Whether two rows are in different blocks."""
        return self._block(above) != self._block(below)

    def _block(self, row: Row) -> int:
        return next(i for i, block in enumerate(self.blocks) if row in block)

    @property
    def tolerance(self) -> float:
        """How far the paper's value may be from what it prints."""
        return 0.5 * 10.0**-self.decimals

    def cite(self, row: Row, column: Column) -> str:
        """The paper's value, with as many decimals as the paper prints, a mean with one more; "" if it has none."""
        if column not in row.paper:
            return ""
        return f"{row.paper[column]:.{self.decimals + self.is_mean(row)}f}"

    @property
    def metric(self) -> str:
        return "accuracy %" if self.accuracy else "error %"

    def turned(self, percent: float) -> float:
        """Converts an error to the value that the table prints, and such a value to an error."""
        return 100 - percent if self.accuracy else percent

    @property
    def arrows(self) -> tuple[str, str]:
        """The arrows towards better and towards worse values."""
        return ("↑", "↓") if self.accuracy else ("↓", "↑")

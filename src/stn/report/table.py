"""What a table is made of: columns, rows, contests between rows, sections and figures.

An experiment builds its tables from these objects in its own `table.py`. Nothing here reads a file, and everything is
light to import: what the pipeline trains is read from the tables too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn.report.comparisons import Contest
    from stn.report.records import Record

LONGEST = 150  # characters of a cell's key, which names files: a longer one ends in its checksum


@dataclass(frozen=True)
class Cell:
    """What is trained and recorded once: a data set, a model, and settings such as "model.sampler=integer".

    The names are those of conf/data/<data>.yaml and conf/model/<model>.yaml.
    """

    data: str
    model: str
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of its record, `<data>-<model>`, and each setting as `-<key>_<value>`."""
        settings = (setting.partition("=") for setting in self.settings)
        names = (f"{key.rpartition('.')[2]}_{re.sub('[^A-Za-z0-9_.]+', '_', value)}" for key, _, value in settings)
        key = "-".join((self.data, self.model, *names))
        return key if len(key) <= LONGEST else f"{key[: LONGEST - 9]}-{zlib.crc32(key.encode()):08x}"


@dataclass(frozen=True, eq=False)
class Column:
    """A data set, as the column of a table.

    `data` names its config; rows may have data sets of their own in the column (`Row.data`). `settings` are what its
    cells have otherwise than their configs say. The `stand_ins` are data sets whose records are shown in the same
    column, with what they are in place of the paper's data. `description` is what figures call the column, `note` a
    sentence below the table.
    """

    label: str
    data: str = ""
    settings: tuple[str, ...] = ()
    note: str = ""
    description: str = ""
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """A network, as the row of a table: its `model` config, and the `settings` that are otherwise than there.

    `paper` holds the values that the paper prints; a row without any is ours. A row that is only `cited` names its
    source and is never run. `transformer` says that the network has one, so that its record must hold the table's
    arrays; `baseline` is the row that it is to beat, `control` what it is when its windows may not move. `data` names
    the row's data sets by column where they are not the column's: other columns then have no such cell.

    A row `on_demand` is trained only when asked for; one `shown_where_run` is shown, and needed, only where it has a
    record; `absent` stands where it has none. `images`, such as ("classes", 3), are the test images that the row is
    about: those where this array of the record has this value. `short` and `colour` are for figures, `note` is a
    sentence below the table.
    """

    label: str
    model: str = ""
    settings: tuple[str, ...] = ()
    paper: Mapping[Column, float] = field(default_factory=dict)
    baseline: Row | None = None
    control: Row | None = None
    transformer: bool = False
    data: Mapping[Column, str] | None = None
    cited: str = ""
    on_demand: bool = False
    shown_where_run: bool = False
    absent: str = "not run"
    images: tuple[str, int] | None = None
    short: str = ""
    colour: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """What figures call the row."""
        return self.short or self.label

    def cells(self, column: Column) -> tuple[Cell, ...]:
        """The cells whose records the row shows in a column: first its own, then stand-ins.

        None if the row has nothing in the column, or is only cited.
        """
        data = column.data if self.data is None else self.data.get(column, "")
        if not self.model or not data:
            return ()
        names = (data, *(column.stand_ins if self.data is None else ()))
        return tuple(Cell(name, self.model, column.settings + self.settings) for name in names)


@dataclass(frozen=True)
class Grid:
    """A small table of texts. `align` has an l or an r for each column.

    The terminal shows the `short` heads where there are any, of two lines each, and a gap wherever the text in the
    column `block` changes.
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
    """A grid that stands beside the main one wherever the table is shown, and what is said of it."""

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


@dataclass(frozen=True, eq=False)
class Table:
    """A table of the paper, or one of ours in the same form.

    `folder` is where the records lie of the cells that no earlier table shows, `<folder>_on_demand` those of rows that
    are trained only when asked for.

    `blocks` are the rows, from top to bottom, with a gap between blocks; `entries` is what they are. Records hold
    errors in percent; a table that prints accuracy says so by `accuracy`: `metric`, `turned` and `arrows` are all that
    follows from it. `arrays` are what the record of a row with a transformer must hold, `check` gives the reason why a
    record is damaged, if any. `contests` hold rows against others, `orders` are what the paper claims, each from worst
    to best; one with rows that are ours asks the same of them. `rival` is what the legend calls the baselines where
    they are many. `images` is what a network takes at once. `remarks` are sentences of the caption, `asides` grids
    beside the main one, `sections` further parts of the Markdown report: functions of the table and its records, which
    may return "" or None.
    """

    number: int
    folder: str
    title: str
    measure: str
    columns: tuple[Column, ...]
    blocks: tuple[tuple[Row, ...], ...]
    entries: str = "model"
    accuracy: bool = False
    arrays: tuple[str, ...] = ()
    check: Callable[[Record], str | None] = lambda record: None
    contests: tuple[Contest, ...] = ()
    orders: tuple[tuple[Row, ...], ...] = ()
    rival: str = ""
    images: str = "images"
    remarks: tuple[Callable[[Table, Sequence[Record]], str], ...] = ()
    asides: tuple[Callable[[Table, Sequence[Record]], Aside | None], ...] = ()
    sections: tuple[Callable[[Table, Sequence[Record]], Section | None], ...] = ()
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        for kind, parts in (("column", self.columns), ("row", self.rows)):
            labels = [part.label for part in parts]
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"Table {self.number}: {kind} {label!r} is there twice")
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
        """Where the record of each cell stands, by its key, stand-ins included: by row, then by column."""
        places: dict[str, list[tuple[Row, Column]]] = {}
        for row in self.rows:
            for column in self.columns:
                for cell in row.cells(column):
                    places.setdefault(cell.key, []).append((row, column))
        return places

    def cells(self, on_demand: bool | None = None) -> list[Cell]:
        """The table's cells, without stand-ins, by column and row: all, or those that are on demand or are not."""
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
        """What its files, its README block and its LaTeX label are called."""
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
        """Whether rows stand for some of a record's test images each."""
        return any(row.images for row in self.rows)

    def is_mean(self, row: Row) -> bool:
        """Whether the row is over the images of the others, and so no cell."""
        return self.shares_records and not row.images

    @property
    def classes(self) -> int:
        """How many rows are learned side by side: a batch of 20 then holds 20 images of each."""
        return max(1, sum(row.images is not None for row in self.rows))

    def is_ours(self, column: Column) -> bool:
        """Whether the paper has no value in this column."""
        return not any(column in row.paper for row in self.rows)

    def starts_block(self, above: Row, below: Row) -> bool:
        """Whether there is a gap somewhere between two rows."""
        return self._block(above) != self._block(below)

    def _block(self, row: Row) -> int:
        return next(i for i, block in enumerate(self.blocks) if row in block)

    @property
    def metric(self) -> str:
        return "accuracy %" if self.accuracy else "error %"

    def turned(self, percent: float) -> float:
        """An error as the value that the table prints, or such a value as an error: the way back is the same."""
        return 100 - percent if self.accuracy else percent

    @property
    def arrows(self) -> tuple[str, str]:
        """Where a better and where a worse value lies."""
        return ("↑", "↓") if self.accuracy else ("↓", "↑")

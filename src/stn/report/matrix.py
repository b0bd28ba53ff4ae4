"""The main grid of a table, as all formats show it: its rows and columns, and the text at each place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stn.report.comparisons import Value, measure
from stn.report.records import Record
from stn.report.table import Column, Row, Table


@dataclass(frozen=True)
class Matrix:
    """Rows and columns to show, their values, and the numbers of parameters by the columns that share them.

    `compared` says whether the paper's numbers belong beside the values: not if all records are of stand-ins.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    values: Mapping[tuple[Row, Column], Value]
    parameters: Sequence[tuple[Sequence[Column], Mapping[Row, int]]]
    compared: bool = True

    @property
    def parameter_heads(self) -> list[str]:
        """The columns that share each count of parameters."""
        return [", ".join(column.label for column in columns) for columns, _ in self.parameters]

    def entitle(self, caption: str) -> str:
        """The caption, without the words that explain the paper's numbers if there are none."""
        return caption if self.compared else caption.replace(", **ours** (the paper's)", "")


def build_matrix(table: Table, records: Sequence[Record]) -> Matrix:
    """Includes untrained rows and columns, unless all records are stand-ins in the paper's own columns."""
    values = {(value.record.row, value.record.column): value for value in measure(table, records)}
    shows_all = not records or any(record.part is None or table.is_ours(record.column) for record in records)
    rows = [
        row
        for row in table.rows
        if row.cited or any(place[0] is row for place in values) or (shows_all and not row.shown_where_run)
    ]
    columns = [column for column in table.columns if shows_all or any(place[1] is column for place in values)]
    groups: list[tuple[list[Column], dict[Row, int]]] = []
    for column in () if table.shares_records else columns:  # rows of one record have one network
        counts = {row: values[row, column].record.parameters for row in rows if (row, column) in values}
        for group_columns, group_counts in groups:
            if counts and all(group_counts.get(row, n) == n for row, n in counts.items()):
                group_columns.append(column)
                group_counts.update(counts)
                break
        else:
            if counts:
                groups.append(([column], counts))
    return Matrix(rows, columns, values, groups, shows_all)


def describe_absence(table: Table, row: Row, column: Column) -> str:
    """The text of a place without a record: it is cited, could have been run, or is no cell of the table."""
    if row.cited:
        return "cited" if column in row.paper else "–"
    if not row.cells(column):
        return "–"
    return row.absent if column in row.paper or table.is_ours(column) or not row.paper else "–"


def format_place(table: Table, row: Row, column: Column, value: Value | None, bold: str, compared: bool = True) -> str:
    """The text of a place: our value in `bold`, such as "**{}**", the paper's in brackets if `compared`, marks."""
    paper = table.cite(row, column) if compared else ""
    citation = f"({paper})" if paper else ""
    return format_value(value, bold, citation) if value else join(describe_absence(table, row, column), citation)


def format_value(value: Value, bold: str, citation: str = "") -> str:
    """Our value in `bold`, the `citation` after it, marks."""
    return join(bold.format(f"{value.ours:.2f}"), citation, f"{value.mark}{value.against}")


def join(*parts: str) -> str:
    """The parts that are not empty, with spaces between."""
    return " ".join(filter(None, parts))


def typeset_minus(text: str) -> str:
    """A number with a true minus sign."""
    return text.replace("-", "−")


def format_correlation(value: float) -> str:
    """A correlation with two decimals; a dash where there is none."""
    return "–" if math.isnan(value) else typeset_minus(f"{value:.2f}")

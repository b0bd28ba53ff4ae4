"""The main grid of a table, as all formats show it: which rows and columns, and what stands at each place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stn.report.captions import describe_machines, describe_training
from stn.report.comparisons import Value, measure
from stn.report.records import Record
from stn.report.summary import summarise
from stn.report.table import Column, Grid, Row, Table


@dataclass(frozen=True)
class Matrix:
    """Rows and columns to show, the values there are, and the counts of parameters by the columns that share them."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    values: Mapping[tuple[Row, Column], Value]
    parameters: Sequence[tuple[Sequence[Column], Mapping[Row, int]]]

    @property
    def parameter_heads(self) -> list[str]:
        """The columns that share each count of parameters."""
        return [", ".join(column.label for column in columns) for columns, _ in self.parameters]


def build_matrix(table: Table, records: Sequence[Record]) -> Matrix:
    """What nobody trained is part of it too, unless all records are stand-ins in the paper's own columns."""
    values = {(value.record.row, value.record.column): value for value in measure(table, records)}
    whole = not records or any(record.part is None or table.is_ours(record.column) for record in records)
    rows = [
        row
        for row in table.rows
        if row.cited or any(place[0] is row for place in values) or (whole and not row.shown_where_run)
    ]
    columns = [column for column in table.columns if whole or any(place[1] is column for place in values)]
    groups: list[tuple[list[Column], dict[Row, int]]] = []
    for column in () if table.shares_records else columns:  # rows of one record share its network
        counts = {row: values[row, column].record.parameters for row in rows if (row, column) in values}
        for names, known in groups:
            if counts and all(known.get(row, n) == n for row, n in counts.items()):
                names.append(column)
                known.update(counts)
                break
        else:
            if counts:
                groups.append(([column], counts))
    return Matrix(rows, columns, values, groups)


def describe_absence(table: Table, row: Row, column: Column) -> str:
    """What stands where there is no record: the place is cited, could have been run, or is no cell of the table."""
    if row.cited:
        return "cited" if column in row.paper else "–"
    if not row.cells(column):
        return "–"
    return row.absent if column in row.paper or table.is_ours(column) or not row.paper else "–"


def format_place(table: Table, row: Row, column: Column, value: Value | None, bold: str) -> str:
    """One place of the grid: ours in `bold`, such as "**{}**", the paper's in brackets, marks."""
    paper = row.paper.get(column)
    citation = "" if paper is None else f"({paper:.1f})"
    return format_value(value, bold, citation) if value else join(describe_absence(table, row, column), citation)


def format_value(value: Value, bold: str, citation: str = "") -> str:
    """Ours in `bold`, `theirs` after it, marks."""
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


def build_budgets(
    budgets: Sequence[Sequence[Record]], table: Table, bold: str, with_paper: bool
) -> tuple[list[str], Grid] | None:
    """What is said of several budgets, of all and of each, and the grid of them; None where there is only one.

    The grid has a line for each row of the table and budget, as far as they are run, `with_paper` one of the paper's
    numbers too. The first budget is the one that the rest of the table is about; of the others the summary stands here.
    """
    main, *_ = budgets
    budgets = sorted(filter(None, budgets), key=lambda records: max(seed.steps for seed in records[0].seeds))
    if len(budgets) < 2:
        return None
    names = [records[0].budget for records in budgets]
    lines = [
        (name, {place: format_value(value, bold) for place, value in build_matrix(table, records).values.items()})
        for name, records in zip(names, budgets, strict=True)
    ]
    places = {place for _, values in lines for place in values}
    if with_paper:
        paper = {(row, column): f"{value:.1f}" for row in table.rows for column, value in row.paper.items()}
        lines.append(("Jaderberg et al.", paper))
    columns = [column for column in table.columns if any(place[1] is column for place in places)]
    body = []
    for row in (row for row in table.rows if any(place[0] is row for place in places)):
        entries = [(name, [values.get((row, column), "–") for column in columns]) for name, values in lines]
        entries = [(name, texts) for name, texts in entries if set(texts) != {"–"}]
        body += [["" if i else row.label, name, *texts] for i, (name, texts) in enumerate(entries)]
    text = [f"The same at several budgets; – is not run yet{', of Jaderberg et al. not given' if with_paper else ''}."]
    for name, records in zip(names, budgets, strict=True):
        cells = [place for place in places if not table.is_mean(place[0])]
        run = [record for record in records if not table.is_mean(record.row)]
        progress = f"`{name}`: {len(run)} of {len(cells)} cells, {describe_training(table, records)}."
        summary = summarise(table, records) if records is not main else []
        text.append(" ".join([progress, describe_machines(table, records), *summary]))
    head = [table.entries, "budget", *(column.label for column in columns)]
    return text, Grid(head, body, "ll" + "r" * len(columns))

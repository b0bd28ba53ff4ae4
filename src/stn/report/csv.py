"""A table as CSV: one line for each cell that was run."""

import csv
import io
from collections.abc import Sequence

from stn.report.comparisons import measure
from stn.report.records import Record
from stn.report.table import Table

COLUMNS = (
    *("table", "budget", "row", "column", "metric", "paper", "ours", "ci_low", "ci_high"),
    *("n_seeds", "n_test", "n_params", "seconds"),
)


def render_csv(table: Table, records: Sequence[Record]) -> str:
    """`paper` is empty where the paper has no value, `ours` is the mean over seeds, `seconds` the sum over seeds.

    Cited rows have no line, because a line is a measurement.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for value in measure(table, records):
        record, paper = value.record, table.cite(value.record.row, value.record.column)
        writer.writerow(
            [
                *(table.number, record.budget, record.row.label, record.column.label, table.metric, paper),
                *(f"{number:.4f}" for number in (value.ours, value.low, value.high)),
                *(len(record.seeds), record.n_test, record.parameters, f"{value.seconds:.1f}"),
            ]
        )
    return text.getvalue()

"""What DVC shows of a table: its numbers (`dvc metrics`) and the validation curves of its cells (`dvc plots`)."""

import json
from collections.abc import Sequence

from stn.report.records import Record
from stn.report.table import Table


def render_metrics(table: Table, budgets: Sequence[Sequence[Record]]) -> str:
    """The table's values as JSON, by budget, row and column: the mean over seeds, in percent."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for records in budgets:
        for record in records:
            row = values.setdefault(record.budget, {}).setdefault(record.row.label, {})
            row[record.column.label] = round(table.turned(record.error), 4)
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def render_curves(records: Sequence[Record]) -> str:
    """The validation curve of each cell's first seed as CSV."""
    lines = ["cell,step,error"]
    for path, record in {record.path: record for record in records}.items():
        lines += [f"{path.stem},{step},{error}" for step, error, *_ in record.seeds[0].validation]
    return "\n".join(lines) + "\n"

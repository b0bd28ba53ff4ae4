"""Compares a table at several budgets."""

from collections.abc import Sequence

from stn.report.captions import describe_machines, describe_training
from stn.report.evidence import describe_evidence
from stn.report.matrix import build_matrix, format_value
from stn.report.records import Record
from stn.report.summary import summarise
from stn.report.table import Grid, Table


def build_budgets(
    budgets: Sequence[Sequence[Record]], table: Table, bold: str, with_paper: bool
) -> tuple[list[str], Grid] | None:
    """A paragraph on all budgets, one on each, and a grid; None if fewer than two budgets have records.

    The grid has a line for each row and budget with records and, if `with_paper`, one for the paper's numbers. The
    first budget is that of the table's other parts, so only the other budgets are summarised here.
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
        paper = {(row, column): table.cite(row, column) for row in table.rows for column in row.paper}
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
        evidence = describe_evidence(table, records)
        text.append(" ".join(filter(None, [progress, describe_machines(table, records), evidence, *summary])))
    head = [table.entries, "budget", *(column.label for column in columns)]
    return text, Grid(head, body, "ll" + "r" * len(columns))

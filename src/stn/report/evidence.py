"""The sentence of a table's caption on the code that trained its cells."""

from collections.abc import Sequence

from stn.codebase import is_shown, training_digest
from stn.report.records import Record
from stn.report.table import Table


def describe_evidence(table: Table, records: Sequence[Record]) -> str:
    """A sentence if some cells were trained by code that is not shown to give the numbers of the present code."""
    cells = {record.path: record for record in records}.values()  # rows may share a record
    foreign = [
        cell
        for cell in cells
        if not is_shown({"code": cell.code, "adopted": cell.adopted}, training_digest(cell.config["data"]["kind"]))
    ]
    if not foreign:
        return ""
    count = f"{len(foreign)} of {len(cells)} cells were" if len(cells) > 1 else "The cell was"
    return f"{count} trained by earlier code, which is not shown to give the same numbers as the code here."

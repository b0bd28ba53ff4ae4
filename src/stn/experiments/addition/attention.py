"""Which of the two digits each transformer attends to: the one whose pose it undoes more."""

from collections.abc import Sequence
from dataclasses import dataclass

from stn.report.matrix import typeset_minus
from stn.report.records import Record
from stn.report.statistics import variance_undone
from stn.report.table import Grid, Section, Table


@dataclass(frozen=True)
class Attention:
    """How much of each digit's pose a transformer, counted from 1, undoes: on the first `n` test pairs, first seed.

    `undone` is `stn.report.statistics.variance_undone` in % of the first and of the second digit: 100 if the digit
    always appears in one pose behind the transformer, 0 if its poses vary as before, negative if they vary more.
    """

    record: Record
    transformer: int
    undone: tuple[float, float]
    n: int


def measure_attention(records: Sequence[Record]) -> list[Attention]:
    """The attention of each transformer of each record."""
    cells = []
    for record in records:
        if not record.row.transformer:
            continue
        before, after = (record.arrays[name].astype(float) for name in ("pair_before", "pair_after"))
        for k in range(after.shape[1]):
            first, second = (100 * variance_undone(before[:, digit], after[:, k, digit]) for digit in (0, 1))
            cells.append(Attention(record, k + 1, (first, second), len(before)))
    return cells


def describe_attention(table: Table, records: Sequence[Record]) -> Section | None:
    """The section on what the transformers undo; None if there are no transformers."""
    cells = measure_attention(records)
    if not cells:
        return None
    body = [
        [
            *(cell.record.row.label, cell.record.column.label, str(cell.transformer)),
            *(typeset_minus(f"{share:z.0f}") for share in cell.undone),
        ]
        for cell in cells
    ]
    text = (
        "Where nine points of the canvas fall on a digit of a pair, pair by pair: the share (%) of their variance that "
        "is gone behind the transformer. At 100 the digit is always seen in one pose; below 0 it is seen in more poses "
        f"than without the transformer. First {max(cell.n for cell in cells):,} test pairs, first seed."
    )
    head = ["model", "column", "transformer", "first digit, %", "second digit, %"]
    return Section("Which digit each transformer undoes", [text, Grid(head, body, "llrrr")])

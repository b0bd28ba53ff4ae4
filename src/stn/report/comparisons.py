"""Compares records with the paper, and with each other on the same test images."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from stn.errors import UserError
from stn.report.records import Record
from stn.report.statistics import interval, mcnemar, verdict
from stn.report.table import Comparison, Contest, Row, Table

SIGNIFICANT = 0.05
NOT_BEATEN, NOT_CLEARLY = "†", "‡"


@dataclass(frozen=True)
class Value:
    """A record as its table prints it: `ours`, the mean over seeds, with its 95 % interval, against the `paper`.

    `mark` is the sign of the verdict; `against` is a sign if the row does not (clearly) beat its baseline.
    """

    record: Record
    paper: float | None
    ours: float
    low: float
    high: float
    verdict: str
    mark: str
    against: str

    @property
    def seconds(self) -> float:
        """Training time of all seeds."""
        return sum(seed.seconds for seed in self.record.seeds)


def measure(table: Table, records: Sequence[Record]) -> list[Value]:
    """The values that the table prints for its records."""
    better, worse = table.arrows
    marks = {"better": better, "within": "≈", "worse": worse}
    baselines = {comparison.record: comparison for comparison in compare(table, records, find_baseline)}
    values = []
    for record in records:
        paper, (low, high) = record.row.paper.get(record.column), interval(record.seeds)
        comparable = record.part is None
        target = None if paper is None else table.turned(paper)
        outcome = verdict(low, high, target, table.tolerance, comparable)
        comparison = baselines.get(record)
        sign = "" if not comparison or comparison.clear else NOT_CLEARLY if comparison.beats else NOT_BEATEN
        low, high = sorted(map(table.turned, (low, high)))
        value = table.turned(record.error)
        values.append(Value(record, paper, value, low, high, outcome, marks.get(outcome, ""), sign))
    return values


def compare(table: Table, records: Sequence[Record], opponents: Callable[[Row], Iterable[Row]]) -> list[Comparison]:
    """Each record compared with the existing records of its opponents in the same column."""
    places = {(record.row, record.column): record for record in records}
    pairs = (
        (record, places[opponent, record.column])
        for record in records
        for opponent in opponents(record.row)
        if (opponent, record.column) in places
    )
    return [compare_pair(table, *pair) for pair in pairs]


def compare_pair(table: Table, record: Record, opponent: Record) -> Comparison:
    """Compare two records; UserError if they are not of the same test images."""
    if record.n_test != opponent.n_test:
        raise UserError(f"{record.path} and {opponent.path}: not the same test images, train both again")
    names = [seed.array for seed in record.seeds if seed.array in opponent.arrays]
    tests = [mcnemar(opponent.arrays[name], record.arrays[name]) for name in names]
    p = max((test[0] for test in tests), default=math.nan)
    ours, theirs = (_error_over(each, names) for each in (record, opponent))
    beats = ours < theirs
    sure = p < SIGNIFICANT and all((n01 > n10) == beats for _, n01, n10 in tests)
    return Comparison(record, opponent, table.turned(ours), table.turned(theirs), tests, p, beats, sure)


def _error_over(record: Record, names: Sequence[str]) -> float:
    """The mean error in percent over the seeds of these arrays, or over all seeds if there are none."""
    errors = [seed.error for seed in record.seeds if seed.array in names]
    return sum(errors) / len(errors) if errors else record.error


def order_steps(table: Table, records: Sequence[Record]) -> list[list[Comparison]]:
    """The steps of the paper's orders, worst to best: a list for each order and column with records of all its rows."""
    chains = []
    for order in table.orders:
        steps = compare(table, records, partial(_find_before, order))
        columns = ([step for step in steps if step.column is column] for column in table.columns)
        chains += [chain for chain in columns if chain and len(chain) == len(order) - 1]
    return chains


def _find_before(order: Sequence[Row], row: Row) -> list[Row]:
    """The row before a row in an order, if any."""
    return [before for before, after in pairwise(order) if after == row]


def find_baseline(row: Row) -> list[Row]:
    """The baseline of a row, if any."""
    return [row.baseline] if row.baseline else []


def find_control(row: Row) -> list[Row]:
    """The control of a row, the same network with fixed windows, if any."""
    return [row.control] if row.control else []


def find_plain_baseline(row: Row) -> list[Row]:
    """The baseline of a row with a transformer, if the baseline has none."""
    return [row.baseline] if row.transformer and row.baseline and not row.baseline.transformer else []


def count_wins(subject: str) -> Callable[[Table, Sequence[Comparison]], list[str]]:
    """A `tell` that says in how many cells the subject, such as "An ST network beats its baseline", holds."""

    def tell(table: Table, comparisons: Sequence[Comparison]) -> list[str]:
        if not comparisons:
            return []
        places = [name_place(table, comparison) for comparison in comparisons]
        losses = [place for place, cell in zip(places, comparisons, strict=True) if not cell.beats]
        unclear = [place for place, cell in zip(places, comparisons, strict=True) if cell.beats and not cell.clear]
        line = f"{subject} in {len(comparisons) - len(losses)} of {len(comparisons)} cells"
        line += f"; not in {', '.join(losses)}." if losses else "."
        if unclear:
            line += f" It does so without significance (p ≥ {SIGNIFICANT}) in {', '.join(unclear)}."
        return [line]

    return tell


def tell_each(table: Table, comparisons: Sequence[Comparison]) -> list[str]:
    """A `tell` that says for each comparison whether the record is better than the other."""
    lines = []
    for cell in comparisons:
        beats = "beats" if cell.beats else "does not beat"
        weak = f", without significance (p ≥ {SIGNIFICANT})" if cell.beats and not cell.sure else ""
        lines.append(f"{cell.row.label} {beats} {cell.other.row.label} on {cell.column.label}{weak}.")
    return lines


def format_p(p: float) -> str:
    """A p value as text; nan means that there is no common seed."""
    if math.isnan(p):
        return "no common seed"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 1e-300 else "< 1e-300"


def name_place(table: Table, comparison: Comparison) -> str:
    """A row, and its column where the table has several."""
    return comparison.row.label + f" on {comparison.column.label}" * (len(table.columns) > 1)


WITH_AND_WITHOUT = Contest(
    "With and without a transformer",
    ("without ST", "with ST", "without", "with", "beats its baseline"),
    find_plain_baseline,
    count_wins("An ST network beats its baseline"),
)

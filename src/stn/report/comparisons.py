"""Compares records with the paper, and with each other on the same test images."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

    `mark` is the sign of the verdict; `against` is a sign if the row does not (clearly) beat its baseline in
    `comparison`, which is None without a baseline.
    """

    record: Record
    paper: float | None
    ours: float
    low: float
    high: float
    verdict: str
    mark: str
    comparison: Comparison | None

    @property
    def against(self) -> str:
        if self.comparison is None or self.comparison.clear:
            return ""
        return NOT_CLEARLY if self.comparison.beats else NOT_BEATEN

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
        low, high = sorted(map(table.turned, (low, high)))
        value = table.turned(record.error)
        mark = marks.get(outcome, "")
        values.append(Value(record, paper, value, low, high, outcome, mark, baselines.get(record)))
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


def compare_pair(table: Table, record: Record, opponent: Record, names: Sequence[str] | None = None) -> Comparison:
    """Compare two records; UserError if they are not of the same test images.

    They are compared over the seeds that both have, or over those of these arrays (see `shared_arrays`).
    """
    if record.n_test != opponent.n_test:
        raise UserError(f"{record.path} and {opponent.path}: not the same test images, train both again")
    names = shared_arrays([record, opponent]) if names is None else names
    tests = [mcnemar(opponent.arrays[name], record.arrays[name]) for name in names]
    p = max((test[0] for test in tests), default=math.nan)
    ours, theirs = (error_over(each, names) for each in (record, opponent))
    beats = ours < theirs
    sure = p < SIGNIFICANT and all((n01 > n10) == beats for _, n01, n10 in tests)
    return Comparison(record, opponent, table.turned(ours), table.turned(theirs), tests, p, beats, sure)


def shared_arrays(records: Sequence[Record]) -> list[str]:
    """The arrays of right answers of the seeds that all records have."""
    shared = set.intersection(*({seed.array for seed in record.seeds} for record in records))
    return [seed.array for seed in records[0].seeds if seed.array in shared]


def error_over(record: Record, names: Sequence[str]) -> float:
    """The mean error in percent over the seeds of these arrays, or over all seeds if there are none."""
    errors = [seed.error for seed in record.seeds if seed.array in names]
    return sum(errors) / len(errors) if errors else record.error


def order_steps(table: Table, records: Sequence[Record]) -> list[list[Comparison]]:
    """The steps of the paper's orders, worst to best: a list for each order and column with records of all its rows.

    All steps of a list are over the seeds that all of its rows have, so that a row has one value.
    """
    places = {(record.row, record.column): record for record in records}
    chains = []
    for order in table.orders:
        for column in table.columns:
            chain = [places[row, column] for row in order if (row, column) in places]
            if len(chain) == len(order):
                names = shared_arrays(chain)
                chains.append([compare_pair(table, after, before, names) for before, after in pairwise(chain)])
    return chains


def find_baseline(row: Row) -> list[Row]:
    """The baseline of a row, if any."""
    return [row.baseline] if row.baseline else []


def find_control(row: Row) -> list[Row]:
    """The control of a row, the same network with fixed windows, if any."""
    return [row.control] if row.control else []


def find_plain_baseline(row: Row) -> list[Row]:
    """The baseline of a row with a transformer, if the baseline has none."""
    return [row.baseline] if row.transformer and row.baseline and not row.baseline.transformer else []


def describe_unclear(comparisons: Iterable[Comparison]) -> str:
    """How records beat others whose tests do not all say so. Two seeds may say the opposite, each significantly."""
    several = any(len(cell.tests) > 1 for cell in comparisons)
    return "not significantly" + " with every seed" * several


def count_wins(subject: str) -> Callable[[Table, Sequence[Comparison]], list[str]]:
    """A `tell` that says in how many cells the subject, such as "An ST network beats its baseline", holds."""

    def tell(table: Table, comparisons: Sequence[Comparison]) -> list[str]:
        if not comparisons:
            return []
        places = [name_place(table, comparison) for comparison in comparisons]
        losses = [place for place, cell in zip(places, comparisons, strict=True) if not cell.beats]
        cells = dict(zip(places, comparisons, strict=True))
        unclear = {place: cell for place, cell in cells.items() if cell.beats and not cell.clear}
        line = f"{subject} in {len(comparisons) - len(losses)} of {len(comparisons)} cells"
        line += f"; not in {', '.join(losses)}." if losses else "."
        if unclear:
            how = describe_unclear(unclear.values())
            line += f" It does so, but {how} (p < {SIGNIFICANT}), in {', '.join(unclear)}."
        return [line]

    return tell


def tell_each(table: Table, comparisons: Sequence[Comparison]) -> list[str]:
    """A `tell` that says for each comparison whether the record is better than the other."""
    lines = []
    for cell in comparisons:
        beats = "beats" if cell.beats else "does not beat"
        weak = f", but {describe_unclear([cell])} (p < {SIGNIFICANT})" if cell.beats and not cell.sure else ""
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

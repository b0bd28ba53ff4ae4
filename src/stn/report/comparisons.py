"""What records say against the paper, and against each other on the same test images."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from stn.errors import UserError
from stn.report.records import Record
from stn.report.statistics import interval, mcnemar, verdict
from stn.report.table import Column, Row, Table

SIGNIFICANT = 0.05
NOT_BEATEN, NOT_CLEARLY = "†", "‡"


@dataclass(frozen=True)
class Value:
    """A record as its table prints it: `ours`, the mean over seeds, with its 95 % interval, against the `paper`.

    `mark` is the verdict as a sign, `against` says if the row does not (clearly) beat its baseline.
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
        """Of training, all seeds."""
        return sum(seed.seconds for seed in self.record.seeds)


@dataclass(frozen=True)
class Comparison:
    """A record against another one of its column: an exact McNemar test for each seed that they have in common.

    `ours` and `theirs` are the values that the table prints. `tests` are (p, n01, n10): n01 images that only the record
    has right, n10 only the other; `p` is the largest of them. `beats` compares the mean errors; `sure` says that every
    common seed agrees, with p < 0.05.
    """

    record: Record
    other: Record
    ours: float
    theirs: float
    tests: Sequence[tuple[float, int, int]]
    p: float
    beats: bool
    sure: bool

    @property
    def row(self) -> Row:
        return self.record.row

    @property
    def column(self) -> Column:
        return self.record.column

    @property
    def clear(self) -> bool:
        """Whether the record is better, by a difference that is significant."""
        return self.beats and self.sure


@dataclass(frozen=True)
class Contest:
    """Rows held against others: a section of comparisons, and what the summary says of them.

    `opponents` gives the rows that a row is held against. `head` names, in the section, the other's value and the own
    one, the images that only the other and only the own network has right, and the question whether the own one is
    better. With `names_both` the section names both rows. `tell` makes the sentences of the summary.
    """

    title: str
    head: tuple[str, str, str, str, str]
    opponents: Callable[[Row], Iterable[Row]]
    tell: Callable[[Table, Sequence[Comparison]], list[str]] = lambda table, comparisons: []
    names_both: bool = False


def measure(table: Table, records: Sequence[Record]) -> list[Value]:
    """What the table prints for each of its records."""
    better, worse = table.arrows
    marks = {"better": better, "within": "≈", "worse": worse}
    against = {comparison.record: comparison for comparison in compare(table, records, find_baseline)}
    values = []
    for record in records:
        paper, (low, high) = record.row.paper.get(record.column), interval(record.seeds)
        comparable = record.part is None
        judged = verdict(low, high, None if paper is None else table.turned(paper), comparable=comparable)
        comparison = against.get(record)
        beaten = "" if not comparison or comparison.clear else NOT_CLEARLY if comparison.beats else NOT_BEATEN
        low, high = sorted(map(table.turned, (low, high)))
        value = table.turned(record.error)
        values.append(Value(record, paper, value, low, high, judged, marks.get(judged, ""), beaten))
    return values


def compare(table: Table, records: Sequence[Record], opponents: Callable[[Row], Iterable[Row]]) -> list[Comparison]:
    """Each record against those of its opponents in the same column, as far as they are there."""
    places = {(record.row, record.column): record for record in records}
    pairs = (
        (record, places[opponent, record.column])
        for record in records
        for opponent in opponents(record.row)
        if (opponent, record.column) in places
    )
    return [compare_pair(table, *pair) for pair in pairs]


def compare_pair(table: Table, record: Record, opponent: Record) -> Comparison:
    """Two records of the same test images; UserError if they are not."""
    if record.n_test != opponent.n_test:
        raise UserError(f"{record.path} and {opponent.path}: not the same test images, train both again")
    names = [seed.array for seed in record.seeds if seed.array in opponent.arrays]
    tests = [mcnemar(opponent.arrays[name], record.arrays[name]) for name in names]
    p = max((test[0] for test in tests), default=math.nan)
    beats = record.error < opponent.error
    sure = p < SIGNIFICANT and all((n01 > n10) == beats for _, n01, n10 in tests)
    return Comparison(record, opponent, table.turned(record.error), table.turned(opponent.error), tests, p, beats, sure)


def order_steps(table: Table, records: Sequence[Record]) -> list[list[Comparison]]:
    """The steps of the paper's orders from worst to best: a list for each order and column with all of its rows."""
    wholes = []
    for order in table.orders:
        steps = compare(table, records, partial(_find_before, order))
        columns = ([step for step in steps if step.column is column] for column in table.columns)
        wholes += [whole for whole in columns if whole and len(whole) == len(order) - 1]
    return wholes


def _find_before(order: Sequence[Row], row: Row) -> list[Row]:
    """The row after which a row comes in an order, if any."""
    return [before for before, after in pairwise(order) if after == row]


def find_baseline(row: Row) -> list[Row]:
    """The row that a row is to beat, if any."""
    return [row.baseline] if row.baseline else []


def find_control(row: Row) -> list[Row]:
    """What a row is when its windows may not move, if that is in its table."""
    return [row.control] if row.control else []


def find_plain_baseline(row: Row) -> list[Row]:
    """The baseline without transformer of a row with one."""
    return [row.baseline] if row.transformer and row.baseline and not row.baseline.transformer else []


def count_wins(subject: str) -> Callable[[Table, Sequence[Comparison]], list[str]]:
    """Tells in how many cells the subject, such as "An ST network beats its baseline", holds, and where it does not."""

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
    """Tells for each comparison whether the record is better than the other."""
    lines = []
    for cell in comparisons:
        beats = "beats" if cell.beats else "does not beat"
        weak = f", without significance (p ≥ {SIGNIFICANT})" if cell.beats and not cell.sure else ""
        lines.append(f"{cell.row.label} {beats} {cell.other.row.label} on {cell.column.label}{weak}.")
    return lines


def format_p(p: float) -> str:
    """A p value; nan is one of no seed in common."""
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

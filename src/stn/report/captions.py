"""Captions and legends: what was measured, on what, for how long, where, and what the marks mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from stn.report.comparisons import NOT_BEATEN, NOT_CLEARLY, SIGNIFICANT, describe_unclear
from stn.report.evidence import describe_evidence
from stn.report.matrix import Matrix
from stn.report.records import Record
from stn.report.table import Column, Row, Table


def describe_measure(table: Table, records: Sequence[Record]) -> str:
    """What is measured, at which budget, and what replaces the paper's data."""
    return f"{_measure(table)}, budget `{records[0].budget}`{_describe_parts(table, records)}."


def describe_remarks(table: Table, records: Sequence[Record]) -> str:
    """The remarks of the table itself."""
    return " ".join(filter(None, (remark(table, records) for remark in table.remarks)))


def describe_cells(table: Table, records: Sequence[Record]) -> str:
    """How each cell is trained and tested."""
    tested = format_span(record.n_test for record in _cells(table, records))
    return f"Each cell: {describe_training(table, records)}, {tested} test {table.images}."


def describe_intervals(table: Table, records: Sequence[Record]) -> str:
    """How the intervals are computed."""
    several = [len(record.seeds) > 1 for record in records]
    if all(several):
        return "Intervals are at 95 %, Student's over seeds."
    wilson = f"Wilson's over test {table.images}"
    if any(several):
        return (
            f"Intervals are at 95 %: Student's over seeds where a cell has several, else {wilson}, which does not tell "
            "how far seeds differ."
        )
    return f"Intervals are at 95 %, {wilson}: one seed cannot tell how far seeds differ."


def describe_training(table: Table, records: Sequence[Record]) -> str:
    """Steps, images per step, seeds."""
    seeds = [seed for record in records for seed in record.seeds]
    sizes = {round(seed.images_seen / seed.steps) for seed in seeds if seed.steps}
    batches = f"{format_span(sizes)} {table.images}"
    if table.classes > 1:
        batches += f", {format_span(size // table.classes for size in sizes)} of each class"
    return f"{format_span(seed.steps for seed in seeds)} steps of {batches}, {name_seeds(records)}"


def name_seeds(records: Sequence[Record]) -> str:
    """The seeds that each record has, such as "seed 0" or, where records differ, "seed 0 or seeds 0, 1, 2"."""
    groups = sorted({tuple(sorted(seed.seed for seed in record.seeds)) for record in records})
    return " or ".join(f"seed{'s' * (len(group) > 1)} {', '.join(map(str, group))}" for group in groups)


def describe_machines(table: Table, records: Sequence[Record]) -> str:
    """A sentence on machines, versions and the total training time."""
    machines: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    cells = _cells(table, records)
    unit = "run" if any(len(record.seeds) > 1 for record in cells) else "cell"
    for provenance in (seed.provenance for record in cells for seed in record.seeds):
        if provenance.get("gpu"):
            machine = provenance["gpu"]
        else:
            cores = provenance.get("cores")
            machine = f"{provenance.get('cpu') or 'unknown processor'}{f' with {cores} cores' if cores else ''}"
        machines[f"{machine} ({provenance.get('precision', 'unknown precision')})"] += 1
        names = (("python", "Python"), ("torch", "torch"), ("stn", "stn"))
        versions[", ".join(f"{label} {provenance[key]}" for key, label in names if provenance.get(key))] += 1
    trainings = {record.path: record for record in records}.values()  # rows may share a record, and so its training
    seconds = sum(seed.seconds for record in trainings for seed in record.seeds)
    return (
        f"Trained on {format_counts(machines, unit)}; {format_counts(versions, unit)}; "
        f"{format_duration(seconds)} of training in all."
    )


def explain_against(table: Table, matrices: Sequence[Matrix], beside: Sequence[Matrix] = ()) -> list[str]:
    """What the signs of these matrices say of a network and its baseline; the seeds of those `beside` count too."""
    values = [value for matrix in matrices for value in matrix.values.values()]
    others = [value for matrix in beside for value in matrix.values.values()]
    differ = any(value.comparison.differ for value in values + others if value.comparison)
    where = " on the seeds that both have" * differ
    unclear = describe_unclear(
        value.comparison for value in values if value.comparison and value.against == NOT_CLEARLY
    )
    meanings = {
        NOT_BEATEN: f"does not beat its baseline{where} ({table.rival or _describe_baselines(table)}).",
        NOT_CLEARLY: f"beats its baseline{where}, but {unclear} (p < {SIGNIFICANT}, paired test).",
    }
    signs = {value.against for value in values}
    return [f"{sign} {meaning}" for sign, meaning in meanings.items() if sign in signs]


def legend(table: Table, matrix: Matrix) -> str:
    """Explains the marks and words that occur in the matrix."""
    verdicts = {value.verdict for value in matrix.values.values()}
    text = []
    if verdicts & {"better", "within", "worse"}:
        better, worse = table.arrows
        text.append(
            f"{better} better than, ≈ within, {worse} worse than the paper's value ± {table.tolerance:g}, "
            "by our 95 % interval."
        )
    text += explain_against(table, [matrix])
    sources = [f"{row.label}, {row.cited}" for row in matrix.rows if row.cited]
    if sources:
        text.append(f"Cited by the paper, not run: {'; '.join(sources)}.")
    parts: tuple[Row | Column, ...] = (*table.columns, *table.rows)
    text += dict.fromkeys(part.note for part in parts if part.note and (part in matrix.columns or part in matrix.rows))
    return " ".join(text)


def format_span(values: Iterable[float]) -> str:
    """The smallest and the largest value, such as "2,000 to 4,000"."""
    values = sorted(set(values)) or [0]
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def format_counts(counts: Counter[str], unit: str = "cell") -> str:
    """The names; if there are several, each with its number of cells or other units."""
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{name} ({n} {unit}{'s' * (n > 1)})" for name, n in sorted(counts.items()))


def _cells(table: Table, records: Sequence[Record]) -> list[Record]:
    """The records without means over other rows."""
    return [record for record in records if not table.is_mean(record.row)]


def _measure(table: Table) -> str:
    return table.measure if table.is_all_ours else f"{table.measure}, **ours** (the paper's)"


def _describe_parts(table: Table, records: Sequence[Record]) -> str:
    """What replaces the paper's data, by column unless it is the same in all columns."""
    parts: dict[str, list[Column]] = {}
    for column in table.columns:
        for part in sorted({record.part or "" for record in records if record.column is column}):
            parts.setdefault(part, []).append(column)
    if set(parts) == {""}:
        return ""
    if len(parts) == 1:
        return f", on {next(iter(parts))}: not comparable with the paper"
    clauses = [
        f"; {', '.join(column.label for column in columns)} on {part}" for part, columns in parts.items() if part
    ]
    return f"{''.join(clauses)}: not comparable with the paper"


def _describe_baselines(table: Table) -> str:
    """Which kinds of networks compete with which baseline; the first word of a label is the kind of network."""
    kinds: dict[str, dict[str, None]] = {}
    for row in table.rows:
        if row.baseline:
            kinds.setdefault(row.baseline.label, {})[row.label.split()[0]] = None
    return "; ".join(f"{', '.join(names)}: {baseline}" for baseline, names in kinds.items())


def format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


# The sentences of every caption, in this order: functions of the table and its records, which may return "".
SENTENCES: tuple[Callable[[Table, Sequence[Record]], str], ...] = (
    describe_measure,
    describe_remarks,
    describe_cells,
    describe_machines,
    describe_evidence,
    describe_intervals,
)


def caption(table: Table, records: Sequence[Record]) -> str:
    """One paragraph of Markdown, made from the records only."""
    if not records:
        return f"{_measure(table)}. No cell is trained yet: `{table.make}` trains them."
    return " ".join(filter(None, (sentence(table, records) for sentence in SENTENCES)))

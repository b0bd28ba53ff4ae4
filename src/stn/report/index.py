"""Blocks on all experiments, a line for each: the index, the budgets, and how long the records took to train."""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stn.errors import UserError
from stn.report import tables
from stn.report.blocks import Report, Sources, find_pages, link, markdown_table, shorten
from stn.report.captions import format_duration, format_span
from stn.report.comparisons import error_over, shared_arrays
from stn.report.records import Record

EXPERIMENT = re.compile(r"^<!-- index: (?P<about>\{.*\}) -->$", re.MULTILINE)
PURPOSES = {
    "smoke": "Does everything run? Its numbers mean nothing.",
    "demo": "`make demo`: narrow networks and images that need no download.",
    "quick": "A laptop. `make table` trains this one.",
    "medium": "A night on a laptop: `quick` with five times the steps.",
    "paper": "The paper's own schedule. Use a GPU.",
}


@dataclass(frozen=True)
class Experiment:
    """A line of the index, as the experiment's page has it: `<!-- index: {"title": "...", "table": 1, ...} -->`.

    Attributes:
        title: the title of the line.
        table: the number of its table.
        columns: the columns that it covers. If some of them are on the paper's data, the others are left out.
        rows: the rows that it covers; all if empty.
        without: rows that do not compete, such as a network that is given the true pose.
        stand_in: the name of data that is not the paper's: "part of the data", "derived data".
        measure: the name of its numbers; the table's metric if empty.
        anchor: the heading of the page that the line points to; the page's top if empty.
    """

    title: str
    table: int
    columns: Sequence[str]
    rows: Sequence[str] = ()
    without: Sequence[str] = ()
    stand_in: str = ""
    measure: str = ""
    anchor: str = ""

    def includes(self, record: Record) -> bool:
        """Whether a record belongs to this line."""
        row = record.row.label
        return record.column.label in self.columns and row not in self.without and (not self.rows or row in self.rows)


def find_experiments(root: Path) -> list[tuple[Experiment, Path]]:
    """The experiments that the pages describe, each with its page: by table, and in the order of the page."""
    experiments = []
    for page in find_pages(root):
        for match in EXPERIMENT.finditer((root / page).read_text(encoding="utf-8")):
            try:
                experiments.append((Experiment(**json.loads(match["about"])), page))
            except (ValueError, TypeError) as error:
                raise UserError(f"{page}: {match[0]} is no line of the index: {error}") from None
    return sorted(experiments, key=lambda pair: pair[0].table)


def index_block(page: Path, sources: Sources) -> str:
    """All experiments: our best values and the paper's, the data, the share of cells that were run, and the budget."""
    head = ["experiment", "best of ours", "the paper", "data", "budget"]
    body = [
        _index_line(experiment, sources.report(experiment.table), link(path, page))
        for experiment, path in find_experiments(sources.root)
    ]
    return markdown_table(head, body, "llrll")


def _index_line(experiment: Experiment, report: Report, address: str) -> list[str]:
    """A line of the index: for each column the best cell, at the longest budget that has half of the cells.

    The best cell is chosen over the seeds that all cells of the column have, or over all seeds if there are none.
    A column that lacks cells at that budget is left out unless all do: its best network may be one of those not run.
    Rows on demand are left out: they are extra rows of ours, some of which are told what the others have to find.
    """
    name = f"[{experiment.title}]({address}{f'#{experiment.anchor}' if experiment.anchor else ''})"
    budgets = [
        [record for record in records if experiment.includes(record) and not record.row.on_demand]
        for records in report.budgets
    ]
    budgets = [_on_papers_data(records) for records in budgets if records]
    if not budgets:
        return [name, "not run", "–", "–", "–"]
    places = {(record.row.label, record.column.label) for records in budgets for record in records}
    candidates = [records for records in budgets if 2 * len(records) >= len(places)] or budgets
    longest = max(candidates, key=lambda records: max(seed.steps for seed in records[0].seeds))
    table = _values(longest)
    all_cells = [cell for records in budgets for cell in _values(records)]
    best, references = [], []
    names, wanted = dict.fromkeys(cell["column"] for cell in table), Counter(column for _, column in places)
    cells_of = {
        name: [(record, cell) for record, cell in zip(longest, table, strict=True) if cell["column"] == name]
        for name in names
    }
    for column in [name for name in names if len(cells_of[name]) == wanted[name]] or names:
        cells = cells_of[column]
        arrays = shared_arrays([record for record, _ in cells])
        errors = [error_over(record, arrays) for record, _ in cells]
        _, cell = cells[errors.index(min(errors))]
        best.append(f"{column} **{float(cell['ours']):.2f}**" + (f" {cell['row']}" if len(cells) > 1 else ""))
        pick = max if cell["metric"].startswith("accuracy") else min
        printed = [cell["paper"] for cell in all_cells if cell["column"] == column and cell["paper"]]
        references.append(pick(printed, key=float) if printed else "–")
    is_derived = any(record.part for record in longest)
    if is_derived and not experiment.stand_in:
        raise UserError(f"{experiment.title}: not on the paper's data; say on its page what stand_in is")
    data = experiment.stand_in if is_derived else "whole"
    coverage = "" if len(longest) == len(places) else f", {len(longest)} of {len(places)} cells"
    seeds = [len(record.seeds) for record in longest]
    return [
        f"{name}, {experiment.measure or table[0]['metric']}",
        "<br>".join(best),
        "<br>".join(["–"] * len(references) if is_derived else references),
        data + coverage,
        f"`{longest[0].budget}`, {format_span(seeds)} seed{'s' * (max(seeds) > 1)}",
    ]


def _values(records: Sequence[Record]) -> list[dict[str, str]]:
    """The lines of a table's CSV."""
    return list(csv.DictReader(io.StringIO(tables.to_csv(records))))


def _on_papers_data(records: Sequence[Record]) -> Sequence[Record]:
    """The records that are on the paper's data; all records if none is."""
    return [record for record in records if record.part is None] or records


def budgets_block(page: Path, sources: Sources) -> str:
    """The budgets, their purposes, and how long the records of the first line of the index took to train."""
    experiments = find_experiments(sources.root)
    records_by_budget = {records[0].budget: records for records in sources.report(1).budgets if records}
    body = []
    for name, purpose in PURPOSES.items():
        if name in sources.schedules:
            schedule = sources.schedules[name]
            records = [r for r in records_by_budget.get(name, ()) if not experiments or experiments[0][0].includes(r)]
            body.append([f"`{name}`", f"{schedule['steps']:,} x {schedule['batch_size']}", purpose, _cost(records)])
    cost = "training time of Table 1, summed over cells, one seed"
    return markdown_table(["budget", "steps x batch", "what it is for", cost], body, "lrll")


def costs_block(page: Path, sources: Sources) -> str:
    """How long the cells of each line of the index took to train, at each budget that has any."""
    body = []
    for experiment, path in find_experiments(sources.root):
        lines = {}
        for records in sources.report(experiment.table).budgets:
            # Rows may share a record, which counts once.
            cells = {record.path: record for record in records if experiment.includes(record)}
            if cells:
                steps = max(seed.steps for record in cells.values() for seed in record.seeds)
                lines[steps] = [f"`{records[0].budget}`", _cost(list(cells.values()))]
        names = [f"[{experiment.title}]({link(path, page)})", *[""] * len(lines)]
        body += [[name, *lines[steps]] for name, steps in zip(names, sorted(lines), strict=False)]
    return markdown_table(["experiment", "budget", "training time, summed over cells, one seed"], body, "lll")


def _cost(records: Sequence[Record]) -> str:
    """For each machine the number of cells, and the training time of one seed of all of them in sequence."""
    cells = Counter[str]()
    seconds: dict[str, float] = defaultdict(float)
    for record in records:
        facts = record.seeds[0].provenance
        on_cpu = f"{facts.get('cpu') or 'unknown processor'}, {facts.get('cores', '?')} cores"
        machine = shorten(facts.get("gpu") or on_cpu)
        cells[machine] += 1
        seconds[machine] += record.seeds[0].seconds
    lines = (f"{n} cell{'s' * (n > 1)}, {format_duration(seconds[name])}: {name}" for name, n in sorted(cells.items()))
    return "<br>".join(lines) or "–"

"""Generated blocks of README.md and of the pages in docs/: from `<!-- NAME:begin -->` to `<!-- NAME:end -->`.

A page chooses its blocks by name:

    index                  a line for each experiment, as its page describes it (see `Experiment`)
    results                Table 1 at its leading budget, with one line of caption, for the front page
    budgets                the budgets, and how long Table 1 trained at each
    costs                  how long each line of the index trained, by budget
    speed                  three figures from the records of `make bench`
    table3                 caption, matrix and marks of Table 3, with the other budgets beside the leading one
    table3/SECTION         a section of that report, by its heading in lower case with hyphens
    table1@quick           caption, matrix and marks at another budget than the leading one
    table1@quick/SECTION   a section of that report
    bench/training-cpu     the section of reports/bench on the record training-cpu.json
    trials/<name>          the table reports/trials/<name>.csv
    weights                the trained networks in reports/weights

The leading budget is the longest at which the table is complete.
"""

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn.errors import UserError
from stn.report import tables
from stn.report.blocks import markdown_table
from stn.report.captions import format_duration, format_span
from stn.report.records import Record
from stn.report.weights import weights_block

REPORTS = Path("reports")
MARK = re.compile(r"<!-- ([\w@/.-]+):(?:begin|end) -->")
TABLE = re.compile(r"table(?P<number>\d+)(@(?P<budget>\w+))?(/(?P<section>[\w-]+))?")
EXPERIMENT = re.compile(r"^<!-- index: (?P<about>\{.*\}) -->$", re.MULTILINE)
PURPOSES = {
    "smoke": "Does everything run? Its numbers mean nothing.",
    "demo": "`make demo`: narrow networks and images that need no download.",
    "quick": "A laptop. `make table` trains this one.",
    "medium": "A night on a laptop: `quick` with five times the steps.",
    "paper": "The paper's own schedule. Use a GPU.",
}
MEANT = ("↓", "↑", "≈", "†", "‡")  # marks that the front page explains
ABSENT = "The records here do not give this part"  # what a page shows instead of such a block
OURS, PLAIN_LOOP = "ours", "plain PyTorch loop"  # contestants, as the records of `make bench` call them


class NoRecords(UserError):
    """The records of a block are not here: they are of another budget, or of cells that `params.yaml` leaves out."""


@dataclass(frozen=True)
class Report:
    """The records of a table.

    Attributes:
        budgets: the records at each budget that has any, the leading budget first. One empty list if there are none.
        stem: the name of the files of the leading budget, such as "table1-paper".
    """

    budgets: Sequence[Sequence[Record]]
    stem: str

    @property
    def leading(self) -> Sequence[Record]:
        return self.budgets[0]


@dataclass(frozen=True)
class Sources:
    """The sources of blocks.

    Attributes:
        report: the report of a table, by its number.
        schedules: the settings of each budget, by its name.
        root: the folder that holds README.md, docs and reports.
    """

    report: Callable[[int], Report]
    schedules: Mapping[str, Mapping[str, Any]]
    root: Path = Path()

    def read(self, path: Path) -> str:
        """The text of a file below the root; UserError if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None


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


def find_pages(root: Path) -> list[Path]:
    """The existing pages among README.md and those of docs/, relative to `root`."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path.relative_to(root) for path in paths if path.is_file()]


def fill(page: Path, sources: Sources, numbers: Sequence[int]) -> str:
    """The text of a page with its blocks renewed; blocks of tables other than `numbers` stay as they are.

    A block without records says so and is no error, because a finished training must be able to write its pages.
    """
    text = sources.read(page)
    for name in dict.fromkeys(MARK.findall(text)):
        table = TABLE.fullmatch(name)
        if table is None or int(table["number"]) in numbers:
            try:
                try:
                    block = make_block(name, page, sources)
                except NoRecords as error:
                    block = f"{ABSENT}: {error}."
                text = tables.replace_block(text, name, block)
            except UserError as error:
                raise UserError(f"{page}, block {name}: {error}") from None
    return text


def make_block(name: str, page: Path, sources: Sources) -> str:
    """The block of that name for a page, whose links are relative to the page's folder.

    Raises UserError if there is no such block, NoRecords if its records are not here.
    """
    if table := TABLE.fullmatch(name):
        report = sources.report(int(table["number"]))
        return table_block(int(table["number"]), report, table["budget"], table["section"], page)
    kind, _, rest = name.partition("/")
    if kind == "bench" and rest:
        return bench_block(rest, sources)
    if kind == "trials" and rest:
        return trials_block(rest, sources)
    builders: Mapping[str, Callable[[Path, Sources], str]] = {
        "index": index_block,
        "results": results_block,
        "budgets": budgets_block,
        "costs": costs_block,
        "speed": speed_block,
        "weights": lambda page, sources: weights_block(sources.root),
    }
    if name not in builders:
        raise UserError(f"no such block; the blocks are {', '.join(builders)}, tableN, bench/NAME and trials/NAME")
    return builders[name](page, sources)


def _link(target: str | Path, page: Path) -> str:
    """A path below the root as a link from a page."""
    return Path(os.path.relpath(target, page.parent)).as_posix()


# ------------------------------------------------------------------------------------------------- tables


def table_block(number: int, report: Report, budget: str | None, section: str | None, page: Path) -> str:
    """The head of a table's report, or one of its sections, at the leading budget or another."""
    records, alternatives = report.leading, report.budgets[1:]
    if budget:
        records, alternatives = _at(budget, report), []
    markdown = tables.to_markdown(records, number, alternatives)
    if section:
        return _section(markdown, section)
    head = tables.readme_block(markdown)
    if budget:
        return head
    markdown_link, csv_link, tex_link = (
        _link(REPORTS / f"{report.stem}.{suffix}", page) for suffix in ("md", "csv", "tex")
    )
    links = f"[report]({markdown_link}), [CSV]({csv_link}), [LaTeX]({tex_link})"
    return f"{head}\n\nEvery cell with its interval, and all paired tests: {links}."


def _at(budget: str, report: Report) -> Sequence[Record]:
    for records in report.budgets:
        if records and records[0].budget == budget:
            return records
    raise (NoRecords if budget in PURPOSES else UserError)(f"no record at budget {budget}")


def _section(markdown: str, name: str) -> str:
    """The text of a section, without its heading."""
    sections = {}
    for part in markdown.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        sections[re.sub(r"\W+", "-", heading.strip().lower())] = text.strip()
    if name not in sections:
        raise NoRecords(f"no section {name}; the sections are {', '.join(sections) or 'none'}")
    return sections[name]


def _cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def results_block(page: Path, sources: Sources) -> str:
    """Table 1 at its leading budget: the cells with records, and a line that describes them."""
    report = sources.report(1)
    caption, *paragraphs = tables.readme_block(tables.to_markdown(report.leading, 1)).split("\n\n")
    matrix = next(text for text in paragraphs if text.startswith("|"))
    head, _, *body = map(_cells, matrix.splitlines())
    body = [line for line in body if any("**" in cell for cell in line)]
    indices = [i for i, _ in enumerate(head) if i == 0 or any("**" in line[i] for line in body)]
    legends = " ".join(text for text in paragraphs if text.startswith(MEANT))
    meanings = [text for text in re.split(r"(?<=\.) (?=[^a-z])", legends) if text.startswith(MEANT)]
    line = " ".join([caption.partition(" Trained on ")[0], *meanings])
    if not body:
        return line
    body = [[line[i] for i in indices] for line in body]
    return f"{line}\n\n{markdown_table([head[i] for i in indices], body, 'l' + 'r' * (len(indices) - 1))}"


# -------------------------------------------------------------------------------------------------- index


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
        _index_line(experiment, sources.report(experiment.table), _link(path, page))
        for experiment, path in find_experiments(sources.root)
    ]
    return markdown_table(head, body, "llrll")


def _index_line(experiment: Experiment, report: Report, link: str) -> list[str]:
    """A line of the index: for each column the best cell, at the longest budget that has half of the cells.

    A column that lacks cells at that budget is left out unless all do: its best network may be one of those not run.
    Rows on demand are left out: they are extra rows of ours, some of which are told what the others have to find.
    """
    name = f"[{experiment.title}]({link}{f'#{experiment.anchor}' if experiment.anchor else ''})"
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
    cells_of = {name: [cell for cell in table if cell["column"] == name] for name in names}
    for column in [name for name in names if len(cells_of[name]) == wanted[name]] or names:
        cells = cells_of[column]
        pick = max if cells[0]["metric"].startswith("accuracy") else min
        cell = pick(cells, key=lambda cell: float(cell["ours"]))
        best.append(f"{column} **{float(cell['ours']):.2f}**" + (f" {cell['row']}" if len(cells) > 1 else ""))
        printed = [float(cell["paper"]) for cell in all_cells if cell["column"] == column and cell["paper"]]
        references.append(f"{pick(printed):.1f}" if printed else "–")
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


# ------------------------------------------------------------------------------------------- cost, speed


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
        names = [f"[{experiment.title}]({_link(path, page)})", *[""] * len(lines)]
        body += [[name, *lines[steps]] for name, steps in zip(names, sorted(lines), strict=False)]
    return markdown_table(["experiment", "budget", "training time, summed over cells, one seed"], body, "lll")


def _cost(records: Sequence[Record]) -> str:
    """For each machine the number of cells, and the training time of one seed of all of them in sequence."""
    cells = Counter[str]()
    seconds: dict[str, float] = defaultdict(float)
    for record in records:
        facts = record.seeds[0].provenance
        on_cpu = f"{facts.get('cpu') or 'unknown processor'}, {facts.get('cores', '?')} cores"
        machine = _short(facts.get("gpu") or on_cpu)
        cells[machine] += 1
        seconds[machine] += record.seeds[0].seconds
    return (
        "<br>".join(f"{n} cells, {format_duration(seconds[name])}: {name}" for name, n in sorted(cells.items())) or "–"
    )


def _short(machine: str) -> str:
    """The name of a processor or GPU without the parts that carry no information."""
    return machine.replace("(R)", "").replace(" Processor", "")


def speed_block(page: Path, sources: Sources) -> str:
    """Three figures, each with its hardware: training, the module alone, and the whole of Table 1 on a GPU."""
    training = [_against(name, sources, PLAIN_LOOP) for name in ("training-cpu", "training-cuda")]
    module = [_against(name, sources) for name in ("transformer-cpu", "transformer-cuda")]
    gpu = _machine(_bench("together-cuda", sources))
    *_, remark = bench_block("together-cuda", sources).split("\n\n")
    together = re.search(r"(?P<rate>[\d,]+) steps/s in all, (?P<minutes>\d+) minutes for ", remark)
    if together is None:
        raise UserError(f"reports/bench: cannot read {remark!r}")
    return "\n".join(
        [
            f"- **Training**, input included, against a plain PyTorch loop with a `DataLoader`: {'; '.join(training)}.",
            "- **The module alone** (affine, projective, spline; with and without backward) against the fastest of its "
            f"rivals, PyTorch's own functions included: {'; '.join(module)}.",
            f"- **All of Table 1 at budget `paper`**, three seeds: {together['minutes']} minutes without starts and "
            f"tests, from the {together['rate']} steps a second that eight cells at once make on {gpu}.",
        ]
    )


def _against(name: str, sources: Sources, rival: str | None = None) -> str:
    """How many times as fast ours is as `rival`, or as each row's fastest rival: the range of a record's medians."""
    record = _bench(name, sources)
    ratios = []
    for row in record["rows"]:
        rivals = {
            key: facts
            for key, facts in row["contestants"].items()
            if (key == rival if rival else key != OURS and facts["same_work"])
        }
        ratios += [min(facts["ours_is_times_as_fast"]["median"] for facts in rivals.values())] if rivals else []
    if not ratios:
        raise UserError(f"reports/bench/{name}.json: nothing is compared with {rival or 'ours'}")
    return f"{min(ratios):.2f} to {max(ratios):.2f} times as fast on {_machine(record)}"


def _bench(name: str, sources: Sources) -> dict[str, Any]:
    return dict(json.loads(sources.read(REPORTS / "bench" / f"{name}.json")))


def _machine(record: Mapping[str, Any]) -> str:
    provenance = record["provenance"]
    return _short(
        f"an {provenance['gpu']}" if provenance["gpu"] else f"{provenance['cores_used']} cores ({provenance['cpu']})"
    )


def bench_block(name: str, sources: Sources) -> str:
    """The section of reports/bench/README.md on a record, without its heading."""
    record = _bench(name, sources)
    sign = f"`{record['command']}`" if "command" in record else f"`{record['data']}`, {record['width']:g} times"
    for part in sources.read(REPORTS / "bench" / "README.md").split("\n## ")[1:]:
        if sign in part:
            return (part if "command" not in record else part.partition("\n")[2]).strip()
    raise UserError(f"reports/bench/README.md says nothing of {name}.json; `make bench` writes it again")


def trials_block(name: str, sources: Sources) -> str:
    """The trials of a CSV file: a line with what all have in common, and a table of what differs."""
    path = REPORTS / "trials" / f"{name}.csv"
    lines = list(csv.DictReader(io.StringIO(sources.read(path))))
    if not lines:
        raise UserError(f"{path} has no lines")
    common = {key: lines[0][key] for key in lines[0] if len(lines) > 1 and len({line[key] for line in lines}) == 1}
    keys = [key for key in lines[0] if key not in common]
    numeric = [all(re.fullmatch(r"-?[\d.]*", line[key] or "") for line in lines) for key in keys]
    table = markdown_table(
        [key.replace("_", " ") for key in keys],
        [[line[key] or "–" for key in keys] for line in lines],
        "".join("r" if is_numeric else "l" for is_numeric in numeric),
    )
    shared = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in common.items() if value)
    return f"In all of them: {shared}.\n\n{table}" if shared else table

"""Generated blocks of README.md and of the pages in docs/: from `<!-- NAME:begin -->` to `<!-- NAME:end -->`.

A page chooses its blocks by name:

    index                  a line for each experiment, as its page describes it (see `stn.report.index.Experiment`)
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
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stn.errors import UserError
from stn.report import tables
from stn.report.bench import bench_block, speed_block
from stn.report.blocks import REPORTS, NoRecords, Report, Sources, link, markdown_table, replace_block
from stn.report.index import PURPOSES, budgets_block, costs_block, index_block
from stn.report.records import Record
from stn.report.weights import weights_block

MARK = re.compile(r"<!-- ([\w@/.-]+):(?:begin|end) -->")
TABLE = re.compile(r"table(?P<number>\d+)(@(?P<budget>\w+))?(/(?P<section>[\w-]+))?")
MEANT = ("↓", "↑", "≈", "†", "‡")  # marks that the front page explains
ABSENT = "The records here do not give this part"  # what a page shows instead of such a block


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
                text = replace_block(text, name, block)
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
        link(REPORTS / f"{report.stem}.{suffix}", page) for suffix in ("md", "csv", "tex")
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
    evidence = tables.to_evidence(report.leading, 1)
    line = " ".join(filter(None, [caption.partition(" Trained on ")[0], evidence, *meanings]))
    if not body:
        return line
    body = [[line[i] for i in indices] for line in body]
    return f"{line}\n\n{markdown_table([head[i] for i in indices], body, 'l' + 'r' * (len(indices) - 1))}"


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

"""Renders a table, by its number, as Markdown, CSV, LaTeX and a grid for the terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from stn.experiments import find_tables
from stn.report.blocks import readme_block, replace_block, stale
from stn.report.csv import render_csv
from stn.report.evidence import describe_evidence
from stn.report.latex import render_latex
from stn.report.markdown import render_markdown
from stn.report.records import Record, load_records
from stn.report.terminal import render_terminal

__all__ = ["load", "readme_block", "replace_block", "stale"]
__all__ += ["to_csv", "to_evidence", "to_markdown", "to_terminal", "to_tex"]


def load(
    number: int,
    required: Iterable[Path],
    optional: Iterable[Path] = (),
    configs: Mapping[Path, Mapping[str, Any]] | None = None,
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> list[Record]:
    """The records of the table's declared cells: see `stn.report.records.load_records`."""
    return load_records(find_tables()[number], required, optional, configs, fill)


def to_markdown(records: Sequence[Record], number: int, alternatives: Sequence[Sequence[Record]] = ()) -> str:
    """See `stn.report.markdown.render_markdown`."""
    return render_markdown(find_tables()[number], records, alternatives)


def to_evidence(records: Sequence[Record], number: int) -> str:
    """See `stn.report.evidence.describe_evidence`."""
    return describe_evidence(find_tables()[number], records)


def to_csv(records: Sequence[Record]) -> str:
    """See `render_csv`; the records determine the table."""
    tables = list(find_tables().values())
    return render_csv(next((table for table in tables if records and records[0].row in table.rows), tables[0]), records)


def to_tex(records: Sequence[Record], number: int) -> str:
    """See `stn.report.latex.render_latex`."""
    return render_latex(find_tables()[number], records)


def to_terminal(records: Sequence[Record], number: int, alternatives: Sequence[Sequence[Record]] = ()) -> Group:
    """See `stn.report.terminal.render_terminal`."""
    return render_terminal(find_tables()[number], records, alternatives)
